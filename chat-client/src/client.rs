//! The handle of an application.

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

/// Commands that may wait for the owner; a full queue makes callers wait.
const COMMANDS: usize = 256;
/// Passing events kept for a slow listener; older ones are dropped, durable ones never.
const PASSING: usize = 256;
/// Durable events read at once.
const PAGE: usize = 256;

mod parking {
    use std::sync::Mutex;
    use std::thread::JoinHandle;

    /// The owner thread and how it ended.
    #[derive(Debug, Default)]
    pub(super) struct Shared {
        pub thread: Mutex<Option<JoinHandle<()>>>,
        pub failure: Mutex<Option<chat_core::Error>>,
    }
}

/// A client: one profile, one device. Handles are cheap to clone and `Send`; ratchets and store live on a
/// thread of their own.
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

/// How to open a client.
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
    /// A client for a profile directory, with an encryption suite and a server. The suite is demanded:
    /// there is no default, and so no silent plaintext.
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

    /// This user.
    pub const fn user(&self) -> UserId {
        self.user
    }

    /// This user's handle.
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// This device's number.
    pub const fn device(&self) -> u8 {
        self.device
    }

    /// Queues a text; returns when it is durably in the outbox (or durably refused, which an event says).
    /// While the outbox is full it waits. `idempotency_key` is the caller's own key: the same again is the same
    /// message.
    ///
    /// # Errors
    /// `Closed` or the failure of the local store; then it is not known whether it was queued, and the same
    /// `idempotency_key` may be used again.
    pub async fn send(&self, to: Recipient, text: &str, idempotency_key: Option<&str>) -> Result<Enqueued> {
        let (text, idempotency_key) = (text.to_owned(), idempotency_key.map(str::to_owned));
        let answer = self.send_later(to, text, idempotency_key).await?;
        answer.await.map_err(|_| self.failure())?
    }

    /// As [`send`](Self::send), but gives the future of the answer as soon as the owner took the message:
    /// many sends share one commit.
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

    /// As [`send_later`](Self::send_later), to a name as it was typed: what is no handle is refused with
    /// `unknown_user`, durably, as any other message to nobody.
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

    /// Accepts the changed account key of a user, by the safety number that was compared: so nothing is
    /// accepted but what was seen.
    ///
    /// # Errors
    /// `Denied` if that is not the safety number (any more), `NotFound` if the user's keys are not known,
    /// `Closed`, or the failure of the local store.
    pub async fn accept(&self, user: UserId, safety_number: &str) -> Result<()> {
        let number = safety_number.to_owned();
        self.request(|reply| Command::Accept(user, number, reply)).await
    }

    /// Asks for a new incarnation: this store goes on, a copy of it that is in use elsewhere does not. For
    /// a profile that stopped with `superseded`.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn reincarnate(&self) -> Result<()> {
        self.request(Command::Reincarnate).await
    }

    /// Says that the user has read a conversation up to a place.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn read(&self, conversation: ConversationId, seq: u64) -> Result<()> {
        self.commands.send(Command::Read(conversation, seq)).await.map_err(|_| self.failure())
    }

    /// Says that the user is writing. Lost when there is no connection.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn typing(&self, conversation: ConversationId) -> Result<()> {
        self.commands.send(Command::Typing(conversation)).await.map_err(|_| self.failure())
    }

    /// Asks for events when these users come and go.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn watch(&self, users: Vec<UserId>) -> Result<()> {
        self.commands.send(Command::Watch(users)).await.map_err(|_| self.failure())
    }

    /// Messages of the local history below a place (0: from the newest), newest first.
    ///
    /// # Errors
    /// `Closed`, or the failure of the local store.
    pub async fn history(
        &self,
        conversation: ConversationId,
        before: u64,
        limit: usize,
    ) -> Result<Vec<StoredMessage>> {
        self.request(|reply| Command::History { conversation, before, limit, reply }).await
    }

    /// The user of a handle.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Unavailable` without a connection.
    pub async fn resolve(&self, handle: &Handle) -> Result<UserId> {
        let handle = handle.clone();
        self.request(|reply| Command::User(handle, reply)).await
    }

    /// The handle of a user this device has dealt with, else its id.
    ///
    /// # Errors
    /// `Closed`, or the failure of the local store.
    pub async fn name_of(&self, user: UserId) -> Result<String> {
        self.request(|reply| Command::Name(user, reply)).await
    }

    /// The direct conversation with a user.
    pub fn conversation_with(&self, user: UserId) -> ConversationId {
        ConversationId::direct(self.user, user)
    }

    /// The devices of a user.
    ///
    /// # Errors
    /// `NotFound` if there is no such user, `Unavailable` without a connection.
    pub async fn devices(&self, user: UserId) -> Result<SignedDeviceList> {
        self.request(|reply| Command::List(user, reply)).await
    }

    /// The safety number with a user: the same on both sides, unless somebody is in between.
    ///
    /// # Errors
    /// As [`devices`](Self::devices).
    pub async fn safety_number(&self, user: UserId) -> Result<String> {
        let list = self.devices(user).await?;
        Ok(safety_number((self.user, self.account_key), (user, *list.account_key())))
    }

    /// Approves the device that shows this code; gives its number.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key or the server shows another device than the
    /// code's, `NotFound` if nobody waits under this code, `Unavailable` without a connection.
    pub async fn approve(&self, code: LinkCode) -> Result<u8> {
        self.request(|reply| Command::Approve(code, reply)).await
    }

    /// Removes a device from this account: it is disconnected at once, and nothing more is encrypted for it.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key, `NotFound` if there is no such device,
    /// `Unavailable` without a connection.
    pub async fn unlink(&self, device: u8) -> Result<()> {
        self.request(|reply| Command::Unlink(device, reply)).await
    }

    /// Messages not yet stored or refused.
    ///
    /// # Errors
    /// `Closed`, or the failure of the local store.
    pub async fn outbox_len(&self) -> Result<usize> {
        self.request(Command::Outbox).await
    }

    /// The number of the last durable event so far.
    pub fn last_event(&self) -> u64 {
        *self.last.borrow()
    }

    /// Events: durable ones after a number (`None`: all since this client was opened), how the client
    /// stands with the server (a stream that begins later is told that first), and those that pass.
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

    /// Waits until the outbox is empty, at most this long; gives how many messages are left.
    ///
    /// # Errors
    /// `Closed`, or the failure of the local store.
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

    /// Ends the owner and frees the profile. What is in the outbox stays there.
    pub async fn close(self) {
        let _ = self.commands.send(Command::Stop).await;
        let thread = self.owner.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            join(thread).await;
        }
    }
}

