//! A store whose calls fail, end early or take their time, and the caller that repeats them.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use futures_util::future::join_all;
use parking_lot::Mutex;

use super::pause;
use crate::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, LogPosition, MessageStore,
    PageLimit, SenderFilter, StoreIdentity,
};
use crate::model::envelope::{AckUpTo, InboxPosition, InboxRow};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, InstallationId, MessageId, Seq, UserId};
use crate::model::rng::Rng;

type Store = Arc<dyn MessageStore>;

/// Number of times that a call is repeated before its error counts.
const MAX_REPEATS: usize = 500;

/// How often an [`UnreliableStore`] injects each fault, in percent of calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct FaultRates {
    /// The call fails and does not reach the store. The only fault of reads.
    pub before: u64,
    /// The call is applied, and answers an error for some or all of its commits.
    pub after: u64,
    /// Some commits of the call are applied; the others fail.
    pub part: u64,
    /// The call is dropped at an `await`, as by a process that stops or by a timeout.
    pub dropped: u64,
    /// The call waits before it begins and after it ended, so that others run between.
    pub delayed: u64,
}

impl FaultRates {
    /// The rates of the suite.
    pub const SUITE: Self = Self { before: 5, after: 10, part: 10, dropped: 20, delayed: 50 };
}

/// A [`MessageStore`] in front of another one that injects faults: each may happen to any store.
///
/// An injected error is `Unavailable`: the outcome is unknown. The faults are a function of the seed and of the order
/// of the calls.
#[derive(Debug)]
pub struct UnreliableStore {
    inner: Store,
    rates: FaultRates,
    rng: Mutex<Rng>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Before,
    After,
    Part,
    Dropped,
}

const fn unknown() -> Error {
    Error::new(ErrorKind::Unavailable, "the outcome is unknown")
}

/// Polls a future at most `polls` times, and drops it if it is not ready then.
async fn poll_up_to<T>(future: impl Future<Output = T>, polls: u64) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context)));
        if let Poll::Ready(value) = polled.await {
            return Some(value);
        }
        pause().await;
    }
    None
}

impl UnreliableStore {
    /// Returns a store that injects faults at these rates into the calls of `inner`.
    pub fn new(inner: Arc<dyn MessageStore>, rates: FaultRates, seed: u64) -> Self {
        Self { inner, rates, rng: Mutex::new(Rng::new(seed)) }
    }

    fn below(&self, bound: u64) -> u64 {
        self.rng.lock().below(bound)
    }

    fn fault(&self) -> Fault {
        let FaultRates { before, after, part, dropped, .. } = self.rates;
        let mut at = self.below(100);
        for (rate, fault) in
            [(before, Fault::Before), (after, Fault::After), (part, Fault::Part), (dropped, Fault::Dropped)]
        {
            if at < rate {
                return fault;
            }
            at -= rate;
        }
        Fault::None
    }

    async fn delay(&self) {
        let turns = if self.below(100) < self.rates.delayed { 1 + self.below(3) } else { 0 };
        for _ in 0..turns {
            pause().await;
        }
    }

    /// Runs a call whose answer may be lost. `Part` is `Before` for a call that has no parts.
    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let (fault, polls) = (self.fault(), self.below(4));
        self.delay().await;
        let answer = match fault {
            Fault::Before | Fault::Part => Err(unknown()),
            Fault::After => call.await.and(Err(unknown())),
            Fault::Dropped => poll_up_to(call, polls).await.unwrap_or(Err(unknown())),
            Fault::None => call.await,
        };
        self.delay().await;
        answer
    }

    fn may_fail(&self) -> Result<()> {
        if self.below(100) < self.rates.before { Err(unknown()) } else { Ok(()) }
    }

    /// Passes some of the commits to the store. The outcome of the others is an error.
    async fn commit_part(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let passed: Vec<bool> = commits.iter().map(|_| self.below(2) == 0).collect();
        let part = commits.into_iter().zip(&passed).filter(|(_, passed)| **passed).map(|(commit, _)| commit);
        let mut outcomes = self.inner.commit(part.collect()).await.into_iter();
        let outcomes =
            passed.iter().map(|passed| if *passed { outcomes.next() } else { Some(Err(unknown())) });
        // A missing outcome stays missing.
        outcomes.flatten().collect()
    }
}

