use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::future::{join, join_all, try_join_all};
use parking_lot::Mutex;

use super::admission::{Room, early_refusal, refusal_of};
use super::batch::{Batch, Remembered, States, dedup_candidates, id_key};
use super::counters::Counters;
use super::device_linking::Offer;
use super::feed_pages::FeedPages;
use super::feed_wakes::FeedWakes;
use super::rates::{Limits, Rates};
use super::shard::{Decision, IdKey, decide};
use super::{Hub, MessageTrace, Stage, plan};
use crate::backend::{
    Backends, Command, Commit, CommitOutcome, ConversationState, GatewayId, Head, InboxPage, LogPosition,
    Member, Operation, PageLimit, Record, RecordBatch, Roster, Route, Rules, SenderFilter, StoreIdentity,
};
use crate::model::contact::Contact;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{AckUpTo, InboxPosition, InboxRow, Publish, Refusal, SendPosition, Stored};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, Seq, UserId};
use crate::model::limits::{FEED_DEVICES, MAX_NUMBER};
use crate::model::presence::PresenceAudience;
use crate::model::session_event::SessionEvent;
use crate::model::time::WallClock;
use crate::mutant::Mutant;

/// Settings of an [`Engine`].
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct EngineSettings {
    /// Gateway id of this process.
    pub gateway: GatewayId,
    /// Authorities (`host:port`) that clients dial to reach this server. Empty accepts any, which is safe
    /// only where no third party can relay a challenge: on loopback.
    pub authorities: Vec<String>,
    /// Batches of events queued per session. When a batch does not fit, the session reads its inbox.
    pub session_queue: usize,
    pub rates: Rates,
    /// Milliseconds for which a device list, or a decision about a contact, that was read counts as the newest. `u64::MAX`
    /// is safe only where no other process changes them.
    pub lists_ms: u64,
    /// Trace events to keep for [`explain`](Engine::explain), about 100 bytes each.
    pub trace: usize,
    /// The latest rules that this gateway asks for: a message that needs later ones is refused (`Unsupported`). While nodes
    /// of the release before run, set those of that release. By default [`Rules::OPTIONS`]: groups must be enabled, because
    /// a user can not yet refuse to be added to one.
    pub rules: Rules,
    /// Number of devices above which a group becomes a feed: its messages are in history only, and the devices read them
    /// from there, so that the rows written for a message do not grow with the group. 0: no group becomes one.
    pub feed_devices: u32,
    /// The retention time that sessions announce to their devices, in milliseconds; 0 announces none. A device reports
    /// rows that expire earlier, so [`sweep`](Engine::sweep) must not remove them earlier.
    pub retention_ms: u64,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            rules: Rules::CHANNELS,
            gateway: GatewayId(1),
            authorities: Vec::new(),
            session_queue: 64,
            rates: Rates::default(),
            lists_ms: u64::MAX,
            trace: 65_536,
            feed_devices: FEED_DEVICES,
            retention_ms: 0,
        }
    }
}

