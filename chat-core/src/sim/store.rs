//! The memory store with injected errors and partial commits.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::oracle::KeyUse;

use crate::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, LogPosition, MessageStore,
    PageLimit, SenderFilter, StoreIdentity,
};
use crate::memory::{Tables, Write};
use crate::model::envelope::{AckUpTo, Durability, InboxPosition, InboxRow};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, InstallationId, MessageId, Seq, StoreEpoch, UserId};
use crate::model::rng::Rng;
use crate::mutant::Mutant;

/// The faults that a [`SimStore`] injects.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreFaults {
    /// Apply a commit row by row with a possible stop after any row: a crash leaves only the first rows.
    pub split: bool,
    /// For half of the commits, write the state first, with a redo record. `make_visible` writes the rest.
    pub durable_first: bool,
    /// Percent of calls that fail before they are fully applied, reads included.
    pub error_before: u64,
    /// Percent of commits and acks that are applied in full and still return an unknown outcome.
    pub error_after: u64,
}

/// The epoch of the data set until it is restored.
pub(super) const FIRST_EPOCH: StoreEpoch = StoreEpoch::from_bytes([0x51; 16]);

/// Redo records: the last commit of each conversation whose state was not written last. The next shard owner
/// finishes it.
pub(super) type Redo = Arc<Mutex<BTreeMap<ConversationId, Commit>>>;

/// One process's handle to tables that survive a crash.
#[derive(Debug)]
pub(super) struct SimStore {
    tables: Arc<Mutex<Tables>>,
    redo: Redo,
    rng: Mutex<Rng>,
    faults: Mutex<StoreFaults>,
    keys: Arc<Mutex<KeyUse>>,
    epoch: StoreEpoch,
    /// Conversations of the calls of `commit` that run in this process.
    committing: Mutex<BTreeSet<ConversationId>>,
}

/// Conversations of a call of `commit`, until the call ends.
struct Committing<'a>(&'a SimStore, Vec<ConversationId>);

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        let mut running = self.0.committing.lock();
        self.1.iter().for_each(|conversation| {
            running.remove(conversation);
        });
    }
}

impl SimStore {
    pub(super) fn new(
        tables: Arc<Mutex<Tables>>,
        redo: Redo,
        keys: Arc<Mutex<KeyUse>>,
        seed: u64,
        faults: StoreFaults,
    ) -> Self {
        Self {
            tables,
            redo,
            rng: Mutex::new(Rng::new(seed)),
            faults: Mutex::new(faults),
            keys,
            epoch: FIRST_EPOCH,
            committing: Mutex::default(),
        }
    }

    /// Sets the epoch of the data set.
    pub(super) fn with_epoch(self, epoch: StoreEpoch) -> Self {
        Self { epoch, ..self }
    }

