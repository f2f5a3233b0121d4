//! The link from one gateway to another, over HTTP/2. It carries events for sessions that are connected to
//! the other gateway, and the offers of devices that wait to be linked.
//!
//! Each other gateway has a bounded queue and one request in flight at a time, which carries the deliveries
//! that were queued meanwhile. If a gateway does not answer within a second, the request's deliveries are
//! dropped and the link pauses. The messages stay in inboxes, and the sessions receive `Lagged` once the
//! gateway answers again.
//!
//! A peer on the link can deliver any event to sessions. Therefore each request carries a token: a gateway draws it at
//! its start and announces it with its address in the registry, so only nodes of the cluster know it. Outside of loopback
//! both sides also present certificates of one authority.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::{Buf, BufMut, Bytes};
use chat_core::backend::{
    Deliveries, FeedDelivery, GatewayId, NodeLink, PushSink, Registry, Route, SessionDelivery,
};
use chat_core::codec::node::{
    decode_deliveries, decode_not_here, decode_rendezvous, encode_deliveries, encode_not_here,
    encode_rendezvous,
};
use chat_core::delivery::SessionEvent;
use chat_core::envelope::InboxRow;
use chat_core::{ConversationId, DeviceAddress, Engine, Error, ErrorKind, Result};
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
/// Time limit for a request to another gateway, including the connection.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time without deliveries after which a gateway's queue and task are removed.
const IDLE: Duration = Duration::from_secs(60);
/// Pause after a failed request to a gateway.
const PAUSE: Duration = Duration::from_millis(200);
/// Maximum number of session deliveries queued for one gateway. Further ones are dropped.
const QUEUE: usize = 8192;
/// Maximum size of the events queued for one gateway, in bytes.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Deliveries and bytes at which a request is full. The last delivery may exceed the limit of bytes.
const REQUEST: (usize, usize) = (512, 8 * 1024 * 1024);
/// Maximum size of a request or response, in bytes.
const LARGEST: usize = 64 * 1024 * 1024;

/// A node's certificate and key, and the authority it trusts, from PEM.
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
    /// Reads this node's certificate and key, and the certificate of the authority that signed the
    /// certificates of all nodes. Each node's certificate must be valid for the name `chat-node`.
    pub fn new(certificate: &[u8], key: &[u8], authority: &[u8]) -> Self {
        Self { identity: Identity::from_pem(certificate, key), authority: Certificate::from_pem(authority) }
    }
}

/// The secret that requests to a gateway carry, random for each process.
#[derive(Clone)]
pub struct NodeLinkToken(String);

impl fmt::Debug for NodeLinkToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeLinkToken")
    }
}

impl NodeLinkToken {
    /// Draws a token of 128 bits.
    ///
    /// # Errors
    /// `Unavailable` if the operating system returns no random bytes.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::new(ErrorKind::Unavailable, "failed to get random bytes").caused_by(e))?;
        Ok(Self(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Returns the text to announce in the registry for a gateway with this `host:port`: `token@host:port`.
    pub fn announcement(&self, address: &str) -> String {
        format!("{}@{address}", self.0)
    }

    /// Returns the token and the `host:port` of an announcement.
    fn parse(announcement: &str) -> Result<(Self, &str)> {
        let (token, address) = announcement.split_once('@').ok_or_else(|| {
            Error::new(ErrorKind::Denied, "the gateway announces no token for its node link")
        })?;
        Ok((Self(token.to_owned()), address))
    }

    fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Returns whether a request carries this token, in a time that does not depend on where it differs.
    fn is_in(&self, headers: &http::HeaderMap) -> bool {
        let wanted = self.header();
        let Some(found) = headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes) else {
            return false;
        };
        let differs = wanted.bytes().zip(found).fold(0, |all, (a, b)| all | (a ^ b));
        found.len() == wanted.len() && differs == 0
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

/// The receiving end of the link.
#[derive(Clone)]
struct Receiver {
    engine: Arc<Engine>,
    token: NodeLinkToken,
}

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
        let engine = self.engine.clone();
        if !self.token.is_in(request.headers()) {
            let refused = Status::new(Code::Unauthenticated, "the request has another token").into_http();
            return Box::pin(std::future::ready(Ok(refused)));
        }
        Box::pin(async move {
            let mut grpc = Grpc::new(Plain).max_decoding_message_size(LARGEST);
            Ok(match request.uri().path() {
                DELIVER => grpc.unary(Deliver(engine), request).await,
                OFFER => grpc.unary(Offer(engine), request).await,
                _ => Status::new(Code::Unimplemented, "unknown call").into_http(),
            })
        })
    }
}

/// Serves the requests of other gateways that carry this token, until the listener fails.
///
/// # Errors
/// `Invalid` if the certificates cannot be used, `Unavailable` if the listener fails.
pub async fn serve_link(
    listener: TcpListener,
    engine: Arc<Engine>,
    token: NodeLinkToken,
    tls: Option<NodeLinkTls>,
) -> Result<()> {
    let mut server = Server::builder();
    if let Some(tls) = tls {
        let config = ServerTlsConfig::new().identity(tls.identity).client_ca_root(tls.authority);
        let unusable =
            |e| Error::new(ErrorKind::Invalid, "the node link certificates are not usable").caused_by(e);
        server = server.tls_config(config).map_err(unusable)?;
    }
    let ended = |e| Error::new(ErrorKind::Unavailable, "the node link listener failed").caused_by(e);
    let incoming = TcpListenerStream::new(listener);
    server.add_service(Receiver { engine, token }).serve_with_incoming(incoming).await.map_err(ended)
}

/// The sending end: a [`NodeLink`] to every gateway that has an address in the registry.
pub struct GatewayLink(Arc<Shared>);

struct Shared {
    /// Gateways with recent deliveries, each with a task that sends them.
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

/// The queue of one gateway.
#[derive(Default)]
struct Peer {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    deliveries: VecDeque<Item>,
    /// Size of all queued events.
    bytes: usize,
    /// Connections with dropped events. They receive `Lagged` with the next request.
    lagged: HashSet<Route>,
    /// Feeds with dropped events. Their readers receive `Lagged` with the next request.
    lagged_feeds: HashSet<ConversationId>,
}

/// A queued delivery.
enum Item {
    Session(SessionDelivery),
    Feed(FeedDelivery),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Session((_, events)) => bytes_of(events),
            Self::Feed(feed) => {
                let small = 40 * (feed.changes.len() + feed.named.len());
                small + feed.rows.iter().map(InboxRow::size).sum::<usize>()
            }
        }
    }

