//! The events of a reader of a feed, in the order of their seqs.

use crate::backend::FeedDelivery;
use crate::model::envelope::InboxRow;
use crate::model::id::{ConversationId, InstallationId, Seq};
use crate::model::session_event::SessionEvent;

/// Adds the events of a feed to those of a session. An event of the session replaces the row with the same seq. `named` are the
/// seqs of the rows that the device must get from its inbox.
pub(super) fn add_rows(
    events: &mut Vec<SessionEvent>,
    feed: &FeedDelivery,
    device: InstallationId,
    named: &[Seq],
) {
    let is_here = |seq: &Seq| events.iter().any(|event| seq_in(event, feed.conversation) == Some(*seq));
    if named.iter().all(is_here) {
        merge(events, feed.conversation, rows_for(feed, device));
    } else {
        // The row without its box would be unreadable.
        events.push(SessionEvent::Lagged);
    }
}

/// Returns the events of a feed for a device: the rows of its membership, its own messages without content.
fn rows_for(feed: &FeedDelivery, device: InstallationId) -> Vec<SessionEvent> {
    let mut changes = feed.changes.iter().filter(|change| change.device == device).peekable();
    if changes.peek().is_none() {
        return feed.rows.iter().map(|row| row_for(row, device)).collect();
    }
    // The row of the change itself is one of the device's inbox.
    let mut reads = changes.peek().is_some_and(|change| !change.joins);
    let mut rows = Vec::new();
    for row in &feed.rows {
        let mut is_change = false;
        while let Some(change) = changes.next_if(|change| change.seq <= row.seq) {
            (reads, is_change) = (change.joins, change.seq == row.seq);
        }
        if reads && !is_change {
            rows.push(row_for(row, device));
        }
    }
    rows
}

fn row_for(row: &InboxRow, device: InstallationId) -> SessionEvent {
    SessionEvent::Row(row.clone().for_device(device))
}

fn merge(events: &mut Vec<SessionEvent>, feed: ConversationId, rows: Vec<SessionEvent>) {
    let mut merged = Vec::with_capacity(events.len() + rows.len());
    let mut rows = rows.into_iter().peekable();
    for event in std::mem::take(events) {
        if let Some(seq) = seq_in(&event, feed) {
            while let Some(row) = rows.next_if(|row| seq_in(row, feed).is_some_and(|other| other <= seq)) {
                if seq_in(&row, feed) != Some(seq) {
                    merged.push(row);
                }
            }
        }
        merged.push(event);
    }
    merged.extend(rows);
    *events = merged;
}

/// Returns the seq of an event in a conversation, if it has one.
fn seq_in(event: &SessionEvent, conversation: ConversationId) -> Option<Seq> {
    match event {
        SessionEvent::Row(row) if row.conversation == conversation => Some(row.seq),
        SessionEvent::Own(stored, _) if stored.conversation == conversation => Some(stored.seq),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::FeedChange;
    use crate::model::envelope::{EmptyReason, RowContent};

    const FEED: ConversationId = ConversationId::from_bytes([0x44; 17]);

    fn device(n: u8) -> InstallationId {
        InstallationId::from_bytes([n; 16])
    }

    fn row(conversation: ConversationId, seq: Seq, from: Seq) -> SessionEvent {
        let content = RowContent::Empty { reason: EmptyReason::Skip, from };
        SessionEvent::Row(InboxRow { conversation, seq, time_us: seq, joined: false, content })
    }

    fn delivery(seqs: std::ops::RangeInclusive<Seq>, changes: &[(u8, Seq, bool)]) -> FeedDelivery {
        let rows = seqs.filter_map(|seq| match row(FEED, seq, seq) {
            SessionEvent::Row(row) => Some(row),
            _ => None,
        });
        let change = |&(n, seq, joins): &(u8, Seq, bool)| FeedChange { device: device(n), seq, joins };
        FeedDelivery {
            rows: rows.collect(),
            changes: changes.iter().map(change).collect(),
            ..FeedDelivery::new(FEED, 1)
        }
    }

    fn seqs(events: &[SessionEvent]) -> Vec<Seq> {
        events.iter().filter_map(|event| seq_in(event, FEED)).collect()
    }

    #[test]
    fn device_gets_the_rows_of_its_membership() {
        let feed = delivery(3..=9, &[(1, 4, true), (2, 6, false), (3, 5, false), (3, 7, true)]);
        assert_eq!(seqs(&rows_for(&feed, device(1))), [5, 6, 7, 8, 9]);
        assert_eq!(seqs(&rows_for(&feed, device(2))), [3, 4, 5]);
        assert_eq!(seqs(&rows_for(&feed, device(3))), [3, 4, 8, 9]);
        assert_eq!(seqs(&rows_for(&feed, device(4))), [3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn event_of_the_session_replaces_the_row_of_the_feed() {
        let other = ConversationId::from_bytes([0x45; 17]);
        let own = |seq| row(FEED, seq, 0);
        let mut events = vec![own(4), row(other, 1, 1), own(6)];
        merge(&mut events, FEED, rows_for(&delivery(3..=7, &[]), device(1)));
        let rest = |seq| row(FEED, seq, seq);
        assert_eq!(events, [rest(3), own(4), row(other, 1, 1), rest(5), own(6), rest(7)]);
        let mut none = Vec::new();
        add_rows(&mut none, &delivery(1..=2, &[]), device(1), &[]);
        assert_eq!(seqs(&none), [1, 2]);
    }

    #[test]
    fn session_without_its_own_row_reads_the_inbox() {
        let feed = delivery(1..=3, &[]);
        let mut events = vec![row(FEED, 2, 0)];
        add_rows(&mut events, &feed, device(1), &[2]);
        assert_eq!(events, [row(FEED, 1, 1), row(FEED, 2, 0), row(FEED, 3, 3)]);
        let mut without = Vec::new();
        add_rows(&mut without, &feed, device(1), &[2]);
        assert_eq!(without, [SessionEvent::Lagged], "the shared row lacks the box of this device");
        let mut other = Vec::new();
        add_rows(&mut other, &feed, device(2), &[]);
        assert_eq!(seqs(&other), [1, 2, 3]);
    }
}
