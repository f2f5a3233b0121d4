//! Pages of feeds that many readers read at the same time.
//!
//! The readers of a feed that were away read the same rows of history. Only pages without a hole are kept: no later commit adds a
//! row to them. They are kept for a moment, because a deletion or retention may erase content.

use std::sync::Arc;

use dashmap::DashMap;

use crate::model::envelope::InboxRow;
use crate::model::id::{ConversationId, Seq};

/// Number of rows of a page. The first page has the seqs 1 to 64.
const PAGE: u64 = 64;
/// Milliseconds for which a page is kept.
const KEPT_MS: u64 = 1000;
/// Maximum number of pages.
const MAX_PAGES: usize = 512;
/// Maximum bytes of a page: a page with larger rows is not kept.
const MAX_BYTES: usize = 256 * 1024;

/// Pages of history, or their ends, by the seq before their first row: at most 128 MiB.
#[derive(Debug, Default)]
pub(super) struct FeedPages {
    pages: DashMap<(ConversationId, Seq), Page>,
}

#[derive(Debug)]
struct Page {
    rows: Arc<[InboxRow]>,
    kept_at_ms: u64,
}

impl Page {
    const fn is_fresh(&self, now_ms: u64) -> bool {
        now_ms < self.kept_at_ms.saturating_add(KEPT_MS)
    }
}

/// Returns the number of rows from a seq to the end of its page.
pub(super) const fn rows_after(seq: Seq) -> usize {
    (PAGE - seq % PAGE) as usize
}

impl FeedPages {
    /// Returns the rows above a seq, to the end of its page, if they were read a moment ago.
    pub(super) fn after(&self, feed: ConversationId, seq: Seq, now_ms: u64) -> Option<Arc<[InboxRow]>> {
        let known = self.pages.get(&(feed, seq))?;
        known.is_fresh(now_ms).then(|| known.rows.clone())
    }

    /// Keeps the rows above a seq, unless one is missing up to the end of its page.
    pub(super) fn keep(&self, feed: ConversationId, seq: Seq, rows: &[InboxRow], now_ms: u64) {
        let is_next = |(at, row): (usize, &InboxRow)| row.seq == seq + 1 + at as u64;
        let size: usize = rows.iter().map(InboxRow::size).sum();
        if rows.len() != rows_after(seq) || size > MAX_BYTES || !rows.iter().enumerate().all(is_next) {
            return;
        }
        if self.pages.len() >= MAX_PAGES {
            self.pages.retain(|_, page| page.is_fresh(now_ms));
            if self.pages.len() >= MAX_PAGES {
                return;
            }
        }
        self.pages.insert((feed, seq), Page { rows: rows.into(), kept_at_ms: now_ms });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::envelope::{EmptyReason, RowContent};

    const FEED: ConversationId = ConversationId::from_bytes([0x15; 17]);

    fn rows(seqs: std::ops::RangeInclusive<Seq>) -> Vec<InboxRow> {
        let content = |seq| RowContent::Empty { reason: EmptyReason::Skip, from: seq };
        let row =
            |seq| InboxRow { conversation: FEED, seq, time_us: seq, joined: false, content: content(seq) };
        seqs.map(row).collect()
    }

    fn seqs(rows: Option<Arc<[InboxRow]>>) -> Vec<Seq> {
        rows.iter().flat_map(|rows| rows.iter().map(|row| row.seq)).collect()
    }

    #[test]
    fn rows_to_the_end_of_a_page_are_kept_for_a_moment() {
        let pages = FeedPages::default();
        assert_eq!(pages.after(FEED, 0, 0), None);
        pages.keep(FEED, 0, &rows(1..=PAGE), 100);
        pages.keep(FEED, PAGE - 1, &rows(PAGE..=PAGE), 100);
        assert_eq!(seqs(pages.after(FEED, 0, 100)), (1..=PAGE).collect::<Vec<_>>());
        assert_eq!(seqs(pages.after(FEED, PAGE - 1, 100)), [PAGE]);
        assert_eq!(pages.after(FEED, PAGE, 100), None, "the next page");
        assert_eq!(pages.after(FEED, 0, 100 + KEPT_MS), None);
    }

    #[test]
    fn page_that_may_lack_rows_is_not_kept() {
        let pages = FeedPages::default();
        pages.keep(FEED, 0, &rows(1..=PAGE - 1), 0);
        let mut with_hole = rows(1..=PAGE + 1);
        with_hole.remove(3);
        pages.keep(FEED, 0, &with_hole, 0);
        pages.keep(FEED, 1, &rows(1..=PAGE), 0);
        assert!(pages.pages.is_empty());
    }

    #[test]
    fn number_of_pages_is_bounded() {
        let pages = FeedPages::default();
        for page in 0..2 * MAX_PAGES as u64 {
            pages.keep(FEED, page * PAGE, &rows(page * PAGE + 1..=(page + 1) * PAGE), 0);
        }
        assert_eq!(pages.pages.len(), MAX_PAGES);
        pages.keep(FEED, 0, &rows(1..=PAGE), KEPT_MS);
        assert_eq!(pages.pages.len(), 1, "old pages make room");
    }
}
