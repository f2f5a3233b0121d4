//! Two gateways over loopback: deliveries arrive in order, stale routes are unbound, and a silent gateway
//! blocks no caller.
#![cfg(feature = "node-link")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chat_core::backend::{Backends, Deliveries, GatewayId, NodeLink, Registry, Route};
use chat_core::delivery::{EngineSettings, SessionEvent, SessionHandle};
use chat_core::memory::{ManualClock, MemoryPush, MemoryRegistry};

use chat_core::{ConversationId, DeviceAddress, DeviceId, Engine, ErrorKind, InstallationId, UserId};
use chat_transport::node_link::{GatewayLink, NodeLinkTls, NodeLinkToken, serve_link};
use tokio::net::TcpListener;

const THERE: GatewayId = GatewayId(2);

fn device(n: u8) -> DeviceAddress {
    DeviceAddress {
        user: UserId::from_bytes([n; 16]),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes([n; 16]),
    }
}

struct Two {
    link: GatewayLink,
    there: Arc<Engine>,
    registry: Arc<MemoryRegistry>,
}

/// A certificate authority that signs the certificates of nodes.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// Returns a certificate that this authority signed, for a node that trusts `trusted`.
    fn node(&self, trusted: &Self) -> NodeLinkTls {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["chat-node".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        NodeLinkTls::new(certificate.pem().as_bytes(), key.serialize_pem().as_bytes(), trusted.pem.as_bytes())
    }
}

impl Two {
    async fn start() -> Self {
        Self::start_with(None, None).await
    }

    async fn start_with(here: Option<NodeLinkTls>, there_tls: Option<NodeLinkTls>) -> Self {
        let registry = Arc::new(MemoryRegistry::default());
        let backends = Backends { registry: registry.clone(), ..Backends::memory() };
        let settings = EngineSettings { gateway: THERE, ..EngineSettings::default() };
        let there = Arc::new(Engine::new(backends, settings, Arc::new(ManualClock::default())));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let token = NodeLinkToken::random().unwrap();
        registry.announce(THERE, &token.announcement(&address)).await.unwrap();
        tokio::spawn(serve_link(listener, there.clone(), token, there_tls));
        let link = GatewayLink::new(registry.clone(), Arc::new(MemoryPush::default()), here);
        Self { link, there, registry }
    }

    async fn bind(&self, n: u8) -> SessionHandle {
        let epoch = self.registry.bind(device(n), THERE).await.unwrap();
        self.there.hub().bind(Route { device: device(n), gateway: THERE, epoch })
    }
}

fn for_session(route: Route, event: SessionEvent) -> Deliveries {
    Deliveries { sessions: vec![(route, vec![event])], feeds: Vec::new() }
}

fn typing(n: u8) -> SessionEvent {
    let user = UserId::from_bytes([n; 16]);
    SessionEvent::Hint(chat_core::delivery::Hint::Typing(ConversationId::own(user), user))
}

async fn next(handle: &mut SessionHandle) -> Vec<SessionEvent> {
    let batch = tokio::time::timeout(Duration::from_secs(5), handle.events.recv()).await.unwrap().unwrap();
    batch.into_iter().collect()
}

