//! Storage of a replica's changes.

use chat_core::codec::{decode_list, encode_list};
use chat_core::device_list::SignedDeviceList;
use chat_core::envelope::{EmptyReason, InboxRow, Message, Publish, RowContent};
use chat_core::group::{GroupAction, GroupChange};
use chat_core::replica::{Change, Changes, Draft, ListChange, Opened, Recipient, Unreadable};
use chat_core::view::RowHash;
use chat_core::wire::ClientFrame;
use chat_core::{ConversationId, ConversationKind, DeviceAddress, MessageId, Result, Seq, UserId};
use rusqlite::{OptionalExtension, params};

use super::events::{EventKind, EventRow};
use super::groups::IS_SILENT;
use super::{LocalStore, changed_key, corrupt, failed, read_publish};
use crate::content::decode_message;
use crate::event::GapReason;
use crate::message::Content;
use crate::settings_sync::SettingsSync;
use crate::suite::SuiteTx;

/// The publish as it was last sealed, whether it was sent before, whether it is silent, and its content.
type Sealed = (Option<Vec<u8>>, bool, bool, Vec<u8>);

impl LocalStore {
    /// Makes a replica's changes durable, together with the rest of the open transaction.
    ///
    /// # Errors
    /// `Unavailable` if the commit fails. Then nothing in the transaction is durable, and the replica in
    /// memory is ahead of the store: load a new replica.
    pub(crate) fn commit(&mut self, changes: Changes) -> Result<()> {
        self.begin()?;
        for change in changes.list {
            self.apply(change)?;
        }
        self.set_meta("generation", &changes.generation.to_be_bytes())?;
        self.commit_open()
    }

    /// Makes changes in the open transaction, which stays open.
    #[cfg(test)]
    pub(crate) fn apply_for_test(&mut self, changes: Changes) -> Result<()> {
        self.begin()?;
        changes.list.into_iter().try_for_each(|change| self.apply(change))
    }

    pub(super) fn ensure_conversation(&mut self, id: ConversationId) -> Result<()> {
        self.run("INSERT OR IGNORE INTO conversations (id) VALUES (?1)", [id.as_bytes()]).map(drop)
    }

