//! The commands, each a few calls of `chat-server` with these settings.

use std::io::IsTerminal;
use std::time::Duration;

use chat_core::delivery::Rates;
use chat_server::{Server, ServerBuilder};
use chat_store::EmbeddedStore;

use crate::settings::{Role, Settings};
use crate::tokens::Tokens;

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("failed to start the runtime: {error}"))?;
    let outcome = runtime.block_on(work);
    // Connections that did not end in time end with the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Serves until a signal drains the server.
pub(crate) fn serve(settings: &Settings) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log).map_err(|e| e.to_string())?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    raise_file_limit();
    block_on(async {
        let server = start(settings).await?;
        #[cfg(feature = "telemetry")]
        if let Some(collector) = &settings.otlp {
            let gateway = server.engine().gateway_id();
            chat_server::telemetry::export(server.engine().trace(), collector, settings.otlp_share, gateway)?;
        }
        if let Some(url) = server.url() {
            tracing::info!("listening on {url}");
        }
        tracing::info!("admin on http://{}, as {:?}", settings.admin_listen, settings.roles);
        if settings.is_open() {
            tracing::warn!(
                "open registration is on: any user of this machine can register any free name; send limits are off"
            );
        }
        server.run_until(chat_server::stop_signal()).await.map_err(String::from)
    })
}

fn builder(settings: &Settings) -> Result<ServerBuilder, String> {
    let mut builder = Server::builder()
        .authenticator(Tokens::new(settings)?)
        .admin(settings.admin_listen.to_string())
        .authorities(settings.authorities.clone())
        .origins(settings.origins.clone())
        .proxies(settings.proxies.clone())
        .max_connections(settings.max_connections)
        .accept_rate(settings.accept_rate)
        .rates(if settings.is_open() { Rates::local() } else { Rates::default() })
        .retention(Duration::from_secs(u64::from(settings.retention_days) * 24 * 3600))
        .drain(Duration::from_secs(u64::from(settings.drain_seconds)))
        .shards(settings.shards)
        .runs_shards(settings.roles.contains(&Role::Router));
    if settings.roles.contains(&Role::Gateway) {
        builder = builder.listen(settings.listen.to_string());
    }
    if let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) {
        builder = builder.tls(cert, key);
    }
    Ok(builder)
}

async fn start(settings: &Settings) -> Result<Server, String> {
    if settings.is_cluster() {
        return start_node(settings).await;
    }
    tracing::info!("store: data in {}", settings.data.display());
    builder(settings)?.data_dir(&settings.data).start().await.map_err(String::from)
}

#[cfg(feature = "cluster")]
async fn start_node(settings: &Settings) -> Result<Server, String> {
    use chat_server::cluster::{Node, join};

    /// Longest time until the services of a cluster are reached.
    const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
    /// Longest age of a cached device list, because another node may change the list.
    const DEVICE_LIST_TTL: Duration = Duration::from_secs(5);
    let node = Node::connect(&settings.cluster()?, OPEN_TIMEOUT).await?;
    node.found.iter().for_each(|line| tracing::info!("{line}"));
    let builder = builder(settings)?.gateway_id(node.gateway).device_list_ttl(DEVICE_LIST_TTL);
    let server = builder.backends(node.backends.clone()).start().await?;
    if settings.roles.contains(&Role::Gateway) {
        let (listen, advertise) = (settings.node_link_listen, settings.node_link_address.clone());
        let address = join(&server, &node, listen, advertise, settings.node_link_tls()?).await?;
        tracing::info!("the other nodes reach this one at {address}");
    }
    Ok(server)
}

#[cfg(not(feature = "cluster"))]
#[allow(clippy::unused_async)]
async fn start_node(_settings: &Settings) -> Result<Server, String> {
    Err(missing_feature())
}

#[cfg(not(feature = "cluster"))]
fn missing_feature() -> String {
    "store, router and registry name Cassandra, Kafka and Redis, and this binary was built without the feature \
     `cluster`: build it with `cargo build --release -p chat-server-ref --features cluster`"
        .to_owned()
}

/// Raises the limit of open files to the system's: each connection is one.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Checks every backend without changing it: a line per finding.
pub(crate) fn check(settings: &Settings) -> Result<Vec<Result<String, String>>, String> {
    block_on(async {
        let mut findings = vec![Tokens::describe(settings).map(|found| format!("tokens: {found}"))];
        if settings.is_cluster() {
            check_cluster(settings, &mut findings).await;
        } else {
            findings.push(check_embedded(settings));
        }
        Ok(findings)
    })
}

fn check_embedded(settings: &Settings) -> Result<String, String> {
    let path = settings.data.display();
    if !EmbeddedStore::exists(&settings.data) {
        return Ok(format!("store: no data yet: the first start makes {path}"));
    }
    let store = EmbeddedStore::open(&settings.data);
    store.map(|_| format!("store: data in {path}")).map_err(|error| format!("store: {path}: {error:?}"))
}

#[cfg(feature = "cluster")]
async fn check_cluster(settings: &Settings, findings: &mut Vec<Result<String, String>>) {
    match settings.cluster() {
        Ok(cluster) => {
            let found = chat_server::cluster::check(&cluster).await;
            findings.extend(found.into_iter().map(|found| found.map_err(String::from)));
        }
        Err(error) => findings.push(Err(error)),
    }
}

#[cfg(not(feature = "cluster"))]
#[allow(clippy::unused_async)]
async fn check_cluster(_settings: &Settings, findings: &mut Vec<Result<String, String>>) {
    findings.push(Err(missing_feature()));
}

/// Creates or updates the schema of the cluster's store: a line per change.
#[cfg(feature = "cluster")]
pub(crate) fn migrate(settings: &Settings, new_log: bool) -> Result<Vec<String>, String> {
    if !settings.is_cluster() {
        return Err("the embedded store needs no migration: name a cluster's backends".into());
    }
    let cluster = settings.cluster()?;
    block_on(async { Ok(chat_server::cluster::migrate(&cluster, new_log).await?) })
}

/// Fails: this build has no cluster backends.
#[cfg(not(feature = "cluster"))]
pub(crate) fn migrate(_settings: &Settings, _new_log: bool) -> Result<Vec<String>, String> {
    Err(missing_feature())
}

/// Copies the data of one process to a cluster, and reports its progress.
#[cfg(feature = "cluster")]
pub(crate) fn migrate_data(
    from: &str,
    to: &str,
    report: impl Fn(String) + Send + Sync,
) -> Result<String, String> {
    let path = from.strip_prefix("fjall:").ok_or("--from is fjall:DIRECTORY, the data of one process")?;
    block_on(async { Ok(chat_server::cluster::migrate_data(path.as_ref(), to, report).await?) })
}

/// Fails: this build has no cluster backends.
#[cfg(not(feature = "cluster"))]
pub(crate) fn migrate_data(
    _from: &str,
    _to: &str,
    _report: impl Fn(String) + Send + Sync,
) -> Result<String, String> {
    Err(missing_feature())
}

/// Checks every promise about the stored data, and counts it.
pub(crate) fn verify(settings: &Settings) -> Result<chat_store::Verification, String> {
    #[cfg(feature = "cluster")]
    if settings.is_cluster() {
        let cluster = settings.cluster()?;
        return block_on(async { Ok(chat_server::cluster::verify(&cluster).await?) });
    }
    let store = EmbeddedStore::open(&settings.data).map_err(|error| format!("{error:?}"))?;
    store.verify().map_err(|error| format!("verification failed: {error:?}"))
}
