//! Drives a [`Session`] over a transport: one task a connection, no timer of its own while idle but the
//! session's deadline.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use chat_core::backend::{Command, Transport};
use chat_core::delivery::{Engine, Linking, SessionHandle};
use chat_core::envelope::{Refusal, Subject};
use chat_core::limits::WIRE_VERSION;
use chat_core::mutant::Mutants;
use chat_core::session::{Input, Output, Session};
use chat_core::wire::{Challenge, ClientFrame, Hello, Registration, ServerFrame, close};
use chat_core::{ErrorKind, Instant};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::handshake_limiter::{HandshakeLimiter, HandshakePermit};

/// What every connection of a gateway shares.
#[derive(Clone, Debug)]
pub struct Gateway {
    engine: Arc<Engine>,
    started: tokio::time::Instant,
    /// Milliseconds over which a drain spreads reconnects; 0 while there is none.
    drain: watch::Receiver<u32>,
    handshakes: Arc<HandshakeLimiter>,
}

/// When a user who is over a limit may try again, in milliseconds.
const THROTTLED_MS: u32 = 1000;

/// Ends a gateway gently.
#[derive(Debug)]
pub struct Drain(watch::Sender<u32>);

impl Drain {
    /// Tells every session to close, each with its own delay up to `spread_ms` before it may come back.
    pub fn begin(&self, spread_ms: u32) {
        self.0.send_replace(spread_ms.max(1));
    }
}

impl Gateway {
    /// A gateway of this engine, and what drains it.
    pub fn new(engine: Arc<Engine>) -> (Self, Drain) {
        let (sender, drain) = watch::channel(0);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let handshakes = HandshakeLimiter::new(u32::try_from(cores).unwrap_or(u32::MAX));
        (Self { engine, started: tokio::time::Instant::now(), drain, handshakes }, Drain(sender))
    }

    /// The engine.
    pub const fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    fn now(&self) -> Instant {
        Instant::from_millis(self.started.elapsed().as_millis() as u64)
    }

    /// Serves one connection until it ends. `on_authenticated` is told whether its session was on_authenticated; it is dropped
    /// if the connection ends before that.
    pub async fn serve(&self, transport: Box<dyn Transport>, on_authenticated: OnAuthenticated) {
        let mut nonce = [0; 32];
        if getrandom::fill(&mut nonce).is_err() {
            return;
        }
        let connection = Connection {
            gateway: self.clone(),
            transport,
            nonce: Bytes::copy_from_slice(&nonce),
            session: Session::new(self.now(), Mutants::NONE),
            handle: None,
            link: None,
            appending: None,
            acking: None,
            out: Vec::new(),
            permit: None,
            closing: None,
            on_authenticated: Some(on_authenticated),
        };
        connection.run().await;
    }
}

/// Is told whether a session was on_authenticated (`true`), or refused because of its token or signature (`false`).
pub type OnAuthenticated = Box<dyn FnOnce(bool) + Send>;

struct Connection {
    gateway: Gateway,
    transport: Box<dyn Transport>,
    nonce: Bytes,
    session: Session,
    handle: Option<SessionHandle>,
    /// The answer a device waits for that is being linked.
    link: Option<Linking>,
    /// Commands that the log has not confirmed yet. An idle connection carries no room for them.
    appending: Option<Box<FuturesUnordered<Appending>>>,
    /// Acks that the store has not confirmed yet.
    acking: Option<Acking>,
    out: Vec<Bytes>,
    /// Held from a `Hello` until the first pages of the inbox are read.
    permit: Option<HandshakePermit>,
    closing: Option<u16>,
    on_authenticated: Option<OnAuthenticated>,
}

type Appending = Pin<Box<dyn Future<Output = Option<ServerFrame>> + Send>>;

/// Whether an ack was above what there is.
type Acking = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Commands of one connection that may wait for the log.
const APPENDING: usize = 64;

