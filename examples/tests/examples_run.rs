//! Every example runs, and does what its first line says.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use chat_client::prelude::*;
use chat_server::Server;

const LIMIT: Duration = Duration::from_secs(60);

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the command of an example, which `cargo test` has built.
fn example(name: &str, dir: &Path) -> Command {
    let deps = std::env::current_exe().unwrap();
    let target: PathBuf = deps.parent().unwrap().parent().unwrap().into();
    let mut command = Command::new(target.join("examples").join(name));
    command.current_dir(dir).stdin(Stdio::null());
    command
}

fn start(command: &mut Command) -> Process {
    Process(command.spawn().unwrap())
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn wait_for(address: &str) {
    let end = Instant::now() + LIMIT;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn server() -> (Server, String) {
    let server =
        Server::builder().in_memory().open_registration().listen("127.0.0.1:0").start().await.unwrap();
    let url = server.url().unwrap();
    (server, url)
}

async fn client(dir: &Path, url: &str, name: &str) -> Client {
    let config = ClientConfig::new(url, name, chat_signal::suite()).unwrap().directory(dir);
    let client = Client::register_if_new(config, name).await.unwrap();
    client.ready().await.unwrap();
    client
}

/// Waits until a user is registered and can receive messages.
async fn reachable(client: &Client, name: &str) -> UserId {
    let end = Instant::now() + LIMIT;
    loop {
        match client.resolve(name).await {
            Ok(user) => return user,
            Err(error) => assert!(Instant::now() < end, "{name} does not register: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_message_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, url) = server().await;
    let bob = client(dir.path(), &url, "bob").await;
    let sent = example("first_message", dir.path()).args([&url, "alice", "bob", "hello"]).status().unwrap();
    assert!(sent.success());
    let mut events = bob.events("test").await.unwrap();
    let text = async {
        loop {
            if let Event::Message(message) = events.next().await.unwrap().unwrap().event {
                return message.text().map(str::to_owned);
            }
        }
    };
    assert_eq!(tokio::time::timeout(LIMIT, text).await.unwrap().as_deref(), Some("hello"));
}

/// Reads messages until there are so many texts.
async fn next_texts(events: &mut Events, texts: &mut Vec<String>, count: usize) {
    while texts.len() < count {
        if let Event::Message(message) = events.next().await.unwrap().unwrap().event {
            texts.push(message.text().unwrap().to_owned());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn echo_bot_answers_once_although_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, url) = server().await;
    let bot = start(example("echo_bot", dir.path()).arg(&url));
    let alice = client(dir.path(), &url, "alice").await;
    let user = reachable(&alice, "echo-bot").await;
    let mut events = alice.events("test").await.unwrap();
    let mut answers = Vec::new();
    alice.send(user, "one").await.unwrap().stored().await.unwrap();
    tokio::time::timeout(LIMIT, next_texts(&mut events, &mut answers, 1)).await.unwrap();
    drop(bot);
    alice.send(user, "two").await.unwrap().stored().await.unwrap();
    let _bot = start(example("echo_bot", dir.path()).arg(&url));
    tokio::time::timeout(LIMIT, next_texts(&mut events, &mut answers, 2)).await.unwrap();
    assert_eq!(answers, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn resume_after_kill_misses_no_message() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, url) = server().await;
    let (alice, archive) =
        (client(dir.path(), &url, "alice").await, client(dir.path(), &url, "archive").await);
    let user = archive.user();
    archive.close().await;
    for n in 1..=3 {
        alice.send(user, format!("message {n}")).await.unwrap().stored().await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..2 {
        let run = example("resume_after_kill", dir.path()).arg(&url).output().unwrap();
        assert!(!run.status.success(), "it must end by itself");
        seen.extend(lines(&run));
    }
    assert_eq!(seen, ["1: message 1", "2: message 2", "2: message 2", "3: message 3"]);
}

#[test]
fn two_users_talk() {
    let dir = tempfile::tempdir().unwrap();
    let run = example("two_users", dir.path()).output().unwrap();
    let lines = lines(&run);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(
        lines[..4],
        ["stored at 1", "Bob received: hello Bob", "Bob has read it", "Alice received: hello Alice"]
    );
    assert!(lines[4].starts_with("safety number: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_server_keeps_messages_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let url = format!("ws://{address}");
    let first = start(example("embedded_server", dir.path()).args(["data", &address]));
    wait_for(&address);
    let alice = client(dir.path(), &url, "alice").await;
    alice.send(alice.user(), "a note").await.unwrap().stored().await.unwrap();
    drop(first);
    let _second = start(example("embedded_server", dir.path()).args(["data", &address]));
    wait_for(&address);
    let ticket = alice.send(alice.user(), "another").await.unwrap();
    let position = tokio::time::timeout(LIMIT, ticket.stored()).await.unwrap().unwrap();
    assert_eq!(position.seq, 2, "the first message was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn axum_login_accepts_only_its_own_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let _app = start(example("axum_login", dir.path()).arg(&address));
    wait_for(&address);
    let config = |token: &str| {
        let url = format!("ws://{address}/chat");
        let config = ClientConfig::new(&url, "alice", chat_signal::suite()).unwrap();
        config.directory(dir.path()).token(token)
    };
    let denied = Client::register(config("token-1"), "alice").await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied);
    let token = login(&address, "alice");
    let alice = Client::register(config(&token), "alice").await.unwrap();
    tokio::time::timeout(LIMIT, alice.ready()).await.unwrap().unwrap();
}

/// Requests a token over HTTP.
fn login(address: &str, user: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address).unwrap();
    let body = format!("\"{user}\"");
    write!(
        stream,
        "POST /login HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n\r\n").next().unwrap().trim().trim_matches('"').to_owned()
}
