//! The driver: the task, on its own thread, that owns a replica, its local store and its ratchets.

mod commands;
mod encryption;

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use chat_core::backend::Transport;
use chat_core::device_list::{DeviceEntry, SignedDeviceList};
use chat_core::limits::WIRE_VERSION;
use chat_core::replica::{Change, Ephemeral, Input, Output, Recipient, Replica, Stopped};
use chat_core::signing::HelloClaims;
use chat_core::wire::{ClientFrame, Hello, ServerFrame};
use chat_core::{ConversationId, ErrorKind, InstallationId, Instant, MessageId, Result, UserId};
use chat_transport::dial::Dialer;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::connection_state::ConnectionState;
use crate::event::Enqueued;
use crate::event::{Event, EventRecord};
use crate::linking::{Joined, LinkCode};
use crate::profile::Profile;
use crate::random::random;
use crate::store::{LocalStore, StoredMessage};
use crate::suite::{Peer, Suite};

/// Maximum number of messages in the outbox; while it is full, `send` waits.
pub(crate) const OUTBOX: usize = 10_000;
/// Maximum number of commands in one commit.
const BATCH: usize = 256;

type Reply<T> = oneshot::Sender<Result<T>>;

/// A command from a client handle to the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Send {
        to: Recipient,
        text: String,
        idempotency_key: Option<String>,
        reply: Reply<Enqueued>,
    },
    Read(ConversationId, u64),
    Typing(ConversationId),
    Watch(Vec<UserId>),
    Events {
        after: u64,
        limit: usize,
        reply: Reply<Vec<EventRecord>>,
    },
    History {
        conversation: ConversationId,
        before: u64,
        limit: usize,
        reply: Reply<Vec<StoredMessage>>,
    },
    Name(UserId, Reply<String>),
    User(chat_core::Handle, Reply<UserId>),
    List(UserId, Reply<SignedDeviceList>),
    Approve(LinkCode, Reply<u8>),
    Unlink(u8, Reply<()>),
    Outbox(Reply<usize>),
    /// Records the refusal of a message that cannot be queued.
    Refuse {
        idempotency_key: Option<String>,
        reason: &'static str,
        reply: Reply<Enqueued>,
    },
    /// Accepts the account key of a user if this is the safety number.
    Accept(UserId, String, Reply<()>),
    Reincarnate(Reply<()>),
    Stop,
}

/// The purpose of a pending request to the server.
enum Waiting {
    Resolve(Reply<UserId>),
    List(UserId, Reply<SignedDeviceList>),
    Offer(LinkCode, Reply<u8>),
    Approved(SignedDeviceList, Box<(Bytes, LinkCode, Joined)>, Reply<u8>),
    Linked(u8, Reply<u8>),
    /// Checks whether a newly listed device has prekeys.
    Alive(u8),
    Unlinked(SignedDeviceList, Reply<()>),
}

type Dialing = Pin<Box<dyn Future<Output = Result<Box<dyn Transport>>> + Send>>;

pub(crate) struct Driver {
    store: LocalStore,
    suite: Box<dyn Suite>,
    profile: Profile,
    replica: Replica,
    dialer: Dialer,
    token: String,
    transport: Option<Box<dyn Transport>>,
    dialing: Option<Dialing>,
    out: Vec<Bytes>,
    commands: mpsc::Receiver<Command>,
    /// `Send` and `Refuse` commands: a separate queue, which is not read while the outbox is full.
    sends: mpsc::Receiver<Command>,
    /// The number of the last durable event.
    last: watch::Sender<u64>,
    connection_state: watch::Sender<ConnectionState>,
    passing: broadcast::Sender<Event>,
    started: tokio::time::Instant,
    waiting: HashMap<u64, Waiting>,
    tokens: u64,
    /// Replies to sends whose commit is pending.
    queued: Vec<(MessageId, Reply<Enqueued>)>,
    /// Messages to a user whose account key changed are refused until the new key is accepted.
    strict: bool,
    /// A newly listed device that may not have received its link answer: its installation, its number, and
    /// the time of the listing in milliseconds since 1970.
    linking: Option<(InstallationId, u8, u64)>,
}

/// The driver's ends of the channels to its client handles.
pub(crate) struct Channels {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) sends: mpsc::Receiver<Command>,
    pub(crate) last: watch::Sender<u64>,
    pub(crate) connection_state: watch::Sender<ConnectionState>,
    pub(crate) passing: broadcast::Sender<Event>,
}

enum Wakeup {
    Command(Option<Command>),
    Frame(Result<Option<Bytes>>),
    Dialled(Result<Box<dyn Transport>>),
    Deadline,
}

