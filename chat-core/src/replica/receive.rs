//! Received rows: gap check, decryption, cursor.

use super::change::Change;
use super::conversation::Missing;
use super::group_receive::Follow;
use super::input::{Opened, Unreadable};
use super::output::Output;
use super::send::DOUBT_MS;
use super::{Purpose, Recovery, Replica};
use crate::model::client_frame::{ClientFrame, Request};
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{InboxRow, Message, RowContent, SendPosition};
use crate::model::id::ConversationKind;
use crate::model::id::{ClientSeq, ConversationId, Incarnation, MessageId, Seq, UserId};
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// Minimum milliseconds between two requests for all unacknowledged rows.
const CATCH_UP_MS: u64 = 1000;

impl Replica {
    /// Processes the rows in order, until one must wait for an answer.
    pub(super) fn process_rows(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.server_restore.is_suspected {
            // The rows come again after the comparison.
            self.rows.clear();
        }
        let waits = self.server_restore.is_comparing() || self.server_restore.is_held;
        if self.recovery == Recovery::Cursors || waits {
            return;
        }
        if self.server_restore.is_uncommitted && (!self.changes.is_empty() || self.committing.is_some()) {
            self.flushing = true;
            return;
        }
        self.server_restore.is_uncommitted = false;
        let joins = Mutant::JoinIgnored.is_active();
        while let Some(row) = self.rows.front() {
            let (conversation, seq) = (row.conversation, row.seq);
            let known = self.conversations.entry(conversation).or_default();
            if let Some(checked) = known.checked
                && row.first_seq() > checked + 1
                && !row.joined
            {
                // A row between them was lost in transit, and the ack of this one would cover it. Or an ack of an earlier
                // session reached the store late: then the cursors say so.
                self.rows.pop_front();
                self.hold_and_compare(now, out);
                return self.ask_catch_up(now, out);
            }
            if seq <= known.cursor {
                let Some(row) = self.rows.pop_front() else { return };
                if self.compare_row(&row, out) {
                    return;
                }
                self.row_is_same(conversation, seq);
                continue;
            }
            if row.first_seq() > known.cursor + 1 && (!row.joined || joins) && !Mutant::NoGapCheck.is_active()
            {
                // A row before this one was lost in transit; it is still in the inbox.
                let missing = known.cursor + 1;
                self.rows.pop_front();
                self.ask_catch_up(now, out);
                self.note_missing(now, conversation, missing, out);
                continue;
            }
            if !self.belongs(row) {
                let Some(row) = self.rows.pop_front() else { return };
                self.opening = Some(row);
                self.opened(now, Opened::unreadable(Unreadable::Misplaced), out);
                continue;
            }
            if let RowContent::Message { message, .. } = &row.content {
                let sender = message.sender;
                let listed = self
                    .lists
                    .get(&sender.user)
                    .is_some_and(|list| list.list().addresses().any(|device| device == sender));
                // An app shows to whom another own device wrote: the answer has the handle of that user.
                let is_group = message.group.is_some();
                let others = message.audience.iter().map(|audience| audience.user).filter(|_| !is_group);
                let others =
                    others.filter(|user| sender.user == self.device.user && !self.lists.contains_key(user));
                let mut needed = (!listed).then_some(sender.user).into_iter().chain(others);
                if let Some(user) = needed.find(|user| !self.is_looked_up(now, *user)) {
                    self.fetch_list(now, user, out);
                    return;
                }
                let named = self.named_version(conversation, message);
                let earlier = named.filter(|_| !listed).map(|version| (sender.user, version));
                if let Some(version) = earlier.filter(|(_, version)| self.is_replaced(sender.user, *version))
                    && !self.earlier_lists.contains_key(&version)
                {
                    // The device was unlinked since: the list that its message names has its keys.
                    let purpose = Purpose::ListVersion(version.0, version.1);
                    if !self.is_asked(&purpose) {
                        self.request(now, Request::ListVersion(version.0, version.1), purpose, out);
                    }
                    return;
                }
                if self.isolate_rows
                    && !Mutant::IsolationIgnored.is_active()
                    && (!self.changes.is_empty() || self.committing.is_some())
                {
                    // The row is opened once the changes are durable.
                    self.flushing = true;
                    return;
                }
                let list = if listed {
                    self.lists.get(&sender.user).cloned()
                } else {
                    let found =
                        earlier.and_then(|version| self.earlier_lists.get(&version)).cloned().flatten();
                    let names =
                        |list: &SignedDeviceList| list.list().addresses().any(|device| device == sender);
                    found.filter(|list| names(list) && !Mutant::EarlierListIgnored.is_active())
                };
                let row = row.clone();
                let follow = self.follow_roster(now, &row, list.as_ref(), out);
                if follow == Follow::Wait {
                    return;
                }
                self.rows.pop_front();
                self.opening = Some(row.clone());
                if follow == Follow::Outside {
                    self.opened(now, Opened::unreadable(Unreadable::NotMember), out);
                    continue;
                }
                out.push(Output::Open(row, list));
                return;
            }
            if let Some(row) = self.rows.pop_front() {
                self.take_row(now, row);
            }
        }
        self.looked_up.clear();
        self.earlier_lists.clear();
        self.isolate_rows &= !self.caught_up;
    }

