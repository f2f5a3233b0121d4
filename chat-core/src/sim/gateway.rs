//! The server process in the simulator: the real [`Engine`] and [`Session`]s.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::mpsc::error::TryRecvError;

use super::accounts::ACCOUNTS;
use super::store::SimStore;
use crate::backend::{Backends, GatewayId, KeyDirectory, NodeLink, Registry, Router, SessionDelivery};
use crate::delivery::{Engine, EngineSettings, Rates, SessionHandle};
use crate::envelope::{Refusal, Subject};
use crate::error::{ErrorKind, Result};
use crate::memory::{ManualClock, MemoryKeys, MemoryPresence, MemoryPush, OpenRegistration};
use crate::mutant::Mutants;
use crate::session::{Input, Output, Session};
use crate::time::Instant;
use crate::wire::{ClientFrame, Request, Response, ServerFrame};

/// What a life of a server process begins with.
pub(super) struct Start {
    pub gateway: GatewayId,
    pub store: Arc<SimStore>,
    pub keys: Arc<MemoryKeys>,
    pub router: Arc<dyn Router>,
    pub registry: Arc<dyn Registry>,
    pub node_link: Arc<dyn NodeLink>,
    pub clock: Arc<ManualClock>,
    pub session_queue: usize,
    pub mutants: Mutants,
}

/// One life of a server process.
pub(super) struct Gateway {
    pub id: GatewayId,
    engine: Arc<Engine>,
    keys: Arc<MemoryKeys>,
    pub store: Arc<SimStore>,
    shards: Vec<Pin<Box<dyn Future<Output = Result<()>>>>>,
    pub connections: BTreeMap<u64, Connection>,
    mutants: Mutants,
}

#[derive(Debug)]
pub(super) struct Connection {
    session: Session,
    handle: Option<SessionHandle>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("connections", &self.connections).finish_non_exhaustive()
    }
}

/// What a gateway does to a connection.
#[derive(Debug)]
pub(super) enum Effect {
    Send(ServerFrame),
    Close,
    /// The shard has work.
    Work,
}

impl Gateway {
    pub(super) fn start(start: Start) -> Self {
        let Start { gateway, store, keys, router, registry, node_link, clock, session_queue, mutants } =
            start;
        let backends = Backends {
            store: store.clone(),
            keys: keys.clone(),
            router,
            registry,
            node_link,
            presence: Arc::new(MemoryPresence::default()),
            push: Arc::new(MemoryPush::default()),
            authenticator: Arc::new(OpenRegistration),
        };
        let settings = EngineSettings {
            gateway,
            session_queue,
            rates: Rates::OFF,
            mutants,
            ..EngineSettings::default()
        };
        let engine = Arc::new(Engine::new(backends, settings, clock));
        let shards = (0..engine.shards()).map(|shard| Self::run_shard(engine.clone(), shard)).collect();
        Self { id: gateway, engine, keys, store, shards, connections: BTreeMap::new(), mutants }
    }

    /// The cluster's other gateways learn of a new list late; this one learns of it now.
    pub(super) fn invalidate_device_lists(&self) {
        self.engine.invalidate_device_lists();
    }

    fn run_shard(engine: Arc<Engine>, shard: usize) -> Pin<Box<dyn Future<Output = Result<()>>>> {
        Box::pin(async move { engine.run_shard(shard).await })
    }

    /// Lets the shards go on until they wait for the disk or for work; `true` unless all wait for work.
    pub(super) fn work(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let mut more = false;
        for (shard, running) in self.shards.iter_mut().enumerate() {
            if running.as_mut().poll(&mut context).is_ready() {
                *running = Self::run_shard(self.engine.clone(), shard);
                more = true;
            }
        }
        more || self.store.is_busy()
    }

    /// Takes what another gateway sent for sessions of this one; gives the connections that are not here.
    pub(super) fn deliver_local(&self, deliveries: Vec<SessionDelivery>) -> Vec<crate::backend::Route> {
        self.engine.deliver_local(deliveries)
    }

    pub(super) fn accept(&mut self, id: u64, now: Instant) {
        self.connections.insert(id, Connection { session: Session::new(now, self.mutants), handle: None });
    }

    pub(super) fn drop_connection(&mut self, id: u64, now: Instant) {
        let handle = self.connections.get(&id).and_then(|connection| connection.handle.as_ref());
        if handle.is_some_and(|handle| self.engine.is_current(handle)) {
            // Nobody is there any more to be sent anything.
            self.step(id, now, Input::Gone, &mut Vec::new());
        }
        if let Some(Connection { handle: Some(handle), .. }) = self.connections.remove(&id) {
            ready(self.engine.unbind(&handle));
        }
    }

    pub(super) fn deadline(&self, id: u64) -> Option<Instant> {
        self.connections.get(&id).and_then(|c| c.session.deadline())
    }

