//! The driver: it owns a replica, its local store and its ratchets, and carries out the replica's actions.

mod channels;
mod command;
mod command_handler;
mod contacts;
mod conversation_window;
mod encryption;
mod group_encryption;
mod groups;
mod linking;
mod message_options;
mod owner;
mod replica_output;
mod session_token;
mod settings;
mod suite_call;
mod ticket_waiters;
mod timeline_window;

pub(crate) use command::{Command, Control, GroupDetails, Token};
pub(crate) use conversation_window::ConversationWindow;
pub(crate) use owner::{Opened, Owner, Start};
pub(crate) use timeline_window::{PAGE, Step, Window};

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use chat_core::backend::Transport;
use chat_core::contact::ContactChange;
use chat_core::device_list::{DeviceEntry, SignedDeviceList};
use chat_core::envelope::{Refusal, RowContent};
use chat_core::presence::PresenceAudience;
use chat_core::replica::{Input, Replica};
use chat_core::suite::SuiteId;
use chat_core::wire::ServerFrame;
use chat_core::{
    ConversationId, DeviceId, Error, ErrorKind, InstallationId, Instant, MessageId, Result, Seq, UserId,
};
use tokio::sync::{broadcast, mpsc, watch};

use self::channels::HistoryRequest;
use self::command::Reply;
use self::session_token::SessionToken;
use self::settings::SettingsPacer;
use self::suite_call::{Rejected, SuiteInput};
use self::ticket_waiters::TicketWaiters;
use crate::account::Account;
use crate::connection_state::ConnectionState;
use crate::event::Event;
use crate::linking::{Joined, LinkCode};
use crate::platform::random;
use crate::send::Enqueued;
use crate::store::LocalStore;
use crate::suite::{Peer, SuiteTx as _};

/// Maximum number of messages in the outbox; while it is full, `send` waits.
const OUTBOX: usize = 10_000;
/// Maximum number of commands in one commit.
const BATCH: usize = 256;

/// The way in which a driver ended.
pub(crate) enum Ended {
    Stopped,
    /// The profile is released; reply once this value is all that is left of the driver.
    Suspended(Box<Owner>, Reply<()>),
    /// The suite panicked on an input from outside this device: the owner loads the durable state again.
    Panicked(Box<Owner>),
}

/// Calls that wait for an outcome. They survive a suspension.
#[derive(Debug, Default)]
struct Waiters {
    tickets: TicketWaiters,
    /// Replies that wait for an empty outbox.
    drained: Vec<Reply<()>>,
}

impl Waiters {
    fn answer_drained(&mut self) {
        for reply in self.drained.drain(..) {
            let _ = reply.send(Ok(()));
        }
    }
}

/// The purpose of a pending request to the server.
enum Waiting {
    Resolve(Reply<UserId>),
    List(UserId, Reply<SignedDeviceList>),
    Offer(LinkCode, Reply<DeviceId>),
    Approved(SignedDeviceList, Box<(Bytes, LinkCode, Joined)>, Reply<DeviceId>),
    Linked(DeviceId, Reply<DeviceId>),
    /// Checks whether a newly listed device has connected.
    Alive(InstallationId, DeviceId),
    Unlinked(SignedDeviceList, Reply<()>),
    /// A change of a contact. Without a reply, the client makes it by itself.
    Contact(UserId, ContactChange, Option<Reply<()>>),
    /// A change of the audience of the presence. Without a reply, the client makes it by itself.
    Audience(PresenceAudience, Option<Reply<()>>),
    Contacts,
    Report(Reply<()>),
    /// The server clears a conversation up to this seq.
    Cleared(ConversationId, Seq, Reply<()>),
    Deletion(Reply<()>),
    /// This device begins to read a channel. A new one is forgotten if the server refuses.
    Subscribed {
        channel: ConversationId,
        is_new: bool,
        reply: Reply<()>,
    },
    Unsubscribed(ConversationId, Reply<()>),
    History(Box<HistoryRequest>),
    /// The device lists of the senders of a page of history.
    HistorySenders(Box<HistoryRequest>),
}

/// A group, and the message that changes it.
type QueuedChange = (ConversationId, MessageId);

type Dialing = Pin<Box<dyn Future<Output = Result<Box<dyn Transport>>> + Send>>;

