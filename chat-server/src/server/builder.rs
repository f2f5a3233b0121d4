use std::net::{IpAddr, SocketAddr};
#[cfg(feature = "embedded")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chat_core::backend::{Authenticated, Authenticator, Backends, GatewayId, Rules};
use chat_core::delivery::{EngineSettings, Rates};
use chat_core::memory::{MemoryRouter, OpenRegistration};
use chat_core::{WallClock, memory};
#[cfg(feature = "embedded")]
use chat_store::EmbeddedStore;

use super::Server;
use crate::clock::SystemClock;
use crate::error::ServerError;
use crate::function_authenticator::FunctionAuthenticator;
use crate::optional_token::OptionalToken;
use crate::report_log::ReportLog;
use crate::tls::TlsFiles;

/// Maximum retention: an inbox is not read further back.
const MAX_RETENTION: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where messages and accounts are kept.
#[derive(Clone, Debug)]
enum Storage {
    /// In memory: lost with the process.
    Memory,
    #[cfg(feature = "embedded")]
    Directory(PathBuf),
    Backends(Backends),
}

/// Configures and starts a [`Server`].
///
/// Storage and login have no default: a server that loses its data with the process, or that lets anyone
/// register, has to be asked for by name.
#[derive(Clone, Debug)]
#[must_use]
pub struct ServerBuilder {
    storage: Option<Storage>,
    authenticator: Option<Arc<dyn Authenticator>>,
    /// A device without a token can register any name that is free.
    is_open: bool,
    allows_plaintext: bool,
    allows_public_admin: bool,
    pub(crate) listen: Option<String>,
    pub(crate) admin: Option<String>,
    pub(crate) path: String,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) origins: Vec<String>,
    reports: Option<PathBuf>,
    pub(crate) proxies: Vec<IpAddr>,
    pub(crate) max_connections: usize,
    pub(crate) accept_rate: u32,
    pub(crate) drain: Duration,
    pub(crate) retention: Duration,
    pub(crate) history_retention: Option<Duration>,
    pub(crate) runs_shards: bool,
    pub(crate) clock: Arc<dyn WallClock>,
    pub(crate) engine: EngineSettings,
    shards: usize,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self {
            storage: None,
            authenticator: None,
            is_open: false,
            allows_plaintext: false,
            allows_public_admin: false,
            listen: None,
            admin: None,
            path: "/v1".into(),
            tls: None,
            origins: Vec::new(),
            reports: None,
            proxies: Vec::new(),
            max_connections: 20_000,
            accept_rate: 500,
            drain: Duration::from_secs(60),
            retention: Duration::from_secs(30 * 24 * 3600),
            history_retention: None,
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
        self
    }

    /// Accepts the devices whose tokens this authenticator accepts. With
    /// [`open_registration`](Self::open_registration), an empty token is accepted too.
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Accepts the devices whose tokens this function accepts, for logins that are checked without waiting. A login in
    /// a database is an [`authenticator`](Self::authenticator).
    ///
    /// ```
    /// use chat_server::{Authenticated, Error, ErrorKind, Handle, Server};
    /// let builder = Server::builder().in_memory().authenticate_with(|token| match token {
    ///     "secret" => Ok(Authenticated::user(Handle::new("alice")?)),
    ///     _ => Err(Error::new(ErrorKind::Denied, "log in first")),
    /// });
    /// ```
    pub fn authenticate_with(
        self,
        authenticate: impl Fn(&str) -> chat_core::Result<Authenticated> + Send + Sync + 'static,
    ) -> Self {
        self.authenticator(FunctionAuthenticator(authenticate))
    }

    /// Lets any device register any free name without a token. Only for servers that listen on loopback. Without an
    /// [`authenticator`](Self::authenticator), no token is checked.
    pub fn open_registration(mut self) -> Self {
        self.is_open = true;
        self
    }

    /// Listens for WebSocket connections on this address (`host:port`). Without it the server serves only
    /// connections of [`Server::accept`] and [`Server::axum`].
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen = Some(address.into());
        self
    }

    /// Lets clients of other machines connect without TLS. Only behind a proxy that terminates TLS: tokens are readable on
    /// the way.
    pub fn allow_plaintext(mut self, is_allowed: bool) -> Self {
        self.allows_plaintext = is_allowed;
        self
    }

    /// Lets the admin address be reachable from other machines. It has no authentication: a firewall must protect it.
    pub fn allow_public_admin(mut self, is_allowed: bool) -> Self {
        self.allows_public_admin = is_allowed;
        self
    }

    /// Serves the [admin routes](Server::admin_router) on this address. They need no login: use an address that
    /// only operators reach.
    pub fn admin(mut self, address: impl Into<String>) -> Self {
        self.admin = Some(address.into());
        self
    }

    /// Writes reports of abusive messages to this file; see [`ReportLog`]. With [`data_dir`](Self::data_dir) they are
    /// written to `reports.jsonl` in that directory by default, otherwise to the sink of the backends.
    pub fn reports(mut self, path: impl Into<PathBuf>) -> Self {
        self.reports = Some(path.into());
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

    /// Addresses of trusted proxies. A connection of one counts for the address in its `X-Forwarded-For`: the last one that is
    /// no proxy. Without that header it counts for no address, so that one client can open any number of connections.
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

    /// Time after which an unread message is replaced by an explicit gap: 30 days by default, 365 days at most.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Time after which the content of a message is erased from history: never by default. At least the
    /// [retention](Self::retention) of inboxes.
    pub fn history_retention(mut self, retention: Duration) -> Self {
        self.history_retention = Some(retention);
        self
    }

    /// The latest rules that a message may need, [`Rules::CHANNELS`] by default; [`Rules::GROUPS`] disables channels, and [`Rules::OPTIONS`] groups too. While nodes
    /// of the release before run, set those of that release: messages that need later ones are refused.
    pub fn rules(mut self, rules: Rules) -> Self {
        self.engine.rules = rules;
        self
    }

    /// Sets the number of devices above which a group becomes a feed; 0: no group becomes one. The default is 64. All nodes
    /// should have the same number.
    pub fn feed_devices(mut self, devices: u32) -> Self {
        self.engine.feed_devices = devices;
        self
    }

    /// Time over which a drain spreads the reconnects of devices, 60 s by default.
    pub fn drain(mut self, spread: Duration) -> Self {
        self.drain = spread;
        self
    }

    /// Shards of a server without shared backends, 8 by default.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
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
    /// No storage or login was chosen, a setting that [`check`](Self::check) rejects, a directory that another process
    /// has open, an address in use, an unusable certificate.
    pub async fn start(self) -> Result<Server, ServerError> {
        let opened = self.open()?;
        Server::start(self, opened).await
    }

    /// [Starts](Self::start) the server and serves until SIGINT or SIGTERM, then drains.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`Server::run_until`].
    pub async fn serve(self) -> Result<(), ServerError> {
        self.start().await?.run_until(crate::stop_signal()).await
    }

    fn open(&self) -> Result<Opened, ServerError> {
        let storage = self.storage.clone().ok_or_else(|| {
            ServerError::new(
                "no storage: call `data_dir(path)`, `backends(backends)`, or `in_memory()` for tests",
            )
        })?;
        let login = self.login()?;
        self.check()?;
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
                let backends = Backends {
                    store: store.clone(),
                    keys: store.clone(),
                    contacts: store.clone(),
                    presence: store.clone(),
                    reports: Arc::new(ReportLog::new(path.join("reports.jsonl"))),
                    ..Backends::memory()
                };
                Opened { backends: self.alone(backends), embedded: Some(store) }
            }
            Storage::Backends(backends) => Opened {
                backends,
                #[cfg(feature = "embedded")]
                embedded: None,
            },
        };
        if let Some(path) = &self.reports {
            opened.backends.reports = Arc::new(ReportLog::new(path));
        }
        if let Some(login) = login {
            opened.backends.authenticator = login;
        }
        Ok(opened)
    }

    /// Returns the authenticator of the server, or `None` for that of the backends.
    pub(crate) fn login(&self) -> Result<Option<Arc<dyn Authenticator>>, ServerError> {
        match (&self.authenticator, self.is_open) {
            (Some(authenticator), false) => Ok(Some(authenticator.clone())),
            (Some(authenticator), true) => Ok(Some(Arc::new(OptionalToken(authenticator.clone())))),
            (None, true) => Ok(Some(Arc::new(OpenRegistration))),
            (None, false) if matches!(self.storage, Some(Storage::Backends(_))) => Ok(None),
            (None, false) => Err(ServerError::new(
                "no login: call `authenticator(..)`, or `open_registration()` on loopback",
            )),
        }
    }

    /// The router and the sinks of a process that shares nothing.
    fn alone(&self, backends: Backends) -> Backends {
        Backends {
            router: Arc::new(MemoryRouter::new(self.shards, self.clock.clone())),
            push: Arc::new(crate::metered::MeteredPush(memory::MemoryPush::default())),
            ..backends
        }
    }

    /// Checks the settings without opening anything. [`start`](Self::start) checks them too.
    ///
    /// # Errors
    /// An unsafe combination: outside of loopback open registration, no authorities, clients without TLS unless
    /// [allowed](Self::allow_plaintext), or the admin listener unless [allowed](Self::allow_public_admin). A limit of 0
    /// connections or shards. A retention of 0, or above 365 days. A retention of history below that of
    /// inboxes. Rules that this release does not have.
    pub fn check(&self) -> Result<(), ServerError> {
        if self.retention.is_zero() || self.retention > MAX_RETENTION {
            return Err(ServerError::new("the retention must be above 0 and at most 365 days"));
        }
        if !(Rules::BASIC..=Rules::CURRENT).contains(&self.engine.rules) {
            return Err(ServerError::new("this release has rules 1 to 3"));
        }
        if self.history_retention.is_some_and(|history| history < self.retention) {
            return Err(ServerError::new("the retention of history must be at least that of inboxes"));
        }
        if self.shards == 0 || self.max_connections == 0 || self.accept_rate == 0 {
            return Err(ServerError::new("shards, max_connections and accept_rate must be at least 1"));
        }
        if self.admin.as_ref().is_some_and(|admin| !is_loopback(admin)) && !self.allows_public_admin {
            return Err(ServerError::new(
                "the admin listener has no authentication and listens to other machines: listen on 127.0.0.1, or set \
                 allow_public_admin where a firewall protects it",
            ));
        }
        let Some(listen) = &self.listen else { return Ok(()) };
        if is_loopback(listen) {
            return Ok(());
        }
        if self.is_open {
            return Err(ServerError::new(
                "open registration is on and the server listens to other machines: turn it off, or listen on 127.0.0.1",
            ));
        }
        if self.tls.is_none() && !self.allows_plaintext {
            return Err(ServerError::new(
                "clients connect from other machines without TLS: set a certificate, listen on 127.0.0.1, or set \
                 allow_plaintext behind a proxy that terminates TLS",
            ));
        }
        if self.engine.authorities.is_empty() {
            return Err(ServerError::new(
                "authorities is empty: set the host:port under which clients reach this server, so that no other \
                 server can relay their signatures",
            ));
        }
        Ok(())
    }
}