#[async_trait]
impl MessageStore for UnreliableStore {
    fn identity(&self) -> StoreIdentity {
        self.inner.identity()
    }

    async fn state(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
        next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        if next.is_none() {
            self.may_fail()?;
            return self.inner.state(conversation, senders, None).await;
        }
        // The call may finish a commit.
        self.call(self.inner.state(conversation, senders, next)).await
    }

    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        self.may_fail()?;
        self.inner.find(conversation, sender, id).await
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let (fault, polls, count) = (self.fault(), self.below(5), commits.len());
        self.delay().await;
        let outcomes = match fault {
            Fault::Before => vec![Err(unknown()); count],
            Fault::Part => self.commit_part(commits).await,
            Fault::After => {
                let lost = self.below(count as u64 + 1) as usize;
                let outcomes = self.inner.commit(commits).await.into_iter().enumerate();
                let answer = |(at, outcome): (usize, Result<CommitOutcome>)| {
                    if at == lost || lost == count { outcome.and(Err(unknown())) } else { outcome }
                };
                outcomes.map(answer).collect()
            }
            Fault::Dropped => {
                let outcomes = poll_up_to(self.inner.commit(commits), polls).await;
                outcomes.unwrap_or_else(|| vec![Err(unknown()); count])
            }
            Fault::None => self.inner.commit(commits).await,
        };
        self.delay().await;
        outcomes
    }

    async fn make_visible(&self, mut commits: Vec<Commit>) -> Result<()> {
        if self.fault() == Fault::Part {
            commits.truncate(self.below(commits.len() as u64 + 1) as usize);
            self.inner.make_visible(commits).await?;
            return Err(unknown());
        }
        self.call(self.inner.make_visible(commits)).await
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        self.call(self.inner.ack(device, generation, acks)).await
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.may_fail()?;
        self.inner.inbox(device, after, limit).await
    }

    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.may_fail()?;
        self.inner.history(conversation, before, limit).await
    }

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.may_fail()?;
        self.inner.history_after(conversation, after, limit).await
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        self.may_fail()?;
        self.inner.feeds(device).await
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        self.may_fail()?;
        self.inner.generation(device).await
    }

    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord> {
        self.may_fail()?;
        self.inner.device(device, cursors).await
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.call(self.inner.expire(before_us, limit)).await
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.call(self.inner.expire_history(before_us, limit)).await
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        self.call(self.inner.expire_messages(now_us, limit)).await
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        self.call(self.inner.clear_history(conversation, user, through)).await
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        self.may_fail()?;
        self.inner.cleared(conversation, user).await
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        self.call(self.inner.erase(device)).await
    }
}

/// The caller of an unreliable store: repeats each call until its outcome is known, as the engine does, and checks
/// between the attempts that readers see a commit whole or not at all.
#[derive(Debug)]
pub(crate) struct RepeatingCaller {
    store: Store,
    rng: Mutex<Rng>,
}

/// Repeats a call while its error is `Unavailable`.
macro_rules! repeat {
    ($call:expr) => {{
        let mut repeats = 0;
        loop {
            match $call.await {
                Err(error) if error.kind() == ErrorKind::Unavailable && repeats < MAX_REPEATS => {
                    repeats += 1;
                    pause().await;
                }
                answer => break answer,
            }
        }
    }};
}

