//! A server that was restored from an older copy of its data.
//!
//! The server of an operator that says so has another store epoch. Otherwise the device notices it: the server uses a seq
//! again for another message, refuses an ack as too high, or has a tail below the device's cursor. The device then
//! compares its cursors with the server's, and continues from the last row that it had acknowledged in the older copy. It
//! keeps the messages after that row, which the server may no longer have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::change::Change;
use super::conversation::Conversation;
use super::input::AtSeq;
use super::integrity::UNKNOWN_START;
use super::output::Output;
use super::recovery::LAST_WORD_MS;
use super::send::DOUBT_MS;
use super::{Purpose, Recovery, Replica};
use crate::model::client_frame::{ClientFrame, Request};
use crate::model::envelope::{InboxCursor, InboxRow, RowContent, Stored};
use crate::model::id::{ConversationId, ConversationKind, MessageId, Seq};
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// The knowledge of a device about a restore of its server.
#[derive(Debug, Default)]
pub(super) struct ServerRestore {
    /// The cursors must be compared before rows are processed and messages are sent.
    pub(super) is_suspected: bool,
    /// The cursors are compared, because the server process is another one: rows and messages wait.
    pub(super) is_held: bool,
    /// The run of a server process with which the cursors were compared.
    instance: Option<u64>,
    /// A tail was below its cursor. Rows may arrive before they are readable, so the device looks twice.
    has_lagged: bool,
    /// The store does not know yet that the device went back: rows are opened once it does.
    pub(super) is_uncommitted: bool,
    /// The server has another store epoch.
    pub(super) new_epoch: bool,
    /// This device has sent messages in the earlier epoch.
    had_sent: bool,
    /// The next incarnation is only for the server: the sessions of this device are not older than it remembers.
    pub(super) keeps_sessions: bool,
    /// Conversations in which the server may have used a seq again.
    reused: BTreeSet<ConversationId>,
    /// In one of them it has.
    is_certain: bool,
    /// Comparisons in the store that are not answered yet.
    asked: VecDeque<Compared>,
}

/// A row, or the confirmation of an own message, that waits for a comparison.
#[derive(Debug)]
struct Compared {
    conversation: ConversationId,
    seq: Seq,
    /// A message of another device. The store has every one that this device received.
    is_foreign: bool,
    stored: Option<Stored>,
}

impl ServerRestore {
    /// Returns whether a comparison is not answered yet.
    pub(super) fn is_comparing(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Handles the end of a connection. A comparison without an answer is due again on the next one.
    pub(super) fn connection_ended(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.instance = None;
        }
    }

    /// Returns the state after a start. `new_epoch`: the cursors were not compared since the epoch changed.
    pub(super) fn from_saved(new_epoch: bool, had_sent: bool) -> Self {
        Self { is_suspected: new_epoch, new_epoch, had_sent, ..Self::default() }
    }
}

impl Replica {
    /// Handles a store epoch that is not the one of the cursors.
    pub(super) fn epoch_changed(&mut self) {
        let had_sent = self.conversations.values().any(|known| known.client_seq > 0);
        self.server_restore = ServerRestore::from_saved(true, had_sent || self.server_restore.had_sent);
        self.begin_conversations_anew();
    }

    /// Handles a row at or below the cursor: the same row again, or another one if the server went back. Returns whether
    /// it waits for a comparison. Until then no later row is processed, because its ack would cover this one.
    pub(super) fn compare_row(&mut self, row: &InboxRow, out: &mut Vec<Output>) -> bool {
        let own = self.device.installation;
        let (sender, id) = match &row.content {
            RowContent::Message { message, .. } => (message.sender.installation, message.id),
            RowContent::Own { message_id, .. } => (own, *message_id),
            // No message is at the seq. Only an erasure takes one away.
            RowContent::Empty { .. } if !row.is_erased() => (own, MessageId::NIL),
            _ => return false,
        };
        let (conversation, seq) = (row.conversation, row.seq);
        if conversation.kind() == Ok(ConversationKind::Mailbox) || self.is_uncommitted(row) {
            return false;
        }
        let waits = Compared { conversation, seq, is_foreign: sender != own, stored: None };
        self.server_restore.asked.push_back(waits);
        out.push(Output::Compare { conversation, seq, sender, id });
        true
    }

    /// Returns whether the open transaction has a message at the place of a row: the store does not have it yet.
    fn is_uncommitted(&self, row: &InboxRow) -> bool {
        self.changes.iter().chain(&self.deferred).any(|change| match change {
            Change::Received(known, _) => (known.conversation, known.seq) == (row.conversation, row.seq),
            Change::Returned(conversation, seq, ..)
            | Change::Duplicate(conversation, seq)
            | Change::Stored(conversation, _, seq) => (*conversation, *seq) == (row.conversation, row.seq),
            _ => false,
        })
    }

