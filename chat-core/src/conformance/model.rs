//! Model-based test of a [`MessageStore`]: random operations, compared with the in-memory reference.
//!
//! A run is a pure function of its seed. A run that fails is made shorter by leaving out operations for as long
//! as it still fails; the seed and the remaining operations are in the error.
//!
//! With faults, calls fail, end early or are delayed, and the caller repeats them until their outcomes are known: the
//! result must equal that of calls without faults.

mod retention;

use std::sync::Arc;

use super::faults::{FaultRates, RepeatingCaller, UnreliableStore};
use super::talk::{Talk, deletes, disappears, merge, message_id};
use super::{Outcome, equal, failed};
use crate::backend::{
    Commit, CommitOutcome, CursorFilter, FeedChange, MessageStore, PageLimit, SenderFilter,
};
use crate::memory::MemoryStore;
use crate::model::envelope::{AckUpTo, InboxPosition, InboxRow, RowContent};
use crate::model::id::{
    ConversationId, ConversationKind, DeviceAddress, DeviceId, InstallationId, Seq, UserId,
};
use crate::model::limits::MAX_NUMBER;
use crate::model::message_options::MessageOptions;
use crate::model::rng::Rng;

/// Operations of a run.
const OPERATIONS: usize = 60;
/// The conversation of which some devices read a part as a feed.
const FEED: usize = 2;
/// Runs that try to make a failing one shorter.
const SHRINK_RUNS: usize = 300;

type Store = Arc<dyn MessageStore>;

/// The shard owners that write to a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owners {
    /// One: it repeats the commits whose outcome it does not know, the last ones of a conversation.
    One,
    /// Several that may overlap: an owner that is behind repeats any commits.
    Several,
}

/// How a run calls the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Calls {
    pub owners: Owners,
    /// Faults of calls, if the caller expects any.
    pub faults: Option<FaultRates>,
}

impl Calls {
    /// Calls without faults.
    pub(crate) const fn of(owners: Owners) -> Self {
        Self { owners, faults: None }
    }

    /// Calls with the faults of the suite.
    pub(crate) const fn unreliable(owners: Owners) -> Self {
        Self { owners, faults: Some(FaultRates::SUITE) }
    }
}

/// The budget and the numbers of a [`check_model`].
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)] // built with `..Default::default()`
pub struct ModelOptions {
    /// Each seed is a run on an empty store.
    pub seeds: std::ops::Range<u64>,
    /// Operations of a run.
    pub operations: usize,
    /// Owners of a shard that are behind repeat old commits, as in a store that several processes share.
    pub several_owners: bool,
    /// Faults of calls, if any.
    pub faults: Option<FaultRates>,
    /// Time of the first records, in microseconds since 1970.
    pub begin_us: u64,
    /// Time of the first record, and first seq, of a conversation with a long history.
    pub long: (u64, Seq),
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            seeds: 0..1,
            operations: OPERATIONS,
            several_owners: false,
            faults: None,
            begin_us: 1000,
            long: (MAX_NUMBER / 2, MAX_NUMBER - 500),
        }
    }
}

/// Runs the model-based test of [`message_store`](super::message_store), for a test program of its own that chooses
/// budget and times. `fresh` returns an empty store.
///
/// # Errors
/// The first difference from the in-memory reference, with its seed and the shortest history that shows it.
pub async fn check_model<F, Fut>(options: &ModelOptions, fresh: F) -> Outcome
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn MessageStore>>,
{
    let owners = if options.several_owners { Owners::Several } else { Owners::One };
    let calls = Calls { owners, faults: options.faults };
    for seed in options.seeds.clone() {
        shrink(Script::with(seed, options), calls, &fresh).await?;
    }
    Ok(())
}

