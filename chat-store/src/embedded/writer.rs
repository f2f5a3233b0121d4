//! The only writer of the store: all waiting requests become one batch with one `fdatasync`.

mod retention;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chat_core::backend::{Commit, PageLimit, StateChange};
use chat_core::codec::{decode_row, encode_row, state};
use chat_core::envelope::{AckUpTo, EmptyReason, InboxCursor, InboxPosition, InboxRow};
use chat_core::{ConversationId, ConversationKind, Error, ErrorKind, InstallationId, Result, Seq, UserId};
use dashmap::DashMap;
use fjall::{OwnedWriteBatch, PersistMode};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::read::{inbox_size, inbox_value};
use super::watermark::Watermark;
use super::{Tables, corrupt, failed, keys};

/// Maximum number of waiting requests. Callers wait while the queue is full, so the router's queues fill and
/// gateways answer *retry*.
const QUEUE: usize = 4096;
/// Maximum number of requests in one batch.
const BATCH: usize = 2048;
/// Free bytes on the disk below which commits are refused. Reads and acks continue; acks free space.
const RESERVE: u64 = 64 << 20;
/// Maximum number of cursors cached between batches.
const CELLS: usize = 200_000;

/// Size of the inbox of a device.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    pub rows: u64,
    pub bytes: u64,
}

#[derive(Debug)]
enum Request {
    Commit(Vec<Commit>, oneshot::Sender<Result<()>>),
    Ack(InstallationId, u64, Vec<AckUpTo>, oneshot::Sender<Result<()>>),
    Count(InstallationId, oneshot::Sender<Result<Waiting>>),
    Change(Change),
    Expire(u64, usize, oneshot::Sender<Result<usize>>),
    ExpireHistory(Vec<ConversationId>, u64, usize, oneshot::Sender<Result<usize>>),
    ExpireMessages(u64, usize, oneshot::Sender<Result<usize>>),
    ClearHistory(ConversationId, UserId, Seq, oneshot::Sender<Result<()>>),
    Erase(InstallationId, oneshot::Sender<Result<()>>),
    Stop,
}

/// Answers the caller of a change, after the sync that makes the change durable.
type Reply = Box<dyn FnOnce(Result<()>) + Send>;

/// A read-modify-write of the key directory. It writes its batch, if any, and returns the reply to send once
/// the whole wake-up is durable. An error in its [`Wrote`] result is an error of the database.
struct Change(Box<Job>);

type Job = dyn FnOnce(&Tables, Result<()>) -> (Reply, Result<Wrote>) + Send;

/// Whether a change wrote something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrote {
    Something,
    Nothing,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
    waiting: Arc<DashMap<InstallationId, Waiting>>,
    failed: watch::Receiver<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

const fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is closed")
}

