//! Replies, mentions, edits, deletions and reactions: each test is one promise of their documentation.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use chat_client::prelude::*;
use chat_client::{MessageChange, MessageRef, Role};
use chat_testing::TestServer;

/// Alice and Bob, and a message of Alice that Bob has.
async fn written(text: &str) -> (TestServer, Client, Client, Message) {
    let server = TestServer::start().await.unwrap();
    let alice = server.client("alice").await.unwrap();
    let bob = server.client("bob").await.unwrap();
    alice.send(bob.user(), text).await.unwrap().stored().await.unwrap();
    let message = server.next_message(&bob).await.unwrap();
    (server, alice, bob, message)
}

/// Waits until a client learns of a change of a message.
async fn changed(server: &TestServer, client: &Client) -> (UserId, MessageRef, MessageChange) {
    let mut events = client.events("changes").await.unwrap();
    let is_change = |event: &Event| matches!(event, Event::MessageChanged { .. });
    let record = server.next_event(&mut events, is_change).await.unwrap();
    events.handled(&record).await.unwrap();
    match record.event {
        Event::MessageChanged { user, message, change, .. } => (user.id, message, change),
        _ => panic!("another event"),
    }
}

async fn history(client: &Client, of: &Message) -> Vec<Message> {
    client.history(of.conversation, None, 100).await.unwrap()
}

