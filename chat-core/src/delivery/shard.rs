//! What a shard decides about a command: a pure function, so that two owners that overlap, and every
//! replay of the log, write the same bytes.

use crate::backend::{Command, Commit, ConversationState, Member, Operation, Record, SenderState};
use crate::envelope::{EmptyReason, InboxRow, Message, Publish, Refusal, RowContent, SendNumber};
use crate::id::{ConversationKind, InstallationId, MessageId, Seq};
use crate::mutant::{Mutant, Mutants};

use std::sync::Arc;

/// What a shard does with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, clippy::large_enum_variant)]
pub enum Decision {
    /// It gets this seq; the changes are in the commit.
    Store(Seq, Commit),
    /// The message is stored already, at this seq. The commit, if there is one, only uses its new number up.
    Repeat(Seq, Option<Commit>),
    /// Nothing changes.
    Refuse(Refusal),
}

/// Decides about a record. `found` is the seq at which the sender's message of this id is stored, at or
/// below the head.
pub fn decide(state: &ConversationState, record: &Record, found: Option<Seq>, mutants: Mutants) -> Decision {
    let command = &*record.command;
    let number = *command.number();
    let known = state.senders.get(&command.sender.installation).copied().unwrap_or_default();
    let found = if mutants.has(Mutant::NoDedupe) { None } else { found };

    if number.incarnation < known.incarnation && !mutants.has(Mutant::OldIncarnationAccepted) {
        return found.map_or(Decision::Refuse(Refusal::Superseded), |seq| Decision::Repeat(seq, None));
    }
    let last = if number.incarnation > known.incarnation {
        SenderState { incarnation: number.incarnation, ..SenderState::default() }
    } else {
        known
    };
    if number.client_seq <= last.client_seq && !mutants.has(Mutant::AnyClientSeq) {
        return match found {
            Some(seq) => Decision::Repeat(seq, None),
            None if mutants.has(Mutant::NoDedupe) => accept(state, record, command, number),
            None => Decision::Refuse(Refusal::Conflict),
        };
    }
    if number.client_seq > last.client_seq + 1 && !mutants.has(Mutant::AnyClientSeq) {
        // Even if its message is stored (in an earlier incarnation): an answer would let the sender forget
        // a number that was not used up yet.
        return match found {
            Some(seq) if mutants.has(Mutant::RepeatAboveNext) => Decision::Repeat(seq, None),
            _ => Decision::Refuse(Refusal::Expected(last.client_seq + 1)),
        };
    }
    if number.prev != last.prev && !mutants.has(Mutant::NoPrevLink) && !mutants.has(Mutant::AnyClientSeq) {
        return Decision::Refuse(Refusal::Conflict);
    }
    if let Some(seq) = found {
        // An id of an earlier incarnation, sent again: it keeps its place and uses its new number up.
        let mut next = state.clone();
        note_sender(&mut next, record, number);
        return Decision::Repeat(seq, Some(commit(record, next)));
    }
    if let Some(verdict) = &command.verdict {
        return Decision::Refuse(verdict.clone());
    }
    let stale: Vec<_> = command
        .recipients
        .iter()
        .filter(|r| state.members.iter().any(|m| m.user == r.user && m.list_version > r.list_version))
        .map(|r| r.user)
        .collect();
    if !stale.is_empty() && !mutants.has(Mutant::StaleListAccepted) {
        return Decision::Refuse(Refusal::Mismatch(stale));
    }
    accept(state, record, command, number)
}

fn note_sender(state: &mut ConversationState, record: &Record, number: SendNumber) {
    state.head.position = record.position;
    let sender =
        SenderState { incarnation: number.incarnation, client_seq: number.client_seq, prev: number.message_id };
    state.senders.insert(record.command.sender.installation, sender);
}

fn commit(record: &Record, state: ConversationState) -> Commit {
    let number = record.command.number();
    Commit {
        conversation: number.conversation,
        history: Vec::new(),
        ids: Vec::new(),
        inbox: Vec::new(),
        generations: vec![(record.command.sender.installation, number.generation)],
        state,
    }
}

fn accept(state: &ConversationState, record: &Record, command: &Command, number: SendNumber) -> Decision {
    let mut next = state.clone();
    next.head.seq += 1;
    next.head.time_us = record.appended_us.max(next.head.time_us + 1);
    note_sender(&mut next, record, number);
    let (seq, time_us) = (next.head.seq, next.head.time_us);
    let mailbox = number.conversation.kind() == Ok(ConversationKind::Mailbox);
    let row = |joined, content| InboxRow { conversation: number.conversation, seq, time_us, joined, content };

    let joined: Vec<InstallationId> = command
        .recipients
        .iter()
        .flat_map(|r| &r.installations)
        .filter(|i| !state.members.iter().any(|m| m.installations.contains(i)))
        .copied()
        .collect();
    for recipient in &command.recipients {
        let member = Member {
            user: recipient.user,
            list_version: recipient.list_version,
            installations: recipient.installations.clone(),
        };
        match next.members.iter_mut().find(|m| m.user == member.user) {
            Some(known) => *known = member,
            None => next.members.push(member),
        }
    }

    let (content, boxes) = match &command.operation {
        Operation::Publish(publish) => (message_row(command, publish, time_us), &publish.boxes[..]),
        Operation::Void(_) => (RowContent::Empty { reason: EmptyReason::Void, from: seq }, &[][..]),
    };
    let own = RowContent::Own {
        message_id: number.message_id,
        client_seq: number.client_seq,
        incarnation: number.incarnation,
    };
    let mut made = commit(record, next);
    for member in &made.state.members {
        for installation in &member.installations {
            let joined = joined.contains(installation);
            let content = if *installation == command.sender.installation {
                own.clone()
            } else {
                match (&content, boxes.iter().find(|b| b.installation == *installation)) {
                    (RowContent::Message { message, .. }, Some(one)) => {
                        RowContent::Message { message: message.clone(), sealed: one.data.clone() }
                    }
                    // A member the command does not name, or a void: the seq still gets its row.
                    _ => RowContent::Empty { reason: EmptyReason::Void, from: seq },
                }
            };
            if !mailbox || *installation != command.sender.installation {
                made.inbox.push((*installation, row(joined, content)));
            }
        }
    }
    made.history.push(row(false, content));
    made.ids.push((command.sender.installation, number.message_id, seq));
    Decision::Store(seq, made)
}

fn message_row(command: &Command, publish: &Publish, time_us: u64) -> RowContent {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let commit_ms = time_us / 1000;
    let message = Message {
        id: publish.number.message_id,
        sender: command.sender,
        client_seq: publish.number.client_seq,
        prev: publish.number.prev,
        incarnation: publish.number.incarnation,
        audience: publish.audience.clone(),
        body: publish.body.clone(),
        sent_at: publish.sent_at.clamp(commit_ms.saturating_sub(DAY_MS), commit_ms),
    };
    RowContent::Message { message: Arc::new(message), sealed: bytes::Bytes::new() }
}

/// The key by which a batch looks up ids that it has just given a seq.
pub(super) type IdKey = (crate::id::ConversationId, InstallationId, MessageId);
