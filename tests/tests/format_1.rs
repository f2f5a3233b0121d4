//! A data set and a client profile of format 1, which commit 4123e12 wrote: one command converts the data, clients go on,
//! and releases refuse the formats of others.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use chat_tests::cli_process::{CliProcess, register};
use chat_tests::cluster::server_command;
use chat_tests::server::Server;
use serde_json::json;

/// Extracts the data set: Alice with two devices, Bob, and five messages, three of which wait for Bob.
fn extract(dir: &Path) {
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/format-1.tar.gz");
    assert!(Command::new("tar").arg("-xzf").arg(set).arg("-C").arg(dir).status().unwrap().success());
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

#[test]
fn data_of_format_1_is_converted_by_one_command() {
    let dir = tempfile::tempdir().unwrap();
    extract(dir.path());
    let data = dir.path().join("data");
    let on_data = |command: &str| server_command(&["--data", data.to_str().unwrap(), command]);
    let refused = on_data("check");
    assert!(!refused.status.success() && text(&refused).contains("migrate"), "{}", text(&refused));

    let converted = on_data("migrate");
    assert!(text(&converted).contains("converted 1 conversations"), "{}", text(&converted));
    let again = on_data("migrate");
    assert!(again.status.success() && text(&again).contains("this release's format"), "{}", text(&again));
    let verified = text(&on_data("verify"));
    assert!(verified.contains("conversations 1 messages 5 waiting 8"), "{verified}");
    // The release that wrote format 1 compares the file with its own text.
    assert_ne!(std::fs::read(data.join("FORMAT")).unwrap(), b"chat-store embedded 1\n");

    let server = Server::start(dir.path());
    let mut bob = CliProcess::start(&dir.path().join("bob"), &server.url(), None);
    for n in 1..=3 {
        assert_eq!(bob.wait("message")["text"], format!("unread {n}"));
    }
    assert!(bob.send(&json!({"cmd": "send", "to": "alice", "text": "after it", "ref": "1"})));
    bob.wait("stored");
    let carol = register(dir.path(), &server.url(), "carol");
    let mut carol = CliProcess::start(&carol, &server.url(), None);
    assert!(carol.send(&json!({"cmd": "send", "to": "bob", "text": "hello", "ref": "1"})));
    assert_eq!(bob.wait("message")["text"], "hello");
    assert!(bob.next(Duration::from_millis(300)).is_none_or(|event| event["event"] != "message"));
}

#[test]
fn data_of_an_unknown_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    extract(dir.path());
    let data = dir.path().join("data");
    for format in ["chat-store embedded 3\n", ""] {
        std::fs::write(data.join("FORMAT"), format).unwrap();
        for command in ["migrate", "check", "verify"] {
            let refused = server_command(&["--data", data.to_str().unwrap(), command]);
            assert!(!refused.status.success(), "{command}: {}", text(&refused));
        }
        assert_eq!(std::fs::read_to_string(data.join("FORMAT")).unwrap(), format, "nothing was changed");
    }
}
