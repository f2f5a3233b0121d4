//! Users, conversations and messages for the application.

use std::collections::HashMap;
use std::time::{Duration, UNIX_EPOCH};

use chat_core::group::GroupAction;
use chat_core::replica::Unreadable;
use chat_core::{ConversationId, ConversationKind, DeviceId, Handle, MessageId, Result, Seq, UserId};
use rusqlite::{OptionalExtension, params};

use super::timeline::IS_SHOWN;
use super::{LocalStore, blob, corrupt, failed, number};
use crate::contact::Relation;
use crate::content::{Attributes, decode_message};
use crate::event::{Event, RefusedReason};
use crate::group::MemberReceipt;
use crate::message::{Content, Message, MessageRef, User};
use crate::status::{Count, Position, Status};

/// The stored part of a message that its text is made of.
#[derive(Debug, Default)]
pub(super) struct StoredContent {
    /// `None` while the message is unreadable.
    pub content: Option<Vec<u8>>,
    pub sent_at_ms: u64,
    /// The change of a group that the message makes.
    pub action: Option<Vec<u8>>,
}

impl LocalStore {
    /// Returns this user.
    ///
    /// # Errors
    /// If the store is not loaded.
    pub(crate) fn own_user(&self) -> Result<UserId> {
        Ok(self.own.ok_or(corrupt("the store is not loaded"))?.user)
    }

