//! Feeds: large groups. History alone holds the messages of a feed, and a device reads them as rows of its inbox.

use std::collections::BTreeMap;

use futures_util::future::{join_all, try_join_all};

use super::Engine;
use super::feed_pages::{Page, rows_after};
use crate::backend::{CursorFilter, Feed, InboxPage, PageLimit};
use crate::model::envelope::{EmptyReason, InboxCursor, InboxPosition, InboxRow, RowContent};
use crate::model::error::Result;
use crate::model::id::{ConversationId, InstallationId, Seq, UserId};
use crate::mutant::Mutant;

/// Number of times that a session tries to follow its feeds while their rosters change.
const FOLLOW_TRIES: usize = 3;
/// Milliseconds after which a gateway announces again that it follows a feed.
const FOLLOW_AGAIN_MS: u64 = 20_000;
/// Maximum number of feeds for which a gateway remembers when it followed them.
const MAX_FOLLOWED: usize = 100_000;

impl Engine {
    /// Lets the session of a device get the new rows of its feeds. It must precede the read of the rows, so that the session
    /// misses none in between. Returns the feeds.
    ///
    /// # Errors
    /// `Unavailable` if the store fails.
    pub(super) async fn follow_feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        let mut feeds = self.backends.store.feeds(device).await?;
        let Some(route) = self.hub.route(device) else { return Ok(feeds) };
        for feed in feeds.iter().filter(|feed| !feed.is_read()) {
            self.hub.unfollow(device, feed.conversation);
        }
        let read = feeds.iter().filter(|feed| feed.is_read()).map(|feed| feed.conversation);
        join_all(read.map(|feed| self.announce_feed(feed))).await;
        let mut banned = Vec::new();
        // Another try if the roster changes meanwhile. After the last one, a heartbeat of the device follows the feed.
        for _ in 0..FOLLOW_TRIES {
            let is_new = |feed: &&Feed| {
                let id = feed.conversation;
                feed.is_read() && !self.hub.follows(device, id) && !banned.contains(&id)
            };
            let new =
                feeds.iter().filter(is_new).map(|feed| self.changed_at(feed.conversation, route.device.user));
            let new = try_join_all(new).await?;
            if new.is_empty() {
                break;
            }
            // Read again: the changes of its readers up to `changed_at` are known now.
            feeds = self.backends.store.feeds(device).await?;
            for (id, changed_at) in new {
                let Some(changed_at) = changed_at else {
                    banned.push(id);
                    continue;
                };
                if feeds.iter().any(|feed| feed.conversation == id && feed.is_read()) {
                    self.hub.follow(device, id, changed_at);
                }
            }
        }
        // A device may subscribe in the moment in which its user is banned.
        feeds.retain(|feed| !banned.contains(&feed.conversation));
        Ok(feeds)
    }

    /// Returns the seq of the last change of the roster of a feed; `None` if the feed is a channel from which a user is banned.
    async fn changed_at(&self, feed: ConversationId, user: UserId) -> Result<(ConversationId, Option<Seq>)> {
        if let Some(changed_at) = self.hub.feed_changed_at(feed).filter(|_| !feed.is_channel()) {
            return Ok((feed, Some(changed_at)));
        }
        let roster = self.read_roster(feed).await?;
        let is_banned = feed.is_channel() && roster.banned.contains(&user);
        Ok((feed, (!is_banned).then_some(roster.changed_at)))
    }

    /// Announces that this gateway has readers of a feed.
    async fn announce_feed(&self, feed: ConversationId) {
        let now = self.now_ms();
        if self.followed.get(&feed).is_some_and(|at| now < at.saturating_add(FOLLOW_AGAIN_MS)) {
            return;
        }
        // If it fails, a heartbeat of a reader repeats it, and meanwhile heartbeats read the feed.
        if self.backends.registry.follow(feed, self.settings.gateway).await.is_ok() {
            if self.followed.len() >= MAX_FOLLOWED {
                self.followed.clear();
            }
            self.followed.insert(feed, now);
        }
    }

    /// Returns a page of a device's inbox with the rows of its feeds, in drain order and without a hole.
    ///
    /// History is read before the inbox: a row of history may have a box for this device in the inbox, which a read of the inbox
    /// before it may have missed.
    pub(super) async fn read_with_feeds(
        &self,
        device: InstallationId,
        feeds: &[Feed],
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<InboxPage> {
        let (mut parts, mut inbox) = self.read_parts(device, feeds, after, limit, true).await?;
        if feeds.is_empty() {
            return Ok(inbox);
        }
        if first_ahead(feeds, &parts, &inbox).is_some() {
            // The end of a feed that another reader has read may be older than the inbox.
            (parts, inbox) = self.read_parts(device, feeds, after, limit, false).await?;
        }
        // Rows that were committed since history was read: the rows of history before them may be missing.
        let ahead = first_ahead(feeds, &parts, &inbox);
        // A row of the inbox that stands for expired rows covers rows of history that lie between them.
        let gaps = inbox.rows.iter().filter(|row| row.is_expired());
        let gaps: Vec<_> = gaps.map(|row| (row.conversation, row.first_seq()..=row.seq)).collect();
        let is_covered = |row: &InboxRow| {
            gaps.iter().any(|(conversation, gap)| row.conversation == *conversation && gap.contains(&row.seq))
        };
        let parts: Vec<InboxPage> = parts.into_iter().map(|(part, _)| part).collect();
        // Below the end of a part that has more rows, the page would lack some of them.
        let ends = parts.iter().chain([&inbox]).filter(|part| part.has_more);
        let end = ends.filter_map(|part| part.rows.last()).map(InboxRow::position).min();
        let of_feeds = parts.into_iter().flat_map(|part| part.rows).filter(|row| !is_covered(row));
        let of_feeds: Vec<InboxRow> = of_feeds.collect();
        // The inbox comes last: its row has what is only for this device.
        let rows = of_feeds.into_iter().chain(inbox.rows).map(|row| (row.position(), row));
        let mut merged: BTreeMap<InboxPosition, InboxRow> = rows.collect();
        let mut page = InboxPage { rows: Vec::new(), has_more: end.is_some() };
        if let Some(end) = end {
            merged.retain(|position, _| *position <= end);
        }
        if let Some(ahead) = ahead {
            merged.retain(|position, _| *position < ahead);
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

    /// Reads the next rows of each feed of a device, and then its inbox. With `shares_ends` the end of a feed can be one that another
    /// reader has read.
    async fn read_parts(
        &self,
        device: InstallationId,
        feeds: &[Feed],
        after: InboxPosition,
        limit: PageLimit,
        shares_ends: bool,
    ) -> Result<(Vec<(InboxPage, Seq)>, InboxPage)> {
        let reads = feeds.iter().map(|feed| self.read_feed(device, feed, after, limit, shares_ends));
        let parts = try_join_all(reads).await?;
        let rows = self.backends.store.inbox(device, after, limit).await?;
        Ok((parts, InboxPage { has_more: limit.is_reached(&rows), rows }))
    }

    /// Returns the cursors of a device. The tail of a feed is the last row that the device may read.
    pub(super) async fn cursors(&self, device: InstallationId) -> Result<Vec<(ConversationId, InboxCursor)>> {
        let mut cursors = self.backends.store.device(device, CursorFilter::All).await?.cursors;
        for feed in self.backends.store.feeds(device).await? {
            if feed.changes.iter().all(|(_, joins)| !joins) {
                continue;
            }
            let last = self.last_of_feed(&feed).await?;
            match cursors.iter_mut().find(|(id, _)| *id == feed.conversation) {
                Some((_, cursor)) => cursor.tail = cursor.tail.max(last),
                // A subscriber that has acknowledged nothing yet: see `join_row`.
                None => {
                    let joined = feed.changes.iter().find(|(_, joins)| *joins).map_or(0, |(seq, _)| *seq);
                    let cursor = InboxCursor { acked: joined.saturating_sub(2), tail: last };
                    cursors.push((feed.conversation, cursor));
                }
            }
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

    /// Returns rows of a feed after a seq. Readers that read at the same time share a page, also the last one if they follow the
    /// feed.
    async fn read_page(
        &self,
        device: InstallationId,
        feed: ConversationId,
        after: Seq,
        limit: PageLimit,
        shares_ends: bool,
    ) -> Result<Page> {
        let (now, version) = (self.now_ms(), self.hub.feed_version(feed, device));
        let limit = PageLimit { rows: limit.rows.min(rows_after(after)), ..limit };
        let kept = self.feed_pages.after(feed, after, version.filter(|_| shares_ends), now);
        if let Some(kept) = kept.filter(|kept| kept.rows.len() <= limit.rows) {
            return Ok(kept);
        }
        let rows = self.backends.store.history_after(feed, after, limit).await?;
        let page = Page { has_more: limit.is_reached(&rows), rows: rows.into() };
        self.feed_pages.keep(feed, after, &page, version, now);
        Ok(page)
    }

    /// Returns the next rows of a feed after a position that the device has not acknowledged, and the seq up to which all of its
    /// rows are known.
    async fn read_feed(
        &self,
        device: InstallationId,
        feed: &Feed,
        after: InboxPosition,
        limit: PageLimit,
        shares_ends: bool,
    ) -> Result<(InboxPage, Seq)> {
        let is_same = after.conversation == feed.conversation;
        let mut seq = if is_same { feed.acked.max(after.seq) } else { feed.acked };
        let mut page = InboxPage::default();
        while let Some(next) = feed.next(seq) {
            // The two rows before say when the device joins a channel.
            let before = if feed.conversation.is_channel() { 3 } else { 1 };
            seq = seq.max(next.saturating_sub(before));
            let read = self.read_page(device, feed.conversation, seq, limit, shares_ends).await?;
            page.has_more = read.has_more;
            for row in read.rows.iter() {
                if row.seq != seq + 1 {
                    // The commit of the row before is not visible yet.
                    page.has_more = false;
                    break;
                }
                seq = row.seq;
                let row = match feed.reads(seq) {
                    true => Some(row.clone().for_device(device)),
                    false => join_row(feed, row),
                };
                page.rows.extend(row.filter(|row| row.position() > after));
            }
            if !page.rows.is_empty() || !page.has_more {
                return Ok((page, seq));
            }
        }
        Ok((page, Seq::MAX))
    }
}

/// Returns the position of the first row of an inbox that is later than what was read of its feed.
fn first_ahead(feeds: &[Feed], parts: &[(InboxPage, Seq)], inbox: &InboxPage) -> Option<InboxPosition> {
    let is_ahead = |row: &&InboxRow| {
        let mut known = feeds.iter().zip(parts);
        known.any(|(feed, (_, seen))| {
            row.conversation == feed.conversation && row.seq > *seen && feed.reads(row.seq)
        })
    };
    inbox.rows.iter().find(is_ahead).map(InboxRow::position)
}

/// Returns the empty row that a device gets at the place of a row that it may not read: at the seq with which it joins a channel,
/// and at the one before, which covers the seqs since it left, or all before. If it joins as a member, its inbox has another row
/// at that seq.
fn join_row(feed: &Feed, row: &InboxRow) -> Option<InboxRow> {
    let joins_at = |seq: Seq| feed.changes.contains(&(seq, true));
    // A device that is removed without having read leaves nothing.
    let mut ends = feed.changes.windows(2).filter(|pair| pair[0].1 && !pair[1].1).map(|pair| pair[1].0);
    let left = ends.rfind(|left| *left < row.seq);
    let (from, joined) = match left {
        _ if !feed.conversation.is_channel() || Mutant::JoinRowMissing.is_active() => return None,
        Some(left) if joins_at(row.seq + 1) => (left + 1, false),
        None if joins_at(row.seq + 1) => (1, true),
        _ if joins_at(row.seq) => (row.seq, row.seq == 1),
        _ => return None,
    };
    let content = RowContent::Empty { reason: EmptyReason::NotMember, from };
    Some(InboxRow { joined, content, ..row.clone() })
}
