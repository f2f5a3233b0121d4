//! Nodes of a cluster as processes, on real services.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::binary;
use crate::faults::Script;
use crate::server::Server;

/// Where the services are.
#[derive(Clone, Debug)]
pub struct Services {
    pub cassandra: String,
    pub kafka: String,
    pub redis: String,
}

impl Services {
    /// One node of each; `None`, said aloud, if they do not run here.
    pub fn single() -> Option<Self> {
        Self::named("")
    }

    /// Three nodes of each, six of Redis.
    pub fn replicated() -> Option<Self> {
        Self::named("_CLUSTER")
    }

    fn named(suffix: &str) -> Option<Self> {
        let names = ["CASSANDRA", "KAFKA", "REDIS"].map(|name| format!("CHAT_TEST_{name}{suffix}"));
        let found: Vec<String> = names.iter().filter_map(|name| std::env::var(name).ok()).collect();
        if found.len() < names.len() {
            println!("ignored: {names:?} are not all set: the services step of scripts/test.sh does it");
        }
        let [cassandra, kafka, redis] = found.try_into().ok()?;
        Some(Self { cassandra, kafka, redis })
    }

    /// The store, with a keyspace of its own.
    pub fn keyspace(&self, name: &str) -> String {
        self.cassandra.replacen("/test?", &format!("/{name}?"), 1)
    }
}

/// A name that nobody used before.
pub fn fresh_name() -> String {
    let mut random = [0; 4];
    getrandom::fill(&mut random).unwrap();
    format!("c{}", hex::encode(random))
}

/// How many nodes of each role.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub gateways: usize,
    pub routers: usize,
}

/// Nodes of a cluster.
#[derive(Debug)]
pub struct Cluster {
    pub gateways: Vec<Server>,
    pub routers: Vec<Server>,
    pub services: Services,
    /// Runs the services, where they are of several nodes.
    pub script: Option<Script>,
    dir: PathBuf,
}

impl Cluster {
    /// A cluster on a keyspace and a topic of this name; the keyspace may be there already.
    pub fn start(dir: &Path, services: &Services, name: &str, size: Size) -> Self {
        let kafka = services.kafka.replacen("/test?", &format!("/{name}?partitions=32&"), 1);
        let text = format!(
            "store = {:?}\nrouter = {kafka:?}\nregistry = {:?}\nlink_listen = \"127.0.0.1:0\"\n\
             open_registration = true\nlog = \"info,scylla=warn\"\n",
            services.keyspace(name),
            services.redis,
        );
        std::fs::write(dir.join("cluster.toml"), text).unwrap();
        let mut cluster = Self {
            gateways: Vec::new(),
            routers: Vec::new(),
            services: services.clone(),
            script: None,
            dir: dir.to_owned(),
        };
        let migrated = server_command(&["--config", &cluster.config(), "migrate"]);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        cluster.gateways =
            (0..size.gateways).map(|n| cluster.node(&format!("gateway{n}"), "gateway")).collect();
        cluster.routers = (0..size.routers).map(|n| cluster.node(&format!("router{n}"), "router")).collect();
        cluster
    }

    fn config(&self) -> String {
        self.dir.join("cluster.toml").to_str().unwrap().to_owned()
    }

    fn node(&self, name: &str, role: &str) -> Server {
        let own = self.dir.join(name);
        std::fs::create_dir_all(&own).unwrap();
        Server::start_with(&own, &["--config", &self.config(), "serve", "--role", role])
    }

    /// One more router.
    pub fn start_router(&self) -> Server {
        self.node("another-router", "router")
    }

    /// The gateways' addresses, from one on.
    pub fn urls(&self, first: usize) -> Vec<String> {
        let count = self.gateways.len();
        (0..count).map(|n| self.gateways[(first + n) % count].url()).collect()
    }

    pub fn logs(&self) -> String {
        let nodes = self.gateways.iter().chain(&self.routers);
        nodes.map(|node| format!("--- {}\n{}", node.log_path().display(), node.log())).collect()
    }
}

/// Runs a command of the server's binary to its end.
pub fn server_command(arguments: &[&str]) -> Output {
    Command::new(binary("chat-server-ref")).args(arguments).output().unwrap()
}
