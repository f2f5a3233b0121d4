//! Contacts. The writer's thread applies changes one after the other, and they share its syncs.

use async_trait::async_trait;
use chat_core::backend::ContactStore;
use chat_core::contact::{Contact, ContactChange, Contacts};
use chat_core::presence::PresenceAudience;
use chat_core::{Error, ErrorKind, Result, UserId};
use fjall::OwnedWriteBatch;

use super::{EmbeddedStore, Tables, corrupt, failed, keys};

const ACCEPTED: u8 = 1;
const BLOCKED: u8 = 2;

fn pair(owner: UserId, other: UserId) -> Vec<u8> {
    [&owner.as_bytes()[..], other.as_bytes()].concat()
}

fn read_value(value: &[u8]) -> Result<Contact> {
    match value {
        [flags] => Ok(Contact { accepted: flags & ACCEPTED > 0, blocked: flags & BLOCKED > 0 }),
        _ => Err(corrupt()),
    }
}

const fn value(contact: Contact) -> u8 {
    (if contact.accepted { ACCEPTED } else { 0 }) | (if contact.blocked { BLOCKED } else { 0 })
}

/// The key of the audience is the pair of the owner with itself, which is never a contact.
fn audience_key(owner: UserId) -> Vec<u8> {
    pair(owner, owner)
}

fn audience(value: &[u8]) -> Result<PresenceAudience> {
    match value {
        [number] => PresenceAudience::from_number(*number).ok_or_else(corrupt),
        _ => Err(corrupt()),
    }
}

fn head(version: u64, pairs: u64) -> Vec<u8> {
    [version.to_be_bytes(), pairs.to_be_bytes()].concat()
}

impl Tables {
    fn read_contact(&self, owner: UserId, other: UserId) -> Result<Option<Contact>> {
        let found = self.contacts.get(pair(owner, other)).map_err(failed)?;
        found.map(|value| read_value(&value)).transpose()
    }

    /// Returns the version of a user's contacts, and the number of pairs.
    fn read_contacts_head(&self, owner: UserId) -> Result<(u64, u64)> {
        match self.contacts.get(owner.as_bytes()).map_err(failed)? {
            Some(head) if head.len() == 16 => Ok((keys::number(&head[..8])?, keys::number(&head[8..])?)),
            Some(_) => Err(corrupt()),
            None => Ok((0, 0)),
        }
    }

    pub(super) fn read_contacts(&self, owner: UserId) -> Result<Contacts> {
        // One view of the data: the entries are those of the version.
        let mut contacts = Contacts::default();
        for guard in self.contacts.prefix(owner.as_bytes()) {
            let (key, value) = guard.into_inner().map_err(failed)?;
            match key.get(16..).unwrap_or_default() {
                [] => contacts.version = keys::number(value.get(..8).ok_or_else(corrupt)?)?,
                other if other == owner.as_bytes() => contacts.audience = audience(&value)?,
                other => {
                    let other = UserId::parse(other).map_err(|_| corrupt())?;
                    contacts.entries.push((other, read_value(&value)?));
                }
            }
        }
        Ok(contacts)
    }

    /// Returns the version after a change, and the batch that it writes, if any.
    fn change_contact(
        &self,
        owner: UserId,
        other: UserId,
        change: ContactChange,
        limit: usize,
    ) -> Result<(u64, Option<OwnedWriteBatch>)> {
        let known = self.read_contact(owner, other)?;
        let (version, pairs) = self.read_contacts_head(owner)?;
        let before = known.unwrap_or_default();
        let after = change.apply(before);
        if after == before {
            return Ok((version, None));
        }
        if known.is_none() && pairs >= limit as u64 {
            return Err(Error::new(ErrorKind::Throttled, "too many contacts"));
        }
        let pairs = pairs + u64::from(known.is_none());
        let mut batch = self.database.batch();
        batch.insert(&self.contacts, pair(owner, other), [value(after)]);
        batch.insert(&self.contacts, &owner.as_bytes()[..], head(version + 1, pairs));
        Ok((version + 1, Some(batch)))
    }

    fn read_audience(&self, owner: UserId) -> Result<PresenceAudience> {
        let found = self.contacts.get(audience_key(owner)).map_err(failed)?;
        found.map_or(Ok(PresenceAudience::default()), |value| audience(&value))
    }

    /// Returns the version after a change of the audience, and the batch that it writes, if any.
    fn change_audience(
        &self,
        owner: UserId,
        audience: PresenceAudience,
    ) -> Result<(u64, Option<OwnedWriteBatch>)> {
        let (version, pairs) = self.read_contacts_head(owner)?;
        if self.read_audience(owner)? == audience {
            return Ok((version, None));
        }
        let mut batch = self.database.batch();
        batch.insert(&self.contacts, audience_key(owner), [audience.number()]);
        batch.insert(&self.contacts, &owner.as_bytes()[..], head(version + 1, pairs));
        Ok((version + 1, Some(batch)))
    }
}

#[async_trait]
impl ContactStore for EmbeddedStore {
    async fn contact(&self, owner: UserId, other: UserId) -> Result<Contact> {
        Ok(self.tables.read_contact(owner, other)?.unwrap_or_default())
    }

    async fn change(&self, owner: UserId, other: UserId, change: ContactChange, limit: usize) -> Result<u64> {
        self.writer.change(move |tables| tables.change_contact(owner, other, change, limit)).await
    }

    async fn audience(&self, owner: UserId) -> Result<PresenceAudience> {
        self.tables.read_audience(owner)
    }

    async fn set_audience(&self, owner: UserId, audience: PresenceAudience) -> Result<u64> {
        self.writer.change(move |tables| tables.change_audience(owner, audience)).await
    }

    async fn version(&self, owner: UserId) -> Result<u64> {
        Ok(self.tables.read_contacts_head(owner)?.0)
    }

    async fn contacts(&self, owner: UserId) -> Result<Contacts> {
        self.tables.read_contacts(owner)
    }

    async fn erase(&self, owner: UserId) -> Result<()> {
        self.writer
            .change(move |tables| {
                let mut batch = tables.database.batch();
                for guard in tables.contacts.prefix(owner.as_bytes()) {
                    batch.remove(&tables.contacts, guard.key().map_err(failed)?);
                }
                Ok(((), Some(batch)))
            })
            .await
    }
}
