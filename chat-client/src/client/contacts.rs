//! Contacts, blocked users and reports.

use chat_core::{Error, ErrorKind, Result, UserId};

use super::Client;
use crate::contact::{Contact, Relation};
use crate::driver::Command;
use crate::message::Message;
use chat_core::contact::ContactChange;
use chat_core::presence::PresenceAudience;
use chat_core::report::{MAX_NOTE, MAX_REPORTED};

impl Client {
    /// Accepts a user, as an answer to a message request: from then on the user learns whether its messages were delivered
    /// and read, and whether this user is online or typing. Sending a message to a user accepts it too. A blocked user
    /// stays [blocked](Self::block). Holds for all devices of this user.
    ///
    /// # Errors
    /// `Unavailable` without a connection: wait for [`ready`](Self::ready). `Throttled` after too many changes, or if too
    /// many users are accepted or blocked. `Invalid` if it is the own user.
    pub async fn accept(&self, user: UserId) -> Result<()> {
        self.change_contact(user, ContactChange::Accept).await
    }

    /// Blocks a user: no later message of the user reaches a device of this user, and neither learns about the other what a
    /// stranger would not learn. The user is not notified; its messages are stored and never delivered. Their places are
    /// [gaps](crate::GapReason::Withheld). Messages that arrived before stay.
    ///
    /// # Errors
    /// The errors of [`accept`](Self::accept).
    pub async fn block(&self, user: UserId) -> Result<()> {
        self.change_contact(user, ContactChange::Block).await
    }

    /// Ends the block of a user. Messages that the user sent meanwhile do not arrive.
    ///
    /// # Errors
    /// The errors of [`accept`](Self::accept).
    pub async fn unblock(&self, user: UserId) -> Result<()> {
        self.change_contact(user, ContactChange::Unblock).await
    }

    async fn change_contact(&self, user: UserId, change: ContactChange) -> Result<()> {
        self.request(|reply| Command::ChangeContact(user, change, reply)).await
    }

    /// Sets the users that learn whether this user is online, and when it was last seen. The server
    /// enforces it. A blocked user never learns it, and the own devices always do. Holds for all devices of this user.
    /// The default is [`PresenceAudience::Contacts`].
    ///
    /// ```
    /// use chat_client::prelude::*;
    /// use chat_client::PresenceAudience;
    ///
    /// async fn hide(client: &Client) -> Result<()> {
    ///     client.set_presence_audience(PresenceAudience::Nobody).await
    /// }
    /// ```
    ///
    /// # Errors
    /// `Unavailable` without a connection: wait for [`ready`](Self::ready). `Throttled` after too many changes. `Unsupported` if
    /// the server is older than this setting.
    pub async fn set_presence_audience(&self, audience: PresenceAudience) -> Result<()> {
        self.request(|reply| Command::SetPresenceAudience(audience, reply)).await
    }

    /// Returns the users that learn the presence of this user, as far as this device knows it.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn presence_audience(&self) -> Result<PresenceAudience> {
        self.request(Command::PresenceAudience).await
    }

    /// Returns the relation to a user, as far as this device knows it.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn relation(&self, user: UserId) -> Result<Relation> {
        self.request(|reply| Command::Relation(user, reply)).await
    }

    /// Returns the users that this user accepted or blocked, as far as this device knows them.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn contacts(&self) -> Result<Vec<Contact>> {
        self.request(Command::Contacts).await
    }

    /// Reports messages of one user of a conversation to the operator of the server, with a note. The report reveals the
    /// texts of these messages to the operator, and proves that the user sent them; it reveals no other message.
    ///
    /// # Errors
    /// `Invalid` unless these are 1 to 20 messages of one other user in one conversation, and the note has at most 2000
    /// bytes. `NotFound` if this device cannot report a message: it was not encrypted for it, is archived, or arrived with
    /// an earlier release. `Unsupported` if the server takes no reports, `Throttled` after too many, `Unavailable` without
    /// a connection: wait for [`ready`](Self::ready).
    pub async fn report(&self, messages: &[Message], note: &str) -> Result<()> {
        let invalid = |what| Err(Error::new(ErrorKind::Invalid, what));
        let Some(first) = messages.first() else { return invalid("a report names a message") };
        if messages.len() > MAX_REPORTED || note.len() > MAX_NOTE {
            return invalid("a report has at most 20 messages and a note of 2000 bytes");
        }
        let is_other = |one: &Message| {
            one.conversation != first.conversation
                || one.sender != first.sender
                || one.sender.id == self.user()
        };
        if messages.iter().any(is_other) {
            return invalid("a report names messages of one other user in one conversation");
        }
        if messages.iter().any(|one| one.archived) {
            return Err(Error::new(ErrorKind::NotFound, "the server does not have the message"));
        }
        let seqs = messages.iter().map(|one| one.seq).collect();
        let (conversation, user, note) = (first.conversation, first.sender.id, note.to_owned());
        self.request(|reply| Command::Report { conversation, user, seqs, note, reply }).await
    }
}
