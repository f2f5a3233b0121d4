//! The application's handle to a client.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chat_core::device_list::SignedDeviceList;
use chat_core::replica::Recipient;
use chat_core::{ConversationId, Error, ErrorKind, Handle, Result, UserId};
use chat_transport::dial::Dialer;
use parking::Shared;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::connection_state::ConnectionState;
use crate::driver::{Channels, Command, Driver};
use crate::event::{Enqueued, Event, EventRecord};
use crate::linking::LinkCode;
use crate::profile::Profile;
use crate::safety::safety_number;
use crate::store::{LocalStore, StoreConfig, StoredMessage};
use crate::suite::Suite;

/// Capacity of each command queue to the driver; callers wait while it is full.
const COMMANDS: usize = 256;
/// Number of ephemeral events kept for a slow subscriber. Older ones are dropped; durable events never are.
const PASSING: usize = 256;
/// Maximum number of durable events in one read.
const PAGE: usize = 256;

mod parking {
    use std::sync::Mutex;
    use std::thread::JoinHandle;

    /// The driver thread, and the error that ended it.
    #[derive(Debug, Default)]
    pub(super) struct Shared {
        pub thread: Mutex<Option<JoinHandle<()>>>,
        pub failure: Mutex<Option<chat_core::Error>>,
    }
}

/// A handle to a client: one profile, one device. Handles are `Send` and cheap to clone. A separate thread
/// owns the ratchets and the local store.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    sends: mpsc::Sender<Command>,
    last: watch::Receiver<u64>,
    /// The number of the last durable event when this client was opened.
    opened_at: u64,
    connection_state: watch::Receiver<ConnectionState>,
    passing: broadcast::Sender<Event>,
    owner: Arc<Shared>,
    user: UserId,
    device: u8,
    handle: Handle,
    account_key: [u8; 32],
}

/// The builder of a [`Client`].
#[derive(Debug)]
pub struct Builder {
    profile: StoreConfig,
    suite: Box<dyn Suite>,
    dialer: Dialer,
    token: Option<String>,
    strict: bool,
}

fn gone() -> Error {
    Error::new(ErrorKind::Closed, "the client is closed")
}

impl Client {
    /// Returns a builder for a profile directory, an encryption suite and a server. The suite is required:
    /// there is no default, so the client never sends plaintext silently.
    pub fn builder(profile: impl Into<StoreConfig>, suite: Box<dyn Suite>, dialer: Dialer) -> Builder {
        Builder { profile: profile.into(), suite, dialer, token: None, strict: false }
    }

