//! Recovery of a restored or cloned store: detect it, process the waiting rows, begin a new incarnation.

use super::change::Change;
use super::conversation::{Conversation, Entry};
use super::output::Output;
use super::{DAY_MS, Phase, Purpose, Recovery, Replica};
use crate::model::client_frame::{ClientFrame, Request};
use crate::model::envelope::{EmptyReason, InboxCursor};
use crate::model::id::{ConversationId, Incarnation};
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// Maximum incarnations that the server may be ahead: each is a restore that this copy of the store has not
/// seen.
const MAX_INCARNATION_LEAD: Incarnation = 64;

/// Milliseconds in which the last ack of the previous copy reaches the server's store: a session coalesces
/// acks for a second, and the store may be slow. A later ack would look like another restore, and only one a
/// day is allowed.
pub(super) const LAST_WORD_MS: u64 = 3000;

impl Replica {
    /// Begins a recovery. From here on the replica encrypts and sends nothing until it has a new incarnation.
    pub(super) fn begin_recovery(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.recovery == Recovery::No {
            // The server alone must not trigger more than one a day. An unfinished recovery continues.
            if self.nonce.is_none() && !self.reincarnation_asked && now < self.reincarnate_from {
                return self.stop_superseded(out);
            }
            self.recovery = Recovery::Cursors;
            // The other copy of the store may have sent them with other ciphertexts, for later rosters.
            if !Mutant::OwnCopyTrusted.is_active() {
                self.conversations.values_mut().flat_map(|known| &mut known.queue).for_each(Entry::doubt);
            }
            // Durable with the first commit. Otherwise the generation, which rises with the commits, would
            // reach the one that the server stores, and a crash in between would hide the rollback.
            let nonce = self.nonce.unwrap_or_else(|| self.rng.bytes());
            self.nonce = Some(nonce);
            if !Mutant::RollbackForgotten.is_active() {
                self.changes.push(Change::Nonce(nonce));
            }
            self.request_at(now.after(LAST_WORD_MS), Request::Cursors, Purpose::Cursors);
        }
    }

    /// Handles the server's cursors. Acknowledged rows are gone from the inbox: the replica records a gap and
    /// continues after it.
    pub(super) fn cursors(&mut self, cursors: Vec<(ConversationId, InboxCursor)>, out: &mut Vec<Output>) {
        if self.recovery != Recovery::Cursors {
            return;
        }
        for (id, remote) in cursors {
            let cursor = self.cursor(id);
            if remote.acked > cursor {
                self.gap(id, cursor + 1, remote.acked, EmptyReason::Expired);
                self.advance_cursor(id, remote.acked);
            }
        }
        self.recovery = Recovery::Draining;
        self.caught_up = false;
        self.send_if_online(ClientFrame::CatchUp, out);
    }

    /// Requests the new incarnation once all waiting rows are processed.
    pub(super) fn recover(&mut self) {
        let compared = !self.server_restore.is_suspected;
        let drained = compared && self.caught_up && self.rows.is_empty() && self.opening.is_none();
        if self.recovery == Recovery::Draining && drained && matches!(self.phase, Phase::Online { .. }) {
            self.recovery = Recovery::Reincarnating;
            let nonce = self.nonce.unwrap_or_else(|| self.rng.bytes());
            self.changes.push(Change::Nonce(nonce));
            let request =
                Request::Reincarnate { from: self.incarnation, nonce, asked: self.reincarnation_asked };
            self.after_commit.push((request, Purpose::Reincarnate));
        }
    }

    /// Resets the client seqs of all conversations. Queued messages may have been sent before, by this store
    /// or by another copy of it.
    pub(super) fn begin_conversations_anew(&mut self) {
        self.conversations.values_mut().for_each(Conversation::begin_anew);
        self.unresolved.values_mut().flatten().for_each(Entry::unseal);
    }

    pub(super) fn reincarnated(&mut self, now: Instant, incarnation: Incarnation, out: &mut Vec<Output>) {
        if incarnation <= self.incarnation
            || incarnation > self.incarnation.saturating_add(MAX_INCARNATION_LEAD)
        {
            // An honest server does not answer this.
            return self.stop_superseded(out);
        }
        self.recovery = Recovery::No;
        self.nonce = None;
        self.reincarnation_asked = false;
        self.reincarnate_from = now.after(DAY_MS);
        self.incarnation = incarnation;
        // Above every generation of earlier incarnations: the server keeps the highest that it has seen.
        if !Mutant::GenerationNotRaised.is_active() {
            self.generation = self.generation.max(u64::from(incarnation) << 32);
        }
        self.ratchets_moved = true;
        self.begin_conversations_anew();
        self.changes.push(Change::Reincarnated(incarnation));
        if !std::mem::take(&mut self.server_restore.keeps_sessions) {
            out.push(Output::Forget(incarnation));
        }
        // A waiting message that was to name the device lists may be stored without them.
        self.update_rosters(now);
        self.make_prekeys(true, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{DeviceAddress, DeviceId, InstallationId, UserId};
    use crate::model::server_frame::{Challenge, ServerFrame, Welcome};
    use crate::replica::{Input, ReplicaSnapshot};

    /// Returns the first commit of a device whose server reports a rollback of its store.
    fn first_commit() -> Vec<Change> {
        let device = DeviceAddress {
            user: UserId::from_bytes([1; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([1; 16]),
        };
        let now = Instant::from_millis(0);
        let mut replica = Replica::new(now, ReplicaSnapshot::new(device), 1);
        let challenge = Challenge::example();
        let welcome = Welcome { rollback: true, ..Welcome::example() };
        let mut out = Vec::new();
        for input in [
            Input::Flush,
            Input::Connected,
            Input::Frame(ServerFrame::Challenge(challenge)),
            Input::Frame(ServerFrame::Welcome(welcome)),
            Input::Flush,
        ] {
            replica.step(now, input, &mut out);
        }
        let commit = out.into_iter().find_map(|output| match output {
            Output::Commit(changes, _) => Some(changes.list),
            _ => None,
        });
        commit.unwrap_or_default()
    }

    #[test]
    fn recovery_is_recorded_in_the_first_commit() {
        let remembered = |changes: &[Change]| changes.iter().any(|change| matches!(change, Change::Nonce(_)));
        assert!(remembered(&first_commit()));
        #[cfg(feature = "sim")]
        assert!(
            !remembered(&Mutant::with(Some(Mutant::RollbackForgotten), first_commit)),
            "mutant undetected"
        );
    }
}