pub(crate) struct Driver {
    owner: Box<Owner>,
    store: LocalStore,
    account: Account,
    replica: Replica,
    token: SessionToken,
    transport: Option<Box<dyn Transport>>,
    dialing: Option<Dialing>,
    out: Vec<Bytes>,
    waiting: HashMap<u64, Waiting>,
    tokens: u64,
    /// Replies to sends whose commit is pending.
    queued: Vec<(MessageId, Reply<Enqueued>)>,
    /// Replies to subscriptions to channels that the server accepted, and whose first row has not arrived.
    subscribing: Vec<(ConversationId, Reply<()>)>,
    /// Replies to changes of groups that are not durable yet.
    changing: Vec<(QueuedChange, Reply<QueuedChange>)>,
    /// The store has groups to which blocked users added this user. The device leaves them.
    has_unwanted_groups: bool,
    /// A newly listed device that may not have received its link answer: its installation, its number, and
    /// the time of the listing in milliseconds since 1970.
    linking: Option<(InstallationId, DeviceId, u64)>,
    /// The store has the mark that rows are being opened.
    marked: bool,
    /// Devices of this user that senders excluded, as far as they are reported.
    excluded: HashSet<InstallationId>,
    /// The server refused a token that was replaced meanwhile: connect with the new one.
    restart_due: bool,
    /// The server has other contacts than the store.
    contacts_due: bool,
    /// Changes of contacts that the client makes by itself, to send.
    contact_changes: Vec<(UserId, ContactChange)>,
    /// The audience of the presence that the server lacks.
    audience_due: Option<PresenceAudience>,
    /// Conversations with a message of this user, since the last connection: their users are accepted.
    accepting: HashSet<ConversationId>,
    settings: SettingsPacer,
    /// When the next message disappears from this device.
    disappears_at: Option<Instant>,
}

/// The driver's ends of the channels to its client handles.
pub(crate) struct Channels {
    pub(crate) commands: mpsc::Receiver<Command>,
    /// `Send` commands: a separate queue, which is not read while the outbox is full.
    pub(crate) sends: mpsc::Receiver<Command>,
    pub(crate) control: mpsc::Receiver<Control>,
    /// The number of the last durable event.
    pub(crate) last: watch::Sender<u64>,
    /// The number of the last change that has no durable event.
    pub(crate) revision: watch::Sender<u64>,
    pub(crate) connection_state: watch::Sender<ConnectionState>,
    pub(crate) transient: broadcast::Sender<Event>,
    /// The error that ended the client. It is set before any of the channels closes.
    pub(crate) failure: watch::Sender<Option<Error>>,
}

enum Wakeup {
    /// `None`: all handles are dropped.
    Command(Option<Command>),
    Control(Option<Control>),
    Frame(Result<Option<Bytes>>),
    Dialled(Result<Box<dyn Transport>>),
    Deadline,
}

/// The part of a driver that is read from the store.
struct Loaded {
    account: Account,
    replica: Replica,
    token: String,
    linking: Option<(InstallationId, DeviceId, u64)>,
    has_prekeys: bool,
    last_event: u64,
    marked: bool,
}

impl Loaded {
    fn load(owner: &mut Owner, store: &mut LocalStore) -> Result<Self> {
        let account = Account::load(store)?;
        let token = store.meta("token")?.and_then(|v| String::from_utf8(v).ok()).unwrap_or_default();
        let linking = read_linking(store)?;
        let mut snapshot = store.load(account.device)?;
        snapshot.account_key = Some(*account.account_key());
        if let Some(mark) = store.opening_mark()? {
            // The process ended while it opened rows. A row that is named ended it alone.
            snapshot.isolate_rows = true;
            if let Some(row) = SuiteInput::from_mark(&mark) {
                // A panic in this process is known more precisely.
                owner.rejected.entry(row).or_insert(Rejected::EndedProcess);
            }
        }
        let (has_prekeys, marked) = (snapshot.prekeys_at > 0, snapshot.isolate_rows);
        let platform = owner.config.platform.as_ref();
        let seed = u64::from_le_bytes(random(platform)?);
        let replica = Replica::new(platform.now(), snapshot, seed);
        let last_event = store.last_event()?;
        Ok(Self { account, replica, token, linking, has_prekeys, last_event, marked })
    }
}

