//! Which backends a node runs on: all in this process, or a cluster's, by settings alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chat_core::WallClock;
use chat_core::backend::{Backends, GatewayId};
use chat_core::memory::{MemoryPresence, MemoryPush, MemoryRegistry, MemoryRouter, NoLink};
use chat_store::EmbeddedStore;

use crate::metered::MeasuredPush;
use crate::settings::Settings;
use crate::tokens::Tokens;

/// The backends of a node.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Node {
    /// For the engine.
    pub backends: Backends,
    /// This life of this process among the gateways.
    pub gateway: GatewayId,
    /// The store, if it is this process's own: when its disk fails, the process ends.
    pub embedded: Option<Arc<EmbeddedStore>>,
    /// Lines that say what was found.
    pub found: Vec<String>,
}

/// What went wrong, with its cause: the settings name what it is about.
#[cfg(feature = "cluster")]
fn explain(what: &str) -> impl FnOnce(chat_core::Error) -> String + '_ {
    move |error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})")).unwrap_or_default();
        format!("{what}: {error}{cause}")
    }
}

impl Node {
    /// Opens what the settings name. A backend of a cluster that cannot be reached is tried again for as long
    /// as `patience`: nodes and services may start together, and one of many machines may be cut off.
    ///
    /// # Errors
    /// A backend that cannot be reached, is not part of this build, or cannot keep the promises, by name.
    pub async fn open(
        settings: &Settings,
        clock: Arc<dyn WallClock>,
        patience: Duration,
    ) -> Result<Self, String> {
        if !settings.is_cluster() {
            return single(settings, clock);
        }
        cluster(settings, tokio::time::Instant::now() + patience).await
    }
}

/// Opens a backend, again and again while it cannot be reached.
#[cfg(feature = "cluster")]
async fn reach<T, F: Future<Output = chat_core::Result<T>>>(
    what: &str,
    end: tokio::time::Instant,
    open: impl Fn() -> F,
) -> Result<T, String> {
    loop {
        match open().await {
            Err(error)
                if error.kind() == chat_core::ErrorKind::Unavailable && tokio::time::Instant::now() < end =>
            {
                tracing::warn!("{}: trying again", explain(what)(error));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            outcome => return outcome.map_err(explain(what)),
        }
    }
}

fn single(settings: &Settings, clock: Arc<dyn WallClock>) -> Result<Node, String> {
    let store = EmbeddedStore::open(&settings.data)
        .map_err(|error| format!("{}: {error:?}", settings.data.display()))?;
    let store = Arc::new(store);
    let backends = Backends {
        store: store.clone(),
        keys: store.clone(),
        router: Arc::new(MemoryRouter::new(settings.shards, clock)),
        registry: Arc::new(MemoryRegistry::default()),
        node_link: Arc::new(NoLink),
        presence: Arc::new(MemoryPresence::default()),
        push: Arc::new(MeasuredPush(MemoryPush::default())),
        authenticator: Arc::new(Tokens::new(settings)?),
    };
    let found = vec![format!("store: data in {}", settings.data.display())];
    Ok(Node { backends, gateway: GatewayId(1), embedded: Some(store), found })
}

#[cfg(not(feature = "cluster"))]
async fn cluster(_settings: &Settings, _end: tokio::time::Instant) -> Result<Node, String> {
    Err(missing_feature())
}

/// What to say where this build has no cluster backends.
pub fn missing_feature() -> String {
    "store, router and registry name Cassandra, Kafka and Redis, and this binary was built without the \
     feature `cluster`: build it with `cargo build --release -p chat-server-ref --features cluster`"
        .to_owned()
}

#[cfg(feature = "cluster")]
async fn cluster(settings: &Settings, end: tokio::time::Instant) -> Result<Node, String> {
    use crate::settings::Role;
    use chat_core::backend::Registry;
    use chat_store::cassandra::CassandraStore;
    use chat_store::redis::{RedisLink, RedisPresence, RedisRegistry};
    use chat_transport::kafka::KafkaRouter;
    use chat_transport::node_link::GatewayLink;

    let mut found = Vec::new();
    let cassandra = settings.store.parse().map_err(explain("store"))?;
    let store = Arc::new(reach("store", end, || CassandraStore::connect(&cassandra)).await?);
    found.push(format!("store: Cassandra, {}", reach("store", end, || store.describe()).await?));
    let redis = reach("registry", end, || RedisLink::connect(&settings.registry)).await?;
    found.push(format!("registry: Redis, {}", reach("registry", end, || redis.describe()).await?));
    let kafka = settings.router.parse().map_err(explain("router"))?;
    let own_shards = settings.roles.contains(&Role::Router);
    let router = reach("router", end, || KafkaRouter::open(&kafka, store.clone(), own_shards)).await?;
    found.push(format!("router: Kafka, {}", router.describe()));
    let registry: Arc<dyn Registry> = Arc::new(RedisRegistry::new(redis.clone()));
    let push = Arc::new(MeasuredPush(MemoryPush::default()));
    let link = Arc::new(GatewayLink::new(registry.clone(), push.clone(), settings.node_link_tls()?));
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(|e| e.to_string())?;
    let backends = Backends {
        store: store.clone(),
        keys: store,
        router: Arc::new(router),
        registry,
        node_link: link,
        presence: Arc::new(RedisPresence::new(redis)),
        push,
        authenticator: Arc::new(Tokens::new(settings)?),
    };
    Ok(Node { backends, gateway: GatewayId(u64::from_le_bytes(id) >> 1), embedded: None, found })
}

/// What a look at every backend found.
#[derive(Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Findings {
    /// What is there and as it should be, a line each.
    pub found: Vec<String>,
    /// What is not, a line each.
    pub wrong: Vec<String>,
}

