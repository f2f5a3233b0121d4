//! Messages to send.

use chat_core::limits::{MAX_EXPIRY_MS, MAX_TEXT};
use chat_core::{ConversationId, Error, ErrorKind, Handle, MessageId, Result, UserId};
use serde::{Deserialize, Serialize};

use crate::conversation::Conversation;
use crate::message::{MessageRef, User};
use crate::message_change::{MAX_EMOJI, MessageChange};

/// The conversation that a message is sent to. A handle or a user stands for the direct conversation with that user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Recipient {
    /// A conversation that this device knows.
    Conversation(ConversationId),
    /// The direct conversation with a user.
    User(UserId),
    /// The direct conversation with the user of a handle. The client resolves the handle when it is connected; if
    /// there is no such user, the message is refused then.
    Handle(Handle),
}

impl From<ConversationId> for Recipient {
    fn from(id: ConversationId) -> Self {
        Self::Conversation(id)
    }
}

impl From<&Conversation> for Recipient {
    fn from(conversation: &Conversation) -> Self {
        Self::Conversation(conversation.id)
    }
}

impl From<UserId> for Recipient {
    fn from(user: UserId) -> Self {
        Self::User(user)
    }
}

impl From<&User> for Recipient {
    fn from(user: &User) -> Self {
        Self::User(user.id)
    }
}

impl From<Handle> for Recipient {
    fn from(handle: Handle) -> Self {
        Self::Handle(handle)
    }
}

impl From<&Handle> for Recipient {
    fn from(handle: &Handle) -> Self {
        Self::Handle(handle.clone())
    }
}

/// A message to send.
///
/// ```
/// use chat_client::SendRequest;
/// let request = SendRequest::text("your order was shipped").idempotency_key("order-17");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendRequest {
    pub(crate) text: String,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) reply_to: Option<MessageRef>,
    pub(crate) mentions: Vec<UserId>,
    pub(crate) is_forwarded: bool,
    pub(crate) change: Option<(MessageRef, MessageChange)>,
    /// The new timer of the conversation in milliseconds; 0 ends it.
    pub(crate) timer_ms: Option<u64>,
}

/// Maximum users that a text mentions.
const MAX_MENTIONS: usize = 256;

impl SendRequest {
    /// Returns a request for a text of at most 64 KiB.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            idempotency_key: None,
            reply_to: None,
            mentions: Vec::new(),
            is_forwarded: false,
            change: None,
            timer_ms: None,
        }
    }

    /// Returns a request to set the timer of the conversation.
    pub(crate) fn timer(timer_ms: u64) -> Self {
        Self { timer_ms: Some(timer_ms), ..Self::text("") }
    }

    /// Returns a request for a change of an earlier message.
    pub(crate) fn change(target: MessageRef, change: MessageChange, text: String) -> Self {
        Self { change: Some((target, change)), ..Self::text(text) }
    }

    /// Makes the message an answer to another one of the same conversation.
    #[must_use]
    pub fn reply_to(mut self, message: impl Into<MessageRef>) -> Self {
        self.reply_to = Some(message.into());
        self
    }

    /// Mentions a user in the text. An app highlights the message for that user.
    #[must_use]
    pub fn mention(mut self, user: UserId) -> Self {
        self.mentions.push(user);
        self
    }

    /// Marks the text as that of another message.
    #[must_use]
    pub const fn forwarded(mut self) -> Self {
        self.is_forwarded = true;
        self
    }

    /// Sets the program's own key for the message. Within a profile, a repeated key is the same message: it is sent
    /// once, and every request returns its ticket.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Returns the own message that must be stored before this one can name its place: the one that it deletes.
    pub(crate) fn follows(&self, own: UserId) -> Option<MessageId> {
        match &self.change {
            Some((target, MessageChange::Deleted)) if target.user == own => Some(target.id),
            _ => None,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.text.len() > MAX_TEXT {
            return Err(Error::new(ErrorKind::Invalid, "a text has at most 64 KiB: send it in parts"));
        }
        if self.mentions.len() > MAX_MENTIONS {
            return Err(Error::new(ErrorKind::Invalid, "a text mentions at most 256 users"));
        }
        if self.timer_ms.is_some_and(|timer_ms| timer_ms > MAX_EXPIRY_MS) {
            return Err(Error::new(ErrorKind::Invalid, "messages disappear within 366 days"));
        }
        if let Some((_, MessageChange::Reacted { emoji, .. })) = &self.change
            && (emoji.is_empty() || emoji.len() > MAX_EMOJI)
        {
            return Err(Error::new(ErrorKind::Invalid, "a reaction has 1 to 64 bytes"));
        }
        Ok(())
    }
}

impl From<&str> for SendRequest {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for SendRequest {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

/// The place of a message in the outbox.
#[derive(Debug)]
pub(crate) struct Enqueued {
    pub(crate) message: MessageId,
    /// The idempotency key was used before, for the same message.
    pub(crate) repeated: bool,
}
