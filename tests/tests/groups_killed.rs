//! Real text in a group, through real processes: every device shows every line once, in the same order, while the server
//! and the devices are killed again and again.
//!
//! `GROUP_LINES` is the number of lines of all devices together, `GROUP_KILLS` the least number of kills of the server.
//! With `GROUP_CLIENTS_LIVE=1` only the server is killed.
//!
//! A device that was killed while it opened one row alone takes that row for the reason, and asks its sender for the
//! message: `undecryptable`, and then `recovered` at the same seq.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chat_tests::cli_process::{CliProcess, command, register};
use chat_tests::corpus::real_lines;
use chat_tests::server::Server;
use chat_tests::{TestRng, binary};
use serde_json::json;

const USERS: usize = 8;
/// Maximum lines of a device that are not stored yet.
const AHEAD: usize = 10;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Links a second device to the account of a profile.
fn link(dir: &Path, url: &str, first: &Path, name: &str) -> PathBuf {
    let profile = dir.join(name);
    let mut linking = Command::new(binary("chat"))
        .arg("--profile")
        .arg(&profile)
        .args(["--server", url, "link"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(linking.stdout.take().unwrap()).lines().map_while(Result::ok);
    let code = lines.find_map(|line| line.trim().strip_prefix("chat link ").map(str::to_owned));
    let approved = command(first, url, &["link", &code.unwrap()]);
    assert!(approved.status.success(), "{}", String::from_utf8_lossy(&approved.stderr));
    lines.for_each(drop);
    assert!(linking.wait().unwrap().success());
    profile
}

/// A device with the lines that it sends, and what it has shown.
struct Device {
    name: String,
    profile: PathBuf,
    lines: Vec<String>,
    /// The text at each seq.
    log: BTreeMap<u64, String>,
    /// The seq of the last message of another device.
    last_shown: u64,
    /// The number of the last event.
    handled: u64,
    stored: HashSet<usize>,
    /// Messages to be recovered.
    unread: HashSet<u64>,
    recovered: u64,
    kills: u64,
}

impl Device {
    fn new(name: String, profile: PathBuf, lines: Vec<String>) -> Self {
        let (log, stored, unread) = (BTreeMap::new(), HashSet::new(), HashSet::new());
        Self { name, profile, lines, log, last_shown: 0, handled: 0, stored, unread, recovered: 0, kills: 0 }
    }

    /// Sends all lines, and reads until the log has `total` lines. Kills its own process at random.
    fn run(&mut self, url: &str, group: &str, total: usize, seed: u64, progress: &AtomicU64, end: Instant) {
        let mut rng = TestRng::new(seed);
        while self.log.len() < total {
            let mut process = CliProcess::start(&self.profile, url, Some(self.handled));
            let clients_live = number("GROUP_CLIENTS_LIVE", 0) == 1;
            let (mut next, mut lives) = (0, if clients_live { u64::MAX } else { 100 + rng.below(600) });
            while self.log.len() < total && lives > 0 {
                assert!(Instant::now() < end, "{} has {} of {total} lines", self.name, self.log.len());
                let mut open = (0..next).filter(|n| !self.stored.contains(n)).count();
                while open < AHEAD && next < self.lines.len() {
                    if !self.stored.contains(&next) {
                        let line = json!({
                            "cmd": "send", "conversation": group, "text": self.lines[next],
                            "ref": next.to_string()
                        });
                        if !process.send(&line) {
                            break;
                        }
                        open += 1;
                    }
                    next += 1;
                }
                if let Some(event) = process.next(Duration::from_millis(50)) {
                    lives -= 1;
                    self.handle(&event, group, progress);
                }
            }
            if lives == 0 {
                process.kill();
                self.kills += 1;
            }
        }
    }

    fn handle(&mut self, event: &serde_json::Value, group: &str, progress: &AtomicU64) {
        if let Some(n) = event["n"].as_u64() {
            // An event that a killed process wrote comes again, with its number.
            if n <= self.handled {
                return;
            }
            self.handled = n;
        }
        if event["conversation"].as_str().is_some_and(|conversation| conversation != group) {
            // The greetings before the founding.
            return;
        }
        let seq = event["seq"].as_u64().unwrap_or(0);
        match event["event"].as_str().unwrap() {
            "stored" => {
                let Some(line) = event["ref"].as_str().and_then(|key| key.parse::<usize>().ok()) else {
                    return;
                };
                assert!(self.stored.insert(line), "{} stored line {line} twice", self.name);
                let before = self.log.insert(seq, self.lines[line].clone());
                assert_eq!(before, None, "{} has two lines at {seq}", self.name);
                progress.fetch_add(1, Ordering::Relaxed);
            }
            "message" => {
                assert!(seq > self.last_shown, "{} shows {seq} after {}", self.name, self.last_shown);
                self.last_shown = seq;
                let text = event["text"].as_str().unwrap().to_owned();
                let before = self.log.insert(seq, text);
                assert_eq!(before, None, "{} shows two lines at {seq}", self.name);
            }
            "undecryptable" if self.kills > 0 => {
                assert!(seq > self.last_shown, "{} shows {seq} after {}", self.name, self.last_shown);
                self.last_shown = seq;
                self.unread.insert(seq);
            }
            "recovered" => {
                assert!(self.unread.remove(&seq), "{} recovered {seq} without need", self.name);
                self.recovered += 1;
                let before = self.log.insert(seq, event["text"].as_str().unwrap().to_owned());
                assert_eq!(before, None, "{} shows two lines at {seq}", self.name);
            }
            "refused" | "undecryptable" | "gap" | "integrity" => panic!("{}: {event}", self.name),
            _ => {}
        }
    }
}

#[test]
fn group_of_sixteen_devices_shows_each_line_once_in_one_order() {
    let (total, wanted_kills) = (number("GROUP_LINES", 960), number("GROUP_KILLS", 10) as u64);
    let dir = tempfile::tempdir().unwrap();
    let server = Mutex::new(Server::start(dir.path()));
    let url = server.lock().unwrap().url();
    let (of_each, mut devices) = (total / (2 * USERS), Vec::new());
    let total = of_each * 2 * USERS;
    let text = real_lines(total, 0);
    for user in 0..USERS {
        let name = format!("user{user}");
        let first = register(dir.path(), &url, &name);
        let second = link(dir.path(), &url, &first, &format!("{name}-tablet"));
        for profile in [first, second] {
            let n = devices.len();
            let lines = text[n * of_each..][..of_each].iter().enumerate().map(|(i, line)| {
                // Each line differs from all others, and has at most 64 KiB.
                format!("{n}:{i} {}", line.chars().take(10_000).collect::<String>())
            });
            devices.push(Device::new(format!("{name}/{}", n % 2 + 1), profile, lines.collect()));
        }
    }
    let others: Vec<String> = (1..USERS).map(|user| format!("user{user}")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    for user in 1..USERS {
        // A user adds only its contacts without an invitation.
        let sent = command(&devices[2 * user].profile, &url, &["send", "user0", "hello"]);
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    }
    let mut process = CliProcess::start(&devices[0].profile, &url, Some(0));
    (1..USERS).for_each(|_| drop(process.wait("message")));
    process.finish();
    let founded = command(&devices[0].profile, &url, &[&["group", "create", "Crew"], &others[..]].concat());
    assert!(founded.status.success(), "{}", String::from_utf8_lossy(&founded.stderr));
    let group = String::from_utf8(founded.stdout).unwrap().trim().to_owned();
    for device in &devices[1..] {
        // A device sends to groups that it knows.
        let mut process = CliProcess::start(&device.profile, &url, Some(0));
        process.wait("group_changed");
        process.finish();
    }
    let (start, progress, over) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    let end = start + Duration::from_secs(1200);
    let mut kills = 0;
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let step = total as u64 / (wanted_kills * 3).max(1);
            Server::kill_again_and_again(&server, &progress, step, &over)
        });
        let (url, group, progress) = (&url, &group, &progress);
        let running: Vec<_> = devices
            .iter_mut()
            .enumerate()
            .map(|(n, device)| scope.spawn(move || device.run(url, group, total, n as u64, progress, end)))
            .collect();
        let ended: Vec<bool> = running.into_iter().map(|device| device.join().is_ok()).collect();
        over.store(true, Ordering::Relaxed);
        kills = killer.join().unwrap();
        assert!(ended.iter().all(|is_ok| *is_ok), "{ended:?}");
    });
    let took = start.elapsed();
    let first = &devices[0].log;
    for device in &devices {
        assert_eq!(&device.log, first, "{} has another order", device.name);
    }
    let mut sent: BTreeMap<&str, usize> = BTreeMap::new();
    for text in first.values() {
        let (sender, line) = text.split_once(':').unwrap();
        let line: usize = line.split_once(' ').unwrap().0.parse().unwrap();
        let next = sent.entry(sender).or_default();
        assert_eq!(line, *next, "device {sender} out of order");
        *next += 1;
    }
    let shown = |device: &Device| command(&device.profile, &url, &["group", "show", &group]);
    let members = shown(&devices[0]).stdout;
    assert_eq!(String::from_utf8_lossy(&members).lines().count(), USERS + 1);
    for device in &devices {
        assert_eq!(shown(device).stdout, members, "{} has another roster", device.name);
    }
    let client_kills: u64 = devices.iter().map(|device| device.kills).sum();
    let recovered: u64 = devices.iter().map(|device| device.recovered).sum();
    println!(
        "{total} lines on each of {} devices in {took:?}: {kills} kills of the server, {client_kills} of the \
         clients, {recovered} messages recovered, 0 lost, 0 duplicated, 0 out of order",
        devices.len()
    );
    assert!(kills >= wanted_kills, "only {kills} kills: the replay needs more lines");
}

