use std::time::{SystemTime, UNIX_EPOCH};

use chat_core::WallClock;

/// The system's wall clock.
///
/// ```
/// use chat_core::WallClock;
/// assert!(chat_server::SystemClock.now_us() > 1_700_000_000_000_000);
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn now_us(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
    }
}
