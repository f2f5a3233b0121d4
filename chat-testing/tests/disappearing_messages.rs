//! The rest of messages that disappear or are deleted, on the server and on devices: each test is one promise of their
//! documentation.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use chat_client::prelude::*;
use chat_client::{Conversation, GapReason, GroupAction, GroupPolicy, MessageRef, Role};
use chat_core::Backends;
use chat_core::backend::{MessageStore, PageLimit};
use chat_core::envelope::{EmptyReason, RowContent};
use chat_core::memory::MemoryStore;
use chat_server::Server;
use chat_testing::TestServer;

const SECOND: Duration = Duration::from_secs(1);

/// A server, and its store.
async fn started() -> (TestServer, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new());
    let backends = Backends { store: store.clone(), ..Backends::memory() };
    let server =
        TestServer::start_with(Server::builder().backends(backends).open_registration()).await.unwrap();
    (server, store)
}

async fn pair() -> (TestServer, Arc<MemoryStore>, Client, Client) {
    let (server, store) = started().await;
    let alice = server.client("alice").await.unwrap();
    let bob = server.client("bob").await.unwrap();
    (server, store, alice, bob)
}

/// Returns why each row of a conversation is empty on the server, the oldest first.
async fn reasons(store: &MemoryStore, conversation: ConversationId) -> Vec<Option<EmptyReason>> {
    let rows = store.history(conversation, 0, PageLimit::MAX).await.unwrap();
    let reason = |content: &RowContent| match content {
        RowContent::Empty { reason, .. } => Some(*reason),
        _ => None,
    };
    rows.iter().rev().map(|row| reason(&row.content)).collect()
}

async fn texts(client: &Client, conversation: ConversationId) -> Vec<String> {
    let messages = client.history(conversation, None, 100).await.unwrap();
    messages.iter().rev().filter_map(|message| message.text().map(str::to_owned)).collect()
}

/// Waits until a message disappears from a client.
async fn disappeared(server: &TestServer, client: &Client) -> u64 {
    let mut events = client.events("disappeared").await.unwrap();
    let is_wanted = |event: &Event| matches!(event, Event::MessageDisappeared { .. });
    let record = server.next_event(&mut events, is_wanted).await.unwrap();
    events.handled(&record).await.unwrap();
    match record.event {
        Event::MessageDisappeared { seq, .. } => seq,
        _ => panic!("another event"),
    }
}

/// Waits until a client has a gap for this reason. No violation may be reported before.
async fn gap(server: &TestServer, client: &Client, wanted: GapReason) -> u64 {
    let mut events = client.events("gaps").await.unwrap();
    let is_wanted = |event: &Event| {
        assert!(!matches!(event, Event::Integrity { .. }), "{event:?}");
        matches!(event, Event::Gap { reason, .. } if *reason == wanted)
    };
    let record = server.next_event(&mut events, is_wanted).await.unwrap();
    events.handled(&record).await.unwrap();
    match record.event {
        Event::Gap { from_seq, .. } => from_seq,
        _ => panic!("another event"),
    }
}

fn timer_of(list: &[Conversation], id: ConversationId) -> Option<Duration> {
    list.iter().find(|one| one.id == id).unwrap().disappearing_timer
}

