//! Three gateways and two routers on real services: whole, in order, once; then the same while processes are
//! killed and stopped and Redis forgets. `CHAT_TEST_CLUSTER_FAULTS` says how many faults.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chat_tests::chat::register;
use chat_tests::server::Server;
use chat_tests::talker::{Talker, sendable};
use chat_tests::text::real_lines;
use chat_tests::{Dice, binary};

/// Nodes of a cluster: gateways, then routers.
struct Cluster {
    gateways: Vec<Server>,
    routers: Vec<Server>,
    redis: String,
}

/// The services' addresses; `None`, said aloud, if they do not run here.
fn services() -> Option<[String; 3]> {
    let names = ["CHAT_TEST_CASSANDRA", "CHAT_TEST_KAFKA", "CHAT_TEST_REDIS"];
    let found: Vec<String> = names.iter().filter_map(|name| std::env::var(name).ok()).collect();
    if found.len() < names.len() {
        println!("ignored: {names:?} are not all set: the services step of scripts/test.sh starts them");
    }
    found.try_into().ok()
}

impl Cluster {
    fn start(dir: &Path) -> Option<Self> {
        let [cassandra, kafka, redis] = services()?;
        let mut random = [0; 4];
        getrandom::fill(&mut random).unwrap();
        let name = format!("c{}", hex::encode(random));
        let config = dir.join("cluster.toml");
        let text = format!(
            "store = {:?}\nrouter = {:?}\nregistry = {redis:?}\nlink_listen = \"127.0.0.1:0\"\n\
             open_registration = true\nlog = \"info,scylla=warn\"\n",
            cassandra.replacen("/test?", &format!("/{name}?"), 1),
            kafka.replacen("/test?", &format!("/{name}?partitions=8&"), 1),
        );
        std::fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let migrated = Command::new(binary("chat-server-ref")).args(["--config", config, "migrate"]).output();
        let migrated = migrated.unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        let node = |n: usize, role: &str| {
            let own = dir.join(format!("{role}{n}"));
            std::fs::create_dir_all(&own).unwrap();
            Server::start_with(&own, &["--config", config, "serve", "--role", role])
        };
        Some(Self {
            gateways: (0..3).map(|n| node(n, "gateway")).collect(),
            routers: (0..2).map(|n| node(n, "router")).collect(),
            redis: redis.trim_start_matches("redis://").to_owned(),
        })
    }

    fn urls(&self, first: usize) -> Vec<String> {
        (0..3).map(|n| self.gateways[(first + n) % 3].url()).collect()
    }

    fn logs(&self) -> String {
        let nodes = self.gateways.iter().chain(&self.routers);
        nodes.map(|node| format!("--- {}\n{}", node.log_path().display(), node.log())).collect()
    }

    /// One fault of its kind, and its end; gives its name.
    fn fault(&mut self, n: u64, dice: &mut Dice) -> &'static str {
        match n % 5 {
            0 => {
                kill_one(&mut self.routers, dice);
                "kill -9 of a router"
            }
            1 => {
                kill_one(&mut self.gateways, dice);
                "kill -9 of a gateway"
            }
            2 => {
                let mut redis = TcpStream::connect(&self.redis).unwrap();
                redis.write_all(b"FLUSHALL\r\n").unwrap();
                "FLUSHALL"
            }
            3 => {
                // Longer than its lease: it goes on as an owner that was replaced.
                let which = dice.below(2) as usize;
                self.routers[which].stop();
                std::thread::sleep(Duration::from_millis(7000 + dice.below(2000)));
                self.routers[which].go_on();
                "a router stopped past its lease"
            }
            _ => {
                let which = dice.below(3) as usize;
                self.gateways[which].stop();
                std::thread::sleep(Duration::from_millis(1000 + dice.below(3000)));
                self.gateways[which].go_on();
                "a gateway stopped"
            }
        }
    }
}

fn kill_one(nodes: &mut [Server], dice: &mut Dice) {
    let which = dice.below(nodes.len() as u64) as usize;
    nodes[which].kill();
    nodes[which].restart();
}

/// Both ways at once; prints how long it took, and the longest time without a stored message.
fn replay(count: usize, faults: u64) -> Option<()> {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path())?;
    let a = register(dir.path(), &cluster.urls(0)[0], "alice");
    let b = register(dir.path(), &cluster.urls(1)[0], "bob");
    let (from_a, from_b) = (real_lines(count, 0), real_lines(count, count));
    let (to_a, to_b) = (sendable(&from_b), sendable(&from_a));
    let lines = (to_a.len() + to_b.len()) as u64;
    let (start, stored, over) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    let end = start + Duration::from_secs(1200);
    let mut alice = Talker::new(a, cluster.urls(0), "bob", &from_a, &to_a);
    let mut bob = Talker::new(b, cluster.urls(1), "alice", &from_b, &to_b);
    if faults > 0 {
        (alice.ahead, bob.ahead) = (8, 8);
    }
    let mut dice = Dice::new(7);
    let gap = std::thread::scope(|scope| {
        let die = |seed| (faults > 0).then(|| Dice::new(seed));
        let (dice_a, dice_b) = (die(1), die(2));
        let one = scope.spawn(|| alice.run(dice_a, &stored, end));
        let two = scope.spawn(|| bob.run(dice_b, &stored, end));
        let watch = scope.spawn(|| longest_gap(&stored, &over));
        let mut amid = 0;
        for n in 0..faults {
            // By progress and not by the clock: a fast machine has as many in between as a slow one.
            let due = n * lines / faults;
            let waits = || !one.is_finished() && !two.is_finished() && Instant::now() < end;
            while stored.load(Ordering::Relaxed) < due && waits() {
                std::thread::sleep(Duration::from_millis(20));
            }
            amid += u64::from(waits());
            println!("{:?}: {}", start.elapsed(), cluster.fault(n, &mut dice));
        }
        let outcome = (one.join(), two.join());
        over.store(true, Ordering::Relaxed);
        assert!(outcome.0.is_ok() && outcome.1.is_ok(), "{}", cluster.logs());
        // While a process is stopped for seconds, the others may get through the rest.
        assert!(amid >= faults / 2, "only {amid} faults came while somebody wrote");
        watch.join().unwrap()
    });
    println!(
        "{lines} lines over 3 gateways and 2 routers in {:?}: {faults} faults, {} kills of clients, longest gap \
         {gap:?}, 0 lost, 0 twice, 0 out of order",
        start.elapsed(),
        alice.kills + bob.kills
    );
    Some(())
}

fn longest_gap(stored: &AtomicU64, over: &AtomicBool) -> Duration {
    let (mut longest, mut seen, mut at) = (Duration::ZERO, 0, Instant::now());
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
        let now = stored.load(Ordering::Relaxed);
        if now > seen {
            (seen, at) = (now, Instant::now());
        }
        longest = longest.max(at.elapsed());
    }
    longest
}

#[test]
fn lines_arrive_once_in_order_over_three_gateways_and_two_routers() {
    let _ = replay(10_000, 0);
}

#[test]
fn the_same_while_nodes_are_killed_and_stopped_and_redis_forgets() {
    let faults = std::env::var("CHAT_TEST_CLUSTER_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let _ = replay(500 * faults as usize, faults);
}
