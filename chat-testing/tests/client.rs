//! The client on a server in the same process: each test is one promise of its documentation.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use std::time::Duration;

use chat_client::prelude::*;
use chat_client::{DeviceId, GapReason, Presence, SafetyNumber, Status};
use chat_testing::{TestServer, Unencrypted};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

fn suite() -> Box<dyn Suite> {
    Box::new(Unencrypted::new())
}

/// Starts a server with two users that accepted each other.
async fn start() -> (TestServer, Client, Client) {
    let server = TestServer::start().await.unwrap();
    let (alice, bob) = (server.client("alice").await.unwrap(), server.client("bob").await.unwrap());
    alice.accept(bob.user()).await.unwrap();
    bob.accept(alice.user()).await.unwrap();
    (server, alice, bob)
}

fn is_message(event: &Event) -> bool {
    matches!(event, Event::Message(_))
}

#[tokio::test]
async fn message_names_conversation_sender_recipient_and_time() {
    let (server, alice, bob) = start().await;
    let before = std::time::SystemTime::now();
    alice.send(bob.user(), "hello").await.unwrap();
    let message = server.next_message(&bob).await.unwrap();
    assert_eq!(message.content(), &Content::Text("hello".into()));
    assert_eq!(message.conversation, alice.conversation_with(bob.user()));
    assert_eq!((message.sender.id, message.recipient.clone().unwrap().id), (alice.user(), bob.user()));
    assert!(message.sent_at >= before - Duration::from_secs(1) && message.seq == 1);
    let history = alice.history(message.conversation, None, 10).await.unwrap();
    assert_eq!(history[0].recipient.as_ref().unwrap().id, bob.user(), "of an own message");
}

#[tokio::test]
async fn ticket_reports_each_stage() {
    let (server, alice, bob) = start().await;
    let ticket = alice.send(bob.user(), "hello").await.unwrap();
    let position = timeout(LIMIT, ticket.stored()).await.unwrap().unwrap();
    assert_eq!(position.seq, 1);
    let delivered = timeout(LIMIT, ticket.delivered()).await.unwrap().unwrap();
    assert_eq!((delivered.reached, delivered.of), (1, 1));
    let message = server.next_message(&bob).await.unwrap();
    assert!(
        timeout(Duration::from_millis(100), ticket.read()).await.is_err(),
        "read before the user read it"
    );
    let Status::Stored { read, .. } = ticket.status().await.unwrap() else { panic!("not stored") };
    assert_eq!((read.reached, read.of, read.is_complete()), (0, 1, false));
    bob.read(message.conversation, message.seq).await.unwrap();
    assert!(timeout(LIMIT, ticket.read()).await.unwrap().unwrap().is_complete());
}

#[tokio::test]
async fn ticket_is_found_again_by_its_key_after_a_restart() {
    let (server, alice, bob) = start().await;
    let first = alice.send(bob.user(), SendRequest::text("once").idempotency_key("order-1")).await.unwrap();
    assert!(!first.is_repeated());
    first.stored().await.unwrap();
    alice.close().await;
    let alice = server.client("alice").await.unwrap();
    let found = alice.ticket("order-1").await.unwrap().expect("the ticket is lost");
    assert_eq!(found.message(), first.message());
    found.stored().await.unwrap();
    assert!(alice.ticket("order-2").await.unwrap().is_none());
    let again = alice.send(bob.user(), SendRequest::text("once").idempotency_key("order-1")).await.unwrap();
    assert_eq!((again.message(), again.is_repeated()), (first.message(), true));
    let events = again.events().await.unwrap();
    assert!(
        matches!(events[0].event, Event::Queued { .. }) && matches!(events[1].event, Event::Stored { .. })
    );
    assert_eq!(server.next_message(&bob).await.unwrap().text(), Some("once"));
    assert!(timeout(Duration::from_millis(200), server.next_message(&bob)).await.is_err(), "sent twice");
}