impl Findings {
    fn note(&mut self, outcome: Result<String, String>) {
        match outcome {
            Ok(line) => self.found.push(line),
            Err(line) => self.wrong.push(line),
        }
    }
}

/// Looks at every backend, one after the other, and makes nothing.
pub async fn check(settings: &Settings) -> Findings {
    let mut findings = Findings::default();
    findings.note(Tokens::describe(settings).map(|found| format!("tokens: {found}")));
    if settings.is_cluster() {
        check_cluster(settings, &mut findings).await;
    } else {
        findings.note(check_embedded(&settings.data));
    }
    findings
}

fn check_embedded(data: &Path) -> Result<String, String> {
    let path = data.display();
    if !EmbeddedStore::exists(data) {
        return Ok(format!("store: no data yet: the first start makes {path}"));
    }
    let store = EmbeddedStore::open(data);
    store.map(|_| format!("store: data in {path}")).map_err(|error| format!("store: {path}: {error:?}"))
}

#[cfg(not(feature = "cluster"))]
#[allow(clippy::unused_async)]
async fn check_cluster(_settings: &Settings, findings: &mut Findings) {
    findings.note(Err(missing_feature()));
}

#[cfg(feature = "cluster")]
async fn check_cluster(settings: &Settings, findings: &mut Findings) {
    use chat_store::cassandra::CassandraStore;
    use chat_store::redis::RedisLink;
    use chat_transport::kafka::KafkaRouter;

    findings.note(settings.node_link_tls().map(|tls| match tls {
        Some(_) => "node link: its PEM files are there".to_owned(),
        None => "node link: no certificates, so only within this machine".to_owned(),
    }));
    let store = async { CassandraStore::connect(&settings.store.parse()?).await }.await;
    findings.note(
        match &store {
            Ok(store) => store.describe().await.map(|found| format!("store: Cassandra, {found}")),
            Err(error) => Err(error.clone()),
        }
        .map_err(explain("store")),
    );
    let redis = async { RedisLink::connect(&settings.registry).await?.describe().await }.await;
    findings.note(redis.map(|found| format!("registry: Redis, {found}")).map_err(explain("registry")));
    let kafka = match &store {
        Ok(store) => async { KafkaRouter::check(&settings.router.parse()?, store).await }.await,
        Err(_) => {
            return findings
                .note(Err("router: not looked at, because the store says which log is in force".to_owned()));
        }
    };
    findings.note(kafka.map(|found| format!("router: Kafka, {found}")).map_err(explain("router")));
}

