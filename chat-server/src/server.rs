mod builder;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chat_core::Engine;
use chat_core::backend::Transport;
use chat_core::delivery::EngineSettings;
use chat_core::gateway::{Drain, Gateway};
#[cfg(feature = "embedded")]
use chat_store::EmbeddedStore;
use chat_transport::accept::Upgrade;
use chat_transport::runtime::TokioRuntime;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use self::builder::Opened;
pub use self::builder::ServerBuilder;
use crate::error::ServerError;
use crate::health::Health;
use crate::ip_limiter::IpLimiter;
use crate::listener::Listener;
use crate::shard_supervisor::ShardSupervisor;
use crate::{admin, feed_wakes, metered, retention, revocation};

/// Longest time that a drain waits for the end of sessions.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(65);
/// Longest time that a drain waits for the release of shards.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A running chat server: engine, supervised shards, listeners, retention sweep.
///
/// Dropping it stops all tasks at once; [`shutdown`](Self::shutdown) drains first. Acknowledged messages are
/// durable either way.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), chat_server::ServerError> {
/// let server = chat_server::Server::builder()
///     .in_memory()
///     .open_registration()
///     .listen("127.0.0.1:0")
///     .start()
///     .await?;
/// println!("clients connect to {}", server.url().unwrap());
/// assert!(server.health().is_ready());
/// server.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Server {
    engine: Arc<Engine>,
    gateway: Gateway,
    drain: Drain,
    spread: Duration,
    health: Health,
    connections: Arc<Semaphore>,
    max_connections: u32,
    upgrade: Arc<Upgrade>,
    address: Option<SocketAddr>,
    is_tls: bool,
    metrics: Option<admin::Metrics>,
    tasks: JoinSet<()>,
    #[cfg(feature = "embedded")]
    embedded: Option<Arc<EmbeddedStore>>,
}