    /// Returns whether a confirmation names a seq that this device has received already: then it waits for a comparison.
    pub(super) fn compare_stored(&mut self, stored: Stored, out: &mut Vec<Output>) -> bool {
        let (conversation, seq) = (stored.conversation, stored.seq);
        if seq > self.cursor(conversation) || conversation.kind() == Ok(ConversationKind::Mailbox) {
            return false;
        }
        let waits = Compared { conversation, seq, is_foreign: false, stored: Some(stored) };
        self.server_restore.asked.push_back(waits);
        let (sender, id) = (self.device.installation, stored.message_id);
        out.push(Output::Compare { conversation, seq, sender, id });
        true
    }

    /// Handles the result of a comparison. If the store has nothing at the seq of a message of another device, the message
    /// may be new, or the repeat of one without content: the device goes back, which is harmless, but takes no new
    /// incarnation for it.
    pub(super) fn compared(&mut self, now: Instant, found: AtSeq, out: &mut Vec<Output>) {
        let Some(Compared { conversation, seq, is_foreign, stored }) = self.server_restore.asked.pop_front()
        else {
            return;
        };
        let is_reused = found == AtSeq::Another || found == AtSeq::Nothing && is_foreign;
        if is_reused && !Mutant::ReusedSeqIgnored.is_active() {
            self.server_restore.reused.insert(conversation);
            self.server_restore.is_certain |= found == AtSeq::Another;
            self.suspect_restore(now, out);
        } else if let Some(stored) = stored {
            self.stored(now, stored);
        } else {
            self.row_is_same(conversation, seq);
        }
    }

    /// Acknowledges a row that the store has already.
    pub(super) fn row_is_same(&mut self, conversation: ConversationId, seq: Seq) {
        self.ack(conversation, seq);
        if let Some(known) = self.conversations.get_mut(&conversation) {
            known.checked = known.checked.map(|checked| checked.max(seq)).filter(|seq| *seq < known.cursor);
        }
    }

    /// Compares the cursors if this is another run of a server process than before: the data may be a copy.
    pub(super) fn look_for_restore(&mut self, now: Instant, instance: u64, out: &mut Vec<Output>) {
        if instance > 0 && self.server_restore.instance != Some(instance) && !self.conversations.is_empty() {
            self.hold_and_compare(now, out);
        }
        self.server_restore.instance = Some(instance);
    }

    /// Compares the cursors. Rows and messages wait for the answer.
    pub(super) fn hold_and_compare(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.server_restore.is_held = true;
        if !self.is_asked(&Purpose::ServerRestore) {
            self.request(now, Request::Cursors, Purpose::ServerRestore, out);
        }
    }

    /// Stops the processing of rows until the cursors are compared.
    pub(super) fn suspect_restore(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.server_restore.is_suspected = true;
        self.rows.clear();
        self.acks_due.clear();
        if self.is_asked(&Purpose::ServerRestore) {
            return;
        }
        if self.server_restore.new_epoch {
            self.request(now, Request::Cursors, Purpose::ServerRestore, out);
        } else {
            // Acks of an earlier session reach the store first. Those of another epoch are refused.
            self.request_at(now.after(LAST_WORD_MS), Request::Cursors, Purpose::ServerRestore);
        }
    }

    /// Compares the server's cursors with those of this device, and goes back where the server went back.
    pub(super) fn compare_cursors(
        &mut self,
        now: Instant,
        cursors: Vec<(ConversationId, InboxCursor)>,
        out: &mut Vec<Output>,
    ) {
        let remote: BTreeMap<ConversationId, InboxCursor> = cursors.into_iter().collect();
        let lags = |(id, known): (&ConversationId, &Conversation)| {
            remote.get(id).copied().unwrap_or_default().tail < highest(*id, known)
        };
        let lagging = self.conversations.iter().any(lags);
        let state = &mut self.server_restore;
        if lagging && !state.has_lagged && !state.new_epoch && !state.is_certain {
            (state.has_lagged, state.is_suspected) = (true, true);
            return self.request_at(now.after(DOUBT_MS), Request::Cursors, Purpose::ServerRestore);
        }
        let ServerRestore {
            new_epoch, mut had_sent, reused, is_certain, asked, instance, is_suspected, ..
        } = std::mem::take(state);
        (state.asked, state.instance, state.is_uncommitted) = (asked, instance, true);
        let went_back = new_epoch || is_certain || lagging;
        for (id, known) in &mut self.conversations {
            let InboxCursor { acked, tail } = remote.get(id).copied().unwrap_or_default();
            // Rows of a mailbox are not kept: there, a seq that is used again is not noticed.
            let by_ack = new_epoch || went_back && id.kind() == Ok(ConversationKind::Mailbox);
            let is_ahead = if by_ack { acked } else { tail } < highest(*id, known);
            known.checked = None;
            if !is_ahead && !reused.contains(id) {
                known.checked = Some(acked).filter(|acked| *acked < known.cursor);
                continue;
            }
            let seq = acked.min(known.cursor);
            had_sent |= known.client_seq > 0;
            known.cursor = seq;
            for mark in [&mut known.last_own, &mut known.delivered, &mut known.peer_read, &mut known.read] {
                *mark = seq.min(*mark);
            }
            (known.excused, known.chains, known.missing) = (UNKNOWN_START, BTreeMap::new(), None);
            let is_sure = is_ahead || is_certain && reused.contains(id);
            self.changes.push(Change::WentBack(*id, seq, is_sure));
        }
        if went_back {
            self.forget_rosters();
        }
        if new_epoch {
            self.changes.push(Change::EpochCompared);
        }
        if went_back && had_sent {
            // The server no longer knows numbers that this device used.
            self.reincarnation_asked = true;
            self.changes.push(Change::Asked);
            self.server_restore.keeps_sessions = self.recovery == Recovery::No && self.nonce.is_none();
            self.begin_recovery(now, out);
        } else if went_back {
            // The server may hand out prekeys again that were used up.
            self.make_prekeys(true, out);
        }
        if went_back || is_suspected {
            self.caught_up = false;
            self.send_if_online(ClientFrame::CatchUp, out);
        }
    }
}

