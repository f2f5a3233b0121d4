//! OpenTelemetry traces of messages.
//!
//! A message id has the size of a trace id and *is* the trace id. So a gateway, a router and another gateway
//! contribute to one trace without propagating a context, and the message id finds the trace. Spans contain
//! neither the owner nor the content of a message.
//!
//! | span | start | end | recorded by |
//! |---|---|---|---|
//! | `chat.accept` (the root) | a gateway accepts the message | the log has it | the sender's gateway |
//! | `chat.store` | the log has it | it is committed | the router |
//! | `chat.repeat`, `chat.refuse`, `chat.route`, `chat.push` | | | the router |
//! | `chat.deliver` | its commit time | a device's connection has it | the device's gateway |

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chat_core::MessageId;
use chat_core::backend::GatewayId;
use chat_core::delivery::{MessageTrace, Stage, TraceEvent};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;

/// Maximum number of trace events that wait for export. Further ones are dropped.
const ROOM: usize = 16_384;
/// Maximum number of spans in an export.
const BATCH: usize = 512;
/// Time to collect more spans for an export that is not full.
const GATHER: Duration = Duration::from_secs(1);
/// Time limit for an export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of messages that the log has not confirmed yet. At the limit all start times are dropped.
const ACCEPTED: usize = 10_000;

/// Exports the traces of a share of all messages to a collector, for as long as `trace` lives.
///
/// # Errors
/// If the collector's address cannot be used, or `trace` is already exported. A collector that does not
/// answer is no error: lost spans are counted (`chat_telemetry_spans_total`).
pub fn export(trace: &MessageTrace, collector: &str, share: f64, node: GatewayId) -> Result<(), String> {
    if share <= 0.0 {
        return Ok(());
    }
    let mut builder =
        SpanExporter::builder().with_tonic().with_endpoint(collector).with_timeout(EXPORT_TIMEOUT);
    if collector.starts_with("https://") {
        builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
    }
    let mut exporter = builder.build().map_err(|error| format!("otlp {collector}: {error}"))?;
    let resource = Resource::builder_empty()
        .with_service_name("chat-server-ref")
        .with_attribute(KeyValue::new("service.instance.id", node.0.to_string()))
        .build();
    exporter.set_resource(&resource);
    let events = trace.follow(share, ROOM).ok_or("message traces are already exported")?;
    tokio::spawn(run(exporter, events, Spans::new(node)));
    Ok(())
}

async fn run(exporter: SpanExporter, mut events: mpsc::Receiver<(MessageId, TraceEvent)>, mut spans: Spans) {
    let mut arrived = Vec::with_capacity(BATCH);
    while events.recv_many(&mut arrived, BATCH).await > 0 {
        if arrived.len() < BATCH {
            tokio::time::sleep(GATHER).await;
            while arrived.len() < BATCH
                && let Ok(event) = events.try_recv()
            {
                arrived.push(event);
            }
        }
        let batch: Vec<SpanData> =
            arrived.drain(..).filter_map(|(id, event)| spans.span(id, event)).collect();
        if batch.is_empty() {
            continue;
        }
        let count = batch.len() as u64;
        let outcome = match exporter.export(batch).await {
            Ok(()) => "sent",
            Err(error) => {
                tracing::debug!(%error, "failed to export spans: they are lost");
                "lost"
            }
        };
        metrics::counter!("chat_telemetry_spans_total", "outcome" => outcome).increment(count);
    }
}

/// Converts trace events to spans.
#[derive(Debug)]
struct Spans {
    node: u64,
    made: u64,
    /// Accept time, in microseconds, of each message that the log has not confirmed yet.
    accepted: HashMap<MessageId, u64>,
}

fn time(us: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(us)
}

/// Returns the id of the root span. It is the same on every node, so that any span can name it as its parent.
fn root_of(id: MessageId) -> SpanId {
    let [.., a, b, c, d, e, f, g, h] = *id.as_bytes();
    SpanId::from(u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1))
}

impl Spans {
    fn new(node: GatewayId) -> Self {
        Self { node: node.0, made: 0, accepted: HashMap::new() }
    }

    /// Returns a span id that is unique in the trace, because it includes the id of the node.
    fn next_id(&mut self) -> SpanId {
        self.made += 1;
        SpanId::from((self.node ^ self.made.wrapping_mul(0x9E37_79B9_7F4A_7C15)).max(1))
    }

    /// Returns the span that an event ends, or `None` for the first event of a message, which begins one.
    fn span(&mut self, id: MessageId, event: TraceEvent) -> Option<SpanData> {
        let count = |name, n: u32| KeyValue::new(name, i64::from(n));
        let number = |name, n: u64| KeyValue::new(name, i64::try_from(n).unwrap_or(i64::MAX));
        let (name, from, attributes) = match event.stage {
            Stage::Accepted { .. } => {
                if self.accepted.len() >= ACCEPTED {
                    self.accepted.clear();
                }
                self.accepted.insert(id, event.at_us);
                return None;
            }
            Stage::Logged => {
                let from = self.accepted.remove(&id).unwrap_or(event.at_us);
                return Some(data(id, root_of(id), "chat.accept", (from, event.at_us), Vec::new()));
            }
            Stage::Stored { seq, position, logged_us, rows, .. } => {
                let offset = number("chat.log.offset", position.offset);
                ("chat.store", logged_us, vec![number("chat.seq", seq), offset, count("chat.rows", rows)])
            }
            Stage::Repeated { seq } => ("chat.repeat", event.at_us, vec![number("chat.seq", seq)]),
            Stage::Refused { reason } => {
                ("chat.refuse", event.at_us, vec![KeyValue::new("chat.reason", reason)])
            }
            Stage::Routed { gateway, devices } => {
                let gateway = KeyValue::new("chat.gateway", gateway.0.to_string());
                ("chat.route", event.at_us, vec![gateway, count("chat.devices", devices)])
            }
            Stage::Pushed { devices } => ("chat.push", event.at_us, vec![count("chat.devices", devices)]),
            Stage::Delivered { committed_us, .. } => ("chat.deliver", committed_us, Vec::new()),
            _ => return None,
        };
        // Clocks of machines differ: a span that would end before its start has no length.
        let times = (from.min(event.at_us), event.at_us);
        Some(data(id, self.next_id(), name, times, attributes))
    }
}

fn data(
    id: MessageId,
    span: SpanId,
    name: &'static str,
    (from, to): (u64, u64),
    attributes: Vec<KeyValue>,
) -> SpanData {
    let root = root_of(id);
    let trace = TraceId::from_bytes(*id.as_bytes());
    SpanData {
        span_context: SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default()),
        parent_span_id: if span == root { SpanId::INVALID } else { root },
        parent_span_is_remote: span != root,
        span_kind: if span == root { SpanKind::Server } else { SpanKind::Internal },
        name: Cow::Borrowed(name),
        start_time: time(from),
        end_time: time(to),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if name == "chat.refuse" { Status::error("refused") } else { Status::Unset },
        instrumentation_scope: InstrumentationScope::builder("chat").build(),
    }
}