    async fn request<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| self.failure())?;
        answer.await.map_err(|_| self.failure())?
    }

    fn failure(&self) -> Error {
        self.owner.failure.lock().ok().and_then(|failure| failure.clone()).unwrap_or_else(gone)
    }

    /// Returns this user's id.
    pub const fn user(&self) -> UserId {
        self.user
    }

    /// Returns this user's handle.
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Returns this device's number.
    pub const fn device(&self) -> u8 {
        self.device
    }

    /// Queues a text. Returns once it is durably in the outbox, or durably refused, which an event reports.
    /// Waits while the outbox is full. `idempotency_key` is the caller's own key: a repeat with the same key
    /// is the same message.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store. Then it is unknown whether the message was queued; the
    /// caller may retry with the same `idempotency_key`.
    pub async fn send(&self, to: Recipient, text: &str, idempotency_key: Option<&str>) -> Result<Enqueued> {
        let (text, idempotency_key) = (text.to_owned(), idempotency_key.map(str::to_owned));
        let answer = self.send_later(to, text, idempotency_key).await?;
        answer.await.map_err(|_| self.failure())?
    }

    /// Queues a text like [`send`](Self::send), but returns the future of the result as soon as the driver's
    /// queue has room, so that many sends share one commit.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn send_later(
        &self,
        to: Recipient,
        text: String,
        idempotency_key: Option<String>,
    ) -> Result<oneshot::Receiver<Result<Enqueued>>> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Send { to, text, idempotency_key, reply };
        self.sends.send(command).await.map_err(|_| self.failure())?;
        Ok(answer)
    }

    /// Queues a text like [`send_later`](Self::send_later), to a name as the user typed it. A name that is
    /// not a valid handle is refused durably with `unknown_user`, like a message to an unknown user.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn send_to(
        &self,
        name: &str,
        text: String,
        idempotency_key: Option<String>,
    ) -> Result<oneshot::Receiver<Result<Enqueued>>> {
        if let Ok(handle) = Handle::new(name) {
            return self.send_later(Recipient::Handle(handle), text, idempotency_key).await;
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Refuse { idempotency_key, reason: "unknown_user", reply };
        self.sends.send(command).await.map_err(|_| self.failure())?;
        Ok(answer)
    }

    /// Accepts the changed account key of a user. The caller passes the safety number that was compared, so
    /// that no other key is accepted.
    ///
    /// # Errors
    /// `Denied` if that is not the current safety number, `NotFound` if this device does not have the user's
    /// keys, `Closed`, or the error of the local store.
    pub async fn accept(&self, user: UserId, safety_number: &str) -> Result<()> {
        let number = safety_number.to_owned();
        self.request(|reply| Command::Accept(user, number, reply)).await
    }

    /// Requests a new incarnation, for a profile that stopped with `superseded`. This store continues; a copy
    /// of it that is in use elsewhere stops.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn reincarnate(&self) -> Result<()> {
        self.request(Command::Reincarnate).await
    }

    /// Reports that the user has read a conversation up to a seq.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn read(&self, conversation: ConversationId, seq: u64) -> Result<()> {
        self.commands.send(Command::Read(conversation, seq)).await.map_err(|_| self.failure())
    }

    /// Reports that the user is typing. The report is lost if there is no connection.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn typing(&self, conversation: ConversationId) -> Result<()> {
        self.commands.send(Command::Typing(conversation)).await.map_err(|_| self.failure())
    }

    /// Requests an event whenever one of these users connects or disconnects.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn watch(&self, users: Vec<UserId>) -> Result<()> {
        self.commands.send(Command::Watch(users)).await.map_err(|_| self.failure())
    }

    /// Returns messages of the local history below a seq (0: from the newest), newest first.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn history(
        &self,
        conversation: ConversationId,
        before: u64,
        limit: usize,
    ) -> Result<Vec<StoredMessage>> {
        self.request(|reply| Command::History { conversation, before, limit, reply }).await
    }

    /// Returns the user of a handle.
    ///
    /// # Errors
    /// `NotFound` if there is no such user, `Unavailable` without a connection.
    pub async fn resolve(&self, handle: &Handle) -> Result<UserId> {
        let handle = handle.clone();
        self.request(|reply| Command::User(handle, reply)).await
    }

    /// Returns the handle of a user, or the user's id if this device does not have the handle.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn name_of(&self, user: UserId) -> Result<String> {
        self.request(|reply| Command::Name(user, reply)).await
    }

    /// Returns the direct conversation with a user.
    pub fn conversation_with(&self, user: UserId) -> ConversationId {
        ConversationId::direct(self.user, user)
    }

    /// Returns the device list of a user.
    ///
    /// # Errors
    /// `NotFound` if there is no such user, `Unavailable` without a connection.
    pub async fn devices(&self, user: UserId) -> Result<SignedDeviceList> {
        self.request(|reply| Command::List(user, reply)).await
    }

    /// Returns the safety number with a user. It is the same on both sides, unless there is a man in the
    /// middle.
    ///
    /// # Errors
    /// The errors of [`devices`](Self::devices).
    pub async fn safety_number(&self, user: UserId) -> Result<String> {
        let list = self.devices(user).await?;
        Ok(safety_number((self.user, self.account_key), (user, *list.account_key())))
    }

    /// Approves the device that shows this code. Returns the number of that device.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key or the server's offer does not match the code,
    /// `NotFound` if no device is waiting for this code, `Unavailable` without a connection.
    pub async fn approve(&self, code: LinkCode) -> Result<u8> {
        self.request(|reply| Command::Approve(code, reply)).await
    }

    /// Removes a device from this account. The server disconnects it at once, and no later message is
    /// encrypted for it.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key, `NotFound` if there is no such device,
    /// `Unavailable` without a connection.
    pub async fn unlink(&self, device: u8) -> Result<()> {
        self.request(|reply| Command::Unlink(device, reply)).await
    }

    /// Returns the number of messages that are neither stored nor refused yet.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn outbox_len(&self) -> Result<usize> {
        self.request(Command::Outbox).await
    }

    /// Returns the number of the last durable event.
    pub fn last_event(&self) -> u64 {
        *self.last.borrow()
    }

    /// Returns a stream of events: the durable ones after a number (`None`: all since this client was
    /// opened), the connection state (a new stream first reports the current one), and the ephemeral ones.
    pub fn events(&self, after: Option<u64>) -> Events {
        Events {
            after: after.unwrap_or(self.opened_at),
            client: self.clone(),
            last: self.last.clone(),
            connection_state: self.connection_state.clone(),
            reported: ConnectionState::default(),
            passing: self.passing.subscribe(),
            ready: std::collections::VecDeque::new(),
        }
    }

    /// Waits until the outbox is empty, for at most `at_most`. Returns the number of messages left in it.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn drain(&self, at_most: Duration) -> Result<usize> {
        let end = tokio::time::Instant::now() + at_most;
        loop {
            let left = self.outbox_len().await?;
            if left == 0 || tokio::time::Instant::now() >= end {
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the driver and releases the profile. Messages in the outbox stay there.
    pub async fn close(self) {
        let _ = self.commands.send(Command::Stop).await;
        let thread = self.owner.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            join(thread).await;
        }
    }
}