/// One random operation. Numbers select among what exists when the operation runs.
#[derive(Clone, Debug)]
enum Operation {
    /// Commits the next messages of some conversations in one call, each as one commit.
    Commit { messages: Vec<(usize, usize)>, size: usize },
    /// Commits the next messages of two conversations by two concurrent calls, beside a device's ack.
    Concurrent { one: usize, other: usize, device: usize, share: u64 },
    /// Repeats commits from `first` on, `count` of them merged into one, as an owner that is behind does.
    Repeat { talk: usize, first: usize, count: usize },
    /// Acknowledges rows; an ack `above` the tail must be refused as a whole.
    Ack { device: usize, acks: Vec<(usize, u64)>, generation: u64, above: bool },
    /// Reads an inbox in pages.
    Inbox { device: usize, rows: usize, bytes: usize },
    /// Reads a history in pages.
    History { talk: usize, rows: usize, bytes: usize },
    /// Looks up ids, known and unknown ones.
    Find { talk: usize, of: usize, device: usize, client_seq: u64 },
    /// Expires rows, `piece` at a time.
    Expire { share: u64, piece: usize },
    /// Erases old history, `piece` messages at a time.
    ExpireHistory { share: u64, piece: usize },
    /// Erases the messages that are due, `piece` of them in each call.
    ExpireMessages { share: u64, piece: usize },
    /// A member clears a share of a conversation.
    Clear { talk: usize, member: usize, share: u64 },
    /// Compares everything.
    Compare,
}

/// Conversations, devices and the operations of a seed.
struct Script {
    seed: u64,
    talks: Vec<Talk>,
    devices: Vec<DeviceAddress>,
    operations: Vec<Operation>,
    begin_us: u64,
}

fn device(user: u8, number: u8) -> DeviceAddress {
    let mut installation = [user; 16];
    installation[1] = number;
    DeviceAddress {
        user: UserId::from_bytes([user; 16]),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes(installation),
    }
}

impl Script {
    fn new(seed: u64) -> Self {
        Self::with(seed, &ModelOptions::default())
    }

    fn with(seed: u64, options: &ModelOptions) -> Self {
        let (begin_us, (long_us, long_seq)) = (options.begin_us, options.long);
        let mut rng = Rng::new(seed);
        let user = |n: u8| (UserId::from_bytes([n; 16]), vec![device(n, 1), device(n, 2)]);
        let talk = |id, members: &[u8], time_us| Talk {
            id,
            members: members.iter().map(|n| user(*n)).collect(),
            state: Default::default(),
            time_us,
            records: 0,
        };
        let id = |n: u8| UserId::from_bytes([n; 16]);
        // Most records of different conversations have equal times: ties are broken by conversation and seq.
        let mut talks = vec![
            talk(ConversationId::direct(id(1), id(2)), &[1, 2], begin_us),
            // A younger conversation: its times are those of higher seqs elsewhere.
            talk(ConversationId::direct(id(1), id(3)), &[1, 3], begin_us + 100),
            talk(ConversationId::direct(id(2), id(3)), &[2, 3], begin_us),
            talk(ConversationId::own(id(1)), &[1], begin_us),
        ];
        let mut mailbox = talk(
            ConversationId::mailbox(device(1, 1).installation, device(2, 1).installation),
            &[],
            begin_us,
        );
        mailbox.members = vec![(id(1), vec![device(1, 1)]), (id(2), vec![device(2, 1)])];
        talks.push(mailbox);
        talks.push(talk(ConversationId::direct(id(3), id(4)), &[3, 4], long_us).starting_at(long_seq));
        let devices = (1..=4).flat_map(|user| [device(user, 1), device(user, 2)]).collect();
        let operations = (0..options.operations).map(|_| Operation::random(&mut rng, talks.len())).collect();
        Self { seed, talks, devices, operations, begin_us }
    }
}

