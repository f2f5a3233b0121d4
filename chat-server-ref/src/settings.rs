//! Settings: defaults, then a TOML file, then the environment, then flags.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};

/// The command line.
#[derive(Parser, Debug)]
#[command(name = "chat-server-ref", version, about = "The reference chat server")]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
    /// Print the settings that result, as TOML, and exit.
    #[arg(long, global = true)]
    print_config: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve (the default).
    Serve {
        /// What this node does, separated by commas: gateway, router. Both by default.
        #[arg(long, value_delimiter = ',')]
        role: Vec<Role>,
    },
    /// Connect to every backend and say what was found.
    Check,
    /// Make or update the schema of the cluster's store.
    Migrate {
        /// Give up the log and what was not applied of it, and begin another one.
        #[arg(long)]
        new_log: bool,
    },
    /// Move a data set from one process to a cluster; interrupted, it goes on when it is called again.
    MigrateData {
        /// `fjall:DIRECTORY`. It is sealed first: nothing serves it any more.
        #[arg(long)]
        from: String,
        /// `cassandra://host:port,host:port/keyspace?dc=datacenter1&replication=3`, a keyspace that is not there
        /// yet.
        #[arg(long)]
        to: String,
    },
    /// Say what happened to a message, stage by stage, without its content.
    Explain {
        /// Its id, as `chat --json` shows it.
        message_id: String,
        /// The admin addresses of the nodes to ask, separated by commas; this node's own by default.
        #[arg(long, value_delimiter = ',')]
        node: Vec<String>,
    },
    /// Print a token for a user.
    Token {
        /// The user's handle.
        user: String,
        /// Seconds it is valid.
        #[arg(long, default_value_t = 30 * 24 * 3600)]
        ttl: u64,
    },
    /// Prove what the store promises and print the counts: of the data directory, while no server runs on it, or of a
    /// cluster's store, at any time.
    Verify,
}

#[derive(clap::Args, Debug, Default)]
struct Flags {
    /// A TOML file with settings.
    #[arg(long, global = true, env = "CHAT_CONFIG")]
    config: Option<PathBuf>,
    /// Where clients connect (WebSocket at /v1).
    #[arg(long, global = true, env = "CHAT_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where /healthz, /readyz and /metrics are.
    #[arg(long, global = true, env = "CHAT_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// The data directory.
    #[arg(long, global = true, env = "CHAT_DATA")]
    data: Option<PathBuf>,
    /// Let anybody register any free name without a token; only on loopback.
    #[arg(long, global = true, env = "CHAT_OPEN_REGISTRATION")]
    open_registration: Option<bool>,
    /// Which log lines are written, as in `info` or `chat_core=debug`.
    #[arg(long, global = true, env = "CHAT_LOG")]
    log: Option<String>,
}

/// What is to be done.
#[derive(Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum Action {
    /// Print the settings.
    PrintConfig,
    /// Serve.
    Serve,
    /// Connect to every backend and say what was found.
    Check,
    /// Make or update the schema; `true`: begin a new log.
    Migrate(bool),
    /// Move a data set.
    MigrateData {
        /// From here.
        from: String,
        /// To there.
        to: String,
    },
    /// Say what happened to a message.
    Explain {
        /// Its id.
        message_id: String,
        /// The admin addresses of the nodes to ask.
        nodes: Vec<String>,
    },
    /// Print a token.
    Token {
        /// For this handle.
        user: String,
        /// Valid for this many seconds.
        ttl: u64,
    },
    /// Audit the store.
    Verify,
}

/// What a node does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::exhaustive_enums)]
pub enum Role {
    /// Holds connections of clients.
    Gateway,
    /// Owns shards of the log.
    Router,
}

