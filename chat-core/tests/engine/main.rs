//! Tests of the engine: its decisions before the log (rate limits, quotas, presence, accounts) and its
//! deliveries after it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod commit_visibility;
mod device_linking;
mod groups;
mod history;
mod inbox_limits;
mod message_options;
mod message_requests;
mod registry;
mod rules;
mod token_expiry;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use chat_core::backend::{Backends, CursorFilter, MessageStore, PageLimit};
use chat_core::delivery::{EngineSettings, Rates};
use chat_core::device_list::{DeviceEntry, DeviceList, SignedDeviceList};
use chat_core::envelope::{
    AckUpTo, Audience, DeviceBox, EmptyReason, InboxPosition, Publish, Refusal, RowContent, SendPosition,
};
use chat_core::limits::{HEARTBEAT_MS, IDLE_MS, STORED_PREKEYS};
use chat_core::memory::{ManualClock, MemoryRegistry, MemoryRouter};
use chat_core::presence::UserPresence;
use chat_core::signing::prekeys_transcript;
use chat_core::suite::SuiteKey;
use chat_core::wire::{FirstPrekeys, HistoryRange, OneTimePrekey, PrekeyUpload, Registration, Request};
use chat_core::{ConversationId, DeviceAddress, DeviceId, Engine, Handle, InstallationId, MessageId};
use ed25519_dalek::{Signer, SigningKey};
use futures_util::FutureExt;

const START_US: u64 = 1_700_000_000_000_000;

fn ready<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap()
}

/// A user with one device.
struct User {
    handle: Handle,
    account: SigningKey,
    key: SigningKey,
    list: SignedDeviceList,
    sent: u64,
    prev: MessageId,
}

fn sign(key: &SigningKey, list: &DeviceList) -> SignedDeviceList {
    let encoded = list.encode();
    let signature = key.sign(&DeviceList::transcript(&encoded)).to_bytes().to_vec();
    SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature.into()).unwrap()
}

/// Admits and appends a publish, as the gateway does; returns the refusal if it is known at once.
async fn submit(engine: &Engine, sender: DeviceAddress, publish: Publish) -> Option<Refusal> {
    match engine.admit_publish(sender, publish).await {
        Ok(command) => engine.append(command).await.err(),
        Err(refusal) => Some(refusal),
    }
}

/// Admits and appends a skip.
async fn skip(engine: &Engine, sender: DeviceAddress, number: SendPosition) -> Option<Refusal> {
    match engine.admit_skip(sender, number).await {
        Ok(command) => engine.append(command).await.err(),
        Err(refusal) => Some(refusal),
    }
}

impl User {
    fn new(n: u8, name: &str) -> Self {
        let (account, key) = (SigningKey::from_bytes(&[n; 32]), SigningKey::from_bytes(&[n + 100; 32]));
        let entry = DeviceEntry::new(
            DeviceId::PRIMARY,
            key.verifying_key().to_bytes(),
            SuiteKey::signal(vec![n; 33]),
        );
        let list = sign(&account, &DeviceList::first(chat_core::UserId::from_bytes([n; 16]), 0, vec![entry]));
        let handle = Handle::new(name).unwrap();
        Self { handle, account, key, list, sent: 0, prev: MessageId::NIL }
    }

    fn device(&self) -> DeviceAddress {
        self.list.list().addresses().next().unwrap()
    }

    fn register(&self, engine: &Engine) {
        let registration = Registration::Account {
            token: String::new(),
            handle: self.handle.clone(),
            list: self.list.clone(),
            replace: false,
            prekeys: Vec::new(),
        };
        assert!(ready(engine.register(&registration)).is_ok());
    }