enum Wakeup {
    Appended(Option<ServerFrame>),
    Acked(bool),
    Frame(chat_core::Result<Option<Bytes>>),
    Events(Option<Vec<chat_core::delivery::Event>>),
    Linked(Option<Bytes>),
    Deadline,
    Drain(u32),
}

impl Connection {
    async fn run(mut self) {
        let challenge =
            Challenge { nonce: self.nonce.clone(), min_version: WIRE_VERSION, max_version: WIRE_VERSION };
        self.out.push(ServerFrame::Challenge(challenge).encode());
        loop {
            if !self.flush().await {
                break;
            }
            if let Some(code) = self.closing {
                self.transport.close(code).await;
                break;
            }
            let wakeup = self.wake().await;
            // Boxed: what handling needs is large, and an idle connection must not carry it.
            if !Box::pin(self.handle(wakeup)).await {
                break;
            }
        }
        if self.handle.as_ref().is_some_and(|handle| self.gateway.engine.is_current(handle)) {
            self.step(Input::Gone).await;
        }
        self.settle_acks().await;
        if let Some(handle) = self.handle.take() {
            self.gateway.engine.unbind(&handle).await;
        }
        if let Some(link) = self.link.take() {
            self.gateway.engine.withdraw(link).await;
        }
    }

    /// Does what a wake-up asks for; `false` ends the connection.
    async fn handle(&mut self, wakeup: Wakeup) -> bool {
        match wakeup {
            Wakeup::Frame(Ok(Some(bytes))) => self.frame(bytes).await,
            Wakeup::Frame(Ok(None)) => {
                self.transport.close(1000).await;
                return false;
            }
            Wakeup::Frame(Err(error)) => {
                tracing::debug!(%error, "a connection broke");
                self.transport.close(1002).await;
                return false;
            }
            Wakeup::Events(Some(events)) => {
                self.step(Input::Events(events)).await;
                self.more_events().await;
            }
            Wakeup::Events(None) => return false,
            Wakeup::Appended(answer) => {
                if let Some(answer) = answer {
                    self.step(Input::Answer(answer)).await;
                }
            }
            Wakeup::Acked(too_high) => {
                self.acking = None;
                self.step(Input::Acked { too_high }).await;
            }
            Wakeup::Linked(answer) => {
                if let Some(link) = self.link.take() {
                    self.gateway.engine.withdraw(link).await;
                }
                match answer {
                    Some(answer) => self.out.push(ServerFrame::LinkAnswer(answer).encode()),
                    None => self.closing = Some(close::IDLE),
                }
            }
            Wakeup::Deadline => self.step(Input::Tick).await,
            Wakeup::Drain(spread) => {
                let mut random = [0; 4];
                let _ = getrandom::fill(&mut random);
                self.step(Input::Drain(u32::from_le_bytes(random) % spread)).await;
            }
        }
        if self.handle.as_ref().is_some_and(SessionHandle::take_lagged) {
            self.step(Input::Lagged).await;
        }
        true
    }

    async fn wake(&mut self) -> Wakeup {
        let deadline = self.session.deadline();
        let deadline = deadline.map(|at| self.gateway.started + Duration::from_millis(at.as_millis()));
        let drain = &mut self.gateway.drain;
        tokio::select! {
            biased;
            events = async {
                match &mut self.handle {
                    Some(handle) => handle.events.recv().await,
                    None => std::future::pending().await,
                }
            } => Wakeup::Events(events),
            frame = self.transport.recv() => Wakeup::Frame(frame),
            answer = async {
                match &mut self.appending {
                    Some(appending) if !appending.is_empty() => appending.next().await.flatten(),
                    _ => std::future::pending().await,
                }
            } => Wakeup::Appended(answer),
            too_high = async {
                match &mut self.acking {
                    Some(acking) => acking.await,
                    None => std::future::pending().await,
                }
            } => Wakeup::Acked(too_high),
            answer = async {
                match &mut self.link {
                    Some(link) => link.answers.recv().await,
                    None => std::future::pending().await,
                }
            } => Wakeup::Linked(answer),
            () = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => Wakeup::Deadline,
            spread = async {
                let draining = drain.wait_for(|spread| *spread > 0).await.map(|spread| *spread);
                match draining {
                    Ok(spread) => spread,
                    // Nobody can drain this gateway any more; that is no reason to wake.
                    Err(_) => std::future::pending().await,
                }
            }, if self.closing.is_none() => {
                // Once told, a session drains by itself.
                let (_, quiet) = watch::channel(0);
                self.gateway.drain = quiet;
                Wakeup::Drain(spread)
            }
        }
    }

