//! TLS and login of the shared services, on a Redis, a Kafka and a Cassandra that require both.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use chat_tests::cli_process::CliProcess;
use chat_tests::cluster::{Cluster, Services, Size, fresh_name, server_command};
use chat_tests::own_services::OwnServices;
use serde_json::json;

const NET: &str = "127.0.9";

/// Returns the parameters of an address for a user, with these files.
fn access(services: &OwnServices, user: &str, password: &str, authority: &str) -> String {
    let (password, authority) = (services.tls_file(password), services.tls_file(authority));
    format!("user={user}&password_file={}&tls=true&ca={}", password.display(), authority.display())
}

/// Returns addresses with passwords from files with this ending, and with this authority.
fn urls(services: &OwnServices, ending: &str, authority: &str) -> Services {
    let chat = access(services, "chat", &format!("password{ending}"), authority);
    let cassandra = access(services, "cassandra", &format!("cassandra-password{ending}"), authority);
    Services {
        cassandra: format!("cassandra://{NET}.1:9042/test?replication=1&{cassandra}"),
        kafka: format!("kafka://{NET}.1:9092/test?replication=1&{chat}"),
        redis: format!("redis://{NET}.1:6379?{chat}"),
    }
}

/// Runs `check` on these services. Returns whether it found no fault, and its output.
fn check(services: &Services, keyspace: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("chat.toml");
    let settings = format!(
        "store = {:?}\nrouter = {:?}\nregistry = {:?}\nopen_registration = true\n",
        services.keyspace(keyspace),
        services.kafka.replacen("/test?", &format!("/{keyspace}?"), 1),
        services.redis
    );
    std::fs::write(&config, settings).unwrap();
    let out = server_command(&["--config", config.to_str().unwrap(), "check"]);
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    println!("{text}");
    (out.status.success(), text)
}

#[test]
fn services_are_used_with_tls_and_a_login_only() {
    let Some(secured) = OwnServices::start(NET, true) else { return };
    let (right, name, dir) = (urls(&secured, "", "ca.pem"), fresh_name(), tempfile::tempdir().unwrap());
    let cluster = Cluster::start(dir.path(), &right, &name, Size { gateways: 2, routers: 1 }, None);
    let gateways = cluster.urls(0);
    let (a, b) = (cluster.register(0, "alice"), cluster.register(1, "bob"));
    let mut alice = CliProcess::start(&a, &gateways[0], None);
    let mut bob = CliProcess::start(&b, &gateways[1], None);
    assert!(alice.send(&json!({"cmd": "send", "to": "bob", "text": "over TLS", "ref": "1"})));
    alice.wait("stored");
    assert_eq!(bob.wait("message")["text"], "over TLS");

    let (is_usable, found) = check(&right, &name);
    assert!(is_usable && found.contains("router: Kafka, topic "), "{found}");
    let plain = Services { kafka: format!("{}&sasl_mechanism=PLAIN", right.kafka), ..right.clone() };
    assert!(check(&plain, &name).0, "the other mechanism");

    for file in ["password", "cassandra-password"] {
        std::fs::write(secured.tls_file(&format!("{file}-wrong")), "not this one\n").unwrap();
    }
    let wrong = urls(&secured, "-wrong", "ca.pem");
    // Another authority: the certificate of the service itself, which signed nothing.
    let other = urls(&secured, "", "service.pem");
    let unencrypted = |url: &str| url[..url.find("user=").unwrap()].trim_end_matches(['?', '&']).to_owned();
    let cases = [
        ("store", wrong.cassandra, "cassandra refuses the login"),
        ("router", wrong.kafka, "kafka refuses the login"),
        ("registry", wrong.redis, "redis refuses the login"),
        ("store", other.cassandra, "certificate"),
        ("router", other.kafka, "certificate"),
        ("registry", other.redis, "certificate"),
        ("store", unencrypted(&right.cassandra), "connection"),
        ("router", unencrypted(&right.kafka), "transport failure"),
        ("registry", unencrypted(&right.redis), "connection"),
    ];
    let password = std::fs::read_to_string(secured.tls_file("password")).unwrap();
    for (setting, address, cause) in cases {
        // One wrong address at a time.
        let mut services = right.clone();
        match setting {
            "store" => services.cassandra = address,
            "router" => services.kafka = address,
            _ => services.redis = address,
        }
        let (is_usable, found) = check(&services, &name);
        let fault = found.lines().find(|line| line.contains(&format!(": {setting}: ")));
        let fault = fault.unwrap_or_default().to_lowercase();
        assert!(!is_usable && fault.contains(cause), "{setting}, {cause}: {found}");
        assert!(!found.contains(password.trim()), "a password is printed");
    }
    assert!(!cluster.logs().contains(password.trim()), "a password is in a log");
}
