//! A message before it is sent, and its recipient.

use bytes::Bytes;

use crate::model::id::{DeviceAddress, Handle, MessageId, UserId};

/// Whom a draft is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Recipient {
    /// A user by the name people type; resolved when there is a connection.
    Handle(Handle),
    /// A user.
    User(UserId),
    /// One device: a to-device message, which nobody is shown.
    Device(DeviceAddress),
}

/// A message that was not sent yet.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Draft {
    /// Its id, kept through every retry.
    pub id: MessageId,
    /// Whom it is for.
    pub to: Recipient,
    /// Its content, as the suite will encrypt it.
    pub content: Bytes,
    /// When it was written, in milliseconds since 1970.
    pub sent_at: u64,
}
