//! Changes of messages: edits, deletions and reactions.

use chat_core::Result;
use chat_core::{Error, ErrorKind};

use super::{Client, Ticket};
use crate::message::MessageRef;
use crate::message_change::MessageChange;
use crate::send::SendRequest;

impl Client {
    /// Replaces the text of an own message for all. Devices that receive the change show the new text.
    ///
    /// # Errors
    /// `Denied` if another user wrote the message, `NotFound` if this device does not have it, or it is deleted, and the errors
    /// of [`send`](Self::send).
    pub async fn edit(&self, message: impl Into<MessageRef>, text: impl Into<String>) -> Result<Ticket> {
        let message = message.into();
        if message.user != self.user() {
            return Err(Error::new(ErrorKind::Denied, "only the author edits a message"));
        }
        self.change(message, MessageChange::Edited, text.into()).await
    }

    /// Deletes a message for all. Devices that receive the deletion erase the text; a device that is off keeps it until
    /// then, and a modified client may keep it for ever. In a group an admin deletes messages of others, too.
    ///
    /// # Errors
    /// `Denied` if another user wrote the message and this user is no admin of the group, `NotFound` if this device does not
    /// have it, or it is deleted, and the errors of [`send`](Self::send).
    pub async fn delete(&self, message: impl Into<MessageRef>) -> Result<Ticket> {
        let message = message.into();
        if message.user != self.user() {
            let group = self.group(message.conversation).await.ok();
            if group.and_then(|group| group.own_role).is_none_or(|role| role < crate::Role::Admin) {
                return Err(Error::new(
                    ErrorKind::Denied,
                    "only the author, or an admin of the group, deletes a message",
                ));
            }
        }
        self.change(message, MessageChange::Deleted, String::new()).await
    }

    /// Reacts to a message. A user may have several reactions to a message, each once.
    ///
    /// # Errors
    /// `Invalid` unless the emoji has 1 to 64 bytes, `NotFound` if this device does not have the message, or it is deleted, and
    /// the errors of [`send`](Self::send).
    pub async fn react(&self, message: impl Into<MessageRef>, emoji: impl Into<String>) -> Result<Ticket> {
        let change = MessageChange::Reacted { emoji: emoji.into(), removed: false };
        self.change(message.into(), change, String::new()).await
    }

    /// Takes a reaction back.
    ///
    /// # Errors
    /// Those of [`react`](Self::react).
    pub async fn unreact(&self, message: impl Into<MessageRef>, emoji: impl Into<String>) -> Result<Ticket> {
        let change = MessageChange::Reacted { emoji: emoji.into(), removed: true };
        self.change(message.into(), change, String::new()).await
    }

    async fn change(&self, message: MessageRef, change: MessageChange, text: String) -> Result<Ticket> {
        self.send(message.conversation, SendRequest::change(message, change, text)).await
    }
}
