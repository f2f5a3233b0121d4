//! The application's handle to a client.

mod channels;
mod contacts;
mod conversation_list;
mod events;
mod groups;
mod messages;
mod observed;
mod submission;
mod ticket;
mod timeline;

pub use conversation_list::ConversationList;
pub use events::Events;
pub use submission::Submission;
pub use ticket::Ticket;
pub use timeline::Timeline;

use chat_core::device_list::SignedDeviceList;
use chat_core::{ConversationId, DeviceId, Error, ErrorKind, Handle, Result, UserId};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::config::ClientConfig;
use crate::connection_state::ConnectionState;
use crate::conversation::Conversation;
use crate::driver::{Channels, Command, Control, Opened, Owner, Start, Token};
use crate::event::Event;
use crate::linking::LinkCode;
use crate::message::Message;
use crate::safety_number::SafetyNumber;
use crate::send::{Recipient, SendRequest};

/// Capacity of each command queue to the driver; callers wait while it is full.
const COMMANDS: usize = 256;
/// Number of transient events kept for a slow subscriber. Older ones are dropped; durable events never are.
const TRANSIENT_EVENTS: usize = 256;

/// A handle to a client: one profile, one device. Handles are `Send` and cheap to clone, and any executor can run their
/// futures. A separate task owns the ratchets and the local store; it ends with [`close`](Self::close), or when the last
/// handle is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    sends: mpsc::Sender<Command>,
    control: mpsc::Sender<Control>,
    pub(crate) last: watch::Receiver<u64>,
    revision: watch::Receiver<u64>,
    pub(crate) connection_state: watch::Receiver<ConnectionState>,
    pub(crate) transient: broadcast::Sender<Event>,
    /// The error that ended the task; the channel closes when the task has ended.
    ended: watch::Receiver<Option<Error>>,
    account: Opened,
}

/// A new device that waits for the approval of its link code by the first device of the account.
#[derive(Debug)]
pub struct PendingLink {
    code: LinkCode,
    pending: Pending,
}

/// A client before its profile is open.
#[derive(Debug)]
struct Pending {
    opening: oneshot::Receiver<Result<Opened>>,
    commands: mpsc::Sender<Command>,
    sends: mpsc::Sender<Command>,
    control: mpsc::Sender<Control>,
    last: watch::Receiver<u64>,
    revision: watch::Receiver<u64>,
    connection_state: watch::Receiver<ConnectionState>,
    transient: broadcast::Sender<Event>,
    ended: watch::Receiver<Option<Error>>,
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the client is closed: open the profile again")
}

impl Pending {
    fn spawn(config: ClientConfig, start: Start) -> Result<Self> {
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (sends, send_queue) = mpsc::channel(COMMANDS);
        let (control, control_queue) = mpsc::channel(1);
        let (last_sender, last) = watch::channel(0);
        let (revision_sender, revision) = watch::channel(0);
        let (state_sender, connection_state) = watch::channel(ConnectionState::default());
        let (transient, _) = broadcast::channel(TRANSIENT_EVENTS);
        let (end, ended) = watch::channel(None);
        let (opened, opening) = oneshot::channel();
        let channels = Channels {
            commands: command_queue,
            sends: send_queue,
            control: control_queue,
            last: last_sender,
            revision: revision_sender,
            connection_state: state_sender,
            transient: transient.clone(),
            failure: end.clone(),
        };
        let platform = config.platform.clone();
        let owner = Box::new(Owner::new(config, channels));
        platform.spawn(Box::new(move || Box::pin(owner.run(start, opened, end))))?;
        Ok(Self { opening, commands, sends, control, last, revision, connection_state, transient, ended })
    }

    async fn opened(self) -> Result<Client> {
        let account = self.opening.await.map_err(|_| closed())??;
        let Self { commands, sends, control, last, revision, connection_state, transient, ended, .. } = self;
        Ok(Client { commands, sends, control, last, revision, connection_state, transient, ended, account })
    }
}

impl PendingLink {
    /// Returns the code to type on the first device.
    pub const fn code(&self) -> &LinkCode {
        &self.code
    }