    pub(super) fn is_live(&self, id: u64) -> bool {
        self.connections.get(&id).is_some_and(|c| c.session.is_live())
    }

    /// Passes on what the engine told a session.
    pub(super) fn pump(&mut self, id: u64, now: Instant, effects: &mut Vec<Effect>) {
        loop {
            let Some(Connection { handle: Some(handle), .. }) = self.connections.get_mut(&id) else {
                return;
            };
            let lagged = handle.take_lagged();
            let events = handle.events.try_recv();
            if lagged {
                self.step(id, now, Input::Lagged, effects);
            }
            match events {
                Ok(events) => self.step(id, now, Input::Events(events), effects),
                Err(TryRecvError::Empty) => return,
                // The word that it was replaced did not fit: as the driver does, end it.
                Err(TryRecvError::Disconnected) => return effects.push(Effect::Close),
            }
        }
    }

    pub(super) fn frame(&mut self, id: u64, now: Instant, frame: ClientFrame, effects: &mut Vec<Effect>) {
        self.step(id, now, Input::Frame(frame), effects);
    }

    /// The driver of a session: carries out what it wants, in order, and tells it what came of it.
    pub(super) fn step(&mut self, id: u64, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        let engine = self.engine.clone();
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let mut outputs = Vec::new();
        connection.session.step(now, input, &mut outputs);
        let mut todo: VecDeque<Output> = outputs.into();
        while let Some(output) = todo.pop_front() {
            let device = connection.session.device();
            let answer = match output {
                Output::Send(frame) => {
                    effects.push(Effect::Send(frame));
                    None
                }
                Output::Authenticate(hello) => {
                    let account = ACCOUNTS.iter().find(|a| a.lists[1].list().user == hello.claims.user);
                    let greeting = account.and_then(|account| {
                        let list = &account.lists[1];
                        let entry = list.list().device(hello.claims.device)?;
                        Some(ready(engine.greet(&hello, list, entry.installation())))
                    });
                    let rejected = |code| Input::Rejected { code, retry_after: 0 };
                    Some(match greeting {
                        Some(Err(_)) => rejected(crate::wire::close::DRAIN),
                        Some(Ok(greeting)) => match ready(engine.bind(greeting.device)) {
                            Ok(handle) => {
                                connection.handle = Some(handle);
                                Input::Admitted(greeting.device, greeting.welcome)
                            }
                            Err(_) => rejected(crate::wire::close::DRAIN),
                        },
                        None => rejected(crate::wire::close::UNAUTHORIZED),
                    })
                }
                Output::Read(after) => {
                    device.map(|device| match ready(engine.inbox(device.installation, after)) {
                        Ok(rows) => Input::Page(after, rows),
                        Err(_) => Input::PageFailed,
                    })
                }
                Output::Publish(publish) => {
                    effects.push(Effect::Work);
                    device.and_then(|device| ready(engine.publish(device, publish))).map(Input::Answer)
                }
                Output::Skip(number) => {
                    effects.push(Effect::Work);
                    device.and_then(|device| ready(engine.skip(device, number))).map(Input::Answer)
                }
                Output::Ack(acks, generation) => device.map(|device| {
                    let outcome = ready(engine.ack(device.installation, generation, &acks));
                    let too_high = outcome.is_err_and(|e| e.kind() == ErrorKind::Invalid);
                    Input::Acked { too_high }
                }),
                Output::Request(id, request) => device.map(|device| {
                    // The simulated devices do not sign: the check of an upload's signature is passed by.
                    let answer = match request {
                        Request::Upload(upload) => ready(self.keys.upload(device.installation, &upload))
                            .map(|prekeys| Response { prekeys, ..Response::default() })
                            .map_err(|_| Refusal::Throttled(1000)),
                        request => ready(engine.respond(device, request)),
                    };
                    Input::Answer(match answer {
                        Ok(answer) => ServerFrame::Response(id, Box::new(answer)),
                        Err(refusal) => ServerFrame::Refused(Subject::Request(id), refusal),
                    })
                }),
                Output::Receipt(at, read) => {
                    if let Some(device) = device {
                        ready(engine.receipt(device, at, read));
                    }
                    None
                }
                Output::Close(_) => {
                    effects.push(Effect::Close);
                    None
                }
                Output::Beat => {
                    if let Some(handle) = &connection.handle {
                        ready(engine.beat(handle));
                    }
                    effects.push(Effect::Send(ServerFrame::HeartbeatReply(engine.now_ms())));
                    None
                }
                Output::Register(_) | Output::Typing(_) | Output::Query(_) => None,
            };
            if let Some(answer) = answer {
                let mut more = Vec::new();
                connection.session.step(now, answer, &mut more);
                todo.extend(more);
            }
        }
    }
}

/// Runs a future of the memory backends, which never wait.
#[allow(clippy::panic)] // a bug of the simulator itself
pub(super) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a memory backend waited"),
    }
}
