//! Rows of a feed that many sessions send unchanged.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::envelope::{InboxRow, RowContent};
use super::id::{ConversationId, Seq};

/// Rows of a feed that many sessions send in one frame, which is encoded once.
///
/// The rows have consecutive seqs of one conversation. A clone shares the rows and the frame.
#[derive(Clone, Debug)]
pub struct SharedRows(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    rows: Vec<InboxRow>,
    /// The approximate size of all rows on the wire.
    bytes: usize,
    has_messages: bool,
    frame: OnceLock<Bytes>,
}

impl PartialEq for SharedRows {
    fn eq(&self, other: &Self) -> bool {
        self.0.rows == other.0.rows
    }
}

impl Eq for SharedRows {}

impl SharedRows {
    /// Splits rows of a feed into frames of about `frame_bytes`. A frame ends where a seq is missing.
    pub(crate) fn split(rows: &[InboxRow], frame_bytes: usize) -> Vec<Self> {
        let (mut frames, mut frame, mut bytes) = (Vec::new(), Vec::<InboxRow>::new(), 0);
        for row in rows {
            let follows = |last: &InboxRow| last.conversation == row.conversation && last.seq + 1 == row.seq;
            if bytes >= frame_bytes || frame.last().is_some_and(|last| !follows(last)) {
                frames.push(Self::new(std::mem::take(&mut frame)));
                bytes = 0;
            }
            bytes += row.size();
            frame.push(row.clone());
        }
        if !frame.is_empty() {
            frames.push(Self::new(frame));
        }
        frames
    }

    fn new(rows: Vec<InboxRow>) -> Self {
        let bytes = rows.iter().map(InboxRow::size).sum();
        let has_messages = rows.iter().any(|row| matches!(row.content, RowContent::Message { .. }));
        Self(Arc::new(Shared { rows, bytes, has_messages, frame: OnceLock::new() }))
    }

    /// Returns the rows, at least one, in the order of their seqs.
    pub fn rows(&self) -> &[InboxRow] {
        &self.0.rows
    }

    /// Returns the conversation, and the first and the last seq.
    pub(crate) fn range(&self) -> Option<(ConversationId, Seq, Seq)> {
        let (first, last) = (self.0.rows.first()?, self.0.rows.last()?);
        Some((first.conversation, first.seq, last.seq))
    }

    /// Returns the approximate size of the rows on the wire, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Returns whether one of the rows has a message.
    pub(crate) fn has_messages(&self) -> bool {
        self.0.has_messages
    }

    /// Returns the frame with the rows. Only the first call of all clones encodes it.
    pub(crate) fn frame(&self, encode: impl FnOnce(&[InboxRow]) -> Bytes) -> Bytes {
        self.0.frame.get_or_init(|| encode(&self.0.rows)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::envelope::EmptyReason;

    #[test]
    fn frames_have_consecutive_rows_and_a_limited_size() {
        let conversation = ConversationId::from_bytes([0x44; 17]);
        let row = |seq| {
            let content = RowContent::Empty { reason: EmptyReason::Skip, from: seq };
            InboxRow { conversation, seq, time_us: seq, joined: false, content }
        };
        let rows: Vec<InboxRow> = [1, 2, 3, 5, 6].into_iter().map(row).collect();
        let frames = SharedRows::split(&rows, 2 * rows[0].size());
        let seqs: Vec<Vec<Seq>> =
            frames.iter().map(|frame| frame.rows().iter().map(|row| row.seq).collect()).collect();
        assert_eq!(seqs, [vec![1, 2], vec![3], vec![5, 6]]);
        assert!(!frames[0].has_messages());
        assert!(SharedRows::split(&[], 1).is_empty());
    }

    #[test]
    fn frame_is_encoded_once() {
        let content = RowContent::Unknown(Bytes::from_static(b"later"));
        let conversation = ConversationId::from_bytes([0x44; 17]);
        let row = InboxRow { conversation, seq: 1, time_us: 1, joined: false, content };
        let frames = SharedRows::split(&[row], 100);
        let first = frames[0].clone().frame(|rows| vec![rows.len() as u8].into());
        assert_eq!(first, frames[0].frame(|_| unreachable!()));
    }
}
