//! Store of messages, inboxes and conversation states.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use async_trait::async_trait;

use super::LogPosition;
use crate::model::envelope::{
    AckUpTo, Durability, EmptyReason, InboxCursor, InboxPosition, InboxRow, SendPosition,
};
use crate::model::error::Result;
use crate::model::id::{
    ClientSeq, ConversationId, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};
use crate::model::roster::Roster;
use crate::model::rules::Rules;

/// Stores commits so that every reader finds each committed row once and in order.
///
/// # Contract
/// Each sentence names its case of the conformance suite.
/// - A commit is durable when its outcome is `Ok`: every later decision must observe it, and the generations
///   of its senders take effect (`a_durable_commit_counts`). A store on disk keeps it, and its identity, when the
///   process is killed or stopped (`acknowledged_commits_survive_sigkill`, `reopened_store_is_the_same`). Its rows may
///   be delivered and acknowledged (`a_durable_row_may_be_acknowledged`).
/// - A commit is visible to every reader when its outcome is [`CommitOutcome::Visible`], or after
///   [`make_visible`](Self::make_visible) (`commit_is_visible`). A reader that sees a row of the history of a feed also
///   sees the inbox rows with its seq.
/// - Commits are unconditional and idempotent: repeating a commit changes nothing (`commit_twice`).
/// - One call may hold commits of many conversations (`commits_of_many_conversations`). It names each conversation
///   at most once.
/// - Calls run at the same time: commits of different conversations, acks and reads, also of one device
///   (`concurrent_commits_lose_nothing`). In one process, the next commit of a conversation starts after the answer
///   to the last one.
/// - Rows above the state's head may be stored, but no decision may observe them, also not through
///   [`find`](Self::find) (`rows_above_the_head_are_not_found`). A store whose commits are not atomic writes
///   the state last, or writes it first together with the data needed to finish the commit (see
///   [`state`](Self::state)).
/// - An inbox row is removed only by an ack of its own device or by retention
///   (`rows_wait_for_their_own_ack`). A repeated commit does not restore it (`an_acked_row_does_not_come_back`).
/// - Retention leaves an explicit gap: one empty row at the last removed position, which reaches back to the
///   first and stays until the device acknowledges it (`expired_rows_leave_a_gap`).
/// - An inbox is read in its drain order, [`InboxPosition`] (`inbox_is_in_drain_order`). A page that does not
///   [reach its limit](PageLimit::is_reached) is the last one: the device has caught up (`inbox_pages`).
/// - Commit times of different conversations have no order. A row may appear at a position below one that was
///   read or acknowledged, and the next read from [`InboxPosition::START`] returns it
///   (`a_row_may_appear_below_a_read_position`). In one conversation, rows appear in the order of their seqs.
/// - Acks are cumulative and never go back (`acks_never_go_back`). Acks above the tail are refused
///   (`ack_above_the_tail`). A refused call changes nothing: no cursor, no row and not the generation
///   (`a_rejected_ack_changes_nothing`).
/// - A cursor begins at the first row of its device, so a device that joins late has nothing to acknowledge before
///   it (`a_device_that_joins_late_is_not_behind`).
/// - A device reads a feed from the seq after which it joined, until it leaves (`feeds_of_a_device_read_back`). It may
///   acknowledge any row of a feed up to the head: the rows are not in its inbox. Its tail is then at least the
///   acknowledged seq (`a_feed_is_acknowledged_above_the_tail`).
/// - The generation of a device never goes back (`generation_never_goes_back`).
/// - History is read newest first, in pages (`history_is_newest_first_and_pages`), and oldest first
///   (`history_after_is_oldest_first`). It holds no boxes. Mailboxes
///   have no history: their messages are in inboxes only (`mailboxes_have_no_history`).
/// - A state is read in parts: its head, its roster, and only those senders that the caller names
///   (`state_has_the_named_senders`). A commit holds only the parts that it changes, and the other parts stay
///   (`unchanged_parts_of_a_state_stay`). The parts of one read belong to one commit.
/// - Every value reads back as it was written: states (`state_reads_back`), rows of every kind
///   (`every_kind_of_row_reads_back`) and of the largest size (`large_rows_read_back`), rosters and messages of groups
///   (`groups_read_back`). The encoding is free;
///   [`codec`](crate::codec) has one. A stored value that cannot be decoded is an error of kind `Corrupt`.
/// - Numbers are 0 to 2^53 - 1 (`numbers_have_53_bits`): generations, which a client chooses, seqs, and times in
///   microseconds since 1970.
/// - [`device`](Self::device) counts the rows that wait (`waiting_is_counted`).
/// - A device that was erased reads as one without a commit, and nothing else changes (`an_erased_device_is_empty`).
/// - Retention of history erases the content of old messages, oldest first in a conversation, and nothing else: the rows
///   stay as empty ones with their seqs and times, and so do the ids (`old_history_is_erased`).
/// - A conversation that a user cleared stays as it is for the others. Once every member has cleared it up to a seq, the
///   content up to there is erased (`history_is_erased_once_every_member_cleared_it`).
/// - A commit erases the content of the messages that it deletes, and of no others, with the reason `Deleted`
///   (`a_deleted_message_is_erased`). [`expire_messages`](Self::expire_messages) erases
///   the messages that are due, with the reason `Disappeared`
///   (`a_message_disappears_when_its_time_is_over`). Both remove the boxes that wait for the devices of the members.
/// - Erased content does not come back by a repeated commit (`erased_content_does_not_come_back`). An inbox row of an
///   erased message is read as an empty one (`a_waiting_row_of_an_erased_message_is_empty`).
/// - A conversation or device without a commit reads as empty (`an_unknown_conversation_is_empty`).
/// - An error `Unavailable`, and a call whose future was dropped, mean *unknown*: the call was applied, or not, or in
///   part, and readers see a commit whole or not at all. The caller repeats the same commits, or reads the states and
///   commits the missing ones. The result equals one commit (`model_based_with_faults`).
/// - After any history of calls, every read equals that of [`MemoryStore`](crate::memory::MemoryStore)
///   (`model_based`).
/// - In a store that several processes share, a late write of an owner that is behind changes nothing
///   (`an_older_state_does_not_come_back`, `an_owner_that_is_behind_changes_nothing`): of two states, the one
///   with the later `head.time_us` stays.
///
/// # Calls
/// Orders of magnitude, with the engine's caches:
///
/// | method | called |
/// |---|---|
/// | `identity` | per message: returns a constant |
/// | `commit` | once per batch of a shard: up to 512 records or 4 MiB |
/// | `make_visible` | once per batch that has a `Durable` commit |
/// | `state` with `next` | once per conversation and sender while a shard remembers it: at most 10,000 conversations a shard |
/// | `state` without | per history page, delivery query and skip; per message to a user who never wrote back |
/// | `find` | per message that may be a repeat: not for new messages |
/// | `ack` | once a second and session while it acknowledges or sends, one at a time |
/// | `inbox` | per page when a session begins, and after it lagged |
/// | `history` | per page that a client requests |
/// | `history_after` | per page of an inbox, and feed of the device |
/// | `feeds` | per page of an inbox |
/// | `generation` | once per session |
/// | `device` | per recipient device, once in a minute or 20 messages, and per message to an inbox that is almost full; per request of cursors |
/// | `erase` | once per unlinked device, and per device of a deleted account |
/// | `expire`, `expire_history` | once an hour in each process that runs shards, until a piece of 1,000 is not full |
/// | `expire_messages` | once a minute in each process that runs shards, until a piece of 1,000 is not full |
/// | `clear_history` | per request of a user, and per conversation of a deleted account |
/// | `cleared` | per history page |
///
/// # Wrappers
/// The trait has no default methods, so the compiler ensures that a wrapper forwards every method.
#[async_trait]
pub trait MessageStore: fmt::Debug + Send + Sync + 'static {
    /// Returns the store epoch of the data set and the durability of its commits.
    fn identity(&self) -> StoreIdentity;

    /// Returns the state of a conversation, with the senders that the filter selects; `None` before its first
    /// commit.
    ///
    /// A caller that is about to decide on the state passes the position of the `next` record. If the head is
    /// not [settled before](Head::is_settled_before) that record, the last commit may be half written: its
    /// owner crashed or received no answer. A store whose commits are not atomic then finishes the commit
    /// before it returns the state.
    ///
    /// # Errors
    /// `Unavailable` if the state cannot be read or the commit cannot be finished, `Corrupt` if it cannot be
    /// decoded.
    async fn state(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
        next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>>;

    /// Returns the seq at which this sender's message with this id was committed.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>>;

    /// Applies each commit. Readers of the state see a commit whole or not at all. Returns one outcome per
    /// commit, in order. The caller must [make a `Durable` commit visible](Self::make_visible) before it
    /// continues with that conversation or commits the log position of its records.
    ///
    /// # Errors
    /// An outcome of `Unavailable` means *unknown*: before the caller continues with that conversation, it
    /// takes the records again and so repeats the commit or finds it.
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>>;

    /// Makes durable commits visible to every reader.
    ///
    /// # Errors
    /// `Unavailable`: readers may see a part. The caller rewinds the router, and [`state`](Self::state)
    /// finishes the commit before the records are decided again.
    async fn make_visible(&self, commits: Vec<Commit>) -> Result<()>;

    /// Removes the rows that a device acknowledges, and raises its generation.
    ///
    /// # Errors
    /// `Invalid` if an ack is above the tail; then none of the acks is applied. `Unavailable`: the acks may
    /// have been applied.
    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()>;

    /// Returns the rows of a device's inbox after a position, oldest first. A page that does not reach its
    /// limit is the last one.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>>;

    /// Returns the rows of a conversation below a seq (0: from the newest), newest first.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>>;

    /// Returns the rows of a conversation above a seq, oldest first.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>>;

    /// Returns the feeds of a device: those that it reads, and those that it read.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>>;

    /// Returns the highest generation of a device's local store that was seen; 0 if none was.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn generation(&self, device: InstallationId) -> Result<u64>;

    /// Returns the size of a device's inbox and the wanted cursors.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord>;

    /// Removes at most `limit` inbox rows that were committed before a time in microseconds. Returns the
    /// number of rows removed; if it is below `limit`, no more such rows exist.
    ///
    /// # Errors
    /// `Unavailable`: some rows may be removed. Call it again.
    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize>;

    /// Erases the content of at most `limit` messages of history that were committed before a time in microseconds: each
    /// becomes an [empty row](InboxRow::erase) with the reason `Expired`. Returns the number of messages erased; if it
    /// is below `limit`, no more such messages exist.
    ///
    /// The caller expires the rows of inboxes before that time first, so that no device waits for an erased message.
    ///
    /// # Errors
    /// `Unavailable`: some content may be erased. Call it again.
    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize>;

    /// Erases the content of the messages that are due at `now_us`
    /// ([`disappears_at_us`](InboxRow::disappears_at_us)), with the reason `Disappeared`. Returns the number of messages
    /// erased, at most `limit`. A lower number means that no such message is left.
    ///
    /// # Errors
    /// As [`state`](Self::state): a part may be erased. Call it again.
    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize>;

    /// Records that a user cleared a conversation up to a seq; a seq above the head counts as the head. The record never goes
    /// back. Erases the content up to the seq that every member has cleared, with the reason `Cleared`.
    ///
    /// # Errors
    /// `Unavailable`: it may be recorded, and a part of the content erased. Call it again.
    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()>;

    /// Returns the seq up to which a user has cleared a conversation; 0 if it has not.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq>;

    /// Erases the inbox, the cursors and the generation of a device. History and states stay. The engine calls it when a
    /// device is unlinked and when an account is deleted.
    ///
    /// # Errors
    /// `Unavailable`: a part may be erased. Call it again.
    async fn erase(&self, device: InstallationId) -> Result<()>;
}