impl Writer {
    pub(super) fn start(tables: Tables, watermark: Watermark, commits: u64, path: PathBuf) -> Result<Self> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (fail, failed) = watch::channel(false);
        let waiting: Arc<DashMap<_, _>> = Arc::default();
        let work = Work {
            tables,
            watermark,
            commits,
            path,
            waiting: waiting.clone(),
            cursors: HashMap::new(),
            free_at: None,
            full: false,
        };
        let thread = std::thread::Builder::new()
            .name("chat-store-writer".into())
            .spawn(move || work.run(queue, &fail))
            .map_err(super::io)?;
        Ok(Self { requests, waiting, failed, thread: Mutex::new(Some(thread)) })
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<Result<()>>) -> Request) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    pub(super) async fn commit(&self, commits: Vec<Commit>) -> Result<()> {
        self.ask(|answer| Request::Commit(commits, answer)).await
    }

    pub(super) async fn ack(
        &self,
        device: InstallationId,
        generation: u64,
        acks: Vec<AckUpTo>,
    ) -> Result<()> {
        self.ask(|answer| Request::Ack(device, generation, acks, answer)).await
    }

    pub(super) async fn erase(&self, device: InstallationId) -> Result<()> {
        self.ask(|answer| Request::Erase(device, answer)).await
    }

    /// Returns the size of a device's inbox. The writer counts it once, then keeps it up to date.
    pub(super) async fn waiting(&self, device: InstallationId) -> Result<Waiting> {
        if let Some(waiting) = self.waiting.get(&device) {
            return Ok(*waiting);
        }
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Count(device, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Changes the key directory on the writer's thread, one change after the other; nothing changes while the disk's
    /// reserve is in use. Returns after the sync
    /// that the change shares with the other requests of the wake-up.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Tables) -> Result<(T, Option<OwnedWriteBatch>)> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel::<Result<T>>();
        let work = move |tables: &Tables, room: Result<()>| -> (Reply, Result<Wrote>) {
            let (value, wrote) = match room.and_then(|()| change(tables)) {
                // Later changes see the batch at once. It is durable with the batch that ends this wake-up.
                Ok((value, Some(batch))) => {
                    let written = batch.durability(Some(PersistMode::Buffer)).commit().map_err(failed);
                    (Ok(value), written.map(|()| Wrote::Something))
                }
                // The data it read may not be durable yet, so its reply waits for the sync too.
                Ok((value, None)) => (Ok(value), Ok(Wrote::Nothing)),
                Err(error) => (Err(error), Ok(Wrote::Nothing)),
            };
            let reply: Reply = Box::new(move |synced: Result<()>| {
                let _ = answer.send(synced.and(value));
            });
            (reply, wrote)
        };
        self.requests.send(Request::Change(Change(Box::new(work)))).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Removes inbox rows that were committed before `before_us` and returns how many it removed.
    pub(super) async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Expire(before_us, limit, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Erases the content of messages of these conversations that were committed before `before_us`. Returns how many.
    pub(super) async fn expire_history(
        &self,
        conversations: Vec<ConversationId>,
        before_us: u64,
        limit: usize,
    ) -> Result<usize> {
        let (answer, answered) = oneshot::channel();
        let request = Request::ExpireHistory(conversations, before_us, limit, answer);
        self.requests.send(request).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Erases the content of messages whose lifetime ended at `now_us` or before. Returns how many.
    pub(super) async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::ExpireMessages(now_us, limit, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    pub(super) async fn clear_history(
        &self,
        conversation: ConversationId,
        user: UserId,
        through: Seq,
    ) -> Result<()> {
        self.ask(|answer| Request::ClearHistory(conversation, user, through, answer)).await
    }

    pub(super) async fn disk_failed(&self) {
        let mut failed = self.failed.clone();
        // An error means that the writer has ended, which counts as a failed disk.
        let _ = failed.wait_for(|failed| *failed).await;
    }

    /// Stops the writer after it processed the waiting requests.
    pub(super) fn stop(&self) {
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        let requests = self.requests.clone();
        // `blocking_send` must not be called inside a runtime: retry on the bounded queue instead.
        let mut request = Request::Stop;
        while let Err(mpsc::error::TrySendError::Full(back)) = requests.try_send(request) {
            request = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = thread.join();
    }
}

struct Work {
    tables: Tables,
    watermark: Watermark,
    commits: u64,
    path: PathBuf,
    waiting: Arc<DashMap<InstallationId, Waiting>>,
    cursors: HashMap<(InstallationId, ConversationId), InboxCursor>,
    free_at: Option<Instant>,
    full: bool,
}

/// Effects of a batch, in memory until the batch is written.
#[derive(Default)]
struct Effects {
    cursors: HashMap<(InstallationId, ConversationId), InboxCursor>,
    generations: HashMap<InstallationId, u64>,
    waiting: HashMap<InstallationId, (i64, i64)>,
    /// Inbox rows of this batch, which are not readable yet: a batch may hold a row and its ack.
    rows: HashMap<(InstallationId, ConversationId, u64), (u64, usize)>,
    answers: Vec<(oneshot::Sender<Result<()>>, Result<()>)>,
    replies: Vec<Reply>,
    /// Conversations with messages that lost their content.
    erased: Vec<ConversationId>,
    sync: bool,
}

impl Work {
    fn run(mut self, mut queue: mpsc::Receiver<Request>, fail: &watch::Sender<bool>) {
        let mut requests = Vec::with_capacity(BATCH);
        loop {
            if queue.blocking_recv_many(&mut requests, BATCH) == 0 {
                return;
            }
            let mut effects = Effects::default();
            let mut batch = OwnedWriteBatch::with_capacity(self.tables.database.clone(), requests.len() * 8);
            let mut stop = false;
            let mut after = Vec::new();
            let mut broken = None;
            for request in requests.drain(..) {
                match request {
                    Request::Commit(commits, answer) => {
                        let outcome = self.add_commits(&mut batch, &mut effects, commits);
                        effects.answers.push((answer, outcome));
                    }
                    Request::Ack(device, generation, acks, answer) => {
                        let outcome = self.add_ack(&mut batch, &mut effects, device, generation, &acks);
                        effects.answers.push((answer, outcome));
                    }
                    Request::Erase(device, answer) => {
                        let outcome = self.add_erase(&mut batch, &mut effects, device);
                        effects.answers.push((answer, outcome));
                    }
                    Request::Count(device, answer) => {
                        let _ = answer.send(self.count(device));
                    }
                    Request::Change(change) => {
                        let room = self.check_space();
                        let (reply, wrote) = change.0(&self.tables, room);
                        effects.replies.push(reply);
                        match wrote {
                            Ok(wrote) => effects.sync |= wrote == Wrote::Something,
                            Err(error) => broken = Some(error),
                        }
                    }
                    Request::Expire(..)
                    | Request::ExpireHistory(..)
                    | Request::ExpireMessages(..)
                    | Request::ClearHistory(..) => after.push(request),
                    Request::Stop => stop = true,
                }
            }
            let written = match broken {
                None => self.write(batch, &effects),
                Some(error) => Err(error),
            };
            if let Err(error) = &written {
                // No part of a failed batch counts, and a failed fsync is never retried.
                fail.send_replace(true);
                for (answer, _) in effects.answers {
                    let _ = answer.send(Err(error.clone()));
                }
                for reply in effects.replies {
                    reply(Err(error.clone()));
                }
                return;
            }
            self.finish_effects(effects);
            after.into_iter().for_each(|request| self.remove_old(request));
            if stop {
                return;
            }
        }
    }

    fn write(&mut self, mut batch: OwnedWriteBatch, effects: &Effects) -> Result<()> {
        for ((device, conversation), cursor) in &effects.cursors {
            batch.insert(
                &self.tables.cursors,
                keys::cursor(*device, *conversation),
                &keys::cursor_value(*cursor)[..],
            );
        }
        for (device, generation) in &effects.generations {
            batch.insert(&self.tables.devices, &device.as_bytes()[..], &generation.to_be_bytes()[..]);
        }
        if batch.is_empty() && !effects.sync {
            return Ok(());
        }
        let mode = if effects.sync {
            self.commits += 1;
            batch.insert(&self.tables.meta, "commits", &self.commits.to_be_bytes()[..]);
            PersistMode::SyncData
        } else {
            // Acks only: after a lost ack the rows are delivered again, and the device drops them.
            PersistMode::Buffer
        };
        batch.durability(Some(mode)).commit().map_err(failed)?;
        if effects.sync { self.watermark.set(self.commits) } else { Ok(()) }
    }

    /// Applies the effects of a written batch and answers the waiting callers.
    fn finish_effects(&mut self, effects: Effects) {
        if self.cursors.len() > CELLS {
            self.cursors.clear();
        }
        self.cursors.extend(effects.cursors);
        for (device, (rows, bytes)) in effects.waiting {
            if let Some(mut known) = self.waiting.get_mut(&device) {
                known.rows = known.rows.saturating_add_signed(rows);
                known.bytes = known.bytes.saturating_add_signed(bytes);
            }
        }
        self.forget_waiting(&effects.erased);
        for (answer, outcome) in effects.answers {
            let _ = answer.send(outcome);
        }
        for reply in effects.replies {
            reply(Ok(()));
        }
    }

    fn cursor(
        &self,
        effects: &Effects,
        device: InstallationId,
        conversation: ConversationId,
    ) -> Result<Option<InboxCursor>> {
        let key = (device, conversation);
        match effects.cursors.get(&key).or_else(|| self.cursors.get(&key)) {
            Some(cursor) => Ok(Some(*cursor)),
            None => self.tables.read_cursor(device, conversation),
        }
    }

    fn add_commits(
        &mut self,
        batch: &mut OwnedWriteBatch,
        effects: &mut Effects,
        commits: Vec<Commit>,
    ) -> Result<()> {
        self.check_space()?;
        for commit in commits {
            let conversation = commit.conversation;
            let head = self.tables.head_seq(&self.tables.database.snapshot(), conversation)?;
            for row in &commit.history {
                // A repeated commit must not bring back content that was erased.
                let is_repeat = row.seq <= head;
                if is_repeat
                    && self.tables.find_history(conversation, row.seq)?.is_some_and(|row| row.is_erased())
                {
                    continue;
                }
                batch.insert(&self.tables.history, keys::history(conversation, row.seq), encode_row(row));
                if let Some(due_us) = row.disappears_at_us() {
                    let key = keys::disappearing(due_us, conversation, row.seq);
                    batch.insert(&self.tables.disappearing, key, &[][..]);
                }
            }
            for (sender, id, seq) in &commit.ids {
                batch.insert(&self.tables.ids, keys::id(conversation, *sender, *id), &seq.to_be_bytes()[..]);
            }
            for (device, row) in &commit.inbox {
                self.add_row(batch, effects, *device, row)?;
            }
            for change in &commit.feeds {
                let key = keys::feed(change.device, conversation, change.seq);
                batch.insert(&self.tables.feeds, key, &[u8::from(change.joins)][..]);
            }
            for (device, generation) in commit.generations {
                self.raise_generation(effects, device, generation)?;
            }
            for seq in commit.deleted {
                let Some(row) = self.tables.find_history(conversation, seq)? else { continue };
                // The batch may hold the ack of a row that is still in the table.
                let waits = |device| {
                    let cursor = self.cursor(effects, device, conversation)?;
                    Ok(cursor.is_some_and(|cursor| cursor.acked < seq))
                };
                if self.tables.erase_message(batch, row, EmptyReason::Deleted, waits)? {
                    effects.erased.push(conversation);
                }
            }
            self.tables.put_state(batch, conversation, &commit.state);
        }
        effects.sync = true;
        Ok(())
    }

    fn add_row(
        &self,
        batch: &mut OwnedWriteBatch,
        effects: &mut Effects,
        device: InstallationId,
        row: &InboxRow,
    ) -> Result<()> {
        let mut cursor = self.cursor(effects, device, row.conversation)?.unwrap_or_default();
        let is_kept = cursor.receive(row);
        effects.cursors.insert((device, row.conversation), cursor);
        if is_kept {
            batch.insert(&self.tables.inbox, keys::inbox(device, row.position()), inbox_value(row));
            effects.rows.insert((device, row.conversation, row.seq), (row.time_us, row.size()));
            let waiting = effects.waiting.entry(device).or_default();
            (waiting.0, waiting.1) = (waiting.0 + 1, waiting.1 + row.size() as i64);
        }
        Ok(())
    }

    fn raise_generation(&self, effects: &mut Effects, device: InstallationId, generation: u64) -> Result<()> {
        let known = match effects.generations.get(&device) {
            Some(known) => *known,
            None => self.tables.read_generation(device)?,
        };
        if generation > known {
            effects.generations.insert(device, generation);
        }
        Ok(())
    }

    /// Erases a device. Rows of the same batch come with a commit of a member that does not know the deletion yet: they
    /// stay until retention removes them, like rows of later commits.
    fn add_erase(
        &mut self,
        batch: &mut OwnedWriteBatch,
        effects: &mut Effects,
        device: InstallationId,
    ) -> Result<()> {
        for table in [&self.tables.inbox, &self.tables.cursors, &self.tables.feeds] {
            for guard in table.prefix(device.as_bytes()) {
                batch.remove(table, guard.key().map_err(failed)?);
            }
        }
        batch.remove(&self.tables.devices, &device.as_bytes()[..]);
        self.cursors.retain(|(known, _), _| *known != device);
        effects.cursors.retain(|(known, _), _| *known != device);
        effects.generations.remove(&device);
        effects.waiting.remove(&device);
        self.waiting.remove(&device);
        effects.sync = true;
        Ok(())
    }

    fn add_ack(
        &self,
        batch: &mut OwnedWriteBatch,
        effects: &mut Effects,
        device: InstallationId,
        generation: u64,
        acks: &[AckUpTo],
    ) -> Result<()> {
        for ack in acks {
            let tail = self.cursor(effects, device, ack.conversation)?.map_or(0, |cursor| cursor.tail);
            if ack.seq > tail && ack.seq > self.tables.feed_head(device, ack.conversation)? {
                return Err(Error::new(ErrorKind::Invalid, "an ack is above the tail"));
            }
        }
        for ack in acks {
            // Read again: an earlier ack of this request may have moved the cursor.
            let mut cursor = self.cursor(effects, device, ack.conversation)?.unwrap_or_default();
            // The rows above the tail are those of a feed.
            for seq in cursor.acked + 1..=ack.seq.min(cursor.tail) {
                self.remove_row(batch, effects, device, ack.conversation, seq)?;
            }
            if ack.seq > cursor.acked {
                cursor.acked = ack.seq;
                effects.cursors.insert((device, ack.conversation), cursor);
            }
        }
        self.raise_generation(effects, device, generation)
    }

    fn remove_row(
        &self,
        batch: &mut OwnedWriteBatch,
        effects: &mut Effects,
        device: InstallationId,
        conversation: ConversationId,
        seq: u64,
    ) -> Result<()> {
        let (time_us, size) = match effects.rows.remove(&(device, conversation, seq)) {
            Some(row) => row,
            None => {
                // The history row holds the commit time, which is part of the inbox key.
                let Some(value) =
                    self.tables.history.get(keys::history(conversation, seq)).map_err(failed)?
                else {
                    return Ok(());
                };
                let row = decode_row(value.into()).map_err(|_| corrupt())?;
                let key = keys::inbox(device, InboxPosition { time_us: row.time_us, conversation, seq });
                let Some(value) = self.tables.inbox.get(key).map_err(failed)? else {
                    return Ok(());
                };
                (row.time_us, inbox_size(&row, &value))
            }
        };
        batch.remove(&self.tables.inbox, keys::inbox(device, InboxPosition { time_us, conversation, seq }));
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            batch.remove(&self.tables.history, keys::history(conversation, seq));
        }
        let waiting = effects.waiting.entry(device).or_default();
        (waiting.0, waiting.1) = (waiting.0 - 1, waiting.1 - size as i64);
        Ok(())
    }

    fn count(&self, device: InstallationId) -> Result<Waiting> {
        let mut waiting = Waiting::default();
        let mut after = InboxPosition::START;
        loop {
            let page = self.tables.read_inbox(device, after, PageLimit::rows(1000))?;
            let Some(last) = page.last() else { break };
            after = last.position();
            waiting.rows += page.len() as u64;
            waiting.bytes += page.iter().map(|row| row.size() as u64).sum::<u64>();
        }
        self.waiting.insert(device, waiting);
        Ok(waiting)
    }

    /// Returns an error if less than [`RESERVE`] bytes are free. Checks the disk at most once a second.
    fn check_space(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.free_at.is_none_or(|at| now >= at) {
            self.free_at = Some(now + Duration::from_secs(1));
            self.full = fs4::available_space(&self.path).is_ok_and(|free| free < RESERVE);
        }
        if self.full { Err(Error::new(ErrorKind::Unavailable, "the disk is full")) } else { Ok(()) }
    }
}

impl Tables {
    /// Adds the changed parts of a state to a batch.
    pub(super) fn put_state(
        &self,
        batch: &mut OwnedWriteBatch,
        conversation: ConversationId,
        change: &StateChange,
    ) {
        let key = &conversation.as_bytes()[..];
        batch.insert(&self.heads, key, state::encode_head(&change.head));
        if let Some(roster) = &change.roster {
            batch.insert(&self.members, key, state::encode_roster(roster));
        }
        for (sender, position) in &change.senders {
            batch.insert(&self.senders, keys::sender(conversation, *sender), state::encode_sender(position));
        }
    }
}