#[tokio::test]
async fn message_disappears_from_each_device_after_it_was_read_there() {
    let (server, store, alice, bob) = pair().await;
    let conversation = alice.conversation_with(bob.user());
    alice.send(bob.user(), "this stays").await.unwrap();
    alice.set_disappearing_timer(bob.user(), Some(SECOND)).await.unwrap().stored().await.unwrap();
    assert_eq!(server.next_message(&bob).await.unwrap().disappears_after, None);
    let setting = server.next_message(&bob).await.unwrap();
    assert_eq!(*setting.content(), Content::DisappearingTimer(Some(SECOND)));
    for client in [&alice, &bob] {
        assert_eq!(timer_of(&client.conversations().await.unwrap(), conversation), Some(SECOND));
    }
    alice.send(bob.user(), "swordfish").await.unwrap();
    alice.send(bob.user(), "mackerel").await.unwrap().stored().await.unwrap();
    let first = server.next_message(&bob).await.unwrap();
    assert_eq!((first.text(), first.disappears_after), (Some("swordfish"), Some(SECOND)));
    server.next_message(&bob).await.unwrap();
    bob.react(&first, "👍").await.unwrap();
    let mut timeline = alice.timeline(conversation).await.unwrap();
    assert_eq!((disappeared(&server, &alice).await, disappeared(&server, &alice).await), (3, 4));
    while timeline.items().len() > 2 {
        timeline.next().await.unwrap().unwrap();
    }
    assert_eq!(texts(&alice, conversation).await, ["this stays"]);
    assert!(alice.search("swordfish", None, 10).await.unwrap().is_empty());
    assert_eq!(texts(&bob, conversation).await, ["this stays", "swordfish", "mackerel"], "unread");
    bob.read(conversation, 3).await.unwrap();
    assert_eq!(disappeared(&server, &bob).await, 3);
    assert_eq!(texts(&bob, conversation).await, ["this stays", "mackerel"]);
    server.server().engine().sweep_messages().await.unwrap();
    let gone = Some(EmptyReason::Disappeared);
    assert_eq!(reasons(&store, conversation).await[..4], [None, None, gone, gone]);
    bob.set_disappearing_timer(alice.user(), None).await.unwrap().stored().await.unwrap();
    assert_eq!(timer_of(&bob.conversations().await.unwrap(), conversation), None);
    bob.send(alice.user(), "this stays too").await.unwrap();
    while server.next_message(&alice).await.unwrap().text() != Some("this stays too") {}
    assert_eq!(texts(&alice, conversation).await, ["this stays", "this stays too"]);
}

#[tokio::test]
async fn timer_has_limits() {
    let (_server, _, alice, bob) = pair().await;
    for after in
        [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(367 * 24 * 3600), Duration::MAX]
    {
        let error = alice.set_disappearing_timer(bob.user(), Some(after)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{after:?}");
    }
}

#[tokio::test]
async fn device_that_was_off_for_too_long_gets_a_gap() {
    let (server, _, alice, bob) = pair().await;
    alice.set_disappearing_timer(bob.user(), Some(SECOND)).await.unwrap().stored().await.unwrap();
    server.next_message(&bob).await.unwrap();
    let to_bob = bob.user();
    bob.close().await;
    alice.send(to_bob, "too late").await.unwrap().stored().await.unwrap();
    assert_eq!(disappeared(&server, &alice).await, 2);
    tokio::time::sleep(SECOND / 10).await;
    alice.set_disappearing_timer(to_bob, None).await.unwrap();
    alice.send(to_bob, "in time").await.unwrap().stored().await.unwrap();
    let bob = server.client("bob").await.unwrap();
    assert_eq!(gap(&server, &bob, GapReason::Disappeared).await, 2);
    while server.next_message(&bob).await.unwrap().text() != Some("in time") {}
    let conversation = bob.conversation_with(alice.user());
    assert_eq!(texts(&bob, conversation).await, ["in time"]);
}

#[tokio::test]
async fn deletion_erases_the_message_on_the_server() {
    let (server, store, alice, bob) = pair().await;
    let conversation = alice.conversation_with(bob.user());
    alice.send(bob.user(), "hello").await.unwrap().stored().await.unwrap();
    let hello = server.next_message(&bob).await.unwrap();
    let to_bob = bob.user();
    bob.close().await;
    let stored = alice.send(to_bob, "swordfish").await.unwrap();
    stored.stored().await.unwrap();
    let secret = &alice.history(conversation, None, 1).await.unwrap()[0];
    alice.delete(secret).await.unwrap();
    alice.delete(&hello).await.unwrap();
    // The target of this one is still in the outbox.
    let ticket = alice.send(to_bob, "mackerel").await.unwrap();
    let queued = MessageRef { conversation, user: alice.user(), id: ticket.message() };
    alice.delete(queued).await.unwrap_or_else(|error| panic!("{error}")).stored().await.unwrap();
    alice.send(to_bob, "bye").await.unwrap().stored().await.unwrap();
    let gone = Some(EmptyReason::Deleted);
    let expected = [gone, gone, None, None, gone, None, None];
    assert_eq!(reasons(&store, conversation).await, expected);
    let bob = server.client("bob").await.unwrap();
    assert_eq!(gap(&server, &bob, GapReason::Deleted).await, 2);
    assert_eq!(gap(&server, &bob, GapReason::Deleted).await, 5);
    while server.next_message(&bob).await.unwrap().text() != Some("bye") {}
    let shown = bob.history(conversation, None, 100).await.unwrap();
    let shown: Vec<_> = shown.iter().rev().map(Message::content).collect();
    assert_eq!(shown, [&Content::Deleted, &Content::Text("bye".into())], "the one that Bob had is marked");
}

#[tokio::test]
async fn deletion_that_waited_with_its_message_erases_it_on_the_server() {
    let (server, store) = started().await;
    let bob = server.client("bob").await.unwrap();
    let (alice, network) = server.offline_client("alice").await.unwrap();
    let conversation = alice.conversation_with(bob.user());
    for text in ["mackerel", "swordfish"] {
        let ticket = alice.send(bob.user(), text).await.unwrap();
        let waiting = MessageRef { conversation, user: alice.user(), id: ticket.message() };
        alice.delete(waiting).await.unwrap();
    }
    alice.close().await;
    drop(network);
    let alice = server.client("alice").await.unwrap();
    alice.drained().await.unwrap();
    let gone = Some(EmptyReason::Deleted);
    assert_eq!(reasons(&store, conversation).await, [gone, None, gone, None]);
}

#[tokio::test]
async fn group_has_one_timer_which_new_members_learn() {
    let (server, store) = started().await;
    let alice = server.client("alice").await.unwrap();
    let bob = server.client("bob").await.unwrap();
    let carol = server.client("carol").await.unwrap();
    server.make_contact(&alice, &[&bob, &carol]).await.unwrap();
    let group = alice.create_group("Hiking", &[bob.user()]).await.unwrap();
    alice.drained().await.unwrap();
    let knows = async |client: &Client, after: Option<Duration>| {
        let mut list = client.conversation_list().await.unwrap();
        while list
            .items()
            .iter()
            .find(|one| one.id == group)
            .is_none_or(|one| one.disappearing_timer != after)
        {
            list.next().await.unwrap().unwrap();
        }
    };
    knows(&bob, None).await;
    let policy = GroupPolicy { edit: Role::Admin, ..GroupPolicy::default() };
    alice.change_group(group, GroupAction::SetPolicy(policy)).await.unwrap().stored().await.unwrap();
    alice.set_disappearing_timer(group, Some(2 * SECOND)).await.unwrap();
    knows(&bob, Some(2 * SECOND)).await;
    let denied = bob.set_disappearing_timer(group, None).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied);
    alice.change_group(group, GroupAction::Add(vec![carol.user()])).await.unwrap();
    knows(&carol, Some(2 * SECOND)).await;
    let position = carol.send(group, "hello").await.unwrap().stored().await.unwrap();
    assert_eq!(disappeared(&server, &carol).await, position.seq);
    server.server().engine().sweep_messages().await.unwrap();
    assert_eq!(reasons(&store, group).await[position.seq as usize - 1], Some(EmptyReason::Disappeared));
}

