//! Changes of messages.

use serde::{Deserialize, Serialize};

/// Maximum bytes of a reaction: an emoji has up to about 40.
pub(crate) const MAX_EMOJI: usize = 64;

/// A change of an earlier message of the same conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MessageChange {
    /// Its author replaced the text.
    Edited,
    /// Its author, or an admin of the group, deleted it.
    Deleted,
    /// A user reacted to it, or took that back.
    Reacted { emoji: String, removed: bool },
}
