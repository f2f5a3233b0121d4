//! The list of conversations: their unread counts and the settings of this user.

use std::time::Duration;

use chat_core::{ConversationId, ConversationKind, Result, Seq, UserId};
use rusqlite::{OptionalExtension, params};

use super::{LocalStore, blob, failed};
use crate::contact::Relation;
use crate::conversation::Conversation;

/// The condition of messages that count as unread, beside their seq.
const COUNTS: &str = "user != ?2 AND content IS NOT x'' AND target IS NULL AND group_action IS NULL";

impl LocalStore {
    /// Returns all conversations that users see, in the order of a list.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn conversations(&self) -> Result<Vec<Conversation>> {
        let ids = self.rows("SELECT id FROM conversations", |row| ConversationId::parse(&blob(row, 0)?))?;
        let known: Vec<Option<Conversation>> =
            ids.into_iter().map(|id| self.conversation(id)).collect::<Result<_>>()?;
        let mut conversations: Vec<Conversation> = known.into_iter().flatten().collect();
        conversations.sort_by_key(Conversation::place);
        Ok(conversations)
    }

    /// Returns a conversation, if users see it.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn conversation(&self, id: ConversationId) -> Result<Option<Conversation>> {
        if matches!(id.kind(), Ok(ConversationKind::Mailbox) | Err(_)) {
            return Ok(None);
        }
        let counts = self
            .db
            .prepare_cached("SELECT unread, mentions, read FROM conversations WHERE id = ?1")
            .and_then(|mut s| {
                let counts = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
                s.query_row([id.as_bytes()], counts).optional()
            })
            .map_err(failed)?;
        let Some((unread, mentions, read)): Option<(i64, i64, i64)> = counts else { return Ok(None) };
        let last_message = self.history(id, None, 1)?.into_iter().next();
        let is_shown = match id.kind() {
            Ok(ConversationKind::Group) => last_message.is_some() || self.is_in_group(id)?,
            Ok(ConversationKind::Channel) => self.has_channel_key(id)? || self.is_in_group(id)?,
            // Settings make it, too.
            Ok(ConversationKind::Own) => last_message.is_some(),
            // Settings of another device may be all that this device has of it.
            _ => last_message.is_some() || self.peer(id)?.is_some(),
        };
        if !is_shown {
            return Ok(None);
        }
        let settings = self.settings(id)?;
        let peer = self.peer(id)?;
        Ok(Some(Conversation {
            id,
            name: self.group_profile(id)?.map(|profile| profile.name),
            relation: peer.map_or(Ok(Relation::Stranger), |user| self.relation(user))?,
            peer: peer.map(|user| self.user(user)).transpose()?,
            last_message,
            unread: unread as u64,
            mentions: mentions as u64,
            read: read as u64,
            muted_until: settings.muted_until(),
            is_archived: settings.archived,
            is_pinned: settings.pinned,
            draft: settings.draft,
            disappearing_timer: Some(self.timer_ms(id)?)
                .filter(|timer| *timer > 0)
                .map(Duration::from_millis),
        }))
    }

    /// Counts a message that has just been received and is shown.
    pub(super) fn count_unread(
        &mut self,
        id: ConversationId,
        seq: Seq,
        user: UserId,
        is_mention: bool,
    ) -> Result<()> {
        if user == self.own_user()? {
            return Ok(());
        }
        self.run(
            "UPDATE conversations SET unread = unread + 1, mentions = mentions + ?3 WHERE id = ?1 AND read < ?2",
            params![id.as_bytes(), seq.cast_signed(), is_mention],
        )
        .map(drop)
    }

    /// Counts the unread messages of a conversation again.
    pub(super) fn recount_unread(&mut self, id: ConversationId) -> Result<()> {
        let own = self.own_user()?;
        self.run(
            &format!(
                "UPDATE conversations SET unread = counted.unread, mentions = counted.mentions
                 FROM (SELECT count(*) AS unread, coalesce(sum(mentioned), 0) AS mentions FROM messages
                       WHERE conversation = ?1 AND {COUNTS}
                         AND seq > (SELECT read FROM conversations WHERE id = ?1)) AS counted
                 WHERE id = ?1"
            ),
            params![id.as_bytes(), own.as_bytes()],
        )
        .map(drop)
    }

    /// Raises the read position of a conversation, and takes the messages up to it out of the counts.
    pub(super) fn set_read(&mut self, id: ConversationId, seq: Seq) -> Result<()> {
        let own = self.own_user()?;
        self.ensure_conversation(id)?;
        self.revisions.touch_status(id);
        self.run(
            &format!(
                "UPDATE conversations SET read = ?3, unread = conversations.unread - passed.unread,
                   mentions = conversations.mentions - passed.mentions
                 FROM (SELECT count(*) AS unread, coalesce(sum(mentioned), 0) AS mentions FROM messages
                       WHERE conversation = ?1 AND {COUNTS}
                         AND seq > (SELECT read FROM conversations WHERE id = ?1) AND seq <= ?3) AS passed
                 WHERE id = ?1 AND read < ?3"
            ),
            params![id.as_bytes(), own.as_bytes(), seq.cast_signed()],
        )?;
        self.start_lifetimes(id, seq)
    }

    /// Counts the unread messages of conversations that an earlier version of the store did not count.
    pub(super) fn count_uncounted(&mut self) -> Result<()> {
        let uncounted = self.rows("SELECT id FROM conversations WHERE unread < 0", |row| {
            ConversationId::parse(&blob(row, 0)?)
        })?;
        uncounted.into_iter().try_for_each(|id| self.recount_unread(id))
    }

    /// Returns the conversations that durable events after a number name, and that number; `None` if there are more events than
    /// the limit.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn touched_conversations(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Option<(Vec<ConversationId>, u64)>> {
        let rows = self.event_rows(after, limit + 1)?;
        if rows.len() > limit {
            return Ok(None);
        }
        let last = rows.last().map_or(after, |(n, ..)| *n);
        let mut touched: Vec<ConversationId> =
            rows.iter().filter_map(|(_, _, row)| ConversationId::parse(&row.conversation).ok()).collect();
        touched.sort_unstable();
        touched.dedup();
        Ok(Some((touched, last)))
    }
}