    /// Notes a call of `commit`. The engine names a conversation once in a call, and once at a time.
    fn begin_commit(&self, commits: &[Commit]) -> Committing<'_> {
        let mut running = self.committing.lock();
        let named: Vec<ConversationId> = commits.iter().map(|commit| commit.conversation).collect();
        for conversation in &named {
            if !running.insert(*conversation) {
                self.keys
                    .lock()
                    .overlap
                    .get_or_insert(format!("{conversation:?} is committed twice at a time"));
            }
        }
        Committing(self, named)
    }

    fn may_fail(&self) -> Result<()> {
        let fails = self.rng.lock().chance(self.faults.lock().error_before);
        if fails { Err(unknown()) } else { Ok(()) }
    }

    /// Applies writes. `redo` is their commit, if its state is not written last.
    fn apply(&self, writes: Vec<Write>, redo: Option<&Commit>) {
        let mut tables = self.tables.lock();
        for write in writes {
            if let Write::State(conversation, state) = &write
                && tables.head(*conversation).is_none_or(|known| known.time_us <= state.head.time_us)
            {
                self.keep(*conversation, redo);
            }
            match write {
                Write::State(conversation, state) if Mutant::OlderStateWins.is_active() => {
                    tables.put_state(conversation, &state);
                }
                write => {
                    if let Write::History(row) = &write
                        && tables.differs(row)
                    {
                        self.keys.lock().differing.get_or_insert(format!("{row:?}"));
                    }
                    tables.apply(write);
                }
            }
        }
    }

    fn keep(&self, conversation: ConversationId, redo: Option<&Commit>) {
        let mut kept = self.redo.lock();
        match redo {
            Some(commit) => {
                self.keys.lock().note(commit);
                kept.insert(conversation, commit.clone());
            }
            None => {
                kept.remove(&conversation);
            }
        }
    }

    /// Writes the rows of a conversation's last commit again, from its redo record.
    fn finish(&self, conversation: ConversationId, state: &ConversationState) -> Result<()> {
        let faults = *self.faults.lock();
        let redo = self.redo.lock().get(&conversation).filter(|redo| redo.state.head == state.head).cloned();
        let Some(redo) = redo else { return Ok(()) };
        if Mutant::HalfCommitStays.is_active() {
            return Ok(());
        }
        let mut writes = Tables::writes(redo.clone());
        self.shuffle(&mut writes);
        let fails = self.rng.lock().chance(faults.error_before);
        if fails {
            writes.truncate(self.rng.lock().below(writes.len() as u64) as usize);
        }
        self.apply(writes, Some(&redo));
        if fails { Err(unknown()) } else { Ok(()) }
    }

    fn shuffle(&self, writes: &mut [Write]) {
        let mut rng = self.rng.lock();
        for at in (1..writes.len()).rev() {
            writes.swap(at, rng.below(at as u64 + 1) as usize);
        }
    }

    /// Returns the highest seq for the device in the redo record; 0 if there is none. A device may
    /// acknowledge a durable row before the row is visible.
    fn tail_to_come(&self, conversation: ConversationId, device: InstallationId) -> Seq {
        let redo = self.redo.lock();
        let Some(commit) = redo.get(&conversation) else { return 0 };
        if commit.feeds.iter().any(|change| change.device == device) {
            return commit.state.head.seq;
        }
        let rows = commit.inbox.iter().filter(|(owner, _)| *owner == device);
        rows.map(|(_, row)| row.seq).max().unwrap_or(0)
    }

    async fn wait(&self, turns: u64) {
        for _ in 0..turns {
            Busy(false).await;
        }
    }

    pub(super) fn heal(&self) {
        let mut faults = self.faults.lock();
        (faults.error_before, faults.error_after) = (0, 0);
    }
}

/// Whether a write makes a commit durable. The other writes make it visible.
const fn makes_safe(write: &Write) -> bool {
    matches!(write, Write::State(..) | Write::Generation(..))
}

/// Lets the world go on once: the disk or the log is busy.
pub(super) struct Busy(pub bool);

impl Future for Busy {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

pub(super) const fn unknown() -> Error {
    Error::new(ErrorKind::Unavailable, "the outcome is unknown")
}

#[async_trait]
impl MessageStore for SimStore {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { epoch: self.epoch, durability: Durability::Memory }
    }

