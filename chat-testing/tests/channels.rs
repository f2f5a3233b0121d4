//! Channels on a server in the same process: each test is one promise of their documentation.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use chat_client::prelude::*;
use chat_client::{GroupAction, GroupInvitation, RefusedReason, Role, Unreadable};
use chat_core::backend::Rules;
use chat_server::Server;
use chat_testing::TestServer;

/// Alice founds a channel. Returns its link, too.
async fn founded() -> (TestServer, Client, ConversationId, GroupInvitation) {
    let server = TestServer::start().await.unwrap();
    let alice = server.client("alice").await.unwrap();
    let channel = alice.create_channel("News").await.unwrap();
    alice.send(channel, "first").await.unwrap().stored().await.unwrap();
    let invitation = link(&alice, channel).await;
    (server, alice, channel, invitation)
}

async fn link(client: &Client, channel: ConversationId) -> GroupInvitation {
    client.group(channel).await.unwrap().link.unwrap().invitation.unwrap()
}

async fn next_text(server: &TestServer, client: &Client) -> String {
    loop {
        if let Some(text) = server.next_message(client).await.unwrap().text() {
            return text.to_owned();
        }
    }
}

/// Returns the texts of a conversation, oldest first.
async fn texts(client: &Client, channel: ConversationId) -> Vec<String> {
    let history = client.history(channel, None, 100).await.unwrap();
    history.iter().rev().filter_map(|message| message.text().map(str::to_owned)).collect()
}

/// Sends a post, and waits until it is stored.
async fn post(client: &Client, channel: ConversationId, text: &str) {
    client.send(channel, text).await.unwrap().stored().await.unwrap();
}

#[tokio::test]
async fn subscriber_reads_each_post_once_and_in_order() {
    let (server, alice, channel, invitation) = founded().await;
    let bob = server.client("bob").await.unwrap();
    bob.subscribe(&invitation).await.unwrap();
    bob.subscribe(&invitation).await.unwrap();
    for n in 0..10 {
        post(&alice, channel, &format!("post {n}")).await;
    }
    for n in 0..10 {
        assert_eq!(next_text(&server, &bob).await, format!("post {n}"));
    }
    let listed = bob.conversations().await.unwrap();
    let listed = listed.iter().find(|one| one.id == channel).unwrap();
    assert_eq!((listed.name.as_deref(), listed.unread), (Some("News"), 10));
    let known = bob.group(channel).await.unwrap();
    assert_eq!((known.own_role, known.members.len()), (None, 1));
    assert_eq!(known.members[0].role, Role::Owner);
    bob.read(channel, 100).await.unwrap();
    let refused = bob.send(channel, "may I?").await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied, "a subscriber does not write");
}

#[tokio::test]
async fn posts_from_before_the_subscription_are_loaded() {
    let (server, alice, channel, invitation) = founded().await;
    for n in 0..5 {
        post(&alice, channel, &format!("post {n}")).await;
    }
    post(&alice, channel, "wrnog").await;
    let wrong = alice.history(channel, None, 1).await.unwrap().remove(0);
    alice.edit(&wrong, "right").await.unwrap().stored().await.unwrap();
    let bob = server.client("bob").await.unwrap();
    bob.subscribe(&invitation).await.unwrap();
    post(&alice, channel, "live").await;
    assert_eq!(next_text(&server, &bob).await, "live");
    assert_eq!(texts(&bob, channel).await, ["live"]);
    assert_eq!(bob.load_history(channel, 4).await.unwrap(), 3);
    assert_eq!(texts(&bob, channel).await, ["post 3", "post 4", "right", "live"], "edits are applied");
    assert_eq!(bob.load_history(channel, 100).await.unwrap(), 4);
    let all = ["first", "post 0", "post 1", "post 2", "post 3", "post 4", "right", "live"];
    assert_eq!(texts(&bob, channel).await, all);
    assert_eq!(bob.load_history(channel, 100).await.unwrap(), 0);
    assert_eq!(texts(&alice, channel).await, all);
    let unread = async || {
        let listed = bob.conversations().await.unwrap();
        listed.iter().find(|one| one.id == channel).unwrap().unread
    };
    assert_eq!(unread().await, 1, "earlier posts are read");
    bob.read(channel, 1000).await.unwrap();
    assert_eq!(unread().await, 0);
    let found = bob.search("post", None, 10).await.unwrap();
    assert_eq!(found.len(), 5, "earlier posts are found");
}

