//! Runs the nodes of a cluster as processes, on real services.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::binary;
use crate::cli_process::register_with;
use crate::deployment::{ANOTHER_ROUTER, Deployment, FIRST_GATEWAY, FIRST_ROUTER};
use crate::faults::Script;
use crate::server::{Machine, Server};

/// URLs of the services.
#[derive(Clone, Debug)]
pub struct Services {
    pub cassandra: String,
    pub kafka: String,
    pub redis: String,
}

impl Services {
    /// Services with one node each, from `CHAT_TEST_CASSANDRA`, `CHAT_TEST_KAFKA` and `CHAT_TEST_REDIS`.
    /// Prints a note and returns `None` if one of the variables is not set.
    pub fn single() -> Option<Self> {
        Self::named("")
    }

    /// Services with three nodes each, Redis with six, from the same variables with the suffix `_CLUSTER`.
    pub fn replicated() -> Option<Self> {
        Self::named("_CLUSTER")
    }

    fn named(suffix: &str) -> Option<Self> {
        let names = ["CASSANDRA", "KAFKA", "REDIS"].map(|name| format!("CHAT_TEST_{name}{suffix}"));
        let found: Vec<String> = names.iter().filter_map(|name| std::env::var(name).ok()).collect();
        if found.len() < names.len() {
            println!("ignored: {names:?} are not all set; the services step of scripts/test.sh sets them");
        }
        let [cassandra, kafka, redis] = found.try_into().ok()?;
        Some(Self { cassandra, kafka, redis })
    }

    /// Returns the URL of the store with another keyspace.
    pub fn keyspace(&self, name: &str) -> String {
        self.cassandra.replacen("/test?", &format!("/{name}?"), 1)
    }
}

/// Returns a random name that no earlier run used.
pub fn fresh_name() -> String {
    let mut random = [0; 4];
    getrandom::fill(&mut random).unwrap();
    format!("c{}", hex::encode(random))
}

/// Number of nodes of each role.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub gateways: usize,
    pub routers: usize,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    pub gateways: Vec<Server>,
    pub routers: Vec<Server>,
    pub services: Services,
    /// Controls the services, if they have several nodes.
    pub script: Option<Script>,
    dir: PathBuf,
    deployment: Deployment,
    /// Settings that all nodes share, as TOML.
    common: String,
}

impl Cluster {
    /// Starts a cluster on the keyspace and the topic `name`; the keyspace may already exist. If the script
    /// has machines, each node runs on its own machine.
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

    /// Runs a command of the server binary with the settings of a node on this machine. Returns its stdout.
    pub fn command(&self, arguments: &[&str]) -> String {
        let settings = self.deployment.settings("commands", &Machine::this(), &self.common);
        let flags = ["--config", settings.to_str().unwrap()];
        let out = server_command(&[&flags, arguments].concat());
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Starts an additional router.
    pub fn start_router(&self) -> Server {
        self.node("another-router", "router", ANOTHER_ROUTER)
    }

    /// Registers a user at a gateway. Returns the profile directory.
    pub fn register(&self, gateway: usize, name: &str) -> PathBuf {
        let url = self.gateways[gateway].url();
        if !self.deployment.asks_for_tokens() {
            return register_with(&self.dir, &url, name, &[]);
        }
        register_with(&self.dir, &url, name, &["--token", &self.command(&["token", name])])
    }

    /// Returns the URLs of all gateways, starting with gateway `first`.
    pub fn urls(&self, first: usize) -> Vec<String> {
        let count = self.gateways.len();
        (0..count).map(|n| self.gateways[(first + n) % count].url()).collect()
    }

    pub fn logs(&self) -> String {
        let nodes = self.gateways.iter().chain(&self.routers);
        nodes.map(|node| format!("--- {}\n{}", node.log_path().display(), node.log())).collect()
    }
}

/// Runs a command of the server binary and waits for it to exit.
pub fn server_command(arguments: &[&str]) -> Output {
    Command::new(binary("chat-server-ref")).args(arguments).output().unwrap()
}