/// A member was off while a message disappeared that also had the sender key for it.
#[tokio::test]
async fn later_messages_of_a_group_are_read_without_the_one_that_had_the_key() {
    let (server, _) = started().await;
    let alice = server.client("alice").await.unwrap();
    let bob = server.client("bob").await.unwrap();
    server.make_contact(&alice, &[&bob]).await.unwrap();
    let group = alice.create_group("Hiking", &[bob.user()]).await.unwrap();
    alice.set_disappearing_timer(group, Some(SECOND)).await.unwrap().stored().await.unwrap();
    while *server.next_message(&bob).await.unwrap().content() != Content::DisappearingTimer(Some(SECOND)) {}
    bob.close().await;
    // The removal of a member makes a new sender key.
    let carol = server.client("carol").await.unwrap();
    server.make_contact(&alice, &[&carol]).await.unwrap();
    alice.change_group(group, GroupAction::Add(vec![carol.user()])).await.unwrap();
    let removal = GroupAction::Remove { users: vec![carol.user()], ban: false };
    alice.change_group(group, removal).await.unwrap().stored().await.unwrap();
    let position = alice.send(group, "too late").await.unwrap().stored().await.unwrap();
    assert_eq!(disappeared(&server, &alice).await, position.seq);
    tokio::time::sleep(SECOND / 10).await;
    alice.set_disappearing_timer(group, None).await.unwrap();
    alice.send(group, "in time").await.unwrap().stored().await.unwrap();
    let bob = server.client("bob").await.unwrap();
    assert_eq!(gap(&server, &bob, GapReason::Disappeared).await, position.seq);
    let mut timeline = bob.timeline(group).await.unwrap();
    let reads = |timeline: &chat_client::Timeline| {
        timeline.items().iter().any(|one| one.message.text() == Some("in time"))
    };
    let read = async {
        while !reads(&timeline) {
            timeline.next().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(60 * SECOND, read).await.expect("the message is recovered");
}