    /// Waits until the first device approves this one, then opens the profile. Dropping the future cancels the link.
    ///
    /// # Errors
    /// `Denied` if the answer is not for this device, `Closed` if the server closes the connection first, for
    /// example because no device approved this one: link again.
    pub async fn approved(self) -> Result<Client> {
        self.pending.opened().await
    }
}

impl Client {
    /// Registers an account in a new profile, and opens it. A repeat after a lost answer is the same registration.
    ///
    /// # Errors
    /// `Invalid` if the text is not a [`Handle`], `Conflict` if the handle is taken or the profile has an account,
    /// `Denied` if the server rejects the token, and the errors of [`open`](Self::open) and of dialling.
    pub async fn register(config: ClientConfig, handle: &str) -> Result<Self> {
        Pending::spawn(config, Start::Register(Handle::new(handle)?))?.opened().await
    }

    /// Opens the profile if it has the account of this handle; otherwise registers the account in it.
    ///
    /// # Errors
    /// The errors of [`register`](Self::register). `Conflict` if the profile has another account.
    pub async fn register_if_new(config: ClientConfig, handle: &str) -> Result<Self> {
        Pending::spawn(config, Start::RegisterIfNew(Handle::new(handle)?))?.opened().await
    }

    /// Sets a new account key for a handle, in a new profile, and opens it: for a user that lost all devices. The user id
    /// stays the same; clients that have the old account key report [`Event::IdentityChanged`]. Requires a token that
    /// names the handle.
    ///
    /// # Errors
    /// `NotFound` if there is no such account, `Denied` without a token for it, `Conflict` if the profile
    /// belongs to another account or if the account changed concurrently (retry), and the errors of dialling.
    pub async fn replace(config: ClientConfig, handle: &str) -> Result<Self> {
        Pending::spawn(config, Start::Replace(Handle::new(handle)?))?.opened().await
    }

    /// Opens a profile that has an account, and starts to connect with a new token, which the profile keeps.
    ///
    /// # Errors
    /// The errors of [`open`](Self::open).
    pub async fn login(config: ClientConfig, token: &str) -> Result<Self> {
        Self::open(config.token(token)).await
    }

    /// Links a new profile to an account, as a further device. Sends the offer of this device to the server; the returned
    /// code is typed on the first device, which calls [`approve_link`](Self::approve_link).
    ///
    /// # Errors
    /// `Conflict` if the profile already has an account, and the errors of dialling.
    pub async fn link(config: ClientConfig) -> Result<PendingLink> {
        let (code, shown) = oneshot::channel();
        let pending = Pending::spawn(config, Start::Link(code))?;
        match shown.await {
            Ok(code) => Ok(PendingLink { code, pending }),
            // The task ended before it had a code.
            Err(_) => Err(pending.opened().await.err().unwrap_or_else(closed)),
        }
    }

    /// Opens a profile that has an account, and starts to connect. Needs no network.
    ///
    /// # Errors
    /// `NotFound` if the profile has no account: register or link it. `Conflict` if another process has it open,
    /// `Denied` if its key or passphrase is missing or wrong, `Invalid` if a later version made it, `Unavailable` if it
    /// cannot be read or written.
    pub async fn open(config: ClientConfig) -> Result<Self> {
        Pending::spawn(config, Start::Open)?.opened().await
    }

