//! The carrier of commands to a conversation's shard.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::Route;
use crate::model::envelope::{Publish, Refusal, SendPosition};
use crate::model::error::Result;
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, UserId};

/// Takes commands for a conversation's shard; FIFO per conversation; redelivers until the shard commits;
/// one intended owner a shard.
///
/// # Contract
/// - Records of one conversation come in the order in which their appends were polled first, however many
///   of them wait for the log at once (`fifo_per_conversation`).
/// - A conversation is always on the same shard (`one_shard_per_conversation`).
/// - What was taken and not committed comes again after [`rewind`](Self::rewind) (`redelivers_until_commit`).
/// - A full queue refuses instead of growing (`a_full_queue_refuses`).
/// - What one owner takes in one ownership_epoch follows on without a gap (`an_ownership_epoch_has_no_gaps`).
/// - A closed router gives no records any more, and whoever waits for some is told (`a_closed_router_says_so`).
#[async_trait]
pub trait Router: fmt::Debug + Send + Sync + 'static {
    /// How many shards there are.
    fn shards(&self) -> usize;

    /// Appends a command.
    ///
    /// # Errors
    /// `Throttled` if the shard's queue is full, `Unavailable` if it may or may not be appended.
    async fn append(&self, command: Command) -> Result<()>;

    /// Takes what waits for a shard, at least one record, waiting for it if need be. Cancel safe.
    ///
    /// # Errors
    /// `Closed` once the router was [closed](Self::close).
    async fn next(&self, shard: usize) -> Result<RecordBatch>;

    /// Says that everything up to a position is applied.
    ///
    /// # Errors
    /// `Unavailable`: the records may come again.
    async fn commit(&self, shard: usize, position: LogPosition) -> Result<()>;

    /// Makes everything uncommitted of a shard come again: what a new owner sees.
    ///
    /// # Errors
    /// `Unavailable` if that cannot be done now.
    async fn rewind(&self, shard: usize) -> Result<()>;

    /// Gives this process's shards up: others that read the same log own them when this returns, or soon.
    /// What was taken may still be committed. Appending is not affected.
    async fn close(&self);
}

/// Records that were taken from a shard's log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct RecordBatch {
    /// Changes whenever somebody else may have owned the shard in between: what is remembered of its
    /// conversations counts in the same ownership_epoch only.
    pub ownership_epoch: u64,
    /// The records, in order.
    pub records: Vec<Record>,
}

/// A place in a shard's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct LogPosition {
    /// Which log. Offsets of different logs do not compare.
    pub generation: u64,
    /// Rising in it.
    pub offset: u64,
}

/// A command in a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Record {
    /// Its place.
    pub position: LogPosition,
    /// When it was appended, by the log's clock.
    pub appended_us: u64,
    /// The command.
    pub command: Arc<Command>,
}

/// What a gateway asks of a conversation's shard. All that depends on a clock, a cache or another table
/// was decided by the gateway and is written in here, so that applying it is a function of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Command {
    /// Who asks, as authenticated.
    pub sender: DeviceAddress,
    /// What.
    pub operation: Operation,
    /// Every user of the audience with the devices of the list version named.
    pub recipients: Vec<RecipientDevices>,
    /// Why the gateway would refuse it; counts only if the message is not stored already.
    pub verdict: Option<Refusal>,
    /// The connection that waits for the answer. Decides nothing.
    pub reply: Option<Route>,
}

impl Command {
    /// The conversation it is for.
    pub const fn conversation(&self) -> ConversationId {
        self.number().conversation
    }

    /// Its place in its sender's order.
    pub const fn number(&self) -> &SendPosition {
        match &self.operation {
            Operation::Publish(publish) => &publish.number,
            Operation::Skip(number) => number,
        }
    }
}

/// What is asked of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Store this message.
    Publish(Publish),
    /// Use this number up.
    Skip(SendPosition),
}

/// A user of an audience with the devices of the list version that was named.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct RecipientDevices {
    /// The user.
    pub user: UserId,
    /// The version.
    pub list_version: u64,
    /// Its devices.
    pub installations: Vec<InstallationId>,
}
