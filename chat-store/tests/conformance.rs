//! Cases of the conformance suite on the embedded store, each followed by a verification of the data.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use chat_core::conformance;
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
async fn embedded_keys() {
    let mut dirs = Vec::new();
    for case in conformance::cases::key_directory() {
        assert_eq!((case.run)(fresh(&mut dirs)).await, Ok(()), "{}", case.name);
    }
}
