//! The load generator. It puts the same load on both servers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use chat_core::backend::{Dialer, Transport};
use chat_core::envelope::AckUpTo;
use chat_core::wire::ServerFrame;
use chat_tests::load_client::{BODY, LoadClient, sent_at};
use chat_tests::raw_client::User;
use chat_transport::dial::WebSocketDialer;

use crate::process::Process;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Baseline,
    Ours,
    /// Our server over `wss`.
    Tls,
    /// A bare WebSocket broadcaster.
    Broadcaster,
}

#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Maximum number of unanswered messages of each sender.
    pub(crate) outstanding: usize,
    /// Messages per second of all senders together; `None` means that only `outstanding` limits them.
    pub(crate) rate: Option<u64>,
}

pub(crate) struct Metered {
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// CPU time per message of each process, in microseconds.
    pub(crate) cpu_us: Vec<f64>,
}

impl fmt::Display for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8.0} messages/s  send to delivery p50 {:.3} ms p99 {:.3} ms  server CPU {:.1} µs a message",
            self.rate,
            self.p50,
            self.p99,
            self.cpu_us.iter().sum::<f64>()
        )
    }
}

/// The servers that the two ends of a conversation connect to.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) kind: Kind,
    pub(crate) from: &'a WebSocketDialer,
    pub(crate) to: &'a WebSocketDialer,
}

impl<'a> Way<'a> {
    /// Connects both ends to one process.
    pub(crate) const fn through(process: &'a Process) -> Self {
        Self { kind: process.kind, from: &process.dialer, to: &process.dialer }
    }
}

/// One end of a conversation. It does what a real client does on the wire, without the cost of encryption.
enum End {
    Baseline(Box<dyn Transport>, u32),
    Ours(Box<LoadClient>, u32),
}

impl End {
    async fn open(kind: Kind, dialer: &WebSocketDialer, number: u32) -> Self {
        if kind != Kind::Baseline {
            // A name that no earlier run used.
            static NAMES: AtomicU64 = AtomicU64::new(0);
            let user = User::new(&format!("user{}", NAMES.fetch_add(1, Ordering::Relaxed)));
            return Self::Ours(Box::new(LoadClient::register(dialer, user).await.unwrap()), number);
        }
        let mut transport = dialer.dial().await.unwrap();
        let mut hello = vec![0];
        hello.extend(number.to_be_bytes());
        transport.send(vec![hello.into()]).await.unwrap();
        Self::Baseline(transport, number)
    }

    const fn number(&self) -> u32 {
        match self {
            Self::Baseline(_, number) | Self::Ours(_, number) => *number,
        }
    }

    fn user(&self) -> Option<User> {
        match self {
            Self::Baseline(..) => None,
            Self::Ours(online, _) => Some(online.user.public()),
        }
    }

    fn transport(&mut self) -> &mut dyn Transport {
        match self {
            Self::Baseline(transport, _) => &mut **transport,
            Self::Ours(online, _) => &mut *online.transport,
        }
    }

    fn message(&mut self, to: Option<&User>, to_number: u32, at: u64) -> Bytes {
        match self {
            Self::Ours(online, _) => online.message(to.unwrap(), at),
            Self::Baseline(..) => {
                let mut body = BytesMut::with_capacity(BODY + 5);
                body.put_u8(1);
                body.put_u32(to_number);
                body.put_u64(at);
                body.resize(BODY + 5, 7);
                body.freeze()
            }
        }
    }
}

