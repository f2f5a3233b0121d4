//! Storage of a replica's changes.

use chat_core::codec::encode_list;
use chat_core::device_list::SignedDeviceList;
use chat_core::envelope::{EmptyReason, InboxRow, Publish, RowContent};
use chat_core::replica::{Change, Changes, Draft, ListChange, Opened, Recipient};
use chat_core::wire::ClientFrame;
use chat_core::{
    ConversationId, ConversationKind, DeviceAddress, MessageId, Result, Seq, StoreEpoch, UserId,
};
use rusqlite::{OptionalExtension, params};

use super::{LocalStore, StoredMessage, blob, changed_key, corrupt, failed, number, read_publish};
use crate::content::Content;
use crate::event::Event;
use crate::suite::SuiteTx;

impl LocalStore {
    /// Makes a replica's changes durable, together with the rest of the open transaction.
    ///
    /// # Errors
    /// `Unavailable` if the commit fails. Then nothing in the transaction is durable, and the replica in
    /// memory is ahead of the store: load a new replica.
    pub fn commit(&mut self, changes: Changes) -> Result<()> {
        self.begin()?;
        for change in changes.list {
            self.apply(change)?;
        }
        self.set_meta("generation", &changes.generation.to_be_bytes())?;
        self.commit_open()
    }

    pub(super) fn ensure_conversation(&mut self, id: ConversationId) -> Result<()> {
        self.run("INSERT OR IGNORE INTO conversations (id) VALUES (?1)", [id.as_bytes()]).map(drop)
    }

