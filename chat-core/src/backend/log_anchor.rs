//! Which log a data set follows.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;

/// A log that conversations are ordered by. Its offsets mean something in it alone, and a conversation is on
/// the same partition for as long as it lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct LogIdentity {
    /// Counts the logs of a data set from 1.
    pub generation: u64,
    /// Random; also written into the log itself.
    pub id: [u8; 16],
    /// Its partitions.
    pub partitions: u32,
    /// Whether it was set up completely.
    pub opened: bool,
}

/// Remembers beside the data which log it follows, so that a log that was lost, made anew or given more
/// partitions is noticed before it does harm.
///
/// Implemented by stores that several processes share.
#[async_trait]
pub trait LogAnchor: fmt::Debug + Send + Sync + 'static {
    /// The log in force.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read now.
    async fn log(&self) -> Result<Option<LogIdentity>>;

    /// Begins a log, unless one of this generation or a later one was begun; gives the one in force.
    ///
    /// # Errors
    /// `Unavailable`: it may be begun.
    async fn begin_log(&self, log: LogIdentity) -> Result<LogIdentity>;

    /// Notes that the log of this generation is set up.
    ///
    /// # Errors
    /// `Unavailable`: it may be noted.
    async fn open_log(&self, generation: u64) -> Result<()>;
}