/// Whether only this machine can connect to an address.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        || address.parse().is_ok_and(|address: SocketAddr| address.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use chat_core::Handle;
    use chat_core::backend::Authenticated;

    use super::*;

    /// Accepts the token `alice`.
    #[derive(Debug)]
    struct OneToken;

    #[async_trait::async_trait]
    impl Authenticator for OneToken {
        async fn authenticate(&self, token: &str) -> chat_core::Result<Authenticated> {
            match token {
                "alice" => Ok(Authenticated::user(Handle::new(token)?)),
                _ => Err(chat_core::Error::new(chat_core::ErrorKind::Denied, "another token")),
            }
        }
    }

    #[tokio::test]
    async fn login_is_chosen_by_authenticator_and_open_registration() {
        let accepts = async |builder: ServerBuilder| {
            let login = builder.login().unwrap().unwrap();
            let mut accepted = Vec::new();
            for token in ["", "alice", "other"] {
                accepted.push(login.authenticate(token).await.ok().map(|named| named.handle.is_some()));
            }
            accepted
        };
        let builder = || Server::builder().in_memory();
        assert!(builder().login().is_err(), "there is no default");
        assert_eq!(accepts(builder().open_registration()).await, [Some(false); 3]);
        let tokens = builder().authenticator(OneToken);
        assert_eq!(accepts(tokens.clone()).await, [None, Some(true), None]);
        assert_eq!(accepts(tokens.open_registration()).await, [Some(false), Some(true), None]);
        let backends = builder().backends(Backends::memory());
        assert!(backends.login().unwrap().is_none(), "the authenticator of the backends");
        assert_eq!(accepts(backends.authenticator(OneToken)).await, [None, Some(true), None]);
    }

    #[test]
    fn check_rejects_plaintext_and_admin_outside_of_loopback() {
        let public = Server::builder().authorities(["chat.example:443"]).listen("[::]:7777");
        assert!(public.check().unwrap_err().to_string().contains("allow_plaintext"));
        assert_eq!(public.clone().allow_plaintext(true).check(), Ok(()));
        let secure = public.tls("cert.pem", "key.pem");
        assert_eq!(secure.check(), Ok(()));
        let admin = secure.admin("10.0.0.1:7778");
        assert!(admin.check().unwrap_err().to_string().contains("allow_public_admin"));
        assert_eq!(admin.clone().allow_public_admin(true).check(), Ok(()));
        assert_eq!(admin.admin("[::1]:7778").check(), Ok(()));
    }

    #[test]
    fn check_rejects_open_registration_and_no_authorities_outside_of_loopback() {
        let public = Server::builder().allow_plaintext(true).listen("0.0.0.0:7777");
        assert!(public.check().is_err(), "no authorities");
        let named = public.authorities(["chat.example:443"]);
        assert_eq!(named.check(), Ok(()));
        assert!(named.clone().open_registration().check().is_err());
        assert_eq!(named.clone().open_registration().listen("127.0.0.1:7777").check(), Ok(()));
        assert!(named.clone().shards(0).check().is_err());
        assert!(named.clone().retention(Duration::ZERO).check().is_err());
        assert!(
            named.clone().rules(Rules(0)).check().is_err()
                && named.clone().rules(Rules(Rules::CURRENT.0 + 1)).check().is_err()
        );
        assert_eq!(named.clone().rules(Rules::BASIC).check(), Ok(()));
        assert!(named.clone().history_retention(Duration::from_secs(30 * 24 * 3600 - 1)).check().is_err());
        assert_eq!(named.clone().history_retention(Duration::from_secs(30 * 24 * 3600)).check(), Ok(()));
        assert_eq!(named.retention(MAX_RETENTION).check(), Ok(()));
    }
}
