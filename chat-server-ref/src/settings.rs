//! Settings: defaults, then a TOML file, then the environment, then flags.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chat_core::backend::Rules;
use chat_core::delivery::Rates;
use chat_server::jwt::{JwtAuthenticator, JwtSecret};
use chat_server::{Server, ServerBuilder};
use clap::{Parser, Subcommand};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

#[derive(Parser, Debug)]
#[command(name = "chat-server-ref", version, about = "The reference chat server")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
    /// Print the resulting settings as TOML and exit.
    #[arg(long, global = true)]
    pub(crate) print_config: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the server (the default).
    Serve {
        /// Roles of this node, separated by commas: gateway, router. Both by default.
        #[arg(long, value_delimiter = ',')]
        role: Vec<Role>,
    },
    /// Connect to every backend and report what was found.
    Check,
    /// Bring the store to the format of this release.
    Migrate {
        /// Abandon the log, with the commands that were not applied yet, and begin another one.
        #[arg(long)]
        new_log: bool,
        /// The data was restored from an older copy: devices must compare their cursors with it.
        #[arg(long)]
        restored: bool,
    },
    /// Move a data set from one process to a cluster. If interrupted, run it again to resume.
    MigrateData {
        /// `fjall:DIRECTORY`. The directory is sealed first: no server opens it any more.
        #[arg(long)]
        from: String,
        /// `cassandra://host:port,host:port/keyspace?dc=datacenter1&replication=3`, a keyspace that does not
        /// exist yet.
        #[arg(long)]
        to: String,
    },
    /// Print the history of a message, stage by stage, without its content.
    Explain {
        /// Message id, as printed by `chat --json`.
        message_id: String,
        /// Admin addresses of the nodes to query, separated by commas. This node's own by default.
        #[arg(long, value_delimiter = ',')]
        node: Vec<String>,
    },
    /// End all tokens of a user that were issued until now, and the sessions that began with them, on every node.
    Revoke {
        /// The user's handle.
        user: String,
        /// Admin address of a node. This node's own by default.
        #[arg(long)]
        node: Option<String>,
    },
    /// Print a token for a user.
    Token {
        /// The user's handle.
        user: String,
        /// Validity in seconds.
        #[arg(long, default_value_t = 30 * 24 * 3600)]
        ttl: u64,
    },
    /// Verify the guarantees of the store and print its counts. The data directory can be verified while no
    /// server runs on it, a cluster's store at any time.
    Verify,
}

#[derive(clap::Args, Debug, Default)]
struct Flags {
    /// A TOML file with settings.
    #[arg(long, global = true, env = "CHAT_CONFIG")]
    config: Option<PathBuf>,
    /// Address for clients (WebSocket at /v1).
    #[arg(long, global = true, env = "CHAT_LISTEN", value_parser = resolve)]
    listen: Option<SocketAddr>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, global = true, env = "CHAT_ADMIN_LISTEN", value_parser = resolve)]
    admin_listen: Option<SocketAddr>,
    /// The data directory.
    #[arg(long, global = true, env = "CHAT_DATA")]
    data: Option<PathBuf>,
    /// Allow registration of any free handle without a token; only on loopback.
    #[arg(long, global = true, env = "CHAT_OPEN_REGISTRATION")]
    open_registration: Option<bool>,
    /// Log filter, such as `info` or `chat_core=debug`.
    #[arg(long, global = true, env = "CHAT_LOG")]
    log: Option<String>,
}

/// A role of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Holds the connections of clients.
    Gateway,
    /// Owns shards of the log.
    Router,
}

