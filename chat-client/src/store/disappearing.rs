//! Messages that disappear: the timer of a conversation, and the time at which this device erases each message.

use chat_core::{ConversationId, DeviceAddress, DeviceId, InstallationId, MessageId, Result, Seq, UserId};
use rusqlite::params;

use super::events::{EventKind, EventRow};
use super::message_changes::NO_TARGET;
use super::{LocalStore, blob, failed, number};
use crate::content::{DecodedMessage, decode_message};
use crate::message::MessageRef;
use crate::suite::SuiteTx as _;

/// Messages that one transaction erases, at most.
const BATCH: i64 = 500;

impl LocalStore {
    /// Returns the lifetime of messages that are sent to a conversation, in milliseconds; 0 if they do not disappear.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn timer_ms(&self, conversation: ConversationId) -> Result<u64> {
        let timer = self.rows_with(
            "SELECT timer_ms FROM conversations WHERE id = ?1",
            [conversation.as_bytes()],
            |row| number(row, 0),
        )?;
        Ok(timer.into_iter().next().unwrap_or(0))
    }

    /// Applies a message that sets the timer: the last one of the log stands. Returns `Some(false)` if its sender may not do
    /// that; then it is not shown.
    pub(super) fn apply_timer(
        &mut self,
        conversation: ConversationId,
        sender: DeviceAddress,
        id: MessageId,
        timer_ms: u64,
    ) -> Result<Option<bool>> {
        if !self.may_set_timer(conversation, sender.user)? {
            self.run(
                "UPDATE messages SET target = ?4 WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3",
                params![sender.installation.as_bytes(), id.as_bytes(), conversation.as_bytes(), NO_TARGET],
            )?;
            return Ok(Some(false));
        }
        let seq = self.seq_of(conversation, sender.installation, id)?.unwrap_or(0);
        self.ensure_conversation(conversation)?;
        self.revisions.touch(conversation);
        let is_last = self.run(
            "UPDATE conversations SET timer_ms = ?2, timer_seq = ?3 WHERE id = ?1 AND timer_seq <= ?3",
            params![conversation.as_bytes(), timer_ms.cast_signed(), seq],
        )? > 0;
        if !is_last {
            self.restore_timer(conversation)?;
        }
        Ok(None)
    }

    /// Returns whether a user may set the timer of a conversation: in a group, the policy for edits decides.
    fn may_set_timer(&self, conversation: ConversationId, user: UserId) -> Result<bool> {
        if !conversation.has_roster() {
            return Ok(true);
        }
        let roster = self.roster(conversation)?;
        Ok(roster.member(user).is_some_and(|member| member.role >= roster.policy.edit))
    }

    /// Applies the timer of a message that is being queued, in the open transaction, so that messages that are queued after it
    /// have it already.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn set_timer(&mut self, conversation: ConversationId, timer_ms: u64) -> Result<()> {
        self.ensure_conversation(conversation)?;
        self.revisions.touch(conversation);
        self.run(
            "UPDATE conversations SET timer_ms = ?2 WHERE id = ?1",
            params![conversation.as_bytes(), timer_ms.cast_signed()],
        )
        .map(drop)
    }

    /// Returns to the timer of the log, after a message that sets another one was refused, or stored before the last one.
    pub(super) fn restore_timer(&mut self, conversation: ConversationId) -> Result<()> {
        let contents = self.rows_with(
            "SELECT content FROM messages JOIN conversations ON id = conversation AND timer_seq = seq WHERE id = ?1",
            [conversation.as_bytes()],
            |row| row.get::<_, Option<Vec<u8>>>(0).map_err(failed),
        )?;
        let content = contents.into_iter().flatten().next().unwrap_or_default();
        self.set_timer(conversation, decode_message(conversation, &content).timer_ms().unwrap_or(0))
    }

    /// Takes the timer of a group from the message with which this user was added. One that a message of the group set stays.
    pub(super) fn take_first_timer(&mut self, conversation: ConversationId, timer_ms: u64) -> Result<()> {
        // It may be the first message of the conversation.
        self.ensure_conversation(conversation)?;
        self.run(
            "UPDATE conversations SET timer_ms = ?2 WHERE id = ?1 AND timer_seq = 0",
            params![conversation.as_bytes(), timer_ms.cast_signed()],
        )
        .map(drop)
    }

    /// Records the lifetime of a message that was stored or received. A change of another message disappears with that one; a
    /// change without its target, which may have disappeared already, disappears by itself.
    pub(super) fn note_lifetime(
        &mut self,
        conversation: ConversationId,
        seq: Seq,
        user: UserId,
        message: &DecodedMessage,
    ) -> Result<()> {
        let lifetime_ms = message.attributes.lifetime_ms;
        if lifetime_ms > 0 && self.may_set_timer(conversation, user)? {
            // A new member, or a new device, has not seen the message that set the timer.
            self.take_first_timer(conversation, lifetime_ms)?;
        }
        match &message.change {
            Some((target, _)) if lifetime_ms > 0 && !self.has_message(target)? => {
                self.expire_at(conversation, seq, lifetime_ms)
            }
            Some(_) => Ok(()),
            None => self.set_lifetime(conversation, seq, user, lifetime_ms),
        }
    }

    /// Records the lifetime of a message. It begins now if this user wrote the message, or has read it on another device.
    fn set_lifetime(
        &mut self,
        conversation: ConversationId,
        seq: Seq,
        user: UserId,
        lifetime_ms: u64,
    ) -> Result<()> {
        if lifetime_ms == 0 {
            return Ok(());
        }
        self.run(
            "UPDATE messages SET lifetime_ms = ?3 WHERE conversation = ?1 AND seq = ?2",
            params![conversation.as_bytes(), seq.cast_signed(), lifetime_ms.cast_signed()],
        )?;
        let read = self.rows_with(
            "SELECT read FROM conversations WHERE id = ?1",
            [conversation.as_bytes()],
            |row| number(row, 0),
        )?;
        if user == self.own_user()? || read.into_iter().any(|read| seq <= read) {
            return self.expire_at(conversation, seq, lifetime_ms);
        }
        Ok(())
    }

    fn expire_at(&mut self, conversation: ConversationId, seq: Seq, lifetime_ms: u64) -> Result<()> {
        let at = self.now_ms().saturating_add(lifetime_ms);
        self.run(
            "UPDATE messages SET expires_at = ?3 WHERE conversation = ?1 AND seq = ?2 AND expires_at IS NULL",
            params![conversation.as_bytes(), seq.cast_signed(), at.cast_signed()],
        )
        .map(drop)
    }

    /// Begins the lifetimes of the messages of a conversation up to a seq: this user has read them.
    pub(super) fn start_lifetimes(&mut self, conversation: ConversationId, seq: Seq) -> Result<()> {
        let now = self.now_ms();
        self.run(
            "UPDATE messages INDEXED BY messages_unexpired SET expires_at = lifetime_ms + ?3
             WHERE conversation = ?1 AND seq <= ?2 AND lifetime_ms > 0 AND expires_at IS NULL",
            params![conversation.as_bytes(), seq.cast_signed(), now.cast_signed()],
        )
        .map(drop)
    }

    /// Returns the time in milliseconds since 1970 at which the next message disappears.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn next_to_disappear(&self) -> Result<Option<u64>> {
        let at: Option<i64> = self
            .db
            .prepare_cached("SELECT min(expires_at) FROM messages INDEXED BY messages_expiring WHERE expires_at IS NOT NULL")
            .and_then(|mut s| s.query_row([], |row| row.get(0)))
            .map_err(failed)?;
        Ok(at.map(|at| at.max(0).cast_unsigned()))
    }

    /// Erases the messages that are due, with their changes, in the open transaction: at most 500. The store keeps their places,
    /// so it recognises a message that arrives again.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn erase_disappeared(&mut self) -> Result<()> {
        let due = self.rows_with(
            "SELECT conversation, seq, user, device, sender, message_id, target FROM messages INDEXED BY messages_expiring
             WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
            params![self.now_ms().cast_signed(), BATCH],
            |row| {
                let sender = DeviceAddress {
                    user: UserId::parse(&blob(row, 2)?)?,
                    device: DeviceId::new(number(row, 3)? as u32)?,
                    installation: InstallationId::parse(&blob(row, 4)?)?,
                };
                let is_change = row.get::<_, Option<Vec<u8>>>(6).map_err(failed)?.is_some();
                let seq: i64 = row.get(1).map_err(failed)?;
                let (conversation, id) = (ConversationId::parse(&blob(row, 0)?)?, MessageId::parse(&blob(row, 5)?)?);
                Ok((conversation, seq, sender, id, is_change))
            },
        )?;
        for (conversation, seq, sender, id, is_change) in due {
            self.erases = true;
            let message = MessageRef { conversation, user: sender.user, id };
            let changes = if is_change { Vec::new() } else { self.changes_to(&message)? };
            self.index_as(&message, None)?;
            for seq in changes.into_iter().map(|(seq, ..)| seq).chain([seq]) {
                self.run(
                    "UPDATE messages SET content = x'', audience = NULL, body_key = NULL, unasked = 0, expires_at = NULL,
                       lifetime_ms = 0
                     WHERE conversation = ?1 AND seq = ?2",
                    params![conversation.as_bytes(), seq],
                )?;
            }
            if !is_change {
                self.revisions.touch(conversation);
                let seq = seq.max(0).cast_unsigned();
                let event =
                    EventRow::of_message(EventKind::MessageDisappeared, conversation, seq, sender, id);
                self.add_event(None, event)?;
            }
        }
        Ok(())
    }

    /// Returns the seq and the sending device of a message that the server has; `None` if it has none, or lost it.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn place_of(
        &self,
        conversation: ConversationId,
        author: UserId,
        id: MessageId,
    ) -> Result<Option<(Seq, InstallationId)>> {
        let found = self.rows_with(
            "SELECT seq, sender FROM messages WHERE conversation = ?1 AND user = ?2 AND message_id = ?3 AND seq > 0",
            params![conversation.as_bytes(), author.as_bytes(), id.as_bytes()],
            |row| Ok((number(row, 0)?, InstallationId::parse(&blob(row, 1)?)?)),
        )?;
        Ok(found.into_iter().next())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use chat_core::backend::{Member, Roster};
    use chat_core::envelope::{InboxRow, Message, RowContent};
    use chat_core::message_options::MessageOptions;
    use chat_core::replica::{Change, Changes, Opened, Unreadable};
    use chat_core::roster::Role;

    use super::*;
    use crate::config::Profile;
    use crate::content::encode_request;
    use crate::send::SendRequest;
    use crate::store::{message_for_test, open_for_test};

    const LIFETIME_MS: u64 = 60_000;

    fn device(n: u8) -> DeviceAddress {
        let (user, installation) = (UserId::from_bytes([n; 16]), InstallationId::from_bytes([n; 16]));
        DeviceAddress { user, device: DeviceId::PRIMARY, installation }
    }

    fn id(seq: u64) -> MessageId {
        MessageId::from_bytes([seq as u8; 16])
    }

    /// Returns the store of user 1.
    fn store(dir: &tempfile::TempDir) -> LocalStore {
        let mut store = open_for_test(dir.path(), &Profile::from("test")).unwrap();
        store.load(device(1)).unwrap();
        store
    }

    /// A message with a lifetime arrives, readable or not.
    fn arrives(store: &mut LocalStore, conversation: ConversationId, seq: u64, sender: u8, readable: bool) {
        let options = MessageOptions { expires_after_ms: LIFETIME_MS, ..MessageOptions::default() };
        let message = Message { options, ..message_for_test(id(seq), device(sender), seq) };
        let content = RowContent::Message { message: Arc::new(message), sealed: Bytes::new() };
        let row = InboxRow { conversation, seq, time_us: seq, joined: seq == 1, content };
        let content = Bytes::from(encode_request(&SendRequest::text("hello"), LIFETIME_MS));
        let unreadable = Opened::unreadable(Unreadable::NoSession);
        let opened = if readable { Opened { content: Ok(content), ..unreadable } } else { unreadable };
        let list = vec![Change::Received(Box::new(row), opened)];
        store.commit(Changes { list, generation: seq }).unwrap();
    }

    #[test]
    fn lifetime_of_a_message_sets_the_timer_only_if_its_sender_may() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(&dir);
        let group = ConversationId::group(device(1), id(9), b"");
        let member = |n: u8| Member::new(device(n).user, 1, vec![device(n).installation]);
        let mut roster = Roster::of_members(vec![member(1), member(2), member(3)]);
        (roster.version, roster.policy.edit) = (1, Role::Admin);
        roster.members[2].role = Role::Admin;
        store.set_roster(group, &roster).unwrap();
        arrives(&mut store, group, 1, 2, true);
        assert_eq!(store.timer_ms(group), Ok(0), "a member that may not set it");
        arrives(&mut store, group, 2, 3, true);
        assert_eq!(store.timer_ms(group), Ok(LIFETIME_MS));
    }

    #[test]
    fn lifetime_begins_with_readable_content_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(&dir);
        let conversation = ConversationId::direct(device(1).user, device(2).user);
        arrives(&mut store, conversation, 1, 2, false);
        assert_eq!(store.timer_ms(conversation), Ok(0));
        store.set_read(conversation, 1).unwrap();
        assert_eq!(store.next_to_disappear(), Ok(None), "the server alone named this lifetime");
        let content = encode_request(&SendRequest::text("hello"), LIFETIME_MS);
        store.recovered(device(2), conversation, id(1), &content).unwrap();
        assert!(store.next_to_disappear().unwrap().is_some());
        assert_eq!(store.timer_ms(conversation), Ok(LIFETIME_MS), "from the first readable message");
        store.clear_history(conversation, 1).unwrap();
        assert_eq!(store.next_to_disappear(), Ok(None), "a cleared message has nothing left to erase");
    }
}