impl Operation {
    fn random(rng: &mut Rng, talks: usize) -> Self {
        let pick = |rng: &mut Rng, n: usize| rng.below(n as u64) as usize;
        let sizes = |rng: &mut Rng| [0, 10, 300, 40_000][pick(rng, 4)];
        let limit = |rng: &mut Rng| ([1, 2, 3, 7, 200][pick(rng, 5)], [1, 200, 1000, 1 << 20][pick(rng, 4)]);
        match rng.below(24) {
            0..=6 => {
                let count = 1 + pick(rng, 3);
                let messages = (0..count).map(|_| (pick(rng, talks), 1 + pick(rng, 5))).collect();
                Self::Commit { messages, size: sizes(rng) }
            }
            7 => Self::Concurrent {
                one: pick(rng, talks),
                other: pick(rng, talks),
                device: pick(rng, 8),
                share: rng.below(101),
            },
            8..=10 => Self::Repeat { talk: pick(rng, talks), first: pick(rng, 40), count: 1 + pick(rng, 4) },
            11..=13 => Self::Ack {
                device: pick(rng, 8),
                acks: (0..=pick(rng, 2)).map(|_| (pick(rng, talks), rng.below(101))).collect(),
                generation: rng.below(60),
                above: rng.chance(25),
            },
            14 | 15 => {
                let (rows, bytes) = limit(rng);
                Self::Inbox { device: pick(rng, 8), rows, bytes }
            }
            16 => {
                let (rows, bytes) = limit(rng);
                Self::History { talk: pick(rng, talks), rows, bytes }
            }
            17 => Self::Find {
                talk: pick(rng, talks),
                of: pick(rng, talks),
                device: pick(rng, 8),
                client_seq: rng.below(12),
            },
            18 => Self::Expire { share: rng.below(110), piece: [1, 2, 5, 1000][pick(rng, 4)] },
            19 => Self::ExpireHistory { share: rng.below(110), piece: [1, 2, 5, 1000][pick(rng, 4)] },
            20 => Self::ExpireMessages { share: rng.below(110), piece: [1, 2, 5, 1000][pick(rng, 4)] },
            21 | 22 => Self::Clear { talk: pick(rng, talks), member: pick(rng, 2), share: rng.below(110) },
            _ => Self::Compare,
        }
    }
}

/// A store beside the reference.
struct Run {
    store: Store,
    reference: MemoryStore,
    talks: Vec<Talk>,
    devices: Vec<DeviceAddress>,
    /// The commits of each conversation so far, one message each.
    made: Vec<Vec<Commit>>,
    calls: Calls,
    begin_us: u64,
    /// Messages were erased: rows that wait for them may be counted with their old sizes.
    erased: bool,
}

/// Returns whether a seed finds a difference, without making its run shorter.
pub(crate) async fn fails<F, Fut>(seed: u64, calls: Calls, fresh: F) -> bool
where
    F: Fn() -> Fut,
    Fut: Future<Output = Store>,
{
    let script = Script::new(seed);
    execute(&script, &script.operations, calls, fresh().await).await.is_err()
}

/// Runs a seed. The error names the seed and the shortest list of operations that still fails.
pub(crate) async fn check<F, Fut>(seed: u64, calls: Calls, fresh: F) -> Outcome
where
    F: Fn() -> Fut,
    Fut: Future<Output = Store>,
{
    shrink(Script::new(seed), calls, &fresh).await
}

async fn shrink<F, Fut>(script: Script, calls: Calls, fresh: &F) -> Outcome
where
    F: Fn() -> Fut,
    Fut: Future<Output = Store>,
{
    let seed = script.seed;
    let Err(first) = execute(&script, &script.operations, calls, fresh().await).await else { return Ok(()) };
    let (mut operations, mut error) = (script.operations.clone(), first);
    let mut piece = operations.len() / 2;
    let mut runs = 0;
    while piece > 0 && runs < SHRINK_RUNS {
        let mut at = 0;
        while at < operations.len() && runs < SHRINK_RUNS {
            let mut fewer = operations.clone();
            fewer.drain(at..(at + piece).min(operations.len()));
            runs += 1;
            match execute(&script, &fewer, calls, fresh().await).await {
                Err(same) => (operations, error) = (fewer, same),
                Ok(()) => at += piece,
            }
        }
        piece /= 2;
    }
    Err(format!("seed {seed}: {error}, after {operations:?}"))
}

async fn execute(script: &Script, operations: &[Operation], calls: Calls, store: Store) -> Outcome {
    let store: Store = match calls.faults {
        None => store,
        Some(rates) => {
            let unreliable = UnreliableStore::new(store, rates, script.seed);
            Arc::new(RepeatingCaller::new(Arc::new(unreliable), script.seed))
        }
    };
    let mut run = Run {
        store,
        reference: MemoryStore::new(),
        talks: script.talks.clone(),
        devices: script.devices.clone(),
        made: vec![Vec::new(); script.talks.len()],
        calls,
        begin_us: script.begin_us,
        erased: false,
    };
    for operation in operations {
        run.apply(operation).await?;
    }
    run.compare().await?;
    // Last, because the rows of an erased device need not be kept.
    run.erase(script.seed as usize).await?;
    run.compare().await
}

