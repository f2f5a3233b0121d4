//! SIGTERM under load: the server spreads the reconnects of the sessions, and no stored message is lost.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::time::Duration;

use chat_core::wire::{ClientFrame, CloseReason, ServerFrame};
use chat_tests::cli_process::{CliProcess, register};
use chat_tests::raw_client::User;
use chat_tests::server::Server;
use serde_json::json;

const SESSIONS: usize = 200;

#[test]
fn a_drain_spreads_reconnects_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("settings.toml");
    std::fs::write(&config, "drain_seconds = 20\n").unwrap();
    let mut server = Server::start_with(dir.path(), &["--config", config.to_str().unwrap()]);
    let url = server.url();
    let (alice, bob) = (register(dir.path(), &url, "alice"), register(dir.path(), &url, "bob"));
    let mut sessions: Vec<_> =
        (0..SESSIONS).map(|n| User::new(&format!("user{n}")).session(server.port).0).collect();
    sessions[0].send(&ClientFrame::Heartbeat);

    let mut a = CliProcess::start(&alice, &url, None);
    a.wait("caught_up");
    for n in 0..500 {
        assert!(a.send(&json!({"cmd": "send", "to": "bob", "text": format!("{n}"), "ref": format!("{n}")})));
    }
    let mut stored: Vec<String> = vec![a.wait("stored")["ref"].as_str().unwrap().into()];
    let took = server.terminate();
    assert!(took < Duration::from_secs(70), "{took:?}");

    let mut waits: Vec<u32> = sessions
        .iter_mut()
        .map(|session| {
            loop {
                match session.take() {
                    ServerFrame::Close { reason, retry_after } => {
                        assert_eq!(reason, CloseReason::Draining);
                        break retry_after;
                    }
                    ServerFrame::HeartbeatReply(_) | ServerFrame::Deliver(..) => {}
                    other => panic!("{other:?}"),
                }
            }
        })
        .collect();
    waits.sort_unstable();
    // The waits are drawn evenly from 20 s: fewer than a quarter of the sessions reconnect within any two
    // seconds.
    let most = (0..SESSIONS)
        .map(|i| waits[i..].iter().take_while(|wait| **wait < waits[i] + 2000).count())
        .max()
        .unwrap();
    assert!(
        waits.iter().all(|wait| *wait < 20_000) && most < SESSIONS / 4,
        "{most} of {SESSIONS} reconnect within 2 s"
    );

    while let Some(event) = a.next(Duration::from_millis(500)) {
        if event["event"] == "stored" {
            stored.push(event["ref"].as_str().unwrap().to_owned());
        }
    }
    a.kill();
    assert!(server.verify().starts_with("verified"));
    server.restart();
    let mut b = CliProcess::start(&bob, &url, Some(0));
    let seen: Vec<String> =
        (0..stored.len()).map(|_| b.wait("message")["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(seen, stored, "all stored messages arrive in order");
    println!(
        "{SESSIONS} sessions drained in {took:?}, at most {most} reconnect within 2 s; {} messages stored before",
        stored.len()
    );
}
