//! From one gateway to another, by HTTP/2: what happened to sessions that are connected elsewhere, and the
//! offers of devices that wait to be linked.
//!
//! Each other gateway has a bounded queue and one request on its way at a time, which carries all that
//! gathered meanwhile. A gateway that does not answer within a second is forgotten for a moment; what was
//! meant for it waits in inboxes, and its sessions are deliveries that they lag once it answers again.
//!
//! Outside of loopback both sides show certificates of one authority: whoever can speak on the link can
//! tell sessions anything.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes};
use chat_core::backend::{GatewayId, NodeLink, PushSink, Registry, Route, SessionDelivery};
use chat_core::codec::node::{
    decode_deliveries, decode_not_here, decode_rendezvous, encode_deliveries, encode_not_here,
    encode_rendezvous,
};
use chat_core::delivery::SessionEvent;
use chat_core::{DeviceAddress, Engine, Error, ErrorKind, Result};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::error::Elapsed;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::wrappers::TcpListenerStream;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};

const DELIVER: &str = "/chat.node.v1.Link/Deliver";
const OFFER: &str = "/chat.node.v1.Link/Offer";
/// How long a gateway may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a gateway that nobody has anything to tell is remembered.
const IDLE: Duration = Duration::from_secs(60);
/// How long a gateway that did not answer is left alone.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections with something to tell that may wait for one gateway; what is above is dropped.
const QUEUE: usize = 8192;
/// Bytes of what they are deliveries.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Deliveries and bytes of one request, about; a delivery more may bring it above.
const REQUEST: (usize, usize) = (512, 8 * 1024 * 1024);
/// Bytes of a request that are taken in.
const LARGEST: usize = 64 * 1024 * 1024;

/// What a node shows to the others, and whom it believes: PEM.
#[derive(Clone)]
pub struct NodeLinkTls {
    identity: Identity,
    authority: Certificate,
}

impl fmt::Debug for NodeLinkTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeLinkTls")
    }
}

impl NodeLinkTls {
    /// The certificate and key of this node, and the certificate of the authority that signed everybody's.
    /// Each is to be valid for the name `chat-node`.
    pub fn new(certificate: &[u8], key: &[u8], authority: &[u8]) -> Self {
        Self { identity: Identity::from_pem(certificate, key), authority: Certificate::from_pem(authority) }
    }
}

/// Bytes as they are: `codec::node` encodes and checks them.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> std::result::Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

fn invalid(error: &Error) -> Status {
    Status::new(Code::InvalidArgument, error.what())
}

/// The receiving end.
#[derive(Clone)]
struct Receiver(Arc<Engine>);

impl NamedService for Receiver {
    const NAME: &'static str = "chat.node.v1.Link";
}

struct Deliver(Arc<Engine>);

impl UnaryService<Bytes> for Deliver {
    type Response = Bytes;
    type Future = BoxFuture<'static, std::result::Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let engine = self.0.clone();
        Box::pin(async move {
            let deliveries = decode_deliveries(request.into_inner()).map_err(|e| invalid(&e))?;
            Ok(Response::new(encode_not_here(&engine.deliver_local(deliveries)).into()))
        })
    }
}

struct Offer(Arc<Engine>);

impl UnaryService<Bytes> for Offer {
    type Response = Bytes;
    type Future = BoxFuture<'static, std::result::Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let engine = self.0.clone();
        Box::pin(async move {
            let (rendezvous, sealed) = decode_rendezvous(request.into_inner()).map_err(|e| invalid(&e))?;
            let answer = match sealed {
                None => engine.offer_here(&rendezvous),
                Some(sealed) => engine.answer_offer_here(&rendezvous, sealed).map(|()| Bytes::new()),
            };
            answer.map(Response::new).map_err(|e| Status::new(Code::NotFound, e.what()))
        })
    }
}

impl tower_service::Service<http::Request<Body>> for Receiver {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, std::result::Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let engine = self.0.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Plain).max_decoding_message_size(LARGEST);
            Ok(match request.uri().path() {
                DELIVER => grpc.unary(Deliver(engine), request).await,
                OFFER => grpc.unary(Offer(engine), request).await,
                _ => Status::new(Code::Unimplemented, "no such call").into_http(),
            })
        })
    }
}

