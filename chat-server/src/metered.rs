//! Wrappers that measure the duration and the errors of backend calls.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use chat_core::backend::{
    AccountKey, Backends, BundleParts, Command, Commit, CommitOutcome, ContactStore, ConversationState,
    CursorFilter, DeviceKeys, DeviceRecord, Feed, GatewayId, KeyDirectory, LogPosition, MessageStore,
    PageLimit, Presence, PushSink, RecordBatch, Registry, Reincarnation, Route, Router, SenderFilter,
    StoreIdentity,
};
use chat_core::contact::{Contact, ContactChange, Contacts};
use chat_core::device_list::SignedDeviceList;
use chat_core::envelope::{AckUpTo, InboxPosition, InboxRow};
use chat_core::presence::{PresenceAudience, UserPresence};
use chat_core::wire::{Bundle, PrekeyUpload};
use chat_core::{
    ConversationId, DeviceAddress, Error, Handle, Incarnation, InstallationId, MessageId, Result, Seq, UserId,
};

/// The same backends, each call timed, but those of the node link, which measures itself, and of the sink of pushes,
/// which the link has, too: [`MeteredPush`].
pub fn metered(backends: Backends) -> Backends {
    Backends {
        store: Arc::new(MeteredStore(backends.store.clone())),
        router: Arc::new(MeteredRouter(backends.router.clone())),
        registry: Arc::new(MeteredRegistry(backends.registry.clone())),
        keys: Arc::new(MeteredKeys(backends.keys.clone())),
        contacts: Arc::new(MeteredContacts(backends.contacts.clone())),
        presence: Arc::new(MeteredPresence(backends.presence.clone())),
        ..backends
    }
}

/// Records the duration of a call, and its error if it failed.
fn record_outcome(name: &'static str, call: &'static str, start: Instant, error: Option<&Error>) {
    metrics::histogram!(name, "call" => call).record(start.elapsed().as_secs_f64());
    if let Some(error) = error {
        let kind = format!("{:?}", error.kind()).to_lowercase();
        metrics::counter!("chat_backend_errors_total", "call" => call, "kind" => kind).increment(1);
    }
}

async fn timed<T>(
    name: &'static str,
    call: &'static str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let start = Instant::now();
    let outcome = work.await;
    record_outcome(name, call, start, outcome.as_ref().err());
    outcome
}

const STORE: &str = "chat_store_seconds";
const LOG: &str = "chat_log_seconds";
const REGISTRY: &str = "chat_registry_seconds";
const KEYS: &str = "chat_keys_seconds";
const CONTACTS: &str = "chat_contacts_seconds";
const PRESENCE: &str = "chat_presence_seconds";
const PUSH: &str = "chat_push_seconds";

#[derive(Debug)]
struct MeteredStore(Arc<dyn MessageStore>);

#[async_trait]
impl MessageStore for MeteredStore {
    fn identity(&self) -> StoreIdentity {
        self.0.identity()
    }

    async fn state(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
        next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        timed(STORE, "state", self.0.state(conversation, senders, next)).await
    }

    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        timed(STORE, "find", self.0.find(conversation, sender, id)).await
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let rows: usize = commits.iter().map(|commit| commit.history.len()).sum();
        metrics::histogram!("chat_commit_messages").record(rows as f64);
        metrics::histogram!("chat_commit_conversations").record(commits.len() as f64);
        let inbox_rows: usize = commits.iter().map(|commit| commit.inbox.len()).sum();
        metrics::counter!("chat_inbox_rows_total").increment(inbox_rows as u64);
        let start = Instant::now();
        let outcomes = self.0.commit(commits).await;
        // Count one error per batch, because the whole batch is retried.
        record_outcome(STORE, "commit", start, outcomes.iter().find_map(|outcome| outcome.as_ref().err()));
        outcomes
    }

    async fn make_visible(&self, commits: Vec<Commit>) -> Result<()> {
        timed(STORE, "make_visible", self.0.make_visible(commits)).await
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        timed(STORE, "ack", self.0.ack(device, generation, acks)).await
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        timed(STORE, "inbox", self.0.inbox(device, after, limit)).await
    }

    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        timed(STORE, "history", self.0.history(conversation, before, limit)).await
    }

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        timed(STORE, "history_after", self.0.history_after(conversation, after, limit)).await
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        timed(STORE, "feeds", self.0.feeds(device)).await
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        timed(STORE, "generation", self.0.generation(device)).await
    }

    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord> {
        timed(STORE, "device", self.0.device(device, cursors)).await
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        timed(STORE, "expire", self.0.expire(before_us, limit)).await
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        timed(STORE, "expire_history", self.0.expire_history(before_us, limit)).await
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        timed(STORE, "expire_messages", self.0.expire_messages(now_us, limit)).await
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        timed(STORE, "clear_history", self.0.clear_history(conversation, user, through)).await
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        timed(STORE, "cleared", self.0.cleared(conversation, user)).await
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        timed(STORE, "erase", self.0.erase(device)).await
    }
}