    /// Returns the version of the sender's list that a message was sealed with. A message of a group does not name it: then
    /// the roster does, or it is the version before the one that this device has.
    fn named_version(&self, id: ConversationId, message: &Message) -> Option<u64> {
        let user = message.sender.user;
        if message.group.is_none() {
            let named = message.audience.iter().find(|audience| audience.user == user);
            return named.map(|named| named.list_version);
        }
        let newest = self.lists.get(&user)?.list().version;
        let member = self.roster(id).and_then(|roster| roster.member(user));
        let named = member.map(|member| member.list_version).filter(|version| *version < newest);
        Some(named.unwrap_or(newest.saturating_sub(1)))
    }

    /// Whether a version of a user's list was replaced by the one that this device has.
    fn is_replaced(&self, user: UserId, version: u64) -> bool {
        self.lists.get(&user).is_some_and(|list| version > 0 && version < list.list().version)
    }

    /// Whether the list of a user was requested after the first waiting row arrived, or the server has just
    /// returned none. An older answer does not contain the sending device if it was linked in between.
    fn is_looked_up(&self, now: Instant, user: UserId) -> bool {
        let first = self.rows_in - self.rows.len() as u64;
        self.looked_up.get(&user).is_some_and(|asked_after| first < *asked_after)
            || self.listless.get(&user).is_some_and(|at| now < *at)
    }

    fn take_row(&mut self, now: Instant, row: InboxRow) {
        self.excuse_before(&row);
        if row.is_expired() {
            self.check_expiry(now, &row);
        }
        match row.content {
            RowContent::Own { message_id, client_seq, incarnation } => {
                self.own_row(now, row.conversation, message_id, (client_seq, incarnation), row.seq);
            }
            RowContent::Empty { reason, from } => {
                // Retention may also cover rows that this device has but had not acknowledged yet.
                let from = from.max(self.cursor(row.conversation) + 1);
                self.gap(row.conversation, from, row.seq, reason);
            }
            RowContent::Message { .. } => {}
            RowContent::Unknown(bytes) => {
                self.excuse(row.conversation, 1);
                self.changes.push(Change::Unknown(row.conversation, row.seq, bytes));
            }
        }
        self.advance_cursor(row.conversation, row.seq);
    }

    pub(super) fn advance_cursor(&mut self, conversation: ConversationId, seq: Seq) {
        self.conversations.entry(conversation).or_default().cursor = seq;
        self.ratchets_moved = true;
        self.changes.push(Change::Cursor(conversation, seq));
        self.ack(conversation, seq);
    }