/// Takes what other gateways send, until the listener fails.
///
/// # Errors
/// `Invalid` if the certificates cannot be used, `Unavailable` if listening ends.
pub async fn serve_link(listener: TcpListener, engine: Arc<Engine>, tls: Option<NodeLinkTls>) -> Result<()> {
    let mut server = Server::builder();
    if let Some(tls) = tls {
        let config = ServerTlsConfig::new().identity(tls.identity).client_ca_root(tls.authority);
        let unusable =
            |e| Error::new(ErrorKind::Invalid, "the link's certificates cannot be used").caused_by(e);
        server = server.tls_config(config).map_err(unusable)?;
    }
    let ended = |e| Error::new(ErrorKind::Unavailable, "the node link ended").caused_by(e);
    let incoming = TcpListenerStream::new(listener);
    server.add_service(Receiver(engine)).serve_with_incoming(incoming).await.map_err(ended)
}

/// The sending end: a [`NodeLink`] to every gateway that the registry has an address of.
pub struct GatewayLink(Arc<Shared>);

struct Shared {
    /// Gateways that somebody had something to tell lately, each with a task.
    peers: Mutex<HashMap<GatewayId, Arc<Peer>>>,
    registry: Arc<dyn Registry>,
    push: Arc<dyn PushSink>,
    tls: Option<NodeLinkTls>,
}

impl fmt::Debug for GatewayLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayLink").field("peers", &self.0.peers.lock().len()).finish_non_exhaustive()
    }
}

/// What waits for one gateway.
#[derive(Default)]
struct Peer {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    deliveries: VecDeque<SessionDelivery>,
    /// Of all their events.
    bytes: usize,
    /// Connections for which something was dropped.
    lagged: HashSet<Route>,
}

/// About how many bytes an event takes.
fn size(event: &SessionEvent) -> usize {
    match event {
        SessionEvent::Row(row) => row.size(),
        _ => 200,
    }
}

fn bytes_of(events: &[SessionEvent]) -> usize {
    events.iter().map(size).sum()
}

impl Peer {
    fn put(&self, deliveries: Vec<SessionDelivery>) {
        let mut waiting = self.waiting.lock();
        for (route, events) in deliveries {
            let bytes = bytes_of(&events);
            if waiting.deliveries.len() < QUEUE && waiting.bytes + bytes <= QUEUE_BYTES {
                waiting.deliveries.push_back((route, events));
                waiting.bytes += bytes;
                metrics::gauge!("chat_node_link_waiting_sessions").increment(1);
            } else {
                metrics::counter!("chat_dropped_total", "reason" => "node_link_full")
                    .increment(events.len() as u64);
                if waiting.lagged.len() < QUEUE {
                    waiting.lagged.insert(route);
                }
            }
        }
        drop(waiting);
        self.more.notify_one();
    }

    fn is_idle(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.deliveries.is_empty() && waiting.lagged.is_empty()
    }

    fn take(&self) -> Vec<SessionDelivery> {
        let mut waiting = self.waiting.lock();
        let (mut deliveries, mut bytes) = (Vec::new(), 0);
        while deliveries.len() < REQUEST.0
            && bytes < REQUEST.1
            && let Some((route, events)) = waiting.deliveries.pop_front()
        {
            bytes += bytes_of(&events);
            deliveries.push((route, events));
        }
        waiting.bytes -= bytes;
        metrics::gauge!("chat_node_link_waiting_sessions").decrement(deliveries.len() as f64);
        deliveries.extend(waiting.lagged.drain().map(|route| (route, vec![SessionEvent::Lagged])));
        deliveries
    }

    /// What was not delivered: its sessions are deliveries that they lag, if there is a next time.
    fn lost(&self, deliveries: &[SessionDelivery]) {
        let events: usize = deliveries.iter().map(|(_, events)| events.len()).sum();
        metrics::counter!("chat_dropped_total", "reason" => "link_unanswered").increment(events as u64);
        let mut waiting = self.waiting.lock();
        let room = QUEUE.saturating_sub(waiting.lagged.len());
        waiting.lagged.extend(deliveries.iter().map(|(route, _)| *route).take(room));
    }
}

fn unanswered(status: Status) -> Error {
    let kind = if status.code() == Code::NotFound { ErrorKind::NotFound } else { ErrorKind::Unavailable };
    Error::new(kind, "the other gateway did not answer").caused_by(status)
}

