//! Messages of a later version: they are kept, and read again after an update.

use chat_core::{ConversationId, DeviceAddress, DeviceId, InstallationId, MessageId, Result, UserId};
use rusqlite::params;

use super::events::{EventKind, EventRow};
use super::{LocalStore, blob, failed, number};
use crate::content::{DecodedMessage, KINDS, decode_message};
use crate::message::Content;

/// The kinds of messages that the version knew that last opened the store.
const KINDS_KEY: &str = "message_kinds";

impl LocalStore {
    /// Notes a message that this version cannot read.
    pub(super) fn note_unsupported(
        &mut self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
        message: &DecodedMessage,
    ) -> Result<()> {
        if message.content != Content::Unsupported || message.change.is_some() {
            return Ok(());
        }
        self.run(
            "INSERT OR IGNORE INTO unsupported_messages VALUES (?1, ?2, ?3)",
            params![conversation.as_bytes(), sender.as_bytes(), id.as_bytes()],
        )
        .map(drop)
    }

    /// Reads the messages again that an earlier version could not read, if this one knows other kinds. A message that became
    /// readable has its effect on others, is found by searches, and has an event.
    pub(super) fn read_unsupported(&mut self) -> Result<()> {
        if self.meta_number(KINDS_KEY)? == KINDS {
            return Ok(());
        }
        let kept = self.rows(
            "SELECT messages.conversation, seq, user, device, messages.sender, messages.message_id, content
             FROM unsupported_messages JOIN messages USING (conversation, sender, message_id)
             ORDER BY messages.conversation, seq",
            |row| {
                let sender = DeviceAddress {
                    user: UserId::parse(&blob(row, 2)?)?,
                    device: DeviceId::new(number(row, 3)? as u32)?,
                    installation: InstallationId::parse(&blob(row, 4)?)?,
                };
                let seq: i64 = row.get(1).map_err(failed)?;
                let content: Option<Vec<u8>> = row.get(6).map_err(failed)?;
                let (conversation, id) =
                    (ConversationId::parse(&blob(row, 0)?)?, MessageId::parse(&blob(row, 5)?)?);
                Ok((conversation, seq, sender, id, content.unwrap_or_default()))
            },
        )?;
        for (conversation, seq, sender, id, content) in kept {
            let message = decode_message(conversation, &content);
            if message.content == Content::Unsupported && message.change.is_none() {
                continue;
            }
            let seq = seq.max(0).cast_unsigned();
            let is_change = self.add_change(conversation, seq, sender, id, &message)?;
            if !is_change && !content.is_empty() {
                let event = EventRow::of_message(EventKind::Recovered, conversation, seq, sender, id);
                self.add_event(None, event)?;
            }
            self.recount_unread(conversation)?;
            self.run(
                "DELETE FROM unsupported_messages WHERE conversation = ?1 AND sender = ?2 AND message_id = ?3",
                params![conversation.as_bytes(), sender.installation.as_bytes(), id.as_bytes()],
            )?;
        }
        self.set_meta(KINDS_KEY, &KINDS.to_be_bytes())
    }
}
