//! The embedded store: fjall, one directory, one writer thread.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `heads` | conversation | the head of the state, written in one batch with its rows |
//! | `members` | conversation | the members of the state |
//! | `senders` | conversation, installation | the position of a sender in the state |
//! | `history` | conversation, seq | the message, with the only copy of its body |
//! | `erased` | conversation | the seq up to which no message has content |
//! | `cleared` | conversation, user | the seq up to which the user has cleared it |
//! | `feeds` | installation, conversation, seq | whether the device begins or stops to read a feed after this seq |
//! | `ids` | conversation, installation, message id | seq |
//! | `inbox` | installation, time, conversation, seq | this device's box, or the whole row if it has none |
//! | `cursors` (`cells` on disk) | installation, conversation | acked, tail |
//! | `devices` | installation | generation |
//! | `list_versions` | user, version | a device list that was replaced |
//! | `handles`, `names`, `lists`, `owners`, `prekeys`, `bundles`, `incarnations` | | the key directory |
//! | `meta` | | store epoch, count of synced commits |
//!
//! At each wake-up the writer puts the waiting requests into one batch with one `fdatasync`, and answers
//! their callers after it. The file `watermark` beside the database holds the count of synced commits. A
//! database that holds fewer commits lost acknowledged data and is not opened.

mod contacts;
mod conversion;
mod directory;
mod history;
mod keys;
mod presence;
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
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, LogPosition, MessageStore,
    PageLimit, SenderFilter, StoreIdentity,
};
use chat_core::envelope::{AckUpTo, Durability, InboxPosition, InboxRow};
use chat_core::memory::MemoryPresence;
use chat_core::{
    ConversationId, Error, ErrorKind, InstallationId, MessageId, Result, Seq, StoreEpoch, UserId,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::Mutex;

use watermark::Watermark;
use writer::Writer;

/// Content of the file `FORMAT`. A directory with another format is not opened.
const FORMAT: &str = "chat-store embedded 2\n";

/// Name of the file that marks a sealed data set: it migrates to a cluster and is no longer written here.
const SEALED: &str = "SEALED";

/// The database and its keyspaces.
#[derive(Clone)]
pub(crate) struct Tables {
    database: Database,
    meta: Keyspace,
    heads: Keyspace,
    members: Keyspace,
    senders: Keyspace,
    history: Keyspace,
    ids: Keyspace,
    inbox: Keyspace,
    cursors: Keyspace,
    devices: Keyspace,
    handles: Keyspace,
    names: Keyspace,
    contacts: Keyspace,
    last_seen: Keyspace,
    lists: Keyspace,
    list_versions: Keyspace,
    owners: Keyspace,
    prekeys: Keyspace,
    bundles: Keyspace,
    incarnations: Keyspace,
    revocations: Keyspace,
    deleted: Keyspace,
    erased: Keyspace,
    cleared: Keyspace,
    feeds: Keyspace,
    /// The messages that disappear, by time.
    disappearing: Keyspace,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

/// A [`MessageStore`], [`KeyDirectory`](chat_core::backend::KeyDirectory),
/// [`ContactStore`](chat_core::backend::ContactStore) and [`Presence`](chat_core::backend::Presence) in one directory.
///
/// One process at a time can open the directory. A commit returns after `fdatasync`; concurrent commits share
/// one.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use chat_core::Backends;
/// use std::sync::Arc;
/// let store = Arc::new(chat_store::EmbeddedStore::open(dir.path()).unwrap());
/// let backends = Backends { store: store.clone(), keys: store.clone(), contacts: store.clone(), presence: store, ..Backends::memory() };
/// ```
#[derive(Debug)]
pub struct EmbeddedStore {
    tables: Tables,
    writer: Writer,
    epoch: StoreEpoch,
    beats: MemoryPresence,
    /// The conversation at which the next search for old history begins.
    next_search: Mutex<Option<ConversationId>>,
}

/// Converts an error of the database to the error that callers receive.
fn failed(error: fjall::Error) -> Error {
    match error {
        fjall::Error::Locked => Error::new(
            ErrorKind::Conflict,
            "the data directory is in use: another process, such as a running server, has it open. Stop that first",
        ),
        error @ (fjall::Error::Io(_) | fjall::Error::Poisoned) => {
            Error::new(ErrorKind::Unavailable, "the disk failed").caused_by(error)
        }
        error => Error::new(ErrorKind::Corrupt, "the database cannot be read").caused_by(error),
    }
}

const fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "a stored record cannot be decoded")
}

fn io(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "failed to access the data directory").caused_by(error)
}

