//! The device's side of the connection, as a pure state machine: it decides what to show, send and
//! acknowledge, and when.
//!
//! ```text
//! Idle(retry_at) → Dialing → Greeting → CatchingUp → Live        Stopped(reason)
//! ```
//!
//! Changes are persisted before they are acknowledged: they accumulate until [`Input::Flush`] and leave as
//! one [`Output::Commit`]. The outputs that depend on them (acks, publishes) follow only after
//! [`Input::Committed`]. The replica also decides every encryption step, so that the simulator covers
//! encryption as well: the driver executes [`Output::Open`] and [`Output::Seal`] inside the open local
//! transaction. Their ratchet changes become durable with the commit or not at all.

mod change;
mod connection;
mod conversation;
mod draft;
mod group;
mod group_receipts;
mod group_receive;
mod group_send;
mod input;
mod integrity;
mod mailbox;
mod output;
mod receipts;
mod receive;
mod recovery;
mod send;
mod server_restore;
mod snapshot;

pub use change::{Change, Changes, ListChange};
pub use draft::{Draft, Recipient};
pub use group::{GroupSeal, SenderKey};
pub use input::{AtSeq, Input, Opened, SealFailure, Unreadable};
#[cfg(feature = "sim")]
pub(crate) use integrity::UNKNOWN_START;
pub use integrity::{Chain, Violation};
pub use output::{Ephemeral, Output, Stopped};
pub use snapshot::{ConversationSnapshot, OutboxEntrySnapshot, ReplicaSnapshot};

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use conversation::{Conversation, Entry};
use mailbox::Mailbox;
use server_restore::ServerRestore;

use crate::model::client_frame::{ClientFrame, Request};
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{AckUpTo, InboxRow};
use crate::model::id::{
    ConversationId, DeviceAddress, Handle, Incarnation, InstallationId, MessageId, SenderKeyId, Seq,
    StoreEpoch, UserId,
};
use crate::model::limits::{HEARTBEAT_MS, MIN_BYTES_PER_SECOND};
use crate::model::rng::Rng;
use crate::model::rules::Rules;
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// Maximum unanswered publishes, over all conversations.
const SEND_WINDOW: usize = 256;
/// Milliseconds without an answer after which a publish or a request is sent again.
const RETRY_MS: u64 = 10_000;

/// Returns the milliseconds after which a frame is sent again, if this many bytes must be sent until its answer: a slow
/// link takes its time.
const fn retry_ms(bytes: usize) -> u64 {
    RETRY_MS + bytes as u64 * 1000 / MIN_BYTES_PER_SECOND
}
/// One day in milliseconds: the minimum time between two automatic incarnations, and the unit of the age
/// limit of prekeys.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The state machine of a device.
#[derive(Debug)]
pub struct Replica {
    device: DeviceAddress,
    account_key: Option<[u8; 32]>,
    rng: Rng,
    phase: Phase,
    recovery: Recovery,
    server_restore: ServerRestore,

    // State that the local store holds.
    incarnation: Incarnation,
    generation: u64,
    epoch: Option<StoreEpoch>,
    nonce: Option<[u8; 16]>,
    conversations: BTreeMap<ConversationId, Conversation>,
    /// Drafts whose handle is not resolved yet, in order.
    unresolved: BTreeMap<Handle, VecDeque<Entry>>,
    handles: HashMap<Handle, UserId>,
    lists: HashMap<UserId, SignedDeviceList>,

    // The open transaction.
    changes: Vec<Change>,
    ratchets_moved: bool,
    /// Seqs to acknowledge: no row above them was compared with the store or received.
    acks_due: BTreeMap<ConversationId, Seq>,
    /// Senders whose chain moved: one change for each and commit.
    chains_due: BTreeSet<(ConversationId, InstallationId)>,
    committing: Option<(u64, Vec<AckUpTo>)>,
    tickets: u64,
    flushing: bool,
    /// A draft names the place of a message that is stored with the next commit: it is sealed afterwards.
    seals_after_commit: bool,
    /// Requests to send once the changes are durable.
    after_commit: Vec<(Request, Purpose)>,

