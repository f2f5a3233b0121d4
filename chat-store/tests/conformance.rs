//! Conformance tests of the embedded store and the SQLite store.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use chat_core::conformance;
use chat_store::EmbeddedStore;

fn fresh(dirs: &mut Vec<tempfile::TempDir>) -> Arc<EmbeddedStore> {
    dirs.push(tempfile::tempdir().unwrap());
    Arc::new(EmbeddedStore::open(dirs.last().unwrap().path()).unwrap())
}

#[tokio::test]
async fn embedded_store() {
    let mut dirs = Vec::new();
    for case in conformance::message_store() {
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
async fn embedded_keys() {
    let mut dirs = Vec::new();
    for case in conformance::key_directory() {
        assert_eq!((case.run)(fresh(&mut dirs)).await, Ok(()), "{}", case.name);
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn sqlite_store() {
    for case in conformance::message_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(chat_store::SqliteStore::open(dir.path().join("chat.sqlite")).unwrap());
        assert_eq!((case.run)(store).await, Ok(()), "{}", case.name);
    }
}