/// Progress of a commit that can no longer be lost.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum CommitOutcome {
    /// Visible to every reader.
    Visible,
    /// Durable: later decisions observe it, but readers may see nothing or only a part of it until it is made
    /// [visible](MessageStore::make_visible).
    Durable(Box<Commit>),
}

/// The epoch of a data set and the durability of its commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct StoreIdentity {
    /// Random, created with the data set.
    pub epoch: StoreEpoch,
    pub durability: Durability,
}

/// Maximum size of a page. A page has at least one row if a row exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct PageLimit {
    /// Maximum number of rows.
    pub rows: usize,
    /// The page ends once its rows reach this many bytes, by [`InboxRow::size`].
    pub bytes: usize,
}

impl PageLimit {
    /// The largest page.
    pub const MAX: Self =
        Self { rows: crate::model::limits::PAGE_ROWS, bytes: crate::model::limits::PAGE_BYTES };

    /// Returns the limit of the largest page with at most `rows` rows.
    pub const fn rows(rows: usize) -> Self {
        Self { rows, bytes: crate::model::limits::PAGE_BYTES }
    }

    /// Returns whether a page is full. If it is not, no more rows existed.
    pub fn is_reached(self, page: &[InboxRow]) -> bool {
        page.len() >= self.rows || page.iter().map(InboxRow::size).sum::<usize>() >= self.bytes
    }
}

