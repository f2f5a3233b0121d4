//! Contacts: one partition for each owner. Every change is conditional on the owner's version.

use async_trait::async_trait;
use chat_core::backend::ContactStore;
use chat_core::contact::{Contact, ContactChange, Contacts};
use chat_core::presence::PresenceAudience;
use chat_core::{Error, ErrorKind, Result, UserId};
use scylla::value::CqlValue;

use super::commit::{big, blob};
use super::connection::Write;
use super::directory::{TRIES, contended, optional};
use super::{CassandraStore, corrupt, signed, unsigned};

/// Entries that one batch erases: Cassandra refuses batches above 50 KiB.
const PIECE: usize = 50;

type Entry = (Option<Vec<u8>>, Option<bool>, Option<bool>, Option<i64>);

/// Returns the entry of an owner with itself, which is never a contact: it holds the audience.
const fn entry_of(audience: PresenceAudience) -> Contact {
    Contact {
        accepted: matches!(audience, PresenceAudience::All),
        blocked: matches!(audience, PresenceAudience::Nobody),
    }
}

const fn audience_of(entry: Contact) -> PresenceAudience {
    match entry {
        Contact { blocked: true, .. } => PresenceAudience::Nobody,
        Contact { accepted: true, .. } => PresenceAudience::All,
        _ => PresenceAudience::Contacts,
    }
}

impl CassandraStore {
    /// Returns the version of a user's contacts and the number of pairs, if the user has any.
    async fn contacts_head(&self, owner: UserId) -> Result<Option<(i64, i64)>> {
        let rows =
            self.connection.rows(&self.connection.statements.contacts_head, (&owner.as_bytes()[..],)).await?;
        let row = rows.maybe_first_row::<(Option<i64>, Option<i64>)>().map_err(|_| corrupt())?;
        Ok(row.and_then(|(version, pairs)| Some((version?, pairs.unwrap_or(0)))))
    }

    async fn find_contact(&self, owner: UserId, other: UserId) -> Result<Option<Contact>> {
        let key = (&owner.as_bytes()[..], &other.as_bytes()[..]);
        let rows = self.connection.rows(&self.connection.statements.contact, key).await?;
        let row = rows.maybe_first_row::<(Option<bool>, Option<bool>)>().map_err(|_| corrupt())?;
        Ok(row.map(|(accepted, blocked)| Contact {
            accepted: accepted.unwrap_or(false),
            blocked: blocked.unwrap_or(false),
        }))
    }

    /// Replaces an entry of an owner by the one that `apply` returns. Returns the version after the change.
    async fn change_entry(
        &self,
        owner: UserId,
        other: UserId,
        apply: impl Fn(Contact) -> Contact,
        limit: usize,
    ) -> Result<u64> {
        for _ in 0..TRIES {
            let head = self.contacts_head(owner).await?;
            let known = self.find_contact(owner, other).await?;
            let (version, pairs) = head.unwrap_or_default();
            let before = known.unwrap_or_default();
            let after = apply(before);
            if after == before {
                return Ok(unsigned(version));
            }
            let is_new_pair = known.is_none() && other != owner;
            if is_new_pair && unsigned(pairs) >= limit as u64 {
                return Err(Error::new(ErrorKind::Throttled, "too many contacts"));
            }
            let next = version + 1;
            let pairs = pairs + i64::from(is_new_pair);
            let writes = [
                Write {
                    statement: &self.connection.statements.put_contact,
                    values: vec![
                        blob(owner.as_bytes()),
                        blob(other.as_bytes()),
                        CqlValue::Boolean(after.accepted),
                        CqlValue::Boolean(after.blocked),
                    ],
                },
                Write {
                    statement: &self.connection.statements.put_contacts_head,
                    values: vec![
                        big(next),
                        big(pairs),
                        blob(owner.as_bytes()),
                        optional(head.map(|(version, _)| big(version))),
                    ],
                },
            ];
            if self.connection.batch_applied(&writes).await? {
                return Ok(unsigned(next));
            }
        }
        Err(contended())
    }
}