    /// Handles the row of an own message: a matching outbox entry is stored and leaves the outbox.
    ///
    /// An entry that was numbered again in a new incarnation stays until the server has used up that number
    /// and answered with the seq of the message. Otherwise the later numbers would have a gap before them.
    fn own_row(
        &mut self,
        now: Instant,
        conversation: ConversationId,
        id: MessageId,
        number: (ClientSeq, Incarnation),
        seq: Seq,
    ) {
        let frees = Mutant::OwnRowFreesNumber.is_active();
        let Some(known) = self.conversations.get_mut(&conversation) else {
            return;
        };
        let is_later = seq > known.last_own;
        known.last_own = known.last_own.max(seq);
        if known.position(id).is_none() {
            if is_later && conversation.has_roster() {
                // A copy of this store sent it. It may have changed the roster.
                self.roster_is_behind(conversation);
            }
            self.changes.push(Change::Returned(conversation, seq, self.device.installation, id));
            return;
        }
        let same = |known: SendPosition| (known.client_seq, known.incarnation) == number;
        if let Some(index) = known.position(id)
            && (frees || known.queue[index].number.is_none_or(same))
            && let Some(entry) = known.remove(index)
        {
            self.changes.push(if entry.skip {
                Change::Skipped(id)
            } else {
                Change::Stored(conversation, id, seq)
            });
            self.group_message_stored(now, conversation, &entry, seq);
        }
    }

    pub(super) fn opened(&mut self, now: Instant, opened: Opened, out: &mut Vec<Output>) {
        let Some(row) = self.opening.take() else { return };
        let RowContent::Message { message, .. } = &row.content else { return };
        let (conversation, seq, sender) = (row.conversation, row.seq, message.sender);
        self.excuse_before(&row);
        if opened.content.is_ok() {
            self.claimed_list(now, sender.user, opened.list_version, out);
        }
        let is_duplicate = self.is_duplicate(&row, &opened);
        if opened.content.is_ok() && !is_duplicate {
            self.check_integrity(&row, &opened);
        } else if !is_duplicate {
            self.excuse(conversation, 1);
        }
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            self.heard(now, sender, opened.content, out);
            return self.advance_cursor(conversation, seq);
        }
        let id = message.id;
        if !is_duplicate && opened.content.as_ref().is_ok_and(|content| !content.is_empty()) {
            self.owe_receipt(now, conversation, seq, sender.user);
        }
        let unreadable = opened.content.as_ref().err().copied().filter(|_| !is_duplicate);
        let returns = is_duplicate && opened.known && !opened.repeats;
        let shown = if returns {
            Change::Returned(conversation, seq, sender.installation, id)
        } else if is_duplicate {
            Change::Duplicate(conversation, seq)
        } else {
            Change::Received(Box::new(row), opened)
        };
        if Mutant::CursorBeforeMessage.is_active() {
            self.deferred.push(shown);
        } else {
            self.changes.push(shown);
        }
        // After the message itself, because the later changes update its row.
        if let Some(why) = unreadable {
            self.unreadable(now, sender, Some((conversation, id)), why, out);
        }
        self.advance_cursor(conversation, seq);
    }

    /// Records a missing seq. If it is still missing after a catch-up, a copy of this store that was ahead
    /// may have acknowledged it, with an ack that reached the server after this device's handshake. Only a
    /// recovery fills that gap.
    fn note_missing(&mut self, now: Instant, id: ConversationId, seq: Seq, out: &mut Vec<Output>) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let missing = match &mut conversation.missing {
            Some(missing) if missing.seq == seq => *missing,
            other => *other.insert(Missing { seq, since: now, caught_up: false }),
        };
        if missing.caught_up
            && now >= missing.since.after(DOUBT_MS)
            && self.recovery == Recovery::No
            && !self.is_asked(&Purpose::Missing)
        {
            self.request(now, Request::Cursors, Purpose::Missing, out);
        }
    }

    /// Requests all unacknowledged rows, at most once a second.
    fn ask_catch_up(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.catch_up_at.is_none() {
            self.catch_up_at = Some(now.after(CATCH_UP_MS));
            self.send_if_online(ClientFrame::CatchUp, out);
        }
    }
}

#[cfg(test)]
mod tests;