/// A page of an inbox.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct InboxPage {
    pub rows: Vec<InboxRow>,
    /// More rows may follow.
    pub has_more: bool,
}

/// Selects the cursors of a device to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum CursorFilter {
    /// No cursor.
    No,
    /// The cursor of one conversation.
    Of(ConversationId),
    /// All cursors.
    All,
}

/// Selects the senders of a state to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum SenderFilter<'a> {
    /// No sender: the head and the roster only.
    No,
    /// These senders, as far as they exist.
    Of(&'a [InstallationId]),
    /// All senders.
    All,
}

impl SenderFilter<'_> {
    /// Returns whether the filter selects a sender.
    pub fn selects(self, sender: InstallationId) -> bool {
        match self {
            Self::No => false,
            Self::Of(senders) => senders.contains(&sender),
            Self::All => true,
        }
    }
}

/// The inbox size of a device, and its cursors.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct DeviceRecord {
    /// Number of unacknowledged rows in the inbox.
    pub waiting_rows: u64,
    /// Approximate size of those rows in bytes.
    pub waiting_bytes: u64,
    /// The cursors that the filter selects.
    pub cursors: Vec<(ConversationId, InboxCursor)>,
}

/// The writes of one conversation that take effect together.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Commit {
    pub conversation: ConversationId,
    /// New history rows, in order. Each also makes its (sender, id) findable. Not stored for mailboxes.
    pub history: Vec<InboxRow>,
    /// Sender, message id and seq of each row of `history`.
    pub ids: Vec<(InstallationId, MessageId, Seq)>,
    /// New inbox rows, in order.
    pub inbox: Vec<(InstallationId, InboxRow)>,
    pub generations: Vec<(InstallationId, u64)>,
    /// The devices that begin or stop to read the conversation as a feed.
    pub feeds: Vec<FeedChange>,
    /// Messages that this commit deletes for everyone: they lose their content.
    pub deleted: Vec<Seq>,
    /// The parts of the state that change.
    pub state: StateChange,
}

