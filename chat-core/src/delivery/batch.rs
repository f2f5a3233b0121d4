//! What the records of one turn of a shard add up to.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Stage;
use super::shard::{IdKey, is_new, is_next};
use crate::backend::{Commit, ConversationState, Record, Route, SenderState};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, MessageId, Seq};
use crate::model::session_event::SessionEvent;

/// Conversations and where they stand.
pub(super) type States = HashMap<ConversationId, ConversationState>;

/// What a shard remembers: its conversations as its last batch left them, good for one ownership_epoch.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    pub ownership_epoch: u64,
    pub states: States,
}

/// What a batch of records adds up to before it is committed.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub states: States,
    /// Connections that wait for answers.
    pub replies: Vec<Route>,
    pub commits: HashMap<ConversationId, Commit>,
    /// Conversations in the order of their first commit.
    pub order: Vec<ConversationId>,
    pub ids: HashMap<IdKey, Seq>,
    pub events: Vec<(DeviceAddress, SessionEvent)>,
    /// Devices that are told to look into their inbox: once a batch.
    pub looking: HashSet<InstallationId>,
    /// What happened to messages, once it is committed.
    pub stages: Vec<(MessageId, Stage)>,
}

impl Batch {
    /// What is to be committed, in the order of first commits.
    pub(super) fn take_commits(&mut self) -> Vec<Commit> {
        self.order.iter().filter_map(|id| self.commits.remove(id)).collect()
    }

    /// Adds what one record makes true.
    pub(super) fn add(&mut self, commit: Commit) {
        self.states.insert(commit.conversation, commit.state.clone());
        match self.commits.get_mut(&commit.conversation) {
            Some(known) => {
                known.history.extend(commit.history);
                known.ids.extend(commit.ids);
                known.inbox.extend(commit.inbox);
                known.generations.extend(commit.generations);
                known.state = commit.state;
            }
            None => {
                self.order.push(commit.conversation);
                self.commits.insert(commit.conversation, commit);
            }
        }
    }
}

/// What a record's id is found by.
pub(super) fn id_key(record: &Record) -> IdKey {
    let number = record.command.number();
    (number.conversation, record.command.sender.installation, number.message_id)
}

/// The ids of a batch that may be stored already, as far as its states tell.
pub(super) fn dedup_candidates(states: &States, records: &[Record]) -> BTreeSet<IdKey> {
    let mut expected: HashMap<(ConversationId, InstallationId), SenderState> = HashMap::new();
    let mut keys = BTreeSet::new();
    for record in records {
        let command = &record.command;
        let (number, sender) = (command.number(), command.sender.installation);
        let known = states.get(&number.conversation).and_then(|state| state.senders.get(&sender));
        let last = expected
            .entry((number.conversation, sender))
            .or_insert_with(|| known.copied().unwrap_or_default());
        if !is_new(*last, command) {
            keys.insert(id_key(record));
        }
        if is_next(*last, number) {
            *last = SenderState::after(number);
        }
    }
    keys
}
