//! Encoding of a conversation's state in stores.

use bytes::Bytes;
use prost::Message as _;

use crate::backend::{ConversationState, Head, LogPosition, Member, SenderState};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{InstallationId, MessageId, UserId};
use crate::proto::store;

/// Encodes a state.
pub fn encode(state: &ConversationState) -> Vec<u8> {
    store::State {
        seq: state.head.seq,
        time_us: state.head.time_us,
        log_generation: state.head.position.generation,
        log_offset: state.head.position.offset,
        group_epoch: state.head.group_epoch,
        members: state
            .members
            .iter()
            .map(|m| store::Member {
                user: m.user.to_bytes(),
                list_version: m.list_version,
                installations: m.installations.iter().map(|i| i.to_bytes()).collect(),
            })
            .collect(),
        senders: state
            .senders
            .iter()
            .map(|(installation, s)| store::Sender {
                installation: installation.to_bytes(),
                incarnation: s.incarnation,
                client_seq: s.client_seq,
                prev: s.prev.to_bytes(),
            })
            .collect(),
    }
    .encode_to_vec()
}

/// Decodes a state written by [`encode`].
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the bytes are not a state.
pub fn decode(bytes: &[u8]) -> Result<ConversationState> {
    let corrupt = || Error::new(ErrorKind::Corrupt, "failed to decode the state of a conversation");
    let raw = store::State::decode(Bytes::copy_from_slice(bytes)).map_err(|e| corrupt().caused_by(e))?;
    let members = raw.members.into_iter().map(|m| {
        Ok(Member {
            user: UserId::parse(&m.user)?,
            list_version: m.list_version,
            installations: m.installations.iter().map(|i| InstallationId::parse(i)).collect::<Result<_>>()?,
        })
    });
    let senders = raw.senders.into_iter().map(|s| {
        let state = SenderState {
            incarnation: s.incarnation,
            client_seq: s.client_seq,
            prev: MessageId::parse(&s.prev)?,
        };
        Ok((InstallationId::parse(&s.installation)?, state))
    });
    Ok(ConversationState {
        head: Head {
            seq: raw.seq,
            time_us: raw.time_us,
            position: LogPosition { generation: raw.log_generation, offset: raw.log_offset },
            group_epoch: raw.group_epoch,
        },
        members: members.collect::<Result<_>>().map_err(|e| corrupt().caused_by(e))?,
        senders: senders.collect::<Result<_>>().map_err(|e| corrupt().caused_by(e))?,
    })
}