/// The settings of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Where clients connect (WebSocket at /v1).
    #[serde(deserialize_with = "address")]
    pub(crate) listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are. Keep it on loopback: it asks for no password.
    #[serde(deserialize_with = "address")]
    pub(crate) admin_listen: SocketAddr,
    /// The data directory of the embedded store.
    pub(crate) data: PathBuf,
    /// Store of messages, accounts and prekeys: `fjall` (in `data`), or
    /// `cassandra://host:port,host:port/keyspace?dc=datacenter1&replication=3`.
    pub(crate) store: String,
    /// The log that orders conversations: `memory`, or `kafka://host:port/topic?partitions=16&replication=3`.
    pub(crate) router: String,
    /// The registry of connections: `memory`, `redis://host:port`, or `redis-cluster://host:port,host:port`.
    pub(crate) registry: String,
    /// The roles of this node in a cluster.
    pub(crate) roles: Vec<Role>,
    /// The address on which this node accepts the other nodes of a cluster.
    #[serde(deserialize_with = "address")]
    pub(crate) node_link_listen: SocketAddr,
    /// The `host:port` that the other nodes connect to, if it differs from `node_link_listen` (the name of this
    /// machine, if that is the unspecified address).
    pub(crate) node_link_address: Option<String>,
    /// PEM files: certificate and key of this node for the name `chat-node`, and the certificate of the
    /// authority that signed the certificates of all nodes. Required outside of loopback.
    pub(crate) node_link_tls: Option<NodeLinkFiles>,
    /// Allows registration of any free handle without a token. On by default on loopback only, and rejected
    /// elsewhere.
    pub(crate) open_registration: Option<bool>,
    /// The `host:port` names under which clients reach this server. Clients sign one of them.
    /// Required outside of loopback.
    pub(crate) authorities: Vec<String>,
    /// Addresses of trusted proxies. Their connections count for the address that they add in `X-Forwarded-For`.
    pub(crate) proxies: Vec<IpAddr>,
    /// Allowed origins of web pages.
    pub(crate) origins: Vec<String>,
    /// File with the secret of HS256 tokens. By default it is created in the data directory.
    pub(crate) secret_file: Option<PathBuf>,
    /// JWKS file with public keys of EdDSA tokens.
    pub(crate) jwks_file: Option<PathBuf>,
    /// The `aud` that every token must name. By default it is not checked.
    pub(crate) token_audience: Option<String>,
    /// The `iss` that every token must name. By default it is not checked.
    pub(crate) token_issuer: Option<String>,
    /// PEM file with the certificate chain; with `tls_key`, clients connect by `wss://`.
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key.
    pub(crate) tls_key: Option<PathBuf>,
    /// Lets clients of other machines connect without TLS: only behind a proxy that terminates TLS.
    pub(crate) allow_plaintext: bool,
    /// Lets `admin_listen` be outside of loopback: only behind a firewall, because it has no authentication.
    pub(crate) allow_public_admin: bool,
    /// Number of shards of the `memory` router.
    pub(crate) shards: usize,
    /// Maximum number of concurrent connections.
    pub(crate) max_connections: usize,
    /// New connections per second. Further ones are delayed, or rejected with 503 if the delay would exceed
    /// five seconds.
    pub(crate) accept_rate: u32,
    /// Seconds over which a drain spreads reconnects.
    pub(crate) drain_seconds: u32,
    /// Days a message waits for a device. After that the device receives a gap instead.
    pub(crate) retention_days: u32,
    /// The latest rules that a message may need: 3 by default, 2 disables groups. While
    /// nodes of the release before run: the rules of that release.
    pub(crate) rules: u32,
    /// Days after which the content of a message is erased from history; 0 keeps it. Not below `retention_days`.
    pub(crate) history_retention_days: u32,
    /// Which log lines are written.
    pub(crate) log: String,
    /// The OpenTelemetry collector (OTLP over gRPC) that receives traces of messages, without content and
    /// owner: `http://host:4317` or `https://host:4317`.
    pub(crate) otlp: Option<String>,
    /// Share of messages that are traced, 0 to 1.
    pub(crate) otlp_share: f64,
}

