//! The memory backends pass the suites that every other backend passes.
#![cfg(feature = "conformance")]
#![allow(missing_docs)]

use std::sync::Arc;

use chat_core::conformance::{self, Case};
use chat_core::memory::{
    ManualClock, MemoryKeys, MemoryPresence, MemoryPush, MemoryRegistry, MemoryRouter, MemoryStore,
    OpenRegistration,
};

fn check<B: ?Sized>(cases: Vec<Case<B>>, fresh: impl Fn() -> Arc<B>) {
    for case in cases {
        let outcome = futures_util::FutureExt::now_or_never((case.run)(fresh()));
        assert_eq!(outcome, Some(Ok(())), "{}", case.name);
    }
}

#[test]
fn memory_store() {
    check(conformance::message_store(), || Arc::new(MemoryStore::new()));
    check(conformance::shared_message_store(), || Arc::new(MemoryStore::new()));
}

#[test]
fn memory_keys() {
    check(conformance::key_directory(), || Arc::new(MemoryKeys::default()));
}

#[test]
fn memory_registry() {
    check(conformance::registry(), || Arc::new(MemoryRegistry::default()));
}

#[test]
fn memory_presence() {
    check(conformance::presence(), || Arc::new(MemoryPresence::default()));
}

#[test]
fn memory_push() {
    check(conformance::push_sink(), || Arc::new(MemoryPush::default()));
}

#[test]
fn open_registration() {
    let door = || conformance::Doorkeeper {
        authenticator: Arc::new(OpenRegistration),
        good: Vec::new(),
        open: true,
    };
    check(conformance::authenticator(), || Arc::new(door()));
}

#[test]
fn memory_router() {
    check(conformance::router(), || Arc::new(MemoryRouter::new(4, Arc::new(ManualClock::default()))));
}
