//! Settings of conversations: this device gives them to the other devices of its user.

use chat_core::replica::{Draft, Input, Recipient};
use chat_core::{ConversationId, Instant, MessageId, Result};

use super::{Driver, Reply};
use crate::conversation_setting::ConversationSetting;
use crate::suite::SuiteTx as _;

/// Milliseconds between two messages with settings: reading changes a position with each message.
const INTERVAL_MS: u64 = 2_000;

/// The state of the messages with settings.
#[derive(Debug)]
pub(super) struct SettingsPacer {
    /// The store may have settings that the other devices do not have.
    pub(super) is_due: bool,
    /// The last message, until the server has stored it.
    waits_for: Option<MessageId>,
    /// No message is sent before.
    not_before: Option<Instant>,
}

impl Default for SettingsPacer {
    fn default() -> Self {
        Self { is_due: true, waits_for: None, not_before: None }
    }
}

impl SettingsPacer {
    /// Returns when the next message is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.is_due && self.waits_for.is_none())
    }

    /// Notes that a message has left the outbox.
    pub(super) fn message_ended(&mut self, id: MessageId) {
        if self.waits_for == Some(id) {
            self.waits_for = None;
        }
    }
}

impl Driver {
    pub(super) fn change_setting(
        &mut self,
        conversation: ConversationId,
        setting: &ConversationSetting,
        reply: Reply<()>,
    ) -> Result<()> {
        self.step(Input::Flush)?;
        self.store.change_setting(conversation, setting)?;
        self.store.commit_open()?;
        self.settings.is_due = true;
        let _ = reply.send(Ok(()));
        Ok(())
    }

    /// Notes that this user has read a conversation on this device.
    pub(super) fn note_read(&mut self, conversation: ConversationId) -> Result<()> {
        self.settings.is_due = true;
        self.store.note_read(conversation)
    }

    /// Sends the other devices the settings that they do not have. Without other devices, the settings wait for one.
    pub(super) fn sync_settings(&mut self) -> Result<()> {
        let is_time = self.settings.not_before.is_none_or(|at| at <= self.now());
        if !self.settings.is_due || !is_time || self.settings.waits_for.is_some() || !self.replica.is_live() {
            return Ok(());
        }
        let own = self.account.device.user;
        if self.replica.list(own).is_none_or(|list| list.list().addresses().count() < 2) {
            return Ok(());
        }
        // The same commit takes the notes away and queues the message.
        self.step(Input::Flush)?;
        let Some(sync) = self.store.take_unsynced_settings()? else {
            self.settings.is_due = false;
            return Ok(());
        };
        let id = self.new_message_id()?;
        let content = sync.encode_padded().into();
        self.settings.is_due = self.store.has_unsynced_settings()?;
        self.settings.waits_for = Some(id);
        self.settings.not_before = Some(self.now().after(INTERVAL_MS));
        self.step(Input::Send(Draft {
            sent_at: self.store.now_ms(),
            ..Draft::new(id, Recipient::User(own), content)
        }))
    }
}
