use std::str::FromStr;
use std::time::Duration;

use chat_core::backend::{ServiceAccess, ServiceUrl};
use chat_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::FutureProducer;
use rdkafka::{ClientConfig, ClientContext};

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
    /// Login and TLS.
    pub access: ServiceAccess,
    /// How a login proves its password.
    pub sasl_mechanism: SaslMechanism,
}

/// How a login to Kafka proves its password (RFC 4422).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_enums)]
pub enum SaslMechanism {
    /// `SCRAM-SHA-512` (RFC 5802): the broker never receives the password.
    #[default]
    ScramSha512,
    /// `SCRAM-SHA-256` (RFC 7677).
    ScramSha256,
    /// `PLAIN` (RFC 4616): the broker receives the password.
    Plain,
}

impl SaslMechanism {
    /// Returns the registered name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
        }
    }
}

impl FromStr for SaslMechanism {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = [Self::ScramSha512, Self::ScramSha256, Self::Plain];
        known.into_iter().find(|one| one.name() == name).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "the parameter sasl_mechanism is SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN",
            )
        })
    }
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
        let url = ServiceUrl::parse(url, "kafka")?;
        let topic = if url.name.is_empty() { "chat" } else { &url.name };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if topic.len() > 200 || !topic.chars().all(named) {
            return Err(invalid());
        }
        let mut settings = Self {
            brokers: url.nodes.join(","),
            topic: topic.to_owned(),
            partitions: 16,
            replication: 3,
            access: url.access,
            sasl_mechanism: SaslMechanism::default(),
        };
        for (key, value) in url.parameters {
            let number = || value.parse().ok().filter(|value| (1..=1024).contains(value)).ok_or_else(invalid);
            match key.as_str() {
                "partitions" => settings.partitions = number()?,
                "replication" => settings.replication = number()?,
                "sasl_mechanism" => settings.sasl_mechanism = value.parse()?,
                _ => return Err(invalid()),
            }
        }
        Ok(settings)
    }
}

impl KafkaSettings {
    /// Returns the configuration common to all clients. It detects a hung broker within seconds.
    ///
    /// # Errors
    /// `Invalid`: a file of the login or of TLS cannot be read.
    pub(super) fn client(&self) -> Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "chat")
            .set("socket.timeout.ms", "3000")
            .set("socket.connection.setup.timeout.ms", "2000")
            .set("reconnect.backoff.max.ms", "500")
            .set("retry.backoff.max.ms", "200")
            .set("allow.auto.create.topics", "false")
            .set("security.protocol", self.security_protocol());
        if let Some(tls) = &self.access.tls {
            // A certificate is valid for the name or address that the client dials.
            config.set("ssl.endpoint.identification.algorithm", "https");
            match tls.read_ca()? {
                Some(ca) => config.set("ssl.ca.pem", pem(ca)?),
                // OpenSSL that is linked statically does not know the directory of the operating system.
                None => config.set("ssl.ca.location", "probe"),
            };
            if let Some((cert, key)) = tls.read_identity()? {
                config.set("ssl.certificate.pem", pem(cert)?).set("ssl.key.pem", pem(key)?);
            }
        }
        if let Some(login) = &self.access.login {
            config
                .set("sasl.mechanism", self.sasl_mechanism.name())
                .set("sasl.username", &login.user)
                .set("sasl.password", login.password()?.as_str());
        }
        Ok(config)
    }

    const fn security_protocol(&self) -> &'static str {
        match (&self.access.login, &self.access.tls) {
            (None, None) => "plaintext",
            (None, Some(_)) => "ssl",
            (Some(_), None) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        }
    }

    /// Connects, and returns the number of brokers. Blocks.
    ///
    /// # Errors
    /// `Denied` if Kafka refuses the login; `Unavailable` if TLS fails or no broker answers. The text has the cause.
    pub(super) fn count_brokers(&self) -> Result<usize> {
        let client: BaseConsumer<FirstFault> =
            self.client()?.create_with_context(FirstFault::default()).map_err(failed)?;
        let metadata = client.fetch_metadata(None, Duration::from_secs(5));
        let error = match metadata {
            Ok(metadata) => return Ok(metadata.brokers().len()),
            Err(error) => failed(error),
        };
        // The errors wait in the queue of events, between lines of the client's log.
        (0..100).for_each(|_| drop(client.poll(Duration::from_millis(1))));
        let Some((code, reason)) = client.context().0.lock().take() else { return Err(error) };
        let (kind, text) = match code {
            RDKafkaErrorCode::Authentication => (ErrorKind::Denied, "Kafka refuses the login"),
            _ => (ErrorKind::Unavailable, "the TLS handshake with Kafka failed"),
        };
        Err(Error::new(kind, text).caused_by(std::io::Error::other(reason)))
    }

    pub(super) fn producer(&self) -> Result<FutureProducer<Observer>> {
        self.client()?
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

/// Returns whether an error is a fault of login or TLS.
pub(super) const fn is_access_fault(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)
}

/// Keeps the first fault of login or TLS: requests only report that no broker answers.
#[derive(Default)]
struct FirstFault(Mutex<Option<(RDKafkaErrorCode, String)>>);

impl ClientContext for FirstFault {
    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code()
            && is_access_fault(code)
        {
            self.0.lock().get_or_insert((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for FirstFault {}

fn pem(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|error| Error::new(ErrorKind::Invalid, "a certificate file is not PEM").caused_by(error))
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
            "kafka://a:1/t?sasl_mechanism=GSSAPI",
        ] {
            assert!(bad.parse::<KafkaSettings>().is_err(), "{bad}");
        }
    }
}
