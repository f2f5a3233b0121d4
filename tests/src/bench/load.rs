//! The load, the same for both servers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use chat_core::backend::Transport;
use chat_core::envelope::{AckOf, Audience, DeviceBox, Publish, SendNumber};
use chat_core::wire::{ClientFrame, ServerFrame};
use chat_core::{ConversationId, MessageId, StoreEpoch};
use chat_tests::raw::User;

use crate::process::Process;

const BODY: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Floor,
    Ours,
    /// Ours, by `wss`.
    Tls,
}

#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Messages of a sender on the way unanswered.
    pub(crate) outstanding: usize,
    /// Messages a second over all senders; none: as many as there is room for.
    pub(crate) rate: Option<u64>,
}

pub(crate) struct Measured {
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) cpu_us: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8.0} messages/s  send to delivery p50 {:.3} ms p99 {:.3} ms  server CPU {:.1} µs a message",
            self.rate, self.p50, self.p99, self.cpu_us
        )
    }
}

/// One end: what a real client does on the wire, and nothing that encryption would cost.
struct End {
    transport: Box<dyn Transport>,
    kind: Kind,
    number: u32,
    user: User,
    epoch: Option<StoreEpoch>,
    sent: u64,
    prev: MessageId,
}

impl End {
    async fn open(process: &Process, number: u32) -> Self {
        Self::open_as(process, number, User::new(&format!("user{number}"))).await
    }

    async fn open_as(process: &Process, number: u32, user: User) -> Self {
        let mut transport = process.dialer.dial().await.unwrap();
        let mut epoch = None;
        if process.kind == Kind::Floor {
            let mut hello = vec![0];
            hello.extend(number.to_be_bytes());
            transport.send(vec![hello.into()]).await.unwrap();
        } else {
            let ServerFrame::Challenge(challenge) = next(&mut *transport).await else { panic!() };
            transport.send(vec![user.registration().encode()]).await.unwrap();
            assert!(matches!(next(&mut *transport).await, ServerFrame::Registered(..)));
            transport.send(vec![user.hello(challenge.nonce, 1 << 40).encode()]).await.unwrap();
            let ServerFrame::Welcome(welcome) = next(&mut *transport).await else { panic!() };
            epoch = Some(welcome.store_epoch);
            assert_eq!(next(&mut *transport).await, ServerFrame::Deliver(Vec::new(), true));
        }
        Self { transport, kind: process.kind, number, user, epoch, sent: 0, prev: MessageId::NIL }
    }

    fn message(&mut self, to: &User, to_number: u32, at: u64) -> Bytes {
        let mut body = BytesMut::with_capacity(BODY + 5);
        if self.kind == Kind::Floor {
            body.put_u8(1);
            body.put_u32(to_number);
        }
        body.put_u64(at);
        body.resize(body.len() + BODY - 8, 7);
        if self.kind == Kind::Floor {
            return body.freeze();
        }
        self.sent += 1;
        let message_id =
            MessageId::new(at, (u128::from(self.sent) << 16).to_be_bytes()[6..].try_into().unwrap());
        let publish = Publish {
            number: SendNumber {
                conversation: ConversationId::direct(self.user.device.user, to.device.user),
                message_id,
                client_seq: self.sent,
                prev: std::mem::replace(&mut self.prev, message_id),
                incarnation: 0,
                generation: (1 << 40) + self.sent,
            },
            first: true,
            audience: [to, &self.user].map(|u| Audience { user: u.device.user, list_version: 1 }).to_vec(),
            body: body.freeze(),
            boxes: vec![DeviceBox {
                installation: to.device.installation,
                data: Bytes::from_static(&[9; 128]),
            }],
            sent_at: 0,
        };
        ClientFrame::Publish(publish).encode()
    }

    fn ack(&self, acks: Vec<AckOf>) -> Bytes {
        ClientFrame::Ack { acks, store_epoch: self.epoch.unwrap(), generation: (1 << 40) + self.sent }
            .encode()
    }
}

async fn next(transport: &mut dyn Transport) -> ServerFrame {
    ServerFrame::parse(transport.recv().await.unwrap().expect("a frame")).unwrap()
}

