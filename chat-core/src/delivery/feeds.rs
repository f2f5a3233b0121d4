//! Feeds: large groups. History alone holds the messages of a feed, and a device reads them as rows of its inbox.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;

use super::Engine;
use crate::backend::{CursorFilter, Feed, InboxPage, PageLimit};
use crate::model::envelope::{InboxCursor, InboxPosition, InboxRow, RowContent};
use crate::model::error::Result;
use crate::model::id::{ConversationId, InstallationId, Seq};

/// Maximum number of rows of one feed in a page.
const FEED_ROWS: usize = 64;

impl Engine {
    /// Adds the rows of a device's feeds to a page of its inbox, so that the page is in drain order and has no hole.
    pub(super) async fn add_feeds(
        &self,
        device: InstallationId,
        feeds: &[Feed],
        after: InboxPosition,
        limit: PageLimit,
        page: InboxPage,
    ) -> Result<InboxPage> {
        if feeds.is_empty() {
            return Ok(page);
        }
        let mut parts =
            try_join_all(feeds.iter().map(|feed| self.read_feed(device, feed, after, limit))).await?;
        // The last one: a row of the inbox has what is only for this device.
        parts.push(page);
        // Below the end of a part that has more rows, the page would lack some of them.
        let ends = parts.iter().filter(|part| part.has_more);
        let end = ends.filter_map(|part| part.rows.last()).map(InboxRow::position).min();
        let rows = parts.into_iter().flat_map(|part| part.rows).map(|row| (row.position(), row));
        let mut merged: BTreeMap<InboxPosition, InboxRow> = rows.collect();
        let mut page = InboxPage { rows: Vec::new(), has_more: end.is_some() };
        if let Some(end) = end {
            merged.retain(|position, _| *position <= end);
        }
        let mut bytes = 0;
        for row in merged.into_values() {
            if page.rows.len() >= limit.rows || bytes >= limit.bytes {
                page.has_more = true;
                break;
            }
            bytes += row.size();
            page.rows.push(row);
        }
        Ok(page)
    }

    /// Returns the cursors of a device. The tail of a feed is the last row that the device may read.
    pub(super) async fn cursors(&self, device: InstallationId) -> Result<Vec<(ConversationId, InboxCursor)>> {
        let mut cursors = self.backends.store.device(device, CursorFilter::All).await?.cursors;
        for feed in self.backends.store.feeds(device).await? {
            let Some((_, cursor)) = cursors.iter_mut().find(|(id, _)| *id == feed.conversation) else {
                continue;
            };
            cursor.tail = cursor.tail.max(self.last_of_feed(&feed).await?);
        }
        Ok(cursors)
    }

    async fn last_of_feed(&self, feed: &Feed) -> Result<Seq> {
        match feed.changes.last() {
            Some((left, false)) => Ok(*left),
            _ => {
                let newest = self.backends.store.history(feed.conversation, 0, PageLimit::rows(1)).await?;
                Ok(newest.first().map_or(0, |row| row.seq))
            }
        }
    }

    /// Returns the next rows of a feed after a position that the device has not acknowledged.
    async fn read_feed(
        &self,
        device: InstallationId,
        feed: &Feed,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<InboxPage> {
        let limit = PageLimit { rows: limit.rows.min(FEED_ROWS), ..limit };
        let is_same = after.conversation == feed.conversation;
        let mut seq = if is_same { feed.acked.max(after.seq) } else { feed.acked };
        let mut page = InboxPage::default();
        while let Some(next) = feed.next(seq) {
            seq = next - 1;
            let read = self.backends.store.history_after(feed.conversation, seq, limit).await?;
            page.has_more = limit.is_reached(&read);
            for row in read {
                if row.seq != seq + 1 {
                    // The commit of the row before is not visible yet.
                    page.has_more = false;
                    break;
                }
                seq = row.seq;
                if row.position() > after && feed.reads(seq) {
                    page.rows.push(for_device(row, device));
                }
            }
            if !page.rows.is_empty() || !page.has_more {
                break;
            }
        }
        Ok(page)
    }
}

/// Returns the row of history as a device gets it: its own message has no content.
fn for_device(mut row: InboxRow, device: InstallationId) -> InboxRow {
    if let RowContent::Message { message, .. } = &row.content
        && message.sender.installation == device
    {
        row.content = RowContent::Own {
            message_id: message.id,
            client_seq: message.client_seq,
            incarnation: message.incarnation,
        };
    }
    row
}
