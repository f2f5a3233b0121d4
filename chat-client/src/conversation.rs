//! Conversations as the application lists them.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use chat_core::ConversationId;
use serde::{Deserialize, Serialize};

use crate::contact::Relation;
use crate::message::{Message, User};

/// A conversation in the local store, for a list of conversations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Conversation {
    pub id: ConversationId,
    /// The other user of a direct conversation. In the conversation of a user's own devices, that user.
    pub peer: Option<User>,
    /// The name of a group, if this device knows it.
    pub name: Option<String>,
    /// The relation to the peer. Show the conversation of a stranger as a message request.
    pub relation: Relation,
    /// The newest message.
    pub last_message: Option<Message>,
    /// Number of messages from other users above the position that this user has read.
    pub unread: u64,
    /// Number of unread messages that mention this user, or answer a message of it.
    pub mentions: u64,
    /// Messages up to this seq were read by this user, on any device.
    pub read: u64,
    /// New messages do not notify the user before this time.
    pub muted_until: Option<SystemTime>,
    /// The user has moved the conversation out of the list.
    pub is_archived: bool,
    /// The conversation stays at the top of the list.
    pub is_pinned: bool,
    /// A text that is not sent yet; empty without one.
    pub draft: String,
    /// Messages that are sent from now on disappear after this time; `None`: they stay.
    pub disappearing_timer: Option<Duration>,
}

/// The place of a conversation in a list: pinned ones are first, then the one with the newest message.
pub(crate) type ListPlace = (Reverse<bool>, Reverse<Option<SystemTime>>, ConversationId);

impl Conversation {
    /// Returns the place in a list.
    pub(crate) fn place(&self) -> ListPlace {
        (Reverse(self.is_pinned), Reverse(self.last_message.as_ref().map(|last| last.sent_at)), self.id)
    }
}
