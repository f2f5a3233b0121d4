//! Receipts in groups. Only the users that sent the messages get them: a device names these users in each receipt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::change::Change;
use super::output::Output;
use super::{Purpose, Recovery, Replica};
use crate::model::client_frame::{ClientFrame, GroupReceipt, Request};
use crate::model::id::{ConversationId, ConversationKind, Seq, UserId};
use crate::model::limits::MAX_RECEIPT_USERS;
use crate::model::time::Instant;

/// Minimum milliseconds between a message and its delivery receipt, which covers those after it too. Up to as many again are
/// random: the devices of a group do not all answer a message at once.
const RECEIPT_MS: u64 = 1000;
/// A device remembers the senders of at most this number of unread messages in a group.
const MAX_UNREAD: usize = 256;
/// After a reconnect a device requests the progress of at most this number of groups.
const GROUPS_AT_ONCE: usize = 4;

/// The receipts of a group since this device started. Lost ones come again when their sender asks.
#[derive(Debug, Default)]
pub(super) struct GroupReceipts {
    /// Users whose messages arrived after the last delivery receipt.
    unreported: BTreeSet<UserId>,
    /// Users that asked for a receipt, and whose messages this device has.
    asked: BTreeSet<UserId>,
    /// The newest messages that this user has not read, the latest last.
    unread: VecDeque<(Seq, UserId)>,
    /// How far each other member received the group, and how far it read it.
    progress: BTreeMap<UserId, (Seq, Seq)>,
}

impl Replica {
    fn receipts(&mut self, id: ConversationId) -> &mut GroupReceipts {
        &mut self.group(id).receipts
    }

    /// Notes a message of another member, to which receipts are due.
    pub(super) fn owe_receipt(&mut self, now: Instant, id: ConversationId, seq: Seq, sender: UserId) {
        if id.kind() != Ok(ConversationKind::Group) || sender == self.device.user {
            return;
        }
        self.receipts_are_due(now);
        let receipts = self.receipts(id);
        receipts.unreported.insert(sender);
        if receipts.unread.len() == MAX_UNREAD {
            receipts.unread.pop_front();
        }
        receipts.unread.push_back((seq, sender));
    }

    fn receipts_are_due(&mut self, now: Instant) {
        let jitter = self.rng.below(RECEIPT_MS);
        self.receipts_at = self.receipts_at.or(Some(now.after(RECEIPT_MS + jitter)));
    }

    /// Sends the delivery receipts that are due. They wait until all received messages are durable.
    pub(super) fn send_group_receipts(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.receipts_at.is_none_or(|at| now < at) {
            return;
        }
        let is_durable = self.changes.is_empty() && self.committing.is_none();
        if !is_durable || self.recovery != Recovery::No {
            self.receipts_at = Some(now.after(RECEIPT_MS));
            return;
        }
        self.receipts_at = None;
        for (id, known) in &mut self.conversations {
            let Some(group) = &mut known.group else { continue };
            let to = std::mem::take(&mut group.receipts.unreported);
            push_receipts(*id, (known.cursor, 0), to, out);
            let asked = std::mem::take(&mut group.receipts.asked);
            push_receipts(*id, (known.cursor, known.read), asked, out);
        }
    }

    /// Sends receipts for the messages that this user has just read.
    pub(super) fn report_read(&mut self, id: ConversationId, read: Seq, out: &mut Vec<Output>) {
        if id.kind() != Ok(ConversationKind::Group) {
            return;
        }
        let is_online = self.is_online();
        let receipts = self.receipts(id);
        let mut to = BTreeSet::new();
        while let Some((_, sender)) = receipts.unread.front().copied().filter(|(seq, _)| *seq <= read) {
            receipts.unread.pop_front();
            to.insert(sender);
        }
        if is_online {
            push_receipts(id, (0, read), to, out);
        }
    }

    /// Notes that a member of a group asks how far this user received and read it. It gets an answer if this device has a
    /// message of it: with the next receipts, when all rows are durable.
    pub(super) fn receipt_requested(&mut self, now: Instant, id: ConversationId, asker: UserId) {
        let known = self.conversations.get(&id);
        let member = self.roster(id).and_then(|roster| roster.member(asker)).zip(known);
        let has_message = member.is_some_and(|(member, known)| {
            member.installations.iter().any(|device| known.chains.contains_key(device))
        });
        if has_message {
            self.receipts(id).asked.insert(asker);
            self.receipts_are_due(now);
        }
    }

    /// Records how far a member received and read a group.
    pub(super) fn group_receipt(&mut self, id: ConversationId, user: UserId, delivered: Seq, read: Seq) {
        if self.roster(id).and_then(|roster| roster.member(user)).is_none() {
            return;
        }
        let known = self.receipts(id).progress.entry(user).or_default();
        let risen = (known.0.max(delivered).max(read), known.1.max(read));
        if risen != *known {
            *known = risen;
            self.changes.push(Change::Receipt(id, user, risen.0, risen.1));
        }
    }

    /// Requests the progress of the members of groups in which they have not read an own message.
    pub(super) fn request_group_progress(&mut self, now: Instant, out: &mut Vec<Output>) {
        let own = self.device.user;
        let mut asked = Vec::new();
        for (id, known) in &self.conversations {
            let Some(group) = known.group.as_ref().filter(|_| known.last_own > 0) else { continue };
            let mut others = group.roster.members.iter().filter(|member| member.user != own);
            let has_read = |user| group.receipts.progress.get(&user).is_some_and(|at| at.1 >= known.last_own);
            if group.roster.member(own).is_some() && !others.all(|member| has_read(member.user)) {
                asked.push(*id);
            }
        }
        self.rotate(&mut asked, GROUPS_AT_ONCE);
        for id in asked.into_iter().take(GROUPS_AT_ONCE) {
            self.request(now, Request::Delivered(id), Purpose::Delivered(id), out);
        }
    }
}

/// Pushes a receipt for these users, in as many frames as they need.
fn push_receipts(
    conversation: ConversationId,
    (delivered, read): (Seq, Seq),
    to: BTreeSet<UserId>,
    out: &mut Vec<Output>,
) {
    let to: Vec<UserId> = to.into_iter().collect();
    for to in to.chunks(MAX_RECEIPT_USERS) {
        let receipt = GroupReceipt { conversation, delivered, read, to: to.to_vec() };
        out.push(Output::Send(ClientFrame::GroupReceipt(receipt)));
    }
}
