//! State that several server processes share: a log whose shards move between them, and the links between
//! gateways.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::store::{Busy, unknown};
use crate::backend::{Command, Deliveries, GatewayId, LogPosition, NodeLink, Record, RecordBatch, Router};
use crate::memory::{ManualClock, NoLink};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::rng::Rng;
use crate::model::time::WallClock;

/// Shards of the log.
pub(super) const SHARDS: usize = 2;

/// A log that survives every process.
#[derive(Debug, Default)]
pub(super) struct SimLog {
    shards: [Shard; SHARDS],
    ownership_epochs: u64,
    /// Shards of processes that wait for records.
    waiting: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Shard {
    records: Vec<Record>,
    committed: usize,
    /// The server that should own the shard.
    owner: Option<usize>,
}

impl SimLog {
    pub(super) fn owner(&self, shard: usize) -> Option<usize> {
        self.shards[shard].owner
    }

    pub(super) fn set_owner(&mut self, shard: usize, owner: usize) {
        self.shards[shard].owner = Some(owner);
    }

    pub(super) fn is_applied(&self) -> bool {
        self.shards.iter().all(|shard| shard.committed == shard.records.len())
    }
}

/// One process's view of the log: the shards that it believes it owns.
pub(super) struct SimRouter {
    log: Arc<Mutex<SimLog>>,
    clock: Arc<ManualClock>,
    owned: Mutex<[Option<Owned>; SHARDS]>,
    rng: Mutex<Rng>,
    /// Percent of appends that fail before the log stores the record, and percent that fail after.
    errors: Mutex<(u64, u64)>,
}

#[derive(Clone, Copy)]
struct Owned {
    next: usize,
    ownership_epoch: u64,
}

impl fmt::Debug for SimRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRouter")
    }
}

impl SimRouter {
    pub(super) fn new(
        log: Arc<Mutex<SimLog>>,
        clock: Arc<ManualClock>,
        seed: u64,
        errors: (u64, u64),
    ) -> Self {
        let rng = Mutex::new(Rng::new(seed));
        Self { log, clock, owned: Mutex::default(), rng, errors: Mutex::new(errors) }
    }

    /// Stops all injected errors.
    pub(super) fn heal(&self) {
        *self.errors.lock() = (0, 0);
    }

    /// Notifies the process that it owns a shard.
    pub(super) fn assign(&self, shard: usize) {
        let mut log = self.log.lock();
        log.ownership_epochs += 1;
        self.owned.lock()[shard] =
            Some(Owned { next: log.shards[shard].committed, ownership_epoch: log.ownership_epochs });
        log.waiting.drain(..).for_each(Waker::wake);
    }

    /// Notifies the process that it no longer owns a shard.
    pub(super) fn revoke(&self, shard: usize) {
        self.owned.lock()[shard] = None;
    }

    pub(super) fn owns(&self, shard: usize) -> bool {
        self.owned.lock()[shard].is_some()
    }

    fn take(&self, shard: usize) -> Option<RecordBatch> {
        let log = self.log.lock();
        let mut owned = self.owned.lock();
        let own = owned[shard].as_mut()?;
        let records = &log.shards[shard].records;
        // The batches of two owners begin and end at different records.
        let most = 1 + (own.ownership_epoch as usize + own.next) % 3;
        let taken: Vec<Record> = records.iter().skip(own.next).take(most).cloned().collect();
        own.next += taken.len();
        (!taken.is_empty()).then_some(RecordBatch { ownership_epoch: own.ownership_epoch, records: taken })
    }
}

#[async_trait]
impl Router for SimRouter {
    fn shards(&self) -> usize {
        SHARDS
    }

    async fn append(&self, command: Command) -> Result<()> {
        let (before, after, turns) = {
            let (mut rng, errors) = (self.rng.lock(), *self.errors.lock());
            (rng.chance(errors.0), rng.chance(errors.1), rng.below(4))
        };
        if before {
            return Err(unknown());
        }
        let shard = usize::from(command.conversation().as_bytes()[16]) % SHARDS;
        {
            let mut log = self.log.lock();
            let records = &mut log.shards[shard].records;
            let appended_us = records.last().map_or(0, |last| last.appended_us).max(self.clock.now_us());
            let position = LogPosition { generation: 1, offset: records.len() as u64 + 1 };
            records.push(Record { position, appended_us, command: Arc::new(command) });
            log.waiting.drain(..).for_each(Waker::wake);
        }
        // The log has the record and confirms it later, so that appends of a connection overlap.
        for _ in 0..turns {
            Busy(false).await;
        }
        if after { Err(unknown()) } else { Ok(()) }
    }

    async fn next(&self, shard: usize) -> Result<RecordBatch> {
        poll_fn(|context| match self.take(shard) {
            Some(taken) => Poll::Ready(Ok(taken)),
            None => {
                self.log.lock().waiting.push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    /// Accepts every process, also a replaced owner that is behind or ahead.
    async fn commit(&self, shard: usize, position: LogPosition) -> Result<()> {
        self.log.lock().shards[shard].committed = position.offset as usize;
        Ok(())
    }

    async fn rewind(&self, shard: usize) -> Result<()> {
        let committed = self.log.lock().shards[shard].committed;
        if let Some(own) = &mut self.owned.lock()[shard] {
            own.next = committed;
        }
        Ok(())
    }

    async fn close(&self) {
        // A simulated process ends at once and loses the shards it owned.
    }
}

/// Deliveries between gateways that the world has not transported yet.
pub(super) type Carried = Arc<Mutex<VecDeque<(GatewayId, Deliveries)>>>;

/// A gateway's end of the links to the other gateways.
#[derive(Debug)]
pub(super) struct SimLink(pub Carried);

#[async_trait]
impl NodeLink for SimLink {
    fn deliver(&self, gateway: GatewayId, deliveries: Deliveries) {
        self.0.lock().push_back((gateway, deliveries));
    }

    async fn offer(&self, gateway: GatewayId, rendezvous: Bytes) -> Result<Bytes> {
        NoLink.offer(gateway, rendezvous).await
    }

    async fn answer_offer(&self, _: GatewayId, _: Bytes, _: Bytes) -> Result<()> {
        Err(Error::new(ErrorKind::NotFound, "the simulator links no devices"))
    }
}
