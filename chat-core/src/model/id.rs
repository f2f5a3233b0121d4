//! The ids of the system. Each is a fixed number of bytes, so that a frame is checked once, at the edge.

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
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The id's bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Reads the id from a slice.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`] if the slice has another length.
            pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
                match bytes.try_into() {
                    Ok(bytes) => Ok(Self(bytes)),
                    Err(_) => Err(Error::new(ErrorKind::Invalid, concat!($what, " has the wrong length"))),
                }
            }

            /// The id as bytes for the wire.
            pub fn to_bytes(self) -> Bytes {
                Bytes::copy_from_slice(&self.0)
            }

            /// The whole id in hexadecimal. Not for logs: `Debug` gives the short form they hold.
            pub fn to_hex(self) -> String {
                hex(&self.0)
            }

            /// Reads the form that [`Self::to_hex`] writes.
            ///
            /// # Errors
            /// [`ErrorKind::Invalid`] if the text is anything else.
            pub fn from_hex(text: &str) -> Result<Self, Error> {
                unhex(text)
                    .ok_or_else(|| Error::new(ErrorKind::Invalid, concat!($what, " is not hexadecimal")))
                    .and_then(|bytes| Self::parse(&bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // The last bytes: the first ones of a UUIDv7 are a clock and say little.
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
    /// An account. Opaque, 128 random bits, never used again. What people type is a [`Handle`].
    UserId, 16, "user"
);
byte_id!(
    /// One installation of the client, for ever: derived from its device key, so nobody else can take it.
    /// Storage is keyed by this, never by [`DeviceId`], which is used again.
    InstallationId, 16, "installation"
);
byte_id!(
    /// A message: a UUIDv7 made once by the sending device and kept through every retry. With the
    /// conversation and the sending installation it is the key of every deduplication.
    MessageId, 16, "message"
);
byte_id!(
    /// Which life of the data set this is. It changes when a store is made anew or restored; every
    /// cursor carries it.
    StoreEpoch, 16, "epoch"
);
byte_id!(
    /// A conversation. The first byte holds version and kind, the rest is a digest (direct, own,
    /// mailbox) or random (group, channel).
    ConversationId, 17, "conversation"
);

impl InstallationId {
    /// The installation whose Ed25519 device key this is.
    pub fn of_device_key(device_key: &[u8; 32]) -> Self {
        Self(digest16(b"chat/v1/installation", &[device_key]))
    }
}

impl MessageId {
    /// The id before the first: what `prev` of a first message holds.
    pub const NIL: Self = Self([0; 16]);

    /// A UUIDv7 (RFC 9562) of this time and this randomness.
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut id = [0; 16];
        id[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
        id[6..].copy_from_slice(&random);
        id[6] = (id[6] & 0x0f) | 0x70;
        id[8] = (id[8] & 0x3f) | 0x80;
        Self(id)
    }

    /// The usual form with dashes.
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

/// What a conversation is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ConversationKind {
    /// Two users.
    Direct,
    /// A user's own devices.
    Own,
    /// From one installation to another; never shown.
    Mailbox,
    /// A group of members.
    Group,
    /// Many readers, few writers.
    Channel,
}

impl ConversationId {
    const VERSION: u8 = 1 << 4;

    fn derived(kind: u8, domain: &[u8], parts: &[&[u8]]) -> Self {
        let mut id = [0; 17];
        id[0] = Self::VERSION | kind;
        id[1..].copy_from_slice(&digest16(domain, parts));
        Self(id)
    }

    /// The direct conversation of two users; the same from both sides. With oneself: [`Self::own`].
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

    /// The conversation of a user's own devices.
    pub fn own(user: UserId) -> Self {
        Self::derived(2, b"chat/v1/own", &[&user.0])
    }

    /// The mailbox from one installation to another.
    pub fn mailbox(from: InstallationId, to: InstallationId) -> Self {
        Self::derived(3, b"chat/v1/mailbox", &[&from.0, &to.0])
    }

    /// What it is.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a version or kind this release does not know.
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

/// A device of a user: 1 to 127, which is the range of the Signal protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DeviceId(u8);

impl DeviceId {
    /// A user's first device.
    pub const PRIMARY: Self = Self(1);

    /// # Errors
    /// [`ErrorKind::Invalid`] outside 1 to 127.
    pub fn new(id: u32) -> Result<Self, Error> {
        match u8::try_from(id) {
            Ok(id @ 1..=127) => Ok(Self(id)),
            _ => Err(Error::new(ErrorKind::Invalid, "a device id is 1 to 127")),
        }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A user's device, with the installation that is there now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DeviceAddress {
    /// The account.
    pub user: UserId,
    /// The device's small number.
    pub device: DeviceId,
    /// The installation, which storage keys hold.
    pub installation: InstallationId,
}

/// A place in a conversation: dense from 1, never used again. 0 is the place before the first.
pub type Seq = u64;

/// The sender's own count in (device, incarnation, conversation), dense from 1.
pub type ClientSeq = u64;

/// Which life of a device's local state a message was sent in.
pub type Incarnation = u32;

/// What people type to name a user: 1 to 64 characters of `a-z 0-9 . _ -`, beginning with a letter or
/// digit. Upper case is refused rather than folded, so that no two handles look alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Handle(String);

impl Handle {
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

    /// The text.
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
    fn a_conversation_knows_its_kind() {
        let (a, b) = (UserId([1; 16]), UserId([2; 16]));
        assert_eq!(ConversationId::direct(a, b).kind(), Ok(ConversationKind::Direct));
        assert_eq!(ConversationId::direct(a, a).kind(), Ok(ConversationKind::Own));
        assert!(ConversationId([0; 17]).kind().is_err());
    }

    #[test]
    fn handles_have_one_spelling() {
        for bad in ["", "Alice", "-a", "a b", "a\u{202e}b", "ａ", &"a".repeat(65)] {
            assert!(Handle::new(bad).is_err(), "{bad}");
        }
        assert!(Handle::new("alice-2.work_x").is_ok());
    }

    #[test]
    fn device_ids_are_the_range_of_signal() {
        assert!(DeviceId::new(0).is_err() && DeviceId::new(128).is_err() && DeviceId::new(257).is_err());
        assert!(DeviceId::new(1).is_ok() && DeviceId::new(127).is_ok());
    }

    #[test]
    fn hex_round_trips_and_refuses_the_rest() {
        let id = UserId([0xa5; 16]);
        assert_eq!(UserId::from_hex(&id.to_hex()), Ok(id));
        assert!(UserId::from_hex("zz").is_err() && UserId::from_hex("é").is_err());
    }
}