/// The delivery engine: straight-line code around two pure functions, [`decide`] and [`plan`].
///
/// It spawns no tasks. The embedder runs [`run_shard`](Self::run_shard) for every shard and calls the other
/// methods from its connections.
///
/// ```
/// use chat_core::{Backends, Engine, EngineSettings, memory::ManualClock};
/// use std::sync::Arc;
/// let engine = Engine::new(Backends::memory(), EngineSettings::default(), Arc::new(ManualClock::default()));
/// assert_eq!(engine.shards(), 4);
/// ```
#[derive(Debug)]
pub struct Engine {
    pub(super) backends: Backends,
    pub(super) settings: EngineSettings,
    clock: Arc<dyn WallClock>,
    pub(super) hub: Hub,
    /// Cached device lists, and the time each was read, in milliseconds.
    pub(super) lists: DashMap<UserId, (Arc<SignedDeviceList>, u64)>,
    /// Incremented when cached device lists may be stale. A list whose read began before that is not cached.
    pub(super) lists_changed: AtomicU64,
    /// Cached users of conversations, for receipts and typing notifications, and until when they count, in milliseconds.
    pub(super) members: DashMap<ConversationId, (Arc<[UserId]>, u64)>,
    /// The feeds that this gateway follows, and when the registry last learned it, in milliseconds.
    pub(super) followed: DashMap<ConversationId, u64>,
    pub(super) feed_wakes: FeedWakes,
    pub(super) feed_pages: FeedPages,
    /// Cached rosters of groups.
    pub(super) rosters: DashMap<ConversationId, Arc<Roster>>,
    /// Pairs of users of which the first wrote in their direct conversation.
    pub(super) wrote: DashMap<(UserId, UserId), ()>,
    /// Cached decisions of the first user about the second, and the time each was read, in milliseconds.
    pub(super) decided: DashMap<(UserId, UserId), (Contact, u64)>,
    /// Cached audiences of the presence of users, and the time each was read, in milliseconds.
    pub(super) audiences: DashMap<UserId, (PresenceAudience, u64)>,
    /// Whether the second user may learn the presence of the first one, the value of `decisions_changed` before the decision, and
    /// until when it counts, in milliseconds.
    pub(super) presence_shown: DashMap<(UserId, UserId), (bool, u64, u64)>,
    /// Incremented when cached decisions or audiences may be stale.
    pub(super) decisions_changed: AtomicU64,
    /// The time before which no token of a user counts, in milliseconds since 1970.
    pub(super) revoked: DashMap<UserId, u64>,
    /// When all revocations were last read.
    pub(super) revocations_read: Mutex<Option<u64>>,
    /// Pending link offers, by rendezvous.
    pub(super) offers: DashMap<Bytes, Offer>,
    pub(super) limits: Limits,
    /// How much of the inboxes was in use when this node read it.
    pub(super) room: DashMap<InstallationId, Room>,
    /// Cached conversation states of each shard.
    shards: Vec<Mutex<Remembered>>,
    /// Differs for each run of a process.
    pub(super) instance: u64,
    pub(super) counters: Counters,
    pub(super) trace: MessageTrace,
    /// Ids that the broken variants of the engine keep in memory only.
    #[cfg(feature = "sim")]
    mutant_ids: Mutex<HashMap<IdKey, Seq>>,
}

pub(super) fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

impl Engine {
    /// Creates an engine on these backends.
    pub fn new(backends: Backends, settings: EngineSettings, clock: Arc<dyn WallClock>) -> Self {
        let hub = Hub::new(settings.session_queue);
        let limits = Limits::new(&settings.rates);
        let shards = (0..backends.router.shards()).map(|_| Mutex::default()).collect();
        let trace = MessageTrace::new(settings.trace);
        // Other gateways of a cluster may start at the same time.
        let instance = ((clock.now_us() ^ settings.gateway.0.rotate_left(20)) & MAX_NUMBER).max(1);
        Self {
            instance,
            backends,
            settings,
            clock,
            hub,
            lists: DashMap::new(),
            lists_changed: AtomicU64::new(0),
            members: DashMap::new(),
            followed: DashMap::new(),
            feed_wakes: FeedWakes::default(),
            feed_pages: FeedPages::default(),
            rosters: DashMap::new(),
            wrote: DashMap::new(),
            decided: DashMap::new(),
            audiences: DashMap::new(),
            presence_shown: DashMap::new(),
            decisions_changed: AtomicU64::new(0),
            revoked: DashMap::new(),
            revocations_read: Mutex::default(),
            offers: DashMap::new(),
            limits,
            room: DashMap::new(),
            shards,
            counters: Counters::default(),
            trace,
            #[cfg(feature = "sim")]
            mutant_ids: Mutex::default(),
        }
    }

    /// Returns the number of shards to run.
    pub fn shards(&self) -> usize {
        self.backends.router.shards()
    }

    /// Returns the sessions of this process.
    pub const fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Returns the id of this node.
    pub const fn gateway_id(&self) -> GatewayId {
        self.settings.gateway
    }

    /// Returns the counters of the engine.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the identity of the store.
    pub fn identity(&self) -> StoreIdentity {
        self.backends.store.identity()
    }

    /// Returns the wall-clock time in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }

    pub(super) fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// Checks a publish and returns the command to [append](Self::append).
    ///
    /// # Errors
    /// The refusal, if the gateway may refuse by itself.
    pub async fn admit_publish(&self, sender: DeviceAddress, publish: Publish) -> Result<Command, Refusal> {
        let number = publish.number;
        count(&self.counters.published, 1);
        let accepted = Stage::Accepted { conversation: number.conversation, sender: sender.installation };
        self.record(number.message_id, accepted);
        self.pace(sender, &publish).await.map_err(Refusal::Throttled)?;
        let command = self.admit(sender, publish).await.map_err(|error| refusal_of(&error))?;
        if let Some(refusal) = early_refusal(&command) {
            return Err(refusal);
        }
        self.pace_bytes(&command).map_err(Refusal::Throttled)?;
        Ok(self.expecting(command))
    }