/// Waits for a thread without blocking the runtime.
async fn join(thread: JoinHandle<()>) {
    while !thread.is_finished() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let _ = thread.join();
}

impl Builder {
    /// Sets a token that replaces the stored one from now on.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Refuses messages to a user with `identity_changed` after the account key changed, until [`Client::accept`]
    /// accepts the new key. Without this option the client only reports the change as an event and keeps
    /// sending. In both modes a message written before the change is never encrypted for the new key.
    #[must_use]
    pub const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Opens the profile and starts to connect.
    ///
    /// # Errors
    /// `NotFound` if the profile has no account, `Conflict` if another process has it open, and the errors of
    /// the local store.
    pub async fn open(self) -> Result<Client> {
        let (commands, queue) = mpsc::channel(COMMANDS);
        let (sends, send_queue) = mpsc::channel(COMMANDS);
        let (last_sender, last) = watch::channel(0);
        let (standing_sender, connection_state) = watch::channel(ConnectionState::default());
        let (passing, _) = broadcast::channel(PASSING);
        let (opened, opening) = oneshot::channel();
        let owner = Arc::new(Shared::default());
        let channels = Channels {
            commands: queue,
            sends: send_queue,
            last: last_sender,
            connection_state: standing_sender,
            passing: passing.clone(),
        };
        let shared = owner.clone();
        let Self { profile, suite, dialer, token, strict } = self;
        let thread = std::thread::Builder::new().name("chat-client".into()).spawn(move || {
            let run = async {
                let made = LocalStore::open(&profile).and_then(|store| {
                    let about = Profile::load(&store)?;
                    let driver = Driver::new(store, suite, dialer, token, strict, channels)?;
                    Ok((driver, about))
                });
                match made {
                    Ok((driver, about)) => {
                        let _ = opened.send(Ok((about, driver.last_event())));
                        driver.run().await
                    }
                    Err(error) => {
                        let _ = opened.send(Err(error));
                        Ok(())
                    }
                }
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let ended = match runtime {
                Ok(runtime) => runtime.block_on(run),
                Err(error) => {
                    Err(Error::new(ErrorKind::Unavailable, "failed to start the runtime").caused_by(error))
                }
            };
            if let (Err(error), Ok(mut failure)) = (ended, shared.failure.lock()) {
                *failure = Some(error);
            }
        });
        let thread = thread
            .map_err(|e| Error::new(ErrorKind::Unavailable, "failed to start the thread").caused_by(e))?;
        if let Ok(mut slot) = owner.thread.lock() {
            *slot = Some(thread);
        }
        let (about, opened_at) = opening.await.map_err(|_| gone())??;
        Ok(Client {
            commands,
            sends,
            last,
            opened_at,
            connection_state,
            passing,
            owner,
            user: about.device.user,
            device: about.device.device.get(),
            handle: about.handle.clone(),
            account_key: *about.account_key(),
        })
    }
}

/// A stream of events: every durable event after its cursor, in order, the changes of the connection state,
/// and the ephemeral events.
#[derive(Debug)]
pub struct Events {
    client: Client,
    after: u64,
    last: watch::Receiver<u64>,
    connection_state: watch::Receiver<ConnectionState>,
    reported: ConnectionState,
    passing: broadcast::Receiver<Event>,
    ready: std::collections::VecDeque<EventRecord>,
}

impl Events {
    /// Returns the number of the last durable event that the stream returned.
    pub const fn cursor(&self) -> u64 {
        self.after
    }

    /// Returns the next event. Cancel safe.
    ///
    /// # Errors
    /// `Closed` if the client is closed, or the error of the local store.
    pub async fn next(&mut self) -> Result<EventRecord> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.n > 0 {
                    self.after = event.n;
                }
                return Ok(event);
            }
            if *self.last.borrow() > self.after {
                let after = self.after;
                let page = self.client.request(|reply| Command::Events { after, limit: PAGE, reply }).await?;
                self.ready.extend(page);
                continue;
            }
            if let Some(event) = self.reported.follow(&self.connection_state.borrow_and_update()) {
                return Ok(EventRecord { n: 0, event });
            }
            tokio::select! {
                biased;
                changed = self.connection_state.changed() => {
                    if changed.is_err() {
                        return Err(self.client.failure());
                    }
                }
                passing = self.passing.recv() => match passing {
                    Ok(event) => return Ok(EventRecord { n: 0, event }),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(self.client.failure()),
                },
                changed = self.last.changed() => {
                    if changed.is_err() {
                        return Err(self.client.failure());
                    }
                }
            }
        }
    }
}