    // Work that waits for an answer.
    rows: VecDeque<InboxRow>,
    opening: Option<InboxRow>,
    sealing: Option<(ConversationId, MessageId, Option<SenderKeyId>)>,
    /// Number of looked up messages that are not answered yet: the row of a request is committed with its answer.
    recalling: u32,
    /// Open requests by id: purpose, request, and the time of the next attempt.
    requests: BTreeMap<u64, (Purpose, Request, Instant)>,
    last_request: u64,
    /// Users whose lists must be fetched again before the replica seals for them.
    stale: BTreeSet<UserId>,
    /// Users whose list request was answered, with the value of `rows_in` when it was sent: the answer is
    /// valid for the rows received before.
    looked_up: BTreeMap<UserId, u64>,
    /// Users with an open list request, with the value of `rows_in` when it was first sent.
    looking_up: BTreeMap<UserId, u64>,
    /// Rows received on all connections of this replica.
    rows_in: u64,
    /// Each row is opened in a transaction of its own, until the device has caught up.
    isolate_rows: bool,
    caught_up: bool,
    /// The ticket of the commit with the last of the waiting rows, which is reported then; `u64::MAX` while rows wait.
    report_caught_up: Option<u64>,
    /// A slow link was reported for this connection.
    slow: bool,
    /// Since this replica was created, the server has answered whether it stores acks that the local store
    /// lacks.
    looked_back: bool,
    catch_up_at: Option<Instant>,
    /// When delivery receipts in groups are due.
    receipts_at: Option<Instant>,
    /// The conversation that the user looks at; sent again after a reconnect.
    open_conversation: Option<ConversationId>,
    deferred: Vec<Change>,
    mailbox: Mailbox,
    /// The server's clock in milliseconds since 1970, and when it was read.
    server_time: (u64, Instant),
    /// How long the server keeps rows that wait, in milliseconds; 0 if it did not say.
    retention_ms: u64,
    /// The latest rules of messages that the server accepts.
    server_rules: Rules,
    prekeys_at: u64,
    /// One-time prekeys on the server, as it last reported.
    prekeys_held: u32,
    /// Earliest time of the next automatic incarnation: at most one a day.
    reincarnate_from: Instant,
    /// The user requested a new incarnation.
    reincarnation_asked: bool,
    /// Users whose presence is watched; sent again after a reconnect.
    watched: Vec<UserId>,
    /// Earlier list versions that messages named; `None` if the server has none that the account key signed. Dropped
    /// once no row waits.
    earlier_lists: BTreeMap<(UserId, u64), Option<SignedDeviceList>>,
    /// Users for whom the server returned no list: not requested again before this time.
    listless: BTreeMap<UserId, Instant>,
    /// The highest list version that each user's devices claimed, end to end.
    claimed: BTreeMap<UserId, u64>,
    /// The list versions that were already reported as hidden by the server.
    hidden: BTreeMap<UserId, u64>,
    /// Groups of which the server has a later roster than this device.
    rosters_behind: BTreeSet<ConversationId>,
    /// Maximum boxes with a sender key in one message of a group.
    max_key_boxes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Not connected. Dials at this time, after this many attempts.
    Idle(Instant, u32),
    Dialing(Instant, u32),
    Greeting(Instant, u32),
    Online {
        since: Instant,
        heard: Instant,
        heartbeat: Instant,
        attempts: u32,
    },
    Stopped(Stopped),
}

/// The recovery step of a device whose store was restored or cloned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Recovery {
    No,
    /// Requests the acknowledged cursors that the server stores.
    Cursors,
    /// Processes the waiting rows; nothing is encrypted or sent.
    Draining,
    /// Requests a new incarnation.
    Reincarnating,
}

