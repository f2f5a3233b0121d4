//! Deletes rows above the head when a log is abandoned. A commit that is written in order leaves such rows if
//! it stops before its state is written. The new log does not replay its record, and assigns its seqs to
//! other messages.

use std::collections::BTreeMap;

use chat_core::backend::{Commit, MessageStore as _, SenderFilter};
use chat_core::{ConversationId, InstallationId, MessageId, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::commit::now_us;
use super::inbox::Key;
use super::{CassandraStore, corrupt, signed, unsigned};

/// Inboxes or ids that are checked concurrently.
const PURGE_CONCURRENCY: usize = 16;

/// An id whose message is above the head of its conversation.
struct UncommittedId {
    conversation: ConversationId,
    sender: InstallationId,
    minute: i32,
    id: MessageId,
}

impl CassandraStore {
    /// Finishes every commit that has redo data, and deletes rows and ids above the heads. No node may serve
    /// the store meanwhile.
    pub(super) async fn purge_uncommitted(&self) -> Result<()> {
        self.finish_all().await?;
        let (rows, ids) = (self.uncommitted_rows().await?, self.uncommitted_ids().await?);
        let feeds = self.uncommitted_feeds().await?;
        let mut last: BTreeMap<ConversationId, u64> = BTreeMap::new();
        for (conversation, time_us) in rows
            .iter()
            .map(|(_, key)| (key.position.conversation, key.position.time_us))
            .chain(ids.iter().map(|id| (id.conversation, 0)))
            .chain(feeds.iter().map(|(_, conversation, _)| (*conversation, 0)))
        {
            let known = last.entry(conversation).or_default();
            *known = (*known).max(time_us);
        }
        for (conversation, time_us) in &mut last {
            *time_us = self.raise_time(*conversation, *time_us).await?;
        }
        for (device, key) in rows {
            self.delete(device, &[key]).await?;
        }
        for (device, conversation, seq) in feeds {
            let time_us = last.get(&conversation).copied().unwrap_or_else(now_us);
            let (device, conversation) = (&device.as_bytes()[..], &conversation.as_bytes()[..]);
            let key = (signed(time_us), device, conversation, signed(seq));
            self.connection.write(&self.connection.statements.delete_feed, key).await?;
        }
        for UncommittedId { conversation, sender, minute, id } in ids {
            let time_us = last.get(&conversation).copied().unwrap_or_else(now_us);
            let key = (
                signed(time_us),
                &conversation.as_bytes()[..],
                &sender.as_bytes()[..],
                minute,
                &id.as_bytes()[..],
            );
            self.connection.write(&self.connection.statements.delete_id, key).await?;
        }
        Ok(())
    }

    /// Writes a conversation's state again, with a time above every row that will be deleted, and returns
    /// that time. An older state that is still in flight loses against it, and later commits get times above
    /// all tombstones.
    async fn raise_time(&self, conversation: ConversationId, above_us: u64) -> Result<u64> {
        let mut state = self.state(conversation, SenderFilter::All, None).await?.unwrap_or_default();
        // The timestamp of an inbox row's tombstone is that of the row plus two.
        let time_us = state.head.time_us.max(above_us).max(now_us()) + 3;
        state.head.time_us = time_us;
        let nothing = Commit::of(conversation, state.into());
        self.write_state(&nothing, Vec::new()).await?;
        Ok(time_us)
    }

    async fn uncommitted_rows(&self) -> Result<Vec<(InstallationId, Key)>> {
        let devices = self.connection.stream::<(Vec<u8>,)>(&self.connection.statements.devices, ()).await?;
        let lost = devices.map_ok(|(device,)| self.lost_rows_of(device));
        lost.try_buffer_unordered(PURGE_CONCURRENCY).try_concat().await
    }

    async fn lost_rows_of(&self, device: Vec<u8>) -> Result<Vec<(InstallationId, Key)>> {
        let device = InstallationId::parse(&device).map_err(|_| corrupt())?;
        let mut lost = Vec::new();
        for key in self.keys(device, self.meta(device).await?, 0).await? {
            if !self.is_committed(key.position.conversation, key.position.seq).await? {
                lost.push((device, key));
            }
        }
        Ok(lost)
    }

    async fn uncommitted_ids(&self) -> Result<Vec<UncommittedId>> {
        let statement = &self.connection.statements.all_ids;
        let ids = self.connection.stream::<(Vec<u8>, Vec<u8>, i32, Vec<u8>, i64)>(statement, ()).await?;
        let lost = ids.map_ok(|(conversation, sender, minute, id, seq)| async move {
            let conversation = ConversationId::parse(&conversation).map_err(|_| corrupt())?;
            if self.is_committed(conversation, unsigned(seq)).await? {
                return Ok(None);
            }
            let sender = InstallationId::parse(&sender).map_err(|_| corrupt())?;
            let id = MessageId::parse(&id).map_err(|_| corrupt())?;
            Ok(Some(UncommittedId { conversation, sender, minute, id }))
        });
        let lost =
            lost.try_buffer_unordered(PURGE_CONCURRENCY).filter_map(|found| async { found.transpose() });
        lost.try_collect().await
    }
}
