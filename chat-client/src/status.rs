//! Progress of a message that was sent.

use chat_core::ConversationId;
use serde::{Deserialize, Serialize};

use crate::event::RefusedReason;

/// The position of a stored message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Position {
    pub conversation: ConversationId,
    /// The seq in the conversation, dense from 1.
    pub seq: u64,
}

/// Number of recipients that reached a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Count {
    pub reached: u32,
    /// Number of users other than the sender in the conversation.
    pub of: u32,
}

/// The progress of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Status {
    /// The message is durably in the outbox.
    Queued,
    /// The message will never be stored.
    Refused(RefusedReason),
    /// The message is durable on the server.
    Stored {
        position: Position,
        /// Recipients of which at least one device has the message.
        delivered: Count,
        /// Recipients that have read the message.
        read: Count,
    },
}

/// A stage that a ticket waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Stored,
    Delivered,
    Read,
}

impl Count {
    pub(crate) const fn new(reached: u32, of: u32) -> Self {
        Self { reached, of }
    }

    /// Returns whether all recipients reached the stage.
    pub const fn is_complete(self) -> bool {
        self.reached >= self.of
    }
}

impl Position {
    /// Returns the position of a message.
    pub const fn new(conversation: ConversationId, seq: u64) -> Self {
        Self { conversation, seq }
    }
}

impl Status {
    /// Returns whether there is nothing left to wait for.
    pub(crate) const fn has_reached(&self, stage: Stage) -> bool {
        match (self, stage) {
            (Self::Queued, _) => false,
            (Self::Refused(_), _) | (Self::Stored { .. }, Stage::Stored) => true,
            (Self::Stored { delivered, .. }, Stage::Delivered) => delivered.is_complete(),
            (Self::Stored { read, .. }, Stage::Read) => read.is_complete(),
        }
    }
}
