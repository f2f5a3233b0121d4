//! Conformance tests of the Redis backends: a real single server and a Cluster, at the addresses that
//! `tests/services/services.sh env` prints.
#![cfg(feature = "redis")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_core::backend::{GatewayId, Presence, Registry};
use chat_core::{DeviceAddress, DeviceId, ErrorKind, InstallationId, UserId, conformance};
use chat_store::redis::{RedisLink, RedisPresence, RedisRegistry};

/// Empties Redis and returns a connection to it. Prints a message and returns `None` if `variable` is not
/// set.
async fn fresh(variable: &str) -> Option<RedisLink> {
    let Ok(url) = std::env::var(variable) else {
        println!("ignored: {variable} is not set: start Redis with tests/services/services.sh");
        return None;
    };
    let flush = redis::cmd("FLUSHALL");
    if let Some(nodes) = url.strip_prefix("redis-cluster://") {
        let nodes = nodes.split(',').map(|node| format!("redis://{node}")).collect::<Vec<_>>();
        let client = redis::cluster::ClusterClient::new(nodes).unwrap();
        let mut cluster = client.get_async_connection().await.unwrap();
        flush.query_async::<()>(&mut cluster).await.unwrap();
    } else {
        let client = redis::Client::open(url.as_str()).unwrap();
        let mut single = client.get_multiplexed_async_connection().await.unwrap();
        flush.query_async::<()>(&mut single).await.unwrap();
    }
    Some(RedisLink::connect(&url).await.unwrap())
}

async fn registry(variable: &str) {
    for case in conformance::cases::registry() {
        let Some(connection) = fresh(variable).await else { return };
        let backend: Arc<dyn Registry> = Arc::new(RedisRegistry::new(connection));
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
}

async fn presence(variable: &str) {
    for case in conformance::cases::presence() {
        let Some(connection) = fresh(variable).await else { return };
        let backend: Arc<dyn Presence> = Arc::new(RedisPresence::new(connection));
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
}

#[tokio::test]
async fn a_single_server_passes() {
    registry("CHAT_TEST_REDIS").await;
    presence("CHAT_TEST_REDIS").await;
}

#[tokio::test]
async fn a_cluster_passes() {
    registry("CHAT_TEST_REDIS_CLUSTER").await;
    presence("CHAT_TEST_REDIS_CLUSTER").await;
}

/// State of the proxy: the current generation of connections, and whether it forwards. Only connections of
/// the current generation pass.
#[derive(Clone, Copy, PartialEq)]
struct Passing(u32, bool);

/// Starts a proxy in front of Redis. It stalls blocked connections without closing them.
async fn proxy(redis: String) -> (String, tokio::sync::watch::Sender<Passing>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (change, passing) = tokio::sync::watch::channel(Passing(0, true));
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = tokio::net::TcpStream::connect(&redis).await.unwrap();
            let born = passing.borrow().0;
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(pass(near_in, far_out, born, passing.clone()));
            tokio::spawn(pass(far_in, near_out, born, passing.clone()));
        }
    });
    (address, change)
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    born: u32,
    mut passing: tokio::sync::watch::Receiver<Passing>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let _ = passing.wait_for(|passing| *passing == Passing(born, true)).await;
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_fast_while_server_is_silent() {
    let Some(_) = fresh("CHAT_TEST_REDIS").await else { return };
    let redis = std::env::var("CHAT_TEST_REDIS").unwrap();
    let (address, change) = proxy(redis.trim_start_matches("redis://").to_owned()).await;
    let registry = RedisRegistry::new(RedisLink::connect(&format!("redis://{address}")).await.unwrap());
    let user = UserId::from_bytes([1; 16]);
    let device =
        DeviceAddress { user, device: DeviceId::PRIMARY, installation: InstallationId::from_bytes([1; 16]) };
    registry.bind(device, GatewayId(1)).await.unwrap();
    change.send(Passing(1, false)).unwrap();
    let unavailable = |error: chat_core::Error| assert_eq!(error.kind(), ErrorKind::Unavailable);
    unavailable(registry.lookup(&[user]).await.unwrap_err());
    // The server is marked as silent now: all of these calls together take less time than one timeout.
    let began = Instant::now();
    for _ in 0..1000 {
        unavailable(registry.lookup(&[user]).await.unwrap_err());
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // The old connections stay blocked for ever.
    change.send(Passing(2, true)).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while registry.lookup(&[user]).await.map(|routes| routes.len()) != Ok(1) {
        assert!(Instant::now() < end, "the server answers again, and calls still fail");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the address of a master of the Cluster.
async fn a_master(any: &str) -> String {
    let client = redis::Client::open(format!("redis://{any}")).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let nodes: String = redis::cmd("CLUSTER").arg("NODES").query_async(&mut connection).await.unwrap();
    let master = nodes.lines().find(|line| line.contains("master") && !line.contains("fail")).unwrap();
    master.split_whitespace().nth(1).unwrap().split('@').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_fast_for_slots_of_silent_master() {
    let Some(connection) = fresh("CHAT_TEST_REDIS_CLUSTER").await else { return };
    let url = std::env::var("CHAT_TEST_REDIS_CLUSTER").unwrap();
    let any = url.trim_start_matches("redis-cluster://").split(',').next().unwrap();
    let registry = RedisRegistry::new(connection);
    let users: Vec<UserId> = (0..200).map(|n| UserId::from_bytes([n; 16])).collect();
    for (n, user) in users.iter().enumerate() {
        let installation = InstallationId::from_bytes([n as u8; 16]);
        let device = DeviceAddress { user: *user, device: DeviceId::PRIMARY, installation };
        registry.bind(device, GatewayId(1)).await.unwrap();
    }
    let master = redis::Client::open(format!("redis://{}", a_master(any).await)).unwrap();
    let mut master = master.get_multiplexed_async_connection().await.unwrap();
    let pause = redis::cmd("CLIENT").arg("PAUSE").arg(4000).arg("ALL").to_owned();
    pause.query_async::<()>(&mut master).await.unwrap();
    // Each slot group of the master may time out once.
    registry.lookup(&users).await.unwrap();
    let began = Instant::now();
    for _ in 0..10 {
        let routes = registry.lookup(&users).await.unwrap().len();
        assert!((1..200).contains(&routes), "{routes} routes: only those of the other masters");
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let end = Instant::now() + Duration::from_secs(30);
    while registry.lookup(&users).await.map(|routes| routes.len()) != Ok(200) {
        assert!(Instant::now() < end, "the master answers again, and calls still fail");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
