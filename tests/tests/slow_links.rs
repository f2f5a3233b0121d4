//! Links that are slow but alive: everything arrives, at their speed, and the user learns why it takes long. Cases 6 and
//! 7 of the situations from daily use.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use std::time::{Duration, Instant};

use chat_client::{Client, ClientConfig, Event};
use chat_signal::Signal;
use chat_testing::TestServer;
use chat_tests::proxy::start_slow;
use tokio::time::timeout;

/// Far above the time that any of the transfers takes: the test is about progress, and prints how long it took.
const LIMIT: Duration = Duration::from_secs(240);

async fn server() -> (TestServer, u16) {
    let builder = chat_server::Server::builder().in_memory().open_registration().listen("127.0.0.1:0");
    let server = TestServer::start_with(builder).await.unwrap();
    let url = server.server().url().unwrap();
    let port = url.rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
    (server, port)
}

fn config(port: u16, profile: &str, directory: &Path) -> ClientConfig {
    let url = format!("ws://127.0.0.1:{port}");
    ClientConfig::new(&url, profile, Box::new(Signal::new())).unwrap().directory(directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_texts_arrive_at_64_kbit_per_second() {
    const TEXTS: usize = 300;
    let (server, port) = server().await;
    let directory = tempfile::tempdir().unwrap();
    let bob = Client::register(config(port, "bob", directory.path()), "bob").await.unwrap();
    bob.ready().await.unwrap();
    let user = bob.user();
    let alice = server.client_with("alice", Box::new(Signal::new())).await.unwrap();
    // They know each other, so that the texts are not slowed down.
    bob.send(alice.user(), "hello").await.unwrap();
    bob.drained().await.unwrap();
    bob.close().await;
    for n in 0..TEXTS {
        alice.send(user, format!("text {n}: {}", "x".repeat(200)).as_str()).await.unwrap();
    }
    alice.drained().await.unwrap();
    let slow = start_slow(port, 8_000, 8_000);
    let bob = Client::open(config(slow, "bob", directory.path())).await.unwrap();
    let mut events = bob.events("test").await.unwrap();
    let (began, mut arrived, mut first, mut told) = (Instant::now(), 0, None, false);
    let all = async {
        while arrived < TEXTS {
            match events.next().await.unwrap().unwrap().event {
                Event::Message(message) => {
                    assert!(message.text().unwrap().starts_with(&format!("text {arrived}:")));
                    first.get_or_insert(began.elapsed());
                    arrived += 1;
                }
                Event::Slow => told = true,
                Event::Disconnected => panic!("the connection ended after {arrived} texts"),
                _ => {}
            }
        }
    };
    timeout(LIMIT, all).await.expect("the texts did not arrive");
    println!("{TEXTS} texts at 64 kbit/s: the first after {first:?}, all after {:?}", began.elapsed());
    assert!(first.unwrap() < began.elapsed() / 4, "they arrive one after the other");
    assert!(told, "the user does not learn that the link is slow");
    // The link is not full of rows: a message of its own has its turn.
    let sent = Instant::now();
    timeout(LIMIT, bob.send(alice.user(), "back").await.unwrap().stored()).await.unwrap().unwrap();
    println!("a message on the same link: stored after {:?}", sent.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn large_texts_cross_a_slow_link_both_ways() {
    let (server, port) = server().await;
    let directory = tempfile::tempdir().unwrap();
    let slow = start_slow(port, 48_000, 5_000);
    let began = Instant::now();
    let bob = Client::register(config(slow, "bob", directory.path()), "bob").await.unwrap();
    timeout(LIMIT, bob.ready()).await.expect("not ready").unwrap();
    println!("registered and ready at 40 kbit/s up after {:?}", began.elapsed());
    let alice = server.client_with("alice", Box::new(Signal::new())).await.unwrap();
    let text = |c: &str| c.repeat(65_000);
    let (large, short) = (bob.send(alice.user(), text("b").as_str()).await.unwrap(), Instant::now());
    let behind = bob.send(alice.user(), "short").await.unwrap();
    timeout(LIMIT, large.stored()).await.expect("the large text is not stored").unwrap();
    timeout(LIMIT, behind.stored()).await.expect("the short text is not stored").unwrap();
    println!("65,000 bytes and a short text at 40 kbit/s up: stored after {:?}", short.elapsed());
    for wanted in [text("b").as_str(), "short"] {
        let message = timeout(LIMIT, server.next_message(&alice)).await.unwrap().unwrap();
        assert_eq!(message.text(), Some(wanted));
    }
    let down = Instant::now();
    for n in 0..2 {
        alice.send(bob.user(), text(&n.to_string()).as_str()).await.unwrap();
    }
    for n in 0..2 {
        let message = timeout(LIMIT, server.next_message(&bob)).await.expect("no text").unwrap();
        assert_eq!(message.text(), Some(text(&n.to_string()).as_str()));
    }
    println!("2 × 65,000 bytes at 384 kbit/s down after {:?}", down.elapsed());
}
