//! The server sees no plaintext: none of 1,000 canary texts occurs in its data, in its logs or on the wire.
//! With a suite that does not encrypt, the same search finds all of them, so the test can fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use chat_client::event::Event;
use chat_client::suite::{DecryptResult, Peer, PrekeyBundle, Suite, SuiteTx, Table};
use chat_client::{Client, Profile};
use chat_core::replica::Recipient;
use chat_core::wire::OneTimePrekey;
use chat_core::{Handle, InstallationId, Result};
use chat_tests::proxy::Proxy;
use chat_tests::server::Server;
use chat_transport::dial::Dialer;

const CANARIES: usize = 1000;

/// A suite that encrypts nothing, for this test only.
#[derive(Debug)]
struct Plain;

impl Suite for Plain {
    fn identity(&mut self, tx: &mut dyn SuiteTx) -> Result<Bytes> {
        if let Some(known) = tx.get(Table::Identity, b"id")? {
            return Ok(known.into());
        }
        let mut id = [0; 33];
        getrandom::fill(&mut id).unwrap();
        tx.put(Table::Identity, b"id", &id)?;
        Ok(Bytes::copy_from_slice(&id))
    }
    fn has_session(&mut self, _: &mut dyn SuiteTx, _: &Peer) -> Result<bool> {
        Ok(true)
    }
    fn start_session(&mut self, _: &mut dyn SuiteTx, _: &Peer, _: &PrekeyBundle) -> Result<()> {
        Ok(())
    }
    fn seal(&mut self, _: &mut dyn SuiteTx, _: &Peer, plaintext: &[u8]) -> Result<Bytes> {
        Ok(Bytes::copy_from_slice(plaintext))
    }
    fn open(&mut self, _: &mut dyn SuiteTx, _: &Peer, sealed: &[u8]) -> Result<DecryptResult> {
        Ok(Ok(sealed.to_vec()))
    }
    fn end_session(&mut self, _: &mut dyn SuiteTx, _: InstallationId) -> Result<()> {
        Ok(())
    }
    fn encrypt_body(&self, _: &[u8; 32], _: &[u8], content: &[u8]) -> Option<Vec<u8>> {
        Some(content.to_vec())
    }
    fn decrypt_body(&self, _: &[u8], _: &[u8], body: &[u8]) -> Option<Vec<u8>> {
        Some(body.to_vec())
    }
    fn make_prekeys(&mut self, _: &mut dyn SuiteTx, _: u64, _: u64) -> Result<(Bytes, Vec<OneTimePrekey>)> {
        Ok((Bytes::from_static(b"plain"), Vec::new()))
    }
    fn reset(&mut self, _: &mut dyn SuiteTx) -> Result<()> {
        Ok(())
    }
    fn flush(&mut self, _: &mut dyn SuiteTx) -> Result<()> {
        Ok(())
    }
}

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
    let dialer = Dialer::new(&format!("ws://127.0.0.1:{}", proxy.port), &[]).unwrap();
    let mut clients = Vec::new();
    for name in ["alice", "bob"] {
        let profile = dir.path().join(name);
        let handle = Handle::new(name).unwrap();
        Profile::register(&profile, &dialer, suite().as_mut(), &handle, "").await.unwrap();
        clients.push(Client::builder(&profile, suite(), dialer.clone()).open().await.unwrap());
    }
    let canaries = canaries();
    let mut arriving = clients[1].events(Some(0));
    let mut answers = Vec::new();
    for canary in &canaries {
        let to = Recipient::Handle(Handle::new("bob").unwrap());
        answers.push(clients[0].send_later(to, canary.clone(), None).await.unwrap());
    }
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    let mut arrived = Vec::new();
    while arrived.len() < canaries.len() {
        let next = tokio::time::timeout(Duration::from_secs(60), arriving.next()).await.unwrap().unwrap();
        if let Event::Message { text, .. } = next.event {
            arrived.push(text);
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
    assert_eq!(talk(|| Box::new(chat_signal::Signal::new())).await, 0, "the server must see no canary");
    assert_eq!(talk(|| Box::new(Plain)).await, CANARIES, "the search must find all unencrypted canaries");
}
