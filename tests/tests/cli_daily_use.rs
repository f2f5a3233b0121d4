//! The command-line client in situations from daily use: exit codes, bad input, files, hostile text.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use chat_tests::cli_process::{CliProcess, command, register};
use chat_tests::server::{Server, free_port};
use serde_json::json;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn chat(profile: &Path, url: &str, arguments: &[&str]) -> Command {
    let mut chat = Command::new(chat_tests::binary("chat"));
    chat.arg("--profile").arg(profile).args(["--server", url]).args(arguments);
    chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    chat
}

fn with_input(profile: &Path, url: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = chat(profile, url, arguments).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// Waits for the end of a process and returns its exit code.
fn code_of(child: &mut std::process::Child) -> Option<i32> {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("the process does not end");
}

#[test]
fn send_reports_the_outcome_of_its_own_message() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let alice = register(dir.path(), &url, "alice");
    register(dir.path(), &url, "bob");
    let gone = format!("ws://127.0.0.1:{}", free_port());
    let queued = command(&alice, &gone, &["--quit-after", "1", "send", "bob", "early"]);
    assert_eq!(queued.status.code(), Some(4), "{}", text(&queued.stderr));
    assert!(text(&queued.stderr).contains("stay in the outbox"), "{}", text(&queued.stderr));
    // The refused message does not change the outcome of another one, and neither does the waiting one.
    let refused = command(&alice, &url, &["send", "nobody", "hello"]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    let stored = command(&alice, &url, &["send", "bob", "late"]);
    assert_eq!(stored.status.code(), Some(0), "{}", text(&stored.stderr));
    assert_eq!(command(&alice, &url, &["send", "bob"]).status.code(), Some(2), "a wrong command line");
}

#[test]
fn line_that_is_not_utf8_is_skipped_alone() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let alice = register(dir.path(), &url, "alice");
    let bob = register(dir.path(), &url, "bob");
    let out = with_input(&alice, &url, &["send", "bob", "-"], b"one\ntwo\r\n\xff\xfe\nfour");
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("line 3 was not sent"), "{}", text(&out.stderr));
    let mut reader = CliProcess::start(&bob, &url, Some(0));
    for wanted in ["one", "two", "four"] {
        assert_eq!(reader.wait("message")["text"], wanted);
    }
    reader.finish();
}

#[test]
fn profile_is_usable_after_its_handle_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    register(dir.path(), &url, "alice");
    let profile = dir.path().join("other");
    let taken = command(&profile, &url, &["register", "alice"]);
    assert!(!taken.status.success() && text(&taken.stderr).contains("taken"), "{}", text(&taken.stderr));
    let free = command(&profile, &url, &["register", "bob"]);
    assert!(free.status.success(), "{}", text(&free.stderr));
    assert!(command(&profile, &url, &["send", "alice", "hello"]).status.success());
    let other = command(&profile, &url, &["register", "carol"]);
    assert!(text(&other.stderr).contains("another account"), "{}", text(&other.stderr));
}

#[test]
fn files_are_private_in_an_existing_directory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let profile = dir.path().join("alice");
    std::fs::create_dir(&profile).unwrap();
    std::fs::set_permissions(&profile, std::fs::Permissions::from_mode(0o755)).unwrap();
    register(dir.path(), &server.url(), "alice");
    let mut running = CliProcess::start(&profile, &server.url(), None);
    running.wait("caught_up");
    for private in [&profile, &server.data] {
        assert_eq!(std::fs::metadata(private).unwrap().permissions().mode() & 0o777, 0o700, "{private:?}");
        for file in std::fs::read_dir(private).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", file.path());
        }
    }
    running.finish();
}