impl Driver {
    /// Loads the state of the store. Returns the owner with the error if that fails.
    pub(crate) fn new(mut owner: Box<Owner>, mut store: LocalStore) -> Result<Self, (Box<Owner>, Error)> {
        let Loaded { account, replica, token, linking, has_prekeys, last_event, marked } =
            match Loaded::load(&mut owner, &mut store) {
                Ok(loaded) => loaded,
                Err(error) => return Err((owner, error)),
            };
        owner.channels.last.send_replace(last_event);
        if has_prekeys {
            owner.channels.connection_state.send_modify(ConnectionState::prekeys_stored);
        }
        owner.waiters.tickets.answer_all(&store);
        if replica.outbox_len() == 0 {
            owner.waiters.answer_drained();
        }
        Ok(Self {
            owner,
            store,
            account,
            replica,
            token: SessionToken::new(token),
            transport: None,
            dialing: None,
            out: Vec::new(),
            waiting: HashMap::new(),
            tokens: 0,
            queued: Vec::new(),
            changing: Vec::new(),
            subscribing: Vec::new(),
            has_unwanted_groups: true,
            linking,
            marked,
            excluded: HashSet::new(),
            restart_due: false,
            contacts_due: false,
            contact_changes: Vec::new(),
            audience_due: None,
            accepting: HashSet::new(),
            settings: SettingsPacer::default(),
            disappears_at: None,
        })
    }

    /// Returns the account of the profile.
    pub(crate) fn opened(&self) -> Opened {
        Opened {
            device: self.account.device,
            handle: self.account.handle.clone(),
            account_key: *self.account.account_key(),
            last_event: *self.owner.channels.last.borrow(),
        }
    }

    fn now(&self) -> chat_core::Instant {
        self.owner.config.platform.now()
    }

    /// Runs until the client is closed or suspended, or until the local store fails. After a failure the durable state
    /// is correct, and the state in memory may be ahead of it.
    pub(crate) async fn run(mut self) -> Result<Ended> {
        match self.run_until_control().await {
            Ok(Some(reply)) => Ok(Ended::Suspended(self.owner, reply)),
            Ok(None) => Ok(Ended::Stopped),
            Err(error) => match self.owner.panicked_on.take() {
                Some(input) if input != SuiteInput::Own => {
                    tracing::error!(?input, "the encryption suite panicked; the client rejects the input");
                    self.owner.rejected.insert(input, Rejected::Panicked);
                    self.stand(ConnectionState::disconnected);
                    self.abandon(input)?;
                    Ok(Ended::Panicked(self.owner))
                }
                _ => {
                    self.owner.channels.failure.send_replace(Some(error.clone()));
                    Err(error)
                }
            },
        }
    }

    /// Answers all calls that wait for a commit or for the server: the caller may repeat them, unless the suite
    /// panicked on the message.
    fn abandon(&mut self, input: SuiteInput) -> Result<()> {
        for (message, reply) in self.queued.drain(..) {
            let _ = reply.send(Err(if input == SuiteInput::Draft(message) {
                Error::new(ErrorKind::Invalid, "the encryption suite cannot encrypt this message")
            } else {
                Error::new(ErrorKind::Unavailable, "the message was not queued: try again")
            }));
        }
        let tokens: Vec<u64> = self.waiting.keys().copied().collect();
        tokens.into_iter().try_for_each(|token| self.answered(token, Err(Refusal::Retry(0))))
    }