#[tokio::test]
async fn subscriber_that_was_offline_catches_up() {
    let (server, alice, channel, invitation) = founded().await;
    let (bob, network) = server.offline_client("bob").await.unwrap();
    network.set_up(true);
    bob.ready().await.unwrap();
    bob.subscribe(&invitation).await.unwrap();
    post(&alice, channel, "online").await;
    assert_eq!(next_text(&server, &bob).await, "online");
    network.set_up(false);
    for n in 0..200 {
        alice.send(channel, format!("post {n}")).await.unwrap();
    }
    alice.drained().await.unwrap();
    network.set_up(true);
    for n in 0..200 {
        assert_eq!(next_text(&server, &bob).await, format!("post {n}"));
    }
}

#[tokio::test]
async fn first_subscription_is_no_gap_and_a_second_one_is() {
    let (server, alice, channel, invitation) = founded().await;
    let bob = server.client("bob").await.unwrap();
    let gaps = async |client: &Client| {
        let mut events = client.events_after(None);
        let mut gaps = Vec::new();
        for _ in 0..client.last_event() {
            if let Event::Gap { from_seq, to_seq, .. } = events.next().await.unwrap().unwrap().event {
                gaps.push((from_seq, to_seq));
            }
        }
        gaps
    };
    bob.subscribe(&invitation).await.unwrap();
    post(&alice, channel, "one").await;
    assert_eq!(next_text(&server, &bob).await, "one");
    assert_eq!(gaps(&bob).await, []);
    bob.unsubscribe(channel).await.unwrap();
    post(&alice, channel, "two").await;
    bob.subscribe(&invitation).await.unwrap();
    post(&alice, channel, "three").await;
    assert_eq!(next_text(&server, &bob).await, "three");
    let missed = gaps(&bob).await;
    assert!(missed.iter().any(|(from, to)| (*from..=*to).contains(&6)), "{missed:?}");
}

#[tokio::test]
async fn unsubscribed_device_gets_nothing_until_it_subscribes_again() {
    let (server, alice, channel, invitation) = founded().await;
    let bob = server.client("bob").await.unwrap();
    bob.subscribe(&invitation).await.unwrap();
    post(&alice, channel, "one").await;
    assert_eq!(next_text(&server, &bob).await, "one");
    bob.unsubscribe(channel).await.unwrap();
    assert!(bob.conversations().await.unwrap().iter().all(|one| one.id != channel), "it is not listed");
    post(&alice, channel, "two").await;
    bob.subscribe(&invitation).await.unwrap();
    post(&alice, channel, "three").await;
    assert_eq!(next_text(&server, &bob).await, "three");
    assert_eq!(texts(&bob, channel).await, ["one", "three"]);
}

