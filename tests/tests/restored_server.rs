//! A server whose data was restored from an older copy, with the operator's command and without it. No message that is
//! stored afterwards is invisible, no client reconnects in a loop, and the devices keep the messages that the server
//! lost. Case 1 of the situations from daily use.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::process::Command;

use chat_tests::restored_server::{Restorable, copy, server_goes_back};
use chat_tests::server::Server;

/// One process with the embedded store.
struct OneProcess {
    server: Server,
    dir: tempfile::TempDir,
}

impl OneProcess {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { server: Server::start(dir.path()), dir }
    }
}

impl Restorable for OneProcess {
    fn url(&self) -> String {
        self.server.url()
    }

    fn back_up(&mut self) {
        self.server.kill();
        copy(&self.server.data, &self.dir.path().join("backup"));
        self.server.restart();
    }

    fn go_back(&mut self, is_told: bool) {
        self.server.kill();
        copy(&self.dir.path().join("backup"), &self.server.data);
        if is_told {
            let out = Command::new(chat_tests::binary("chat-server-ref"))
                .args(["migrate", "--restored", "--data"])
                .arg(&self.server.data)
                .output()
                .unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        self.server.restart();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_go_back_with_a_server_that_its_operator_restored() {
    server_goes_back(&mut OneProcess::start(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_notice_a_restore_that_nobody_announced() {
    server_goes_back(&mut OneProcess::start(), false).await;
}
