use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use super::handshake_limiter::HandshakePermit;
use super::{Gateway, OnAuthenticated};
use crate::backend::{Command, Sleep, Transport};
use crate::delivery::{Linking, SessionHandle};
use crate::model::client_frame::{ClientFrame, Hello, Registration, Request};
use crate::model::close_reason::CloseReason;
use crate::model::envelope::{Refusal, SendPosition, Subject};
use crate::model::error::{ErrorKind, Result};
use crate::model::limits::WIRE_VERSION;
use crate::model::server_frame::{Challenge, ServerFrame};
use crate::model::session_event::{EventBatch, SessionEvent};
use crate::model::time::Instant;
use crate::session::{Input, Output, Session};

/// When a device over a limit may try again, in milliseconds.
const THROTTLED_MS: u32 = 1000;
/// Maximum number of commands of one connection that wait for the log. The next one waits for the first of them.
const MAX_APPENDING: usize = 64;
/// Further batches of events that are taken after a wake-up, so that they go out in one write.
const MAX_EVENT_BATCHES: usize = 16;

/// The outcome of an append; the position is that of the publish or skip.
type Appending = Pin<Box<dyn Future<Output = (SendPosition, Result<(), Refusal>)> + Send>>;

/// Whether an ack was above the tail of its inbox.
type Acking = Pin<Box<dyn Future<Output = bool> + Send>>;

/// One connection: a session, its transport, and the calls that its session waits for.
pub(super) struct Connection {
    gateway: Gateway,
    transport: Box<dyn Transport>,
    nonce: Bytes,
    session: Session,
    handle: Option<SessionHandle>,
    /// The offer of a device that waits to be linked.
    link: Option<Linking>,
    /// Appends that the log has not confirmed yet. An idle connection reserves no memory for them.
    appending: Option<Box<FuturesUnordered<Appending>>>,
    /// Acks that the store has not confirmed yet.
    acking: Option<Acking>,
    /// The running timer and the time it is set to. It may ring before the session's deadline.
    timer: Option<(Duration, Sleep)>,
    out: Vec<Bytes>,
    /// Held from a `Hello` until the first pages of the inbox are read.
    permit: Option<HandshakePermit>,
    closing: Option<CloseReason>,
    on_authenticated: Option<OnAuthenticated>,
}

enum Wakeup {
    Appended(SendPosition, Result<(), Refusal>),
    Acked(bool),
    Frame(Result<Option<Bytes>>),
    Events(Option<EventBatch>),
    Linked(Option<Bytes>),
    Timer,
    Drain(u32),
}

impl Connection {
    pub(super) fn new(
        gateway: Gateway,
        transport: Box<dyn Transport>,
        nonce: Bytes,
        on_authenticated: OnAuthenticated,
    ) -> Self {
        let session = Session::new(gateway.runtime.now());
        Self {
            gateway,
            transport,
            nonce,
            session,
            handle: None,
            link: None,
            appending: None,
            acking: None,
            timer: None,
            out: Vec::new(),
            permit: None,
            closing: None,
            on_authenticated: Some(on_authenticated),
        }
    }

    /// Serves the connection until it ends. By reference, because a future keeps an argument twice.
    pub(super) async fn run(&mut self) {
        let challenge = Challenge {
            nonce: self.nonce.clone(),
            min_version: WIRE_VERSION,
            max_version: WIRE_VERSION,
            server_time: self.gateway.engine.now_ms(),
        };
        self.out.push(ServerFrame::Challenge(challenge).encode());
        loop {
            if !self.flush().await {
                break;
            }
            if let Some(reason) = self.closing {
                self.transport.close(reason.code()).await;
                break;
            }
            let wakeup = self.wake().await;
            // Boxed, because an idle connection must not reserve the memory that a handler needs.
            if !Box::pin(self.handle(wakeup)).await {
                break;
            }
        }
        Box::pin(self.finish()).await;
    }

