//! The SQLite store: a second built-in store. Running one suite on both stores reveals faults of either
//! database.

mod retention;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use chat_core::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, LogPosition, MessageStore,
    PageLimit, SenderFilter, SenderState, StateChange, StoreIdentity,
};
use chat_core::codec::{decode_row, encode_row, state};
use chat_core::envelope::{
    AckUpTo, Durability, EmptyReason, InboxCursor, InboxPosition, InboxRow, RowContent,
};
use chat_core::{
    ConversationId, ConversationKind, Error, ErrorKind, InstallationId, MessageId, Result, Seq, StoreEpoch,
    UserId,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads (conversation BLOB PRIMARY KEY, seq INTEGER NOT NULL, head BLOB NOT NULL, members BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS senders (conversation BLOB, sender BLOB, position BLOB NOT NULL, PRIMARY KEY (conversation, sender)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (conversation BLOB, seq INTEGER, row BLOB NOT NULL, PRIMARY KEY (conversation, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ids (conversation BLOB, sender BLOB, id BLOB, seq INTEGER NOT NULL, PRIMARY KEY (conversation, sender, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inbox (device BLOB, time_us INTEGER, conversation BLOB, seq INTEGER, row BLOB NOT NULL, size INTEGER NOT NULL,
  PRIMARY KEY (device, time_us, conversation, seq)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inbox_by_seq ON inbox (device, conversation, seq);
CREATE TABLE IF NOT EXISTS cells (device BLOB, conversation BLOB, acked INTEGER NOT NULL, tail INTEGER NOT NULL, PRIMARY KEY (device, conversation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased (conversation BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS disappearing (due_us INTEGER, conversation BLOB, seq INTEGER, PRIMARY KEY (due_us, conversation, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cleared (conversation BLOB, user BLOB, seq INTEGER NOT NULL, PRIMARY KEY (conversation, user)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feeds (device BLOB, conversation BLOB, seq INTEGER, joins INTEGER NOT NULL, PRIMARY KEY (device, conversation, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS devices (device BLOB PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID;
";

/// A [`MessageStore`] in one SQLite file. Each call of `commit` is one transaction, synced before the call
/// returns. Calls block the calling thread: use the store where few conversations are active at the same
/// time.
#[derive(Debug)]
pub struct SqliteStore {
    db: Arc<Mutex<Connection>>,
    epoch: StoreEpoch,
}

fn failed(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            Error::new(ErrorKind::Corrupt, "the database is damaged").caused_by(error)
        }
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            Error::new(ErrorKind::Conflict, "the database is in use by another process").caused_by(error)
        }
        _ => Error::new(ErrorKind::Unavailable, "failed to access the database").caused_by(error),
    }
}

const fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "a stored record cannot be decoded")
}

impl SqliteStore {
    /// Runs a function in a transaction, which is undone if the function fails.
    fn transact<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut db = self.db.lock();
        let tx = db.transaction().map_err(failed)?;
        let done = work(&tx)?;
        tx.commit().map_err(failed)?;
        Ok(done)
    }

    /// Opens the store in a file and creates the file if it does not exist. A file of the previous format is converted;
    /// an earlier release then refuses it.
    ///
    /// # Errors
    /// `Conflict` if another process has the file open, `Unsupported` if a later release wrote it, `Corrupt` if it is
    /// not a database, `Unavailable` if it cannot be read or written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let db = Connection::open(path).map_err(failed)?;
        db.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN IMMEDIATE;",
        )
        .and_then(|()| db.execute_batch(SCHEMA))
        .map_err(failed)?;
        convert(&db)?;
        let known: Option<Vec<u8>> = db
            .query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0))
            .optional()
            .map_err(failed)?;
        let epoch = match known {
            Some(epoch) => StoreEpoch::parse(&epoch).map_err(|_| corrupt())?,
            None => {
                let mut epoch = [0; 16];
                getrandom::fill(&mut epoch)
                    .map_err(|_| Error::new(ErrorKind::Unavailable, "failed to read system randomness"))?;
                db.execute("INSERT INTO meta VALUES ('epoch', ?1)", [&epoch[..]]).map_err(failed)?;
                StoreEpoch::from_bytes(epoch)
            }
        };
        db.execute_batch("COMMIT").map_err(failed)?;
        Ok(Self { db: Arc::new(Mutex::new(db)), epoch })
    }
}

/// Version of the tables, in `user_version`. Version 1 did not set it.
const VERSION: i64 = 2;

/// Converts the tables of version 1, which kept a whole state in one row, and refuses those of a later release.
fn convert(db: &Connection) -> Result<()> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    if version > VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a later release wrote the database: run that release",
        ));
    }
    if version == VERSION {
        return Ok(());
    }
    let old = "SELECT count(*) FROM pragma_table_info('state') WHERE name = 'state'";
    if db.query_row(old, [], |row| row.get::<_, i64>(0)).map_err(failed)? > 0 {
        let mut statement = db.prepare("SELECT conversation, state FROM state").map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (id, whole): (Vec<u8>, Vec<u8>) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
            let id = ConversationId::parse(&id).map_err(|_| corrupt())?;
            put_state(db, id, &state::decode_format_1(&whole)?.into())?;
        }
    }
    // A release that reads version 1 does not look at `user_version`: without its column it fails instead of starting
    // over in an empty table.
    let replaced = "DROP TABLE IF EXISTS state; CREATE TABLE state (replaced_by_heads INTEGER);";
    db.execute_batch(replaced).map_err(failed)?;
    db.pragma_update(None, "user_version", VERSION).map_err(failed)
}

fn cursor(
    db: &Connection,
    device: InstallationId,
    conversation: ConversationId,
) -> Result<Option<InboxCursor>> {
    db.prepare_cached("SELECT acked, tail FROM cells WHERE device = ?1 AND conversation = ?2")
        .and_then(|mut s| {
            s.query_row(params![device.as_bytes(), conversation.as_bytes()], |row| {
                Ok(InboxCursor { acked: row.get::<_, i64>(0)? as u64, tail: row.get::<_, i64>(1)? as u64 })
            })
            .optional()
        })
        .map_err(failed)
}

fn set_cell(
    db: &Connection,
    device: InstallationId,
    conversation: ConversationId,
    cursor: InboxCursor,
) -> Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO cells VALUES (?1, ?2, ?3, ?4)")
        .and_then(|mut s| {
            s.execute(params![
                device.as_bytes(),
                conversation.as_bytes(),
                cursor.acked as i64,
                cursor.tail as i64
            ])
        })
        .map(drop)
        .map_err(failed)
}

fn raise_generation(db: &Connection, device: InstallationId, generation: u64) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO devices VALUES (?1, ?2) ON CONFLICT (device) DO UPDATE SET generation = max(generation, ?2)",
    )
    .and_then(|mut s| s.execute(params![device.as_bytes(), generation as i64]))
    .map(drop)
    .map_err(failed)
}

