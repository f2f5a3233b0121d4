//! The ids of the system. Most are a fixed number of bytes, checked once when a frame arrives.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::error::{Error, ErrorKind};

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Returns the id with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Returns the bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Reads an id from a slice.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`] if the slice has the wrong length.
            pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
                match bytes.try_into() {
                    Ok(bytes) => Ok(Self(bytes)),
                    Err(_) => Err(Error::new(ErrorKind::Invalid, concat!($what, " has the wrong length"))),
                }
            }

            /// Returns the id as bytes for the wire.
            pub fn to_bytes(self) -> Bytes {
                Bytes::copy_from_slice(&self.0)
            }

            /// Returns the whole id in hexadecimal. Not for logs: they use the short form of `Debug`.
            pub fn to_hex(self) -> String {
                hex(&self.0)
            }

            /// Reads an id in the form that [`Self::to_hex`] writes.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`] if the text is not hexadecimal or has the wrong length.
            pub fn from_hex(text: &str) -> Result<Self, Error> {
                unhex(text)
                    .ok_or_else(|| Error::new(ErrorKind::Invalid, concat!($what, " is not hexadecimal")))
                    .and_then(|bytes| Self::parse(&bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // The last bytes, because the first bytes of a UUIDv7 are a timestamp and barely differ.
                write!(f, "{}…{}", $what, hex(&self.0[$len - 3..]))
            }
        }
    };
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

byte_id!(
    /// Id of an account: 128 opaque random bits, never reused. Users type a [`Handle`] instead.
    UserId, 16, "user"
);
byte_id!(
    /// Permanent id of one installation of the client. It is derived from the device key, so no other
    /// installation can use it. Storage is keyed by this id and never by [`DeviceId`], which is reused.
    InstallationId, 16, "installation"
);
byte_id!(
    /// Id of a message: a UUIDv7 that the sending device creates once and keeps for every retry. Together
    /// with the conversation and the sending installation it is the deduplication key.
    MessageId, 16, "message"
);
byte_id!(
    /// Id of a sender key: 128 random bits. A device encrypts its messages in a group with its sender key.
    SenderKeyId, 16, "sender key"
);
byte_id!(
    /// Id of an encrypted file that messages reference: 128 random bits.
    MediaId, 16, "media"
);
byte_id!(
    /// Epoch of a data set. It changes when a store is recreated or restored. Cursors are valid only within
    /// one epoch.
    StoreEpoch, 16, "epoch"
);
byte_id!(
    /// Id of a conversation. The first byte holds the version and the kind. The rest is a digest.
    ConversationId, 17, "conversation"
);

impl InstallationId {
    /// Returns the installation with this Ed25519 device key.
    pub fn of_device_key(device_key: &[u8; 32]) -> Self {
        Self(digest16(b"chat/v1/installation", &[device_key]))
    }
}

impl MessageId {
    /// The nil id: the `prev` of a sender's first message.
    pub const NIL: Self = Self([0; 16]);

    /// Returns a UUIDv7 (RFC 9562) with this time and this randomness.
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut id = [0; 16];
        id[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
        id[6..].copy_from_slice(&random);
        id[6] = (id[6] & 0x0f) | 0x70;
        id[8] = (id[8] & 0x3f) | 0x80;
        Self(id)
    }

    /// Returns the id of the skip that takes the place of this message.
    pub(crate) fn of_skip(self) -> Self {
        Self(digest16(b"chat/v1/skip", &[&self.0]))
    }

    /// Returns the usual UUID text form with dashes.
    pub fn to_uuid_string(self) -> String {
        let h = self.to_hex();
        format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }
}

impl Default for MessageId {
    fn default() -> Self {
        Self::NIL
    }
}

/// The kind of a conversation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ConversationKind {
    /// A conversation of two users.
    Direct,
    /// A conversation of a user's own devices.
    Own,
    /// Messages from one installation to another that clients do not show.
    Mailbox,
    /// A group of members.
    Group,
    /// A channel: its members write, and any number of subscribed devices read.
    Channel,
}

impl ConversationKind {
    /// Returns whether conversations of this kind have a roster, and messages that all devices open with one key.
    pub const fn has_roster(self) -> bool {
        matches!(self, Self::Group | Self::Channel)
    }
}

impl ConversationId {
    const VERSION: u8 = 1 << 4;

    fn derived(kind: u8, domain: &[u8], parts: &[&[u8]]) -> Self {
        let mut id = [0; 17];
        id[0] = Self::VERSION | kind;
        id[1..].copy_from_slice(&digest16(domain, parts));
        Self(id)
    }

    /// Returns the direct conversation of two users, in either order. For one user twice: [`Self::own`].
    ///
    /// ```
    /// use chat_core::{ConversationId, UserId};
    /// let (a, b) = (UserId::from_bytes([1; 16]), UserId::from_bytes([2; 16]));
    /// assert_eq!(ConversationId::direct(a, b), ConversationId::direct(b, a));
    /// ```
    pub fn direct(a: UserId, b: UserId) -> Self {
        if a == b {
            return Self::own(a);
        }
        let (low, high) = if a < b { (a, b) } else { (b, a) };
        Self::derived(1, b"chat/v1/direct", &[&low.0, &high.0])
    }

    /// Returns the conversation of a user's own devices.
    pub fn own(user: UserId) -> Self {
        Self::derived(2, b"chat/v1/own", &[&user.0])
    }

    /// Returns the mailbox from one installation to another.
    pub fn mailbox(from: InstallationId, to: InstallationId) -> Self {
        Self::derived(3, b"chat/v1/mailbox", &[&from.0, &to.0])
    }

