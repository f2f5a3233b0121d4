//! Durable events, the cursors of programs in them, and the idempotency keys of messages.
//!
//! A stored event holds ids, never text, so that a message that is deleted leaves no copy in an event.

use std::collections::HashSet;

use chat_core::group::GroupAction;
use chat_core::replica::{Draft, Recipient, Unreadable, Violation};
use chat_core::{ConversationId, DeviceAddress, DeviceId, InstallationId, MessageId, Result, UserId};
use prost::Message as _;
use rusqlite::{OptionalExtension, params};

use super::history::StoredContent;
use super::{KnownKey, LocalStore, corrupt, digest, failed, number};
use crate::content::change_in;
use crate::event::{Event, EventRecord, GapReason, RefusedReason};
use crate::message::MessageRef;
use crate::message_change::MessageChange;

/// The kind of a stored event. The numbers are permanent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EventKind {
    Queued = 1,
    Stored = 2,
    Refused = 3,
    Message = 4,
    Recovered = 5,
    Delivered = 6,
    Read = 7,
    Gap = 8,
    IdentityChanged = 9,
    DeviceAdded = 10,
    Integrity = 11,
    ServerRestored = 12,
    GroupChanged = 13,
    MessageChanged = 14,
    MessageDisappeared = 15,
}

impl EventKind {
    const ALL: [Self; 15] = [
        Self::Queued,
        Self::Stored,
        Self::Refused,
        Self::Message,
        Self::Recovered,
        Self::Delivered,
        Self::Read,
        Self::Gap,
        Self::IdentityChanged,
        Self::DeviceAdded,
        Self::Integrity,
        Self::ServerRestored,
        Self::GroupChanged,
        Self::MessageChanged,
        Self::MessageDisappeared,
    ];

    fn read(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// An event as it is stored. Each kind uses some of the fields; later versions may add fields and kinds.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct EventRow {
    #[prost(uint32, tag = "1")]
    pub(super) kind: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) conversation: Vec<u8>,
    /// The seq, or the first one.
    #[prost(uint64, tag = "3")]
    pub(super) seq: u64,
    /// The last seq of a gap.
    #[prost(uint64, tag = "4")]
    pub(super) to_seq: u64,
    /// The user, or the sender.
    #[prost(bytes = "vec", tag = "5")]
    pub(super) user: Vec<u8>,
    #[prost(uint32, tag = "6")]
    pub(super) device: u32,
    /// The installation of the sender.
    #[prost(bytes = "vec", tag = "7")]
    pub(super) installation: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    pub(super) message: Vec<u8>,
    #[prost(string, tag = "9")]
    pub(super) reason: String,
    /// The encoded action of a change of a group.
    #[prost(bytes = "vec", tag = "10")]
    pub(super) action: Vec<u8>,
}

impl EventRow {
    /// Returns an event of a kind that has no fields yet.
    pub(super) fn new(kind: EventKind) -> Self {
        Self { kind: kind as u32, ..Self::default() }
    }

    /// Returns the event of a violation. Its two numbers are `seq` and `to_seq`.
    pub(super) fn of_violation(
        conversation: ConversationId,
        device: Option<DeviceAddress>,
        violation: Violation,
    ) -> Self {
        let (seq, to_seq) = violation.numbers();
        Self {
            conversation: conversation.as_bytes().to_vec(),
            user: device.map(|device| device.user.as_bytes().to_vec()).unwrap_or_default(),
            device: device.map_or(0, |device| u32::from(device.device.get())),
            reason: violation.name().into(),
            seq,
            to_seq,
            ..Self::new(EventKind::Integrity)
        }
    }

    pub(super) fn of_message(
        kind: EventKind,
        conversation: ConversationId,
        seq: u64,
        sender: DeviceAddress,
        id: MessageId,
    ) -> Self {
        Self {
            conversation: conversation.as_bytes().to_vec(),
            seq,
            user: sender.user.as_bytes().to_vec(),
            device: u32::from(sender.device.get()),
            installation: sender.installation.as_bytes().to_vec(),
            message: id.as_bytes().to_vec(),
            ..Self::new(kind)
        }
    }
}

/// The changes of a conversation that durable events report.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// The messages to read again. An own one may be in another conversation.
    pub(crate) messages: Vec<MessageRef>,
    /// Receipts of direct messages.
    pub(crate) has_receipts: bool,
    /// Changes of a group.
    pub(crate) has_members: bool,
    pub(crate) last_event: u64,
}