    /// Reports the end to the session, and withdraws what the engine keeps for the connection.
    async fn finish(&mut self) {
        if self.handle.as_ref().is_some_and(|handle| self.gateway.engine.is_current(handle)) {
            self.step(Input::Gone).await;
        }
        self.finish_acks().await;
        if let Some(handle) = self.handle.take() {
            self.gateway.engine.unbind(&handle).await;
        }
        if let Some(link) = self.link.take() {
            self.gateway.engine.withdraw(link).await;
        }
    }

    /// Handles a wake-up; `false` ends the connection.
    async fn handle(&mut self, wakeup: Wakeup) -> bool {
        match wakeup {
            Wakeup::Frame(Ok(Some(bytes))) => self.frame(bytes).await,
            Wakeup::Frame(Ok(None)) => {
                self.transport.close(1000).await;
                return false;
            }
            Wakeup::Frame(Err(error)) => {
                tracing::debug!(%error, "connection failed");
                self.transport.close(1002).await;
                return false;
            }
            Wakeup::Events(Some(events)) => {
                self.events(events).await;
            }
            Wakeup::Events(None) => return false,
            Wakeup::Appended(number, outcome) => {
                if let Err(refusal) = outcome {
                    self.step(Input::Refused(number.subject(), refusal)).await;
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
                    None => self.closing = Some(CloseReason::Idle),
                }
            }
            Wakeup::Timer => {
                self.timer = None;
                if self.session.deadline().is_some_and(|at| at <= self.gateway.runtime.now()) {
                    self.step(Input::Tick).await;
                }
            }
            Wakeup::Drain(spread) => {
                let mut random = [0; 4];
                let _ = self.gateway.runtime.fill_random(&mut random);
                self.step(Input::Drain(u32::from_le_bytes(random) % spread)).await;
            }
        }
        if self.handle.as_ref().is_some_and(SessionHandle::take_lagged) {
            self.step(Input::Lagged).await;
        }
        true
    }

    /// Sets the timer if none rings by the session's deadline. A deadline that moved back keeps its timer: a
    /// device that sends often does not set a timer for each frame.
    fn arm_timer(&mut self) {
        match self.session.deadline().map(|at| Duration::from_millis(at.as_millis())) {
            Some(at) if self.timer.as_ref().is_none_or(|(armed, _)| *armed > at) => {
                self.timer = Some((at, self.gateway.runtime.sleep_until(at)));
            }
            Some(_) => {}
            None => self.timer = None,
        }
    }

