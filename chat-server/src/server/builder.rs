use std::net::{IpAddr, SocketAddr};
#[cfg(feature = "embedded")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chat_core::backend::{Authenticator, Backends, GatewayId};
use chat_core::delivery::{EngineSettings, Rates};
use chat_core::memory::{MemoryRouter, OpenRegistration};
use chat_core::{WallClock, memory};
#[cfg(feature = "embedded")]
use chat_store::EmbeddedStore;

use super::Server;
use crate::clock::SystemClock;
use crate::error::ServerError;
use crate::tls::TlsFiles;

/// Where messages and accounts are kept.
#[derive(Clone, Debug)]
enum Storage {
    /// In memory: lost with the process.
    Memory,
    #[cfg(feature = "embedded")]
    Directory(PathBuf),
    Backends(Backends),
}

/// How devices prove which user they belong to.
#[derive(Clone, Debug)]
enum Login {
    Tokens(Arc<dyn Authenticator>),
    /// No token: any name that is free can be registered.
    Open,
    /// The authenticator of the backends.
    Backends,
}

/// Configures and starts a [`Server`].
///
/// Storage and login have no default: a server that loses its data with the process, or that lets anyone
/// register, has to be asked for by name.
#[derive(Clone, Debug)]
#[must_use]
pub struct ServerBuilder {
    storage: Option<Storage>,
    login: Option<Login>,
    pub(crate) listen: Option<String>,
    pub(crate) admin: Option<String>,
    pub(crate) path: String,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) origins: Vec<String>,
    pub(crate) proxies: Vec<IpAddr>,
    pub(crate) max_connections: usize,
    pub(crate) accept_rate: u32,
    pub(crate) drain: Duration,
    pub(crate) retention: Duration,
    pub(crate) runs_shards: bool,
    pub(crate) clock: Arc<dyn WallClock>,
    pub(crate) engine: EngineSettings,
    shards: usize,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self {
            storage: None,
            login: None,
            listen: None,
            admin: None,
            path: "/v1".into(),
            tls: None,
            origins: Vec::new(),
            proxies: Vec::new(),
            max_connections: 20_000,
            accept_rate: 500,
            drain: Duration::from_secs(60),
            retention: Duration::from_secs(30 * 24 * 3600),
            runs_shards: true,
            clock: Arc::new(SystemClock),
            engine: EngineSettings::default(),
            shards: 8,
        }
    }
}

/// The backends of a server that is about to start.
pub(crate) struct Opened {
    pub backends: Backends,
    #[cfg(feature = "embedded")]
    pub embedded: Option<Arc<EmbeddedStore>>,
}

