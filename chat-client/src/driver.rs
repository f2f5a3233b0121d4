//! The owner of a replica, its store and its ratchets: one task, on a thread of its own.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use chat_core::backend::Transport;
use chat_core::device_list::{DeviceEntry, SignedDeviceList};
use chat_core::envelope::{AckOf, Audience, DeviceBox, InboxRow, Publish, Refusal, RowContent, SendNumber};
use chat_core::limits::{MAX_TEXT, WIRE_VERSION};
use chat_core::mutant::Mutants;
use chat_core::replica::{
    Change, Draft, Ephemeral, Input, Opened, Output, Replica, SealFailure, Stopped, To, Unreadable,
};
use chat_core::signing::{HelloClaims, prekeys_transcript, verify};
use chat_core::wire::{Answer, Ask, Bundle, ClientFrame, Hello, PrekeyUpload, ServerFrame};
use chat_core::{ConversationId, Error, ErrorKind, Instant, MessageId, Result, UserId};
use chat_transport::dial::Dialer;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use zeroize::Zeroizing;

use crate::body::{ListSeen, SealedBody, open_body};
use crate::client::Queued;
use crate::content::Content;
use crate::event::{Event, Numbered};
use crate::linking::{Code, Joined, Offer};
use crate::profile::{Profile, random};
use crate::store::{LocalStore, Reference, StoredMessage};
use crate::suite::{Peer, PrekeyBundle, Suite, SuiteTx};

/// Messages the outbox holds; when it is full, `send` waits.
pub(crate) const OUTBOX: usize = 10_000;
/// Commands taken into one commit.
const BATCH: usize = 256;
/// One-time prekeys made at once.
const PREKEYS: u64 = 50;

type Reply<T> = oneshot::Sender<Result<T>>;

/// What a handle asks of the owner.
#[derive(Debug)]
pub(crate) enum Command {
    Send {
        to: To,
        text: String,
        reference: Option<String>,
        reply: Reply<Queued>,
    },
    Read(ConversationId, u64),
    Typing(ConversationId),
    Watch(Vec<UserId>),
    Events {
        after: u64,
        limit: usize,
        reply: Reply<Vec<Numbered>>,
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
    Approve(Code, Reply<u8>),
    Unlink(u8, Reply<()>),
    Outbox(Reply<usize>),
    /// Something that cannot even be queued.
    Refuse {
        reference: Option<String>,
        reason: &'static str,
        reply: Reply<Queued>,
    },
    Accept(UserId, Reply<()>),
    Reincarnate,
    Stop,
}

/// What an answer of the server is for.
enum Waiting {
    Resolve(Reply<UserId>),
    List(UserId, Reply<SignedDeviceList>),
    Offer(Code, Reply<u8>),
    Approved(SignedDeviceList, Box<(Bytes, Code, Joined)>, Reply<u8>),
    Linked(u8, Reply<u8>),
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
    /// Messages to send: a queue of their own, not read while the outbox is full.
    sends: mpsc::Receiver<Command>,
    /// The number of the last durable event.
    last: watch::Sender<u64>,
    passing: broadcast::Sender<Event>,
    started: tokio::time::Instant,
    waiting: HashMap<u64, Waiting>,
    tokens: u64,
    /// Replies to sends that wait for their commit.
    queued: Vec<(MessageId, Reply<Queued>)>,
    /// Nothing is sent to a user whose account key changed until that is accepted.
    strict: bool,
}

/// The owner's ends of what it shares with its handles.
pub(crate) struct Channels {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) sends: mpsc::Receiver<Command>,
    pub(crate) last: watch::Sender<u64>,
    pub(crate) passing: broadcast::Sender<Event>,
}

