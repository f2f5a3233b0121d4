//! The embedded store: fjall, one directory, one writer thread.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `state` | conversation | the state, written with everything it says |
//! | `history` | conversation, seq | the message, its body once |
//! | `ids` | conversation, installation, message id | seq |
//! | `inbox` | installation, time, conversation, seq | this device's box, or what stands for it |
//! | `cursors` | installation, conversation | acked, tail |
//! | `devices` | installation | generation |
//! | `handles`, `names`, `lists`, `owners`, `prekeys`, `bundles`, `incarnations` | | the key directory |
//! | `meta` | | store epoch, count of synced commits |
//!
//! All that a wake-up of the writer finds waiting goes into one batch with one `fdatasync`, and only then
//! are those who wait told. Beside the database lies `watermark`, the count of synced commits: if the
//! database holds fewer, it lost something it had promised, and is not opened.

mod directory;
mod keys;
mod read;
#[cfg(feature = "cassandra")]
mod sealed;
mod verify;
mod watermark;
mod writer;

#[cfg(feature = "cassandra")]
pub use sealed::SealedStore;

use std::path::Path;

use async_trait::async_trait;
use chat_core::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, LogPosition, MessageStore,
    PageLimit, StoreIdentity,
};
use chat_core::envelope::{AckUpTo, Durability, InboxPosition, InboxRow};
use chat_core::{ConversationId, Error, ErrorKind, InstallationId, MessageId, Result, Seq, StoreEpoch};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use watermark::Watermark;
use writer::Writer;

/// The format of the directory; a store of another one is not opened.
const FORMAT: &str = "chat-store embedded 1\n";

/// The file whose presence says that the data moves to a cluster and is not written here any more.
const SEALED: &str = "SEALED";

/// The tables.
#[derive(Clone)]
pub(crate) struct Tables {
    database: Database,
    meta: Keyspace,
    state: Keyspace,
    history: Keyspace,
    ids: Keyspace,
    inbox: Keyspace,
    cursors: Keyspace,
    devices: Keyspace,
    handles: Keyspace,
    names: Keyspace,
    lists: Keyspace,
    owners: Keyspace,
    prekeys: Keyspace,
    bundles: Keyspace,
    incarnations: Keyspace,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

/// A [`MessageStore`] and [`KeyDirectory`](chat_core::backend::KeyDirectory) in one directory.
///
/// One process at a time may hold it. A commit's outcome is given after `fdatasync`; concurrent commits
/// share one.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use chat_core::Backends;
/// use std::sync::Arc;
/// let store = Arc::new(chat_store::EmbeddedStore::open(dir.path()).unwrap());
/// let backends = Backends { store: store.clone(), keys: store, ..Backends::memory() };
/// ```
#[derive(Debug)]
pub struct EmbeddedStore {
    tables: Tables,
    writer: Writer,
    epoch: StoreEpoch,
}

/// An error of the database, as its callers see it.
fn failed(error: fjall::Error) -> Error {
    match error {
        fjall::Error::Locked => {
            Error::new(ErrorKind::Conflict, "the data directory is in use by another process")
        }
        error @ (fjall::Error::Io(_) | fjall::Error::Poisoned) => {
            Error::new(ErrorKind::Unavailable, "the disk failed").caused_by(error)
        }
        error => Error::new(ErrorKind::Corrupt, "the database does not read back").caused_by(error),
    }
}

const fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "a stored record does not read back")
}

fn io(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the data directory cannot be used").caused_by(error)
}

impl EmbeddedStore {
    /// Opens the store in a directory, making it if it is not there.
    ///
    /// # Errors
    /// `Conflict` if another process has it open or it was sealed to be copied, `Invalid` if the directory is something else or of
    /// another format, `Corrupt` if it is damaged, `Unavailable` if it cannot be read or written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        check_format(path)?;
        if path.join(SEALED).exists() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the data set was sealed to be copied to a cluster: serve it there (the file SEALED says more)",
            ));
        }
        let tables = Tables::open(path)?;
        let epoch = tables.epoch()?;
        let commits = tables.commits()?;
        let watermark = Watermark::open(&path.join("watermark"), commits)?;
        let writer = Writer::start(tables.clone(), watermark, commits, path.to_owned())?;
        Ok(Self { tables, writer, epoch })
    }

    /// Whether there is a store in a directory, of whatever format.
    pub fn exists(path: impl AsRef<Path>) -> bool {
        path.as_ref().join("db").exists()
    }

    /// Reads everything and proves what the store promises; see [`Verification`](crate::Verification).
    ///
    /// # Errors
    /// `Corrupt` with what is wrong.
    pub fn verify(&self) -> Result<crate::Verification> {
        verify::run(&self.tables)
    }

    /// Waits until the disk failed. Nothing is acknowledged after that; the process should end and be
    /// started again, which recovers from what is on disk.
    pub async fn disk_failed(&self) {
        self.writer.disk_failed().await;
    }
}