#[test]
fn channel_with_seven_readers_shows_each_post_once_in_one_order() {
    let (total, wanted_kills) = (number("CHANNEL_LINES", 400), number("CHANNEL_KILLS", 6) as u64);
    let dir = tempfile::tempdir().unwrap();
    let server = Mutex::new(Server::start(dir.path()));
    let url = server.lock().unwrap().url();
    let text = real_lines(total, 1);
    let lines = text
        .iter()
        .enumerate()
        .map(|(i, line)| format!("0:{i} {}", line.chars().take(10_000).collect::<String>()));
    let mut lines = Some(lines.collect::<Vec<_>>());
    let mut devices: Vec<Device> = Vec::new();
    for user in 0..8 {
        let name = format!("user{user}");
        let profile = register(dir.path(), &url, &name);
        devices.push(Device::new(name, profile, lines.take().unwrap_or_default()));
    }
    let founded = command(&devices[0].profile, &url, &["channel", "create", "News"]);
    assert!(founded.status.success(), "{}", String::from_utf8_lossy(&founded.stderr));
    let printed = String::from_utf8(founded.stdout).unwrap();
    let [channel, link] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    for device in &devices[1..] {
        let subscribed = command(&device.profile, &url, &["channel", "subscribe", link]);
        assert!(subscribed.status.success(), "{}", String::from_utf8_lossy(&subscribed.stderr));
        assert_eq!(String::from_utf8(subscribed.stdout).unwrap().trim(), channel);
    }
    let (start, progress, over) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    let end = start + Duration::from_secs(600);
    let mut kills = 0;
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let step = total as u64 / (wanted_kills * 3).max(1);
            Server::kill_again_and_again(&server, &progress, step, &over)
        });
        let (url, progress) = (&url, &progress);
        let running: Vec<_> = devices
            .iter_mut()
            .enumerate()
            .map(|(n, device)| scope.spawn(move || device.run(url, channel, total, n as u64, progress, end)))
            .collect();
        let ended: Vec<bool> = running.into_iter().map(|device| device.join().is_ok()).collect();
        over.store(true, Ordering::Relaxed);
        kills = killer.join().unwrap();
        assert!(ended.iter().all(|is_ok| *is_ok), "{ended:?}");
    });
    for device in &devices {
        assert_eq!(device.log, devices[0].log, "{} has other posts", device.name);
    }
    let texts: Vec<&String> = devices[0].log.values().collect();
    assert_eq!(texts, devices[0].lines.iter().collect::<Vec<_>>(), "the order of the writer");
    println!(
        "{total} posts to 7 readers in {:?}: {kills} kills of the server, {} of the clients, 0 lost, 0 twice, 0 out of order",
        start.elapsed(),
        devices.iter().map(|device| device.kills).sum::<u64>()
    );
}