#[tokio::test]
async fn banned_subscriber_reads_no_later_post() {
    let (server, alice, channel, invitation) = founded().await;
    let bob = server.client("bob").await.unwrap();
    let carol = server.client("carol").await.unwrap();
    for reader in [&bob, &carol] {
        reader.subscribe(&invitation).await.unwrap();
    }
    let ban = GroupAction::Remove { users: vec![bob.user()], ban: true };
    alice.change_group(channel, ban).await.unwrap().stored().await.unwrap();
    post(&alice, channel, "without Bob").await;
    assert_eq!(next_text(&server, &carol).await, "without Bob");
    assert_eq!(bob.subscribe(&invitation).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(texts(&bob, channel).await, Vec::<String>::new());
    alice.change_group(channel, GroupAction::Unban(vec![bob.user()])).await.unwrap().stored().await.unwrap();
    bob.subscribe(&invitation).await.unwrap();
    post(&alice, channel, "with Bob").await;
    assert_eq!(next_text(&server, &bob).await, "with Bob");
}

#[tokio::test]
async fn new_link_reaches_readers_and_closes_the_old_one() {
    let (server, alice, channel, old) = founded().await;
    let bob = server.client("bob").await.unwrap();
    bob.subscribe(&old).await.unwrap();
    let (new, ticket) = alice.create_group_link(channel, false).await.unwrap();
    ticket.stored().await.unwrap();
    post(&alice, channel, "under the new link").await;
    assert_eq!(next_text(&server, &bob).await, "under the new link");
    let carol = server.client("carol").await.unwrap();
    assert_eq!(carol.subscribe(&old).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(carol.conversations().await.unwrap().iter().all(|one| one.id != channel));
    carol.subscribe(&new).await.unwrap();
    post(&alice, channel, "for both").await;
    for reader in [&bob, &carol] {
        assert_eq!(next_text(&server, reader).await, "for both");
    }
    assert_eq!(carol.load_history(channel, 100).await.unwrap(), 1, "earlier posts have the old key");
}

#[tokio::test]
async fn renewed_key_excludes_readers_without_the_new_link() {
    let (server, alice, channel, old) = founded().await;
    let bob = server.client("bob").await.unwrap();
    bob.subscribe(&old).await.unwrap();
    alice.renew_channel_key(channel).await.unwrap().stored().await.unwrap();
    post(&alice, channel, "secret").await;
    let unreadable = loop {
        let message = server.next_message(&bob).await.unwrap();
        if let Content::Unreadable(why) = message.content() {
            break *why;
        }
    };
    assert_eq!(unreadable, Unreadable::NoChannelKey);
    bob.subscribe(&link(&alice, channel).await).await.unwrap();
    post(&alice, channel, "readable").await;
    loop {
        let message = server.next_message(&bob).await.unwrap();
        if message.text() == Some("readable") {
            break;
        }
    }
}

#[tokio::test]
async fn added_writer_posts_after_it_took_over_the_key() {
    let (server, alice, channel, _) = founded().await;
    let bob = server.client("bob").await.unwrap();
    let carol = server.client("carol").await.unwrap();
    server.make_contact(&alice, &[&bob]).await.unwrap();
    alice.change_group(channel, GroupAction::Add(vec![bob.user()])).await.unwrap().stored().await.unwrap();
    let invitation = loop {
        if let Content::Invitation(invitation) = server.next_message(&bob).await.unwrap().content() {
            break invitation.clone();
        }
    };
    bob.subscribe(&invitation).await.unwrap();
    carol.subscribe(&invitation).await.unwrap();
    post(&bob, channel, "of Bob").await;
    assert_eq!(next_text(&server, &carol).await, "of Bob");
    assert_eq!(next_text(&server, &alice).await, "of Bob");
}

#[tokio::test]
async fn invalid_requests_change_nothing() {
    let (server, alice, channel, invitation) = founded().await;
    let bob = server.client("bob").await.unwrap();
    let without = GroupInvitation::new(channel, None, None).unwrap();
    assert_eq!(bob.subscribe(&without).await.unwrap_err().kind(), ErrorKind::Invalid);
    let group = alice.create_group("Group", &[]).await.unwrap();
    let (of_group, ticket) = alice.create_group_link(group, false).await.unwrap();
    ticket.stored().await.unwrap();
    assert_eq!(bob.subscribe(&of_group).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(bob.load_history(channel, 10).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(bob.renew_channel_key(channel).await.unwrap_err().kind(), ErrorKind::NotFound);
    bob.subscribe(&invitation).await.unwrap();
    post(&alice, channel, "hello").await;
    next_text(&server, &bob).await;
    let refused = bob.renew_channel_key(channel).await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied, "not an admin");
    post(&alice, channel, "again").await;
    assert_eq!(next_text(&server, &bob).await, "again");
    assert_eq!(alice.create_channel("").await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(RefusedReason::NoChannelKey.name(), "no_channel_key");
}

#[tokio::test]
async fn writer_keeps_the_posts_for_its_readers() {
    let (server, alice, channel, invitation) = founded().await;
    assert_eq!(alice.unsubscribe(channel).await.unwrap_err().kind(), ErrorKind::Denied);
    alice.clear_history(channel).await.unwrap();
    post(&alice, channel, "later").await;
    let bob = server.client("bob").await.unwrap();
    bob.subscribe(&invitation).await.unwrap();
    assert_eq!(bob.load_history(channel, 100).await.unwrap(), 2, "a cleared post is still there");
    assert_eq!(texts(&bob, channel).await, ["first", "later"]);
}

#[tokio::test]
async fn server_without_channels_says_so() {
    let builder = Server::builder().in_memory().open_registration().rules(Rules::GROUPS);
    let server = TestServer::start_with(builder).await.unwrap();
    let alice = server.client("alice").await.unwrap();
    let channel = alice.create_channel("News").await.unwrap();
    let mut events = alice.events("refused").await.unwrap();
    let is_refused = |event: &Event| matches!(event, Event::Refused { .. });
    let refused = server.next_event(&mut events, is_refused).await.unwrap();
    assert!(
        matches!(refused.event, Event::Refused { reason: RefusedReason::Unsupported, .. }),
        "{refused:?}"
    );
    let unsupported = alice.subscribe(&link_of(channel)).await.unwrap_err();
    assert_eq!(unsupported.kind(), ErrorKind::Unsupported);
}

fn link_of(channel: ConversationId) -> GroupInvitation {
    let secret = chat_core::group::LinkSecret::from_bytes([1; 32]);
    GroupInvitation::new(channel, None, Some(secret)).unwrap()
}