    fn number(&self, to: &Self) -> SendPosition {
        let mut id = [self.list.list().user.as_bytes()[0]; 16];
        id[..8].copy_from_slice(&(self.sent + 1).to_be_bytes());
        SendPosition {
            conversation: ConversationId::direct(self.device().user, to.device().user),
            message_id: MessageId::from_bytes(id),
            client_seq: self.sent + 1,
            prev: self.prev,
            incarnation: 0,
            generation: self.sent + 1,
        }
    }

    /// Returns the next message to a user's first device.
    fn next(&self, to: &Self, size: usize) -> Publish {
        let audience = [self, to]
            .map(|user: &Self| Audience { user: user.device().user, list_version: user.list.list().version });
        let boxes =
            vec![DeviceBox { installation: to.device().installation, data: Bytes::from_static(b"box") }];
        Publish {
            number: self.number(to),
            first: true,
            audience: audience.to_vec(),
            body: vec![7; size].into(),
            boxes,
            excluded: Vec::new(),
            sent_at: 0,
            options: chat_core::message_options::MessageOptions::default(),
            group: None,
        }
    }

    /// Publishes a message. Returns the refusal if one is answered at once.
    fn publish(&mut self, engine: &Engine, to: &Self, size: usize) -> Option<Refusal> {
        let publish = self.next(to, size);
        self.send(engine, publish)
    }

    fn send(&mut self, engine: &Engine, publish: Publish) -> Option<Refusal> {
        let number = publish.number;
        let refusal = ready(submit(engine, self.device(), publish));
        if refusal.is_none() {
            (self.sent, self.prev) = (number.client_seq, number.message_id);
        }
        refusal
    }
}

/// Returns users whose devices the engine knows. Alice and Bob wrote to each other; Eve is a stranger.
fn talkers(engine: &Engine) -> [User; 3] {
    let mut users = [User::new(1, "alice"), User::new(2, "bob"), User::new(3, "eve")];
    users.iter().for_each(|user| user.register(engine));
    let [alice, bob, _] = &mut users;
    assert_eq!((alice.publish(engine, bob, 10), bob.publish(engine, alice, 10)), (None, None));
    work(engine);
    users
}

fn first_prekeys(key: &SigningKey) -> FirstPrekeys {
    let signed = Bytes::from_static(b"signed");
    let signature = Bytes::copy_from_slice(&key.sign(&prekeys_transcript(&signed)).to_bytes());
    let installation = InstallationId::of_device_key(&key.verifying_key().to_bytes());
    FirstPrekeys { installation, signed, signature }
}

fn engine(rates: Rates) -> (Engine, Arc<ManualClock>) {
    let (engine, clock, _) = engine_and_store(rates);
    (engine, clock)
}

fn engine_and_store(rates: Rates) -> (Engine, Arc<ManualClock>, Arc<dyn MessageStore>) {
    let clock = Arc::new(ManualClock::default());
    clock.set_us(START_US);
    let settings = EngineSettings { rates, ..EngineSettings::default() };
    let backends = Backends { router: Arc::new(MemoryRouter::new(4, clock.clone())), ..Backends::memory() };
    let store = backends.store.clone();
    (Engine::new(backends, settings, clock.clone()), clock, store)
}

/// Processes all waiting records of every shard.
fn work(engine: &Engine) {
    for shard in 0..engine.shards() {
        while engine.process_batch(shard).now_or_never().is_some_and(|turned| turned.is_ok()) {}
    }
}

#[test]
fn stranger_is_limited_until_the_recipient_writes_back() {
    let (engine, clock) = engine(Rates::default());
    let (mut alice, mut bob) = (User::new(1, "alice"), User::new(2, "bob"));
    alice.register(&engine);
    bob.register(&engine);
    for n in 0..60 {
        assert_eq!(alice.publish(&engine, &bob, 10), None, "message {n}");
    }
    assert_eq!(alice.publish(&engine, &bob, 10), Some(Refusal::Throttled(1000)), "then one per second");
    work(&engine);
    clock.set_us(START_US + 1_000_000);
    assert_eq!(alice.publish(&engine, &bob, 10), None);
    assert!(alice.publish(&engine, &bob, 10).is_some());
    assert_eq!(bob.publish(&engine, &alice, 10), None, "the recipient has a separate limit");
    work(&engine);
    for n in 0..1000 {
        assert_eq!(alice.publish(&engine, &bob, 10), None, "message {n} to a user that wrote back");
    }
}