async fn send(
    mut end: End,
    to: Option<User>,
    to_number: u32,
    load: Load,
    pairs: u64,
    start: Instant,
    stop: Arc<AtomicBool>,
) {
    let mut room = load.outstanding;
    let gap = load.rate.map(|rate| Duration::from_micros(1_000_000 * pairs / rate));
    // Spread the senders evenly over the interval.
    let mut due = Instant::now() + gap.unwrap_or_default() * end.number() / (2 * pairs as u32);
    loop {
        let mut frames = Vec::new();
        while room > 0 && gap.is_none_or(|_| Instant::now() >= due) && !stop.load(Ordering::Relaxed) {
            frames.push(end.message(to.as_ref(), to_number, start.elapsed().as_nanos() as u64));
            room -= 1;
            due += gap.unwrap_or_default();
        }
        if !frames.is_empty() {
            end.transport().send(frames).await.unwrap();
        }
        if stop.load(Ordering::Relaxed) && room == load.outstanding {
            return;
        }
        let wait = if gap.is_some() && room > 0 {
            due.saturating_duration_since(Instant::now())
        } else {
            Duration::from_millis(500)
        };
        let Ok(frame) = tokio::time::timeout(wait, end.transport().recv()).await else {
            continue;
        };
        let frame = frame.unwrap().expect("a frame");
        let End::Ours(online, _) = &mut end else {
            room += usize::from(frame[0] == 1);
            continue;
        };
        match ServerFrame::parse(frame).unwrap() {
            ServerFrame::Stored(stored) => {
                room += 1;
                // A client makes `Stored` durable and then acknowledges it. Acknowledge every eighth, like a
                // client that batches.
                if stored.seq % 8 == 0 || load.outstanding == 1 {
                    let ack =
                        online.ack(vec![AckUpTo { conversation: stored.conversation, seq: stored.seq }]);
                    online.transport.send(vec![ack]).await.unwrap();
                }
            }
            ServerFrame::Refused(_, refusal) => panic!("{refusal:?}"),
            _ => {}
        }
    }
}

async fn receive(mut end: End, start: Instant, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut latencies = Vec::new();
    loop {
        let Ok(frame) = tokio::time::timeout(Duration::from_millis(700), end.transport().recv()).await else {
            if stop.load(Ordering::Relaxed) {
                return latencies;
            }
            continue;
        };
        let frame = frame.unwrap().expect("a frame");
        let now = start.elapsed().as_nanos() as u64;
        let End::Ours(online, _) = &mut end else {
            latencies.push(now - u64::from_be_bytes(frame[1..9].try_into().unwrap()));
            continue;
        };
        if let ServerFrame::Deliver(rows, _) = ServerFrame::parse(frame).unwrap() {
            let Some(last) = rows.last() else { continue };
            let ack = online.ack(vec![AckUpTo { conversation: last.conversation, seq: last.seq }]);
            latencies.extend(rows.iter().filter_map(sent_at).map(|at| now - at));
            online.transport.send(vec![ack]).await.unwrap();
        }
    }
}

/// Runs a load. `cpu` returns the CPU time that each measured process has used so far.
pub(crate) async fn run(
    way: Way<'_>,
    pairs: u32,
    load: Load,
    duration: Duration,
    cpu: impl Fn() -> Vec<Duration>,
) -> Metered {
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let mut ends = Vec::new();
    for pair in 0..pairs {
        let from = End::open(way.kind, way.from, 2 * pair).await;
        ends.push((from, End::open(way.kind, way.to, 2 * pair + 1).await));
    }
    let before = cpu();
    let begun = Instant::now();
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for (from, to) in ends {
        let (user, number) = (to.user(), to.number());
        receivers.push(tokio::spawn(receive(to, start, stop.clone())));
        senders.push(tokio::spawn(send(from, user, number, load, u64::from(pairs), start, stop.clone())));
    }
    tokio::time::sleep(duration).await;
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    let took = begun.elapsed();
    let mut latencies = Vec::new();
    for receiver in receivers {
        latencies.extend(receiver.await.unwrap());
    }
    let used = cpu().into_iter().zip(before).map(|(after, before)| after - before);
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100] as f64 / 1e6;
    Metered {
        rate: latencies.len() as f64 / took.as_secs_f64(),
        p50: at(50),
        p99: at(99),
        cpu_us: used.map(|cpu| cpu.as_secs_f64() * 1e6 / latencies.len() as f64).collect(),
    }
}

/// Returns the resident memory per idle authenticated connection, in KiB. The accounts exist before the
/// measurement starts, so that it includes connections and not accounts.
pub(crate) async fn idle(process: &Process, count: usize) -> f64 {
    let mut users: Vec<User> = Vec::with_capacity(count);
    for number in 0..count {
        match End::open(process.kind, &process.dialer, number as u32).await {
            End::Ours(online, _) => users.push(online.user),
            End::Baseline(..) => users.push(User::new("unused")),
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = process.resident();
    let mut ends = Vec::with_capacity(count);
    for (number, user) in users.into_iter().enumerate() {
        ends.push(match process.kind {
            Kind::Baseline => End::open(process.kind, &process.dialer, number as u32).await,
            _ => {
                End::Ours(Box::new(LoadClient::connect(&process.dialer, user).await.unwrap()), number as u32)
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = process.resident();
    (after - before) as f64 / 1024.0 / count as f64
}