impl LocalStore {
    /// Returns the number of the last durable event.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn last_event(&self) -> Result<u64> {
        self.db
            .prepare_cached("SELECT coalesce(max(n), 0) FROM events")
            .and_then(|mut s| s.query_row([], |row| row.get::<_, i64>(0)))
            .map(|n| n as u64)
            .map_err(failed)
    }

    /// Returns durable events after a number, in order.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn events(&self, after: u64, limit: usize) -> Result<Vec<EventRecord>> {
        let mut statement = self
            .db
            .prepare_cached("SELECT n, message_id, event FROM events WHERE n > ?1 ORDER BY n LIMIT ?2")
            .map_err(failed)?;
        self.read_events(statement.query(params![after as i64, limit as i64]).map_err(failed)?)
    }

    /// Returns the messages of a conversation that durable events after a number name; `None` if there are more events than the
    /// limit.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn touched_messages(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: usize,
    ) -> Result<Option<Touched>> {
        let (own, of) = (self.own_user()?, conversation.as_bytes().as_slice());
        let rows = self.event_rows(after, limit + 1)?;
        if rows.len() > limit {
            return Ok(None);
        }
        let mut touched = Touched { last_event: after, ..Touched::default() };
        for (n, own_message, row) in rows {
            touched.last_event = n;
            if let Some(id) = own_message {
                // A queued or refused message names no conversation.
                touched.messages.push(MessageRef { conversation, user: own, id });
                continue;
            }
            match EventKind::read(row.kind).filter(|_| row.conversation == of) {
                Some(EventKind::Message | EventKind::Recovered | EventKind::MessageDisappeared) => {
                    let (user, id) = (UserId::parse(&row.user)?, MessageId::parse(&row.message)?);
                    touched.messages.push(MessageRef { conversation, user, id });
                }
                Some(EventKind::MessageChanged) => {
                    touched.messages.extend(self.target_of(conversation, &row.installation, &row.message)?);
                }
                Some(EventKind::Delivered | EventKind::Read) => touched.has_receipts = true,
                Some(EventKind::GroupChanged) => {
                    touched.has_members = true;
                    let (user, id) = (UserId::parse(&row.user)?, MessageId::parse(&row.message)?);
                    touched.messages.push(MessageRef { conversation, user, id });
                }
                _ => {}
            }
        }
        let mut seen = HashSet::new();
        touched.messages.retain(|message| seen.insert(*message));
        Ok(Some(touched))
    }

    pub(super) fn event_rows(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Option<MessageId>, EventRow)>> {
        self.rows_with(
            "SELECT n, message_id, event FROM events WHERE n > ?1 ORDER BY n LIMIT ?2",
            params![after as i64, limit as i64],
            |row| {
                let message: Option<Vec<u8>> = row.get(1).map_err(failed)?;
                let event = EventRow::decode(&super::blob(row, 2)?[..]);
                let event = event.map_err(|_| corrupt("failed to decode an event"))?;
                Ok((number(row, 0)?, message.map(|id| MessageId::parse(&id)).transpose()?, event))
            },
        )
    }

    /// Returns the durable events of an own message, in order.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn events_of(&self, message: MessageId) -> Result<Vec<EventRecord>> {
        let mut statement = self
            .db
            .prepare_cached("SELECT n, message_id, event FROM events WHERE message_id = ?1 ORDER BY n")
            .map_err(failed)?;
        self.read_events(statement.query([message.as_bytes()]).map_err(failed)?)
    }

    fn read_events(&self, mut rows: rusqlite::Rows<'_>) -> Result<Vec<EventRecord>> {
        let mut events = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let message: Option<Vec<u8>> = row.get(1).map_err(failed)?;
            let event: Vec<u8> = row.get(2).map_err(failed)?;
            let event = EventRow::decode(&event[..]).map_err(|_| corrupt("failed to decode an event"))?;
            let message = message.map(|id| MessageId::parse(&id)).transpose()?;
            events.push(EventRecord::durable(number(row, 0)?, self.read_event(&event, message)?));
        }
        Ok(events)
    }

    fn read_event(&self, row: &EventRow, own_message: Option<MessageId>) -> Result<Event> {
        let conversation = || ConversationId::parse(&row.conversation);
        let user = || self.user(UserId::parse(&row.user)?);
        let own = || own_message.ok_or(corrupt("an event names no message"));
        let Some(kind) = EventKind::read(row.kind) else { return Ok(Event::Unsupported) };
        Ok(match kind {
            EventKind::Queued => {
                Event::Queued { message: own()?, idempotency_key: self.idempotency_key_of(own()?)? }
            }
            EventKind::Stored => Event::Stored {
                message: own()?,
                idempotency_key: self.idempotency_key_of(own()?)?,
                conversation: conversation()?,
                seq: row.seq,
            },
            EventKind::Refused => Event::Refused {
                message: own()?,
                idempotency_key: self.idempotency_key_of(own()?)?,
                reason: RefusedReason::from_name(&row.reason),
            },
            EventKind::Message => Event::Message(self.read_message_event(row)?),
            EventKind::Recovered => Event::Recovered(self.read_message_event(row)?),
            EventKind::Delivered => {
                Event::Delivered { conversation: conversation()?, user: user()?, seq: row.seq }
            }
            EventKind::Read => Event::Read { conversation: conversation()?, user: user()?, seq: row.seq },
            EventKind::Gap => Event::Gap {
                conversation: conversation()?,
                from_seq: row.seq,
                to_seq: row.to_seq,
                reason: GapReason::from_name(&row.reason),
            },
            EventKind::ServerRestored => {
                Event::ServerRestored { conversation: conversation()?, after_seq: row.seq }
            }
            EventKind::GroupChanged => match GroupAction::decode(&row.action) {
                Ok(action) => {
                    Event::GroupChanged { group: conversation()?, seq: row.seq, user: user()?, action }
                }
                Err(_) => Event::Unsupported,
            },
            EventKind::MessageChanged => match self.read_message_change(row)? {
                Some((message, change)) => {
                    Event::MessageChanged { seq: row.seq, user: user()?, message, change }
                }
                None => Event::Unsupported,
            },
            EventKind::MessageDisappeared => Event::MessageDisappeared {
                message: MessageRef {
                    conversation: conversation()?,
                    user: UserId::parse(&row.user)?,
                    id: MessageId::parse(&row.message)?,
                },
                seq: row.seq,
            },
            EventKind::IdentityChanged => Event::IdentityChanged { user: user()? },
            EventKind::Integrity => {
                let Some(violation) = Violation::from_name(&row.reason, (row.seq, row.to_seq)) else {
                    return Ok(Event::Unsupported);
                };
                let has_device = !row.user.is_empty();
                Event::Integrity {
                    conversation: conversation()?,
                    user: has_device.then(user).transpose()?,
                    device: has_device.then(|| DeviceId::new(row.device)).transpose()?,
                    violation,
                }
            }
            EventKind::DeviceAdded => {
                Event::DeviceAdded { user: user()?, device: DeviceId::new(row.device)? }
            }
        })
    }

    /// Returns the change that the message of an event makes. Once its target is deleted, only the deletion is left.
    fn read_message_change(&self, row: &EventRow) -> Result<Option<(MessageRef, MessageChange)>> {
        let conversation = ConversationId::parse(&row.conversation)?;
        let content = self.content_of(row)?.content;
        match content.filter(|content| !content.is_empty()) {
            Some(content) => Ok(change_in(conversation, &content)),
            None => {
                let target = self.target_at(conversation, row.seq)?;
                Ok(target.map(|target| (target, MessageChange::Deleted)))
            }
        }
    }

    /// Returns the content of the message of an event.
    fn content_of(&self, row: &EventRow) -> Result<StoredContent> {
        let stored = self
            .db
            .prepare_cached(
                "SELECT content, sent_at, group_action FROM messages WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
            )
            .and_then(|mut s| {
                let key = params![row.installation, row.message, row.conversation];
                s.query_row(key, |row| {
                    let sent_at: i64 = row.get(1)?;
                    let sent_at_ms = sent_at.max(0).cast_unsigned();
                    Ok(StoredContent { content: row.get(0)?, sent_at_ms, action: row.get(2)? })
                })
                .optional()
            })
            .map_err(failed)?;
        Ok(stored.unwrap_or_default())
    }

    fn read_message_event(&self, row: &EventRow) -> Result<crate::message::Message> {
        let sender = DeviceAddress {
            user: UserId::parse(&row.user)?,
            device: DeviceId::new(row.device)?,
            installation: InstallationId::parse(&row.installation)?,
        };
        let (conversation, id) = (ConversationId::parse(&row.conversation)?, MessageId::parse(&row.message)?);
        let mut stored = self.content_of(row)?;
        // The event stays as it was, although the content may have been recovered.
        let why = Unreadable::from_name(&row.reason);
        stored.content = stored.content.filter(|_| why.is_none());
        let why = why.unwrap_or(Unreadable::Malformed);
        self.message(conversation, row.seq, id, (sender.user, sender.device), stored, why)
    }

    pub(super) fn add_event(&mut self, own_message: Option<MessageId>, event: EventRow) -> Result<()> {
        let id = own_message.map(|id| id.as_bytes().to_vec());
        self.run("INSERT INTO events (message_id, event) VALUES (?1, ?2)", params![id, event.encode_to_vec()])
            .map(drop)
    }

    /// Returns the number of the last event that a program handled under this cursor; 0 for a new cursor.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn event_cursor(&self, name: &str) -> Result<u64> {
        let number: Option<i64> = self
            .db
            .prepare_cached("SELECT n FROM event_cursors WHERE name = ?1")
            .and_then(|mut s| s.query_row([name], |row| row.get(0)).optional())
            .map_err(failed)?;
        Ok(number.unwrap_or(0) as u64)
    }

    /// Advances a cursor, in the open transaction. A cursor never goes back.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn set_event_cursor(&mut self, name: &str, number: u64) -> Result<()> {
        self.run(
            "INSERT INTO event_cursors VALUES (?1, ?2) ON CONFLICT DO UPDATE SET n = max(n, excluded.n)",
            params![name, number as i64],
        )
        .map(drop)
    }

    /// Returns the earlier use of an idempotency key.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn find_key(&self, idempotency_key: &str, to: &Recipient, text: &str) -> Result<KnownKey> {
        let known: Option<(Vec<u8>, Vec<u8>)> = self
            .db
            .prepare_cached("SELECT message_id, digest FROM refs WHERE ref = ?1")
            .and_then(|mut s| s.query_row([idempotency_key], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(failed)?;
        match known {
            None => Ok(KnownKey::New),
            Some((id, known)) if known == digest(to, text) => MessageId::parse(&id).map(KnownKey::Same),
            Some(_) => Ok(KnownKey::Other),
        }
    }

    /// Returns the message with this idempotency key.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn message_of_key(&self, idempotency_key: &str) -> Result<Option<MessageId>> {
        let id: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT message_id FROM refs WHERE ref = ?1")
            .and_then(|mut s| s.query_row([idempotency_key], |row| row.get(0)).optional())
            .map_err(failed)?;
        id.map(|id| MessageId::parse(&id)).transpose()
    }

    /// Stores an idempotency key, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn add_idempotency_key(
        &mut self,
        idempotency_key: &str,
        draft: &Draft,
        text: &str,
    ) -> Result<()> {
        self.run(
            "INSERT INTO refs VALUES (?1, ?2, ?3)",
            params![idempotency_key, draft.id.as_bytes(), digest(&draft.to, text)],
        )
        .map(drop)
    }

    fn idempotency_key_of(&self, id: MessageId) -> Result<Option<String>> {
        self.db
            .prepare_cached("SELECT ref FROM refs WHERE message_id = ?1")
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)
    }
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use super::*;
    use crate::config::Profile;
    use crate::store::open_for_test;

    #[test]
    fn kind_of_a_later_version_is_unsupported_and_keeps_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open_for_test(dir.path(), &Profile::from("p")).unwrap();
        store.add_event(None, EventRow { kind: 99, ..EventRow::default() }).unwrap();
        store.commit_open().unwrap();
        assert_eq!(store.events(0, 10), Ok(vec![EventRecord::durable(1, Event::Unsupported)]));
    }

    #[test]
    fn event_cursor_never_goes_back_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open_for_test(dir.path(), &Profile::from("p")).unwrap();
        for number in [3, 7, 5] {
            store.set_event_cursor("bot", number).unwrap();
        }
        store.commit_open().unwrap();
        drop(store);
        let store = open_for_test(dir.path(), &Profile::from("p")).unwrap();
        assert_eq!((store.event_cursor("bot"), store.event_cursor("other")), (Ok(7), Ok(0)));
    }
}
