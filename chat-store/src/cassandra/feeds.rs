//! Feeds of devices: the seqs after which a device begins or stops to read a conversation from history.

use std::collections::HashSet;

use chat_core::backend::{Feed, FeedChange};
use chat_core::{ConversationId, InstallationId, Result, Seq};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use scylla::value::CqlValue;

use super::commit::{big, blob};
use super::connection::Write;
use super::{CassandraStore, corrupt, signed, unsigned};

/// Changes that are checked concurrently.
const CHECKS: usize = 16;

impl CassandraStore {
    /// Returns the write of a change. `time_us` is the time of its commit.
    pub(super) fn feed_write(
        &self,
        conversation: ConversationId,
        change: FeedChange,
        time_us: u64,
    ) -> Write<'_> {
        let values = vec![
            blob(change.device.as_bytes()),
            blob(conversation.as_bytes()),
            big(signed(change.seq)),
            CqlValue::Boolean(change.joins),
            big(signed(time_us)),
        ];
        Write { statement: &self.connection.statements.put_feed, values }
    }

    pub(super) async fn read_feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        let rows = self.connection.rows(&self.connection.statements.feeds, (&device.as_bytes()[..],)).await?;
        let mut changes = Vec::new();
        for row in rows.rows::<(Vec<u8>, i64, bool)>().map_err(|_| corrupt())? {
            let (conversation, seq, joins) = row.map_err(|_| corrupt())?;
            let conversation = ConversationId::parse(&conversation).map_err(|_| corrupt())?;
            changes.push((conversation, unsigned(seq), joins));
        }
        // A change above the head does not exist yet.
        let committed = changes.iter().map(|(conversation, seq, _)| self.is_committed(*conversation, *seq));
        let committed = try_join_all(committed).await?;
        let conversations: HashSet<ConversationId> = changes.iter().map(|(id, ..)| *id).collect();
        let cursors = self.cursors_of(device, &conversations).await?;
        let mut feeds: Vec<Feed> = Vec::new();
        for ((conversation, seq, joins), _) in changes.into_iter().zip(committed).filter(|(_, done)| *done) {
            match feeds.last_mut().filter(|feed| feed.conversation == conversation) {
                Some(feed) => feed.changes.push((seq, joins)),
                None => {
                    let acked = cursors.get(&conversation).map_or(0, |cursor| cursor.acked);
                    feeds.push(Feed { conversation, acked, changes: vec![(seq, joins)] });
                }
            }
        }
        Ok(feeds)
    }

    pub(super) async fn reads_feed(
        &self,
        device: InstallationId,
        conversation: ConversationId,
    ) -> Result<bool> {
        let key = (&device.as_bytes()[..], &conversation.as_bytes()[..]);
        let rows = self.connection.rows(&self.connection.statements.feed_of, key).await?;
        Ok(rows.maybe_first_row::<(i64,)>().map_err(|_| corrupt())?.is_some())
    }

    /// Returns the changes that are above the heads of their conversations.
    pub(super) async fn uncommitted_feeds(&self) -> Result<Vec<(InstallationId, ConversationId, Seq)>> {
        let all = &self.connection.statements.all_feeds;
        let changes = self.connection.stream::<(Vec<u8>, Vec<u8>, i64)>(all, ()).await?;
        let lost = changes.map_ok(|(device, conversation, seq)| async move {
            let device = InstallationId::parse(&device).map_err(|_| corrupt())?;
            let conversation = ConversationId::parse(&conversation).map_err(|_| corrupt())?;
            let is_committed = self.is_committed(conversation, unsigned(seq)).await?;
            Ok((!is_committed).then_some((device, conversation, unsigned(seq))))
        });
        lost.try_buffer_unordered(CHECKS).filter_map(|found| async { found.transpose() }).try_collect().await
    }
}