    pub(super) fn apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Queued(draft) => self.queued(&draft),
            Change::Sealed(publish) => self.sealed(&publish),
            Change::Unsealed(id, client_seq, prev, messages) => {
                self.unsealed(id, client_seq, prev, &messages)
            }
            Change::Roster(id, roster) => self.set_roster(id, &roster),
            Change::RosterBehind(id, is_behind) => self.set_roster_behind(id, is_behind),
            Change::SenderKey(id, key) => self.set_sender_key(id, key.as_deref()),
            Change::GroupChanged(id, seq, sender, message, action) => {
                self.group_changed(id, seq, sender, message, &action)
            }
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
                    "UPDATE messages SET unasked = CASE unasked WHEN 1 THEN 2 ELSE 0 END
                     WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
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
            Change::Gap(conversation, from, to, reason) => match reason {
                EmptyReason::Skip => self.gap(conversation, from, to, GapReason::Withdrawn),
                EmptyReason::Expired => self.gap(conversation, from, to, GapReason::Expired),
                EmptyReason::Excluded => self.gap(conversation, from, to, GapReason::Excluded),
                EmptyReason::Quota => self.gap(conversation, from, to, GapReason::Quota),
                EmptyReason::Withheld => self.gap(conversation, from, to, GapReason::Withheld),
                EmptyReason::Cleared => self.gap(conversation, from, to, GapReason::Cleared),
                EmptyReason::NotMember if self.precedes_channel(conversation, from)? => Ok(()),
                EmptyReason::NotMember => self.gap(conversation, from, to, GapReason::NotMember),
                EmptyReason::Deleted => self.gap(conversation, from, to, GapReason::Deleted),
                EmptyReason::Disappeared => self.gap(conversation, from, to, GapReason::Disappeared),
                _ => self.gap(conversation, from, to, GapReason::Poison),
            },
            Change::Unknown(conversation, seq, row) => {
                self.run(
                    "INSERT OR REPLACE INTO unknown_rows VALUES (?1, ?2, ?3)",
                    params![conversation.as_bytes(), seq as i64, &row[..]],
                )?;
                if conversation.kind() == Ok(ConversationKind::Mailbox) {
                    return Ok(());
                }
                self.gap(conversation, seq, seq, GapReason::Unsupported)
            }
            Change::Handle(handle, user) => self
                .run(
                    "INSERT OR REPLACE INTO handles VALUES (?1, ?2)",
                    params![handle.as_str(), user.as_bytes()],
                )
                .map(|_| self.revisions.touch_all()),
            Change::List(list, change) => self.list(&list, change),
            Change::Receipt(conversation, user, delivered, read) => {
                self.receipt(conversation, user, delivered, read)
            }
            Change::Read(conversation, seq) => self.set_read(conversation, seq),
            Change::Chain(conversation, sender, chain) => self
                .run(
                    "INSERT OR REPLACE INTO chains VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        conversation.as_bytes(),
                        sender.as_bytes(),
                        chain.incarnation,
                        chain.client_seq as i64,
                        chain.id.as_bytes(),
                        chain.excused as i64
                    ],
                )
                .map(drop),
            Change::Excused(conversation, excused) => {
                self.ensure_conversation(conversation)?;
                self.run(
                    "UPDATE conversations SET excused = ?2 WHERE id = ?1",
                    params![conversation.as_bytes(), excused as i64],
                )
                .map(drop)
            }
            Change::Violated(conversation, device, violation) => {
                self.add_event(None, EventRow::of_violation(conversation, device, violation))
            }
            Change::Epoch(epoch) => self.set_meta("epoch", epoch.as_bytes()),
            Change::NewEpoch(epoch) => self.new_epoch(epoch),
            Change::EpochCompared => self.remove_meta("epoch_changed"),
            Change::WentBack(conversation, seq, is_sure) => self.went_back(conversation, seq, is_sure),
            Change::Returned(conversation, seq, sender, id) => self.returned(conversation, seq, sender, id),
            Change::Nonce(nonce) => self.set_meta("nonce", &nonce),
            Change::Asked => self.set_meta("reincarnation_asked", &[1]),
            Change::Reincarnated(incarnation) => self.reincarnated(incarnation),
            _ => Ok(()),
        }
    }

    fn gap(&mut self, conversation: ConversationId, from: Seq, to: Seq, reason: GapReason) -> Result<()> {
        self.add_event(
            None,
            EventRow {
                conversation: conversation.as_bytes().to_vec(),
                seq: from,
                to_seq: to,
                reason: reason.name().into(),
                ..EventRow::new(EventKind::Gap)
            },
        )
    }

    pub(super) fn queued(&mut self, draft: &Draft) -> Result<()> {
        let (handle, user, device, group) = match &draft.to {
            Recipient::Handle(handle) => (Some(handle.as_str()), None, None, None),
            Recipient::User(user) => (None, Some(user.as_bytes()), None, None),
            Recipient::Device(device) => (None, Some(device.user.as_bytes()), Some(device), None),
            Recipient::Group(group) => (None, None, None, Some(group)),
            _ => return Err(corrupt("a draft has no known recipient")),
        };
        if let Some(group) = group {
            self.ensure_conversation(*group)?;
        }
        self.run(
            "INSERT INTO outbox (message_id, handle, user, installation, device, content, sent_at, group_id, action,
               waits_for)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                draft.id.as_bytes(),
                handle,
                user,
                device.map(|device| device.installation.as_bytes()),
                device.map(|device| device.device.get()),
                &draft.content[..],
                draft.sent_at as i64,
                group.map(|group| group.as_bytes()),
                draft.action.as_ref().map(|action| action.encode().to_vec()),
                draft.after.map(|id| id.as_bytes().to_vec())
            ],
        )?;
        let is_of_settings =
            draft.to == Recipient::User(self.own_user()?) && SettingsSync::read(&draft.content).is_some();
        let is_silent = group.is_some() && draft.action.is_none() && draft.content.is_empty();
        if is_silent || is_of_settings {
            // The client made it by itself.
            return Ok(());
        }
        if device.is_some() {
            // A to-device message produces no event.
            return Ok(());
        }
        if let Recipient::User(user) = draft.to
            && user != self.own_user()?
        {
            // The conversation is shown from its first message on, which may wait for a long time.
            let conversation = ConversationId::direct(self.own_user()?, user);
            if !self.has_peer(conversation)? {
                self.ensure_conversation(conversation)?;
                self.set_peer(conversation, user)?;
            }
            if !self.contact(user)?.accepted && !self.has_written(conversation)? {
                // The user is no stranger any more.
                self.revisions.touch(conversation);
            }
        }
        self.add_event(Some(draft.id), EventRow::new(EventKind::Queued))
    }

    pub(super) fn sealed(&mut self, publish: &Publish) -> Result<()> {
        let number = &publish.number;
        self.ensure_conversation(number.conversation)?;
        let own = self.own.ok_or(corrupt("the store is not loaded"))?.user;
        let others =
            publish.audience.iter().map(|audience| audience.user).filter(|_| publish.group.is_none());
        if let Some(peer) = others.into_iter().find(|user| *user != own) {
            self.set_peer(number.conversation, peer)?;
        }
        self.run(
            "UPDATE conversations SET client_seq = ?2, prev = ?3 WHERE id = ?1 AND client_seq < ?2",
            params![number.conversation.as_bytes(), number.client_seq as i64, number.message_id.as_bytes()],
        )?;
        // Retries send the same bytes, but only the first attempt sets `first`.
        let frame = ClientFrame::Publish(Publish { first: false, ..publish.clone() }).encode();
        self.run(
            // Sealed again: an earlier ciphertext may be the one that is stored.
            "UPDATE outbox SET attempted = attempted OR publish IS NOT NULL, publish = ?2 WHERE message_id = ?1",
            params![number.message_id.as_bytes(), &frame[..]],
        )
        .map(drop)
    }

    pub(super) fn stored(&mut self, conversation: ConversationId, id: MessageId, seq: Seq) -> Result<()> {
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            return self.run("DELETE FROM outbox WHERE message_id = ?1", [id.as_bytes()]).map(drop);
        }
        let own = self.own.ok_or(corrupt("the store is not loaded"))?;
        let sealed: Option<Sealed> = self
            .db
            .prepare_cached(&format!(
                "SELECT publish, attempted, {IS_SILENT}, content FROM outbox WHERE message_id = ?1"
            ))
            .and_then(|mut s| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
                s.query_row([id.as_bytes()], row).optional()
            })
            .map_err(failed)?;
        let (publish, was_attempted, is_silent, content) = sealed.unwrap_or_default();
        let publish = publish.map(read_publish).transpose()?;
        let part = publish.as_ref().and_then(|publish| publish.group.as_ref());
        let roster_version = part.map(|part| part.roster_version as i64);
        let action = part.and_then(|part| part.change.as_ref()).map(GroupChange::action);
        let makes_change = action.is_some();
        let is_member = match action {
            // The roster follows.
            Some(GroupAction::Create { .. }) => true,
            Some(_) => self.was_in_group(conversation)?,
            None => false,
        };
        let audience = publish.as_ref().filter(|publish| publish.group.is_none()).map(|publish| {
            let installations = publish.boxes.iter().flat_map(|one| *one.installation.as_bytes());
            installations.collect::<Vec<u8>>()
        });
        // A message that was sealed again may be stored as it was sealed before.
        let hash = publish.filter(|_| !was_attempted).map(|publish| {
            *RowHash::of_parts(conversation, seq, own.installation, id, &publish.body).as_bytes()
        });
        self.ensure_conversation(conversation)?;
        let is_first = self.run(
            "UPDATE conversations SET last_own = ?2 WHERE id = ?1 AND last_own = 0",
            params![conversation.as_bytes(), seq as i64],
        )?;
        if is_first > 0 {
            // From here on the other user is no stranger.
            self.revisions.touch(conversation);
        }
        self.run(
            "UPDATE conversations SET last_own = max(last_own, ?2) WHERE id = ?1",
            params![conversation.as_bytes(), seq as i64],
        )?;
        self.run(
            "INSERT OR IGNORE INTO messages SELECT ?2, ?3, ?4, ?5, ?6, message_id, content, sent_at, ?7, 0, ?8, NULL, NULL, ?9, NULL, 0, 0, NULL,
               CASE WHEN ?10 THEN action END
             FROM outbox WHERE message_id = ?1",
            params![
                id.as_bytes(),
                conversation.as_bytes(),
                seq as i64,
                own.installation.as_bytes(),
                own.user.as_bytes(),
                own.device.get(),
                audience,
                hash,
                roster_version,
                is_member
            ],
        )?;
        self.run("DELETE FROM outbox WHERE message_id = ?1", [id.as_bytes()])?;
        if is_silent || self.apply_settings(conversation, seq, own, id, &content)? {
            return Ok(());
        }
        if !makes_change {
            let decoded = decode_message(conversation, &content);
            self.add_change(conversation, seq, own, id, &decoded)?;
            self.note_lifetime(conversation, seq, own.user, &decoded)?;
        }
        let conversation = conversation.as_bytes().to_vec();
        self.add_event(Some(id), EventRow { conversation, seq, ..EventRow::new(EventKind::Stored) })
    }

    pub(super) fn refused(&mut self, id: MessageId, reason: &str) -> Result<()> {
        let is_silent = self.is_silent(id)?;
        if is_silent {
            self.note_refused_settings(id)?;
        } else {
            self.keep_failed(id, reason)?;
        }
        let to: Option<(bool, Option<Vec<u8>>)> = self
            .db
            .prepare_cached("SELECT installation IS NOT NULL, user FROM outbox WHERE message_id = ?1")
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(failed)?;
        let (to_device, user) = to.unwrap_or_default();
        let user = user.map(|user| UserId::parse(&user)).transpose()?;
        self.run("DELETE FROM outbox WHERE message_id = ?1 AND publish IS NULL", [id.as_bytes()])?;
        self.run("UPDATE outbox SET void = 1, content = x'' WHERE message_id = ?1", [id.as_bytes()])?;
        if to_device || is_silent {
            return Ok(());
        }
        if let Some(user) = user {
            // The user may be a stranger again.
            self.revisions.touch(ConversationId::direct(self.own_user()?, user));
        }
        self.add_event(Some(id), EventRow { reason: reason.into(), ..EventRow::new(EventKind::Refused) })
    }

    pub(super) fn received(&mut self, row: &InboxRow, opened: Opened) -> Result<()> {
        let RowContent::Message { message, .. } = &row.content else {
            return Ok(());
        };
        let content = match &opened.content {
            Ok(content) => Some(&content[..]),
            // It is not for this user: nothing is shown at its place.
            Err(Unreadable::NotMember) => Some(&[][..]),
            Err(_) => None,
        };
        let decoded = opened.content.as_ref().ok().map(|content| decode_message(row.conversation, content));
        let own = self.own_user()?;
        let is_mention = decoded.as_ref().is_some_and(|decoded| decoded.attributes.directs_at(own));
        let unasked = opened.content.as_ref().is_err_and(|why| why.is_of_session());
        let named = (row.conversation, message.id);
        let action = self.received_action.take().filter(|one| (one.0, one.1) == named).map(|one| one.2);
        let inserted = self.run(
            "INSERT OR IGNORE INTO messages
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, NULL, ?9, ?10, NULL, ?11, NULL, NULL, ?12, 0, NULL, ?13)",
            params![
                row.conversation.as_bytes(),
                row.seq as i64,
                message.sender.installation.as_bytes(),
                message.sender.user.as_bytes(),
                message.sender.device.get(),
                message.id.as_bytes(),
                content,
                message.sent_at as i64,
                unasked,
                RowHash::of(row.conversation, row.seq, message).as_bytes(),
                opened.body_key,
                is_mention,
                action
            ],
        )?;
        if inserted == 0 && self.knows(row.conversation, message.sender.installation, message.id)? {
            // A second row of the same message, in the same commit.
            return Ok(());
        }
        // The id of the conversation is a digest of both users. A sender can name any other user in the audience.
        let is_peer = |user: &UserId| *user != own && ConversationId::direct(own, *user) == row.conversation;
        let mut users = message.audience.iter().map(|audience| audience.user).chain([message.sender.user]);
        if let Some(peer) = users.find(is_peer) {
            self.ensure_conversation(row.conversation)?;
            self.set_peer(row.conversation, peer)?;
        }
        if let Some(content) = opened.content.as_ref().ok().filter(|_| message.group.is_some()) {
            if content.is_empty() {
                // It carries only keys, device lists, or a change of the group, which has an event of its own.
                return Ok(());
            }
            self.take_group_details(row.conversation, message.id, content)?;
        }
        if let Some(action) = action.and_then(|action| GroupAction::decode(&action).ok()) {
            // The change has an event of its own; another one has what its content adds. The content changes nothing else.
            let is_shown = decoded.is_some_and(|decoded| decoded.content.adds_to(action, own));
            return if is_shown { self.message_received(row, message, None) } else { Ok(()) };
        }
        if opened.content == Err(Unreadable::NotMember) && message.group.is_some() {
            // The change that removes this user has an event of its own.
            return Ok(());
        }
        if let Ok(content) = &opened.content
            && self.apply_settings(row.conversation, row.seq, message.sender, message.id, content)?
        {
            return Ok(());
        }
        if let Some(decoded) = &decoded {
            let is_change =
                self.add_change(row.conversation, row.seq, message.sender, message.id, decoded)?;
            self.note_lifetime(row.conversation, row.seq, message.sender.user, decoded)?;
            if is_change {
                return Ok(());
            }
        }
        self.ensure_conversation(row.conversation)?;
        if inserted > 0 && content != Some(&[]) {
            self.count_unread(row.conversation, row.seq, message.sender.user, is_mention)?;
        }
        // The reason stays in the event, so that the event is the same after the content was recovered.
        self.message_received(row, message, opened.content.err())
    }

    /// Adds the event of a received message. `why` is the reason if it is unreadable.
    fn message_received(&mut self, row: &InboxRow, message: &Message, why: Option<Unreadable>) -> Result<()> {
        let event = EventRow {
            reason: why.map_or_else(String::new, |why| why.name().into()),
            ..EventRow::of_message(EventKind::Message, row.conversation, row.seq, message.sender, message.id)
        };
        self.add_event(None, event)
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
        let decoded = decode_message(conversation, content);
        if matches!(decoded.content, Content::Unreadable(_) | Content::Cleared) {
            return Ok(());
        }
        let is_mention = decoded.attributes.directs_at(self.own_user()?);
        let place = params![
            sender.installation.as_bytes(),
            id.as_bytes(),
            conversation.as_bytes(),
            content,
            is_mention
        ];
        let filled = self.run(
            "UPDATE messages SET content = ?4, unasked = 0, mentioned = ?5
             WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3 AND content IS NULL",
            place,
        )?;
        if filled == 0 {
            return Ok(());
        }
        let seq = self.seq_of(conversation, sender.installation, id)?.unwrap_or(0).max(0) as u64;
        if self.apply_settings(conversation, seq, sender, id, content)? {
            self.revisions.touch(conversation);
            return Ok(());
        }
        self.take_group_details(conversation, id, content)?;
        if let Some(action) = self.group_action(sender.installation, conversation, id)? {
            self.revisions.touch(conversation);
            let is_shown = decoded.content.adds_to(action, self.own_user()?);
            let event = EventRow::of_message(EventKind::Message, conversation, seq, sender, id);
            return if is_shown { self.add_event(None, event) } else { Ok(()) };
        }
        let is_change = self.add_change(conversation, seq, sender, id, &decoded)?;
        self.note_lifetime(conversation, seq, sender.user, &decoded)?;
        if is_change {
            // Its placeholder is not shown any more.
            self.revisions.touch(conversation);
            return self.recount_unread(conversation);
        }
        self.recount_unread(conversation)?;
        self.add_event(None, EventRow::of_message(EventKind::Recovered, conversation, seq, sender, id))
    }

    pub(super) fn list(&mut self, list: &SignedDeviceList, change: ListChange) -> Result<()> {
        let user = list.list().user;
        if user == self.own_user()? && self.has_new_device(list)? {
            self.note_all_settings()?;
        }
        self.run(
            "INSERT OR REPLACE INTO lists VALUES (?1, ?2)",
            params![user.as_bytes(), encode_list(list)],
        )?;
        let of_user = |kind| EventRow { user: user.as_bytes().to_vec(), ..EventRow::new(kind) };
        match change {
            ListChange::IdentityChanged => {
                self.set_meta(&changed_key(user), &[1])?;
                self.add_event(None, of_user(EventKind::IdentityChanged))
            }
            ListChange::Updated(added) => added.iter().try_for_each(|device| {
                let device = u32::from(device.device.get());
                self.add_event(None, EventRow { device, ..of_user(EventKind::DeviceAdded) })
            }),
            _ => Ok(()),
        }
    }

    /// Returns whether a later list of this user names a device that the known one does not name.
    fn has_new_device(&self, list: &SignedDeviceList) -> Result<bool> {
        let known =
            self.rows_with("SELECT list FROM lists WHERE user = ?1", [list.list().user.as_bytes()], |row| {
                decode_list(super::blob(row, 0)?.into())
            })?;
        let known = known.first().map(|known| known.list());
        Ok(known.is_some_and(|known| {
            list.list().addresses().any(|device| !known.addresses().any(|old| old == device))
        }))
    }

    pub(super) fn receipt(
        &mut self,
        conversation: ConversationId,
        user: UserId,
        delivered: Seq,
        read: Seq,
    ) -> Result<()> {
        self.ensure_conversation(conversation)?;
        let before: Option<(i64, i64)> = self
            .db
            .prepare_cached("SELECT delivered, read FROM receipts WHERE conversation = ?1 AND user = ?2")
            .and_then(|mut s| {
                s.query_row(params![conversation.as_bytes(), user.as_bytes()], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()
            })
            .map_err(failed)?;
        let (delivered_before, read_before) = before.map_or((0, 0), |(d, r)| (d as u64, r as u64));
        self.run(
            "INSERT INTO receipts VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE
             SET delivered = max(delivered, excluded.delivered), read = max(read, excluded.read)",
            params![conversation.as_bytes(), user.as_bytes(), delivered as i64, read as i64],
        )?;
        self.revisions.touch_status(conversation);
        if conversation.has_roster() {
            // Each message has as many receipts as the group has members: they are no durable events.
            return Ok(());
        }
        let event = |kind, seq| EventRow {
            conversation: conversation.as_bytes().to_vec(),
            user: user.as_bytes().to_vec(),
            seq,
            ..EventRow::new(kind)
        };
        if delivered > delivered_before {
            self.run(
                "UPDATE conversations SET delivered = max(delivered, ?2) WHERE id = ?1",
                params![conversation.as_bytes(), delivered as i64],
            )?;
            self.add_event(None, event(EventKind::Delivered, delivered))?;
        }
        if read > read_before {
            self.add_event(None, event(EventKind::Read, read))?;
        }
        Ok(())
    }

    pub(super) fn reincarnated(&mut self, incarnation: u32) -> Result<()> {
        self.set_meta("incarnation", &u64::from(incarnation).to_be_bytes())?;
        let now = self.now_ms();
        self.set_meta("reincarnated_at", &now.to_be_bytes())?;
        self.run("DELETE FROM meta WHERE key IN ('nonce', 'reincarnation_asked')", [])?;
        self.run("DELETE FROM outbox WHERE void = 1", [])?;
        self.run("UPDATE outbox SET attempted = 1, publish = NULL", [])?;
        self.run("DELETE FROM sender_keys", [])?;
        self.run("UPDATE conversations SET client_seq = 0, prev = zeroblob(16)", []).map(drop)
    }
}

#[cfg(all(test, feature = "native"))]
mod tests;
