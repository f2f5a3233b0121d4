//! History: pages, clearing by a user, and retention.

use std::collections::BTreeSet;

use super::Engine;
use crate::backend::{CursorFilter, PageLimit, SenderFilter};
use crate::model::client_frame::HistoryRange;
use crate::model::envelope::InboxRow;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, ConversationKind, DeviceAddress, InstallationId, Seq, UserId};
use crate::model::limits::MAX_NUMBER;

/// Maximum number of rows that one call of the store removes.
const PIECE: usize = 1000;

impl Engine {
    /// Returns a page of history, without the rows that the user cleared, for a device of a member or of a subscriber.
    pub(super) async fn history(
        &self,
        device: DeviceAddress,
        conversation: ConversationId,
        range: HistoryRange,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        if !self.reads_channel(device, conversation).await? {
            self.check_member(device.user, conversation).await?;
        }
        let store = &self.backends.store;
        let cleared = store.cleared(conversation, device.user).await?;
        let mut rows = match range {
            HistoryRange::Before(before) => store.history(conversation, before, limit).await?,
            HistoryRange::After(after) => store.history_after(conversation, after, limit).await?,
        };
        rows.retain(|row| row.seq > cleared);
        self.hide_disappeared(&mut rows);
        Ok(rows)
    }

    /// Empties the messages whose lifetime has ended.
    pub(super) fn hide_disappeared(&self, rows: &mut [InboxRow]) {
        let now_us = self.now_ms().saturating_mul(1000);
        for row in rows {
            row.disappear(now_us);
        }
    }

    /// Clears a conversation up to a seq for a user.
    pub(super) async fn clear_history(
        &self,
        user: UserId,
        conversation: ConversationId,
        through: Seq,
    ) -> Result<()> {
        if conversation.is_channel() {
            // The posts belong to the readers, which are no members: only retention and deletions erase them.
            return Ok(());
        }
        self.check_member(user, conversation).await?;
        self.backends.store.clear_history(conversation, user, through).await
    }

    /// Fails unless the user is a member of the conversation. A conversation of other users gets the same error as one
    /// that does not exist.
    async fn check_member(&self, user: UserId, conversation: ConversationId) -> Result<()> {
        let state = self.backends.store.state(conversation, SenderFilter::No, None).await?;
        if state.is_some_and(|state| state.roster.member(user).is_some()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, "no such conversation"))
    }

    /// Clears all conversations of a deleted user, as far as its devices have cursors: messages that no other user can read
    /// are erased. Returns the first error, after it tried all.
    pub(super) async fn clear_all_history(&self, user: UserId, devices: &[InstallationId]) -> Result<()> {
        let mut outcome = Ok(());
        let mut conversations = BTreeSet::new();
        for device in devices {
            match self.backends.store.device(*device, CursorFilter::All).await {
                Ok(record) => conversations.extend(record.cursors.into_iter().map(|(id, _)| id)),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        conversations.retain(|conversation| {
            conversation.kind() != Ok(ConversationKind::Mailbox) && !conversation.is_channel()
        });
        for conversation in conversations {
            outcome = outcome.and(self.backends.store.clear_history(conversation, user, MAX_NUMBER).await);
        }
        outcome
    }

    /// Removes inbox rows that are older than the retention time, in pieces. Returns the number of rows
    /// removed. Their devices see a gap instead.
    ///
    /// # Errors
    /// As [`MessageStore::expire`](crate::backend::MessageStore::expire).
    pub async fn sweep(&self, retention_ms: u64) -> Result<usize> {
        let before_us = self.before_us(retention_ms);
        in_pieces(|| self.backends.store.expire(before_us, PIECE)).await
    }

    /// Erases the content of messages that are older than the retention time of history, in pieces, after it
    /// [removed](Self::sweep) the inbox rows that are older. Returns the number of messages erased. Members see empty rows
    /// instead; a message that was sent again is still recognised.
    ///
    /// # Errors
    /// As [`MessageStore::expire_history`](crate::backend::MessageStore::expire_history).
    pub async fn sweep_history(&self, retention_ms: u64) -> Result<usize> {
        self.sweep(retention_ms).await?;
        let before_us = self.before_us(retention_ms);
        in_pieces(|| self.backends.store.expire_history(before_us, PIECE)).await
    }

    /// Erases the content of messages whose lifetime has ended, in pieces. Returns the number of messages erased.
    ///
    /// # Errors
    /// As [`MessageStore::expire_messages`](crate::backend::MessageStore::expire_messages).
    pub async fn sweep_messages(&self) -> Result<usize> {
        let now_us = self.now_ms().saturating_mul(1000);
        in_pieces(|| self.backends.store.expire_messages(now_us, PIECE)).await
    }

    fn before_us(&self, retention_ms: u64) -> u64 {
        self.now_ms().saturating_sub(retention_ms).saturating_mul(1000)
    }
}

/// Calls a sweep until a piece is not full. Returns the sum.
async fn in_pieces<F: Future<Output = Result<usize>>>(sweep: impl Fn() -> F) -> Result<usize> {
    let mut all = 0;
    loop {
        let count = sweep().await?;
        all += count;
        if count < PIECE {
            return Ok(all);
        }
    }
}
