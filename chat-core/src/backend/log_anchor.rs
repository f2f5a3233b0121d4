//! Identifies the log that a data set follows.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;

/// Identity of a log that orders conversations. Offsets are valid only within one log. A conversation stays
/// on the same partition for the lifetime of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct LogIdentity {
    /// Number of the log among those of the data set, from 1.
    pub generation: u64,
    /// Random id, also written into the log itself.
    pub id: [u8; 16],
    /// Number of partitions.
    pub partitions: u32,
    /// The log is set up completely.
    pub opened: bool,
}

/// Stores beside the data the identity of the log that it follows. A log that was lost, recreated or
/// repartitioned is detected before it causes damage.
///
/// Implemented by stores that several processes share.
#[async_trait]
pub trait LogAnchor: fmt::Debug + Send + Sync + 'static {
    /// Returns the log in force.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn log(&self) -> Result<Option<LogIdentity>>;

    /// Starts a log, unless a log of this or a later generation exists. Returns the log in force.
    ///
    /// # Errors
    /// `Unavailable`: the log may have been started.
    async fn begin_log(&self, log: LogIdentity) -> Result<LogIdentity>;

    /// Records that the log of this generation is set up.
    ///
    /// # Errors
    /// `Unavailable`: the change may have been stored.
    async fn open_log(&self, generation: u64) -> Result<()>;
}
