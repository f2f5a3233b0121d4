use rdkafka::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;

use super::settings::is_access_fault;

/// Interval of Kafka client statistics, in milliseconds.
pub(super) const OBSERVE_MS: &str = "2000";

/// Exports the statistics of a Kafka client as metrics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observer;

impl ClientContext for Observer {
    fn stats(&self, statistics: Statistics) {
        for topic in statistics.topics.values().filter(|topic| topic.batchcnt.cnt > 0) {
            metrics::gauge!("chat_log_request_messages").set(topic.batchcnt.avg as f64);
            metrics::gauge!("chat_log_request_bytes").set(topic.batchsize.avg as f64);
        }
        let acks = statistics.brokers.values().filter_map(|broker| broker.rtt.as_ref());
        if let Some(slowest) = acks.map(|rtt| rtt.p99).max() {
            metrics::gauge!("chat_log_broker_seconds", "quantile" => "0.99").set(slowest as f64 / 1e6);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code().is_some_and(is_access_fault) {
            tracing::error!(reason, "Kafka refuses the login, or the TLS handshake with it failed");
        } else {
            tracing::debug!(%error, reason, "Kafka client error");
        }
    }
}

/// Exports how far a consumer is behind the ends of its partitions.
pub(super) fn observe_lag(statistics: &Statistics) {
    let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
    let lag: i64 = partitions.map(|partition| partition.consumer_lag.max(0)).sum();
    metrics::gauge!("chat_log_lag_records").set(lag as f64);
}
