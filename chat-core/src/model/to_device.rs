//! Messages from one device to another that users do not see: the content of mailbox messages.
//!
//! They are encrypted and padded like any other content. The server sees neither the content nor its kind.

use bytes::Bytes;
use prost::Message as _;

use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, MessageId};
use crate::model::padding::{pad, unpad};

/// The content of a to-device message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ToDevice {
    /// Requests a message again: the device cannot decrypt this message of the recipient.
    Rerequest { conversation: ConversationId, id: MessageId },
    /// The content of a requested message, which fills its placeholder.
    Recovered { conversation: ConversationId, id: MessageId, content: Bytes },
    /// Empty. Its encryption carries the new session that the sender began.
    Renew,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Raw {
    /// Always 1.
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(enumeration = "Kind", tag = "2")]
    kind: i32,
    #[prost(bytes = "bytes", tag = "3")]
    conversation: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    message_id: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    content: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Unspecified = 0,
    Rerequest = 1,
    Recovered = 2,
    Renew = 3,
}

impl ToDevice {
    /// Returns the encoded and padded content.
    ///
    /// ```
    /// use chat_core::to_device::ToDevice;
    /// assert_eq!(ToDevice::decode(&ToDevice::Renew.encode()), Ok(ToDevice::Renew));
    /// ```
    pub fn encode(&self) -> Bytes {
        let (kind, about, content) = match self {
            Self::Rerequest { conversation, id } => (Kind::Rerequest, Some((conversation, id)), None),
            Self::Recovered { conversation, id, content } => {
                (Kind::Recovered, Some((conversation, id)), Some(content.clone()))
            }
            Self::Renew => (Kind::Renew, None, None),
        };
        let bytes = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice).unwrap_or_default();
        let raw = Raw {
            version: 1,
            kind: kind.into(),
            conversation: bytes(about.map(|(conversation, _)| &conversation.as_bytes()[..])),
            message_id: bytes(about.map(|(_, id)| &id.as_bytes()[..])),
            content: content.unwrap_or_default(),
        };
        pad(raw.encode_to_vec()).into()
    }

    /// Decodes padded content.
    ///
    /// # Errors
    /// `Invalid` if the bytes are not a to-device message.
    pub fn decode(padded: &[u8]) -> Result<Self> {
        let invalid = || Error::new(ErrorKind::Invalid, "not a to-device message");
        let raw = Raw::decode(unpad(padded)?).map_err(|_| invalid())?;
        let about = || Ok((ConversationId::parse(&raw.conversation)?, MessageId::parse(&raw.message_id)?));
        match (raw.version, Kind::try_from(raw.kind)) {
            (1, Ok(Kind::Rerequest)) => {
                about().map(|(conversation, id)| Self::Rerequest { conversation, id })
            }
            (1, Ok(Kind::Recovered)) => about().map(|(conversation, id)| Self::Recovered {
                conversation,
                id,
                content: raw.content.clone(),
            }),
            (1, Ok(Kind::Renew)) => Ok(Self::Renew),
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_round_trips_and_other_bytes_are_refused() {
        let conversation = ConversationId::from_bytes([0x11; 17]);
        let id = MessageId::from_bytes([7; 16]);
        for said in [
            ToDevice::Rerequest { conversation, id },
            ToDevice::Recovered { conversation, id, content: Bytes::from_static(b"\0\0") },
            ToDevice::Renew,
        ] {
            assert_eq!(ToDevice::decode(&said.encode()), Ok(said));
        }
        assert!(ToDevice::decode(&[]).is_err() && ToDevice::decode(&pad(vec![8, 2])).is_err());
    }
}
