//! Cases of the conformance suite on the embedded store, each followed by a verification of the data.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use chat_core::backend::Presence as _;
use chat_core::conformance;
use chat_core::presence::UserPresence;
use chat_core::{InstallationId, UserId};
use chat_store::EmbeddedStore;

fn fresh(dirs: &mut Vec<tempfile::TempDir>) -> Arc<EmbeddedStore> {
    dirs.push(tempfile::tempdir().unwrap());
    Arc::new(EmbeddedStore::open(dirs.last().unwrap().path()).unwrap())
}

#[tokio::test]
async fn embedded_store_verifies_after_each_case() {
    let mut dirs = Vec::new();
    for case in conformance::cases::message_store() {
        let store = fresh(&mut dirs);
        assert_eq!((case.run)(store.clone()).await, Ok(()), "{}", case.name);
        let clean = case.name != "rows_above_the_head_are_not_found"
            && case.name != "an_acked_row_does_not_come_back";
        if clean && case.name != "a_device_that_joins_late_is_not_behind" {
            assert!(store.verify().is_ok(), "{}: {:?}", case.name, store.verify());
        }
    }
}

#[tokio::test]
async fn embedded_contacts() {
    let mut dirs = Vec::new();
    for case in conformance::cases::contact_store() {
        assert_eq!((case.run)(fresh(&mut dirs)).await, Ok(()), "{}", case.name);
    }
}

#[tokio::test]
async fn embedded_presence() {
    let mut dirs = Vec::new();
    for case in conformance::cases::presence() {
        assert_eq!((case.run)(fresh(&mut dirs)).await, Ok(()), "{}", case.name);
    }
}

#[tokio::test]
async fn last_seen_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let [alice, bob, carol] = [1, 2, 3].map(|n| UserId::from_bytes([n; 16]));
    let device = InstallationId::from_bytes([1; 16]);
    let seen = |at| UserPresence::Offline { last_seen_ms: Some(at) };
    let answers = {
        let store = EmbeddedStore::open(dir.path()).unwrap();
        for user in [alice, bob, carol] {
            store.beat(user, device, true, 1000).await.unwrap();
        }
        store.beat(alice, device, false, 2000).await.unwrap();
        store.beat(carol, device, false, 2000).await.unwrap();
        store.forget(carol).await.unwrap();
        store.query(&[alice, bob, carol], 2000).await.unwrap()
    };
    assert_eq!(answers, [seen(2000), UserPresence::Online, UserPresence::HIDDEN]);
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let answers = store.query(&[alice, bob, carol], 3000).await.unwrap();
    assert_eq!(answers, [seen(2000), seen(1000), UserPresence::HIDDEN], "at least since Bob connected");
}

#[tokio::test]
async fn embedded_keys() {
    let mut dirs = Vec::new();
    for case in conformance::cases::key_directory() {
        assert_eq!((case.run)(fresh(&mut dirs)).await, Ok(()), "{}", case.name);
    }
}
