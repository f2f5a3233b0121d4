//! The items of a timeline.

use std::time::SystemTime;

use chat_core::Seq;

use crate::message::{Message, MessageRef};
use crate::status::Status;

/// A message of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimelineItem {
    /// The message. While an own message is not stored, its seq is 0.
    pub message: Message,
    /// The progress of an own message; `None` for messages of other users.
    pub status: Option<Status>,
}

/// The place to which a timeline jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The newest messages, which the timeline then follows.
    Newest,
    /// The message at a seq, or the next one.
    Seq(u64),
    /// This message.
    Message(MessageRef),
    /// The first message that was sent at this time or later, by the clocks of the senders.
    Time(SystemTime),
}

/// The place of an item. Archived messages follow the message at their anchor; messages that are not stored come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) seq: Seq,
    is_archived: bool,
    n: u64,
}

impl Place {
    /// Returns the place of a stored message. Of archived messages, a later one has a lower number.
    pub(crate) const fn stored(seq: i64, anchor: Option<i64>) -> Self {
        match anchor {
            Some(anchor) => Self { seq: anchor as Seq, is_archived: true, n: seq.unsigned_abs() },
            None => Self { seq: seq as Seq, is_archived: false, n: 0 },
        }
    }

    /// Returns the place of an own message with this number in the outbox.
    pub(crate) const fn unstored(n: u64) -> Self {
        Self { seq: Seq::MAX, is_archived: false, n }
    }
}
