//! The items of timelines: messages in the order in which users see them, then own messages that are not stored.

use chat_core::replica::Unreadable;
use chat_core::{ConversationId, DeviceId, MessageId, Result, Seq, UserId};
use rusqlite::{OptionalExtension, Row, params};

use super::history::StoredContent;
use super::{LocalStore, blob, corrupt, failed, number};
use crate::content::{change_in, decode_message};
use crate::event::RefusedReason;
use crate::message::{Content, MessageRef};
use crate::settings_sync::SettingsSync;
use crate::status::Status;
use crate::timeline::{Place, TimelineItem};

/// The columns of a stored message that an item needs.
const COLUMNS: &str = "seq, anchor, user, device, message_id, content, sent_at, group_action";

/// The condition of rows that are shown: messages with content and changes of a group, but no changes of other messages.
pub(super) const IS_SHOWN: &str = "(content IS NOT x'' OR group_action IS NOT NULL) AND target IS NULL";

/// The condition of messages of the outbox that may be items: those of a group or a user, that are not withdrawn.
const IS_WAITING: &str = "installation IS NULL AND void = 0 AND (content IS NOT x'' OR action IS NOT NULL)";

/// A number of an application as the database has it; larger ones are the largest.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl LocalStore {
    /// Returns the items between two seqs, both included, the oldest first. Without an upper seq, the own messages that are not
    /// stored follow.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn timeline_range(
        &self,
        conversation: ConversationId,
        from: Seq,
        to: Option<Seq>,
    ) -> Result<Vec<(Place, TimelineItem)>> {
        let last = to.map_or(i64::MAX, signed);
        let range = params![conversation.as_bytes(), signed(from), last];
        let mut items = self.rows_with(
            &format!(
                "SELECT {COLUMNS} FROM messages
                 WHERE conversation = ?1 AND seq >= ?2 AND seq <= ?3 AND seq > 0 AND {IS_SHOWN}"
            ),
            range,
            |row| self.stored_item(conversation, row),
        )?;
        items.extend(self.rows_with(
            &format!(
                "SELECT {COLUMNS} FROM messages
                 WHERE conversation = ?1 AND anchor >= ?2 AND anchor <= ?3 AND {IS_SHOWN}"
            ),
            range,
            |row| self.stored_item(conversation, row),
        )?);
        items.sort_by_key(|(place, _)| *place);
        if to.is_none() {
            items.extend(self.unstored_items(conversation, None)?);
        }
        Ok(items)
    }

    /// Returns the item of a message of a conversation; `None` if it is not shown.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn timeline_item(
        &self,
        conversation: ConversationId,
        user: UserId,
        id: MessageId,
    ) -> Result<Option<(Place, TimelineItem)>> {
        let stored = self.rows_with(
            &format!(
                "SELECT {COLUMNS} FROM messages WHERE conversation = ?1 AND user = ?2 AND message_id = ?3 AND {IS_SHOWN}"
            ),
            params![conversation.as_bytes(), user.as_bytes(), id.as_bytes()],
            |row| self.stored_item(conversation, row),
        )?;
        if stored.is_empty() && user == self.own_user()? {
            return Ok(self.unstored_items(conversation, Some(id))?.pop());
        }
        Ok(stored.into_iter().next())
    }

    /// Returns the seq of the n-th message that is shown before a seq, counted from 1; 0 if there are not more than n.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn seq_before(&self, conversation: ConversationId, seq: Option<Seq>, n: usize) -> Result<Seq> {
        let before = seq.map_or(i64::MAX, signed);
        let query = format!(
            "SELECT seq FROM messages INDEXED BY messages_shown WHERE conversation = ?1 AND seq < ?2 AND seq > 0 AND {IS_SHOWN}
             ORDER BY seq DESC LIMIT 2 OFFSET ?3"
        );
        let offset = signed(n.max(1) as u64 - 1);
        let found =
            self.rows_with(&query, params![conversation.as_bytes(), before, offset], |row| number(row, 0))?;
        Ok(if found.len() == 2 { found[0] } else { 0 })
    }

    /// Returns the seq of the n-th message that is shown after a seq, counted from 1; `None` if there are not more than n.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn seq_after(&self, conversation: ConversationId, seq: Seq, n: usize) -> Result<Option<Seq>> {
        let query = format!(
            "SELECT seq FROM messages INDEXED BY messages_shown WHERE conversation = ?1 AND seq > ?2 AND seq > 0 AND {IS_SHOWN}
             ORDER BY seq LIMIT 2 OFFSET ?3"
        );
        let offset = signed(n.max(1) as u64 - 1);
        let key = params![conversation.as_bytes(), signed(seq), offset];
        let found = self.rows_with(&query, key, |row| number(row, 0))?;
        Ok((found.len() == 2).then(|| found[0]))
    }

    /// Returns the seq of the first message that was sent at a time or later, by the clocks of the senders.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn seq_at(&self, conversation: ConversationId, sent_at_ms: u64) -> Result<Option<Seq>> {
        self.db
            .prepare_cached(&format!(
                "SELECT seq FROM messages WHERE conversation = ?1 AND sent_at >= ?2 AND seq > 0 AND {IS_SHOWN}
                 ORDER BY seq LIMIT 1"
            ))
            .and_then(|mut s| {
                let key = params![conversation.as_bytes(), signed(sent_at_ms)];
                s.query_row(key, |row| row.get::<_, i64>(0)).optional()
            })
            .map(|seq| seq.map(|seq| seq as Seq))
            .map_err(failed)
    }

    fn stored_item(&self, conversation: ConversationId, row: &Row<'_>) -> Result<(Place, TimelineItem)> {
        let seq: i64 = row.get(0).map_err(failed)?;
        let anchor: Option<i64> = row.get(1).map_err(failed)?;
        let (user, device) = (UserId::parse(&blob(row, 2)?)?, DeviceId::new(number(row, 3)? as u32)?);
        let id = MessageId::parse(&blob(row, 4)?)?;
        let stored = StoredContent {
            content: row.get(5).map_err(failed)?,
            sent_at_ms: number(row, 6)?,
            action: row.get(7).map_err(failed)?,
        };
        let shown_at = anchor.unwrap_or(seq) as Seq;
        let mut message =
            self.message(conversation, shown_at, id, (user, device), stored, Unreadable::Undecryptable)?;
        message.archived = anchor.is_some();
        let is_own = user == self.own_user()?;
        let status =
            is_own.then(|| self.stored_status(conversation, shown_at, message.archived)).transpose()?;
        Ok((Place::stored(seq, anchor), TimelineItem { message, status }))
    }

    /// Returns the own messages of a conversation that wait or were refused, or one of them.
    fn unstored_items(
        &self,
        conversation: ConversationId,
        id: Option<MessageId>,
    ) -> Result<Vec<(Place, TimelineItem)>> {
        let peer = self.peer(conversation)?;
        let key = params![
            conversation.as_bytes(),
            peer.map(|peer| peer.as_bytes().to_vec()),
            id.map(|id| id.as_bytes().to_vec())
        ];
        // Without an id, all of them: the outbox is bounded.
        let named = if id.is_some() { "message_id = ?3" } else { "?3 IS NULL" };
        let query = format!(
            "SELECT n, message_id, content, sent_at, NULL, action FROM outbox
             WHERE {IS_WAITING} AND {named}
               AND (group_id = ?1 OR user = ?2 OR handle IN (SELECT handle FROM handles WHERE handles.user = ?2))
             UNION ALL
             SELECT n, message_id, content, sent_at, reason, NULL FROM failed_messages
             WHERE conversation = ?1 AND {named}
             ORDER BY n"
        );
        let items =
            self.rows_with(&query, key, |row| self.unstored_item(conversation, row))?.into_iter().flatten();
        Ok(items.collect())
    }

    /// Returns whether an own message waits in the outbox and is no change of another one.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn is_queued(&self, message: &MessageRef) -> Result<bool> {
        if message.user != self.own_user()? {
            return Ok(false);
        }
        let items = self.unstored_items(message.conversation, Some(message.id))?;
        let is_message = |item: &TimelineItem| {
            item.status == Some(Status::Queued)
                && !matches!(item.message.content(), Content::GroupChanged { .. })
        };
        Ok(items.iter().any(|(_, item)| is_message(item)))
    }

    /// Returns whether the deletion of an own message waits in the outbox.
    fn is_deletion_queued(&self, message: MessageId) -> Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM outbox WHERE waits_for = ?1 AND void = 0")
            .and_then(|mut s| s.exists([message.as_bytes()]))
            .map_err(failed)
    }

    fn unstored_item(
        &self,
        conversation: ConversationId,
        row: &Row<'_>,
    ) -> Result<Option<(Place, TimelineItem)>> {
        let own = self.own.ok_or(corrupt("the store is not loaded"))?;
        let (id, content) = (MessageId::parse(&blob(row, 1)?)?, blob(row, 2)?);
        let is_of_settings =
            conversation == ConversationId::own(own.user) && SettingsSync::read(&content).is_some();
        if is_of_settings || change_in(conversation, &content).is_some() {
            return Ok(None);
        }
        let reason: Option<String> = row.get(4).map_err(failed)?;
        let status =
            reason.map_or(Status::Queued, |reason| Status::Refused(RefusedReason::from_name(&reason)));
        let sender = (own.user, own.device);
        let stored = StoredContent {
            content: Some(content),
            sent_at_ms: number(row, 3)?,
            action: row.get(5).map_err(failed)?,
        };
        let message = self.message(conversation, 0, id, sender, stored, Unreadable::Malformed)?;
        Ok(Some((Place::unstored(number(row, 0)?), TimelineItem { message, status: Some(status) })))
    }

    /// Keeps a refused message, so that the user sees it and can send it again. Changes of messages and of groups are not kept.
    pub(super) fn keep_failed(&mut self, id: MessageId, reason: &str) -> Result<()> {
        type Waiting = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>, i64);
        let waiting: Option<Waiting> = self
            .db
            .prepare_cached(&format!(
                "SELECT n, group_id, coalesce(user, (SELECT user FROM handles WHERE handles.handle = outbox.handle)),
                        content, sent_at
                 FROM outbox WHERE message_id = ?1 AND action IS NULL AND {IS_WAITING}"
            ))
            .and_then(|mut s| {
                s.query_row([id.as_bytes()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                })
                .optional()
            })
            .map_err(failed)?;
        let Some((n, group, user, content, sent_at)) = waiting else { return Ok(()) };
        let own = self.own_user()?;
        let conversation = match (group, user) {
            (Some(group), _) => ConversationId::parse(&group)?,
            (None, Some(user)) => match UserId::parse(&user)? {
                user if user == own => ConversationId::own(own),
                user => ConversationId::direct(own, user),
            },
            // There is no such user, so there is no conversation.
            (None, None) => return Ok(()),
        };
        if self.is_deletion_queued(id)? {
            return Ok(());
        }
        let refused = decode_message(conversation, &content);
        if refused.timer_ms().is_some() {
            self.restore_timer(conversation)?;
        }
        if refused.change.is_some() {
            return Ok(());
        }
        self.run(
            "INSERT OR REPLACE INTO failed_messages VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id.as_bytes(), n, conversation.as_bytes(), content, sent_at, reason],
        )
        .map(drop)
    }

    /// Returns the conversation and the content of a refused message.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn failed_message(&self, id: MessageId) -> Result<Option<(ConversationId, Vec<u8>)>> {
        let kept: Option<(Vec<u8>, Vec<u8>)> = self
            .db
            .prepare_cached("SELECT conversation, content FROM failed_messages WHERE message_id = ?1")
            .and_then(|mut s| s.query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional())
            .map_err(failed)?;
        kept.map(|(conversation, content)| Ok((ConversationId::parse(&conversation)?, content))).transpose()
    }

    /// Removes a refused message, in the open transaction.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn remove_failed(&mut self, conversation: ConversationId, id: MessageId) -> Result<()> {
        self.erases = true;
        self.revisions.touch(conversation);
        self.run("DELETE FROM failed_messages WHERE message_id = ?1", [id.as_bytes()]).map(drop)
    }
}