    /// Returns the number of events.
    fn events(&self) -> usize {
        match self {
            Self::Session((_, events)) => events.len(),
            Self::Feed(feed) => feed.rows.len(),
        }
    }
}

impl Waiting {
    /// Notes that a delivery was dropped.
    fn lose(&mut self, item: Item) {
        match item {
            Item::Session((route, _)) if self.lagged.len() < QUEUE => {
                self.lagged.insert(route);
            }
            Item::Feed(feed) if self.lagged_feeds.len() < QUEUE => {
                self.lagged_feeds.insert(feed.conversation);
            }
            // A heartbeat of the session finds the rows.
            Item::Session(_) | Item::Feed(_) => {}
        }
    }
}

/// Returns the queued form of deliveries. Sessions come first: the receiver merges their events into those of feeds.
fn items(deliveries: Deliveries) -> impl Iterator<Item = Item> {
    let feeds = deliveries.feeds.into_iter().map(Item::Feed);
    deliveries.sessions.into_iter().map(Item::Session).chain(feeds)
}

/// Returns the approximate size of an event in bytes.
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
    fn put(&self, deliveries: Deliveries) {
        let mut waiting = self.waiting.lock();
        for item in items(deliveries) {
            let bytes = item.bytes();
            if waiting.deliveries.len() < QUEUE && waiting.bytes + bytes <= QUEUE_BYTES {
                waiting.deliveries.push_back(item);
                waiting.bytes += bytes;
                metrics::gauge!("chat_node_link_waiting_sessions").increment(1);
            } else {
                metrics::counter!("chat_dropped_total", "reason" => "node_link_full")
                    .increment(item.events() as u64);
                waiting.lose(item);
            }
        }
        drop(waiting);
        self.more.notify_one();
    }

    fn is_idle(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.deliveries.is_empty() && waiting.lagged.is_empty() && waiting.lagged_feeds.is_empty()
    }

    fn take(&self) -> Deliveries {
        let mut waiting = self.waiting.lock();
        // First of all, so that a session that lost events drops the later ones, too.
        let mut deliveries = Deliveries {
            sessions: waiting.lagged.drain().map(|route| (route, vec![SessionEvent::Lagged])).collect(),
            feeds: waiting.lagged_feeds.drain().map(FeedDelivery::lagged).collect(),
        };
        let (mut taken, mut bytes) = (0, 0);
        while taken < REQUEST.0
            && bytes < REQUEST.1
            && let Some(item) = waiting.deliveries.pop_front()
        {
            taken += 1;
            bytes += item.bytes();
            match item {
                Item::Session(session) => deliveries.sessions.push(session),
                Item::Feed(feed) => deliveries.feeds.push(feed),
            }
        }
        waiting.bytes -= bytes;
        metrics::gauge!("chat_node_link_waiting_sessions").decrement(f64::from(taken as u32));
        deliveries
    }

    /// Drops deliveries that failed. Their sessions receive `Lagged` with the next successful request.
    fn lost(&self, deliveries: Deliveries) {
        let mut waiting = self.waiting.lock();
        let mut events = 0;
        for item in items(deliveries) {
            events += item.events();
            waiting.lose(item);
        }
        metrics::counter!("chat_dropped_total", "reason" => "link_unanswered").increment(events as u64);
    }
}