    /// Returns the group that this message of this device founded: `founding` is its encoded
    /// [`Create`](crate::group::GroupAction::Create) action. So no other device can found the same group.
    pub fn group(founder: DeviceAddress, message: MessageId, founding: &[u8]) -> Self {
        let parts: [&[u8]; 4] = [&founder.user.0, &founder.installation.0, &message.0, founding];
        Self::derived(4, b"chat/v1/group", &parts)
    }

    /// Returns the channel that this message of this device founded, like [`group`](Self::group).
    pub fn channel(founder: DeviceAddress, message: MessageId, founding: &[u8]) -> Self {
        let parts: [&[u8]; 4] = [&founder.user.0, &founder.installation.0, &message.0, founding];
        Self::derived(5, b"chat/v1/channel", &parts)
    }

    /// Returns whether this message of this device founded this group or channel.
    pub fn is_founded_by(self, founder: DeviceAddress, message: MessageId, founding: &[u8]) -> bool {
        self == Self::group(founder, message, founding) || self == Self::channel(founder, message, founding)
    }

    /// Returns whether the conversation is a group or a channel: its messages have a part for all members, and a roster
    /// says who they are.
    pub fn has_roster(self) -> bool {
        self.kind().is_ok_and(ConversationKind::has_roster)
    }

    /// Returns whether the conversation is a channel.
    pub fn is_channel(self) -> bool {
        self.kind() == Ok(ConversationKind::Channel)
    }

    /// Returns the kind of the conversation.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a version or kind that this release does not support.
    pub fn kind(self) -> Result<ConversationKind, Error> {
        match self.0[0] {
            0x11 => Ok(ConversationKind::Direct),
            0x12 => Ok(ConversationKind::Own),
            0x13 => Ok(ConversationKind::Mailbox),
            0x14 => Ok(ConversationKind::Group),
            0x15 => Ok(ConversationKind::Channel),
            _ => Err(Error::new(ErrorKind::Invalid, "unknown kind of conversation")),
        }
    }
}

/// Number of a user's device: 1 to 127, the range of the Signal protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32")]
pub struct DeviceId(u8);

impl TryFrom<u32> for DeviceId {
    type Error = Error;

    fn try_from(id: u32) -> Result<Self, Error> {
        Self::new(id)
    }
}

impl DeviceId {
    /// The number of a user's first device.
    pub const PRIMARY: Self = Self(1);

    /// Returns the device id with this number.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] outside 1 to 127.
    pub fn new(id: u32) -> Result<Self, Error> {
        match u8::try_from(id) {
            Ok(id @ 1..=127) => Ok(Self(id)),
            _ => Err(Error::new(ErrorKind::Invalid, "a device id is 1 to 127")),
        }
    }

    /// Returns the number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A user's device and its current installation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DeviceAddress {
    pub user: UserId,
    /// The number of the device within the account.
    pub device: DeviceId,
    /// The id used in storage keys.
    pub installation: InstallationId,
}

/// Position in a conversation: dense from 1, never reused. 0 is the position before the first message.
pub type Seq = u64;

/// The sender's own message counter, dense from 1 in (device, incarnation, conversation).
pub type ClientSeq = u64;

/// Number of a lifetime of a device's local state. Every message carries the incarnation it was sent in.
pub type Incarnation = u32;

/// The name that users type to address a user: 1 to 64 characters of `a-z 0-9 . _ -`, beginning with a letter
/// or digit. Upper case is refused rather than folded, so that no two handles look alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Handle(String);

impl TryFrom<String> for Handle {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        Self::new(&text)
    }
}

impl Handle {
    /// Returns the handle with this text.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for any other text.
    pub fn new(text: &str) -> Result<Self, Error> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::new(
                ErrorKind::Invalid,
                "a handle is 1 to 64 of a-z 0-9 . _ - and begins with a letter or digit",
            ))
        }
    }

    /// Returns the text of the handle.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle({} bytes)", self.0.len())
    }
}

fn digest16(domain: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(domain);
    for part in parts {
        hash.update(part);
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hash.finalize()[..16]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_id_is_a_uuid_version_7() {
        let id = MessageId::new(0x0123_4567_89ab, [0xff; 10]).to_uuid_string();
        assert_eq!(id, "01234567-89ab-7fff-bfff-ffffffffffff");
    }

    #[test]
    fn conversation_id_encodes_its_kind() {
        let (a, b) = (UserId([1; 16]), UserId([2; 16]));
        assert_eq!(ConversationId::direct(a, b).kind(), Ok(ConversationKind::Direct));
        assert_eq!(ConversationId::direct(a, a).kind(), Ok(ConversationKind::Own));
        assert!(ConversationId([0; 17]).kind().is_err());
    }

    #[test]
    fn handle_refuses_other_spellings() {
        for bad in ["", "Alice", "-a", "a b", "a\u{202e}b", "ａ", &"a".repeat(65)] {
            assert!(Handle::new(bad).is_err(), "{bad}");
        }
        assert!(Handle::new("alice-2.work_x").is_ok());
    }

    #[test]
    fn device_id_accepts_only_1_to_127() {
        assert!(DeviceId::new(0).is_err() && DeviceId::new(128).is_err() && DeviceId::new(257).is_err());
        assert!(DeviceId::new(1).is_ok() && DeviceId::new(127).is_ok());
    }

    #[test]
    fn hex_round_trips_and_refuses_other_text() {
        let id = UserId([0xa5; 16]);
        assert_eq!(UserId::from_hex(&id.to_hex()), Ok(id));
        assert!(UserId::from_hex("zz").is_err() && UserId::from_hex("é").is_err());
    }
}
