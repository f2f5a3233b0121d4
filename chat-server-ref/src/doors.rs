//! Who may knock: connections that did not say who they are, and those that said so wrongly, by address.
//!
//! Addresses of this machine are not counted, nor those of proxies, which the settings name: behind one
//! everybody has the same.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;

/// Connections of one address that are not authenticated yet.
const KNOCKING: u32 = 32;
/// Failures of one address in a minute before it has to wait.
const FAILURES: u32 = 20;
/// The first wait; it doubles each time, up to an hour.
const FIRST_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Addresses remembered.
const ADDRESSES: usize = 100_000;

/// The doors of a server.
#[derive(Debug, Default)]
pub struct Doors {
    /// Proxies, whose addresses say nothing about who is behind them.
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
pub struct Knock {
    doors: Arc<Doors>,
    address: Option<IpAddr>,
}

impl Doors {
    /// Doors that do not count these addresses.
    pub fn new(proxies: Vec<IpAddr>) -> Self {
        Self { proxies, ..Self::default() }
    }

    /// Lets a connection knock, unless its address has too many, or failed too often.
    pub fn knock(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Knock> {
        let Some(address) = counted(address).filter(|_| !self.proxies.contains(&address.to_canonical()))
        else {
            return Some(Knock { doors: self.clone(), address: None });
        };
        let waits = self.failures.get(&address).and_then(|known| known.until);
        if waits.is_some_and(|until| now < until) {
            return None;
        }
        let mut knocking = self.knocking.entry(address).or_insert(0);
        if *knocking >= KNOCKING {
            return None;
        }
        *knocking += 1;
        Some(Knock { doors: self.clone(), address: Some(address) })
    }

    fn fail(&self, address: IpAddr, now: Instant) {
        if self.failures.len() >= ADDRESSES {
            self.failures.retain(|_, known| {
                now < known.since + LONGEST_WAIT || known.until.is_some_and(|until| now < until)
            });
            if self.failures.len() >= ADDRESSES {
                self.failures.clear();
            }
        }
        let fresh = Failures { since: now, count: 0, waits: 0, until: None };
        let mut known = self.failures.entry(address).or_insert(fresh);
        if now >= known.since + LONGEST_WAIT {
            *known = fresh;
        } else if now >= known.since + Duration::from_secs(60) {
            (known.since, known.count) = (now, 0);
        }
        known.count += 1;
        if known.count > FAILURES {
            let wait = FIRST_WAIT.saturating_mul(1 << known.waits.min(6)).min(LONGEST_WAIT);
            (known.until, known.waits, known.count, known.since) =
                (Some(now + wait), known.waits + 1, 0, now + wait);
        }
    }
}

impl Knock {
    /// Says how it ended: let in, or wrong.
    pub fn answered(self, let_in: bool) {
        if let (Some(address), false) = (self.address, let_in) {
            self.doors.fail(address, Instant::now());
        }
    }
}

impl Drop for Knock {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        self.doors.knocking.remove_if_mut(&address, |_, knocking| {
            *knocking = knocking.saturating_sub(1);
            *knocking == 0
        });
    }
}

/// What an address counts as: itself, or for IPv6 its network of 64 bits, which one customer has.
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
    fn thirty_two_of_one_address_may_wait() {
        let doors = Arc::new(Doors::default());
        let now = Instant::now();
        let mut knocks: Vec<_> = (0..32).filter_map(|_| doors.knock(address("192.0.2.1"), now)).collect();
        assert_eq!(knocks.len(), 32);
        assert!(doors.knock(address("192.0.2.1"), now).is_none());
        assert!(doors.knock(address("192.0.2.2"), now).is_some(), "others may");
        if let Some(knock) = knocks.pop() {
            knock.answered(true);
        }
        assert!(doors.knock(address("192.0.2.1"), now).is_some(), "who was let in counts no more");
        let proxied = Arc::new(Doors::new(vec![address("192.0.2.9")]));
        assert!((0..100).all(|_| proxied.knock(address("192.0.2.9"), now).map(std::mem::forget).is_some()));
        assert!((0..100).all(|_| doors.knock(address("127.0.0.1"), now).map(std::mem::forget).is_some()));
    }

    #[test]
    fn who_fails_too_often_waits_longer_each_time() {
        let doors = Arc::new(Doors::default());
        let start = Instant::now();
        let one = address("2001:db8:1:2::1");
        let counted = counted(one).unwrap();
        for _ in 0..=FAILURES {
            doors.fail(counted, start);
        }
        let neighbour = address("2001:db8:1:2:ffff::9");
        assert!(doors.knock(neighbour, start).is_none(), "the same network");
        assert!(doors.knock(address("2001:db8:1:3::1"), start).is_some(), "another one");
        let later = start + FIRST_WAIT;
        assert!(doors.knock(one, later).is_some());
        for _ in 0..=FAILURES {
            doors.fail(counted, later);
        }
        assert!(doors.knock(one, later + FIRST_WAIT).is_none(), "twice as long");
        assert!(doors.knock(one, later + FIRST_WAIT * 2).is_some());
    }
}
