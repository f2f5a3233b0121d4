use std::str::FromStr;
use std::time::Duration;

use chat_core::{Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::FutureProducer;

use super::failed;
use super::observer::{OBSERVE_MS, Observer};

/// The address of Kafka and the properties of the log's topic.
///
/// ```
/// use chat_transport::kafka::KafkaSettings;
/// let settings: KafkaSettings = "kafka://10.0.0.1:9092,10.0.0.2:9092/chat?partitions=32".parse().unwrap();
/// assert_eq!((settings.topic.as_str(), settings.partitions, settings.replication), ("chat", 32, 3));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct KafkaSettings {
    /// Bootstrap brokers, `host:port,host:port`.
    pub brokers: String,
    /// Topic name, without the suffix with the log generation.
    pub topic: String,
    /// Number of partitions of a new log.
    pub partitions: u32,
    /// Minimum number of replicas of each partition. With fewer than 3, losing one broker loses acknowledged
    /// records, so a lower number must be set explicitly.
    pub replication: u32,
}

impl FromStr for KafkaSettings {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        let invalid = || {
            Error::new(
                ErrorKind::Invalid,
                "a Kafka address has the form kafka://host:port,host:port/topic?partitions=16&replication=3",
            )
        };
        let rest = url.strip_prefix("kafka://").ok_or_else(invalid)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (brokers, topic) = rest.split_once('/').unwrap_or((rest, ""));
        let topic = if topic.is_empty() { "chat" } else { topic };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if brokers.is_empty() || topic.len() > 200 || !topic.chars().all(named) {
            return Err(invalid());
        }
        let mut settings =
            Self { brokers: brokers.to_owned(), topic: topic.to_owned(), partitions: 16, replication: 3 };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(invalid)?;
            let value = value.parse().ok().filter(|value| (1..=1024).contains(value)).ok_or_else(invalid)?;
            match key {
                "partitions" => settings.partitions = value,
                "replication" => settings.replication = value,
                _ => return Err(invalid()),
            }
        }
        Ok(settings)
    }
}

impl KafkaSettings {
    /// Returns the configuration common to all clients. It detects a hung broker within seconds.
    pub(super) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "chat")
            .set("socket.timeout.ms", "3000")
            .set("socket.connection.setup.timeout.ms", "2000")
            .set("reconnect.backoff.max.ms", "500")
            .set("retry.backoff.max.ms", "200")
            .set("allow.auto.create.topics", "false");
        config
    }

    /// Returns the number of brokers. Blocks.
    pub(super) fn count_brokers(&self) -> Result<usize> {
        let client: BaseConsumer = self.client().create().map_err(failed)?;
        let metadata = client.fetch_metadata(None, Duration::from_secs(5)).map_err(failed)?;
        Ok(metadata.brokers().len())
    }

    pub(super) fn producer(&self) -> Result<FutureProducer<Observer>> {
        self.client()
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", "5000")
            .set("request.timeout.ms", "2000")
            .set("linger.ms", "0")
            .set("queue.buffering.max.messages", "20000")
            .set("message.max.bytes", "1048576")
            .set("statistics.interval.ms", OBSERVE_MS)
            .create_with_context(Observer)
            .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        let settings: KafkaSettings = "kafka://a:1".parse().unwrap();
        assert_eq!((settings.topic.as_str(), settings.partitions, settings.replication), ("chat", 16, 3));
        for bad in [
            "redis://a:1",
            "kafka://",
            "kafka://a:1/to pic",
            "kafka://a:1/t?partitions=0",
            "kafka://a:1/t?partitions=x",
            "kafka://a:1/t?unknown=1",
        ] {
            assert!(bad.parse::<KafkaSettings>().is_err(), "{bad}");
        }
    }
}
