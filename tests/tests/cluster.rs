//! Three gateways and two routers on real services deliver every line once and in order, also under faults of
//! nodes, of services and of the network. At the end `verify` checks the store. `CHAT_TEST_CLUSTER_FAULTS`
//! sets the number of faults.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chat_tests::TestRng;
use chat_tests::cluster::{Cluster, Services, Size, fresh_name};
use chat_tests::corpus::real_lines;
use chat_tests::faults::{Fault, Script};
use chat_tests::scripted_client::{Progress, ScriptedClient, sendable};

/// The longest times in which no line was stored, and none delivered, for each trouble.
#[derive(Default)]
struct Gaps {
    progress: Progress,
    over: AtomicBool,
    /// The trouble that started last.
    now: Mutex<Trouble>,
    longest: Mutex<BTreeMap<Trouble, Longest>>,
}

/// How often a trouble started, and the longest gaps until the next trouble.
#[derive(Clone, Copy, Default)]
struct Longest {
    times: u64,
    stored: Duration,
    delivered: Duration,
}

/// A count, and the time of its last increase.
struct Still(u64, Instant);

impl Still {
    fn gap(&mut self, count: &AtomicU64) -> Duration {
        let count = count.load(Ordering::Relaxed);
        if count > self.0 {
            *self = Self(count, Instant::now());
        }
        self.1.elapsed()
    }
}

impl Gaps {
    fn begin(&self, trouble: Trouble) {
        *self.now.lock().unwrap() = trouble;
        self.longest.lock().unwrap().entry(trouble).or_default().times += 1;
    }

    fn watch(&self) {
        let (mut stored, mut delivered) = (Still(0, Instant::now()), Still(0, Instant::now()));
        while !self.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
            let now = *self.now.lock().unwrap();
            let mut longest = self.longest.lock().unwrap();
            let longest = longest.entry(now).or_default();
            longest.stored = longest.stored.max(stored.gap(&self.progress.stored));
            longest.delivered = longest.delivered.max(delivered.gap(&self.progress.delivered));
        }
    }

    fn print(&self) {
        for (trouble, Longest { times, stored, delivered }) in &*self.longest.lock().unwrap() {
            let name = trouble.name();
            println!("{times:>4} × {name}: longest gap {stored:.1?} to store, {delivered:.1?} to deliver");
        }
    }
}

/// Sets the flag on drop, also after a panic, to stop the threads that run beside the faults.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Faults that run at the same time and end before the next ones start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Trouble {
    of_nodes: Option<Fault>,
    of_services: Option<Fault>,
}

impl Trouble {
    fn name(self) -> String {
        let names: Vec<&str> =
            self.of_services.iter().chain(&self.of_nodes).map(|fault| fault.name()).collect();
        if names.is_empty() { "no fault".to_owned() } else { names.join(", with ") }
    }

    fn count(self) -> usize {
        self.of_nodes.iter().chain(&self.of_services).count()
    }

    fn come(self, cluster: &mut Cluster, rng: &mut TestRng) {
        let script = cluster.script.clone();
        let mut other = TestRng::new(rng.below(u64::MAX));
        std::thread::scope(|scope| {
            if let (Some(fault), Some(script)) = (self.of_services, script) {
                scope.spawn(move || script.suffer(fault, &mut other));
            }
            if let Some(fault) = self.of_nodes {
                cluster.suffer(fault, rng);
            }
        });
    }
}

/// Redis loses its data; there is no other fault.
const FORGETS: Trouble = Trouble { of_nodes: Some(Fault::Flush), of_services: None };

