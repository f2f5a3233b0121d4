use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_client::platform::Dialer;
use chat_client::{
    Client, ClientConfig, Error, ErrorKind, Event, EventRecord, Events, Message, MessageId, Profile, Result,
    Suite,
};
use chat_server::{Server, ServerBuilder, ServerError};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::in_process::InProcessDialer;
use crate::network::Network;
use crate::unencrypted::Unencrypted;

/// A server in the process of the test. It listens on no socket, and forgets everything when it is dropped, including the
/// profiles of its clients.
#[derive(Debug)]
pub struct TestServer {
    server: Server,
    dialer: Arc<InProcessDialer>,
    profiles: TempDir,
    start_time: Duration,
    /// The messages of [`make_contact`](Self::make_contact).
    introductions: Mutex<HashSet<MessageId>>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unavailable, "failed to start the test server").caused_by(error)
}

impl TestServer {
    /// Starts a server on the memory backends, with open registration, groups, and the system's clock. Prints how long that
    /// took.
    ///
    /// # Errors
    /// `Unavailable` if the server cannot be started.
    pub async fn start() -> Result<Self> {
        Self::start_with(Server::builder().in_memory().open_registration()).await
    }

    /// Starts a configured server, for example with a manual clock:
    ///
    /// ```
    /// # #[tokio::main] async fn main() -> chat_client::Result<()> {
    /// use std::sync::Arc;
    /// let clock = Arc::new(chat_core::memory::ManualClock::default());
    /// let builder = chat_server::Server::builder().in_memory().open_registration().clock(clock.clone());
    /// let server = chat_testing::TestServer::start_with(builder).await?;
    /// # drop(server); Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Unavailable` if the server cannot be started.
    #[allow(clippy::print_stderr)] // the start time is part of a test's output
    pub async fn start_with(builder: ServerBuilder) -> Result<Self> {
        let start = Instant::now();
        let server = builder.start().await.map_err(|error: ServerError| failed(error))?;
        let dialer = InProcessDialer { accept: Box::new(server.acceptor()), runtime: Handle::current() };
        let profiles = tempfile::tempdir().map_err(failed)?;
        let start_time = start.elapsed();
        eprintln!("chat-testing: the server started in {start_time:?}");
        let introductions = Mutex::default();
        Ok(Self { server, dialer: Arc::new(dialer), profiles, start_time, introductions })
    }

    /// Returns the time that the server took to start.
    pub const fn start_time(&self) -> Duration {
        self.start_time
    }

    /// Returns the server, for example to look at its engine.
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// Returns a dialer that connects to this server.
    pub fn dialer(&self) -> Arc<dyn Dialer> {
        self.dialer.clone()
    }

    /// Returns a configuration for a client of this server. Profiles live as long as the server.
    pub fn config(&self, profile: impl Into<Profile>, suite: Box<dyn Suite>) -> ClientConfig {
        ClientConfig::with_dialer(self.dialer.clone(), profile, suite).directory(self.profiles.path())
    }

    /// Returns a connected client of a new user, without encryption. With the handle of a client that was closed, the
    /// client continues with its profile.
    ///
    /// # Errors
    /// The errors of [`Client::register_if_new`].
    pub async fn client(&self, handle: &str) -> Result<Client> {
        self.client_with(handle, Box::new(Unencrypted::new())).await
    }

    /// Returns a client like [`client`](Self::client) that is offline, and its network, which is down. Once the network is up,
    /// the client connects.
    ///
    /// # Errors
    /// The errors of [`Client::register_if_new`].
    pub async fn offline_client(&self, handle: &str) -> Result<(Client, Arc<Network>)> {
        self.client(handle).await?.close().await;
        let network = Network::new(self.dialer());
        network.set_up(false);
        let suite = Box::new(Unencrypted::new());
        let config =
            ClientConfig::with_dialer(network.clone(), handle, suite).directory(self.profiles.path());
        Ok((Client::open(config).await?, network))
    }

    /// Returns a connected client like [`client`](Self::client), with a suite.
    ///
    /// # Errors
    /// The errors of [`Client::register_if_new`].
    pub async fn client_with(&self, handle: &str, suite: Box<dyn Suite>) -> Result<Client> {
        let client = Client::register_if_new(self.config(handle, suite), handle).await?;
        client.ready().await?;
        Ok(client)
    }

    /// Links a further device to the account of a client. Returns its connected client.
    ///
    /// # Errors
    /// The errors of [`Client::link`] and of [`Client::approve_link`].
    pub async fn linked_client(
        &self,
        first: &Client,
        profile: &str,
        suite: Box<dyn Suite>,
    ) -> Result<Client> {
        let pending = Client::link(self.config(profile, suite)).await?;
        first.approve_link(pending.code()).await?;
        let client = pending.approved().await?;
        client.ready().await?;
        Ok(client)
    }

    /// Returns the next event of a stream that satisfies a condition. Skips the others.
    ///
    /// ```
    /// # #[tokio::main] async fn main() -> chat_client::Result<()> {
    /// use chat_client::Event;
    /// let server = chat_testing::TestServer::start().await?;
    /// let alice = server.client("alice").await?;
    /// let mut events = alice.events("test").await?;
    /// server.next_event(&mut events, |event| *event == Event::Connected).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Unavailable` if there is no such event within 20 seconds, `Closed` if the client is closed, or the error of its
    /// local store.
    pub async fn next_event(
        &self,
        events: &mut Events,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<EventRecord> {
        let found = async {
            while let Some(record) = events.next().await? {
                if wanted(&record.event) {
                    return Ok(record);
                }
            }
            Err(Error::new(ErrorKind::Closed, "the client was closed before such an event"))
        };
        let late = |_| Error::new(ErrorKind::Unavailable, "there was no such event within 20 seconds");
        tokio::time::timeout(Duration::from_secs(20), found).await.map_err(late)?
    }

    /// Returns the next message that a client received and no earlier call returned, except those of
    /// [`make_contact`](Self::make_contact).
    ///
    /// # Errors
    /// `Closed` if the client is closed, or the error of its local store.
    pub async fn next_message(&self, client: &Client) -> Result<Message> {
        let mut events = client.events("chat-testing").await?;
        while let Some(record) = events.next().await? {
            if let Event::Message(message) = &record.event
                && !self.introductions.lock().contains(&message.id)
            {
                events.handled(&record).await?;
                return Ok(message.clone());
            }
        }
        Err(Error::new(ErrorKind::Closed, "the client was closed before a message arrived"))
    }

    /// Makes a user a contact of others: each of them writes to it. So it can add them to groups without an invitation.
    /// Returns once the user has these messages.
    ///
    /// # Errors
    /// `Unavailable` if a message does not arrive within 20 seconds, `Closed` if a client is closed, or the error of its
    /// local store.
    pub async fn make_contact(&self, client: &Client, of: &[&Client]) -> Result<()> {
        for other in of {
            let introduction = other.send(client.user(), "hello").await?.message();
            self.introductions.lock().insert(introduction);
            let mut events = client.events("make_contact").await?;
            let is_it =
                |event: &Event| matches!(event, Event::Message(message) if message.id == introduction);
            let record = self.next_event(&mut events, is_it).await?;
            events.handled(&record).await?;
        }
        Ok(())
    }
}