/// Returns the number that a query finds; 0 without a row.
fn number_of(db: &Connection, query: &str, values: impl rusqlite::Params) -> Result<u64> {
    db.prepare_cached(query)
        .and_then(|mut s| s.query_row(values, |row| row.get::<_, i64>(0)).optional())
        .map(|number| number.unwrap_or(0) as u64)
        .map_err(failed)
}

fn head(db: &Connection, conversation: ConversationId) -> Result<Seq> {
    number_of(db, "SELECT seq FROM heads WHERE conversation = ?1", [conversation.as_bytes()])
}

fn apply(tx: &Transaction<'_>, commit: Commit) -> Result<()> {
    let id = commit.conversation;
    let mailbox = id.kind() == Ok(ConversationKind::Mailbox);
    let head = head(tx, id)?;
    for row in commit.history.iter().filter(|_| !mailbox) {
        // A repeated commit must not bring back content that was erased.
        if row.seq <= head && find_history(tx, id, row.seq)?.is_some_and(|known| known.is_erased()) {
            continue;
        }
        tx.prepare_cached("INSERT OR REPLACE INTO history VALUES (?1, ?2, ?3)")
            .and_then(|mut s| s.execute(params![id.as_bytes(), row.seq as i64, encode_row(row)]))
            .map_err(failed)?;
        if let Some(due_us) = row.disappears_at_us() {
            retention::add_disappearing(tx, due_us, row)?;
        }
    }
    for (sender, message, seq) in commit.ids {
        tx.prepare_cached("INSERT OR REPLACE INTO ids VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut s| {
                s.execute(params![id.as_bytes(), sender.as_bytes(), message.as_bytes(), seq as i64])
            })
            .map_err(failed)?;
    }
    for (device, row) in commit.inbox {
        let mut known = cursor(tx, device, id)?.unwrap_or_default();
        let is_kept = known.receive(&row);
        set_cell(tx, device, id, known)?;
        if is_kept {
            insert_row(tx, device, &row, mailbox)?;
        }
    }
    for change in commit.feeds {
        tx.prepare_cached("INSERT OR REPLACE INTO feeds VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut s| {
                s.execute(params![change.device.as_bytes(), id.as_bytes(), change.seq as i64, change.joins])
            })
            .map_err(failed)?;
    }
    for (device, generation) in commit.generations {
        raise_generation(tx, device, generation)?;
    }
    for seq in commit.deleted {
        let row = find_history(tx, id, seq)?;
        row.map(|row| retention::erase_message(tx, row, EmptyReason::Deleted)).transpose()?;
    }
    put_state(tx, id, &commit.state)
}

