use chat_core::backend::{LogPosition, Record, RecordBatch, RecordQueue};
use chat_core::{Error, Result};
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
    /// Why the record after those of the queue, and all later ones, are not taken.
    stopped: Option<Error>,
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
            if owned.ownership_epoch == 0 || owned.stopped.is_some() {
                return false;
            }
            owned.queue.push(record);
            owned.queue.len() >= WAITING || owned.queue.bytes() >= WAITING_BYTES
        };
        self.arrived.notify_one();
        full
    }

    /// Stops at a record that this release must not decide or skip: another release has to own the partition.
    pub(super) fn stop(&self, error: Error) {
        {
            let mut owned = self.owned.lock();
            if owned.ownership_epoch != 0 {
                owned.stopped.get_or_insert(error);
            }
        }
        self.arrived.notify_one();
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

    /// Takes the waiting records; `None` if there are none.
    ///
    /// # Errors
    /// The error at which the partition [stopped](Self::stop), once the records before it are taken.
    pub(super) fn take(&self) -> Result<Option<RecordBatch>> {
        let mut owned = self.owned.lock();
        let records = owned.queue.take();
        if !records.is_empty() {
            return Ok(Some(RecordBatch { ownership_epoch: owned.ownership_epoch, records }));
        }
        owned.stopped.clone().map_or(Ok(None), Err)
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