#[test]
fn recipient_is_no_contact_until_it_answers() {
    let (engine, _clock) = engine(Rates::default());
    let (mut eve, mut bob) = (User::new(1, "eve"), User::new(2, "bob"));
    eve.register(&engine);
    bob.register(&engine);
    assert_eq!(eve.publish(&engine, &bob, 10), None);
    work(&engine);
    // Bob's device requests a message that it cannot read, through a mailbox: this does not count as an
    // answer of Bob.
    let number = SendPosition {
        conversation: ConversationId::mailbox(bob.device().installation, eve.device().installation),
        ..bob.number(&eve)
    };
    let publish = Publish {
        number,
        first: true,
        audience: vec![Audience { user: eve.device().user, list_version: 1 }],
        body: Bytes::from_static(b"body"),
        boxes: vec![DeviceBox { installation: eve.device().installation, data: Bytes::from_static(b"box") }],
        excluded: Vec::new(),
        sent_at: 0,
        options: chat_core::message_options::MessageOptions::default(),
        group: None,
    };
    assert_eq!(ready(submit(&engine, bob.device(), publish)), None);
    work(&engine);
    for _ in 1..60 {
        assert_eq!(eve.publish(&engine, &bob, 10), None);
    }
    assert!(eve.publish(&engine, &bob, 10).is_some(), "still a stranger");
    work(&engine);
    let skip = ready(skip(&engine, eve.device(), eve.number(&bob)));
    assert!(skip.is_some(), "skips are limited as well");
    assert_eq!(bob.publish(&engine, &eve, 10), None);
}

#[test]
fn made_up_users_get_no_buckets() {
    let (engine, _clock) = engine(Rates { requests: None, ..Rates::default() });
    let alice = User::new(1, "alice");
    alice.register(&engine);
    for n in 0..5000_u64 {
        let mut user = [9; 16];
        user[..8].copy_from_slice(&n.to_be_bytes());
        let request = Request::Claim(chat_core::UserId::from_bytes(user), Vec::new());
        assert_eq!(ready(engine.respond(alice.device(), request)).unwrap().bundles, vec![]);
    }
    let own = Request::Claim(alice.device().user, Vec::new());
    for _ in 0..100 {
        assert!(
            ready(engine.respond(alice.device(), own.clone())).is_ok(),
            "one's own devices are not limited"
        );
    }
}

#[test]
fn a_user_is_present_until_seventy_five_seconds_after_the_last_heartbeat() {
    let (engine, clock) = engine(Rates::OFF);
    let [alice, bob, eve] = talkers(&engine);
    let presence = |who: &User, at_ms: u64| {
        clock.set_us(START_US + at_ms * 1000);
        ready(engine.presence(who.device(), &[bob.device().user]))[0].1
    };
    let sees = |who: &User, at_ms: u64| presence(who, at_ms) == UserPresence::Online;
    let seen = |at_ms: u64| UserPresence::Offline { last_seen_ms: Some(START_US / 1000 + at_ms) };
    assert!(!sees(&alice, 0));
    let handle = ready(engine.bind(bob.device())).unwrap();
    assert!(sees(&alice, 1), "online at once");
    assert!(!sees(&eve, 1), "hidden from a stranger");
    assert!(sees(&alice, 2 * HEARTBEAT_MS), "one lost heartbeat changes nothing");
    assert!(sees(&alice, IDLE_MS - 1) && !sees(&alice, IDLE_MS), "offline after the idle timeout");
    ready(engine.beat(&handle));
    assert!(sees(&alice, IDLE_MS + 1));
    ready(engine.unbind(&handle));
    assert_eq!(presence(&alice, IDLE_MS + 2), seen(IDLE_MS + 1), "offline at once after a clean close");
    assert_eq!(presence(&eve, IDLE_MS + 2), UserPresence::HIDDEN, "a stranger");
}

