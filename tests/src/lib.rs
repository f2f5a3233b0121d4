//! Harness of the end-to-end tests. It runs the real binaries as processes and kills them only by pid.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

/// The README, compiled: the server and the app.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}

/// The guide of the client, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/client.md")]
mod client_guide {}

pub mod cli_process;
pub mod cluster;
pub mod corpus;
pub mod deployment;
pub mod faults;
pub mod load_client;
pub mod own_services;
pub mod proxy;
pub mod raw_client;
pub mod restored_server;
pub mod scripted_client;
pub mod server;

use std::path::PathBuf;

/// Returns the path of a workspace binary in the build directory of the test.
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

/// Returns the `target` directory, in which tests keep files between runs.
pub fn scratch() -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    while dir.file_name().is_some_and(|name| name != "target") {
        dir.pop();
    }
    dir
}

/// A small deterministic random number generator for tests.
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
