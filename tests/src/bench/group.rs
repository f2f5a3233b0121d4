//! A group of members, or a channel with readers, that are all online, beside a bare WebSocket broadcaster with the same driver.
//!
//! The *broadcaster* sends each frame of a client to all other clients, and answers the sender. It stores nothing and has no
//! order. Our server stores each message with one inbox row for each member before it answers. The driver checks that every
//! member gets every message, in order; it drops repeated ones as a client does, and does not decrypt.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use chat_core::ConversationId;
use chat_core::backend::{Dialer, Transport};
use chat_core::envelope::AckUpTo;
use chat_core::group::LinkSecret;
use chat_core::wire::ServerFrame;
use chat_tests::load_client::{BODY, LoadClient, Refused};
use chat_tests::raw_client::User;
use chat_transport::accept::{Upgrade, accept};
use futures_util::future::join_all;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use crate::load::Kind;
use crate::process::Process;
use crate::thin_frame::ThinFrame;

/// Members that send, in the measurement of the throughput.
const SENDERS: usize = 10;
/// Unanswered messages of each sender.
const OUTSTANDING: usize = 4;

/// Serves the broadcaster.
pub(crate) async fn broadcast(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (all, _) = broadcast::channel::<(usize, Bytes)>(4096);
    let upgrade = Arc::new(Upgrade { path: "/v1".into(), origins: Vec::new() });
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (all, upgrade) = (all.clone(), upgrade.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if let Ok(socket) = accept(stream, &upgrade).await {
                relay(number, Box::new(socket), all).await;
            }
        });
    }
}

