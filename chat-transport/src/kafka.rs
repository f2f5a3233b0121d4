//! A [`Router`] whose log is a Kafka topic with one partition per shard, keyed by conversation.
//!
//! - An idempotent producer appends a command with `acks=all` to the partition that [`partition_of`] returns.
//! - The processes of a consumer group own the partitions and hand them over cooperatively. Two owners may
//!   overlap: a shard is a function of its state and the log, so both write the same bytes.
//! - The offset is committed last, and lazily: records that come again are already stored.
//! - The router creates the topic, with settings that keep the guarantees, and writes a first record that
//!   identifies the log. It rejects a topic that was recreated, lost its beginning or has another number of
//!   partitions.
//!
//! All Kafka calls that can block run on separate threads. Rebalance callbacks only record the changes.

mod consumer;
mod observer;
mod partition;
mod settings;
mod topic;

pub use settings::KafkaSettings;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use chat_core::backend::{Command, LogAnchor, LogPosition, RecordBatch, Router};
use chat_core::codec::node::encode_command;
use chat_core::{ConversationId, Error, ErrorKind, Result};
use parking_lot::RwLock;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::sync::Semaphore;

use consumer::Consumer;
use observer::Observer;
use partition::Partition;
use topic::Topic;

/// Maximum number of this process's commands that wait for Kafka's acknowledgement.
const IN_FLIGHT: usize = 4096;

/// Returns the partition of a conversation: FNV-1a (64 bit) of its id, modulo the number of partitions.
///
/// ```
/// use chat_core::{ConversationId, UserId};
/// use chat_transport::kafka::partition_of;
/// assert_eq!(partition_of(ConversationId::own(UserId::from_bytes([1; 16])), 16), 7);
/// ```
pub fn partition_of(conversation: ConversationId, partitions: u32) -> u32 {
    let hash = conversation.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % u64::from(partitions.max(1))) as u32
}

/// A [`Router`] that keeps the log of a cluster in a Kafka topic.
pub struct KafkaRouter {
    topic: Topic,
    partitions: Arc<[Partition]>,
    producer: RwLock<FutureProducer<Observer>>,
    in_flight: Semaphore,
    /// Set once the topic is no longer the log that was opened.
    broken: Arc<Broken>,
    consumer: Consumer,
    closed: AtomicBool,
}

/// The error to return once the topic is no longer the log that was opened.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    is: AtomicBool,
    why: RwLock<Option<Error>>,
}

impl Broken {
    fn set(&self, error: Error) {
        self.why.write().get_or_insert(error);
        self.is.store(true, Ordering::Release);
    }

    fn check(&self) -> Result<()> {
        if self.is.load(Ordering::Acquire)
            && let Some(error) = &*self.why.read()
        {
            return Err(error.clone());
        }
        Ok(())
    }
}

impl fmt::Debug for KafkaRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaRouter").field("topic", &self.topic).finish_non_exhaustive()
    }
}

pub(crate) fn failed(error: KafkaError) -> Error {
    Error::new(ErrorKind::Unavailable, "the request to Kafka failed").caused_by(error)
}

impl KafkaRouter {
    /// Opens the log that the anchor names, or creates the first one.
    ///
    /// With `own_shards`, this process joins the processes that apply commands; otherwise it only appends.
    ///
    /// # Errors
    /// `Unavailable` if Kafka or the anchor cannot be reached; `Invalid` if the settings of the topic cannot
    /// keep the guarantees; `Corrupt` if the topic is not the log that the data follows, because it was
    /// recreated or its number of partitions changed. The text says what to do.
    pub async fn open(
        settings: &KafkaSettings,
        anchor: Arc<dyn LogAnchor>,
        own_shards: bool,
    ) -> Result<Self> {
        let topic = Topic::open(settings, &*anchor).await?;
        let partitions: Arc<[Partition]> = (0..topic.log.partitions).map(|_| Partition::default()).collect();
        let broken = Arc::new(Broken::default());
        let consumer = Consumer::start(settings, &topic, partitions.clone(), broken.clone(), own_shards)?;
        let producer = RwLock::new(settings.producer()?);
        let in_flight = Semaphore::new(IN_FLIGHT);
        let closed = AtomicBool::new(false);
        Ok(Self { topic, partitions, producer, in_flight, broken, consumer, closed })
    }

    /// Checks whether [`open`](Self::open) would find a log that keeps the guarantees, without creating
    /// anything. Returns a description for operators.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn check(settings: &KafkaSettings, anchor: &dyn LogAnchor) -> Result<String> {
        Topic::check(settings, anchor).await
    }

    /// Returns a description of the topic for operators: name, partitions, replication.
    pub fn describe(&self) -> String {
        self.topic.describe()
    }

    fn partition(&self, shard: usize) -> Result<&Partition> {
        self.partitions.get(shard).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such shard"))
    }

    /// Replaces the producer after a fatal error, because it can no longer append.
    fn replace_if_fatal(&self) {
        if self.producer.read().client().fatal_error().is_none() {
            return;
        }
        match self.topic.settings.producer() {
            Ok(fresh) => {
                tracing::warn!("the Kafka producer had a fatal error and was replaced");
                *self.producer.write() = fresh;
            }
            Err(error) => {
                tracing::error!(%error, "the Kafka producer had a fatal error and cannot be replaced")
            }
        }
    }
}

#[async_trait]
impl Router for KafkaRouter {
    fn shards(&self) -> usize {
        self.partitions.len()
    }

    async fn append(&self, command: Command) -> Result<()> {
        self.broken.check()?;
        let full = || Error::new(ErrorKind::Throttled, "too many commands are waiting for Kafka");
        let _room = self.in_flight.try_acquire().map_err(|_| full())?;
        let conversation = command.conversation();
        let partition = partition_of(conversation, self.topic.log.partitions);
        let payload = encode_command(&command);
        let sent = {
            let record = FutureRecord::to(&self.topic.name)
                .partition(i32::try_from(partition).unwrap_or(0))
                .key(&conversation.as_bytes()[..])
                .payload(&payload);
            // Queued before the first await, so that commands keep the order in which `append` was called.
            self.producer.read().send_result(record).map_err(|(error, _)| error)
        };
        let outcome = match sent {
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => return Err(full()),
            Err(error) => Err(error),
            Ok(delivery) => match delivery.await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err((error, _))) => Err(error),
                Err(_) => Err(KafkaError::Canceled),
            },
        };
        outcome.map_err(|error| {
            self.replace_if_fatal();
            failed(error)
        })
    }

    async fn next(&self, shard: usize) -> Result<RecordBatch> {
        let partition = self.partition(shard)?;
        loop {
            let arrived = partition.arrived();
            self.broken.check()?;
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::new(ErrorKind::Closed, "the router is closed"));
            }
            if let Some(taken) = partition.take()? {
                return Ok(taken);
            }
            arrived.await;
        }
    }

    async fn commit(&self, shard: usize, position: LogPosition) -> Result<()> {
        self.partition(shard)?.commit(position);
        Ok(())
    }

    async fn rewind(&self, shard: usize) -> Result<()> {
        self.partition(shard)?.rewind();
        Ok(())
    }
    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.partitions.iter().for_each(Partition::wake);
        self.consumer.leave().await;
    }
}
