//! Encoding of inbox rows on the wire and in stores.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::message_options::{options_from_proto, options_to_proto};
use super::roster::{part_from_proto, part_to_proto};
use super::{MAX_NUMBER, at_most, invalid};
use crate::model::envelope::{Audience, EmptyReason, InboxRow, Message, RowContent};
use crate::model::error::Result;
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, MessageId, Seq, UserId};
use crate::model::limits::MAX_AUDIENCE;
use crate::proto;

pub(crate) fn audience_to_proto(audience: &[Audience]) -> Vec<proto::Audience> {
    audience
        .iter()
        .map(|a| proto::Audience { user: a.user.to_bytes(), list_version: a.list_version })
        .collect()
}

pub(crate) fn audience_from_proto(raw: Vec<proto::Audience>) -> Result<Vec<Audience>> {
    at_most(raw.len(), MAX_AUDIENCE, "too many users in an audience")?;
    raw.into_iter()
        .map(|a| {
            if a.list_version > MAX_NUMBER {
                return Err(invalid("the version of a device list must be below 2^53"));
            }
            Ok(Audience { user: UserId::parse(&a.user)?, list_version: a.list_version })
        })
        .collect()
}

pub(crate) fn prev_to_proto(prev: MessageId) -> Bytes {
    if prev == MessageId::NIL { Bytes::new() } else { prev.to_bytes() }
}

pub(crate) fn prev_from_proto(raw: &[u8]) -> Result<MessageId> {
    if raw.is_empty() { Ok(MessageId::NIL) } else { MessageId::parse(raw) }
}

const fn reason_to_proto(reason: EmptyReason) -> proto::EmptyReason {
    match reason {
        EmptyReason::Skip => proto::EmptyReason::Skip,
        EmptyReason::Expired => proto::EmptyReason::Expired,
        EmptyReason::Poison => proto::EmptyReason::Poison,
        EmptyReason::Excluded => proto::EmptyReason::Excluded,
        EmptyReason::Quota => proto::EmptyReason::Quota,
        EmptyReason::Withheld => proto::EmptyReason::Withheld,
        EmptyReason::Cleared => proto::EmptyReason::Cleared,
        EmptyReason::NotMember => proto::EmptyReason::NotMember,
        EmptyReason::Deleted => proto::EmptyReason::Deleted,
        EmptyReason::Disappeared => proto::EmptyReason::Disappeared,
    }
}

fn to_proto(row: &InboxRow) -> Option<proto::Row> {
    let content = match &row.content {
        RowContent::Unknown(_) => return None,
        RowContent::Message { message, sealed } => proto::row::Row::Message(proto::MessageRow {
            message_id: message.id.to_bytes(),
            user: message.sender.user.to_bytes(),
            device: u32::from(message.sender.device.get()),
            installation: message.sender.installation.to_bytes(),
            client_seq: message.client_seq,
            prev: prev_to_proto(message.prev),
            incarnation: message.incarnation,
            audience: audience_to_proto(&message.audience),
            body: message.body.clone(),
            r#box: sealed.clone(),
            sent_at: message.sent_at,
            options: options_to_proto(&message.options),
            group: message.group.as_deref().map(part_to_proto),
        }),
        RowContent::Own { message_id, client_seq, incarnation } => proto::row::Row::Own(proto::OwnRow {
            message_id: message_id.to_bytes(),
            client_seq: *client_seq,
            incarnation: *incarnation,
        }),
        RowContent::Empty { reason, from } => {
            proto::row::Row::Empty(proto::EmptyRow { reason: reason_to_proto(*reason).into(), from: *from })
        }
    };
    Some(proto::Row {
        conversation: row.conversation.to_bytes(),
        seq: row.seq,
        time_us: row.time_us,
        joined: row.joined,
        row: Some(content),
    })
}

/// Returns the row with the position of an encoded one.
fn row_at(raw: &proto::Row, content: RowContent) -> Result<InboxRow> {
    if raw.seq == 0 || raw.seq > MAX_NUMBER || raw.time_us > MAX_NUMBER {
        return Err(invalid("the seq of a row must be 1 to 2^53-1 and its time below 2^53"));
    }
    Ok(InboxRow {
        conversation: ConversationId::parse(&raw.conversation)?,
        seq: raw.seq,
        time_us: raw.time_us,
        joined: raw.joined,
        content,
    })
}

