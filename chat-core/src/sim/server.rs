//! The server process in the simulator: the shipped [`Engine`] and [`Gateway`], polled by the world.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::store::SimStore;
use crate::backend::{
    Backends, ContactStore, Deliveries, GatewayId, KeyDirectory, NodeLink, Presence, Registry, Route, Router,
    Rules, Transport,
};
use crate::delivery::{Engine, EngineSettings, Rates};
use crate::gateway::{Drain, Gateway};
use crate::memory::{ManualClock, ManualRuntime, MemoryPush, NoReports, OpenRegistration};
use crate::model::error::{Error, ErrorKind, Result};

/// A future that the world polls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Task {
    /// The driver of a connection.
    Connection(u64),
    /// A shard of a server process.
    Shard(usize, usize),
}

/// Tasks that were woken and not polled since. Sorted, because the order of wake-ups may depend on hashed maps.
#[derive(Clone, Debug, Default)]
pub(super) struct WokenTasks(Arc<Mutex<BTreeSet<Task>>>);

impl WokenTasks {
    pub(super) fn take(&self) -> BTreeSet<Task> {
        std::mem::take(&mut *self.0.lock())
    }
}

struct TaskWaker {
    task: Task,
    woken: WokenTasks,
    is_woken: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.is_woken.swap(true, Ordering::Relaxed) {
            self.woken.0.lock().insert(self.task);
        }
    }
}

/// A future, its waker, and whether it was woken.
struct Running<T> {
    future: Pin<Box<dyn Future<Output = T>>>,
    waker: Arc<TaskWaker>,
}

impl<T> Running<T> {
    /// Starts a task: it counts as woken.
    fn new(task: Task, woken: &WokenTasks, future: impl Future<Output = T> + 'static) -> Self {
        let waker = Arc::new(TaskWaker { task, woken: woken.clone(), is_woken: AtomicBool::new(false) });
        waker.clone().wake();
        Self { future: Box::pin(future), waker }
    }

