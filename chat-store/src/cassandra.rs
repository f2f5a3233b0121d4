//! Message store and key directory in Apache Cassandra, shared by all nodes of a cluster.
//!
//! Message tables are written without conditions. The writes are safe if two shard owners overlap, or if one
//! write is sent twice:
//!
//! - **Every write of a message table carries a timestamp that is derived from the log**, never from a node's
//!   clock. A row of history, ids or inbox carries its commit time. A conversation's state carries the time
//!   of its head, which strictly rises. A repeated write changes nothing, and an older state never overwrites
//!   a newer one.
//! - **Counters are registers that keep the largest value.** The timestamp rises with the value: it is
//!   derived from the value for `acked` and `generation`, and the row's commit time for `tail`. The
//!   timestamps of `first` and `born` fall with the value, so these registers keep the smallest.
//! - **The state of a small commit is written first, with the data that finishes the commit** (`redo`),
//!   beside the generations of its senders. The commit is then durable: if its shard owner fails, the next
//!   owner writes the rows before it decides. The rows of a commit are written before its state if they are
//!   large or could become visible in parts. Rows above the head do not exist for any decision.
//! - **`acked` records what a device acknowledged**, not tombstones: a read skips an acknowledged row that
//!   comes back. Deletion only frees space, so tombstones may expire soon.
//!
//! | table | partition key, then clustering order | bound of a partition |
//! |---|---|---|
//! | `state_parts` | conversation, part | head, members and senders |
//! | `history` | (conversation, seq / 10,000), seq descending | 10,000 rows |
//! | `ids` | (conversation, sender, minute of the id) | messages that one device sends in about a minute |
//! | `disappearing` | minute, then time | messages that disappear in a minute |
//! | `inbox` (a message only refers to history) | (installation, day), commit time, conversation, seq | a day, and the quota |
//! | `cells` (cursors) | installation, conversation | conversations of a device |
//! | `accounts`, `handles`, `owners` | one row each | |
//! | `lists` (those that were replaced) | user, version | versions of a user |
//! | `devices` | installation, prekey id | 200 prekeys |
//!
//! A read of an inbox starts at its *floor*: every row below the floor is acknowledged, except late rows. The
//! floor stays five minutes behind the clock, and one tombstone a day covers the rows deleted below it. A row
//! that is committed more than two minutes after its time is *late* and goes to day 0, which every read
//! includes. So the clock difference between nodes, plus the time that a stopped node keeps its shards, may
//! reach three minutes. A read skips at most the tombstones of the rows that the device acknowledged in five
//! minutes, and of 512 more rows.

mod commit;
mod connection;
mod contacts;
mod conversion;
mod directory;
mod disappearing;
mod feeds;
mod history;
#[cfg(feature = "fjall")]
pub(crate) mod import;
mod inbox;
mod log_reset;
mod schema;
mod state;
mod stored_row;
mod verify;

pub use connection::CassandraSettings;

use async_trait::async_trait;
use bytes::Bytes;
use chat_core::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, LogAnchor, LogIdentity,
    LogPosition, MessageStore, PageLimit, SenderFilter, StoreIdentity,
};
use chat_core::codec::decode_row;
use chat_core::envelope::{AckUpTo, Durability, InboxPosition, InboxRow};
use chat_core::{
    ConversationId, ConversationKind, Error, ErrorKind, InstallationId, MessageId, Result, Seq, StoreEpoch,
    UserId,
};
use dashmap::DashMap;
use futures_util::future::{join_all, try_join_all};
use parking_lot::Mutex;

use connection::Connection;

/// A [`MessageStore`] and [`KeyDirectory`](chat_core::backend::KeyDirectory) in Cassandra.
#[derive(Debug)]
pub struct CassandraStore {
    connection: Connection,
    identity: StoreIdentity,
    /// Highest known head by conversation. Heads only rise, so a cached head may be behind but never ahead.
    heads: DashMap<ConversationId, Seq>,
    /// Trim progress by device: acknowledged rows that are not deleted yet.
    untrimmed: DashMap<InstallationId, inbox::Untrimmed>,
    /// Conversations that a search found to have old content.
    old: Mutex<Vec<ConversationId>>,
    /// The last minute of which the messages that disappear were erased.
    swept_minute: Mutex<Option<u64>>,
}