/// The purpose of a request: it decides how the answer is handled.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Purpose {
    Resolve(Handle),
    Lists(Vec<UserId>),
    /// A list version that a message of an unlisted device names.
    ListVersion(UserId, u64),
    /// The roster of a group.
    Roster(ConversationId),
    /// For a conversation: bundles of these devices of this user.
    Claim(ConversationId, UserId, Vec<InstallationId>),
    Upload,
    Cursors,
    /// Compares the cursors with those of a server that may have been restored.
    ServerRestore,
    /// Checks whether this device acknowledged rows that its store does not have.
    Missing,
    Reincarnate,
    Delivered(ConversationId),
    /// A request of the application, with its token.
    Application(u64),
}

impl Replica {
    /// Creates a replica from the state of its store. The seed must differ each time: it generates jitter
    /// and nonces.
    pub fn new(now: Instant, snapshot: ReplicaSnapshot, seed: u64) -> Self {
        let mut replica = Self {
            device: snapshot.device,
            account_key: snapshot.account_key,
            rng: Rng::new(seed),
            phase: Phase::Idle(now, 0),
            recovery: Recovery::No,
            server_restore: ServerRestore::from_saved(
                snapshot.epoch_changed.is_some(),
                snapshot.epoch_changed == Some(true),
            ),
            incarnation: snapshot.incarnation,
            generation: snapshot.generation,
            epoch: snapshot.epoch,
            nonce: snapshot.nonce,
            conversations: BTreeMap::new(),
            unresolved: BTreeMap::new(),
            handles: snapshot.handles.into_iter().collect(),
            lists: snapshot.lists.into_iter().map(|list| (list.list().user, list)).collect(),
            changes: Vec::new(),
            ratchets_moved: false,
            acks_due: BTreeMap::new(),
            chains_due: BTreeSet::new(),
            committing: None,
            tickets: 0,
            flushing: false,
            seals_after_commit: false,
            after_commit: Vec::new(),
            rows: VecDeque::new(),
            opening: None,
            sealing: None,
            recalling: 0,
            requests: BTreeMap::new(),
            last_request: 0,
            stale: BTreeSet::new(),
            looked_up: BTreeMap::new(),
            looking_up: BTreeMap::new(),
            rows_in: 0,
            isolate_rows: snapshot.isolate_rows,
            caught_up: false,
            report_caught_up: None,
            looked_back: false,
            slow: false,
            catch_up_at: None,
            receipts_at: None,
            open_conversation: None,
            deferred: Vec::new(),
            mailbox: Mailbox::new(snapshot.unasked, snapshot.asked_once),
            server_time: (0, now),
            retention_ms: 0,
            server_rules: Rules::default(),
            prekeys_at: snapshot.prekeys_at,
            prekeys_held: 0,
            reincarnate_from: if snapshot.reincarnated_lately { now.after(DAY_MS) } else { now },
            reincarnation_asked: snapshot.reincarnation_asked,
            watched: Vec::new(),
            earlier_lists: BTreeMap::new(),
            listless: BTreeMap::new(),
            claimed: BTreeMap::new(),
            hidden: BTreeMap::new(),
            rosters_behind: BTreeSet::new(),
            max_key_boxes: group_send::MAX_KEY_BOXES,
        };
        for conversation in snapshot.conversations {
            replica.rosters_behind.extend(Some(conversation.id).filter(|_| conversation.roster_behind));
            replica.conversations.insert(conversation.id, Conversation::from_saved(&conversation));
        }
        for entry in snapshot.outbox {
            replica.enqueue(Entry::from_saved(entry));
        }
        for known in replica.conversations.values_mut().filter(|known| known.group.is_some()) {
            // A message with boxes goes ahead of messages that were queued before it.
            let order = |entry: &Entry| entry.number.map_or(u64::MAX, |number| number.client_seq);
            known.queue.make_contiguous().sort_by_key(order);
        }
        replica
    }

    /// Sets the maximum number of boxes with a sender key in one message of a group.
    #[cfg(feature = "sim")]
    pub(crate) const fn set_max_key_boxes(&mut self, boxes: usize) {
        self.max_key_boxes = boxes;
    }

    /// Returns the address of this device.
    pub const fn device(&self) -> DeviceAddress {
        self.device
    }