/// Makes or updates what the cluster's backends need; with `new_log`, gives up the log and begins another.
///
/// # Errors
/// As [`Node::open`].
#[cfg(feature = "cluster")]
pub async fn migrate(settings: &Settings, new_log: bool) -> Result<Vec<String>, String> {
    use chat_core::backend::{LogAnchor, LogIdentity};
    use chat_store::cassandra::{CassandraSettings, CassandraStore};

    let cassandra: CassandraSettings = settings.store.parse().map_err(explain("store"))?;
    let mut done =
        vec![format!("store: {}", CassandraStore::migrate(&cassandra).await.map_err(explain("store"))?)];
    if new_log {
        let kafka: chat_transport::kafka::KafkaSettings =
            settings.router.parse().map_err(explain("router"))?;
        let store = CassandraStore::connect(&cassandra).await.map_err(explain("store"))?;
        let last = store.log().await.map_err(explain("store"))?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| e.to_string())?;
        let generation = last.map_or(0, |log| log.generation) + 1;
        let log = LogIdentity { generation, id, partitions: kafka.partitions, opened: false };
        let log = store.begin_log(log).await.map_err(explain("store"))?;
        done.push(format!("router: log generation {}, {} partitions", log.generation, log.partitions));
    }
    Ok(done)
}

/// What to say where this build has no cluster backends.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cluster"))]
pub async fn migrate(_settings: &Settings, _new_log: bool) -> Result<Vec<String>, String> {
    Err(missing_feature())
}

/// Reads everything that a cluster's store holds and proves what it promises.
///
/// # Errors
/// What does not hold, or a store that cannot be reached.
#[cfg(feature = "cluster")]
pub async fn verify(settings: &Settings) -> Result<chat_store::Verification, String> {
    let cassandra = settings.store.parse().map_err(explain("store"))?;
    let store = chat_store::cassandra::CassandraStore::connect(&cassandra).await.map_err(explain("store"))?;
    store.verify().await.map_err(explain("verification failed"))
}

/// What to say where this build has no cluster backends.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cluster"))]
#[allow(clippy::unused_async)]
pub async fn verify(_settings: &Settings) -> Result<chat_store::Verification, String> {
    Err(missing_feature())
}

/// Moves a data set from the embedded store to Cassandra; gives what was copied.
///
/// # Errors
/// As [`chat_store::migrate_data`].
#[cfg(feature = "cluster")]
pub async fn migrate_data(
    from: &str,
    to: &str,
    report: impl Fn(String) + Send + Sync,
) -> Result<String, String> {
    let path = from.strip_prefix("fjall:").ok_or("--from is fjall:DIRECTORY, the data of one process")?;
    let to = to.parse().map_err(explain("--to"))?;
    let sealed = chat_store::SealedStore::seal(path).map_err(explain("--from"))?;
    let verified = sealed.verify().map_err(explain("--from"))?;
    report(format!("{path} is sealed and verified: {verified}"));
    let copied = chat_store::migrate_data(&sealed, &to, report).await.map_err(explain("migrate-data"))?;
    Ok(copied.to_string())
}

/// What to say where this build has no cluster backends.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cluster"))]
#[allow(clippy::unused_async)]
pub async fn migrate_data(
    _from: &str,
    _to: &str,
    _tell: impl Fn(String) + Send + Sync,
) -> Result<String, String> {
    Err(missing_feature())
}
