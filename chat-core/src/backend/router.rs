//! Transport of commands to the shard of a conversation.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Route, Rules};
use crate::model::envelope::{Publish, Refusal, SendPosition};
use crate::model::error::Result;
use crate::model::group::LinkProof;
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, MessageId, UserId};
use crate::model::roster::RecipientDevices;

/// Carries commands to the shard of a conversation: FIFO per conversation, redelivered until the shard
/// commits, with one intended owner per shard.
///
/// # Contract
/// - Records of one conversation arrive in the order in which their appends were first polled, even if
///   several of them wait for the log at once (`fifo_per_conversation`).
/// - A conversation is always on the same shard (`one_shard_per_conversation`).
/// - Taken but uncommitted records are delivered again after [`rewind`](Self::rewind)
///   (`redelivers_until_commit`).
/// - A full queue refuses new commands instead of growing (`a_full_queue_refuses`).
/// - The records that one owner takes within one ownership epoch have no gaps
///   (`an_ownership_epoch_has_no_gaps`).
/// - A closed router returns no more records, and pending calls of [`next`](Self::next) fail with `Closed`
///   (`a_closed_router_says_so`).
#[async_trait]
pub trait Router: fmt::Debug + Send + Sync + 'static {
    /// Returns the number of shards.
    fn shards(&self) -> usize;

    /// Appends a command to the log of its conversation's shard.
    ///
    /// # Errors
    /// `Throttled` if the shard's queue is full, `Unavailable` if the command may or may not have been
    /// appended.
    async fn append(&self, command: Command) -> Result<()>;

    /// Takes the next batch of a shard; waits until there is at least one record. Cancel safe.
    ///
    /// # Errors
    /// `Closed` once the router was [closed](Self::close).
    async fn next(&self, shard: usize) -> Result<RecordBatch>;

    /// Marks all records up to a position as applied.
    ///
    /// # Errors
    /// `Unavailable`: the records may be delivered again.
    async fn commit(&self, shard: usize, position: LogPosition) -> Result<()>;

    /// Makes all uncommitted records of a shard available again, as for a new owner.
    ///
    /// # Errors
    /// `Unavailable` if the rewind fails.
    async fn rewind(&self, shard: usize) -> Result<()>;

    /// Releases this process's shards. Other processes that read the same log own them when this returns, or
    /// soon after. Taken records may still be committed. Appending is not affected.
    async fn close(&self);
}

/// A batch of records taken from a shard's log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct RecordBatch {
    /// Ownership epoch: changes whenever another process may have owned the shard in between. State cached
    /// for the shard's conversations is valid only within one ownership epoch.
    pub ownership_epoch: u64,
    pub records: Vec<Record>,
}

/// A position in a shard's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct LogPosition {
    /// Number of the log. Offsets of different logs do not compare.
    pub generation: u64,
    /// Rises within one log.
    pub offset: u64,
}

/// An entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Record {
    pub position: LogPosition,
    /// Time of the append in microseconds, by the log's clock.
    pub appended_us: u64,
    pub command: Arc<Command>,
}

/// A request of a gateway to the shard of a conversation. The gateway has already decided everything that
/// depends on a clock, a cache or another table and includes the result, so that applying a command is a
/// function of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Command {
    /// The authenticated sender.
    pub sender: DeviceAddress,
    pub operation: Operation,
    /// Every user of the audience with the devices of the named list version.
    pub recipients: Vec<RecipientDevices>,
    /// Devices with a full inbox. The operation has no box for them, and they receive empty rows.
    pub full: Vec<InstallationId>,
    /// Users that have blocked the sender. The operation has no box for their devices, which receive empty rows.
    pub withheld: Vec<UserId>,
    /// Users that the operation adds to a group although its sender is no contact of theirs.
    pub strangers: Vec<UserId>,
    /// Devices that read a channel from which the operation removes their users, and that are not in its roster: they stop to
    /// read.
    pub removed: Vec<DeviceAddress>,
    /// The gateway's reason to refuse the message; it applies only if the message is not stored already.
    pub verdict: Option<Refusal>,
    /// The connection that waits for the answer. It does not affect the decision.
    pub reply: Option<Route>,
    /// Number of devices above which a group becomes a [feed](crate::backend::Head::is_feed); 0: it does not.
    pub feed_devices: u32,
    /// The rules to decide by. The rules of a conversation never go back, so the later of these and its own apply.
    pub rules: Rules,
}

impl Command {
    /// Returns a command that excludes no device and has no verdict, for which no connection waits.
    pub const fn new(
        sender: DeviceAddress,
        operation: Operation,
        recipients: Vec<RecipientDevices>,
        rules: Rules,
    ) -> Self {
        Self {
            sender,
            operation,
            recipients,
            full: Vec::new(),
            withheld: Vec::new(),
            strangers: Vec::new(),
            removed: Vec::new(),
            verdict: None,
            reply: None,
            feed_devices: 0,
            rules,
        }
    }

    /// Returns the conversation of the command.
    pub const fn conversation(&self) -> ConversationId {
        match &self.operation {
            Operation::Publish(publish) => publish.number.conversation,
            Operation::Skip(number) => number.conversation,
            Operation::Subscribe(subscription) => subscription.channel,
        }
    }

    /// Returns the command's position in its sender's order; `None` for a subscription, which uses up no number.
    pub const fn number(&self) -> Option<&SendPosition> {
        match &self.operation {
            Operation::Publish(publish) => Some(&publish.number),
            Operation::Skip(number) => Some(number),
            Operation::Subscribe(_) => None,
        }
    }

    /// Returns the id by which the store knows the operation again. A skip has an id of its own: a message that its device
    /// gave up is not stored, and a copy of the device's store that still sends it gets no answer that it is. A subscription
    /// has none.
    pub(crate) fn dedupe_id(&self) -> Option<MessageId> {
        match &self.operation {
            Operation::Publish(publish) => Some(publish.number.message_id),
            Operation::Skip(number) => Some(number.message_id.of_skip()),
            Operation::Subscribe(_) => None,
        }
    }
}

/// The operation of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Store this message.
    Publish(Publish),
    /// Use up this send position without a message.
    Skip(SendPosition),
    /// Let the sending device read a channel, or stop it. It adds no row to the history.
    Subscribe(Subscription),
}

/// A device begins or stops to read a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Subscription {
    pub channel: ConversationId,
    /// The device begins to read. The shard refuses users that are banned.
    pub begins: bool,
    /// The proof that the user has the link of the channel. The shard needs it to begin.
    pub proof: Option<LinkProof>,
}
