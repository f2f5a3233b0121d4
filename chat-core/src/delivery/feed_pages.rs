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
/// Bounds of the pages: 128 MiB.
const PAGES: Bounds = Bounds { count: 512, bytes: 256 * 1024, ms: 1000 };
/// Bounds of the ends: 64 MiB. A reader that is woken while a delivery is delayed may miss its rows for this time.
const ENDS: Bounds = Bounds { count: 1024, bytes: 64 * 1024, ms: 200 };

/// Limits of what is kept.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Maximum number of pages.
    count: usize,
    /// Maximum bytes of a page: one with larger rows is not kept.
    bytes: usize,
    /// Milliseconds for which a page is kept.
    ms: u64,
}

/// Pages of history, and the ends of feeds, by the seq before their first row.
#[derive(Debug, Default)]
pub(super) struct FeedPages {
    pages: DashMap<(ConversationId, Seq), Kept>,
    ends: DashMap<(ConversationId, Seq), Kept>,
}

#[derive(Debug)]
struct Kept {
    page: Page,
    until_ms: u64,
    /// The version of the readers for which this is the end of the feed; 0 for a page.
    version: u64,
}

/// Rows of a feed above a seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub rows: Arc<[InboxRow]>,
    /// There may be rows after them.
    pub has_more: bool,
}

/// Returns the number of rows from a seq to the end of its page.
pub(super) const fn rows_after(seq: Seq) -> usize {
    (PAGE - seq % PAGE) as usize
}

impl FeedPages {
    /// Returns the rows above a seq, to the end of its page or of the feed, if they were read a moment ago. `version` is
    /// [`Hub::feed_version`](super::Hub::feed_version) for the reader; without it the end of the feed is not returned.
    pub(super) fn after(
        &self,
        feed: ConversationId,
        seq: Seq,
        version: Option<u64>,
        now_ms: u64,
    ) -> Option<Page> {
        let fresh = |known: &Kept| (now_ms < known.until_ms).then(|| known.page.clone());
        if let Some(page) = self.pages.get(&(feed, seq)).and_then(|known| fresh(&known)) {
            return Some(page);
        }
        let version = version?;
        let known = self.ends.get(&(feed, seq))?;
        let is_current = known.version == version || Mutant::EndOfFeedKept.is_active();
        fresh(&known).filter(|_| is_current)
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
        let (kept, bounds, version) = match version {
            _ if page.rows.len() == rows_after(seq) => (&self.pages, PAGES, 0),
            Some(version) if !page.has_more => (&self.ends, ENDS, version),
            _ => return,
        };
        let size: usize = page.rows.iter().map(InboxRow::size).sum();
        if size > bounds.bytes || !page.rows.iter().enumerate().all(is_next) {
            return;
        }
        if kept.len() >= bounds.count {
            kept.retain(|_, page| now_ms < page.until_ms);
            if kept.len() >= bounds.count {
                return;
            }
        }
        let until_ms = now_ms.saturating_add(bounds.ms);
        kept.insert((feed, seq), Kept { page: page.clone(), until_ms, version });
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
        assert_eq!(pages.after(FEED, 0, None, 100 + PAGES.ms), None);
    }

    #[test]
    fn end_of_a_feed_is_kept_for_its_readers_until_a_delivery() {
        let pages = FeedPages::default();
        let end = Page { has_more: false, ..page(PAGE + 1..=PAGE + 3) };
        pages.keep(FEED, PAGE, &end, None, 0);
        assert!(pages.ends.is_empty(), "its reader does not follow the feed");
        pages.keep(FEED, PAGE, &end, Some(7), 0);
        assert_eq!(pages.after(FEED, PAGE, Some(7), 0), Some(end));
        assert_eq!(pages.after(FEED, PAGE, Some(8), 0), None, "a delivery has arrived");
        assert_eq!(pages.after(FEED, PAGE, None, 0), None, "gets no delivery");
        assert_eq!(pages.after(FEED, PAGE, Some(7), ENDS.ms), None);
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
        assert!(pages.pages.is_empty() && pages.ends.is_empty());
    }

    #[test]
    fn number_of_pages_is_bounded() {
        let pages = FeedPages::default();
        for number in 0..2 * PAGES.count as u64 {
            pages.keep(FEED, number * PAGE, &page(number * PAGE + 1..=(number + 1) * PAGE), None, 0);
        }
        assert_eq!(pages.pages.len(), PAGES.count);
        pages.keep(FEED, 0, &page(1..=PAGE), None, PAGES.ms);
        assert_eq!(pages.pages.len(), 1, "old pages make room");
        let nothing = Page { rows: Arc::new([]), has_more: false };
        (0..2 * ENDS.count as u64).for_each(|seq| pages.keep(FEED, seq, &nothing, Some(1), 0));
        assert_eq!((pages.ends.len(), pages.pages.len()), (ENDS.count, 1), "ends take no room of pages");
    }
}
