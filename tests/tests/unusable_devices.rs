//! Devices that cannot receive messages for a while: with a wrong clock, off for a month, or linked by half. None of
//! them blocks its user. Cases 2 to 4 of the situations from daily use.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chat_client::platform::native::Native;
use chat_client::platform::{Dialer, Platform, Runtime, Sleep, Task, Transport};
use chat_client::{
    Client, ClientConfig, DeviceId, ErrorKind, Event, Events, GapReason, RefusedReason, Result, Status,
};
use chat_core::memory::ManualClock;
use chat_core::wire::ServerFrame;
use chat_signal::Signal;
use chat_testing::TestServer;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);
const DAY_MS: i64 = 24 * 3600 * 1000;

/// The native platform with a clock that is wrong.
#[derive(Default)]
struct WrongClock {
    native: Native,
    ahead_ms: AtomicI64,
}

impl fmt::Debug for WrongClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrongClock")
    }
}

impl WrongClock {
    fn ahead(ms: i64) -> Arc<Self> {
        Arc::new(Self { native: Native::new(), ahead_ms: AtomicI64::new(ms) })
    }
}

impl Runtime for WrongClock {
    fn elapsed(&self) -> Duration {
        self.native.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> Sleep {
        self.native.sleep_until(at)
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<()> {
        self.native.fill_random(bytes)
    }
}

impl Platform for WrongClock {
    fn spawn(&self, start: Box<dyn FnOnce() -> Task + Send>) -> Result<()> {
        self.native.spawn(start)
    }

    fn unix_ms(&self) -> u64 {
        self.native.unix_ms().saturating_add_signed(self.ahead_ms.load(Ordering::SeqCst))
    }
}

fn config(server: &TestServer, profile: &str) -> ClientConfig {
    server.config(profile, Box::new(Signal::new()))
}

async fn next_text(server: &TestServer, client: &Client) -> String {
    let message = timeout(LIMIT, server.next_message(client)).await.expect("no message in time").unwrap();
    message.text().unwrap_or("unreadable").to_owned()
}

/// Returns the first event that `wanted` accepts.
async fn event<T>(events: &mut Events, wanted: impl Fn(&Event) -> Option<T>) -> T {
    let found = async {
        loop {
            let record = events.next().await.unwrap().unwrap();
            if let Some(found) = wanted(&record.event) {
                return found;
            }
        }
    };
    timeout(LIMIT, found).await.expect("no such event in time")
}

#[tokio::test]
async fn clocks_that_are_wrong_by_days_or_years_block_nobody() {
    let server = TestServer::start().await.unwrap();
    let right = server.client_with("right", Box::new(Signal::new())).await.unwrap();
    for (name, ahead_ms) in [
        ("behind40d", -40 * DAY_MS),
        ("behind20y", -20 * 365 * DAY_MS),
        ("ahead2d", 2 * DAY_MS),
        ("ahead40d", 40 * DAY_MS),
        ("ahead400d", 400 * DAY_MS),
    ] {
        let platform = WrongClock::ahead(ahead_ms);
        let wrong = Client::register(config(&server, name).platform(platform), name).await.unwrap();
        let mut events = wrong.events("test").await.unwrap();
        let reported = event(&mut events, |event| match event {
            Event::ClockWrong { ahead_ms } => Some(*ahead_ms),
            _ => None,
        });
        assert!(reported.await.abs_diff(ahead_ms) < 60_000, "{name}");
        wrong.ready().await.unwrap();
        right.send(wrong.user(), "to you").await.unwrap();
        assert_eq!(next_text(&server, &wrong).await, "to you", "{name}");
        wrong.send(right.user(), name).await.unwrap();
        assert_eq!(next_text(&server, &right).await, name);
    }
}

/// A clock that is set right after the registration, and a first contact before the device connects again.
#[tokio::test]
async fn device_is_reached_after_its_clock_was_set_right() {
    let server = TestServer::start().await.unwrap();
    let right = server.client_with("right", Box::new(Signal::new())).await.unwrap();
    let platform = WrongClock::ahead(400 * DAY_MS);
    let wrong = Client::register(config(&server, "wrong").platform(platform.clone()), "wrong").await.unwrap();
    wrong.ready().await.unwrap();
    let user = wrong.user();
    wrong.close().await;
    platform.ahead_ms.store(0, Ordering::SeqCst);
    right.send(user, "while you were away").await.unwrap();
    let wrong = Client::open(config(&server, "wrong").platform(platform)).await.unwrap();
    assert_eq!(next_text(&server, &wrong).await, "while you were away");
}

#[tokio::test]
async fn device_that_was_off_for_a_month_does_not_block_its_user() {
    let clock = Arc::new(ManualClock::default());
    let start_us = 1_700_000_000_000_000;
    clock.set_us(start_us);
    let builder = chat_server::Server::builder().in_memory().open_registration().clock(clock.clone());
    let server = TestServer::start_with(builder).await.unwrap();
    let alice = server.client_with("alice", Box::new(Signal::new())).await.unwrap();
    let tablet = server.linked_client(&alice, "tablet", Box::new(Signal::new())).await.unwrap();
    let (user, number) = (alice.user(), tablet.device());
    tablet.close().await;
    alice.close().await;
    clock.set_us(start_us + 31 * DAY_MS as u64 * 1000);
    // The phone comes back, the tablet does not.
    let alice = Client::open(config(&server, "alice")).await.unwrap();
    alice.ready().await.unwrap();
    let bob = server.client_with("bob", Box::new(Signal::new())).await.unwrap();
    let excluded = |event: &Event| match event {
        Event::DeviceExcluded { user, device } => Some((user.id, *device)),
        _ => None,
    };
    let (mut of_bob, mut of_alice) = (bob.events("test").await.unwrap(), alice.events("test").await.unwrap());
    let (told_bob, told_alice) = (event(&mut of_bob, excluded), event(&mut of_alice, excluded));
    let sent = async {
        let ticket = bob.send(user, "hello").await.unwrap();
        timeout(LIMIT, ticket.stored()).await.expect("not stored in time").unwrap();
    };
    let (told_bob, told_alice, ()) = tokio::join!(told_bob, told_alice, sent);
    assert_eq!(told_bob, (user, number), "the sender learns which device is out");
    assert_eq!(told_alice, (user, number), "so does its owner");
    assert_eq!(next_text(&server, &alice).await, "hello");
    // The tablet returns: a declared gap, and from then on the messages.
    let tablet = Client::open(config(&server, "tablet")).await.unwrap();
    let mut events = tablet.events("test").await.unwrap();
    let gap = event(&mut events, |event| match event {
        Event::Gap { from_seq, to_seq, reason, .. } => Some((*from_seq, *to_seq, *reason)),
        _ => None,
    });
    assert_eq!(gap.await, (1, 1, GapReason::Excluded));
    tokio::time::sleep(Duration::from_secs(10)).await;
    bob.send(user, "again").await.unwrap();
    assert_eq!(next_text(&server, &tablet).await, "again");
}

/// A dialer whose connections end when the answer to a link offer arrives: the device dies at that moment.
#[derive(Debug)]
struct DiesOnAnswer(Arc<dyn Dialer>);

#[derive(Debug)]
struct Dying(Box<dyn Transport>);

#[async_trait]
impl Dialer for DiesOnAnswer {
    fn authority(&self) -> &str {
        self.0.authority()
    }

    async fn dial(&self) -> Result<Box<dyn Transport>> {
        Ok(Box::new(Dying(self.0.dial().await?)))
    }
}

#[async_trait]
impl Transport for Dying {
    async fn recv(&mut self) -> Result<Option<Bytes>> {
        let frame = self.0.recv().await?;
        let dies = frame
            .as_ref()
            .is_some_and(|bytes| matches!(ServerFrame::parse(bytes.clone()), Ok(ServerFrame::LinkAnswer(_))));
        Ok(frame.filter(|_| !dies))
    }

    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()> {
        self.0.send(frames).await
    }

    async fn close(&mut self, code: u16) {
        self.0.close(code).await;
    }
}

#[tokio::test]
async fn half_linked_device_blocks_nobody_and_is_removed_by_itself() {
    let server = TestServer::start().await.unwrap();
    let platform = WrongClock::ahead(0);
    let alice = Client::register(config(&server, "alice").platform(platform.clone()), "alice").await.unwrap();
    alice.ready().await.unwrap();
    let tablet =
        ClientConfig::with_dialer(Arc::new(DiesOnAnswer(server.dialer())), "tablet", Box::new(Signal::new()));
    let directory = tempfile::tempdir().unwrap();
    let pending = Client::link(tablet.directory(directory.path())).await.unwrap();
    let number = alice.approve_link(pending.code()).await.unwrap();
    assert!(pending.approved().await.is_err(), "the device died");
    let devices = async || alice.devices().await.unwrap();
    assert_eq!(devices().await, [DeviceId::PRIMARY, number]);
    // Both ways, at once.
    let bob = server.client_with("bob", Box::new(Signal::new())).await.unwrap();
    for (from, to) in [(&bob, &alice), (&alice, &bob)] {
        let ticket = from.send(to.user(), "hello").await.unwrap();
        timeout(Duration::from_secs(5), ticket.stored()).await.expect("blocked").unwrap();
        assert_eq!(next_text(&server, to).await, "hello");
    }
    // After some minutes the first device removes it.
    platform.ahead_ms.store(6 * 60 * 1000, Ordering::SeqCst);
    let removed = async {
        while devices().await.len() > 1 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(LIMIT, removed).await.expect("the device stays listed");
}

/// The user cancels on the new device, and the code is approved all the same.
#[tokio::test]
async fn code_of_a_device_that_gave_up_is_not_approved() {
    let server = TestServer::start().await.unwrap();
    let alice = server.client_with("alice", Box::new(Signal::new())).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let tablet = config(&server, "tablet").directory(directory.path());
    let pending = Client::link(tablet).await.unwrap();
    let code = pending.code().clone();
    drop(pending);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(alice.approve_link(&code).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(alice.devices().await.unwrap(), [DeviceId::PRIMARY]);
}

#[tokio::test]
async fn device_of_another_suite_blocks_nobody() {
    let server = TestServer::start().await.unwrap();
    let alice = server.client_with("alice", Box::new(Signal::new())).await.unwrap();
    let phone = server.client_with("bob", Box::new(Signal::new())).await.unwrap();
    let other = server.client("carol").await.unwrap();

    let ticket = alice.send(other.user(), "no suite in common").await.unwrap();
    let refused = timeout(LIMIT, ticket.stored()).await.unwrap().unwrap_err();
    let status = ticket.status().await.unwrap();
    assert_eq!(status, Status::Refused(RefusedReason::CannotEncrypt), "{refused}");

    // Linked with another suite than the phone: its messages are not for it.
    let suite = Box::new(chat_testing::Unencrypted::new());
    let tablet = server.linked_client(&phone, "tablet", suite).await.unwrap();
    let mut events = tablet.events_after(Some(0));
    alice.send(phone.user(), "hello").await.unwrap();
    assert_eq!(next_text(&server, &phone).await, "hello");
    let gap = event(&mut events, |event| match event {
        Event::Gap { reason, .. } => Some(*reason),
        _ => None,
    });
    assert_eq!(gap.await, GapReason::Excluded);
}
