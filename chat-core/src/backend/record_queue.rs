use std::collections::VecDeque;

use super::{LogPosition, Operation, Record};

/// Records taken at once: what one commit of the store may have to hold in memory.
const BATCH: usize = 512;
/// Bytes taken at once.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The records of a shard that are not applied yet, as routers keep them: taken in order, and again after a
/// rewind, until they are committed.
///
/// It does not bound itself: whoever fills it looks at [`len`](Self::len) and [`bytes`](Self::bytes).
#[derive(Debug, Default)]
pub struct RecordQueue {
    records: VecDeque<Record>,
    bytes: usize,
    /// How many of `records` were taken and wait for their commit.
    taken: usize,
}

fn size(record: &Record) -> usize {
    const KEYS: usize = 200;
    match &record.command.operation {
        Operation::Publish(publish) => {
            KEYS + publish.body.len() + publish.boxes.iter().map(|one| 40 + one.data.len()).sum::<usize>()
        }
        Operation::Skip(_) => KEYS,
    }
}

impl RecordQueue {
    /// Puts a record behind the others.
    pub fn push(&mut self, record: Record) {
        self.bytes += size(&record);
        self.records.push_back(record);
    }

    /// Takes what was not taken yet: a batch of records, none if there are none.
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

    /// Forgets what was taken up to a position; gives the last position forgotten, if anything was.
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

    /// Makes everything that was taken come again.
    pub fn rewind(&mut self) {
        self.taken = 0;
    }

    /// How many records there are, taken ones included.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// About how many bytes they take.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}
