//! Limits per IP address on connections that are not authenticated yet or failed to authenticate.
//!
//! Loopback addresses are not limited, nor those of the proxies that the settings name, because all clients
//! behind a proxy have the same address.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;

/// Maximum number of connections of one address that are not authenticated yet.
const MAX_PENDING_PER_IP: u32 = 32;
/// Failures of one address within a minute before it is blocked.
const MAX_FAILURES: u32 = 20;
/// Duration of the first block. It doubles each time, up to an hour.
const MIN_BLOCK: Duration = Duration::from_secs(60);
const MAX_BLOCK: Duration = Duration::from_secs(3600);
/// Maximum number of addresses whose failures are stored.
const MAX_ADDRESSES: usize = 100_000;

/// Limits the connections of a server by IP address.
#[derive(Debug, Default)]
pub(crate) struct IpLimiter {
    /// Proxies, whose addresses do not identify a client.
    proxies: Vec<IpAddr>,
    knocking: DashMap<IpAddr, u32>,
    failures: DashMap<IpAddr, Failures>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    since: Instant,
    count: u32,
    waits: u32,
    until: Option<Instant>,
}

/// A connection that is not authenticated yet.
#[derive(Debug)]
pub(crate) struct PendingConnection {
    ip_limiter: Arc<IpLimiter>,
    address: Option<IpAddr>,
}

impl IpLimiter {
    /// Creates a limiter that ignores the addresses of these proxies.
    pub(crate) fn new(proxies: Vec<IpAddr>) -> Self {
        Self { proxies, ..Self::default() }
    }

    /// Admits a connection. Returns `None` if its address has too many pending connections or is
    /// blocked after failures.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<PendingConnection> {
        let Some(address) = counted(address).filter(|_| !self.proxies.contains(&address.to_canonical()))
        else {
            return Some(PendingConnection { ip_limiter: self.clone(), address: None });
        };
        let waits = self.failures.get(&address).and_then(|known| known.until);
        if waits.is_some_and(|until| now < until) {
            return None;
        }
        let mut knocking = self.knocking.entry(address).or_insert(0);
        if *knocking >= MAX_PENDING_PER_IP {
            return None;
        }
        *knocking += 1;
        Some(PendingConnection { ip_limiter: self.clone(), address: Some(address) })
    }

    fn fail(&self, address: IpAddr, now: Instant) {
        if self.failures.len() >= MAX_ADDRESSES {
            self.failures.retain(|_, known| {
                now < known.since + MAX_BLOCK || known.until.is_some_and(|until| now < until)
            });
            if self.failures.len() >= MAX_ADDRESSES {
                self.failures.clear();
            }
        }
        let fresh = Failures { since: now, count: 0, waits: 0, until: None };
        let mut known = self.failures.entry(address).or_insert(fresh);
        if now >= known.since + MAX_BLOCK {
            *known = fresh;
        } else if now >= known.since + Duration::from_secs(60) {
            (known.since, known.count) = (now, 0);
        }
        known.count += 1;
        if known.count > MAX_FAILURES {
            let wait = MIN_BLOCK.saturating_mul(1 << known.waits.min(6)).min(MAX_BLOCK);
            (known.until, known.waits, known.count, known.since) =
                (Some(now + wait), known.waits + 1, 0, now + wait);
        }
    }
}

impl PendingConnection {
    /// Ends the pending state. An authentication that failed counts against the address.
    pub(crate) fn answered(self, let_in: bool) {
        if let (Some(address), false) = (self.address, let_in) {
            self.ip_limiter.fail(address, Instant::now());
        }
    }
}

impl Drop for PendingConnection {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        self.ip_limiter.knocking.remove_if_mut(&address, |_, knocking| {
            *knocking = knocking.saturating_sub(1);
            *knocking == 0
        });
    }
}

/// Returns the address under which a connection counts: for IPv6 its /64 network, because one customer has
/// all of it, or `None` for loopback.
fn counted(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            Some(IpAddr::V6(Ipv6Addr::from(network)))
        }
        address => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn admits_thirty_two_pending_connections_per_address() {
        let ip_limiter = Arc::new(IpLimiter::default());
        let now = Instant::now();
        let mut knocks: Vec<_> =
            (0..32).filter_map(|_| ip_limiter.admit(address("192.0.2.1"), now)).collect();
        assert_eq!(knocks.len(), 32);
        assert!(ip_limiter.admit(address("192.0.2.1"), now).is_none());
        assert!(ip_limiter.admit(address("192.0.2.2"), now).is_some(), "another address is admitted");
        if let Some(admit) = knocks.pop() {
            admit.answered(true);
        }
        assert!(ip_limiter.admit(address("192.0.2.1"), now).is_some(), "it is no longer pending");
        let proxied = Arc::new(IpLimiter::new(vec![address("192.0.2.9")]));
        assert!((0..100).all(|_| proxied.admit(address("192.0.2.9"), now).map(std::mem::forget).is_some()));
        assert!(
            (0..100).all(|_| ip_limiter.admit(address("127.0.0.1"), now).map(std::mem::forget).is_some())
        );
    }

    #[test]
    fn block_of_an_address_doubles_with_each_failure() {
        let ip_limiter = Arc::new(IpLimiter::default());
        let start = Instant::now();
        let one = address("2001:db8:1:2::1");
        let counted = counted(one).unwrap();
        for _ in 0..=MAX_FAILURES {
            ip_limiter.fail(counted, start);
        }
        let neighbour = address("2001:db8:1:2:ffff::9");
        assert!(ip_limiter.admit(neighbour, start).is_none(), "the same network");
        assert!(ip_limiter.admit(address("2001:db8:1:3::1"), start).is_some(), "another network");
        let later = start + MIN_BLOCK;
        assert!(ip_limiter.admit(one, later).is_some());
        for _ in 0..=MAX_FAILURES {
            ip_limiter.fail(counted, later);
        }
        assert!(ip_limiter.admit(one, later + MIN_BLOCK).is_none(), "the second block lasts twice as long");
        assert!(ip_limiter.admit(one, later + MIN_BLOCK * 2).is_some());
    }
}
