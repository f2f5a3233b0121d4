//! Tests of tokens that expire: the engine denies them, and the gateway ends their sessions.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use chat_core::Result;
use chat_core::backend::{Authenticated, Authenticator, Runtime, Transport};
use chat_core::gateway::Gateway;
use chat_core::limits::WIRE_VERSION;
use chat_core::memory::ManualRuntime;
use chat_core::signing::HelloClaims;
use chat_core::wire::{ClientFrame, CloseReason, Hello, ServerFrame};
use parking_lot::Mutex;

use super::*;

/// Milliseconds between the start of the test and the expiry of the token.
const VALID_MS: u64 = 100_000;

/// Accepts every token for one user until a time.
#[derive(Debug)]
struct Until(Handle, SystemTime);

#[async_trait]
impl Authenticator for Until {
    async fn authenticate(&self, _token: &str) -> Result<Authenticated> {
        Ok(Authenticated::user(self.0.clone()).expires_at(self.1))
    }
}

fn engine_with_expiry(alice: &User) -> (Arc<Engine>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    clock.set_us(START_US);
    let expiry = SystemTime::UNIX_EPOCH + Duration::from_micros(START_US) + Duration::from_millis(VALID_MS);
    let authenticator = Arc::new(Until(alice.handle.clone(), expiry));
    let backends = Backends { authenticator, ..Backends::memory() };
    (Arc::new(Engine::new(backends, EngineSettings::default(), clock.clone())), clock)
}

fn hello(alice: &User, nonce: Bytes) -> Hello {
    let claims = HelloClaims {
        authority: "chat.example".into(),
        nonce,
        version: WIRE_VERSION,
        token: "token".into(),
        user: alice.device().user,
        device: alice.device().device,
        incarnation: 0,
        generation: 0,
    };
    let signature = alice.key.sign(&claims.transcript()).to_bytes().to_vec().into();
    Hello { claims, store_epoch: None, signature }
}

#[test]
fn an_expired_token_opens_no_session_and_no_account() {
    let alice = User::new(1, "alice");
    let (engine, clock) = engine_with_expiry(&alice);
    alice.register(&engine);
    let hello = hello(&alice, Bytes::from_static(&[7; 32]));
    let greeting = ready(engine.authenticate(&hello)).unwrap();
    assert_eq!(greeting.expires_in, Some(Duration::from_millis(VALID_MS)));
    clock.set_us(START_US + VALID_MS * 1000);
    assert_eq!(ready(engine.authenticate(&hello)).unwrap_err(), CloseReason::Unauthorized);
    let again = Registration::Lookup { token: "token".into(), handle: alice.handle.clone() };
    assert_eq!(ready(engine.register(&again)), Err(Refusal::Denied));
}

/// Both directions of a connection; `closed` is the close code.
#[derive(Debug, Default)]
struct Frames {
    to_server: VecDeque<Bytes>,
    to_device: Vec<Bytes>,
    closed: Option<u16>,
}

#[derive(Debug)]
struct Queue(Arc<Mutex<Frames>>);

#[async_trait]
impl Transport for Queue {
    async fn recv(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|_| {
            self.0.lock().to_server.pop_front().map_or(Poll::Pending, |frame| Poll::Ready(Ok(Some(frame))))
        })
        .await
    }

    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()> {
        self.0.lock().to_device.extend(frames);
        Ok(())
    }

    async fn close(&mut self, code: u16) {
        self.0.lock().closed = Some(code);
    }
}

#[test]
fn the_gateway_closes_a_session_when_its_token_expires() {
    let alice = User::new(1, "alice");
    let (engine, clock) = engine_with_expiry(&alice);
    alice.register(&engine);
    let runtime = Arc::new(ManualRuntime::new(1));
    // The monotonic clock of the gateway has another zero than the wall clock.
    runtime.advance_to(Duration::from_secs(5));
    let (gateway, _drain) = Gateway::new(engine, runtime.clone(), 1);
    let frames = Arc::new(Mutex::new(Frames::default()));
    let mut serving = Box::pin(gateway.serve(Box::new(Queue(frames.clone())), Box::new(|_| {})));
    let mut poll = || serving.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll().is_pending());
    let ServerFrame::Challenge(challenge) = ServerFrame::parse(frames.lock().to_device.remove(0)).unwrap()
    else {
        panic!("the server sends a challenge first");
    };
    let hello = ClientFrame::Hello(Box::new(hello(&alice, challenge.nonce)));
    frames.lock().to_server.push_back(hello.encode());
    assert!(poll().is_pending());
    // Heartbeats keep the session alive. The wall clock stands still: only the runtime's clock counts.
    let expiry = Duration::from_secs(5) + Duration::from_millis(VALID_MS);
    while runtime.elapsed() + Duration::from_secs(30) < expiry {
        runtime.advance_to(runtime.elapsed() + Duration::from_secs(30));
        frames.lock().to_server.push_back(ClientFrame::Heartbeat.encode());
        assert!(poll().is_pending());
    }
    clock.set_us(0);
    runtime.advance_to(expiry - Duration::from_millis(1));
    assert!(poll().is_pending() && frames.lock().closed.is_none());
    runtime.advance_to(expiry);
    assert!(poll().is_ready());
    let mut frames = frames.lock();
    assert_eq!(frames.closed, Some(CloseReason::Unauthorized.code()));
    let last = ServerFrame::parse(frames.to_device.pop().unwrap()).unwrap();
    assert_eq!(last, ServerFrame::Close { reason: CloseReason::Unauthorized, retry_after: 0 });
}

