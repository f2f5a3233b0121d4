use std::collections::HashMap;

use super::MAX_PACED;
use crate::model::id::{ConversationId, ConversationKind};
use crate::model::session_event::Hint;
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// Minimum number of milliseconds between two typing notifications in a conversation.
const TYPING_MS: u64 = 3000;
/// A device sends at most this number of receipts in groups within a second.
const MAX_GROUP_RECEIPTS: u32 = 16;

/// Limits the typing notifications and group receipts of a session in both directions. A hint above a limit is dropped.
#[derive(Debug, Default)]
pub(super) struct HintPacer {
    /// When the last typing notification was passed on, by conversation.
    typed_at: HashMap<ConversationId, Instant>,
    /// When the current second of receipts in groups began, and how many there were.
    group_receipts: (Instant, u32),
    /// The conversation that the user looks at.
    open_conversation: Option<ConversationId>,
}

impl HintPacer {
    /// Records the conversation that the user looks at.
    pub(super) fn open(&mut self, conversation: Option<ConversationId>) {
        self.open_conversation = conversation;
    }

    /// Returns whether a typing notification is passed on: at most one in 3 s in a conversation, and none if too many
    /// conversations are active.
    pub(super) fn may_type(&mut self, now: Instant, conversation: ConversationId) -> bool {
        if self.typed_at.len() >= MAX_PACED {
            self.typed_at.retain(|_, at| now < at.after(TYPING_MS));
        }
        let due = self.typed_at.get(&conversation).is_none_or(|at| now >= at.after(TYPING_MS));
        let may = due && self.typed_at.len() < MAX_PACED;
        if may {
            self.typed_at.insert(conversation, now);
        }
        may
    }

    /// Returns whether a receipt in a group is passed on.
    pub(super) fn may_send_receipt(&mut self, now: Instant) -> bool {
        let (since, count) = self.group_receipts;
        let (since, count) = if now >= since.after(1000) { (now, 0) } else { (since, count) };
        self.group_receipts = (since, count.saturating_add(1));
        count < MAX_GROUP_RECEIPTS
    }

    /// Returns whether the device gets a hint: it gets typing notifications of a group only while its user looks at it.
    pub(super) fn wants(&self, hint: &Hint) -> bool {
        match hint {
            Hint::Typing(conversation, _) if conversation.kind() == Ok(ConversationKind::Group) => {
                self.open_conversation == Some(*conversation) || Mutant::TypingToAll.is_active()
            }
            _ => true,
        }
    }
}
