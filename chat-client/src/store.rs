//! The local store: SQLite, one file, one process at a time.
//!
//! All changes between two commits are in one transaction: ratchets, plaintext, cursors, outbox and events
//! become durable together or not at all.

mod changes;
mod channels;
mod contacts;
mod conversations;
mod disappearing;
#[cfg(feature = "encrypted")]
mod encryption;
mod events;
mod groups;
mod history;
mod load;
mod message_changes;
mod migration;
mod revisions;
mod schema;
mod search;
mod server_restore;
mod settings;
mod timeline;
mod unsupported;

use std::sync::Arc;

use bytes::Bytes;
use chat_core::envelope::Publish;
use chat_core::replica::{AtSeq, Recipient};
use chat_core::view::{RowHash, View};
use chat_core::wire::ClientFrame;
use chat_core::{
    ConversationId, DeviceAddress, Error, ErrorKind, InstallationId, MessageId, Result, Seq, StoreEpoch,
    UserId,
};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};
#[cfg(feature = "encrypted")]
use zeroize::Zeroizing;

use self::revisions::Revisions;
use crate::config::Profile;
use crate::platform::{MountedProfile, Platform};
use crate::suite::{SuiteTx, Table};

/// The key of the mark that rows are being opened.
const OPENING: &str = "opening";

type Blob = Option<Vec<u8>>;

/// Milliseconds in which a store takes at most one new incarnation, unless the user requests another.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The open local store.
#[derive(Debug)]
pub(crate) struct LocalStore {
    db: Connection,
    open: bool,
    /// The open transaction erases text, which must not stay in the write-ahead log.
    erases: bool,
    revisions: Revisions,
    /// The change of a group that the next received message makes, if it is this one.
    received_action: Option<(ConversationId, MessageId, Vec<u8>)>,
    own: Option<DeviceAddress>,
    platform: Arc<dyn Platform>,
    /// The server's clock minus the platform's, in milliseconds, at the last connection.
    server_ahead_ms: i64,
    /// Holds the lock of the profile. The last field, so that the database closes first.
    _mounted: Box<dyn MountedProfile>,
}

fn failed(error: rusqlite::Error) -> Error {
    let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
    let what = if full { "the disk is full" } else { "the local store failed" };
    Error::new(ErrorKind::Unavailable, what).caused_by(error)
}

/// Maps `NotADatabase` to `Denied`: the database is encrypted, but not with the given key or passphrase.
fn locked_out(error: rusqlite::Error) -> Error {
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) {
        return Error::new(ErrorKind::Denied, "the key or passphrase of the profile is missing or wrong");
    }
    failed(error)
}

const fn corrupt(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

fn digest(to: &Recipient, text: &str) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let to = match to {
        Recipient::Handle(handle) => handle.as_str().as_bytes().to_vec(),
        Recipient::User(user) => user.as_bytes().to_vec(),
        Recipient::Group(group) => group.as_bytes().to_vec(),
        _ => Vec::new(),
    };
    Sha256::new()
        .chain_update((to.len() as u64).to_be_bytes())
        .chain_update(to)
        .chain_update(text)
        .finalize()
        .to_vec()
}

/// The earlier use of an idempotency key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KnownKey {
    /// The key was not used before.
    New,
    /// The key was used for the same message.
    Same(MessageId),
    /// The key was used for another message.
    Other,
}