/// Accepts every token that names seconds: for one user, as issued at that second of the test.
#[derive(Debug)]
struct IssuedAt(Handle);

#[async_trait]
impl Authenticator for IssuedAt {
    async fn authenticate(&self, token: &str) -> Result<Authenticated> {
        let user = Authenticated::user(self.0.clone());
        let at = |seconds: u64| {
            SystemTime::UNIX_EPOCH + Duration::from_micros(START_US) + Duration::from_secs(seconds)
        };
        Ok(match token.parse() {
            Ok(seconds) => user.issued_at(at(seconds)).expires_at(at(seconds + 500)),
            Err(_) => user,
        })
    }
}

/// Two nodes with the same directory, and a user.
fn two_nodes(alice: &User) -> ([Engine; 2], Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    clock.set_us(START_US);
    let authenticator = Arc::new(IssuedAt(alice.handle.clone()));
    let backends = Backends { authenticator, ..Backends::memory() };
    let node = || Engine::new(backends.clone(), EngineSettings::default(), clock.clone());
    ([node(), node()], clock)
}

fn opens(engine: &Engine, alice: &User, token: &str) -> bool {
    let mut hello = hello(alice, Bytes::from_static(&[7; 32]));
    hello.claims.token = token.into();
    hello.signature = alice.key.sign(&hello.claims.transcript()).to_bytes().to_vec().into();
    ready(engine.authenticate(&hello)).is_ok()
}

#[test]
fn revoked_tokens_open_nothing_on_any_node_and_later_ones_do() {
    let alice = User::new(1, "alice");
    let ([here, there], clock) = two_nodes(&alice);
    alice.register(&here);
    let mut sessions = [&here, &there].map(|node| ready(node.bind(alice.device())).unwrap());
    assert!(opens(&here, &alice, "5") && opens(&there, &alice, "of unknown age"));
    clock.set_us(START_US + 10_500_000);
    ready(here.revoke(&alice.handle)).unwrap();
    assert!(!opens(&here, &alice, "5") && !opens(&here, &alice, "of unknown age"));
    assert!(!opens(&here, &alice, "10"), "of the same second");
    assert!(opens(&here, &alice, "11"));
    assert!(opens(&there, &alice, "5"), "the other node has not read it yet");
    ready(there.read_revocations()).unwrap();
    assert!(!opens(&there, &alice, "5") && opens(&there, &alice, "11"));
    for session in &mut sessions {
        let closed = session.events.try_recv().unwrap().into_iter();
        assert!(matches!(
            closed.as_slice(),
            [chat_core::delivery::SessionEvent::Closed(CloseReason::Draining)]
        ));
    }
    let lookup = |token: &str| Registration::Lookup { token: token.into(), handle: alice.handle.clone() };
    assert_eq!(ready(there.register(&lookup("5"))), Err(Refusal::Denied));
    assert!(ready(there.register(&lookup("11"))).is_ok());
    // A node that starts later reads all of them.
    let nobody = Handle::new("nobody").unwrap();
    assert!(ready(here.revoke(&nobody)).is_err());
}

#[test]
fn session_continues_with_a_new_token_that_its_device_signed() {
    let alice = User::new(1, "alice");
    let ([engine, _], clock) = two_nodes(&alice);
    alice.register(&engine);
    let nonce = Bytes::from_static(&[7; 32]);
    let renewal = |token: &str, key: &SigningKey, nonce: &Bytes| {
        let claims = chat_core::signing::RenewalClaims {
            nonce: nonce.clone(),
            token: token.into(),
            user: alice.device().user,
            device: alice.device().device,
        };
        let signature = key.sign(&claims.transcript()).to_bytes().to_vec().into();
        chat_core::wire::Renewal { token: token.into(), signature }
    };
    let renew = |renewal| ready(engine.renew(alice.device(), &nonce, &renewal));
    clock.set_us(START_US + 400_000_000);
    assert_eq!(renew(renewal("100", &alice.key, &nonce)), Ok(Some(Duration::from_secs(200))));
    let other_key = SigningKey::from_bytes(&[9; 32]);
    assert_eq!(renew(renewal("100", &other_key, &nonce)), Err(CloseReason::Unauthorized));
    let other_nonce = Bytes::from_static(&[8; 32]);
    assert_eq!(renew(renewal("100", &alice.key, &other_nonce)), Err(CloseReason::Unauthorized));
    ready(engine.revoke(&alice.handle)).unwrap();
    assert_eq!(renew(renewal("100", &alice.key, &nonce)), Err(CloseReason::Unauthorized));
    for _ in 0..20 {
        let _ = renew(renewal("401", &alice.key, &nonce));
    }
    assert_eq!(renew(renewal("401", &alice.key, &nonce)), Err(CloseReason::Throttled));
}