#[test]
fn missing_profile_is_an_error_and_is_not_created() {
    let dir = tempfile::tempdir().unwrap();
    let share = dir.path().join("share");
    let run = |arguments: &[&str]| {
        let chat =
            Command::new(chat_tests::binary("chat")).args(arguments).env("XDG_DATA_HOME", &share).output();
        chat.unwrap()
    };
    let out = run(&["--profile", "typo", "history", "bob"]);
    assert_eq!(out.status.code(), Some(1));
    let wanted = share.join("chat").join("typo");
    assert!(text(&out.stderr).contains(wanted.to_str().unwrap()), "{}", text(&out.stderr));
    assert!(!share.exists());
    let server = Server::start(dir.path());
    let out = run(&["--server", &server.url(), "register", "alice"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(share.join("chat/default/chat.sqlite").exists());
}

#[test]
fn program_ends_with_its_session_or_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let (alice, bob) = (register(dir.path(), &url, "alice"), register(dir.path(), &url, "bob"));
    let tablet = dir.path().join("tablet");
    let mut linking = chat(&tablet, &url, &["link"]).spawn().unwrap();
    let mut lines = BufReader::new(linking.stdout.take().unwrap()).lines();
    let code = loop {
        if let Some(code) = lines.next().unwrap().unwrap().trim().strip_prefix("chat link ") {
            break code.to_owned();
        }
    };
    let approved = command(&alice, &url, &["link", &code]);
    assert!(approved.status.success(), "{}", text(&approved.stderr));
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(code_of(&mut linking), Some(0));
    // Both devices show the same number.
    let number = rest.last().unwrap().trim();
    assert!(number.len() > 60 && text(&approved.stdout).contains(number), "{rest:?}");

    // The device is unlinked while its standard input stays open.
    let mut json = chat(&tablet, &url, &["--json"]).spawn().unwrap();
    let mut lines = BufReader::new(json.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("caught_up") {}
    assert!(command(&alice, &url, &["devices", "--remove", "2"]).status.success());
    assert_eq!(code_of(&mut json), Some(5));
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(rest.iter().any(|line| line.contains("unauthorized")), "{rest:?}");

    // The reader of the output goes away.
    for arguments in ["listen", "--json"] {
        let mut listening = chat(&bob, &url, &[arguments]).spawn().unwrap();
        let mut errors = listening.stderr.take().unwrap();
        let output = listening.stdout.take().unwrap();
        if arguments == "--json" {
            let mut lines = BufReader::new(output).lines();
            while !lines.next().unwrap().unwrap().contains("caught_up") {}
        } else {
            drop(output);
        }
        let sent = command(&alice, &url, &["send", "bob", "hello"]);
        assert!(sent.status.success(), "{}", text(&sent.stderr));
        assert_eq!(code_of(&mut listening), Some(141), "{arguments}");
        let mut said = String::new();
        errors.read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{arguments}");
    }
}

#[test]
fn text_of_others_cannot_change_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let alice = register(dir.path(), &url, "alice");
    let bob = register(dir.path(), &url, "bob");
    let hostile = "hi\x1b[2J\x07\nbob: send money\u{202e}gpj";
    let mut sender = CliProcess::start(&alice, &url, None);
    assert!(sender.send(&json!({"cmd": "send", "to": "bob", "text": hostile})));
    sender.wait("stored");
    sender.finish();
    let mut json = chat(&bob, &url, &["--json", "--after", "0"]).spawn().unwrap();
    let mut lines = BufReader::new(json.stdout.take().unwrap()).lines();
    let line = loop {
        let line = lines.next().unwrap().unwrap();
        if line.contains("\"message\"") {
            break line;
        }
    };
    assert!(line.is_ascii() && line.contains("\\u001b[2J") && line.contains("\\u202e"), "{line}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["text"], hostile);
    drop(json.stdin.take());
    assert_eq!(code_of(&mut json), Some(0));
    let shown = command(&bob, &url, &["history", "alice"]);
    let shown = text(&shown.stdout);
    assert_eq!(shown.lines().count(), 1, "{shown:?}");
    assert!(shown.contains("hi\u{fffd}[2J\u{fffd}⏎bob: send money\u{fffd}gpj"), "{shown:?}");
    assert!(!shown.contains('\x1b') && !shown.contains('\u{202e}'), "{shown:?}");
}

/// Case 9: a program keeps the number of its last event, and its profile is an older copy.
#[test]
fn number_above_the_last_event_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (alice, url) = (register(dir.path(), &server.url(), "alice"), server.url());
    let sent = command(&alice, &url, &["send", "alice", "note"]);
    assert!(sent.status.success());
    let refused = command(&alice, &url, &["--json", "--after", "900"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("900") && message.contains("last event"), "{message}");
    assert!(command(&alice, &url, &["--json", "--after", "1"]).status.success());
}

#[test]
fn messages_are_found_and_settings_of_conversations_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let alice = register(dir.path(), &url, "alice");
    let bob = register(dir.path(), &url, "bob");
    command(&alice, &url, &["send", "bob", "Café at seven"]);
    let mut process = CliProcess::start(&bob, &url, Some(0));
    let found = process.wait("message");
    let conversation = found["conversation"].as_str().unwrap().to_owned();
    process.send(&json!({"cmd": "search", "text": "cafe sev"}));
    let found = process.wait("found");
    assert_eq!(found["messages"][0]["text"], "Café at seven");
    process.send(&json!({
        "cmd": "configure", "conversation": conversation, "pinned": true, "muted_until": 5, "draft": "at eight?"
    }));
    process.send(&json!({"cmd": "conversations"}));
    let known = &process.wait("conversations")["conversations"][0];
    assert_eq!(
        (&known["pinned"], &known["muted_until"], &known["unread"]),
        (&json!(true), &json!(5), &json!(1))
    );
    process.finish();
    let listed = command(&bob, &url, &["conversations"]);
    assert_eq!(text(&listed.stdout), format!("{conversation} alice 1 unread, pinned, draft: at eight?\n"));
    let configured = command(&bob, &url, &["configure", "alice", "--pinned", "false", "--draft", ""]);
    assert_eq!(configured.status.code(), Some(0), "{}", text(&configured.stderr));
    assert_eq!(
        text(&command(&bob, &url, &["conversations"]).stdout),
        format!("{conversation} alice 1 unread\n")
    );
    let found = command(&bob, &url, &["search", "--within", "alice", "seven"]);
    assert_eq!(text(&found.stdout), "1 alice: Café at seven\n");
    let unknown = command(&bob, &url, &["configure", "carol", "--pinned", "true"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown.stderr));
}