impl Commit {
    /// Returns a commit that only changes the state.
    pub const fn of(conversation: ConversationId, state: StateChange) -> Self {
        Self {
            conversation,
            history: Vec::new(),
            ids: Vec::new(),
            inbox: Vec::new(),
            generations: Vec::new(),
            feeds: Vec::new(),
            deleted: Vec::new(),
            state,
        }
    }

    /// Adds the next commit of the same conversation. A message of this commit that the next one deletes is never stored
    /// with its content.
    pub fn merge(&mut self, next: Self) {
        let rows = self.history.iter_mut().chain(self.inbox.iter_mut().map(|(_, row)| row));
        for row in rows.filter(|row| next.deleted.contains(&row.seq)) {
            row.erase(EmptyReason::Deleted);
        }
        self.history.extend(next.history);
        self.ids.extend(next.ids);
        self.inbox.extend(next.inbox);
        self.generations.extend(next.generations);
        if !next.feeds.is_empty() {
            // Of two changes of a device at the same seq the later one counts.
            let later: HashSet<_> = next.feeds.iter().map(|change| (change.device, change.seq)).collect();
            self.feeds.retain(|change| !later.contains(&(change.device, change.seq)));
        }
        self.feeds.extend(next.feeds);
        self.deleted.extend(next.deleted);
        self.state.merge(next.state);
    }
}

/// A device begins to read a feed after a seq, or stops after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct FeedChange {
    pub device: InstallationId,
    pub seq: Seq,
    /// The device begins to read.
    pub joins: bool,
}

/// A feed that a device reads, or read before.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Feed {
    pub conversation: ConversationId,
    /// The highest seq that the device acknowledged.
    pub acked: Seq,
    /// The seqs after which the device began (`true`) or stopped to read, ascending.
    pub changes: Vec<(Seq, bool)>,
}

