//! The conformance suite on the in-memory store.
#![allow(missing_docs)]

use std::process::ExitCode;
use std::sync::Arc;

use chat_core::conformance;
use chat_core::memory::MemoryStore;

fn main() -> ExitCode {
    conformance::shared_message_store(|| async { Arc::new(MemoryStore::new()) }).run()
}
