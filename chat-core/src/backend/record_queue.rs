use std::collections::VecDeque;

use super::{LogPosition, Operation, Record};

/// Maximum number of records in one batch. One commit of the store may hold all of them in memory.
const BATCH: usize = 512;
/// Target size of one batch in bytes; the last record may exceed it.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Queue of a shard's uncommitted records, for use in routers. Records are taken in order, and again after a
/// rewind, until they are committed.
///
/// The queue has no limit of its own: the caller that fills it must check [`len`](Self::len) and
/// [`bytes`](Self::bytes).
#[derive(Debug, Default)]
pub struct RecordQueue {
    records: VecDeque<Record>,
    bytes: usize,
    /// Number of records at the front that were taken and are not committed.
    taken: usize,
}

fn size(record: &Record) -> usize {
    const KEYS: usize = 200;
    match &record.command.operation {
        Operation::Publish(publish) => {
            KEYS + publish.body.len() + publish.boxes.iter().map(|one| 40 + one.data.len()).sum::<usize>()
        }
        Operation::Skip(_) | Operation::Subscribe(_) => KEYS,
    }
}

impl RecordQueue {
    /// Appends a record.
    pub fn push(&mut self, record: Record) {
        self.bytes += size(&record);
        self.records.push_back(record);
    }

    /// Takes the next batch of records that were not taken yet; empty if there are none.
    pub fn take(&mut self) -> Vec<Record> {
        let mut bytes = 0;
        let fresh = self.records.iter().skip(self.taken).take(BATCH);
        let batch = fresh.take_while(|record| {
            let fits = bytes < BATCH_BYTES;
            bytes += size(record);
            fits
        });
        let batch: Vec<Record> = batch.cloned().collect();
        self.taken += batch.len();
        batch
    }

    /// Removes taken records up to a position. Returns the position of the last one removed, if any.
    pub fn commit(&mut self, position: LogPosition) -> Option<LogPosition> {
        let mut last = None;
        while self.taken > 0
            && self.records.front().is_some_and(|record| record.position <= position)
            && let Some(record) = self.records.pop_front()
        {
            self.taken -= 1;
            self.bytes -= size(&record);
            last = Some(record.position);
        }
        last
    }

    /// Makes all taken records available again.
    pub fn rewind(&mut self) {
        self.taken = 0;
    }

    /// Returns the number of records, including those taken.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the approximate size of all records in bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}
