use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::model::error::Result;
use crate::model::time::Instant;

/// A running timer.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Monotonic clock, timers and randomness of a gateway.
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Returns the time since the clock's zero. It never goes back.
    fn elapsed(&self) -> Duration;

    /// Returns a timer that ends once [`elapsed`](Self::elapsed) is `at` or later.
    fn sleep_until(&self, at: Duration) -> Sleep;

    /// Fills a buffer with random bytes that a peer cannot predict.
    ///
    /// # Errors
    /// `Unavailable` if the system has no randomness.
    fn fill_random(&self, bytes: &mut [u8]) -> Result<()>;

    /// Returns the time as the state machines use it.
    fn now(&self) -> Instant {
        Instant::from_millis(u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