enum Woken {
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
        let Channels { commands, sends, last, passing } = channels;
        let profile = Profile::load(&store)?;
        if let Some(token) = &token {
            store.set_meta("token", token.as_bytes())?;
            store.commit_open()?;
        }
        let token = store.meta("token")?.and_then(|v| String::from_utf8(v).ok()).unwrap_or_default();
        let mut saved = store.load(profile.device)?;
        saved.account_key = Some(*profile.account_key());
        let seed = u64::from_le_bytes(random()?);
        let replica = Replica::new(Instant::default(), saved, seed, Mutants::NONE);
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
            passing,
            started: tokio::time::Instant::now(),
            waiting: HashMap::new(),
            tokens: 0,
            queued: Vec::new(),
            strict,
        })
    }

    fn now(&self) -> Instant {
        Instant::from_millis(self.started.elapsed().as_millis() as u64)
    }

    /// Runs until told to stop, or until the local store fails: then what is durable is right, and what is
    /// in memory may be ahead of it.
    pub(crate) async fn run(mut self) -> Result<()> {
        self.step(Input::Flush)?;
        loop {
            self.flush().await?;
            match self.wake().await {
                Woken::Command(None | Some(Command::Stop)) => break,
                Woken::Command(Some(command)) => {
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
                Woken::Frame(Ok(Some(bytes))) => match ServerFrame::parse(bytes) {
                    Ok(frame) => self.step(Input::Frame(frame))?,
                    Err(error) => {
                        tracing::warn!(%error, "the server sent a frame that cannot be read");
                        self.hangup().await;
                        self.step(Input::Disconnected)?;
                    }
                },
                Woken::Frame(_) => {
                    self.hangup().await;
                    self.step(Input::Disconnected)?;
                }
                Woken::Dialled(dialled) => {
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
                            self.step(Input::Disconnected)?;
                        }
                    }
                }
                Woken::Deadline => self.step(Input::Tick)?,
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

    async fn wake(&mut self) -> Woken {
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
            } => Woken::Frame(frame),
            dialled = async {
                match &mut self.dialing {
                    Some(dialing) => dialing.await,
                    None => std::future::pending().await,
                }
            } => Woken::Dialled(dialled),
            () = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => Woken::Deadline,
            command = self.commands.recv() => Woken::Command(command),
            Some(send) = self.sends.recv(), if room => Woken::Command(Some(send)),
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
        // Nobody may be listening.
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
                self.suite.forget(&mut self.store)?;
                self.store.set_meta("last_prekey", &(u64::from(incarnation) << 20).to_be_bytes())?;
            }
            Output::MakePrekeys(replace) => {
                return self.make_prekeys(replace).map(|p| Some(Input::Prekeys(p)));
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
                let _ = reply.send(Ok(Queued { message_id: Some(id), repeated: Vec::new() }));
            } else {
                self.queued.push((id, reply));
            }
        }
    }

    fn ephemeral(&mut self, event: Ephemeral) -> Result<()> {
        let event = match event {
            Ephemeral::Connected => Event::Connected,
            Ephemeral::Disconnected => Event::Disconnected,
            Ephemeral::CaughtUp => Event::CaughtUp,
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
                    Stopped::Version => ("version", "the server speaks another version"),
                    _ => (
                        "superseded",
                        "another copy of this profile is in use, or it was restored twice in a day",
                    ),
                };
                Event::Error { reason: reason.into(), message: message.into() }
            }
            _ => return Ok(()),
        };
        self.pass(event);
        Ok(())
    }

    // ---- encryption ----------------------------------------------------------------------------------

    fn open(&mut self, row: &InboxRow, list: Option<&SignedDeviceList>) -> Result<Opened> {
        let RowContent::Message { message, sealed } = &row.content else {
            return Ok(Opened { content: Err(Unreadable::Malformed), known: false, list_version: 0 });
        };
        let known = self.store.knows(message.sender.installation, message.id)?;
        let entry = list.and_then(|list| list.list().device(message.sender.device));
        let content = match entry {
            Some(entry) if entry.installation() == message.sender.installation => {
                let own = self.profile.device.installation;
                let opened = self.suite.open(&mut self.store, &peer(entry), sealed)?.map(Zeroizing::new);
                opened.and_then(|content| {
                    open_body(self.suite.as_ref(), &content, own, row.conversation, message)
                })
            }
            _ => Err(Unreadable::UnknownDevice),
        };
        let list_version = content.as_ref().map_or(0, |(_, seen)| seen.version);
        let forked = |seen: &ListSeen| {
            list.is_some_and(|list| list.list().version == seen.version && list.hash() != seen.hash)
        };
        let content = match content {
            // The server shows its sender another list of that version than it shows this device.
            Ok((_, seen)) if forked(&seen) => Err(Unreadable::Misplaced),
            content => content.map(|(content, _)| Bytes::from(content)),
        };
        Ok(Opened { content, known, list_version })
    }

    fn seal(
        &mut self,
        draft: &Draft,
        number: SendNumber,
        lists: &[SignedDeviceList],
    ) -> Result<Result<Publish, SealFailure>> {
        let own = self.profile.device;
        let wanted = |entry: &&DeviceEntry| match &draft.to {
            To::Device(only) => entry.installation() == only.installation,
            _ => entry.installation() != own.installation,
        };
        if let To::Device(only) = &draft.to
            && !lists.iter().any(|list| list.list().addresses().any(|device| device == *only))
        {
            return Ok(Err(SealFailure::Never("unlinked")));
        }
        for list in lists {
            let mut missing = Vec::new();
            for entry in list.list().devices.iter().filter(wanted) {
                if !self.suite.has_session(&mut self.store, &peer(entry))? {
                    missing.push(entry.installation());
                }
            }
            if !missing.is_empty() {
                return Ok(Err(SealFailure::NeedBundles(list.list().user, missing)));
            }
        }
        let own_list = lists.iter().find(|list| list.list().user == own.user).or(self.replica.list(own.user));
        let seen = own_list.map_or(ListSeen { version: 0, hash: Bytes::new() }, |list| ListSeen {
            version: list.list().version,
            hash: list.hash(),
        });
        let key = Zeroizing::new(random()?);
        let Some(body) = SealedBody::seal(self.suite.as_ref(), &draft.content, &key, own, &number, &seen)
        else {
            return Ok(Err(SealFailure::Never("cannot_encrypt")));
        };
        let mut boxes = Vec::new();
        for entry in lists.iter().flat_map(|list| &list.list().devices).filter(wanted) {
            let installation = entry.installation();
            let content = body.box_for(installation);
            match self.suite.seal(&mut self.store, &peer(entry), &content) {
                Ok(data) => boxes.push(DeviceBox { installation, data }),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let user =
                        lists.iter().find(|l| l.list().addresses().any(|d| d.installation == installation));
                    let user = user.map_or(own.user, |list| list.list().user);
                    return Ok(Err(SealFailure::NeedBundles(user, vec![installation])));
                }
                Err(error) if error.kind() == ErrorKind::Invalid => {
                    return Ok(Err(SealFailure::Never("cannot_encrypt")));
                }
                Err(error) => return Err(error),
            }
        }
        let audience = lists.iter().map(|l| Audience { user: l.list().user, list_version: l.list().version });
        Ok(Ok(Publish {
            number,
            first: false,
            audience: audience.collect(),
            body: body.body,
            boxes,
            sent_at: draft.sent_at,
        }))
    }

    fn begin_sessions(&mut self, list: &SignedDeviceList, bundles: Vec<Bundle>) -> Result<()> {
        for bundle in bundles {
            let Some(entry) = list.list().devices.iter().find(|d| d.installation() == bundle.installation)
            else {
                continue;
            };
            let signed = verify(&entry.device_key, &prekeys_transcript(&bundle.signed), &bundle.signature);
            let offered = PrekeyBundle { signed: bundle.signed, one_time: bundle.one_time };
            let begun = signed.and_then(|()| self.suite.begin(&mut self.store, &peer(entry), &offered));
            match begun {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Denied) => {
                    tracing::warn!(%error, "a prekey bundle was refused");
                    self.pass(Event::Error {
                        reason: "bundle_refused".into(),
                        message: "the server gave keys that their device did not sign, or that are unsafe"
                            .into(),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn make_prekeys(&mut self, replace: bool) -> Result<PrekeyUpload> {
        let last =
            self.store.meta("last_prekey")?.and_then(|v| v.try_into().ok()).map_or(0, u64::from_be_bytes);
        let (signed, one_time) = self.suite.make_prekeys(&mut self.store, last + 1, PREKEYS)?;
        let uploaded_through = last + PREKEYS;
        self.store.set_meta("last_prekey", &uploaded_through.to_be_bytes())?;
        let signature = self.profile.sign(&prekeys_transcript(&signed));
        Ok(PrekeyUpload { signed, signature, one_time, uploaded_through, replace })
    }

    // ---- commands ------------------------------------------------------------------------------------

    fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Send { to, text, reference, reply } => self.send(to, &text, reference, reply)?,
            Command::Read(conversation, seq) => self.step(Input::Read(AckOf { conversation, seq }))?,
            Command::Typing(conversation) => self.step(Input::Typing(conversation))?,
            Command::Watch(users) => self.step(Input::Watch(users))?,
            Command::Events { after, limit, reply } => {
                let _ = reply.send(self.store.events(after, limit));
            }
            Command::History { conversation, before, limit, reply } => {
                let _ = reply.send(self.store.history(conversation, before, limit));
            }
            Command::Name(user, reply) => {
                let _ = reply.send(self.store.name_of(user));
            }
            Command::User(handle, reply) => match self.replica.user(&handle) {
                Some(user) => {
                    let _ = reply.send(Ok(user));
                }
                None => self.ask(Ask::Resolve(handle), Waiting::Resolve(reply))?,
            },
            Command::List(user, reply) => match self.replica.list(user) {
                Some(list) => {
                    let _ = reply.send(Ok(list.clone()));
                }
                None => self.ask(Ask::Lists(vec![user]), Waiting::List(user, reply))?,
            },
            Command::Approve(code, reply) => {
                let rendezvous = Bytes::copy_from_slice(&code.rendezvous);
                self.ask(Ask::Offer(rendezvous), Waiting::Offer(code, reply))?;
            }
            Command::Unlink(device, reply) => self.unlink(device, reply)?,
            Command::Outbox(reply) => {
                let _ = reply.send(Ok(self.replica.outbox_len()));
            }
            Command::Refuse { reference, reason, reply } => self.refuse(reference, reason, reply)?,
            Command::Accept(user, reply) => {
                self.step(Input::Flush)?;
                let accepted = self.store.accept(user).and_then(|()| self.store.commit_open());
                let _ = reply.send(accepted);
            }
            Command::Reincarnate => self.step(Input::Reincarnate)?,
            Command::Stop => {}
        }
        Ok(())
    }

    fn send(&mut self, to: To, text: &str, reference: Option<String>, reply: Reply<Queued>) -> Result<()> {
        if let Some(reference) = &reference {
            let mut known = self.store.reference(reference, &to, text)?;
            if known == Reference::Same(Vec::new()) {
                // It waits in the open transaction: let it become an event first.
                self.step(Input::Flush)?;
                known = self.store.reference(reference, &to, text)?;
            }
            let refused = match known {
                Reference::New => None,
                Reference::Same(repeated) => {
                    let _ = reply.send(Ok(Queued { message_id: None, repeated }));
                    return Ok(());
                }
                Reference::Other => Some("ref_reused"),
            };
            if let Some(reason) = refused {
                return self.refuse(Some(reference.clone()), reason, reply);
            }
        }
        if self.strict && self.is_unaccepted(&to)? {
            return self.refuse(reference, "identity_changed", reply);
        }
        if text.len() > MAX_TEXT {
            return self.refuse(reference, "too_long", reply);
        }
        let now = self.store.now_ms();
        let id = MessageId::new(now, random()?);
        let draft = Draft { id, to, content: Content::of_text(text).pad().into(), sent_at: now };
        if let Some(reference) = &reference {
            self.store.add_reference(reference, &draft, text)?;
        }
        self.queued.push((id, reply));
        self.step(Input::Send(draft))
    }

    /// Whether a message is for somebody whose new account key nobody accepted.
    fn is_unaccepted(&self, to: &To) -> Result<bool> {
        let user = match to {
            To::Handle(handle) => self.replica.user(handle),
            To::User(user) => Some(*user),
            _ => None,
        };
        user.map_or(Ok(false), |user| self.store.is_unaccepted(user))
    }

    fn refuse(&mut self, reference: Option<String>, reason: &str, reply: Reply<Queued>) -> Result<()> {
        // The refusal is durable on its own; what else is open goes with it, whole.
        self.step(Input::Flush)?;
        self.store.refuse(reference, reason)?;
        self.last.send_replace(self.store.last_event()?);
        let _ = reply.send(Ok(Queued { message_id: None, repeated: Vec::new() }));
        Ok(())
    }

    fn ask(&mut self, ask: Ask, waiting: Waiting) -> Result<()> {
        self.tokens += 1;
        self.waiting.insert(self.tokens, waiting);
        self.step(Input::Ask(self.tokens, ask))
    }

    fn answered(&mut self, token: u64, answer: std::result::Result<Box<Answer>, Refusal>) -> Result<()> {
        let Some(waiting) = self.waiting.remove(&token) else {
            return Ok(());
        };
        let answer = answer.map_err(|refusal| match refusal {
            Refusal::NotFound => Error::new(ErrorKind::NotFound, "there is no such thing"),
            Refusal::Taken => Error::new(ErrorKind::Conflict, "it changed meanwhile: try again"),
            Refusal::Retry(_) => Error::new(ErrorKind::Unavailable, "there is no connection"),
            Refusal::Throttled(_) => Error::new(ErrorKind::Throttled, "too many requests: wait"),
            _ => Error::new(ErrorKind::Denied, "the server refused"),
        });
        match (waiting, answer) {
            (Waiting::Resolve(reply), answer) => {
                let user = answer
                    .and_then(|a| a.user.ok_or(Error::new(ErrorKind::NotFound, "there is no such user")));
                let _ = reply.send(user);
            }
            (Waiting::List(user, reply), answer) => {
                let list = match answer {
                    Ok(answer) => {
                        let list = answer.lists.into_iter().find(|list| list.list().user == user);
                        // From here on it is pinned like any list that was needed to send.
                        if let Some(list) = list {
                            self.step(Input::List(list))?;
                        }
                        let known = self.replica.list(user).cloned();
                        known.ok_or(Error::new(ErrorKind::NotFound, "there is no such user"))
                    }
                    Err(error) => Err(error),
                };
                let _ = reply.send(list);
            }
            (Waiting::Offer(code, reply), answer) => {
                // The answer is sealed before the list is changed: a device that cannot be answered is not listed.
                let begun = answer.and_then(|answer| self.approve(&code, &answer.offer)).and_then(
                    |(list, joined)| {
                        let sealed = joined.0.answer(&joined.1, random()?)?;
                        Ok((list, sealed, joined.1))
                    },
                );
                match begun {
                    Ok((list, sealed, joined)) => {
                        let ask = Ask::PutList(list.clone());
                        let waiting = Waiting::Approved(list, Box::new((sealed, code, joined)), reply);
                        self.ask(ask, waiting)?;
                    }
                    Err(error) => {
                        let _ = reply.send(Err(error));
                    }
                }
            }
            (Waiting::Approved(list, parts, reply), Ok(_)) => {
                self.step(Input::OwnList(list))?;
                let (sealed, code, joined) = *parts;
                let ask = Ask::LinkAnswer(Bytes::copy_from_slice(&code.rendezvous), sealed);
                self.ask(ask, Waiting::Linked(joined.device.get(), reply))?;
            }
            (Waiting::Linked(device, reply), Ok(_)) => {
                let _ = reply.send(Ok(device));
            }
            (Waiting::Linked(device, reply), Err(error)) => {
                // It does not know that it is listed, and would never upload prekeys: take it off again.
                let (ignored, _) = oneshot::channel();
                self.unlink(device, ignored)?;
                let _ = reply.send(Err(error));
            }
            (Waiting::Unlinked(list, reply), Ok(_)) => {
                self.step(Input::OwnList(list))?;
                let _ = reply.send(Ok(()));
            }
            (Waiting::Approved(_, _, reply), Err(error)) => {
                let _ = reply.send(Err(error));
            }
            (Waiting::Unlinked(_, reply), Err(error)) => {
                let _ = reply.send(Err(error));
            }
        }
        Ok(())
    }

    fn own_list(&self) -> Result<SignedDeviceList> {
        let list = self.replica.list(self.profile.device.user).cloned();
        list.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "the own device list is not read yet: connect first")
        })
    }

    fn approve(&self, code: &Code, offer: &[u8]) -> Result<(SignedDeviceList, (Offer, Joined))> {
        let offer = Offer::check(offer, code)?;
        let before = self.own_list()?;
        let full = || Error::new(ErrorKind::Conflict, "the account has as many devices as it can have");
        let device = before.list().free_device().ok_or_else(full)?;
        let key = offer.device_key[..]
            .try_into()
            .map_err(|_| Error::new(ErrorKind::Invalid, "not a device key"))?;
        let mut devices = before.list().devices.clone();
        devices.push(DeviceEntry::new(device, key, offer.suite_key.clone().into()));
        devices.sort_by_key(|entry| entry.device);
        let list = self.profile.sign_list(&before, devices, self.store.now_ms())?;
        let joined = Joined {
            account_key: *self.profile.account_key(),
            user: self.profile.device.user,
            device,
            handle: self.profile.handle.clone(),
        };
        Ok((list, (offer, joined)))
    }

    fn unlink(&mut self, device: u8, reply: Reply<()>) -> Result<()> {
        let made = self.own_list().and_then(|before| {
            if device == self.profile.device.device.get() {
                return Err(Error::new(ErrorKind::Invalid, "this device cannot unlink itself"));
            }
            let mut devices = before.list().devices.clone();
            devices.retain(|entry| entry.device.get() != device);
            if devices.len() == before.list().devices.len() {
                return Err(Error::new(ErrorKind::NotFound, "there is no such device"));
            }
            self.profile.sign_list(&before, devices, self.store.now_ms())
        });
        match made {
            Ok(list) => self.ask(Ask::PutList(list.clone()), Waiting::Unlinked(list, reply)),
            Err(error) => {
                let _ = reply.send(Err(error));
                Ok(())
            }
        }
    }
}

fn peer(entry: &DeviceEntry) -> Peer {
    Peer { installation: entry.installation(), device: entry.device, identity: entry.suite_key.clone() }
}
