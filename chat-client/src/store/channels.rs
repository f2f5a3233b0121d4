//! Channels: their keys, and posts from before this device subscribed.

use chat_core::envelope::{InboxRow, RowContent};
use chat_core::group::{GroupLink, LinkSecret};
use chat_core::view::RowHash;
use chat_core::{ConversationId, Result, Seq};
use rusqlite::{OptionalExtension, params};

use super::{LocalStore, blob, corrupt, failed};
use crate::content::decode_message;

impl LocalStore {
    /// Keeps the secret of a link, which opens the posts that are encrypted for it.
    pub(super) fn add_channel_key(&mut self, channel: ConversationId, secret: &LinkSecret) -> Result<()> {
        self.revisions.touch_status(channel);
        self.run(
            "INSERT OR IGNORE INTO channel_keys VALUES (?1, ?2, ?3)",
            params![channel.as_bytes(), secret.key(), secret.as_bytes()],
        )
        .map(drop)
    }

    /// Returns the secrets of all links of a channel that this device has.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn channel_secrets(&self, channel: ConversationId) -> Result<Vec<LinkSecret>> {
        let query = "SELECT secret FROM channel_keys WHERE conversation = ?1";
        self.rows_with(query, [channel.as_bytes()], |row| {
            let bytes = blob(row, 0)?.try_into();
            bytes.map(LinkSecret::from_bytes).map_err(|_| corrupt("the secret of a channel"))
        })
    }

    /// Returns the secret of a link; without a link, the last one that this device has seen.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn channel_secret(
        &self,
        channel: ConversationId,
        link: Option<GroupLink>,
    ) -> Result<Option<LinkSecret>> {
        match link {
            Some(link) => {
                Ok(self.channel_secrets(channel)?.into_iter().find(|secret| secret.key() == link.key))
            }
            None => self.link_secret(channel),
        }
    }

    /// Returns whether this device has a key of a channel: it reads the channel, or writes it.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn has_channel_key(&self, channel: ConversationId) -> Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM channel_keys WHERE conversation = ?1")
            .and_then(|mut s| s.exists([channel.as_bytes()]))
            .map_err(failed)
    }

    /// Drops the keys of a channel. Its messages stay, and are not listed.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn forget_channel(&mut self, channel: ConversationId) -> Result<()> {
        self.revisions.touch(channel);
        self.run("DELETE FROM channel_keys WHERE conversation = ?1", [channel.as_bytes()])?;
        self.run("UPDATE conversations SET link_secret = NULL WHERE id = ?1", [channel.as_bytes()]).map(drop)
    }

    /// Returns the seq of the oldest message of a channel that this device has.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn oldest_of_channel(&self, channel: ConversationId) -> Result<Option<Seq>> {
        let oldest: Option<i64> = self
            .db
            .prepare_cached("SELECT min(seq) FROM messages WHERE conversation = ?1 AND seq > 0")
            .and_then(|mut s| s.query_row([channel.as_bytes()], |row| row.get(0)).optional())
            .map_err(failed)?
            .flatten();
        Ok(oldest.map(i64::cast_unsigned))
    }

    /// Returns whether a seq of a channel is before all that this device has of it: posts from before its first subscription
    /// are no gap.
    pub(super) fn precedes_channel(&self, conversation: ConversationId, seq: Seq) -> Result<bool> {
        Ok(conversation.is_channel()
            && self.oldest_of_channel(conversation)?.is_none_or(|oldest| oldest >= seq))
    }

    /// Counts the posts before a seq as read.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn read_before(&mut self, channel: ConversationId, before: Seq) -> Result<()> {
        self.run(
            "UPDATE conversations SET read = max(read, ?2) WHERE id = ?1",
            params![channel.as_bytes(), before.saturating_sub(1) as i64],
        )
        .map(drop)
    }

    /// Keeps a post from before this device subscribed. It is not unread and has no event; edits and deletions
    /// have the event of a change. Returns whether it is shown.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn keep_earlier(
        &mut self,
        row: &InboxRow,
        content: &[u8],
        body_key: Option<[u8; 32]>,
    ) -> Result<bool> {
        let RowContent::Message { message, .. } = &row.content else { return Ok(false) };
        let (channel, sender) = (row.conversation, message.sender);
        let inserted = self.run(
            "INSERT OR IGNORE INTO messages (conversation, seq, sender, user, device, message_id, content, sent_at, row_hash, body_key)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                channel.as_bytes(),
                row.seq as i64,
                sender.installation.as_bytes(),
                sender.user.as_bytes(),
                sender.device.get(),
                message.id.as_bytes(),
                content,
                message.sent_at as i64,
                RowHash::of(channel, row.seq, message).as_bytes(),
                body_key,
            ],
        )?;
        if inserted == 0 || content.is_empty() {
            return Ok(false);
        }
        let is_change_of_group = message.group.as_ref().is_some_and(|part| part.change.is_some());
        if is_change_of_group {
            // The roster and the profile of today are known from newer messages.
            self.run(
                "UPDATE messages SET content = x'' WHERE conversation = ?1 AND seq = ?2",
                params![channel.as_bytes(), row.seq as i64],
            )?;
            return Ok(false);
        }
        let decoded = decode_message(channel, content);
        let is_change = self.add_change(channel, row.seq, sender, message.id, &decoded)?;
        self.note_lifetime(channel, row.seq, sender.user, &decoded)?;
        Ok(!is_change)
    }

    /// Notes that earlier posts of a channel were kept.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn note_earlier(&mut self, channel: ConversationId) -> Result<()> {
        self.revisions.touch(channel);
        Ok(())
    }
}
