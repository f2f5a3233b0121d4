//! Tokens that expire and that are revoked, with a client on a server in the same process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use std::time::{Duration, SystemTime};

use chat_client::prelude::*;
use chat_server::{Authenticated, Server};
use chat_testing::{TestServer, Unencrypted};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

/// Returns a token: the handle, when it was issued, and when it expires, in milliseconds since 1970.
fn token(handle: &str, valid: Duration) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("{handle} {} {}", now.as_millis(), (now + valid).as_millis())
}

fn authenticate(token: &str) -> chat_core::Result<Authenticated> {
    let denied = || chat_core::Error::new(chat_core::ErrorKind::Denied, "not a token");
    let parts: Vec<&str> = token.split(' ').collect();
    let [handle, issued, expires] = parts[..] else { return Err(denied()) };
    let time = |text: &str| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(text.parse().ok()?));
    let (issued, expires) = (time(issued).ok_or_else(denied)?, time(expires).ok_or_else(denied)?);
    Ok(Authenticated::user(Handle::new(handle)?).issued_at(issued).expires_at(expires))
}

async fn start() -> TestServer {
    let builder = Server::builder().in_memory().authenticate_with(authenticate);
    TestServer::start_with(builder).await.unwrap()
}

async fn client(server: &TestServer, handle: &str, valid: Duration) -> Client {
    let config = server.config(handle, Box::new(Unencrypted::new())).token(token(handle, valid));
    let client = Client::register(config, handle).await.unwrap();
    client.ready().await.unwrap();
    client
}

#[tokio::test]
async fn session_continues_with_a_new_token() {
    let server = start().await;
    let alice = client(&server, "alice", Duration::from_secs(6)).await;
    let bob = client(&server, "bob", Duration::from_secs(3600)).await;
    let mut events = alice.events_after(None);
    let Event::TokenExpiring { expires_in } = server
        .next_event(&mut events, |event| matches!(event, Event::TokenExpiring { .. }))
        .await
        .unwrap()
        .event
    else {
        panic!()
    };
    assert!(expires_in <= Duration::from_secs(3), "{expires_in:?}");
    alice.set_token(&token("alice", Duration::from_secs(3600))).await.unwrap();
    // Beyond the end of the first token.
    tokio::time::sleep(Duration::from_secs(5)).await;
    bob.send(alice.user(), "still here").await.unwrap();
    let shown = server
        .next_event(&mut events, |event| !matches!(event, Event::CaughtUp | Event::Connected))
        .await
        .unwrap()
        .event;
    assert!(matches!(shown, Event::Message(_)), "the session ended: {shown:?}");
}

#[tokio::test]
async fn refused_renewal_asks_for_another_token() {
    let server = start().await;
    let alice = client(&server, "alice", Duration::from_secs(3600)).await;
    let mut events = alice.events_after(None);
    alice.set_token("not a token at all").await.unwrap();
    server.next_event(&mut events, |event| *event == Event::TokenRequired).await.unwrap();
    alice.set_token(&token("alice", Duration::from_secs(3600))).await.unwrap();
    timeout(LIMIT, alice.ready()).await.unwrap().unwrap();
}

#[tokio::test]
async fn revoked_token_ends_its_session_and_a_newer_one_does_not() {
    let server = start().await;
    let alice = client(&server, "alice", Duration::from_secs(3600)).await;
    let mut events = alice.events_after(None);
    server.server().engine().revoke(alice.handle()).await.unwrap();
    server.next_event(&mut events, |event| *event == Event::TokenRequired).await.unwrap();
    alice.set_token(&token("alice", Duration::from_secs(3600))).await.unwrap();
    timeout(LIMIT, alice.ready()).await.unwrap().unwrap();
}