impl Driver {
    pub(crate) fn new(
        mut store: LocalStore,
        suite: Box<dyn Suite>,
        dialer: Dialer,
        token: Option<String>,
        strict: bool,
        channels: Channels,
    ) -> Result<Self> {
        let Channels { commands, sends, last, connection_state, passing } = channels;
        let profile = Profile::load(&store)?;
        if let Some(token) = &token {
            store.set_meta("token", token.as_bytes())?;
            store.commit_open()?;
        }
        let token = store.meta("token")?.and_then(|v| String::from_utf8(v).ok()).unwrap_or_default();
        let linking = read_linking(&store)?;
        let mut snapshot = store.load(profile.device)?;
        snapshot.account_key = Some(*profile.account_key());
        let seed = u64::from_le_bytes(random()?);
        let replica = Replica::new(Instant::default(), snapshot, seed);
        last.send_replace(store.last_event()?);
        Ok(Self {
            store,
            suite,
            profile,
            replica,
            dialer,
            token,
            transport: None,
            dialing: None,
            out: Vec::new(),
            commands,
            sends,
            last,
            connection_state,
            passing,
            started: tokio::time::Instant::now(),
            waiting: HashMap::new(),
            tokens: 0,
            queued: Vec::new(),
            strict,
            linking,
        })
    }

    /// Returns the number of the last durable event.
    pub(crate) fn last_event(&self) -> u64 {
        *self.last.borrow()
    }

    fn now(&self) -> Instant {
        Instant::from_millis(self.started.elapsed().as_millis() as u64)
    }

