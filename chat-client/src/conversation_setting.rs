//! Settings of a conversation.

use std::time::SystemTime;

use chat_core::{Error, ErrorKind, Result};

/// Maximum bytes of a draft.
pub(crate) const MAX_DRAFT: usize = 16_384;

/// A setting of one conversation. It holds on all devices of the user; other users and the server do not see it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConversationSetting {
    /// New messages do not notify the user before this time; `None` notifies again.
    MutedUntil(Option<SystemTime>),
    /// The conversation is moved out of the list that the user works with.
    Archived(bool),
    /// The conversation stays at the top of the list.
    Pinned(bool),
    /// A text that is not sent yet, of at most 16 KiB; empty without one.
    Draft(String),
}

impl ConversationSetting {
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Draft(draft) if draft.len() > MAX_DRAFT => {
                Err(Error::new(ErrorKind::Invalid, "a draft has at most 16 KiB"))
            }
            _ => Ok(()),
        }
    }
}
