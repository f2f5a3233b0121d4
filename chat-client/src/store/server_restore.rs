//! Rows after the server went back to an older copy of its data, or began a new data set.

use chat_core::{ConversationId, ConversationKind, InstallationId, MessageId, Result, Seq, StoreEpoch};
use rusqlite::params;

use super::events::{EventKind, EventRow};
use super::{LocalStore, blob, failed};

impl LocalStore {
    pub(super) fn new_epoch(&mut self, epoch: StoreEpoch) -> Result<()> {
        let had_sent = self
            .db
            .prepare_cached("SELECT 1 FROM conversations WHERE client_seq > 0")
            .and_then(|mut s| s.exists([]))
            .map_err(failed)?;
        let had_sent = had_sent || self.meta("epoch_changed")?.is_some_and(|had_sent| had_sent == [1]);
        self.set_meta("epoch", epoch.as_bytes())?;
        self.set_meta("epoch_changed", &[u8::from(had_sent)])?;
        self.run("DELETE FROM outbox WHERE void = 1", [])?;
        self.run("UPDATE outbox SET attempted = 1, publish = NULL", [])?;
        self.run("DELETE FROM sender_keys", [])?;
        // A read position above the cursor is one of seqs that the server may give to other messages.
        let ahead = self.rows("SELECT id FROM conversations WHERE read > cursor", |row| {
            ConversationId::parse(&blob(row, 0)?)
        })?;
        for id in ahead {
            self.run("UPDATE conversations SET read = cursor WHERE id = ?1", [id.as_bytes()])?;
            self.recount_unread(id)?;
        }
        self.run("UPDATE conversations SET client_seq = 0, prev = zeroblob(16)", []).map(drop)
    }

    /// Moves the messages after a seq out of the numbers: the server lost them, and uses the seqs again. They stay visible
    /// after the message at the seq.
    pub(super) fn went_back(&mut self, id: ConversationId, seq: Seq, is_sure: bool) -> Result<()> {
        let place = params![id.as_bytes(), seq as i64];
        self.run("UPDATE messages SET anchor = ?2 WHERE conversation = ?1 AND anchor > ?2", place)?;
        // Below 0, and lower than those of earlier restores: a later message has a lower number.
        self.run(
            "UPDATE messages SET anchor = ?2, row_hash = NULL,
               seq = (SELECT min(0, coalesce(min(seq), 0)) FROM messages WHERE conversation = ?1) - seq
             WHERE conversation = ?1 AND seq > ?2",
            place,
        )?;
        self.revisions.touch(id);
        self.run("DELETE FROM chains WHERE conversation = ?1", [id.as_bytes()])?;
        self.run("DELETE FROM unknown_rows WHERE conversation = ?1 AND seq > ?2", place)?;
        self.run(
            "UPDATE receipts SET delivered = min(delivered, ?2), read = min(read, ?2) WHERE conversation = ?1",
            place,
        )?;
        self.run(
            "UPDATE conversations SET cursor = ?2, last_own = min(last_own, ?2), delivered = min(delivered, ?2),
               read = min(read, ?2), excused = 4503599627370496, timer_seq = min(timer_seq, ?2) WHERE id = ?1",
            place,
        )?;
        self.recount_unread(id)?;
        if id == ConversationId::own(self.own_user()?) {
            self.note_lost_settings(seq)?;
        }
        if !is_sure || id.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(());
        }
        let conversation = id.as_bytes().to_vec();
        self.add_event(None, EventRow { conversation, seq, ..EventRow::new(EventKind::ServerRestored) })
    }

    /// Gives a message that the server had lost its new seq.
    pub(super) fn returned(
        &mut self,
        conversation: ConversationId,
        seq: Seq,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<()> {
        let moved = self.run(
            "UPDATE OR IGNORE messages SET seq = ?2, anchor = NULL
             WHERE conversation = ?1 AND sender = ?3 AND message_id = ?4 AND seq <= 0",
            params![conversation.as_bytes(), seq as i64, sender.as_bytes(), id.as_bytes()],
        )?;
        if moved == 0 {
            return Ok(());
        }
        self.revisions.touch(conversation);
        self.recount_unread(conversation)
    }
}