#[tokio::test]
async fn errors_that_are_known_at_the_call_are_returned_by_it() {
    let (_server, alice, bob) = start().await;
    let kind = |result: Result<Ticket>| result.map(drop).unwrap_err().kind();
    assert_eq!(kind(alice.send(bob.user(), "x".repeat(64 * 1024 + 1)).await), ErrorKind::Invalid, "too long");
    alice.send(bob.user(), SendRequest::text("a").idempotency_key("k")).await.unwrap();
    let other = SendRequest::text("b").idempotency_key("k");
    assert_eq!(kind(alice.send(bob.user(), other).await), ErrorKind::Conflict, "key of another message");
    let stranger = ConversationId::direct(bob.user(), UserId::from_bytes([9; 16]));
    assert_eq!(kind(alice.send(stranger, "a").await), ErrorKind::NotFound, "unknown conversation");
    let nobody = alice.send(Handle::new("nobody").unwrap(), "a").await.unwrap();
    let refused = timeout(LIMIT, nobody.stored()).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "unknown only to the server");
}

#[tokio::test]
async fn cursor_repeats_events_until_they_are_handled() {
    let (server, alice, bob) = start().await;
    for text in ["one", "two", "three"] {
        alice.send(bob.user(), text).await.unwrap();
    }
    let mut events = bob.events("bot").await.unwrap();
    let first = server.next_event(&mut events, is_message).await.unwrap();
    let second = server.next_event(&mut events, is_message).await.unwrap();
    events.handled(&first).await.unwrap();
    drop(events);
    bob.close().await;
    let bob = server.client("bob").await.unwrap();
    let mut events = bob.events("bot").await.unwrap();
    assert_eq!(
        server.next_event(&mut events, is_message).await.unwrap(),
        second,
        "the event that was not handled"
    );
    let third = server.next_event(&mut events, is_message).await.unwrap();
    events.handled(&third).await.unwrap();
    let mut other = bob.events("another").await.unwrap();
    assert_eq!(server.next_event(&mut other, is_message).await.unwrap(), first, "a cursor of its own");
    let unnamed = bob.events_after(Some(0));
    assert_eq!(unnamed.handled(&third).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn transient_events_have_no_number() {
    let (server, alice, bob) = start().await;
    let mut events = bob.events("bot").await.unwrap();
    let connected = server.next_event(&mut events, |event| *event == Event::Connected).await.unwrap();
    assert_eq!(connected.number, None);
    events.handled(&connected).await.unwrap();
    alice.typing(alice.conversation_with(bob.user())).await.unwrap();
    alice.send(bob.user(), "x").await.unwrap();
    let message = server.next_event(&mut events, is_message).await.unwrap();
    assert!(message.number.is_some());
}

#[tokio::test]
async fn cancelled_next_loses_no_event() {
    let (_server, alice, bob) = start().await;
    let mut events = bob.events("bot").await.unwrap();
    let mut texts = Vec::new();
    for n in 0..40 {
        drop(alice.submit(bob.user(), n.to_string()).await.unwrap());
    }
    while texts.len() < 40 {
        // A limit of zero cancels every call that does not complete at once.
        let next = timeout(Duration::ZERO, events.next()).await;
        tokio::task::yield_now().await;
        if let Ok(next) = next
            && let Event::Message(message) = next.unwrap().unwrap().event
        {
            texts.push(message.text().unwrap().to_owned());
        }
    }
    assert_eq!(texts, (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn suspended_client_releases_its_profile_and_streams_continue() {
    let (server, alice, bob) = start().await;
    let mut events = bob.events("bot").await.unwrap();
    bob.suspend().await.unwrap();
    bob.suspend().await.unwrap();
    let ticket = alice.send(bob.user(), "while away").await.unwrap();
    ticket.stored().await.unwrap();
    // Another process, such as a push extension, may open the profile now.
    let extension = Client::open(server.config("bob", suite())).await.unwrap();
    extension.ready().await.unwrap();
    let resumed = bob.resume().await.unwrap_err();
    assert_eq!(resumed.kind(), ErrorKind::Conflict, "the extension has the profile open");
    extension.close().await;
    let queued_while_suspended = tokio::spawn({
        let (bob, alice) = (bob.clone(), alice.user());
        async move { bob.send(alice, "after").await.unwrap().stored().await.unwrap() }
    });
    bob.resume().await.unwrap();
    let Event::Message(message) = server.next_event(&mut events, is_message).await.unwrap().event else {
        unreachable!()
    };
    assert_eq!(message.text(), Some("while away"));
    timeout(LIMIT, queued_while_suspended).await.unwrap().unwrap();
    timeout(LIMIT, ticket.delivered()).await.unwrap().unwrap();
}

#[tokio::test]
async fn stream_ends_when_the_client_is_closed() {
    let (_server, _alice, bob) = start().await;
    let mut events = bob.events_after(None);
    bob.clone().close().await;
    let ended = async { while events.next().await.unwrap().is_some() {} };
    timeout(LIMIT, ended).await.unwrap();
    assert_eq!(bob.outbox_len().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(events.next().await, Ok(None), "after its end");
}

#[tokio::test]
async fn stream_with_unread_events_ends_when_the_client_is_closed() {
    let (_server, alice, bob) = start().await;
    let mut events = bob.events_after(Some(0));
    alice.send(bob.user(), "unread").await.unwrap().delivered().await.unwrap();
    assert!(bob.last_event() > 0);
    bob.close().await;
    while events.next().await.unwrap().is_some() {}
}

#[tokio::test]
async fn close_carries_out_what_was_handed_over_before() {
    let (server, alice, bob) = start().await;
    alice.send(bob.user(), "hello").await.unwrap();
    let message = server.next_message(&bob).await.unwrap();
    // Bob's own sends keep his driver busy.
    for n in 0..100 {
        drop(bob.submit(bob.user(), n.to_string()).await.unwrap());
    }
    bob.read(message.conversation, message.seq).await.unwrap();
    bob.close().await;
    let bob = Client::open(server.config("bob", suite())).await.unwrap();
    let conversations = bob.conversations().await.unwrap();
    let unread = conversations.iter().find(|one| one.id == message.conversation).unwrap().unread;
    let own = bob.conversation_with(bob.user());
    timeout(LIMIT, bob.drained()).await.unwrap().unwrap();
    assert_eq!((unread, bob.history(own, None, 200).await.unwrap().len()), (0, 100));
}

#[tokio::test]
async fn calls_and_presence_survive_a_suspension() {
    let (server, alice, bob) = start().await;
    let mut events = alice.events("app").await.unwrap();
    let ticket = alice.send(bob.user(), "hello").await.unwrap();
    let message = server.next_message(&bob).await.unwrap();
    alice.watch_presence(vec![bob.user()]).await.unwrap();
    let read = tokio::spawn({
        let ticket = ticket.clone();
        async move { ticket.read().await }
    });
    tokio::task::yield_now().await;
    alice.suspend().await.unwrap();
    let drained = tokio::spawn({
        let alice = alice.clone();
        async move { alice.drained().await }
    });
    bob.read(message.conversation, message.seq).await.unwrap();
    bob.close().await;
    alice.resume().await.unwrap();
    timeout(LIMIT, drained).await.unwrap().unwrap().unwrap();
    // A device reports what its user read again whenever it connects.
    let _bob = server.client("bob").await.unwrap();
    assert!(timeout(LIMIT, read).await.unwrap().unwrap().unwrap().is_complete());
    let online = |event: &Event| matches!(event, Event::Presence { presence: Presence::Online, .. });
    server.next_event(&mut events, online).await.unwrap();
}

#[tokio::test]
async fn key_that_is_used_twice_in_one_batch_is_one_message() {
    let (server, alice, bob) = start().await;
    let request = || SendRequest::text("once").idempotency_key("k");
    let first = alice.submit(bob.user(), request()).await.unwrap();
    let second = alice.submit(bob.user(), request()).await.unwrap();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!((first.message(), first.is_repeated(), second.is_repeated()), (second.message(), false, true));
    assert_eq!(server.next_message(&bob).await.unwrap().text(), Some("once"));
    assert!(timeout(Duration::from_millis(200), server.next_message(&bob)).await.is_err(), "sent twice");
}

#[tokio::test]
async fn debug_hides_the_token() {
    let server = TestServer::start().await.unwrap();
    let shown = format!("{:?}", server.config("alice", suite()).token("hunter2"));
    assert!(!shown.contains("hunter2") && shown.contains("token: true"), "{shown}");
}

#[tokio::test]
async fn conversations_show_peer_last_message_and_unread() {
    let (server, alice, bob) = start().await;
    for text in ["one", "two"] {
        alice.send(bob.user(), text).await.unwrap();
    }
    server.next_message(&bob).await.unwrap();
    let message = server.next_message(&bob).await.unwrap();
    let conversations = bob.conversations().await.unwrap();
    assert_eq!(conversations.len(), 1);
    assert_eq!(conversations[0].peer.as_ref().unwrap().id, alice.user());
    assert_eq!(conversations[0].last_message.as_ref().unwrap().text(), Some("two"));
    assert_eq!(conversations[0].unread, 2);
    bob.read(message.conversation, 1).await.unwrap();
    assert_eq!(bob.conversations().await.unwrap()[0].unread, 1);
    bob.send(&conversations[0], "three").await.unwrap();
    assert_eq!(server.next_message(&alice).await.unwrap().text(), Some("three"));
}

#[tokio::test]
async fn sender_is_told_that_the_server_slows_it_and_for_how_long() {
    let server = TestServer::start().await.unwrap();
    let (alice, bob) = (server.client("alice").await.unwrap(), server.client("bob").await.unwrap());
    let mut events = alice.events("bot").await.unwrap();
    // A stranger may send 60 messages at once. The others wait, and none is lost.
    let mut tickets = Vec::new();
    for n in 0..63 {
        tickets.push(alice.send(bob.user(), format!("line {n}")).await.unwrap());
    }
    let slowed =
        server.next_event(&mut events, |event| matches!(event, Event::Throttled { .. })).await.unwrap();
    let Event::Throttled { retry_after } = slowed.event else { unreachable!() };
    assert!(retry_after > Duration::ZERO && retry_after < Duration::from_secs(10), "{retry_after:?}");
    for ticket in tickets {
        timeout(LIMIT, ticket.stored()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn linked_device_receives_messages_of_both_users() {
    let (server, alice, bob) = start().await;
    let tablet = server.linked_client(&alice, "tablet", suite()).await.unwrap();
    assert_eq!(tablet.devices().await.unwrap().len(), 2);
    alice.send(bob.user(), "from the phone").await.unwrap();
    let own = server.next_message(&tablet).await.unwrap();
    assert_eq!(
        (own.sender.id, own.device, own.text()),
        (alice.user(), alice.device(), Some("from the phone"))
    );
    // An app that has another conversation open shows it there, and not in that one.
    assert_eq!(own.conversation, tablet.conversation_with(bob.user()));
    let recipient = own.recipient.unwrap();
    assert_eq!((recipient.id, &recipient.handle.unwrap()), (bob.user(), bob.handle()));
    let message = server.next_message(&bob).await.unwrap();
    message.reply(&bob, "to both").await.unwrap();
    for device in [&alice, &tablet] {
        assert_eq!(server.next_message(device).await.unwrap().text(), Some("to both"));
    }
    alice.unlink(tablet.device()).await.unwrap();
    let stopped = timeout(LIMIT, async {
        loop {
            if let Err(error) = tablet.ready().await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(stopped.await.unwrap().kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn register_needs_a_new_profile_and_register_if_new_does_not() {
    let (server, alice, _bob) = start().await;
    let user = alice.user();
    alice.close().await;
    let config = || server.config("alice", suite());
    assert_eq!(Client::register(config(), "alice").await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(Client::register_if_new(config(), "alicia").await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(Client::register_if_new(config(), "alice").await.unwrap().user(), user);
    assert_eq!(
        Client::register(server.config("new", suite()), "bob").await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert_eq!(Client::open(server.config("none", suite())).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(Client::register(config(), "Not A Handle").await.unwrap_err().kind(), ErrorKind::Invalid);
    for name in ["", "..", "a/b", "/a"] {
        assert_eq!(
            Client::open(server.config(name, suite())).await.unwrap_err().kind(),
            ErrorKind::Invalid,
            "{name}"
        );
    }
}

#[tokio::test]
async fn dropped_link_releases_its_profile() {
    let (server, _alice, _bob) = start().await;
    let pending = Client::link(server.config("tablet", suite())).await.unwrap();
    drop(pending);
    let again = timeout(LIMIT, async {
        loop {
            match Client::link(server.config("tablet", suite())).await {
                Err(error) if error.kind() == ErrorKind::Conflict => tokio::task::yield_now().await,
                outcome => return outcome,
            }
        }
    });
    again.await.expect("the profile stays locked").unwrap();
}

#[tokio::test]
async fn events_are_a_stream_and_serialize() {
    fn assert_stream<S: futures_util::Stream<Item = Result<EventRecord>> + Unpin + Send>(_: &S) {}
    fn assert_serde<T: serde::Serialize + for<'a> serde::Deserialize<'a>>() {}
    assert_serde::<EventRecord>();
    assert_serde::<(SendRequest, Recipient, Status, SafetyNumber, GapReason)>();
    assert!(serde_json::from_str::<Handle>("\"Not A Handle\"").is_err(), "an invalid handle was accepted");
    let (server, alice, bob) = start().await;
    alice.send(bob.user(), "x").await.unwrap();
    let mut events = bob.events("bot").await.unwrap();
    assert_stream(&events);
    let record = server.next_event(&mut events, is_message).await.unwrap();
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<EventRecord>(&text).unwrap(), record);
}

/// A device sends, and is unlinked before the recipient reads: the list that its message names verifies it.
#[tokio::test(flavor = "multi_thread")]
async fn message_of_a_device_that_was_unlinked_later_is_read() {
    let server = TestServer::start().await.unwrap();
    let (alice, bob) = (server.client("alice").await.unwrap(), server.client("bob").await.unwrap());
    alice.send(Handle::new("bob").unwrap(), "from the phone").await.unwrap().stored().await.unwrap();
    assert_eq!(server.next_message(&bob).await.unwrap().text(), Some("from the phone"));
    bob.close().await;
    let tablet = server.linked_client(&alice, "tablet", Box::new(Unencrypted::new())).await.unwrap();
    tablet.send(Handle::new("bob").unwrap(), "from the tablet").await.unwrap().stored().await.unwrap();
    tablet.close().await;
    alice.unlink(DeviceId::new(2).unwrap()).await.unwrap();
    let bob = server.client("bob").await.unwrap();
    assert_eq!(server.next_message(&bob).await.unwrap().text(), Some("from the tablet"));
}

#[tokio::test]
async fn cleared_conversation_is_empty_on_this_device_only() {
    let (server, alice, bob) = start().await;
    let talk = alice.conversation_with(bob.user());
    for text in ["one", "two"] {
        let ticket = alice.send(bob.user(), text).await.unwrap();
        timeout(LIMIT, ticket.delivered()).await.unwrap().unwrap();
    }
    alice.clear_history(talk).await.unwrap();
    assert!(alice.history(talk, None, 10).await.unwrap().is_empty());
    assert_eq!(bob.history(talk, None, 10).await.unwrap().len(), 2, "the other user keeps it");
    let known = alice.conversations().await.unwrap();
    let cleared = known.iter().find(|one| one.id == talk).unwrap();
    assert!(cleared.last_message.is_none() && cleared.unread == 0);

    let answer = bob.send(alice.user(), "three").await.unwrap();
    timeout(LIMIT, answer.delivered()).await.unwrap().unwrap();
    let texts: Vec<_> = alice.history(talk, None, 10).await.unwrap();
    assert_eq!(texts.iter().map(|message| message.text()).collect::<Vec<_>>(), [Some("three")]);

    bob.clear_history(talk).await.unwrap();
    let mut again = bob.events_after(Some(0));
    let first = loop {
        let next = timeout(LIMIT, again.next()).await.unwrap().unwrap().unwrap();
        if let Event::Message(message) = next.event {
            break message;
        }
    };
    assert_eq!((first.seq, first.content()), (1, &Content::Cleared), "an event holds no text");
    let unknown = alice.clear_history(alice.conversation_with(alice.user())).await;
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::NotFound, "there is no such conversation");
    drop(server);
}
