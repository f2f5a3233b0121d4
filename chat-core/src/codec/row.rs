//! Encoding of inbox rows on the wire and in stores.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::{MAX_NUMBER, at_most, invalid};
use crate::model::envelope::{Audience, EmptyReason, InboxRow, Message, RowContent};
use crate::model::error::Result;
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, MessageId, UserId};
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
        .map(|a| Ok(Audience { user: UserId::parse(&a.user)?, list_version: a.list_version }))
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
    }
}

pub(crate) fn to_proto(row: &InboxRow) -> proto::Row {
    let content = match &row.content {
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
    proto::Row {
        conversation: row.conversation.to_bytes(),
        seq: row.seq,
        time_us: row.time_us,
        joined: row.joined,
        row: Some(content),
    }
}

pub(crate) fn from_proto(raw: proto::Row) -> Result<InboxRow> {
    if raw.seq == 0 || raw.seq > MAX_NUMBER || raw.time_us > MAX_NUMBER {
        return Err(invalid("the seq of a row must be 1 to 2^63-1 and its time below 2^63"));
    }
    let content = match raw.row.ok_or_else(|| invalid("a row has no content"))? {
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
                sent_at: m.sent_at,
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
                proto::EmptyReason::Poison => EmptyReason::Poison,
                _ => EmptyReason::Expired,
            },
            from: e.from.clamp(1, raw.seq),
        },
    };
    Ok(InboxRow {
        conversation: ConversationId::parse(&raw.conversation)?,
        seq: raw.seq,
        time_us: raw.time_us,
        joined: raw.joined,
        content,
    })
}

/// Encodes a row for storage.
pub fn encode_row(row: &InboxRow) -> Vec<u8> {
    to_proto(row).encode_to_vec()
}

/// Decodes a row written by [`encode_row`].
///
/// # Errors
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the bytes are not a row.
pub fn decode_row(bytes: Bytes) -> Result<InboxRow> {
    from_proto(proto::Row::decode(bytes).map_err(|e| invalid("not a row").caused_by(e))?)
}