    pub(super) fn apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Queued(draft) => self.queued(&draft),
            Change::Sealed(publish) => self.sealed(&publish),
            Change::Stored(conversation, id, seq) => self.stored(conversation, id, seq),
            Change::Refused(id, reason) => self.refused(id, reason),
            Change::Bound(id) => {
                self.run("UPDATE outbox SET bound = 1 WHERE message_id = ?1", [id.as_bytes()]).map(drop)
            }
            Change::Skipped(id) => {
                self.run("DELETE FROM outbox WHERE message_id = ?1", [id.as_bytes()]).map(drop)
            }
            Change::Received(row, opened) => self.received(&row, opened),
            Change::Recovered(sender, conversation, id, content) => {
                self.recovered(sender, conversation, id, &content)
            }
            Change::AskedAgain(sender, conversation, id) => self
                .run(
                    "UPDATE messages SET unasked = 0 WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
                    params![sender.as_bytes(), id.as_bytes(), conversation.as_bytes()],
                )
                .map(drop),
            Change::Prekeys(at) => self.set_meta("prekeys_at", &at.to_be_bytes()),
            Change::Cursor(conversation, seq) => {
                self.ensure_conversation(conversation)?;
                self.run(
                    "UPDATE conversations SET cursor = ?2 WHERE id = ?1",
                    params![conversation.as_bytes(), seq as i64],
                )
                .map(drop)
            }
            // To-device messages produce no events, and neither do their gaps.
            Change::Gap(conversation, ..) if conversation.kind() == Ok(ConversationKind::Mailbox) => Ok(()),
            Change::Gap(conversation, from, to, reason) => {
                let reason = match reason {
                    EmptyReason::Skip => return Ok(()),
                    EmptyReason::Expired => "expired",
                    _ => "poison",
                };
                let event = Event::Gap {
                    conversation: conversation.to_hex(),
                    from_seq: from,
                    to_seq: to,
                    reason: reason.into(),
                };
                self.add_event(None, &event)
            }
            Change::Handle(handle, user) => self
                .run(
                    "INSERT OR REPLACE INTO handles VALUES (?1, ?2)",
                    params![handle.as_str(), user.as_bytes()],
                )
                .map(drop),
            Change::List(list, change) => self.list(&list, change),
            Change::Receipt(conversation, user, delivered, read) => {
                self.receipt(conversation, user, delivered, read)
            }
            Change::Read(conversation, seq) => {
                self.ensure_conversation(conversation)?;
                self.run(
                    "UPDATE conversations SET read = ?2 WHERE id = ?1",
                    params![conversation.as_bytes(), seq as i64],
                )
                .map(drop)
            }
            Change::Epoch(epoch) => self.set_meta("epoch", epoch.as_bytes()),
            Change::NewEpoch(epoch) => self.new_epoch(epoch),
            Change::Nonce(nonce) => self.set_meta("nonce", &nonce),
            Change::Asked => self.set_meta("reincarnation_asked", &[1]),
            Change::Reincarnated(incarnation) => self.reincarnated(incarnation),
            _ => Ok(()),
        }
    }

    pub(super) fn queued(&mut self, draft: &Draft) -> Result<()> {
        let (handle, user, device) = match &draft.to {
            Recipient::Handle(handle) => (Some(handle.as_str()), None, None),
            Recipient::User(user) => (None, Some(user.as_bytes()), None),
            Recipient::Device(device) => (None, Some(device.user.as_bytes()), Some(device)),
            _ => return Err(corrupt("a draft has no known recipient")),
        };
        self.run(
            "INSERT INTO outbox (message_id, handle, user, installation, device, content, sent_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                draft.id.as_bytes(),
                handle,
                user,
                device.map(|device| device.installation.as_bytes()),
                device.map(|device| device.device.get()),
                &draft.content[..],
                draft.sent_at as i64
            ],
        )?;
        if device.is_some() {
            // A to-device message produces no event.
            return Ok(());
        }
        let idempotency_key = self.idempotency_key_of(draft.id)?;
        let event = Event::Queued { idempotency_key, message_id: draft.id.to_uuid_string() };
        self.add_event(Some(draft.id), &event)
    }

    pub(super) fn sealed(&mut self, publish: &Publish) -> Result<()> {
        let number = &publish.number;
        self.ensure_conversation(number.conversation)?;
        self.run(
            "UPDATE conversations SET client_seq = ?2, prev = ?3 WHERE id = ?1 AND client_seq < ?2",
            params![number.conversation.as_bytes(), number.client_seq as i64, number.message_id.as_bytes()],
        )?;
        // Retries send the same bytes, but only the first attempt sets `first`.
        let frame = ClientFrame::Publish(Publish { first: false, ..publish.clone() }).encode();
        self.run(
            "UPDATE outbox SET publish = ?2 WHERE message_id = ?1",
            params![number.message_id.as_bytes(), &frame[..]],
        )
        .map(drop)
    }

    pub(super) fn stored(&mut self, conversation: ConversationId, id: MessageId, seq: Seq) -> Result<()> {
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            return self.run("DELETE FROM outbox WHERE message_id = ?1", [id.as_bytes()]).map(drop);
        }
        let own = self.own.ok_or(corrupt("the store is not loaded"))?;
        let publish: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT publish FROM outbox WHERE message_id = ?1")
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?
            .flatten();
        let audience = publish.map(read_publish).transpose()?.map(|publish| {
            let installations = publish.boxes.iter().flat_map(|one| *one.installation.as_bytes());
            installations.collect::<Vec<u8>>()
        });
        self.ensure_conversation(conversation)?;
        self.run(
            "UPDATE conversations SET last_own = max(last_own, ?2) WHERE id = ?1",
            params![conversation.as_bytes(), seq as i64],
        )?;
        self.run(
            "INSERT OR IGNORE INTO messages SELECT ?2, ?3, ?4, ?5, ?6, message_id, content, sent_at, ?7, 0
             FROM outbox WHERE message_id = ?1",
            params![
                id.as_bytes(),
                conversation.as_bytes(),
                seq as i64,
                own.installation.as_bytes(),
                own.user.as_bytes(),
                own.device.get(),
                audience
            ],
        )?;
        self.run("DELETE FROM outbox WHERE message_id = ?1", [id.as_bytes()])?;
        let event = Event::Stored {
            idempotency_key: self.idempotency_key_of(id)?,
            message_id: id.to_uuid_string(),
            conversation: conversation.to_hex(),
            seq,
        };
        self.add_event(Some(id), &event)
    }

    pub(super) fn refused(&mut self, id: MessageId, reason: &str) -> Result<()> {
        let to_device = self
            .db
            .prepare_cached("SELECT 1 FROM outbox WHERE message_id = ?1 AND installation IS NOT NULL")
            .and_then(|mut s| s.exists([id.as_bytes()]))
            .map_err(failed)?;
        self.run("DELETE FROM outbox WHERE message_id = ?1 AND publish IS NULL", [id.as_bytes()])?;
        self.run("UPDATE outbox SET void = 1, content = x'' WHERE message_id = ?1", [id.as_bytes()])?;
        if to_device {
            return Ok(());
        }
        let event = Event::Refused {
            idempotency_key: self.idempotency_key_of(id)?,
            message_id: Some(id.to_uuid_string()),
            reason: reason.into(),
        };
        self.add_event(Some(id), &event)
    }

    pub(super) fn received(&mut self, row: &InboxRow, opened: Opened) -> Result<()> {
        let RowContent::Message { message, .. } = &row.content else {
            return Ok(());
        };
        let content = opened.content.as_ref().ok().map(|bytes| &bytes[..]);
        let unasked = opened.content.as_ref().is_err_and(|why| why.is_of_session());
        self.run(
            "INSERT OR IGNORE INTO messages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, NULL, ?9)",
            params![
                row.conversation.as_bytes(),
                row.seq as i64,
                message.sender.installation.as_bytes(),
                message.sender.user.as_bytes(),
                message.sender.device.get(),
                message.id.as_bytes(),
                content,
                message.sent_at as i64,
                unasked
            ],
        )?;
        let from = self.name_of(message.sender.user)?;
        let (conversation, message_id, seq) =
            (row.conversation.to_hex(), message.id.to_uuid_string(), row.seq);
        let text = opened.content.map(|bytes| Content::unpad(&bytes).ok().and_then(|content| content.text));
        let event = match text {
            Ok(Some(text)) => Event::Message {
                from,
                device: message.sender.device.get(),
                conversation,
                message_id,
                seq,
                text,
            },
            Ok(None) => {
                Event::Undecryptable { from, conversation, message_id, seq, reason: "malformed".into() }
            }
            Err(why) => {
                Event::Undecryptable { from, conversation, message_id, seq, reason: why.name().into() }
            }
        };
        self.add_event(None, &event)
    }

    /// Fills the placeholder of an unreadable message with its content, if this sender has one in the
    /// conversation.
    pub(super) fn recovered(
        &mut self,
        sender: DeviceAddress,
        conversation: ConversationId,
        id: MessageId,
        content: &[u8],
    ) -> Result<()> {
        let Some(text) = Content::unpad(content).ok().and_then(|content| content.text) else {
            return Ok(());
        };
        let place = params![sender.installation.as_bytes(), id.as_bytes(), conversation.as_bytes(), content];
        let filled = self.run(
            "UPDATE messages SET content = ?4, unasked = 0
             WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3 AND content IS NULL",
            place,
        )?;
        if filled == 0 {
            return Ok(());
        }
        let seq: i64 = self
            .db
            .prepare_cached("SELECT seq FROM messages WHERE sender = ?1 AND message_id = ?2")
            .and_then(|mut s| {
                s.query_row(params![sender.installation.as_bytes(), id.as_bytes()], |row| row.get(0))
            })
            .map_err(failed)?;
        let event = Event::Recovered {
            from: self.name_of(sender.user)?,
            device: sender.device.get(),
            conversation: conversation.to_hex(),
            message_id: id.to_uuid_string(),
            seq: seq.max(0) as u64,
            text,
        };
        self.add_event(None, &event)
    }

    pub(super) fn list(&mut self, list: &SignedDeviceList, change: ListChange) -> Result<()> {
        let user = list.list().user;
        self.run(
            "INSERT OR REPLACE INTO lists VALUES (?1, ?2)",
            params![user.as_bytes(), encode_list(list)],
        )?;
        let name = self.name_of(user)?;
        match change {
            ListChange::IdentityChanged => {
                self.set_meta(&changed_key(user), &[1])?;
                self.add_event(None, &Event::IdentityChanged { user: name })
            }
            ListChange::Updated(added) => added.iter().try_for_each(|device| {
                self.add_event(None, &Event::DeviceAdded { user: name.clone(), device: device.device.get() })
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn receipt(
        &mut self,
        conversation: ConversationId,
        user: UserId,
        delivered: Seq,
        read: Seq,
    ) -> Result<()> {
        self.ensure_conversation(conversation)?;
        let before: i64 = self
            .db
            .prepare_cached("SELECT delivered FROM conversations WHERE id = ?1")
            .and_then(|mut s| s.query_row([conversation.as_bytes()], |row| row.get(0)))
            .map_err(failed)?;
        let (name, conversation_id) = (self.name_of(user)?, conversation.to_hex());
        if delivered > before as u64 {
            self.run(
                "UPDATE conversations SET delivered = ?2 WHERE id = ?1",
                params![conversation.as_bytes(), delivered as i64],
            )?;
            let event = Event::Delivered {
                conversation: conversation_id.clone(),
                user: name.clone(),
                seq: delivered,
            };
            self.add_event(None, &event)?;
        }
        let key = format!("read:{conversation_id}:{name}");
        if read > self.meta_number(&key)? {
            self.set_meta(&key, &read.to_be_bytes())?;
            self.add_event(None, &Event::Read { conversation: conversation_id, user: name, seq: read })?;
        }
        Ok(())
    }

    pub(super) fn new_epoch(&mut self, epoch: StoreEpoch) -> Result<()> {
        self.set_meta("epoch", epoch.as_bytes())?;
        // Seqs of the old data set are invalid in the new one. Old messages are kept, under seqs below 0.
        self.run(
            "UPDATE messages SET seq = (SELECT min(0, coalesce(min(seq), 0)) FROM messages) - seq WHERE seq > 0",
            [],
        )?;
        self.run("DELETE FROM meta WHERE key LIKE 'read:%'", [])?;
        self.run("DELETE FROM outbox WHERE void = 1", [])?;
        self.run("UPDATE outbox SET attempted = 1, publish = NULL", [])?;
        self.run(
            "UPDATE conversations SET cursor = 0, client_seq = 0, prev = zeroblob(16), last_own = 0, delivered = 0, read = 0",
            [],
        )
        .map(drop)
    }

    pub(super) fn reincarnated(&mut self, incarnation: u32) -> Result<()> {
        self.set_meta("incarnation", &u64::from(incarnation).to_be_bytes())?;
        let now = self.now_ms();
        self.set_meta("reincarnated_at", &now.to_be_bytes())?;
        self.run("DELETE FROM meta WHERE key IN ('nonce', 'reincarnation_asked')", [])?;
        self.run("DELETE FROM outbox WHERE void = 1", [])?;
        self.run("UPDATE outbox SET attempted = 1, publish = NULL", [])?;
        self.run("UPDATE conversations SET client_seq = 0, prev = zeroblob(16)", []).map(drop)
    }

    /// Returns the newest messages of a conversation below a seq (0: from the newest), newest first.
    ///
    /// # Errors
    /// If the store fails.
    pub fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: usize,
    ) -> Result<Vec<StoredMessage>> {
        let before = if before == 0 { i64::MAX } else { before as i64 };
        let mut statement = self
            .db
            .prepare_cached(
                "SELECT seq, user, device, message_id, content, sent_at FROM messages
                 WHERE conversation = ?1 AND seq < ?2 AND seq > 0 ORDER BY seq DESC LIMIT ?3",
            )
            .map_err(failed)?;
        let mut rows =
            statement.query(params![conversation.as_bytes(), before, limit as i64]).map_err(failed)?;
        let mut messages = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let content: Option<Vec<u8>> = row.get(4).map_err(failed)?;
            messages.push(StoredMessage {
                conversation,
                seq: number(row, 0)?,
                user: UserId::parse(&blob(row, 1)?)?,
                device: row.get(2).map_err(failed)?,
                id: MessageId::parse(&blob(row, 3)?)?,
                text: content.and_then(|bytes| Content::unpad(&bytes).ok()).and_then(|content| content.text),
                sent_at: number(row, 5)?,
            });
        }
        Ok(messages)
    }
}
