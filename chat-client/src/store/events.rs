//! Durable events, and the idempotency keys (`ref`) of the application.

use chat_core::replica::{Draft, Recipient};
use chat_core::{MessageId, Result, UserId};
use rusqlite::{OptionalExtension, params};

use super::{KnownKey, LocalStore, corrupt, digest, failed, read_events};
use crate::event::{Event, EventRecord};

impl LocalStore {
    /// Returns the number of the last durable event.
    ///
    /// # Errors
    /// If the store fails.
    pub fn last_event(&self) -> Result<u64> {
        self.db
            .query_row("SELECT coalesce(max(n), 0) FROM events", [], |row| row.get::<_, i64>(0))
            .map(|n| n as u64)
            .map_err(failed)
    }

    /// Returns durable events after a number, in order.
    ///
    /// # Errors
    /// If the store fails.
    pub fn events(&self, after: u64, limit: usize) -> Result<Vec<EventRecord>> {
        let mut statement = self
            .db
            .prepare_cached("SELECT n, event FROM events WHERE n > ?1 ORDER BY n LIMIT ?2")
            .map_err(failed)?;
        let rows = statement.query(params![after as i64, limit as i64]).map_err(failed)?;
        read_events(rows)
    }

    pub(super) fn add_event(&mut self, id: Option<MessageId>, event: &Event) -> Result<()> {
        let text = serde_json::to_string(event).map_err(|_| corrupt("failed to encode an event"))?;
        let id = id.map(|id| id.as_bytes().to_vec());
        self.run("INSERT INTO events (message_id, event) VALUES (?1, ?2)", params![id, text]).map(drop)
    }

    /// Records the refusal of a message that has no id, and commits the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub fn refuse(&mut self, idempotency_key: Option<String>, reason: &str) -> Result<EventRecord> {
        let event = Event::Refused { idempotency_key, message_id: None, reason: reason.to_owned() };
        self.add_event(None, &event)?;
        let n = self.db.last_insert_rowid() as u64;
        self.commit_open()?;
        Ok(EventRecord { n, event })
    }

    /// Returns the earlier use of a `ref`.
    ///
    /// # Errors
    /// If the store fails.
    pub fn find_key(&self, idempotency_key: &str, to: &Recipient, text: &str) -> Result<KnownKey> {
        let known: Option<(Vec<u8>, Vec<u8>)> = self
            .db
            .prepare_cached("SELECT message_id, digest FROM refs WHERE ref = ?1")
            .and_then(|mut s| s.query_row([idempotency_key], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(failed)?;
        let Some((id, known)) = known else {
            return Ok(KnownKey::New);
        };
        if known != digest(to, text) {
            return Ok(KnownKey::Other);
        }
        let mut statement = self
            .db
            .prepare_cached("SELECT n, event FROM events WHERE message_id = ?1 ORDER BY n")
            .map_err(failed)?;
        read_events(statement.query([id]).map_err(failed)?).map(KnownKey::Same)
    }

    /// Stores a `ref`, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub fn add_idempotency_key(&mut self, idempotency_key: &str, draft: &Draft, text: &str) -> Result<()> {
        self.run(
            "INSERT INTO refs VALUES (?1, ?2, ?3)",
            params![idempotency_key, draft.id.as_bytes(), digest(&draft.to, text)],
        )
        .map(drop)
    }

    pub(super) fn idempotency_key_of(&self, id: MessageId) -> Result<Option<String>> {
        self.db
            .prepare_cached("SELECT ref FROM refs WHERE message_id = ?1")
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)
    }

    /// Returns the name of a user: the handle, or the id in hexadecimal if the handle is unknown.
    ///
    /// # Errors
    /// If the store fails.
    pub fn name_of(&self, user: UserId) -> Result<String> {
        let handle: Option<String> = self
            .db
            .prepare_cached("SELECT handle FROM handles WHERE user = ?1")
            .and_then(|mut s| s.query_row([user.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        Ok(handle.unwrap_or_else(|| user.to_hex()))
    }
}