impl ServerBuilder {
    /// Keeps messages and accounts in an embedded store in this directory, which one process may open at a time.
    #[cfg(feature = "embedded")]
    pub fn data_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.storage = Some(Storage::Directory(path.as_ref().to_owned()));
        self
    }

    /// Keeps messages and accounts in memory. They are lost when the process ends: for tests.
    pub fn in_memory(mut self) -> Self {
        self.storage = Some(Storage::Memory);
        self
    }

    /// Runs on these backends. Store, router and registry must be shared by all nodes or by none. A login that is
    /// set on this builder replaces the authenticator of the backends.
    pub fn backends(mut self, backends: Backends) -> Self {
        self.storage = Some(Storage::Backends(backends));
        self.login = self.login.or(Some(Login::Backends));
        self
    }

    /// Accepts the devices whose tokens this authenticator accepts.
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.login = Some(Login::Tokens(Arc::new(authenticator)));
        self
    }

    /// Lets any device register any free name without a token. Only for servers that listen on loopback.
    pub fn open_registration(mut self) -> Self {
        self.login = Some(Login::Open);
        self
    }

    /// Listens for WebSocket connections on this address (`host:port`). Without it the server serves only
    /// connections of [`Server::accept`] and [`Server::axum`].
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// Serves the [admin routes](Server::admin_router) on this address. They need no login: use an address that
    /// only operators reach.
    pub fn admin(mut self, address: impl Into<String>) -> Self {
        self.admin = Some(address.into());
        self
    }

    /// Path of the WebSocket upgrade, `/v1` by default.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Serves TLS 1.3 with this certificate chain and key, both PEM files.
    pub fn tls(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls = Some(TlsFiles { cert: cert.into(), key: key.into() });
        self
    }

    /// Authorities (`host:port`) under which clients reach the server. Required outside of loopback: a device signs
    /// the authority it dials, so that another server cannot relay the signature.
    pub fn authorities(mut self, authorities: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.engine.authorities = authorities.into_iter().map(Into::into).collect();
        self
    }

    /// Origins of web pages that may connect, as browsers send them. None by default.
    pub fn origins(mut self, origins: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.origins = origins.into_iter().map(Into::into).collect();
        self
    }

    /// Addresses of proxies. The per-IP limits do not apply to them.
    pub fn proxies(mut self, proxies: impl IntoIterator<Item = IpAddr>) -> Self {
        self.proxies = proxies.into_iter().collect();
        self
    }

    /// Maximum number of connections, 20,000 by default. Further ones are answered with status 503.
    pub fn max_connections(mut self, max: usize) -> Self {
        self.max_connections = max;
        self
    }

    /// New connections per second, 500 by default. Connections that would wait longer than 5 s are answered with
    /// status 503.
    pub fn accept_rate(mut self, per_second: u32) -> Self {
        self.accept_rate = per_second;
        self
    }

    /// Rate limits of users and devices.
    pub fn rates(mut self, rates: Rates) -> Self {
        self.engine.rates = rates;
        self
    }

    /// Time after which an unread message is replaced by an explicit gap, 30 days by default.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Time over which a drain spreads the reconnects of devices, 60 s by default.
    pub fn drain(mut self, spread: Duration) -> Self {
        self.drain = spread;
        self
    }

    /// Shards of a server without shared backends, 8 by default.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards.max(1);
        self
    }

    /// Whether this node applies records of shards, which is the default. A cluster may have nodes that only hold
    /// connections.
    pub fn runs_shards(mut self, runs_shards: bool) -> Self {
        self.runs_shards = runs_shards;
        self
    }

    /// Id of this node in the registry; unique among running nodes.
    pub fn gateway_id(mut self, id: GatewayId) -> Self {
        self.engine.gateway = id;
        self
    }

    /// Time for which a cached device list counts as the newest. Unlimited by default, which is right only if no
    /// other node changes lists.
    pub fn device_list_ttl(mut self, ttl: Duration) -> Self {
        self.engine.lists_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// The wall clock, [`SystemClock`] by default. It sets rate limits, retention and the time of messages.
    pub fn clock(mut self, clock: Arc<dyn WallClock>) -> Self {
        self.clock = clock;
        self
    }

    /// Opens the backends, binds the listeners and starts all tasks. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// No storage or login was chosen, an unsafe combination (open registration outside of loopback, no authorities
    /// on a public address), a directory that another process has open, an address in use, an unusable certificate.
    pub async fn start(self) -> Result<Server, ServerError> {
        let opened = self.open()?;
        Server::start(self, opened).await
    }

    /// [Starts](Self::start) the server and serves until SIGINT or SIGTERM, then drains.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`Server::run_until`].
    pub async fn serve(self) -> Result<(), ServerError> {
        self.start().await?.run_until(super::stop_signal()).await
    }

    fn open(&self) -> Result<Opened, ServerError> {
        let storage = self.storage.clone().ok_or_else(|| {
            ServerError::new(
                "no storage: call `data_dir(path)`, `backends(backends)`, or `in_memory()` for tests",
            )
        })?;
        let login = self.login.clone().ok_or_else(|| {
            ServerError::new("no login: call `authenticator(..)`, or `open_registration()` on loopback")
        })?;
        self.check(&login)?;
        let mut opened = match storage {
            Storage::Memory => Opened {
                backends: self.alone(Backends::memory()),
                #[cfg(feature = "embedded")]
                embedded: None,
            },
            #[cfg(feature = "embedded")]
            Storage::Directory(path) => {
                let failed = |error| {
                    ServerError::new(format!(
                        "failed to open {}: {}",
                        path.display(),
                        ServerError::from(error)
                    ))
                };
                let store = Arc::new(EmbeddedStore::open(&path).map_err(failed)?);
                let backends = Backends { store: store.clone(), keys: store.clone(), ..Backends::memory() };
                Opened { backends: self.alone(backends), embedded: Some(store) }
            }
            Storage::Backends(backends) => Opened {
                backends,
                #[cfg(feature = "embedded")]
                embedded: None,
            },
        };
        match login {
            Login::Tokens(authenticator) => opened.backends.authenticator = authenticator,
            Login::Open => opened.backends.authenticator = Arc::new(OpenRegistration),
            Login::Backends => {}
        }
        Ok(opened)
    }

    /// The router and the sinks of a process that shares nothing.
    fn alone(&self, backends: Backends) -> Backends {
        Backends {
            router: Arc::new(MemoryRouter::new(self.shards, self.clock.clone())),
            push: Arc::new(crate::metered::MeteredPush(memory::MemoryPush::default())),
            ..backends
        }
    }

    /// Refuses what is unsafe.
    fn check(&self, login: &Login) -> Result<(), ServerError> {
        let Some(listen) = &self.listen else { return Ok(()) };
        let host = listen.rsplit_once(':').map_or(listen.as_str(), |(host, _)| host);
        let is_loopback = host == "localhost"
            || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
            || listen.parse().is_ok_and(|address: SocketAddr| address.ip().is_loopback());
        if is_loopback {
            return Ok(());
        }
        if matches!(login, Login::Open) {
            return Err(ServerError::new(
                "open registration is on and the server listens to other machines: use an authenticator, or listen \
                 on 127.0.0.1",
            ));
        }
        if self.engine.authorities.is_empty() {
            return Err(ServerError::new(
                "no authorities: name the host:port under which clients reach this server, so that no other server \
                 can relay their signatures",
            ));
        }
        Ok(())
    }
}