    /// Returns a user, with the handle if it is known.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn user(&self, user: UserId) -> Result<User> {
        let handle: Option<String> = self
            .db
            .prepare_cached("SELECT handle FROM handles WHERE user = ?1")
            .and_then(|mut s| s.query_row([user.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        Ok(User::new(user, handle.map(|handle| Handle::new(&handle)).transpose()?))
    }

    /// Returns the other user of a direct conversation, or this user for the conversation of the own devices; `None` if
    /// it is unknown.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn peer(&self, conversation: ConversationId) -> Result<Option<UserId>> {
        let own = self.own_user()?;
        match conversation.kind() {
            Ok(ConversationKind::Own) => return Ok((conversation == ConversationId::own(own)).then_some(own)),
            Ok(ConversationKind::Direct) => {}
            _ => return Ok(None),
        }
        let known: Option<Option<Vec<u8>>> = self
            .db
            .prepare_cached("SELECT peer FROM conversations WHERE id = ?1")
            .and_then(|mut s| s.query_row([conversation.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?;
        if let Some(Some(peer)) = known {
            return UserId::parse(&peer).map(Some);
        }
        // The id is a digest of both users: another own device may have begun the conversation with a known user.
        let users = self.rows("SELECT user FROM lists UNION SELECT user FROM handles", |row| {
            UserId::parse(&blob(row, 0)?)
        })?;
        Ok(users.into_iter().find(|user| ConversationId::direct(own, *user) == conversation))
    }

    /// Returns a column of a message, if it is stored and has a value there.
    pub(super) fn column_of(
        &self,
        column: &'static str,
        conversation: ConversationId,
        sender: &[u8],
        id: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        let value: Option<Option<Vec<u8>>> = self
            .db
            .prepare_cached(&format!(
                "SELECT {column} FROM messages WHERE sender = ?1 AND message_id = ?2 AND conversation = ?3"
            ))
            .and_then(|mut s| {
                s.query_row(params![sender, id, conversation.as_bytes()], |row| row.get(0)).optional()
            })
            .map_err(failed)?;
        Ok(value.flatten())
    }

    /// Returns whether the other user of a direct conversation is recorded.
    pub(super) fn has_peer(&self, conversation: ConversationId) -> Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM conversations WHERE id = ?1 AND peer IS NOT NULL")
            .and_then(|mut s| s.exists([conversation.as_bytes()]))
            .map_err(failed)
    }

    /// Records the other user of a direct conversation, in the open transaction.
    pub(super) fn set_peer(&mut self, conversation: ConversationId, peer: UserId) -> Result<()> {
        self.run(
            "UPDATE conversations SET peer = ?2 WHERE id = ?1 AND peer IS NULL",
            params![conversation.as_bytes(), peer.as_bytes()],
        )
        .map(|changed| {
            if changed > 0 {
                self.revisions.touch(conversation);
            }
        })
    }

    /// Returns a message. `why` is the reason if its content is unreadable.
    pub(super) fn message(
        &self,
        conversation: ConversationId,
        seq: Seq,
        id: MessageId,
        sender: (UserId, DeviceId),
        stored: StoredContent,
        why: Unreadable,
    ) -> Result<Message> {
        let own = self.own_user()?;
        let named = MessageRef { conversation, user: sender.0, id };
        let decoded = stored.content.map(|content| decode_message(conversation, &content));
        let (content, attributes) = match decoded {
            Some(decoded) => (decoded.content, decoded.attributes),
            None => (Content::Unreadable(why), Attributes::default()),
        };
        let content = match stored.action.and_then(|action| GroupAction::decode(&action).ok()) {
            Some(action) => {
                let users = action.users().iter().map(|user| self.user(*user)).collect::<Result<_>>()?;
                content.of_change(action, users, own)
            }
            None => content.of_no_change(),
        };
        let changes = self.changes_of(&named)?;
        let (content, is_edited) = match changes.text {
            Some(text) if matches!(content, Content::Text(_)) => (Content::Text(text), true),
            _ => (content, false),
        };
        let is_deleted = matches!(content, Content::Deleted | Content::Cleared);
        let reactions = if is_deleted { Vec::new() } else { changes.reactions };
        let recipient = match conversation.kind() {
            Ok(ConversationKind::Direct) if sender.0 != own => Some(own),
            _ => self.peer(conversation)?,
        };
        Ok(Message {
            conversation,
            seq,
            archived: false,
            is_request: sender.0 != own
                && !conversation.has_roster()
                && self.relation(sender.0)? == Relation::Stranger,
            id,
            sender: self.user(sender.0)?,
            device: sender.1,
            recipient: recipient.map(|user| self.user(user)).transpose()?,
            // The time is the claim of the sender.
            sent_at: UNIX_EPOCH.checked_add(Duration::from_millis(stored.sent_at_ms)).unwrap_or(UNIX_EPOCH),
            reply_to: attributes.reply_to,
            mentions: attributes.mentions,
            is_forwarded: attributes.is_forwarded,
            is_edited,
            reactions,
            disappears_after: (attributes.lifetime_ms > 0)
                .then(|| Duration::from_millis(attributes.lifetime_ms)),
            content,
        })
    }

    /// Returns the newest messages of a conversation below a seq (`None`: the newest), newest first. Archived messages come
    /// with the message that they follow, and in addition to the limit.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn history(
        &self,
        conversation: ConversationId,
        before: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<Message>> {
        let before = before.map_or(i64::MAX, |seq| i64::try_from(seq).unwrap_or(i64::MAX));
        let count = i64::try_from(limit).unwrap_or(i64::MAX);
        let numbered = self.messages(
            conversation,
            &format!(
                "SELECT seq, user, device, message_id, content, sent_at, group_action FROM messages INDEXED BY messages_shown
                 WHERE conversation = ?1 AND seq < ?2 AND seq > 0 AND {IS_SHOWN}
                 ORDER BY seq DESC LIMIT ?3"
            ),
            (before, count),
        )?;
        let oldest = if numbered.len() < limit { 0 } else { numbered.last().map_or(0, |last| last.seq) };
        let archived = self.messages(
            conversation,
            &format!(
                "SELECT anchor, user, device, message_id, content, sent_at, group_action FROM messages
                 WHERE conversation = ?1 AND anchor < ?2 AND anchor >= ?3 AND {IS_SHOWN}
                 ORDER BY anchor DESC, seq"
            ),
            (before, oldest.cast_signed()),
        )?;
        if archived.is_empty() {
            return Ok(numbered);
        }
        let archived = archived.into_iter().map(|message| Message { archived: true, ..message });
        let mut all: Vec<Message> = archived.chain(numbered).collect();
        // Stable: of one seq, the archived messages come first, the newest of them at the start.
        all.sort_by_key(|message| std::cmp::Reverse((message.seq, message.archived)));
        Ok(all)
    }

    /// Returns the messages of a query with two parameters after the conversation.
    fn messages(
        &self,
        conversation: ConversationId,
        query: &str,
        (first, second): (i64, i64),
    ) -> Result<Vec<Message>> {
        let mut statement = self.db.prepare_cached(query).map_err(failed)?;
        let mut rows = statement.query(params![conversation.as_bytes(), first, second]).map_err(failed)?;
        let mut messages = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let stored = StoredContent {
                content: row.get(4).map_err(failed)?,
                sent_at_ms: number(row, 5)?,
                action: row.get(6).map_err(failed)?,
            };
            let sender = (UserId::parse(&blob(row, 1)?)?, DeviceId::new(number(row, 2)? as u32)?);
            let id = MessageId::parse(&blob(row, 3)?)?;
            messages.push(self.message(
                conversation,
                number(row, 0)?,
                id,
                sender,
                stored,
                Unreadable::Undecryptable,
            )?);
        }
        Ok(messages)
    }

    /// Erases the content of the messages of a conversation up to a seq, in the open transaction. Their places stay, so that
    /// a message that arrives again is recognised. Returns the number of messages erased.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn clear_history(&mut self, conversation: ConversationId, through: Seq) -> Result<usize> {
        let place = params![conversation.as_bytes(), through.cast_signed()];
        self.erases = true;
        self.revisions.touch(conversation);
        self.clear_index(conversation, through)?;
        self.run("DELETE FROM failed_messages WHERE conversation = ?1", [conversation.as_bytes()])?;
        self.run("DELETE FROM unknown_rows WHERE conversation = ?1 AND seq <= ?2", place)?;
        let erased = self.run(
            "UPDATE messages SET content = x'', audience = NULL, body_key = NULL, unasked = 0, lifetime_ms = 0, expires_at = NULL,
               group_action = NULL
             WHERE conversation = ?1 AND seq <= ?2 AND (content IS NOT x'' OR group_action IS NOT NULL)",
            params![conversation.as_bytes(), through.cast_signed()],
        )?;
        self.recount_unread(conversation)?;
        Ok(erased)
    }

    /// Returns the progress of an own message.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn status(&self, message: MessageId) -> Result<Status> {
        match self.events_of(message)?.pop().map(|record| record.event) {
            Some(Event::Stored { conversation, seq, .. }) => {
                self.stored_status(conversation, seq, self.is_archived(message)?)
            }
            Some(Event::Refused { reason, .. }) => Ok(Status::Refused(reason)),
            Some(_) => Ok(Status::Queued),
            None => Ok(Status::Refused(RefusedReason::Other)),
        }
    }

