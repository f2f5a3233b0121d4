//! Detection of a server that drops, swaps, renumbers or invents rows, or that shows two devices different orders.
//!
//! Each message names, inside its box, its number, the sender's message before it, and the last message that the
//! sender saw. A receiver keeps the *chain* of each sender: its last message. The next one must follow it, except for
//! numbers whose seqs the server declared to be without content: each such seq excuses one number. And the message that
//! a sender saw at a seq must be the one that this device has there.
//!
//! A violation does not hide the message: it is authentic, and the user decides. It becomes a durable event.

use serde::{Deserialize, Serialize};

use super::Replica;
use super::change::Change;
use super::input::Opened;
use crate::model::envelope::{EmptyReason, InboxRow, Message, RowContent};
use crate::model::id::{
    ClientSeq, ConversationId, ConversationKind, DeviceAddress, Incarnation, InstallationId, MessageId, Seq,
};
use crate::model::time::Instant;
use crate::model::view::{RowHash, View};
use crate::mutant::Mutant;

/// The last message of a sending device in a conversation that this device could read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Chain {
    pub incarnation: Incarnation,
    pub client_seq: ClientSeq,
    pub id: MessageId,
    /// The number of excused seqs of the conversation before that message.
    pub excused: u64,
}

/// The way in which rows contradict their senders, or each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Violation {
    /// Messages of a device are missing before this one, and no declared gap explains them. `expected` is the lowest
    /// number that was possible, `received` that of the message.
    Missing { expected: ClientSeq, received: ClientSeq },
    /// A message has a number, or an incarnation, at or below that of an earlier message of its device.
    Repeated { expected: ClientSeq, received: ClientSeq },
    /// A message follows another message of its device than the one that this device received before it.
    Forked,
    /// The sender saw another message at this seq than this device.
    Diverged { seq: Seq },
    /// Rows expired before the time that the server announced.
    ExpiredEarly { from_seq: Seq, to_seq: Seq },
    /// A message is for another roster of the group than this device follows, or makes a change that its sender may not
    /// make.
    RosterDiffers { seq: Seq },
}

impl Violation {
    /// Returns the name used in logs and in the `chat --json` protocol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::Repeated { .. } => "repeated",
            Self::Forked => "forked",
            Self::Diverged { .. } => "diverged",
            Self::ExpiredEarly { .. } => "expired_early",
            Self::RosterDiffers { .. } => "roster_differs",
        }
    }

    /// Returns the numbers of the violation, in the order of its fields; 0 for a field that it does not have.
    pub const fn numbers(self) -> (u64, u64) {
        match self {
            Self::Missing { expected, received } | Self::Repeated { expected, received } => {
                (expected, received)
            }
            Self::Forked => (0, 0),
            Self::Diverged { seq } | Self::RosterDiffers { seq } => (seq, 0),
            Self::ExpiredEarly { from_seq, to_seq } => (from_seq, to_seq),
        }
    }

    /// Returns the violation with this name and these numbers, if there is one.
    pub fn from_name(name: &str, (first, second): (u64, u64)) -> Option<Self> {
        [
            Self::Missing { expected: first, received: second },
            Self::Repeated { expected: first, received: second },
            Self::Forked,
            Self::Diverged { seq: first },
            Self::ExpiredEarly { from_seq: first, to_seq: second },
            Self::RosterDiffers { seq: first },
        ]
        .into_iter()
        .find(|violation| violation.name() == name)
    }
}

/// Excused seqs of a conversation whose numbers are not known: after a new store epoch, numbers begin anew.
pub(crate) const UNKNOWN_START: u64 = 1 << 52;