    async fn wake(&mut self) -> Wakeup {
        self.arm_timer();
        let drain = &mut self.gateway.drain;
        tokio::select! {
            biased;
            events = async {
                match &mut self.handle {
                    Some(handle) => handle.events.recv().await,
                    None => pending().await,
                }
            } => Wakeup::Events(events),
            frame = self.transport.recv() => Wakeup::Frame(frame),
            (number, outcome) = async {
                match &mut self.appending {
                    Some(appending) => match appending.next().await {
                        Some(appended) => appended,
                        None => pending().await,
                    },
                    None => pending().await,
                }
            } => Wakeup::Appended(number, outcome),
            too_high = async {
                match &mut self.acking {
                    Some(acking) => acking.await,
                    None => pending().await,
                }
            } => Wakeup::Acked(too_high),
            answer = async {
                match &mut self.link {
                    Some(link) => link.answers.recv().await,
                    None => pending().await,
                }
            } => Wakeup::Linked(answer),
            () = async {
                match &mut self.timer {
                    Some((_, timer)) => timer.await,
                    None => pending().await,
                }
            } => Wakeup::Timer,
            spread = async {
                let draining = drain.wait_for(|spread| *spread > 0).await.map(|spread| *spread);
                match draining {
                    Ok(spread) => spread,
                    // The drain handle is gone, so no drain will come.
                    Err(_) => pending().await,
                }
            }, if self.closing.is_none() => {
                // The session drains by itself from here on.
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

    /// Passes on a batch of events, and those that arrived meanwhile, so that all go out in one write.
    async fn events(&mut self, first: EventBatch) {
        let (mut batch, mut own, mut more) = (first, Vec::new(), MAX_EVENT_BATCHES);
        loop {
            match batch {
                EventBatch::Own(events) => own.extend(events),
                EventBatch::Shared(frames) => {
                    self.own_events(&mut own).await;
                    for rows in frames.iter() {
                        self.step(Input::Shared(rows.clone())).await;
                    }
                }
            }
            let Some(left) = more.checked_sub(1) else { break };
            more = left;
            let Some(Ok(next)) = self.handle.as_mut().map(|handle| handle.events.try_recv()) else { break };
            batch = next;
        }
        self.own_events(&mut own).await;
    }

    async fn own_events(&mut self, own: &mut Vec<SessionEvent>) {
        if !own.is_empty() {
            self.step(Input::Events(std::mem::take(own))).await;
        }
    }

    async fn frame(&mut self, bytes: Bytes) {
        match ClientFrame::parse(bytes, &self.nonce) {
            Ok(frame) => self.step(Input::Frame(frame)).await,
            Err(error) => {
                tracing::debug!(%error, "frame refused: connection closes");
                let reason = CloseReason::Protocol;
                self.out.push(ServerFrame::Close { reason, retry_after: 0 }.encode());
                self.closing = Some(reason);
            }
        }
    }

    async fn step(&mut self, input: Input) {
        let now = self.gateway.runtime.now();
        let mut outputs = Vec::new();
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

    /// Carries out an output of the session; returns the input that answers it.
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
            Output::SendShared(rows) => {
                if let Some(device) = device {
                    engine.record_delivered(device.installation, rows.rows());
                }
                self.out.push(rows.frame(|rows| ServerFrame::Deliver(rows.to_vec(), false).encode()));
                None
            }
            Output::Authenticate(hello) => {
                let answer = self.authenticate(&hello).await;
                let accepted = match &answer {
                    Input::Admitted { .. } => Some(true),
                    Input::Rejected { reason: CloseReason::Unauthorized, .. } => Some(false),
                    _ => None,
                };
                if let (Some(accepted), Some(report)) = (accepted, self.on_authenticated.take()) {
                    report(accepted);
                }
                Some(answer)
            }
            Output::Renew(renewal) => {
                let renewed = engine.renew(device?, &self.nonce, &renewal).await;
                Some(match renewed {
                    Ok(expires_in) => Input::Renewed { expires_at: self.expiry(expires_in) },
                    Err(reason @ CloseReason::Throttled) => {
                        Input::Rejected { reason, retry_after: THROTTLED_MS }
                    }
                    Err(reason) => Input::Rejected { reason, retry_after: 0 },
                })
            }
            Output::Register(registration) => self.register(*registration).await,
            Output::Read(after, limit) => {
                // Acknowledged rows must not be read again.
                if self.finish_acks().await {
                    return Some(Input::Acked { too_high: true });
                }
                Some(match engine.inbox(device?.installation, after, limit).await {
                    Ok(page) => Input::Page(after, page),
                    Err(_) => Input::PageFailed,
                })
            }
            Output::Publish(publish) => {
                let number = publish.number;
                let admitted = engine.admit_publish(device?, publish).await;
                self.append(number, admitted).await
            }
            Output::Skip(number) => {
                let admitted = engine.admit_skip(device?, number).await;
                self.append(number, admitted).await
            }
            Output::Ack(acks, generation) => {
                // A session sends the next acks after it heard of these, unless it must not wait.
                if self.finish_acks().await {
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
                if matches!(request, Request::Cursors) && self.finish_acks().await {
                    return Some(Input::Acked { too_high: true });
                }
                Some(Input::Response(id, engine.respond(device?, request).await.map(Box::new)))
            }
            Output::Receipt(at, read) => {
                if !read {
                    // Only the end of a session leaves acks that the store does not have yet.
                    self.finish_acks().await;
                }
                engine.receipt(device?, at, read).await;
                None
            }
            Output::GroupReceipt(receipt) => {
                engine.group_receipt(device?, receipt).await;
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
            Output::Close(reason) => {
                self.closing = Some(reason);
                None
            }
        }
    }

    /// Waits until the store has all acks that it was given; `true` if one was above the tail of its inbox.
    async fn finish_acks(&mut self) -> bool {
        match self.acking.take() {
            Some(acking) => acking.await,
            None => false,
        }
    }

    /// Appends an admitted command in its order; waits for the log only if [`MAX_APPENDING`] wait already.
    async fn append(&mut self, number: SendPosition, admitted: Result<Command, Refusal>) -> Option<Input> {
        let refused = |(number, outcome): (SendPosition, Result<(), Refusal>)| {
            outcome.err().map(|refusal| Input::Refused(number.subject(), refusal))
        };
        let command = match admitted {
            Ok(command) => command,
            Err(refusal) => return refused((number, Err(refusal))),
        };
        let engine = self.gateway.engine.clone();
        let mut append: Appending = Box::pin(async move { (number, engine.append(command).await) });
        match poll_fn(|context| Poll::Ready(append.as_mut().poll(context))).await {
            Poll::Ready(appended) => refused(appended),
            Poll::Pending => {
                let appending = self.appending.get_or_insert_default();
                appending.push(append);
                if appending.len() < MAX_APPENDING { None } else { appending.next().await.and_then(refused) }
            }
        }
    }

    /// Authenticates a `Hello` and binds its session.
    async fn authenticate(&mut self, hello: &Hello) -> Input {
        let engine = self.gateway.engine.clone();
        let rejected = |reason| Input::Rejected { reason, retry_after: 0 };
        match self.gateway.handshakes.acquire().await {
            Ok(permit) => self.permit = Some(permit),
            Err(wait) => {
                let retry_after = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
                return Input::Rejected { reason: CloseReason::Throttled, retry_after };
            }
        }
        let greeting = match engine.authenticate(hello).await {
            Ok(greeting) => greeting,
            Err(reason @ CloseReason::Throttled) => {
                return Input::Rejected { reason, retry_after: THROTTLED_MS };
            }
            Err(reason) => return rejected(reason),
        };
        let expires_at = self.expiry(greeting.expires_in);
        match engine.bind(greeting.device).await {
            Ok(handle) => {
                self.handle = Some(handle);
                Input::Admitted { device: greeting.device, welcome: greeting.welcome, expires_at }
            }
            Err(error) if error.kind() == ErrorKind::Denied => rejected(CloseReason::Unauthorized),
            Err(_) => rejected(CloseReason::Draining),
        }
    }

    /// Converts the time until a token expires to the gateway's monotonic clock.
    fn expiry(&self, expires_in: Option<Duration>) -> Option<Instant> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        expires_in.map(|time| self.gateway.runtime.now().after(millis(time)))
    }

    async fn register(&mut self, registration: Registration) -> Option<Input> {
        let outcome = match registration {
            Registration::Link { rendezvous, offer } => {
                match self.gateway.engine.offer(rendezvous, offer).await {
                    Ok(link) => {
                        self.link = Some(link);
                        self.out.push(ServerFrame::LinkOffered.encode());
                        return Some(Input::Linking);
                    }
                    Err(_) => Err(Refusal::Taken),
                }
            }
            account => self.gateway.engine.register(&account).await,
        };
        let frame = match outcome {
            Ok(registered) => ServerFrame::Registered(registered.user, registered.in_force),
            Err(refusal) => {
                // One attempt for a connection, which counts against its address like a refused `Hello`.
                if let Some(report) = self.on_authenticated.take() {
                    report(false);
                }
                self.closing = Some(CloseReason::Unauthorized);
                ServerFrame::Refused(Subject::Opening, refusal)
            }
        };
        self.out.push(frame.encode());
        None
    }
}
