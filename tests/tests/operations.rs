//! The operator commands: `explain` reports what happened to a message, `check` whether all services are
//! usable, and `verify` whether the stored data is consistent.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::time::{Duration, Instant};

use chat_tests::cli_process::{CliProcess, register};
use chat_tests::cluster::{Cluster, Services, Size, fresh_name, server_command};
use chat_tests::server::Server;
use serde_json::json;

/// Runs `explain` on nodes until its output contains all of `parts`. Returns the output.
fn explained(nodes: &[&Server], id: &str, parts: &[&str]) -> String {
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.admin)).collect();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let out = server_command(&["explain", id, "--node", &addresses.join(",")]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if parts.iter().all(|part| text.contains(part)) {
            return text;
        }
        assert!(Instant::now() < end, "{parts:?} in: {text}{}", String::from_utf8_lossy(&out.stderr));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Sends a message to Bob. Returns its id.
fn send(alice: &mut CliProcess, text: &str) -> String {
    assert!(alice.send(&json!({"cmd": "send", "to": "bob", "text": text, "ref": text})));
    alice.wait("stored")["message_id"].as_str().unwrap().to_owned()
}

#[test]
fn explain_reports_a_message_without_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let (a, b) = (register(dir.path(), &server.url(), "alice"), register(dir.path(), &server.url(), "bob"));
    let mut alice = CliProcess::start(&a, &server.url(), None);
    let id = send(&mut alice, "the secret word");
    let text = explained(
        &[&server],
        &id,
        &["accepted from", "in the log", "stored at seq 1", "pushed: 1", "waits for"],
    );
    assert!(!text.contains("secret"), "{text}");
    // A killed process loses its trace; the store keeps its rows.
    server.kill();
    server.restart();
    let mut bob = CliProcess::start(&b, &server.url(), None);
    bob.wait("message");
    let text = explained(&[&server], &id, &["delivered to device", "at seq 1", "acknowledged by"]);
    println!("{text}");
    let unknown =
        server_command(&["explain", &"0".repeat(32), "--node", &format!("127.0.0.1:{}", server.admin)]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("none of these nodes remembers it"));
}

#[test]
fn explain_combines_the_events_of_all_nodes() {
    let Some(services) = Services::single() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cluster =
        Cluster::start(dir.path(), &services, &fresh_name(), Size { gateways: 2, routers: 1 }, None);
    let (a, b) = (
        register(dir.path(), &cluster.urls(0)[0], "alice"),
        register(dir.path(), &cluster.urls(1)[0], "bob"),
    );
    let mut alice = CliProcess::start(&a, &cluster.urls(0)[0], None);
    let mut bob = CliProcess::start(&b, &cluster.urls(1)[0], None);
    bob.wait("caught_up");
    let id = send(&mut alice, "hello");
    bob.wait("message");
    let nodes: Vec<&Server> = cluster.gateways.iter().chain(&cluster.routers).collect();
    let all = [
        "accepted from",
        "in the log",
        "stored at seq 1",
        "routed to gateway",
        "delivered to device",
        "acknowledged by",
    ];
    println!("{}", explained(&nodes, &id, &all));
}

/// Runs a command that fails with these settings. Returns its stdout and stderr.
fn failing(settings: &str, command: &str) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("chat.toml");
    std::fs::write(&config, settings).unwrap();
    let out = server_command(&["--config", config.to_str().unwrap(), command]);
    assert!(!out.status.success());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out.stdout), text(&out.stderr))
}

#[test]
fn check_reports_all_present_and_all_missing_services() {
    let Some(services) = Services::single() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cluster =
        Cluster::start(dir.path(), &services, &fresh_name(), Size { gateways: 1, routers: 1 }, None);
    let found = cluster.command(&["check"]);
    println!("{found}");
    for part in
        ["store: Cassandra, release ", "registry: Redis, a single server, release ", "router: Kafka, topic "]
    {
        assert!(found.contains(part), "{part}: {found}");
    }
    register(dir.path(), &cluster.urls(0)[0], "alice");
    assert_eq!(
        cluster.command(&["verify"]),
        "verified: conversations 0 messages 0 waiting 0 devices 0 accounts 1"
    );
    let metrics = cluster.gateways[0].admin_page("/metrics");
    for metric in ["chat_store_seconds", "chat_registry_seconds", "chat_keys_seconds", "chat_sessions"] {
        assert!(metrics.contains(metric), "{metric}: {metrics}");
    }
    let two_wrong = format!(
        "store = {:?}\nrouter = {:?}\nregistry = \"redis://127.0.0.1:1\"\nopen_registration = true\n",
        services.keyspace("missing"),
        services.kafka,
    );
    let (found, wrong) = failing(&two_wrong, "check");
    assert!(found.contains("tokens: none needed on this machine"), "{found}");
    for part in ["store: ", "migrate", "registry: ", "router: not checked"] {
        assert!(wrong.contains(part), "{part}: {wrong}");
    }
    assert!(failing(&two_wrong, "verify").1.contains("store: "));
}

#[test]
fn check_creates_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let check = || {
        let out = server_command(&["--data", data.to_str().unwrap(), "check"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let found = check();
    assert!(found.contains("tokens: no secret yet") && found.contains("store: no data yet"), "{found}");
    assert!(!data.exists());
    let out = server_command(&["--data", data.to_str().unwrap(), "token", "alice"]);
    assert!(out.status.success());
    assert!(check().contains("store: no data yet"));
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "only the token secret");
    let mut server = Server::start(dir.path());
    assert!(check().contains("open in another process, such as a running server"), "beside a running server");
    server.kill();
    let found = check();
    assert!(found.contains("tokens: signed with the secret, none needed on this machine"), "{found}");
    assert!(found.contains("store: data in ") && !found.contains("another process"), "{found}");
}

#[test]
fn verify_waits_for_a_server_that_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let data = server.data.clone();
    let verify = move || server_command(&["--data", data.to_str().unwrap(), "verify"]);
    let beside = verify();
    assert!(!beside.status.success());
    assert!(String::from_utf8_lossy(&beside.stderr).contains("Stop that first"));
    let waiting = std::thread::spawn(verify);
    std::thread::sleep(Duration::from_millis(500));
    server.kill();
    assert!(waiting.join().unwrap().status.success());
}
