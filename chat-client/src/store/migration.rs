//! Tables of earlier versions.

use std::collections::HashMap;

use chat_core::{ConversationId, DeviceId, Error, ErrorKind, InstallationId, MessageId, Result, UserId};
use prost::Message as _;
use rusqlite::{OptionalExtension, params};

use super::events::{EventKind, EventRow};
use super::schema::{SCHEMA, VERSION};
use super::{LocalStore, blob, failed, number};

/// From version 1 to version 2.
const FROM_1: &str = "
ALTER TABLE messages ADD COLUMN audience BLOB;
ALTER TABLE messages ADD COLUMN unasked INTEGER NOT NULL DEFAULT 0;
CREATE INDEX messages_unasked ON messages (unasked) WHERE unasked = 1;
ALTER TABLE outbox ADD COLUMN installation BLOB;
ALTER TABLE outbox ADD COLUMN device INTEGER;
ALTER TABLE outbox ADD COLUMN bound INTEGER NOT NULL DEFAULT 0;
";

/// From version 2 to version 3, before [`LocalStore::convert_events`].
const FROM_2: &str = "
CREATE TABLE receipts (
  conversation BLOB, user BLOB, delivered INTEGER NOT NULL DEFAULT 0, read INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (conversation, user)) WITHOUT ROWID;
