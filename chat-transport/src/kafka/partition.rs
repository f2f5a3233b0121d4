use std::collections::VecDeque;

use chat_core::backend::{LogPosition, Operation, Record, Taken};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Records taken at once: what one commit of the store may have to hold in memory.
const BATCH: usize = 512;
/// Bytes taken at once.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Records and bytes that may wait; above, Kafka is not read, until half of it is gone.
const WAITING: usize = 4096;
const WAITING_BYTES: usize = 32 * 1024 * 1024;

/// What was read of a partition and is not applied yet.
#[derive(Debug, Default)]
pub(super) struct Partition {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// This process's time as the owner; 0 while it is not.
    tenure: u64,
    records: VecDeque<Record>,
    bytes: usize,
    /// How many of `records` were taken and wait for their commit.
    taken: usize,
    /// The offset after the last one applied, if that was not told to Kafka yet.
    applied: Option<u64>,
    /// Kafka is not read at the moment.
    paused: bool,
}

fn size(record: &Record) -> usize {
    match &record.command.operation {
        Operation::Publish(publish) => {
            200 + publish.body.len() + publish.boxes.iter().map(|one| 40 + one.data.len()).sum::<usize>()
        }
        _ => 200,
    }
}

impl Partition {
    /// From now on this process owns it.
    pub(super) fn assign(&self, tenure: u64) {
        *self.queue.lock() = Queue { tenure, ..Queue::default() };
    }

    /// From now on another one may. What was taken may still be applied: it writes the same bytes.
    pub(super) fn revoke(&self) {
        *self.queue.lock() = Queue::default();
    }

    /// Takes in a record; `true` if Kafka is not to be read any further for now.
    pub(super) fn push(&self, record: Record) -> bool {
        let pause = {
            let mut queue = self.queue.lock();
            if queue.tenure == 0 {
                return false;
            }
            queue.bytes += size(&record);
            queue.records.push_back(record);
            let full = queue.records.len() >= WAITING || queue.bytes >= WAITING_BYTES;
            let pause = full && !queue.paused;
            queue.paused |= full;
            pause
        };
        self.arrived.notify_one();
        pause
    }

    /// Whether Kafka may be read again; said once.
    pub(super) fn resumes(&self) -> bool {
        let mut queue = self.queue.lock();
        let room = queue.records.len() <= WAITING / 2 && queue.bytes <= WAITING_BYTES / 2;
        std::mem::take(&mut queue.paused) && {
            queue.paused = !room;
            room
        }
    }

    pub(super) fn arrived(&self) -> Notified<'_> {
        self.arrived.notified()
    }

    /// Wakes whoever waits, so that it looks at what happened.
    pub(super) fn wake(&self) {
        self.arrived.notify_one();
    }

    pub(super) fn take(&self) -> Option<Taken> {
        let mut queue = self.queue.lock();
        let mut bytes = 0;
        let waiting = queue.records.iter().skip(queue.taken).take(BATCH);
        let records: Vec<Record> = waiting
            .take_while(|record| {
                let fits = bytes < BATCH_BYTES;
                bytes += size(record);
                fits
            })
            .cloned()
            .collect();
        queue.taken += records.len();
        (!records.is_empty()).then_some(Taken { tenure: queue.tenure, records })
    }

    pub(super) fn commit(&self, position: LogPosition) {
        let mut queue = self.queue.lock();
        while queue.taken > 0 && queue.records.front().is_some_and(|record| record.position <= position) {
            if let Some(record) = queue.records.pop_front() {
                queue.bytes = queue.bytes.saturating_sub(size(&record));
                queue.taken -= 1;
                queue.applied = Some(record.position.offset + 1);
            }
        }
    }

    pub(super) fn rewind(&self) {
        self.queue.lock().taken = 0;
        self.arrived.notify_one();
    }

    /// The offset to tell Kafka, if it changed.
    pub(super) fn take_applied(&self) -> Option<u64> {
        self.queue.lock().applied.take()
    }

    /// How many records wait, and whether this process owns it.
    pub(super) fn backlog(&self) -> (usize, bool) {
        let queue = self.queue.lock();
        (queue.records.len(), queue.tenure != 0)
    }
}
