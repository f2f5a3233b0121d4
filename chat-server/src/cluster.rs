//! Shared backends of a cluster: Cassandra, Kafka and Redis from URLs, and the node link between gateways.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chat_core::ErrorKind;
use chat_core::backend::{Backends, GatewayId, LogAnchor, LogIdentity, Registry};
use chat_core::memory::{MemoryPush, NoReports, OpenRegistration};
use chat_store::cassandra::{CassandraSettings, CassandraStore};
use chat_store::redis::{RedisLink, RedisPresence, RedisRegistry};
use chat_transport::kafka::{KafkaRouter, KafkaSettings};
use chat_transport::node_link::{GatewayLink, NodeLinkTls, NodeLinkToken, serve_link};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::error::ServerError;
use crate::metered::MeteredPush;
use crate::server::{Server, ServerBuilder};

/// Time between two announcements of a gateway's address. Until the next one, answers for a gateway that Redis
/// forgot wait.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(3);
/// Longest time until the services are reached at the start of a node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest age of a cached device list, because another node may change the list.
const DEVICE_LIST_TTL: Duration = Duration::from_secs(5);

/// URLs of the shared services.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct ClusterSettings {
    /// `cassandra://host:port,host:port/keyspace?replication=3`.
    pub store: String,
    /// `kafka://host:port,host:port/topic?replication=3`.
    pub router: String,
    /// `redis://host:port`, or `redis-cluster://host:port,host:port`.
    pub registry: String,
    /// Whether the node applies records of shards.
    pub runs_shards: bool,
    /// How the other nodes reach this one. `None` on a node that holds no connections of clients.
    pub node_link: Option<NodeLinkAddress>,
    /// Certificates of the node link. Without them, only nodes on the same machine reach each other.
    pub node_link_tls: Option<NodeLinkTls>,
}

/// Address at which a gateway accepts the node links of the others.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct NodeLinkAddress {
    /// Address of the listener.
    pub listen: SocketAddr,
    /// The `host:port` that the other nodes dial. By default the listener's own address, or the host name if that is
    /// unspecified.
    pub advertise: Option<String>,
}

/// Reads the PEM files of the node link: certificate and key of this node for the name `chat-node`, and the certificate
/// of the authority that signed the certificates of all nodes.
///
/// # Errors
/// A file cannot be read. The text names it.
pub fn read_node_link_tls(cert: &Path, key: &Path, authority: &Path) -> Result<NodeLinkTls, ServerError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| ServerError::new(format!("{}: {error}", path.display())))
    };
    Ok(NodeLinkTls::new(&read(cert)?, &read(key)?, &read(authority)?))
}

/// Backends of a cluster node.
#[derive(Debug)]
#[non_exhaustive]
pub struct Node {
    /// For [`ServerBuilder::backends`](crate::ServerBuilder::backends). The authenticator must be replaced.
    pub backends: Backends,
    /// Random id of this process, for [`ServerBuilder::gateway_id`](crate::ServerBuilder::gateway_id).
    pub gateway: GatewayId,
    /// Description of each service.
    pub found: Vec<String>,
}

/// Adds the name of the setting and the cause.
fn explain(what: &str) -> impl FnOnce(chat_core::Error) -> ServerError + '_ {
    move |error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})")).unwrap_or_default();
        ServerError::new(format!("{what}: {error}{cause}"))
    }
}