async fn commit(store: &dyn MessageStore, commits: Vec<Commit>) -> Outcome {
    let count = commits.len();
    let outcomes = store.commit(commits).await;
    equal(outcomes.len(), count, "outcomes of a commit")?;
    let mut durable = Vec::new();
    for outcome in outcomes {
        if let CommitOutcome::Durable(commit) = outcome.map_err(failed)? {
            durable.push(*commit);
        }
    }
    store.make_visible(durable).await.map_err(failed)
}

impl Run {
    async fn erase(&self, device: usize) -> Outcome {
        let device = self.devices[device % self.devices.len()].installation;
        self.store.erase(device).await.map_err(failed)?;
        self.reference.erase(device).await.map_err(failed)
    }

    fn next(&mut self, talk: usize, count: usize, size: usize) -> Result<Option<Commit>, String> {
        let mut commits = Vec::new();
        for n in 0..count {
            // A mailbox has one sender.
            let is_mailbox = self.talks[talk].id.kind() == Ok(ConversationKind::Mailbox);
            let sender = if is_mailbox { 0 } else { self.made[talk].len() * 3 + n };
            let options = self.options(talk);
            let mut made = self.talks[talk].next_with(sender, size, options)?;
            made.feeds.extend(self.feed_change(talk, made.state.head.seq));
            made.state.head.is_feed = talk == FEED;
            self.made[talk].push(made.clone());
            commits.push(made);
        }
        Ok(merge(commits))
    }

    /// Returns the change that a message of one conversation brings: a device begins or stops to read it as a feed.
    fn feed_change(&self, talk: usize, seq: Seq) -> Option<FeedChange> {
        let device = self.devices[talk + usize::from(seq.is_multiple_of(3))].installation;
        let is_due = talk == FEED && seq % 4 < 2;
        is_due.then_some(FeedChange { device, seq, joins: seq % 8 < 4 })
    }

    /// Returns the options of the next message of a conversation: some delete an earlier one, some disappear.
    fn options(&self, talk: usize) -> MessageOptions {
        let (talk, head) = (&self.talks[talk], self.talks[talk].state.head.seq);
        let is_first = self.made.iter().all(Vec::is_empty);
        match talk.records % 6 {
            _ if is_first || talk.id.kind() == Ok(ConversationKind::Mailbox) => MessageOptions::default(),
            // The one before, or an earlier one.
            1 => deletes(head.saturating_sub(talk.records % 4).max(1)),
            3 | 4 => disappears(1 + talk.records % 3),
            _ => MessageOptions::default(),
        }
    }

    async fn both(&self, commits: Vec<Commit>) -> Outcome {
        commit(&self.reference, commits.clone()).await?;
        commit(&*self.store, commits).await
    }

