//! Message requests, blocked users and reports, with the client and the Signal suite.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chat_client::prelude::*;
use chat_client::{GapReason, PresenceAudience, Relation, Status, open_reported};
use chat_core::Backends;
use chat_core::backend::ContactStore;
use chat_core::contact::{Contact, ContactChange, Contacts};
use chat_core::memory::{MemoryContacts, MemoryReports};
use chat_core::{Error, ErrorKind, UserId};
use chat_testing::TestServer;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

/// A server with the users alice and bob.
struct Pair {
    server: TestServer,
    reports: Arc<MemoryReports>,
    alice: Client,
    bob: Client,
}

impl Pair {
    async fn start() -> Self {
        let reports = Arc::new(MemoryReports::default());
        let backends = Backends { reports: reports.clone(), ..Backends::memory() };
        let builder = chat_server::Server::builder().backends(backends).open_registration();
        let server = TestServer::start_with(builder).await.unwrap();
        let alice = server.client_with("alice", chat_signal::suite()).await.unwrap();
        let bob = server.client_with("bob", chat_signal::suite()).await.unwrap();
        Self { server, reports, alice, bob }
    }

    /// Sends a text from alice to bob, and waits until it is stored.
    async fn send(&self, text: &str) -> Ticket {
        let ticket = self.alice.send(self.bob.user(), text).await.unwrap();
        timeout(LIMIT, ticket.stored()).await.unwrap().unwrap();
        ticket
    }

    async fn received(&self, client: &Client) -> Message {
        timeout(LIMIT, self.server.next_message(client)).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn request_shows_nothing_until_it_is_accepted_and_everything_then() {
    let pair = Pair::start().await;
    let ticket = pair.send("hello").await;
    let message = pair.received(&pair.bob).await;
    assert!(message.is_request);
    assert_eq!(pair.bob.conversations().await.unwrap()[0].relation, Relation::Stranger);
    assert_eq!(pair.alice.relation(pair.bob.user()).await.unwrap(), Relation::Contact, "alice wrote");
    pair.bob.read(message.conversation, message.seq).await.unwrap();
    // The acknowledgement and the read position have reached the server; alice learns neither.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let Status::Stored { delivered, read, .. } = ticket.status().await.unwrap() else { panic!() };
    assert_eq!((delivered.reached, read.reached), (0, 0));
    pair.bob.accept(pair.alice.user()).await.unwrap();
    assert!(timeout(LIMIT, ticket.read()).await.unwrap().unwrap().is_complete());
    assert!(!pair.bob.history(message.conversation, None, 1).await.unwrap()[0].is_request);
}

#[tokio::test]
async fn answer_accepts_the_request_on_every_device() {
    let pair = Pair::start().await;
    let ticket = pair.send("hello").await;
    let message = pair.received(&pair.bob).await;
    let tablet = pair.server.linked_client(&pair.bob, "tablet", chat_signal::suite()).await.unwrap();
    let mut events = tablet.events_after(None);
    assert_eq!(tablet.relation(pair.alice.user()).await.unwrap(), Relation::Stranger);
    message.reply(&pair.bob, "hi").await.unwrap();
    let accepted =
        |event: &Event| matches!(event, Event::RelationChanged { relation: Relation::Contact, .. });
    pair.server.next_event(&mut events, accepted).await.unwrap();
    assert_eq!(tablet.relation(pair.alice.user()).await.unwrap(), Relation::Contact);
    timeout(LIMIT, ticket.delivered()).await.unwrap().unwrap();
    // A device that was linked or away meanwhile learns it when it connects.
    tablet.close().await;
    pair.bob.block(pair.alice.user()).await.unwrap();
    let tablet = Client::open(pair.server.config("tablet", chat_signal::suite())).await.unwrap();
    let mut events = tablet.events_after(None);
    let blocked = |event: &Event| matches!(event, Event::RelationChanged { relation: Relation::Blocked, .. });
    pair.server.next_event(&mut events, blocked).await.unwrap();
}

#[tokio::test]
async fn blocked_user_is_stored_and_never_delivered() {
    let pair = Pair::start().await;
    pair.send("before").await;
    let message = pair.received(&pair.bob).await;
    message.reply(&pair.bob, "hi").await.unwrap();
    pair.received(&pair.alice).await;
    pair.bob.block(pair.alice.user()).await.unwrap();
    let mut events = pair.bob.events_after(None);
    let ticket = pair.send("blocked").await;
    let withheld =
        pair.server.next_event(&mut events, |event| matches!(event, Event::Gap { .. })).await.unwrap().event;
    assert!(matches!(withheld, Event::Gap { reason: GapReason::Withheld, from_seq: 3, to_seq: 3, .. }));
    let refused = pair.bob.send(pair.alice.user(), "no").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied);
    assert!(
        timeout(Duration::from_secs(2), ticket.delivered()).await.is_err(),
        "delivered to a user that blocked the sender"
    );
    pair.bob.unblock(pair.alice.user()).await.unwrap();
    let ticket = pair.send("after").await;
    assert_eq!(pair.received(&pair.bob).await.text(), Some("after"));
    timeout(LIMIT, ticket.delivered()).await.unwrap().unwrap();
    let shown = pair.bob.history(message.conversation, None, 10).await.unwrap();
    assert!(shown.iter().all(|one| one.text() != Some("blocked")));
}

#[tokio::test]
async fn report_reveals_the_reported_messages_only() {
    let pair = Pair::start().await;
    for text in ["one", "bad", "three"] {
        pair.send(text).await;
    }
    let mut messages = Vec::new();
    for _ in 0..3 {
        messages.push(pair.received(&pair.bob).await);
    }
    pair.bob.report(&messages[1..2], "this one").await.unwrap();
    let report = pair.reports.take().pop().unwrap();
    assert_eq!((report.reported_by, report.user), (pair.bob.user(), pair.alice.user()));
    assert_eq!((report.note.as_str(), report.messages.len()), ("this one", 1));
    let (seq, message, key) = &report.messages[0];
    assert_eq!(*seq, messages[1].seq);
    let content = open_reported(report.conversation, message.id, &message.body, key);
    assert_eq!(content, Some(Content::Text("bad".into())));
    // Only messages of the other user, and only with their own keys.
    let own = pair.alice.history(messages[0].conversation, None, 1).await.unwrap();
    let kind = |outcome: Result<()>| outcome.unwrap_err().kind();
    assert_eq!(kind(pair.alice.report(&own, "").await), ErrorKind::Invalid);
    assert_eq!(kind(pair.bob.report(&[], "").await), ErrorKind::Invalid);
    assert_eq!(kind(pair.bob.report(&messages, &"x".repeat(2001)).await), ErrorKind::Invalid);
    assert!(pair.reports.take().is_empty());
}

#[tokio::test]
async fn read_reaches_a_sender_that_was_away() {
    let pair = Pair::start().await;
    let ticket = pair.send("hello").await;
    let message = pair.received(&pair.bob).await;
    pair.bob.accept(pair.alice.user()).await.unwrap();
    timeout(LIMIT, ticket.delivered()).await.unwrap().unwrap();
    pair.alice.close().await;
    // The reader reads while the sender is away, and stays connected.
    pair.bob.read(message.conversation, message.seq).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let alice = pair.server.client_with("alice", chat_signal::suite()).await.unwrap();
    let read = |event: &Event| matches!(event, Event::Read { seq: 1, .. });
    pair.server.next_event(&mut alice.events_after(Some(0)), read).await.unwrap();
}

/// Contacts of a server that goes back to a copy without any contact.
#[derive(Debug, Default)]
struct Restorable {
    lost: MemoryContacts,
    kept: MemoryContacts,
    /// 0 before the restore; then the number of changes that fail, plus one.
    failing: AtomicUsize,
}

impl Restorable {
    fn current(&self) -> &MemoryContacts {
        if self.failing.load(Ordering::SeqCst) == 0 { &self.lost } else { &self.kept }
    }
}

#[async_trait::async_trait]
impl ContactStore for Restorable {
    async fn contact(&self, owner: UserId, other: UserId) -> chat_core::Result<Contact> {
        self.current().contact(owner, other).await
    }