/// All settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::exhaustive_structs)]
pub struct Settings {
    /// Where clients connect (WebSocket at /v1).
    pub listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are. Keep it on loopback: it asks for no password.
    pub admin_listen: SocketAddr,
    /// The data directory of the embedded store.
    pub data: PathBuf,
    /// Messages, accounts and prekeys: `fjall` (in `data`), or
    /// `cassandra://host:port,host:port/keyspace?dc=datacenter1&replication=3`.
    pub store: String,
    /// The log that orders conversations: `memory`, or `kafka://host:port/topic?partitions=16&replication=3`.
    pub router: String,
    /// Who is connected where: `memory`, `redis://host:port`, or `redis-cluster://host:port,host:port`.
    pub registry: String,
    /// What this node does in a cluster.
    pub roles: Vec<Role>,
    /// Where the other nodes of a cluster reach this one.
    pub node_link_listen: SocketAddr,
    /// The `host:port` that the others are told, if it is not where this one listens (this machine's name, if
    /// that is every address).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_link_address: Option<String>,
    /// PEM files: certificate and key of this node for the name `chat-node`, and the certificate of the
    /// authority that signed everybody's. Required outside of loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_link_tls: Option<NodeLinkFiles>,
    /// Let anybody register any free name without a token. On by default on loopback only, and refused
    /// elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_registration: Option<bool>,
    /// The `host:port` names under which clients reach this server; what they sign names one of them.
    /// Required outside of loopback.
    pub authorities: Vec<String>,
    /// Addresses of proxies in front of this server: connections of theirs are not limited by address.
    pub proxies: Vec<IpAddr>,
    /// Origins of web pages that may connect.
    pub origins: Vec<String>,
    /// The file with the secret of HS256 tokens; made in the data directory if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// A JWKS file with public keys of EdDSA tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// PEM file with the certificate chain; with `tls_key`, clients connect by `wss://`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Shards that conversations are spread over.
    pub shards: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// New connections in a second; more wait in line, those who would for over five seconds are answered 503.
    pub accept_rate: u32,
    /// Seconds over which a drain spreads reconnects.
    pub drain_seconds: u32,
    /// Days a message waits for a device before it is shown a gap instead.
    pub retention_days: u32,
    /// Which log lines are written.
    pub log: String,
    /// The OpenTelemetry collector (OTLP by gRPC) that is told what happens to messages, without content and
    /// without whose they are: `http://host:4317` or `https://host:4317`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<String>,
    /// The share of messages, 0 to 1, that it is told of.
    pub otlp_share: f64,
}

/// PEM files of the node link.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs)]
pub struct NodeLinkFiles {
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority's certificate.
    pub ca: PathBuf,
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
            tls_cert: None,
            tls_key: None,
            shards: 8,
            max_connections: 20_000,
            accept_rate: 500,
            drain_seconds: 60,
            retention_days: 30,
            // The driver repeats whatever Cassandra warns of, with the statement.
            log: "info,scylla=error".into(),
            otlp: None,
            otlp_share: 0.01,
        }
    }
}

impl Settings {
    /// Whether tokens are not needed.
    pub fn is_open(&self) -> bool {
        self.open_registration.unwrap_or_else(|| self.listen.ip().is_loopback())
    }

    /// Whether any of the backends is one that several nodes share.
    pub fn is_cluster(&self) -> bool {
        self.store != "fjall" || self.router != "memory" || self.registry != "memory"
    }

    /// Refuses backends that cannot keep the promises together.
    fn check_cluster(&self) -> Result<(), String> {
        for (name, value, alone, shared) in [
            ("store", &self.store, "fjall", &["cassandra://"][..]),
            ("router", &self.router, "memory", &["kafka://"][..]),
            ("registry", &self.registry, "memory", &["redis://", "redis-cluster://"][..]),
        ] {
            if value != alone && !shared.iter().any(|scheme| value.starts_with(scheme)) {
                return Err(format!(
                    "{name} is {value:?}: it is {alone:?}, or begins with {}",
                    shared.join(" or ")
                ));
            }
            if value == alone && self.is_cluster() {
                return Err(format!(
                    "{name} is {alone:?}, which is this process's own: a cluster needs store, router and \
                     registry that nodes share, because a commit in pieces is only safe under a log that outlives the \
                     process"
                ));
            }
        }
        if self.is_cluster() && !self.node_link_listen.ip().is_loopback() && self.node_link_tls.is_none() {
            return Err(
                "node_link_tls is missing: outside of loopback nodes show each other certificates".into()
            );
        }
        if self.is_cluster() && !self.is_open() && self.secret_file.is_none() && self.jwks_file.is_none() {
            return Err(
                "secret_file or jwks_file is missing: the nodes of a cluster accept the same tokens".into()
            );
        }
        if self.roles.is_empty() {
            return Err("roles is empty: gateway, router, or both".into());
        }
        Ok(())
    }

    /// The certificates of the node link.
    ///
    /// # Errors
    /// A file that cannot be read.
    #[cfg(feature = "cluster")]
    pub fn node_link_tls(&self) -> Result<Option<chat_transport::node_link::NodeLinkTls>, String> {
        let Some(files) = &self.node_link_tls else { return Ok(None) };
        let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
        let (cert, key, ca) = (read(&files.cert)?, read(&files.key)?, read(&files.ca)?);
        Ok(Some(chat_transport::node_link::NodeLinkTls::new(&cert, &key, &ca)))
    }

