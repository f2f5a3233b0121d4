//! Migration of a data set from the embedded store to a cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chat_core::backend::{Commit, ConversationState, LogPosition, StateChange};
use chat_core::codec::{encode_list, encode_row, state};
use chat_core::envelope::{InboxPosition, InboxRow};
use chat_core::{ConversationId, Error, ErrorKind, InstallationId, MessageId, Result, Seq, UserId};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};

use crate::SealedStore;
use crate::cassandra::CassandraSettings;
use crate::cassandra::import::CassandraImport;
use crate::data_set::Device;

/// Conversations, devices or accounts processed concurrently.
const COPY_CONCURRENCY: usize = 16;
/// Rows of a conversation written before its state is written again. An interrupted copy resumes at that
/// state.
const PIECE: usize = 1000;

/// Contents of a migrated data set. Every digest was read back from the target and matches the source.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct MigratedData {
    /// Conversations, mailboxes included.
    pub conversations: u64,
    /// Rows of history.
    pub messages: u64,
    /// Inbox rows that are not acknowledged yet.
    pub waiting: u64,
    /// Devices with any stored data.
    pub devices: u64,
    pub accounts: u64,
    /// SHA-256 over the digests of all conversations, devices and accounts.
    pub digest: [u8; 32],
}

impl fmt::Display for MigratedData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { conversations, messages, waiting, devices, accounts, digest } = self;
        write!(
            f,
            "conversations {conversations} messages {messages} waiting {waiting} devices {devices} accounts {accounts}, \
             digests equal: "
        )?;
        digest.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Copies a sealed data set into a keyspace, reads all data back and compares it. The keyspace may be served
/// only after that. After an interruption, a new call resumes the copy where it stopped.
///
/// Store epoch, states, acks, accounts and prekeys stay the same, so clients notice nothing. Positions in the
/// old log are not copied: the cluster's first log has generation 1, above all of them.
///
/// `report` receives the progress about once a second.
///
/// # Errors
/// `Conflict` if the keyspace holds another data set or the copy was already finished, `Corrupt` if the
/// source cannot be decoded or a digest differs, `Unavailable` if Cassandra does not answer for half a
/// minute: call the function again.
pub async fn migrate_data(
    from: &SealedStore,
    to: &CassandraSettings,
    report: impl Fn(String) + Send + Sync,
) -> Result<MigratedData> {
    let to = CassandraImport::begin(to, from.epoch()).await?;
    let migration = Migration { from, to, reported: parking_lot::Mutex::new(Instant::now()), report };
    let (conversations, devices, users) = (from.conversations()?, from.devices()?, from.users()?);
    let rows = AtomicU64::new(0);
    each(&conversations, |id| migration.conversation(*id, &rows)).await?;
    let devices: Vec<InstallationId> = devices.into_iter().collect();
    each(&devices, |id| migration.device(*id)).await?;
    each(&users, |user| migration.account(*user)).await?;
    let (deleted, revocations) = (from.deleted_users()?, from.revocations()?);
    each(&deleted, |user| migration.deleted_account(*user)).await?;
    each(&revocations, |(user, at_ms)| migration.revocation(*user, *at_ms)).await?;

    (migration.report)("all data is written, now comparing".to_owned());
    let mut copied = MigratedData {
        conversations: conversations.len() as u64,
        devices: devices.len() as u64,
        accounts: users.len() as u64,
        ..MigratedData::default()
    };
    let mut all = Sha256::new();
    for (digest, messages) in each(&conversations, |id| migration.compare_conversation(*id)).await? {
        copied.messages += messages;
        all.update(digest);
    }
    for (digest, waiting) in each(&devices, |id| migration.compare_device(*id)).await? {
        copied.waiting += waiting;
        all.update(digest);
    }
    for digest in each(&users, |user| migration.compare_account(*user)).await? {
        all.update(digest);
    }
    for digest in each(&deleted, |user| migration.compare_deleted(*user)).await? {
        all.update(digest);
    }
    all.update(migration.compare_revocations(revocations).await?);
    copied.digest = all.finalize().into();
    migration.to.end().await?;
    Ok(copied)
}