async fn relay(number: usize, mut socket: Box<dyn Transport>, all: broadcast::Sender<(usize, Bytes)>) {
    let mut queue = all.subscribe();
    loop {
        tokio::select! {
            frame = socket.recv() => {
                let Ok(Some(frame)) = frame else { return };
                let _ = all.send((number, frame));
                if socket.send(vec![Bytes::from_static(&[1])]).await.is_err() {
                    return;
                }
            }
            first = queue.recv() => {
                let mut frames = Vec::new();
                let mut next = Some(first.unwrap());
                while let Some((from, frame)) = next {
                    if from != number {
                        frames.push(frame);
                    }
                    next = if frames.len() < 256 { queue.try_recv().ok() } else { None };
                }
                if !frames.is_empty() && socket.send(frames).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// One member. It does what a real client does on the wire, without the cost of encryption.
enum Member {
    Broadcast(Box<dyn Transport>),
    Group(Box<LoadClient>, ConversationId),
}

/// The content of frames for a member: answers to its own messages, and the send times of messages of others.
#[derive(Default)]
struct Read {
    answers: usize,
    sent_at: Vec<u64>,
    /// There are rows to acknowledge.
    acks: bool,
}

impl Member {
    fn transport(&mut self) -> &mut dyn Transport {
        match self {
            Self::Broadcast(transport) => &mut **transport,
            Self::Group(client, _) => &mut *client.transport,
        }
    }

    fn message(&mut self, at: u64) -> Bytes {
        match self {
            Self::Group(client, group) => client.group_message(*group, at),
            Self::Broadcast(_) => {
                let mut frame = BytesMut::with_capacity(BODY + 1);
                frame.put_u8(2);
                frame.put_u64(at);
                frame.resize(BODY + 1, 7);
                frame.freeze()
            }
        }
    }

    /// Reads a frame. `last` is the seq of the last row, for a check of the order. A sender gets no rows of its own messages,
    /// only their answers.
    fn read(&self, frame: Bytes, is_sender: bool, last: &mut u64, read: &mut Read) {
        let Self::Group(_, group) = self else {
            match frame[0] {
                1 => read.answers += 1,
                _ => read.sent_at.push(u64::from_be_bytes(frame[1..9].try_into().unwrap())),
            }
            return;
        };
        let frame = ThinFrame::parse(frame);
        assert!(frame.refused.is_none(), "a message was refused");
        read.answers += usize::from(frame.stored.is_some());
        for row in frame.deliver.map(|deliver| deliver.rows).unwrap_or_default() {
            // A session that fell behind reads history, and may send a row again, as clients expect.
            if row.conversation[..] != group.as_bytes()[..] || *last != 0 && row.seq <= *last {
                continue;
            }
            let is_next = row.seq == *last + 1 || is_sender && row.seq > *last;
            assert!(*last == 0 || is_next, "seq {} follows {last}", row.seq);
            *last = row.seq;
            read.acks = true;
            read.sent_at.extend(row.sent_at());
        }
    }

    /// Returns the ack for everything up to a seq.
    fn ack(&self, seq: u64) -> Option<Bytes> {
        match self {
            Self::Group(client, group) => Some(client.ack(vec![AckUpTo { conversation: *group, seq }])),
            Self::Broadcast(_) => None,
        }
    }
}

/// The kind of conversation that is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conversation {
    /// All members may write.
    Group,
    /// The first device writes, and the others are subscribed.
    Channel,
}

/// Number of connections that are opened at the same time.
const OPENING: usize = 50;

/// Registers users, or connects those that are registered, with one device each.
async fn open(process: &Process, users: Vec<User>, is_new: bool) -> Vec<LoadClient> {
    let dialer = &process.dialer;
    let open = async |user: User| loop {
        let opened = match is_new {
            true => LoadClient::register(dialer, user.public()).await,
            false => LoadClient::connect(dialer, user.public()).await,
        };
        match opened {
            Ok(client) => return client,
            Err(Refused::Later(ms)) => tokio::time::sleep(Duration::from_millis(u64::from(ms))).await,
            Err(Refused::Failed(error)) => {
                assert_eq!(error.kind(), chat_core::ErrorKind::Throttled, "{error}");
                let wait = u64::from(error.retry_after_ms().max(50));
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        }
    };
    let opening = users.into_iter().map(|user| Box::pin(open(user)));
    futures_util::stream::iter(opening).buffered(OPENING).collect().await
}

async fn members(process: &Process, count: usize, conversation: Conversation) -> Vec<Member> {
    let mut members = Vec::new();
    if process.kind != Kind::Ours {
        for _ in 0..count {
            members.push(Member::Broadcast(process.dialer.dial().await.unwrap()));
        }
        return members;
    }
    let users = (0..count).map(|n| User::new(&format!("member{n}"))).collect();
    let mut clients = open(process, users, true).await;
    if conversation == Conversation::Channel {
        let secret = LinkSecret::from_bytes([5; 32]);
        let (channel, roster) = clients[0].found_channel(&secret).await;
        for subscribed in clients[1..].chunks_mut(OPENING) {
            join_all(subscribed.iter_mut().map(|client| client.subscribe(channel, &secret))).await;
        }
        clients[0].join(channel, &roster);
        return clients.into_iter().map(|client| Member::Group(Box::new(client), channel)).collect();
    }
    let founder = clients[0].user.public();
    for client in &mut clients[1..] {
        client.accept(&founder).await;
    }
    let users: Vec<User> = clients[1..].iter().map(|client| client.user.public()).collect();
    let (group, roster) = clients[0].found_group(&users).await;
    for client in &mut clients {
        client.join(group, &roster);
    }
    clients.into_iter().map(|client| Member::Group(Box::new(client), group)).collect()
}

/// The deliveries that a member has received.
#[derive(Default)]
struct Received {
    count: u64,
    /// Send time and delay of each message, in nanoseconds.
    delays: Vec<(u64, u64)>,
}

struct Run {
    start: Instant,
    stop: AtomicBool,
    /// Messages per second of each sender; `None`: as fast as the server answers.
    rate: Option<u64>,
    sent: Mutex<u64>,
}

/// Sends, if the member is a sender, and receives until nothing arrives any more after the end.
async fn drive(mut member: Member, is_sender: bool, run: Arc<Run>) -> Received {
    let (mut received, mut last, mut room) = (Received::default(), 0, OUTSTANDING);
    let gap = run.rate.map(|rate| Duration::from_micros(1_000_000 / rate));
    let mut due = Instant::now();
    loop {
        let is_over = run.stop.load(Ordering::Relaxed);
        let mut frames = Vec::new();
        while is_sender && !is_over && room > 0 && gap.is_none_or(|_| Instant::now() >= due) {
            frames.push(member.message(run.start.elapsed().as_nanos() as u64));
            room -= 1;
            due += gap.unwrap_or_default();
        }
        *run.sent.lock().unwrap() += frames.len() as u64;
        if !frames.is_empty() {
            member.transport().send(frames).await.unwrap();
        }
        let is_due = is_sender && !is_over && gap.is_some();
        let wait =
            if is_due { due.saturating_duration_since(Instant::now()) } else { Duration::from_secs(1) };
        let Ok(frame) = tokio::time::timeout(wait, member.transport().recv()).await else {
            if run.stop.load(Ordering::Relaxed) {
                return received;
            }
            continue;
        };
        let (mut read, mut next) = (Read::default(), Some(frame));
        while let Some(frame) = next {
            member.read(frame.unwrap().expect("a frame"), is_sender, &mut last, &mut read);
            next = member.transport().recv().now_or_never();
        }
        let now = run.start.elapsed().as_nanos() as u64;
        if read.acks
            && let Some(ack) = member.ack(last)
        {
            member.transport().send(vec![ack]).await.unwrap();
        }
        room += read.answers;
        received.count += read.sent_at.len() as u64;
        received.delays.extend(read.sent_at.into_iter().map(|at| (at, now - at)));
    }
}

struct Outcome {
    deliveries_per_second: f64,
    cpu_us: f64,
    /// The 99th percentile of the delay to the last member, in milliseconds.
    last_p99_ms: f64,
}

/// A measurement: connections, those of them that send, messages per second of each, and seconds.
#[derive(Clone, Copy)]
struct Measurement {
    conversation: Conversation,
    count: usize,
    senders: usize,
    rate: Option<u64>,
    seconds: u64,
}

async fn measure(kind: Kind, measurement: Measurement) -> Outcome {
    let Measurement { conversation, count, senders, rate, seconds } = measurement;
    let process = Process::start(kind);
    let members = members(&process, count, conversation).await;
    let run =
        Arc::new(Run { start: Instant::now(), stop: AtomicBool::new(false), rate, sent: Mutex::new(0) });
    let before = process.cpu();
    let begun = Instant::now();
    let tasks: Vec<_> = members
        .into_iter()
        .enumerate()
        .map(|(n, one)| tokio::spawn(drive(one, n < senders, run.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    run.stop.store(true, Ordering::Relaxed);
    let (mut total, mut last_delay) = (0, std::collections::HashMap::<u64, u64>::new());
    let mut counts = Vec::new();
    for task in tasks {
        let received = task.await.unwrap();
        total += received.count;
        counts.push(received.count);
        for (at, delay) in received.delays {
            let known = last_delay.entry(at).or_default();
            *known = delay.max(*known);
        }
    }
    // The last second only finds that nothing arrives any more.
    let took = begun.elapsed().saturating_sub(Duration::from_secs(1));
    let sent = *run.sent.lock().unwrap();
    // Only the groups have order and exactly one copy.
    if kind == Kind::Ours {
        assert!(counts[senders..].iter().all(|count| *count == sent), "{counts:?} of {sent}");
    }
    let mut delays: Vec<u64> = last_delay.into_values().collect();
    delays.sort_unstable();
    Outcome {
        deliveries_per_second: total as f64 / took.as_secs_f64(),
        cpu_us: (process.cpu() - before).as_micros() as f64 / total as f64,
        last_p99_ms: delays[(delays.len() - 1) * 99 / 100] as f64 / 1e6,
    }
}

/// Prints the figures of a group of `count` members beside those of the broadcaster.
pub(crate) async fn run_group(count: usize, seconds: u64) {
    println!("{count} members online, {BODY} B bodies, {seconds} s each");
    let conversation = Conversation::Group;
    run_measurement(Measurement { conversation, count, senders: SENDERS, rate: None, seconds }).await;
}

/// Prints the figures of a channel with `count` connected readers beside those of the broadcaster.
pub(crate) async fn run_channel(count: usize, seconds: u64) {
    println!("{count} readers online, one writer, {BODY} B bodies, {seconds} s each");
    let conversation = Conversation::Channel;
    run_measurement(Measurement { conversation, count: count + 1, senders: 1, rate: None, seconds }).await;
    catch_up(count, 1000).await;
}

/// Prints how fast all readers of a channel receive the posts of their absence, and the reads of the store meanwhile.
async fn catch_up(count: usize, posts: u64) {
    let process = Process::start(Kind::Ours);
    let mut members = members(&process, count + 1, Conversation::Channel).await.into_iter();
    let Some(Member::Group(mut writer, channel)) = members.next() else { panic!("a writer") };
    let users: Vec<User> = members
        .filter_map(|member| match member {
            Member::Group(client, _) => Some(client.user),
            Member::Broadcast(_) => None,
        })
        .collect();
    let mut answers = 0;
    for _ in 0..posts / 50 {
        let frames = (0..50).map(|_| writer.group_message(channel, 0)).collect();
        writer.transport.send(frames).await.unwrap();
        answers += 50;
        while answers > 0 {
            let frame = chat_tests::load_client::next(&mut *writer.transport).await.unwrap();
            answers -= u64::from(matches!(frame, Some(ServerFrame::Stored(_))));
        }
    }
    let reads = process.store_calls("history_after");
    let (begun, cpu) = (Instant::now(), process.cpu());
    let readers = open(&process, users, false).await;
    let took = begun.elapsed().as_secs_f64();
    for reader in &readers {
        let rows: Vec<u64> = reader.caught_up.iter().map(|row| row.seq).collect();
        assert!(rows.is_sorted_by(|a, b| a < b) && rows.len() as u64 >= posts, "{} rows", rows.len());
    }
    println!(
        "  catch-up of {count} readers with {posts} posts each: {took:.1} s, {:.0} rows/s, server CPU {:.1} µs a row, \
         {} reads of history",
        (count as u64 * posts) as f64 / took,
        (process.cpu() - cpu).as_micros() as f64 / (count as u64 * posts) as f64,
        process.store_calls("history_after") - reads,
    );
}

async fn run_measurement(measurement: Measurement) {
    let mut rates = Vec::new();
    for kind in [Kind::Broadcaster, Kind::Ours] {
        let outcome = measure(kind, measurement).await;
        println!(
            "  {kind:?}: {:.0} deliveries/s, server CPU {:.1} µs a delivery",
            outcome.deliveries_per_second, outcome.cpu_us
        );
        rates.push(outcome.deliveries_per_second);
    }
    println!("  deliveries/s {:.3} × broadcaster", rates[1] / rates[0]);
    let mut p99 = [Vec::new(), Vec::new()];
    // Ten thousand connections take longer to open than to measure.
    let runs = if measurement.conversation == Conversation::Group { 5 } else { 1 };
    for _ in 0..runs {
        for (at, kind) in [Kind::Broadcaster, Kind::Ours].into_iter().enumerate() {
            let light = Measurement { senders: 1, rate: Some(5), ..measurement };
            p99[at].push(measure(kind, light).await.last_p99_ms);
        }
    }
    for each in &mut p99 {
        each.sort_by(f64::total_cmp);
    }
    println!(
        "  at 5 messages/s, p99 to the last member: {:.2} ms, broadcaster {:.2} ms",
        p99[1][runs / 2],
        p99[0][runs / 2]
    );
}
