//! Pages of feeds that many readers read at the same time.
//!
//! The readers of a feed that were away read the same rows of history. A page without a hole is kept, because no later commit adds a
//! row to it. The end of a feed is kept while no delivery of its rows arrives, for devices that follow the feed: such a device gets
//! each later row by a delivery. Both are kept for a moment, because a deletion or retention may erase content, and a delivery may
//! be lost.

use std::sync::Arc;

use dashmap::DashMap;

use crate::model::envelope::InboxRow;
use crate::model::id::{ConversationId, Seq};
use crate::mutant::Mutant;

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
    pages: DashMap<(ConversationId, Seq), Kept>,
}

#[derive(Debug)]
struct Kept {
    page: Page,
    kept_at_ms: u64,
    /// The version of the readers for which this is the end of the feed; `None` for a page that has all its rows.
    end_of: Option<u64>,
}

/// Rows of a feed above a seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub rows: Arc<[InboxRow]>,
    /// There may be rows after them.
    pub has_more: bool,
}

impl Kept {
    const fn is_fresh(&self, now_ms: u64) -> bool {
        now_ms < self.kept_at_ms.saturating_add(KEPT_MS)
    }
}

/// Returns the number of rows from a seq to the end of its page.
pub(super) const fn rows_after(seq: Seq) -> usize {
    (PAGE - seq % PAGE) as usize
}

impl FeedPages {
    /// Returns the rows above a seq, to the end of its page or of the feed, if they were read a moment ago. `version` is
    /// [`Hub::feed_version`](super::Hub::feed_version) for the reader.
    pub(super) fn after(
        &self,
        feed: ConversationId,
        seq: Seq,
        version: Option<u64>,
        now_ms: u64,
    ) -> Option<Page> {
        let known = self.pages.get(&(feed, seq))?;
        let is_current =
            known.end_of.is_none() || known.end_of == version || Mutant::EndOfFeedKept.is_active();
        (is_current && known.is_fresh(now_ms)).then(|| known.page.clone())
    }

    /// Keeps the rows above a seq that were read after `version` was, unless one of them may be missing.
    pub(super) fn keep(
        &self,
        feed: ConversationId,
        seq: Seq,
        page: &Page,
        version: Option<u64>,
        now_ms: u64,
    ) {
        let is_next = |(at, row): (usize, &InboxRow)| row.seq == seq + 1 + at as u64;
        let size: usize = page.rows.iter().map(InboxRow::size).sum();
        if size > MAX_BYTES || !page.rows.iter().enumerate().all(is_next) {
            return;
        }
        let end_of = match version {
            _ if page.rows.len() == rows_after(seq) => None,
            Some(version) if !page.has_more => Some(version),
            _ => return,
        };
        if self.pages.len() >= MAX_PAGES {
            self.pages.retain(|_, page| page.is_fresh(now_ms));
            if self.pages.len() >= MAX_PAGES {
                return;
            }
        }
        self.pages.insert((feed, seq), Kept { page: page.clone(), kept_at_ms: now_ms, end_of });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::envelope::{EmptyReason, RowContent};

    const FEED: ConversationId = ConversationId::from_bytes([0x15; 17]);

    fn page(seqs: std::ops::RangeInclusive<Seq>) -> Page {
        let content = |seq| RowContent::Empty { reason: EmptyReason::Skip, from: seq };
        let row =
            |seq| InboxRow { conversation: FEED, seq, time_us: seq, joined: false, content: content(seq) };
        Page { rows: seqs.map(row).collect(), has_more: true }
    }

    fn seqs(page: Option<Page>) -> Vec<Seq> {
        page.iter().flat_map(|page| page.rows.iter().map(|row| row.seq)).collect()
    }

    #[test]
    fn rows_to_the_end_of_a_page_are_kept_for_a_moment() {
        let pages = FeedPages::default();
        assert_eq!(pages.after(FEED, 0, None, 0), None);
        pages.keep(FEED, 0, &page(1..=PAGE), None, 100);
        pages.keep(FEED, PAGE - 1, &page(PAGE..=PAGE), None, 100);
        assert_eq!(seqs(pages.after(FEED, 0, None, 100)), (1..=PAGE).collect::<Vec<_>>());
        assert_eq!(seqs(pages.after(FEED, PAGE - 1, Some(3), 100)), [PAGE]);
        assert_eq!(pages.after(FEED, PAGE, None, 100), None, "the next page");
        assert_eq!(pages.after(FEED, 0, None, 100 + KEPT_MS), None);
    }

    #[test]
    fn end_of_a_feed_is_kept_for_its_readers_until_a_delivery() {
        let pages = FeedPages::default();
        let end = Page { has_more: false, ..page(PAGE + 1..=PAGE + 3) };
        pages.keep(FEED, PAGE, &end, None, 0);
        assert!(pages.pages.is_empty(), "its reader does not follow the feed");
        pages.keep(FEED, PAGE, &end, Some(7), 0);
        assert_eq!(pages.after(FEED, PAGE, Some(7), 0), Some(end));
        assert_eq!(pages.after(FEED, PAGE, Some(8), 0), None, "a delivery has arrived");
        assert_eq!(pages.after(FEED, PAGE, None, 0), None, "gets no delivery");
        let nothing = Page { rows: Arc::new([]), has_more: false };
        pages.keep(FEED, PAGE + 3, &nothing, Some(7), 0);
        assert_eq!(pages.after(FEED, PAGE + 3, Some(7), 0), Some(nothing));
    }

    #[test]
    fn page_that_may_lack_rows_is_not_kept() {
        let pages = FeedPages::default();
        pages.keep(FEED, 0, &page(1..=PAGE - 1), Some(1), 0);
        let mut with_hole = page(1..=PAGE + 1).rows.to_vec();
        with_hole.remove(3);
        for has_more in [true, false] {
            pages.keep(FEED, 0, &Page { rows: with_hole.clone().into(), has_more }, Some(1), 0);
        }
        pages.keep(FEED, 1, &page(1..=PAGE), Some(1), 0);
        assert!(pages.pages.is_empty());
    }

    #[test]
    fn number_of_pages_is_bounded() {
        let pages = FeedPages::default();
        for number in 0..2 * MAX_PAGES as u64 {
            pages.keep(FEED, number * PAGE, &page(number * PAGE + 1..=(number + 1) * PAGE), None, 0);
        }
        assert_eq!(pages.pages.len(), MAX_PAGES);
        pages.keep(FEED, 0, &page(1..=PAGE), None, KEPT_MS);
        assert_eq!(pages.pages.len(), 1, "old pages make room");
    }
}
