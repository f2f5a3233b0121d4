//! What happened to one message: what this process remembers, and what the store knows for good.

use super::trace::{Stage, TraceEvent};
use super::{Engine, MessageTrace};
use crate::backend::CursorFilter;
use crate::model::envelope::{InboxRow, RowContent};
use crate::model::error::Result;
use crate::model::id::{ConversationId, InstallationId, MessageId, Seq};

/// What one node says about a message, without content.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Explanation {
    /// What this node did, in order; empty if it did nothing or has forgotten.
    pub events: Vec<TraceEvent>,
    /// What the store says.
    pub whereabouts: Whereabouts,
}

/// Where a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Whereabouts {
    /// Nothing that this node remembers says where to look.
    Unknown,
    /// It is not stored.
    NotStored,
    /// It is stored.
    Stored {
        /// In this conversation.
        conversation: ConversationId,
        /// At this place.
        seq: Seq,
        /// The devices that have a row for it, and whether each acknowledged it.
        devices: Vec<(InstallationId, bool)>,
    },
}

impl Engine {
    /// What happened to messages that this process saw last.
    pub const fn trace(&self) -> &MessageTrace {
        &self.trace
    }

    /// Notes a stage that a message reached just now.
    pub fn record(&self, id: MessageId, stage: Stage) {
        self.trace.record(id, self.now_us(), stage);
    }

    /// Notes that rows were handed to a device's connection.
    pub fn record_delivered(&self, device: InstallationId, rows: &[InboxRow]) {
        let now = self.now_us();
        for row in rows {
            if let RowContent::Message { message, .. } = &row.content {
                let (conversation, sender) = (row.conversation, message.sender.installation);
                let committed_us = row.time_us;
                let delivered = Stage::Delivered { conversation, sender, device, committed_us };
                self.trace.record(message.id, now, delivered);
            }
        }
    }

    /// Says what happened to a message.
    ///
    /// # Errors
    /// As [`MessageStore::state`](crate::backend::MessageStore::state).
    pub async fn explain(&self, id: MessageId) -> Result<Explanation> {
        let events = self.trace.of(id);
        let of = events.iter().find_map(|step| match step.stage {
            Stage::Accepted { conversation, sender }
            | Stage::Stored { conversation, sender, .. }
            | Stage::Delivered { conversation, sender, .. } => Some((conversation, sender)),
            _ => None,
        });
        let whereabouts = match of {
            Some((conversation, sender)) => self.whereabouts(conversation, sender, id).await?,
            None => Whereabouts::Unknown,
        };
        Ok(Explanation { events, whereabouts })
    }

    async fn whereabouts(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Whereabouts> {
        let store = &self.backends.store;
        let Some(seq) = store.find(conversation, sender, id).await? else {
            return Ok(Whereabouts::NotStored);
        };
        let state = store.state(conversation, None).await?.unwrap_or_default();
        let mut devices = Vec::new();
        for device in state.members.iter().flat_map(|member| &member.installations) {
            let record = store.device(*device, CursorFilter::Of(conversation)).await?;
            let cursor = record.cursors.first().map(|(_, cursor)| *cursor).unwrap_or_default();
            if seq <= cursor.tail {
                devices.push((*device, seq <= cursor.acked));
            }
        }
        Ok(Whereabouts::Stored { conversation, seq, devices })
    }
}