/// Sends lines both ways at once while these troubles run. Returns the longest time without a delivery.
fn replay(services: &Services, script: Option<Script>, count: usize, troubles: &[Trouble]) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster =
        Cluster::start(dir.path(), services, &fresh_name(), Size { gateways: 3, routers: 2 }, script.clone());
    // During combined faults Redis is also flushed again and again.
    let forgets = script.filter(|_| troubles.iter().any(|trouble| trouble.count() > 1));
    let (a, b) = (cluster.register(0, "alice"), cluster.register(1, "bob"));
    let (from_a, from_b) = (real_lines(count, 0), real_lines(count, count));
    let (to_a, to_b) = (sendable(&from_b), sendable(&from_a));
    let lines = (to_a.len() + to_b.len()) as u64;
    let (start, gaps) = (Instant::now(), Gaps::default());
    let end = start + Duration::from_secs(7200);
    let released = AtomicUsize::new(if troubles.is_empty() { count } else { 0 });
    let mut alice = ScriptedClient::new(a, cluster.urls(0), "bob", &from_a, &to_a);
    let mut bob = ScriptedClient::new(b, cluster.urls(1), "alice", &from_b, &to_b);
    if !troubles.is_empty() {
        (alice.ahead, bob.ahead) = (8, 8);
    }
    (alice.released, bob.released) = (Some(&released), Some(&released));
    let half = if troubles.is_empty() { count / 2 } else { 0 };
    let mut rng = TestRng::new(7);
    let mut flushes = 0;
    std::thread::scope(|scope| {
        let over = Over(&gaps.over);
        // A reconnect registers a client again, which would hide the delay after a flush of Redis.
        let dies = troubles.iter().any(|trouble| *trouble != FORGETS);
        let die = |seed| dies.then(|| TestRng::new(seed));
        let (dice_a, dice_b) = (die(1), die(2));
        let one = scope.spawn(|| {
            // Halfway each client moves to another gateway.
            alice.run_until(half, 0, &gaps.progress, end);
            alice.run(dice_a, &gaps.progress, end);
        });
        let two = scope.spawn(|| {
            bob.run_until(half, 0, &gaps.progress, end);
            bob.run(dice_b, &gaps.progress, end);
        });
        scope.spawn(|| gaps.watch());
        let flushing = scope.spawn(|| forgets.map_or(0, |script| flush_again_and_again(&script, &gaps.over)));
        // Each trouble starts when its share of the lines is stored, and then releases the next share. The
        // schedule follows progress and not the clock: a fast machine has as many lines in between as a slow
        // one.
        let mut amid = 0;
        for (n, trouble) in troubles.iter().enumerate() {
            let due = n as u64 * lines / troubles.len() as u64;
            let waits = || !one.is_finished() && !two.is_finished() && Instant::now() < end;
            while gaps.progress.stored.load(Ordering::Relaxed) < due && waits() {
                std::thread::sleep(Duration::from_millis(20));
            }
            amid += usize::from(waits());
            // A few more, because some lines are too long to send.
            released.store((n + 1) * count / troubles.len() + 20, Ordering::Relaxed);
            println!("{:.1?}: {}", start.elapsed(), trouble.name());
            gaps.begin(*trouble);
            trouble.come(&mut cluster, &mut rng);
        }
        released.store(count, Ordering::Relaxed);
        let outcome = (one.join(), two.join());
        drop(over);
        flushes = flushing.join().unwrap();
        assert!(outcome.0.is_ok() && outcome.1.is_ok(), "{}", cluster.logs());
        assert_eq!(amid, troubles.len(), "a trouble began after the clients ended");
    });
    gaps.print();
    let verified = cluster.command(&["verify"]);
    println!("{verified}");
    let kept = verified.split_once(" messages ").and_then(|(_, rest)| rest.split(' ').next());
    assert!(
        verified.starts_with("verified: ") && kept.unwrap().parse::<u64>().unwrap() >= lines,
        "{verified}"
    );
    println!(
        "{lines} lines over 3 gateways and 2 routers in {:.1?}: {} faults, {flushes} × FLUSHALL beside them, \
         {} client kills, 0 lost, 0 duplicated, 0 out of order",
        start.elapsed(),
        troubles.iter().map(|trouble| trouble.count()).sum::<usize>(),
        alice.kills + bob.kills
    );
    let longest = gaps.longest.lock().unwrap();
    longest.values().map(|longest| longest.delivered).max().unwrap_or_default()
}

