//! Wiring: backends, engine, shards, listeners, drain.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chat_core::backend::{Router, Transport};
use chat_core::delivery::{EngineSettings, Rates};
use chat_core::gateway::Gateway;
use chat_core::{Engine, ErrorKind, WallClock};
use chat_transport::accept::{Upgrade, accept, busy};
use chat_transport::runtime::TokioRuntime;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::backends::{self, Findings, Node};
use crate::ip_limiter::{IpLimiter, PendingConnection};
use crate::metered::measured;
use crate::settings::{Role, Settings};
use crate::{admin, settings};

/// How long a cluster's backends may take to be reached when a node starts.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a TLS handshake may take.
const TLS_TIME: Duration = Duration::from_secs(5);

/// The machine's clock.
#[derive(Debug)]
struct SystemClock;

impl WallClock for SystemClock {
    fn now_us(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
    }
}

/// Serves until a signal drains the server.
///
/// # Errors
/// Unsafe settings, an unusable data directory, an address in use: what, and what to do about it.
pub fn run(settings: Settings) -> Result<(), String> {
    settings.check()?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(&settings.log).map_err(|e| e.to_string())?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))?;
    let result = runtime.block_on(serve(settings));
    // Connections that did not end in time end with the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| format!("no runtime: {e}"))?.block_on(work)
}

/// Connects to every backend; gives what was found, and everything that is not as it should be.
///
/// # Errors
/// As [`run`].
pub fn check(settings: &Settings) -> Result<Findings, String> {
    settings.check()?;
    block_on(async { Ok(backends::check(settings).await) })
}

/// Makes or updates the schema of the cluster's store; gives what was done.
///
/// # Errors
/// As [`run`].
pub fn migrate(settings: Settings, new_log: bool) -> Result<Vec<String>, String> {
    settings.check()?;
    if !settings.is_cluster() {
        return Err("the embedded store needs no migration: name a cluster's backends".into());
    }
    block_on(backends::migrate(&settings, new_log))
}

/// Moves a data set from one process to a cluster, telling how far it is; gives what was copied.
///
/// # Errors
/// What cannot be copied, and why.
pub fn migrate_data(from: &str, to: &str, report: impl Fn(String) + Send + Sync) -> Result<String, String> {
    block_on(backends::migrate_data(from, to, report))
}

/// Proves what the store promises, and counts; see [`chat_store::Verification`].
///
/// # Errors
/// What does not hold, or a store that cannot be read.
pub fn verify(settings: &Settings) -> Result<chat_store::Verification, String> {
    if settings.is_cluster() {
        return block_on(backends::verify(settings));
    }
    let store = chat_store::EmbeddedStore::open(&settings.data).map_err(|e| format!("{e:?}"))?;
    store.verify().map_err(|e| format!("verification failed: {e:?}"))
}

/// A connection is a file: allow as many as the system does.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

