use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::{Command, LogPosition, Record, RecordBatch, RecordQueue, Router};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::ConversationId;
use crate::model::time::WallClock;

/// Maximum number of uncommitted commands of a shard. Above it, an append fails with `Throttled` and the
/// device retries.
const QUEUE: usize = 4096;

/// The [`Router`] of a single process: one bounded queue per shard.
#[derive(Debug)]
pub struct MemoryRouter {
    shards: Vec<Shard>,
    clock: Arc<dyn WallClock>,
    /// Differs in every process: offsets restart with the process.
    generation: u64,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard {
    log: Mutex<Log>,
    appended: Notify,
}

#[derive(Debug, Default)]
struct Log {
    queue: RecordQueue,
    offset: u64,
    last_us: u64,
}

impl MemoryRouter {
    /// Returns a router with this many shards (at least 1) that stamps records with this clock.
    pub fn new(shards: usize, clock: Arc<dyn WallClock>) -> Self {
        let generation = clock.now_us();
        let shards = (0..shards.max(1)).map(|_| Shard::default()).collect();
        Self { shards, clock, generation, closed: AtomicBool::new(false) }
    }

    /// Returns the shard of a conversation.
    pub fn shard_of(&self, conversation: ConversationId) -> usize {
        let mut hasher = DefaultHasher::new();
        conversation.hash(&mut hasher);
        (hasher.finish() % self.shards.len() as u64) as usize
    }

    fn shard(&self, shard: usize) -> Result<&Shard> {
        self.shards.get(shard).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such shard"))
    }
}

#[async_trait]
impl Router for MemoryRouter {
    fn shards(&self) -> usize {
        self.shards.len()
    }

    async fn append(&self, command: Command) -> Result<()> {
        let shard = &self.shards[self.shard_of(command.conversation())];
        {
            let mut log = shard.log.lock();
            if log.queue.len() >= QUEUE {
                return Err(Error::new(ErrorKind::Throttled, "the shard's queue is full"));
            }
            log.offset += 1;
            // The drain order must not go back when the clock does.
            log.last_us = self.clock.now_us().max(log.last_us);
            let record = Record {
                position: LogPosition { generation: self.generation, offset: log.offset },
                appended_us: log.last_us,
                command: Arc::new(command),
            };
            log.queue.push(record);
        }
        shard.appended.notify_one();
        Ok(())
    }

    async fn next(&self, shard: usize) -> Result<RecordBatch> {
        let shard = self.shard(shard)?;
        loop {
            let appended = shard.appended.notified();
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::new(ErrorKind::Closed, "the router is closed"));
            }
            let records = shard.log.lock().queue.take();
            if !records.is_empty() {
                return Ok(RecordBatch { ownership_epoch: 0, records });
            }
            appended.await;
        }
    }

    async fn commit(&self, shard: usize, position: LogPosition) -> Result<()> {
        self.shard(shard)?.log.lock().queue.commit(position);
        Ok(())
    }

    async fn rewind(&self, shard: usize) -> Result<()> {
        let shard = self.shard(shard)?;
        shard.log.lock().queue.rewind();
        shard.appended.notify_one();
        Ok(())
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.shards.iter().for_each(|shard| shard.appended.notify_one());
    }
}