/// Flushes Redis every ten seconds. Returns how often.
fn flush_again_and_again(script: &Script, over: &AtomicBool) -> usize {
    let mut flushes = 0;
    while !over.load(Ordering::Relaxed) {
        flushes += usize::from(script.flush() > 0);
        for _ in 0..100 {
            if !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
    flushes
}

/// Returns `CHAT_TEST_CLUSTER_FAULTS` faults, or `default` if it is not set, cycling through these kinds.
fn in_turn(kinds: &[Fault], default: usize) -> Vec<Fault> {
    let count = std::env::var("CHAT_TEST_CLUSTER_FAULTS").ok().and_then(|n| n.parse().ok());
    let wanted = Fault::wanted(kinds);
    assert!(!wanted.is_empty(), "CHAT_TEST_CLUSTER_KINDS names none of {kinds:?}");
    wanted.into_iter().cycle().take(count.unwrap_or(default)).collect()
}

#[test]
fn lines_arrive_once_in_order_over_three_gateways_and_two_routers() {
    let Some(services) = Services::single() else { return };
    // A few lines are too long to send.
    replay(&services, None, 10_010, &[]);
}

#[test]
fn delivery_recovers_within_a_heartbeat_after_redis_forgets() {
    let Some(services) = Services::single() else { return };
    let late = replay(&services, None, 400, &[FORGETS; 2]);
    // A heartbeat of 30 s, one more second, and a margin for a busy machine.
    assert!(late < Duration::from_secs(40), "{late:?}");
}

#[test]
fn delivers_exactly_once_while_nodes_are_killed_and_redis_forgets() {
    let Some(services) = Services::single() else { return };
    let faults = in_turn(&Fault::NODES, 3 * Fault::NODES.len());
    let alone = |fault: &Fault| Trouble { of_nodes: Some(*fault), ..Trouble::default() };
    let troubles: Vec<Trouble> = faults.iter().map(alone).collect();
    replay(&services, None, 500 * troubles.len(), &troubles);
}

/// Returns the faults that these services and their network support.
fn of_services(script: &Script) -> Vec<Fault> {
    let network = if script.namespaces.is_some() { &Fault::NETWORK[..] } else { &[] };
    [&Fault::SERVICES, network].concat()
}

#[test]
fn delivers_exactly_once_while_services_are_killed_and_cut_off() {
    let Some(services) = Services::replicated() else { return };
    let Some(script) = Script::find() else { return };
    let kinds = of_services(&script);
    let alone = |fault: &Fault| Trouble { of_services: Some(*fault), ..Trouble::default() };
    let troubles: Vec<Trouble> = in_turn(&kinds, kinds.len()).iter().map(alone).collect();
    replay(&services, Some(script), 200 * troubles.len(), &troubles);
}

#[test]
fn delivers_exactly_once_under_combined_faults() {
    let Some(services) = Services::replicated() else { return };
    let Some(script) = Script::find() else { return };
    let kinds = of_services(&script);
    let of_services = in_turn(&kinds, kinds.len());
    // Redis has its own faults in that list. Each lap pairs the node faults with other faults of services.
    let mut nodes = Fault::NODES.to_vec();
    nodes.retain(|fault| ![Fault::Flush, Fault::StopRedisAlone].contains(fault));
    let lines = if Fault::longest() > 20 { 1000 } else { 200 };
    let together = |(n, fault): (usize, &Fault)| {
        let beside = nodes[(n + n / kinds.len()) % nodes.len()];
        Trouble { of_services: Some(*fault), of_nodes: Some(beside) }
    };
    let troubles: Vec<Trouble> = of_services.iter().enumerate().map(together).collect();
    replay(&services, Some(script), lines * troubles.len(), &troubles);
}