impl EmbeddedStore {
    /// Opens the store in a directory and creates it if it does not exist.
    ///
    /// # Errors
    /// `Conflict` if another process has the store open, `Unsupported` if it was sealed for migration or has the format
    /// of another release (see [`convert`](Self::convert)), `Corrupt` if it is damaged, `Unavailable` if it cannot be
    /// read or written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        check_format(path)?;
        if path.join(SEALED).exists() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the data set was sealed for migration to a cluster: serve it there (see the file SEALED)",
            ));
        }
        let tables = Tables::open(path)?;
        let epoch = tables.epoch()?;
        let commits = tables.commits()?;
        let watermark = Watermark::open(&path.join("watermark"), commits)?;
        let writer = Writer::start(tables.clone(), watermark, commits, path.to_owned())?;
        Ok(Self { tables, writer, epoch, beats: MemoryPresence::default(), next_search: Mutex::default() })
    }

    /// Converts a directory of the previous format to that of this release. Returns the number of converted
    /// conversations; 0 if the directory has this format. An earlier release does not open the directory afterwards. An
    /// interrupted conversion can be repeated.
    ///
    /// # Errors
    /// `NotFound` if there is no store, `Unsupported` if its format is of another release or it was sealed for
    /// migration, `Conflict` if another process has it open, `Corrupt` if it is damaged, `Unavailable` if it cannot be read or
    /// written.
    pub fn convert(path: impl AsRef<Path>) -> Result<usize> {
        conversion::run(path.as_ref())
    }

    /// Gives the data set a new store epoch, after it was restored from an older copy: every device then compares its
    /// cursors with the server's.
    ///
    /// # Errors
    /// `NotFound` if there is no store, and as [`open`](Self::open).
    pub fn renew_epoch(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if !Self::exists(path) {
            return Err(Error::new(ErrorKind::NotFound, "there is no store in the directory"));
        }
        Self::open(path)?.tables.new_epoch().map(drop)
    }

    /// Returns whether a directory holds a store, in any format.
    pub fn exists(path: impl AsRef<Path>) -> bool {
        path.as_ref().join("db").exists()
    }

    /// Reads all data and checks the store's invariants; see [`Verification`](crate::Verification).
    ///
    /// # Errors
    /// `Corrupt` with the violated invariant.
    pub fn verify(&self) -> Result<crate::Verification> {
        verify::run(&self.tables)
    }

    /// Waits until the disk fails. After that the store acknowledges nothing. The process should exit; a
    /// restart recovers from the data on disk.
    pub async fn disk_failed(&self) {
        self.writer.disk_failed().await;
    }
}

/// Creates a directory that only its owner can read, or makes an existing one so.
fn create_private(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let mut permissions = std::fs::metadata(path)?.permissions();
        if permissions.mode() & 0o077 != 0 {
            permissions.set_mode(0o700);
            match std::fs::set_permissions(path, permissions) {
                // The directory of another user, for example a volume: its owner decides.
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
                outcome => return outcome,
            }
        }
        Ok(())
    }
    #[cfg(not(unix))]
    std::fs::create_dir_all(path)
}

/// Creates the directory with its format file, or checks the existing file.
fn check_format(path: &Path) -> Result<()> {
    create_private(path).map_err(io)?;
    match read_format(path)?.as_deref() {
        Some(FORMAT) => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::Unsupported,
            "another release wrote the data directory: run `chat-server-ref migrate`, or that release if it is later",
        )),
        // A new directory may already hold a secret or settings, but no database.
        None if path.join("db").exists() => {
            Err(Error::new(ErrorKind::Corrupt, "the data directory has lost its FORMAT file"))
        }
        None => write_format(path).map_err(io),
    }
}

/// Returns the content of the file `FORMAT`; `None` if it does not exist.
fn read_format(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path.join("FORMAT")) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
    }
}

/// Writes the file `FORMAT`, durable and as a whole.
fn write_format(path: &Path) -> std::io::Result<()> {
    let (new, file) = (path.join("FORMAT.new"), path.join("FORMAT"));
    std::fs::write(&new, FORMAT)?;
    std::fs::File::open(&new)?.sync_all()?;
    std::fs::rename(&new, &file)?;
    std::fs::File::open(path)?.sync_all()
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
            heads: keyspace("heads")?,
            members: keyspace("members")?,
            senders: keyspace("senders")?,
            history: keyspace("history")?,
            ids: keyspace("ids")?,
            inbox: keyspace("inbox")?,
            cursors: keyspace("cells")?,
            devices: keyspace("devices")?,
            handles: keyspace("handles")?,
            names: keyspace("names")?,
            contacts: keyspace("contacts")?,
            last_seen: keyspace("last_seen")?,
            lists: keyspace("lists")?,
            list_versions: keyspace("list_versions")?,
            owners: keyspace("owners")?,
            prekeys: keyspace("prekeys")?,
            bundles: keyspace("bundles")?,
            incarnations: keyspace("incarnations")?,
            revocations: keyspace("revocations")?,
            deleted: keyspace("deleted")?,
            erased: keyspace("erased")?,
            cleared: keyspace("cleared")?,
            feeds: keyspace("feeds")?,
            disappearing: keyspace("disappearing")?,
            database,
        })
    }

    fn epoch(&self) -> Result<StoreEpoch> {
        if let Some(epoch) = self.meta.get("epoch").map_err(failed)? {
            return StoreEpoch::parse(&epoch).map_err(|_| corrupt());
        }
        self.new_epoch()
    }

    fn new_epoch(&self) -> Result<StoreEpoch> {
        let mut epoch = [0; 16];
        getrandom::fill(&mut epoch)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "failed to read system randomness"))?;
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
        senders: SenderFilter<'_>,
        _next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        self.tables.read_state(conversation, senders)
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

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.tables.read_history_after(conversation, after, limit)
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        self.tables.read_feeds(device)
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

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        let mut erased = 0;
        loop {
            let (first, left) = (*self.next_search.lock(), limit - erased);
            let (old, found) = self.tables.find_old(first, before_us, left).await?;
            *self.next_search.lock() = old.last().copied();
            let count = self.writer.expire_history(old, before_us, left).await?;
            erased += count;
            // The search is repeated if another call erased a part of these messages: a caller can drop the future of an
            // earlier call, and the writer still runs it.
            if erased >= limit || count == found && found < left {
                return Ok(erased);
            }
        }
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        self.writer.expire_messages(now_us, limit).await
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        if self.tables.is_cleared(conversation, user, through)? {
            return Ok(());
        }
        self.writer.clear_history(conversation, user, through).await
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        self.tables.read_cleared(conversation, user)
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        self.writer.erase(device).await
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.writer.stop();
    }
}
