//! A gateway of a cluster with many devices is killed or drained. The devices reconnect to another gateway
//! and miss no message. The test also prints the latency of other clients meanwhile. `CHAT_TEST_CROWD` sets the number of
//! devices.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chat_core::envelope::InboxRow;
use chat_core::wire::ServerFrame;
use chat_core::{ConversationId, MessageId};
use chat_tests::TestRng;
use chat_tests::cluster::{Cluster, Services, Size, fresh_name};
use chat_tests::load_client::{LoadClient, Refused, next, sent_at};
use chat_tests::raw_client::User;
use chat_tests::server::Server;
use chat_transport::dial::WebSocketDialer;
use tokio::task::JoinSet;

/// Pause between two messages to the crowd. It keeps this part of the load the same before and after the
/// gateway ends.
const PACE: Duration = Duration::from_millis(10);
/// Time that the latency figures exclude: the first messages of many conversations, and all devices that
/// dial at once, which loads this process and not a server.
const SETTLING: Duration = Duration::from_secs(3);
/// Base of the backoff, as in the real client: the wait is drawn from 0 to this value, which doubles with
/// each attempt, and is at least the server's `retry_after`.
const BACKOFF_MS: u64 = 100;

fn dialer(server: &Server) -> WebSocketDialer {
    WebSocketDialer::new(&server.url()).unwrap()
}

/// Starts three gateways and a router. The crowd connects to the first gateway and reconnects to the second;
/// the other clients use the second and the third.
fn cluster(dir: &std::path::Path, services: &Services) -> Cluster {
    Cluster::start(dir, services, &fresh_name(), Size { gateways: 3, routers: 1 }, None)
}

async fn gather(dialer: &WebSocketDialer, count: usize) -> Vec<LoadClient> {
    let mut crowd = Vec::with_capacity(count);
    for some in 0..count / 50 {
        let users =
            (0..50).map(|n| LoadClient::register(dialer, User::new(&format!("crowd{}", 50 * some + n))));
        let opening: Vec<_> = users.collect();
        for online in futures_util::future::join_all(opening).await {
            crowd.push(online.unwrap());
        }
    }
    crowd
}

/// Returns the conversation and the seq of each message row.
fn messages_of(rows: &[InboxRow]) -> impl Iterator<Item = (ConversationId, u64)> {
    rows.iter().filter(|row| sent_at(row).is_some()).map(|row| (row.conversation, row.seq))
}

/// The reconnect of one device of the crowd.
struct Came {
    /// When the device was connected and caught up again.
    back: Instant,
    /// When the last connection attempt began.
    began: Instant,
    /// Number of connection attempts.
    attempts: u32,
    /// Number of messages received, before and after the reconnect.
    got: usize,
}

/// Stays connected and reconnects to `elsewhere` when the connection ends. Returns when the device has
/// reconnected and has all of its messages.
async fn stay(mut online: LoadClient, elsewhere: WebSocketDialer, mut rng: TestRng, messages: usize) -> Came {
    // Keyed by position: rows that were not acknowledged before the connection ended are delivered again.
    let mut got: BTreeSet<(ConversationId, u64)> = BTreeSet::new();
    let (mut back, mut began) = (None, Instant::now());
    let (mut attempts, mut wait_ms) = (0, None);
    loop {
        let closed = match tokio::time::timeout(Duration::from_secs(90), next(&mut *online.transport)).await {
            Err(_) => panic!("only {} of {messages} messages arrived", got.len()),
            Ok(Ok(Some(ServerFrame::Deliver(rows, _)))) => {
                got.extend(messages_of(&rows));
                !rows.is_empty() && online.acknowledge(&rows).await.is_err()
            }
            Ok(Ok(Some(ServerFrame::Close { retry_after, .. }))) => {
                wait_ms = Some(u64::from(retry_after));
                true
            }
            Ok(Ok(Some(_))) => false,
            Ok(Ok(None) | Err(_)) => true,
        };
        if closed {
            let user = online.user.public();
            online = loop {
                let ceiling = BACKOFF_MS << attempts.min(8);
                let wait = wait_ms.take().unwrap_or(0).max(rng.below(ceiling));
                tokio::time::sleep(Duration::from_millis(wait)).await;
                attempts += 1;
                began = Instant::now();
                let again = tokio::time::timeout(
                    Duration::from_secs(10),
                    LoadClient::connect(&elsewhere, user.public()),
                );
                match again.await {
                    Ok(Ok(again)) => break again,
                    Ok(Err(Refused::Later(wait))) => wait_ms = Some(u64::from(wait)),
                    Ok(Err(Refused::Failed(_))) | Err(_) => {}
                }
            };
            got.extend(messages_of(&online.caught_up));
            back = Some(Instant::now());
        }
        if let (Some(back), true) = (back, got.len() >= messages) {
            assert_eq!(got.len(), messages, "a message has two positions");
            return Came { back, began, attempts, got: got.len() };
        }
    }
}