    /// Runs until a stop command, or until the local store fails. After a failure the durable state is
    /// correct, and the state in memory may be ahead of it.
    pub(crate) async fn run(mut self) -> Result<()> {
        self.step(Input::Flush)?;
        loop {
            self.flush().await?;
            match self.wake().await {
                Wakeup::Command(None | Some(Command::Stop)) => break,
                Wakeup::Command(Some(command)) => {
                    self.command(command)?;
                    for _ in 1..BATCH {
                        if self.replica.outbox_len() >= OUTBOX {
                            break;
                        }
                        match self.sends.try_recv() {
                            Ok(send) => self.command(send)?,
                            Err(_) => break,
                        }
                    }
                }
                Wakeup::Frame(Ok(Some(bytes))) => match ServerFrame::parse(bytes) {
                    Ok(frame) => self.step(Input::Frame(frame))?,
                    Err(error) => {
                        tracing::warn!(%error, "received an invalid frame from the server; reconnecting");
                        self.hangup().await;
                        self.step(Input::Disconnected)?;
                    }
                },
                Wakeup::Frame(_) => {
                    self.hangup().await;
                    self.step(Input::Disconnected)?;
                }
                Wakeup::Dialled(dialled) => {
                    self.dialing = None;
                    match dialled {
                        Ok(transport) => {
                            self.transport = Some(transport);
                            self.step(Input::Connected)?;
                        }
                        Err(error) => {
                            if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Invalid) {
                                self.pass(Event::Error {
                                    reason: "connect".into(),
                                    message: error.to_string(),
                                });
                            }
                            self.step(match error.retry_after_ms() {
                                0 => Input::Disconnected,
                                wait => Input::Rejected(wait),
                            })?;
                        }
                    }
                }
                Wakeup::Deadline => {
                    self.step(Input::Tick)?;
                    self.check_linking()?;
                }
            }
            self.step(Input::Flush)?;
        }
        self.stop().await
    }

    async fn stop(mut self) -> Result<()> {
        self.step(Input::Flush)?;
        self.flush().await?;
        if let Some(mut transport) = self.transport.take() {
            transport.close(1000).await;
        }
        Ok(())
    }

    async fn wake(&mut self) -> Wakeup {
        let deadline =
            self.replica.deadline().map(|at| self.started + std::time::Duration::from_millis(at.as_millis()));
        let room = self.replica.outbox_len() < OUTBOX;
        tokio::select! {
            biased;
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
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => Wakeup::Deadline,
            command = self.commands.recv() => Wakeup::Command(command),
            Some(send) = self.sends.recv(), if room => Wakeup::Command(Some(send)),
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
        let _ = self.passing.send(event);
    }

    // ---- the replica ---------------------------------------------------------------------------------

    fn step(&mut self, input: Input) -> Result<()> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut outputs = Vec::new();
            let now = self.now();
            self.replica.step(now, input, &mut outputs);
            let mut answers = Vec::new();
            for output in outputs {
                if let Some(answer) = self.carry_out(output)? {
                    answers.push(answer);
                }
            }
            answers.into_iter().rev().for_each(|answer| inputs.push_front(answer));
        }
        Ok(())
    }

    fn carry_out(&mut self, output: Output) -> Result<Option<Input>> {
        match output {
            Output::Dial => {
                let dialer = self.dialer.clone();
                self.dialing = Some(Box::pin(async move { dialer.dial().await }));
            }
            Output::Hangup => {
                self.out.clear();
                self.transport = None;
                self.dialing = None;
            }
            Output::Hello { nonce, incarnation, generation, epoch } => {
                let claims = HelloClaims {
                    authority: self.dialer.authority(),
                    nonce,
                    version: WIRE_VERSION,
                    token: self.token.clone(),
                    user: self.profile.device.user,
                    device: self.profile.device.device,
                    incarnation,
                    generation,
                };
                let signature = self.profile.sign(&claims.transcript());
                let hello = Hello { claims, store_epoch: epoch, signature };
                self.out.push(ClientFrame::Hello(Box::new(hello)).encode());
            }
            Output::Send(frame) => self.out.push(frame.encode()),
            Output::Open(row, list) => return self.open(&row, list.as_ref()).map(|o| Some(Input::Opened(o))),
            Output::Recall(asker, conversation, id) => {
                let content = self.store.recall(conversation, id, asker.installation)?;
                return Ok(Some(Input::Recalled(asker, conversation, id, content)));
            }
            Output::EndSession(peer) => self.suite.end_session(&mut self.store, peer)?,
            Output::Seal { draft, number, lists } => {
                return self.seal(&draft, number, &lists).map(|sealed| Some(Input::Sealed(sealed)));
            }
            Output::Bundles(list, bundles) => self.begin_sessions(&list, bundles)?,
            Output::Forget(incarnation) => {
                self.suite.reset(&mut self.store)?;
                self.store.set_meta("last_prekey", &(u64::from(incarnation) << 20).to_be_bytes())?;
            }
            Output::MakePrekeys { replace, count } => {
                return self.make_prekeys(replace, u64::from(count)).map(|p| Some(Input::Prekeys(p)));
            }
            Output::Commit(changes, ticket) => {
                let queued: Vec<MessageId> = changes
                    .list
                    .iter()
                    .filter_map(
                        |change| {
                            if let Change::Queued(draft) = change { Some(draft.id) } else { None }
                        },
                    )
                    .collect();
                self.suite.flush(&mut self.store)?;
                self.store.commit(changes)?;
                self.last.send_replace(self.store.last_event()?);
                self.answer_queued(&queued);
                return Ok(Some(Input::Committed(ticket)));
            }
            Output::Answer(token, answer) => self.answered(token, answer)?,
            Output::Event(event) => self.ephemeral(event)?,
            _ => {}
        }
        Ok(None)
    }

    fn answer_queued(&mut self, ids: &[MessageId]) {
        for (id, reply) in std::mem::take(&mut self.queued) {
            if ids.contains(&id) {
                let _ = reply.send(Ok(Enqueued { message_id: Some(id), repeated: Vec::new() }));
            } else {
                self.queued.push((id, reply));
            }
        }
    }

    fn ephemeral(&mut self, event: Ephemeral) -> Result<()> {
        let event = match event {
            Ephemeral::Connected => return self.stand(ConnectionState::connected),
            Ephemeral::Disconnected => return self.stand(ConnectionState::disconnected),
            Ephemeral::CaughtUp => return self.stand(ConnectionState::caught_up),
            Ephemeral::Typing(conversation, user) => {
                Event::Typing { conversation: conversation.to_hex(), user: self.store.name_of(user)? }
            }
            Ephemeral::Presence(user, online) => Event::Presence { user: self.store.name_of(user)?, online },
            Ephemeral::ListHidden(user) => Event::Error {
                reason: "list_hidden".into(),
                message: format!(
                    "the server hides a later device list of {} from this device",
                    self.store.name_of(user)?
                ),
            },
            Ephemeral::Stopped(why) => {
                let (reason, message) = match why {
                    Stopped::Unauthorized => {
                        ("unauthorized", "the token expired or this device was unlinked: log in again")
                    }
                    Stopped::Version => ("version", "the server does not support this protocol version"),
                    _ => (
                        "superseded",
                        "another copy of this profile is in use, or it was restored twice within a day",
                    ),
                };
                let why = Event::Error { reason: reason.into(), message: message.into() };
                return self.stand(|connection_state| connection_state.stopped(why));
            }
            _ => return Ok(()),
        };
        self.pass(event);
        Ok(())
    }

    /// Changes the connection state. Every event stream reports it, including streams that start later.
    fn stand(&self, change: impl FnOnce(&mut ConnectionState)) -> Result<()> {
        self.connection_state.send_modify(change);
        Ok(())
    }
}

/// Reads the stored record of a device that is being linked.
fn read_linking(store: &LocalStore) -> Result<Option<(InstallationId, u8, u64)>> {
    let Some(value) = store.meta("linking")? else { return Ok(None) };
    let parts = value.split_at_checked(16).and_then(|(installation, rest)| {
        let (device, at) = rest.split_first()?;
        Some((InstallationId::parse(installation).ok()?, *device, u64::from_be_bytes(at.try_into().ok()?)))
    });
    Ok(parts)
}

fn peer(entry: &DeviceEntry) -> Peer {
    Peer { installation: entry.installation(), device: entry.device, identity: entry.suite_key.clone() }
}
