use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chat_core::backend::{LogPosition, Record};
use chat_core::codec::node::decode_command;
use chat_core::{Error, ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientContext, Message as _, Offset, TopicPartitionList};
use tokio::sync::watch;

use super::observer::{OBSERVE_MS, observe_lag};
use super::partition::Partition;
use super::topic::{GENESIS, Topic};
use super::{Broken, KafkaSettings, failed};

/// Interval of offset commits. After a crash the records applied since the last one come again; they are
/// already stored.
const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// Interval of checks of the topic and of the first records of some partitions. Some are enough, because
/// recreating the topic recreates all of them.
const VERIFY_EVERY: Duration = Duration::from_secs(5);
/// Number of checks that cover the first records of all partitions: one minute.
const LOOKS: u32 = 12;

/// Threads that read partitions, commit offsets and verify the topic. When this is dropped, they end and
/// leave the consumer group.
#[derive(Debug)]
pub(super) struct Consumer {
    stop: Arc<AtomicBool>,
    /// Closed once this process left the consumer group.
    member: watch::Receiver<()>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Records which partitions this process owns. Its callbacks do not block.
struct Ownership {
    partitions: Arc<[Partition]>,
    ownership_epochs: AtomicU64,
}

impl Ownership {
    fn of<'a>(&'a self, list: &TopicPartitionList) -> impl Iterator<Item = &'a Partition> + use<'a> {
        let numbers: Vec<usize> =
            list.elements().iter().filter_map(|one| usize::try_from(one.partition()).ok()).collect();
        numbers.into_iter().filter_map(|number| self.partitions.get(number))
    }
}

impl ClientContext for Ownership {
    fn stats(&self, statistics: Statistics) {
        observe_lag(&statistics);
        let waiting: usize = self.partitions.iter().map(Partition::len).sum();
        metrics::gauge!("chat_log_waiting_records").set(waiting as f64);
        let owned = self.partitions.iter().filter(|partition| partition.is_owned()).count();
        metrics::gauge!("chat_shards_owned").set(owned as f64);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client error");
    }
}

impl ConsumerContext for Ownership {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        match change {
            Rebalance::Revoke(list) => {
                let gone = self.of(list).map(Partition::revoke).count();
                tracing::info!(gone, "shards were revoked: another node may own them");
            }
            // The epoch must be set before records of these partitions can be polled.
            Rebalance::Assign(list) => {
                let own = self.of(list).map(|partition| {
                    partition.assign(self.ownership_epochs.fetch_add(1, Ordering::Relaxed) + 1);
                });
                let own = own.count();
                if own > 0 {
                    tracing::info!(own, "shards were assigned to this node");
                }
            }
            Rebalance::Error(error) => tracing::warn!(%error, "Kafka rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = change {
            // A pause outlasts the ownership epoch in which it was set.
            let _ = consumer.resume(list);
        }
    }
}

impl Consumer {
    pub(super) fn start(
        settings: &KafkaSettings,
        topic: &Topic,
        partitions: Arc<[Partition]>,
        broken: Arc<Broken>,
        own_shards: bool,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
            let no_thread = |e| Error::new(ErrorKind::Unavailable, "failed to start a thread").caused_by(e);
            thread.map(drop).map_err(no_thread)
        };
        let (member, left) = watch::channel(());
        let watch = Watch { topic: topic.clone(), partitions: partitions.clone(), broken: broken.clone() };
        let stopped = stop.clone();
        spawn("kafka-verify", Box::new(move || watch.run(&stopped)))?;
        if own_shards {
            let ownership = Ownership { partitions: partitions.clone(), ownership_epochs: AtomicU64::new(0) };
            let consumer = Arc::new(subscribe(settings, topic, ownership)?);
            let mut reader = Reader {
                consumer: consumer.clone(),
                topic: topic.name.clone(),
                generation: topic.log.generation,
                expected: vec![Expected::default(); partitions.len()],
                partitions: partitions.clone(),
                broken,
            };
            let stopped = stop.clone();
            let committer = Committer { consumer, topic: topic.name.clone(), partitions };
            let committing = std::thread::Builder::new()
                .name("kafka-commit".to_owned())
                .spawn(move || committer.run(&stopped))
                .map_err(|e| Error::new(ErrorKind::Unavailable, "failed to start a thread").caused_by(e))?;
            let stopped = stop.clone();
            spawn(
                "kafka-poll",
                Box::new(move || {
                    reader.run(&stopped);
                    // Dropping the last handle leaves the group, which polls: it must happen on this thread.
                    let _ = committing.join();
                    drop(reader);
                    drop(member);
                }),
            )?;
        }
        Ok(Self { stop, member: left })
    }

    /// Commits the last offsets and leaves the consumer group, so that other nodes own the partitions.
    pub(super) async fn leave(&self) {
        self.stop.store(true, Ordering::Release);
        // The channel carries no value: this returns when the thread ends and drops its sender.
        let _ = self.member.clone().changed().await;
    }
}