#[tokio::test]
async fn reply_and_mentions_arrive_with_the_text() {
    let (server, alice, bob, message) = written("lunch?").await;
    let reply = SendRequest::text("yes, alice").reply_to(&message).mention(alice.user());
    bob.send(alice.user(), reply).await.unwrap();
    let answer = server.next_message(&alice).await.unwrap();
    assert_eq!(answer.text(), Some("yes, alice"));
    assert_eq!(answer.reply_to, Some(MessageRef::from(&message)));
    assert_eq!((&answer.mentions[..], answer.is_forwarded), (&[alice.user()][..], false));
    alice.send(bob.user(), SendRequest::text("lunch?").forwarded()).await.unwrap();
    assert!(server.next_message(&bob).await.unwrap().is_forwarded);
    let many = (0..257).fold(SendRequest::text("all"), |request, _| request.mention(alice.user()));
    assert_eq!(bob.send(alice.user(), many).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn author_edits_a_message_and_nobody_else() {
    let (server, alice, bob, message) = written("see you at 7").await;
    let refused = bob.edit(&message, "see you never").await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied);
    for text in ["see you at 8", "see you at 9"] {
        alice.edit(&message, text).await.unwrap().stored().await.unwrap();
        let change = changed(&server, &bob).await;
        assert_eq!(change, (alice.user(), MessageRef::from(&message), MessageChange::Edited));
    }
    for client in [&alice, &bob] {
        let shown = history(client, &message).await;
        assert_eq!((shown.len(), shown[0].text(), shown[0].is_edited), (1, Some("see you at 9"), true));
        assert_eq!(shown[0].seq, message.seq, "it keeps its place");
        let listed = client.conversations().await.unwrap();
        let last = listed[0].last_message.as_ref().unwrap();
        assert_eq!((last.text(), last.seq), (Some("see you at 9"), message.seq));
    }
    assert_eq!(bob.conversations().await.unwrap()[0].unread, 1, "an edit is no unread message");
}

#[tokio::test]
async fn deleted_message_leaves_no_text() {
    let (server, alice, bob, message) = written("the password is swordfish").await;
    bob.react(&message, "👍").await.unwrap().stored().await.unwrap();
    alice.edit(&message, "the password is mackerel").await.unwrap().stored().await.unwrap();
    assert_eq!(bob.delete(&message).await.unwrap_err().kind(), ErrorKind::Denied, "it is Alice's");
    alice.delete(&message).await.unwrap().stored().await.unwrap();
    while changed(&server, &bob).await.2 != MessageChange::Deleted {}
    for client in [&alice, &bob] {
        let shown = history(client, &message).await;
        assert_eq!((shown.len(), shown[0].content(), shown[0].reactions.len()), (1, &Content::Deleted, 0));
        assert!(!shown[0].is_edited);
    }
    assert_eq!(alice.edit(&message, "again").await.unwrap_err().kind(), ErrorKind::NotFound);
    let other = MessageRef { user: alice.user(), id: MessageId::from_bytes([9; 16]), ..(&message).into() };
    assert_eq!(bob.react(other, "👍").await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn user_has_each_reaction_once_and_takes_it_back() {
    let (server, alice, bob, message) = written("done").await;
    for emoji in ["👍", "🎉", "👍"] {
        bob.react(&message, emoji).await.unwrap().stored().await.unwrap();
    }
    alice.react(&message, "👍").await.unwrap().stored().await.unwrap();
    let reactions = async |client: &Client| -> Vec<(UserId, String)> {
        let shown = history(client, &message).await;
        shown[0].reactions.iter().map(|one| (one.user.id, one.emoji.clone())).collect()
    };
    for client in [&alice, &bob] {
        for _ in 0..4 {
            changed(&server, client).await;
        }
    }
    let expected = [(bob.user(), "🎉".into()), (bob.user(), "👍".into()), (alice.user(), "👍".into())];
    assert_eq!((reactions(&alice).await, reactions(&bob).await), (expected.to_vec(), expected.to_vec()));
    bob.unreact(&message, "👍").await.unwrap().stored().await.unwrap();
    changed(&server, &alice).await;
    assert_eq!(reactions(&alice).await, [expected[0].clone(), expected[2].clone()]);
    let long = bob.react(&message, "x".repeat(65)).await;
    assert_eq!(long.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn admin_deletes_messages_of_others_in_a_group() {
    let server = TestServer::start().await.unwrap();
    let [alice, bob, carol] =
        [server.client("alice").await, server.client("bob").await, server.client("carol").await]
            .map(Result::unwrap);
    server.make_contact(&alice, &[&bob, &carol]).await.unwrap();
    let group = alice.create_group("Crew", &[bob.user(), carol.user()]).await.unwrap();
    bob.ready().await.unwrap();
    let message = loop {
        match bob.send(group, "spam").await {
            Ok(ticket) => {
                ticket.stored().await.unwrap();
                break loop {
                    let message = server.next_message(&carol).await.unwrap();
                    if message.text().is_some() {
                        break message;
                    }
                };
            }
            // Bob does not know the group yet.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    assert_eq!(carol.delete(&message).await.unwrap_err().kind(), ErrorKind::Denied, "a member");
    alice.change_group(group, chat_client::GroupAction::SetRole(carol.user(), Role::Admin)).await.unwrap();
    while carol.group(group).await.unwrap().own_role != Some(Role::Admin) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    carol.delete(&message).await.unwrap().stored().await.unwrap();
    assert_eq!(changed(&server, &bob).await.2, MessageChange::Deleted);
    let shown = bob.history(group, None, 100).await.unwrap();
    assert!(shown.iter().all(|one| one.text().is_none()), "{shown:?}");
}

#[tokio::test]
async fn messages_that_wait_are_changed_too() {
    let server = TestServer::start().await.unwrap();
    let (alice, network) = server.offline_client("alice").await.unwrap();
    let bob = server.client("bob").await.unwrap();
    let conversation = alice.conversation_with(bob.user());
    let waiting = |ticket: &Ticket| MessageRef { conversation, user: alice.user(), id: ticket.message() };
    // The first messages of the conversation.
    let first = alice.send(bob.user(), "teh first").await.unwrap();
    let second = alice.send(bob.user(), "the second").await.unwrap();
    alice.edit(waiting(&first), "the first").await.unwrap();
    let deletion = alice.delete(waiting(&second)).await.unwrap();
    let edit_of_an_edit = MessageRef { id: deletion.message(), ..waiting(&second) };
    let refused = alice.edit(edit_of_an_edit, "no message").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "a change is no message");
    network.set_up(true);
    deletion.stored().await.unwrap();
    while changed(&server, &bob).await.2 != MessageChange::Deleted {}
    for client in [&alice, &bob] {
        let shown = client.history(conversation, None, 100).await.unwrap();
        let shown: Vec<_> = shown.iter().rev().map(Message::content).collect();
        assert_eq!(shown, [&Content::Text("the first".into()), &Content::Deleted]);
    }
}
