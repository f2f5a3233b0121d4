use std::collections::BTreeMap;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::backend::ContactStore;
use crate::conformance::pause;
use crate::model::contact::{Contact, ContactChange, Contacts};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::UserId;
use crate::model::presence::PresenceAudience;

/// A rule of the [`ContactStore`] contract that a [`FaultyContacts`] breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ContactFault {
    UnknownPairAccepted,
    ChangeLost,
    HoldsInBothDirections,
    HoldsForEveryOwner,
    AcceptEndsBlock,
    BlockEndsAcceptance,
    UnblockEndsAcceptance,
    VersionStays,
    VersionOfAllOwners,
    RepeatRaisesVersion,
    EntriesOfAllOwners,
    EntryMissing,
    OneBlockedIsAll,
    NoLimit,
    LimitForKnownPairs,
    LimitOfAllOwners,
    /// Concurrent changes read the same entries before one of them writes.
    ConcurrentChangeLost,
    AudienceOfAllOwners,
    AudienceLost,
    AudienceNotInContacts,
    AudienceIsNoChange,
    RepeatedAudienceRaisesVersion,
    ErasedOwnerKeepsAudience,
    ErasedOwnerKeepsContacts,
    EraseHidesOtherOwners,
}

impl ContactFault {
    /// All faults.
    pub const ALL: [Self; 25] = [
        Self::UnknownPairAccepted,
        Self::ChangeLost,
        Self::HoldsInBothDirections,
        Self::HoldsForEveryOwner,
        Self::AcceptEndsBlock,
        Self::BlockEndsAcceptance,
        Self::UnblockEndsAcceptance,
        Self::VersionStays,
        Self::VersionOfAllOwners,
        Self::RepeatRaisesVersion,
        Self::EntriesOfAllOwners,
        Self::EntryMissing,
        Self::OneBlockedIsAll,
        Self::NoLimit,
        Self::LimitForKnownPairs,
        Self::LimitOfAllOwners,
        Self::ConcurrentChangeLost,
        Self::AudienceOfAllOwners,
        Self::AudienceLost,
        Self::AudienceNotInContacts,
        Self::AudienceIsNoChange,
        Self::RepeatedAudienceRaisesVersion,
        Self::ErasedOwnerKeepsAudience,
        Self::ErasedOwnerKeepsContacts,
        Self::EraseHidesOtherOwners,
    ];
}

/// A [`ContactStore`] in memory with at most one fault. Without one it passes the suite.
#[derive(Debug, Default)]
pub struct FaultyContacts {
    fault: Option<ContactFault>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By owner and other user.
    entries: BTreeMap<(UserId, UserId), Contact>,
    versions: BTreeMap<UserId, u64>,
    audiences: BTreeMap<UserId, PresenceAudience>,
}

impl FaultyContacts {
    /// Returns an empty store with this fault.
    pub fn new(fault: Option<ContactFault>) -> Self {
        Self { fault, inner: Mutex::default() }
    }

    fn has(&self, fault: ContactFault) -> bool {
        self.fault == Some(fault)
    }

    /// Returns the contact after a change.
    fn apply(&self, change: ContactChange, before: Contact) -> Contact {
        use ContactFault as F;
        let after = change.apply(before);
        match (self.fault, change) {
            (Some(F::AcceptEndsBlock), ContactChange::Accept) => Contact { blocked: false, ..after },
            (Some(F::BlockEndsAcceptance), ContactChange::Block)
            | (Some(F::UnblockEndsAcceptance), ContactChange::Unblock) => {
                Contact { accepted: false, ..after }
            }
            _ => after,
        }
    }

    /// Writes a change. `read` is the contact as it was read before.
    fn write(
        &self,
        key: (UserId, UserId),
        change: ContactChange,
        read: Option<Contact>,
        limit: usize,
    ) -> Result<()> {
        use ContactFault as F;
        let owner = key.0;
        let mut inner = self.inner.lock();
        let known = if self.has(F::ConcurrentChangeLost) { read } else { inner.entries.get(&key).copied() };
        let before = known.unwrap_or_default();
        let after = self.apply(change, before);
        let version = inner.versions.get(&owner).copied().unwrap_or(0);
        if after == before && !self.has(F::RepeatRaisesVersion) {
            return Ok(());
        }
        let pairs = inner.entries.keys().filter(|(of, _)| *of == owner || self.has(F::LimitOfAllOwners));
        let is_counted = known.is_none() || self.has(F::LimitForKnownPairs);
        if is_counted && pairs.count() >= limit && !self.has(F::NoLimit) {
            return Err(Error::new(ErrorKind::Throttled, "too many contacts"));
        }
        if !self.has(F::ChangeLost) || version < 3 {
            inner.entries.insert(key, after);
        }
        let version = if self.has(F::VersionStays) { 1 } else { version + 1 };
        inner.versions.insert(owner, version);
        Ok(())
    }
}

