//! Traits that a platform implements: tasks, clock, randomness and storage. Connections are a
//! [`Dialer`]. Nothing else in the client depends on the platform.

#[cfg(feature = "native")]
pub mod native;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use async_trait::async_trait;
use chat_core::Result;

pub use chat_core::backend::{Dialer, Runtime, Sleep, Transport};

/// The task of a client. It is not `Send`, because it owns the suite and the local store.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks, clocks, timers and randomness.
pub trait Platform: Runtime {
    /// Runs the task that `start` returns until it completes. `start` is called once, where the task shall live:
    /// natively on a thread of its own, in a browser in the current worker.
    ///
    /// # Errors
    /// `Unavailable` if the platform cannot run another task.
    fn spawn(&self, start: Box<dyn FnOnce() -> Task + Send>) -> Result<()>;

    /// Returns the time of day in milliseconds since 1970.
    fn unix_ms(&self) -> u64;
}

/// The place where profiles are kept.
#[async_trait(?Send)]
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Makes the profile with this name available to SQLite, and locks it for this client; creates it if it does not
    /// exist. The client calls this where its task runs.
    ///
    /// # Errors
    /// `Conflict` if another client has the profile open, `Invalid` if the name is not valid, `Unavailable` if the
    /// storage cannot be read or written.
    async fn mount(&self, name: &str) -> Result<Box<dyn MountedProfile>>;
}

/// A profile that this client has locked. Dropping it releases the lock.
pub trait MountedProfile: fmt::Debug {
    /// Returns the path of the database for SQLite's `open`.
    fn database(&self) -> &Path;

    /// Returns SQL statements to run before any other, right after the key: in a browser
    /// `PRAGMA locking_mode = EXCLUSIVE;`.
    fn first_statements(&self) -> &str {
        ""
    }

    /// Returns the salt of the passphrase. The first call stores `new` durably, before anything is encrypted with it.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read or written, `Corrupt` if it is malformed.
    fn salt(&self, new: [u8; 16]) -> Result<[u8; 16]>;
}

/// Returns random bytes.
pub(crate) fn random<const N: usize>(platform: &dyn Platform) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    platform.fill_random(&mut bytes)?;
    Ok(bytes)
}
