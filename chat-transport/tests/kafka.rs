//! The Kafka router passes the router conformance suite with a real broker, at the address that
//! `tests/services/services.sh env` prints.
#![cfg(feature = "kafka")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::Duration;

use chat_core::backend::{Command, LogAnchor, Operation, Router, Rules};
use chat_core::envelope::SendPosition;
use chat_core::memory::MemoryAnchor;
use chat_core::{
    ConversationId, DeviceAddress, DeviceId, ErrorKind, InstallationId, MessageId, UserId, conformance,
};
use chat_transport::kafka::{KafkaRouter, KafkaSettings};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::time::timeout;

/// Returns settings with a new topic name, or prints a notice and returns `None` if Kafka is not configured.
fn fresh(variable: &str) -> Option<KafkaSettings> {
    let Ok(url) = std::env::var(variable) else {
        println!("ignored: {variable} is not set: start Kafka with tests/services/services.sh");
        return None;
    };
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    let mut settings: KafkaSettings = url.parse().unwrap();
    settings.topic = format!("test-{:x}", u64::from_le_bytes(random));
    settings.partitions = 4;
    Some(settings)
}

fn admin(settings: &KafkaSettings) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &settings.brokers).create().unwrap()
}

async fn remove(settings: &KafkaSettings) {
    let name = format!("{}.g1", settings.topic);
    let _ = admin(settings).delete_topics(&[&name], &AdminOptions::new()).await;
}