/// Runs `work` for each item, [`COPY_CONCURRENCY`] of them concurrently, and returns the results in order.
async fn each<'a, T, O, F>(all: &'a [T], work: impl Fn(&'a T) -> F) -> Result<Vec<O>>
where
    F: Future<Output = Result<O>>,
{
    stream::iter(all).map(work).buffered(COPY_CONCURRENCY).try_collect().await
}

/// Retries idempotent work until Cassandra answers, for about half a minute.
async fn patiently<T, F: Future<Output = Result<T>>>(mut work: impl FnMut() -> F) -> Result<T> {
    for _ in 0..5 {
        match work().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            done => return done,
        }
    }
    work().await
}

const fn differs(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

struct Migration<'a, Report> {
    from: &'a SealedStore,
    to: CassandraImport,
    reported: parking_lot::Mutex<Instant>,
    report: Report,
}

impl<Report: Fn(String) + Send + Sync> Migration<'_, Report> {
    fn progress(&self, what: impl FnOnce() -> String) {
        let mut reported = self.reported.lock();
        if reported.elapsed() > Duration::from_secs(1) {
            *reported = Instant::now();
            (self.report)(what());
        }
    }

    /// Writes the rows of a conversation that the target lacks. The state in the target marks the progress.
    async fn conversation(&self, id: ConversationId, rows: &AtomicU64) -> Result<()> {
        for (user, seq) in self.from.cleared(id)? {
            patiently(|| self.to.put_cleared(id, user, seq)).await?;
        }
        let last = without_position(self.from.state(id)?);
        let there = patiently(|| self.to.state(id)).await?.unwrap_or_default();
        if there == last {
            return Ok(());
        }
        let mut ids: BTreeMap<Seq, Vec<(InstallationId, MessageId, Seq)>> = BTreeMap::new();
        for (seq, sender, message) in self.from.ids(id)? {
            ids.entry(seq).or_default().push((sender, message, seq));
        }
        let commit = |history: Vec<InboxRow>, ids, state| Commit { history, ids, ..Commit::of(id, state) };
        let mut from = self.from.rows(id, there.head.seq);
        loop {
            let piece = from.by_ref().take(PIECE).collect::<Result<Vec<InboxRow>>>()?;
            let Some(end) = piece.last().filter(|row| row.seq < last.head.seq) else {
                let rest = ids.into_values().flatten().collect();
                rows.fetch_add(piece.len() as u64, Ordering::Relaxed);
                let commit = commit(piece, rest, last.into());
                return patiently(|| self.to.put_rows(&commit)).await;
            };
            let mut state = StateChange::default();
            (state.head.seq, state.head.time_us) = (end.seq, end.time_us);
            let later = ids.split_off(&(end.seq + 1));
            let now = std::mem::replace(&mut ids, later).into_values().flatten().collect();
            let so_far = rows.fetch_add(piece.len() as u64, Ordering::Relaxed);
            self.progress(|| format!("{so_far} messages written"));
            let commit = commit(piece, now, state);
            patiently(|| self.to.put_rows(&commit)).await?;
        }
    }

    async fn device(&self, id: InstallationId) -> Result<()> {
        let device = self.from.device(id)?;
        let mut tails = BTreeMap::new();
        for (conversation, _) in &device.cursors {
            tails.insert(*conversation, self.from.state(*conversation)?.head.time_us);
        }
        let mut after = InboxPosition::START;
        let mut first = None;
        loop {
            let page = self.from.inbox(id, after)?;
            let Some(last) = page.last() else { break };
            after = last.position();
            first = first.or_else(|| page.first().map(|row| row.time_us));
            patiently(|| self.to.put_inbox(id, &page)).await?;
        }
        self.progress(|| "messages are written, now writing devices".to_owned());
        patiently(|| self.to.put_device(id, &device, &tails, first)).await
    }

    async fn lists(&self, user: UserId) -> Result<()> {
        for list in self.from.lists(user)? {
            patiently(|| self.to.put_list_version(&list)).await?;
        }
        Ok(())
    }

    async fn deleted_account(&self, user: UserId) -> Result<()> {
        self.lists(user).await?;
        patiently(|| self.to.put_deleted(user)).await
    }

    async fn revocation(&self, user: UserId, at_ms: u64) -> Result<()> {
        patiently(|| self.to.put_revocation(user, at_ms)).await
    }

    async fn account(&self, user: UserId) -> Result<()> {
        self.lists(user).await?;
        let account = self.from.account(user)?;
        patiently(|| self.to.put_account(&account)).await
    }

    async fn compare_conversation(&self, id: ConversationId) -> Result<([u8; 32], u64)> {
        let (mut ours, mut theirs) = (Sha256::new(), Sha256::new());
        let last = without_position(self.from.state(id)?);
        let there = patiently(|| self.to.state(id)).await?.unwrap_or_default();
        add_state(&mut ours, &last);
        add_state(&mut theirs, &there);
        for (user, seq) in self.from.cleared(id)? {
            add_cleared(&mut ours, user, seq);
            add_cleared(&mut theirs, user, patiently(|| self.to.cleared(id, user)).await?);
        }
        let ids = self.from.ids(id)?;
        let found = patiently(|| self.to.ids(id, &ids)).await?;
        add_ids(&mut ours, &ids);
        add_ids(&mut theirs, &found);
        let before = |row: &InboxRow| row.seq;
        let messages = add_pages(&mut ours, 0, before, async |before| self.from.history(id, before)).await?;
        add_pages(&mut theirs, 0, before, async |before| {
            self.progress(|| "comparing".to_owned());
            patiently(|| self.to.history(id, before)).await
        })
        .await?;
        let digest = same(ours, theirs, "a conversation is not the same in the target")?;
        Ok((digest, messages))
    }

    async fn compare_device(&self, id: InstallationId) -> Result<([u8; 32], u64)> {
        let (mut ours, mut theirs) = (Sha256::new(), Sha256::new());
        add_device(&mut ours, &self.from.device(id)?);
        add_device(&mut theirs, &patiently(|| self.to.device(id)).await?);
        let (start, after) = (InboxPosition::START, InboxRow::position);
        let waiting = add_pages(&mut ours, start, after, async |after| self.from.inbox(id, after)).await?;
        let there = async |after| patiently(|| self.to.inbox(id, after)).await;
        add_pages(&mut theirs, start, after, there).await?;
        Ok((same(ours, theirs, "a device is not the same in the target")?, waiting))
    }

    async fn compare_lists(&self, user: UserId) -> Result<()> {
        for list in self.from.lists(user)? {
            let version = list.list().version;
            if patiently(|| self.to.list_version(user, version)).await? != Some(list) {
                return Err(differs("a device list is not the same in the target"));
            }
        }
        Ok(())
    }

    async fn compare_deleted(&self, user: UserId) -> Result<[u8; 32]> {
        self.compare_lists(user).await?;
        if !patiently(|| self.to.is_deleted(user)).await? {
            return Err(differs("an account is deleted, and not in the target"));
        }
        Ok(Sha256::digest(user.as_bytes()).into())
    }

    async fn compare_revocations(&self, mut ours: Vec<(UserId, u64)>) -> Result<[u8; 32]> {
        let mut theirs = patiently(|| self.to.revocations()).await?;
        ours.sort_unstable();
        theirs.sort_unstable();
        if ours != theirs {
            return Err(differs("the revocations of tokens are not the same in the target"));
        }
        let mut digest = Sha256::new();
        for (user, at_ms) in ours {
            add(&mut digest, user.as_bytes());
            digest.update(at_ms.to_be_bytes());
        }
        Ok(digest.finalize().into())
    }

    async fn compare_account(&self, user: UserId) -> Result<[u8; 32]> {
        let account = self.from.account(user)?;
        let there = patiently(|| self.to.account(&account)).await?;
        if there.as_ref() != Some(&account) {
            return Err(differs("an account is not the same in the target"));
        }
        self.compare_lists(user).await?;
        let mut digest = Sha256::new();
        add(&mut digest, account.handle.as_str().as_bytes());
        add(&mut digest, &encode_list(&account.list));
        digest.update(account.contacts.version.to_be_bytes());
        digest.update([account.contacts.audience.number()]);
        for (user, contact) in &account.contacts.entries {
            add(&mut digest, user.as_bytes());
            digest.update([u8::from(contact.accepted), u8::from(contact.blocked)]);
        }
        Ok(digest.finalize().into())
    }
}

