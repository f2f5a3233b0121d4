//! Encoding of the parts of a conversation's state in stores.
//!
//! A store keeps the head, the roster and each sender as a value of its own, so that a commit writes only the parts
//! that it changes.

use bytes::Bytes;
use prost::Message as _;

use super::roster::{roster_from_proto, roster_to_proto};
use crate::backend::{ConversationState, Head, LogPosition, Member, Roster, Rules, SenderState};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{InstallationId, MessageId, UserId};
use crate::proto::{self, store};

fn corrupt(source: Error) -> Error {
    Error::new(ErrorKind::Corrupt, "failed to decode the state of a conversation").caused_by(source)
}

/// Decodes a value, and converts it.
fn decode<T: prost::Message + Default, V>(bytes: &[u8], convert: impl FnOnce(T) -> Result<V>) -> Result<V> {
    T::decode(bytes).map_err(Error::from).and_then(convert).map_err(corrupt)
}

/// Encodes a head.
pub fn encode_head(head: &Head) -> Vec<u8> {
    store::Head {
        seq: head.seq,
        time_us: head.time_us,
        log_generation: head.position.generation,
        log_offset: head.position.offset,
        rules: head.rules.0,
        region: 0,
        feed: head.is_feed,
    }
    .encode_to_vec()
}

/// Decodes a head written by [`encode_head`].
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the bytes are not a head.
pub fn decode_head(bytes: &[u8]) -> Result<Head> {
    decode(bytes, |raw: store::Head| {
        if raw.region != 0 {
            return Err(super::invalid("another region orders the conversation"));
        }
        Ok(Head {
            seq: raw.seq,
            time_us: raw.time_us,
            position: LogPosition { generation: raw.log_generation, offset: raw.log_offset },
            rules: Rules(raw.rules),
            is_feed: raw.feed,
        })
    })
}

/// Encodes a roster.
pub fn encode_roster(roster: &Roster) -> Vec<u8> {
    members_to_proto(roster).encode_to_vec()
}

/// Decodes a roster written by [`encode_roster`].
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the bytes are not a roster.
pub fn decode_roster(bytes: &[u8]) -> Result<Roster> {
    decode(bytes, members_from_proto)
}

/// Encodes the position of a sender. The key of the value must name the sender.
pub fn encode_sender(sender: &SenderState) -> Vec<u8> {
    sender_to_proto(Bytes::new(), sender).encode_to_vec()
}

/// Decodes a position written by [`encode_sender`].
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the bytes are not the position of a sender.
pub fn decode_sender(bytes: &[u8]) -> Result<SenderState> {
    decode(bytes, |raw: store::Sender| sender_from_proto(&raw))
}

/// Decodes the whole state of a conversation, which data sets of format 1 keep in one value.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the bytes are not a state.
pub fn decode_format_1(bytes: &[u8]) -> Result<ConversationState> {
    decode(bytes, |raw: store::State| {
        let position = LogPosition { generation: raw.log_generation, offset: raw.log_offset };
        let senders = raw.senders.iter().map(installed_sender_from_proto);
        Ok(ConversationState {
            head: Head { seq: raw.seq, time_us: raw.time_us, position, ..Head::default() },
            senders: senders.collect::<Result<_>>()?,
            roster: members_from_proto(store::Members { members: raw.members, roster: Bytes::new() })?,
        })
    })
}

pub(super) fn members_to_proto(roster: &Roster) -> store::Members {
    if roster.version > 0 {
        let roster = roster_to_proto(roster).encode_to_vec().into();
        return store::Members { members: Vec::new(), roster };
    }
    let members = roster.members.iter().map(|m| store::Member {
        user: m.user.to_bytes(),
        list_version: m.list_version,
        installations: m.installations.iter().map(|i| i.to_bytes()).collect(),
    });
    store::Members { members: members.collect(), roster: Bytes::new() }
}

pub(super) fn members_from_proto(raw: store::Members) -> Result<Roster> {
    if !raw.roster.is_empty() {
        let roster = roster_from_proto(proto::Roster::decode(raw.roster)?)?;
        if roster.version == 0 || !raw.members.is_empty() {
            return Err(super::invalid("the roster of a group has a version from 1, and the members"));
        }
        return Ok(roster);
    }
    let members = raw.members.into_iter().map(|m| {
        let installations = m.installations.iter().map(|i| InstallationId::parse(i));
        Ok(Member::new(UserId::parse(&m.user)?, m.list_version, installations.collect::<Result<_>>()?))
    });
    Ok(Roster::of_members(members.collect::<Result<_>>()?))
}

pub(super) fn sender_to_proto(installation: Bytes, sender: &SenderState) -> store::Sender {
    store::Sender {
        installation,
        incarnation: sender.incarnation,
        client_seq: sender.client_seq,
        prev: sender.prev.to_bytes(),
    }
}

fn sender_from_proto(raw: &store::Sender) -> Result<SenderState> {
    let prev = MessageId::parse(&raw.prev)?;
    Ok(SenderState { incarnation: raw.incarnation, client_seq: raw.client_seq, prev })
}

pub(super) fn installed_sender_from_proto(raw: &store::Sender) -> Result<(InstallationId, SenderState)> {
    Ok((InstallationId::parse(&raw.installation)?, sender_from_proto(raw)?))
}
