use chat_core::backend::{LogPosition, Record, RecordBatch, RecordQueue};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Records and bytes that may wait; above, Kafka is not read, until half of it is gone.
const WAITING: usize = 4096;
const WAITING_BYTES: usize = 32 * 1024 * 1024;

/// What was read of a partition and is not applied yet.
#[derive(Debug, Default)]
pub(super) struct Partition {
    owned: Mutex<Owned>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Owned {
    /// This process's time as the owner; 0 while it is not.
    ownership_epoch: u64,
    queue: RecordQueue,
    /// The offset after the last one applied, if that was not told to Kafka yet.
    applied: Option<u64>,
}

impl Partition {
    /// From now on this process owns it.
    pub(super) fn assign(&self, ownership_epoch: u64) {
        *self.owned.lock() = Owned { ownership_epoch, ..Owned::default() };
    }

    /// From now on another one may. What was taken may still be applied: it writes the same bytes.
    pub(super) fn revoke(&self) {
        *self.owned.lock() = Owned::default();
    }

    /// Takes in a record; `true` if Kafka is not to be read any further for now.
    pub(super) fn push(&self, record: Record) -> bool {
        let full = {
            let mut owned = self.owned.lock();
            if owned.ownership_epoch == 0 {
                return false;
            }
            owned.queue.push(record);
            owned.queue.len() >= WAITING || owned.queue.bytes() >= WAITING_BYTES
        };
        self.arrived.notify_one();
        full
    }

    /// Whether half of what may wait is gone again.
    pub(super) fn has_room(&self) -> bool {
        let owned = self.owned.lock();
        owned.queue.len() <= WAITING / 2 && owned.queue.bytes() <= WAITING_BYTES / 2
    }

    /// Records that are not applied yet.
    pub(super) fn len(&self) -> usize {
        self.owned.lock().queue.len()
    }

    /// This process's time as the owner; 0 while it is not.
    pub(super) fn ownership_epoch(&self) -> u64 {
        self.owned.lock().ownership_epoch
    }

    pub(super) fn is_owned(&self) -> bool {
        self.ownership_epoch() != 0
    }

    pub(super) fn arrived(&self) -> Notified<'_> {
        self.arrived.notified()
    }

    /// Wakes whoever waits, so that it looks at what happened.
    pub(super) fn wake(&self) {
        self.arrived.notify_one();
    }

    pub(super) fn take(&self) -> Option<RecordBatch> {
        let mut owned = self.owned.lock();
        let records = owned.queue.take();
        (!records.is_empty()).then_some(RecordBatch { ownership_epoch: owned.ownership_epoch, records })
    }

    pub(super) fn commit(&self, position: LogPosition) {
        let mut owned = self.owned.lock();
        if let Some(last) = owned.queue.commit(position) {
            owned.applied = Some(last.offset + 1);
        }
    }

    pub(super) fn rewind(&self) {
        self.owned.lock().queue.rewind();
        self.arrived.notify_one();
    }

    /// The offset to tell Kafka, if it changed.
    pub(super) fn take_applied(&self) -> Option<u64> {
        self.owned.lock().applied.take()
    }
}