/// PEM files of the node link.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeLinkFiles {
    /// This node's certificate.
    pub(crate) cert: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
    /// The authority's certificate.
    pub(crate) ca: PathBuf,
}

/// Resolves `host:port`. A name with several addresses stands for its first IPv4 address.
fn resolve(text: &str) -> Result<SocketAddr, String> {
    let failed =
        |error| format!("{text:?} is not an address ({error}): write host:port, such as localhost:7777");
    let found: Vec<SocketAddr> = text.to_socket_addrs().map_err(failed)?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("{text:?} has no address"))
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    resolve(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Describes an error of the settings file. A misspelt key is answered with the nearest one.
fn describe(error: &toml::de::Error) -> String {
    let mut quoted = error.message().split('`').skip(1).step_by(2);
    let unknown = quoted.next().filter(|_| error.message().starts_with("unknown field"));
    let nearest = unknown.and_then(|key| quoted.min_by_key(|known| strsim::osa_distance(key, known)));
    nearest.map_or(error.to_string(), |key| format!("{error}\nthe nearest setting is `{key}`"))
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7777)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 7778)),
            data: PathBuf::from("./chat-data"),
            store: "fjall".into(),
            router: "memory".into(),
            registry: "memory".into(),
            roles: vec![Role::Gateway, Role::Router],
            node_link_listen: SocketAddr::from(([127, 0, 0, 1], 7779)),
            node_link_address: None,
            node_link_tls: None,
            open_registration: None,
            authorities: Vec::new(),
            proxies: Vec::new(),
            origins: Vec::new(),
            secret_file: None,
            jwks_file: None,
            token_audience: None,
            token_issuer: None,
            tls_cert: None,
            tls_key: None,
            allow_plaintext: false,
            allow_public_admin: false,
            shards: 8,
            max_connections: 20_000,
            accept_rate: 500,
            drain_seconds: 60,
            retention_days: 30,
            rules: Rules::CHANNELS.0,
            history_retention_days: 0,
            // At `warn`, the driver would log every warning of Cassandra with its statement.
            log: "info,scylla=error".into(),
            otlp: None,
            otlp_share: 0.01,
        }
    }
}

impl Settings {
    /// Returns whether open registration is on, so that tokens are not needed.
    pub(crate) fn is_open(&self) -> bool {
        self.open_registration.unwrap_or_else(|| self.listen.ip().is_loopback())
    }

    /// Returns whether any of the backends is shared by several nodes.
    pub(crate) fn is_cluster(&self) -> bool {
        self.store != "fjall" || self.router != "memory" || self.registry != "memory"
    }