/// Returns the highest seq of which a device knows a message. An own message above the cursor has a seq too.
fn highest(id: ConversationId, known: &Conversation) -> Seq {
    let is_mailbox = id.kind() == Ok(ConversationKind::Mailbox);
    if is_mailbox { known.cursor } else { known.cursor.max(known.last_own) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::client_frame::ClientFrame;
    use crate::model::id::{DeviceAddress, DeviceId, InstallationId, StoreEpoch, UserId};
    use crate::model::server_frame::{Challenge, Response, ServerFrame, Welcome};
    use crate::replica::{ConversationSnapshot, Input, ReplicaSnapshot};

    /// Returns the seqs to which a device goes back. It had acknowledged seq 2, and the server uses seq 5 again.
    fn went_back() -> Vec<Seq> {
        let device = DeviceAddress {
            user: UserId::from_bytes([1; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([1; 16]),
        };
        let id = ConversationId::own(device.user);
        let now = Instant::from_millis(0);
        let conversation = ConversationSnapshot { cursor: 5, read: 4, ..ConversationSnapshot::new(id) };
        let snapshot = ReplicaSnapshot {
            epoch: Some(StoreEpoch::from_bytes([1; 16])),
            conversations: vec![conversation],
            ..ReplicaSnapshot::new(device)
        };
        let mut replica = Replica::new(now, snapshot, 1);
        let mut out = Vec::new();
        let content =
            RowContent::Own { message_id: MessageId::from_bytes([9; 16]), client_seq: 1, incarnation: 0 };
        let row = InboxRow { conversation: id, seq: 5, time_us: 5, joined: false, content };
        for input in [
            Input::Tick,
            Input::Connected,
            Input::Frame(ServerFrame::Challenge(Challenge::example())),
            Input::Frame(ServerFrame::Welcome(Welcome::example())),
            Input::Frame(ServerFrame::Deliver(vec![row], false)),
        ] {
            replica.step(now, input, &mut out);
        }
        assert!(out.iter().any(|output| matches!(output, Output::Compare { seq: 5, .. })));
        out.clear();
        replica.step(now, Input::Compared(AtSeq::Another), &mut out);
        let now = now.after(LAST_WORD_MS);
        replica.step(now, Input::Tick, &mut out);
        let request = out.iter().find_map(|output| match output {
            Output::Send(ClientFrame::Request(request, Request::Cursors)) => Some(*request),
            _ => None,
        });
        let cursors = vec![(id, InboxCursor { acked: 2, tail: 7 })];
        let answer = Response { cursors, ..Response::default() };
        let answer = ServerFrame::Response(request.unwrap_or(0), Box::new(answer));
        replica.step(now, Input::Frame(answer), &mut out);
        replica.step(now, Input::Flush, &mut out);
        let changes = out.into_iter().filter_map(|output| match output {
            Output::Commit(changes, _) => Some(changes.list),
            _ => None,
        });
        let back = changes.flatten().filter_map(|change| match change {
            Change::WentBack(_, seq, true) => Some(seq),
            _ => None,
        });
        back.collect()
    }

    /// Without the second comparison, the acks of the second connection would cover rows that were never compared.
    #[test]
    fn comparison_is_repeated_if_the_connection_ends_before_its_answer() {
        let mut restore = ServerRestore { is_held: true, instance: Some(7), ..ServerRestore::default() };
        restore.connection_ended();
        assert_eq!((restore.is_held, restore.instance), (false, None));
        let mut compared = ServerRestore { instance: Some(7), ..ServerRestore::default() };
        compared.connection_ended();
        assert_eq!(compared.instance, Some(7));
    }

    #[test]
    fn device_goes_back_to_its_last_ack_when_a_seq_is_used_again() {
        assert_eq!(went_back(), [2]);
        #[cfg(feature = "sim")]
        assert!(Mutant::with(Some(Mutant::ReusedSeqIgnored), went_back).is_empty(), "mutant undetected");
    }
}