/// Checks a message against the chain of its sender. `excused` counts the excused seqs of the conversation, and
/// `knows_prev` says whether this device has the message before this one.
fn check_chain(
    chain: Chain,
    message: &Message,
    excused: u64,
    knows_prev: impl FnOnce() -> bool,
) -> Result<(), Violation> {
    // A peer chooses its numbers: no sum may overflow.
    let (expected, received) = (chain.client_seq.saturating_add(1), message.client_seq);
    if message.incarnation < chain.incarnation {
        return Err(Violation::Repeated { expected, received });
    }
    if message.incarnation > chain.incarnation {
        // A new incarnation begins with the messages that were not answered. The server gives those that are stored
        // no second seq, so their numbers are not seen, and the first number seen refers to one of them.
        let begins = received == 1 && message.prev == MessageId::NIL;
        return if begins || excused > 0 || knows_prev() {
            Ok(())
        } else {
            Err(Violation::Missing { expected: 1, received })
        };
    }
    if received < expected {
        return Err(Violation::Repeated { expected, received });
    }
    let missing = received - expected;
    let left = excused.saturating_sub(chain.excused);
    // In a later incarnation the messages before it may be some that were stored in an earlier one.
    let is_explained = match message.incarnation {
        0 => missing <= left,
        _ => missing == 0 || left > 0 || knows_prev(),
    };
    if !is_explained {
        return Err(Violation::Missing { expected, received });
    }
    if missing == 0 && message.prev != chain.id {
        return Err(Violation::Forked);
    }
    Ok(())
}

/// Returns the excused seqs that count as used after a message. A message of a first incarnation uses all: a gap before it
/// explains no later number. In a later incarnation the missing numbers may be those of messages that were stored before,
/// which this device has or lacks. If it lacks the last one of them, one excused seq explains the gap, in each incarnation
/// anew: the server repeats a message once.
fn excused_after(chain: Chain, message: &Message, excused: u64, knows_prev: bool) -> u64 {
    if message.incarnation == 0 || excused >= UNKNOWN_START {
        return excused;
    }
    let is_same = message.incarnation == chain.incarnation;
    let (expected, used) = if is_same { (chain.client_seq.saturating_add(1), chain.excused) } else { (1, 0) };
    let has_gap = message.client_seq > expected;
    used.saturating_add(u64::from(has_gap && !knows_prev)).min(excused)
}

impl Replica {
    /// Reports a gap of a conversation. Its seqs excuse as many missing numbers.
    pub(super) fn gap(&mut self, conversation: ConversationId, from: Seq, to: Seq, reason: EmptyReason) {
        let is_erasure = matches!(reason, EmptyReason::Deleted | EmptyReason::Disappeared);
        if !is_erasure || !Mutant::ErasureUnexcused.is_active() {
            self.excuse(conversation, (to + 1).saturating_sub(from));
        }
        let changes_none = matches!(reason, EmptyReason::Skip | EmptyReason::NotMember);
        if !changes_none && conversation.has_roster() {
            // One of them may have changed the roster.
            self.roster_is_behind(conversation);
        }
        self.changes.push(Change::Gap(conversation, from, to, reason));
    }

    /// Excuses the seqs before the row with which this device joined a conversation.
    pub(super) fn excuse_before(&mut self, row: &InboxRow) {
        let next = self.cursor(row.conversation) + 1;
        if !row.joined || row.first_seq() <= next {
            return;
        }
        if next > 1 {
            // A device joins once. A device that skipped a number before the first message joins later than its first row.
            self.gap(row.conversation, next, row.first_seq() - 1, EmptyReason::Skip);
        } else {
            self.excuse(row.conversation, row.first_seq() - next);
        }
    }

    /// Counts seqs whose numbers this device does not learn.
    pub(super) fn excuse(&mut self, conversation: ConversationId, seqs: u64) {
        let known = self.conversations.entry(conversation).or_default();
        known.excused = known.excused.saturating_add(seqs);
        let excused = known.excused;
        self.changes.push(Change::Excused(conversation, excused));
    }

