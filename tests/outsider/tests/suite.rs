//! The conformance suite on the toy store, as an integrator writes it.

use std::process::ExitCode;
use std::sync::Arc;

use chat_core::conformance;
use outsider::ToyStore;

fn main() -> ExitCode {
    conformance::shared_message_store(|| async { Arc::new(ToyStore::default()) }).run()
}