/// Sends messages from one device to another until `stop` is set. Returns the arrival time and the latency of
/// each message.
async fn talk(from: LoadClient, to: LoadClient, stop: Arc<AtomicBool>) -> Vec<(Instant, Duration)> {
    let start = Instant::now();
    let user = to.user.public();
    let sending = {
        let stop = stop.clone();
        let mut from = from;
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let message = from.message(&user, start.elapsed().as_nanos() as u64);
                from.transport.send(vec![message]).await.unwrap();
                let until = tokio::time::Instant::now() + Duration::from_millis(200);
                // Read and discard incoming frames meanwhile.
                while tokio::time::timeout_at(until, next(&mut *from.transport)).await.is_ok() {}
            }
        })
    };
    let (mut to, mut took) = (to, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let Ok(frame) = tokio::time::timeout(Duration::from_millis(500), next(&mut *to.transport)).await
        else {
            continue;
        };
        if let Some(ServerFrame::Deliver(rows, _)) = frame.unwrap() {
            let now = start.elapsed();
            took.extend(
                rows.iter().filter_map(sent_at).map(|at| (Instant::now(), now - Duration::from_nanos(at))),
            );
            to.acknowledge(&rows).await.unwrap();
        }
    }
    sending.await.unwrap();
    took
}

/// Processes one answer. After 10 s without one, sends the unanswered messages again, as a client does.
async fn hear(sender: &mut LoadClient, unanswered: &mut Vec<(MessageId, Bytes)>) {
    let frame = match tokio::time::timeout(Duration::from_secs(10), next(&mut *sender.transport)).await {
        Ok(frame) => frame.unwrap().expect("the sender stays connected"),
        Err(_) => {
            let again = unanswered.iter().map(|(_, message)| message.clone()).collect();
            return sender.transport.send(again).await.unwrap();
        }
    };
    match frame {
        ServerFrame::Stored(stored) => unanswered.retain(|(id, _)| *id != stored.message_id),
        ServerFrame::Refused(_, refusal) => panic!("{refusal:?}"),
        ServerFrame::Close { reason, .. } => panic!("the sender was closed: {reason:?}"),
        _ => {}
    }
}

fn p99(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get((all.len().max(1) - 1) * 99 / 100).copied().unwrap_or_default()
}