    async fn state(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
        next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        self.may_fail()?;
        let state = self.tables.lock().state(conversation, senders);
        if let (Some(state), Some(next)) = (&state, next)
            && !state.head.is_settled_before(next)
        {
            self.finish(conversation, state)?;
        }
        Ok(state)
    }

    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        self.may_fail()?;
        Ok(self.tables.lock().find(conversation, sender, id))
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let _running = self.begin_commit(&commits);
        let faults = *self.faults.lock();
        let mut outcomes = Vec::with_capacity(commits.len());
        for commit in commits {
            let (before, after, cut) = {
                let mut rng = self.rng.lock();
                (rng.chance(faults.error_before), rng.chance(faults.error_after), rng.next_u64())
            };
            // A reader that sees a row of a feed in history must find its box in the inbox.
            let has_boxes = commit.state.head.is_feed && !commit.inbox.is_empty();
            let durable_first = faults.durable_first && self.rng.lock().chance(50) && !has_boxes;
            self.keys.lock().note_disappearing(&commit);
            let mut writes = Tables::writes(commit.clone());
            if Mutant::StateBeforeRows.is_active() {
                writes.reverse();
            }
            if durable_first {
                writes.retain(makes_safe);
                self.shuffle(&mut writes);
            }
            let redo = durable_first.then_some(&commit);
            let early = if faults.split { (cut % (writes.len() as u64 + 1)) as usize } else { 0 };
            let late = writes.split_off(early);
            self.apply(writes, redo);
            self.wait(1).await;
            if before {
                outcomes.push(Err(unknown()));
                continue;
            }
            self.apply(late, redo);
            self.keys.lock().note(&commit);
            let done =
                if durable_first { CommitOutcome::Durable(Box::new(commit)) } else { CommitOutcome::Visible };
            outcomes.push(if after { Err(unknown()) } else { Ok(done) });
        }
        outcomes
    }

    async fn make_visible(&self, commits: Vec<Commit>) -> Result<()> {
        for commit in commits {
            let mut writes = Tables::writes(commit);
            writes.retain(|write| !makes_safe(write));
            self.shuffle(&mut writes);
            let (fails, rest, turns) = {
                let mut rng = self.rng.lock();
                let rest = rng.below(writes.len() as u64 + 1) as usize;
                (rng.chance(self.faults.lock().error_before), rest, rng.below(4))
            };
            let late = writes.split_off(rest);
            self.apply(writes, None);
            self.wait(turns).await;
            if fails {
                return Err(unknown());
            }
            self.apply(late, None);
        }
        Ok(())
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        self.may_fail()?;
        let turns = self.rng.lock().below(3);
        self.wait(turns).await;
        let to_come = |conversation| self.tail_to_come(conversation, device);
        self.tables.lock().ack(device, generation, acks, &to_come)?;
        let after = self.rng.lock().chance(self.faults.lock().error_after);
        if after { Err(unknown()) } else { Ok(()) }
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.may_fail()?;
        Ok(self.tables.lock().inbox(device, after, limit))
    }

    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.may_fail()?;
        Ok(self.tables.lock().history(conversation, before, limit))
    }

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.may_fail()?;
        Ok(self.tables.lock().history_after(conversation, after, limit))
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        let feeds = self.tables.lock().feeds(device);
        // Schedules without feeds draw the same faults as before there were any.
        if !feeds.is_empty() {
            self.may_fail()?;
        }
        Ok(feeds)
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        self.may_fail()?;
        Ok(self.tables.lock().generation(device))
    }

    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord> {
        self.may_fail()?;
        Ok(self.tables.lock().device(device, cursors))
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        Ok(self.tables.lock().expire(before_us, limit))
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        Ok(self.tables.lock().expire_history(before_us, limit))
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        self.may_fail()?;
        Ok(self.tables.lock().expire_messages(now_us, limit))
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        self.may_fail()?;
        self.tables.lock().clear_history(conversation, user, through);
        Ok(())
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        self.may_fail()?;
        Ok(self.tables.lock().cleared(conversation, user))
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        self.tables.lock().erase(device);
        Ok(())
    }
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::model::{self, Calls, Owners};
    use std::task::Waker;

    const FAULTS: StoreFaults =
        StoreFaults { split: true, durable_first: true, error_before: 15, error_after: 15 };

    fn ready<T>(future: impl Future<Output = T>) -> T {
        let (mut future, mut context) = (std::pin::pin!(future), Context::from_waker(Waker::noop()));
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
        }
    }

    /// Returns a store that leaves partial commits and loses outcomes.
    fn fresh(seed: u64) -> Arc<dyn MessageStore> {
        let store = SimStore::new(Arc::default(), Arc::default(), Arc::default(), seed, FAULTS);
        Arc::new(store)
    }

    #[test]
    fn repeated_calls_of_the_faulty_store_equal_one() {
        for seed in 0..20 {
            let calls = Calls::unreliable(Owners::Several);
            assert_eq!(ready(model::check(seed, calls, || async { fresh(seed) })), Ok(()));
        }
    }

    #[test]
    fn repeated_calls_reveal_a_store_that_is_not_honest() {
        for mutant in [Mutant::HalfCommitStays, Mutant::OlderStateWins, Mutant::StateBeforeRows] {
            let calls = Calls::unreliable(Owners::Several);
            let found = (0..20).any(|seed| {
                Mutant::with(Some(mutant), || ready(model::fails(seed, calls, || async { fresh(seed) })))
            });
            assert!(found, "{mutant:?}");
        }
    }
}