    pub(crate) async fn request<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_err() {
            return Err(self.end().await);
        }
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(self.end().await),
        }
    }

    /// Waits until the task has ended or failed, and returns the reason.
    pub(crate) async fn end(&self) -> Error {
        let mut ended = self.ended.clone();
        // An error means that the task ended without a failure.
        let _ = ended.wait_for(Option::is_some).await;
        self.failure()
    }

    /// Returns the error that ended the client.
    pub(crate) fn failure(&self) -> Error {
        self.ended.borrow().clone().unwrap_or_else(closed)
    }

    /// Returns this user's id.
    pub const fn user(&self) -> UserId {
        self.account.device.user
    }

    /// Returns this user's handle.
    pub const fn handle(&self) -> &Handle {
        &self.account.handle
    }

    /// Returns this device's number.
    pub const fn device(&self) -> DeviceId {
        self.account.device.device
    }

    /// Returns the number of the last durable event at the time when this client was opened.
    pub(crate) const fn opened_at(&self) -> u64 {
        self.account.last_event
    }

    /// Waits until this device has received all waiting messages and other users can send to it. While the server cannot
    /// be reached, it waits and the client keeps trying: set a time limit of your own.
    ///
    /// # Errors
    /// The reason why retrying alone will not help: `Denied` if a new token is required or the server's certificate is not
    /// trusted, `Invalid` if the address is not a chat server's or the program must be updated, `Conflict` if a copy of
    /// the profile is in use, `Closed` if the client is closed.
    pub async fn ready(&self) -> Result<()> {
        let mut state = self.connection_state.clone();
        while !state.borrow_and_update().ready()? {
            state.changed().await.map_err(|_| self.failure())?;
        }
        Ok(())
    }

    /// Sends a message. Returns its ticket once it is durably in the outbox; from then on the client sends it until it is
    /// stored or refused, also after a restart. Waits while the outbox is full (10,000 messages).
    ///
    /// # Errors
    /// `Invalid` if the text is too long, `Conflict` if the idempotency key belongs to another message, `NotFound` if the
    /// conversation is unknown, `Denied` if the keys of the recipient changed and are not
    /// [accepted](Self::accept_identity) (in [strict](ClientConfig::strict) mode). Then nothing was queued. `Closed`, or
    /// the error of the local store: the message may have been queued; a retry with the same idempotency key is safe.
    pub async fn send(&self, to: impl Into<Recipient>, request: impl Into<SendRequest>) -> Result<Ticket> {
        self.submit(to, request).await?.await
    }

    /// Submits a message like [`send`](Self::send), but returns as soon as the driver's queue has room, so that many
    /// messages share one commit. Messages are queued in the order of the calls.
    ///
    /// # Errors
    /// `Invalid` if the text is too long, `Closed` if the client is closed. The submission returns the other errors of
    /// [`send`](Self::send).
    pub async fn submit(
        &self,
        to: impl Into<Recipient>,
        request: impl Into<SendRequest>,
    ) -> Result<Submission> {
        let (to, request) = (to.into(), request.into());
        request.check()?;
        let (reply, answer) = oneshot::channel();
        if self.sends.send(Command::Send { to, request: Box::new(request), reply }).await.is_err() {
            return Err(self.end().await);
        }
        Ok(Submission::new(self.clone(), answer))
    }

    /// Returns the ticket of the message with this idempotency key, or `None` if there is none.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn ticket(&self, idempotency_key: &str) -> Result<Option<Ticket>> {
        let key = idempotency_key.to_owned();
        let found = self.request(|reply| Command::FindKey(key, reply)).await?;
        Ok(found.map(|message| Ticket { client: self.clone(), message, repeated: true }))
    }

    /// Returns a stream of all durable events after a cursor that the profile keeps under this name, of the connection
    /// state, and of transient events. A new cursor stands before the first event of the profile.
    /// [`Events::handled`] advances it.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn events(&self, cursor: &str) -> Result<Events> {
        let name = cursor.to_owned();
        let after = self.request(|reply| Command::Cursor(name, reply)).await?;
        Ok(Events::new(self.clone(), Some(cursor.to_owned()), after))
    }

    /// Returns a stream without a cursor in the profile: all durable events after a number (`None`: since this client was
    /// opened), the connection state, and transient events.
    pub fn events_after(&self, number: Option<u64>) -> Events {
        Events::new(self.clone(), None, number.unwrap_or_else(|| self.opened_at()))
    }

    /// Returns the number of the last durable event; 0 if there is none.
    pub fn last_event(&self) -> u64 {
        *self.last.borrow()
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

    /// Names the conversation that the user looks at, or none. A device gets typing notifications of a group only while its user
    /// looks at that group.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn open_conversation(&self, conversation: Option<ConversationId>) -> Result<()> {
        self.commands.send(Command::OpenConversation(conversation)).await.map_err(|_| self.failure())
    }

    /// Requests [`Event::Presence`] now and whenever one of these users connects or disconnects. Replaces the former list, of at
    /// most 512 users.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn watch_presence(&self, users: Vec<UserId>) -> Result<()> {
        self.commands.send(Command::Watch(users)).await.map_err(|_| self.failure())
    }

    /// Returns the conversations of the local store: pinned ones first, then the one with the newest message.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn conversations(&self) -> Result<Vec<Conversation>> {
        self.request(Command::Conversations).await
    }

    /// Returns messages of the local history below a seq (`None`: the newest), newest first.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn history(
        &self,
        conversation: ConversationId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Message>> {
        self.request(|reply| Command::History { conversation, before, limit, reply }).await
    }

    /// Returns messages on this device with all words of a search, the one that arrived last first. A word also finds longer
    /// words that begin with it; case and accents do not matter. In scripts without spaces it is found anywhere. Without a
    /// conversation, it searches all. A search without letters or digits finds nothing.
    ///
    /// ```
    /// use chat_client::prelude::*;
    ///
    /// async fn find(client: &Client) -> Result<()> {
    ///     for message in client.search("cafe tomor", None, 20).await? {
    ///         println!("{}: {:?}", message.sender, message.text());
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn search(
        &self,
        search: &str,
        conversation: Option<ConversationId>,
        limit: usize,
    ) -> Result<Vec<Message>> {
        let search = search.to_owned();
        self.request(|reply| Command::Search { search, conversation, limit, reply }).await
    }

    /// Returns the user of a handle. Needs a connection the first time.
    ///
    /// # Errors
    /// `Invalid` if the text is not a [`Handle`], `NotFound` if there is no such user, `Unavailable` without a
    /// connection: wait for [`ready`](Self::ready).
    pub async fn resolve(&self, handle: &str) -> Result<UserId> {
        let handle = Handle::new(handle)?;
        self.request(|reply| Command::Resolve(handle, reply)).await
    }

    /// Returns the direct conversation with a user. With this user it is the conversation of the own devices.
    pub fn conversation_with(&self, user: UserId) -> ConversationId {
        ConversationId::direct(self.user(), user)
    }

    /// Returns the devices of this account.
    ///
    /// # Errors
    /// `Unavailable` without a connection: wait for [`ready`](Self::ready).
    pub async fn devices(&self) -> Result<Vec<DeviceId>> {
        let list = self.device_list(self.user()).await?;
        Ok(list.list().devices.iter().map(|entry| entry.device).collect())
    }

    async fn device_list(&self, user: UserId) -> Result<SignedDeviceList> {
        self.request(|reply| Command::List(user, reply)).await
    }

    /// Returns the safety number with a user, for the two users to compare. That with the own user shows that two devices
    /// belong to the same account.
    ///
    /// # Errors
    /// `NotFound` if there is no such user, `Unavailable` without a connection: wait for [`ready`](Self::ready).
    pub async fn safety_number(&self, user: UserId) -> Result<SafetyNumber> {
        let list = self.device_list(user).await?;
        Ok(SafetyNumber::new((self.user(), self.account.account_key), (user, *list.account_key())))
    }

    /// Accepts the changed account key of a user. The caller passes the safety number that was compared, so
    /// that no other key is accepted.
    ///
    /// # Errors
    /// `Denied` if that is not the current safety number: compare again. `NotFound` if this device does not have the
    /// user's keys, `Closed`, or the error of the local store.
    pub async fn accept_identity(&self, user: UserId, compared: &SafetyNumber) -> Result<()> {
        let number = compared.clone();
        self.request(|reply| Command::AcceptIdentity(user, number, reply)).await
    }

    /// Approves the device that shows this code. Returns the number of that device.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key or the server's offer does not match the code,
    /// `NotFound` if no device is waiting for this code, `Conflict` if the account has the maximum number of devices,
    /// `Unavailable` without a connection: wait for [`ready`](Self::ready).
    pub async fn approve_link(&self, code: &LinkCode) -> Result<DeviceId> {
        let code = code.clone();
        self.request(|reply| Command::ApproveLink(code, reply)).await
    }

    /// Removes a device from this account. The server disconnects it at once, and no later message is
    /// encrypted for it.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key, `NotFound` if there is no such device, `Invalid` if it is
    /// this device, `Unavailable` without a connection: wait for [`ready`](Self::ready).
    pub async fn unlink(&self, device: DeviceId) -> Result<()> {
        self.request(|reply| Command::Unlink(device, reply)).await
    }

    /// Deletes all messages of a conversation that this device has received: from this device, and from the history that
    /// the server shows to this user. Other devices of this user and the other user keep their copies; once the other user
    /// clears the conversation too, the server erases the messages. Messages that wait in the outbox are sent. Posts of a channel are
    /// deleted from this device only.
    ///
    /// # Errors
    /// `Unavailable` without a connection: wait for [`ready`](Self::ready). `NotFound` if there is no such conversation.
    pub async fn clear_history(&self, conversation: ConversationId) -> Result<()> {
        self.request(|reply| Command::ClearHistory(conversation, reply)).await
    }

    /// Deletes the account for good: the server erases its devices, keys, inboxes and contacts, and its handle is free. Other
    /// users keep the messages that they have. All devices report [`Event::TokenRequired`]; delete their profiles afterwards.
    ///
    /// # Errors
    /// `Denied` if this device does not hold the account key, `Unavailable` without a connection, or if the server may have
    /// erased only a part: call it again.
    pub async fn delete_account(&self) -> Result<()> {
        self.request(Command::DeleteAccount).await
    }

    /// Sets a new token, which the profile keeps: the answer to [`Event::TokenExpiring`], where the session continues with
    /// it, and to [`Event::TokenRequired`], where the client connects with it. If the server does not accept it, the client
    /// reports [`Event::TokenRequired`].
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn set_token(&self, token: &str) -> Result<()> {
        let token = Token(token.to_owned());
        self.request(|reply| Command::SetToken(token, reply)).await
    }

    /// Requests a new incarnation, for a profile that reported [`Event::Superseded`]. This store continues; a copy
    /// of it that is in use elsewhere stops.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn reincarnate(&self) -> Result<()> {
        self.request(Command::Reincarnate).await
    }

    /// Returns the number of messages that are neither stored nor refused yet.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn outbox_len(&self) -> Result<usize> {
        self.request(Command::OutboxLen).await
    }

    /// Waits until every message in the outbox is stored or refused. Await earlier [submissions](Self::submit) first.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn drained(&self) -> Result<()> {
        self.request(Command::Drained).await
    }

    /// Disconnects and releases the profile's lock and files, for example before the system suspends the program. Event
    /// streams, tickets and calls wait until [`resume`](Self::resume). A request that the server has not answered yet fails
    /// with `Unavailable`.
    ///
    /// # Errors
    /// `Closed` if the client is closed.
    pub async fn suspend(&self) -> Result<()> {
        self.control(Control::Suspend).await
    }

    /// Opens the profile again and starts to connect. Does nothing if the client is not suspended.
    ///
    /// # Errors
    /// `Conflict` if another process has the profile open, or the error of the local store; the client stays suspended.
    pub async fn resume(&self) -> Result<()> {
        self.control(Control::Resume).await
    }

    async fn control(&self, control: impl FnOnce(oneshot::Sender<Result<()>>) -> Control) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        if self.control.send(control(reply)).await.is_err() {
            return Err(self.end().await);
        }
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(self.end().await),
        }
    }

    /// Closes the client and releases the profile. Messages in the outbox stay there.
    pub async fn close(self) {
        let _ = self.control.send(Control::Stop).await;
        let mut ended = self.ended;
        while ended.changed().await.is_ok() {}
    }
}

impl Message {
    /// Sends a message to the conversation of this one. For a reply that is sent at most once, even if the program
    /// ends before it marks this message as handled, give the request an
    /// [idempotency key](SendRequest::idempotency_key) that is derived from the id of this message.
    ///
    /// # Errors
    /// The errors of [`Client::send`].
    pub async fn reply(&self, client: &Client, request: impl Into<SendRequest>) -> Result<Ticket> {
        client.send(self.conversation, request).await
    }
}
