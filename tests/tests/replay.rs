//! Real text through real processes: whole, in order, byte for byte, once; then the same while everything
//! is killed again and again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chat_tests::Dice;
use chat_tests::chat::{Chat, register};
use chat_tests::server::Server;
use chat_tests::text::real_lines;
use serde_json::{Value, json};

const LONGEST: usize = 64 * 1024;

/// A program that uses `chat --json`: it sends its lines, keeps what it was told, and may be killed.
struct Talker<'a> {
    profile: PathBuf,
    url: String,
    to: &'static str,
    lines: &'a [String],
    expected: &'a [String],
    n: u64,
    queued: Vec<bool>,
    first_open: usize,
    done: usize,
    refused: usize,
    received: usize,
    kills: u64,
    /// Commands written ahead of what is stored.
    ahead: usize,
}

impl<'a> Talker<'a> {
    fn new(
        profile: PathBuf,
        url: String,
        to: &'static str,
        lines: &'a [String],
        expected: &'a [String],
    ) -> Self {
        let queued = vec![false; lines.len()];
        Self {
            profile,
            url,
            to,
            lines,
            expected,
            n: 0,
            queued,
            first_open: 0,
            done: 0,
            refused: 0,
            received: 0,
            kills: 0,
            ahead: 1000,
        }
    }

    fn finished(&self) -> bool {
        self.done == self.lines.len() && self.received == self.expected.len()
    }

    /// Runs lives of the process until everything was sent and received.
    fn run(&mut self, mut dice: Option<Dice>, stored: &AtomicU64, end: Instant) {
        while !self.finished() {
            let life = dice.as_mut().map(|dice| Duration::from_millis(500 + dice.below(6000)));
            self.live(life, stored, end);
        }
    }

    fn live(&mut self, life: Option<Duration>, stored: &AtomicU64, end: Instant) {
        let mut chat = Chat::start(&self.profile, &self.url, Some(self.n));
        let dies = life.map(|life| Instant::now() + life);
        let mut next = self.first_open;
        while !self.finished() {
            assert!(
                Instant::now() < end,
                "{}: {} of {} done, {} of {} received",
                self.to,
                self.done,
                self.lines.len(),
                self.received,
                self.expected.len()
            );
            if dies.is_some_and(|at| Instant::now() >= at) {
                self.kills += 1;
                return chat.kill();
            }
            while next < self.lines.len() && next < self.done + self.ahead {
                let command =
                    json!({"cmd": "send", "to": self.to, "text": self.lines[next], "ref": next.to_string()});
                if !self.queued[next] && !chat.say(&command) {
                    return;
                }
                next += 1;
            }
            if let Some(event) = chat.next(Duration::from_millis(50)) {
                self.take(&event, stored);
                while let Some(event) = chat.next(Duration::ZERO) {
                    self.take(&event, stored);
                }
            }
        }
        let rest = chat.finish();
        assert!(rest.iter().all(|e| e["event"] != "message"), "something came twice: {rest:?}");
    }

    fn take(&mut self, event: &Value, stored: &AtomicU64) {
        let n = event["n"].as_u64().unwrap_or(0);
        let repeated = n != 0 && n <= self.n;
        self.n = self.n.max(n);
        if repeated {
            // Only a repeated `ref` repeats events.
            assert!(event["ref"].is_string(), "repeated: {event}");
            return;
        }
        let reference = event["ref"].as_str().and_then(|text| text.parse::<usize>().ok());
        match event["event"].as_str().unwrap() {
            "queued" => self.mark(reference.unwrap()),
            "stored" => {
                self.done += 1;
                stored.fetch_add(1, Ordering::Relaxed);
                assert!(self.lines[reference.unwrap()].len() <= LONGEST);
            }
            "refused" => {
                let line = reference.unwrap();
                assert_eq!(event["reason"], "too_long");
                assert!(self.lines[line].len() > LONGEST, "{} bytes were refused", self.lines[line].len());
                if !self.queued[line] {
                    self.mark(line);
                    (self.done, self.refused) = (self.done + 1, self.refused + 1);
                }
            }
            "message" => {
                let expected = self.expected.get(self.received).expect("more came than was sent");
                assert_eq!(event["text"].as_str().unwrap(), expected, "message {}", self.received);
                self.received += 1;
            }
            "undecryptable" | "gap" | "identity_changed" => panic!("{event}"),
            _ => {}
        }
    }

    fn mark(&mut self, line: usize) {
        self.queued[line] = true;
        while self.queued.get(self.first_open).copied().unwrap_or(false) {
            self.first_open += 1;
        }
    }
}

fn sendable(lines: &[String]) -> Vec<String> {
    lines.iter().filter(|line| line.len() <= LONGEST).cloned().collect()
}

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
    let stored = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let mut alice = Talker::new(a, url.clone(), "bob", &from_a, &to_a);
    let mut bob = Talker::new(b, url, "alice", &from_b, &to_b);
    if at_least_kills > 0 {
        // Slowly enough for that many kills to come in between.
        (alice.ahead, bob.ahead) = (80, 80);
    }
    let kills = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut kills = 0;
            let mut seen = stored.load(Ordering::Relaxed);
            let mut dice = Dice::new(42);
            while !over.load(Ordering::Relaxed) && at_least_kills > 0 {
                std::thread::sleep(Duration::from_millis(dice.below(60)));
                let now = stored.load(Ordering::Relaxed);
                if now > seen {
                    seen = now;
                    let mut server = server.lock().unwrap();
                    server.kill();
                    server.restart();
                    kills += 1;
                }
            }
            kills
        });
        let die = |seed| clients_die.then(|| Dice::new(seed));
        let (dice_a, dice_b) = (die(1), die(2));
        let one = scope.spawn(|| alice.run(dice_a, &stored, end));
        let two = scope.spawn(|| bob.run(dice_b, &stored, end));
        let outcome = (one.join(), two.join());
        over.store(true, Ordering::Relaxed);
        let kills = killer.join().unwrap();
        assert!(outcome.0.is_ok() && outcome.1.is_ok());
        kills
    });
    let took = start.elapsed();
    let mut server = server.into_inner().unwrap();
    server.kill();
    println!("{}", server.audit());
    assert!(server.audit().contains(&format!("messages {}", to_a.len() + to_b.len())), "{}", server.audit());
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
fn the_same_while_server_and_clients_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = replay(dir.path(), 10_000, 100, true);
    println!(
        "20000 lines both ways in {:?}: {} kills of the server, {} of the clients, 0 lost, 0 twice, 0 out of order",
        outcome.took, outcome.kills, outcome.client_kills
    );
}
