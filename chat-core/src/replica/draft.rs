//! An unsent message and its recipient.

use bytes::Bytes;

use crate::model::group::GroupAction;
use crate::model::id::{ConversationId, DeviceAddress, Handle, MessageId, UserId};

/// The recipient of a draft.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Recipient {
    /// A user by handle. The replica resolves it when it is connected.
    Handle(Handle),
    /// A user by id.
    User(UserId),
    /// One device: a to-device message, which is not shown to the user.
    Device(DeviceAddress),
    /// The members of a group.
    Group(ConversationId),
}

/// An unsent message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Draft {
    /// Stays the same in every retry.
    pub id: MessageId,
    pub to: Recipient,
    /// Plaintext; the suite encrypts it. Without content a message in a group is not shown, and nothing is encrypted.
    pub content: Bytes,
    /// When the user wrote it, in milliseconds since 1970.
    pub sent_at: u64,
    /// A change of the group's roster.
    pub action: Option<GroupAction>,
    /// The draft is sealed once this earlier message of its conversation has left the outbox.
    pub after: Option<MessageId>,
}

impl Draft {
    /// Returns a draft with the time 0, without an action, that waits for no other message.
    pub const fn new(id: MessageId, to: Recipient, content: Bytes) -> Self {
        Self { id, to, content, sent_at: 0, action: None, after: None }
    }
}
