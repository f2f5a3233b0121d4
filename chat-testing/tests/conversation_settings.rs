//! Settings of conversations on several devices: each test is one promise of their documentation.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::time::{Duration, SystemTime};

use chat_client::prelude::*;
use chat_client::{Conversation, ConversationSetting};
use chat_testing::{TestServer, Unencrypted};

/// Waits until the list of a client satisfies a condition.
async fn until(client: &Client, condition: impl Fn(&[Conversation]) -> bool) {
    let mut list = client.conversation_list().await.unwrap();
    let reached = async {
        while !condition(list.items()) {
            list.next().await.unwrap().expect("the client is open");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("the list never showed it");
}

async fn two_devices() -> (TestServer, Client, Client, Client) {
    let server = TestServer::start().await.unwrap();
    let phone = server.client("alice").await.unwrap();
    let laptop = server.linked_client(&phone, "laptop", Box::new(Unencrypted::default())).await.unwrap();
    let bob = server.client("bob").await.unwrap();
    (server, phone, laptop, bob)
}

#[tokio::test]
async fn settings_reach_the_other_devices_and_nothing_is_shown() {
    let (_server, phone, laptop, bob) = two_devices().await;
    let conversation = phone.conversation_with(bob.user());
    bob.send(phone.user(), "hello").await.unwrap();
    let muted = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    for setting in [
        ConversationSetting::MutedUntil(Some(muted)),
        ConversationSetting::Archived(true),
        ConversationSetting::Pinned(true),
        ConversationSetting::Draft("dear bob".into()),
    ] {
        phone.change_setting(conversation, setting).await.unwrap();
    }
    let is_set = |one: &Conversation| {
        one.id == conversation
            && one.muted_until == Some(muted)
            && one.is_archived
            && one.is_pinned
            && one.draft == "dear bob"
    };
    until(&phone, |list| list.iter().any(is_set)).await;
    until(&laptop, |list| list.iter().any(is_set)).await;
    laptop.change_setting(conversation, ConversationSetting::MutedUntil(None)).await.unwrap();
    laptop.change_setting(conversation, ConversationSetting::Draft(String::new())).await.unwrap();
    let is_reset = |one: &Conversation| one.muted_until.is_none() && one.draft.is_empty() && one.is_pinned;
    until(&phone, |list| list.iter().any(is_reset)).await;
    let own = phone.conversation_with(phone.user());
    for client in [&phone, &laptop] {
        assert!(client.history(own, None, 100).await.unwrap().is_empty());
        assert!(client.timeline(own).await.unwrap().items().is_empty());
        assert!(client.conversations().await.unwrap().iter().all(|one| one.id != own));
    }
    let long = ConversationSetting::Draft("x".repeat(16_385));
    assert_eq!(phone.change_setting(conversation, long).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn reading_on_one_device_clears_the_count_on_another_that_was_off() {
    let (server, phone, laptop, bob) = two_devices().await;
    bob.send(phone.user(), "one").await.unwrap();
    bob.send(phone.user(), "two").await.unwrap().stored().await.unwrap();
    let conversation = phone.conversation_with(bob.user());
    until(&laptop, |list| list.iter().any(|one| one.unread == 2)).await;
    laptop.suspend().await.unwrap();
    until(&phone, |list| list.iter().any(|one| one.unread == 2)).await;
    phone.read(conversation, 2).await.unwrap();
    until(&phone, |list| list.iter().any(|one| one.id == conversation && one.unread == 0)).await;
    phone.drained().await.unwrap();
    // The phone is off when the laptop comes back: only the server can have kept it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    phone.drained().await.unwrap();
    phone.close().await;
    laptop.resume().await.unwrap();
    until(&laptop, |list| list.iter().any(|one| one.id == conversation && one.unread == 0)).await;
    drop(server);
}

#[tokio::test]
async fn client_answers_while_settings_cannot_be_sent() {
    let (_server, phone, laptop, bob) = two_devices().await;
    let conversation = phone.conversation_with(bob.user());
    let pin = |pinned| ConversationSetting::Pinned(pinned);
    phone.change_setting(conversation, pin(true)).await.unwrap();
    bob.send(phone.user(), "hello").await.unwrap();
    until(&laptop, |list| list.iter().any(|one| one.is_pinned)).await;
    // Without another device they wait, and the time of the next message passes.
    phone.unlink(laptop.device()).await.unwrap();
    phone.change_setting(conversation, pin(false)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_300)).await;
    let answers = async {
        phone.change_setting(conversation, pin(true)).await.unwrap();
        for _ in 0..20 {
            phone.history(conversation, None, 10).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        phone.send(bob.user(), "still here").await.unwrap().stored().await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(20), answers).await.expect("the client does not answer");
}

#[tokio::test]
async fn device_that_is_linked_later_gets_the_settings() {
    let (server, phone, laptop, bob) = two_devices().await;
    let conversation = phone.conversation_with(bob.user());
    phone.change_setting(conversation, ConversationSetting::Pinned(true)).await.unwrap();
    until(&phone, |list| list.is_empty()).await;
    bob.send(phone.user(), "hello").await.unwrap();
    until(&laptop, |list| list.iter().any(|one| one.is_pinned)).await;
    let tablet = server.linked_client(&phone, "tablet", Box::new(Unencrypted::default())).await.unwrap();
    bob.send(phone.user(), "hello again").await.unwrap();
    until(&tablet, |list| list.iter().any(|one| one.id == conversation && one.is_pinned)).await;
}

#[tokio::test]
async fn devices_that_change_a_setting_at_the_same_time_end_with_the_same() {
    let (_server, phone, laptop, bob) = two_devices().await;
    let conversation = phone.conversation_with(bob.user());
    bob.send(phone.user(), "hello").await.unwrap();
    for client in [&phone, &laptop] {
        until(client, |list| list.iter().any(|one| one.id == conversation)).await;
    }
    for round in 0..3 {
        for n in 0..3 {
            let draft = |device: &str| ConversationSetting::Draft(format!("{device} {round}.{n}"));
            let (first, second) = tokio::join!(
                phone.change_setting(conversation, draft("phone")),
                laptop.change_setting(conversation, draft("laptop")),
            );
            first.and(second).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let draft = async |client: &Client| {
        let list = client.conversations().await.unwrap();
        list.into_iter().find(|one| one.id == conversation).unwrap().draft
    };
    let equal = async {
        // Each device sends its last change within some seconds.
        let mut same_for = 0;
        while same_for < 30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            same_for = if draft(&phone).await == draft(&laptop).await { same_for + 1 } else { 0 };
        }
        assert!(draft(&phone).await.ends_with("2.2"));
    };
    tokio::time::timeout(Duration::from_secs(30), equal).await.expect("the devices never agreed");
}