fn subscribe(
    settings: &KafkaSettings,
    topic: &Topic,
    ownership: Ownership,
) -> Result<BaseConsumer<Ownership>> {
    let consumer: BaseConsumer<Ownership> = settings
        .client()?
        .set("group.id", &topic.name)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Without a committed offset, read from the first record. Applied records change nothing.
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1000")
        .set("max.poll.interval.ms", "30000")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.error.backoff.ms", "100")
        .set("queued.min.messages", "2000")
        .set("queued.max.messages.kbytes", "16384")
        .set("isolation.level", "read_uncommitted")
        .set("statistics.interval.ms", OBSERVE_MS)
        .create_with_context(ownership)
        .map_err(failed)?;
    consumer.subscribe(&[&topic.name]).map_err(failed)?;
    Ok(consumer)
}

/// The next expected offset of an ownership epoch.
#[derive(Clone, Copy, Default)]
struct Expected {
    ownership_epoch: u64,
    offset: i64,
}

/// Reads the partitions that this process owns.
struct Reader {
    consumer: Arc<BaseConsumer<Ownership>>,
    topic: String,
    generation: u64,
    expected: Vec<Expected>,
    partitions: Arc<[Partition]>,
    broken: Arc<Broken>,
}

impl Reader {
    fn run(&mut self, stop: &AtomicBool) {
        let mut paused = Vec::new();
        let consumer = self.consumer.clone();
        while !stop.load(Ordering::Acquire) {
            match consumer.poll(Duration::from_millis(50)) {
                None => {}
                Some(Ok(message)) => {
                    if self.follows(message.partition(), message.offset()) {
                        paused.extend(self.take_in(&message));
                    } else {
                        self.broken.set(Error::new(
                            ErrorKind::Corrupt,
                            "records were deleted from the log before they were applied: stop every node \
                             and begin a new log generation with `chat-server-ref migrate --new-log`",
                        ));
                        self.partitions.iter().for_each(Partition::wake);
                    }
                }
                Some(Err(error)) => tracing::debug!(%error, "failed to poll Kafka: retrying"),
            }
            paused.retain(|number| !self.resume(*number));
        }
    }

    /// Returns whether this record follows the last one without a gap. If the next record was deleted, Kafka
    /// continues with the oldest one it has and reports no error.
    fn follows(&mut self, partition: i32, offset: i64) -> bool {
        let number = usize::try_from(partition).unwrap_or(usize::MAX);
        let Some(ownership_epoch) = self.partitions.get(number).map(Partition::ownership_epoch) else {
            return true;
        };
        let last =
            std::mem::replace(&mut self.expected[number], Expected { ownership_epoch, offset: offset + 1 });
        if last.ownership_epoch == ownership_epoch {
            offset <= last.offset
        } else {
            self.begins_where_it_ended(number, offset)
        }
    }

    /// Returns whether an ownership epoch begins with the first record that was not applied, or `true` if
    /// that cannot be determined now. The oldest record decides, because a replaced owner may commit its
    /// offset late.
    fn begins_where_it_ended(&self, number: usize, first: i64) -> bool {
        let patience = Duration::from_secs(1);
        let partition = i32::try_from(number).unwrap_or(0);
        let Ok((oldest, _)) = self.consumer.fetch_watermarks(&self.topic, partition, patience) else {
            return true;
        };
        if first > oldest || oldest == 0 {
            return true;
        }
        let committed = self.consumer.committed_offsets(self.list(number), patience);
        let Ok(committed) = committed else { return true };
        let next = match committed.elements().first().map(TopicPartitionListElem::offset) {
            Some(Offset::Offset(next)) => next,
            // Nothing was applied yet. The first record of a partition is not a command.
            _ => 1,
        };
        oldest <= next
    }