    /// Returns the progress of an own stored message.
    pub(super) fn stored_status(
        &self,
        conversation: ConversationId,
        seq: Seq,
        is_archived: bool,
    ) -> Result<Status> {
        if conversation.has_roster() {
            return self.status_in_group(conversation, seq, is_archived);
        }
        let of = u32::from(conversation.kind() == Ok(ConversationKind::Direct));
        // Receipts count the seqs of the current data set of the server.
        let (delivered, read) = if is_archived { (0, 0) } else { self.receipts(conversation, seq)? };
        Ok(Status::Stored {
            position: Position::new(conversation, seq),
            delivered: Count::new(delivered.min(of), of),
            read: Count::new(read.min(of), of),
        })
    }

    fn status_in_group(&self, group: ConversationId, seq: Seq, is_archived: bool) -> Result<Status> {
        let receipts = if is_archived { Vec::new() } else { self.receipts_of_members(group, seq)? };
        let of = receipts.len() as u32;
        let count = |has: fn(&(UserId, bool, bool)) -> bool| receipts.iter().filter(|one| has(one)).count();
        Ok(Status::Stored {
            position: Position::new(group, seq),
            delivered: Count::new(count(|(_, delivered, _)| *delivered) as u32, of),
            read: Count::new(count(|(_, _, read)| *read) as u32, of),
        })
    }

    /// Returns the progress of an own message at each other member of a group that was one at that seq, and is one now.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn member_receipts(&self, group: ConversationId, seq: Seq) -> Result<Vec<MemberReceipt>> {
        let receipts = self.receipts_of_members(group, seq)?.into_iter();
        receipts
            .map(|(user, delivered, read)| Ok(MemberReceipt { user: self.user(user)?, delivered, read }))
            .collect()
    }

    /// Returns each of these members, whether it has the message, and whether it has read it.
    fn receipts_of_members(&self, group: ConversationId, seq: Seq) -> Result<Vec<(UserId, bool, bool)>> {
        let own = self.own_user()?;
        let known = self.rows_with(
            "SELECT user, delivered, read FROM receipts WHERE conversation = ?1",
            [group.as_bytes()],
            |row| Ok((UserId::parse(&blob(row, 0)?)?, (number(row, 1)?, number(row, 2)?))),
        )?;
        let known: HashMap<UserId, (u64, u64)> = known.into_iter().collect();
        let roster = self.roster(group)?;
        let members = roster.members.iter().filter(|member| member.user != own && member.joined <= seq);
        let receipts = members.map(|member| {
            let (delivered, read) = known.get(&member.user).copied().unwrap_or_default();
            (member.user, delivered.max(read) >= seq, read >= seq)
        });
        Ok(receipts.collect())
    }

    /// Returns whether an own message was stored in an earlier data set of the server.
    fn is_archived(&self, message: MessageId) -> Result<bool> {
        let own = self.own.ok_or(corrupt("the store is not loaded"))?.installation;
        self.db
            .prepare_cached("SELECT 1 FROM messages WHERE sender = ?1 AND message_id = ?2 AND seq <= 0")
            .and_then(|mut s| s.exists(params![own.as_bytes(), message.as_bytes()]))
            .map_err(failed)
    }

    /// Returns the number of other users that have received and that have read up to a seq.
    fn receipts(&self, conversation: ConversationId, seq: Seq) -> Result<(u32, u32)> {
        let own = self.own_user()?;
        self.db
            .prepare_cached(
                "SELECT count(*) FILTER (WHERE max(delivered, read) >= ?2), count(*) FILTER (WHERE read >= ?2)
                 FROM receipts WHERE conversation = ?1 AND user != ?3",
            )
            .and_then(|mut s| {
                s.query_row(params![conversation.as_bytes(), seq as i64, own.as_bytes()], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
            })
            .map_err(failed)
    }
}
