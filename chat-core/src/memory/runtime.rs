use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::backend::{Runtime, Sleep};
use crate::model::error::Result;
use crate::model::rng::Rng;

/// A [`Runtime`] whose time moves only by [`advance_to`](Self::advance_to) and whose randomness follows from a
/// seed: for tests and the simulator. Peers can predict its randomness.
///
/// ```
/// use chat_core::backend::Runtime;
/// use chat_core::memory::ManualRuntime;
/// use std::time::Duration;
/// let runtime = ManualRuntime::new(1);
/// let _timer = runtime.sleep_until(Duration::from_secs(2));
/// runtime.advance_to(Duration::from_secs(1));
/// assert_eq!(runtime.elapsed(), Duration::from_secs(1));
/// ```
#[derive(Debug)]
pub struct ManualRuntime {
    timers: Arc<Mutex<Timers>>,
    rng: Mutex<Rng>,
}

#[derive(Debug, Default)]
struct Timers {
    now: Duration,
    waiting: BTreeMap<(Duration, u64), Waker>,
    last: u64,
}

impl ManualRuntime {
    /// Creates a runtime at time zero.
    pub fn new(seed: u64) -> Self {
        Self { timers: Arc::default(), rng: Mutex::new(Rng::new(seed)) }
    }

    /// Moves the clock forward and wakes the timers that are due, in the order of their times.
    pub fn advance_to(&self, now: Duration) {
        let mut timers = self.timers.lock();
        let now = timers.now.max(now);
        timers.now = now;
        let later = timers.waiting.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut timers.waiting, later);
        drop(timers);
        due.into_values().for_each(Waker::wake);
    }

    /// Returns the time of the first timer that waits.
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.lock().waiting.keys().next().map(|(at, _)| *at)
    }
}

impl Runtime for ManualRuntime {
    fn elapsed(&self) -> Duration {
        self.timers.lock().now
    }

    fn sleep_until(&self, at: Duration) -> Sleep {
        let mut timers = self.timers.lock();
        timers.last += 1;
        Box::pin(Timer { timers: self.timers.clone(), key: (at, timers.last) })
    }

    fn fill_random(&self, bytes: &mut [u8]) -> Result<()> {
        let mut rng = self.rng.lock();
        bytes.chunks_mut(8).for_each(|chunk| {
            let random = rng.next_u64().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        });
        Ok(())
    }
}

struct Timer {
    timers: Arc<Mutex<Timers>>,
    key: (Duration, u64),
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut timers = self.timers.lock();
        if timers.now >= self.key.0 {
            return Poll::Ready(());
        }
        timers.waiting.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.timers.lock().waiting.remove(&self.key);
    }
}