    async fn flush(&mut self) -> bool {
        if self.out.is_empty() {
            return true;
        }
        let out = std::mem::take(&mut self.out);
        self.transport.send(out).await.is_ok()
    }

    /// Takes what else the engine said meanwhile, so that it goes out in one write.
    async fn more_events(&mut self) {
        for _ in 0..16 {
            let Some(Ok(events)) = self.handle.as_mut().map(|handle| handle.events.try_recv()) else {
                return;
            };
            self.step(Input::Events(events)).await;
        }
    }

    async fn frame(&mut self, bytes: Bytes) {
        match ClientFrame::parse(bytes, &self.nonce) {
            Ok(frame) => self.step(Input::Frame(frame)).await,
            Err(error) => {
                tracing::debug!(%error, "a frame was refused");
                self.out.push(ServerFrame::Close { code: close::PROTOCOL, retry_after: 0 }.encode());
                self.closing = Some(close::PROTOCOL);
            }
        }
    }

    async fn step(&mut self, input: Input) {
        let mut outputs = Vec::new();
        let now = self.gateway.now();
        self.session.step(now, input, &mut outputs);
        let mut todo = VecDeque::from(outputs);
        while let Some(output) = todo.pop_front() {
            if let Some(answer) = self.carry_out(output).await {
                let mut more = Vec::new();
                self.session.step(now, answer, &mut more);
                todo.extend(more);
            }
        }
        self.permit = None;
    }

    /// Does what the session wants done; gives what it is to be told about it.
    async fn carry_out(&mut self, output: Output) -> Option<Input> {
        let engine = self.gateway.engine.clone();
        let device = self.session.device();
        match output {
            Output::Send(frame) => {
                if let (ServerFrame::Deliver(rows, _), Some(device)) = (&frame, device) {
                    engine.record_delivered(device.installation, rows);
                }
                self.out.push(frame.encode());
                None
            }
            Output::Authenticate(hello) => {
                let answer = self.authenticate(&hello).await;
                let let_in = match &answer {
                    Input::Admitted(..) => Some(true),
                    Input::Rejected { code: close::UNAUTHORIZED, .. } => Some(false),
                    _ => None,
                };
                if let (Some(let_in), Some(on_authenticated)) = (let_in, self.on_authenticated.take()) {
                    on_authenticated(let_in);
                }
                Some(answer)
            }
            Output::Register(registration) => self.register(*registration).await,
            Output::Read(after) => {
                // What is acknowledged is not to be read again.
                if self.settle_acks().await {
                    return Some(Input::Acked { too_high: true });
                }
                Some(match engine.inbox(device?.installation, after).await {
                    Ok(rows) => Input::Page(after, rows),
                    Err(_) => Input::PageFailed,
                })
            }
            Output::Publish(publish) => match engine.admit_publish(device?, publish).await {
                Ok(command) => self.append(command).await.map(Input::Answer),
                Err(answer) => Some(Input::Answer(*answer)),
            },
            Output::Skip(number) => match engine.admit_skip(device?, number).await {
                Ok(command) => self.append(command).await.map(Input::Answer),
                Err(answer) => Some(Input::Answer(*answer)),
            },
            Output::Ack(acks, generation) => {
                // A session gives the next ones when it was told of these, unless it must not wait.
                if self.settle_acks().await {
                    return Some(Input::Acked { too_high: true });
                }
                let device = device?.installation;
                self.acking = Some(Box::pin(async move {
                    let outcome = engine.ack(device, generation, &acks).await;
                    outcome.is_err_and(|error| error.kind() == ErrorKind::Invalid)
                }));
                None
            }
            Output::Request(id, request) => {
                Some(Input::Answer(match engine.respond(device?, request).await {
                    Ok(answer) => ServerFrame::Response(id, Box::new(answer)),
                    Err(refusal) => ServerFrame::Refused(Subject::Request(id), refusal),
                }))
            }
            Output::Receipt(at, read) => {
                if !read {
                    // Only at the end are there acks that the store does not have.
                    self.settle_acks().await;
                }
                engine.receipt(device?, at, read).await;
                None
            }
            Output::Typing(conversation) => {
                engine.typing(device?, conversation).await;
                None
            }
            Output::Query(users) => Some(Input::Presence(engine.presence(device?, &users).await)),
            Output::Beat => {
                if let Some(handle) = &self.handle {
                    engine.beat(handle).await;
                }
                self.out.push(ServerFrame::HeartbeatReply(engine.now_ms()).encode());
                None
            }
            Output::Close(code) => {
                self.closing = Some(code);
                None
            }
            _ => None,
        }
    }