    /// Returns whether a row belongs to a conversation that contains both its sender and this device.
    pub(super) fn belongs(&self, row: &InboxRow) -> bool {
        let RowContent::Message { message, .. } = &row.content else { return true };
        if message.group.is_some() && !row.conversation.has_roster() {
            return false;
        }
        let (own, sender, id) = (self.device, message.sender, row.conversation);
        match id.kind() {
            Ok(ConversationKind::Own) => sender.user == own.user && id == ConversationId::own(own.user),
            Ok(ConversationKind::Direct) if sender.user == own.user => {
                message.audience.iter().any(|peer| id == ConversationId::direct(own.user, peer.user))
            }
            Ok(ConversationKind::Direct) => id == ConversationId::direct(own.user, sender.user),
            Ok(ConversationKind::Mailbox) => {
                id == ConversationId::mailbox(sender.installation, own.installation)
            }
            Ok(ConversationKind::Group | ConversationKind::Channel) => message.group.is_some(),
            _ => false,
        }
    }

    /// Whether the check of a message may need to know if this device has the message before it.
    pub fn asks_for_prev(&self, row: &InboxRow) -> bool {
        let RowContent::Message { message, .. } = &row.content else { return false };
        let known = self.conversations.get(&row.conversation);
        let chain = known.and_then(|known| known.chains.get(&message.sender.installation));
        let chain = chain.copied().unwrap_or_default();
        message.incarnation > chain.incarnation
            || message.incarnation > 0 && message.client_seq > chain.client_seq.saturating_add(1)
    }

    /// Checks a row that could be opened against the chain of its sender and against the sender's view.
    pub(super) fn check_integrity(&mut self, row: &InboxRow, opened: &Opened) {
        let RowContent::Message { message, .. } = &row.content else { return };
        let (conversation, sender) = (row.conversation, message.sender);
        let known = self.conversations.entry(conversation).or_default();
        let chain = known.chains.get(&sender.installation).copied().unwrap_or_default();
        let excused = known.excused;
        // A mailbox keeps no messages, so the first message of an incarnation may have any number there.
        let is_mailbox = conversation.kind() == Ok(ConversationKind::Mailbox);
        let knows_prev = is_mailbox
            || opened.knows_prev
            || self.asks_for_prev(row) && self.received_uncommitted(sender.installation, message.prev);
        if let Err(violation) = check_chain(chain, message, excused, || knows_prev)
            && !Mutant::ChainIgnored.is_active()
        {
            self.report_violation(conversation, Some(sender), violation);
        }
        if let Some(view) = opened.view {
            self.check_view(row, sender, view, opened.seen);
        }
        let (incarnation, client_seq) = (message.incarnation, message.client_seq);
        let excused = excused_after(chain, message, excused, knows_prev);
        let last = Chain { incarnation, client_seq, id: message.id, excused };
        let known = self.conversations.entry(conversation).or_default();
        if (incarnation, client_seq) >= (chain.incarnation, chain.client_seq) {
            known.chains.insert(sender.installation, last);
        }
        self.chains_due.insert((conversation, sender.installation));
    }

    /// Returns whether a message arrived before, and reports it if that was at another seq of this store epoch.
    pub(super) fn is_duplicate(&mut self, row: &InboxRow, opened: &Opened) -> bool {
        let RowContent::Message { message, .. } = &row.content else { return false };
        let (conversation, sender) = (row.conversation, message.sender);
        let known = self.conversations.get(&conversation);
        let chain = known.and_then(|known| known.chains.get(&sender.installation)).copied();
        // A copy of a message of this transaction does not open again, or its number is used up.
        let chain = chain.unwrap_or_default();
        let is_suspect = opened.content.is_err()
            || chain.incarnation == message.incarnation && message.client_seq <= chain.client_seq;
        let repeats =
            opened.repeats || is_suspect && self.received_uncommitted(sender.installation, message.id);
        if repeats {
            let expected = chain.client_seq.saturating_add(1);
            let violation = Violation::Repeated { expected, received: message.client_seq };
            self.report_violation(conversation, Some(sender), violation);
        } else if opened.known {
            // A message of an earlier data set, sent again in this one.
            self.excuse(conversation, 1);
        }
        repeats || opened.known
    }