    /// Checks a skip and returns the command to [append](Self::append).
    ///
    /// # Errors
    /// The refusal, if the gateway may refuse by itself.
    pub async fn admit_skip(&self, sender: DeviceAddress, number: SendPosition) -> Result<Command, Refusal> {
        self.pace_skip(sender, &number).await.map_err(Refusal::Throttled)?;
        let own = self.sender_recipient(sender).await.map_err(|error| refusal_of(&error))?;
        let operation = Operation::Skip(number);
        Ok(self.expecting(Command::new(sender, operation, own, Rules::BASIC)))
    }

    /// Returns the sender's own devices as the recipients of a skip. The state has the other members.
    async fn sender_recipient(&self, sender: DeviceAddress) -> Result<Vec<crate::backend::RecipientDevices>> {
        let list = self.device_list(sender.user).await?;
        Ok(list
            .iter()
            .map(|list| crate::backend::RecipientDevices {
                user: sender.user,
                list_version: list.list().version,
                installations: list.list().addresses().map(|d| d.installation).collect(),
            })
            .collect())
    }

    /// Sets the route that waits for the answer, so that the answer arrives even if the registry has no
    /// route.
    fn expecting(&self, command: Command) -> Command {
        let is_group = command.conversation().has_roster();
        let feed_devices = if is_group { self.settings.feed_devices } else { 0 };
        Command { reply: self.hub.route(command.sender.installation), feed_devices, ..command }
    }

    /// Appends a command to the log. It takes its place in the order of appends when this is first polled;
    /// a log may take its time to confirm it.
    ///
    /// # Errors
    /// [`Refusal::Retry`]: the record may be in the log or not, so the device must repeat the same ids.
    pub async fn append(&self, command: Command) -> Result<(), Refusal> {
        let message_id = command.number().map(|number| number.message_id);
        let Err(error) = self.backends.router.append(command).await else {
            message_id.into_iter().for_each(|id| self.record(id, Stage::Logged));
            return Ok(());
        };
        Err(Refusal::Retry(if error.kind() == ErrorKind::Throttled { 200 } else { 1000 }))
    }

    /// Releases the shards of this process; see [`Router::close`](crate::backend::Router::close).
    pub async fn close(&self) {
        self.backends.router.close().await;
    }

    /// Applies the records of a shard until an error occurs.
    ///
    /// # Errors
    /// `Closed` when the router was closed. Any other error stops the shard: it has neither answered nor
    /// committed the records that it could not make durable, and the caller may run it again.
    pub async fn run_shard(&self, shard: usize) -> Result<()> {
        loop {
            self.process_batch(shard).await?;
        }
    }

    /// Applies one batch of a shard's records: decide, commit, answer, deliver.
    ///
    /// # Errors
    /// As [`run_shard`](Self::run_shard). The router redelivers the batch.
    pub async fn process_batch(&self, shard: usize) -> Result<()> {
        let RecordBatch { ownership_epoch, records } = self.backends.router.next(shard).await?;
        let last = records.last().map_or(LogPosition::default(), |record| record.position);
        let mut states = self.remembered(shard, ownership_epoch);
        let applied = self.apply(records, &mut states).await;
        if applied.is_ok() {
            self.remember_states(shard, ownership_epoch, states);
        }
        if let Err(error) = applied {
            if Mutant::CommitOnStoreError.is_active() {
                self.backends.router.commit(shard, last).await?;
            } else {
                self.backends.router.rewind(shard).await?;
            }
            return Err(error);
        }
        self.backends.router.commit(shard, last).await
    }

    /// Takes the cached states of a shard, if they belong to this ownership epoch.
    fn remembered(&self, shard: usize, ownership_epoch: u64) -> States {
        let Some(known) = self.shards.get(shard) else { return States::new() };
        let known = std::mem::take(&mut *known.lock());
        if known.ownership_epoch == ownership_epoch || Mutant::StatesOutliveOwnership.is_active() {
            known.states
        } else {
            States::new()
        }
    }

