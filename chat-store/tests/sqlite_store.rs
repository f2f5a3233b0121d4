//! The conformance suite on the SQLite store.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::ExitCode;
use std::sync::Arc;

use chat_core::conformance;
use chat_store::SqliteStore;

fn main() -> ExitCode {
    let open = |dir: std::path::PathBuf| async move {
        std::fs::create_dir_all(&dir).unwrap();
        Arc::new(SqliteStore::open(dir.join("chat.sqlite")).unwrap())
    };
    conformance::durable_message_store(open).run()
}
