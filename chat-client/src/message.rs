//! Messages as the application sees them.

use std::fmt;
use std::time::{Duration, SystemTime};

use chat_core::group::GroupAction;
use chat_core::replica::Unreadable;
use chat_core::{ConversationId, DeviceId, Handle, MessageId, UserId};
use serde::{Deserialize, Serialize};

use crate::group_profile::GroupProfile;
use crate::invitation::GroupInvitation;

/// A user, with the handle if this device has resolved it. `Display` writes the handle, or the id in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct User {
    pub id: UserId,
    pub handle: Option<Handle>,
}

impl User {
    pub(crate) const fn new(id: UserId, handle: Option<Handle>) -> Self {
        Self { id, handle }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.handle {
            Some(handle) => f.write_str(handle.as_str()),
            None => f.write_str(&self.id.to_hex()),
        }
    }
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    pub conversation: ConversationId,
    /// The position in the conversation, dense from 1. Of an archived message: that of the message before it.
    pub seq: u64,
    /// The server lost the message when it was restored from an older copy. This device still has it.
    pub archived: bool,
    /// The sender is a [stranger](crate::Relation::Stranger): the message is a message request.
    pub is_request: bool,
    pub id: MessageId,
    pub sender: User,
    /// The device of the sender.
    pub device: DeviceId,
    /// The other user of a direct conversation; `None` in other conversations, and while this device does not know
    /// which user a message of another own device was for.
    pub recipient: Option<User>,
    /// The time at which the sender wrote the message, by the sender's clock.
    pub sent_at: SystemTime,
    /// The message that this one answers.
    pub reply_to: Option<MessageRef>,
    /// The users that the text mentions.
    pub mentions: Vec<UserId>,
    /// The text is that of another message.
    pub is_forwarded: bool,
    /// The author has replaced the text: this is the newest one.
    pub is_edited: bool,
    /// The reactions of users, the oldest first.
    pub reactions: Vec<Reaction>,
    /// The lifetime of the message: it disappears from this device when this time has passed since this user read or sent it.
    pub disappears_after: Option<Duration>,
    pub(crate) content: Content,
}

/// Names a message of a conversation: its author, and the id that the author gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs)]
pub struct MessageRef {
    pub conversation: ConversationId,
    /// The author.
    pub user: UserId,
    pub id: MessageId,
}

impl From<&Message> for MessageRef {
    fn from(message: &Message) -> Self {
        Self { conversation: message.conversation, user: message.sender.id, id: message.id }
    }
}

/// A reaction of a user to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reaction {
    pub user: User,
    pub emoji: String,
}

/// The content of a message. Later versions add variants: show a placeholder for content that the program does not
/// know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Content {
    /// A text of at most 64 KiB.
    Text(String),
    /// The sender changed the group: its members, their roles, its policy, its link, or its profile. In the history and in
    /// timelines each change is a message; it counts as read. [`Event::GroupChanged`](crate::Event::GroupChanged) reports it.
    GroupChanged {
        action: Box<GroupAction>,
        /// The users that the action names.
        users: Vec<User>,
        /// The new profile of the group, if the change sets one, or adds this user.
        profile: Option<Box<GroupProfile>>,
    },
    /// In a direct conversation: an invitation of this user to a group, with [`Client::join_group`](crate::Client::join_group).
    /// In a group: the link of the group, of which all members know the secret.
    Invitation(Box<GroupInvitation>),
    /// The message cannot be read on this device. A readable copy may follow as
    /// [`Event::Recovered`](crate::Event::Recovered).
    Unreadable(Unreadable),
    /// From here on, messages of the conversation disappear after this time; `None`: they stay. See
    /// [`Client::set_disappearing_timer`](crate::Client::set_disappearing_timer).
    DisappearingTimer(Option<Duration>),
    /// A later version sent the message: it becomes readable after an update.
    Unsupported,
    /// The author, or an admin of the group, has deleted the message for all.
    Deleted,
    /// The message was [cleared](crate::Client::clear_history) from this device, or it has disappeared.
    Cleared,
}

impl Content {
    /// Returns the text, or `None` if the content is not a text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Message {
    /// Returns the content.
    pub const fn content(&self) -> &Content {
        &self.content
    }

    /// Returns the text, or `None` if the content is not a text.
    pub fn text(&self) -> Option<&str> {
        self.content.text()
    }
}
