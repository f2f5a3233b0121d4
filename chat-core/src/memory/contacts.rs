use std::collections::HashMap;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::backend::ContactStore;
use crate::model::contact::{Contact, ContactChange, Contacts};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::UserId;
use crate::model::presence::PresenceAudience;

/// A [`ContactStore`] in memory.
#[derive(Debug, Default)]
pub struct MemoryContacts(Mutex<HashMap<UserId, Owned>>);

#[derive(Clone, Debug, Default)]
struct Owned {
    version: u64,
    entries: HashMap<UserId, Contact>,
    audience: PresenceAudience,
}

#[cfg(feature = "sim")]
impl MemoryContacts {
    /// Returns a copy of all data.
    pub(crate) fn copy(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }
}

#[async_trait]
impl ContactStore for MemoryContacts {
    async fn contact(&self, owner: UserId, other: UserId) -> Result<Contact> {
        let all = self.0.lock();
        Ok(all.get(&owner).and_then(|owned| owned.entries.get(&other)).copied().unwrap_or_default())
    }

    async fn change(&self, owner: UserId, other: UserId, change: ContactChange, limit: usize) -> Result<u64> {
        let mut all = self.0.lock();
        let owned = all.entry(owner).or_default();
        let before = owned.entries.get(&other).copied();
        let after = change.apply(before.unwrap_or_default());
        if after == before.unwrap_or_default() {
            return Ok(owned.version);
        }
        if before.is_none() && owned.entries.len() >= limit {
            return Err(Error::new(ErrorKind::Throttled, "too many contacts"));
        }
        owned.entries.insert(other, after);
        owned.version += 1;
        Ok(owned.version)
    }

    async fn audience(&self, owner: UserId) -> Result<PresenceAudience> {
        Ok(self.0.lock().get(&owner).map(|owned| owned.audience).unwrap_or_default())
    }

    async fn set_audience(&self, owner: UserId, audience: PresenceAudience) -> Result<u64> {
        let mut all = self.0.lock();
        let owned = all.entry(owner).or_default();
        owned.version += u64::from(owned.audience != audience);
        owned.audience = audience;
        Ok(owned.version)
    }

    async fn version(&self, owner: UserId) -> Result<u64> {
        Ok(self.0.lock().get(&owner).map_or(0, |owned| owned.version))
    }

    async fn contacts(&self, owner: UserId) -> Result<Contacts> {
        let all = self.0.lock();
        let Some(owned) = all.get(&owner) else { return Ok(Contacts::default()) };
        let entries = owned.entries.iter().map(|(user, contact)| (*user, *contact)).collect();
        Ok(Contacts { version: owned.version, entries, audience: owned.audience })
    }

    async fn erase(&self, owner: UserId) -> Result<()> {
        self.0.lock().remove(&owner);
        Ok(())
    }
}