fn silent(error: Elapsed) -> Error {
    Error::new(ErrorKind::Unavailable, "the other gateway is silent").caused_by(error)
}

/// Whether an address `host:port` is of this machine.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

impl Shared {
    async fn connect(&self, gateway: GatewayId) -> Result<Channel> {
        let address = self.registry.address(gateway).await?;
        let unknown = || Error::new(ErrorKind::NotFound, "nobody knows where the gateway is");
        let address = address.ok_or_else(unknown)?;
        if self.tls.is_none() && !is_loopback(&address) {
            let error =
                Error::new(ErrorKind::Denied, "outside of loopback nodes show each other certificates");
            tracing::error!(%error, gateway = gateway.0, "node_link_tls is missing: a gateway cannot be deliveries anything");
            return Err(error);
        }
        let wrong = |e| Error::new(ErrorKind::Invalid, "not an address of a gateway").caused_by(e);
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(wrong)?
            .connect_timeout(CALL_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        if let Some(tls) = &self.tls {
            let config = ClientTlsConfig::new()
                .identity(tls.identity.clone())
                .ca_certificate(tls.authority.clone())
                .domain_name("chat-node");
            endpoint = endpoint.tls_config(config).map_err(wrong)?;
        }
        let down = |e| Error::new(ErrorKind::Unavailable, "the other gateway cannot be reached").caused_by(e);
        tokio::time::timeout(CALL_TIMEOUT, endpoint.connect()).await.map_err(silent)?.map_err(down)
    }

    async fn call(&self, channel: &Channel, path: &'static str, body: Bytes) -> Result<Bytes> {
        let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(LARGEST);
        let call = async {
            grpc.ready().await.map_err(|e| {
                Error::new(ErrorKind::Unavailable, "the other gateway cannot be reached").caused_by(e)
            })?;
            let path = PathAndQuery::from_static(path);
            grpc.unary(Request::new(body), path, Plain).await.map_err(unanswered)
        };
        Ok(tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(silent)??.into_inner())
    }

    /// Tells one gateway for as long as somebody has something to tell it.
    async fn run(&self, gateway: GatewayId, peer: &Peer) {
        let mut channel: Option<Channel> = None;
        loop {
            let deliveries = peer.take();
            if deliveries.is_empty() {
                let more = tokio::time::timeout(IDLE, peer.more.notified()).await;
                if more.is_err() && self.retire(gateway, peer) {
                    return;
                }
                continue;
            }
            // All of it together: where it is, the connection, the answer.
            let sent =
                tokio::time::timeout(CALL_TIMEOUT, self.send(gateway, &mut channel, &deliveries)).await;
            match sent.unwrap_or_else(|e| Err(silent(e))) {
                Ok(stale) if stale.is_empty() => {}
                Ok(stale) => self.not_there(&stale, &deliveries).await,
                // Its lease is over: nobody is connected there.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let all: Vec<Route> = deliveries.iter().map(|(route, _)| *route).collect();
                    self.not_there(&all, &deliveries).await;
                }
                Err(error) => {
                    tracing::debug!(%error, gateway = gateway.0, "the node link");
                    channel = None;
                    peer.lost(&deliveries);
                    // Not for `Lagged`, which goes on being deliveries.
                    let with_message =
                        |(_, events): &&SessionDelivery| events.iter().any(|event| event.message().is_some());
                    let woken = deliveries.iter().filter(with_message);
                    self.wake(woken.map(|(route, _)| route.device).collect()).await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Forgets an idle gateway, unless somebody just had something to tell it.
    fn retire(&self, gateway: GatewayId, peer: &Peer) -> bool {
        let mut peers = self.peers.lock();
        let idle = peer.is_idle();
        if idle {
            peers.remove(&gateway);
        }
        idle
    }

    /// Sends one request; gives the connections that are not there.
    async fn send(
        &self,
        gateway: GatewayId,
        known: &mut Option<Channel>,
        deliveries: &[SessionDelivery],
    ) -> Result<Vec<Route>> {
        let channel = match known {
            Some(channel) => channel,
            None => known.insert(self.connect(gateway).await?),
        };
        let start = std::time::Instant::now();
        let answer = self.call(channel, DELIVER, encode_deliveries(deliveries).into()).await?;
        metrics::histogram!("chat_node_link_seconds").record(start.elapsed().as_secs_f64());
        metrics::histogram!("chat_node_link_request_sessions").record(deliveries.len() as f64);
        decode_not_here(answer)
    }

    async fn not_there(&self, stale: &[Route], deliveries: &[SessionDelivery]) {
        for route in stale {
            let _ = self.registry.unbind(*route).await;
        }
        let of_inbox =
            |event: &SessionEvent| event.message().is_some() || matches!(event, SessionEvent::Lagged);
        let woken =
            deliveries.iter().filter(|(route, events)| stale.contains(route) && events.iter().any(of_inbox));
        self.wake(woken.map(|(route, _)| route.device).collect()).await;
    }

    async fn wake(&self, devices: Vec<DeviceAddress>) {
        if !devices.is_empty() {
            let _ = self.push.wake(&devices).await;
        }
    }
}

impl GatewayLink {
    /// A link that finds gateways by this registry. Needs a runtime.
    pub fn new(registry: Arc<dyn Registry>, push: Arc<dyn PushSink>, tls: Option<NodeLinkTls>) -> Self {
        Self(Arc::new(Shared { peers: Mutex::default(), registry, push, tls }))
    }

    async fn rendezvous(&self, gateway: GatewayId, body: Vec<u8>) -> Result<Bytes> {
        let channel = self.0.connect(gateway).await?;
        self.0.call(&channel, OFFER, body.into()).await
    }
}

#[async_trait]
impl NodeLink for GatewayLink {
    fn deliver(&self, gateway: GatewayId, deliveries: Vec<SessionDelivery>) {
        let mut peers = self.0.peers.lock();
        let peer = peers.entry(gateway).or_insert_with(|| {
            let peer = Arc::new(Peer::default());
            let (shared, running) = (self.0.clone(), peer.clone());
            tokio::spawn(async move { shared.run(gateway, &running).await });
            peer
        });
        // Under the lock, so that an idle task does not end in between.
        peer.put(deliveries);
    }

    async fn offer(&self, gateway: GatewayId, rendezvous: Bytes) -> Result<Bytes> {
        self.rendezvous(gateway, encode_rendezvous(&rendezvous, None)).await
    }

    async fn answer_offer(&self, gateway: GatewayId, rendezvous: Bytes, sealed: Bytes) -> Result<()> {
        self.rendezvous(gateway, encode_rendezvous(&rendezvous, Some(&sealed))).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use chat_core::envelope::{EmptyReason, InboxRow, RowContent};
    use chat_core::{ConversationId, DeviceId, InstallationId, UserId};

    use super::*;

    fn deliveries(n: u64, events: usize) -> SessionDelivery {
        let user = UserId::from_bytes([1; 16]);
        let installation = InstallationId::from_bytes([1; 16]);
        let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
        let row = InboxRow {
            conversation: ConversationId::own(user),
            seq: n,
            time_us: n,
            joined: false,
            content: RowContent::Empty { reason: EmptyReason::Expired, from: n },
        };
        let events = vec![SessionEvent::Row(row); events];
        (Route { device, gateway: GatewayId(1), epoch: n }, events)
    }

    fn drained(peer: &Peer) -> (usize, usize) {
        let (mut whole, mut lagged) = (0, 0);
        while !peer.is_idle() {
            for (_, events) in peer.take() {
                if matches!(events[..], [SessionEvent::Lagged]) { lagged += 1 } else { whole += 1 }
            }
        }
        (whole, lagged)
    }

    #[test]
    fn node_link_queue_is_bounded_in_number_and_bytes() {
        let peer = Peer::default();
        peer.put((0..QUEUE as u64 + 5).map(|n| deliveries(n, 1)).collect());
        assert_eq!(drained(&peer), (QUEUE, 5), "who is above learns that it lags");
        let many = 1 + REQUEST.1 / bytes_of(&deliveries(0, 1).1);
        let fit = QUEUE_BYTES / bytes_of(&deliveries(0, many).1);
        for round in 0..2 {
            peer.put((0..fit as u64 + 2).map(|n| deliveries(n, many)).collect());
            assert_eq!(drained(&peer), (fit, 2), "round {round}");
        }
    }
}
