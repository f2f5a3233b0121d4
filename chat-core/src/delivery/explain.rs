//! What happened to one message: what this process remembers, and what the store knows for good.

use super::trail::{Stage, Step};
use super::{Engine, Trail};
use crate::backend::WantCells;
use crate::envelope::{InboxRow, RowContent};
use crate::error::Result;
use crate::id::{ConversationId, InstallationId, MessageId, Seq};

/// What one node says about a message, without content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Explanation {
    /// What this node did, in order; empty if it did nothing or has forgotten.
    pub steps: Vec<Step>,
    /// Where it is stored, if this node knows its conversation and it is.
    pub stored: Option<StoredAt>,
}

/// Where a message is stored, and how far the devices of the conversation are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct StoredAt {
    /// The conversation.
    pub conversation: ConversationId,
    /// The place in it.
    pub seq: Seq,
    /// The devices that have a row for it, and whether each acknowledged it.
    pub devices: Vec<(InstallationId, bool)>,
}

impl Engine {
    /// What happened to messages that this process saw last.
    pub const fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Notes a stage that a message reached just now.
    pub fn note(&self, id: MessageId, stage: Stage) {
        self.trail.note(id, self.now_us(), stage);
    }

    /// Notes that rows were handed to a device's connection.
    pub fn note_delivered(&self, device: InstallationId, rows: &[InboxRow]) {
        let now = self.now_us();
        for row in rows {
            if let RowContent::Message { message, .. } = &row.content {
                self.trail.note(message.id, now, Stage::Delivered { device });
            }
        }
    }

    /// Says what happened to a message.
    ///
    /// # Errors
    /// As [`MessageStore::state`](crate::backend::MessageStore::state).
    pub async fn explain(&self, id: MessageId) -> Result<Explanation> {
        let steps = self.trail.of(id);
        let of = steps.iter().find_map(|step| match step.stage {
            Stage::Accepted { conversation, sender } | Stage::Stored { conversation, sender, .. } => {
                Some((conversation, sender))
            }
            _ => None,
        });
        let stored = match of {
            Some((conversation, sender)) => self.stored_at(conversation, sender, id).await?,
            None => None,
        };
        Ok(Explanation { steps, stored })
    }

    async fn stored_at(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<StoredAt>> {
        let store = &self.backends.store;
        let Some(seq) = store.find(conversation, sender, id).await? else { return Ok(None) };
        let state = store.state(conversation).await?.unwrap_or_default();
        let mut devices = Vec::new();
        for device in state.members.iter().flat_map(|member| &member.installations) {
            let record = store.device(*device, WantCells::Of(conversation)).await?;
            let cell = record.cells.first().map(|(_, cell)| *cell).unwrap_or_default();
            if seq <= cell.tail {
                devices.push((*device, seq <= cell.acked));
            }
        }
        Ok(Some(StoredAt { conversation, seq, devices }))
    }
}