fn put_state(db: &Connection, id: ConversationId, change: &StateChange) -> Result<()> {
    let members = change.roster.as_ref().map(state::encode_roster);
    db.prepare_cached(
        "INSERT INTO heads VALUES (?1, ?2, ?3, coalesce(?4, x''))
         ON CONFLICT (conversation) DO UPDATE SET seq = ?2, head = ?3, members = coalesce(?4, members)",
    )
    .and_then(|mut s| {
        s.execute(params![id.as_bytes(), change.head.seq as i64, state::encode_head(&change.head), members])
    })
    .map_err(failed)?;
    for (sender, position) in &change.senders {
        db.prepare_cached("INSERT OR REPLACE INTO senders VALUES (?1, ?2, ?3)")
            .and_then(|mut s| {
                s.execute(params![id.as_bytes(), sender.as_bytes(), state::encode_sender(position)])
            })
            .map_err(failed)?;
    }
    Ok(())
}

fn sender(db: &Connection, id: ConversationId, sender: InstallationId) -> Result<Option<SenderState>> {
    let position: Option<Vec<u8>> = db
        .prepare_cached("SELECT position FROM senders WHERE conversation = ?1 AND sender = ?2")
        .and_then(|mut s| s.query_row(params![id.as_bytes(), sender.as_bytes()], |row| row.get(0)).optional())
        .map_err(failed)?;
    position.map(|position| state::decode_sender(&position)).transpose()
}

fn all_senders(db: &Connection, id: ConversationId) -> Result<BTreeMap<InstallationId, SenderState>> {
    let mut statement =
        db.prepare_cached("SELECT sender, position FROM senders WHERE conversation = ?1").map_err(failed)?;
    let mut rows = statement.query([id.as_bytes()]).map_err(failed)?;
    let mut senders = BTreeMap::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let (sender, position): (Vec<u8>, Vec<u8>) =
            (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        let sender = InstallationId::parse(&sender).map_err(|_| corrupt())?;
        senders.insert(sender, state::decode_sender(&position)?);
    }
    Ok(senders)
}

