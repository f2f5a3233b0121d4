use std::ops::Range;
use std::time::{Duration, Instant};

use chat_core::backend::{LogAnchor, LogIdentity};
use chat_core::{Error, ErrorKind, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::FutureRecord;
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::{KafkaSettings, failed};

/// The key of the first record of each partition. Its value is the log's id.
pub(super) const GENESIS: &[u8] = b"genesis";
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum retention of records, in milliseconds: one week, to repair a stalled shard.
const RETENTION_MS: u64 = 7 * 24 * 3600 * 1000;

/// The Kafka topic of a log.
#[derive(Clone, Debug)]
pub(super) struct Topic {
    pub name: String,
    pub log: LogIdentity,
    pub settings: KafkaSettings,
    replication: usize,
}

const FEWER_BROKERS: Error = Error::new(
    ErrorKind::Invalid,
    "Kafka has fewer brokers than the log needs replicas: add brokers, or set ?replication=1 (losing one \
     broker then loses data)",
);

const fn gone() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the topic of the log does not exist: restore it, or stop every node and begin a new log generation \
         with `chat-server-ref migrate --new-log`, which discards commands that were not applied yet",
    )
}

const fn made_anew() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the topic was recreated or a partition lost its beginning, so its offsets do not match the data: \
         stop every node and begin a new log generation with `chat-server-ref migrate --new-log`",
    )
}

const fn repartitioned() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the number of partitions of the topic changed, which would move conversations to other shards: \
         stop every node and begin a new log generation with `chat-server-ref migrate --new-log`",
    )
}

impl Topic {
    /// Opens the topic of the log in force, or creates the first one.
    pub(super) async fn open(settings: &KafkaSettings, anchor: &dyn LogAnchor) -> Result<Self> {
        let asked = settings.clone();
        blocking(move || asked.count_brokers()).await?;
        let known = match anchor.log().await? {
            Some(known) => known,
            None => {
                let mut id = [0; 16];
                getrandom::fill(&mut id).map_err(|e| {
                    Error::new(ErrorKind::Unavailable, "failed to get random bytes").caused_by(e)
                })?;
                let partitions = settings.partitions;
                anchor.begin_log(LogIdentity { generation: 1, id, partitions, opened: false }).await?
            }
        };
        let name = format!("{}.g{}", settings.topic, known.generation);
        let mut topic =
            Self { name, log: known, settings: settings.clone(), replication: settings.replication as usize };
        if !known.opened {
            topic.create().await?;
            let (one, fresh) = (topic.clone(), anchor);
            blocking(move || one.wait_for_leaders()).await?;
            topic.write_beginnings().await?;
            fresh.open_log(known.generation).await?;
            topic.log.opened = true;
        }
        topic.examine().await?;
        Ok(topic)
    }

    /// Checks the log in force without creating anything. Returns a description for operators.
    pub(super) async fn check(settings: &KafkaSettings, anchor: &dyn LogAnchor) -> Result<String> {
        let name = |generation| format!("{}.g{generation}", settings.topic);
        let asked = settings.clone();
        let brokers = blocking(move || asked.count_brokers()).await?;
        let known = anchor.log().await?;
        if let Some(log) = known.filter(|log| log.opened) {
            let mut topic =
                Self { name: name(log.generation), log, settings: settings.clone(), replication: 0 };
            topic.examine().await?;
            return Ok(topic.describe());
        }
        if brokers < settings.replication as usize {
            return Err(FEWER_BROKERS);
        }
        Ok(format!(
            "{brokers} brokers; no log yet: the first node creates topic {}, {} partitions, {} replicas each",
            name(known.map_or(1, |log| log.generation)),
            settings.partitions,
            settings.replication
        ))
    }