CREATE TABLE event_cursors (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
DROP INDEX events_by_id;
ALTER TABLE events RENAME TO events_2;
CREATE TABLE events (n INTEGER PRIMARY KEY AUTOINCREMENT, message_id BLOB, event BLOB NOT NULL);
CREATE INDEX events_by_id ON events (message_id) WHERE message_id IS NOT NULL;
";

/// From version 3 to version 4.
const FROM_3: &str = "
CREATE TABLE unknown_rows (
  conversation BLOB NOT NULL, seq INTEGER NOT NULL, row BLOB NOT NULL, PRIMARY KEY (conversation, seq)) WITHOUT ROWID;
";

/// From version 4 to version 5. The numbers of messages that arrived before are not known: each seq excuses one.
const FROM_4: &str = "
ALTER TABLE messages ADD COLUMN row_hash BLOB;
ALTER TABLE conversations ADD COLUMN excused INTEGER NOT NULL DEFAULT 0;
UPDATE conversations SET excused = cursor;
CREATE INDEX messages_seen ON messages (conversation, seq) WHERE row_hash IS NOT NULL;
CREATE TABLE chains (
  conversation BLOB NOT NULL, sender BLOB NOT NULL, incarnation INTEGER NOT NULL, client_seq INTEGER NOT NULL,
  message_id BLOB NOT NULL, excused INTEGER NOT NULL, PRIMARY KEY (conversation, sender)) WITHOUT ROWID;
";

/// From version 5 to version 6. Messages of earlier store epochs are shown before all others.
const FROM_5: &str = "
ALTER TABLE messages ADD COLUMN anchor INTEGER;
UPDATE messages SET anchor = 0 WHERE seq <= 0;
CREATE INDEX messages_archived ON messages (conversation, anchor) WHERE anchor IS NOT NULL;
";

/// From version 6 to version 7.
const FROM_6: &str = "
ALTER TABLE messages ADD COLUMN body_key BLOB;
DROP INDEX messages_by_id;
CREATE UNIQUE INDEX messages_by_id ON messages (sender, message_id, conversation);
CREATE TABLE contacts (user BLOB PRIMARY KEY, accepted INTEGER NOT NULL, blocked INTEGER NOT NULL) WITHOUT ROWID;
";

/// From version 7 to version 8.
const FROM_7: &str = "
ALTER TABLE conversations ADD COLUMN roster_behind INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN name TEXT;
ALTER TABLE conversations ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE conversations ADD COLUMN picture TEXT;
ALTER TABLE conversations ADD COLUMN profile_from BLOB;
ALTER TABLE conversations ADD COLUMN link_secret BLOB;
ALTER TABLE conversations ADD COLUMN unread INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN mentions INTEGER NOT NULL DEFAULT 0;
UPDATE conversations SET unread = -1;
ALTER TABLE conversations ADD COLUMN muted_until INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN archived INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN draft TEXT NOT NULL DEFAULT '';
CREATE TABLE search_rows (
  id INTEGER PRIMARY KEY AUTOINCREMENT, conversation BLOB NOT NULL, user BLOB NOT NULL, message_id BLOB NOT NULL,
  UNIQUE (conversation, user, message_id));
ALTER TABLE conversations ADD COLUMN muted_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN archived_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN pinned_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN draft_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN timer_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN timer_seq INTEGER NOT NULL DEFAULT 0;
CREATE INDEX handles_by_user ON handles (user);
CREATE TABLE unsynced_settings (conversation BLOB PRIMARY KEY, fields INTEGER NOT NULL) WITHOUT ROWID;
ALTER TABLE messages ADD COLUMN roster_version INTEGER;
ALTER TABLE messages ADD COLUMN target BLOB;
ALTER TABLE messages ADD COLUMN mentioned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN lifetime_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN expires_at INTEGER;
ALTER TABLE messages ADD COLUMN group_action BLOB;
DROP INDEX IF EXISTS messages_unasked;
CREATE INDEX messages_unasked ON messages (unasked) WHERE unasked > 0;
CREATE INDEX messages_expiring ON messages (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX messages_unexpired ON messages (conversation, seq) WHERE lifetime_ms > 0 AND expires_at IS NULL;
CREATE INDEX messages_by_author ON messages (message_id, user);
CREATE INDEX messages_shown ON messages (conversation, seq)
  WHERE (content IS NOT x'' OR group_action IS NOT NULL) AND target IS NULL;
CREATE INDEX messages_by_target ON messages (conversation, target, seq) WHERE target IS NOT NULL;
ALTER TABLE outbox ADD COLUMN group_id BLOB;
ALTER TABLE outbox ADD COLUMN action BLOB;
ALTER TABLE outbox ADD COLUMN waits_for BLOB;
CREATE INDEX outbox_waiting ON outbox (waits_for) WHERE waits_for IS NOT NULL;
CREATE TABLE unsupported_messages (
  conversation BLOB NOT NULL, sender BLOB NOT NULL, message_id BLOB NOT NULL,
  PRIMARY KEY (conversation, sender, message_id)) WITHOUT ROWID;
CREATE TABLE failed_messages (
  message_id BLOB PRIMARY KEY, n INTEGER NOT NULL, conversation BLOB NOT NULL, content BLOB NOT NULL,
  sent_at INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX failed_messages_by_conversation ON failed_messages (conversation);
CREATE TABLE rosters (
  conversation BLOB NOT NULL, version INTEGER NOT NULL, roster BLOB NOT NULL,
  PRIMARY KEY (conversation, version)) WITHOUT ROWID;
CREATE TABLE sender_keys (conversation BLOB PRIMARY KEY, key BLOB NOT NULL) WITHOUT ROWID;
";

/// From version 8 to version 9.
const FROM_8: &str = "
CREATE TABLE channel_keys (
  conversation BLOB NOT NULL, link BLOB NOT NULL, secret BLOB NOT NULL, PRIMARY KEY (conversation, link)) WITHOUT ROWID;
";

/// An event of version 2: JSON that named users by handle and held the text of messages.
struct OldEvent {
    n: u64,
    own_message: Option<Vec<u8>>,
    kind: String,
    conversation: Option<String>,
    seq: u64,
    to_seq: u64,
    /// A handle, or a user id in hexadecimal.
    name: Option<String>,
    device: u32,
    message: Option<String>,
    reason: Option<String>,
}

impl LocalStore {
    /// Creates the tables, or converts those of an earlier version, in one transaction.
    pub(super) fn migrate(&mut self) -> Result<()> {
        let version: i64 = self.db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if version == VERSION {
            return Ok(());
        }
        self.begin()?;
        match version {
            0 => self.batch(SCHEMA)?,
            1..VERSION => {
                if version < 2 {
                    self.batch(FROM_1)?;
                }
                if version < 3 {
                    self.batch(FROM_2)?;
                    self.convert_events()?;
                    self.convert_receipts()?;
                    self.batch("DROP TABLE events_2")?;
                }
                if version < 4 {
                    self.batch(FROM_3)?;
                }
                if version < 5 {
                    self.batch(FROM_4)?;
                }
                if version < 6 {
                    self.batch(FROM_5)?;
                }
                if version < 7 {
                    self.batch(FROM_6)?;
                }
                if version < 8 {
                    self.batch(FROM_7)?;
                }
                self.batch(FROM_8)?;
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "the profile was made by a later version: update the program",
                ));
            }
        }
        self.batch(&format!("PRAGMA user_version = {VERSION}"))?;
        self.commit_open()
    }

    fn batch(&self, sql: &str) -> Result<()> {
        self.db.execute_batch(sql).map_err(failed)
    }

    /// Returns the user that an event of version 2 named.
    fn named_user(&self, name: &str) -> Result<Option<UserId>> {
        let known: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT user FROM handles WHERE handle = ?1")
            .and_then(|mut s| s.query_row([name], |row| row.get(0)).optional())
            .map_err(failed)?;
        match known {
            Some(user) => UserId::parse(&user).map(Some),
            None => Ok(UserId::from_hex(name).ok()),
        }
    }

    /// Converts events of version 2. Their numbers stay the same, because programs keep them.
    fn convert_events(&mut self) -> Result<()> {
        let old = self.rows(
            "SELECT n, message_id, json_extract(event, '$.event'), json_extract(event, '$.conversation'),
                    coalesce(json_extract(event, '$.seq'), json_extract(event, '$.from_seq'), 0),
                    coalesce(json_extract(event, '$.to_seq'), 0),
                    coalesce(json_extract(event, '$.user'), json_extract(event, '$.from')),
                    coalesce(json_extract(event, '$.device'), 0), json_extract(event, '$.message_id'),
                    json_extract(event, '$.reason')
             FROM events_2 ORDER BY n",
            |row| {
                Ok(OldEvent {
                    n: number(row, 0)?,
                    own_message: row.get(1).map_err(failed)?,
                    kind: row.get(2).map_err(failed)?,
                    conversation: row.get(3).map_err(failed)?,
                    seq: number(row, 4)?,
                    to_seq: number(row, 5)?,
                    name: row.get(6).map_err(failed)?,
                    device: number(row, 7)? as u32,
                    message: row.get(8).map_err(failed)?,
                    reason: row.get(9).map_err(failed)?,
                })
            },
        )?;
        for event in old {
            let row = self.convert_event(&event)?;
            self.run(
                "INSERT INTO events VALUES (?1, ?2, ?3)",
                params![event.n as i64, event.own_message, row.encode_to_vec()],
            )?;
        }
        Ok(())
    }

    fn convert_event(&self, old: &OldEvent) -> Result<EventRow> {
        let kind = match old.kind.as_str() {
            "queued" => EventKind::Queued,
            "stored" => EventKind::Stored,
            "refused" => EventKind::Refused,
            "message" | "undecryptable" => EventKind::Message,
            "recovered" => EventKind::Recovered,
            "delivered" => EventKind::Delivered,
            "read" => EventKind::Read,
            "gap" => EventKind::Gap,
            "identity_changed" => EventKind::IdentityChanged,
            "device_added" => EventKind::DeviceAdded,
            // Only `refused` events of messages without an id are left: they were never queued.
            _ => return Ok(EventRow::default()),
        };
        if kind == EventKind::Refused && old.own_message.is_none() {
            return Ok(EventRow::default());
        }
        let conversation = old.conversation.as_deref().map(ConversationId::from_hex).transpose()?;
        let user = old.name.as_deref().map(|name| self.named_user(name)).transpose()?.flatten();
        let message =
            old.message.as_deref().map(|id| MessageId::from_hex(&id.replace('-', ""))).transpose()?;
        let mut row = EventRow {
            conversation: conversation.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            seq: old.seq,
            to_seq: old.to_seq,
            user: user.map(|user| user.as_bytes().to_vec()).unwrap_or_default(),
            device: old.device,
            reason: old.reason.clone().unwrap_or_default(),
            ..EventRow::new(kind)
        };
        if let (EventKind::Message | EventKind::Recovered, Some(message)) = (kind, message) {
            let stored: Option<(Vec<u8>, Vec<u8>, u32)> = self
                .db
                .prepare_cached(
                    "SELECT sender, user, device FROM messages WHERE message_id = ?1 AND conversation = ?2",
                )
                .and_then(|mut s| {
                    s.query_row(params![message.as_bytes(), row.conversation], |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                    })
                    .optional()
                })
                .map_err(failed)?;
            let Some((sender, user, device)) = stored else { return Ok(EventRow::default()) };
            row.installation = InstallationId::parse(&sender)?.as_bytes().to_vec();
            row.user = user;
            row.device = u32::from(DeviceId::new(device)?.get());
            row.message = message.as_bytes().to_vec();
        }
        Ok(row)
    }

    fn merge_receipt(
        &mut self,
        conversation: ConversationId,
        user: UserId,
        delivered: u64,
        read: u64,
    ) -> Result<()> {
        self.run(
            "INSERT INTO receipts VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE
             SET delivered = max(delivered, excluded.delivered), read = max(read, excluded.read)",
            params![conversation.as_bytes(), user.as_bytes(), delivered as i64, read as i64],
        )
        .map(drop)
    }

    /// Assigns the delivery watermark of each direct conversation to its other user.
    fn convert_delivered(&mut self) -> Result<()> {
        let Some(own) = self.meta("user")?.map(|user| UserId::parse(&user)).transpose()? else {
            return Ok(());
        };
        let users = self.rows("SELECT user FROM lists UNION SELECT user FROM handles", |row| {
            UserId::parse(&blob(row, 0)?)
        })?;
        let peers: HashMap<ConversationId, UserId> =
            users.into_iter().map(|user| (ConversationId::direct(own, user), user)).collect();
        let delivered = self.rows("SELECT id, delivered FROM conversations WHERE delivered > 0", |row| {
            Ok((ConversationId::parse(&blob(row, 0)?)?, number(row, 1)?))
        })?;
        for (conversation, delivered) in delivered {
            if let Some(peer) = peers.get(&conversation).filter(|peer| **peer != own) {
                self.merge_receipt(conversation, *peer, delivered, 0)?;
            }
        }
        Ok(())
    }

    /// Moves watermarks of other users out of `meta`, where version 2 kept them by name.
    fn convert_receipts(&mut self) -> Result<()> {
        let old = self.rows("SELECT key, value FROM meta WHERE key LIKE 'read:%'", |row| {
            let key: String = row.get(0).map_err(failed)?;
            Ok((key, blob(row, 1)?))
        })?;
        for (key, read) in old {
            let mut parts = key.splitn(3, ':').skip(1);
            let (Some(conversation), Some(name)) = (parts.next(), parts.next()) else { continue };
            let (Some(user), Ok(read)) = (self.named_user(name)?, <[u8; 8]>::try_from(read)) else {
                continue;
            };
            let conversation = ConversationId::from_hex(conversation)?;
            self.merge_receipt(conversation, user, 0, u64::from_be_bytes(read))?;
        }
        self.convert_delivered()?;
        self.run("DELETE FROM meta WHERE key LIKE 'read:%'", []).map(drop)
    }
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use chat_core::{ConversationId, DeviceAddress, Handle};

    use super::*;
    use crate::config::Profile;
    use crate::event::{Event, GapReason, RefusedReason};
    use crate::message::User;
    use crate::store::open_for_test;

    /// The tables of version 2 that the migration reads.
    const VERSION_2: &str = "
        CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
        CREATE TABLE conversations (
          id BLOB PRIMARY KEY, peer BLOB, cursor INTEGER NOT NULL DEFAULT 0, client_seq INTEGER NOT NULL DEFAULT 0,
          prev BLOB NOT NULL DEFAULT x'00000000000000000000000000000000', last_own INTEGER NOT NULL DEFAULT 0,
          delivered INTEGER NOT NULL DEFAULT 0, read INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
        CREATE TABLE messages (
          conversation BLOB NOT NULL, seq INTEGER NOT NULL, sender BLOB NOT NULL, user BLOB NOT NULL,
          device INTEGER NOT NULL, message_id BLOB NOT NULL, content BLOB, sent_at INTEGER NOT NULL, audience BLOB,
          unasked INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (conversation, seq)) WITHOUT ROWID;
        CREATE UNIQUE INDEX messages_by_id ON messages (sender, message_id);
        CREATE TABLE outbox (
          n INTEGER PRIMARY KEY AUTOINCREMENT, message_id BLOB NOT NULL UNIQUE, handle TEXT, user BLOB,
          content BLOB NOT NULL, installation BLOB, device INTEGER, bound INTEGER NOT NULL DEFAULT 0,
          sent_at INTEGER NOT NULL, publish BLOB, void INTEGER NOT NULL DEFAULT 0,
          attempted INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE refs (ref TEXT PRIMARY KEY, message_id BLOB NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;
        CREATE TABLE lists (user BLOB PRIMARY KEY, list BLOB NOT NULL) WITHOUT ROWID;
        CREATE TABLE handles (handle TEXT PRIMARY KEY, user BLOB NOT NULL) WITHOUT ROWID;
        CREATE TABLE events (n INTEGER PRIMARY KEY AUTOINCREMENT, message_id BLOB, event TEXT NOT NULL);
        CREATE INDEX events_by_id ON events (message_id) WHERE message_id IS NOT NULL;
        PRAGMA user_version = 2;";

    #[test]
    fn profile_of_version_2_keeps_its_events_numbers_and_receipts() {
        let dir = tempfile::tempdir().unwrap();
        let (own, bob) = (UserId::from_bytes([1; 16]), UserId::from_bytes([2; 16]));
        let stranger = UserId::from_bytes([3; 16]);
        let phone = InstallationId::from_bytes([4; 16]);
        let conversation = ConversationId::direct(own, bob);
        let (sent, received) = (MessageId::new(1, [5; 10]), MessageId::new(2, [6; 10]));
        std::fs::create_dir(dir.path().join("p")).unwrap();
        let db = rusqlite::Connection::open(dir.path().join("p/chat.sqlite")).unwrap();
        db.execute_batch(VERSION_2).unwrap();
        db.execute("INSERT INTO handles VALUES ('bob', ?1)", [bob.as_bytes()]).unwrap();
        db.execute("INSERT INTO refs VALUES ('r1', ?1, x'00')", [sent.as_bytes()]).unwrap();
        db.execute("INSERT INTO conversations (id, delivered) VALUES (?1, 5)", [conversation.as_bytes()])
            .unwrap();
        let content = crate::content::encode_text("hello");
        let message = params![
            conversation.as_bytes(),
            2,
            phone.as_bytes(),
            bob.as_bytes(),
            3,
            received.as_bytes(),
            content,
            7000
        ];
        db.execute("INSERT INTO messages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, NULL, 0)", message).unwrap();
        db.execute("INSERT INTO meta VALUES ('user', ?1)", [own.as_bytes()]).unwrap();
        for (name, seq) in [("bob".to_owned(), 4_u64), (bob.to_hex(), 2)] {
            let key = format!("read:{}:{name}", conversation.to_hex());
            db.execute("INSERT INTO meta VALUES (?1, ?2)", params![key, seq.to_be_bytes()]).unwrap();
        }
        let (c, m, r, s) =
            (conversation.to_hex(), sent.to_uuid_string(), received.to_uuid_string(), stranger.to_hex());
        for (n, id, json) in [
            (1, Some(sent), format!(r#"{{"event":"queued","ref":"r1","message_id":"{m}"}}"#)),
            (
                2,
                Some(sent),
                format!(r#"{{"event":"stored","ref":"r1","message_id":"{m}","conversation":"{c}","seq":1}}"#),
            ),
            (
                4,
                None,
                format!(
                    r#"{{"event":"message","from":"bob","device":3,"conversation":"{c}","message_id":"{r}","seq":2,"text":"hello"}}"#
                ),
            ),
            (
                5,
                None,
                format!(
                    r#"{{"event":"undecryptable","from":"bob","conversation":"{c}","message_id":"{r}","seq":2,"reason":"no_session"}}"#
                ),
            ),
            (6, None, format!(r#"{{"event":"read","conversation":"{c}","user":"bob","seq":1}}"#)),
            (
                7,
                None,
                format!(
                    r#"{{"event":"gap","conversation":"{c}","from_seq":3,"to_seq":5,"reason":"expired"}}"#
                ),
            ),
            (8, None, format!(r#"{{"event":"identity_changed","user":"{s}"}}"#)),
            (9, None, r#"{"event":"refused","reason":"too_long"}"#.to_owned()),
            (10, Some(sent), format!(r#"{{"event":"refused","message_id":"{m}","reason":"quota"}}"#)),
        ] {
            let id = id.map(|id| id.as_bytes().to_vec());
            db.execute("INSERT INTO events VALUES (?1, ?2, ?3)", params![n, id, json]).unwrap();
        }
        drop(db);
        let mut store = open_for_test(dir.path(), &Profile::from("p")).unwrap();
        let device = DeviceId::PRIMARY;
        store.own =
            Some(DeviceAddress { user: own, device, installation: InstallationId::from_bytes([9; 16]) });
        let user = User::new(bob, Some(Handle::new("bob").unwrap()));
        let key = Some("r1".to_owned());
        let message = |content| {
            let stored = super::super::history::StoredContent { content, sent_at_ms: 7000, action: None };
            let why = chat_core::replica::Unreadable::NoSession;
            store.message(conversation, 2, received, (bob, DeviceId::new(3).unwrap()), stored, why).unwrap()
        };
        let expected = [
            (1, Event::Queued { message: sent, idempotency_key: key.clone() }),
            (2, Event::Stored { message: sent, idempotency_key: key.clone(), conversation, seq: 1 }),
            (4, Event::Message(message(Some(crate::content::encode_text("hello"))))),
            (5, Event::Message(message(None))),
            (6, Event::Read { conversation, user, seq: 1 }),
            (7, Event::Gap { conversation, from_seq: 3, to_seq: 5, reason: GapReason::Expired }),
            (8, Event::IdentityChanged { user: User::new(stranger, None) }),
            (9, Event::Unsupported),
            (10, Event::Refused { message: sent, idempotency_key: key, reason: RefusedReason::Quota }),
        ];
        let events = store.events(0, 100).unwrap();
        let found: Vec<_> = events.into_iter().map(|record| (record.number.unwrap(), record.event)).collect();
        assert_eq!(found, expected);
        let receipt: (i64, i64) = store
            .db
            .query_row("SELECT delivered, read FROM receipts WHERE user = ?1", [bob.as_bytes()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(receipt, (5, 4), "delivered, and the higher of both watermarks of reading");
        let text: i64 = store
            .db
            .query_row(
                "SELECT count(*) FROM events WHERE instr(event, CAST('hello' AS BLOB)) > 0",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(text, 0, "a stored event holds the text of a message");
    }

    #[test]
    fn profile_of_a_later_version_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        drop(open_for_test(dir.path(), &Profile::from("p")).unwrap());
        let db = rusqlite::Connection::open(dir.path().join("p/chat.sqlite")).unwrap();
        db.execute_batch(&format!("PRAGMA user_version = {}", VERSION + 1)).unwrap();
        drop(db);
        let error = open_for_test(dir.path(), &Profile::from("p")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