/// Writes an inbox row. The body of a message is in history only, except in a mailbox, which has no history.
fn insert_row(tx: &Transaction<'_>, device: InstallationId, row: &InboxRow, mailbox: bool) -> Result<()> {
    let mut kept = row.clone();
    if let (RowContent::Message { message, .. }, false) = (&mut kept.content, mailbox) {
        Arc::make_mut(message).body = bytes::Bytes::new();
    }
    tx.prepare_cached("INSERT OR IGNORE INTO inbox VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
        .and_then(|mut s| {
            s.execute(params![
                device.as_bytes(),
                row.time_us as i64,
                row.conversation.as_bytes(),
                row.seq as i64,
                encode_row(&kept),
                row.size() as i64
            ])
        })
        .map(drop)
        .map_err(failed)
}

fn read_history(db: &Connection, conversation: ConversationId, seq: Seq) -> Result<InboxRow> {
    find_history(db, conversation, seq)?.ok_or_else(corrupt)
}

fn find_history(db: &Connection, conversation: ConversationId, seq: Seq) -> Result<Option<InboxRow>> {
    let row: Option<Vec<u8>> = db
        .prepare_cached("SELECT row FROM history WHERE conversation = ?1 AND seq = ?2")
        .and_then(|mut s| {
            s.query_row(params![conversation.as_bytes(), seq as i64], |row| row.get(0)).optional()
        })
        .map_err(failed)?;
    row.map(|row| decode_row(row.into()).map_err(|_| corrupt())).transpose()
}

/// Returns the highest seq of a feed that a device may acknowledge; 0 if the conversation is no feed for it.
fn feed_head(db: &Connection, device: InstallationId, conversation: ConversationId) -> Result<Seq> {
    let query = "SELECT seq FROM heads WHERE conversation = ?2
                 AND EXISTS (SELECT 1 FROM feeds WHERE device = ?1 AND conversation = ?2)";
    number_of(db, query, params![device.as_bytes(), conversation.as_bytes()])
}

fn read_feeds(db: &Connection, device: InstallationId) -> Result<Vec<Feed>> {
    let mut statement = db
        .prepare_cached(
            "SELECT conversation, feeds.seq, joins FROM feeds JOIN heads USING (conversation)
             WHERE device = ?1 AND feeds.seq <= heads.seq ORDER BY conversation, feeds.seq",
        )
        .map_err(failed)?;
    let mut rows = statement.query([device.as_bytes()]).map_err(failed)?;
    let mut feeds: Vec<Feed> = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let id: Vec<u8> = row.get(0).map_err(failed)?;
        let conversation = ConversationId::parse(&id).map_err(|_| corrupt())?;
        let change = (row.get::<_, i64>(1).map_err(failed)? as u64, row.get(2).map_err(failed)?);
        match feeds.last_mut().filter(|feed| feed.conversation == conversation) {
            Some(feed) => feed.changes.push(change),
            None => {
                let acked = cursor(db, device, conversation)?.map_or(0, |cursor| cursor.acked);
                feeds.push(Feed { conversation, acked, changes: vec![change] });
            }
        }
    }
    Ok(feeds)
}

/// Decodes column 0 of a query's rows, up to the limit. `complete` adds a row's body, or skips the row.
fn page(
    mut rows: rusqlite::Rows<'_>,
    limit: PageLimit,
    complete: impl Fn(InboxRow) -> Result<Option<InboxRow>>,
) -> Result<Vec<InboxRow>> {
    let mut page = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next().map_err(failed)? {
        let row: Vec<u8> = row.get(0).map_err(failed)?;
        let Some(row) = complete(decode_row(row.into()).map_err(|_| corrupt())?)? else {
            continue;
        };
        bytes += row.size();
        page.push(row);
        if page.len() >= limit.rows || bytes >= limit.bytes {
            break;
        }
    }
    Ok(page)
}

