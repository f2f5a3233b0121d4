//! Real text through real processes: every line arrives once, in order, byte for byte, also while the server
//! and the clients are killed again and again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chat_tests::TestRng;
use chat_tests::cli_process::register;
use chat_tests::corpus::real_lines;
use chat_tests::scripted_client::{Progress, ScriptedClient, sendable};
use chat_tests::server::Server;

struct Outcome {
    kills: u64,
    client_kills: u64,
    took: Duration,
    refused: usize,
}

fn replay(dir: &Path, count: usize, at_least_kills: u64, clients_die: bool) -> Outcome {
    let server = Mutex::new(Server::start(dir));
    let url = server.lock().unwrap().url();
    let (a, b) = (register(dir, &url, "alice"), register(dir, &url, "bob"));
    let (from_a, from_b) = (real_lines(count, 0), real_lines(count, count));
    let (to_a, to_b) = (sendable(&from_b), sendable(&from_a));
    let start = Instant::now();
    let end = start + Duration::from_secs(900);
    let progress = Progress::default();
    let over = AtomicBool::new(false);
    let mut alice = ScriptedClient::new(a, vec![url.clone()], "bob", &from_a, &to_a);
    let mut bob = ScriptedClient::new(b, vec![url], "alice", &from_b, &to_b);
    if at_least_kills > 0 {
        // Send slowly enough for that many kills.
        (alice.ahead, bob.ahead) = (80, 80);
    }
    let kills = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            if at_least_kills == 0 {
                0
            } else {
                Server::kill_again_and_again(&server, &progress.stored, 1, &over)
            }
        });
        let die = |seed| clients_die.then(|| TestRng::new(seed));
        let (dice_a, dice_b) = (die(1), die(2));
        let one = scope.spawn(|| alice.run(dice_a, &progress, end));
        let two = scope.spawn(|| bob.run(dice_b, &progress, end));
        let outcome = (one.join(), two.join());
        over.store(true, Ordering::Relaxed);
        let kills = killer.join().unwrap();
        assert!(outcome.0.is_ok() && outcome.1.is_ok());
        kills
    });
    let took = start.elapsed();
    let mut server = server.into_inner().unwrap();
    server.kill();
    println!("{}", server.verify());
    assert!(
        server.verify().contains(&format!("messages {}", to_a.len() + to_b.len())),
        "{}",
        server.verify()
    );
    assert!(kills >= at_least_kills, "only {kills} kills: the replay needs more lines");
    Outcome { kills, client_kills: alice.kills + bob.kills, took, refused: alice.refused + bob.refused }
}

#[test]
fn real_text_arrives_once_in_order_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = replay(dir.path(), 20_000, 0, false);
    println!("40000 lines both ways in {:?}, {} refused as too long", outcome.took, outcome.refused);
    assert_eq!(outcome.refused, 2);
}

#[test]
fn delivers_exactly_once_while_server_and_clients_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = replay(dir.path(), 5_000, 100, true);
    println!(
        "10000 lines both ways in {:?}: {} kills of the server, {} of the clients, \
         0 lost, 0 duplicated, 0 out of order",
        outcome.took, outcome.kills, outcome.client_kills
    );
}
