//! The clock, timers and randomness of a server on tokio.

use std::time::Duration;

use chat_core::backend::{Runtime, Sleep};
use chat_core::{Error, ErrorKind, Result};

/// A [`Runtime`] on tokio's clock and timers and the system's randomness.
#[derive(Debug)]
pub struct TokioRuntime {
    started: tokio::time::Instant,
}

impl TokioRuntime {
    /// Creates a runtime whose clock starts at zero now.
    pub fn new() -> Self {
        Self { started: tokio::time::Instant::now() }
    }
}

impl Default for TokioRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime for TokioRuntime {
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> Sleep {
        Box::pin(tokio::time::sleep_until(self.started + at))
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<()> {
        getrandom::fill(bytes).map_err(|_| Error::new(ErrorKind::Unavailable, "the system has no randomness"))
    }
}