#[async_trait]
impl ContactStore for CassandraStore {
    async fn contact(&self, owner: UserId, other: UserId) -> Result<Contact> {
        Ok(self.find_contact(owner, other).await?.unwrap_or_default())
    }

    async fn change(&self, owner: UserId, other: UserId, change: ContactChange, limit: usize) -> Result<u64> {
        self.change_entry(owner, other, |before| change.apply(before), limit).await
    }

    async fn audience(&self, owner: UserId) -> Result<PresenceAudience> {
        Ok(audience_of(self.find_contact(owner, owner).await?.unwrap_or_default()))
    }

    async fn set_audience(&self, owner: UserId, audience: PresenceAudience) -> Result<u64> {
        self.change_entry(owner, owner, |_| entry_of(audience), usize::MAX).await
    }

    async fn version(&self, owner: UserId) -> Result<u64> {
        Ok(self.contacts_head(owner).await?.map_or(0, |(version, _)| unsigned(version)))
    }

    async fn contacts(&self, owner: UserId) -> Result<Contacts> {
        let rows =
            self.connection.rows(&self.connection.statements.contacts, (&owner.as_bytes()[..],)).await?;
        let mut contacts = Contacts::default();
        // A partition without entries reads as one row without a user.
        for row in rows.rows::<Entry>().map_err(|_| corrupt())? {
            let (other, accepted, blocked, version) = row.map_err(|_| corrupt())?;
            contacts.version = version.map_or(0, unsigned);
            let Some(other) = other else { continue };
            let other = UserId::parse(&other).map_err(|_| corrupt())?;
            let entry = Contact { accepted: accepted.unwrap_or(false), blocked: blocked.unwrap_or(false) };
            if other == owner {
                contacts.audience = audience_of(entry);
            } else {
                contacts.entries.push((other, entry));
            }
        }
        Ok(contacts)
    }

    async fn erase(&self, owner: UserId) -> Result<()> {
        let mut tries = 0;
        while tries < TRIES {
            let Some((version, pairs)) = self.contacts_head(owner).await? else { return Ok(()) };
            let mut entries = self.contacts(owner).await?.entries;
            let is_last = entries.len() <= PIECE;
            entries.truncate(PIECE);
            let left = pairs - signed(entries.len() as u64);
            let mut writes: Vec<Write<'_>> = Vec::new();
            let own_entry = is_last.then_some(owner);
            for other in entries.into_iter().map(|(other, _)| other).chain(own_entry) {
                let values = vec![blob(owner.as_bytes()), blob(other.as_bytes())];
                writes.push(Write { statement: &self.connection.statements.drop_contact, values });
            }
            let (statement, values) = if is_last {
                (&self.connection.statements.drop_contacts_head, vec![blob(owner.as_bytes()), big(version)])
            } else {
                let values = vec![big(version + 1), big(left), blob(owner.as_bytes()), big(version)];
                (&self.connection.statements.put_contacts_head, values)
            };
            writes.push(Write { statement, values });
            match self.connection.batch_applied(&writes).await? {
                true if is_last => return Ok(()),
                true => {}
                false => tries += 1,
            }
        }
        Err(contended())
    }
}

impl CassandraStore {
    /// Writes the contacts of a data set that is copied to the keyspace.
    pub(super) async fn import_contacts(&self, owner: UserId, contacts: &Contacts) -> Result<()> {
        if contacts.version == 0 {
            return Ok(());
        }
        let statements = &self.connection.statements;
        let pairs = signed(contacts.entries.len() as u64);
        let head = vec![big(signed(contacts.version)), big(pairs), blob(owner.as_bytes())];
        let mut writes = vec![Write { statement: &statements.import_contacts_head, values: head }];
        let audience = (owner, entry_of(contacts.audience));
        writes.extend(contacts.entries.iter().chain([&audience]).map(|(other, contact)| Write {
            statement: &statements.import_contact,
            values: vec![
                blob(owner.as_bytes()),
                blob(other.as_bytes()),
                CqlValue::Boolean(contact.accepted),
                CqlValue::Boolean(contact.blocked),
            ],
        }));
        self.write_partition(&writes).await
    }
}