async fn send(
    mut end: End,
    to: User,
    to_number: u32,
    load: Load,
    pairs: u64,
    start: Instant,
    stop: Arc<AtomicBool>,
) {
    let mut room = load.outstanding;
    let gap = load.rate.map(|rate| Duration::from_micros(1_000_000 * pairs / rate));
    // Spread evenly, not all at once.
    let mut due = Instant::now() + gap.unwrap_or_default() * end.number / (2 * pairs as u32);
    loop {
        let mut frames = Vec::new();
        while room > 0 && gap.is_none_or(|_| Instant::now() >= due) && !stop.load(Ordering::Relaxed) {
            frames.push(end.message(&to, to_number, start.elapsed().as_nanos() as u64));
            room -= 1;
            due += gap.unwrap_or_default();
        }
        if !frames.is_empty() {
            end.transport.send(frames).await.unwrap();
        }
        if stop.load(Ordering::Relaxed) && room == load.outstanding {
            return;
        }
        let wait = if gap.is_some() && room > 0 {
            due.saturating_duration_since(Instant::now())
        } else {
            Duration::from_millis(500)
        };
        let Ok(frame) = tokio::time::timeout(wait, end.transport.recv()).await else {
            continue;
        };
        let frame = frame.unwrap().expect("a frame");
        if end.kind == Kind::Floor {
            room += usize::from(frame[0] == 1);
            continue;
        }
        match ServerFrame::parse(frame).unwrap() {
            ServerFrame::Stored(stored) => {
                room += 1;
                // A client makes "stored" durable, then says so; here every few, as one that batches would.
                if stored.seq % 8 == 0 || load.outstanding == 1 {
                    let ack = end.ack(vec![AckOf { conversation: stored.conversation, seq: stored.seq }]);
                    end.transport.send(vec![ack]).await.unwrap();
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
        let Ok(frame) = tokio::time::timeout(Duration::from_millis(700), end.transport.recv()).await else {
            if stop.load(Ordering::Relaxed) {
                return latencies;
            }
            continue;
        };
        let frame = frame.unwrap().expect("a frame");
        let now = start.elapsed().as_nanos() as u64;
        let sent_at = |bytes: &[u8]| u64::from_be_bytes(bytes[..8].try_into().unwrap());
        if end.kind == Kind::Floor {
            latencies.push(now - sent_at(&frame[1..]));
            continue;
        }
        if let ServerFrame::Deliver(rows, _) = ServerFrame::parse(frame).unwrap() {
            let Some(last) = rows.last() else { continue };
            let ack = end.ack(vec![AckOf { conversation: last.conversation, seq: last.seq }]);
            for row in &rows {
                if let chat_core::envelope::RowContent::Message { message, .. } = &row.content {
                    latencies.push(now - sent_at(&message.body));
                }
            }
            end.transport.send(vec![ack]).await.unwrap();
        }
    }
}

pub(crate) async fn run(process: &Process, pairs: u32, load: Load, duration: Duration) -> Measured {
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let mut ends = Vec::new();
    for pair in 0..pairs {
        ends.push((End::open(process, 2 * pair).await, End::open(process, 2 * pair + 1).await));
    }
    let cpu = process.cpu();
    let begun = Instant::now();
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for (from, to) in ends {
        let (user, number) = (to.user.public(), to.number);
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
    let cpu = process.cpu() - cpu;
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100] as f64 / 1e6;
    Measured {
        rate: latencies.len() as f64 / took.as_secs_f64(),
        p50: at(50),
        p99: at(99),
        cpu_us: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
    }
}

/// Resident KiB for each of so many authenticated connections that do nothing. The accounts are there before:
/// what is measured is a connection, not an account.
pub(crate) async fn idle(process: &Process, count: usize) -> f64 {
    let mut users: Vec<User> = Vec::with_capacity(count);
    for number in 0..count {
        users.push(End::open(process, number as u32).await.user);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = process.resident();
    let mut ends = Vec::with_capacity(count);
    for (number, user) in users.into_iter().enumerate() {
        ends.push(End::open_as(process, number as u32, user).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = process.resident();
    (after - before) as f64 / 1024.0 / count as f64
}