    fn remember_states(&self, shard: usize, ownership_epoch: u64, states: States) {
        const MAX_STATES: usize = 10_000;
        if let Some(known) = self.shards.get(shard)
            && states.len() <= MAX_STATES
        {
            *known.lock() = Remembered { ownership_epoch, states };
        }
    }

    async fn apply(&self, records: Vec<Record>, states: &mut States) -> Result<()> {
        let mut batch = Batch { states: std::mem::take(states), ..Batch::default() };
        let found = self.read_before(&mut batch.states, &records).await?;
        for record in &records {
            self.decide(&mut batch, record, &found);
        }
        if Mutant::AckBeforeSync.is_active() {
            self.deliver_batch(&mut batch, &[]).await;
            batch.events.clear();
        }
        let delivered = self.commit(&mut batch).await?;
        self.deliver_batch(&mut batch, &delivered).await;
        *states = batch.states;
        Ok(())
    }

    /// Commits a batch and makes it visible to every reader. Returns the routes that got their events
    /// meanwhile.
    ///
    /// Connected devices get their events as soon as the commit is durable. Before the commit is visible, a
    /// device that connects may miss the row in its inbox, and a lagged session may read its inbox too early:
    /// the first gets the events after the commit is visible, the second reads its inbox again.
    async fn commit(&self, batch: &mut Batch) -> Result<Vec<Route>> {
        let commits = batch.take_commits();
        if commits.is_empty() {
            self.record_stages(batch);
            return Ok(Vec::new());
        }
        count(&self.counters.batches, 1);
        let (outcomes, routes) = join(self.backends.store.commit(commits), self.routes(batch, &[])).await;
        let (mut durable, mut failed) = (Vec::new(), None);
        for outcome in outcomes {
            match outcome {
                Ok(CommitOutcome::Durable(commit)) => durable.push(*commit),
                Ok(CommitOutcome::Visible) => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            // The router redelivers the whole batch. The durable commits can become visible before that.
            let _ = self.make_visible(durable).await;
            return Err(error);
        }
        self.record_stages(batch);
        let plan = plan(&batch.events, &routes, &[]);
        let feeds = std::mem::take(&mut batch.feeds);
        if !feeds.is_empty() && !durable.is_empty() {
            // A reader that connects now must find the rows of a feed in history: it gets no event for them afterwards.
            self.make_visible(std::mem::take(&mut durable)).await?;
        }
        let deliver = self.deliver_with_feeds(plan.deliveries, feeds, &routes);
        let (delivered, visible) = join(deliver, self.make_visible(durable)).await;
        visible.map(|()| delivered)
    }

    async fn make_visible(&self, commits: Vec<Commit>) -> Result<()> {
        if commits.is_empty() {
            return Ok(());
        }
        let visible = self.backends.store.make_visible(commits).await;
        if Mutant::VisibilityErrorIgnored.is_active() { Ok(()) } else { visible }
    }

    fn record_stages(&self, batch: &mut Batch) {
        let now = self.now_us();
        batch.stages.drain(..).for_each(|(id, stage)| self.trace.record(id, now, stage));
    }

    /// Reads the inputs of the decisions: states that are not cached, then the seqs of ids that may be stored
    /// already.
    async fn read_before(&self, states: &mut States, records: &[Record]) -> Result<HashMap<IdKey, Seq>> {
        records.iter().try_for_each(|record| check_rules(record.command.rules))?;
        let unknown = unknown_senders(states, records).into_iter();
        let read = unknown.map(|(id, (next, senders))| async move {
            let filter = SenderFilter::Of(&senders);
            let read = self.backends.store.state(id, filter, Some(next)).await?.unwrap_or_default();
            check_rules(read.head.rules)?;
            Ok::<_, Error>((id, senders, read))
        });
        // Await all reads: one that fails must not keep another from finishing a commit.
        for read in join_all(read).await {
            let (id, senders, read) = read?;
            remember(states.entry(id).or_default(), &senders, read);
        }
        let keys = dedup_candidates(states, records);
        let found = keys.into_iter().map(|key| async move { Ok::<_, Error>((key, self.find(key).await?)) });
        let found = try_join_all(found).await?;
        Ok(found.into_iter().filter_map(|(key, seq)| Some((key, seq?))).collect())
    }

    fn decide(&self, batch: &mut Batch, record: &Record, found: &HashMap<IdKey, Seq>) {
        let command = &record.command;
        let (sender, conversation) = (command.sender, command.conversation());
        let key = id_key(record);
        let found = key.and_then(|key| batch.ids.get(&key).or_else(|| found.get(&key)).copied());
        batch.replies.extend(command.reply);
        let Some(state) = batch.states.get(&conversation) else {
            return;
        };
        let (is_feed, changed_at) = (state.head.is_feed, state.roster.changed_at);
        let decision = decide(state, record, found);
        let Some(number) = command.number().copied() else {
            if let Decision::Subscribe(commit) = decision {
                if commit.feeds.iter().any(|change| change.joins) {
                    // The device reads where it joins.
                    batch.events.push((sender, SessionEvent::Lagged));
                }
                batch.feed(conversation, changed_at).changes.extend(&commit.feeds);
                batch.add(commit);
            }
            return;
        };
        match decision {
            Decision::Subscribe(_) | Decision::Ignore => {}
            Decision::Store(seq, commit) => {
                batch.ids.extend(key.map(|key| (key, seq)));
                count(&self.counters.stored, 1);
                #[cfg(feature = "sim")]
                self.mutant_ids.lock().extend(key.map(|key| (key, seq)));
                let time_us = commit.state.head.time_us;
                batch.events.push((sender, SessionEvent::Own(self.stored(&number, seq), time_us)));
                let stored = Stage::Stored {
                    conversation: number.conversation,
                    sender: sender.installation,
                    seq,
                    position: record.position,
                    logged_us: record.appended_us,
                    rows: commit.inbox.len() as u32,
                };
                batch.stages.push((number.message_id, stored));
                let others: Vec<_> =
                    commit.inbox.iter().filter(|(device, _)| *device != sender.installation).collect();
                if !others.is_empty() {
                    let mut devices = addresses(&state.roster.members, command);
                    if let Some(roster) = &commit.state.roster {
                        devices.extend(addresses(&roster.members, command));
                    }
                    let joins_channel = |installation: &InstallationId| {
                        let mut joins = commit.feeds.iter().filter(|change| change.joins);
                        conversation.is_channel() && joins.any(|change| change.device == *installation)
                    };
                    let row = |(installation, row): &(InstallationId, InboxRow)| {
                        let event = match joins_channel(installation) {
                            true => SessionEvent::Lagged,
                            false => SessionEvent::Row(row.clone()),
                        };
                        Some((*devices.get(installation)?, event))
                    };
                    batch.events.extend(others.into_iter().filter_map(row));
                }
                // The last row of a removed reader is in history.
                batch.events.extend(command.removed.iter().map(|device| (*device, SessionEvent::Lagged)));
                if commit.state.head.is_feed {
                    let feed = batch.feed(number.conversation, changed_at);
                    feed.changed_after =
                        commit.state.roster.as_ref().map_or(changed_at, |new| new.changed_at);
                    feed.changes.extend(&commit.feeds);
                    if is_feed {
                        feed.rows.extend(commit.history.iter().cloned());
                        feed.named.extend(commit.inbox.iter().map(|(device, row)| (row.seq, *device)));
                    }
                }
                batch.add(commit);
            }
            Decision::Repeat(seq, commit) => {
                count(&self.counters.repeated, 1);
                batch.stages.push((number.message_id, Stage::Repeated { seq }));
                let answer = SessionEvent::Repeated(self.stored(&number, seq));
                batch.events.push((sender, answer));
                if state.head.has_applied(record.position)
                    && matches!(command.operation, Operation::Publish(_))
                {
                    // The record is replayed: the owner that stored it may have crashed before it delivered
                    // the rows.
                    let others = addresses(&state.roster.members, command)
                        .into_values()
                        .filter(|device| *device != sender && !is_feed);
                    let others: Vec<_> =
                        others.filter(|device| batch.looking.insert(device.installation)).collect();
                    batch.events.extend(others.into_iter().map(|device| (device, SessionEvent::Lagged)));
                    if is_feed {
                        batch.feed(number.conversation, changed_at).is_lagged = true;
                    }
                }
                if let Some(commit) = commit {
                    batch.add(commit);
                }
            }
            Decision::Refuse(refusal) => {
                count(&self.counters.refused, 1);
                batch.stages.push((number.message_id, Stage::Refused { reason: refusal.name() }));
                batch.events.push((sender, SessionEvent::Refused(number.subject(), refusal)));
            }
        }
    }

    async fn find(&self, key: IdKey) -> Result<Option<Seq>> {
        #[cfg(feature = "sim")]
        if Mutant::DedupeInMemory.is_active() {
            return Ok(self.mutant_ids.lock().get(&key).copied());
        }
        self.backends.store.find(key.0, key.1, key.2).await
    }

    fn stored(&self, number: &SendPosition, seq: Seq) -> Stored {
        let StoreIdentity { epoch, durability } = self.identity();
        Stored {
            conversation: number.conversation,
            message_id: number.message_id,
            client_seq: number.client_seq,
            incarnation: number.incarnation,
            seq,
            store_epoch: epoch,
            durability,
        }
    }

    pub(super) async fn trim(&self, device: InstallationId, events: &[SessionEvent]) {
        for event in events {
            if let SessionEvent::Row(row) = event {
                let ack = AckUpTo { conversation: row.conversation, seq: row.seq };
                let _ = self.backends.store.ack(device, 0, &[ack]).await;
            }
        }
    }

    /// Returns a page of a device's inbox: the rows after a position. A message whose lifetime has ended is empty, also before
    /// the [sweep](Self::sweep_messages) erases it.
    ///
    /// # Errors
    /// As [`MessageStore::inbox`](crate::backend::MessageStore::inbox).
    pub async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<InboxPage> {
        let feeds = self.follow_feeds(device).await?;
        let mut page = self.read_with_feeds(device, &feeds, after, limit).await?;
        self.hide_disappeared(&mut page.rows);
        Ok(page)
    }

    /// Removes the rows that a device acknowledges, and raises its generation.
    ///
    /// # Errors
    /// As [`MessageStore::ack`](crate::backend::MessageStore::ack).
    pub async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        count(&self.counters.acked, acks.len());
        self.backends.store.ack(device, generation, acks).await
    }
}

