//! Limits per IP address on new connections, and on those that are not authenticated yet or failed to authenticate.
//!
//! Loopback addresses are not limited. A connection of a proxy that the settings name counts for the address that the proxy
//! forwards, if it forwards one.

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
/// New connections of one address: at once, and then per second. Many users may share an address.
const ARRIVAL_BURST: f64 = 128.0;
const ARRIVALS_PER_SECOND: f64 = 20.0;
/// Maximum number of addresses whose failures, and whose arrivals, are stored.
const MAX_ADDRESSES: usize = 100_000;

/// Limits the connections of a server by IP address.
#[derive(Debug, Default)]
pub(crate) struct IpLimiter {
    /// Proxies, whose addresses do not identify a client.
    proxies: Vec<IpAddr>,
    knocking: DashMap<IpAddr, u32>,
    failures: DashMap<IpAddr, Failures>,
    arrivals: DashMap<IpAddr, Arrivals>,
}

/// The connections that an address may still open, as of a time.
#[derive(Clone, Copy, Debug)]
struct Arrivals {
    left: f64,
    at: Instant,
}

impl Arrivals {
    fn refilled(self, now: Instant) -> Self {
        let refill = now.saturating_duration_since(self.at).as_secs_f64() * ARRIVALS_PER_SECOND;
        Self { left: (self.left + refill).min(ARRIVAL_BURST), at: now }
    }
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

    /// Returns whether connections from this address are those of a proxy.
    pub(crate) fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.contains(&address.to_canonical())
    }

    /// Admits a connection that a proxy forwards. `forwarded` has the addresses that proxies added, in their order: the last
    /// one that is no proxy is the client. A connection without one is admitted, and counts for no address.
    pub(crate) fn admit_forwarded(
        self: &Arc<Self>,
        forwarded: &[IpAddr],
        now: Instant,
    ) -> Option<PendingConnection> {
        match forwarded.iter().rev().find(|address| !self.is_proxy(**address)) {
            Some(client) => self.admit(*client, now),
            None => Some(PendingConnection { ip_limiter: self.clone(), address: None }),
        }
    }

    /// Admits a connection. Returns `None` if its address has too many pending connections, opens too many, or is
    /// blocked after failures.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<PendingConnection> {
        let Some(address) = counted(address).filter(|_| !self.is_proxy(address)) else {
            return Some(PendingConnection { ip_limiter: self.clone(), address: None });
        };
        if !self.arrives(address, now) {
            return None;
        }
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

    /// Counts a new connection. Returns `false` if there were too many.
    fn arrives(&self, address: IpAddr, now: Instant) -> bool {
        if self.arrivals.len() >= MAX_ADDRESSES && !self.arrivals.contains_key(&address) {
            self.arrivals.retain(|_, known| known.refilled(now).left < ARRIVAL_BURST);
            if self.arrivals.len() >= MAX_ADDRESSES {
                self.arrivals.clear();
            }
        }
        let mut known = self.arrivals.entry(address).or_insert(Arrivals { left: ARRIVAL_BURST, at: now });
        *known = known.refilled(now);
        let has_room = known.left >= 1.0;
        if has_room {
            known.left -= 1.0;
        }
        has_room
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
    fn clients_behind_a_proxy_count_one_by_one() {
        let (proxy, inner) = (address("192.0.2.9"), address("10.0.0.9"));
        let ip_limiter = Arc::new(IpLimiter::new(vec![proxy, inner]));
        let now = Instant::now();
        let admit = |forwarded: &[&str]| {
            let forwarded: Vec<IpAddr> = forwarded.iter().map(|text| address(text)).collect();
            ip_limiter.admit_forwarded(&forwarded, now)
        };
        // The client wrote the first address itself. The inner proxy added the outer one.
        let kept: Vec<_> =
            (0..40).map_while(|_| admit(&["203.0.113.7", "198.51.100.1", "192.0.2.9"])).collect();
        assert_eq!(kept.len(), 32);
        assert!(admit(&["198.51.100.1"]).is_none(), "the same client");
        assert!(admit(&["198.51.100.2"]).is_some(), "another client");
        assert!((0..200).all(|_| admit(&[]).is_some()), "a proxy that forwards no address");
    }

    #[test]
    fn address_opens_connections_at_a_limited_rate() {
        let ip_limiter = Arc::new(IpLimiter::default());
        let (start, one) = (Instant::now(), address("192.0.2.1"));
        // Connections that hang up at once.
        let opened = |now: Instant| (0..1000).filter(|_| ip_limiter.admit(one, now).is_some()).count();
        assert_eq!(opened(start), 128);
        assert_eq!(opened(start + Duration::from_secs(2)), 40);
        assert!(ip_limiter.admit(address("192.0.2.2"), start).is_some(), "another address");
        assert_eq!(opened(start + Duration::from_secs(3600)), 128);
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
