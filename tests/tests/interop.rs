//! Interoperability with the Signal protocol: our suite and the official client library exchange 1,000
//! messages each way, in shuffled order: in sessions, with and without one-time prekeys, and with sender keys.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chat_client::suite::{Peer, PrekeyBundle, Suite, SuiteTx};
use chat_core::replica::Unreadable;
use chat_core::{ConversationId, DeviceId, InstallationId, SenderKeyId};
use chat_signal::Signal;
use chat_signal::bundle::{OneTimePart, SignedPart};
use chat_testing::SuiteTables;
use chat_tests::TestRng;
use serde_json::{Value, json};

const MESSAGES: usize = 1000;
const LIBRARY: &str = "@signalapp/libsignal-client@0.103.0";

/// Returns empty tables of a suite. The official library reads the system's clock.
fn tables() -> SuiteTables {
    SuiteTables::at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

/// Returns the directory of the official library inside the build directory. Installs the library if it is
/// missing.
fn library() -> PathBuf {
    let dir = chat_tests::scratch().join("interop");
    std::fs::create_dir_all(&dir).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/peer.mjs");
    std::fs::copy(source, dir.join("peer.mjs")).unwrap();
    if !dir.join("node_modules/@signalapp/libsignal-client").exists() {
        std::fs::write(dir.join("package.json"), "{\"private\": true}").unwrap();
        let installed = Command::new("npm")
            .args(["install", "--no-package-lock", "--no-audit", "--no-fund", "--silent", LIBRARY])
            .current_dir(&dir)
            .status()
            .expect("npm is missing: run `make setup`");
        assert!(installed.success());
    }
    dir
}

struct Node {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Node {
    fn start() -> Self {
        let dir = library();
        let mut child = Command::new("node")
            .arg("peer.mjs")
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is missing: run `make setup`");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
        let answer: Value = serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap();
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }

    fn open(&mut self, sealed: &[u8]) -> String {
        let answer =
            self.ask(&json!({"cmd": "open", "type": sealed[0], "bytes": STANDARD.encode(&sealed[1..])}));
        answer["text"].as_str().unwrap().to_owned()
    }

    fn seal(&mut self, text: &str) -> Vec<u8> {
        let answer = self.ask(&json!({"cmd": "seal", "text": text}));
        let bytes = STANDARD.decode(answer["bytes"].as_str().unwrap()).unwrap();
        [&[answer["type"].as_u64().unwrap() as u8][..], &bytes].concat()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn peer(identity: &str) -> Peer {
    Peer {
        installation: InstallationId::from_bytes([1; 16]),
        device: DeviceId::PRIMARY,
        identity: STANDARD.decode(identity).unwrap().into(),
    }
}

fn shuffle<T>(all: &mut [T]) {
    let mut rng = TestRng::new(7);
    for i in (1..all.len()).rev() {
        all.swap(i, rng.below(i as u64 + 1) as usize);
    }
}

/// Exchanges 1,000 messages each way. Each side receives them in shuffled order.
fn exchange(node: &mut Node, suite: &mut Signal, tx: &mut SuiteTables, peer: &Peer) {
    let mut ours: Vec<(String, Vec<u8>)> = (0..MESSAGES)
        .map(|n| {
            let text = format!("from rust {n} ✓");
            let sealed = suite.seal(tx, peer, text.as_bytes()).unwrap();
            (text, sealed.to_vec())
        })
        .collect();
    let mut theirs: Vec<(String, Vec<u8>)> = (0..MESSAGES)
        .map(|n| {
            let text = format!("from node {n} ✓");
            let sealed = node.seal(&text);
            (text, sealed)
        })
        .collect();
    shuffle(&mut ours);
    shuffle(&mut theirs);
    for (text, sealed) in &ours {
        assert_eq!(node.open(sealed), *text);
    }
    for (text, sealed) in &theirs {
        assert_eq!(suite.open(tx, peer, sealed).unwrap().unwrap(), text.as_bytes());
    }
    suite.flush(tx).unwrap();
    let again = &theirs[MESSAGES / 2].1;
    assert!(suite.open(tx, peer, again).unwrap().is_err(), "a message decrypts only once");
}

fn rust_begins(one_time: bool) {
    let (mut node, mut suite, mut tx) = (Node::start(), Signal::new(), tables());
    let bundle = node.ask(&json!({"cmd": "bundle", "oneTime": one_time}));
    let bytes = |name: &str| STANDARD.decode(bundle[name].as_str().unwrap()).unwrap();
    let signed = SignedPart {
        version: 1,
        created: tx.now_ms(),
        registration_id: bundle["registration"].as_u64().unwrap() as u32,
        signed_id: 10,
        signed_key: bytes("signed"),
        signed_signature: bytes("signature"),
        kem_id: 20,
        kem_key: bytes("kem"),
        kem_signature: bytes("kemSignature"),
    };
    let peer = peer(bundle["identity"].as_str().unwrap());
    // In our suite, one id names both halves of a one-time prekey.
    let part = OneTimePart {
        id: 20,
        key: if one_time { bytes("oneTime") } else { Vec::new() },
        kem_key: bytes("kem"),
        kem_signature: bytes("kemSignature"),
    };
    let first = if one_time { part.to_bytes().into() } else { Bytes::new() };
    suite
        .start_session(&mut tx, &peer, &PrekeyBundle { signed: signed.to_bytes().into(), one_time: first })
        .unwrap();
    let hello = suite.seal(&mut tx, &peer, b"hello").unwrap();
    assert_eq!(node.open(&hello), "hello");
    exchange(&mut node, &mut suite, &mut tx, &peer);
}

fn node_begins(one_time: bool) {
    let (mut node, mut suite, mut tx) = (Node::start(), Signal::new(), tables());
    let identity = suite.identity(&mut tx).unwrap();
    let (signed, prekeys) = suite.make_prekeys(&mut tx, 1, 3).unwrap();
    let signed = SignedPart::read(&signed, tx.now_ms()).unwrap();
    let first = OneTimePart::read(&prekeys[0].data).unwrap().unwrap();
    let (kem_id, kem, kem_signature) = if one_time {
        (first.id, &first.kem_key, &first.kem_signature)
    } else {
        (signed.kem_id, &signed.kem_key, &signed.kem_signature)
    };
    let begun = node.ask(&json!({
        "cmd": "begin", "registration": signed.registration_id, "identity": STANDARD.encode(&identity),
        "oneTimeId": one_time.then_some(first.id), "oneTime": one_time.then(|| STANDARD.encode(&first.key)),
        "signedId": signed.signed_id, "signed": STANDARD.encode(&signed.signed_key),
        "signature": STANDARD.encode(&signed.signed_signature),
        "kemId": kem_id, "kem": STANDARD.encode(kem), "kemSignature": STANDARD.encode(kem_signature),
    }));
    let peer = peer(begun["identity"].as_str().unwrap());
    let hello = node.seal("hello");
    assert_eq!(suite.open(&mut tx, &peer, &hello).unwrap().unwrap(), b"hello");
    exchange(&mut node, &mut suite, &mut tx, &peer);
}

#[test]
fn rust_begins_without_a_one_time_prekey() {
    rust_begins(false);
}

#[test]
fn rust_begins_with_a_one_time_prekey() {
    rust_begins(true);
}

#[test]
fn node_begins_with_a_one_time_prekey() {
    node_begins(true);
}

#[test]
fn node_begins_without_a_one_time_prekey() {
    node_begins(false);
}

#[test]
fn sender_keys_work_both_ways() {
    let (mut node, mut suite, mut tx) = (Node::start(), Signal::new(), tables());
    let group = ConversationId::from_bytes([0x14; 17]);
    let own = SenderKeyId::from_bytes([0xa5; 16]);
    let bytes = |answer: &Value| STANDARD.decode(answer["bytes"].as_str().unwrap()).unwrap();
    let mut ours: Vec<(String, Bytes)> = Vec::new();
    for n in 0..MESSAGES {
        let text = format!("from rust {n} ✓");
        let sealed = suite.seal_group(&mut tx, group, own, text.as_bytes(), n == 0).unwrap();
        if n == 0 {
            let accepted =
                node.ask(&json!({"cmd": "accept", "bytes": STANDARD.encode(&sealed.distribution)}));
            assert_eq!(accepted["id"], "a5a5a5a5-a5a5-a5a5-a5a5-a5a5a5a5a5a5");
        }
        ours.push((text, sealed.shared));
    }
    let id = "0123abcd-0000-4000-8000-000000000001";
    let peer = peer(&STANDARD.encode([5; 33]));
    let distribution = bytes(&node.ask(&json!({"cmd": "distribute", "id": id})));
    assert_eq!(suite.accept_sender_key(&mut tx, group, &peer, &distribution).unwrap(), Ok(()));
    let mut theirs: Vec<(String, Vec<u8>)> = Vec::new();
    for n in 0..MESSAGES {
        let text = format!("from node {n} ✓");
        let sealed = bytes(&node.ask(&json!({"cmd": "sealGroup", "id": id, "text": text})));
        theirs.push((text, sealed));
    }
    shuffle(&mut ours);
    shuffle(&mut theirs);
    for (text, sealed) in &ours {
        let opened = node.ask(&json!({"cmd": "openGroup", "bytes": STANDARD.encode(sealed)}));
        assert_eq!(opened["text"], *text);
    }
    let mut open = |sealed: &[u8]| suite.open_group(&mut tx, group, &peer, sealed, &[]).unwrap();
    for (text, sealed) in &theirs {
        assert_eq!(open(sealed).unwrap(), text.as_bytes());
    }
    assert_eq!(open(&theirs[MESSAGES / 2].1), Err(Unreadable::Undecryptable));
}
