//! The numbers of changes that have no durable event, so that open timelines notice them.

use std::collections::HashMap;

use chat_core::ConversationId;

/// The last change of each kind, of each conversation. It is kept in memory: the numbers of a later instance are higher.
#[derive(Debug)]
pub(crate) struct Revisions {
    first: u64,
    last: u64,
    /// Something that any message may show, such as a handle.
    all: u64,
    contents: HashMap<ConversationId, u64>,
    statuses: HashMap<ConversationId, u64>,
}

impl Revisions {
    /// Returns numbers that begin at the time in milliseconds since 1970, which is above all that an earlier instance used.
    pub(super) fn beginning_at(ms: u64) -> Self {
        Self { first: ms, last: ms, all: 0, contents: HashMap::new(), statuses: HashMap::new() }
    }

    const fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Returns the number of the last change.
    pub(crate) const fn last(&self) -> u64 {
        self.last
    }

    /// Notes a change of something that any message may show.
    pub(super) const fn touch_all(&mut self) {
        self.all = self.next();
    }

    /// Notes a change of messages of a conversation.
    pub(super) fn touch(&mut self, conversation: ConversationId) {
        let number = self.next();
        self.contents.insert(conversation, number);
    }

    /// Notes a change of the receipts of a conversation, or of its read position.
    pub(super) fn touch_status(&mut self, conversation: ConversationId) {
        let number = self.next();
        self.statuses.insert(conversation, number);
    }

    /// Returns whether anything may have changed that all conversations show.
    pub(crate) const fn all_since(&self, number: u64) -> bool {
        number < self.first || number > self.last || self.all > number
    }

    /// Returns whether messages of a conversation may have changed after a number.
    pub(crate) fn contents_since(&self, conversation: ConversationId, number: u64) -> bool {
        self.all_since(number) || self.contents.get(&conversation).is_some_and(|last| *last > number)
    }

    /// Returns whether receipts of a conversation, or its read position, may have changed after a number.
    pub(crate) fn statuses_since(&self, conversation: ConversationId, number: u64) -> bool {
        self.all_since(number) || self.statuses.get(&conversation).is_some_and(|last| *last > number)
    }

    /// Returns the conversations with a change after a number.
    pub(crate) fn conversations_since(&self, number: u64) -> impl Iterator<Item = ConversationId> {
        let changed = self.contents.iter().chain(&self.statuses);
        changed.filter(move |(_, last)| **last > number).map(|(conversation, _)| *conversation)
    }
}
