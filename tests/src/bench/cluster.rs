//! Benchmark of a small cluster on one node of each service. It measures the latency of messages from one
//! gateway to another beside the latency of Kafka and Cassandra alone at the same time, the throughput, and
//! the CPU time of each process.

use std::time::{Duration, Instant};

use chat_tests::cluster::{Cluster, Services, Size, fresh_name};
use chat_transport::dial::WebSocketDialer;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use scylla::client::session_builder::SessionBuilder;

use crate::load::{Kind, Load, Way, run};
use crate::process::{cpu_of, pid_of_command};

/// Messages go from the first gateway to the second.
const SIZE: Size = Size { gateways: 2, routers: 1 };
/// Payload of a Kafka record and a Cassandra row, about the size of a message.
const PAYLOAD: [u8; 600] = [7; 600];
/// Warm-up time of the services.
const WARM: Duration = Duration::from_secs(30);
/// Processes whose CPU time is counted, in this order.
const ROLES: [&str; 6] = ["sending gateway", "receiving gateway", "router", "Kafka", "Cassandra", "Redis"];

pub(crate) async fn run_cluster() {
    let Some(services) = Services::single() else { return };
    let dir = tempfile::tempdir().unwrap();
    let name = fresh_name();
    let cluster = Cluster::start(dir.path(), &services, &name, SIZE, None);
    let dialers: Vec<WebSocketDialer> =
        cluster.gateways.iter().map(|gateway| WebSocketDialer::new(&gateway.url()).unwrap()).collect();
    let way = Way { kind: Kind::Ours, from: &dialers[0], to: &dialers[1] };
    let services_of = ["kafka.Kafka", "CassandraDaemon", "redis-server"];
    let nodes = cluster.gateways.iter().chain(&cluster.routers).map(chat_tests::server::Server::pid);
    let pids: Vec<u32> = nodes.chain(services_of.iter().filter_map(|name| pid_of_command(name))).collect();
    let cpu = || pids.iter().map(|pid| cpu_of(*pid)).collect::<Vec<_>>();
    let seconds: u64 = std::env::var("BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);

    // Warm up: the first messages open connections, then the JVMs of the services compile their code.
    run(way, 4, Load { outstanding: 1, rate: Some(50) }, Duration::from_secs(3), Vec::new).await;
    run(way, 50, Load { outstanding: 4, rate: None }, WARM, Vec::new).await;
    println!(
        "256 B bodies from one gateway to another, one router, one node of each service, {seconds} s each"
    );
    let duration = Duration::from_secs(seconds);
    let alone = tokio::spawn(services_alone(services.clone(), name.clone(), duration));
    let before = hops(&cluster);
    let light = run(way, 20, Load { outstanding: 16, rate: Some(200) }, duration, cpu).await;
    let (kafka, cassandra) = alone.await.unwrap();
    println!("200 messages/s");
    println!("  path      p50 {:.2} ms p99 {:.2} ms", light.p50, light.p99);
    println!("  {}", shares(&light.cpu_us));
    for ((hop, after), (_, before)) in hops(&cluster).into_iter().zip(before) {
        let calls = after.1 - before.1;
        let mean_ms = 1000.0 * (after.0 - before.0) / calls.max(1.0);
        println!("  {hop}: {calls} calls of {mean_ms:.2} ms");
    }
    println!("  Kafka ack p50 {:.2} ms p99 {:.2} ms, alone at the same time", kafka.0, kafka.1);
    println!("  Cassandra write p50 {:.2} ms p99 {:.2} ms, alone at the same time", cassandra.0, cassandra.1);
    println!("  path − (ack + write) at p50: {:+.2} ms", light.p50 - kafka.0 - cassandra.0);

    for outstanding in [1, 16] {
        let full = run(way, 50, Load { outstanding, rate: None }, duration, cpu).await;
        println!("{outstanding} outstanding, 50 senders\n  {full}");
        println!("  {}", shares(&full.cpu_us));
    }
    for (node, wanted) in [
        (
            &cluster.gateways[0],
            &["chat_log_request_messages", "chat_log_seconds_sum", "chat_log_seconds_count"][..],
        ),
        (
            &cluster.routers[0],
            &[
                "chat_commit_messages_sum",
                "chat_commit_messages_count",
                "chat_cassandra_batch_writes_sum",
                "chat_cassandra_batch_writes_count",
                "chat_store_seconds_sum",
                "chat_store_seconds_count",
                "chat_registry_seconds_sum",
                "chat_registry_seconds_count",
                "chat_node_link_seconds_sum",
                "chat_node_link_seconds_count",
            ][..],
        ),
    ] {
        let page = node.admin_page("/metrics");
        for line in page.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))) {
            println!("  {line}");
        }
    }
}

/// Returns the total time, in seconds, and the number of calls of each hop so far.
fn hops(cluster: &Cluster) -> Vec<(&'static str, (f64, f64))> {
    let (from, to, router) = (&cluster.gateways[0], &cluster.gateways[1], &cluster.routers[0]);
    [
        ("append (sending gateway)", from, "log", "append"),
        ("find (router)", router, "store", "find"),
        ("commit (router)", router, "store", "commit"),
        ("make_visible (router)", router, "store", "make_visible"),
        ("lookup (router)", router, "registry", "lookup"),
        ("ack (sending gateway)", from, "store", "ack"),
        ("ack (receiving gateway)", to, "store", "ack"),
    ]
    .map(|(name, node, backend, call)| {
        let page = node.admin_page("/metrics");
        let value = |of: &str| {
            let line = format!("chat_{backend}_seconds_{of}{{call=\"{call}\"}} ");
            page.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0.0)
        };
        (name, (value("sum"), value("count")))
    })
    .to_vec()
}

fn shares(cpu_us: &[f64]) -> String {
    let shares: Vec<String> = ROLES.iter().zip(cpu_us).map(|(role, us)| format!("{role} {us:.0}")).collect();
    format!("CPU µs a message: {}", shares.join(", "))
}

/// p50 and p99 in milliseconds.
type Times = (f64, f64);

fn times(mut all: Vec<Duration>) -> Times {
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    (at(50), at(99))
}

/// Measures an acknowledged Kafka record and a durable Cassandra row without the chat servers, at most fifty
/// times a second.
async fn services_alone(services: Services, name: String, duration: Duration) -> (Times, Times) {
    let brokers = services.kafka.trim_start_matches("kafka://").split('/').next().unwrap().to_owned();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .create()
        .unwrap();
    let topic = format!("{name}-alone");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    let node = services.cassandra.trim_start_matches("cassandra://").split('/').next().unwrap().to_owned();
    let session = SessionBuilder::new().known_node(node).build().await.unwrap();
    let table = format!("{name}.alone");
    let create = format!("CREATE TABLE {table} (key int PRIMARY KEY, value blob)");
    session.query_unpaged(create, ()).await.unwrap();
    let insert = session.prepare(format!("INSERT INTO {table} (key, value) VALUES (?, ?)")).await.unwrap();
    let (mut acks, mut writes) = (Vec::new(), Vec::new());
    let (start, mut key) = (Instant::now(), 0);
    while start.elapsed() < duration {
        let begun = Instant::now();
        let record = FutureRecord::<(), _>::to(&topic).payload(&PAYLOAD[..]);
        producer.send(record, Duration::from_secs(5)).await.unwrap();
        acks.push(begun.elapsed());
        let begun = Instant::now();
        session.execute_unpaged(&insert, (key, &PAYLOAD[..])).await.unwrap();
        writes.push(begun.elapsed());
        key += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (times(acks.split_off(5)), times(writes.split_off(5)))
}