fn unanswered(status: Status) -> Error {
    let kind = if status.code() == Code::NotFound { ErrorKind::NotFound } else { ErrorKind::Unavailable };
    Error::new(kind, "the request to the other gateway failed").caused_by(status)
}

fn silent(error: Elapsed) -> Error {
    Error::new(ErrorKind::Unavailable, "the other gateway did not answer in time").caused_by(error)
}

/// Returns whether an address `host:port` is on this machine.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// A connection to another gateway, and the token that its requests carry.
#[derive(Clone)]
struct Line {
    channel: Channel,
    token: NodeLinkToken,
}

impl Shared {
    async fn connect(&self, gateway: GatewayId) -> Result<Line> {
        let announced = self.registry.address(gateway).await?;
        let unknown = || Error::new(ErrorKind::NotFound, "the gateway has no address in the registry");
        let announced = announced.ok_or_else(unknown)?;
        let (token, address) = NodeLinkToken::parse(&announced)?;
        if self.tls.is_none() && !is_loopback(address) {
            let error = Error::new(ErrorKind::Denied, "node_link_tls is required outside of loopback");
            tracing::error!(%error, gateway = gateway.0, "deliveries are dropped: set node_link_tls");
            return Err(error);
        }
        let wrong = |e| {
            Error::new(ErrorKind::Invalid, "the gateway address or node_link_tls is invalid").caused_by(e)
        };
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
        let channel =
            tokio::time::timeout(CALL_TIMEOUT, endpoint.connect()).await.map_err(silent)?.map_err(down)?;
        Ok(Line { channel, token })
    }

    async fn call(&self, line: &Line, path: &'static str, body: Bytes) -> Result<Bytes> {
        let mut request = Request::new(body);
        let token = line.token.header().parse();
        let token =
            token.map_err(|e| Error::new(ErrorKind::Invalid, "the token is not valid").caused_by(e))?;
        request.metadata_mut().insert("authorization", token);
        let mut grpc = tonic::client::Grpc::new(line.channel.clone()).max_decoding_message_size(LARGEST);
        let call = async {
            grpc.ready().await.map_err(|e| {
                Error::new(ErrorKind::Unavailable, "the other gateway cannot be reached").caused_by(e)
            })?;
            let path = PathAndQuery::from_static(path);
            grpc.unary(request, path, Plain).await.map_err(unanswered)
        };
        Ok(tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(silent)??.into_inner())
    }