    /// Returns the reply to send once the profile is released, if the client is suspended.
    async fn run_until_control(&mut self) -> Result<Option<Reply<()>>> {
        self.step(Input::Watch(self.owner.watched.clone()))?;
        self.step(Input::OpenConversation(self.owner.open_conversation))?;
        self.step(Input::Flush)?;
        loop {
            self.flush().await?;
            match self.wake().await {
                Wakeup::Command(None) | Wakeup::Control(None | Some(Control::Stop)) => {
                    self.finish_commands()?;
                    self.stop().await?;
                    return Ok(None);
                }
                Wakeup::Control(Some(Control::Suspend(reply))) => {
                    self.stop().await?;
                    // Requests to the server that are in progress fail: the caller may repeat them.
                    self.step(Input::Disconnected)?;
                    self.step(Input::Flush)?;
                    return Ok(Some(reply));
                }
                Wakeup::Control(Some(Control::Resume(reply))) => {
                    let _ = reply.send(Ok(()));
                }
                Wakeup::Command(Some(command)) => {
                    self.command(command)?;
                    for _ in 1..BATCH {
                        if self.replica.outbox_len() >= OUTBOX {
                            break;
                        }
                        match self.owner.channels.sends.try_recv() {
                            Ok(send) => self.command(send)?,
                            Err(_) => break,
                        }
                    }
                }
                Wakeup::Frame(frame) => self.received(frame).await?,
                Wakeup::Dialled(dialled) => {
                    self.dialing = None;
                    self.dialled(dialled)?;
                }
                Wakeup::Deadline => {
                    self.report_expiry();
                    self.step(Input::Tick)?;
                }
            }
            self.check_linking()?;
            self.request_contacts()?;
            self.sync_settings()?;
            if std::mem::take(&mut self.restart_due) {
                self.step(Input::Restart)?;
            }
            self.step(Input::Flush)?;
            self.confirm_subscriptions();
            self.erase_disappeared()?;
            self.announce_revision();
        }
    }

