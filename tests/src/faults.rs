//! Fault injection for a cluster: each fault starts, lasts for a while, and ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::TestRng;
use crate::cluster::Cluster;
use crate::deployment::{ANOTHER_ROUTER, FIRST_GATEWAY, FIRST_ROUTER};
use crate::server::Server;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    KillRouter,
    KillGateway,
    Flush,
    StopRedisAlone,
    StopRouter,
    StopGateway,
    MoveShards,
    KillKafkaController,
    KillCassandra,
    KillRedisMaster,
    StopKafka,
    StopCassandra,
    StopRedis,
    CutNodes,
    CutServers,
    CutServices,
    CutClients,
}

impl Fault {
    /// Faults of chat server nodes and of Redis.
    pub const NODES: [Self; 7] = [
        Self::KillRouter,
        Self::KillGateway,
        Self::Flush,
        Self::StopRedisAlone,
        Self::StopRouter,
        Self::StopGateway,
        Self::MoveShards,
    ];

    /// Faults of services that have several nodes.
    pub const SERVICES: [Self; 6] = [
        Self::KillKafkaController,
        Self::KillCassandra,
        Self::KillRedisMaster,
        Self::StopKafka,
        Self::StopCassandra,
        Self::StopRedis,
    ];

    /// Faults of the network between machines.
    pub const NETWORK: [Self; 4] = [Self::CutNodes, Self::CutServers, Self::CutServices, Self::CutClients];

    pub const fn name(self) -> &'static str {
        match self {
            Self::KillRouter => "kill -9 of a router",
            Self::KillGateway => "kill -9 of a gateway",
            Self::Flush => "FLUSHALL",
            Self::StopRedisAlone => "the only Redis stopped",
            Self::StopRouter => "a router stopped past its lease",
            Self::StopGateway => "a gateway stopped",
            Self::MoveShards => "shards moved again and again",
            Self::KillKafkaController => "kill -9 of the Kafka controller",
            Self::KillCassandra => "kill -9 of a Cassandra node",
            Self::KillRedisMaster => "kill -9 of a Redis master",
            Self::StopKafka => "a Kafka broker stopped",
            Self::StopCassandra => "a Cassandra node stopped",
            Self::StopRedis => "a Redis node stopped",
            Self::CutNodes => "two nodes cut off from each other",
            Self::CutServers => "a node cut off from a machine of services",
            Self::CutServices => "two machines of services cut off from each other",
            Self::CutClients => "clients cut off from a gateway",
        }
    }

    /// Returns the maximum duration of a random stop or network cut, in seconds:
    /// `CHAT_TEST_CLUSTER_MAX_STOP`, by default 12.
    pub fn longest() -> u64 {
        std::env::var("CHAT_TEST_CLUSTER_MAX_STOP").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
    }

    /// Returns the faults of a list whose names contain one of the comma-separated parts in
    /// `CHAT_TEST_CLUSTER_KINDS`, or all of them if the variable is not set.
    pub fn wanted(of: &[Self]) -> Vec<Self> {
        let Ok(parts) = std::env::var("CHAT_TEST_CLUSTER_KINDS") else { return of.to_vec() };
        let wanted = |fault: &Self| parts.split(',').any(|part| fault.name().contains(part));
        of.iter().copied().filter(wanted).collect()
    }
}

/// The scripts, and their environment, that control the services with several nodes.
#[derive(Clone, Debug)]
pub struct Script {
    environment: Vec<(&'static str, String)>,
    /// Address prefix: node `n` has the address `{net}.{n}`.
    pub net: String,
    /// Name prefix of the network namespaces, if each node runs in its own. Only their network can be cut.
    pub namespaces: Option<String>,
}

impl Script {
    /// Reads the variables that the services step of `scripts/test.sh` sets. Returns `None` if one is
    /// missing.
    pub fn find() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let net = variable("CHAT_TEST_SERVICES_NET")?;
        let mut environment = vec![
            ("CHAT_SERVICES_DIR", variable("CHAT_TEST_SERVICES_DIR")?),
            ("CHAT_SERVICES_DIST", variable("CHAT_TEST_SERVICES_DIST")?),
            ("CHAT_SERVICES_NET", net.clone()),
        ];
        let prefix = variable("CHAT_TEST_SERVICES_NETNS");
        environment.extend(prefix.clone().map(|prefix| ("CHAT_SERVICES_NETNS", prefix)));
        Some(Self { environment, net, namespaces: prefix })
    }

    fn run_file(&self, file: &str, arguments: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("services").join(file);
        let mut command = Command::new(script);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        let out = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&out.stderr));
        said
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.run_file("services.sh", arguments)
    }

    /// Kills a node with SIGKILL and starts it again after `away`.
    fn kill(&self, service: &str, node: u64, away: Duration) {
        self.run(&["kill", service, &node.to_string()]);
        std::thread::sleep(away);
        self.run(&["start", service]);
    }

    fn pause(&self, service: &str, node: u64, time: Duration) {
        self.run(&["pause", service, &node.to_string()]);
        std::thread::sleep(time);
        self.run(&["resume", service, &node.to_string()]);
    }

    /// Drops all packets between two machines for `time`. Machine 0 runs the clients.
    fn cut(&self, (one, other): (u64, u64), time: Duration) {
        println!("cutting the network between machines {one} and {other} for {time:.1?}");
        let (one, other) = (one.to_string(), other.to_string());
        self.run_file("network.sh", &["cut", &one, &other]);
        std::thread::sleep(time);
        self.run_file("network.sh", &["heal", &one, &other]);
    }

    fn kafka_controller(&self) -> u64 {
        let said = self.run(&["tool", "kafka", "quorum", "describe", "--status"]);
        let line = said.lines().find(|line| line.starts_with("LeaderId:")).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    }

    /// Sends a command to a Redis node. Returns `None` if the node does not answer.
    fn redis(&self, node: u64, command: &str) -> Option<String> {
        let address = format!("{}.{node}:6379", self.net).parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut answer = [0; 256];
        let length = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    fn redis_masters(&self) -> Vec<u64> {
        (1..=6).filter(|node| self.redis(*node, "ROLE").is_some_and(|role| role.contains("master"))).collect()
    }
}

