use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dashmap::DashMap;

use super::admission::{refusal_of, refuse_now};
use super::shard::{Decision, IdKey, decide};
use super::{Bound, Event, Hub, plan};
use crate::backend::{
    Backends, Command, Commit, ConversationState, GatewayId, LogPosition, Operation, PageLimit, Record,
    Reincarnation, StoreLife, WantCells,
};
use crate::device_list::SignedDeviceList;
use crate::envelope::{AckOf, InboxRow, Place, Publish, Refusal, SendNumber, Stored, Subject};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ConversationId, ConversationKind, DeviceAddress, InstallationId, Seq, UserId};
use crate::limits::WIRE_VERSION;
use crate::mutant::{Mutant, Mutants};
use crate::signing::{prekeys_transcript, verify};
use crate::time::WallClock;
use crate::wire::{Answer, Ask, Hello, PrekeyUpload, Registration, ServerFrame, Welcome, close};

/// How an [`Engine`] behaves.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct EngineSettings {
    /// This process.
    pub gateway: GatewayId,
    /// The authorities (`host:port`) that clients dial to reach this server; empty means any, which is
    /// only right where nobody else could relay a challenge: on loopback.
    pub authorities: Vec<String>,
    /// Batches of events that may wait for a session. When they do not fit, the session reads its inbox.
    pub session_queue: usize,
    /// Rules to break, in the simulator.
    pub mutants: Mutants,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self { gateway: GatewayId(1), authorities: Vec::new(), session_queue: 64, mutants: Mutants::NONE }
    }
}

/// What a device gets for its `Hello`.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Greeting {
    /// Who it is.
    pub device: DeviceAddress,
    /// What to answer.
    pub welcome: Welcome,
}

/// The delivery engine: straight-line code around two pure functions, [`decide`] and [`plan`].
///
/// It spawns nothing. Whoever embeds it runs [`run_shard`](Self::run_shard) for every shard and calls the
/// rest from its connections.
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
    settings: EngineSettings,
    clock: Arc<dyn WallClock>,
    hub: Hub,
    pub(super) lists: DashMap<UserId, Arc<SignedDeviceList>>,
    /// The users of conversations, for receipts and typing.
    members: DashMap<ConversationId, Arc<[UserId]>>,
    /// Devices that wait to be linked: rendezvous to offer and to whom the answer goes.
    offers: DashMap<Bytes, Offer>,
    counters: Counters,
    /// What the broken variants of the engine keep in memory only.
    #[cfg(feature = "sim")]
    mutant_ids: parking_lot::Mutex<HashMap<IdKey, Seq>>,
}

/// What an engine did since it was made.
#[derive(Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Counters {
    /// Publishes and voids that gateways took.
    pub published: AtomicU64,
    /// Messages that got a place.
    pub stored: AtomicU64,
    /// Repeats that got their original answer.
    pub repeated: AtomicU64,
    /// Publishes refused, *retry* included.
    pub refused: AtomicU64,
    /// Batches committed.
    pub batches: AtomicU64,
    /// Rows told to connected devices.
    pub pushed: AtomicU64,
    /// Devices woken by a push service.
    pub woken: AtomicU64,
    /// Acks taken.
    pub acked: AtomicU64,
}

fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

#[derive(Debug)]
struct Offer {
    offer: Bytes,
    made_ms: u64,
    answer: tokio::sync::mpsc::Sender<Bytes>,
}

/// Milliseconds an offer to be linked stands.
const OFFER_MS: u64 = 10 * 60 * 1000;
/// Offers that may stand at once.
const OFFERS: usize = 10_000;

impl Engine {
    /// An engine on these backends.
    pub fn new(backends: Backends, settings: EngineSettings, clock: Arc<dyn WallClock>) -> Self {
        let hub = Hub::new(settings.session_queue);
        Self {
            backends,
            settings,
            clock,
            hub,
            lists: DashMap::new(),
            members: DashMap::new(),
            offers: DashMap::new(),
            counters: Counters::default(),
            #[cfg(feature = "sim")]
            mutant_ids: parking_lot::Mutex::default(),
        }
    }

