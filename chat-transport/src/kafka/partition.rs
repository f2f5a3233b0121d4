use chat_core::backend::{LogPosition, Record, RecordBatch, RecordQueue};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Records and bytes at which a queue is full. Reading pauses until the queue is at most half full.
const WAITING: usize = 4096;
const WAITING_BYTES: usize = 32 * 1024 * 1024;

/// Records of a partition that were read and not applied yet.
#[derive(Debug, Default)]
pub(super) struct Partition {
    owned: Mutex<Owned>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Owned {
    /// 0 while this process is not the owner.
    ownership_epoch: u64,
    queue: RecordQueue,
    /// The offset after the last applied record, if it was not committed to Kafka yet.
    applied: Option<u64>,
}

impl Partition {
    /// Makes this process the owner, with an empty queue.
    pub(super) fn assign(&self, ownership_epoch: u64) {
        *self.owned.lock() = Owned { ownership_epoch, ..Owned::default() };
    }

    /// Ends the ownership. Records already taken may still be applied: the next owner writes the same bytes.
    pub(super) fn revoke(&self) {
        *self.owned.lock() = Owned::default();
    }

    /// Queues a record. Returns `true` if the queue is full and reading must pause.
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

    /// Returns whether the queue is at most half full.
    pub(super) fn has_room(&self) -> bool {
        let owned = self.owned.lock();
        owned.queue.len() <= WAITING / 2 && owned.queue.bytes() <= WAITING_BYTES / 2
    }

    /// Returns the number of records that are not applied yet.
    pub(super) fn len(&self) -> usize {
        self.owned.lock().queue.len()
    }

    /// Returns the ownership epoch, or 0 if this process is not the owner.
    pub(super) fn ownership_epoch(&self) -> u64 {
        self.owned.lock().ownership_epoch
    }

    pub(super) fn is_owned(&self) -> bool {
        self.ownership_epoch() != 0
    }

    pub(super) fn arrived(&self) -> Notified<'_> {
        self.arrived.notified()
    }

    /// Wakes the waiting shard task, so that it checks the state of the router.
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

    /// Takes the offset to commit to Kafka, if it changed.
    pub(super) fn take_applied(&self) -> Option<u64> {
        self.owned.lock().applied.take()
    }
}
