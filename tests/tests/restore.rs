//! The store of a device is restored from a backup, or lost: no message shows twice, the device requests
//! undecryptable messages again, and contacts receive an event when an account has new keys.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use chat_tests::cli_process::{CliProcess, command, register};
use chat_tests::server::Server;
use serde_json::{Value, json};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends texts and waits until they are stored.
fn say(chat: &mut CliProcess, to: &str, texts: &[&str]) {
    for text in texts {
        assert!(chat.send(&json!({"cmd": "send", "to": to, "text": text})));
        chat.wait("stored");
    }
}

/// Collects events of these kinds until `count` have arrived.
fn collect(chat: &mut CliProcess, kinds: &[&str], count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    while found.len() < count {
        let event = chat.next(Duration::from_secs(30)).unwrap_or_else(|| panic!("timeout after {found:?}"));
        if kinds.iter().any(|kind| event["event"] == *kind) {
            found.push(event);
        }
    }
    found
}

#[test]
fn restored_profile_recovers_undecryptable_messages() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let alice = register(dir.path(), &url, "alice");
    let bob = register(dir.path(), &url, "bob");
    let mut a = CliProcess::start(&alice, &url, None);
    let mut b = CliProcess::start(&bob, &url, None);
    say(&mut a, "bob", &["one"]);
    b.wait("message");
    say(&mut b, "alice", &["two"]);
    a.wait("message");
    b.finish();
    let backup = dir.path().join("backup");
    copy(&bob, &backup);

    let mut b = CliProcess::start(&bob, &url, None);
    say(&mut a, "bob", &["three", "four"]);
    collect(&mut b, &["message"], 2);
    say(&mut b, "alice", &["five"]);
    a.wait("message");
    b.finish();
    say(&mut a, "bob", &["six"]);

    std::fs::remove_dir_all(&bob).unwrap();
    copy(&backup, &bob);
    // Bob's "five" moved the ratchet, but the restored copy is older: Bob cannot decrypt "six" and requests
    // it again.
    let mut b = CliProcess::start(&bob, &url, None);
    let events = collect(&mut b, &["message", "undecryptable", "recovered"], 2);
    assert_eq!(
        (events[0]["event"].as_str(), events[1]["event"].as_str()),
        (Some("undecryptable"), Some("recovered"))
    );
    assert_eq!((&events[0]["message_id"], &events[0]["seq"]), (&events[1]["message_id"], &events[1]["seq"]));
    assert_eq!(events[1]["text"], "six");
    say(&mut a, "bob", &["seven", "eight"]);
    let events = collect(&mut b, &["message", "undecryptable"], 2);
    assert_eq!(
        (events[0]["text"].as_str(), events[1]["text"].as_str()),
        (Some("seven"), Some("eight")),
        "the session works again"
    );
    say(&mut b, "alice", &["nine"]);
    assert_eq!(a.wait("message")["text"], "nine");
    b.finish();

    // A client that replays all events gets them unchanged.
    let mut b = CliProcess::start(&bob, &url, Some(0));
    let all = collect(&mut b, &["message", "gap", "undecryptable", "recovered"], 6);
    let kinds: Vec<&str> = all.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message", "gap", "undecryptable", "recovered", "message", "message"]);
    b.finish();
    let history = command(&bob, &url, &["history", "alice"]);
    let shown = text(&history.stdout);
    assert!(shown.contains("six") && shown.contains("eight"), "{shown}");

    // A second recovery within a day needs the user's decision.
    std::fs::remove_dir_all(&bob).unwrap();
    copy(&backup, &bob);
    let mut b = CliProcess::start(&bob, &url, None);
    let error = b.wait("error");
    assert_eq!(error["reason"], "superseded", "{error}");
    assert!(b.send(&json!({"cmd": "reincarnate"})));
    say(&mut b, "alice", &["eleven"]);
    assert_eq!(a.wait("message")["text"], "eleven");
    b.finish();
    a.finish();
}

fn token(server: &Server, user: &str) -> String {
    let out = Command::new(chat_tests::binary("chat-server-ref"))
        .args(["token", user, "--data"])
        .arg(&server.data)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout).trim().to_owned()
}

