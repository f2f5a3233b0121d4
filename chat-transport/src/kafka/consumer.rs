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

/// How often offsets are told to Kafka: what was applied since comes again after a crash, and is stored already.
const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// How often the topic is looked at, and at the beginnings of some partitions: whoever makes it anew makes all anew.
const VERIFY_EVERY: Duration = Duration::from_secs(5);
/// In so many looks each partition's beginning is looked at: in a minute.
const LOOKS: u32 = 12;

/// Threads that read partitions, tell offsets, and look after the topic. They end when this is dropped, and
/// leave the group.
#[derive(Debug)]
pub(super) struct Consumer {
    stop: Arc<AtomicBool>,
    /// Closed once the group was left.
    member: watch::Receiver<()>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Notes who owns what; nothing in here waits.
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
        tracing::debug!(%error, reason, "Kafka");
    }
}

impl ConsumerContext for Ownership {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        match change {
            Rebalance::Revoke(list) => {
                let gone = self.of(list).map(Partition::revoke).count();
                tracing::info!(gone, "shards went to another node");
            }
            // Before records of them can be polled.
            Rebalance::Assign(list) => {
                let own = self.of(list).map(|partition| {
                    partition.assign(self.ownership_epochs.fetch_add(1, Ordering::Relaxed) + 1);
                });
                let own = own.count();
                if own > 0 {
                    tracing::info!(own, "shards came from another node");
                }
            }
            Rebalance::Error(error) => tracing::warn!(%error, "a rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = change {
            // A pause outlives the ownership in which it was made.
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
            thread.map(drop).map_err(|e| Error::new(ErrorKind::Unavailable, "no thread").caused_by(e))
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
                .map_err(|e| Error::new(ErrorKind::Unavailable, "no thread").caused_by(e))?;
            let stopped = stop.clone();
            spawn(
                "kafka-poll",
                Box::new(move || {
                    reader.run(&stopped);
                    // The last handle leaves the group, which polls: it has to be dropped here.
                    let _ = committing.join();
                    drop(reader);
                    drop(member);
                }),
            )?;
        }
        Ok(Self { stop, member: left })
    }

    /// Tells the last offsets and leaves the group: the others own the partitions then.
    pub(super) async fn leave(&self) {
        self.stop.store(true, Ordering::Release);
        // Nothing is ever sent: this ends when the thread does.
        let _ = self.member.clone().changed().await;
    }
}

fn subscribe(
    settings: &KafkaSettings,
    topic: &Topic,
    ownership: Ownership,
) -> Result<BaseConsumer<Ownership>> {
    let consumer: BaseConsumer<Ownership> = settings
        .client()
        .set("group.id", &topic.name)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Nothing was committed yet: from the first record. What was applied changes nothing.
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

/// The offset that comes next in a ownership_epoch.
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
                            "records of the log that were not applied are gone: stop every node and begin a \
                             new log generation with `chat-server-ref migrate --new-log`",
                        ));
                        self.partitions.iter().for_each(Partition::wake);
                    }
                }
                Some(Err(error)) => tracing::debug!(%error, "Kafka"),
            }
            paused.retain(|number| !self.resume(*number));
        }
    }

    /// Whether nothing is missing between what was applied and this record: Kafka goes on with the oldest record
    /// there is, and says nothing, if the one that comes next was deleted.
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

    /// Whether a ownership_epoch begins with the first record that was not applied. What cannot be found out now counts as
    /// yes; the oldest record decides, as an owner that was replaced may tell its offset late.
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
            // Nothing was applied yet. What the partition begins with is no command.
            _ => 1,
        };
        oldest <= next
    }

    fn list(&self, partition: usize) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, i32::try_from(partition).unwrap_or(0));
        list
    }

    /// Reads a partition again once there is room; `true` if it does.
    fn resume(&self, number: usize) -> bool {
        let room = self.partitions.get(number).is_none_or(Partition::has_room);
        if room {
            let _ = self.consumer.resume(&self.list(number));
        }
        room
    }

    /// Takes in a record; gives its partition if that was paused because of it.
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
            // Whether a record can be read is a function of its bytes: every owner passes over it.
            Err(error) => {
                tracing::error!(%error, partition = number, offset = message.offset(), "a record is no command");
            }
        }
        None
    }
}

/// Tells Kafka what was applied.
struct Committer {
    consumer: Arc<BaseConsumer<Ownership>>,
    topic: String,
    partitions: Arc<[Partition]>,
}

impl Committer {
    fn run(&self, stop: &AtomicBool) {
        let mut stopped = false;
        // Once more after the end was asked for: whoever comes next need not apply again what was applied.
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
                // The next one says more.
                tracing::debug!(%error, "offsets were not committed");
            }
        }
    }
}

/// Looks whether the topic is still the log that it was.
struct Watch {
    topic: Topic,
    partitions: Arc<[Partition]>,
    broken: Arc<Broken>,
}

impl Watch {
    /// One client looks for as long as that works.
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
                tracing::error!(%error, "the log cannot be trusted any more: nothing is taken or applied");
                self.broken.set(error);
                self.partitions.iter().for_each(Partition::wake);
                return;
            }
        }
    }
}