#[async_trait]
impl MessageStore for SqliteStore {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { epoch: self.epoch, durability: Durability::Fsync }
    }

    async fn state(
        &self,
        conversation: ConversationId,
        filter: SenderFilter<'_>,
        _next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        let db = self.db.lock();
        let values: Option<(Vec<u8>, Vec<u8>)> = db
            .prepare_cached("SELECT head, members FROM heads WHERE conversation = ?1")
            .and_then(|mut s| {
                s.query_row([conversation.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional()
            })
            .map_err(failed)?;
        let Some((head, members)) = values else { return Ok(None) };
        let mut senders = BTreeMap::new();
        match filter {
            SenderFilter::No => {}
            SenderFilter::Of(named) => {
                for installation in named {
                    let position = sender(&db, conversation, *installation)?;
                    senders.extend(position.map(|position| (*installation, position)));
                }
            }
            SenderFilter::All => senders = all_senders(&db, conversation)?,
        }
        let (head, roster) = (state::decode_head(&head)?, state::decode_roster(&members)?);
        Ok(Some(ConversationState { head, roster, senders }))
    }

    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        let db = self.db.lock();
        let seq: Option<i64> = db
            .prepare_cached("SELECT seq FROM ids WHERE conversation = ?1 AND sender = ?2 AND id = ?3")
            .and_then(|mut s| {
                s.query_row(params![conversation.as_bytes(), sender.as_bytes(), id.as_bytes()], |row| {
                    row.get(0)
                })
                .optional()
            })
            .map_err(failed)?;
        let head = head(&db, conversation)?;
        Ok(seq.map(|seq| seq as u64).filter(|seq| *seq <= head))
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let count = commits.len();
        let mut db = self.db.lock();
        let written = db.transaction().map_err(failed).and_then(|tx| {
            commits.into_iter().try_for_each(|commit| apply(&tx, commit))?;
            tx.commit().map_err(failed)
        });
        vec![written.map(|()| CommitOutcome::Visible); count]
    }

    async fn make_visible(&self, _commits: Vec<Commit>) -> Result<()> {
        Ok(())
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        let mut db = self.db.lock();
        let tx = db.transaction().map_err(failed)?;
        // One call may acknowledge a conversation more than once.
        let mut cursors = BTreeMap::new();
        for ack in acks {
            let known = match cursors.entry(ack.conversation) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(free) => {
                    free.insert(cursor(&tx, device, ack.conversation)?.unwrap_or_default())
                }
            };
            if ack.seq > known.tail && ack.seq > feed_head(&tx, device, ack.conversation)? {
                return Err(Error::new(ErrorKind::Invalid, "an ack is above the tail"));
            }
            known.acked = known.acked.max(ack.seq);
        }
        raise_generation(&tx, device, generation)?;
        for ack in acks {
            set_cell(&tx, device, ack.conversation, cursors[&ack.conversation])?;
            tx.prepare_cached("DELETE FROM inbox WHERE device = ?1 AND conversation = ?2 AND seq <= ?3")
                .and_then(|mut s| {
                    s.execute(params![device.as_bytes(), ack.conversation.as_bytes(), ack.seq as i64])
                })
                .map_err(failed)?;
        }
        tx.commit().map_err(failed)
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let db = self.db.lock();
        let mut statement = db
            .prepare_cached(
                "SELECT row FROM inbox WHERE device = ?1 AND (time_us, conversation, seq) > (?2, ?3, ?4)
                 ORDER BY time_us, conversation, seq",
            )
            .map_err(failed)?;
        let rows = statement
            .query(params![
                device.as_bytes(),
                after.time_us as i64,
                after.conversation.as_bytes(),
                after.seq as i64
            ])
            .map_err(failed)?;
        page(rows, limit, |mut row| {
            if row.seq > head(&db, row.conversation)? {
                return Ok(None);
            }
            let mailbox = row.conversation.kind() == Ok(ConversationKind::Mailbox);
            if let (RowContent::Message { message, .. }, false) = (&mut row.content, mailbox) {
                let history = read_history(&db, row.conversation, row.seq)?;
                let is_erased = history.is_erased();
                match history.content {
                    RowContent::Message { message: whole, .. } => *message = whole,
                    erased if is_erased => row.content = erased,
                    _ => return Err(corrupt()),
                }
            }
            Ok(Some(row))
        })
    }

    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let db = self.db.lock();
        let head = head(&db, conversation)?;
        let last = if before == 0 { head } else { head.min(before - 1) };
        let mut statement = db
            .prepare_cached("SELECT row FROM history WHERE conversation = ?1 AND seq <= ?2 ORDER BY seq DESC")
            .map_err(failed)?;
        let rows = statement.query(params![conversation.as_bytes(), last as i64]).map_err(failed)?;
        page(rows, limit, |row| Ok(Some(row)))
    }

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let db = self.db.lock();
        let head = head(&db, conversation)?;
        let mut statement = db
            .prepare_cached(
                "SELECT row FROM history WHERE conversation = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq",
            )
            .map_err(failed)?;
        let range = params![conversation.as_bytes(), after as i64, head as i64];
        page(statement.query(range).map_err(failed)?, limit, |row| Ok(Some(row)))
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        read_feeds(&self.db.lock(), device)
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.transact(|tx| retention::expire_history(tx, before_us, limit))
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        self.transact(|tx| retention::expire_messages(tx, now_us, limit))
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        self.transact(|tx| retention::clear_history(tx, conversation, user, through))
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        retention::cleared(&self.db.lock(), conversation, user)
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        let db = self.db.lock();
        let generation: Option<i64> = db
            .prepare_cached("SELECT generation FROM devices WHERE device = ?1")
            .and_then(|mut s| s.query_row([device.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        Ok(generation.unwrap_or(0) as u64)
    }

    async fn device(&self, device: InstallationId, want: CursorFilter) -> Result<DeviceRecord> {
        let db = self.db.lock();
        let (rows, bytes): (i64, i64) = db
            .prepare_cached("SELECT count(*), coalesce(sum(size), 0) FROM inbox WHERE device = ?1")
            .and_then(|mut s| s.query_row([device.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))))
            .map_err(failed)?;
        let cursors = match want {
            CursorFilter::No => Vec::new(),
            CursorFilter::Of(id) => {
                cursor(&db, device, id)?.map(|cursor| (id, cursor.with_feed())).into_iter().collect()
            }
            CursorFilter::All => {
                let mut statement = db
                    .prepare_cached(
                        "SELECT conversation, acked, tail FROM cells WHERE device = ?1 ORDER BY conversation",
                    )
                    .map_err(failed)?;
                let mut rows = statement.query([device.as_bytes()]).map_err(failed)?;
                let mut cursors = Vec::new();
                while let Some(row) = rows.next().map_err(failed)? {
                    let id: Vec<u8> = row.get(0).map_err(failed)?;
                    let number = |n: usize| row.get::<_, i64>(n).map(|n| n as u64).map_err(failed);
                    let cursor = InboxCursor { acked: number(1)?, tail: number(2)? };
                    cursors.push((ConversationId::parse(&id).map_err(|_| corrupt())?, cursor.with_feed()));
                }
                cursors
            }
        };
        Ok(DeviceRecord { waiting_rows: rows as u64, waiting_bytes: bytes as u64, cursors })
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.transact(|tx| retention::expire(tx, before_us, limit))
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        let mut db = self.db.lock();
        let tx = db.transaction().map_err(failed)?;
        for table in ["inbox", "cells", "feeds", "devices"] {
            let delete = format!("DELETE FROM {table} WHERE device = ?1");
            tx.execute(&delete, [device.as_bytes()]).map_err(failed)?;
        }
        tx.commit().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head with seq 7, and a sender: the whole state in one value, as version 1 kept it.
    fn format_1() -> Vec<u8> {
        let position = SenderState { client_seq: 3, ..SenderState::default() };
        let sender = [&[0x0a, 16][..], &[9; 16], &state::encode_sender(&position)].concat();
        [&[0x08, 7, 0x3a, sender.len() as u8][..], &sender].concat()
    }

    #[tokio::test]
    async fn file_of_version_1_is_converted_and_a_later_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.sqlite");
        let id = ConversationId::own(chat_core::UserId::from_bytes([1; 16]));
        let epoch = SqliteStore::open(&path).unwrap().identity().epoch;
        let old = "DROP TABLE heads; DROP TABLE senders; DROP TABLE state; PRAGMA user_version = 0;
             CREATE TABLE state (conversation BLOB PRIMARY KEY, seq INTEGER NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;";
        let db = Connection::open(&path).unwrap();
        db.execute_batch(old).unwrap();
        db.execute("INSERT INTO state VALUES (?1, 7, ?2)", params![id.as_bytes(), format_1()]).unwrap();
        drop(db);
        for _ in 0..2 {
            let store = SqliteStore::open(&path).unwrap();
            let state = store.state(id, SenderFilter::All, None).await.unwrap().unwrap();
            assert_eq!((state.head.seq, state.senders.len()), (7, 1));
            assert_eq!(state.senders[&InstallationId::from_bytes([9; 16])].client_seq, 3);
            assert_eq!(store.identity().epoch, epoch);
        }
        let db = Connection::open(&path).unwrap();
        let read_by_version_1 = db.prepare("SELECT seq FROM state WHERE conversation = ?1").map(drop);
        assert!(read_by_version_1.is_err(), "an earlier release does not start over");
        db.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(db);
        assert_eq!(SqliteStore::open(&path).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