async fn suite(variable: &str) {
    for case in conformance::cases::router() {
        let Some(settings) = fresh(variable) else { return };
        let anchor: Arc<dyn LogAnchor> = Arc::new(MemoryAnchor::default());
        let router: Arc<dyn Router> = Arc::new(KafkaRouter::open(&settings, anchor, true).await.unwrap());
        let outcome = timeout(Duration::from_secs(60), (case.run)(router)).await;
        assert_eq!(outcome, Ok(Ok(())), "{}", case.name);
        println!("{variable}: {} passed", case.name);
        remove(&settings).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_broker_passes() {
    suite("CHAT_TEST_KAFKA").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_brokers_pass() {
    suite("CHAT_TEST_KAFKA_CLUSTER").await;
}

fn command(n: u64) -> Command {
    let user = UserId::from_bytes([1; 16]);
    let sender =
        DeviceAddress { user, device: DeviceId::PRIMARY, installation: InstallationId::from_bytes([1; 16]) };
    let number = SendPosition {
        conversation: ConversationId::own(user),
        message_id: MessageId::from_bytes([7; 16]),
        client_seq: n,
        prev: MessageId::NIL,
        incarnation: 0,
        generation: 0,
    };
    let operation = Operation::Skip(number);
    Command::new(sender, operation, Vec::new(), Rules::CURRENT)
}

/// Takes a record from any shard that has one.
async fn take_any(router: &KafkaRouter) -> chat_core::Result<u64> {
    let shards = (0..router.shards()).map(|shard| Box::pin(router.next(shard)));
    let (taken, _, _) = futures_util::future::select_all(shards).await;
    Ok(taken?.records[0].command.number().unwrap().client_seq)
}

/// Takes a record from any shard that has one, and commits it.
async fn apply_any(router: &KafkaRouter) -> chat_core::Result<u64> {
    let shards = (0..router.shards()).map(|shard| {
        Box::pin(async move {
            let last = router.next(shard).await?.records[0].clone();
            router.commit(shard, last.position).await?;
            Ok(last.command.number().unwrap().client_seq)
        })
    });
    futures_util::future::select_all(shards).await.0
}

async fn refusal(settings: &KafkaSettings, anchor: &Arc<MemoryAnchor>) -> chat_core::Error {
    KafkaRouter::open(settings, anchor.clone(), false).await.err().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_a_changed_deleted_or_recreated_topic() {
    let Some(settings) = fresh("CHAT_TEST_KAFKA") else { return };
    let anchor = Arc::new(MemoryAnchor::default());
    let name = format!("{}.g1", settings.topic);
    let router = KafkaRouter::open(&settings, anchor.clone(), true).await.unwrap();
    router.append(command(1)).await.unwrap();
    assert_eq!(timeout(Duration::from_secs(30), take_any(&router)).await.unwrap(), Ok(1));

    // One more partition: a running router detects it within seconds, a starting one at once.
    let more = NewPartitions::new(&name, 5);
    admin(&settings).create_partitions(&[more], &AdminOptions::new()).await.unwrap();
    let stopped = timeout(Duration::from_secs(30), async {
        loop {
            if let Err(error) = router.append(command(2)).await
                && error.kind() == ErrorKind::Corrupt
            {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let stopped = stopped.await.unwrap();
    let what = stopped.what();
    assert!(what.contains("number of partitions") && what.contains("--new-log"), "{stopped}");
    // The shard returns the error although a record that was read before still waits.
    let next = timeout(Duration::from_secs(10), take_any(&router)).await.unwrap();
    assert_eq!(next.map_err(|error| error.kind()), Err(ErrorKind::Corrupt));
    let refused = refusal(&settings, &anchor).await;
    assert!(refused.what().contains("number of partitions"), "{refused}");
    drop(router);

    // The topic is deleted, then recreated.
    remove(&settings).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = refusal(&settings, &anchor).await;
    assert!(refused.what().contains("does not exist"), "{refused}");
    let anew =
        NewTopic::new(&name, 4, TopicReplication::Fixed(1)).set("message.timestamp.type", "LogAppendTime");
    admin(&settings).create_topics(&[anew], &AdminOptions::new()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = refusal(&settings, &anchor).await;
    assert!(refused.what().contains("was recreated"), "{refused}");
    remove(&settings).await;
}

/// Retention is one week. An owner that starts later must not continue behind the deleted records.
#[tokio::test(flavor = "multi_thread")]
async fn detects_records_deleted_before_they_were_applied() {
    let Some(settings) = fresh("CHAT_TEST_KAFKA") else { return };
    let anchor = Arc::new(MemoryAnchor::default());
    let name = format!("{}.g1", settings.topic);
    let delete_all = async || {
        let mut all = TopicPartitionList::new();
        for partition in 0..4 {
            all.add_partition_offset(&name, partition, Offset::End).unwrap();
        }
        admin(&settings).delete_records(&all, &AdminOptions::new()).await.unwrap();
    };
    let gateway = KafkaRouter::open(&settings, anchor.clone(), false).await.unwrap();
    // Applied records and the first record of a partition may be deleted.
    for n in [1, 2] {
        delete_all().await;
        gateway.append(command(n)).await.unwrap();
        let owner = KafkaRouter::open(&settings, anchor.clone(), true).await.unwrap();
        assert_eq!(timeout(Duration::from_secs(30), apply_any(&owner)).await.unwrap(), Ok(n));
        owner.close().await;
    }
    // Records that were not applied must not be deleted, and no later record is applied.
    gateway.append(command(3)).await.unwrap();
    delete_all().await;
    for n in [4, 5, 6] {
        gateway.append(command(n)).await.unwrap();
    }
    let owner = KafkaRouter::open(&settings, anchor.clone(), true).await.unwrap();
    for _ in 0..2 {
        let stopped = timeout(Duration::from_secs(30), apply_any(&owner)).await.unwrap().unwrap_err();
        assert!(stopped.kind() == ErrorKind::Corrupt && stopped.what().contains("were deleted"), "{stopped}");
        // Meanwhile the other records are read.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    remove(&settings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_topic_settings_that_cannot_keep_the_guarantees() {
    let Some(settings) = fresh("CHAT_TEST_KAFKA") else { return };
    // One broker, three replicas.
    let three = KafkaSettings { replication: 3, ..settings.clone() };
    let anchor: Arc<MemoryAnchor> = Arc::default();
    let looked = KafkaRouter::check(&three, &*anchor).await.unwrap_err();
    let refused = refusal(&three, &anchor).await;
    assert!(looked == refused && refused.what().contains("fewer brokers"), "{looked} {refused}");
    let name = format!("{}.g1", settings.topic);
    for (key, value) in [
        ("message.timestamp.type", "CreateTime"),
        ("unclean.leader.election.enable", "true"),
        ("cleanup.policy", "compact"),
    ] {
        let mut topic = NewTopic::new(&name, 4, TopicReplication::Fixed(1));
        if key != "message.timestamp.type" {
            topic = topic.set("message.timestamp.type", "LogAppendTime");
        }
        admin(&settings).create_topics(&[topic.set(key, value)], &AdminOptions::new()).await.unwrap();
        let refused = refusal(&settings, &Arc::default()).await;
        assert!(refused.kind() == ErrorKind::Invalid && refused.what().contains(key), "{key}: {refused}");
        remove(&settings).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_creates_nothing_and_describes_the_topic() {
    let Some(settings) = fresh("CHAT_TEST_KAFKA") else { return };
    let anchor: Arc<MemoryAnchor> = Arc::default();
    for _ in 0..2 {
        let found = KafkaRouter::check(&settings, &*anchor).await.unwrap();
        assert!(found.starts_with("1 brokers; no log yet"), "{found}");
        assert_eq!(anchor.log().await, Ok(None));
    }
    let router = KafkaRouter::open(&settings, anchor.clone(), false).await.unwrap();
    let found = KafkaRouter::check(&settings, &*anchor).await.unwrap();
    assert_eq!(found, router.describe());
    remove(&settings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejects_a_minimum_of_one_in_sync_replica() {
    let Some(settings) = fresh("CHAT_TEST_KAFKA_CLUSTER") else { return };
    let name = format!("{}.g1", settings.topic);
    let topic = NewTopic::new(&name, 4, TopicReplication::Fixed(3))
        .set("message.timestamp.type", "LogAppendTime")
        .set("min.insync.replicas", "1");
    admin(&settings).create_topics(&[topic], &AdminOptions::new()).await.unwrap();
    let refused = refusal(&settings, &Arc::default()).await;
    assert!(refused.what().contains("min.insync.replicas"), "{refused}");
    remove(&settings).await;
}
