//! The store of messages, inboxes and conversation states.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;

use super::LogPosition;
use crate::model::envelope::{AckUpTo, Durability, InboxCursor, InboxPosition, InboxRow, SendPosition};
use crate::model::error::Result;
use crate::model::id::{
    ClientSeq, ConversationId, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};

/// What was committed is there, once, in order, for every reader.
///
/// # Contract
/// Each sentence names its case of the conformance suite.
/// - A commit is durable when its outcome is `Ok`: whoever decides next decides on it, and the generations of
///   its senders count (`a_durable_commit_counts`). What it says may be told and acknowledged
///   (`a_durable_row_may_be_acknowledged`).
/// - Every reader sees it when the outcome is [`CommitOutcome::Visible`], or once it is visible (`commit_is_visible`).
/// - Commits are unconditional and idempotent: the same commit again changes nothing (`commit_twice`).
/// - Rows above the state's head do not exist for any decision ([`find`](Self::find) included) but may be
///   there (`rows_above_the_head_are_not_found`): a store whose commits are not atomic writes the state
///   last, or first with what it takes to finish the commit (see [`state`](Self::state)).
/// - An inbox row is removed by that device's ack, or by retention, and by nothing else
///   (`rows_wait_for_their_own_ack`).
/// - Retention leaves an explicit gap: one empty row at the last place removed, which reaches back to the
///   first and stays until the device acknowledges it (`expired_rows_leave_a_gap`).
/// - An inbox is read in its drain order, [`InboxPosition`] (`inbox_is_in_drain_order`). A page that does not
///   [reach its limit](PageLimit::is_reached) is the last, and the device has caught up (`inbox_pages`).
/// - Acks are cumulative and never go back (`acks_never_go_back`); above the tail they are refused and
///   change nothing (`ack_above_the_tail`).
/// - The generation of a device never goes back (`generation_never_goes_back`).
/// - In a store that several processes share, what an owner writes late that is behind changes nothing
///   (`an_older_state_does_not_come_back`, `an_owner_that_is_behind_changes_nothing`): of two states the one
///   with the later `head.time_us` stays.
///
/// # Wrappers
/// There are no default methods: a wrapper that forwards everything keeps compiling only if it does.
#[async_trait]
pub trait MessageStore: fmt::Debug + Send + Sync + 'static {
    /// Which life of the data set this is, and what a commit survives.
    fn identity(&self) -> StoreIdentity;

    /// The state of a conversation; `None` before its first commit.
    ///
    /// Whoever is to decide on it names the record that comes `next`. If the state is not
    /// [visible before](Head::is_settled_before) that, its commit may be half done, by an owner that fell or
    /// had no answer: a store whose commits are not atomic finishes it before it gives the state.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read or finished now, `Corrupt` if it does not read back.
    async fn state(
        &self,
        conversation: ConversationId,
        next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>>;

    /// The seq at which this sender's message with this id was committed.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>>;

    /// Makes everything of each commit true, together or not at all for readers of the state, and gives
    /// an outcome for each, in order. What is only [`CommitOutcome::Durable`] is to be [visible](Self::make_visible)
    /// before the caller goes on with that conversation, or says that its records need not come again.
    ///
    /// # Errors
    /// An outcome of `Unavailable` means *unknown*: the caller lets the records come again, and so repeats
    /// the commit or finds it, before it goes on with that conversation.
    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>>;

    /// Lets every reader see what these commits hold, which are safe.
    ///
    /// # Errors
    /// `Unavailable`: readers may see a part. The caller lets the records come again; whoever is given them is
    /// given the [state](Self::state) of a commit that is finished.
    async fn make_visible(&self, commits: Vec<Commit>) -> Result<()>;

    /// Removes what a device says is durably its own, and raises its generation.
    ///
    /// # Errors
    /// `Invalid` if an ack is above the tail; none of them is applied then. `Unavailable` as above.
    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()>;

    /// The rows of a device's inbox after a place, oldest first. Fewer than the limit allows only if there
    /// are no more.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>>;

    /// The rows of a conversation below a seq (0: from the newest), newest first.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>>;

    /// The highest generation of a device's local store that was seen; 0 before any.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn generation(&self, device: InstallationId) -> Result<u64>;

    /// What waits for a device, and where it stands in conversations.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord>;

    /// Removes at most `limit` inbox rows that were committed before a time, in microseconds; gives how many.
    /// Fewer than the limit means that there are no more.
    ///
    /// # Errors
    /// `Unavailable`: some may be removed; call it again.
    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize>;
}