/// Makes the directory with its format file, or checks the one that is there.
fn check_format(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(io)?;
    let file = path.join("FORMAT");
    match std::fs::read_to_string(&file) {
        Ok(text) if text == FORMAT => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::Invalid, "the data directory has another format")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A secret or settings may be there already; a database may not.
            if path.join("db").exists() {
                return Err(Error::new(ErrorKind::Corrupt, "the data directory has lost its FORMAT file"));
            }
            std::fs::write(&file, FORMAT).map_err(io)?;
            let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all());
            sync(&file).and_then(|()| sync(path)).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

impl Tables {
    fn open(path: &Path) -> Result<Self> {
        let database = Database::builder(path.join("db"))
            .cache_size(64 << 20)
            .max_journaling_size(512 << 20)
            .worker_threads(1)
            .manual_journal_persist(true)
            .open()
            .map_err(failed)?;
        let keyspace = |name: &str| database.keyspace(name, KeyspaceCreateOptions::default).map_err(failed);
        Ok(Self {
            meta: keyspace("meta")?,
            state: keyspace("state")?,
            history: keyspace("history")?,
            ids: keyspace("ids")?,
            inbox: keyspace("inbox")?,
            cursors: keyspace("cells")?,
            devices: keyspace("devices")?,
            handles: keyspace("handles")?,
            names: keyspace("names")?,
            lists: keyspace("lists")?,
            owners: keyspace("owners")?,
            prekeys: keyspace("prekeys")?,
            bundles: keyspace("bundles")?,
            incarnations: keyspace("incarnations")?,
            database,
        })
    }

    fn epoch(&self) -> Result<StoreEpoch> {
        if let Some(epoch) = self.meta.get("epoch").map_err(failed)? {
            return StoreEpoch::parse(&epoch).map_err(|_| corrupt());
        }
        let mut epoch = [0; 16];
        getrandom::fill(&mut epoch)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the system gives no randomness"))?;
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(&self.meta, "epoch", &epoch[..]);
        batch.commit().map_err(failed)?;
        Ok(StoreEpoch::from_bytes(epoch))
    }

    fn commits(&self) -> Result<u64> {
        match self.meta.get("commits").map_err(failed)? {
            Some(count) => keys::number(&count),
            None => Ok(0),
        }
    }
}

#[async_trait]
impl MessageStore for EmbeddedStore {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { epoch: self.epoch, durability: Durability::Fsync }
    }

    async fn state(
        &self,
        conversation: ConversationId,
        _next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        self.tables.read_state(conversation)
    }

    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        self.tables.find(conversation, sender, id)
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let count = commits.len();
        let outcome = self.writer.commit(commits).await.map(|()| CommitOutcome::Visible);
        vec![outcome; count]
    }

    async fn make_visible(&self, _commits: Vec<Commit>) -> Result<()> {
        Ok(())
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        self.writer.ack(device, generation, acks.to_vec()).await
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.tables.read_inbox(device, after, limit)
    }

    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.tables.read_history(conversation, before, limit)
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        self.tables.read_generation(device)
    }

    async fn device(&self, device: InstallationId, want: CursorFilter) -> Result<DeviceRecord> {
        let waiting = self.writer.waiting(device).await?;
        Ok(DeviceRecord {
            waiting_rows: waiting.rows,
            waiting_bytes: waiting.bytes,
            cursors: self.tables.read_cursors(device, want)?,
        })
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.writer.expire(before_us, limit).await
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.writer.stop();
    }
}