#[derive(Debug)]
struct MeteredRouter(Arc<dyn Router>);

#[async_trait]
impl Router for MeteredRouter {
    fn shards(&self) -> usize {
        self.0.shards()
    }

    async fn append(&self, command: Command) -> Result<()> {
        timed(LOG, "append", self.0.append(command)).await
    }

    async fn next(&self, shard: usize) -> Result<RecordBatch> {
        let taken = self.0.next(shard).await?;
        metrics::histogram!("chat_log_batch_records").record(taken.records.len() as f64);
        Ok(taken)
    }

    async fn commit(&self, shard: usize, position: LogPosition) -> Result<()> {
        self.0.commit(shard, position).await
    }

    async fn rewind(&self, shard: usize) -> Result<()> {
        metrics::counter!("chat_log_rewinds_total").increment(1);
        self.0.rewind(shard).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

#[derive(Debug)]
struct MeteredRegistry(Arc<dyn Registry>);

#[async_trait]
impl Registry for MeteredRegistry {
    async fn bind(&self, device: DeviceAddress, gateway: GatewayId) -> Result<u64> {
        timed(REGISTRY, "bind", self.0.bind(device, gateway)).await
    }

    async fn renew(&self, route: Route) -> Result<()> {
        timed(REGISTRY, "renew", self.0.renew(route)).await
    }

    async fn unbind(&self, route: Route) -> Result<()> {
        timed(REGISTRY, "unbind", self.0.unbind(route)).await
    }

    async fn announce(&self, gateway: GatewayId, address: &str) -> Result<()> {
        timed(REGISTRY, "announce", self.0.announce(gateway, address)).await
    }

    async fn address(&self, gateway: GatewayId) -> Result<Option<String>> {
        timed(REGISTRY, "address", self.0.address(gateway)).await
    }

    async fn lookup(&self, users: &[UserId]) -> Result<Vec<Route>> {
        timed(REGISTRY, "lookup", self.0.lookup(users)).await
    }

    async fn follow(&self, feed: ConversationId, gateway: GatewayId) -> Result<()> {
        timed(REGISTRY, "follow", self.0.follow(feed, gateway)).await
    }

    async fn followers(&self, feed: ConversationId) -> Result<Vec<GatewayId>> {
        timed(REGISTRY, "followers", self.0.followers(feed)).await
    }
}

#[derive(Debug)]
struct MeteredKeys(Arc<dyn KeyDirectory>);

#[async_trait]
impl KeyDirectory for MeteredKeys {
    async fn register(&self, handle: &Handle, list: &SignedDeviceList) -> Result<()> {
        timed(KEYS, "register", self.0.register(handle, list)).await
    }

    async fn resolve(&self, handle: &Handle) -> Result<Option<UserId>> {
        timed(KEYS, "resolve", self.0.resolve(handle)).await
    }

    async fn handle_of(&self, user: UserId) -> Result<Option<Handle>> {
        timed(KEYS, "handle_of", self.0.handle_of(user)).await
    }

    async fn list(&self, user: UserId) -> Result<Option<SignedDeviceList>> {
        timed(KEYS, "list", self.0.list(user)).await
    }

    async fn list_version(&self, user: UserId, version: u64) -> Result<Option<SignedDeviceList>> {
        timed(KEYS, "list_version", self.0.list_version(user, version)).await
    }

    async fn put_list(&self, list: &SignedDeviceList, key: AccountKey) -> Result<()> {
        timed(KEYS, "put_list", self.0.put_list(list, key)).await
    }

    async fn upload(&self, device: InstallationId, upload: &PrekeyUpload) -> Result<u64> {
        timed(KEYS, "upload", self.0.upload(device, upload)).await
    }

    async fn claim(&self, device: InstallationId, parts: BundleParts) -> Result<Option<Bundle>> {
        timed(KEYS, "claim", self.0.claim(device, parts)).await
    }

    async fn device(&self, device: InstallationId) -> Result<DeviceKeys> {
        timed(KEYS, "stock", self.0.device(device)).await
    }

    async fn reincarnate(&self, device: InstallationId, wish: Reincarnation) -> Result<Incarnation> {
        timed(KEYS, "reincarnate", self.0.reincarnate(device, wish)).await
    }

    async fn delete(&self, user: UserId) -> Result<Vec<InstallationId>> {
        timed(KEYS, "delete", self.0.delete(user)).await
    }

    async fn revoke(&self, user: UserId, not_before_ms: u64) -> Result<()> {
        timed(KEYS, "revoke", self.0.revoke(user, not_before_ms)).await
    }

    async fn revocations(&self, since_ms: u64) -> Result<Vec<(UserId, u64)>> {
        timed(KEYS, "revocations", self.0.revocations(since_ms)).await
    }
}

#[derive(Debug)]
struct MeteredContacts(Arc<dyn ContactStore>);

#[async_trait]
impl ContactStore for MeteredContacts {
    async fn contact(&self, owner: UserId, other: UserId) -> Result<Contact> {
        timed(CONTACTS, "contact", self.0.contact(owner, other)).await
    }

    async fn change(&self, owner: UserId, other: UserId, change: ContactChange, limit: usize) -> Result<u64> {
        timed(CONTACTS, "change", self.0.change(owner, other, change, limit)).await
    }

    async fn audience(&self, owner: UserId) -> Result<PresenceAudience> {
        timed(CONTACTS, "audience", self.0.audience(owner)).await
    }

    async fn set_audience(&self, owner: UserId, audience: PresenceAudience) -> Result<u64> {
        timed(CONTACTS, "set_audience", self.0.set_audience(owner, audience)).await
    }

    async fn version(&self, owner: UserId) -> Result<u64> {
        timed(CONTACTS, "version", self.0.version(owner)).await
    }

    async fn contacts(&self, owner: UserId) -> Result<Contacts> {
        timed(CONTACTS, "contacts", self.0.contacts(owner)).await
    }

    async fn erase(&self, owner: UserId) -> Result<()> {
        timed(CONTACTS, "erase", self.0.erase(owner)).await
    }
}

#[derive(Debug)]
struct MeteredPresence(Arc<dyn Presence>);

#[async_trait]
impl Presence for MeteredPresence {
    async fn beat(&self, user: UserId, device: InstallationId, alive: bool, now_ms: u64) -> Result<()> {
        timed(PRESENCE, "beat", self.0.beat(user, device, alive, now_ms)).await
    }

    async fn query(&self, users: &[UserId], now_ms: u64) -> Result<Vec<UserPresence>> {
        timed(PRESENCE, "query", self.0.query(users, now_ms)).await
    }

    async fn forget(&self, user: UserId) -> Result<()> {
        timed(PRESENCE, "forget", self.0.forget(user)).await
    }
}

/// A push sink whose calls are timed.
#[derive(Debug)]
pub struct MeteredPush<S>(pub S);

#[async_trait]
impl<S: PushSink> PushSink for MeteredPush<S> {
    async fn wake(&self, devices: &[DeviceAddress]) -> Result<()> {
        timed(PUSH, "wake", self.0.wake(devices)).await
    }
}
