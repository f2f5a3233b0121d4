//! Redo record of a commit: stores without atomic commits use it to finish a partly written commit.

use bytes::Bytes;
use prost::Message as _;

use super::state::{installed_sender_from_proto, members_from_proto, members_to_proto, sender_to_proto};
use super::{decode_row, encode_row};
use crate::backend::{Commit, FeedChange, Head, StateChange};
use crate::model::envelope::InboxRow;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, InstallationId, MessageId};
use crate::proto::store;

fn row_bytes(row: &InboxRow) -> Bytes {
    encode_row(row).into()
}

/// Encodes a commit without its head.
pub fn encode(commit: &Commit) -> Vec<u8> {
    let inbox = commit.inbox.iter();
    let ids = commit.ids.iter();
    let generations = commit.generations.iter();
    store::Redo {
        history: commit.history.iter().map(row_bytes).collect(),
        ids: ids
            .map(|(sender, id, seq)| store::RedoId {
                installation: sender.to_bytes(),
                message_id: id.to_bytes(),
                seq: *seq,
            })
            .collect(),
        inbox: inbox
            .map(|(device, row)| store::RedoInbox { installation: device.to_bytes(), row: row_bytes(row) })
            .collect(),
        generations: generations
            .map(|(device, generation)| store::RedoGeneration {
                installation: device.to_bytes(),
                generation: *generation,
            })
            .collect(),
        senders: commit.state.senders.iter().map(|(i, s)| sender_to_proto(i.to_bytes(), s)).collect(),
        members: commit.state.roster.as_ref().map(members_to_proto),
        deleted: commit.deleted.clone(),
        feeds: commit
            .feeds
            .iter()
            .map(|change| store::RedoFeed {
                installation: change.device.to_bytes(),
                seq: change.seq,
                joins: change.joins,
            })
            .collect(),
    }
    .encode_to_vec()
}

/// Decodes a redo record written by [`encode`] and combines it with the commit's head.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the bytes are not a redo record.
pub fn decode(bytes: Bytes, conversation: ConversationId, head: Head) -> Result<Commit> {
    read(bytes, conversation, head).map_err(|e| {
        Error::new(ErrorKind::Corrupt, "failed to decode the redo record of a commit").caused_by(e)
    })
}

fn read(bytes: Bytes, conversation: ConversationId, head: Head) -> Result<Commit> {
    let invalid = |e| super::invalid("not a commit").caused_by(e);
    let raw = store::Redo::decode(bytes).map_err(invalid)?;
    let ids = raw.ids.into_iter();
    let inbox = raw.inbox.into_iter();
    let generations = raw.generations.into_iter();
    Ok(Commit {
        conversation,
        history: raw.history.into_iter().map(decode_row).collect::<Result<_>>()?,
        ids: ids
            .map(|id| {
                Ok((InstallationId::parse(&id.installation)?, MessageId::parse(&id.message_id)?, id.seq))
            })
            .collect::<Result<_>>()?,
        inbox: inbox
            .map(|one| Ok((InstallationId::parse(&one.installation)?, decode_row(one.row)?)))
            .collect::<Result<_>>()?,
        generations: generations
            .map(|one| Ok((InstallationId::parse(&one.installation)?, one.generation)))
            .collect::<Result<_>>()?,
        deleted: raw.deleted,
        feeds: raw
            .feeds
            .iter()
            .map(|one| {
                let device = InstallationId::parse(&one.installation)?;
                Ok(FeedChange { device, seq: one.seq, joins: one.joins })
            })
            .collect::<Result<_>>()?,
        state: StateChange {
            head,
            roster: raw.members.map(members_from_proto).transpose()?,
            senders: raw.senders.iter().map(installed_sender_from_proto).collect::<Result<_>>()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Member, Roster, SenderState};
    use crate::model::envelope::{EmptyReason, RowContent};
    use crate::model::id::UserId;

    #[test]
    fn commit_round_trips() {
        let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
        let device = InstallationId::from_bytes([2; 16]);
        let content = RowContent::Empty { reason: EmptyReason::Skip, from: 7 };
        let row = InboxRow { conversation, seq: 7, time_us: 9, joined: true, content };
        let member = Member::new(UserId::from_bytes([1; 16]), 3, vec![device]);
        let commit = Commit {
            conversation,
            history: vec![row.clone()],
            ids: vec![(device, MessageId::from_bytes([3; 16]), 7)],
            inbox: vec![(device, row)],
            feeds: vec![FeedChange { device, seq: 5, joins: true }],
            generations: vec![(device, 4)],
            deleted: vec![2, 5],
            state: StateChange {
                head: Head { seq: 7, ..Head::default() },
                roster: Some(Roster::of_members(vec![member])),
                senders: [(device, SenderState { incarnation: 1, client_seq: 2, prev: MessageId::NIL })]
                    .into(),
            },
        };
        let head = commit.state.head;
        let bytes = encode(&commit);
        let read = |bytes: Vec<u8>| decode(bytes.into(), conversation, head);
        assert_eq!(read(bytes.clone()), Ok(commit));
        assert_eq!(read(bytes[..bytes.len() - 1].to_vec()).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
