//! Changes of messages: edits, deletions and reactions.

use std::time::Duration;

use chat_core::{Error, ErrorKind, Result};

use super::{Client, Ticket};
use crate::message::MessageRef;
use crate::message_change::MessageChange;
use crate::send::{Recipient, SendRequest};

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

    /// Sets the time after which messages of a conversation disappear, for all of its users; `None` ends it. It applies to
    /// messages that are sent from now on. A message disappears when this time has passed: on a device since its user read it,
    /// on the devices of its sender since it was sent, and on the server since it was stored. So a device that is off for longer
    /// gets a gap instead. In a group the policy for edits decides who may set it.
    ///
    /// Like a deletion, it is a request to other devices: a modified client may keep the messages.
    ///
    /// ```
    /// use chat_client::prelude::*;
    /// use std::time::Duration;
    ///
    /// async fn a_day(client: &Client, bob: &Handle) -> Result<()> {
    ///     client.set_disappearing_timer(bob, Some(Duration::from_secs(24 * 3600))).await?.stored().await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// `Invalid` unless the time is 1 second to 366 days, `Denied` if the policy of the group does not allow it, and the errors
    /// of [`send`](Self::send).
    pub async fn set_disappearing_timer(
        &self,
        to: impl Into<Recipient>,
        after: Option<Duration>,
    ) -> Result<Ticket> {
        let (to, timer_ms) = (to.into(), after.map_or(0, |after| after.as_millis()));
        if after.is_some() && timer_ms < 1000 {
            return Err(Error::new(ErrorKind::Invalid, "messages disappear after 1 second at the earliest"));
        }
        if let Recipient::Conversation(id) = to
            && id.has_roster()
        {
            let group = self.group(id).await?;
            if group.own_role.is_none_or(|role| role < group.policy.edit) {
                return Err(Error::new(ErrorKind::Denied, "the policy of the group does not allow it"));
            }
        }
        self.send(to, SendRequest::timer(u64::try_from(timer_ms).unwrap_or(u64::MAX))).await
    }

    async fn change(&self, message: MessageRef, change: MessageChange, text: String) -> Result<Ticket> {
        self.send(message.conversation, SendRequest::change(message, change, text)).await
    }
}