    fn poll(&mut self) -> Poll<T> {
        self.waker.is_woken.store(false, Ordering::Relaxed);
        let waker = Waker::from(self.waker.clone());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// The server's end of a connection, and the frames on both sides of it.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    incoming: VecDeque<Bytes>,
    outgoing: Vec<Bytes>,
    /// The network broke it, or the device closed it.
    broken: bool,
    /// The server closed it.
    closed: bool,
    waker: Option<Waker>,
}

/// A [`Transport`] whose frames the world carries.
#[derive(Debug)]
struct SimTransport(Arc<Mutex<Pipe>>);

#[async_trait]
impl Transport for SimTransport {
    async fn recv(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|context| {
            let mut pipe = self.0.lock();
            if let Some(frame) = pipe.incoming.pop_front() {
                return Poll::Ready(Ok(Some(frame)));
            }
            if pipe.broken {
                return Poll::Ready(Ok(None));
            }
            pipe.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()> {
        let mut pipe = self.0.lock();
        if pipe.broken {
            return Err(Error::new(ErrorKind::Closed, "the pipe broke"));
        }
        pipe.outgoing.extend(frames);
        Ok(())
    }

    async fn close(&mut self, _code: u16) {
        self.0.lock().closed = true;
    }
}

/// The identity and the backends of a server process.
pub(super) struct Start {
    pub gateway: GatewayId,
    pub server: usize,
    pub store: Arc<SimStore>,
    pub keys: Arc<dyn KeyDirectory>,
    pub contacts: Arc<dyn ContactStore>,
    pub router: Arc<dyn Router>,
    pub registry: Arc<dyn Registry>,
    pub node_link: Arc<dyn NodeLink>,
    pub presence: Arc<dyn Presence>,
    pub clock: Arc<ManualClock>,
    pub runtime: Arc<ManualRuntime>,
    pub woken: WokenTasks,
    pub session_queue: usize,
    pub rules: Rules,
    pub feed_devices: u32,
}

/// One run of a server process.
pub(super) struct Server {
    pub id: GatewayId,
    pub store: Arc<SimStore>,
    server: usize,
    engine: Arc<Engine>,
    gateway: Gateway,
    drain: Drain,
    pub is_draining: bool,
    woken: WokenTasks,
    shards: Vec<Running<Result<()>>>,
    connections: BTreeMap<u64, (Running<()>, Arc<Mutex<Pipe>>)>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Outcome of a poll of a connection.
#[derive(Debug, Default)]
pub(super) struct Polled {
    pub frames: Vec<Bytes>,
    /// The server closed the connection.
    pub closed: bool,
}

impl Server {
    pub(super) fn start(start: Start) -> Self {
        let backends = Backends {
            store: start.store.clone(),
            keys: start.keys,
            contacts: start.contacts,
            router: start.router,
            registry: start.registry,
            node_link: start.node_link,
            presence: start.presence,
            push: Arc::new(MemoryPush::default()),
            reports: Arc::new(NoReports),
            authenticator: Arc::new(OpenRegistration),
        };
        let settings = EngineSettings {
            gateway: start.gateway,
            session_queue: start.session_queue,
            rates: Rates::OFF,
            rules: start.rules,
            feed_devices: start.feed_devices,
            ..EngineSettings::default()
        };
        let engine = Arc::new(Engine::new(backends, settings, start.clock));
        // One handshake at a time, so that devices wait for each other.
        let (gateway, drain) = Gateway::new(engine.clone(), start.runtime, 1);
        let mut server = Self {
            id: start.gateway,
            store: start.store,
            server: start.server,
            engine,
            gateway,
            drain,
            is_draining: false,
            woken: start.woken,
            shards: Vec::new(),
            connections: BTreeMap::new(),
        };
        server.shards = (0..server.engine.shards()).map(|shard| server.run_shard(shard)).collect();
        server
    }

    fn run_shard(&self, shard: usize) -> Running<Result<()>> {
        let engine = self.engine.clone();
        let task = Task::Shard(self.server, shard);
        Running::new(task, &self.woken, async move { engine.run_shard(shard).await })
    }

    /// Polls a shard. A shard that failed starts again, as a supervisor restarts it.
    pub(super) fn poll_shard(&mut self, shard: usize) {
        if self.shards[shard].poll().is_ready() {
            self.shards[shard] = self.run_shard(shard);
        }
    }

    pub(super) fn accept(&mut self, id: u64) {
        let pipe = Arc::new(Mutex::new(Pipe::default()));
        let (gateway, transport) = (self.gateway.clone(), Box::new(SimTransport(pipe.clone())));
        let driver = async move { gateway.serve(transport, Box::new(|_| {})).await };
        let running = Running::new(Task::Connection(id), &self.woken, driver);
        self.connections.insert(id, (running, pipe));
    }

    pub(super) fn poll_connection(&mut self, id: u64) -> Polled {
        let Some((running, pipe)) = self.connections.get_mut(&id) else { return Polled::default() };
        let ended = running.poll().is_ready();
        let mut pipe = pipe.lock();
        let polled = Polled { frames: std::mem::take(&mut pipe.outgoing), closed: pipe.closed || ended };
        drop(pipe);
        if ended {
            self.connections.remove(&id);
        }
        polled
    }

    /// A frame of the device arrives.
    pub(super) fn receive(&self, id: u64, frame: Bytes) {
        if let Some((_, pipe)) = self.connections.get(&id) {
            let mut pipe = pipe.lock();
            pipe.incoming.push_back(frame);
            pipe.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    /// The connection broke. Its driver learns of it when it is polled.
    pub(super) fn break_connection(&self, id: u64) {
        if let Some((_, pipe)) = self.connections.get(&id) {
            let mut pipe = pipe.lock();
            pipe.broken = true;
            pipe.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    pub(super) fn serves(&self, id: u64) -> bool {
        self.connections.contains_key(&id)
    }

    pub(super) fn drain(&mut self, spread_ms: u32) {
        self.is_draining = true;
        self.drain.begin(spread_ms);
    }

    /// The other gateways of a cluster learn of a new list late; this one learns of it now.
    pub(super) fn invalidate_caches(&self) {
        self.engine.invalidate_caches();
    }

    /// Delivers what another gateway sent for sessions of this one; returns the connections that are not here.
    pub(super) fn deliver_local(&self, deliveries: Deliveries) -> Vec<Route> {
        self.engine.deliver_local(deliveries)
    }
}

/// Runs a future of the memory backends. They never wait.
#[allow(clippy::panic)] // a bug of the simulator itself
pub(super) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a memory backend must not wait"),
    }
}