impl LocalStore {
    /// Opens the store of a mounted profile; creates it if it does not exist.
    ///
    /// # Errors
    /// `Invalid` if a later version made it, `Denied` if it is encrypted and the key or passphrase is missing or wrong,
    /// or if it is not encrypted and one is given, `Unavailable` if it cannot be read or written.
    pub(crate) fn open(
        mounted: Box<dyn MountedProfile>,
        profile: &Profile,
        platform: Arc<dyn Platform>,
    ) -> Result<Self> {
        let db = Connection::open(mounted.database()).map_err(failed)?;
        #[cfg(feature = "encrypted")]
        if let Some(secret) = &profile.secret {
            let key = encryption::database_key(secret, mounted.as_ref(), platform.as_ref())?;
            // A raw key, from which SQLCipher derives no other key.
            let hex: Zeroizing<String> =
                key.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
            let pragma =
                Zeroizing::new(format!("PRAGMA cipher_log_level = NONE; PRAGMA key = \"x'{}'\";", *hex));
            db.execute_batch(&pragma).map_err(failed)?;
        }
        #[cfg(not(feature = "encrypted"))]
        debug_assert!(profile.secret.is_none(), "a profile has a secret without the feature `encrypted`");
        db.execute_batch(mounted.first_statements()).map_err(locked_out)?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; PRAGMA cache_size = -16000;
             PRAGMA temp_store = MEMORY;",
        )
        .map_err(locked_out)?;
        db.set_prepared_statement_cache_capacity(256);
        // Otherwise a statement is compiled again with each new value that a partial index might depend on.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(failed)?;
        let mut store = Self {
            db,
            open: false,
            erases: false,
            revisions: Revisions::beginning_at(platform.unix_ms()),
            received_action: None,
            own: None,
            platform,
            server_ahead_ms: 0,
            _mounted: mounted,
        };
        store.migrate()?;
        let ahead = store.meta("server_ahead_ms")?.and_then(|value| value.try_into().ok());
        store.server_ahead_ms = ahead.map_or(0, i64::from_be_bytes);
        Ok(store)
    }

    /// Returns the numbers of changes that have no durable event.
    pub(crate) const fn revisions(&self) -> &Revisions {
        &self.revisions
    }

    /// Counts the steps of the database from here on. A query that reads rows has a few steps for each.
    #[cfg(test)]
    pub(crate) fn count_steps_for_test(&mut self) -> Arc<std::sync::atomic::AtomicU64> {
        let steps = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counter = steps.clone();
        let count = move || {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            false
        };
        self.db.progress_handler(1, Some(count)).expect("the handler can be set");
        steps
    }

    fn begin(&mut self) -> Result<()> {
        if !self.open {
            self.db.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
            self.open = true;
        }
        Ok(())
    }

    /// Makes all changes since the last commit durable.
    ///
    /// # Errors
    /// `Unavailable` if the commit fails; then none of the changes is durable.
    pub(crate) fn commit_open(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) {
            self.db.execute_batch("COMMIT").map_err(failed)?;
            if std::mem::take(&mut self.erases) {
                // The log still has the erased text. If this fails, the next checkpoint overwrites it.
                let _ = self.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
            }
        }
        Ok(())
    }

    fn run(&mut self, sql: &str, params: impl rusqlite::Params) -> Result<usize> {
        self.begin()?;
        self.db.prepare_cached(sql).and_then(|mut statement| statement.execute(params)).map_err(failed)
    }

    /// Returns a value of the profile.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.db
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")
            .and_then(|mut s| s.query_row([key], |row| row.get(0)).optional())
            .map_err(failed)
    }

    /// Sets a value of the profile, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn set_meta(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.run("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", params![key, value]).map(drop)
    }

    /// Takes over the time of the server, in milliseconds since 1970; 0 if it did not say. From then on all times of the
    /// profile follow the server's clock, so that a wrong clock of this device makes no key unusable.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn set_server_time(&mut self, server_ms: u64) -> Result<()> {
        const TOLERANCE_MS: u64 = 2000;
        let ahead = server_ms.cast_signed().saturating_sub(self.platform.unix_ms().cast_signed());
        if server_ms == 0 || ahead.abs_diff(self.server_ahead_ms) < TOLERANCE_MS {
            return Ok(());
        }
        self.server_ahead_ms = ahead;
        self.set_meta("server_ahead_ms", &ahead.to_be_bytes())
    }

    /// Returns the server's clock minus the platform's, in milliseconds, at the last connection.
    pub(crate) const fn server_ahead_ms(&self) -> i64 {
        self.server_ahead_ms
    }

    /// Removes a value of the profile, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn remove_meta(&mut self, key: &str) -> Result<()> {
        self.run("DELETE FROM meta WHERE key = ?1", [key]).map(drop)
    }

    /// Marks that rows are being opened, or that this row is. If the process ends meanwhile, the next start finds the
    /// mark. Returns `false` without a mark if a transaction is open.
    ///
    /// The mark survives the end of the process, and not always a failure of the machine: it is not worth a sync.
    ///
    /// # Errors
    /// `Unavailable` if the store fails.
    pub(crate) fn mark_opening(&mut self, row: &[u8]) -> Result<bool> {
        if self.open {
            return Ok(false);
        }
        // In WAL mode, a commit at this level is not synced, and a checkpoint is.
        self.db.execute_batch("PRAGMA synchronous = NORMAL").map_err(failed)?;
        let marked = self.set_meta(OPENING, row).and_then(|()| self.commit_open());
        self.db.execute_batch("PRAGMA synchronous = FULL").map_err(failed)?;
        marked.map(|()| true)
    }

    /// Returns the mark of the rows, or of the row, that the last process was opening when it ended.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn opening_mark(&self) -> Result<Option<Vec<u8>>> {
        self.meta(OPENING)
    }

    /// Removes the mark, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn remove_opening_mark(&mut self) -> Result<()> {
        self.remove_meta(OPENING)
    }

    fn meta_number(&self, key: &str) -> Result<u64> {
        Ok(self.meta(key)?.and_then(|v| v.try_into().ok()).map_or(0, u64::from_be_bytes))
    }

    fn rows<T>(&self, sql: &str, read: impl Fn(&rusqlite::Row<'_>) -> Result<T>) -> Result<Vec<T>> {
        self.rows_with(sql, [], read)
    }

    fn rows_with<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl Fn(&rusqlite::Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.db.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(params).map_err(failed)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            all.push(read(row)?);
        }
        Ok(all)
    }

    /// Returns whether the store has a message of a conversation with this sender and id.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn knows(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<bool> {
        self.seq_of(conversation, sender, id).map(|seq| seq.is_some())
    }

    /// Returns the seq of the message of a conversation with this sender and id; below 1 if it is of an earlier store epoch.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn seq_of(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<i64>> {
        let key = params![sender.as_bytes(), id.as_bytes(), conversation.as_bytes()];
        self.db
            .prepare_cached(
                "SELECT seq FROM messages WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
            )
            .and_then(|mut s| s.query_row(key, |row| row.get(0)).optional())
            .map_err(failed)
    }

    /// Returns whether the store has this message at a seq.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn at_seq(
        &self,
        conversation: ConversationId,
        seq: Seq,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<AtSeq> {
        let is_same: Option<bool> = self
            .db
            .prepare_cached(
                "SELECT sender = ?3 AND message_id = ?4 FROM messages WHERE conversation = ?1 AND seq = ?2",
            )
            .and_then(|mut s| {
                let place = params![conversation.as_bytes(), seq as i64, sender.as_bytes(), id.as_bytes()];
                s.query_row(place, |row| row.get(0)).optional()
            })
            .map_err(failed)?;
        Ok(is_same.map_or(AtSeq::Nothing, |same| if same { AtSeq::Same } else { AtSeq::Another }))
    }

    /// Returns the hash of the message at a seq; `None` if the store has none, or does not know how it is stored.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn row_hash(&self, conversation: ConversationId, seq: Seq) -> Result<Option<RowHash>> {
        let hash: Option<Blob> = self
            .db
            .prepare_cached("SELECT row_hash FROM messages WHERE conversation = ?1 AND seq = ?2")
            .and_then(|mut s| {
                s.query_row(params![conversation.as_bytes(), seq as i64], |row| row.get(0)).optional()
            })
            .map_err(failed)?;
        hash.flatten().map(|hash| RowHash::parse(&hash)).transpose()
    }

    /// Returns the last message of a conversation that this device saw.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn last_seen(&self, conversation: ConversationId, epoch: StoreEpoch) -> Result<Option<View>> {
        let last: Option<(i64, Vec<u8>)> = self
            .db
            .prepare_cached(
                "SELECT seq, row_hash FROM messages WHERE conversation = ?1 AND seq > 0 AND row_hash IS NOT NULL
                 ORDER BY seq DESC LIMIT 1",
            )
            .and_then(|mut s| {
                s.query_row([conversation.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional()
            })
            .map_err(failed)?;
        last.map(|(seq, hash)| Ok(View { epoch, seq: seq as u64, hash: RowHash::parse(&hash)? })).transpose()
    }

    /// Returns the content of an own message, if the device that requests it was in its audience.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn recall(
        &self,
        conversation: ConversationId,
        id: MessageId,
        asker: DeviceAddress,
    ) -> Result<Option<Bytes>> {
        if conversation.has_roster() {
            return self.recall_in_group(conversation, id, asker);
        }
        let own = self.own.ok_or(corrupt("the store is not loaded"))?;
        let stored: Option<(Blob, Blob)> = self
            .db
            .prepare_cached(
                "SELECT content, audience FROM messages WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
            )
            .and_then(|mut s| {
                s.query_row(
                    params![own.installation.as_bytes(), id.as_bytes(), conversation.as_bytes()],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()
            })
            .map_err(failed)?;
        if let Some((content, audience)) = stored {
            let audience = audience.unwrap_or_default();
            let was_in_it =
                audience.chunks(16).any(|installation| installation == asker.installation.as_bytes());
            // A message without content was cleared.
            return Ok(content.filter(|content| was_in_it && !content.is_empty()).map(Bytes::from));
        }
        // Other devices may receive the message before this device learns that it is stored.
        let Some((content, publish)) = self.waiting(id)? else { return Ok(None) };
        let was_in_it = publish.boxes.iter().any(|one| one.installation == asker.installation);
        Ok((was_in_it && publish.number.conversation == conversation).then(|| content.into()))
    }

    /// Returns the content and the ciphertext of a sealed message of the outbox.
    fn waiting(&self, id: MessageId) -> Result<Option<(Vec<u8>, Publish)>> {
        let waiting: Option<(Vec<u8>, Vec<u8>)> = self
            .db
            .prepare_cached(
                "SELECT content, publish FROM outbox WHERE message_id = ?1 AND publish IS NOT NULL",
            )
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(failed)?;
        waiting.map(|(content, publish)| Ok((content, read_publish(publish)?))).transpose()
    }

    /// Returns whether the account key of a user changed and the new one is not accepted yet.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn is_unaccepted(&self, user: UserId) -> Result<bool> {
        Ok(self.meta(&changed_key(user))?.is_some())
    }

    /// Accepts the current account key of a user, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn accept(&mut self, user: UserId) -> Result<()> {
        self.remove_meta(&changed_key(user))
    }
}