    /// How many shards there are to run.
    pub fn shards(&self) -> usize {
        self.backends.router.shards()
    }

    /// The sessions of this process.
    pub const fn hub(&self) -> &Hub {
        &self.hub
    }

    /// What it did so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The life of the store.
    pub fn life(&self) -> StoreLife {
        self.backends.store.life()
    }

    /// The wall clock, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_us() / 1000
    }

    // ---- opening -------------------------------------------------------------------------------------

    /// Opens an account.
    ///
    /// # Errors
    /// What to refuse it with.
    pub async fn register(&self, registration: &Registration) -> Result<UserId, Refusal> {
        let Registration::Account { token, handle, list, replace } = registration else {
            return Err(Refusal::Unsupported);
        };
        let named = self.backends.authenticator.authenticate(token).await.map_err(|_| Refusal::Denied)?;
        if named.is_some_and(|named| named != *handle) {
            return Err(Refusal::Denied);
        }
        if *replace {
            return Err(Refusal::Unsupported);
        }
        self.backends.keys.register(handle, list).await.map_err(|error| refusal_of(&error))?;
        Ok(list.list().user)
    }

    /// Checks who a device is: its token says which user, its signature which device.
    ///
    /// # Errors
    /// The code to close the connection with.
    pub async fn authenticate(&self, hello: &Hello) -> Result<Greeting, u16> {
        let claims = &hello.claims;
        if claims.version != WIRE_VERSION {
            return Err(close::VERSION);
        }
        let known = &self.settings.authorities;
        if !known.is_empty() && !known.contains(&claims.authority) {
            return Err(close::UNAUTHORIZED);
        }
        let later = |_: Error| close::DRAIN;
        let named = match self.backends.authenticator.authenticate(&claims.token).await {
            Ok(named) => named,
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(close::DRAIN),
            Err(_) => return Err(close::UNAUTHORIZED),
        };
        if let Some(handle) = named {
            let user = self.backends.keys.resolve(&handle).await.map_err(later)?;
            if user != Some(claims.user) {
                return Err(close::UNAUTHORIZED);
            }
        }
        let list = self.device_list(claims.user).await.map_err(later)?.ok_or(close::UNAUTHORIZED)?;
        let entry = list.list().device(claims.device).ok_or(close::UNAUTHORIZED)?;
        verify(&entry.device_key, &claims.transcript(), &hello.signature).map_err(|_| close::UNAUTHORIZED)?;
        self.greet(hello, &list, entry.installation()).await.map_err(later)
    }

    /// Compares what an authenticated device claims with what was seen of it.
    pub(crate) async fn greet(
        &self,
        hello: &Hello,
        list: &SignedDeviceList,
        installation: InstallationId,
    ) -> Result<Greeting> {
        let claims = &hello.claims;
        let device = DeviceAddress { user: claims.user, device: claims.device, installation };
        let keys = self.backends.keys.device(device.installation).await?;
        let record = self.backends.store.device(device.installation, WantCells::No).await?;
        let life = self.life();
        let rollback = (claims.generation < record.generation || claims.incarnation < keys.incarnation)
            && hello.store_epoch.is_none_or(|epoch| epoch == life.epoch)
            && !self.settings.mutants.has(Mutant::NoRollbackDetection);
        let welcome = Welcome {
            store_epoch: life.epoch,
            server_time: self.now_ms(),
            rollback,
            incarnation: keys.incarnation,
            prekeys: u32::try_from(keys.prekeys).unwrap_or(u32::MAX),
            list_version: list.list().version,
        };
        Ok(Greeting { device, welcome })
    }

    /// Registers a session: from here on the engine tells it what happens. Comes before the first read of
    /// its inbox, so that nothing falls between the two.
    ///
    /// # Errors
    /// `Unavailable` if the registry cannot be reached.
    pub async fn bind(&self, device: DeviceAddress) -> Result<Bound> {
        let epoch = self.backends.registry.bind(device, self.settings.gateway).await?;
        let bound = self.hub.bind(crate::backend::Route { device, gateway: self.settings.gateway, epoch });
        // Unlinked between its `Hello` and here? Read from the directory: from here on it would be told.
        let list = self.backends.keys.list(device.user).await;
        let listed = |list: &SignedDeviceList| list.list().addresses().any(|known| known == device);
        if !matches!(&list, Ok(Some(list)) if listed(list)) {
            self.unbind(&bound).await;
            return Err(list.err().unwrap_or(Error::new(ErrorKind::Denied, "the device is not listed")));
        }
        let _ = self.backends.presence.beat(device.user, device.installation, true, self.now_ms()).await;
        Ok(bound)
    }

    /// Forgets a session.
    pub async fn unbind(&self, bound: &Bound) {
        let device = bound.route.device;
        if self.hub.unbind(&bound.route) {
            let _ = self.backends.presence.beat(device.user, device.installation, false, self.now_ms()).await;
        }
        let _ = self.backends.registry.unbind(bound.route).await;
    }

    /// Notes that a session is alive.
    pub async fn beat(&self, bound: &Bound) {
        let device = bound.route.device;
        let _ = self.backends.registry.renew(bound.route).await;
        let _ = self.backends.presence.beat(device.user, device.installation, true, self.now_ms()).await;
    }

    /// Reads every device list anew: another process may have changed some.
    pub fn forget_lists(&self) {
        self.lists.clear();
    }

    // ---- sending -------------------------------------------------------------------------------------

    /// Takes a publish to its conversation's shard. Gives an answer only if it is known at once; else the
    /// shard answers through the hub.
    pub async fn publish(&self, sender: DeviceAddress, publish: Publish) -> Option<ServerFrame> {
        let number = publish.number;
        count(&self.counters.published, 1);
        match self.admit(sender, publish).await {
            Ok(command) => match refuse_now(&command) {
                Some(refusal) => Some(refused(&number, refusal)),
                None => self.append(&number, command).await,
            },
            Err(error) => Some(refused(&number, refusal_of(&error))),
        }
    }

    /// Takes a void to its conversation's shard.
    pub async fn void(&self, sender: DeviceAddress, number: SendNumber) -> Option<ServerFrame> {
        match self.sender_recipient(sender).await {
            Ok(own) => {
                let operation = Operation::Void(number);
                self.append(&number, Command { sender, operation, recipients: own, verdict: None }).await
            }
            Err(error) => Some(refused(&number, refusal_of(&error))),
        }
    }

    /// The sender's own devices as the recipients of a void: whoever else takes part, the state knows.
    async fn sender_recipient(&self, sender: DeviceAddress) -> Result<Vec<crate::backend::Recipient>> {
        let list = self.device_list(sender.user).await?;
        Ok(list
            .iter()
            .map(|list| crate::backend::Recipient {
                user: sender.user,
                list_version: list.list().version,
                installations: list.list().addresses().map(|d| d.installation).collect(),
            })
            .collect())
    }

    async fn append(&self, number: &SendNumber, command: Command) -> Option<ServerFrame> {
        // Whatever went wrong, the record may be in the log: the only true answer is "try the same again".
        let error = self.backends.router.append(command).await.err()?;
        let wait = if error.kind() == ErrorKind::Throttled { 200 } else { 1000 };
        Some(refused(number, Refusal::Retry(wait)))
    }

    /// Applies a shard's records for as long as the router lives.
    ///
    /// # Errors
    /// `Closed` when the router shut down; any other error of the store stalls the shard: it has not
    /// answered and not committed what it could not make durable, and may be run again.
    pub async fn run_shard(&self, shard: usize) -> Result<()> {
        loop {
            self.turn_shard(shard).await?;
        }
    }

    /// Applies one batch of a shard's records: decide, commit, answer, deliver.
    ///
    /// # Errors
    /// As [`run_shard`](Self::run_shard). The batch comes again.
    pub async fn turn_shard(&self, shard: usize) -> Result<()> {
        let records = self.backends.router.next(shard).await?;
        let last = records.last().map_or(LogPosition::default(), |record| record.position);
        if let Err(error) = self.apply(records).await {
            if self.settings.mutants.has(Mutant::CommitOnStoreError) {
                self.backends.router.commit(shard, last).await?;
            } else {
                self.backends.router.rewind(shard).await?;
            }
            return Err(error);
        }
        self.backends.router.commit(shard, last).await
    }

    async fn apply(&self, records: Vec<Record>) -> Result<()> {
        let mut batch = Batch::default();
        for record in &records {
            self.decide(&mut batch, record).await?;
        }
        if self.settings.mutants.has(Mutant::AckBeforeSync) {
            self.deliver(std::mem::take(&mut batch.events)).await;
        }
        let commits: Vec<Commit> = batch.order.iter().filter_map(|id| batch.commits.remove(id)).collect();
        if !commits.is_empty() {
            count(&self.counters.batches, 1);
            for outcome in self.backends.store.commit(commits).await {
                outcome?;
            }
        }
        self.deliver(batch.events).await;
        Ok(())
    }

    async fn decide(&self, batch: &mut Batch, record: &Record) -> Result<()> {
        let command = &record.command;
        let number = *command.number();
        let sender = command.sender;
        let key: IdKey = (number.conversation, sender.installation, number.message_id);
        if let std::collections::hash_map::Entry::Vacant(e) = batch.states.entry(number.conversation) {
            let state = self.backends.store.state(number.conversation).await?.unwrap_or_default();
            e.insert(state);
        }
        let found = match batch.ids.get(&key) {
            Some(seq) => Some(*seq),
            None => self.find(key).await?,
        };
        let Some(state) = batch.states.get(&number.conversation) else {
            return Ok(());
        };
        match decide(state, record, found, self.settings.mutants) {
            Decision::Store(seq, commit) => {
                batch.ids.insert(key, seq);
                count(&self.counters.stored, 1);
                #[cfg(feature = "sim")]
                self.mutant_ids.lock().insert(key, seq);
                let time_us = commit.state.head.time_us;
                batch.events.push((sender, Event::Own(self.stored(&number, seq), time_us)));
                let devices = addresses(&commit.state, command);
                for (installation, row) in &commit.inbox {
                    if *installation != sender.installation
                        && let Some(device) = devices.get(installation)
                    {
                        batch.events.push((*device, Event::Row(row.clone())));
                    }
                }
                batch.add(commit);
            }
            Decision::Repeat(seq, commit) => {
                count(&self.counters.repeated, 1);
                let answer = Event::Answer(ServerFrame::Stored(self.stored(&number, seq)));
                batch.events.push((sender, answer));
                if let Some(commit) = commit {
                    batch.add(commit);
                }
            }
            Decision::Refuse(refusal) => {
                count(&self.counters.refused, 1);
                batch.events.push((sender, Event::Answer(refused(&number, refusal))));
            }
        }
        Ok(())
    }

    async fn find(&self, key: IdKey) -> Result<Option<Seq>> {
        #[cfg(feature = "sim")]
        if self.settings.mutants.has(Mutant::DedupeInMemory) {
            return Ok(self.mutant_ids.lock().get(&key).copied());
        }
        self.backends.store.find(key.0, key.1, key.2).await
    }

    fn stored(&self, number: &SendNumber, seq: Seq) -> Stored {
        let StoreLife { epoch, durability } = self.life();
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

    /// Tells connected devices, wakes the others. Nothing here may fail a message: it is stored.
    async fn deliver(&self, events: Vec<(DeviceAddress, Event)>) {
        if events.is_empty() {
            return;
        }
        let users: HashSet<UserId> = events.iter().map(|(device, _)| device.user).collect();
        let users: Vec<UserId> = users.into_iter().collect();
        let routes = self.backends.registry.lookup(&users).await.unwrap_or_default();
        let plan = plan(events, &routes);
        count(&self.counters.woken, plan.wake.len());
        for (route, events) in plan.tell {
            count(&self.counters.pushed, events.len());
            if self.settings.mutants.has(Mutant::TrimOnPush) {
                self.trim(route.device.installation, &events).await;
            }
            if !self.hub.tell(route.device.installation, events) {
                let _ = self.backends.registry.unbind(route).await;
            }
        }
        if !plan.wake.is_empty() {
            let _ = self.backends.push.wake(&plan.wake).await;
        }
    }

    async fn trim(&self, device: InstallationId, events: &[Event]) {
        for event in events {
            if let Event::Row(row) = event {
                let ack = AckOf { conversation: row.conversation, seq: row.seq };
                let _ = self.backends.store.ack(device, 0, &[ack]).await;
            }
        }
    }

    // ---- receiving -----------------------------------------------------------------------------------

    /// A page of a device's inbox.
    ///
    /// # Errors
    /// As [`MessageStore::inbox`](crate::backend::MessageStore::inbox).
    pub async fn inbox(&self, device: InstallationId, after: Place) -> Result<Vec<InboxRow>> {
        self.backends.store.inbox(device, after, PageLimit::MAX).await
    }

    /// Removes what a device has.
    ///
    /// # Errors
    /// As [`MessageStore::ack`](crate::backend::MessageStore::ack).
    pub async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckOf]) -> Result<()> {
        count(&self.counters.acked, acks.len());
        self.backends.store.ack(device, generation, acks).await
    }

    /// Tells the other users of a conversation how far this one's device has it, or has read it.
    pub async fn receipt(&self, device: DeviceAddress, at: AckOf, read: bool) {
        let (delivered, seen) = if read { (0, at.seq) } else { (at.seq, 0) };
        let frame =
            ServerFrame::Receipt { conversation: at.conversation, user: device.user, delivered, read: seen };
        self.tell_members(device, at.conversation, frame, read).await;
    }

    /// Tells the other users of a conversation that this one is writing.
    pub async fn typing(&self, device: DeviceAddress, conversation: ConversationId) {
        self.tell_members(device, conversation, ServerFrame::Typing(conversation, device.user), false).await;
    }

    async fn tell_members(
        &self,
        from: DeviceAddress,
        conversation: ConversationId,
        frame: ServerFrame,
        own_devices: bool,
    ) {
        let Ok(Some(members)) = self.members_of(conversation).await else {
            return;
        };
        if !members.contains(&from.user) {
            return;
        }
        let others: Vec<UserId> =
            members.iter().filter(|u| own_devices || **u != from.user).copied().collect();
        for route in self.backends.registry.lookup(&others).await.unwrap_or_default() {
            if route.device.installation != from.installation {
                self.hub.tell(route.device.installation, vec![Event::Ephemeral(frame.clone())]);
            }
        }
    }

    async fn members_of(&self, conversation: ConversationId) -> Result<Option<Arc<[UserId]>>> {
        if !matches!(conversation.kind(), Ok(ConversationKind::Direct | ConversationKind::Own)) {
            return Ok(None);
        }
        if let Some(members) = self.members.get(&conversation) {
            return Ok(Some(members.clone()));
        }
        let Some(state) = self.backends.store.state(conversation).await? else {
            return Ok(None);
        };
        let members: Arc<[UserId]> = state.members.iter().map(|m| m.user).collect();
        if self.members.len() > 100_000 {
            self.members.clear();
        }
        // The users of a direct conversation never change once its first message named both.
        if members.len() == 2 || conversation.kind() == Ok(ConversationKind::Own) {
            self.members.insert(conversation, members.clone());
        }
        Ok(Some(members))
    }

    /// Which of these users are present, as far as this device may know: of a user it shares no conversation
    /// with it hears the same as of one that does not exist.
    pub async fn presence(&self, asker: DeviceAddress, users: &[UserId]) -> Vec<(UserId, bool)> {
        let present = self.backends.presence.query(users, self.now_ms()).await.unwrap_or_default();
        let mut answers = Vec::with_capacity(users.len());
        for (user, present) in users.iter().copied().zip(present) {
            let shared = ConversationId::direct(asker.user, user);
            let members = if present { self.members_of(shared).await.ok().flatten() } else { None };
            let known =
                user == asker.user || members.is_some_and(|m| m.contains(&user) && m.contains(&asker.user));
            answers.push((user, present && known));
        }
        answers
    }

    // ---- questions -----------------------------------------------------------------------------------

    /// Answers a question of a device.
    ///
    /// # Errors
    /// What to refuse it with.
    pub async fn answer(&self, device: DeviceAddress, ask: Ask) -> Result<Answer, Refusal> {
        self.try_answer(device, ask).await.map_err(|error| refusal_of(&error))
    }

    async fn try_answer(&self, device: DeviceAddress, ask: Ask) -> Result<Answer> {
        let mut answer = Answer::default();
        match ask {
            Ask::Resolve(handle) => {
                let user = self.backends.keys.resolve(&handle).await?;
                answer.user = Some(user.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such user"))?);
            }
            Ask::Lists(users) => {
                for user in users {
                    if let Some(list) = self.device_list(user).await? {
                        answer.lists.push(SignedDeviceList::clone(&list));
                        answer.handles.push(self.backends.keys.handle_of(user).await?);
                    }
                }
            }
            Ask::PutList(list) => self.put_list(device, &list).await?,
            Ask::Upload(upload) => answer.prekeys = self.upload(device, &upload).await?,
            Ask::Claim(user, installations) => {
                let list = self.device_list(user).await?;
                let wanted: HashSet<InstallationId> = installations.into_iter().collect();
                for installation in wanted {
                    let listed = list
                        .iter()
                        .flat_map(|l| l.list().addresses())
                        .any(|d| d.installation == installation);
                    if listed && installation != device.installation {
                        answer.bundles.extend(self.backends.keys.claim(installation).await?);
                    }
                }
            }
            Ask::History { conversation, before, limit } => {
                let state = self.backends.store.state(conversation).await?;
                if !state.is_some_and(|state| state.members.iter().any(|m| m.user == device.user)) {
                    // The same answer for "not yours" and "not there".
                    return Err(Error::new(ErrorKind::NotFound, "no such conversation"));
                }
                let limit = PageLimit::rows(limit as usize);
                answer.rows = self.backends.store.history(conversation, before, limit).await?;
            }
            Ask::Cells => {
                answer.cells = self.backends.store.device(device.installation, WantCells::All).await?.cells;
            }
            Ask::Reincarnate { nonce, asked, .. } => {
                let wish = Reincarnation { nonce, asked, now_ms: self.now_ms() };
                answer.incarnation = self.backends.keys.reincarnate(device.installation, wish).await?;
            }
            Ask::Offer(rendezvous) => {
                let now = self.now_ms();
                let offer = self.offers.get(&rendezvous).filter(|offer| now < offer.made_ms + OFFER_MS);
                answer.offer = offer
                    .map(|o| o.offer.clone())
                    .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such offer"))?;
            }
            Ask::LinkAnswer(rendezvous, sealed) => {
                let (_, offer) = self
                    .offers
                    .remove(&rendezvous)
                    .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such offer"))?;
                offer
                    .answer
                    .try_send(sealed)
                    .map_err(|_| Error::new(ErrorKind::NotFound, "nobody waits for it"))?;
            }
            Ask::Delivered(conversation) => answer.delivered = self.delivered(device, conversation).await?,
        }
        Ok(answer)
    }

    async fn put_list(&self, device: DeviceAddress, list: &SignedDeviceList) -> Result<()> {
        if list.list().user != device.user {
            return Err(Error::new(ErrorKind::Denied, "the list is another user's"));
        }
        let before = self.device_list(device.user).await?;
        let put = self.backends.keys.put_list(list).await;
        if put.is_err() {
            // It may be stored all the same: what is cached may be old.
            self.lists.remove(&device.user);
        }
        put?;
        let list = self.remember(Arc::new(list.clone()));
        for old in before.iter().flat_map(|before| before.list().addresses()) {
            if !list.list().addresses().any(|d| d.installation == old.installation) {
                self.hub.close(old.installation, close::UNAUTHORIZED);
            }
        }
        let changed = ServerFrame::ListChanged(device.user, list.list().version);
        for own in list.list().addresses() {
            self.hub.tell(own.installation, vec![Event::Ephemeral(changed.clone())]);
        }
        Ok(())
    }

    async fn upload(&self, device: DeviceAddress, upload: &PrekeyUpload) -> Result<u64> {
        let list = self.device_list(device.user).await?;
        let entry = list.iter().find_map(|list| list.list().device(device.device).cloned());
        let entry = entry.ok_or_else(|| Error::new(ErrorKind::Denied, "the device is not listed"))?;
        verify(&entry.device_key, &prekeys_transcript(&upload.signed), &upload.signature)?;
        self.backends.keys.upload(device.installation, upload).await
    }

    async fn delivered(&self, device: DeviceAddress, conversation: ConversationId) -> Result<Seq> {
        let state = self.backends.store.state(conversation).await?.unwrap_or_default();
        if !state.members.iter().any(|m| m.user == device.user) {
            return Err(Error::new(ErrorKind::NotFound, "no such conversation"));
        }
        let mut highest = 0;
        for other in state.members.iter().filter(|m| m.user != device.user).flat_map(|m| &m.installations) {
            let record = self.backends.store.device(*other, WantCells::Of(conversation)).await?;
            highest = record.cells.iter().map(|(_, cell)| cell.acked).fold(highest, Seq::max);
        }
        Ok(highest)
    }

    /// Puts up the offer of a device that waits to be linked; gives what its answer comes through.
    ///
    /// # Errors
    /// `Throttled` if too many wait, `Conflict` if the rendezvous is taken.
    pub fn offer(&self, rendezvous: Bytes, offer: Bytes) -> Result<tokio::sync::mpsc::Receiver<Bytes>> {
        let now = self.now_ms();
        self.offers.retain(|_, offer| now < offer.made_ms + OFFER_MS && !offer.answer.is_closed());
        if self.offers.len() >= OFFERS {
            return Err(Error::new(ErrorKind::Throttled, "too many devices wait to be linked"));
        }
        let (answer, answers) = tokio::sync::mpsc::channel(1);
        match self.offers.entry(rendezvous) {
            dashmap::Entry::Occupied(_) => Err(Error::new(ErrorKind::Conflict, "the rendezvous is taken")),
            dashmap::Entry::Vacant(free) => {
                free.insert(Offer { offer, made_ms: now, answer });
                Ok(answers)
            }
        }
    }
}