/// Maximum number of rows in a partition of history.
const BUCKET: u64 = 10_000;

const fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "a record in Cassandra cannot be decoded")
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl CassandraStore {
    /// Gives the data set a new store epoch, after it was restored from an older copy: every device then compares its
    /// cursors with the server's. No node may serve it meanwhile.
    ///
    /// # Errors
    /// `Unavailable` if the cluster does not answer.
    pub async fn renew_epoch(settings: &CassandraSettings) -> Result<()> {
        schema::renew_epoch(settings).await
    }

    /// Creates or updates the schema. Returns a description of the result for operators.
    ///
    /// # Errors
    /// `Unavailable` if Cassandra cannot be reached, `Invalid` if it has fewer nodes than the requested
    /// copies.
    pub async fn migrate(settings: &CassandraSettings) -> Result<String> {
        schema::migrate(settings).await
    }

    /// Connects to a keyspace that [`migrate`](Self::migrate) created.
    ///
    /// # Errors
    /// `Unavailable` if Cassandra cannot be reached. `Invalid` if the schema is not that of this release, or
    /// if the keyspace keeps fewer copies than requested or has `durable_writes = false`.
    pub async fn connect(settings: &CassandraSettings) -> Result<Self> {
        let connection = Connection::connect(settings).await?;
        schema::check_copies(&connection).await?;
        let epoch = schema::check(&connection).await?;
        let identity = StoreIdentity { epoch: StoreEpoch::from_bytes(epoch), durability: Durability::Fsync };
        Ok(Self::new(connection, identity))
    }

    fn new(connection: Connection, identity: StoreIdentity) -> Self {
        Self {
            connection,
            identity,
            heads: DashMap::new(),
            untrimmed: DashMap::new(),
            old: Mutex::default(),
            swept_minute: Mutex::default(),
        }
    }

    /// Returns a description for operators: release, nodes, keyspace, copies and `commitlog_sync`.
    ///
    /// # Errors
    /// `Unavailable` if Cassandra cannot be reached.
    pub async fn describe(&self) -> Result<String> {
        schema::describe(&self.connection).await
    }

    fn note_head(&self, conversation: ConversationId, seq: Seq) {
        if self.heads.len() > 100_000 {
            self.heads.clear();
        }
        let mut known = self.heads.entry(conversation).or_default();
        *known = (*known).max(seq);
    }

    /// Returns whether a row is at or below its conversation's head.
    async fn is_committed(&self, conversation: ConversationId, seq: Seq) -> Result<bool> {
        if self.heads.get(&conversation).is_some_and(|head| seq <= *head) {
            return Ok(true);
        }
        Ok(seq <= self.head_seq(conversation).await?)
    }
}

