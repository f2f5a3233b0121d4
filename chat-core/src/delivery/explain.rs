//! Explains one message: the trace events of this process and the state in the store.

use super::trace::{Stage, TraceEvent};
use super::{Engine, MessageTrace};
use crate::backend::{CursorFilter, SenderFilter};
use crate::model::envelope::{InboxRow, RowContent};
use crate::model::error::Result;
use crate::model::id::{ConversationId, InstallationId, MessageId, Seq};

/// Report of one node about one message, without content.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Explanation {
    /// In order; empty if this node did not process the message or no longer has its events.
    pub events: Vec<TraceEvent>,
    pub whereabouts: Whereabouts,
}

/// Storage state of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Whereabouts {
    /// This node has no trace event that names the conversation and the sender.
    Unknown,
    /// The store has no message with this id.
    NotStored,
    /// The store has the message.
    Stored {
        conversation: ConversationId,
        seq: Seq,
        /// Devices that have a row for the message, and `true` if the device acknowledged it.
        devices: Vec<(InstallationId, bool)>,
    },
}

impl Engine {
    /// Returns the in-memory trace of the most recent messages.
    pub const fn trace(&self) -> &MessageTrace {
        &self.trace
    }

    /// Records that a message reached a stage now.
    pub fn record(&self, id: MessageId, stage: Stage) {
        self.trace.record(id, self.now_us(), stage);
    }

    /// Records that these rows were passed to the connection of a device.
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

    /// Explains a message: its trace events on this node and its storage state.
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
        let state = store.state(conversation, SenderFilter::No, None).await?.unwrap_or_default();
        let mut devices = Vec::new();
        for device in state.roster.installations() {
            let record = store.device(device, CursorFilter::Of(conversation)).await?;
            let cursor = record.cursors.first().map(|(_, cursor)| *cursor).unwrap_or_default();
            if seq <= cursor.tail {
                devices.push((device, seq <= cursor.acked));
            }
        }
        Ok(Whereabouts::Stored { conversation, seq, devices })
    }
}
