//! Whose session is opened next, when everybody comes at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a device waits for its turn; who would wait longer is waits when to come back.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The latest that anybody is waits to come back, however long the line is: when backends that failed are there
/// again, nobody may be away for long.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// A turn that took longer counts as this: what waited for a backend says nothing about the next.
const MAX_HANDSHAKE: Duration = Duration::from_secs(1);
/// How many times as long as a turn the rest after it is: what is done meanwhile is done for those who are here.
const COOLDOWN_FACTOR: u32 = 2;
/// A turn before any was measured.
const INITIAL_ESTIMATE: Duration = Duration::from_millis(5);

/// HandshakeLimiter to open a session, one per core at a time.
///
/// When all devices of a gateway that failed come here, those that are here already must hardly notice. So a
/// turn is followed by a [rest](COOLDOWN_FACTOR) while others wait: the slower the backends are, the longer.
#[derive(Debug)]
pub(crate) struct HandshakeLimiter {
    free: Arc<Semaphore>,
    count: u32,
    waiting: AtomicU32,
    line: Mutex<Line>,
}

/// What those are waits who do not wait.
#[derive(Debug)]
struct Line {
    /// How long a turn takes: the mean, newer ones count more.
    turn: Duration,
    /// When the last who was waits so comes back.
    promised: Instant,
}

/// The right to open a session, until it is dropped.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    limiter: Arc<HandshakeLimiter>,
    permit: Option<OwnedSemaphorePermit>,
    began: Instant,
}

/// One more that waits, until this is dropped.
struct Waiting<'a>(&'a AtomicU32);

impl HandshakeLimiter {
    pub(crate) fn new(count: u32) -> Arc<Self> {
        let line = Mutex::new(Line { turn: INITIAL_ESTIMATE, promised: Instant::now() });
        let free = Arc::new(Semaphore::new(count as usize));
        Arc::new(Self { free, count, waiting: AtomicU32::new(0), line })
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// After how long to come back, if that would take too long: one after the other, as far apart as limiter are,
    /// from [`WAIT_TIMEOUT`] to [`MAX_RETRY_AFTER`] and then again.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<HandshakePermit, Duration> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let before = self.waiting.fetch_add(1, Ordering::Relaxed);
                let waiting = Waiting(&self.waiting);
                if self.apart(&self.line()) * (before + 1) > WAIT_TIMEOUT {
                    return Err(self.promise());
                }
                let permit = tokio::time::timeout(WAIT_TIMEOUT, self.free.clone().acquire_owned()).await;
                drop(waiting);
                permit.ok().and_then(Result::ok).ok_or_else(|| self.promise())?
            }
        };
        Ok(HandshakePermit { limiter: self.clone(), permit: Some(permit), began: Instant::now() })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From one turn to the next while others wait.
    fn apart(&self, line: &Line) -> Duration {
        (1 + COOLDOWN_FACTOR) * line.turn / self.count
    }

    fn promise(&self) -> Duration {
        let now = Instant::now();
        let mut line = self.line();
        let next = line.promised.max(now + WAIT_TIMEOUT) + self.apart(&line);
        line.promised = if next > now + MAX_RETRY_AFTER { now + WAIT_TIMEOUT } else { next };
        line.promised - now
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let took = self.began.elapsed().min(MAX_HANDSHAKE);
        {
            let mut line = self.limiter.line();
            line.turn = (line.turn * 15 + took) / 16;
        }
        let permit = self.permit.take();
        if self.limiter.waiting.load(Ordering::Relaxed) > 0
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                tokio::time::sleep(COOLDOWN_FACTOR * took).await;
                drop(permit);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_is_followed_by_a_rest_while_others_wait() {
        let limiter = HandshakeLimiter::new(1);
        let began = Instant::now();
        let turn = limiter.take().await.unwrap();
        let next = tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.take().await.map(|_| Instant::now()) }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(turn);
        assert!(next.await.unwrap().unwrap() - began >= Duration::from_millis(150), "no rest");
        let began = Instant::now();
        for _ in 0..100 {
            drop(limiter.take().await.unwrap());
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "nobody waits: nobody rests");
    }

    #[tokio::test]
    async fn handshake_beyond_the_wait_limit_gets_a_retry_time() {
        let limiter = HandshakeLimiter::new(2);
        let _held = (limiter.take().await.unwrap(), limiter.take().await.unwrap());
        limiter.line().turn = Duration::from_secs(4);
        let waits = [limiter.take().await.unwrap_err(), limiter.take().await.unwrap_err()];
        assert!(waits[0] > WAIT_TIMEOUT, "{waits:?}");
        let apart = waits[1] - waits[0];
        assert!(apart > Duration::from_secs(5) && apart <= Duration::from_secs(6), "{waits:?}");
        for _ in 0..100 {
            let wait = limiter.take().await.unwrap_err();
            assert!((WAIT_TIMEOUT - Duration::from_secs(1)..=MAX_RETRY_AFTER).contains(&wait), "{wait:?}");
        }
        assert_eq!(limiter.waiting.load(Ordering::Relaxed), 0);
    }
}