impl Feed {
    /// Returns whether the device reads the row at a seq.
    ///
    /// ```
    /// use chat_core::{ConversationId, backend::Feed};
    /// let conversation = ConversationId::from_bytes([0x14; 17]);
    /// let feed = Feed { conversation, acked: 2, changes: vec![(3, true), (7, false)] };
    /// assert!(!feed.reads(3) && feed.reads(4) && feed.reads(7) && !feed.reads(8));
    /// ```
    pub fn reads(&self, seq: Seq) -> bool {
        self.changes.iter().rev().find(|(changed, _)| *changed < seq).is_some_and(|(_, joins)| *joins)
    }

    /// Returns whether the device reads the newest rows.
    pub fn is_read(&self) -> bool {
        self.changes.last().is_some_and(|(_, joins)| *joins)
    }

    /// Returns the first seq above another one that the device reads; `None` if it has left.
    pub fn next(&self, after: Seq) -> Option<Seq> {
        if self.reads(after + 1) {
            return Some(after + 1);
        }
        self.changes.iter().find(|(changed, joins)| *joins && *changed > after).map(|(joined, _)| joined + 1)
    }
}

/// The state of a conversation, or the part of it that was read: enough to decide on the next record of these
/// senders without reading the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct ConversationState {
    pub head: Head,
    /// The members, each with the device list that a message last named.
    pub roster: Roster,
    pub senders: BTreeMap<InstallationId, SenderState>,
}

impl ConversationState {
    /// Changes the state to that after a commit.
    pub fn apply(&mut self, change: &StateChange) {
        self.head = change.head;
        if let Some(roster) = &change.roster {
            self.roster.clone_from(roster);
        }
        self.senders.extend(&change.senders);
    }

    /// Returns the state with only the senders that a filter selects.
    #[must_use]
    pub fn with_senders(mut self, filter: SenderFilter<'_>) -> Self {
        self.senders.retain(|sender, _| filter.selects(*sender));
        self
    }
}

/// The parts of a conversation's state that a commit changes. The others stay as they are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct StateChange {
    pub head: Head,
    /// The whole roster, if it changes.
    pub roster: Option<Roster>,
    /// The senders whose position changes.
    pub senders: BTreeMap<InstallationId, SenderState>,
}

impl StateChange {
    /// Adds a later change.
    pub fn merge(&mut self, later: Self) {
        self.head = later.head;
        self.roster = later.roster.or(self.roster.take());
        self.senders.extend(later.senders);
    }
}

impl From<ConversationState> for StateChange {
    /// Returns the change that writes all parts of a state.
    fn from(state: ConversationState) -> Self {
        Self { head: state.head, roster: Some(state.roster), senders: state.senders }
    }
}

/// The last commit of a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Head {
    /// The highest committed seq.
    pub seq: Seq,
    /// The time of the last commit in microseconds, strictly rising.
    pub time_us: u64,
    /// Log position of the last record applied.
    pub position: LogPosition,
    /// The rules that decided the last record. They never go back.
    pub rules: Rules,
    /// The group is a *feed*: its messages are in history only, and each device reads them from there. It stays one.
    pub is_feed: bool,
}

impl Head {
    /// Returns whether this head includes the result of a record. Offsets of another log do not compare.
    pub const fn has_applied(&self, at: LogPosition) -> bool {
        at.generation == self.position.generation && at.offset <= self.position.offset
    }

    /// Returns whether the commit that wrote this head was complete before an owner received the record at
    /// `at`. An owner processes a record, and commits a log position, only once everything before is visible.
    pub const fn is_settled_before(&self, at: LogPosition) -> bool {
        at.generation == self.position.generation && at.offset > self.position.offset
    }
}

/// The position of a sender in a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct SenderState {
    /// The sender's highest incarnation; lower ones are closed.
    pub incarnation: Incarnation,
    /// The last `client_seq` used in that incarnation.
    pub client_seq: ClientSeq,
    /// The id of the message with that `client_seq`.
    pub prev: MessageId,
}

impl SenderState {
    /// Returns the position of a sender after it used `number`.
    pub const fn after(number: &SendPosition) -> Self {
        Self { incarnation: number.incarnation, client_seq: number.client_seq, prev: number.message_id }
    }
}
