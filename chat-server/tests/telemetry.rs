//! The events of a message on two nodes reach a collector as one trace, without content.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use chat_core::backend::{GatewayId, LogPosition};
use chat_core::delivery::{MessageTrace, Stage};
use chat_core::{ConversationId, InstallationId, MessageId, UserId};
use chat_server::telemetry::export;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::mpsc;

/// A collector that forwards each span with the node that exported it.
#[derive(Debug)]
struct Collector(mpsc::UnboundedSender<(String, Span)>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for exported in request.into_inner().resource_spans {
            let node = format!("{:?}", exported.resource);
            for span in exported.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.send((node.clone(), span)).unwrap();
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Returns the URL of a free port, with a collector on it if `serves`, and the collected spans.
async fn collector(serves: bool) -> (String, mpsc::UnboundedReceiver<(String, Span)>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (exported, spans) = mpsc::unbounded_channel();
    if serves {
        drop(listener);
        let service = TraceServiceServer::new(Collector(exported));
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve(address));
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    (format!("http://{address}"), spans)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_is_one_trace_over_all_nodes() {
    let (address, mut spans) = collector(true).await;
    let (gateway, router) = (MessageTrace::new(100), MessageTrace::new(100));
    export(&gateway, &address, 1.0, GatewayId(7)).unwrap();
    export(&router, &address, 1.0, GatewayId(8)).unwrap();
    assert!(export(&router, &address, 1.0, GatewayId(8)).is_err(), "a trace is exported only once");

    let id = MessageId::from_bytes([0xab; 16]);
    let conversation = ConversationId::own(UserId::from_bytes([0x5e; 16]));
    let (sender, device) = (InstallationId::from_bytes([0x5e; 16]), InstallationId::from_bytes([0x5f; 16]));
    let position = LogPosition { generation: 1, offset: 42 };
    gateway.record(id, 1_000, Stage::Accepted { conversation, sender });
    gateway.record(id, 2_000, Stage::Logged);
    router.record(
        id,
        3_000,
        Stage::Stored { conversation, sender, seq: 9, position, logged_us: 2_500, rows: 2 },
    );
    router.record(id, 3_100, Stage::Routed { gateway: GatewayId(7), devices: 1 });
    gateway.record(id, 4_000, Stage::Delivered { conversation, sender, device, committed_us: 4_900 });

    let mut exported = Vec::new();
    while exported.len() < 4 {
        exported.push(tokio::time::timeout(Duration::from_secs(20), spans.recv()).await.unwrap().unwrap());
    }
    exported.sort_by_key(|(_, span)| span.end_time_unix_nano);
    let names: Vec<&str> = exported.iter().map(|(_, span)| span.name.as_str()).collect();
    assert_eq!(names, ["chat.accept", "chat.store", "chat.route", "chat.deliver"]);
    let times: Vec<_> = exported
        .iter()
        .map(|(_, span)| (span.start_time_unix_nano / 1000, span.end_time_unix_nano / 1000))
        .collect();
    assert_eq!(times, [(1_000, 2_000), (2_500, 3_000), (3_100, 3_100), (4_000, 4_000)]);
    let root = exported[0].1.span_id.clone();
    assert!(exported[0].1.parent_span_id.is_empty());
    assert!(exported[1..].iter().all(|(_, span)| span.parent_span_id == root && span.span_id != root));
    assert!(
        exported.iter().all(|(_, span)| span.trace_id == id.as_bytes()),
        "the message id is the trace id"
    );
    assert!(exported[0].0.contains("\"7\"") && exported[1].0.contains("\"8\""), "each span has its node");
    let text = format!("{exported:?}");
    assert!(
        !text.contains(&conversation.to_hex()) && !text.contains("94, 94, 94"),
        "the spans contain the conversation or a device: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_collector_does_not_block_recording() {
    let (address, _) = collector(false).await;
    let trace = Arc::new(MessageTrace::new(100));
    export(&trace, &address, 1.0, GatewayId(1)).unwrap();
    for n in 0..100_000_u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        trace.record(MessageId::from_bytes(id), 1, Stage::Logged);
    }
    assert!(export(&MessageTrace::new(1), "no address", 1.0, GatewayId(1)).is_err());
}