fn content_from_proto(raw: proto::row::Row, seq: Seq) -> Result<RowContent> {
    let number = match &raw {
        proto::row::Row::Message(m) => m.client_seq,
        proto::row::Row::Own(o) => o.client_seq,
        proto::row::Row::Empty(_) => 0,
    };
    if number > MAX_NUMBER {
        return Err(invalid("a client_seq must be below 2^53"));
    }
    Ok(match raw {
        proto::row::Row::Message(m) => RowContent::Message {
            message: Arc::new(Message {
                id: MessageId::parse(&m.message_id)?,
                sender: DeviceAddress {
                    user: UserId::parse(&m.user)?,
                    device: DeviceId::new(m.device)?,
                    installation: InstallationId::parse(&m.installation)?,
                },
                client_seq: m.client_seq,
                prev: prev_from_proto(&m.prev)?,
                incarnation: m.incarnation,
                audience: audience_from_proto(m.audience)?,
                body: m.body,
                sent_at: m.sent_at.min(MAX_NUMBER),
                options: options_from_proto(m.options)?,
                group: m.group.map(part_from_proto).transpose()?.map(Box::new),
            }),
            sealed: m.r#box,
        },
        proto::row::Row::Own(o) => RowContent::Own {
            message_id: MessageId::parse(&o.message_id)?,
            client_seq: o.client_seq,
            incarnation: o.incarnation,
        },
        proto::row::Row::Empty(e) => RowContent::Empty {
            reason: match e.reason() {
                proto::EmptyReason::Skip => EmptyReason::Skip,
                proto::EmptyReason::Expired => EmptyReason::Expired,
                proto::EmptyReason::Excluded => EmptyReason::Excluded,
                proto::EmptyReason::Quota => EmptyReason::Quota,
                proto::EmptyReason::Withheld => EmptyReason::Withheld,
                proto::EmptyReason::Cleared => EmptyReason::Cleared,
                proto::EmptyReason::NotMember => EmptyReason::NotMember,
                proto::EmptyReason::Deleted => EmptyReason::Deleted,
                proto::EmptyReason::Disappeared => EmptyReason::Disappeared,
                // Also a reason of a later release, which must not look like an early expiry.
                proto::EmptyReason::Poison | proto::EmptyReason::Unspecified => EmptyReason::Poison,
            },
            from: e.from.clamp(1, seq.max(1)),
        },
    })
}

/// Encodes a row for storage. Content that this release cannot read is written as it was read.
pub fn encode_row(row: &InboxRow) -> Vec<u8> {
    match (&row.content, to_proto(row)) {
        (RowContent::Unknown(bytes), _) => bytes.to_vec(),
        (_, raw) => raw.unwrap_or_default().encode_to_vec(),
    }
}

fn decode_proto(bytes: Bytes) -> Result<proto::Row> {
    proto::Row::decode(bytes).map_err(|e| invalid("not a row").caused_by(e))
}

/// Decodes a row written by [`encode_row`], of this or a later release. Content of an unknown kind is kept as
/// [`RowContent::Unknown`].
///
/// # Errors
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the bytes are not a row.
pub fn decode_row(bytes: Bytes) -> Result<InboxRow> {
    let mut raw = decode_proto(bytes.clone())?;
    let content = match raw.row.take() {
        Some(content) => content_from_proto(content, raw.seq)?,
        None => RowContent::Unknown(bytes),
    };
    row_at(&raw, content)
}

/// Decodes a row that a server sent. Content that breaks a rule is kept as [`RowContent::Unknown`] too, so that no row
/// stops a client.
///
/// # Errors
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the bytes are not a row, or its position is not valid.
pub(crate) fn decode_sent_row(bytes: Bytes) -> Result<InboxRow> {
    let mut raw = decode_proto(bytes.clone())?;
    let content = raw.row.take().and_then(|content| content_from_proto(content, raw.seq).ok());
    row_at(&raw, content.unwrap_or(RowContent::Unknown(bytes)))
}

/// Returns the encoded form of a row with this position, and with content that this release cannot read.
#[cfg(any(test, feature = "conformance"))]
pub(crate) fn encode_unknown_row(
    conversation: ConversationId,
    seq: Seq,
    time_us: u64,
    joined: bool,
) -> Bytes {
    /// Field 1000 of the row, with five bytes.
    const CONTENT: [u8; 8] = [0xc2, 0x3e, 5, b'l', b'a', b't', b'e', b'r'];
    let raw = proto::Row { conversation: conversation.to_bytes(), seq, time_us, joined, row: None };
    [&raw.encode_to_vec()[..], &CONTENT].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_unknown_kind_keeps_its_bytes() {
        let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
        let bytes = encode_unknown_row(conversation, 7, 9, true);
        let row = decode_row(bytes.clone()).unwrap();
        assert_eq!(row, decode_sent_row(bytes.clone()).unwrap());
        let content = RowContent::Unknown(bytes.clone());
        assert_eq!(row, InboxRow { conversation, seq: 7, time_us: 9, joined: true, content });
        assert_eq!(encode_row(&row), bytes);
    }

    #[test]
    fn row_with_content_that_breaks_a_rule_is_unknown_only_to_clients() {
        let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
        let own = proto::OwnRow { message_id: Bytes::from_static(b"short"), client_seq: 1, incarnation: 0 };
        let mut raw = proto::Row {
            conversation: conversation.to_bytes(),
            seq: 7,
            time_us: 9,
            joined: false,
            row: Some(proto::row::Row::Own(own)),
        };
        let bytes = Bytes::from(raw.encode_to_vec());
        assert!(decode_row(bytes.clone()).is_err());
        let row = decode_sent_row(bytes.clone()).unwrap();
        assert_eq!((row.seq, row.content), (7, RowContent::Unknown(bytes)));
        raw.seq = 0;
        let empty = proto::EmptyRow { reason: proto::EmptyReason::Skip.into(), from: 9 };
        for content in [raw.row.clone(), Some(proto::row::Row::Empty(empty)), None] {
            raw.row = content;
            let bytes = Bytes::from(raw.encode_to_vec());
            assert!(decode_sent_row(bytes.clone()).is_err() && decode_row(bytes).is_err(), "no position");
        }
    }
}