    /// Waits until the store has all acks it was given; whether one was above what there is.
    async fn settle_acks(&mut self) -> bool {
        match self.acking.take() {
            Some(acking) => acking.await,
            None => false,
        }
    }

    /// Appends a command in its order, and waits for the log's word only if much waits already.
    async fn append(&mut self, command: Command) -> Option<ServerFrame> {
        let engine = self.gateway.engine.clone();
        let mut append: Appending = Box::pin(async move { engine.append(command).await });
        match std::future::poll_fn(|context| Poll::Ready(append.as_mut().poll(context))).await {
            Poll::Ready(answer) => answer,
            Poll::Pending => {
                let appending = self.appending.get_or_insert_default();
                appending.push(append);
                if appending.len() < APPENDING { None } else { appending.next().await.flatten() }
            }
        }
    }

    /// Checks a `Hello` and binds its session.
    async fn authenticate(&mut self, hello: &Hello) -> Input {
        let engine = self.gateway.engine.clone();
        let rejected = |code| Input::Rejected { code, retry_after: 0 };
        match self.gateway.handshakes.take().await {
            Ok(turn) => self.permit = Some(turn),
            Err(wait) => {
                let retry_after = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
                return Input::Rejected { code: close::THROTTLED, retry_after };
            }
        }
        let greeting = match engine.authenticate(hello).await {
            Ok(greeting) => greeting,
            Err(code @ close::THROTTLED) => return Input::Rejected { code, retry_after: THROTTLED_MS },
            Err(code) => return rejected(code),
        };
        match engine.bind(greeting.device).await {
            Ok(handle) => {
                self.handle = Some(handle);
                Input::Admitted(greeting.device, greeting.welcome)
            }
            Err(error) if error.kind() == ErrorKind::Denied => rejected(close::UNAUTHORIZED),
            Err(_) => rejected(close::DRAIN),
        }
    }

    async fn register(&mut self, registration: Registration) -> Option<Input> {
        let refused = |refusal| ServerFrame::Refused(Subject::Opening, refusal).encode();
        match registration {
            Registration::Link { rendezvous, offer } => {
                match self.gateway.engine.offer(rendezvous, offer).await {
                    Ok(answers) => {
                        self.link = Some(answers);
                        return Some(Input::Linking);
                    }
                    Err(_) => self.out.push(refused(Refusal::Taken)),
                }
            }
            account => {
                self.out.push(match self.gateway.engine.register(&account).await {
                    Ok(on_authenticated) => on_authenticated.encode(),
                    Err(refusal) => refused(refusal),
                });
            }
        }
        None
    }
}