#[test]
fn prekey_claims_are_limited_and_the_owner_is_notified_of_few() {
    let (engine, clock) = engine(Rates::local());
    let (alice, bob) = (User::new(1, "alice"), User::new(2, "bob"));
    alice.register(&engine);
    bob.register(&engine);
    let signed = Bytes::from_static(b"signed part");
    let upload = |through: u64| {
        let ids = through - 24..=through;
        Request::Upload(PrekeyUpload {
            signed: signed.clone(),
            signature: bob.key.sign(&prekeys_transcript(&signed)).to_bytes().to_vec().into(),
            one_time: ids.map(|id| OneTimePrekey { id, data: id.to_be_bytes().to_vec().into() }).collect(),
            uploaded_through: through,
            replace: false,
        })
    };
    assert_eq!(ready(engine.respond(bob.device(), upload(25))).unwrap().prekeys, 25);
    let mut handle = ready(engine.bind(bob.device())).unwrap();
    let claim = || {
        let request = Request::Claim(bob.device().user, vec![bob.device().installation]);
        ready(engine.respond(alice.device(), request))
    };
    for _ in 0..6 {
        assert!(!claim().unwrap().bundles[0].one_time.is_empty());
    }
    for _ in 0..3 {
        let bundles = claim().unwrap().bundles;
        assert_eq!(bundles[0].signed, signed, "bob stays reachable");
        assert!(bundles[0].one_time.is_empty(), "six one-time prekeys, then one per ten minutes");
    }
    let nothing = Request::Claim(bob.device().user, Vec::new());
    clock.set_us(START_US + 600_000_000);
    assert!(ready(engine.respond(alice.device(), nothing)).unwrap().bundles.is_empty());
    assert!(!claim().unwrap().bundles[0].one_time.is_empty(), "a claim of nothing did not count");
    let events: Vec<_> = std::iter::from_fn(|| handle.events.try_recv().ok()).flatten().collect();
    let low = |left| chat_core::delivery::SessionEvent::Hint(chat_core::delivery::Hint::PrekeysLow(left));
    assert_eq!(events, vec![low(19), low(18)]);
    for n in 2..=8 {
        assert!(ready(engine.respond(bob.device(), upload(25 * n))).is_ok());
    }
    let more = ready(engine.respond(bob.device(), upload(225)));
    assert!(matches!(more, Err(Refusal::Throttled(_))), "at most {STORED_PREKEYS} are stored");
}

#[test]
fn publish_may_exclude_devices_but_not_a_user() {
    let (engine, _clock, store) = engine_and_store(Rates::OFF);
    let (alice, mut bob) = (User::new(1, "alice"), User::new(2, "bob"));
    let tablet = DeviceEntry::new(DeviceId::new(2).unwrap(), [77; 32], SuiteKey::signal(vec![77; 33]));
    let devices = [bob.list.list().devices.clone(), vec![tablet.clone()]].concat();
    bob.list = sign(&bob.account, &DeviceList::first(bob.device().user, 0, devices));
    alice.register(&engine);
    bob.register(&engine);
    let (phone, tablet) = (bob.device().installation, tablet.installation());
    let outcome = |boxed: &[InstallationId], excluded: &[InstallationId]| {
        let mut publish = alice.next(&bob, 10);
        let boxes =
            boxed.iter().map(|one| DeviceBox { installation: *one, data: Bytes::from_static(b"box") });
        publish.boxes = boxes.collect();
        publish.excluded = excluded.to_vec();
        ready(submit(&engine, alice.device(), publish))
    };
    assert_eq!(outcome(&[], &[phone, tablet]), Some(Refusal::Invalid), "no device of the user");
    assert_eq!(outcome(&[phone, tablet], &[tablet]), Some(Refusal::Invalid), "a box, and excluded");
    let own = alice.device().installation;
    assert_eq!(outcome(&[phone, tablet], &[own]), Some(Refusal::Invalid), "the sending device");
    let other = InstallationId::from_bytes([99; 16]);
    assert!(matches!(outcome(&[phone], &[other]), Some(Refusal::Mismatch(_))), "an unlisted device");
    assert!(matches!(outcome(&[phone], &[]), Some(Refusal::Mismatch(_))), "a missing box");
    assert_eq!(outcome(&[phone], &[tablet]), None);
    work(&engine);
    let inbox = |device| ready(store.inbox(device, InboxPosition::START, PageLimit::MAX)).unwrap();
    assert!(matches!(inbox(phone)[0].content, RowContent::Message { .. }));
    let empty = RowContent::Empty { reason: EmptyReason::Excluded, from: 1 };
    assert_eq!(inbox(tablet)[0].content, empty, "the device gets a row for the seq");
}

