//! Outcomes of publishes and requests, on the wire and between nodes.

use super::{MAX_NUMBER, invalid};
use crate::model::envelope::{Durability, Refusal, Stored, Subject};
use crate::model::error::Result;
use crate::model::id::{ConversationId, MessageId, StoreEpoch, UserId};
use crate::proto;

pub(crate) fn stored_to_proto(s: &Stored) -> proto::Stored {
    let durability = match s.durability {
        Durability::Fsync => proto::Durability::Fsync,
        Durability::Memory => proto::Durability::Memory,
    };
    proto::Stored {
        conversation: s.conversation.to_bytes(),
        message_id: s.message_id.to_bytes(),
        client_seq: s.client_seq,
        incarnation: s.incarnation,
        seq: s.seq,
        store_epoch: s.store_epoch.to_bytes(),
        durability: durability.into(),
    }
}

pub(crate) fn stored_from_proto(raw: &proto::Stored) -> Result<Stored> {
    if raw.seq > MAX_NUMBER || raw.client_seq > MAX_NUMBER {
        return Err(invalid("a seq and a client_seq must be below 2^53"));
    }
    Ok(Stored {
        conversation: ConversationId::parse(&raw.conversation)?,
        message_id: MessageId::parse(&raw.message_id)?,
        client_seq: raw.client_seq,
        incarnation: raw.incarnation,
        seq: raw.seq,
        store_epoch: StoreEpoch::parse(&raw.store_epoch)?,
        durability: match raw.durability() {
            proto::Durability::Fsync => Durability::Fsync,
            _ => Durability::Memory,
        },
    })
}

pub(crate) fn refused_to_proto(subject: &Subject, refusal: &Refusal) -> proto::Refused {
    let mut raw = proto::Refused::default();
    match *subject {
        Subject::Message(conversation, message_id, client_seq, incarnation) => {
            raw.incarnation = incarnation;
            raw.conversation = conversation.to_bytes();
            raw.message_id = message_id.to_bytes();
            raw.client_seq = client_seq;
        }
        Subject::Request(id) => raw.request = id,
        Subject::Opening => {}
    }
    let reason = match refusal {
        Refusal::Retry(after) => {
            raw.retry_after = *after;
            proto::Reason::Retry
        }
        Refusal::Throttled(after) => {
            raw.retry_after = *after;
            proto::Reason::Throttled
        }
        Refusal::Expected(next) => {
            raw.expected = *next;
            proto::Reason::Expected
        }
        Refusal::Mismatch(users) => {
            raw.users = users.iter().map(|u| u.to_bytes()).collect();
            proto::Reason::Mismatch
        }
        Refusal::Conflict => proto::Reason::Conflict,
        Refusal::Superseded => proto::Reason::Superseded,
        Refusal::Denied => proto::Reason::Denied,
        Refusal::TooLarge => proto::Reason::TooLarge,
        Refusal::Quota => proto::Reason::Quota,
        Refusal::Unsupported => proto::Reason::Unsupported,
        Refusal::Invalid => proto::Reason::Invalid,
        Refusal::NotFound => proto::Reason::NotFound,
        Refusal::Taken => proto::Reason::Taken,
        Refusal::StaleRoster(version) => {
            raw.roster_version = *version;
            proto::Reason::StaleRoster
        }
        Refusal::NoContact(users) => {
            raw.users = users.iter().map(|u| u.to_bytes()).collect();
            proto::Reason::NoContact
        }
    };
    raw.reason = reason.into();
    raw
}

pub(crate) fn refused_from_proto(raw: proto::Refused) -> Result<(Subject, Refusal)> {
    let subject = if raw.request != 0 {
        Subject::Request(raw.request)
    } else if raw.message_id.is_empty() {
        Subject::Opening
    } else {
        Subject::Message(
            ConversationId::parse(&raw.conversation)?,
            MessageId::parse(&raw.message_id)?,
            raw.client_seq,
            raw.incarnation,
        )
    };
    let users =
        |raw: &proto::Refused| raw.users.iter().map(|user| UserId::parse(user)).collect::<Result<_>>();
    let refusal = match raw.reason() {
        proto::Reason::Expected => Refusal::Expected(raw.expected),
        proto::Reason::Conflict => Refusal::Conflict,
        proto::Reason::Mismatch => Refusal::Mismatch(users(&raw)?),
        proto::Reason::NoContact => Refusal::NoContact(users(&raw)?),
        proto::Reason::Superseded => Refusal::Superseded,
        proto::Reason::Denied => Refusal::Denied,
        proto::Reason::TooLarge => Refusal::TooLarge,
        proto::Reason::Quota => Refusal::Quota,
        proto::Reason::Unsupported => Refusal::Unsupported,
        proto::Reason::Throttled => Refusal::Throttled(raw.retry_after),
        proto::Reason::Invalid => Refusal::Invalid,
        proto::Reason::NotFound => Refusal::NotFound,
        proto::Reason::Taken => Refusal::Taken,
        proto::Reason::StaleRoster => Refusal::StaleRoster(raw.roster_version.min(MAX_NUMBER)),
        // A reason of a later version: the outcome is unknown, so the client must repeat the same ids.
        proto::Reason::Retry | proto::Reason::Unspecified => Refusal::Retry(raw.retry_after),
    };
    Ok((subject, refusal))
}
