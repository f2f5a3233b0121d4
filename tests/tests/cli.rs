//! The command-line client, as users and programs see it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use chat_tests::cli_process::{CliProcess, command, register};
use chat_tests::server::{Server, free_port};
use serde_json::json;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn repeated_ref_sends_no_second_message() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let alice = register(dir.path(), &server.url(), "alice");
    register(dir.path(), &server.url(), "bob");
    let mut chat = CliProcess::start(&alice, &server.url(), None);
    assert!(chat.send(&json!({"cmd": "send", "to": "bob", "text": "one", "ref": "r"})));
    let queued = chat.wait("queued");
    let stored = chat.wait("stored");
    assert_eq!(queued["ref"], "r");
    chat.kill();
    let mut chat = CliProcess::start(&alice, &server.url(), None);
    assert!(chat.send(&json!({"cmd": "send", "to": "bob", "text": "one", "ref": "r"})));
    assert_eq!(chat.wait("queued"), queued);
    assert_eq!(chat.wait("stored"), stored);
    assert!(chat.send(&json!({"cmd": "send", "to": "bob", "text": "two", "ref": "r"})));
    let refused = chat.wait("refused");
    assert_eq!((refused["reason"].as_str(), refused["ref"].as_str()), (Some("ref_reused"), Some("r")));
    assert!(refused["message_id"].is_null() && refused["n"].is_null(), "never queued: {refused}");
    chat.finish();
}

#[test]
fn events_after_a_number_replay_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let alice = register(dir.path(), &server.url(), "alice");
    let bob = register(dir.path(), &server.url(), "bob");
    let out = command(&alice, &server.url(), &["send", "bob", "hello"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let mut chat = CliProcess::start(&bob, &server.url(), Some(0));
    let message = chat.wait("message");
    chat.kill();
    let mut chat = CliProcess::start(&bob, &server.url(), Some(message["n"].as_u64().unwrap() - 1));
    assert_eq!(chat.wait("message"), message);
    chat.finish();
    let mut chat = CliProcess::start(&bob, &server.url(), None);
    chat.wait("caught_up");
    assert!(chat.finish().iter().all(|event| event["event"] != "message"), "without --after only new events");
}

#[test]
fn receipts_typing_and_presence_reach_the_other_side() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let alice = register(dir.path(), &server.url(), "alice");
    let bob = register(dir.path(), &server.url(), "bob");
    let mut a = CliProcess::start(&alice, &server.url(), None);
    a.wait("caught_up");
    assert!(a.send(&json!({"cmd": "send", "to": "bob", "text": "hello"})));
    let stored = a.wait("stored");
    assert!(a.send(&json!({"cmd": "presence", "users": ["bob"]})));
    assert_eq!(a.wait("presence")["online"], false);
    let mut b = CliProcess::start(&bob, &server.url(), None);
    let message = b.wait("message");
    assert_eq!((&message["conversation"], &message["request"]), (&stored["conversation"], &json!(true)));
    // Until bob accepts or answers, alice learns nothing.
    assert!(b.send(&json!({"cmd": "contact", "user": "alice", "decision": "accept"})));
    assert_eq!(b.wait("relation_changed")["relation"], "contact");
    let (mut online, mut delivered) = (false, false);
    while !(online && delivered) {
        let event = a.next(Duration::from_secs(10)).expect("presence and receipt");
        online |= event["event"] == "presence" && event["online"] == true;
        delivered |= event["event"] == "delivered" && event["seq"] == stored["seq"];
    }
    assert!(b.send(&json!({"cmd": "typing", "to": "alice"})));
    assert_eq!(a.wait("typing")["user"], "bob");
    assert!(b.send(&json!({"cmd": "read", "conversation": message["conversation"], "seq": message["seq"]})));
    let read = a.wait("read");
    assert_eq!((read["user"].as_str(), read["seq"].as_u64()), (Some("bob"), message["seq"].as_u64()));
    assert!(b.send(&json!({"cmd": "history", "with": "alice"})));
    assert_eq!(b.wait("history")["messages"][0]["text"], "hello");
    b.finish();
    let offline = a.wait("presence");
    assert_eq!(offline["online"], false);
    assert!(offline["last_seen_ms"].as_u64().is_some_and(|at| at > 1_700_000_000_000), "{offline}");
    // From here on no other user learns it.
    let mut b = CliProcess::start(&bob, &server.url(), None);
    assert_eq!(a.wait("presence")["online"], true);
    assert!(b.send(&json!({"cmd": "presence_audience", "audience": "nobody"})));
    assert_eq!(b.wait("presence_audience")["audience"], "nobody");
    let hidden = a.wait("presence");
    assert_eq!((&hidden["online"], &hidden["last_seen_ms"]), (&json!(false), &json!(null)));
    b.finish();
    a.finish();
    let printed = |profile, arguments: &[&str]| text(&command(profile, &server.url(), arguments).stdout);
    assert_eq!(printed(&alice, &["presence", "bob"]), "bob offline\n");
    assert_eq!(printed(&bob, &["presence-audience"]), "nobody\n");
    assert_eq!(printed(&bob, &["presence-audience", "contacts"]), "contacts\n");
    assert_eq!(printed(&alice, &["presence", "bob", "alice"]), "bob last seen just now\nalice online\n");
}

