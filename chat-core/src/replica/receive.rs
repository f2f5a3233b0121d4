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
            if is_later && conversation.kind() == Ok(ConversationKind::Group) {
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
mod tests {
    use super::*;
    use crate::model::envelope::{Publish, SendPosition};
    use crate::model::id::{DeviceAddress, DeviceId, InstallationId, StoreEpoch, UserId};
    use crate::model::server_frame::{Challenge, ServerFrame, Welcome};
    use crate::replica::recovery::LAST_WORD_MS;
    use crate::replica::{Draft, Ephemeral, Input, OutboxEntrySnapshot, Recipient, Replica, ReplicaSnapshot};

    /// Returns the outbox length of a device that numbered a message again in its second incarnation, after
    /// the row of the first incarnation arrived.
    fn left_after_the_old_row() -> usize {
        let user = UserId::from_bytes([1; 16]);
        let installation = InstallationId::from_bytes([1; 16]);
        let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
        let (id, conversation) = (MessageId::from_bytes([7; 16]), ConversationId::own(user));
        let number = SendPosition {
            conversation,
            message_id: id,
            client_seq: 1,
            prev: MessageId::NIL,
            incarnation: 1,
            generation: 1 << 32,
        };
        let (audience, boxes) = (Vec::new(), Vec::new());
        let publish = Publish {
            number,
            first: false,
            audience,
            body: bytes::Bytes::new(),
            boxes,
            excluded: Vec::new(),
            sent_at: 0,
            options: crate::model::message_options::MessageOptions::default(),
            group: None,
        };
        let draft = Draft::new(id, Recipient::User(user), bytes::Bytes::new());
        let snapshot = ReplicaSnapshot {
            incarnation: 1,
            generation: 1 << 32,
            epoch: Some(StoreEpoch::from_bytes([1; 16])),
            outbox: vec![OutboxEntrySnapshot {
                draft,
                publish: Some(publish),
                skip: false,
                attempted: true,
                bound: false,
            }],
            ..ReplicaSnapshot::new(device)
        };
        let now = Instant::from_millis(0);
        let mut replica = Replica::new(now, snapshot, 1);
        let challenge = Challenge::example();
        let welcome = Welcome { incarnation: 1, ..Welcome::example() };
        let content = RowContent::Own { message_id: id, client_seq: 3, incarnation: 0 };
        let old = InboxRow { conversation, seq: 1, time_us: 1, joined: true, content };
        for input in [
            Input::Flush,
            Input::Connected,
            Input::Frame(ServerFrame::Challenge(challenge)),
            Input::Frame(ServerFrame::Welcome(welcome)),
            Input::Frame(ServerFrame::Deliver(vec![old], true)),
        ] {
            replica.step(now, input, &mut Vec::new());
        }
        replica.outbox_len()
    }

    #[test]
    fn a_number_of_this_life_is_used_up_before_its_message_is_forgotten() {
        assert_eq!(left_after_the_old_row(), 1);
        #[cfg(feature = "sim")]
        #[cfg(feature = "sim")]
        assert_eq!(
            Mutant::with(Some(Mutant::OwnRowFreesNumber), left_after_the_old_row),
            0,
            "the test can fail"
        );
    }

    #[test]
    fn row_of_unknown_kind_is_kept_and_acknowledged() {
        let user = UserId::from_bytes([1; 16]);
        let installation = InstallationId::from_bytes([1; 16]);
        let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
        let conversation = ConversationId::own(user);
        let epoch = Some(StoreEpoch::from_bytes([1; 16]));
        let now = Instant::from_millis(0);
        let mut replica = Replica::new(now, ReplicaSnapshot { epoch, ..ReplicaSnapshot::new(device) }, 1);
        let bytes = bytes::Bytes::from_static(b"of a later release");
        let row = |seq, content| InboxRow { conversation, seq, time_us: seq, joined: seq == 1, content };
        let unknown = row(1, RowContent::Unknown(bytes.clone()));
        let skip = row(2, RowContent::Empty { reason: crate::model::envelope::EmptyReason::Skip, from: 2 });
        let challenge = Challenge::example();
        let mut outputs = Vec::new();
        for input in [
            Input::Flush,
            Input::Connected,
            Input::Frame(ServerFrame::Challenge(challenge)),
            Input::Frame(ServerFrame::Welcome(Welcome { prekeys: 100, ..Welcome::example() })),
            Input::Frame(ServerFrame::Deliver(vec![unknown, skip], true)),
            Input::Flush,
        ] {
            replica.step(now, input, &mut outputs);
        }
        let kept = outputs.iter().any(|output| match output {
            Output::Commit(changes, _) => {
                changes.list.contains(&Change::Unknown(conversation, 1, bytes.clone()))
            }
            _ => false,
        });
        assert!(kept, "{outputs:?}");
        assert_eq!(replica.cursor(conversation), 2, "the row is acknowledged, and the next one is received");
    }

    /// A list of one device, which belongs to the account with this key.
    fn own_list(user: UserId) -> crate::model::device_list::SignedDeviceList {
        use ed25519_dalek::{Signer, SigningKey};
        let key = SigningKey::from_bytes(&[7; 32]);
        let entry = crate::model::device_list::DeviceEntry::new(
            DeviceId::PRIMARY,
            [3; 32],
            crate::model::suite::SuiteKey::signal(vec![3; 33]),
        );
        let list = crate::model::device_list::DeviceList::first(user, 0, vec![entry]);
        let encoded = list.encode();
        let signature = key.sign(&crate::model::device_list::DeviceList::transcript(&encoded));
        let signature = signature.to_bytes().to_vec().into();
        crate::model::device_list::SignedDeviceList::verify(
            encoded,
            key.verifying_key().to_bytes(),
            signature,
        )
        .unwrap()
    }

    fn message(sender: DeviceAddress, conversation: ConversationId) -> InboxRow {
        let message = crate::model::envelope::Message {
            id: MessageId::from_bytes([9; 16]),
            sender,
            client_seq: 1,
            prev: MessageId::NIL,
            incarnation: 0,
            audience: Vec::new(),
            body: bytes::Bytes::new(),
            sent_at: 0,
            options: crate::model::message_options::MessageOptions::default(),
            group: None,
        };
        let content = RowContent::Message { message: message.into(), sealed: bytes::Bytes::new() };
        InboxRow { conversation, seq: 1, time_us: 1, joined: true, content }
    }

    /// Returns the ids of the requests for a user's list in these outputs.
    fn asked(outputs: &[Output], user: UserId) -> Vec<u64> {
        let asked = outputs.iter().filter_map(|output| match output {
            Output::Send(ClientFrame::Request(id, crate::model::client_frame::Request::Lists(users)))
                if *users == [user] =>
            {
                Some(*id)
            }
            _ => None,
        });
        asked.collect()
    }

    #[test]
    fn list_requested_before_a_row_arrived_is_not_used_for_its_sender() {
        let (own, other) = (UserId::from_bytes([1; 16]), UserId::from_bytes([2; 16]));
        let list = own_list(own);
        let device = list.list().addresses().next().unwrap();
        let snapshot =
            ReplicaSnapshot { epoch: Some(StoreEpoch::from_bytes([1; 16])), ..ReplicaSnapshot::new(device) };
        let now = Instant::from_millis(0);
        let mut replica = Replica::new(now, snapshot, 1);
        let mut step = |input| {
            let mut outputs = Vec::new();
            replica.step(now, input, &mut outputs);
            outputs
        };
        let answer = |id, lists| {
            let answer = crate::model::server_frame::Response {
                lists,
                ..crate::model::server_frame::Response::default()
            };
            Input::Frame(ServerFrame::Response(id, Box::new(answer)))
        };
        let challenge = Challenge::example();
        step(Input::Flush);
        step(Input::Connected);
        step(Input::Frame(ServerFrame::Challenge(challenge)));
        let welcome = Welcome { list_version: 1, prekeys: 100, ..Welcome::example() };
        let first = asked(&step(Input::Frame(ServerFrame::Welcome(welcome))), own);
        // The first row is from an unknown user, and the answer with the list of that user is delayed.
        let stranger = DeviceAddress { user: other, ..device };
        let head = message(stranger, ConversationId::direct(own, other));
        let about_other = asked(&step(Input::Frame(ServerFrame::Deliver(vec![head], true))), other);
        step(answer(first[0], vec![list.clone()]));
        // Meanwhile a device is linked and sends a message.
        let linked = DeviceAddress { installation: InstallationId::from_bytes([8; 16]), ..device };
        let row = message(linked, ConversationId::own(own));
        step(Input::Frame(ServerFrame::Deliver(vec![row], true)));
        let outputs = step(answer(about_other[0], Vec::new()));
        assert!(outputs.iter().any(|output| matches!(output, Output::Open(_, None))), "{outputs:?}");
        let opened = Opened::unreadable(Unreadable::UnknownDevice);
        let outputs = step(Input::Opened(opened));
        assert!(!outputs.iter().any(|output| matches!(output, Output::Open(..))), "{outputs:?}");
        assert_eq!(asked(&outputs, own).len(), 1, "one new list request: {outputs:?}");
    }

    /// Returns the ids of the cursor requests in these outputs.
    fn asked_for_cells(outputs: &[Output]) -> Vec<u64> {
        let asked = outputs.iter().filter_map(|output| match output {
            Output::Send(ClientFrame::Request(id, Request::Cursors)) => Some(*id),
            _ => None,
        });
        asked.collect()
    }

    /// Whether a device that keeps missing a row recovers when the server reports this acknowledged seq.
    fn recovers(acked: Seq) -> bool {
        let user = UserId::from_bytes([1; 16]);
        let installation = InstallationId::from_bytes([1; 16]);
        let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
        let snapshot =
            ReplicaSnapshot { epoch: Some(StoreEpoch::from_bytes([1; 16])), ..ReplicaSnapshot::new(device) };
        let mut replica = Replica::new(Instant::from_millis(0), snapshot, 1);
        let mut step = |at, input| {
            let mut outputs = Vec::new();
            replica.step(Instant::from_millis(at), input, &mut outputs);
            outputs
        };
        let conversation = ConversationId::own(user);
        let row = || {
            let content = RowContent::Empty { reason: crate::model::envelope::EmptyReason::Skip, from: 3 };
            InboxRow { conversation, seq: 3, time_us: 3, joined: false, content }
        };
        let deliver = |rows, caught_up| Input::Frame(ServerFrame::Deliver(rows, caught_up));
        let challenge = Challenge::example();
        step(0, Input::Flush);
        step(0, Input::Connected);
        step(0, Input::Frame(ServerFrame::Challenge(challenge)));
        step(0, Input::Frame(ServerFrame::Welcome(Welcome { prekeys: 100, ..Welcome::example() })));
        assert!(asked_for_cells(&step(0, deliver(vec![row()], false))).is_empty(), "row may be in transit");
        let late = DOUBT_MS + 1;
        assert!(asked_for_cells(&step(late, deliver(vec![row()], false))).is_empty(), "not caught up");
        step(late, deliver(Vec::new(), true));
        let asked = asked_for_cells(&step(late, deliver(vec![row()], false)));
        assert_eq!(asked.len(), 1, "the row is missing after the catch-up");
        let cursors = vec![(conversation, crate::model::envelope::InboxCursor { acked, tail: 3 })];
        let answer = Box::new(crate::model::server_frame::Response {
            cursors,
            ..crate::model::server_frame::Response::default()
        });
        step(late, Input::Frame(ServerFrame::Response(asked[0], answer)));
        // A recovery begins with the same request.
        !asked_for_cells(&step(late + LAST_WORD_MS, Input::Tick)).is_empty()
    }

    #[test]
    fn opened_store_checks_once_whether_a_copy_acknowledged_more() {
        let installation = InstallationId::from_bytes([1; 16]);
        let device =
            DeviceAddress { user: UserId::from_bytes([1; 16]), device: DeviceId::PRIMARY, installation };
        let conversation = ConversationId::own(device.user);
        let known = crate::replica::ConversationSnapshot {
            cursor: 2,
            ..crate::replica::ConversationSnapshot::new(conversation)
        };
        let received = ReplicaSnapshot { conversations: vec![known], ..ReplicaSnapshot::new(device) };
        let nothing = ReplicaSnapshot::new(device);
        // Without a received row, rows from before this device joined count as acknowledged.
        for (snapshot, acked, recovers) in
            [(&received, 2, false), (&received, 3, true), (&nothing, 2, false), (&nothing, 3, true)]
        {
            let mut replica = Replica::new(Instant::from_millis(0), snapshot.clone(), 1);
            let mut step = |at, input| {
                let mut outputs = Vec::new();
                replica.step(Instant::from_millis(at), input, &mut outputs);
                outputs
            };
            let challenge = Challenge::example();
            step(0, Input::Flush);
            step(0, Input::Connected);
            step(0, Input::Frame(ServerFrame::Challenge(challenge)));
            step(0, Input::Frame(ServerFrame::Welcome(Welcome { prekeys: 100, ..Welcome::example() })));
            step(0, Input::Frame(ServerFrame::Deliver(Vec::new(), true)));
            let asked = asked_for_cells(&step(crate::model::limits::HEARTBEAT_MS, Input::Tick));
            let cursors = vec![(conversation, crate::model::envelope::InboxCursor { acked, tail: 3 })];
            let answer = Box::new(crate::model::server_frame::Response {
                cursors,
                ..crate::model::server_frame::Response::default()
            });
            let at = crate::model::limits::HEARTBEAT_MS;
            step(at, Input::Frame(ServerFrame::Response(asked[0], answer)));
            let at_once = step(at + LAST_WORD_MS - 1, Input::Tick);
            assert!(asked_for_cells(&at_once).is_empty(), "the last ack of the copy may be in transit");
            let outputs = step(at + LAST_WORD_MS, Input::Tick);
            assert_eq!(!asked_for_cells(&outputs).is_empty(), recovers, "{outputs:?}");
            assert!(recovers || asked_for_cells(&step(2 * at, Input::Tick)).is_empty(), "asked twice");
        }
    }

    #[test]
    fn device_recovers_when_the_server_counts_a_missing_row_as_acknowledged() {
        assert!(recovers(2) && recovers(1), "seq 1 is acknowledged and missing");
        assert!(!recovers(0), "seq 1 is not acknowledged: it waits in the inbox");
    }

    #[test]
    fn device_has_caught_up_once_the_rows_are_durable() {
        let installation = InstallationId::from_bytes([1; 16]);
        let user = UserId::from_bytes([1; 16]);
        let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
        let snapshot =
            ReplicaSnapshot { epoch: Some(StoreEpoch::from_bytes([1; 16])), ..ReplicaSnapshot::new(device) };
        let mut replica = Replica::new(Instant::from_millis(0), snapshot, 1);
        let mut step = |input| {
            let mut outputs = Vec::new();
            replica.step(Instant::from_millis(0), input, &mut outputs);
            outputs
        };
        let reports = |outputs: &[Output]| outputs.contains(&Output::Event(Ephemeral::CaughtUp));
        step(Input::Flush);
        step(Input::Connected);
        step(Input::Frame(ServerFrame::Challenge(Challenge::example())));
        step(Input::Frame(ServerFrame::Welcome(Welcome { prekeys: 100, ..Welcome::example() })));
        let content = RowContent::Empty { reason: crate::model::envelope::EmptyReason::Skip, from: 1 };
        let conversation = ConversationId::own(user);
        let row = InboxRow { conversation, seq: 1, time_us: 1, joined: true, content };
        assert!(!reports(&step(Input::Frame(ServerFrame::Deliver(vec![row], true)))), "it is not durable");
        let outputs = step(Input::Flush);
        let ticket = outputs.iter().find_map(|output| match output {
            Output::Commit(_, ticket) => Some(*ticket),
            _ => None,
        });
        assert!(!reports(&outputs));
        assert!(reports(&step(Input::Committed(ticket.unwrap()))));
        assert!(!reports(&step(Input::Frame(ServerFrame::Deliver(Vec::new(), true)))), "once");
    }
}