    async fn apply(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Commit { messages, size } => {
                let mut commits = Vec::new();
                for (at, (talk, count)) in messages.iter().enumerate() {
                    // One call names a conversation once.
                    if messages[..at].iter().all(|(before, _)| before != talk) {
                        commits.extend(self.next(*talk, *count, *size)?);
                    }
                }
                self.both(commits).await
            }
            Operation::Concurrent { one, other, device, share } if one != other => {
                let device = self.devices[*device].installation;
                let acks = self.acks(device, &[(*one, *share), (*other, *share)]).await?;
                let (first, second) = (self.next(*one, 2, 10)?, self.next(*other, 1, 10)?);
                let (first, second): (Vec<_>, Vec<_>) =
                    (first.into_iter().collect(), second.into_iter().collect());
                self.reference.ack(device, 1, &acks).await.map_err(failed)?;
                commit(&self.reference, first.clone()).await?;
                commit(&self.reference, second.clone()).await?;
                let acked = async { self.store.ack(device, 1, &acks).await.map_err(failed) };
                let (first, second) = (commit(&*self.store, first), commit(&*self.store, second));
                let (one, other, acked) = futures_util::future::join3(first, second, acked).await;
                one.and(other).and(acked)
            }
            Operation::Concurrent { .. } => Ok(()),
            Operation::Repeat { talk, first, count } => {
                let made = &self.made[*talk];
                let first = match self.calls.owners {
                    _ if made.is_empty() => 0,
                    Owners::One => made.len().saturating_sub(*count),
                    Owners::Several => first % made.len(),
                };
                match merge(made.iter().skip(first).take(*count).cloned()) {
                    Some(late) => self.both(vec![late]).await,
                    None => Ok(()),
                }
            }
            Operation::Ack { device, acks, generation, above } => {
                self.ack(*device, acks, *generation, *above).await
            }
            Operation::Inbox { device, rows, bytes } => self
                .inbox(self.devices[*device].installation, PageLimit { rows: *rows, bytes: *bytes })
                .await
                .map(|_| ()),
            Operation::History { talk, rows, bytes } => {
                self.history(self.talks[*talk].id, PageLimit { rows: *rows, bytes: *bytes }).await
            }
            Operation::Find { talk, of, device, client_seq } => {
                let sender = self.devices[*device].installation;
                let mut id = message_id(sender, *client_seq);
                if talk != of {
                    // An id that another sender used.
                    id = message_id(self.devices[(*device + 1) % 8].installation, *client_seq);
                }
                let talk = self.talks[*talk].id;
                let found = self.store.find(talk, sender, id).await.map_err(failed)?;
                equal(found, self.reference.find(talk, sender, id).await.map_err(failed)?, "the seq found")
            }
            Operation::Expire { share, piece } => self.expire(*share, *piece).await,
            Operation::ExpireHistory { share, piece } => self.expire_history(*share, *piece).await,
            Operation::ExpireMessages { share, piece } => self.expire_messages(*share, *piece).await,
            Operation::Clear { talk, member, share } => self.clear(*talk, *member, *share).await,
            Operation::Compare => self.compare().await,
        }
    }

    /// Returns acks of a device: of each conversation that has rows for it, a share of the rows.
    async fn acks(&self, device: InstallationId, acks: &[(usize, u64)]) -> Result<Vec<AckUpTo>, String> {
        let mut cursors = self.reference.device(device, CursorFilter::All).await.map_err(failed)?.cursors;
        let feeds = self.reference.feeds(device).await.map_err(failed)?;
        for (id, cursor) in &mut cursors {
            // A feed is acknowledged up to its head.
            if feeds.iter().any(|feed| feed.conversation == *id) {
                cursor.tail = cursor.tail.max(self.talks[FEED].state.head.seq);
            }
        }
        let mut list: Vec<AckUpTo> = Vec::new();
        for (talk, share) in acks {
            let conversation = self.talks[*talk].id;
            let cursor = cursors.iter().find(|(id, _)| *id == conversation).map(|(_, cursor)| *cursor);
            let Some(cursor) = cursor.filter(|cursor| cursor.tail > 0) else { continue };
            let first = cursor.tail.saturating_sub(30).max(1);
            list.push(AckUpTo { conversation, seq: first + (cursor.tail - first) * share / 100 });
        }
        Ok(list)
    }

    async fn ack(&self, device: usize, acks: &[(usize, u64)], generation: u64, above: bool) -> Outcome {
        let device = self.devices[device].installation;
        let mut list = self.acks(device, acks).await?;
        if above {
            let cursors = self.reference.device(device, CursorFilter::All).await.map_err(failed)?.cursors;
            let (conversation, tail) =
                cursors.last().map_or((self.talks[0].id, 0), |(id, cursor)| (*id, cursor.tail));
            list.push(AckUpTo { conversation, seq: tail + 1 });
        }
        let ours = self.store.ack(device, generation, &list).await.map_err(|error| error.kind());
        let theirs = self.reference.ack(device, generation, &list).await.map_err(|error| error.kind());
        equal(ours, theirs, "the outcome of acks")?;
        self.record(device).await
    }

    /// Reads an inbox to its end, page by page; each page must be that of the reference.
    async fn inbox(&self, device: InstallationId, limit: PageLimit) -> Result<Vec<InboxRow>, String> {
        let (mut after, mut all) = (InboxPosition::START, Vec::new());
        loop {
            let page = self.store.inbox(device, after, limit).await.map_err(failed)?;
            let expected = self.reference.inbox(device, after, limit).await.map_err(failed)?;
            same_rows(&page, &expected, "a page of an inbox")?;
            all.extend(page.iter().cloned());
            match page.last() {
                Some(last) if limit.is_reached(&page) && all.len() < 10_000 => after = last.position(),
                _ => return Ok(all),
            }
        }
    }

    async fn history(&self, talk: ConversationId, limit: PageLimit) -> Outcome {
        let mut before = 0;
        for _ in 0..10_000 {
            let page = self.store.history(talk, before, limit).await.map_err(failed)?;
            let expected = self.reference.history(talk, before, limit).await.map_err(failed)?;
            same_rows(&page, &expected, "a page of a history")?;
            match page.last() {
                Some(last) if limit.is_reached(&page) && last.seq > 1 => before = last.seq,
                _ => return self.history_after(talk, before.saturating_sub(3), limit).await,
            }
        }
        Err("a history does not end".into())
    }

    async fn history_after(&self, talk: ConversationId, after: Seq, limit: PageLimit) -> Outcome {
        let page = self.store.history_after(talk, after, limit).await.map_err(failed)?;
        let expected = self.reference.history_after(talk, after, limit).await.map_err(failed)?;
        same_rows(&page, &expected, "a page of a history, oldest first")
    }

    async fn record(&self, device: InstallationId) -> Outcome {
        let talks = self.talks.iter().map(|talk| CursorFilter::Of(talk.id));
        for filter in talks.chain([CursorFilter::All, CursorFilter::No]) {
            let mut ours = self.store.device(device, filter).await.map_err(failed)?;
            let mut theirs = self.reference.device(device, filter).await.map_err(failed)?;
            ours.cursors.sort_unstable_by_key(|(id, _)| *id);
            theirs.cursors.sort_unstable_by_key(|(id, _)| *id);
            equal(&ours.cursors, &theirs.cursors, "the cursors of a device")?;
            equal(ours.waiting_rows, theirs.waiting_rows, "the rows that wait for a device")?;
            // The bytes are approximate: gaps and headers may be counted otherwise.
            let (least, most) =
                (theirs.waiting_bytes / 2, theirs.waiting_bytes * 2 + 200 * theirs.waiting_rows);
            let is_counted = !self.erased || theirs.waiting_rows == 0;
            if is_counted && !(least..=most).contains(&ours.waiting_bytes) {
                return Err(format!(
                    "{} bytes wait, expected about {}",
                    ours.waiting_bytes, theirs.waiting_bytes
                ));
            }
        }
        let ours = self.store.feeds(device).await.map_err(failed)?;
        equal(ours, self.reference.feeds(device).await.map_err(failed)?, "the feeds of a device")?;
        let ours = self.store.generation(device).await.map_err(failed)?;
        equal(ours, self.reference.generation(device).await.map_err(failed)?, "the generation of a device")
    }

    async fn compare(&self) -> Outcome {
        for (talk, made) in self.talks.iter().zip(&self.made) {
            let senders: Vec<_> = talk.state.senders.keys().skip(1).take(2).copied().collect();
            for filter in [SenderFilter::All, SenderFilter::Of(&senders), SenderFilter::No] {
                let ours = self.store.state(talk.id, filter, None).await.map_err(failed)?;
                let theirs = self.reference.state(talk.id, filter, None).await.map_err(failed)?;
                equal(ours, theirs, "a state")?;
            }
            self.history(talk.id, PageLimit::MAX).await?;
            for (sender, id, seq) in made.iter().flat_map(|commit| &commit.ids) {
                let found = self.store.find(talk.id, *sender, *id).await.map_err(failed)?;
                equal(found, Some(*seq), "the seq of a message")?;
            }
        }
        for device in &self.devices {
            self.inbox(device.installation, PageLimit::MAX).await?;
            self.record(device.installation).await?;
        }
        Ok(())
    }
}

fn same_rows(ours: &[InboxRow], theirs: &[InboxRow], what: &str) -> Outcome {
    if ours == theirs {
        return Ok(());
    }
    let short = |rows: &[InboxRow]| {
        let kind = |row: &InboxRow| match &row.content {
            RowContent::Message { .. } => "message".to_owned(),
            RowContent::Own { .. } => "own".to_owned(),
            RowContent::Empty { reason, .. } => format!("{reason:?}"),
            RowContent::Unknown(_) => "unknown".to_owned(),
        };
        let text =
            |row: &InboxRow| format!("{:?}:{}-{} {}", row.conversation, row.first_seq(), row.seq, kind(row));
        rows.iter().map(text).collect::<Vec<_>>().join(", ")
    };
    Err(format!("{what} is [{}], not [{}]", short(ours), short(theirs)))
}
