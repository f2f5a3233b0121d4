//! Deletion of an account: nothing of it stays on the server, and others keep what they have.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chat_client::prelude::*;
use chat_core::Backends;
use chat_core::backend::CursorFilter;
use chat_server::Server;
use chat_store::EmbeddedStore;
use chat_testing::TestServer;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

/// Starts a server on an embedded store in a directory.
async fn start(dir: &Path) -> (TestServer, Backends) {
    let store = Arc::new(EmbeddedStore::open(dir).unwrap());
    let backends =
        Backends { store: store.clone(), keys: store.clone(), contacts: store, ..Backends::memory() };
    let builder = Server::builder().backends(backends.clone()).open_registration();
    (TestServer::start_with(builder).await.unwrap(), backends)
}

#[tokio::test]
async fn deleted_account_is_erased_and_others_keep_their_messages() {
    let dir = tempfile::tempdir().unwrap();
    let (server, backends) = start(dir.path()).await;
    let alice = server.client_with("alice", chat_signal::suite()).await.unwrap();
    let tablet = server.linked_client(&alice, "tablet", chat_signal::suite()).await.unwrap();
    let bob = server.client_with("bob", chat_signal::suite()).await.unwrap();
    let carol = server.client_with("carol", chat_signal::suite()).await.unwrap();
    alice.send(bob.user(), "read before").await.unwrap().stored().await.unwrap();
    assert_eq!(timeout(LIMIT, server.next_message(&bob)).await.unwrap().unwrap().text(), Some("read before"));
    alice.block(carol.user()).await.unwrap();
    // Bob is away while the last message arrives.
    let conversation = bob.conversation_with(alice.user());
    bob.close().await;
    alice.send(conversation_user(&alice, "bob").await, "read after").await.unwrap().stored().await.unwrap();
    let user = alice.user();
    let devices: Vec<_> =
        backends.keys.list(user).await.unwrap().unwrap().list().addresses().map(|d| d.installation).collect();
    assert_eq!(devices.len(), 2);
    let mut events = tablet.events_after(None);
    assert_eq!(tablet.delete_account().await.unwrap_err().kind(), ErrorKind::Denied, "no account key");
    alice.delete_account().await.unwrap();
    server.next_event(&mut events, |event| *event == Event::TokenRequired).await.unwrap();

    // Nothing of the account is left but its list versions, which verify the messages that wait for others.
    assert_eq!(backends.keys.list(user).await.unwrap(), None);
    assert_eq!(backends.keys.resolve(&Handle::new("alice").unwrap()).await.unwrap(), None);
    assert_eq!(backends.contacts.version(user).await.unwrap(), 0);
    for device in devices {
        let record = backends.store.device(device, CursorFilter::All).await.unwrap();
        assert_eq!((record.waiting_rows, record.cursors.len()), (0, 0));
        assert_eq!(backends.store.generation(device).await.unwrap(), 0);
        assert_eq!(backends.keys.device(device).await.unwrap().prekeys, 0);
    }

    // Bob reads the waiting message, keeps the history, and cannot send.
    let bob = server.client_with("bob", chat_signal::suite()).await.unwrap();
    let message = timeout(LIMIT, server.next_message(&bob)).await.unwrap().unwrap();
    assert_eq!(message.text(), Some("read after"));
    assert_eq!(bob.history(conversation, None, 10).await.unwrap().len(), 2);
    let refused = bob.send(user, "are you there?").await.unwrap();
    assert!(timeout(LIMIT, refused.stored()).await.unwrap().is_err());

    // The handle is free, for another user.
    alice.close().await;
    let config = server.config("alice again", chat_signal::suite());
    let again = Client::register(config, "alice").await.unwrap();
    assert_ne!(again.user(), user);
}

async fn conversation_user(client: &Client, handle: &str) -> UserId {
    client.resolve(handle).await.unwrap()
}
