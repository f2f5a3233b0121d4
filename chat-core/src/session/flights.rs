use std::collections::BTreeMap;

use crate::model::envelope::{AckUpTo, InboxRow, RowContent};
use crate::model::id::{ConversationId, Seq};
use crate::model::shared_rows::SharedRows;
use crate::model::time::Instant;

/// Rows that were sent to the device and are not acknowledged.
///
/// Rows with consecutive seqs that were sent together are one run, so that a frame of a feed costs one entry.
#[derive(Debug, Default)]
pub(super) struct Flights {
    /// The runs, by the seq of their last row.
    runs: BTreeMap<(ConversationId, Seq), Run>,
    rows: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    first: Seq,
    bytes: usize,
    /// The run has no message of another device: its ack causes no receipt.
    silent: bool,
    sent: Instant,
}

/// The rows that an ack covers.
#[derive(Debug, Default)]
pub(super) struct Landed {
    pub rows: usize,
    pub bytes: usize,
    /// One of them has a message of another device.
    pub of_others: bool,
    /// When the earliest of them was sent.
    pub sent: Option<Instant>,
}

impl Flights {
    /// Returns the number of rows.
    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the approximate size of the rows on the wire, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn contains(&self, conversation: ConversationId, seq: Seq) -> bool {
        let next = self.runs.range((conversation, seq)..=(conversation, Seq::MAX)).next();
        next.is_some_and(|(_, run)| run.first <= seq)
    }

    /// Adds a row that is sent now.
    pub(super) fn add(&mut self, now: Instant, row: &InboxRow) {
        let silent = !matches!(row.content, RowContent::Message { .. });
        let run = Run { first: row.seq, bytes: row.size(), silent, sent: now };
        self.insert(row.conversation, row.seq, run);
    }

    /// Adds the rows of a feed that are sent now.
    pub(super) fn add_shared(&mut self, now: Instant, rows: &SharedRows) {
        let Some((conversation, first, last)) = rows.range() else { return };
        let run = Run { first, bytes: rows.bytes(), silent: !rows.has_messages(), sent: now };
        self.insert(conversation, last, run);
    }

    /// Adds a run. Rows that are sent again count once.
    fn insert(&mut self, conversation: ConversationId, mut last: Seq, mut run: Run) {
        let overlaps = |(key, known): &(&(ConversationId, Seq), &Run)| (known.first <= last).then_some(**key);
        let range = self.runs.range((conversation, run.first)..=(conversation, Seq::MAX));
        let known: Vec<_> = range.map_while(|one| overlaps(&one)).collect();
        for key in known {
            let Some(old) = self.remove(key) else { continue };
            if old.first < run.first || key.1 > last {
                // The rest of the known run stays in flight.
                run.bytes = run.bytes.max(old.bytes);
                (run.first, last) = (run.first.min(old.first), last.max(key.1));
            }
            run.silent &= old.silent;
        }
        self.rows += count(run.first, last);
        self.bytes += run.bytes;
        self.runs.insert((conversation, last), run);
    }

    fn remove(&mut self, key: (ConversationId, Seq)) -> Option<Run> {
        let run = self.runs.remove(&key)?;
        self.rows -= count(run.first, key.1);
        self.bytes -= run.bytes;
        Some(run)
    }

    /// Removes the rows that an ack covers.
    pub(super) fn land(&mut self, ack: AckUpTo) -> Landed {
        let mut landed = Landed::default();
        let range = self.runs.range((ack.conversation, 0)..=(ack.conversation, Seq::MAX));
        let covered: Vec<_> =
            range.take_while(|(_, run)| run.first <= ack.seq).map(|(key, _)| *key).collect();
        for key in covered {
            let Some(run) = self.remove(key) else { continue };
            let all = count(run.first, key.1);
            let rows = count(run.first, ack.seq.min(key.1));
            let bytes = run.bytes / all * rows + if rows == all { run.bytes % all } else { 0 };
            if rows < all {
                self.insert(
                    key.0,
                    key.1,
                    Run { first: ack.seq.saturating_add(1), bytes: run.bytes - bytes, ..run },
                );
            }
            landed.rows += rows;
            landed.bytes += bytes;
            landed.of_others |= !run.silent;
            landed.sent = Some(landed.sent.map_or(run.sent, |sent| sent.min(run.sent)));
        }
        landed
    }

    /// Returns when the row that waits longest was sent, or that no row waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.runs.values().map(|run| run.sent).min()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Returns the number of rows of a run.
const fn count(first: Seq, last: Seq) -> usize {
    (last - first + 1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::envelope::EmptyReason;

    const FEED: ConversationId = ConversationId::from_bytes([0x44; 17]);
    const NOW: Instant = Instant::from_millis(5);

    fn row(seq: Seq) -> InboxRow {
        let content = RowContent::Empty { reason: EmptyReason::Skip, from: seq };
        InboxRow { conversation: FEED, seq, time_us: seq, joined: false, content }
    }

    fn run(seqs: std::ops::RangeInclusive<Seq>) -> SharedRows {
        let rows: Vec<_> = seqs.map(row).collect();
        SharedRows::split(&rows, usize::MAX).remove(0)
    }

    fn seqs(flights: &Flights) -> Vec<Seq> {
        (1..20).filter(|seq| flights.contains(FEED, *seq)).collect()
    }

    #[test]
    fn ack_lands_a_part_of_a_run() {
        let mut flights = Flights::default();
        flights.add_shared(NOW, &run(2..=6));
        flights.add(NOW, &row(7));
        assert_eq!((flights.rows(), flights.bytes()), (6, 6 * row(1).size()));
        let landed = flights.land(AckUpTo { conversation: FEED, seq: 4 });
        assert_eq!((landed.rows, landed.bytes, landed.sent), (3, 3 * row(1).size(), Some(NOW)));
        assert_eq!((seqs(&flights), flights.bytes()), (vec![5, 6, 7], 3 * row(1).size()));
        assert_eq!(flights.land(AckUpTo { conversation: FEED, seq: 4 }).rows, 0);
        assert_eq!(flights.land(AckUpTo { conversation: FEED, seq: Seq::MAX }).rows, 3);
        assert_eq!((flights.rows(), flights.bytes(), flights.oldest()), (0, 0, None));
    }

    #[test]
    fn rows_that_are_sent_again_count_once() {
        for (sent, again, all) in [
            (2..=6, 4..=8, 2..=8),
            (4..=8, 2..=6, 2..=8),
            (2..=8, 4..=6, 2..=8),
            (4..=6, 2..=8, 2..=8),
            (3..=3, 3..=3, 3..=3),
        ] {
            let mut flights = Flights::default();
            flights.add_shared(NOW, &run(sent));
            flights.add_shared(NOW, &run(again));
            assert_eq!((seqs(&flights), flights.rows()), (all.clone().collect(), all.count()));
            flights.land(AckUpTo { conversation: FEED, seq: 20 });
            assert_eq!((flights.rows(), flights.bytes()), (0, 0));
        }
    }

    #[test]
    fn runs_of_other_conversations_stay() {
        let other = ConversationId::from_bytes([0x45; 17]);
        let mut flights = Flights::default();
        flights.add(NOW, &InboxRow { conversation: other, ..row(3) });
        flights.add_shared(NOW, &run(1..=4));
        flights.land(AckUpTo { conversation: FEED, seq: 9 });
        assert_eq!(flights.rows(), 1);
        assert!(flights.contains(other, 3) && !flights.contains(FEED, 3));
    }
}
