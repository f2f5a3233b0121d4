//! Restores the server of the simulated world from an older copy of its data.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Event, HEAL_MS, World};
use crate::backend::PageLimit;
use crate::memory::{MemoryContacts, MemoryKeys, Tables};
use crate::model::envelope::RowContent;
use crate::model::id::{ConversationId, InstallationId, MessageId, Seq, StoreEpoch};
use crate::sim::store::Redo;

/// A copy of the durable data of the server.
#[derive(Debug)]
pub(super) struct ServerCopy {
    tables: Tables,
    redo: Redo,
    keys: Arc<MemoryKeys>,
    contacts: Arc<MemoryContacts>,
}

impl World {
    pub(super) fn plan_server_restore(&mut self) {
        let copied = self.rng.below(HEAL_MS / 2);
        let restored = copied + self.rng.below(HEAL_MS / 2);
        let announced = self.rng.chance(50);
        self.at(copied, Event::CopyServer);
        self.at(restored, Event::RestoreServer(announced));
    }

    pub(super) fn copy_server(&mut self) {
        // A copy of a process that is stopped: nothing is half written.
        let (tables, redo) = (self.tables.lock().clone(), self.redo.lock().clone());
        let (keys, contacts) = (Arc::new(self.keys.copy()), Arc::new(self.contacts.copy()));
        self.copy = Some(ServerCopy { tables, redo: Arc::new(Mutex::new(redo)), keys, contacts });
    }

    pub(super) fn restore_server(&mut self, announced: bool) {
        let Some(copy) = self.copy.take() else { return };
        self.servers[0] = None;
        // Nothing that the former process sent arrives.
        for pipe in self.pipes.keys().copied().collect::<Vec<_>>() {
            self.break_pipe(Some(pipe));
        }
        self.oracle.forget_lost(|conversation, seq| message_at(&copy.tables, conversation, seq));
        (self.tables, self.redo, self.keys) = (Arc::new(Mutex::new(copy.tables)), copy.redo, copy.keys);
        self.contacts = copy.contacts;
        if announced {
            self.epoch = StoreEpoch::from_bytes([0x52; 16]);
        }
        self.oracle.server_restored = Some(announced);
        self.report.server_restores += 1;
        self.soon(5000, Event::StartServer(0));
    }
}

/// Returns the sender and the id of the message at a place.
pub(super) fn message_at(
    tables: &Tables,
    conversation: ConversationId,
    seq: Seq,
) -> Option<(InstallationId, MessageId)> {
    let limit = PageLimit { rows: 1, bytes: usize::MAX };
    let row = tables.history(conversation, seq + 1, limit).pop().filter(|row| row.seq == seq)?;
    match row.content {
        RowContent::Message { message, .. } => Some((message.sender.installation, message.id)),
        _ => None,
    }
}
