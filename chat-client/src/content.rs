//! The encoded content of a message: a versioned protobuf, padded so that its length reveals little.

use chat_core::padding::{pad, unpad};
use chat_core::replica::Unreadable;
use prost::Message as _;

use crate::invitation::{GroupInvitation, RawInvitation};
use crate::message::Content;

/// Version of the encoding.
const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RawContent {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, optional, tag = "2")]
    text: Option<String>,
    /// The name of the group, in a message that founds or edits a group, or adds members.
    #[prost(string, optional, tag = "3")]
    group_name: Option<String>,
    /// An invitation of the recipient, or the link of the group in a message of that group.
    #[prost(message, optional, tag = "4")]
    invitation: Option<RawInvitation>,
}

impl RawContent {
    fn encode_padded(self) -> Vec<u8> {
        pad(Self { version: VERSION, ..self }.encode_to_vec())
    }
}

/// Returns the encoded and padded content of a text message.
pub(crate) fn encode_text(text: &str) -> Vec<u8> {
    RawContent { text: Some(text.to_owned()), ..RawContent::default() }.encode_padded()
}

/// Returns the encoded and padded content of a message in a group, with the name of the group, its link, or both.
pub(crate) fn encode_group_details(name: Option<String>, link: Option<&GroupInvitation>) -> Vec<u8> {
    let invitation = link.map(GroupInvitation::to_raw);
    RawContent { group_name: name, invitation, ..RawContent::default() }.encode_padded()
}

/// Returns the encoded and padded content of an invitation.
pub(crate) fn encode_invitation(invitation: &GroupInvitation) -> Vec<u8> {
    encode_group_details(None, Some(invitation))
}

/// Returns the name and the link of the group in padded content.
pub(crate) fn group_details(content: &[u8]) -> (Option<String>, Option<GroupInvitation>) {
    let raw = unpad(content).ok().and_then(|bytes| RawContent::decode(bytes).ok()).unwrap_or_default();
    let invitation = raw.invitation.and_then(|raw| GroupInvitation::from_raw(raw).ok());
    (raw.group_name, invitation)
}

impl Content {
    /// Decodes padded content; without bytes, that of a cleared message. A later version's content without a text is [`Content::Unsupported`].
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            // Encoded content is padded.
            return Self::Cleared;
        }
        let raw = unpad(bytes).ok().and_then(|bytes| RawContent::decode(bytes).ok());
        match raw {
            Some(RawContent { text: Some(text), .. }) => Self::Text(text),
            Some(RawContent { group_name: Some(name), .. }) => Self::GroupName(name),
            Some(RawContent { invitation: Some(raw), .. }) => match GroupInvitation::from_raw(raw) {
                Ok(invitation) => Self::Invitation(Box::new(invitation)),
                Err(_) => Self::Unreadable(Unreadable::Malformed),
            },
            Some(_) => Self::Unsupported,
            None => Self::Unreadable(Unreadable::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_restores_any_encoded_text() {
        for text in ["", "\0\0", "x", &"é".repeat(1000), "\u{80}"] {
            assert_eq!(Content::decode(&encode_text(text)), Content::Text(text.into()));
        }
        for malformed in [&[0][..], &[0; 160]] {
            assert_eq!(Content::decode(malformed), Content::Unreadable(Unreadable::Malformed));
        }
        assert_eq!(Content::decode(&[]), Content::Cleared);
        assert_eq!(encode_text("hi").len(), encode_text("hello").len());
    }

    #[test]
    fn content_of_a_later_version_is_unsupported() {
        let later = pad(RawContent { version: 2, ..RawContent::default() }.encode_to_vec());
        assert_eq!(Content::decode(&later), Content::Unsupported);
    }
}