    /// Sends the queued deliveries of one gateway until its queue stays idle.
    async fn run(&self, gateway: GatewayId, peer: &Peer) {
        let mut line: Option<Line> = None;
        loop {
            let deliveries = peer.take();
            if deliveries.is_empty() {
                let more = tokio::time::timeout(IDLE, peer.more.notified()).await;
                if more.is_err() && self.retire(gateway, peer) {
                    return;
                }
                continue;
            }
            // One time limit covers the address lookup, the connection and the answer.
            let sent = tokio::time::timeout(CALL_TIMEOUT, self.send(gateway, &mut line, &deliveries)).await;
            match sent.unwrap_or_else(|e| Err(silent(e))) {
                Ok(stale) if stale.is_empty() => {}
                Ok(stale) => self.not_there(&stale, &deliveries.sessions).await,
                // The lease of the gateway ended, so no device is connected there.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let all: Vec<Route> = deliveries.sessions.iter().map(|(route, _)| *route).collect();
                    self.not_there(&all, &deliveries.sessions).await;
                }
                Err(error) => {
                    tracing::debug!(%error, gateway = gateway.0, "node link request failed: pausing");
                    line = None;
                    // Not for `Lagged`, which is sent again with the next request.
                    let with_message =
                        |(_, events): &&SessionDelivery| events.iter().any(|event| event.message().is_some());
                    let woken = deliveries.sessions.iter().filter(with_message);
                    let woken = woken.map(|(route, _)| route.device).collect();
                    peer.lost(deliveries);
                    self.wake(woken).await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Removes an idle gateway. Returns `false` if deliveries were queued for it meanwhile.
    fn retire(&self, gateway: GatewayId, peer: &Peer) -> bool {
        let mut peers = self.peers.lock();
        let idle = peer.is_idle();
        if idle {
            peers.remove(&gateway);
        }
        idle
    }

    /// Sends one request. Returns the connections that the other gateway does not have.
    async fn send(
        &self,
        gateway: GatewayId,
        known: &mut Option<Line>,
        deliveries: &Deliveries,
    ) -> Result<Vec<Route>> {
        let line = match known {
            Some(line) => line,
            None => known.insert(self.connect(gateway).await?),
        };
        let start = std::time::Instant::now();
        let answer = self.call(line, DELIVER, encode_deliveries(deliveries).into()).await?;
        metrics::histogram!("chat_node_link_seconds").record(start.elapsed().as_secs_f64());
        let count = deliveries.sessions.len() + deliveries.feeds.len();
        metrics::histogram!("chat_node_link_request_sessions").record(count as f64);
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
    /// Creates a link that finds gateways in this registry. Delivering requires a Tokio runtime.
    pub fn new(registry: Arc<dyn Registry>, push: Arc<dyn PushSink>, tls: Option<NodeLinkTls>) -> Self {
        Self(Arc::new(Shared { peers: Mutex::default(), registry, push, tls }))
    }

    async fn rendezvous(&self, gateway: GatewayId, body: Vec<u8>) -> Result<Bytes> {
        let line = self.0.connect(gateway).await?;
        self.0.call(&line, OFFER, body.into()).await
    }
}

#[async_trait]
impl NodeLink for GatewayLink {
    fn deliver(&self, gateway: GatewayId, deliveries: Deliveries) {
        let mut peers = self.0.peers.lock();
        let peer = peers.entry(gateway).or_insert_with(|| {
            let peer = Arc::new(Peer::default());
            let (shared, running) = (self.0.clone(), peer.clone());
            tokio::spawn(async move { shared.run(gateway, &running).await });
            peer
        });
        // Under the lock, so that the task cannot retire before it sees these deliveries.
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
    use chat_core::envelope::{EmptyReason, RowContent};
    use chat_core::{DeviceId, InstallationId, UserId};

    use super::*;

    const USER: UserId = UserId::from_bytes([1; 16]);
    const INSTALLATION: InstallationId = InstallationId::from_bytes([1; 16]);

    fn row(n: u64) -> InboxRow {
        InboxRow {
            conversation: ConversationId::own(USER),
            seq: n,
            time_us: n,
            joined: false,
            content: RowContent::Empty { reason: EmptyReason::Expired, from: n },
        }
    }

    fn session(n: u64, events: usize) -> SessionDelivery {
        let device = DeviceAddress { user: USER, device: DeviceId::PRIMARY, installation: INSTALLATION };
        let events = vec![SessionEvent::Row(row(n)); events];
        (Route { device, gateway: GatewayId(1), epoch: n }, events)
    }

    fn sessions(count: u64, events: usize) -> Deliveries {
        Deliveries { sessions: (0..count).map(|n| session(n, events)).collect(), feeds: Vec::new() }
    }

    fn drained(peer: &Peer) -> (usize, usize) {
        let (mut whole, mut lagged) = (0, 0);
        while !peer.is_idle() {
            for (_, events) in peer.take().sessions {
                if matches!(events[..], [SessionEvent::Lagged]) { lagged += 1 } else { whole += 1 }
            }
        }
        (whole, lagged)
    }

    #[test]
    fn node_link_queue_is_bounded_in_number_and_bytes() {
        let peer = Peer::default();
        peer.put(sessions(QUEUE as u64 + 5, 1));
        assert_eq!(drained(&peer), (QUEUE, 5), "deliveries above the limit become Lagged");
        let many = 1 + REQUEST.1 / bytes_of(&session(0, 1).1);
        let fit = QUEUE_BYTES / bytes_of(&session(0, many).1);
        for round in 0..2 {
            peer.put(sessions(fit as u64 + 2, many));
            assert_eq!(drained(&peer), (fit, 2), "round {round}");
        }
    }

    #[test]
    fn lost_rows_of_a_feed_become_lagged() {
        let (peer, feed) = (Peer::default(), row(0).conversation);
        let rows = |seq| FeedDelivery { rows: vec![row(seq)], ..FeedDelivery::new(feed, 1) };
        peer.put(Deliveries { sessions: Vec::new(), feeds: vec![rows(4), rows(5)] });
        let taken = peer.take();
        assert_eq!(taken.feeds, [rows(4), rows(5)]);
        peer.lost(taken);
        assert!(!peer.is_idle());
        peer.put(sessions(1, 1));
        assert_eq!(peer.take(), Deliveries { feeds: vec![FeedDelivery::lagged(feed)], ..sessions(1, 1) });
        assert!(peer.is_idle());
    }
}
