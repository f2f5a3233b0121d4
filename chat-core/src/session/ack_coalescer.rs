use std::collections::BTreeMap;

use super::{MAX_PACED, Output};
use crate::model::envelope::AckUpTo;
use crate::model::id::{ConversationId, Seq};
use crate::model::limits::WINDOW_ROWS;
use crate::model::time::Instant;

/// Milliseconds for which acks, receipts and read watermarks are coalesced. If an ack is lost meanwhile, its
/// device receives a row again that it has.
const COALESCE_MS: u64 = 1000;

/// Coalesces acks, receipts and read watermarks of a session. Only the highest seq of each conversation
/// counts.
#[derive(Debug, Default)]
pub(super) struct AckCoalescer {
    /// Acks that were not sent to the store yet.
    acks: BTreeMap<ConversationId, Seq>,
    /// Highest generation that the device sent with acks or messages; `None` once it was sent to the store.
    generation: Option<u64>,
    /// Acks were sent to the store and are not confirmed.
    acking: bool,
    /// More acks are due: they are sent as soon as the store confirms.
    overdue: bool,
    /// Delivery receipts, sent once the store has the acks, so that a request for the delivery state agrees
    /// with them.
    receipts: BTreeMap<ConversationId, Seq>,
    /// Delivery receipts that wait until the store confirms their acks.
    receipts_next: BTreeMap<ConversationId, Seq>,
    /// Read watermarks that wait for the next tick.
    reads: BTreeMap<ConversationId, Seq>,
    /// When the last read watermark of each conversation was sent.
    read_at: BTreeMap<ConversationId, Instant>,
    due: Option<Instant>,
}

fn raise(seqs: &mut BTreeMap<ConversationId, Seq>, at: AckUpTo) {
    let known = seqs.entry(at.conversation).or_default();
    *known = at.seq.max(*known);
}

fn take_receipts(
    seqs: &mut BTreeMap<ConversationId, Seq>,
    read: bool,
) -> impl Iterator<Item = Output> + use<> {
    std::mem::take(seqs)
        .into_iter()
        .map(move |(conversation, seq)| Output::Receipt(AckUpTo { conversation, seq }, read))
}

impl AckCoalescer {
    /// Returns when [`tick`](Self::tick) has something to send.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    fn wait(&mut self, now: Instant) {
        self.due = self.due.or(Some(now.after(COALESCE_MS)));
    }

    /// Adds an ack. With `receipt` the other users also get a delivery receipt.
    pub(super) fn ack(&mut self, ack: AckUpTo, receipt: bool) {
        raise(&mut self.acks, ack);
        if receipt {
            raise(&mut self.receipts, ack);
        }
    }

    /// Records the generation of a message that the device sends. The commit carries the generation to the
    /// store, but may be late; meanwhile an older copy of the device must not be greeted as the current one.
    pub(super) fn sends(&mut self, now: Instant, generation: u64) {
        self.generation = self.generation.max(Some(generation));
        self.wait(now);
    }

    /// Schedules the acks of a frame.
    pub(super) fn acks_came(&mut self, now: Instant, generation: u64, out: &mut Vec<Output>) {
        self.generation = self.generation.max(Some(generation));
        self.wait(now);
        // A correct device never has more rows in flight than the window. The driver waits for the earlier
        // acks.
        if self.acks.len() > WINDOW_ROWS {
            self.flush_acks(out);
        }
    }

    /// Returns a read receipt if it may go out at once. Later watermarks of the same conversation wait for
    /// the next tick.
    pub(super) fn read(&mut self, now: Instant, read: AckUpTo) -> Option<Output> {
        let paced = self.read_at.get(&read.conversation).is_some_and(|at| now < at.after(COALESCE_MS));
        if !paced && self.read_at.len() < MAX_PACED {
            self.read_at.insert(read.conversation, now);
            return Some(Output::Receipt(read, true));
        }
        if self.reads.len() < MAX_PACED {
            raise(&mut self.reads, read);
            self.wait(now);
        }
        None
    }

    /// Sends the pending acks and the generation to the store.
    pub(super) fn flush_acks(&mut self, out: &mut Vec<Output>) {
        let Some(generation) = self.generation.take() else { return };
        let acks = std::mem::take(&mut self.acks).into_iter();
        let acks = acks.map(|(conversation, seq)| AckUpTo { conversation, seq }).collect();
        self.acking = true;
        for (conversation, seq) in std::mem::take(&mut self.receipts) {
            raise(&mut self.receipts_next, AckUpTo { conversation, seq });
        }
        out.push(Output::Ack(acks, generation));
    }

    /// Processes the confirmation of the store for all acks that were sent.
    pub(super) fn acked(&mut self, out: &mut Vec<Output>) {
        self.acking = false;
        out.extend(take_receipts(&mut self.receipts_next, false));
        if std::mem::take(&mut self.overdue) {
            self.flush_acks(out);
        }
    }

    /// Drops the acks that were not sent to the store.
    pub(super) fn forget_acks(&mut self) {
        (self.acks, self.generation) = (BTreeMap::new(), None);
    }

    /// Sends everything that is due. Acks wait until the store confirms the earlier ones.
    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        self.due = None;
        if self.acking {
            self.overdue = true;
        } else {
            self.flush_acks(out);
        }
        self.read_at.retain(|_, at| now < at.after(COALESCE_MS));
        self.read_at.extend(self.reads.keys().map(|conversation| (*conversation, now)));
        out.extend(take_receipts(&mut self.reads, true));
    }

    /// Sends everything, because the session ends.
    pub(super) fn flush_all(&mut self, out: &mut Vec<Output>) {
        (self.due, self.overdue) = (None, false);
        self.flush_acks(out);
        self.acked(out);
        out.extend(take_receipts(&mut self.receipts, false));
        out.extend(take_receipts(&mut self.reads, true));
    }
}