impl Server {
    /// Returns a builder with default settings.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    pub(crate) async fn start(builder: ServerBuilder, opened: Opened) -> Result<Self, ServerError> {
        let router = opened.backends.router.clone();
        let retention_ms = u64::try_from(builder.retention.as_millis()).unwrap_or(u64::MAX);
        let settings = EngineSettings { retention_ms, ..builder.engine.clone() };
        let engine = Engine::new(metered::metered(opened.backends), settings, builder.clock.clone());
        let engine = Arc::new(engine);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let handshakes = u32::try_from(cores).unwrap_or(u32::MAX);
        let (gateway, drain) = Gateway::new(engine.clone(), Arc::new(TokioRuntime::new()), handshakes);
        let max_connections = builder.max_connections.min(Semaphore::MAX_PERMITS);
        let mut server = Self {
            engine,
            gateway,
            drain,
            spread: builder.drain,
            health: Health::default(),
            connections: Arc::new(Semaphore::new(max_connections)),
            max_connections: u32::try_from(max_connections).unwrap_or(u32::MAX),
            upgrade: Arc::new(Upgrade { path: builder.path.clone(), origins: builder.origins.clone() }),
            address: None,
            is_tls: builder.tls.is_some(),
            metrics: None,
            tasks: JoinSet::new(),
            #[cfg(feature = "embedded")]
            embedded: opened.embedded,
        };
        revocation::read_first(&server.engine).await?;
        server.tasks.spawn(revocation::read_forever(server.engine.clone()));
        if builder.runs_shards {
            for shard in 0..server.engine.shards() {
                let (engine, router, health) = (server.engine.clone(), router.clone(), server.health.clone());
                server.tasks.spawn(ShardSupervisor { engine, router, health, shard }.run());
            }
            server.tasks.spawn(feed_wakes::wake_forever(server.engine.clone()));
            server.tasks.spawn(retention::sweep_messages_forever(server.engine.clone()));
            server.tasks.spawn(retention::sweep_forever(
                server.engine.clone(),
                builder.retention,
                builder.history_retention,
            ));
        }
        if let Some(address) = &builder.listen {
            let listener = bind(address).await?;
            server.address = listener.local_addr().ok();
            let mut tls = None;
            if let Some(files) = &builder.tls {
                let (newest, receiver) = watch::channel(files.acceptor()?);
                server.tasks.spawn(files.clone().reload_forever(newest));
                tls = Some(receiver);
            }
            let listener = Listener {
                listener,
                tls,
                upgrade: server.upgrade.clone(),
                ip_limiter: Arc::new(IpLimiter::new(builder.proxies.clone())),
                accept_rate: builder.accept_rate,
                connections: server.connections.clone(),
                gateway: server.gateway.clone(),
            };
            server.tasks.spawn(listener.run());
        }
        if let Some(address) = &builder.admin {
            server.metrics = Some(admin::Metrics::install()?);
            let listener = bind(address).await?;
            let routes = server.admin_router();
            server.tasks.spawn(async move {
                if let Err(error) = axum::serve(listener, routes).await {
                    tracing::error!(%error, "the admin listener ended: no metrics until a restart");
                }
            });
        }
        Ok(server)
    }

    /// Returns the engine.
    pub const fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Returns the health of the server. It stays current.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Returns the URL that clients dial, if the server has a listener.
    pub fn url(&self) -> Option<String> {
        let scheme = if self.is_tls { "wss" } else { "ws" };
        self.address.map(|address| format!("{scheme}://{address}{}", self.upgrade.path))
    }

    /// Returns routes for operators: `/healthz`, `/readyz`, `/explain/{message id}`, `POST /revoke/{handle}`,
    /// `POST /delete/{handle}` and, on a server with an admin address, `/metrics`. They need no login: mount them only
    /// where operators alone reach them.
    pub fn admin_router(&self) -> axum::Router {
        admin::router(self.engine.clone(), self.health.clone(), self.metrics.clone())
    }

    /// Returns a route that upgrades requests for `path` to chat connections, for an axum application. The
    /// authenticator of the server decides which users log in.
    pub fn axum(&self, path: &str) -> axum::Router {
        crate::axum::router(
            path,
            self.gateway.clone(),
            self.upgrade.origins.clone(),
            self.connections.clone(),
        )
    }

    /// Serves a connection over any transport until it ends, for example over an in-memory one in a test.
    pub async fn accept(&self, transport: impl Transport) {
        self.acceptor()(Box::new(transport)).await;
    }

    /// Returns a function that serves connections, for tasks that do not hold the server.
    pub fn acceptor(
        &self,
    ) -> impl Fn(Box<dyn Transport>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    + Clone
    + Send
    + Sync
    + 'static {
        let gateway = self.gateway.clone();
        move |transport| {
            let gateway = gateway.clone();
            Box::pin(async move { gateway.serve(transport, Box::new(|_| {})).await })
        }
    }

    /// Serves until `stop` is ready, then [drains](Self::shutdown).
    ///
    /// # Errors
    /// The disk of the embedded store failed. Nothing is acknowledged any more: end the process, so that a restart
    /// can recover.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        tokio::select! {
            () = stop => {}
            () = self.disk_failed() => {
                return Err(ServerError::new(
                    "the disk failed: nothing is acknowledged any more; restart the process to recover",
                ));
            }
        }
        self.shutdown().await;
        Ok(())
    }

    #[cfg(feature = "embedded")]
    async fn disk_failed(&self) {
        match &self.embedded {
            Some(store) => store.disk_failed().await,
            None => std::future::pending().await,
        }
    }

    #[cfg(not(feature = "embedded"))]
    async fn disk_failed(&self) {
        std::future::pending().await
    }

    /// Drains the server and stops it: sessions close, and their devices are asked to reconnect after random delays;
    /// messages that were accepted are applied; shards are released. Takes at most 75 s.
    pub async fn shutdown(mut self) {
        self.health.drain();
        tracing::info!("draining: sessions close");
        self.drain.begin(u32::try_from(self.spread.as_millis()).unwrap_or(u32::MAX));
        let sessions = self.connections.acquire_many(self.max_connections);
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, sessions).await;
        // Sessions end first, so that what they sent is still applied here.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.engine.close()).await;
        self.tasks.shutdown().await;
        tracing::info!("drained");
    }
}

async fn bind(address: &str) -> Result<TcpListener, ServerError> {
    let failed = |error| ServerError::new(format!("failed to listen on {address}: {error}"));
    TcpListener::bind(address).await.map_err(failed)
}