    /// Returns a builder with everything but login and storage.
    pub(crate) fn builder(&self) -> ServerBuilder {
        let mut builder = Server::builder()
            .admin(self.admin_listen.to_string())
            .authorities(self.authorities.clone())
            .origins(self.origins.clone())
            .reports(self.data.join("reports.jsonl"))
            .proxies(self.proxies.clone())
            .max_connections(self.max_connections)
            .accept_rate(self.accept_rate)
            .retention(Duration::from_secs(u64::from(self.retention_days) * 24 * 3600))
            .drain(Duration::from_secs(u64::from(self.drain_seconds)))
            .shards(self.shards)
            .allow_plaintext(self.allow_plaintext)
            .allow_public_admin(self.allow_public_admin)
            .runs_shards(self.roles.contains(&Role::Router));
        builder = builder.rules(Rules(self.rules));
        if self.history_retention_days > 0 {
            let seconds = u64::from(self.history_retention_days) * 24 * 3600;
            builder = builder.history_retention(Duration::from_secs(seconds));
        }
        if self.is_open() {
            builder = builder.open_registration().rates(Rates::local());
        }
        if self.roles.contains(&Role::Gateway) {
            builder = builder.listen(self.listen.to_string());
        }
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            builder = builder.tls(cert, key);
        }
        builder
    }

    /// Returns the path of the secret that signs tokens. `None` in a cluster without `secret_file`: each node would
    /// create its own secret, and a gateway keeps nothing on its disk.
    fn secret_path(&self) -> Option<PathBuf> {
        let own = || (!self.is_cluster()).then(|| self.data.join("secret"));
        self.secret_file.clone().or_else(own)
    }

    /// Returns the secret that signs tokens. Creates the one in the data directory if it does not exist. Fails if the
    /// secret is unreadable or weak.
    pub(crate) fn secret(&self) -> Result<Option<JwtSecret>, String> {
        let Some(path) = self.secret_path() else { return Ok(None) };
        let is_own = self.secret_file.is_none();
        let secret = if is_own { JwtSecret::read_or_create(path) } else { JwtSecret::read(path) };
        Ok(Some(secret?))
    }

    /// Returns the authenticator of tokens. Fails if the secret is unreadable or weak, or the JWKS file is unreadable.
    pub(crate) fn authenticator(&self) -> Result<JwtAuthenticator, String> {
        let tokens = self.jwks()?;
        Ok(match self.secret()? {
            Some(secret) => tokens.secret(&secret),
            None => tokens,
        })
    }

    /// Returns an authenticator with the keys of the JWKS file, if one is set.
    fn jwks(&self) -> Result<JwtAuthenticator, String> {
        let mut tokens = JwtAuthenticator::new();
        tokens = self.token_audience.iter().fold(tokens, |tokens, audience| tokens.audience(audience));
        tokens = self.token_issuer.iter().fold(tokens, |tokens, issuer| tokens.issuer(issuer));
        Ok(self.jwks_file.iter().try_fold(tokens, |tokens, path| tokens.jwks_file(path))?)
    }

    /// Describes the tokens that the server accepts, without creating a secret.
    pub(crate) fn describe_tokens(&self) -> Result<String, String> {
        self.jwks()?;
        let secret = self.secret_path();
        if let Some(path) = secret.as_ref().filter(|path| self.secret_file.is_none() && !path.exists()) {
            return Ok(format!("no secret yet: the first start creates {}", path.display()));
        }
        self.secret()?;
        let kinds = [
            (secret.is_some(), "signed with the secret"),
            (self.jwks_file.is_some(), "signed with a key of the JWKS file"),
            (self.is_open(), "none needed on this machine"),
        ];
        let accepted: Vec<&str> = kinds.iter().filter(|(is_on, _)| *is_on).map(|(_, kind)| *kind).collect();
        Ok(accepted.join(", "))
    }

    /// Rejects backends that cannot keep the guarantees together.
    fn check_cluster(&self) -> Result<(), String> {
        for (name, value, alone, shared) in [
            ("store", &self.store, "fjall", &["cassandra://"][..]),
            ("router", &self.router, "memory", &["kafka://"][..]),
            (
                "registry",
                &self.registry,
                "memory",
                &["redis://", "rediss://", "redis-cluster://", "rediss-cluster://"][..],
            ),
        ] {
            if value != alone && !shared.iter().any(|scheme| value.starts_with(scheme)) {
                // The value may hold a password.
                return Err(format!("{name} must be {alone:?}, or begin with {}", shared.join(" or ")));
            }
            if value == alone && self.is_cluster() {
                return Err(format!(
                    "{name} is {alone:?}, which is local to this process: the nodes of a cluster must share \
                     store, router and registry, because a commit in several writes is only safe with a log \
                     that outlives the process"
                ));
            }
        }
        if self.is_cluster() && !self.node_link_listen.ip().is_loopback() && self.node_link_tls.is_none() {
            return Err(
                "node_link_tls is missing: it is required if node_link_listen is not on loopback".into()
            );
        }
        if self.is_cluster() && !self.is_open() && self.secret_file.is_none() && self.jwks_file.is_none() {
            return Err("secret_file or jwks_file is missing: all nodes must accept the same tokens".into());
        }
        if self.roles.is_empty() {
            return Err("roles is empty: set gateway, router, or both".into());
        }
        Ok(())
    }

    /// Returns the services of the cluster. Fails if a file cannot be read.
    #[cfg(feature = "cluster")]
    pub(crate) fn cluster(&self) -> Result<chat_server::cluster::ClusterSettings, String> {
        use chat_server::cluster::{NodeLinkAddress, read_node_link_tls};
        let tls = self.node_link_tls.as_ref();
        Ok(chat_server::cluster::ClusterSettings {
            store: self.store.clone(),
            router: self.router.clone(),
            registry: self.registry.clone(),
            runs_shards: self.roles.contains(&Role::Router),
            node_link: self.roles.contains(&Role::Gateway).then(|| NodeLinkAddress {
                listen: self.node_link_listen,
                advertise: self.node_link_address.clone(),
            }),
            node_link_tls: tls
                .map(|files| read_node_link_tls(&files.cert, &files.key, &files.ca))
                .transpose()?,
        })
    }

    /// Returns the settings as TOML. Fails if a path is not UTF-8.
    pub(crate) fn to_toml(&self) -> Result<String, String> {
        let shown = Self { open_registration: Some(self.is_open()), ..self.clone() };
        toml::to_string_pretty(&shown).map_err(|e| e.to_string())
    }

    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|e| format!("{}: {}", path.display(), describe(&e)))
    }

    /// Rejects invalid and unsafe settings. The error says what to do about it.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.builder().check()?;
        self.check_cluster()?;
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err("tls_cert and tls_key must be set together".into());
        }
        if let Some(collector) = &self.otlp {
            if cfg!(not(feature = "telemetry")) {
                return Err("otlp is set, but this binary was built without the feature telemetry".into());
            }
            if !["http://", "https://"].iter().any(|scheme| collector.starts_with(scheme)) {
                return Err(format!("otlp is {collector:?}: it must begin with http:// or https://"));
            }
        }
        if !(0.0..=1.0).contains(&self.otlp_share) {
            return Err("otlp_share must be 0 to 1".into());
        }
        Ok(())
    }
}

