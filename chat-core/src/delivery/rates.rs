//! Rate limits: token buckets in the memory of one gateway.
//!
//! They protect users, not the server: a flood of messages or prekey claims is refused with the time to wait.
//! Accepted messages are not affected, and a restart resets the buckets.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use crate::model::id::{InstallationId, UserId};

/// A rate limit: a burst, and a refill per hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Rate {
    /// Tokens of a full bucket.
    pub burst: u64,
    /// Tokens refilled per hour.
    pub hourly: u64,
}

impl Rate {
    const fn new(burst: u64, hourly: u64) -> Self {
        Self { burst, hourly }
    }
}

/// Rate limits of an engine; `None` is no limit.
///
/// ```
/// use chat_core::delivery::Rates;
/// assert!(Rates::default().claims.is_some() && Rates::OFF.claims.is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Rates {
    /// Messages from one user to another that wrote back.
    pub contact: Option<Rate>,
    /// Messages from one user to another that did not write back (yet).
    pub stranger: Option<Rate>,
    /// Messages of one device.
    pub device: Option<Rate>,
    /// Bytes of messages to one user.
    pub inbound: Option<Rate>,
    /// Bytes of messages of one user, also to itself.
    pub outbound: Option<Rate>,
    /// Requests of one user.
    pub requests: Option<Rate>,
    /// Handles that one user resolves.
    pub resolve: Option<Rate>,
    /// Claims of one user's one-time prekeys by one other user. Above the limit a bundle has none.
    pub claims: Option<Rate>,
    /// Claims of one user's one-time prekeys by all users. Above the limit a bundle has none.
    pub claimed: Option<Rate>,
    /// Claims of any one-time prekeys by one user. Above the limit a bundle has none.
    pub claimant: Option<Rate>,
    /// Link offers that one user fetches. Fails closed.
    pub links: Option<Rate>,
    /// Connections of one user with a valid token and a wrong signature. Fails closed.
    pub failures: Option<Rate>,
    /// Tokens that one device renews. Fails closed.
    pub renewals: Option<Rate>,
    /// Users that one user accepts, blocks or unblocks.
    pub contact_changes: Option<Rate>,
    /// Reports of one user. Fails closed.
    pub reports: Option<Rate>,
}

impl Default for Rates {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            contact: Some(Rate::new(5_000, 500 * HOUR)),
            stranger: Some(Rate::new(60, HOUR)),
            device: Some(Rate::new(4_000, 2_000 * HOUR)),
            inbound: Some(Rate::new(128 << 20, 128 << 20)),
            outbound: Some(Rate::new(256 << 20, 256 << 20)),
            requests: Some(Rate::new(2000, 100 * HOUR)),
            resolve: Some(Rate::new(100, 4)),
            claims: Some(Rate::new(6, 6)),
            claimed: Some(Rate::new(60, 60)),
            claimant: Some(Rate::new(1000, 1000)),
            links: Some(Rate::new(6, 180)),
            failures: Some(Rate::new(5, 300)),
            renewals: Some(Rate::new(10, 60)),
            contact_changes: Some(Rate::new(200, HOUR)),
            reports: Some(Rate::new(10, 20)),
        }
    }
}

impl Rates {
    /// No limits: for simulations and benchmarks.
    pub const OFF: Self = Self {
        contact: None,
        stranger: None,
        device: None,
        inbound: None,
        outbound: None,
        requests: None,
        resolve: None,
        claims: None,
        claimed: None,
        claimant: None,
        links: None,
        failures: None,
        renewals: None,
        contact_changes: None,
        reports: None,
    };

    /// Returns the limits for loopback, where all users are one person: only claims of prekeys, link offers,
    /// wrong signatures, renewals and reports stay limited.
    pub fn local() -> Self {
        let Self { claims, claimed, claimant, links, failures, renewals, reports, .. } = Self::default();
        Self { claims, claimed, claimant, links, failures, renewals, reports, ..Self::OFF }
    }
}

/// Maximum number of buckets of each limit. Above it, full buckets are dropped. If none is full, a limit that
/// fails closed refuses, and one that fails open drops all its buckets.
const BUCKETS: usize = 100_000;

/// Buckets of one limit, by key.
#[derive(Debug)]
struct Buckets<K: Eq + Hash> {
    rate: Option<Rate>,
    closed: bool,
    left: DashMap<K, Bucket>,
    /// When full buckets were last dropped, in milliseconds.
    swept_ms: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Tokens spent, in units of 1/3,600,000 of a token; see [`TOKEN`].
    spent: u64,
    at_ms: u64,
}