/// Opens a backend, and tries again while it is unavailable.
async fn reach<T, F: Future<Output = chat_core::Result<T>>>(
    what: &str,
    end: Instant,
    open: impl Fn() -> F,
) -> Result<T, ServerError> {
    loop {
        match open().await {
            Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => {
                tracing::warn!("{}: trying again in 1 s", explain(what)(error));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            outcome => return outcome.map_err(explain(what)),
        }
    }
}

impl Node {
    /// Connects to the services. A service that is unavailable is tried again until `timeout` passes, because nodes
    /// and services may start together.
    ///
    /// # Errors
    /// The setting of a service that is unavailable or cannot keep the promises, and why.
    pub async fn connect(settings: &ClusterSettings, timeout: Duration) -> Result<Self, ServerError> {
        let end = Instant::now() + timeout;
        let mut found = Vec::new();
        let cassandra = settings.store.parse().map_err(explain("store"))?;
        let store = Arc::new(reach("store", end, || CassandraStore::connect(&cassandra)).await?);
        found.push(format!("store: Cassandra, {}", reach("store", end, || store.describe()).await?));
        let redis = reach("registry", end, || RedisLink::connect(&settings.registry)).await?;
        found.push(format!("registry: Redis, {}", reach("registry", end, || redis.describe()).await?));
        let kafka = settings.router.parse().map_err(explain("router"))?;
        let open = || KafkaRouter::open(&kafka, store.clone(), settings.runs_shards);
        let router = reach("router", end, open).await?;
        found.push(format!("router: Kafka, {}", router.describe()));
        let registry: Arc<dyn Registry> = Arc::new(RedisRegistry::new(redis.clone()));
        let push = Arc::new(MeteredPush(MemoryPush::default()));
        let node_link = GatewayLink::new(registry.clone(), push.clone(), settings.node_link_tls.clone());
        let backends = Backends {
            store: store.clone(),
            keys: store.clone(),
            contacts: store,
            router: Arc::new(router),
            registry,
            node_link: Arc::new(node_link),
            presence: Arc::new(RedisPresence::new(redis)),
            push,
            reports: Arc::new(NoReports),
            authenticator: Arc::new(OpenRegistration),
        };
        let id: [u8; 8] = random()?;
        Ok(Self { backends, gateway: GatewayId(u64::from_le_bytes(id) >> 1), found })
    }
}

/// Connects to the services, starts a server on them, and joins the other nodes. Storage, gateway id, the age of cached
/// device lists and [`runs_shards`](ServerBuilder::runs_shards) are set here; login and listeners are the builder's.
///
/// # Errors
/// As [`Node::connect`] with a timeout of 60 s, [`ServerBuilder::start`] and [`join`].
pub async fn start(builder: ServerBuilder, settings: &ClusterSettings) -> Result<Server, ServerError> {
    builder.check()?;
    // Before the backends are set, because the authenticator of a node is none.
    builder.login()?;
    let node = Node::connect(settings, CONNECT_TIMEOUT).await?;
    node.found.iter().for_each(|line| tracing::info!("{line}"));
    let builder = builder
        .backends(node.backends.clone())
        .gateway_id(node.gateway)
        .device_list_ttl(DEVICE_LIST_TTL)
        .runs_shards(settings.runs_shards);
    let server = builder.start().await?;
    if let Some(link) = &settings.node_link {
        let address = join(&server, &node, link, settings.node_link_tls.clone()).await?;
        tracing::info!("the other nodes reach this one at {address}");
    }
    Ok(server)
}

/// Serves the node link of a gateway and announces its address in the registry. Returns the announced address.
///
/// # Errors
/// The address cannot be bound.
pub async fn join(
    server: &Server,
    node: &Node,
    link: &NodeLinkAddress,
    tls: Option<NodeLinkTls>,
) -> Result<String, ServerError> {
    let listen = link.listen;
    let failed = |error| ServerError::new(format!("failed to listen on node link address {listen}: {error}"));
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let own = listener.local_addr().map_err(failed)?;
    let address = match &link.advertise {
        Some(address) => address.clone(),
        None if own.ip().is_unspecified() => {
            let name = rustix::system::uname();
            format!("{}:{}", name.nodename().to_string_lossy(), own.port())
        }
        None => own.to_string(),
    };
    let engine = server.engine().clone();
    let token = NodeLinkToken::random().map_err(explain("node link"))?;
    let (registry, gateway, announced) =
        (node.backends.registry.clone(), node.gateway, token.announcement(&address));
    tokio::spawn(async move {
        if let Err(error) = serve_link(listener, engine, token, tls).await {
            tracing::error!(%error, "the node link ended: other nodes deliver nothing here until a restart");
        }
    });
    tokio::spawn(async move {
        loop {
            if let Err(error) = registry.announce(gateway, &announced).await {
                tracing::warn!(%error, "failed to announce this node in the registry: retrying in 3 s");
            }
            tokio::time::sleep(ANNOUNCE_INTERVAL).await;
        }
    });
    Ok(address)
}

fn random<const N: usize>() -> Result<[u8; N], ServerError> {
    let mut bytes = [0; N];
    let failed = |error| ServerError::new(format!("failed to read system randomness: {error}"));
    getrandom::fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Checks each service without changing it. Returns a line per service that is right, and a line per service that is
/// wrong.
pub async fn check(settings: &ClusterSettings) -> Vec<Result<String, ServerError>> {
    let mut findings = vec![Ok(match settings.node_link_tls {
        Some(_) => "node link: its PEM files can be read".to_owned(),
        None => "node link: no certificates, so it works only on this machine".to_owned(),
    })];
    let store = async { CassandraStore::connect(&settings.store.parse()?).await }.await;
    let described = match &store {
        Ok(store) => store.describe().await.map(|found| format!("store: Cassandra, {found}")),
        Err(error) => Err(error.clone()),
    };
    findings.push(described.map_err(explain("store")));
    let redis = async { RedisLink::connect(&settings.registry).await?.describe().await }.await;
    findings.push(redis.map(|found| format!("registry: Redis, {found}")).map_err(explain("registry")));
    findings.push(match &store {
        Ok(store) => {
            let kafka = async { KafkaRouter::check(&settings.router.parse()?, store).await }.await;
            kafka.map(|found| format!("router: Kafka, {found}")).map_err(explain("router"))
        }
        Err(_) => Err(ServerError::new("router: not checked, because the store says which log is in force")),
    });
    findings
}

/// Creates or updates the schema of the store. With `new_log`, abandons the log and starts another one. `restored`: the
/// keyspace is an older copy, and devices must compare their cursors with it; this also starts another log. Returns a
/// line per change.
///
/// # Errors
/// As [`Node::connect`].
pub async fn migrate(
    settings: &ClusterSettings,
    new_log: bool,
    restored: bool,
) -> Result<Vec<String>, ServerError> {
    let cassandra: CassandraSettings = settings.store.parse().map_err(explain("store"))?;
    let mut done =
        vec![format!("store: {}", CassandraStore::migrate(&cassandra).await.map_err(explain("store"))?)];
    if restored {
        CassandraStore::renew_epoch(&cassandra).await.map_err(explain("store"))?;
        done.push("store: a new store epoch: devices compare their cursors".into());
    }
    if new_log || restored {
        let kafka: KafkaSettings = settings.router.parse().map_err(explain("router"))?;
        let store = CassandraStore::connect(&cassandra).await.map_err(explain("store"))?;
        let last = store.log().await.map_err(explain("store"))?;
        let generation = last.map_or(0, |log| log.generation) + 1;
        let log = LogIdentity { generation, id: random()?, partitions: kafka.partitions, opened: false };
        let log = store.begin_log(log).await.map_err(explain("store"))?;
        done.push(format!("router: log generation {}, {} partitions", log.generation, log.partitions));
    }
    Ok(done)
}

/// Reads the whole store and checks every promise about it.
///
/// # Errors
/// A promise that does not hold, or an unavailable store.
pub async fn verify(settings: &ClusterSettings) -> Result<chat_store::Verification, ServerError> {
    let cassandra = settings.store.parse().map_err(explain("store"))?;
    let store = CassandraStore::connect(&cassandra).await.map_err(explain("store"))?;
    store.verify().await.map_err(explain("verification failed"))
}

/// Copies the data directory of one process to Cassandra. Returns the counts.
///
/// # Errors
/// As [`chat_store::migrate_data`].
pub async fn migrate_data(
    from: &Path,
    to: &str,
    report: impl Fn(String) + Send + Sync,
) -> Result<String, ServerError> {
    let to = to.parse().map_err(explain("--to"))?;
    let sealed = chat_store::SealedStore::seal(from).map_err(explain("--from"))?;
    let verified = sealed.verify().map_err(explain("--from"))?;
    report(format!("{} is sealed and verified: {verified}", from.display()));
    let migrated = chat_store::migrate_data(&sealed, &to, report).await.map_err(explain("migrate-data"))?;
    Ok(migrated.to_string())
}