/// Returns the number of inbox reads that a gateway has requested from its store.
fn inbox_reads(server: &Server) -> u64 {
    let page = server.admin_page("/metrics");
    let line = page.lines().find(|line| line.starts_with("chat_store_seconds_count{call=\"inbox\"}"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Sends messages to a crowd on the first gateway while `end` ends that gateway. The crowd reconnects to the
/// second.
fn crowd(end: impl FnOnce(&mut Server) -> Option<Duration> + Send + 'static) {
    let Some(services) = Services::single() else { return };
    let count = std::env::var("CHAT_TEST_CROWD").ok().and_then(|count| count.parse().ok()).unwrap_or(1000);
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = cluster(dir.path(), &services);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (first, second, third) =
        (dialer(&cluster.gateways[0]), dialer(&cluster.gateways[1]), dialer(&cluster.gateways[2]));
    let (crowd, sender) = runtime.block_on(async {
        (gather(&first, count).await, LoadClient::register(&third, User::new("sender")).await.unwrap())
    });
    let users: Vec<User> = crowd.iter().map(|online| online.user.public()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let talking: Vec<_> = runtime.block_on(async {
        let mut talking = Vec::new();
        for n in 0..10 {
            let from = LoadClient::register(&second, User::new(&format!("talker{n}"))).await.unwrap();
            let to = LoadClient::register(&third, User::new(&format!("hearer{n}"))).await.unwrap();
            talking.push(tokio::spawn(talk(from, to, stop.clone())));
        }
        talking
    });
    // Each device gets two messages: one before or while the gateway ends, the other after.
    let sent = Arc::new(AtomicUsize::new(0));
    let sending = {
        let sent = sent.clone();
        runtime.spawn(async move {
            let (mut sender, mut unanswered) = (sender, Vec::new());
            let mut pace = tokio::time::interval(PACE);
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for round in 0..2 {
                for user in &users {
                    pace.tick().await;
                    let message = sender.message(user, round);
                    unanswered.push((sender.last_id(user), message.clone()));
                    sender.transport.send(vec![message]).await.unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                    while unanswered.len() >= 32 {
                        hear(&mut sender, &mut unanswered).await;
                    }
                }
            }
            while !unanswered.is_empty() {
                hear(&mut sender, &mut unanswered).await;
            }
        })
    };
    let mut staying = JoinSet::new();
    for (n, online) in crowd.into_iter().enumerate() {
        staying.spawn_on(stay(online, second.clone(), TestRng::new(n as u64), 2), runtime.handle());
    }
    let began = Instant::now();
    while sent.load(Ordering::Relaxed) < count / 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let reads = inbox_reads(&cluster.gateways[1]);
    let ended = Instant::now();
    let mut gateway = cluster.gateways.remove(0);
    let ending = std::thread::spawn(move || end(&mut gateway));
    let (came, took) = runtime.block_on(async {
        let mut came = Vec::new();
        while let Some(one) = staying.join_next().await {
            came.push(one.unwrap());
        }
        sending.await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        stop.store(true, Ordering::Relaxed);
        let mut took = Vec::new();
        for one in talking {
            took.extend(one.await.unwrap());
        }
        (came, took)
    });
    let exit = ending.join().unwrap();
    let reads = inbox_reads(&cluster.gateways[0]) - reads;
    let all_back = came.iter().map(|one| one.back - ended).max().unwrap();
    assert_eq!(came.iter().map(|one| one.got).sum::<usize>(), 2 * count);
    // Generous for a busy machine; the actual time is printed.
    assert!(all_back < Duration::from_secs(180), "{all_back:?}");
    let mut seconds: BTreeMap<u64, usize> = BTreeMap::new();
    came.iter().for_each(|one| *seconds.entry((one.began - ended).as_secs()).or_default() += 1);
    let last = seconds.keys().last().unwrap() + 1;
    let (most, mean) = (*seconds.values().max().unwrap(), count as f64 / last as f64);
    let p99_of = |from: Instant, to: Instant| {
        p99(took.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, took)| *took).collect())
    };
    let mut attempts: Vec<u32> = came.iter().map(|one| one.attempts).collect();
    attempts.sort_unstable();
    println!(
        "{count} devices caught up after {all_back:.1?}, at most {most} began in a second (mean {mean:.0}), \
         {:.2} inbox pages and {} attempts each (p99 {}), 0 of {} messages lost; \
         p99 of other clients {:.1?} meanwhile, {:.1?} after the crowd had dialled, {:.1?} before",
        reads as f64 / count as f64,
        attempts[count / 2],
        attempts[count * 99 / 100],
        2 * count,
        p99_of(ended, ended + all_back),
        p99_of(ended + SETTLING, ended + all_back),
        p99_of(began + SETTLING, ended),
    );
    if let Some(exit) = exit {
        println!("the gateway exited after {exit:.1?}");
        // A drain spreads the devices over 60 s. A busy machine dials some of them together.
        assert!(most <= count / 4, "they reconnected together: {seconds:?}");
    }
}

#[test]
fn crowd_reconnects_after_its_gateway_is_killed() {
    crowd(|gateway| {
        gateway.kill();
        None
    });
}

#[test]
fn crowd_reconnects_after_its_gateway_is_drained() {
    crowd(|gateway| Some(gateway.terminate()));
}