/// What a batch of records adds up to before it is committed.
#[derive(Debug, Default)]
struct Batch {
    states: HashMap<ConversationId, ConversationState>,
    commits: HashMap<ConversationId, Commit>,
    /// Conversations in the order of their first commit.
    order: Vec<ConversationId>,
    ids: HashMap<IdKey, Seq>,
    events: Vec<(DeviceAddress, Event)>,
}

impl Batch {
    fn add(&mut self, commit: Commit) {
        self.states.insert(commit.conversation, commit.state.clone());
        match self.commits.get_mut(&commit.conversation) {
            Some(known) => {
                known.history.extend(commit.history);
                known.ids.extend(commit.ids);
                known.inbox.extend(commit.inbox);
                known.generations.extend(commit.generations);
                known.state = commit.state;
            }
            None => {
                self.order.push(commit.conversation);
                self.commits.insert(commit.conversation, commit);
            }
        }
    }
}

/// The users of installations, as far as state and command name them. The small device number does not
/// matter to delivery; the sender's own is kept where it is known.
fn addresses(state: &ConversationState, command: &Command) -> HashMap<InstallationId, DeviceAddress> {
    let device = crate::id::DeviceId::PRIMARY;
    let mut known: HashMap<_, _> = state
        .members
        .iter()
        .flat_map(|m| {
            m.installations
                .iter()
                .map(move |i| (*i, DeviceAddress { user: m.user, device, installation: *i }))
        })
        .collect();
    known.insert(command.sender.installation, command.sender);
    known
}

fn refused(number: &SendNumber, refusal: Refusal) -> ServerFrame {
    let subject =
        Subject::Message(number.conversation, number.message_id, number.client_seq, number.incarnation);
    ServerFrame::Refused(subject, refusal)
}
