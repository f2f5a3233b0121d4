//! What the records of one turn of a shard add up to.

use std::collections::HashMap;

use super::shard::IdKey;
use super::{Event, Stage};
use crate::backend::{Commit, ConversationState, Record, Route};
use crate::id::{ConversationId, DeviceAddress, MessageId, Seq};

/// Conversations and where they stand.
pub(super) type States = HashMap<ConversationId, ConversationState>;

/// What a shard remembers: its conversations as its last batch left them, good for one tenure.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    pub tenure: u64,
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
    pub events: Vec<(DeviceAddress, Event)>,
    /// What happened to messages, once it is committed.
    pub steps: Vec<(MessageId, Stage)>,
}

impl Batch {
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
