use std::sync::Arc;

use super::close_reason::CloseReason;
use super::envelope::{InboxRow, Message, Refusal, RowContent, Stored, Subject};
use super::id::{ConversationId, Seq, UserId};
use super::shared_rows::SharedRows;

/// Event that the engine delivers to the session of a connected device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// A row was committed to this device's inbox.
    Row(InboxRow),
    /// A message of this device was committed; its commit time in microseconds.
    Own(Stored, u64),
    /// A publish of this device had been stored before: the original answer.
    Repeated(Stored),
    /// A publish or skip of this device was refused.
    Refused(Subject, Refusal),
    /// A hint that may be lost.
    Hint(Hint),
    /// The session must end.
    Closed(CloseReason),
    /// An event was dropped on the way: the session must read its inbox.
    Lagged,
}

/// Event that may be lost without harm: a later one or a reconnect heals it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// The watermarks of a user rose.
    Receipt {
        conversation: ConversationId,
        user: UserId,
        /// Delivered up to this seq; 0 if the event does not say.
        delivered: Seq,
        /// Read up to this seq; 0 if the event does not say.
        read: Seq,
    },
    /// A user is typing.
    Typing(ConversationId, UserId),
    /// The device list of a user has this version now.
    ListChanged(UserId, u64),
    /// The number of one-time prekeys left for this device is low.
    PrekeysLow(u32),
    /// The contacts of the user have this version now.
    ContactsChanged(u64),
    /// A device of another user lacks the read position of this user in the conversation; in a group, of this user.
    ReadRequested(ConversationId, Option<UserId>),
}

impl SessionEvent {
    /// Returns the message that the event brings from another device, if it brings one.
    pub fn message(&self) -> Option<&Message> {
        match self {
            Self::Row(InboxRow { content: RowContent::Message { message, .. }, .. }) => Some(message),
            _ => None,
        }
    }
}

/// Events that a session takes from its queue at once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum EventBatch {
    /// Events for this session, in order.
    Own(Vec<SessionEvent>),
    /// Rows of a feed that many sessions send unchanged, in order.
    Shared(Arc<[SharedRows]>),
}

impl IntoIterator for EventBatch {
    type Item = SessionEvent;
    type IntoIter = std::vec::IntoIter<SessionEvent>;

    /// Returns the events, those of shared rows as if they were the session's own.
    fn into_iter(self) -> Self::IntoIter {
        let events = match self {
            Self::Own(events) => events,
            Self::Shared(frames) => {
                let rows = frames.iter().flat_map(SharedRows::rows);
                rows.map(|row| SessionEvent::Row(row.clone())).collect()
            }
        };
        events.into_iter()
    }
}