fn some_time(rng: &mut TestRng) -> Duration {
    Duration::from_millis(1000 + rng.below(1000 * (Fault::longest() - 1)))
}

/// Machines of the services: each runs a Redis node, the first three also a Kafka and a Cassandra node.
const SERVICES: Range<u64> = 1..FIRST_GATEWAY;
/// Machines of the gateways and routers that always run.
const NODES: Range<u64> = FIRST_GATEWAY..ANOTHER_ROUTER;

fn among(rng: &mut TestRng, numbers: Range<u64>) -> u64 {
    numbers.start + rng.below(numbers.end - numbers.start)
}

/// Returns two different numbers of a range.
fn two(rng: &mut TestRng, numbers: Range<u64>) -> (u64, u64) {
    let one = among(rng, numbers.clone());
    let other = among(rng, numbers.start..numbers.end - 1);
    (one, if other < one { other } else { other + 1 })
}

impl Script {
    /// Injects a fault of the services or of the network. Returns when the fault has ended.
    pub fn suffer(&self, fault: Fault, rng: &mut TestRng) {
        let (node, away) = (1 + rng.below(3), some_time(rng));
        match fault {
            Fault::KillKafkaController => self.kill("kafka", self.kafka_controller(), away),
            Fault::KillCassandra => self.kill("cassandra", node, away),
            Fault::KillRedisMaster => {
                let masters = self.redis_masters();
                self.kill("redis", masters[rng.below(masters.len() as u64) as usize], away);
            }
            Fault::StopKafka => self.pause("kafka", node, away),
            Fault::StopCassandra => self.pause("cassandra", node, away),
            Fault::StopRedis => self.pause("redis", 1 + rng.below(6), away),
            Fault::CutNodes => self.cut(two(rng, NODES), away),
            Fault::CutServers => self.cut((among(rng, NODES), among(rng, SERVICES)), away),
            Fault::CutServices => self.cut(two(rng, SERVICES), away),
            Fault::CutClients => self.cut((0, among(rng, FIRST_GATEWAY..FIRST_ROUTER)), away),
            _ => unreachable!("{fault:?} is not a fault of services or of the network"),
        }
    }

    /// Deletes all data of every Redis master. Returns the number of masters that answered.
    pub fn flush(&self) -> usize {
        self.redis_masters().into_iter().filter(|node| self.redis(*node, "FLUSHALL").is_some()).count()
    }
}

impl Cluster {
    /// Injects a fault of the nodes or of Redis. Returns when the fault has ended.
    pub fn suffer(&mut self, fault: Fault, rng: &mut TestRng) {
        match fault {
            Fault::KillRouter => kill_one(&mut self.routers, rng),
            Fault::KillGateway => kill_one(&mut self.gateways, rng),
            Fault::Flush => self.flush(),
            Fault::StopRedisAlone => self.stop_redis(some_time(rng)),
            // Longer than its lease: it resumes after other routers took over its shards.
            Fault::StopRouter => stop_one(&self.routers, rng, Duration::from_secs(7)),
            Fault::StopGateway => stop_one(&self.gateways, rng, Duration::from_secs(1)),
            Fault::MoveShards => self.move_shards(),
            _ => unreachable!("{fault:?} is not a fault of nodes"),
        }
    }

    /// Deletes all data in Redis.
    fn flush(&self) {
        match &self.script {
            Some(script) => {
                script.flush();
            }
            None => assert_eq!(self.ask_redis("FLUSHALL"), "+OK\r\n"),
        }
    }

    /// Sends a command to the single Redis server. Returns its answer.
    fn ask_redis(&self, command: &str) -> String {
        let mut redis = TcpStream::connect(self.services.redis.trim_start_matches("redis://")).unwrap();
        redis.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let length = redis.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// Pauses Redis with SIGSTOP: its connections stay open and it does not answer.
    fn stop_redis(&self, time: Duration) {
        let info = self.ask_redis("INFO server");
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        std::thread::sleep(time);
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    }

    /// Starts and stops an additional router five times, about once a second. Each time shards move to it and
    /// back.
    fn move_shards(&mut self) {
        for _ in 0..5 {
            let mut router = self.start_router();
            std::thread::sleep(Duration::from_secs(1));
            router.terminate();
        }
    }
}

fn kill_one(nodes: &mut [Server], rng: &mut TestRng) {
    let which = rng.below(nodes.len() as u64) as usize;
    nodes[which].kill();
    nodes[which].restart();
}

fn stop_one(nodes: &[Server], rng: &mut TestRng, at_least: Duration) {
    let which = rng.below(nodes.len() as u64) as usize;
    nodes[which].stop();
    std::thread::sleep(at_least.max(some_time(rng)));
    nodes[which].go_on();
}