#[async_trait]
impl ContactStore for FaultyContacts {
    async fn contact(&self, owner: UserId, other: UserId) -> Result<Contact> {
        use ContactFault as F;
        let inner = self.inner.lock();
        if let Some(known) = inner.entries.get(&(owner, other)) {
            return Ok(*known);
        }
        let mut entries = inner.entries.iter();
        let found = match self.fault {
            Some(F::UnknownPairAccepted) => return Ok(Contact { accepted: true, blocked: false }),
            Some(F::HoldsInBothDirections) => inner.entries.get(&(other, owner)),
            Some(F::HoldsForEveryOwner) => entries.find(|((_, known), _)| *known == other).map(|(_, c)| c),
            Some(F::OneBlockedIsAll) => {
                entries.find(|((of, _), c)| *of == owner && c.blocked).map(|(_, c)| c)
            }
            _ => None,
        };
        Ok(found.copied().unwrap_or_default())
    }

    async fn change(&self, owner: UserId, other: UserId, change: ContactChange, limit: usize) -> Result<u64> {
        use ContactFault as F;
        let key = (owner, other);
        let read = self.inner.lock().entries.get(&key).copied();
        if self.has(F::ConcurrentChangeLost) {
            pause().await;
        }
        self.write(key, change, read, limit)?;
        self.version(owner).await
    }

    async fn audience(&self, owner: UserId) -> Result<PresenceAudience> {
        let inner = self.inner.lock();
        let found = match self.fault {
            Some(ContactFault::AudienceOfAllOwners) => inner.audiences.values().next_back(),
            _ => inner.audiences.get(&owner),
        };
        Ok(found.copied().unwrap_or_default())
    }

    async fn set_audience(&self, owner: UserId, audience: PresenceAudience) -> Result<u64> {
        use ContactFault as F;
        let is_changed =
            self.audience(owner).await? != audience || self.has(F::RepeatedAudienceRaisesVersion);
        {
            let mut inner = self.inner.lock();
            if is_changed && !self.has(F::AudienceIsNoChange) {
                *inner.versions.entry(owner).or_default() += 1;
            }
            if !self.has(F::AudienceLost) || audience != PresenceAudience::All {
                inner.audiences.insert(owner, audience);
            }
        }
        self.version(owner).await
    }

    async fn version(&self, owner: UserId) -> Result<u64> {
        let inner = self.inner.lock();
        if self.has(ContactFault::VersionOfAllOwners) {
            return Ok(inner.versions.values().sum());
        }
        Ok(inner.versions.get(&owner).copied().unwrap_or(0))
    }

    async fn contacts(&self, owner: UserId) -> Result<Contacts> {
        use ContactFault as F;
        let version = self.version(owner).await?;
        let audience = match self.fault {
            Some(F::AudienceNotInContacts) => PresenceAudience::default(),
            _ => self.audience(owner).await?,
        };
        let inner = self.inner.lock();
        let own = inner.entries.iter().filter(|((of, _), _)| *of == owner || self.has(F::EntriesOfAllOwners));
        let entries = own.skip(usize::from(self.has(F::EntryMissing)));
        let entries = entries.map(|((_, other), contact)| (*other, *contact)).collect();
        Ok(Contacts { version, entries, audience })
    }

    async fn erase(&self, owner: UserId) -> Result<()> {
        use ContactFault as F;
        let mut inner = self.inner.lock();
        let is_kept = |user: &UserId| *user != owner && !self.has(F::EraseHidesOtherOwners);
        if !self.has(F::ErasedOwnerKeepsContacts) {
            inner.entries.retain(|(of, _), _| is_kept(of));
        }
        inner.versions.retain(|of, _| is_kept(of));
        if !self.has(F::ErasedOwnerKeepsAudience) {
            inner.audiences.retain(|of, _| is_kept(of));
        }
        Ok(())
    }
}