fn add_state(digest: &mut Sha256, conversation: &ConversationState) {
    add(digest, &state::encode_head(&conversation.head));
    add(digest, &state::encode_roster(&conversation.roster));
    for (sender, position) in &conversation.senders {
        add(digest, sender.as_bytes());
        add(digest, &state::encode_sender(position));
    }
}

fn without_position(mut state: ConversationState) -> ConversationState {
    state.head.position = LogPosition::default();
    state
}

fn same(ours: Sha256, theirs: Sha256, otherwise: &'static str) -> Result<[u8; 32]> {
    let (ours, theirs) = (ours.finalize(), theirs.finalize());
    if ours == theirs { Ok(ours.into()) } else { Err(differs(otherwise)) }
}

/// Adds a field with its length to a digest, so that the boundaries of fields are unambiguous.
fn add(digest: &mut Sha256, bytes: &[u8]) {
    digest.update((bytes.len() as u64).to_be_bytes());
    digest.update(bytes);
}

/// Adds the rows of all pages to a digest and returns their number. Each page begins after the last row of
/// the previous page.
async fn add_pages<At>(
    digest: &mut Sha256,
    mut at: At,
    next: impl Fn(&InboxRow) -> At,
    page: impl AsyncFn(At) -> Result<Vec<InboxRow>>,
) -> Result<u64> {
    let mut count = 0;
    loop {
        let rows = page(at).await?;
        let Some(last) = rows.last() else { return Ok(count) };
        (at, count) = (next(last), count + rows.len() as u64);
        rows.iter().for_each(|row| add(digest, &encode_row(row)));
    }
}

