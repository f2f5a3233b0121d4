//! Limit of concurrent handshakes during a reconnect storm.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::backend::Runtime;

/// Longest time that a device waits for a permit. A device that would wait longer gets a retry time instead.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Latest retry time, however many devices wait: when failed backends recover, no device may stay away long.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Longest duration that counts for a handshake: a wait for a failed backend does not predict the next one.
const MAX_HANDSHAKE: Duration = Duration::from_secs(1);
/// Pause after a handshake, as a multiple of its duration. Connected devices are served in the pause.
const COOLDOWN_FACTOR: u32 = 2;
/// Duration of a handshake before one was measured.
const INITIAL_ESTIMATE: Duration = Duration::from_millis(5);

/// Limits how many sessions a gateway opens at the same time.
///
/// When all devices of a failed gateway reconnect here, the devices that are connected already must hardly
/// notice. So each handshake is followed by a [pause](COOLDOWN_FACTOR) while other devices wait: the slower the
/// backends, the longer the pause.
#[derive(Debug)]
pub(super) struct HandshakeLimiter {
    runtime: Arc<dyn Runtime>,
    slots: Arc<Semaphore>,
    count: u32,
    waiting: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Mean duration of a handshake; newer ones count more.
    mean: Duration,
    /// The latest retry time that was given out.
    last_retry: Duration,
    /// When each slot that was released while devices waited may be used again.
    cooldowns: VecDeque<Duration>,
}

/// Permit for one handshake, released on drop.
#[derive(Debug)]
pub(super) struct HandshakePermit {
    limiter: Arc<HandshakeLimiter>,
    began: Duration,
    _slot: OwnedSemaphorePermit,
}

/// Counts a waiting device until it is dropped.
struct Waiting<'a>(&'a AtomicU32);

impl HandshakeLimiter {
    pub(super) fn new(runtime: Arc<dyn Runtime>, count: u32) -> Arc<Self> {
        let state =
            State { mean: INITIAL_ESTIMATE, last_retry: runtime.elapsed(), cooldowns: VecDeque::new() };
        let slots = Arc::new(Semaphore::new(count as usize));
        Arc::new(Self { runtime, slots, count, waiting: AtomicU32::new(0), state: Mutex::new(state) })
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// The time after which the device must retry, if it would wait too long. Retry times are spread as far
    /// apart as handshakes are, from [`WAIT_TIMEOUT`] to [`MAX_RETRY_AFTER`], then from the start again.
    pub(super) async fn acquire(self: &Arc<Self>) -> Result<HandshakePermit, Duration> {
        let slot = match self.slots.clone().try_acquire_owned() {
            Ok(slot) if self.state.lock().cooldowns.is_empty() => slot,
            other => {
                let before = self.waiting.fetch_add(1, Ordering::Relaxed);
                let _waiting = Waiting(&self.waiting);
                if self.interval(&self.state.lock()) * (before + 1) > WAIT_TIMEOUT {
                    return Err(self.retry_after());
                }
                let slot = match other {
                    Ok(slot) => slot,
                    Err(_) => self.wait_for_slot().await.ok_or_else(|| self.retry_after())?,
                };
                let rested = self.state.lock().cooldowns.pop_front();
                if let Some(rested) = rested.filter(|rested| *rested > self.runtime.elapsed()) {
                    self.runtime.sleep_until(rested).await;
                }
                slot
            }
        };
        Ok(HandshakePermit { limiter: self.clone(), began: self.runtime.elapsed(), _slot: slot })
    }

    async fn wait_for_slot(&self) -> Option<OwnedSemaphorePermit> {
        let slot = std::pin::pin!(self.slots.clone().acquire_owned());
        match select(slot, self.runtime.sleep_until(self.runtime.elapsed() + WAIT_TIMEOUT)).await {
            Either::Left((slot, _)) => slot.ok(),
            Either::Right(_) => None,
        }
    }

    /// Time between the starts of two handshakes while devices wait.
    fn interval(&self, state: &State) -> Duration {
        (1 + COOLDOWN_FACTOR) * state.mean / self.count
    }

    fn retry_after(&self) -> Duration {
        let now = self.runtime.elapsed();
        let mut state = self.state.lock();
        let next = state.last_retry.max(now + WAIT_TIMEOUT) + self.interval(&state);
        state.last_retry = if next > now + MAX_RETRY_AFTER { now + WAIT_TIMEOUT } else { next };
        state.last_retry - now
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let now = self.limiter.runtime.elapsed();
        let took = now.saturating_sub(self.began).min(MAX_HANDSHAKE);
        let mut state = self.limiter.state.lock();
        state.mean = (state.mean * 15 + took) / 16;
        if self.limiter.waiting.load(Ordering::Relaxed) > 0 {
            state.cooldowns.push_back(now + COOLDOWN_FACTOR * took);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::memory::ManualRuntime;

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn acquire(limiter: &Arc<HandshakeLimiter>) -> Result<HandshakePermit, Duration> {
        match poll(pin!(limiter.acquire())) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => panic!("no permit is free"),
        }
    }

    #[test]
    fn handshake_is_followed_by_a_pause_while_devices_wait() {
        let runtime = Arc::new(ManualRuntime::new(1));
        let limiter = HandshakeLimiter::new(runtime.clone(), 1);
        let first = acquire(&limiter).unwrap();
        let mut next = pin!(limiter.acquire());
        assert!(poll(next.as_mut()).is_pending());
        runtime.advance_to(Duration::from_millis(50));
        drop(first);
        runtime.advance_to(Duration::from_millis(149));
        assert!(poll(next.as_mut()).is_pending(), "the slot rests for 100 ms");
        runtime.advance_to(Duration::from_millis(150));
        let Poll::Ready(Ok(second)) = poll(next.as_mut()) else { panic!("the pause is over") };
        drop(second);
        assert!((0..100).all(|_| acquire(&limiter).is_ok()), "there is no pause while no device waits");
    }

    #[test]
    fn handshake_beyond_the_wait_limit_gets_a_retry_time() {
        let limiter = HandshakeLimiter::new(Arc::new(ManualRuntime::new(1)), 2);
        let _held = (acquire(&limiter).unwrap(), acquire(&limiter).unwrap());
        limiter.state.lock().mean = Duration::from_secs(4);
        let waits = [acquire(&limiter).unwrap_err(), acquire(&limiter).unwrap_err()];
        assert!(waits[0] > WAIT_TIMEOUT, "{waits:?}");
        assert_eq!(waits[1] - waits[0], Duration::from_secs(6), "as far apart as handshakes are");
        for _ in 0..100 {
            let wait = acquire(&limiter).unwrap_err();
            assert!((WAIT_TIMEOUT..=MAX_RETRY_AFTER).contains(&wait), "{wait:?}");
        }
        assert_eq!(limiter.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn handshake_that_waits_too_long_gets_a_retry_time() {
        let runtime = Arc::new(ManualRuntime::new(1));
        let limiter = HandshakeLimiter::new(runtime.clone(), 1);
        let _held = acquire(&limiter).unwrap();
        let mut next = pin!(limiter.acquire());
        assert!(poll(next.as_mut()).is_pending());
        runtime.advance_to(WAIT_TIMEOUT);
        assert!(matches!(poll(next.as_mut()), Poll::Ready(Err(wait)) if wait >= WAIT_TIMEOUT));
    }
}
