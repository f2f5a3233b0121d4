//! How much of what one may do in a while: token buckets, in the memory of one gateway.
//!
//! They protect people, not the server: a flood of messages or of claims of prekeys is slowed down with an
//! answer that says how long to wait. Nothing that was accepted is touched, and a restart forgets them.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use crate::model::id::{InstallationId, UserId};

/// So many at once, and so many an hour after that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Rate {
    /// At once.
    pub burst: u64,
    /// An hour.
    pub hourly: u64,
}

impl Rate {
    const fn new(burst: u64, hourly: u64) -> Self {
        Self { burst, hourly }
    }
}

/// The limits of an engine; `None` is no limit.
///
/// ```
/// use chat_core::delivery::Rates;
/// assert!(Rates::default().claims.is_some() && Rates::OFF.claims.is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Rates {
    /// Messages to a user who wrote back.
    pub contact: Option<Rate>,
    /// Messages to a user who did not (yet).
    pub stranger: Option<Rate>,
    /// Messages of one device.
    pub device: Option<Rate>,
    /// Bytes to one user.
    pub inbound: Option<Rate>,
    /// Handles that one user resolves.
    pub resolve: Option<Rate>,
    /// Claims of prekeys of one user by another. Fail closed.
    pub claims: Option<Rate>,
    /// Claims of prekeys of one user by all. Fail closed.
    pub claimed: Option<Rate>,
    /// Claims of prekeys of all by one user. Fail closed.
    pub claimant: Option<Rate>,
    /// Devices that one user links.
    pub links: Option<Rate>,
    /// Connections with a good token and a wrong signature, to one user. Fail closed.
    pub failures: Option<Rate>,
}

impl Default for Rates {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            contact: Some(Rate::new(5_000, 500 * HOUR)),
            stranger: Some(Rate::new(60, HOUR)),
            device: Some(Rate::new(4_000, 2_000 * HOUR)),
            inbound: Some(Rate::new(128 << 20, 128 << 20)),
            resolve: Some(Rate::new(100, 4)),
            claims: Some(Rate::new(6, 6)),
            claimed: Some(Rate::new(60, 60)),
            claimant: Some(Rate::new(1000, 1000)),
            links: Some(Rate::new(6, 180)),
            failures: Some(Rate::new(5, 300)),
        }
    }
}

impl Rates {
    /// No limit at all: for simulations and benchmarks.
    pub const OFF: Self = Self {
        contact: None,
        stranger: None,
        device: None,
        inbound: None,
        resolve: None,
        claims: None,
        claimed: None,
        claimant: None,
        links: None,
        failures: None,
    };

    /// What stays on where everybody is the same person, on loopback: prekeys are spared all the same.
    pub fn local() -> Self {
        let Self { claims, claimed, claimant, links, failures, .. } = Self::default();
        Self { claims, claimed, claimant, links, failures, ..Self::OFF }
    }
}

/// Buckets remembered of each kind. When there are more, those that are full are forgotten; when none is, a
/// limit that fails closed refuses, and one that fails open begins anew.
const BUCKETS: usize = 100_000;

/// What is left of a rate, by whom it is for.
#[derive(Debug)]
struct Buckets<K: Eq + Hash> {
    rate: Option<Rate>,
    closed: bool,
    left: DashMap<K, Bucket>,
    /// When full buckets were last forgotten.
    swept_ms: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Tokens spent, in millionths of an hour's worth of one: 1 token is 3,600,000 of these.
    spent: u64,
    at_ms: u64,
}

/// One token, in units that a millisecond refills `hourly` of.
const TOKEN: u64 = 3_600_000;

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: Option<Rate>, closed: bool) -> Self {
        Self { rate, closed, left: DashMap::new(), swept_ms: AtomicU64::new(0) }
    }

    /// Takes tokens, or says in how many milliseconds there may be enough.
    fn take(&self, key: K, tokens: u64, now_ms: u64) -> Result<(), u32> {
        let Some(rate) = self.rate else { return Ok(()) };
        if self.left.len() >= BUCKETS && !self.left.contains_key(&key) {
            // Looked through at most once a second: it takes a while.
            let due = self.swept_ms.fetch_max(now_ms, Ordering::AcqRel).saturating_add(1000) <= now_ms;
            if due {
                self.left.retain(|_, bucket| refilled(*bucket, rate, now_ms).spent > 0);
            }
            if self.left.len() >= BUCKETS {
                if self.closed {
                    return Err(60_000);
                }
                self.left.clear();
            }
        }
        let mut bucket = self.left.entry(key).or_insert(Bucket { spent: 0, at_ms: now_ms });
        *bucket = refilled(*bucket, rate, now_ms);
        let after = bucket.spent.saturating_add(tokens.saturating_mul(TOKEN));
        let most = rate.burst.saturating_mul(TOKEN);
        if after <= most {
            bucket.spent = after;
            return Ok(());
        }
        let wait = (after - most).div_ceil(rate.hourly.max(1));
        Err(u32::try_from(wait).unwrap_or(u32::MAX).max(1))
    }
}

