use std::time::Duration;

use tokio::time::Instant;

/// Spreads new connections over time.
///
/// When another gateway failed, all its devices reconnect at the same time. Connected devices must hardly notice,
/// so new connections start one after the other.
#[derive(Debug)]
pub(crate) struct AcceptPacer {
    /// Time between the starts of two connections.
    interval: Duration,
    /// Start time of the next connection.
    next: Instant,
}

impl AcceptPacer {
    /// Longest delay of a connection. The client of a later one may have given up.
    const MAX_DELAY: Duration = Duration::from_secs(5);
    /// Connections of this much time start at once if none came before.
    const BURST: Duration = Duration::from_millis(100);

    pub(crate) fn new(rate: u32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), next: now }
    }

    /// Returns the start time of a connection that arrives now; `None` if it would wait too long.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next.max(now);
        if due > now + Self::MAX_DELAY {
            return None;
        }
        self.next = due + self.interval;
        Some(now.max(due - Self::BURST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_start_one_after_the_other_and_late_ones_are_rejected() {
        let mut now = Instant::now();
        let mut pacer = AcceptPacer::new(500, now);
        let mut storm = |now: Instant| -> Vec<Option<u128>> {
            let due = (0..3000).map(|_| pacer.admit(now));
            due.map(|due| due.map(|due| due.duration_since(now).as_millis())).collect()
        };
        let waits = storm(now);
        assert_eq!((waits[50], waits[51], waits[1050]), (Some(0), Some(2), Some(2000)), "a burst at once");
        assert_eq!((waits[2500], waits[2501], waits[2999]), (Some(4900), None, None), "a bounded queue");
        assert_eq!(storm(now)[0], None, "a rejected connection takes no slot");
        now += Duration::from_secs(60);
        assert_eq!(storm(now), waits, "unused slots are not saved up");
    }
}