    async fn change(
        &self,
        owner: UserId,
        other: UserId,
        change: ContactChange,
        limit: usize,
    ) -> chat_core::Result<u64> {
        if self.failing.load(Ordering::SeqCst) > 1 {
            self.failing.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::new(ErrorKind::Unavailable, "the store is down"));
        }
        self.current().change(owner, other, change, limit).await
    }

    async fn audience(&self, owner: UserId) -> chat_core::Result<PresenceAudience> {
        self.current().audience(owner).await
    }

    async fn set_audience(&self, owner: UserId, audience: PresenceAudience) -> chat_core::Result<u64> {
        self.current().set_audience(owner, audience).await
    }

    async fn version(&self, owner: UserId) -> chat_core::Result<u64> {
        self.current().version(owner).await
    }

    async fn contacts(&self, owner: UserId) -> chat_core::Result<Contacts> {
        self.current().contacts(owner).await
    }

    async fn erase(&self, owner: UserId) -> chat_core::Result<()> {
        self.current().erase(owner).await
    }
}

#[tokio::test]
async fn restored_server_learns_each_decision_again() {
    let store = Arc::new(Restorable::default());
    let backends = Backends { contacts: store.clone(), ..Backends::memory() };
    let builder = chat_server::Server::builder().backends(backends).open_registration();
    let server = TestServer::start_with(builder).await.unwrap();
    let alice = server.client("alice").await.unwrap();
    let [bob, carol] = [server.client("bob").await.unwrap(), server.client("carol").await.unwrap()];
    alice.accept(carol.user()).await.unwrap();
    alice.block(carol.user()).await.unwrap();
    alice.unblock(carol.user()).await.unwrap();
    alice.block(bob.user()).await.unwrap();
    alice.set_presence_audience(PresenceAudience::Nobody).await.unwrap();
    // The server goes back, and is in trouble while alice connects again.
    alice.suspend().await.unwrap();
    store.failing.store(3, Ordering::SeqCst);
    let decided = |user| store.kept.contact(alice.user(), user);
    let wanted = [Contact { accepted: false, blocked: true }, Contact { accepted: true, blocked: false }];
    let again = async {
        loop {
            alice.resume().await.unwrap();
            alice.ready().await.unwrap();
            for _ in 0..20 {
                let found = [decided(bob.user()).await.unwrap(), decided(carol.user()).await.unwrap()];
                let audience = store.kept.audience(alice.user()).await.unwrap();
                if found == wanted && audience == PresenceAudience::Nobody {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            alice.suspend().await.unwrap();
        }
    };
    timeout(LIMIT, again).await.expect("the server lacks a decision");
    assert_eq!(store.failing.load(Ordering::SeqCst), 1, "changes failed before");
    assert_eq!(alice.relation(bob.user()).await.unwrap(), Relation::Blocked);
    assert_eq!(alice.relation(carol.user()).await.unwrap(), Relation::Contact);
    assert_eq!(alice.presence_audience().await.unwrap(), PresenceAudience::Nobody);
}