/// A bucket as it is now. A clock that was put back refills nothing.
fn refilled(bucket: Bucket, rate: Rate, now_ms: u64) -> Bucket {
    let refill = now_ms.saturating_sub(bucket.at_ms).saturating_mul(rate.hourly);
    Bucket { spent: bucket.spent.saturating_sub(refill), at_ms: now_ms }
}

/// The buckets of an engine.
#[derive(Debug)]
pub(super) struct Limits {
    contact: Buckets<(UserId, UserId)>,
    stranger: Buckets<(UserId, UserId)>,
    device: Buckets<InstallationId>,
    inbound: Buckets<UserId>,
    resolve: Buckets<UserId>,
    claims: Buckets<(UserId, UserId)>,
    claimed: Buckets<UserId>,
    claimant: Buckets<UserId>,
    links: Buckets<UserId>,
    failures: Buckets<UserId>,
}

/// Milliseconds to wait.
pub(super) type Wait = u32;

impl Limits {
    pub(super) fn new(rates: &Rates) -> Self {
        Self {
            contact: Buckets::new(rates.contact, false),
            stranger: Buckets::new(rates.stranger, false),
            device: Buckets::new(rates.device, false),
            inbound: Buckets::new(rates.inbound, false),
            resolve: Buckets::new(rates.resolve, false),
            claims: Buckets::new(rates.claims, true),
            claimed: Buckets::new(rates.claimed, true),
            claimant: Buckets::new(rates.claimant, true),
            links: Buckets::new(rates.links, true),
            failures: Buckets::new(rates.failures, true),
        }
    }

    /// Whether messages from one user to another are limited.
    pub(super) const fn paces_pairs(&self) -> bool {
        self.contact.rate.is_some() || self.stranger.rate.is_some()
    }

    pub(super) fn send(&self, from: InstallationId, now_ms: u64) -> Result<(), Wait> {
        self.device.take(from, 1, now_ms)
    }

    pub(super) fn send_to(&self, pair: (UserId, UserId), known: bool, now_ms: u64) -> Result<(), Wait> {
        let messages = if known { &self.contact } else { &self.stranger };
        messages.take(pair, 1, now_ms)
    }

    pub(super) fn bytes_to(&self, user: UserId, bytes: usize, now_ms: u64) -> Result<(), Wait> {
        self.inbound.take(user, bytes as u64, now_ms)
    }

    pub(super) fn resolve(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.resolve.take(user, 1, now_ms)
    }

    /// For a user there is; one who does not exist gets no bucket.
    pub(super) fn claim(&self, pair: (UserId, UserId), now_ms: u64) -> Result<(), Wait> {
        self.claimant.take(pair.0, 1, now_ms)?;
        self.claims.take(pair, 1, now_ms)?;
        self.claimed.take(pair.1, 1, now_ms)
    }

    pub(super) fn link(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.links.take(user, 1, now_ms)
    }

    /// Counts a failure; whether there were too many.
    pub(super) fn failed(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.failures.take(user, 1, now_ms)
    }

    /// Whether there were too many failures already.
    pub(super) fn may_try(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        match self.failures.left.get(&user) {
            Some(bucket) => {
                let rate = self.failures.rate.unwrap_or(Rate::new(u64::MAX, 0));
                let full = refilled(*bucket, rate, now_ms).spent.saturating_add(TOKEN)
                    > rate.burst.saturating_mul(TOKEN);
                if full { Err(60_000) } else { Ok(()) }
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_as_fast_as_it_refills() {
        let buckets = Buckets::new(Some(Rate::new(3, 3600)), false);
        for _ in 0..3 {
            assert_eq!(buckets.take(1, 1, 0), Ok(()));
        }
        assert_eq!(buckets.take(1, 1, 0), Err(1000), "one a second");
        assert_eq!(buckets.take(2, 1, 0), Ok(()), "others have their own");
        assert_eq!(buckets.take(1, 1, 999), Err(1));
        assert_eq!(buckets.take(1, 1, 1000), Ok(()));
        assert_eq!(buckets.take(1, 1, 500), Err(1000), "a clock put back refills nothing");
        assert_eq!(buckets.take(1, 4, 1 << 40), Err(1000), "never more than the burst");
    }

    #[test]
    fn prekeys_are_spared_from_one_and_from_many() {
        let limits = Limits::new(&Rates::default());
        let user = |n| UserId::from_bytes([n; 16]);
        for _ in 0..6 {
            assert_eq!(limits.claim((user(1), user(0)), 0), Ok(()));
        }
        assert_eq!(limits.claim((user(1), user(0)), 0), Err(600_000), "then one in ten minutes");
        let taken = (2..=255).filter(|n| limits.claim((user(*n), user(0)), 0).is_ok()).count();
        assert_eq!(taken, 54, "sixty an hour by all");
    }

    #[test]
    fn wrong_signatures_are_counted_and_others_are_not_locked_out() {
        let limits = Limits::new(&Rates::default());
        let user = |n| UserId::from_bytes([n; 16]);
        for _ in 0..5 {
            assert_eq!(limits.may_try(user(1), 0), Ok(()));
            assert_eq!(limits.failed(user(1), 0), Ok(()));
        }
        assert!(limits.may_try(user(1), 0).is_err() && limits.may_try(user(2), 0).is_ok());
        assert!(limits.may_try(user(1), 12_000).is_ok(), "five a minute");
    }
}