#[test]
fn contacts_are_notified_when_a_lost_account_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_with(dir.path(), &["--open-registration", "false"]);
    let url = server.url();
    let profile = |name: &str| dir.path().join(name);
    for name in ["alice", "bob"] {
        let out = command(&profile(name), &url, &["register", name, "--token", &token(&server, name)]);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }
    let mut a = CliProcess::start(&profile("alice"), &url, None);
    say(&mut a, "bob", &["before"]);
    a.finish();
    let number = |name: &str, with: &str| {
        let out = command(&profile(name), &url, &["safety-number", with]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stdout)
    };
    let before = number("alice", "bob");

    // Alice writes while there is no server; then Bob loses his only device.
    server.kill();
    let mut a = CliProcess::start(&profile("alice"), &url, None);
    assert!(a.send(&json!({"cmd": "send", "to": "bob", "text": "for the old keys", "ref": "old"})));
    a.wait("queued");
    a.kill();
    server.restart();
    let lost = command(&profile("new"), &url, &["register", "bob", "--replace"]);
    assert!(!lost.status.success(), "without a token");
    let others = command(
        &profile("new"),
        &url,
        &["register", "bob", "--replace", "--token", &token(&server, "alice")],
    );
    assert!(!others.status.success(), "with another user's token");
    let out =
        command(&profile("new"), &url, &["register", "bob", "--replace", "--token", &token(&server, "bob")]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let old = command(&profile("bob"), &url, &["login"]);
    assert!(!old.status.success(), "the old device must not log in");

    let mut a = CliProcess::start(&profile("alice"), &url, None);
    let events = collect(&mut a, &["identity_changed", "refused", "message", "stored"], 2);
    assert_eq!(
        (events[0]["event"].as_str(), events[0]["user"].as_str()),
        (Some("identity_changed"), Some("bob"))
    );
    assert_eq!(
        (events[1]["event"].as_str(), events[1]["ref"].as_str()),
        (Some("refused"), Some("old")),
        "{events:?}"
    );
    assert_eq!(events[1]["reason"], "identity_changed");
    say(&mut a, "bob", &["for the new keys"]);
    a.finish();
    let mut b = CliProcess::start(&profile("new"), &url, Some(0));
    assert_eq!(b.wait("message")["text"], "for the new keys");
    say(&mut b, "alice", &["it is me"]);
    b.finish();
    assert_ne!(number("alice", "bob"), before, "the safety number changes");
    assert_eq!(number("alice", "bob"), number("new", "alice"), "both sides show the same number");

    // In strict mode nothing is sent until the user accepts the new keys.
    let strict = command(&profile("alice"), &url, &["--strict", "send", "bob", "unsure"]);
    assert!(text(&strict.stderr).contains("the keys of the recipient changed"), "{}", text(&strict.stderr));
    let old = command(&profile("alice"), &url, &["accept", "bob", before.trim()]);
    assert!(!old.status.success(), "the old safety number");
    let seen = number("new", "alice");
    let out = command(&profile("alice"), &url, &["accept", "bob", seen.trim()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let out = command(&profile("alice"), &url, &["--strict", "send", "bob", "sure"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn stranger_is_rate_limited_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--open-registration", "false"]);
    let url = server.url();
    for name in ["alice", "bob"] {
        let profile = dir.path().join(name);
        let out = command(&profile, &url, &["register", name, "--token", &token(&server, name)]);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }
    let mut a = CliProcess::start(&dir.path().join("alice"), &url, None);
    for n in 0..64 {
        assert!(a.send(&json!({"cmd": "send", "to": "bob", "text": format!("{n}")})));
    }
    // The rate limit allows 60 messages at once, then one per second.
    let start = std::time::Instant::now();
    let stored = collect(&mut a, &["stored"], 64);
    assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(stored.iter().map(|e| e["seq"].as_u64().unwrap()).eq(1..=64));
    let mut b = CliProcess::start(&dir.path().join("bob"), &url, Some(0));
    say(&mut b, "alice", &["go on"]);
    a.wait("message");
    // Bob wrote back, so the limit for strangers no longer applies to the next hundred messages.
    let start = std::time::Instant::now();
    for n in 0..100 {
        assert!(a.send(&json!({"cmd": "send", "to": "bob", "text": format!("more {n}")})));
    }
    collect(&mut a, &["stored"], 100);
    assert!(start.elapsed() < Duration::from_secs(60), "100 messages took {:?}", start.elapsed());
    b.finish();
    a.finish();
}