    /// The settings as a TOML file.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, String> {
        let shown = Self { open_registration: Some(self.is_open()), ..self.clone() };
        toml::to_string_pretty(&shown).map_err(|e| e.to_string())
    }

    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Refuses what is unsafe.
    ///
    /// # Errors
    /// What is wrong and what to do about it.
    pub fn check(&self) -> Result<(), String> {
        let public = !self.listen.ip().is_loopback();
        if public && self.is_open() {
            return Err("open_registration is on, and the server listens to more than this machine: \
                        turn it off, or listen on 127.0.0.1"
                .into());
        }
        if public && self.authorities.is_empty() {
            return Err("authorities is empty: name the host:port under which clients reach this server, \
                        so that no other server can pass their signatures on"
                .into());
        }
        self.check_cluster()?;
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err("tls_cert and tls_key belong together".into());
        }
        if !(1..=365).contains(&self.retention_days) {
            return Err("retention_days is 1 to 365".into());
        }
        if let Some(collector) = &self.otlp {
            if cfg!(not(feature = "telemetry")) {
                return Err("otlp is set, and this binary was built without the feature telemetry".into());
            }
            if !["http://", "https://"].iter().any(|scheme| collector.starts_with(scheme)) {
                return Err(format!("otlp is {collector:?}: it begins with http:// or https://"));
            }
        }
        if !(0.0..=1.0).contains(&self.otlp_share) {
            return Err("otlp_share is 0 to 1".into());
        }
        if self.shards == 0 || self.max_connections == 0 || self.accept_rate == 0 {
            return Err("shards, max_connections and accept_rate are at least 1".into());
        }
        Ok(())
    }
}

impl Arguments {
    /// What to do, with which settings.
    ///
    /// # Errors
    /// An unreadable file, or an unknown or malformed key in it, by name.
    pub fn resolve(self) -> Result<(Action, Settings), String> {
        let mut settings = match &self.flags.config {
            Some(path) => Settings::read(path)?,
            None => Settings::default(),
        };
        let flags = self.flags;
        settings.listen = flags.listen.unwrap_or(settings.listen);
        settings.admin_listen = flags.admin_listen.unwrap_or(settings.admin_listen);
        settings.data = flags.data.unwrap_or(settings.data);
        settings.open_registration = flags.open_registration.or(settings.open_registration);
        settings.log = flags.log.unwrap_or(settings.log);
        let action = match (self.print_config, self.command) {
            (true, _) => Action::PrintConfig,
            (_, None) => Action::Serve,
            (_, Some(Command::Serve { role })) => {
                if !role.is_empty() {
                    settings.roles = role;
                }
                Action::Serve
            }
            (_, Some(Command::Check)) => Action::Check,
            (_, Some(Command::Migrate { new_log })) => Action::Migrate(new_log),
            (_, Some(Command::Explain { message_id, node })) => {
                let own = || vec![settings.admin_listen.to_string()];
                Action::Explain { message_id, nodes: if node.is_empty() { own() } else { node } }
            }
            (_, Some(Command::MigrateData { from, to })) => Action::MigrateData { from, to },
            (_, Some(Command::Token { user, ttl })) => Action::Token { user, ttl },
            (_, Some(Command::Verify)) => Action::Verify,
        };
        Ok((action, settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named() {
        let error = toml::from_str::<Settings>("lisen = \"127.0.0.1:1\"").unwrap_err().to_string();
        assert!(error.contains("lisen"), "{error}");
    }

    #[test]
    fn printed_settings_read_back() {
        let text = Settings::default().to_toml().unwrap();
        assert_eq!(toml::from_str::<Settings>(&text).unwrap().listen, Settings::default().listen);
    }

    #[test]
    fn the_settings_that_are_shipped_are_taken() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chat.toml");
        let settings: Settings = toml::from_str(&std::fs::read_to_string(shipped).unwrap()).unwrap();
        assert_eq!(settings.check(), Ok(()));
    }

    #[test]
    fn backends_are_shared_together_or_not_at_all() {
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

    #[test]
    fn retention_is_a_year_at_most() {
        let kept = |retention_days| Settings { retention_days, ..Settings::default() }.check();
        assert_eq!(kept(365), Ok(()));
        assert!(kept(366).is_err() && kept(0).is_err(), "an inbox is not read further back");
    }

    #[test]
    fn open_registration_stays_on_this_machine() {
        let mut settings = Settings { listen: "0.0.0.0:7777".parse().unwrap(), ..Settings::default() };
        assert!(!settings.is_open(), "off by default elsewhere");
        settings.authorities = vec!["chat.example:443".into()];
        assert!(settings.check().is_ok());
        settings.open_registration = Some(true);
        assert!(settings.check().is_err());
    }
}