    /// Wakes the timelines if something has changed that has no durable event.
    fn announce_revision(&self) {
        let revision = self.store.revisions().last();
        self.owner.channels.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    async fn received(&mut self, frame: Result<Option<Bytes>>) -> Result<()> {
        if let Ok(Some(bytes)) = frame {
            match ServerFrame::parse(bytes) {
                Ok(frame) => {
                    self.mark_rows(&frame)?;
                    self.set_clock(&frame)?;
                    self.compare_contacts(&frame)?;
                    self.token.note_expiry(self.now(), &frame);
                    return self.step(Input::Frame(frame));
                }
                Err(error) => {
                    tracing::warn!(%error, "received an invalid frame from the server; reconnecting");
                }
            }
        }
        self.hangup().await;
        self.step(Input::Disconnected)
    }

    /// Marks in the store that rows are being opened, so that the next start opens them one by one if one of them
    /// ends the process.
    fn mark_rows(&mut self, frame: &ServerFrame) -> Result<()> {
        if let ServerFrame::Deliver(rows, _) = frame
            && !self.marked
            && rows.iter().any(|row| matches!(row.content, RowContent::Message { .. }))
        {
            self.marked = self.store.mark_opening(&[])?;
        }
        Ok(())
    }

    /// Takes over the server's time at the begin of a session, and reports a clock that is far from it.
    fn set_clock(&mut self, frame: &ServerFrame) -> Result<()> {
        const WRONG_MS: u64 = 10 * 60 * 1000;
        if let ServerFrame::Welcome(welcome) = frame {
            self.store.set_server_time(welcome.server_time)?;
            let ahead_ms = self.store.server_ahead_ms().saturating_neg();
            let wrong_ms = (ahead_ms.unsigned_abs() >= WRONG_MS).then_some(ahead_ms);
            self.stand(|state| state.clock_compared(wrong_ms));
        }
        Ok(())
    }

    fn dialled(&mut self, dialled: Result<Box<dyn Transport>>) -> Result<()> {
        let error = match dialled {
            Ok(transport) => {
                self.transport = Some(transport);
                return self.step(Input::Connected);
            }
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::Denied | ErrorKind::Invalid => {
                let event = Event::ConnectionFailed { kind: error.kind(), message: error.what().to_owned() };
                self.stand(|state| state.connection_failed(error.clone()));
                self.pass(event);
            }
            ErrorKind::Throttled => self.throttled(error.retry_after_ms()),
            _ => {}
        }
        self.step(match error.retry_after_ms() {
            0 => Input::Disconnected,
            wait => Input::Rejected(wait),
        })
    }

    /// Carries out the commands that callers handed over before the client was closed.
    fn finish_commands(&mut self) -> Result<()> {
        self.owner.channels.commands.close();
        while let Ok(command) = self.owner.channels.commands.try_recv() {
            self.command(command)?;
        }
        self.owner.channels.sends.close();
        while let Ok(send) = self.owner.channels.sends.try_recv() {
            self.command(send)?;
        }
        Ok(())
    }

    /// Erases the messages that are due, and notes when the next one is.
    fn erase_disappeared(&mut self) -> Result<()> {
        /// The clock may change meanwhile.
        const LONGEST_MS: u64 = 60 * 60 * 1000;
        self.disappears_at = None;
        let Some(at) = self.store.next_to_disappear()? else { return Ok(()) };
        let mut left = at.saturating_sub(self.store.now_ms());
        if left == 0 {
            self.step(Input::Flush)?;
            self.store.erase_disappeared()?;
            self.store.commit_open()?;
            self.owner.channels.last.send_replace(self.store.last_event()?);
            let Some(next) = self.store.next_to_disappear()? else { return Ok(()) };
            left = next.saturating_sub(self.store.now_ms());
        }
        self.disappears_at = Some(self.now().after(left.min(LONGEST_MS)));
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        self.step(Input::Flush)?;
        self.flush().await?;
        self.hangup().await;
        Ok(())
    }

    async fn wake(&mut self) -> Wakeup {
        let platform = &self.owner.config.platform;
        // Settings that cannot be sent now are sent after a later wake-up.
        let settings = self.settings.deadline().filter(|at| *at > platform.now());
        let others = [self.token.deadline(), settings, self.disappears_at];
        let deadline = self.replica.deadline().into_iter().chain(others.into_iter().flatten()).min();
        let room = self.replica.outbox_len() < OUTBOX;
        let channels = &mut self.owner.channels;
        tokio::select! {
            biased;
            control = channels.control.recv() => Wakeup::Control(control),
            frame = async {
                match &mut self.transport {
                    Some(transport) => transport.recv().await,
                    None => std::future::pending().await,
                }
            } => Wakeup::Frame(frame),
            dialled = async {
                match &mut self.dialing {
                    Some(dialing) => dialing.await,
                    None => std::future::pending().await,
                }
            } => Wakeup::Dialled(dialled),
            () = async {
                match deadline {
                    Some(at) => platform.sleep_until(Duration::from_millis(at.as_millis())).await,
                    None => std::future::pending().await,
                }
            } => Wakeup::Deadline,
            command = channels.commands.recv() => Wakeup::Command(command),
            Some(send) = channels.sends.recv(), if room => Wakeup::Command(Some(send)),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let out = std::mem::take(&mut self.out);
        if let (Some(transport), false) = (&mut self.transport, out.is_empty())
            && transport.send(out).await.is_err()
        {
            self.hangup().await;
            self.step(Input::Disconnected)?;
            self.step(Input::Flush)?;
        }
        Ok(())
    }

    async fn hangup(&mut self) {
        self.out.clear();
        if let Some(mut transport) = self.transport.take() {
            transport.close(1000).await;
        }
    }

    fn pass(&self, event: Event) {
        // The send fails if there is no subscriber.
        let _ = self.owner.channels.transient.send(event);
    }

    fn throttled(&self, retry_after_ms: u32) {
        self.pass(Event::Throttled { retry_after: Duration::from_millis(u64::from(retry_after_ms)) });
    }

    /// Forgets why an earlier driver could not connect: this one tries again.
    fn forget_problems(&self) {
        self.stand(ConnectionState::restarted);
    }

    /// Changes the connection state. Every event stream reports it, including streams that start later.
    fn stand(&self, change: impl FnOnce(&mut ConnectionState)) {
        self.owner.channels.connection_state.send_modify(change);
    }
}

/// Reads the stored record of a device that is being linked.
fn read_linking(store: &LocalStore) -> Result<Option<(InstallationId, DeviceId, u64)>> {
    let Some(value) = store.meta("linking")? else { return Ok(None) };
    let parts = value.split_at_checked(16).and_then(|(installation, rest)| {
        let (device, at) = rest.split_first()?;
        let device = DeviceId::new(u32::from(*device)).ok()?;
        Some((InstallationId::parse(installation).ok()?, device, u64::from_be_bytes(at.try_into().ok()?)))
    });
    Ok(parts)
}

/// Returns the device as a peer of a suite, if it has one.
fn peer(suite: SuiteId, entry: &DeviceEntry) -> Option<Peer> {
    let identity = entry.suite_key(suite)?.clone();
    Some(Peer { installation: entry.installation(), device: entry.device, identity })
}