/// One token, in units of which one millisecond refills `hourly`.
const TOKEN: u64 = 3_600_000;

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: Option<Rate>, closed: bool) -> Self {
        Self { rate, closed, left: DashMap::new(), swept_ms: AtomicU64::new(0) }
    }

    /// Takes tokens, or returns the milliseconds until there may be enough.
    fn take(&self, key: K, tokens: u64, now_ms: u64) -> Result<(), u32> {
        let Some(rate) = self.rate else { return Ok(()) };
        if self.left.len() >= BUCKETS && !self.left.contains_key(&key) {
            // A sweep visits every bucket, so it runs at most once a second.
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

/// Returns the bucket as of now. A clock that was set back refills nothing.
fn refilled(bucket: Bucket, rate: Rate, now_ms: u64) -> Bucket {
    let refill = now_ms.saturating_sub(bucket.at_ms).saturating_mul(rate.hourly);
    Bucket { spent: bucket.spent.saturating_sub(refill), at_ms: now_ms }
}

/// Buckets of all limits of an engine.
#[derive(Debug)]
pub(super) struct Limits {
    contact: Buckets<(UserId, UserId)>,
    stranger: Buckets<(UserId, UserId)>,
    device: Buckets<InstallationId>,
    inbound: Buckets<UserId>,
    outbound: Buckets<UserId>,
    requests: Buckets<UserId>,
    resolve: Buckets<UserId>,
    claims: Buckets<(UserId, UserId)>,
    claimed: Buckets<UserId>,
    claimant: Buckets<UserId>,
    links: Buckets<UserId>,
    failures: Buckets<UserId>,
    renewals: Buckets<InstallationId>,
    contact_changes: Buckets<UserId>,
    reports: Buckets<UserId>,
}

/// Milliseconds to wait before the next attempt.
pub(super) type Wait = u32;

impl Limits {
    pub(super) fn new(rates: &Rates) -> Self {
        Self {
            contact: Buckets::new(rates.contact, false),
            stranger: Buckets::new(rates.stranger, false),
            device: Buckets::new(rates.device, false),
            inbound: Buckets::new(rates.inbound, false),
            outbound: Buckets::new(rates.outbound, false),
            requests: Buckets::new(rates.requests, false),
            resolve: Buckets::new(rates.resolve, false),
            claims: Buckets::new(rates.claims, true),
            claimed: Buckets::new(rates.claimed, true),
            claimant: Buckets::new(rates.claimant, true),
            links: Buckets::new(rates.links, true),
            failures: Buckets::new(rates.failures, true),
            renewals: Buckets::new(rates.renewals, true),
            contact_changes: Buckets::new(rates.contact_changes, false),
            reports: Buckets::new(rates.reports, true),
        }
    }

    /// Returns whether messages from one user to another are limited.
    pub(super) const fn paces_pairs(&self) -> bool {
        self.contact.rate.is_some() || self.stranger.rate.is_some()
    }

    /// Whether strangers are limited.
    pub(super) const fn paces_strangers(&self) -> bool {
        self.stranger.rate.is_some()
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

    pub(super) fn bytes_from(&self, user: UserId, bytes: usize, now_ms: u64) -> Result<(), Wait> {
        self.outbound.take(user, bytes as u64, now_ms)
    }

    pub(super) fn request(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.requests.take(user, 1, now_ms)
    }

    pub(super) fn resolve(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.resolve.take(user, 1, now_ms)
    }

    /// Counts a claim. Call it only for a user that exists, so that a made-up user gets no bucket.
    pub(super) fn claim(&self, pair: (UserId, UserId), now_ms: u64) -> Result<(), Wait> {
        self.claimant.take(pair.0, 1, now_ms)?;
        self.claims.take(pair, 1, now_ms)?;
        self.claimed.take(pair.1, 1, now_ms)
    }

    pub(super) fn link(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.links.take(user, 1, now_ms)
    }

    pub(super) fn renew(&self, device: InstallationId, now_ms: u64) -> Result<(), Wait> {
        self.renewals.take(device, 1, now_ms)
    }

    pub(super) fn change_contact(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.contact_changes.take(user, 1, now_ms)
    }

    pub(super) fn report(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.reports.take(user, 1, now_ms)
    }

    /// Counts a failure. Fails if there were too many.
    pub(super) fn failed(&self, user: UserId, now_ms: u64) -> Result<(), Wait> {
        self.failures.take(user, 1, now_ms)
    }

    /// Checks the failures so far without counting one. Fails if there were too many already.
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
    fn bucket_allows_a_burst_then_the_refill_rate() {
        let buckets = Buckets::new(Some(Rate::new(3, 3600)), false);
        for _ in 0..3 {
            assert_eq!(buckets.take(1, 1, 0), Ok(()));
        }
        assert_eq!(buckets.take(1, 1, 0), Err(1000), "then one per second");
        assert_eq!(buckets.take(2, 1, 0), Ok(()), "another key has its own bucket");
        assert_eq!(buckets.take(1, 1, 999), Err(1));
        assert_eq!(buckets.take(1, 1, 1000), Ok(()));
        assert_eq!(buckets.take(1, 1, 500), Err(1000), "a clock set back refills nothing");
        assert_eq!(buckets.take(1, 4, 1 << 40), Err(1000), "a full bucket holds only the burst");
    }

    #[test]
    fn prekey_claims_are_limited_per_pair_and_per_owner() {
        let limits = Limits::new(&Rates::default());
        let user = |n| UserId::from_bytes([n; 16]);
        for _ in 0..6 {
            assert_eq!(limits.claim((user(1), user(0)), 0), Ok(()));
        }
        assert_eq!(limits.claim((user(1), user(0)), 0), Err(600_000), "then one per ten minutes");
        let taken = (2..=255).filter(|n| limits.claim((user(*n), user(0)), 0).is_ok()).count();
        assert_eq!(taken, 54, "60 per hour by all users");
    }

    #[test]
    fn wrong_signatures_lock_out_only_their_own_user() {
        let limits = Limits::new(&Rates::default());
        let user = |n| UserId::from_bytes([n; 16]);
        for _ in 0..5 {
            assert_eq!(limits.may_try(user(1), 0), Ok(()));
            assert_eq!(limits.failed(user(1), 0), Ok(()));
        }
        assert!(limits.may_try(user(1), 0).is_err() && limits.may_try(user(2), 0).is_ok());
        assert!(limits.may_try(user(1), 12_000).is_ok(), "then five per minute");
    }
}
