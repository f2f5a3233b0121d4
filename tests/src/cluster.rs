//! Nodes of a cluster as processes, on real services.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::binary;
use crate::cli_process::register_with;
use crate::deployment::{ANOTHER_ROUTER, Deployment, FIRST_GATEWAY, FIRST_ROUTER};
use crate::faults::Script;
use crate::server::{Machine, Server};

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
    deployment: Deployment,
    /// The settings that all nodes have.
    common: String,
}

impl Cluster {
    /// A cluster on a keyspace and a topic of this name; the keyspace may be there already. With a script that
    /// has machines, each node is on one of its own.
    pub fn start(dir: &Path, services: &Services, name: &str, size: Size, script: Option<Script>) -> Self {
        let kafka = services.kafka.replacen("/test?", &format!("/{name}?partitions=32&"), 1);
        let common = format!(
            "store = {:?}\nrouter = {kafka:?}\nregistry = {:?}\nlog = \"info,scylla=warn\"\n",
            services.keyspace(name),
            services.redis,
        );
        let mut cluster = Self {
            gateways: Vec::new(),
            routers: Vec::new(),
            services: services.clone(),
            deployment: Deployment::new(dir, script.as_ref()),
            script,
            dir: dir.to_owned(),
            common,
        };
        cluster.command(&["migrate"]);
        let (gateways, routers) = (0..size.gateways, 0..size.routers);
        cluster.gateways = gateways
            .map(|n| cluster.node(&format!("gateway{n}"), "gateway", FIRST_GATEWAY + n as u64))
            .collect();
        cluster.routers =
            routers.map(|n| cluster.node(&format!("router{n}"), "router", FIRST_ROUTER + n as u64)).collect();
        cluster
    }

    fn node(&self, name: &str, role: &str, number: u64) -> Server {
        let own = self.dir.join(name);
        std::fs::create_dir_all(&own).unwrap();
        let machine = self.deployment.machine(number);
        let settings = self.deployment.settings(name, &machine, &self.common);
        let flags = ["--config", settings.to_str().unwrap(), "serve", "--role", role];
        Server::start_on(machine, &own, &flags)
    }

    /// Runs a command of the server's binary with the settings of a node here; gives what it printed.
    pub fn command(&self, arguments: &[&str]) -> String {
        let settings = self.deployment.settings("commands", &Machine::this(), &self.common);
        let flags = ["--config", settings.to_str().unwrap()];
        let out = server_command(&[&flags, arguments].concat());
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// One more router.
    pub fn start_router(&self) -> Server {
        self.node("another-router", "router", ANOTHER_ROUTER)
    }

    /// Registers a user at a gateway.
    pub fn register(&self, gateway: usize, name: &str) -> PathBuf {
        let url = self.gateways[gateway].url();
        if !self.deployment.asks_for_tokens() {
            return register_with(&self.dir, &url, name, &[]);
        }
        register_with(&self.dir, &url, name, &["--token", &self.command(&["token", name])])
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
