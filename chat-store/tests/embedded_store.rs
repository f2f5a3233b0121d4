//! The conformance suite on the embedded store.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::ExitCode;
use std::sync::Arc;

use chat_core::conformance;
use chat_store::EmbeddedStore;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    conformance::durable_message_store(|dir| async move { Arc::new(EmbeddedStore::open(dir).unwrap()) }).run()
}
