//! Invitations to groups.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chat_core::group::LinkSecret;
use chat_core::{ConversationId, Error, ErrorKind, Result};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::group_profile::check_name;

/// An invitation to a group or a channel: for one user, or, with a secret, a link for everyone that has it.
///
/// The secret of a channel's link is also its key: it lets read all posts.
///
/// `Display` writes it as a URL with everything after the `#`, so that no server sees it: `chat:join#…`. `FromStr` reads
/// any URL with such a fragment. `Debug` does not print the secret.
///
/// ```
/// # fn main() -> chat_client::Result<()> {
/// use chat_client::{ConversationId, GroupInvitation};
/// let group = ConversationId::from_bytes([0x14; 17]);
/// let invitation = GroupInvitation::new(group, Some("Hiking".into()), None)?;
/// let url = invitation.to_url("https://chat.example.org/join");
/// assert!(url.starts_with("https://chat.example.org/join#"));
/// assert_eq!(url.parse::<GroupInvitation>()?, invitation);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct GroupInvitation {
    group: ConversationId,
    name: Option<String>,
    secret: Option<LinkSecret>,
}

/// An invitation as messages and URLs have it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct RawInvitation {
    #[prost(bytes = "vec", tag = "1")]
    group: Vec<u8>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "3")]
    secret: Option<Vec<u8>>,
}

const fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

impl GroupInvitation {
    /// Returns an invitation to a group or a channel. A secret makes it a link.
    ///
    /// # Errors
    /// `Invalid` if the id is not that of a group or channel, or the name does not have 1 to 256 bytes.
    pub fn new(group: ConversationId, name: Option<String>, secret: Option<LinkSecret>) -> Result<Self> {
        if !group.has_roster() {
            return Err(invalid("an invitation is to a group or a channel"));
        }
        name.as_deref().map_or(Ok(()), check_name)?;
        Ok(Self { group, name, secret })
    }

    /// Returns the group or channel.
    pub const fn group(&self) -> ConversationId {
        self.group
    }

    /// Returns the name of the group when the invitation was made, by the word of the user that sent it.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the secret of a link.
    pub const fn secret(&self) -> Option<&LinkSecret> {
        self.secret.as_ref()
    }

    /// Returns the invitation as a URL. The base must have no fragment; an app chooses one that opens it.
    pub fn to_url(&self, base: &str) -> String {
        format!("{base}#{}", URL_SAFE_NO_PAD.encode(self.to_raw().encode_to_vec()))
    }

    pub(crate) fn to_raw(&self) -> RawInvitation {
        RawInvitation {
            group: self.group.as_bytes().to_vec(),
            name: self.name.clone(),
            secret: self.secret.as_ref().map(|secret| secret.as_bytes().to_vec()),
        }
    }

    pub(crate) fn from_raw(raw: RawInvitation) -> Result<Self> {
        let bytes = raw.secret.map(TryInto::try_into).transpose();
        let bytes = bytes.map_err(|_| invalid("the secret of a link has 32 bytes"))?;
        Self::new(ConversationId::parse(&raw.group)?, raw.name, bytes.map(LinkSecret::from_bytes))
    }
}

impl PartialEq for GroupInvitation {
    fn eq(&self, other: &Self) -> bool {
        let bytes = |one: &Self| one.secret.as_ref().map(|secret| *secret.as_bytes());
        (self.group, &self.name, bytes(self)) == (other.group, &other.name, bytes(other))
    }
}

impl Eq for GroupInvitation {}

impl fmt::Debug for GroupInvitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupInvitation")
            .field("group", &self.group)
            .field("is_link", &self.secret.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for GroupInvitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_url("chat:join"))
    }
}

impl FromStr for GroupInvitation {
    type Err = Error;

    /// Reads a URL.
    ///
    /// # Errors
    /// `Invalid` if it has no fragment, or the fragment is no invitation.
    fn from_str(url: &str) -> Result<Self> {
        let no_invitation = || invalid("the URL is no invitation to a group");
        let (_, fragment) = url.trim().split_once('#').ok_or_else(no_invitation)?;
        let encoded = URL_SAFE_NO_PAD.decode(fragment).map_err(|_| no_invitation())?;
        Self::from_raw(RawInvitation::decode(&encoded[..]).map_err(|_| no_invitation())?)
    }
}

impl From<GroupInvitation> for String {
    fn from(invitation: GroupInvitation) -> Self {
        invitation.to_string()
    }
}

impl TryFrom<String> for GroupInvitation {
    type Error = Error;

    fn try_from(url: String) -> Result<Self> {
        url.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_restores_an_invitation_and_refuses_others() {
        let group = ConversationId::from_bytes([0x14; 17]);
        let secret = || LinkSecret::from_bytes([9; 32]);
        for (name, secret) in [(None, None), (Some("Näme #1"), Some(secret())), (Some("x"), None)] {
            let invitation = GroupInvitation::new(group, name.map(str::to_owned), secret).unwrap();
            for url in [invitation.to_string(), format!(" {}\n", invitation.to_url("https://x.org/j?a=1"))] {
                assert_eq!(url.parse(), Ok(invitation.clone()));
            }
        }
        let link = GroupInvitation::new(group, None, Some(secret())).unwrap();
        assert!(!format!("{link:?}").contains("09"), "{link:?}");
        for wrong in ["", "chat:join", "chat:join#", "chat:join#%", "chat:join#AAAA", &"x#".repeat(9)] {
            assert!(wrong.parse::<GroupInvitation>().is_err(), "{wrong}");
        }
        let direct = ConversationId::from_bytes([0x11; 17]);
        assert!(GroupInvitation::new(direct, None, None).is_err());
        assert!(GroupInvitation::new(group, Some("x".repeat(257)), None).is_err());
        let short = RawInvitation { secret: Some(vec![1; 31]), ..link.to_raw() };
        assert!(GroupInvitation::from_raw(short).is_err());
    }
}