    /// Rejects a topic that cannot keep the guarantees or is not the log. Stores its number of replicas.
    async fn examine(&mut self) -> Result<()> {
        self.check_settings().await?;
        let one = self.clone();
        self.replication = blocking(move || one.verify(&one.look()?, 0..one.log.partitions)).await?;
        Ok(())
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "topic {}: {} partitions, {} replicas each, LogAppendTime, acks=all",
            self.name, self.log.partitions, self.replication
        )
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        self.settings.client()?.create().map_err(failed)
    }

    fn options() -> AdminOptions {
        AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)).operation_timeout(Some(ADMIN_TIMEOUT))
    }

    async fn create(&self) -> Result<()> {
        let copies = i32::try_from(self.settings.replication).unwrap_or(3);
        let in_sync = if copies > 2 { "2" } else { "1" };
        let retention = RETENTION_MS.to_string();
        let partitions = i32::try_from(self.log.partitions).unwrap_or(16);
        let topic = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(copies))
            .set("message.timestamp.type", "LogAppendTime")
            .set("min.insync.replicas", in_sync)
            .set("unclean.leader.election.enable", "false")
            .set("cleanup.policy", "delete")
            .set("retention.ms", &retention)
            .set("max.message.bytes", "1048576");
        let made = self.admin()?.create_topics(&[topic], &Self::options()).await.map_err(failed)?;
        match made.into_iter().next() {
            Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            Some(Err((_, RDKafkaErrorCode::InvalidReplicationFactor))) => Err(FEWER_BROKERS),
            other => Err(Error::new(ErrorKind::Unavailable, "failed to create the topic")
                .caused_by(std::io::Error::other(format!("{other:?}")))),
        }
    }

    /// Returns the consumer that verifies the topic. It reads only the first record of a partition.
    pub(super) fn look(&self) -> Result<BaseConsumer> {
        self.settings
            .client()?
            .set("group.id", format!("{}.look", self.name))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("queued.min.messages", "1")
            .set("fetch.message.max.bytes", "1024")
            .create()
            .map_err(failed)
    }

    fn wait_for_leaders(&self) -> Result<()> {
        let consumer = self.look()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let metadata = consumer.fetch_metadata(Some(&self.name), ADMIN_TIMEOUT).map_err(failed)?;
            let led = metadata.topics().first().map_or(0, |topic| {
                topic.partitions().iter().filter(|partition| partition.leader() >= 0).count()
            });
            if led >= self.log.partitions as usize {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the partitions of the topic have no leaders",
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Writes the first record of every partition. Several nodes may write it: the first record counts.
    async fn write_beginnings(&self) -> Result<()> {
        let producer = self.settings.producer()?;
        let sent = (0..self.log.partitions).map(|partition| {
            let record = FutureRecord::to(&self.name)
                .partition(i32::try_from(partition).unwrap_or(0))
                .key(GENESIS)
                .payload(&self.log.id[..]);
            producer.send_result(record).map_err(|(error, _)| failed(error))
        });
        let sent = sent.collect::<Result<Vec<_>>>()?;
        for delivery in sent {
            let written = delivery.await.map_err(|_| failed(rdkafka::error::KafkaError::Canceled))?;
            written.map_err(|(error, _)| failed(error))?;
        }
        Ok(())
    }

    /// Rejects settings under which an acknowledged record can be lost, or its time is not the broker's.
    async fn check_settings(&self) -> Result<()> {
        let admin = self.admin()?;
        let described = admin
            .describe_configs(&[ResourceSpecifier::Topic(&self.name)], &Self::options())
            .await
            .map_err(failed)?;
        if described.iter().any(|config| matches!(config, Err(RDKafkaErrorCode::TopicAuthorizationFailed))) {
            return Err(Error::new(
                ErrorKind::Denied,
                "the user may not read the configuration of the topic: grant it DescribeConfigs",
            ));
        }
        // Kafka returns no settings for a topic that does not exist.
        let config = described.into_iter().find_map(|config| config.ok().filter(|c| !c.entries.is_empty()));
        let config = config.ok_or_else(gone)?;
        let value = |name: &str| config.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
        if value("message.timestamp.type") != "LogAppendTime" {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the topic's message.timestamp.type must be LogAppendTime: the order of writes follows it",
            ));
        }
        if value("unclean.leader.election.enable") == "true" {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the topic's unclean.leader.election.enable must be false: a leader that was behind would \
                 lose acknowledged records",
            ));
        }
        if self.settings.replication > 2 && value("min.insync.replicas").parse().unwrap_or(0) < 2 {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the topic's min.insync.replicas must be 2 or more: one replica is not durable",
            ));
        }
        if value("cleanup.policy") != "delete" {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the topic's cleanup.policy must be delete: compaction drops commands",
            ));
        }
        Ok(())
    }

    /// Checks that the topic is the log that was opened and that these partitions begin with its first
    /// record. Returns the smallest number of replicas of a partition. Blocks.
    pub(super) fn verify(&self, consumer: &BaseConsumer, partitions: Range<u32>) -> Result<usize> {
        let metadata = consumer.fetch_metadata(Some(&self.name), ADMIN_TIMEOUT).map_err(failed)?;
        let topic = metadata.topics().first().filter(|topic| !topic.partitions().is_empty());
        let topic = topic.ok_or_else(gone)?;
        if topic.partitions().len() != self.log.partitions as usize {
            return Err(repartitioned());
        }
        let copies = topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
        if copies < self.settings.replication as usize {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the topic has fewer replicas than the settings require: add replicas, or set ?replication=1",
            ));
        }
        self.verify_beginnings(consumer, partitions)?;
        Ok(copies)
    }

    /// Checks the first record of every given partition that still has it.
    fn verify_beginnings(&self, consumer: &BaseConsumer, partitions: Range<u32>) -> Result<()> {
        let mut first = TopicPartitionList::new();
        for partition in partitions {
            let partition = i32::try_from(partition).unwrap_or(0);
            let (low, high) =
                consumer.fetch_watermarks(&self.name, partition, ADMIN_TIMEOUT).map_err(failed)?;
            if high == 0 {
                return Err(made_anew());
            }
            if low == 0 {
                first.add_partition_offset(&self.name, partition, Offset::Beginning).map_err(failed)?;
            }
        }
        let mut missing = first.count();
        consumer.assign(&first).map_err(failed)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while missing > 0 {
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "failed to read the first records of the log in time",
                ));
            }
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(record)) if record.offset() == 0 => {
                    if record.key() != Some(GENESIS) || record.payload() != Some(&self.log.id[..]) {
                        return Err(made_anew());
                    }
                    missing -= 1;
                }
                Some(Ok(_)) | None => {}
                Some(Err(error)) => {
                    tracing::debug!(%error, "failed to read the first records of the log: retrying")
                }
            }
        }
        consumer.unassign().map_err(failed)
    }
}

/// Runs blocking work on a thread for blocking work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = |_| Error::new(ErrorKind::Closed, "the runtime was shut down");
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}
