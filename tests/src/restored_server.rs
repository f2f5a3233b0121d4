//! Restores an older copy of a server's data, and checks that two users continue with it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use chat_client::{Client, ClientConfig, Event, Events};
use chat_signal::Signal;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);

/// A server, or a cluster, with data that can go back to an older copy.
pub trait Restorable {
    fn url(&self) -> String;

    /// Copies the data while the server is stopped.
    fn back_up(&mut self);

    /// Restores the copy while the server is stopped. `is_told`: the operator runs the command for restores.
    fn go_back(&mut self, is_told: bool);
}

/// Replaces a directory by a copy of another one.
pub fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

struct User {
    client: Client,
    events: Events,
}

impl User {
    async fn open(url: &str, directory: &Path, name: &str) -> Self {
        let config = ClientConfig::new(url, name, Box::new(Signal::new())).unwrap().directory(directory);
        let client = Client::register_if_new(config, name).await.unwrap();
        let events = client.events("test").await.unwrap();
        Self { client, events }
    }

    async fn send(&self, to: &Self, text: &str) {
        let ticket = self.client.send(to.client.user(), text).await.unwrap();
        timeout(LIMIT, ticket.stored()).await.unwrap_or_else(|_| panic!("{text} is not stored")).unwrap();
    }

    /// Waits for an event.
    async fn wait<T>(&mut self, what: &str, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let found = async {
            loop {
                let record = self.events.next().await.unwrap().unwrap();
                let found = wanted(&record.event);
                self.events.handled(&record).await.unwrap();
                if let Some(found) = found {
                    return found;
                }
            }
        };
        timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("no {what}"))
    }

    /// Waits for a message. A device that still believes in the lost messages names them: without the operator's command
    /// this is reported, and it is true that the server sent others.
    async fn receives(&mut self, text: &str, is_told: bool) {
        self.wait(text, |event| match event {
            Event::Message(message) if message.text() == Some(text) => Some(()),
            Event::Integrity { violation, .. } if is_told => panic!("false alarm: {violation:?}"),
            _ => None,
        })
        .await;
    }

    async fn learns_of_the_restore(&mut self) -> u64 {
        self.wait("event about the restore", |event| match event {
            Event::ServerRestored { after_seq, .. } => Some(*after_seq),
            _ => None,
        })
        .await
    }

    /// Returns the texts of the conversation with another user, oldest first, each with whether it is archived.
    async fn history(&self, with: &Self) -> Vec<(String, bool)> {
        let conversation = self.client.conversation_with(with.client.user());
        let mut messages = self.client.history(conversation, None, 100).await.unwrap();
        messages.reverse();
        messages.iter().map(|one| (one.text().unwrap_or("unreadable").to_owned(), one.archived)).collect()
    }
}

/// Sends messages, restores a copy without the last ones, and checks that both users continue with it.
pub async fn server_goes_back(server: &mut impl Restorable, is_told: bool) {
    let dir = tempfile::tempdir().unwrap();
    let url = server.url();
    let (mut alice, mut bob) =
        (User::open(&url, dir.path(), "alice").await, User::open(&url, dir.path(), "bob").await);
    alice.send(&bob, "one").await;
    bob.receives("one", is_told).await;
    bob.send(&alice, "two").await;
    alice.receives("two", is_told).await;
    // The session flushes acks after a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.back_up();
    for n in 0..3 {
        alice.send(&bob, &format!("lost {n}")).await;
        bob.receives(&format!("lost {n}"), is_told).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.go_back(is_told);
    // The first message after the restore has a seq that Bob knows for another message.
    alice.send(&bob, "new").await;
    bob.receives("new", is_told).await;
    if is_told {
        assert_eq!(alice.learns_of_the_restore().await, 2);
    }
    for n in 0..5 {
        alice.send(&bob, &format!("new {n}")).await;
        bob.receives(&format!("new {n}"), is_told).await;
        bob.send(&alice, &format!("back {n}")).await;
        alice.receives(&format!("back {n}"), is_told).await;
    }
    let archived = |n: usize| (format!("lost {n}"), true);
    for (one, other) in [(&bob, &alice), (&alice, &bob)] {
        let history = one.history(other).await;
        let mut wanted = vec![("one".to_owned(), false), ("two".to_owned(), false)];
        wanted.extend((0..3).map(archived));
        wanted.push(("new".into(), false));
        wanted.extend((0..5).flat_map(|n| [(format!("new {n}"), false), (format!("back {n}"), false)]));
        assert_eq!(history, wanted);
    }
    // The connection is stable.
    let mut again = bob.client.events_after(None);
    let reconnects = async {
        loop {
            if let Event::Disconnected = again.next().await.unwrap().unwrap().event {
                panic!("a reconnect loop");
            }
        }
    };
    let _ = timeout(Duration::from_secs(3), reconnects).await;
}
