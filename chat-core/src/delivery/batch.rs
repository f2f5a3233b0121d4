//! Accumulates the effects of one batch of shard records before they are committed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Stage;
use super::shard::{IdKey, is_new, is_next};
use crate::backend::{Commit, ConversationState, FeedDelivery, Record, Route, SenderState};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, MessageId, Seq};
use crate::model::session_event::SessionEvent;

/// States by conversation.
pub(super) type States = HashMap<ConversationId, ConversationState>;

/// Cached conversation states of a shard after its last batch. Valid for one ownership epoch only.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    pub ownership_epoch: u64,
    pub states: States,
}

/// Effects of a batch of records that is not committed yet.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub states: States,
    /// Routes of the connections that wait for answers.
    pub replies: Vec<Route>,
    pub commits: HashMap<ConversationId, Commit>,
    /// Conversations in the order of their first commit.
    pub order: Vec<ConversationId>,
    pub ids: HashMap<IdKey, Seq>,
    pub events: Vec<(DeviceAddress, SessionEvent)>,
    /// Events for all readers of feeds.
    pub feeds: BTreeMap<ConversationId, FeedDelivery>,
    /// Devices that already get a `Lagged` event in this batch: at most one each.
    pub looking: HashSet<InstallationId>,
    /// Trace stages, recorded when the batch is committed.
    pub stages: Vec<(MessageId, Stage)>,
}

impl Batch {
    /// Takes the commits, in the order of their first record.
    pub(super) fn take_commits(&mut self) -> Vec<Commit> {
        self.order.iter().filter_map(|id| self.commits.remove(id)).collect()
    }

    /// Returns the events for the readers of a feed, whose roster changed last at a seq.
    pub(super) fn feed(&mut self, conversation: ConversationId, changed_at: Seq) -> &mut FeedDelivery {
        self.feeds.entry(conversation).or_insert_with(|| FeedDelivery::new(conversation, changed_at))
    }

    /// Adds the commit of one record.
    pub(super) fn add(&mut self, commit: Commit) {
        self.states.entry(commit.conversation).or_default().apply(&commit.state);
        match self.commits.get_mut(&commit.conversation) {
            Some(known) => known.merge(commit),
            None => {
                self.order.push(commit.conversation);
                self.commits.insert(commit.conversation, commit);
            }
        }
    }
}

/// Returns the deduplication key of a record, if it has one.
pub(super) fn id_key(record: &Record) -> Option<IdKey> {
    let command = &record.command;
    Some((command.conversation(), command.sender.installation, command.dedupe_id()?))
}

/// Returns the ids of a batch that may be stored already, according to its states.
pub(super) fn dedup_candidates(states: &States, records: &[Record]) -> BTreeSet<IdKey> {
    let mut expected: HashMap<(ConversationId, InstallationId), SenderState> = HashMap::new();
    let mut keys = BTreeSet::new();
    for record in records {
        let command = &record.command;
        let Some(number) = command.number() else { continue };
        let sender = command.sender.installation;
        let known = states.get(&number.conversation).and_then(|state| state.senders.get(&sender));
        let last = expected
            .entry((number.conversation, sender))
            .or_insert_with(|| known.copied().unwrap_or_default());
        if !is_new(*last, command, number) {
            keys.extend(id_key(record));
        }
        if is_next(*last, number) {
            *last = SenderState::after(number);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::StateChange;
    use crate::model::id::UserId;

    #[test]
    fn batch_names_each_conversation_once() {
        let user = |n: u8| UserId::from_bytes([n; 16]);
        let (one, two) = (ConversationId::own(user(1)), ConversationId::own(user(2)));
        let mut batch = Batch::default();
        for (seq, conversation) in [(1, one), (1, two), (2, one), (2, two), (3, one)] {
            let mut state = StateChange::default();
            state.head.seq = seq;
            let ids = vec![(InstallationId::from_bytes([1; 16]), MessageId::NIL, seq)];
            batch.add(Commit { ids, ..Commit::of(conversation, state) });
        }
        let commits = batch.take_commits();
        let named: Vec<_> = commits.iter().map(|commit| (commit.conversation, commit.ids.len())).collect();
        assert_eq!(named, [(one, 3), (two, 2)]);
        assert_eq!(commits[0].state.head.seq, 3, "the state after the last record");
    }
}