/// Waits for a thread without holding up the runtime.
async fn join(thread: JoinHandle<()>) {
    while !thread.is_finished() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let _ = thread.join();
}

impl Builder {
    /// Uses this token from now on instead of the stored one.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sends nothing to a user whose account key changed until [`Client::accept`] says so: such messages
    /// are refused with `identity_changed`. Without it the change is an event and sending goes on; what was
    /// written before the change is never encrypted for the new key either way.
    #[must_use]
    pub const fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Opens the profile and begins to connect.
    ///
    /// # Errors
    /// `NotFound` if the profile has no account, `Conflict` if another process has it open, and the
    /// failures of the local store.
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
                Err(error) => Err(Error::new(ErrorKind::Unavailable, "no runtime").caused_by(error)),
            };
            if let (Err(error), Ok(mut failure)) = (ended, shared.failure.lock()) {
                *failure = Some(error);
            }
        });
        let thread = thread
            .map_err(|e| Error::new(ErrorKind::Unavailable, "the owner thread cannot start").caused_by(e))?;
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

/// A stream of events: every durable one after its cursor, in order, how the client stands with the
/// server, and what passes by.
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
    /// The number of the last durable event given.
    pub const fn cursor(&self) -> u64 {
        self.after
    }

    /// The next event. Cancel safe.
    ///
    /// # Errors
    /// `Closed` when the client is closed, or the failure of the local store.
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
