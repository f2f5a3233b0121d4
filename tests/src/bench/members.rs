//! The cost of a group of many members with several devices each, at the sender and the server: with real clients and real
//! encryption. Only the sender is online while it is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chat_client::platform::{Dialer, Transport};
use chat_client::{Client, ClientConfig, ErrorKind, GroupAction, Result};
use futures_util::StreamExt as _;

use crate::load::Kind;
use crate::process::{Process, cpu_of};

/// Users that are prepared at the same time.
const PREPARED: usize = 16;
/// Messages over which the cost of one is averaged.
const MESSAGES: u64 = 400;
/// Time between them: at the same rate as many messages share a commit, however long the sender encrypts.
const GAP: Duration = Duration::from_millis(10);

/// A dialer that counts the bytes of the frames of its connections.
#[derive(Clone, Debug)]
struct Counting {
    dialer: Arc<dyn Dialer>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Counted {
    transport: Box<dyn Transport>,
    counts: Counting,
}

#[async_trait]
impl Dialer for Counting {
    fn authority(&self) -> &str {
        self.dialer.authority()
    }

    async fn dial(&self) -> Result<Box<dyn Transport>> {
        let transport = self.dialer.dial().await?;
        Ok(Box::new(Counted { transport, counts: self.clone() }))
    }
}

#[async_trait]
impl Transport for Counted {
    async fn recv(&mut self) -> Result<Option<Bytes>> {
        let frame = self.transport.recv().await?;
        self.counts.received.fetch_add(frame.as_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
        Ok(frame)
    }

    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()> {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        self.counts.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.transport.send(frames).await
    }

    async fn close(&mut self, code: u16) {
        self.transport.close(code).await;
    }
}

/// Repeats a call while the server refuses it for a moment.
async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T>) -> T {
    loop {
        match call().await {
            Ok(done) => return done,
            Err(error) if matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Unavailable) => {
                tokio::time::sleep(Duration::from_millis(u64::from(error.retry_after_ms().max(50)))).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

struct Bench {
    process: Process,
    profiles: tempfile::TempDir,
    counting: Counting,
}

impl Bench {
    fn start() -> Self {
        let process = Process::start(Kind::Ours);
        let dialer: Arc<dyn Dialer> = Arc::new(process.dialer.clone());
        let counting = Counting { dialer, sent: Arc::default(), received: Arc::default() };
        Self { process, profiles: tempfile::tempdir().unwrap(), counting }
    }

    fn config(&self, profile: &str, dialer: Arc<dyn Dialer>) -> ClientConfig {
        ClientConfig::with_dialer(dialer, profile, chat_signal::suite()).directory(self.profiles.path())
    }

    async fn founder(&self) -> Client {
        let config = || self.config("founder", Arc::new(self.counting.clone()));
        let founder = patiently(async || Client::register_if_new(config(), "founder").await).await;
        founder.ready().await.unwrap();
        founder
    }

    /// Registers a user with its devices. Returns its first client, which is connected.
    async fn user(&self, number: usize, devices: usize) -> Client {
        let name = format!("member{number}");
        let dialer = self.counting.dialer.clone();
        let config = || self.config(&name, dialer.clone());
        let first = patiently(async || Client::register_if_new(config(), &name).await).await;
        first.ready().await.unwrap();
        for device in 1..devices {
            let profile = format!("{name}-{device}");
            let pending = patiently(async || Client::link(self.config(&profile, dialer.clone())).await).await;
            patiently(async || first.approve_link(pending.code()).await).await;
            pending.approved().await.unwrap().close().await;
            // Thousands of profiles fill a small disk.
            let _ = std::fs::remove_dir_all(self.profiles.path().join(&profile));
        }
        first
    }

    /// Prints the cost of a step at the sender and the server.
    async fn step<T>(&self, name: &str, each: u64, step: impl Future<Output = T>) -> T {
        let rows = || self.process.counter("chat_inbox_rows_total");
        let cpu = || (cpu_of(std::process::id()), self.process.cpu());
        let before = (self.counting.sent.swap(0, Ordering::Relaxed), rows(), cpu());
        self.counting.received.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        let done = step.await;
        let took = begun.elapsed();
        let (sent, received) = (&self.counting.sent, &self.counting.received);
        let after = cpu();
        println!(
            "  {name}: {:.2} ms, CPU {:.2} ms at the sender and {:.3} ms at the server, {} B sent, {} B received, {} inbox rows",
            took.as_secs_f64() * 1e3 / each as f64,
            (after.0 - before.2.0).as_secs_f64() * 1e3 / each as f64,
            (after.1 - before.2.1).as_secs_f64() * 1e3 / each as f64,
            sent.load(Ordering::Relaxed) / each,
            received.load(Ordering::Relaxed) / each,
            (rows() - before.1) / each,
        );
        done
    }
}

async fn send(founder: &Client, group: chat_client::ConversationId, count: u64) {
    let mut last = None;
    let mut gap = tokio::time::interval(GAP);
    for n in 0..count {
        gap.tick().await;
        last = Some(founder.send(group, format!("message {n} of a group")).await.unwrap());
    }
    if let Some(last) = last {
        last.stored().await.unwrap();
    }
}

async fn measure(members: usize, devices: usize) {
    let bench = Bench::start();
    let founder = bench.founder().await;
    let group = founder.create_group("Large", &[]).await.unwrap();
    let (link, ticket) = founder.create_group_link(group, false).await.unwrap();
    ticket.stored().await.unwrap();
    let begun = Instant::now();
    let prepared = (1..members).map(|number| bench.user(number, devices));
    let mut prepared = futures_util::stream::iter(prepared).buffer_unordered(PREPARED);
    let mut last = None;
    while let Some(user) = prepared.next().await {
        user.join_group(&link).await.unwrap().stored().await.unwrap();
        if let Some(before) = last.replace(user) {
            before.close().await;
        }
    }
    drop(prepared);
    let others = last.map(|last| (last.user(), last));
    while founder.group(group).await.unwrap().members.len() < members {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "{members} members with {devices} devices each: prepared in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let Some((user, other)) = others else { return };
    bench.step("first message", 1, send(&founder, group, 1)).await;
    bench.step("next message, alone", 1, send(&founder, group, 1)).await;
    bench.step("each of the next messages, 100 a second", MESSAGES, send(&founder, group, MESSAGES)).await;
    if members <= 2 {
        return;
    }
    if devices > 1 {
        let unlinked = other.devices().await.unwrap().into_iter().find(|device| *device != other.device());
        patiently(async || other.unlink(unlinked.unwrap()).await).await;
        bench.step("first message after a device was unlinked", 1, send(&founder, group, 2)).await;
    }
    other.close().await;
    let remove = async {
        let action = GroupAction::Remove { users: vec![user], ban: false };
        founder.change_group(group, action).await.unwrap().stored().await.unwrap();
    };
    bench.step("removal of a member", 1, remove).await;
    bench.step("first message after the removal", 1, send(&founder, group, 1)).await;
    bench.step("next message, alone", 1, send(&founder, group, 1)).await;
}

/// Prints the cost of a group beside the cost of a group of two.
pub(crate) async fn run(members: usize, devices: usize) {
    measure(2, 1).await;
    measure(members, devices).await;
}