async fn serve(settings: settings::Settings) -> Result<(), String> {
    let clock = Arc::new(SystemClock);
    let metrics = admin::record()?;
    let node = Node::open(&settings, clock.clone(), OPEN_TIMEOUT).await?;
    let embedded = node.embedded.clone();
    let engine_settings = EngineSettings {
        gateway: node.gateway,
        lists_ms: if settings.is_cluster() { 5000 } else { u64::MAX },
        authorities: settings.authorities.clone(),
        rates: if settings.is_open() { Rates::local() } else { Rates::default() },
        ..EngineSettings::default()
    };
    for line in &node.found {
        tracing::info!("{line}");
    }
    let (registry, router) = (node.backends.registry.clone(), node.backends.router.clone());
    let engine = Arc::new(Engine::new(measured(node.backends), engine_settings, clock));
    #[cfg(feature = "telemetry")]
    if let Some(collector) = &settings.otlp {
        crate::telemetry::export(engine.trace(), collector, settings.otlp_share, node.gateway)?;
    }
    if settings.roles.contains(&Role::Router) {
        for shard in 0..engine.shards() {
            tokio::spawn(run_shard(engine.clone(), router.clone(), shard));
        }
        tokio::spawn(sweep(engine.clone(), settings.retention_days));
    }
    if settings.is_cluster() && settings.roles.contains(&Role::Gateway) {
        join_cluster(&settings, engine.clone(), registry, node.gateway).await?;
    }

    let tls = tls(&settings)?;
    let bind =
        |address| async move { TcpListener::bind(address).await.map_err(|e| format!("{address}: {e}")) };
    let is_gateway = settings.roles.contains(&Role::Gateway);
    let listener = if is_gateway { Some(bind(settings.listen).await?) } else { None };
    let admin_listener = bind(settings.admin_listen).await?;
    let listening = |l: &TcpListener| l.local_addr().map_err(|e| e.to_string());
    let scheme = if tls.is_some() { "wss" } else { "ws" };
    if let Some(listener) = &listener {
        tracing::info!("listening on {scheme}://{}/v1", listening(listener)?);
    }
    tracing::info!("admin on http://{}, as {:?}", listening(&admin_listener)?, settings.roles);
    if settings.is_open() {
        tracing::warn!(
            "open registration is on: anybody on this machine can register any free name; send limits are off"
        );
    }
    let ready = Arc::new(AtomicBool::new(true));
    tokio::spawn(admin::serve(admin_listener, engine.clone(), metrics, ready.clone()));

    let cores =
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    let (gateway, drain) = Gateway::new(engine.clone(), Arc::new(TokioRuntime::new()), cores);
    let room = Arc::new(Semaphore::new(settings.max_connections));
    let accepting = async {
        match listener {
            Some(listener) => accept_all(listener, gateway, tls, &settings, room.clone()).await,
            None => std::future::pending().await,
        }
    };
    let disk_failed = async {
        match &embedded {
            Some(store) => store.disk_failed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop_signal() => {}
        () = disk_failed => {
            tracing::error!("the disk failed: nothing is acknowledged any more; ending so that a restart can recover");
            std::process::exit(1);
        }
    }
    ready.store(false, Ordering::Relaxed);
    tracing::info!("draining");
    drain.begin(settings.drain_seconds.saturating_mul(1000));
    let all = u32::try_from(settings.max_connections).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(Duration::from_secs(65), room.acquire_many(all)).await;
    // Connections first: what they sent is still applied here. Then the others need not wait to notice.
    let _ = tokio::time::timeout(Duration::from_secs(10), engine.close()).await;
    tracing::info!("drained");
    Ok(())
}

/// Takes what other gateways send, and says again and again where this one is reached.
#[cfg(feature = "cluster")]
async fn join_cluster(
    settings: &Settings,
    engine: Arc<Engine>,
    registry: Arc<dyn chat_core::backend::Registry>,
    gateway: chat_core::backend::GatewayId,
) -> Result<(), String> {
    let listener = TcpListener::bind(settings.node_link_listen)
        .await
        .map_err(|e| format!("node_link_listen {}: {e}", settings.node_link_listen))?;
    let own = listener.local_addr().map_err(|e| e.to_string())?;
    let address = match &settings.node_link_address {
        Some(address) => address.clone(),
        None if own.ip().is_unspecified() => {
            let name = rustix::system::uname();
            format!("{}:{}", name.nodename().to_string_lossy(), own.port())
        }
        None => own.to_string(),
    };
    tracing::info!("the other nodes reach this one at {address}");
    let tls = settings.node_link_tls()?;
    tokio::spawn(async move {
        if let Err(error) = chat_transport::node_link::serve_link(listener, engine, tls).await {
            tracing::error!(%error, "the node link ended");
        }
    });
    tokio::spawn(async move {
        loop {
            if let Err(error) = registry.announce(gateway, &address).await {
                tracing::warn!(%error, "the registry was not told where this node is");
            }
            // After Redis forgot it, answers that go to this gateway wait for this.
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    });
    Ok(())
}

#[cfg(not(feature = "cluster"))]
#[allow(clippy::unused_async)]
async fn join_cluster(
    _: &Settings,
    _: Arc<Engine>,
    _: Arc<dyn chat_core::backend::Registry>,
    _: chat_core::backend::GatewayId,
) -> Result<(), String> {
    Err(backends::missing_feature())
}

/// Applies a shard's records for as long as there is a log. What fails comes again until all of it is seen, also after
/// a panic: the shard stalls, it never skips, and the others go on.
async fn run_shard(engine: Arc<Engine>, router: Arc<dyn Router>, shard: usize) {
    loop {
        let running = engine.clone();
        let run = tokio::spawn(async move { running.run_shard(shard).await });
        match run.await {
            Ok(Err(error)) if error.kind() == ErrorKind::Closed => return,
            Ok(Err(error)) => tracing::error!(%error, shard, "a shard stalls"),
            Ok(Ok(())) => continue,
            Err(error) if error.is_panic() => {
                tracing::error!(%error, shard, "a shard panicked");
                if let Err(error) = router.rewind(shard).await {
                    tracing::error!(%error, shard, "a shard cannot go back to what was not applied");
                }
            }
            Err(_) => return,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Ends, hour by hour, what waited for longer than retention allows.
async fn sweep(engine: Arc<Engine>, retention_days: u32) {
    let retention_ms = u64::from(retention_days) * 24 * 3600 * 1000;
    loop {
        match engine.sweep(retention_ms).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "retention removed rows of inboxes"),
            Err(error) => tracing::warn!(%error, "retention waits"),
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// When another gateway failed, everybody comes at once, and who is here already must hardly notice: new
/// connections are let in one after the other.
struct AcceptPacer {
    /// From one to the next.
    apart: Duration,
    /// When the next is due.
    next: Instant,
}

impl AcceptPacer {
    /// The longest that anybody waits: a client that waits for its answer is still there.
    const MAX_DELAY: Duration = Duration::from_secs(5);
    /// So many come at once, if nobody came before.
    const BURST: Duration = Duration::from_millis(100);

    fn new(rate: u32, now: Instant) -> Self {
        Self { apart: Duration::from_secs(1) / rate, next: now }
    }

    /// When somebody who came now is let in; `None` if the line is too long.
    fn join(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next.max(now);
        if due > now + Self::MAX_DELAY {
            return None;
        }
        self.next = due + self.apart;
        Some(now.max(due - Self::BURST))
    }
}

async fn accept_all(
    listener: TcpListener,
    gateway: Gateway,
    tls: Option<TlsAcceptor>,
    settings: &Settings,
    room: Arc<Semaphore>,
) {
    let ip_limiter = Arc::new(IpLimiter::new(settings.proxies.clone()));
    let upgrade = Arc::new(Upgrade { path: "/v1".into(), origins: settings.origins.clone() });
    let mut line = AcceptPacer::new(settings.accept_rate, Instant::now());
    // Of so many at once it is made sure that they can read why they are sent away.
    let farewells = Arc::new(Semaphore::new(256));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of files, most likely: those who are connected are served.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let now = Instant::now();
        let admitted = ip_limiter
            .admit(from.ip(), now.into_std())
            .ok_or("address")
            .and_then(|admit| Ok((admit, room.clone().try_acquire_owned().map_err(|_| "connections")?)))
            .and_then(|(admit, place)| Ok((admit, place, line.join(now).ok_or("rate")?)));
        let (admit, place, due) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                metrics::counter!("chat_connections_rejected_total", "reason" => reason).increment(1);
                // Saying so by TLS would cost what there is none of.
                if let (None, Ok(place)) = (&tls, farewells.clone().try_acquire_owned()) {
                    tokio::spawn(async move {
                        busy(stream, later()).await;
                        drop(place);
                    });
                }
                continue;
            }
        };
        let (gateway, tls, upgrade) = (gateway.clone(), tls.clone(), upgrade.clone());
        tokio::spawn(async move {
            if due > now {
                tokio::time::sleep_until(due).await;
            }
            serve_connection(stream, &gateway, tls, &upgrade, admit).await;
            drop(place);
        });
    }
}

/// Seconds until somebody who is not let in may come back: not all at once.
fn later() -> u32 {
    let mut random = [0];
    let _ = getrandom::fill(&mut random);
    1 + u32::from(random[0] % 10)
}

async fn serve_connection(
    stream: TcpStream,
    gateway: &Gateway,
    tls: Option<TlsAcceptor>,
    upgrade: &Upgrade,
    admit: PendingConnection,
) {
    let _ = stream.set_nodelay(true);
    // Boxed: what the opening needs is large, and an idle connection must not carry it.
    if let Some(transport) = Box::pin(open(stream, tls, upgrade)).await {
        gateway.serve(transport, Box::new(move |let_in| admit.answered(let_in))).await;
    }
}

/// TLS, if there is to be any, and the upgrade.
async fn open(stream: TcpStream, tls: Option<TlsAcceptor>, upgrade: &Upgrade) -> Option<Box<dyn Transport>> {
    match tls {
        None => Some(Box::new(accept(stream, upgrade).await.ok()?)),
        Some(tls) => {
            let stream = tokio::time::timeout(TLS_TIME, tls.accept(stream)).await.ok()?.ok()?;
            Some(Box::new(accept(stream, upgrade).await.ok()?))
        }
    }
}

fn tls(settings: &Settings) -> Result<Option<TlsAcceptor>, String> {
    let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) else {
        return Ok(None);
    };
    let failed =
        |path: &std::path::Path, e: rustls::pki_types::pem::Error| format!("{}: {e}", path.display());
    let certs = CertificateDer::pem_file_iter(cert)
        .and_then(|certs| certs.collect::<Result<Vec<_>, _>>())
        .map_err(|e| failed(cert, e))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| failed(key, e))?;
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| e.to_string())?
            .with_no_client_auth()
            .with_single_cert(certs, key)
            .map_err(|e| format!("the certificate cannot be used: {e}"))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_let_in_one_after_the_other() {
        let mut now = Instant::now();
        let mut line = AcceptPacer::new(500, now);
        let mut crowd = |now: Instant| -> Vec<Option<u128>> {
            let let_in = (0..3000).map(|_| line.join(now));
            let_in.map(|due| due.map(|due| due.duration_since(now).as_millis())).collect()
        };
        let waits = crowd(now);
        assert_eq!((waits[50], waits[51], waits[1050]), (Some(0), Some(2), Some(2000)), "some at once");
        assert_eq!((waits[2500], waits[2501], waits[2999]), (Some(4900), None, None), "not too many");
        assert_eq!(crowd(now)[0], None, "who is told to come back takes nobody's place");
        now += Duration::from_secs(60);
        assert_eq!(crowd(now), waits, "what was not used is not kept");
    }
}
