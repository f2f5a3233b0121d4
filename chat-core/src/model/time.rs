//! Time as the state machines see it.

use std::fmt;
use std::time::Duration;

/// A moment on some monotonic clock, in milliseconds since that clock's own zero.
///
/// The machines never read a clock: whoever drives them passes the time in, which is what lets the
/// simulator run hours in microseconds and what lets a browser use its own clock.
///
/// ```
/// use chat_core::Instant;
/// let start = Instant::from_millis(1_000);
/// assert_eq!(start.after(500), Instant::from_millis(1_500));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The moment `millis` milliseconds after the clock's zero.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the clock's zero.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment `millis` milliseconds later.
    #[must_use]
    pub const fn after(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// The wall clock of a server, in microseconds since 1970. Only ever used for display, retention and
/// the drain order of inboxes; never for deciding anything about a message.
pub trait WallClock: fmt::Debug + Send + Sync + 'static {
    /// Microseconds since 1970.
    fn now_us(&self) -> u64;
}