const fn broken(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

impl RepeatingCaller {
    pub(crate) fn new(store: Store, seed: u64) -> Self {
        Self { store, rng: Mutex::new(Rng::new(seed)) }
    }

    /// Commits all, and makes all visible. Returns whether the outcome is known.
    async fn attempt(&self, commits: Vec<Commit>) -> Result<bool> {
        let count = commits.len();
        let outcomes = self.store.commit(commits).await;
        if outcomes.len() != count {
            return Err(broken("a commit has no outcome"));
        }
        let (mut durable, mut known) = (Vec::new(), true);
        for outcome in outcomes {
            match outcome {
                Ok(CommitOutcome::Durable(commit)) => durable.push(*commit),
                Ok(CommitOutcome::Visible) => {}
                Err(error) if error.kind() == ErrorKind::Unavailable => known = false,
                Err(error) => return Err(error),
            }
        }
        match self.store.make_visible(durable).await {
            Err(error) if error.kind() != ErrorKind::Unavailable => Err(error),
            visible => Ok(known && visible.is_ok()),
        }
    }

    /// Checks that readers see nothing of a commit, or its whole state. `before` is the state before it.
    async fn check_whole(&self, commit: &Commit, before: Option<&ConversationState>) -> Result<()> {
        let head = before.map_or(0, |state| state.head.seq);
        let is_new = |seq: Seq| seq > head;
        let mut seen = false;
        let devices: std::collections::BTreeSet<_> = commit.inbox.iter().map(|(device, _)| *device).collect();
        for device in devices {
            let rows =
                self.inbox(device, InboxPosition::START, PageLimit { rows: 10_000, bytes: 1 << 30 }).await?;
            seen |= rows.iter().any(|row| row.conversation == commit.conversation && is_new(row.seq));
        }
        for (sender, id, seq) in commit.ids.iter().filter(|(.., seq)| is_new(*seq)) {
            seen |= self.find(commit.conversation, *sender, *id).await? == Some(*seq);
        }
        // The state is read last: a call that was dropped may still be applied.
        let state = self.state(commit.conversation, SenderFilter::All, None).await?;
        let mut after = before.cloned().unwrap_or_default();
        after.apply(&commit.state);
        match state.as_ref() {
            state if state == before && seen => Err(broken("rows are visible above the head")),
            state if state == before || state == Some(&after) => Ok(()),
            _ => Err(broken("a state is neither that before a commit nor that after it")),
        }
    }

    async fn commit_all(&self, commits: Vec<Commit>) -> Result<()> {
        let states =
            join_all(commits.iter().map(|commit| self.state(commit.conversation, SenderFilter::All, None)))
                .await;
        let before = states.into_iter().collect::<Result<Vec<_>>>()?;
        let mut left: Vec<_> = commits.into_iter().zip(before).collect();
        for _ in 0..MAX_REPEATS {
            if self.attempt(left.iter().map(|(commit, _)| commit.clone()).collect()).await? {
                return Ok(());
            }
            for (commit, before) in &left {
                self.check_whole(commit, before.as_ref()).await?;
            }
            if self.rng.lock().chance(50) {
                // The same batch again.
                continue;
            }
            // The records are taken again: a new owner reads the states, and commits the missing ones.
            let mut missing = Vec::new();
            for (commit, before) in left {
                let next = Some(commit.state.head.position);
                let state = self.state(commit.conversation, SenderFilter::No, next).await?;
                if state.is_none_or(|state| state.head.time_us < commit.state.head.time_us) {
                    missing.push((commit, before));
                }
            }
            left = missing;
            if left.is_empty() {
                return Ok(());
            }
        }
        Err(unknown())
    }
}

#[async_trait]
impl MessageStore for RepeatingCaller {
    fn identity(&self) -> StoreIdentity {
        self.store.identity()
    }

    async fn state(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
        next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        repeat!(self.store.state(conversation, senders, next))
    }

    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        repeat!(self.store.find(conversation, sender, id))
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let count = commits.len();
        vec![self.commit_all(commits).await.map(|()| CommitOutcome::Visible); count]
    }

    async fn make_visible(&self, commits: Vec<Commit>) -> Result<()> {
        repeat!(self.store.make_visible(commits.clone()))
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        repeat!(self.store.ack(device, generation, acks))
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        repeat!(self.store.inbox(device, after, limit))
    }

    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        repeat!(self.store.history(conversation, before, limit))
    }

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        repeat!(self.store.history_after(conversation, after, limit))
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        repeat!(self.store.feeds(device))
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        repeat!(self.store.generation(device))
    }

    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord> {
        repeat!(self.store.device(device, cursors))
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        repeat!(self.store.expire(before_us, limit))
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        repeat!(self.store.expire_history(before_us, limit))
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        repeat!(self.store.expire_messages(now_us, limit))
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        repeat!(self.store.clear_history(conversation, user, through))
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        repeat!(self.store.cleared(conversation, user))
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        repeat!(self.store.erase(device))
    }
}