/// Fails for rules of a later release: this one must neither decide by them nor write over what they decided.
const fn check_rules(rules: Rules) -> Result<()> {
    if rules.0 <= Rules::CURRENT.0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "the shard needs the rules of a later release: run that release"))
}

/// Returns the senders in each conversation for which the states lack a sender, and the first record of the
/// conversation. It names all senders of the records: the parts of one read belong together.
fn unknown_senders(
    states: &States,
    records: &[Record],
) -> BTreeMap<ConversationId, (LogPosition, Vec<InstallationId>)> {
    let mut named: BTreeMap<ConversationId, (LogPosition, Vec<InstallationId>)> = BTreeMap::new();
    for record in records {
        let (id, sender) = (record.command.conversation(), record.command.sender.installation);
        let (_, senders) = named.entry(id).or_insert((record.position, Vec::new()));
        // A subscription does not depend on what its device sent.
        if record.command.number().is_some() && !senders.contains(&sender) {
            senders.push(sender);
        }
    }
    named.retain(|id, (_, senders)| {
        states.get(id).is_none_or(|state| senders.iter().any(|sender| !state.senders.contains_key(sender)))
    });
    named
}

/// Adds the senders that were read to a remembered state. A sender that does not exist is remembered at position 0.
///
/// If another owner has committed meanwhile, the parts would belong to two states, and a decision on them could be
/// one that no replay makes: the state that was read then replaces the remembered one.
fn remember(known: &mut ConversationState, senders: &[InstallationId], read: ConversationState) {
    let is_first = known.head == Head::default();
    if read.head == known.head || !is_first && Mutant::StatesMixed.is_active() {
        known.senders.extend(read.senders);
    } else {
        *known = read;
    }
    for sender in senders {
        known.senders.entry(*sender).or_default();
    }
}

/// Returns the address of a device for the delivery of events.
pub(super) const fn address(user: UserId, installation: InstallationId) -> DeviceAddress {
    DeviceAddress { user, device: DeviceId::PRIMARY, installation }
}

/// Maps installations to addresses, as far as the members and the command contain them. The device number does
/// not matter for delivery; only the sender's own is the real one.
fn addresses(members: &[Member], command: &Command) -> HashMap<InstallationId, DeviceAddress> {
    let mut known: HashMap<_, _> =
        members.iter().flat_map(|m| m.installations.iter().map(|i| (*i, address(m.user, *i)))).collect();
    known.insert(command.sender.installation, command.sender);
    known
}
