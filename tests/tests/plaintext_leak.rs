//! The server sees no plaintext: none of 1,000 canary texts occurs in its data, in its logs or on the wire.
//! With a suite that does not encrypt, the same search finds all of them, so the test can fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use chat_client::prelude::*;
use chat_tests::proxy::Proxy;
use chat_tests::server::Server;

const CANARIES: usize = 1000;

fn canaries() -> Vec<String> {
    (0..CANARIES)
        .map(|n| {
            let mut random = [0; 12];
            getrandom::fill(&mut random).unwrap();
            format!("canary-{n:04}-{}", hex::encode(random))
        })
        .collect()
}

/// Returns the encodings in which a text may occur. Base64 depends on the offset of the text in a group of
/// three bytes, so each offset has its own form, without the ends that neighbouring bytes change.
fn forms(text: &str) -> Vec<Vec<u8>> {
    let utf16 = |big: bool| -> Vec<u8> {
        text.encode_utf16().flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() }).collect()
    };
    let mut forms = vec![
        text.as_bytes().to_vec(),
        utf16(false),
        utf16(true),
        hex::encode(text).into_bytes(),
        hex::encode_upper(text).into_bytes(),
    ];
    for shift in 0..3 {
        let padded = [&vec![b' '; shift][..], text.as_bytes()].concat();
        let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(padded);
        forms.push(encoded.as_bytes()[4..encoded.len() - 4].to_vec());
    }
    forms
}

fn read_all(dir: &Path, into: &mut Vec<u8>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, into);
        } else {
            into.extend(std::fs::read(path).unwrap());
        }
    }
}

/// Returns the number of canaries found in any form.
fn search(canaries: &[String], haystack: &[u8]) -> usize {
    // All forms of all canaries, keyed by their last eight bytes.
    let mut needles: std::collections::HashMap<[u8; 8], Vec<(usize, Vec<u8>)>> =
        std::collections::HashMap::new();
    for (n, canary) in canaries.iter().enumerate() {
        for form in forms(canary) {
            // Only the random part at the end differs between canaries.
            needles.entry(form[form.len() - 8..].try_into().unwrap()).or_default().push((n, form));
        }
    }
    let mut found = std::collections::HashSet::new();
    for end in 8..=haystack.len() {
        if let Some(forms) = needles.get(&haystack[end - 8..end]) {
            for (n, form) in forms {
                if haystack[..end].ends_with(form) {
                    found.insert(*n);
                }
            }
        }
    }
    found.len()
}

async fn talk(suite: fn() -> Box<dyn Suite>) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_with(dir.path(), &["--log", "trace"]);
    let proxy = Proxy::start(server.port);
    let url = format!("ws://127.0.0.1:{}", proxy.port);
    let mut clients = Vec::new();
    for name in ["alice", "bob"] {
        let config = ClientConfig::new(&url, name, suite()).unwrap().directory(dir.path());
        clients.push(Client::register(config, name).await.unwrap());
    }
    let canaries = canaries();
    let mut arriving = clients[1].events("test").await.unwrap();
    let bob = Handle::new("bob").unwrap();
    let mut submitted = Vec::new();
    for canary in &canaries {
        submitted.push(clients[0].submit(&bob, canary.as_str()).await.unwrap());
    }
    for submission in submitted {
        submission.await.unwrap();
    }
    let mut arrived = Vec::new();
    while arrived.len() < canaries.len() {
        let next = tokio::time::timeout(Duration::from_secs(60), arriving.next()).await.unwrap().unwrap();
        if let Event::Message(message) = next.unwrap().event {
            arrived.push(message.text().unwrap().to_owned());
        }
    }
    assert_eq!(arrived, canaries, "all canaries must arrive");
    for client in clients {
        client.close().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.kill();
    let mut everything = proxy.seen();
    read_all(&server.data, &mut everything);
    everything.extend(server.log().into_bytes());
    println!("{} bytes searched", everything.len());
    search(&canaries, &everything)
}

#[tokio::test]
async fn server_sees_no_plaintext() {
    assert_eq!(talk(chat_signal::suite).await, 0, "the server must see no canary");
    assert_eq!(
        talk(|| Box::new(chat_testing::Unencrypted::new())).await,
        CANARIES,
        "the search must find all unencrypted canaries"
    );
}
