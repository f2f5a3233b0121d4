//! Ten thousand messages wait for an offline device, and all arrive, oldest first.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use chat_tests::cli_process::{CliProcess, command, register};
use chat_tests::server::Server;
use serde_json::json;

const COUNT: usize = 10_000;

fn send_all(profile: &Path, url: &str, to: &str) {
    let mut chat = CliProcess::start(profile, url, None);
    let mut stored = 0;
    let mut sent = 0;
    while stored < COUNT {
        while sent < COUNT && sent < stored + 2000 {
            assert!(chat.send(&json!({"cmd": "send", "to": to, "text": format!("message {sent}")})));
            sent += 1;
        }
        if let Some(event) = chat.next(Duration::from_secs(30)) {
            assert_ne!(event["event"], "refused", "{event}");
            stored += usize::from(event["event"] == "stored");
        }
    }
    chat.finish();
}

/// Receives all messages. Returns the time from the first message to the last.
fn receive_all(profile: &Path, url: &str) -> Duration {
    let mut chat = CliProcess::start(profile, url, None);
    let mut first = None;
    let mut received = 0;
    while received < COUNT {
        let event = chat.next(Duration::from_secs(30)).expect("the next message");
        match event["event"].as_str().unwrap() {
            "message" => {
                first.get_or_insert_with(Instant::now);
                assert_eq!(event["text"], format!("message {received}"), "oldest first, none missing");
                received += 1;
            }
            "undecryptable" | "gap" => panic!("{event}"),
            _ => {}
        }
    }
    let took = first.unwrap().elapsed();
    chat.finish();
    took
}

#[test]
fn ten_thousand_waiting_messages_arrive_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let (alice, bob) = (register(dir.path(), &url, "alice"), register(dir.path(), &url, "bob"));

    send_all(&alice, &url, "bob");
    let never_answered = receive_all(&bob, &url);
    println!(
        "never answered (every box a prekey message): {:.0} messages/s",
        COUNT as f64 / never_answered.as_secs_f64()
    );

    // Bob answers: from here on the session is established both ways.
    assert!(command(&bob, &url, &["send", "alice", "answer"]).status.success());
    assert!(command(&alice, &url, &["send", "bob", "seen"]).status.success());
    let mut listening = CliProcess::start(&alice, &url, Some(0));
    listening.wait("message");
    listening.finish();
    let mut listening = CliProcess::start(&bob, &url, Some(0));
    while listening.wait("message")["text"] != "seen" {}
    listening.finish();

    send_all(&alice, &url, "bob");
    let established = receive_all(&bob, &url);
    println!("established: {:.0} messages/s", COUNT as f64 / established.as_secs_f64());
}