/// How far a commit is that cannot be lost any more.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum CommitOutcome {
    /// Every reader sees it.
    Visible,
    /// It is durable and decided, and readers may not see it, or only a part: what is to be
    /// [visible](MessageStore::make_visible).
    Durable(Box<Commit>),
}

/// Which life of a data set, and what a commit to it survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct StoreIdentity {
    /// Random, made with the data set.
    pub epoch: StoreEpoch,
    /// What a commit survives.
    pub durability: Durability,
}

/// How much of a page is wanted; at least one row is given if there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct PageLimit {
    /// At most this many rows.
    pub rows: usize,
    /// Stop once the rows have this many bytes, by [`InboxRow::size`].
    pub bytes: usize,
}

impl PageLimit {
    /// The largest page there is.
    pub const MAX: Self =
        Self { rows: crate::model::limits::PAGE_ROWS, bytes: crate::model::limits::PAGE_BYTES };

    /// The largest page of at most `rows` rows.
    pub const fn rows(rows: usize) -> Self {
        Self { rows, bytes: crate::model::limits::PAGE_BYTES }
    }

    /// Whether a page has as much as is allowed. After one that has not, there was no more.
    pub fn is_reached(self, page: &[InboxRow]) -> bool {
        page.len() >= self.rows || page.iter().map(InboxRow::size).sum::<usize>() >= self.bytes
    }
}

/// Which cursors of a device are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum CursorFilter {
    /// None.
    No,
    /// That of one conversation.
    Of(ConversationId),
    /// All.
    All,
}

/// What waits for a device, and where it stands in conversations.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct DeviceRecord {
    /// Rows that wait for it.
    pub waiting_rows: u64,
    /// Their bytes, about.
    pub waiting_bytes: u64,
    /// The cursors that were wanted.
    pub cursors: Vec<(ConversationId, InboxCursor)>,
}

/// Everything that becomes true together for one conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Commit {
    /// The conversation.
    pub conversation: ConversationId,
    /// New rows of the log, in order; each also makes its (sender, id) findable. Not kept for mailboxes.
    pub history: Vec<InboxRow>,
    /// Who sent each row of `history`, with the id to find it by.
    pub ids: Vec<(InstallationId, MessageId, Seq)>,
    /// New inbox rows, in order.
    pub inbox: Vec<(InstallationId, InboxRow)>,
    /// Generations of the senders' local stores.
    pub generations: Vec<(InstallationId, u64)>,
    /// The state after all that.
    pub state: ConversationState,
}

/// The state of a conversation: enough to go on without the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct ConversationState {
    /// Where the conversation stands.
    pub head: Head,
    /// Its members with the device lists seen last.
    pub members: Vec<Member>,
    /// Where each sender stands.
    pub senders: BTreeMap<InstallationId, SenderState>,
}

/// Where a conversation stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Head {
    /// The last seq.
    pub seq: Seq,
    /// The time of the last commit, strictly rising.
    pub time_us: u64,
    /// The last record applied.
    pub position: LogPosition,
    /// Counts membership changes of a group.
    pub group_epoch: u64,
}

impl Head {
    /// Whether this holds what became of a record. Offsets of another log say nothing.
    pub const fn has_applied(&self, at: LogPosition) -> bool {
        at.generation == self.position.generation && at.offset <= self.position.offset
    }

    /// Whether the commit that made this was whole before somebody was given the record at this position. An
    /// owner goes on to a record, and says that it need not come again, once everything before is seen.
    pub const fn is_settled_before(&self, at: LogPosition) -> bool {
        at.generation == self.position.generation && at.offset > self.position.offset
    }
}

/// A member and the devices of the list seen last.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Member {
    /// The user.
    pub user: UserId,
    /// The highest version of the user's device list that a message named.
    pub list_version: u64,
    /// The installations of that list.
    pub installations: Vec<InstallationId>,
}

/// Where a sender stands in a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct SenderState {
    /// Its highest incarnation; lower ones are closed.
    pub incarnation: Incarnation,
    /// Its last number in that incarnation.
    pub client_seq: ClientSeq,
    /// The message with that number.
    pub prev: MessageId,
}

impl SenderState {
    /// Where a sender stands once this number is used up.
    pub const fn after(number: &SendPosition) -> Self {
        Self { incarnation: number.incarnation, client_seq: number.client_seq, prev: number.message_id }
    }
}
