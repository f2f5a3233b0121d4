//! Time types of the state machines.

use std::fmt;
use std::time::Duration;

/// A point in time on a monotonic clock, in milliseconds since that clock's own zero.
///
/// The state machines never read a clock: their driver passes the time in. The simulator can therefore run
/// hours in microseconds, and a browser can use its own clock.
///
/// ```
/// use chat_core::Instant;
/// let start = Instant::from_millis(1_000);
/// assert_eq!(start.after(500), Instant::from_millis(1_500));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// Returns the point in time `millis` milliseconds after the clock's zero.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since the clock's zero.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the point in time `millis` milliseconds later.
    #[must_use]
    pub const fn after(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Returns the time elapsed since `earlier`; zero if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// The wall clock of a server, in microseconds since 1970. Used only for display, retention and the drain
/// order of inboxes, never to decide about a message.
pub trait WallClock: fmt::Debug + Send + Sync + 'static {
    /// Returns the microseconds since 1970.
    fn now_us(&self) -> u64;
}