#[test]
fn device_linked_by_code_receives_later_messages() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let alice = register(dir.path(), &url, "alice");
    let bob = register(dir.path(), &url, "bob");
    assert!(command(&alice, &url, &["send", "bob", "before"]).status.success());

    let tablet = dir.path().join("tablet");
    let mut linking = Command::new(chat_tests::binary("chat"))
        .arg("--profile")
        .arg(&tablet)
        .args(["--server", &url, "link"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(linking.stdout.take().unwrap()).lines();
    let code = loop {
        let line = lines.next().unwrap().unwrap();
        if let Some(code) = line.trim().strip_prefix("chat link ") {
            break code.to_owned();
        }
    };
    let wrong = format!("{}0", &code[..code.len() - 1]);
    if wrong != code {
        assert!(!command(&alice, &url, &["link", &wrong]).status.success(), "a wrong code");
    }
    let out = command(&alice, &url, &["link", &code]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(linking.wait().unwrap().success());
    assert!(text(&command(&alice, &url, &["devices"]).stdout).contains("device 2"));

    let mut phone = CliProcess::start(&alice, &url, None);
    let mut other = CliProcess::start(&tablet, &url, None);
    let mut b = CliProcess::start(&bob, &url, None);
    other.wait("caught_up");
    assert!(phone.send(&json!({"cmd": "send", "to": "bob", "text": "from the phone"})));
    let seen = other.wait("message");
    assert_eq!((seen["from"].as_str(), seen["device"].as_u64()), (Some("alice"), Some(1)));
    while b.wait("message")["text"] != "from the phone" {}
    assert!(other.send(&json!({"cmd": "send", "to": "bob", "text": "from the tablet"})));
    assert_eq!(b.wait("message")["device"], 2);
    assert_eq!(phone.wait("message")["text"], "from the tablet");
    assert!(b.send(&json!({"cmd": "send", "to": "alice", "text": "to both"})));
    assert_eq!(phone.wait("message")["text"], "to both");
    assert_eq!(other.wait("message")["text"], "to both");
    assert!(phone.send(&json!({"cmd": "send", "to": "alice", "text": "note to self"})));
    assert_eq!(other.wait("message")["text"], "note to self");
    phone.finish();

    let out = command(&alice, &url, &["devices", "--remove", "2"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(other.wait("error")["reason"], "unauthorized");
    let numbers = [command(&alice, &url, &["safety-number", "bob"]), {
        b.finish();
        command(&bob, &url, &["safety-number", "alice"])
    }];
    assert!(numbers.iter().all(|out| out.status.success()));
    assert_eq!(numbers[0].stdout, numbers[1].stdout);
    assert_eq!(text(&numbers[0].stdout).split_whitespace().count(), 12);
}

#[test]
fn errors_are_reported_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let url = server.url();
    let alice = register(dir.path(), &url, "alice");

    let taken = command(&dir.path().join("other"), &url, &["register", "alice"]);
    assert!(!taken.status.success() && text(&taken.stderr).contains("taken"), "{}", text(&taken.stderr));
    let name = command(&dir.path().join("other2"), &url, &["register", "Alice Smith"]);
    assert!(!name.status.success() && text(&name.stderr).contains("handle"), "{}", text(&name.stderr));
    let address = command(&alice, "http://127.0.0.1", &["send", "bob", "x"]);
    assert!(
        !address.status.success() && text(&address.stderr).contains("ws://"),
        "{}",
        text(&address.stderr)
    );
    let plain = command(&alice, "ws://chat.example", &["send", "bob", "x"]);
    assert!(!plain.status.success() && text(&plain.stderr).contains("wss://"), "{}", text(&plain.stderr));
    let unknown = command(&alice, &url, &["send", "stranger", "x"]);
    assert!(
        !unknown.status.success() && text(&unknown.stderr).contains("unknown_user"),
        "{}",
        text(&unknown.stderr)
    );
    let empty = command(&dir.path().join("empty"), &url, &["send", "bob", "x"]);
    assert!(!empty.status.success() && text(&empty.stderr).contains("register"), "{}", text(&empty.stderr));

    let mut chat = CliProcess::start(&alice, &url, None);
    chat.wait("caught_up");
    let busy = command(&alice, &url, &["history", "alice"]);
    assert!(!busy.status.success() && text(&busy.stderr).contains("in use"), "{}", text(&busy.stderr));
    for bad in ["{", "[]", "{\"cmd\":\"fly\"}", "{\"cmd\":\"send\"}", "\u{feff}{}"] {
        assert!(chat.send_line(bad));
        assert_eq!(chat.wait("error")["reason"], "bad_line");
    }
    assert!(chat.send(&json!({"cmd": "send", "to": "NOT A HANDLE", "text": "x", "ref": "h"})));
    assert_eq!(chat.wait("refused")["ref"], "h");
    assert!(chat.send(&json!({"cmd": "send", "to": "alice", "text": ""})));
    chat.wait("stored");
    chat.finish();

    // Without a server, messages wait in the outbox, and at the end of its input the client prints their
    // number.
    let gone = format!("ws://127.0.0.1:{}", free_port());
    let mut child = Command::new(chat_tests::binary("chat"))
        .arg("--profile")
        .arg(&alice)
        .args(["--server", &gone, "--json", "--quit-after", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    {
        use std::io::Write;
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{}", json!({"cmd": "send", "to": "alice", "text": "later", "ref": "l"})).unwrap();
    }
    let out = child.wait_with_output().unwrap();
    assert!(text(&out.stdout).contains("1 messages wait"), "{}", text(&out.stdout));
    let chat = CliProcess::start(&alice, &url, None);
    let rest = chat.finish();
    assert!(rest.iter().any(|event| event["event"] == "stored" && event["ref"] == "l"), "{rest:?}");
}

#[test]
fn server_requires_tokens_without_open_registration() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_with(dir.path(), &["--open-registration", "false"]);
    let url = server.url();
    let token = |user: &str, ttl: &str| {
        let out = Command::new(chat_tests::binary("chat-server-ref"))
            .args(["token", user, "--ttl", ttl, "--data"])
            .arg(&server.data)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stdout).trim().to_owned()
    };
    let alice = dir.path().join("alice");
    let without = command(&alice, &url, &["register", "alice"]);
    assert!(
        !without.status.success() && text(&without.stderr).contains("token"),
        "{}",
        text(&without.stderr)
    );
    let others = command(&alice, &url, &["register", "alice", "--token", &token("bob", "60")]);
    assert!(!others.status.success(), "another user's token");
    let out = command(&alice, &url, &["register", "alice", "--token", &token("alice", "60")]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let expired = command(&alice, &url, &["login", "--token", &token("alice", "0").replace('.', ".x")]);
    assert!(
        !expired.status.success() && text(&expired.stderr).contains("log in again"),
        "{}",
        text(&expired.stderr)
    );
    let out = command(&alice, &url, &["login", "--token", &token("alice", "60")]);
    assert!(out.status.success(), "{}", text(&out.stderr));

    assert!(server.admin_page("/healthz").contains("ok"));
    assert!(server.admin_page("/readyz").contains("ready"));
    assert!(server.admin_page("/metrics").contains("chat_sessions"));
    assert!(!server.log().contains("eyJ"), "a token is in the log");

    let chat = CliProcess::start(&alice, &url, None);
    std::thread::sleep(Duration::from_millis(500));
    let took = server.terminate();
    assert!(took < Duration::from_secs(70), "{took:?}");
    chat.kill();
    assert!(server.verify().starts_with("verified"));
}

#[test]
fn two_servers_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let out = Command::new(chat_tests::binary("chat-server-ref"))
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"])
        .arg(&server.data)
        .output()
        .unwrap();
    assert!(!out.status.success() && text(&out.stderr).contains("another process"), "{}", text(&out.stderr));
    let public = Command::new(chat_tests::binary("chat-server-ref"))
        .args(["--listen", "0.0.0.0:0", "--open-registration", "true", "--data"])
        .arg(dir.path().join("x"))
        .output()
        .unwrap();
    assert!(!public.status.success() && text(&public.stderr).contains("open registration"));
    let config = dir.path().join("bad.toml");
    std::fs::write(&config, "lisen = \"127.0.0.1:1\"\n").unwrap();
    let bad =
        Command::new(chat_tests::binary("chat-server-ref")).arg("--config").arg(&config).output().unwrap();
    assert!(!bad.status.success() && text(&bad.stderr).contains("lisen"), "{}", text(&bad.stderr));
}

#[test]
fn encrypted_profile_opens_only_with_its_passphrase() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (url, alice, word) = (server.url(), dir.path().join("alice"), dir.path().join("word"));
    std::fs::write(&word, "a passphrase\n").unwrap();
    let file = word.to_str().unwrap();
    let out = command(&alice, &url, &["--passphrase-file", file, "register", "alice"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let out = command(&alice, &url, &["--passphrase-file", file, "send", "alice", "canary in a note"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let history = command(&alice, &url, &["--passphrase-file", file, "history", "alice"]);
    assert!(text(&history.stdout).contains("canary in a note"));
    let without = command(&alice, &url, &["history", "alice"]);
    assert!(!without.status.success() && text(&without.stderr).contains("passphrase"));
    std::fs::write(&word, "another\n").unwrap();
    let wrong = command(&alice, &url, &["--passphrase-file", file, "history", "alice"]);
    assert!(!wrong.status.success() && text(&wrong.stderr).contains("passphrase"));
    for entry in std::fs::read_dir(&alice).unwrap().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(6).any(|six| six == b"canary"), "{:?}", entry.file_name());
    }
}

#[test]
fn client_rejects_an_untrusted_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).unwrap();
    let (cert_file, key_file, config) =
        (dir.path().join("cert"), dir.path().join("key"), dir.path().join("toml"));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, signing_key.serialize_pem()).unwrap();
    std::fs::write(&config, format!("tls_cert = {cert_file:?}\ntls_key = {key_file:?}\n")).unwrap();
    let server = Server::start_with(dir.path(), &["--config", config.to_str().unwrap()]);
    let url = format!("wss://localhost:{}", server.port);
    let alice = dir.path().join("alice");
    let stranger = command(&alice, &url, &["register", "alice"]);
    assert!(
        !stranger.status.success() && text(&stranger.stderr).contains("trusts no issuer"),
        "{}",
        text(&stranger.stderr)
    );
    let old_file = dir.path().join("old");
    std::fs::copy(&cert_file, &old_file).unwrap();
    let old_ca = old_file.to_str().unwrap();
    let ca = old_ca;
    let out = command(&alice, &url, &["register", "alice", "--ca", ca]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let out = command(&alice, &url, &["--ca", ca, "send", "alice", "note"]);
    assert!(out.status.success(), "{}", text(&out.stderr));

    // Another certificate is served after SIGHUP; the first one is no longer trusted by what is served.
    let name = vec!["localhost".to_string()];
    let renewed = rcgen::generate_simple_self_signed(name).unwrap();
    let new_file = dir.path().join("renewed");
    std::fs::write(&new_file, renewed.cert.pem()).unwrap();
    std::fs::write(&cert_file, renewed.cert.pem()).unwrap();
    std::fs::write(&key_file, "broken").unwrap();
    server.hang_up();
    let out = command(&alice, &url, &["--ca", old_ca, "send", "alice", "before"]);
    assert!(out.status.success(), "a key that cannot be read changes nothing: {}", text(&out.stderr));
    std::fs::write(&key_file, renewed.signing_key.serialize_pem()).unwrap();
    server.hang_up();
    let ca = new_file.to_str().unwrap();
    let out = command(&alice, &url, &["--ca", ca, "send", "alice", "renewed"]);
    assert!(out.status.success(), "{}", text(&out.stderr));

    // Bad input 18 (RUSTSEC-2024-0399): a ClientHello in records of one byte is unusual but valid.
    let port = in_records_of_one_byte(server.port);
    let url = format!("wss://localhost:{port}");
    let before = server.resident();
    let out = command(&alice, &url, &["--ca", ca, "send", "alice", "bit by bit"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(server.resident() < before + (8 << 20), "it must use little memory");
}

/// Starts a proxy that cuts the first TLS record of each connection, the ClientHello, into records of one
/// byte. Returns its port.
fn in_records_of_one_byte(to: u16) -> u16 {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let mut head = [0; 5];
            client.read_exact(&mut head).unwrap();
            let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
            client.read_exact(&mut hello).unwrap();
            let records: Vec<u8> =
                hello.iter().flat_map(|byte| [head[0], head[1], head[2], 0, 1, *byte]).collect();
            server.write_all(&records).unwrap();
            for (mut from, mut into) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut into);
                    let _ = into.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    port
}
