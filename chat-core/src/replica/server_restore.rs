//! A server that was restored from an older copy of its data.
//!
//! The server of an operator that says so has another store epoch. Otherwise the device notices it: the server uses a seq
//! again for another message, refuses an ack as too high, or has a tail below the device's cursor. The device then
//! compares its cursors with the server's, and continues from the last row that it had acknowledged in the older copy. It
//! keeps the messages after that row, which the server may no longer have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::change::Change;
use super::integrity::UNKNOWN_START;
use super::output::Output;
use super::{Purpose, Recovery, Replica};
use crate::model::client_frame::{ClientFrame, Request};
use crate::model::envelope::{InboxCursor, InboxRow, RowContent, Stored};
use crate::model::id::{ConversationId, ConversationKind, InstallationId, MessageId, Seq};
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// The knowledge of a device about a restore of its server.
#[derive(Debug, Default)]
pub(super) struct ServerRestore {
    /// The cursors must be compared before rows are processed and messages are sent.
    pub(super) is_suspected: bool,
    /// The server has another store epoch.
    pub(super) new_epoch: bool,
    /// This device has sent messages in the earlier epoch.
    had_sent: bool,
    /// The next incarnation is only for the server: the sessions of this device are not older than it remembers.
    pub(super) keeps_sessions: bool,
    /// Conversations in which the server used a seq again.
    reused: BTreeSet<ConversationId>,
    /// Comparisons in the store that are not answered yet, with the confirmation that waits for each.
    asked: VecDeque<(ConversationId, Option<Stored>)>,
}

impl ServerRestore {
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

    /// Handles a row at or below the cursor: the same row again, or another one if the server went back.
    pub(super) fn compare_row(&mut self, row: &InboxRow, out: &mut Vec<Output>) {
        let (sender, id) = match &row.content {
            RowContent::Message { message, .. } => (message.sender.installation, message.id),
            RowContent::Own { message_id, .. } => (self.device.installation, *message_id),
            _ => return,
        };
        self.compare(row.conversation, row.seq, sender, id, None, out);
    }

    /// Returns whether a confirmation names a seq that this device has received already: then it waits for a comparison.
    pub(super) fn compare_stored(&mut self, stored: Stored, out: &mut Vec<Output>) -> bool {
        let (id, own) = (stored.conversation, self.device.installation);
        if stored.seq > self.cursor(id) || id.kind() == Ok(ConversationKind::Mailbox) {
            return false;
        }
        self.compare(id, stored.seq, own, stored.message_id, Some(stored), out);
        true
    }

    fn compare(
        &mut self,
        conversation: ConversationId,
        seq: Seq,
        sender: InstallationId,
        id: MessageId,
        stored: Option<Stored>,
        out: &mut Vec<Output>,
    ) {
        self.server_restore.asked.push_back((conversation, stored));
        out.push(Output::Compare { conversation, seq, sender, id });
    }

    /// Handles the result of a comparison.
    pub(super) fn compared(&mut self, now: Instant, differs: bool, out: &mut Vec<Output>) {
        let Some((conversation, stored)) = self.server_restore.asked.pop_front() else { return };
        if differs && !Mutant::ReusedSeqIgnored.is_active() {
            self.server_restore.reused.insert(conversation);
            self.suspect_restore(now, out);
        } else if let Some(stored) = stored {
            self.stored(stored);
        }
    }

    /// Stops the processing of rows until the cursors are compared.
    pub(super) fn suspect_restore(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.server_restore.is_suspected = true;
        self.rows.clear();
        self.acks_due.clear();
        if !self.is_asked(&Purpose::ServerRestore) {
            self.request(now, Request::Cursors, Purpose::ServerRestore, out);
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
        let ServerRestore { new_epoch, mut had_sent, reused, .. } = std::mem::take(&mut self.server_restore);
        let mut went_back = new_epoch;
        for (id, known) in &mut self.conversations {
            let InboxCursor { acked, tail } = remote.get(id).copied().unwrap_or_default();
            let is_ahead = if new_epoch { acked } else { tail } < known.cursor;
            if !is_ahead && !reused.contains(id) {
                continue;
            }
            let seq = acked.min(known.cursor);
            had_sent |= known.client_seq > 0;
            went_back = true;
            known.cursor = seq;
            for mark in [&mut known.last_own, &mut known.delivered, &mut known.read] {
                *mark = seq.min(*mark);
            }
            (known.excused, known.chains, known.missing) = (UNKNOWN_START, BTreeMap::new(), None);
            self.changes.push(Change::WentBack(*id, seq));
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
        self.caught_up = false;
        self.send_if_online(ClientFrame::CatchUp, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::client_frame::ClientFrame;
    use crate::model::id::{DeviceAddress, DeviceId, StoreEpoch, UserId};
    use crate::model::server_frame::{Challenge, Response, ServerFrame, Welcome};
    use crate::replica::{ConversationSnapshot, Input, ReplicaSnapshot};

    /// Returns the seqs to which a device goes back whose server uses seq 5 again, after it had acknowledged 2.
    fn went_back() -> Vec<Seq> {
        let device = DeviceAddress {
            user: UserId::from_bytes([1; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([1; 16]),
        };
        let id = ConversationId::own(device.user);
        let now = Instant::from_millis(0);
        let conversation = ConversationSnapshot {
            id,
            cursor: 5,
            client_seq: 0,
            prev: MessageId::NIL,
            last_own: 0,
            delivered: 0,
            read: 4,
            excused: 0,
            chains: Vec::new(),
        };
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
        replica.step(now, Input::Compared(true), &mut out);
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
            Change::WentBack(_, seq) => Some(seq),
            _ => None,
        });
        back.collect()
    }

    #[test]
    fn device_goes_back_to_its_last_ack_when_a_seq_is_used_again() {
        assert_eq!(went_back(), [2]);
        #[cfg(feature = "sim")]
        assert!(Mutant::with(Some(Mutant::ReusedSeqIgnored), went_back).is_empty(), "mutant undetected");
    }
}