impl Arguments {
    /// Returns the settings: those of the file, or the defaults, changed by the flags.
    ///
    /// # Errors
    /// If the settings file is unreadable, or has an unknown or malformed key. The text names it.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let flags = &self.flags;
        let mut settings = flags.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
        settings.listen = flags.listen.unwrap_or(settings.listen);
        settings.admin_listen = flags.admin_listen.unwrap_or(settings.admin_listen);
        settings.data = flags.data.clone().unwrap_or(settings.data);
        settings.open_registration = flags.open_registration.or(settings.open_registration);
        settings.log = flags.log.clone().unwrap_or(settings.log);
        if let Some(Command::Serve { role }) = &self.command
            && !role.is_empty()
        {
            settings.roles.clone_from(role);
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_settings_are_valid() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chat.toml");
        let settings: Settings = toml::from_str(&std::fs::read_to_string(shipped).unwrap()).unwrap();
        assert_eq!(settings.check(), Ok(()));
    }

    #[test]
    fn rejects_mixed_local_and_shared_backends() {
        let cluster = Settings {
            store: "cassandra://127.0.0.1:9042".into(),
            router: "kafka://127.0.0.1:9092".into(),
            registry: "redis://127.0.0.1:6379".into(),
            ..Settings::default()
        };
        assert_eq!(cluster.check(), Ok(()));
        let half = Settings { router: "memory".into(), ..cluster.clone() };
        assert!(half.check().unwrap_err().contains("router"));
        let unknown = Settings { store: "mongodb://x".into(), ..cluster.clone() };
        assert!(unknown.check().unwrap_err().contains("store"));
        let public = Settings { node_link_listen: "0.0.0.0:7779".parse().unwrap(), ..cluster };
        assert!(public.check().unwrap_err().contains("node_link_tls"));
    }
}
