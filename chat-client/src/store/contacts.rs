//! The decisions of this user about other users, as far as this device knows them, and keys for reports.

use std::collections::BTreeMap;

use chat_core::contact::{Contact, ContactChange, Contacts};
use chat_core::presence::PresenceAudience;
use chat_core::{ConversationId, Result, Seq, UserId};
use rusqlite::{OptionalExtension, params};

use super::{LocalStore, blob, failed, number};
use crate::contact::Relation;

/// Returns the entry of each user in two lists of contacts.
fn pairs(first: &[(UserId, Contact)], second: &[(UserId, Contact)]) -> BTreeMap<UserId, [Contact; 2]> {
    let mut pairs: BTreeMap<UserId, [Contact; 2]> = BTreeMap::new();
    for (n, list) in [first, second].into_iter().enumerate() {
        for (user, contact) in list {
            pairs.entry(*user).or_default()[n] = *contact;
        }
    }
    pairs
}

/// The version of the stored contacts.
const VERSION: &str = "contacts_version";
/// The number of the audience of this user's presence.
const AUDIENCE: &str = "presence_audience";

impl LocalStore {
    /// Returns the version of the contacts; 0 if there are none.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn contacts_version(&self) -> Result<u64> {
        self.meta_number(VERSION)
    }

    /// Returns the decision about a user.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn contact(&self, user: UserId) -> Result<Contact> {
        let found = self
            .db
            .prepare_cached("SELECT accepted, blocked FROM contacts WHERE user = ?1")
            .and_then(|mut s| {
                let contact =
                    |row: &rusqlite::Row<'_>| Ok(Contact { accepted: row.get(0)?, blocked: row.get(1)? });
                s.query_row([user.as_bytes()], contact).optional()
            })
            .map_err(failed)?;
        Ok(found.unwrap_or_default())
    }

    /// Returns all contacts.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn contacts(&self) -> Result<Contacts> {
        let entries = self.rows("SELECT user, accepted, blocked FROM contacts", |row| {
            let contact = Contact { accepted: number(row, 1)? != 0, blocked: number(row, 2)? != 0 };
            Ok((UserId::parse(&blob(row, 0)?)?, contact))
        })?;
        Ok(Contacts { version: self.contacts_version()?, entries, audience: self.presence_audience()? })
    }

    /// Returns the users that learn the presence of this user.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn presence_audience(&self) -> Result<PresenceAudience> {
        let number = self.meta(AUDIENCE)?.and_then(|value| value.first().copied());
        Ok(number.and_then(PresenceAudience::from_number).unwrap_or_default())
    }

    /// Records the users that learn the presence of this user, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn set_presence_audience(&mut self, audience: PresenceAudience) -> Result<()> {
        self.set_meta(AUDIENCE, &[audience.number()])
    }

    /// Records a decision about a user, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn set_contact(&mut self, user: UserId, contact: Contact) -> Result<()> {
        self.revisions.touch_all();
        self.run(
            "INSERT OR REPLACE INTO contacts VALUES (?1, ?2, ?3)",
            params![user.as_bytes(), contact.accepted, contact.blocked],
        )
        .map(drop)
    }

    /// Replaces all contacts, in the open transaction. Returns the users with a changed entry.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn replace_contacts(&mut self, contacts: &Contacts) -> Result<Vec<UserId>> {
        let before = self.contacts()?.entries;
        self.revisions.touch_all();
        self.run("DELETE FROM contacts", [])?;
        for (user, contact) in &contacts.entries {
            self.set_contact(*user, *contact)?;
        }
        self.set_presence_audience(contacts.audience)?;
        self.set_contacts_version(contacts.version)?;
        let pairs = pairs(&before, &contacts.entries);
        Ok(pairs.into_iter().filter(|(_, [old, new])| old != new).map(|(user, _)| user).collect())
    }

    /// Returns the changes that give the server the decisions of this device: blocks first.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn changes_missing_from(&self, server: &Contacts) -> Result<Vec<(UserId, ContactChange)>> {
        let (mut blocks, mut others) = (Vec::new(), Vec::new());
        for (user, [own, server]) in pairs(&self.contacts()?.entries, &server.entries) {
            match (own.blocked, server.blocked) {
                (true, false) => blocks.push((user, ContactChange::Block)),
                (false, true) => others.push((user, ContactChange::Unblock)),
                _ => {}
            }
            if own.accepted && !server.accepted {
                others.push((user, ContactChange::Accept));
            }
        }
        blocks.append(&mut others);
        Ok(blocks)
    }

    /// Records the version of the contacts, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn set_contacts_version(&mut self, version: u64) -> Result<()> {
        self.set_meta(VERSION, &version.to_be_bytes())
    }

    /// Returns the relation of this user to another one.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn relation(&self, user: UserId) -> Result<Relation> {
        let contact = self.contact(user)?;
        if contact.blocked {
            return Ok(Relation::Blocked);
        }
        let own = self.own_user()?;
        if contact.accepted
            || user == own
            || self.has_written(ConversationId::direct(own, user))?
            || self.has_queued_for(user)?
        {
            return Ok(Relation::Contact);
        }
        Ok(Relation::Stranger)
    }

    /// Returns whether this device has stored a message in a conversation.
    pub(super) fn has_written(&self, conversation: ConversationId) -> Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM conversations WHERE id = ?1 AND last_own > 0")
            .and_then(|mut s| s.exists([conversation.as_bytes()]))
            .map_err(failed)
    }

    /// Returns whether a message to a user waits in the outbox: it accepts the user once it is stored.
    fn has_queued_for(&self, user: UserId) -> Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM outbox WHERE user = ?1 AND installation IS NULL AND void = 0")
            .and_then(|mut s| s.exists([user.as_bytes()]))
            .map_err(failed)
    }

    /// Returns the body key of a received message, if this device has it.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn body_key(&self, conversation: ConversationId, seq: Seq) -> Result<Option<[u8; 32]>> {
        let key: Option<Option<Vec<u8>>> = self
            .db
            .prepare_cached("SELECT body_key FROM messages WHERE conversation = ?1 AND seq = ?2")
            .and_then(|mut s| {
                s.query_row(params![conversation.as_bytes(), seq as i64], |row| row.get(0)).optional()
            })
            .map_err(failed)?;
        Ok(key.flatten().and_then(|key| key.try_into().ok()))
    }
}
