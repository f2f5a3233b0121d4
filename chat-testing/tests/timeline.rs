//! Timelines and the list of conversations: each test is one promise of their documentation.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::time::{Duration, SystemTime};

use chat_client::prelude::*;
use chat_client::{Count, Diff, RefusedReason, Status, Target, Timeline, TimelineItem};
use chat_testing::TestServer;

async fn pair() -> (TestServer, Client, Client) {
    let server = TestServer::start().await.unwrap();
    let alice = server.client("alice").await.unwrap();
    let bob = server.client("bob").await.unwrap();
    // Receipts go to contacts only.
    bob.accept(alice.user()).await.unwrap();
    alice.accept(bob.user()).await.unwrap();
    (server, alice, bob)
}

fn texts(timeline: &Timeline) -> Vec<&str> {
    timeline.items().iter().map(|item| item.message.text().unwrap_or("-")).collect()
}

/// Waits until a timeline satisfies a condition. Its changes always lead to its items.
async fn until(timeline: &mut Timeline, mut condition: impl FnMut(&[TimelineItem]) -> bool) {
    let mut followed = timeline.items().to_vec();
    let reached = async {
        while !condition(timeline.items()) {
            // A call that is cancelled loses no change.
            let _ = tokio::time::timeout(Duration::ZERO, timeline.next()).await.map(|diffs| {
                let diffs = diffs.unwrap().expect("the client is open");
                diffs.into_iter().for_each(|diff| diff.apply(&mut followed));
            });
            if condition(timeline.items()) {
                break;
            }
            let diffs = timeline.next().await.unwrap().expect("the client is open");
            diffs.into_iter().for_each(|diff| diff.apply(&mut followed));
            assert_eq!(followed, timeline.items());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("the timeline never showed it");
}

fn progress(item: &TimelineItem) -> (bool, bool) {
    match &item.status {
        Some(Status::Stored { delivered, read, .. }) => (delivered.is_complete(), read.is_complete()),
        _ => (false, false),
    }
}

#[tokio::test]
async fn own_message_is_shown_at_once_and_its_progress_follows() {
    let (_server, alice, bob) = pair().await;
    let conversation = alice.conversation_with(bob.user());
    let mut timeline = alice.timeline(conversation).await.unwrap();
    assert!(timeline.items().is_empty() && !timeline.has_older() && !timeline.has_newer());
    alice.send(bob.user(), "hello").await.unwrap();
    let mut stages = Vec::new();
    until(&mut timeline, |items| {
        let stage = match items.first().map(|item| &item.status) {
            None => "nothing",
            Some(Some(Status::Queued)) => "queued",
            Some(_) if progress(&items[0]).0 => "delivered",
            Some(_) => "stored",
        };
        stages.push(stage);
        stage == "delivered"
    })
    .await;
    // A stage may be over before it is seen, but none comes back.
    let order =
        ["nothing", "queued", "stored", "delivered"].map(|stage| stages.iter().rposition(|s| *s == stage));
    assert!(order.iter().flatten().is_sorted(), "{stages:?}");
    let mut of_bob = bob.timeline(conversation).await.unwrap();
    until(&mut of_bob, |items| !items.is_empty()).await;
    assert_eq!((texts(&of_bob), of_bob.items()[0].status.clone()), (vec!["hello"], None));
    bob.read(conversation, of_bob.items()[0].message.seq).await.unwrap();
    until(&mut timeline, |items| progress(&items[0]) == (true, true)).await;
    assert_eq!(timeline.items().len(), 1);
}

#[tokio::test]
async fn changes_of_a_message_update_its_item() {
    let (_server, alice, bob) = pair().await;
    let conversation = alice.conversation_with(bob.user());
    alice.send(bob.user(), "one").await.unwrap();
    alice.send(bob.user(), "two").await.unwrap().delivered().await.unwrap();
    let mut timeline = bob.timeline(conversation).await.unwrap();
    until(&mut timeline, |items| items.len() == 2).await;
    let first = timeline.items()[0].message.clone();
    bob.react(&first, "👍").await.unwrap();
    until(&mut timeline, |items| items[0].message.reactions.len() == 1).await;
    alice.edit(&first, "ONE").await.unwrap();
    until(&mut timeline, |items| items[0].message.text() == Some("ONE")).await;
    alice.delete(&first).await.unwrap();
    until(&mut timeline, |items| *items[0].message.content() == Content::Deleted).await;
    assert_eq!(texts(&timeline), ["-", "two"]);
}

#[tokio::test]
async fn timeline_pages_both_ways_and_jumps() {
    let (_server, alice, bob) = pair().await;
    let conversation = alice.conversation_with(bob.user());
    for n in 1..=120 {
        let ticket = alice.send(bob.user(), n.to_string()).await.unwrap();
        if n == 120 {
            ticket.stored().await.unwrap();
        }
    }
    let mut timeline = alice.timeline(conversation).await.unwrap();
    let ends = |timeline: &Timeline| {
        let seq = |item: Option<&TimelineItem>| item.map_or(0, |item| item.message.seq);
        let (first, last) = (seq(timeline.items().first()), seq(timeline.items().last()));
        (first, last, timeline.has_older(), timeline.has_newer())
    };
    assert_eq!(ends(&timeline), (71, 120, true, false));
    let older = timeline.older(30).await.unwrap();
    assert!(older.len() == 30 && older.iter().all(|diff| matches!(diff, Diff::Insert { .. })));
    assert_eq!(ends(&timeline), (41, 120, true, false));
    let message = timeline.items()[0].message.clone();
    timeline.jump(Target::Seq(10)).await.unwrap();
    assert_eq!(ends(&timeline), (1, 34, false, true));
    // A window that does not end with the newest message does not show new ones.
    alice.send(bob.user(), "121").await.unwrap().stored().await.unwrap();
    assert!(timeline.newer(0).await.unwrap().is_empty());
    assert_eq!(ends(&timeline), (1, 34, false, true));
    timeline.newer(100).await.unwrap();
    assert_eq!(ends(&timeline), (1, 121, false, false));
    timeline.jump(Target::Message((&message).into())).await.unwrap();
    assert_eq!(ends(&timeline), (16, 65, true, true));
    timeline.jump(Target::Time(SystemTime::UNIX_EPOCH)).await.unwrap();
    assert_eq!(ends(&timeline).0, 1);
    timeline.jump(Target::Newest).await.unwrap();
    assert_eq!(ends(&timeline), (72, 121, true, false));
}

#[tokio::test]
async fn refused_message_stays_until_it_is_sent_again_or_removed() {
    let (server, alice, bob) = pair().await;
    bob.send(alice.user(), "hello").await.unwrap().stored().await.unwrap();
    let group = alice.create_group("Crew", &[bob.user()]).await.unwrap();
    alice.send(group, "first").await.unwrap().stored().await.unwrap();
    server.next_message(&bob).await.unwrap();
    let mut timeline = bob.timeline(group).await.unwrap();
    let policy = chat_client::GroupPolicy { send: chat_client::Role::Admin, ..Default::default() };
    let only_admins = chat_client::GroupAction::SetPolicy(policy);
    alice.change_group(group, only_admins).await.unwrap().stored().await.unwrap();
    let ticket = bob.send(group, "may I?").await.unwrap();
    until(&mut timeline, |items| {
        items.iter().any(|item| item.status == Some(Status::Refused(RefusedReason::Denied)))
    })
    .await;
    let all = chat_client::GroupAction::SetPolicy(Default::default());
    alice.change_group(group, all).await.unwrap().stored().await.unwrap();
    bob.retry(ticket.message()).await.unwrap().stored().await.unwrap();
    until(&mut timeline, |items| items.last().is_some_and(|item| item.message.seq > 0)).await;
    let last = timeline.items().last().unwrap();
    assert_eq!(last.message.text(), Some("may I?"));
    assert!(matches!(last.status, Some(Status::Stored { delivered: Count { of: 1, .. }, .. })));
    let missing = bob.retry(ticket.message()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(bob.discard(ticket.message()).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn list_counts_unread_messages_and_mentions() {
    let (server, alice, bob) = pair().await;
    let carol = server.client("carol").await.unwrap();
    let mut list = bob.conversation_list().await.unwrap();
    alice.send(bob.user(), "one").await.unwrap().stored().await.unwrap();
    alice.send(bob.user(), SendRequest::text("@bob").mention(bob.user())).await.unwrap();
    // Times are in milliseconds.
    tokio::time::sleep(Duration::from_millis(2)).await;
    carol.send(bob.user(), "hi").await.unwrap().stored().await.unwrap();
    let with_alice = bob.conversation_with(alice.user());
    let counts = |list: &chat_client::ConversationList| {
        let one = list.items().iter().find(|one| one.id == with_alice);
        one.map_or((0, 0), |one| (one.unread, one.mentions))
    };
    let reached = async {
        while counts(&list) != (2, 1) || list.items().len() != 2 {
            list.next().await.unwrap().expect("the client is open");
        }
        assert_eq!(list.items()[0].peer.as_ref().unwrap().id, carol.user(), "the newest message is first");
        bob.read(with_alice, 2).await.unwrap();
        while counts(&list) != (0, 0) {
            list.next().await.unwrap().expect("the client is open");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("the list never showed it");
    let last = list.items().to_vec();
    assert_eq!(last, bob.conversations().await.unwrap());
    bob.close().await;
    assert_eq!(list.next().await.unwrap(), None);
}