    fn list(&self, partition: usize) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, i32::try_from(partition).unwrap_or(0));
        list
    }

    /// Resumes a paused partition if its queue has room. Returns whether it did.
    fn resume(&self, number: usize) -> bool {
        let room = self.partitions.get(number).is_none_or(Partition::has_room);
        if room {
            let _ = self.consumer.resume(&self.list(number));
        }
        room
    }

    /// Queues a record. Returns its partition if the queue is full and the partition was paused.
    fn take_in(&self, message: &BorrowedMessage<'_>) -> Option<usize> {
        let number = usize::try_from(message.partition()).ok()?;
        let partition = self.partitions.get(number)?;
        if message.key() == Some(GENESIS) {
            return None;
        }
        let payload = Bytes::copy_from_slice(message.payload().unwrap_or_default());
        match decode_command(payload) {
            Ok(command) => {
                let position = LogPosition {
                    generation: self.generation,
                    offset: u64::try_from(message.offset()).unwrap_or(0),
                };
                let millis = message.timestamp().to_millis().unwrap_or(0);
                let appended_us = u64::try_from(millis).unwrap_or(0).saturating_mul(1000);
                if partition.push(Record { position, appended_us, command: Arc::new(command) }) {
                    let _ = self.consumer.pause(&self.list(number));
                    return Some(number);
                }
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => partition.stop(error),
            // Decoding depends only on the bytes of a record, so every owner skips the same records.
            Err(error) => {
                let offset = message.offset();
                tracing::error!(%error, partition = number, offset, "failed to decode a log record: skipped");
            }
        }
        None
    }
}

/// Commits the offsets of applied records to Kafka.
struct Committer {
    consumer: Arc<BaseConsumer<Ownership>>,
    topic: String,
    partitions: Arc<[Partition]>,
}

impl Committer {
    fn run(&self, stop: &AtomicBool) {
        let mut stopped = false;
        // Commit once more after the stop, so that the next owner does not apply these records again.
        while !stopped {
            std::thread::sleep(COMMIT_EVERY);
            stopped = stop.load(Ordering::Acquire);
            let mut list = TopicPartitionList::new();
            for (number, partition) in self.partitions.iter().enumerate() {
                if let Some(next) = partition.take_applied().and_then(|next| i64::try_from(next).ok()) {
                    let number = i32::try_from(number).unwrap_or(0);
                    let _ = list.add_partition_offset(&self.topic, number, Offset::Offset(next));
                }
            }
            if list.count() > 0
                && let Err(error) = self.consumer.commit(&list, CommitMode::Sync)
            {
                // The next commit covers these records, too.
                tracing::debug!(%error, "failed to commit offsets");
            }
        }
    }
}

/// Verifies that the topic is still the log that was opened.
struct Watch {
    topic: Topic,
    partitions: Arc<[Partition]>,
    broken: Arc<Broken>,
}

impl Watch {
    /// Verifies some partitions. Reuses the client until it fails.
    fn verify(&self, look: &mut Option<BaseConsumer>, partitions: Range<u32>) -> Result<()> {
        let client = look.take().map_or_else(|| self.topic.look(), Ok)?;
        self.topic.verify(&client, partitions)?;
        *look = Some(client);
        Ok(())
    }

    fn run(&self, stop: &AtomicBool) {
        let mut next = Instant::now() + VERIFY_EVERY;
        let (mut look, mut from) = (None, 0);
        while !stop.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(200));
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + VERIFY_EVERY;
            let partitions = self.topic.log.partitions;
            let some = from..partitions.min(from + partitions.div_ceil(LOOKS));
            from = if some.end < partitions { some.end } else { 0 };
            if let Err(error) = self.verify(&mut look, some)
                && error.kind() == ErrorKind::Corrupt
            {
                tracing::error!(%error, "the log is no longer valid: this node stops appending and applying");
                self.broken.set(error);
                self.partitions.iter().for_each(Partition::wake);
                return;
            }
        }
    }
}