    /// Returns the number of messages that are neither stored nor refused yet.
    pub fn outbox_len(&self) -> usize {
        let queued = self.conversations.values().map(|c| c.queue.iter().filter(|e| !e.skip).count());
        queued.sum::<usize>() + self.unresolved.values().map(VecDeque::len).sum::<usize>()
    }

    /// Whether a session is open, the device has received all waiting rows, and no recovery runs.
    pub const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Online { .. }) && self.caught_up && matches!(self.recovery, Recovery::No)
    }

    /// Whether the server has reported, since this store was opened, how far this device acknowledged.
    pub const fn has_looked_back(&self) -> bool {
        self.looked_back
    }

    /// Whether received rows wait to be opened.
    pub fn has_rows(&self) -> bool {
        self.opening.is_some() || !self.rows.is_empty()
    }

    /// Whether each row is opened in a transaction of its own.
    pub const fn isolates_rows(&self) -> bool {
        self.isolate_rows
    }

    /// Whether the device has a connection with a session.
    pub const fn is_online(&self) -> bool {
        matches!(self.phase, Phase::Online { .. })
    }

    /// Returns the last device list of a user.
    pub fn list(&self, user: UserId) -> Option<&SignedDeviceList> {
        self.lists.get(&user)
    }

    /// Returns the store epoch that seqs belong to; `None` before the first session.
    pub const fn epoch(&self) -> Option<StoreEpoch> {
        self.epoch
    }

    /// Returns the latest rules of messages that the server of the last session accepts.
    pub const fn server_rules(&self) -> Rules {
        self.server_rules
    }

    /// Returns the user that a handle was resolved to.
    pub fn user(&self, handle: &Handle) -> Option<UserId> {
        self.handles.get(handle).copied()
    }

    /// Returns the seq up to which a conversation was received; 0 if nothing was.
    pub fn cursor(&self, conversation: ConversationId) -> u64 {
        self.conversations.get(&conversation).map_or(0, |c| c.cursor)
    }

    /// Returns the seq up to which the user has read a conversation, as far as this replica knows.
    pub fn read_position(&self, conversation: ConversationId) -> u64 {
        self.conversations.get(&conversation).map_or(0, |c| c.read)
    }

    /// Estimates the server's clock now, in milliseconds.
    fn server_ms(&self, now: Instant) -> u64 {
        let (time, read) = self.server_time;
        time.saturating_add(now.since(read).as_millis() as u64)
    }

    /// Returns the time when [`Input::Tick`] is due; `None` if stopped.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Stopped(_) => None,
            Phase::Idle(at, _) | Phase::Dialing(at, _) | Phase::Greeting(at, _) => Some(at),
            Phase::Online { heard, heartbeat, .. } => {
                let waits = self.conversations.values().filter_map(Conversation::deadline);
                let requests = self.requests.values().map(|(_, _, again)| *again);
                let fixed = [heartbeat, heard.after(2 * HEARTBEAT_MS + RETRY_MS)];
                let listless = self.listless.values().copied();
                let asks = self.mailbox.deadline();
                let fixed = fixed.into_iter().chain(self.slow_at());
                let due = self.catch_up_at.into_iter().chain(self.receipts_at);
                waits.chain(requests).chain(fixed).chain(listless).chain(asks).chain(due).min()
            }
        }
    }

    /// Processes one input and appends the resulting outputs, in order.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Connected => self.connected(now),
            Input::Disconnected => self.disconnected(now, 0, out),
            Input::Rejected(retry_after) => self.disconnected(now, retry_after, out),
            Input::Frame(frame) => self.frame(now, frame, out),
            Input::Send(draft) => {
                self.changes.push(Change::Queued(draft.clone()));
                let outside = self.acts_outside(&draft);
                self.enqueue(Entry::from_draft(draft));
                if let Some(group) = outside {
                    // The invitation may be newer than the roster that this device has.
                    self.roster_is_behind(group);
                }
            }
            Input::Read(read) => self.read(read, out),
            Input::Typing(conversation) => self.send_if_online(ClientFrame::Typing(conversation), out),
            Input::OpenConversation(conversation) => {
                self.open_conversation = conversation;
                self.send_if_online(ClientFrame::OpenConversation(conversation), out);
            }
            Input::RequestReceipts(conversation) => {
                if self.is_online() && !self.is_asked(&Purpose::Delivered(conversation)) {
                    let request = Request::Delivered(conversation);
                    self.request(now, request, Purpose::Delivered(conversation), out);
                }
            }
            Input::Watch(users) => {
                self.watched.clone_from(&users);
                self.send_if_online(ClientFrame::Watch(users), out);
            }
            Input::Request(token, request) => self.request(now, request, Purpose::Application(token), out),
            Input::Opened(opened) => self.opened(now, opened, out),
            Input::Compared(found) => self.compared(now, found, out),
            Input::Recalled(asker, conversation, id, content) => {
                self.recalled(now, asker, conversation, id, content);
            }
            Input::Sealed(sealed) => self.sealed(now, sealed, out),
            Input::Prekeys(upload) => {
                self.ratchets_moved = true;
                self.changes.push(Change::PrekeysMade);
                self.after_commit.push((Request::Upload(upload), Purpose::Upload));
            }
            Input::OwnList(list) => {
                self.lists.insert(list.list().user, list.clone());
                self.changes.push(Change::List(list, ListChange::Updated(Vec::new())));
                self.update_rosters(now);
            }
            Input::List(list) => self.take_list(now, list),
            Input::Flush => self.flushing = true,
            Input::Committed(ticket) => self.committed(now, ticket, out),
            Input::Tick => self.tick(now, out),
            Input::Restart => self.restart(now, out),
            Input::Reincarnate => {
                self.reincarnation_asked = true;
                self.changes.push(Change::Asked);
                self.restart(now, out);
            }
        }
        self.advance(now, out);
        self.report_caught_up(out);
    }

    /// Reports that the device has caught up, once all rows that waited are durable.
    fn report_caught_up(&mut self, out: &mut Vec<Output>) {
        let Some(mut ticket) = self.report_caught_up else { return };
        if ticket == u64::MAX && self.rows.is_empty() && self.opening.is_none() {
            ticket = self.tickets + u64::from(!self.changes.is_empty());
            self.report_caught_up = Some(ticket);
        }
        let is_durable =
            ticket <= self.tickets && self.committing.as_ref().is_none_or(|(open, _)| *open > ticket);
        if is_durable {
            self.report_caught_up = None;
            out.push(Output::Event(Ephemeral::CaughtUp));
        }
    }

    fn restart(&mut self, now: Instant, out: &mut Vec<Output>) {
        out.push(Output::Hangup);
        self.disconnected(now, 0, out);
        self.phase = Phase::Idle(now, 0);
    }

    /// Does all work that is possible now: rows first, then seals, then the commit.
    fn advance(&mut self, now: Instant, out: &mut Vec<Output>) {
        if let Phase::Idle(at, attempts) = self.phase
            && now >= at
        {
            self.phase = Phase::Dialing(now.after(RETRY_MS), attempts);
            out.push(Output::Dial);
        }
        if self.opening.is_some() || self.sealing.is_some() || self.recalling > 0 {
            return;
        }
        self.process_rows(now, out);
        if self.opening.is_some() {
            return;
        }
        self.recover();
        self.request_rosters(now, out);
        if self.flushing && self.committing.is_none() {
            if self.isolate_rows && !self.changes.is_empty() {
                // A draft is durable before it is sealed, so that it can be rejected alone.
                return self.commit(now, out);
            }
            self.seal_next(now, out);
            if self.sealing.is_none() {
                self.flushing = std::mem::take(&mut self.seals_after_commit);
                self.commit(now, out);
            }
        }
    }

    fn commit(&mut self, now: Instant, out: &mut Vec<Output>) {
        let acks = self.take_acks();
        if self.changes.is_empty() {
            self.send_acks(acks, out);
            self.send_ready(now, out);
            return;
        }
        for (conversation, sender) in std::mem::take(&mut self.chains_due) {
            let known = self.conversations.get(&conversation).and_then(|known| known.chains.get(&sender));
            self.changes.extend(known.map(|chain| Change::Chain(conversation, sender, *chain)));
        }
        if self.ratchets_moved {
            self.generation += 1;
            self.ratchets_moved = false;
        }
        self.tickets += 1;
        let changes = Changes { list: std::mem::take(&mut self.changes), generation: self.generation };
        self.changes.append(&mut self.deferred);
        out.push(Output::Commit(changes, self.tickets));
        if Mutant::AckBeforeCommit.is_active() {
            // Broken on purpose: acknowledges before the commit is durable.
            let early = std::mem::take(out);
            self.send_acks(acks.clone(), out);
            out.extend(early);
        }
        self.committing = Some((self.tickets, acks));
    }

    fn committed(&mut self, now: Instant, ticket: u64, out: &mut Vec<Output>) {
        let Some((waiting, acks)) = self.committing.take() else {
            return;
        };
        if waiting != ticket {
            self.committing = Some((waiting, acks));
            return;
        }
        self.send_acks(acks, out);
        for (request, purpose) in std::mem::take(&mut self.after_commit) {
            self.request(now, request, purpose, out);
        }
        self.send_ready(now, out);
    }

    fn take_acks(&mut self) -> Vec<AckUpTo> {
        if self.server_restore.is_suspected {
            // The server may have other rows at these seqs.
            self.acks_due.clear();
        }
        if self.server_restore.is_held {
            return Vec::new();
        }
        let due = std::mem::take(&mut self.acks_due).into_iter();
        due.map(|(conversation, seq)| AckUpTo { conversation, seq }).collect()
    }

    fn ack(&mut self, conversation: ConversationId, seq: Seq) {
        let due = self.acks_due.entry(conversation).or_default();
        *due = seq.max(*due);
    }

    fn send_acks(&mut self, acks: Vec<AckUpTo>, out: &mut Vec<Output>) {
        if let (Phase::Online { .. }, Some(store_epoch), false) = (self.phase, self.epoch, acks.is_empty()) {
            out.push(Output::Send(ClientFrame::Ack { acks, store_epoch, generation: self.generation }));
        }
    }

    fn send_if_online(&self, frame: ClientFrame, out: &mut Vec<Output>) {
        if let Phase::Online { .. } = self.phase {
            out.push(Output::Send(frame));
        }
    }

    fn request(&mut self, now: Instant, request: Request, purpose: Purpose, out: &mut Vec<Output>) {
        if let Phase::Online { .. } = self.phase {
            self.last_request += 1;
            if let Purpose::Lists(users) = &purpose {
                for user in users {
                    self.looking_up.entry(*user).or_insert(self.rows_in);
                }
            }
            let retry_at = now.after(retry_ms(self.unanswered_bytes() + request.size()));
            self.requests.insert(self.last_request, (purpose, request.clone(), retry_at));
            out.push(Output::Send(ClientFrame::Request(self.last_request, request)));
        } else if let Purpose::Application(token) = purpose {
            out.push(Output::Answer(token, Err(crate::model::envelope::Refusal::Retry(0))));
        }
    }

    /// Returns the approximate size of the frames that are sent on this connection and not answered, in bytes.
    fn unanswered_bytes(&self) -> usize {
        let requests = self.requests.values().map(|(_, request, _)| request.size());
        let sent = self.conversations.values().flat_map(|known| known.queue.iter().take(known.sent));
        requests.chain(sent.map(Entry::size)).sum()
    }

    /// Schedules a request for a later time. It is dropped if the connection ends first.
    fn request_at(&mut self, at: Instant, request: Request, purpose: Purpose) {
        self.last_request += 1;
        self.requests.insert(self.last_request, (purpose, request, at));
    }

    fn is_asked(&self, purpose: &Purpose) -> bool {
        self.requests.values().any(|(known, ..)| known == purpose)
            || self.after_commit.iter().any(|(_, known)| known == purpose)
    }
}
