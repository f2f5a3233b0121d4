//! The rig of the end-to-end tests: the real binaries as processes, killed by their pid alone.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

pub mod cli_process;
pub mod cluster;
pub mod corpus;
pub mod deployment;
pub mod faults;
pub mod load_client;
pub mod proxy;
pub mod raw_client;
pub mod scripted_client;
pub mod server;

use std::path::PathBuf;

/// A binary of this workspace, built beside the test.
pub fn binary(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `make test`, or build chat-server-ref and chat-cli first",
        path.display()
    );
    path
}

/// A directory of the build for things that tests keep.
pub fn scratch() -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    while dir.file_name().is_some_and(|name| name != "target") {
        dir.pop();
    }
    dir
}

/// A small deterministic generator for choices of a test.
#[derive(Debug)]
pub struct TestRng(pub chat_core::rng::Rng);

impl TestRng {
    pub fn new(seed: u64) -> Self {
        Self(chat_core::rng::Rng::new(seed))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }
}
