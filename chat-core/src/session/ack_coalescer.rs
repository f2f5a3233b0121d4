use std::collections::BTreeMap;

use super::{MAX_PACED, Output};
use crate::model::envelope::AckUpTo;
use crate::model::id::{ConversationId, Seq};
use crate::model::limits::WINDOW_ROWS;
use crate::model::time::Instant;

/// Milliseconds that acks, receipts and read watermarks are gathered. An ack that is lost meanwhile costs
/// its device a row that it has.
const COALESCE_MS: u64 = 1000;

/// What a session gathers before it tells the store and the others: of each conversation the last counts.
#[derive(Debug, Default)]
pub(super) struct AckCoalescer {
    /// What the device has and the store was not given.
    acks: BTreeMap<ConversationId, Seq>,
    /// The generation of its last word, on that or in a message.
    generation: Option<u64>,
    /// The store has acks and has not said so.
    acking: bool,
    /// More acks are due since: they are told as soon as it does.
    overdue: bool,
    /// What the others are told the device has, once the store knows: whoever asks it is told the same.
    receipts: BTreeMap<ConversationId, Seq>,
    /// Of those, what waits for acks that are with the store.
    receipts_next: BTreeMap<ConversationId, Seq>,
    /// Read up to here, to be told when its time has come.
    reads: BTreeMap<ConversationId, Seq>,
    /// When each conversation's last read watermark was told.
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
    /// When [`tick`](Self::tick) has something to tell.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    fn wait(&mut self, now: Instant) {
        self.due = self.due.or(Some(now.after(COALESCE_MS)));
    }

    /// The device has a row; `receipt`: and the others are to know.
    pub(super) fn ack(&mut self, ack: AckUpTo, receipt: bool) {
        raise(&mut self.acks, ack);
        if receipt {
            raise(&mut self.receipts, ack);
        }
    }

    /// The device sends a message. The store learns its generation with the commit, which may be late: meanwhile
    /// an older copy of the device must not be greeted as if it were the same.
    pub(super) fn sends(&mut self, now: Instant, generation: u64) {
        self.generation = self.generation.max(Some(generation));
        self.wait(now);
    }

    /// A frame of acks was taken.
    pub(super) fn acks_came(&mut self, now: Instant, generation: u64, out: &mut Vec<Output>) {
        self.generation = self.generation.max(Some(generation));
        self.wait(now);
        // A device that has what it says has no more on its way. The driver waits for those before.
        if self.acks.len() > WINDOW_ROWS {
            self.flush_acks(out);
        }
    }

    /// A watermark goes out at once, the next of that conversation after a while.
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

    /// Gives the store what it was not given.
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

    /// The store has all acks that it was given.
    pub(super) fn acked(&mut self, out: &mut Vec<Output>) {
        self.acking = false;
        out.extend(take_receipts(&mut self.receipts_next, false));
        if std::mem::take(&mut self.overdue) {
            self.flush_acks(out);
        }
    }

    /// Forgets what the store was not given.
    pub(super) fn forget_acks(&mut self) {
        (self.acks, self.generation) = (BTreeMap::new(), None);
    }

    /// Tells what has waited long enough; acks not before the store has those before them.
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

    /// Tells everything: nothing more will come.
    pub(super) fn flush_all(&mut self, out: &mut Vec<Output>) {
        (self.due, self.overdue) = (None, false);
        self.flush_acks(out);
        self.acked(out);
        out.extend(take_receipts(&mut self.receipts, false));
        out.extend(take_receipts(&mut self.reads, true));
    }
}