fn changed_key(user: UserId) -> String {
    format!("changed:{}", user.to_hex())
}

fn blob(row: &rusqlite::Row<'_>, index: usize) -> Result<Vec<u8>> {
    row.get(index).map_err(failed)
}

fn number(row: &rusqlite::Row<'_>, index: usize) -> Result<u64> {
    row.get::<_, i64>(index).map(|n| n as u64).map_err(failed)
}

fn read_publish(bytes: Vec<u8>) -> Result<Publish> {
    match ClientFrame::parse(bytes.into(), &Bytes::new())? {
        ClientFrame::Publish(publish) => Ok(publish),
        _ => Err(corrupt("failed to decode an outbox entry")),
    }
}

impl SuiteTx for LocalStore {
    fn get(&mut self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db
            .prepare_cached("SELECT value FROM suite WHERE tbl = ?1 AND key = ?2")
            .and_then(|mut s| s.query_row(params![table as i64, key], |row| row.get(0)).optional())
            .map_err(failed)
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.run("INSERT OR REPLACE INTO suite VALUES (?1, ?2, ?3)", params![table as i64, key, value])
            .map(drop)
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.run("DELETE FROM suite WHERE tbl = ?1 AND key = ?2", params![table as i64, key]).map(drop)
    }

    fn clear(&mut self, table: Table) -> Result<()> {
        self.run("DELETE FROM suite WHERE tbl = ?1", [table as i64]).map(drop)
    }

    fn now_ms(&self) -> u64 {
        self.platform.unix_ms().saturating_add_signed(self.server_ahead_ms)
    }
}

/// Returns a message without audience, body and options.
#[cfg(test)]
pub(crate) fn message_for_test(
    id: MessageId,
    sender: DeviceAddress,
    client_seq: u64,
) -> chat_core::envelope::Message {
    chat_core::envelope::Message {
        id,
        sender,
        client_seq,
        prev: MessageId::NIL,
        incarnation: 0,
        audience: Vec::new(),
        body: Bytes::new(),
        sent_at: 0,
        options: chat_core::message_options::MessageOptions::default(),
        group: None,
    }
}

/// Opens the store of a profile in a directory.
#[cfg(all(test, feature = "native"))]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)] // only tests call it, and they are native
pub(crate) fn open_for_test(base: &std::path::Path, profile: &Profile) -> Result<LocalStore> {
    use crate::platform::Storage;
    use crate::platform::native::{Directory, Native};
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mounted = runtime.block_on(Directory::new(base).mount(&profile.name))?;
    LocalStore::open(mounted, profile, Arc::new(Native::new()))
}
