//! Reports of abusive messages.

use super::envelope::Message;
use super::id::{ConversationId, Seq, UserId};

/// Maximum number of messages in a report.
pub const MAX_REPORTED: usize = 20;
/// Maximum length of the note of a report, in bytes of UTF-8.
pub const MAX_NOTE: usize = 2000;

/// A message that a user reports, with the key that decrypts its body.
#[derive(Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct ReportedMessage {
    pub seq: Seq,
    /// The body key from the box of the reporting device.
    pub body_key: [u8; 32],
}

// The key must not reach a log.
impl std::fmt::Debug for ReportedMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReportedMessage").field("seq", &self.seq).finish_non_exhaustive()
    }
}

/// A request to report messages of another user of a conversation.
#[derive(Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Report {
    pub conversation: ConversationId,
    /// The sender of the messages.
    pub user: UserId,
    /// At most [`MAX_REPORTED`].
    pub messages: Vec<ReportedMessage>,
    /// The words of the reporting user, at most [`MAX_NOTE`] bytes.
    pub note: String,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report").field("messages", &self.messages.len()).finish_non_exhaustive()
    }
}

/// A report whose messages the server has, and whose keys are those of their bodies: a body commits to its key, so the
/// reporting user cannot make up a content.
#[derive(Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct VerifiedReport {
    pub conversation: ConversationId,
    pub reported_by: UserId,
    /// The sender of the messages.
    pub user: UserId,
    /// The server's clock, in milliseconds since 1970.
    pub reported_at: u64,
    /// The messages as stored, with seq and body key.
    pub messages: Vec<(Seq, Message, [u8; 32])>,
    pub note: String,
}

impl std::fmt::Debug for VerifiedReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifiedReport").field("messages", &self.messages.len()).finish_non_exhaustive()
    }
}
