//! A client over `chat --json` that sends lines and checks that every expected line arrives once, in order.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::TestRng;
use crate::cli_process::CliProcess;

/// Maximum length of a text that can be sent, in bytes.
const MAX_TEXT: usize = 64 * 1024;

/// Progress of all scripted clients together.
#[derive(Debug, Default)]
pub struct Progress {
    /// Number of lines for which the sender received `stored`.
    pub stored: AtomicU64,
    /// Number of lines that the recipient received.
    pub delivered: AtomicU64,
}

/// A client that drives `chat --json`: it sends its lines, tracks the events, and can kill and restart its
/// process.
#[derive(Debug)]
pub struct ScriptedClient<'a> {
    profile: PathBuf,
    /// Gateway URLs; each new process uses the next one.
    pub urls: Vec<String>,
    lives: usize,
    to: &'static str,
    lines: &'a [String],
    expected: &'a [String],
    n: u64,
    queued: Vec<bool>,
    first_open: usize,
    done: usize,
    /// Number of lines that were refused as too long.
    pub refused: usize,
    received: usize,
    /// Numbers of done and of received lines at which the client stops.
    enough: (usize, usize),
    /// Number of times that the process was killed.
    pub kills: u64,
    /// Maximum number of commands written ahead of the lines that are done.
    pub ahead: usize,
    /// Number of lines that may be sent so far; `None` means all.
    pub released: Option<&'a AtomicUsize>,
}

impl<'a> ScriptedClient<'a> {
    pub fn new(
        profile: PathBuf,
        urls: Vec<String>,
        to: &'static str,
        lines: &'a [String],
        expected: &'a [String],
    ) -> Self {
        let queued = vec![false; lines.len()];
        Self {
            profile,
            urls,
            lives: 0,
            to,
            lines,
            expected,
            n: 0,
            queued,
            first_open: 0,
            done: 0,
            refused: 0,
            received: 0,
            enough: (usize::MAX, usize::MAX),
            kills: 0,
            ahead: 1000,
            released: None,
        }
    }

    pub fn finished(&self) -> bool {
        self.done >= self.enough.0.min(self.lines.len())
            && self.received >= self.enough.1.min(self.expected.len())
    }

    /// Runs until `done` of the client's lines are done and `received` lines have arrived.
    pub fn run_until(&mut self, done: usize, received: usize, progress: &Progress, end: Instant) {
        self.enough = (done, received);
        self.run(None, progress, end);
        self.enough = (usize::MAX, usize::MAX);
    }

    /// Runs until all lines are sent and received. With `rng`, kills each process after a random time.
    pub fn run(&mut self, mut rng: Option<TestRng>, progress: &Progress, end: Instant) {
        while !self.finished() {
            let life = rng.as_mut().map(|rng| Duration::from_millis(500 + rng.below(6000)));
            self.live(life, progress, end);
        }
    }

    fn live(&mut self, life: Option<Duration>, progress: &Progress, end: Instant) {
        let url = &self.urls[self.lives % self.urls.len()];
        self.lives += 1;
        let mut chat = CliProcess::start(&self.profile, url, Some(self.n));
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
            let released = self.released.map_or(usize::MAX, |lines| lines.load(Ordering::Relaxed));
            let last = self.lines.len().min(self.enough.0).min(released).min(self.done + self.ahead);
            while next < last {
                let command =
                    json!({"cmd": "send", "to": self.to, "text": self.lines[next], "ref": next.to_string()});
                if !self.queued[next] && !chat.send(&command) {
                    return;
                }
                next += 1;
            }
            if let Some(event) = chat.next(Duration::from_millis(50)) {
                self.take(&event, progress);
                while let Some(event) = chat.next(Duration::ZERO) {
                    self.take(&event, progress);
                }
            }
        }
        // Check the events until the process exits as well: an extra message would show here.
        chat.finish().iter().for_each(|event| self.take(event, progress));
    }

    fn take(&mut self, event: &Value, progress: &Progress) {
        let n = event["n"].as_u64().unwrap_or(0);
        let repeated = n != 0 && n <= self.n;
        self.n = self.n.max(n);
        if repeated {
            // Events repeat only for a repeated `ref`.
            assert!(event["ref"].is_string(), "repeated: {event}");
            return;
        }
        let reference = event["ref"].as_str().and_then(|text| text.parse::<usize>().ok());
        match event["event"].as_str().unwrap() {
            "queued" => self.mark(reference.unwrap()),
            "stored" => {
                self.done += 1;
                progress.stored.fetch_add(1, Ordering::Relaxed);
                assert!(self.lines[reference.unwrap()].len() <= MAX_TEXT);
            }
            "refused" => {
                let line = reference.unwrap();
                assert_eq!(event["reason"], "too_long");
                assert!(self.lines[line].len() > MAX_TEXT, "{} bytes were refused", self.lines[line].len());
                if !self.queued[line] {
                    self.mark(line);
                    (self.done, self.refused) = (self.done + 1, self.refused + 1);
                }
            }
            "message" => {
                let expected = self.expected.get(self.received).expect("more messages than sent");
                assert_eq!(event["text"].as_str().unwrap(), expected, "message {}", self.received);
                self.received += 1;
                progress.delivered.fetch_add(1, Ordering::Relaxed);
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

/// Returns the lines that are short enough to be sent.
pub fn sendable(lines: &[String]) -> Vec<String> {
    lines.iter().filter(|line| line.len() <= MAX_TEXT).cloned().collect()
}
