//! Floods by one address and by one account: other users log in and send meanwhile. `FLOOD_SECONDS` sets the duration.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chat_core::envelope::Refusal;
use chat_core::wire::{ClientFrame, ServerFrame};
use chat_tests::load_client::{LoadClient, next};
use chat_tests::raw_client::{RawClient, Received, User};
use chat_tests::server::Server;
use chat_transport::dial::WebSocketDialer;

const FLOODER: &str = "203.0.113.66";
/// Largest growth of the server's memory, in bytes.
const MEMORY: u64 = 64 << 20;

fn seconds() -> u64 {
    std::env::var("FLOOD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// Starts a server that checks tokens and trusts the addresses which loopback forwards.
fn start(dir: &Path) -> Server {
    let config = dir.join("server.toml");
    std::fs::write(&config, "open_registration = false\nproxies = [\"127.0.0.1\"]\n").unwrap();
    Server::start_with(dir, &["--config", config.to_str().unwrap()])
}

/// Returns a user with a token.
fn user(server: &Server, name: &str) -> User {
    let out = Command::new(chat_tests::binary("chat-server-ref"))
        .args(["token", name, "--ttl", "3600", "--data"])
        .arg(&server.data)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let token = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    let mut user = User::new(name);
    user.token = token;
    user
}

/// Registers a user from an address of its own.
fn register(server: &Server, user: &User, from: &str) {
    let mut raw = RawClient::open_forwarded(server.port, from).unwrap();
    let _challenge = raw.take();
    raw.send(&user.registration());
    assert!(matches!(raw.take(), ServerFrame::Registered(..)));
}

/// Opens a session; returns how long that took, or `None` if the server refused it.
fn log_in(server: &Server, user: &User, from: &str) -> Option<Duration> {
    let start = Instant::now();
    let mut raw = RawClient::open_forwarded(server.port, from)?;
    let ServerFrame::Challenge(challenge) = raw.take() else { return None };
    raw.send(&user.hello(challenge.nonce, chat_core::limits::MAX_NUMBER / 4));
    matches!(raw.take(), ServerFrame::Welcome(_)).then(|| start.elapsed())
}

/// Returns the value of a counter of the server.
fn metric(server: &Server, name: &str) -> u64 {
    let page = server.admin_page("/metrics");
    let line = page.lines().find(|line| line.starts_with(name)).unwrap();
    line.split(' ').nth(1).unwrap().parse::<f64>().unwrap() as u64
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize]
}

fn disk_use(dir: &Path) -> u64 {
    let entries: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().collect();
    let size = |entry: &std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_use(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.iter().map(size).sum()
}

/// Logs in again and again, each time from another address, until `stop`. Returns the times, and the refused attempts.
fn honest_logins(server: &Server, users: &[User], stop: &AtomicBool) -> (Vec<Duration>, u64) {
    let (mut times, mut refused) = (Vec::new(), 0);
    for n in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let from = format!("198.51.100.{}", n % 200 + 1);
        match log_in(server, &users[n % users.len()], &from) {
            Some(time) => times.push(time),
            None => refused += 1,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    (times, refused)
}

/// One attempt of the flooding address: each kind costs the server something else.
fn flood_once(server: &Server, kind: usize, eve: &User, mallory: &User) {
    let Some(mut raw) = RawClient::open_forwarded(server.port, FLOODER) else { return };
    let challenge = match raw.receive(Duration::from_secs(5)) {
        Received::Frame(bytes) => ServerFrame::parse(bytes.into()).unwrap(),
        _ => return,
    };
    let ServerFrame::Challenge(challenge) = challenge else { return };
    match kind % 4 {
        // Connect and hang up.
        0 => {}
        // A registration with a token of another user.
        1 => {
            let mut stranger = User::new("nobody-knows");
            stranger.token.clone_from(&eve.token);
            raw.send(&stranger.registration());
            let _ = raw.receive(Duration::from_secs(5));
        }
        // A valid token, and the signature of another device.
        2 => {
            let mut thief = mallory.public();
            (thief.token, thief.device) = (eve.token.clone(), eve.device);
            raw.send(&thief.hello(challenge.nonce, 1));
            let _ = raw.receive(Duration::from_secs(5));
        }
        // Bytes that are no frame.
        _ => raw.write(&[0xff; 4096]),
    }
}

#[test]
fn honest_logins_continue_while_one_address_floods() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let users: Vec<User> = (0..8).map(|n| user(&server, &format!("user{n}"))).collect();
    let (eve, mallory) = (user(&server, "eve"), user(&server, "mallory"));
    for (n, user) in users.iter().chain([&eve, &mallory]).enumerate() {
        register(&server, user, &format!("198.51.100.{}", 201 + n));
    }
    let measure = |lasting: Duration, flooders: usize| {
        let (stop, attempts) = (AtomicBool::new(false), AtomicU64::new(0));
        let logins = std::thread::scope(|scope| {
            for kind in 0..flooders {
                let (server, eve, mallory, stop, attempts) = (&server, &eve, &mallory, &stop, &attempts);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        flood_once(server, kind, eve, mallory);
                        attempts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let honest = scope.spawn(|| honest_logins(&server, &users, &stop));
            std::thread::sleep(lasting);
            stop.store(true, Ordering::Relaxed);
            honest.join().unwrap()
        });
        (logins, attempts.into_inner())
    };
    let ((mut quiet, refused), _) = measure(Duration::from_secs(3), 0);
    assert_eq!(refused, 0);
    let (signatures, memory, disk) =
        (metric(&server, "chat_hello_signatures_total"), server.resident(), disk_use(&server.data));
    let ((mut flooded, refused), attempts) = measure(Duration::from_secs(seconds()), 8);
    let signatures = metric(&server, "chat_hello_signatures_total") - signatures;
    let grown = server.resident().saturating_sub(memory);
    let disk = disk_use(&server.data).saturating_sub(disk);
    println!(
        "{attempts} attempts of one address in {} s; honest logins: {} of {}, p50 {:.1?} p99 {:.1?}, quiet p50 {:.1?} \
         p99 {:.1?}; {signatures} signatures verified; memory + {} KiB, disk + {} KiB",
        seconds(),
        flooded.len(),
        flooded.len() as u64 + refused,
        percentile(&mut flooded, 0.5),
        percentile(&mut flooded, 0.99),
        percentile(&mut quiet, 0.5),
        percentile(&mut quiet, 0.99),
        grown >> 10,
        disk >> 10
    );
    assert_eq!(refused, 0, "honest logins were refused");
    // Before it is blocked, an address has 20 failures a minute; a user has 5 wrong signatures.
    let of_flood = signatures.saturating_sub(flooded.len() as u64);
    assert!(of_flood <= 40, "{of_flood} signatures were verified for the flooding address");
    assert!(grown < MEMORY, "memory grew by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn contacts_of_a_victim_are_served_while_one_account_floods() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let dialer = WebSocketDialer::new(&server.url()).unwrap();
    let [alice, bob, eve] = ["alice", "bob", "eve"].map(|name| user(&server, name));
    let (alice_public, bob_public) = (alice.public(), bob.public());
    let mut alice = LoadClient::register(&dialer, alice).await.unwrap();
    let mut bob = LoadClient::register(&dialer, bob).await.unwrap();
    let mut eve = LoadClient::register(&dialer, eve).await.unwrap();
    // Alice and Bob know each other.
    for (from, to) in [(&mut bob, &alice_public), (&mut alice, &bob_public)] {
        let frame = from.message(to, 1);
        from.transport.send(vec![frame]).await.unwrap();
        while !matches!(next(&mut *from.transport).await.unwrap(), Some(ServerFrame::Stored(_))) {}
    }
    let (memory, disk) = (server.resident(), disk_use(&server.data));
    let stop = Arc::new(AtomicBool::new(false));
    let victim = alice_public.public();
    let flooding = stop.clone();
    // Messages of a stranger and requests, as fast as the connection takes them.
    let flood = tokio::spawn(async move {
        let (mut sent, mut throttled) = (0_u64, 0_u64);
        while !flooding.load(Ordering::Relaxed) {
            let requests =
                (1..32).map(|id| ClientFrame::Request(id, chat_core::wire::Request::Cursors).encode());
            let message = eve.message(&victim, 2);
            let frames = requests.chain([message]).collect();
            if eve.transport.send(frames).await.is_err() {
                break;
            }
            sent += 32;
            while let Ok(Ok(Some(frame))) =
                tokio::time::timeout(Duration::ZERO, next(&mut *eve.transport)).await
            {
                throttled += u64::from(matches!(frame, ServerFrame::Refused(_, Refusal::Throttled(_))));
            }
        }
        (sent, throttled)
    });
    // The victim receives.
    let reading = stop.clone();
    let read = tokio::spawn(async move {
        let mut received = 0_u64;
        while !reading.load(Ordering::Relaxed) {
            let frame = tokio::time::timeout(Duration::from_millis(100), next(&mut *alice.transport)).await;
            if let Ok(Ok(Some(ServerFrame::Deliver(rows, _)))) = frame
                && !rows.is_empty()
            {
                received += rows.len() as u64;
                alice.acknowledge(&rows).await.unwrap();
            }
        }
        received
    });
    let (mut times, mut refused) = (Vec::new(), 0);
    let end = Instant::now() + Duration::from_secs(seconds());
    while Instant::now() < end {
        let (frame, start) = (bob.message(&alice_public, 3), Instant::now());
        bob.transport.send(vec![frame]).await.unwrap();
        loop {
            match next(&mut *bob.transport).await.unwrap() {
                Some(ServerFrame::Stored(_)) => break times.push(start.elapsed()),
                Some(ServerFrame::Refused(..)) => break refused += 1,
                Some(_) => {}
                None => panic!("disconnected"),
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let ((sent, throttled), received) = (flood.await.unwrap(), read.await.unwrap());
    let grown = server.resident().saturating_sub(memory);
    let disk = disk_use(&server.data).saturating_sub(disk);
    println!(
        "{sent} frames of one account in {} s, {throttled} throttled; the victim received {received}; its contact: {} stored, \
         {refused} refused, p99 {:.1?}; memory + {} KiB, disk + {} KiB",
        seconds(),
        times.len(),
        percentile(&mut times, 0.99),
        grown >> 10,
        disk >> 10
    );
    assert_eq!(refused, 0, "messages of a contact were refused");
    assert!(throttled > 0 && grown < MEMORY, "memory grew by {grown} bytes");
}