    fn check_view(&mut self, row: &InboxRow, sender: DeviceAddress, view: View, seen: Option<RowHash>) {
        if self.epoch != Some(view.epoch) || Mutant::ViewIgnored.is_active() {
            return;
        }
        let seen = seen.or_else(|| self.uncommitted_hash(row.conversation, view.seq));
        let differs = seen.is_some_and(|seen| seen != view.hash);
        // A message is sealed after its sender saw the one that it names.
        if differs || view.seq >= row.seq {
            self.report_violation(row.conversation, Some(sender), Violation::Diverged { seq: view.seq });
        }
    }

    /// Returns whether a message was received in the open transaction.
    fn received_uncommitted(&self, sender: InstallationId, id: MessageId) -> bool {
        self.changes.iter().any(|change| match change {
            Change::Received(row, _) => matches!(
                &row.content,
                RowContent::Message { message, .. } if (message.sender.installation, message.id) == (sender, id)
            ),
            _ => false,
        })
    }

    /// Returns the hash of a message that was received in the open transaction.
    fn uncommitted_hash(&self, conversation: ConversationId, seq: Seq) -> Option<RowHash> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Received(row, _) if (row.conversation, row.seq) == (conversation, seq) => {
                let RowContent::Message { message, .. } = &row.content else { return None };
                Some(RowHash::of(conversation, seq, message))
            }
            _ => None,
        })
    }

    /// Checks that rows expired no earlier than the server announced.
    pub(super) fn check_expiry(&mut self, now: Instant, row: &InboxRow) {
        /// Clocks of the nodes of a server may differ.
        const TOLERANCE_MS: u64 = 3600 * 1000;
        let age_ms = self.server_ms(now).saturating_sub(row.time_us / 1000);
        if age_ms.saturating_add(TOLERANCE_MS) < self.retention_ms {
            let violation = Violation::ExpiredEarly { from_seq: row.first_seq(), to_seq: row.seq };
            self.report_violation(row.conversation, None, violation);
        }
    }

    pub(super) fn report_violation(
        &mut self,
        conversation: ConversationId,
        sender: Option<DeviceAddress>,
        violation: Violation,
    ) {
        self.changes.push(Change::Violated(conversation, sender, violation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{DeviceId, InstallationId, UserId};

    fn id(n: u8) -> MessageId {
        if n == 0 { MessageId::NIL } else { MessageId::from_bytes([n; 16]) }
    }

    fn message(incarnation: Incarnation, client_seq: ClientSeq, n: u8, prev: u8) -> Message {
        Message {
            id: id(n),
            sender: DeviceAddress {
                user: UserId::from_bytes([1; 16]),
                device: DeviceId::PRIMARY,
                installation: InstallationId::from_bytes([1; 16]),
            },
            client_seq,
            prev: id(prev),
            incarnation,
            audience: Vec::new(),
            body: bytes::Bytes::new(),
            sent_at: 0,
            options: crate::model::message_options::MessageOptions::default(),
            group: None,
        }
    }

    /// The chain after message `n` with this number.
    fn chain(incarnation: Incarnation, client_seq: ClientSeq, n: u8, excused: u64) -> Chain {
        Chain { incarnation, client_seq, id: id(n), excused }
    }

    #[test]
    fn message_follows_the_one_before_it() {
        let first = chain(0, 1, 1, 0);
        assert_eq!(check_chain(Chain::default(), &message(0, 1, 1, 0), 0, || false), Ok(()));
        assert_eq!(check_chain(first, &message(0, 2, 2, 1), 0, || true), Ok(()));
        assert_eq!(check_chain(first, &message(0, 2, 2, 9), 0, || true), Err(Violation::Forked));
        let dropped = Violation::Missing { expected: 2, received: 3 };
        assert_eq!(check_chain(first, &message(0, 3, 3, 2), 0, || false), Err(dropped), "one was dropped");
        let swapped = Violation::Repeated { expected: 4, received: 2 };
        assert_eq!(check_chain(chain(0, 3, 3, 0), &message(0, 2, 2, 1), 0, || true), Err(swapped));
        let first_dropped = Violation::Missing { expected: 1, received: 2 };
        assert_eq!(check_chain(Chain::default(), &message(0, 2, 2, 1), 0, || false), Err(first_dropped));
        assert_eq!(check_chain(Chain::default(), &message(0, 1, 1, 9), 0, || false), Err(Violation::Forked));
    }

    #[test]
    fn later_incarnation_may_refer_to_messages_of_an_earlier_one() {
        // Stored anew, then a repeat without a seq, then the next message.
        let last = chain(2, 1, 8, 0);
        assert_eq!(check_chain(last, &message(2, 3, 9, 5), 0, || true), Ok(()));
        let missing = Violation::Missing { expected: 2, received: 3 };
        assert_eq!(check_chain(last, &message(2, 3, 9, 5), 0, || false), Err(missing));
        assert_eq!(check_chain(chain(0, 1, 8, 0), &message(0, 3, 9, 5), 0, || true), Err(missing));
    }

    #[test]
    fn gap_excuses_as_many_numbers_as_it_has_seqs() {
        let last = chain(0, 4, 4, 7);
        for (excused, ok) in [(7, false), (8, false), (9, true), (10, true)] {
            let checked = check_chain(last, &message(0, 7, 7, 6), excused, || false);
            assert_eq!(checked.is_ok(), ok, "{excused} excused seqs, 7 of them before the chain");
        }
        // A gap from before the last message excuses no later one.
        assert!(check_chain(last, &message(0, 6, 6, 5), 7, || false).is_err());
    }

    #[test]
    fn device_that_joined_late_does_not_know_the_numbers_of_messages_before() {
        // It joined after 5 seqs. The sender then takes incarnation 1, in which the numbers 2 and 4 are those of messages
        // that were stored before.
        let first = message(1, 1, 6, 0);
        let excused = excused_after(Chain::default(), &first, 5, false);
        assert_eq!((check_chain(Chain::default(), &first, 5, || false), excused), (Ok(()), 0));
        let (third, last) = (message(1, 3, 7, 2), chain(1, 1, 6, excused));
        let excused = excused_after(last, &third, 5, false);
        assert_eq!((check_chain(last, &third, 5, || false), excused), (Ok(()), 1));
        let last = chain(1, 3, 7, excused);
        assert_eq!(check_chain(last, &message(1, 5, 8, 4), 5, || false), Ok(()));
        // Some of the repeated messages are known to this device: one excused seq explains the gap.
        assert_eq!(check_chain(last, &message(1, 12, 8, 4), 5, || false), Ok(()));
        assert!(check_chain(chain(1, 3, 7, 5), &message(1, 5, 8, 4), 5, || false).is_err(), "all are used");
        assert_eq!(
            excused_after(last, &message(1, 12, 8, 4), 5, true),
            excused,
            "the gap ends with a known one"
        );
        let of_first = excused_after(Chain::default(), &message(0, 1, 6, 0), 5, false);
        assert_eq!(of_first, 5, "a first incarnation has none");
        // A sender that this device knew in an earlier incarnation may repeat the same messages.
        let excused = excused_after(chain(0, 6, 6, 5), &message(1, 1, 7, 0), 5, false);
        assert_eq!(check_chain(chain(1, 1, 7, excused), &message(1, 3, 8, 2), 5, || false), Ok(()));
    }

    #[test]
    fn new_incarnation_begins_anew_or_after_a_known_message() {
        let last = chain(1, 5, 5, 0);
        assert_eq!(check_chain(last, &message(2, 1, 6, 0), 0, || false), Ok(()));
        assert_eq!(check_chain(last, &message(2, 3, 6, 5), 0, || true), Ok(()), "two were stored before");
        let missing = Violation::Missing { expected: 1, received: 2 };
        assert_eq!(check_chain(last, &message(2, 2, 7, 6), 0, || false), Err(missing));
        assert_eq!(check_chain(last, &message(2, 2, 7, 6), 1, || false), Ok(()), "a gap may have held it");
        assert!(check_chain(last, &message(0, 9, 9, 8), 0, || true).is_err(), "the incarnation is closed");
        // The highest number does not overflow.
        assert!(check_chain(chain(0, u64::MAX, 1, 0), &message(0, 1, 2, 1), 0, || true).is_err());
    }
}