#[test]
fn open_registration_cannot_replace_an_account() {
    let (engine, _clock) = engine(Rates::OFF);
    let alice = User::new(1, "alice");
    alice.register(&engine);
    let mut other = User::new(9, "alice");
    other.list = sign(&other.account, &DeviceList::next(&alice.list, 1, other.list.list().devices.clone()));
    for registration in [
        Registration::Lookup { token: String::new(), handle: alice.handle.clone() },
        Registration::Account {
            token: String::new(),
            handle: alice.handle.clone(),
            list: other.list.clone(),
            replace: true,
            prekeys: Vec::new(),
        },
    ] {
        assert_eq!(ready(engine.register(&registration)), Err(Refusal::Denied));
    }
    let lists =
        ready(engine.respond(alice.device(), Request::Lists(vec![alice.device().user]))).unwrap().lists;
    assert_eq!(lists, vec![alice.list.clone()]);
}

#[test]
fn retention_removes_rows_that_wait_too_long() {
    let (engine, clock) = engine(Rates::OFF);
    let (mut alice, bob) = (User::new(1, "alice"), User::new(2, "bob"));
    alice.register(&engine);
    bob.register(&engine);
    const DAY_MS: u64 = 24 * 3600 * 1000;
    for _ in 0..1500 {
        alice.publish(&engine, &bob, 10);
        work(&engine);
    }
    let id = ConversationId::direct(alice.device().user, bob.device().user);
    assert_eq!(ready(engine.sweep(30 * DAY_MS)), Ok(0), "not yet");
    clock.set_us(START_US + 31 * DAY_MS * 1000);
    assert_eq!(ready(engine.sweep(30 * DAY_MS)), Ok(3000), "the rows of both devices");
    let inbox = ready(engine.inbox(
        bob.device().installation,
        chat_core::envelope::InboxPosition::START,
        PageLimit::MAX,
    ))
    .unwrap()
    .rows;
    assert_eq!(inbox.len(), 1);
    assert_eq!((inbox[0].conversation, inbox[0].first_seq(), inbox[0].seq), (id, 1, 1500));
    assert!(inbox[0].is_expired());
}

#[test]
fn withdrawn_offer_leaves_no_route() {
    let registry = Arc::new(MemoryRegistry::default());
    let backends = Backends { registry: registry.clone(), ..Backends::memory() };
    let engine = Engine::new(backends, EngineSettings::default(), Arc::new(ManualClock::default()));
    let offer = || ready(engine.offer(Bytes::from_static(b"rendezvous"), Bytes::from_static(b"offer")));
    let linking = offer().unwrap();
    assert!(!registry.is_empty(), "other gateways find it");
    ready(engine.withdraw(linking));
    assert!(registry.is_empty());
    assert!(offer().is_ok(), "the rendezvous is free again");
}