fn add_cleared(digest: &mut Sha256, user: UserId, seq: Seq) {
    add(digest, user.as_bytes());
    add(digest, &seq.to_be_bytes());
}

fn add_ids(digest: &mut Sha256, ids: &[(Seq, InstallationId, MessageId)]) {
    add(digest, &(ids.len() as u64).to_be_bytes());
    for (seq, sender, id) in ids {
        digest.update(seq.to_be_bytes());
        digest.update(sender.as_bytes());
        digest.update(id.as_bytes());
    }
}

fn add_device(digest: &mut Sha256, device: &Device) {
    digest.update(device.generation.to_be_bytes());
    add(digest, &(device.cursors.len() as u64).to_be_bytes());
    for (conversation, cursor) in &device.cursors {
        digest.update(conversation.as_bytes());
        digest.update(cursor.acked.to_be_bytes());
        digest.update(cursor.tail.to_be_bytes());
    }
    add(digest, &(device.feeds.len() as u64).to_be_bytes());
    for feed in &device.feeds {
        digest.update(feed.conversation.as_bytes());
        add(digest, &(feed.changes.len() as u64).to_be_bytes());
        for (seq, joins) in &feed.changes {
            digest.update(seq.to_be_bytes());
            digest.update([u8::from(*joins)]);
        }
    }
    if let Some((signed, signature, through)) = &device.bundle {
        add(digest, signed);
        add(digest, signature);
        digest.update(through.to_be_bytes());
    }
    add(digest, &(device.prekeys.len() as u64).to_be_bytes());
    for (number, data) in &device.prekeys {
        digest.update(number.to_be_bytes());
        add(digest, data);
    }
    if let Some((incarnation, nonce, at_ms)) = &device.incarnation {
        digest.update(incarnation.to_be_bytes());
        digest.update(nonce);
        digest.update(at_ms.to_be_bytes());
    }
    add(digest, device.owner.as_ref().map_or(&[][..], |user| user.as_bytes()));
}
