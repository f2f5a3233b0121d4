use std::collections::{HashMap, HashSet};

use chat_core::{ConversationId, MessageId, Result};
use tokio::sync::oneshot;

use crate::status::{Stage, Status};
use crate::store::LocalStore;

type Reply = oneshot::Sender<Result<Status>>;

/// Tickets that wait for a stage. They are checked only after a commit that changes their message or its conversation,
/// so that a commit costs nothing per ticket that it does not concern.
#[derive(Debug, Default)]
pub(super) struct TicketWaiters {
    by_message: HashMap<MessageId, Vec<(Stage, Reply)>>,
    /// The messages of waiting tickets that are stored.
    by_conversation: HashMap<ConversationId, HashSet<MessageId>>,
    changed: HashSet<MessageId>,
}

impl TicketWaiters {
    /// Replies once the message has reached the stage, which may be now.
    pub(super) fn add(&mut self, store: &LocalStore, message: MessageId, stage: Stage, reply: Reply) {
        let waiters = self.by_message.entry(message).or_default();
        // Callers that gave up leave their waiters behind.
        waiters.retain(|(_, reply)| !reply.is_closed());
        waiters.push((stage, reply));
        self.check(store, message);
    }

    pub(super) fn message_changed(&mut self, message: MessageId) {
        if self.by_message.contains_key(&message) {
            self.changed.insert(message);
        }
    }

    pub(super) fn receipt_changed(&mut self, conversation: ConversationId) {
        if let Some(messages) = self.by_conversation.get(&conversation) {
            self.changed.extend(messages);
        }
    }

    /// Replies to the tickets of changed messages, after the commit.
    pub(super) fn answer(&mut self, store: &LocalStore) {
        for message in std::mem::take(&mut self.changed) {
            self.check(store, message);
        }
    }

    /// Replies to all tickets that have reached their stage, after the store was opened again.
    pub(super) fn answer_all(&mut self, store: &LocalStore) {
        self.changed.extend(self.by_message.keys());
        self.answer(store);
    }

    fn check(&mut self, store: &LocalStore, message: MessageId) {
        let status = store.status(message);
        let Some(waiters) = self.by_message.remove(&message) else { return };
        let mut left = Vec::new();
        for (stage, reply) in waiters {
            match &status {
                Ok(status) if !status.has_reached(stage) && !reply.is_closed() => left.push((stage, reply)),
                outcome => drop(reply.send(outcome.clone())),
            }
        }
        if let Ok(Status::Stored { position, .. }) = status {
            let messages = self.by_conversation.entry(position.conversation).or_default();
            if left.is_empty() {
                messages.remove(&message);
            } else {
                messages.insert(message);
            }
            if messages.is_empty() {
                self.by_conversation.remove(&position.conversation);
            }
        }
        if !left.is_empty() {
            self.by_message.insert(message, left);
        }
    }
}