#[async_trait]
impl MessageStore for CassandraStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    async fn state(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
        next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        let Some((state, redo)) = self.state_and_redo(conversation, senders).await? else { return Ok(None) };
        if next.is_some_and(|next| !state.head.is_settled_before(next)) {
            self.finish(conversation, state.head, redo).await?;
        }
        Ok(Some(state))
    }

    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        let key =
            (&conversation.as_bytes()[..], &sender.as_bytes()[..], commit::minute(id), &id.as_bytes()[..]);
        let rows = self.connection.rows(&self.connection.statements.find, key).await?;
        let Some((seq,)) = rows.maybe_first_row::<(i64,)>().map_err(|_| corrupt())? else {
            return Ok(None);
        };
        let seq = unsigned(seq);
        Ok(self.is_committed(conversation, seq).await?.then_some(seq))
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        join_all(commits.into_iter().map(|commit| self.commit_one(commit))).await
    }

    async fn make_visible(&self, commits: Vec<Commit>) -> Result<()> {
        try_join_all(commits.iter().map(|commit| self.write_rows(commit))).await.map(drop)
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        self.acknowledge(device, generation, acks).await
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.read_inbox(device, after, limit).await
    }

    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let head = self.head_seq(conversation).await?;
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(Vec::new());
        }
        // The rows of the last commit may be written after its state.
        let unwritten = || Error::new(ErrorKind::Unavailable, "the newest rows are being written");
        let mut below = if before == 0 { head + 1 } else { before.min(head + 1) };
        let first_below = below;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while below > 1 && page.len() < limit.rows && (page.is_empty() || bytes < limit.bytes) {
            let bucket = (below - 1) / BUCKET;
            let most = i32::try_from((limit.rows - page.len()).min(50)).unwrap_or(50);
            let key = (&conversation.as_bytes()[..], signed(bucket), signed(below), most);
            let rows = self.connection.rows(&self.connection.statements.history, key).await?;
            let mut found = false;
            for row in rows.rows::<(Vec<u8>,)>().map_err(|_| corrupt())? {
                let (value,) = row.map_err(|_| corrupt())?;
                let row = decode_row(Bytes::from(value)).map_err(|_| corrupt())?;
                if page.is_empty() && row.seq + 1 < first_below {
                    return Err(unwritten());
                }
                (below, found) = (row.seq, true);
                bytes += row.size();
                page.push(row);
                if page.len() >= limit.rows || bytes >= limit.bytes {
                    return Ok(page);
                }
            }
            if !found {
                below = bucket * BUCKET;
            }
        }
        if page.is_empty() && first_below > 1 && limit.rows > 0 {
            return Err(unwritten());
        }
        Ok(page)
    }

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.read_history_after(conversation, after, limit).await
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        self.read_feeds(device).await
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        Ok(self.meta(device).await?.generation)
    }

    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord> {
        self.read_device(device, cursors).await
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.expire_rows(before_us, limit).await
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.expire_content(before_us, limit).await
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        self.erase_disappeared(now_us, limit).await
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        self.clear(conversation, user, through).await
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        self.cleared_by(conversation, user).await
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        self.erase_device(device).await
    }
}

#[async_trait]
impl LogAnchor for CassandraStore {
    async fn log(&self) -> Result<Option<LogIdentity>> {
        let rows = self.connection.rows(&self.connection.statements.log, ()).await?;
        let row = rows.maybe_first_row::<(i64, Vec<u8>, i32, bool)>().map_err(|_| corrupt())?;
        let Some((generation, id, partitions, opened)) = row else { return Ok(None) };
        Ok(Some(LogIdentity {
            generation: unsigned(generation),
            id: id.try_into().map_err(|_| corrupt())?,
            partitions: u32::try_from(partitions).unwrap_or(0),
            opened,
        }))
    }

    async fn begin_log(&self, log: LogIdentity) -> Result<LogIdentity> {
        let known = self.log().await?;
        let partitions = i32::try_from(log.partitions).unwrap_or(i32::MAX);
        let (generation, id) = (signed(log.generation), &log.id[..]);
        match known {
            None => {
                let values = (generation, id, partitions, log.opened);
                self.connection.applied(&self.connection.statements.first_log, values).await?;
            }
            Some(known) if known.generation < log.generation => {
                // The new log does not replay the records that would finish partial commits.
                self.purge_uncommitted().await?;
                let values = (generation, id, partitions, log.opened, signed(known.generation));
                self.connection.applied(&self.connection.statements.next_log, values).await?;
            }
            Some(_) => {}
        }
        self.log().await?.ok_or_else(corrupt)
    }

    async fn open_log(&self, generation: u64) -> Result<()> {
        self.connection.applied(&self.connection.statements.open_log, (signed(generation),)).await.map(drop)
    }
}