#[tokio::test]
async fn deliveries_arrive_in_order() {
    let two = Two::start().await;
    let mut handle = two.bind(1).await;
    for n in 0..50 {
        two.link.deliver(THERE, for_session(handle.route, typing(n)));
    }
    let mut seen = Vec::new();
    while seen.len() < 50 {
        seen.extend(next(&mut handle).await);
    }
    assert_eq!(seen, (0..50).map(typing).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stale_route_is_unbound() {
    let two = Two::start().await;
    let handle = two.bind(1).await;
    two.there.hub().unbind(&handle.route);
    two.link.deliver(THERE, for_session(handle.route, typing(1)));
    for _ in 0..100 {
        if two.registry.lookup(&[device(1).user]).await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the route is still bound");
}

#[tokio::test]
async fn silent_gateway_blocks_no_caller_and_its_sessions_catch_up() {
    let two = Two::start().await;
    let mut handle = two.bind(1).await;
    // This listener never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let working = two.registry.address(THERE).await.unwrap().unwrap();
    let silent_address = silent.local_addr().unwrap().to_string();
    let token = NodeLinkToken::random().unwrap();
    two.registry.announce(THERE, &token.announcement(&silent_address)).await.unwrap();
    let begun = Instant::now();
    two.link.deliver(THERE, for_session(handle.route, typing(1)));
    assert!(begun.elapsed() < Duration::from_millis(500), "deliver returns at once");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    two.registry.announce(THERE, &working).await.unwrap();
    two.link.deliver(THERE, for_session(handle.route, typing(2)));
    let mut seen = Vec::new();
    while !seen.contains(&SessionEvent::Lagged) {
        seen.extend(next(&mut handle).await);
    }
    assert!(handle.take_lagged(), "the session must read its inbox");
}

#[tokio::test]
async fn an_offer_is_found_and_answered_from_another_gateway() {
    let two = Two::start().await;
    let (rendezvous, offer) = (Bytes::from_static(b"rendezvous"), Bytes::from_static(b"offer"));
    let missing = two.link.offer(THERE, rendezvous.clone()).await;
    assert_eq!(missing.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
    let mut linking = two.there.offer(rendezvous.clone(), offer.clone()).await.unwrap();
    assert_eq!(two.link.offer(THERE, rendezvous.clone()).await, Ok(offer));
    let sealed = Bytes::from_static(b"sealed");
    two.link.answer_offer(THERE, rendezvous.clone(), sealed.clone()).await.unwrap();
    two.link.answer_offer(THERE, rendezvous, sealed.clone()).await.unwrap();
    assert_eq!(linking.answers.recv().await, Some(sealed));
}

#[tokio::test]
async fn request_without_the_announced_token_is_refused() {
    let two = Two::start().await;
    let (rendezvous, offer) = (Bytes::from_static(b"rendezvous"), Bytes::from_static(b"offer"));
    let _linking = two.there.offer(rendezvous.clone(), offer.clone()).await.unwrap();
    let right = two.registry.address(THERE).await.unwrap().unwrap();
    let address = right.split_once('@').unwrap().1;
    let other = NodeLinkToken::random().unwrap().announcement(address);
    let shorter = &right[1..];
    for (announced, kind) in [
        (other.as_str(), ErrorKind::Unavailable),
        (shorter, ErrorKind::Unavailable),
        (address, ErrorKind::Denied),
    ] {
        two.registry.announce(THERE, announced).await.unwrap();
        let refused = two.link.offer(THERE, rendezvous.clone()).await;
        assert_eq!(refused.map_err(|error| error.kind()), Err(kind), "{announced}");
    }
    let mut handle = two.bind(1).await;
    two.registry.announce(THERE, &other).await.unwrap();
    two.link.deliver(THERE, for_session(handle.route, typing(1)));
    let heard = tokio::time::timeout(Duration::from_secs(1), handle.events.recv()).await;
    assert!(heard.is_err(), "{heard:?}");
    two.registry.announce(THERE, &right).await.unwrap();
    assert_eq!(two.link.offer(THERE, rendezvous).await, Ok(offer));
}

#[tokio::test]
async fn rejects_peers_without_a_certificate_of_the_authority() {
    let (ours, strange) = (Authority::new(), Authority::new());
    let two = Two::start_with(Some(ours.node(&ours)), Some(ours.node(&ours))).await;
    let mut handle = two.bind(1).await;
    two.link.deliver(THERE, for_session(handle.route, typing(1)));
    assert_eq!(next(&mut handle).await, vec![typing(1)]);
    // First a certificate of another authority, then no certificate.
    for here in [Some(strange.node(&ours)), None] {
        let two = Two::start_with(here, Some(ours.node(&ours))).await;
        let mut handle = two.bind(1).await;
        two.link.deliver(THERE, for_session(handle.route, typing(1)));
        let heard = tokio::time::timeout(Duration::from_secs(2), handle.events.recv()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
}
