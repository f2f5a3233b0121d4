//! Outgoing drafts: resolve, seal, send, match the answer.

use super::change::Change;
use super::conversation::{Conversation, Entry, Wait};
use super::draft::Recipient;
use super::input::SealFailure;
use super::output::{Ephemeral, Output};
use super::{Phase, Purpose, RETRY_MS, Recovery, Replica, SEND_WINDOW, retry_ms};
use crate::model::client_frame::{ClientFrame, Request};
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{Publish, Refusal, SendPosition, Stored};
use crate::model::id::{
    ClientSeq, ConversationId, ConversationKind, Handle, InstallationId, MessageId, UserId,
};
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// Milliseconds in which the replica does not go back to the same number again: answers to frames sent before
/// the first time still arrive.
const GO_BACK_MS: u64 = 1000;

/// Milliseconds for which the server must keep contradicting the local store (it expects a stored number, or
/// a row stays missing) before a recovery begins: longer than any answer can be late.
pub(super) const DOUBT_MS: u64 = 2 * RETRY_MS;

/// Milliseconds after which a bundle is claimed again before its device is excluded.
pub(super) const SOON_MS: u64 = 500;

/// Answered claims without a session after which a device is excluded.
pub(super) const CLAIMS: u32 = 2;

/// Milliseconds for which messages exclude a device with which no session can begin. Then its bundle is claimed again.
const EXCLUDED_MS: u64 = 10_000;

/// Consecutive mismatches that are retried at once; later ones back off.
const PATIENT: u32 = 4;

impl Replica {
    pub(super) fn enqueue(&mut self, entry: Entry) {
        let user = match &entry.draft.to {
            Recipient::Device(device) => {
                let id = ConversationId::mailbox(self.device.installation, device.installation);
                self.conversations.entry(id).or_default().queue.push_back(entry);
                return;
            }
            Recipient::Group(id) => {
                let known = self.conversations.entry(*id).or_default();
                known.group.get_or_insert_default();
                known.queue.push_back(entry);
                return;
            }
            Recipient::User(user) => *user,
            Recipient::Handle(handle) => match self.handles.get(handle) {
                Some(user) => *user,
                None => {
                    self.unresolved.entry(handle.clone()).or_default().push_back(entry);
                    return;
                }
            },
        };
        let id = ConversationId::direct(self.device.user, user);
        self.conversations.entry(id).or_default().queue.push_back(entry);
    }

    pub(super) fn resolved(&mut self, handle: Handle, user: UserId) {
        self.handles.insert(handle.clone(), user);
        for entry in self.unresolved.remove(&handle).unwrap_or_default() {
            self.enqueue(entry);
        }
        self.changes.push(Change::Handle(handle, user));
    }

    pub(super) fn unknown_user(&mut self, handle: &Handle) {
        for entry in self.unresolved.remove(handle).unwrap_or_default() {
            self.changes.push(Change::Refused(entry.draft.id, "unknown_user"));
        }
    }

    /// Refuses the drafts for a user that are not stored: they would have to be encrypted for the account key
    /// that the server now returns for this user.
    pub(super) fn refuse_unstored(&mut self, user: UserId, why: &'static str) {
        let id = ConversationId::direct(self.device.user, user);
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        for entry in conversation.queue.iter_mut().filter(|entry| entry.number.is_some() && !entry.skip) {
            // It may be stored already, and it was sealed for the old key: it may be sent again unchanged,
            // but never sealed again.
            entry.bound = true;
            self.changes.push(Change::Bound(entry.draft.id));
        }
        for index in (0..conversation.queue.len()).rev() {
            if self.conversations.get(&id).is_some_and(|c| c.queue[index].number.is_none()) {
                self.refuse_for_good(id, index, why);
            }
        }
    }

    const fn may_send(&self) -> bool {
        let restore = &self.server_restore;
        let is_held = restore.is_suspected || restore.is_held || restore.is_uncommitted;
        matches!(self.phase, Phase::Online { .. }) && matches!(self.recovery, Recovery::No) && !is_held
    }

    /// Starts to seal the next draft that is ready, and requests the handles and lists that others wait for.
    pub(super) fn seal_next(&mut self, now: Instant, out: &mut Vec<Output>) {
        if !self.may_send() {
            return;
        }
        let handles: Vec<Handle> = self.unresolved.keys().take(64).cloned().collect();
        for handle in handles {
            let purpose = Purpose::Resolve(handle.clone());
            if !self.is_asked(&purpose) {
                self.request(now, Request::Resolve(handle), purpose, out);
            }
        }
        let mut room = SEND_WINDOW.saturating_sub(self.conversations.values().map(|c| c.sent).sum());
        let ids: Vec<ConversationId> =
            self.conversations.iter().filter(|(_, c)| !c.queue.is_empty()).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(conversation) = self.conversations.get(&id) else {
                continue;
            };
            if conversation.wait != Wait::Nothing {
                continue;
            }
            // Sealed entries that are not sent yet take their part of the window first.
            let ready =
                conversation.queue.iter().skip(conversation.sent).take_while(|e| e.is_ready()).count();
            room = room.saturating_sub(ready);
            if room == 0 {
                return;
            }
            let index = conversation.sent + ready;
            let Some(entry) = conversation.queue.get(index) else {
                continue;
            };
            let waits = |after: MessageId| conversation.position(after).is_some_and(|at| at < index);
            if entry.draft.after.is_some_and(waits) {
                continue;
            }
            // The caller finds the place of a stored message in its store.
            let is_new = |change: &Change| matches!(change, Change::Stored(_, id, _) if entry.draft.after == Some(*id));
            if entry.draft.after.is_some() && self.changes.iter().any(is_new) {
                self.seals_after_commit = true;
                continue;
            }
            if entry.bound {
                self.refuse_for_good(id, index, "identity_changed");
                continue;
            }
            let (draft, lists, group) = if id.has_roster() {
                let Some(ready) = self.prepare_group_message(now, id, index, out) else {
                    continue;
                };
                (ready.draft, ready.lists, Some(Box::new(ready.seal)))
            } else {
                let entry = entry.clone();
                let Some(lists) = self.audience(now, &entry, out) else {
                    continue;
                };
                (entry.draft, lists, None)
            };
            let Some(conversation) = self.conversations.get(&id) else {
                continue;
            };
            let number = conversation.queue.get(index).and_then(|entry| entry.number);
            let number = number.unwrap_or(SendPosition {
                conversation: id,
                message_id: draft.id,
                client_seq: conversation.client_seq + 1,
                prev: conversation.prev,
                incarnation: self.incarnation,
                generation: 0,
            });
            let number = SendPosition { generation: self.generation + 1, ..number };
            let excluded = conversation.excluded.iter().filter(|(_, until)| now < **until);
            let excluded = excluded.map(|(device, _)| *device).collect();
            self.sealing = Some((id, draft.id, group.as_ref().and_then(|group| group.key)));
            out.push(Output::Seal { draft, number, lists, excluded, group });
            return;
        }
    }

    /// Returns the device lists of all users that an entry is for, or `None` while they are being fetched.
    fn audience(
        &mut self,
        now: Instant,
        entry: &Entry,
        out: &mut Vec<Output>,
    ) -> Option<Vec<SignedDeviceList>> {
        let users = match &entry.draft.to {
            Recipient::Device(device) => vec![device.user],
            to => {
                let peer = match to {
                    Recipient::Handle(handle) => *self.handles.get(handle)?,
                    Recipient::User(user) => *user,
                    Recipient::Device(device) => device.user,
                    Recipient::Group(_) => return None,
                };
                if peer == self.device.user { vec![peer] } else { vec![peer, self.device.user] }
            }
        };
        let wanted = users.len();
        let mut lists = Vec::with_capacity(users.len());
        for user in users {
            match self.lists.get(&user) {
                Some(list) if !self.stale.contains(&user) => lists.push(list.clone()),
                _ => self.fetch_list(now, user, out),
            }
        }
        (lists.len() == wanted).then_some(lists)
    }

    pub(super) fn sealed(
        &mut self,
        now: Instant,
        sealed: Result<Publish, SealFailure>,
        out: &mut Vec<Output>,
    ) {
        let Some((id, message, key)) = self.sealing.take() else {
            return;
        };
        let Some(conversation) = self.conversations.get_mut(&id) else {
            return;
        };
        let Some(index) = conversation.position(message) else {
            return;
        };
        match sealed {
            Ok(mut publish) => {
                conversation.claims = 0;
                let excluded = &publish.excluded;
                conversation.answered_claims.retain(|device, _| excluded.contains(device));
                let entry = &mut conversation.queue[index];
                publish.first = !entry.attempted || Mutant::FirstInEveryIncarnation.is_active();
                entry.key = key.filter(|_| !entry.is_uncertain);
                entry.number = Some(publish.number);
                entry.publish = Some(publish.clone());
                if publish.number.client_seq > conversation.client_seq {
                    conversation.client_seq = publish.number.client_seq;
                    conversation.prev = message;
                }
                self.ratchets_moved = true;
                self.changes.push(Change::Sealed(Box::new(publish)));
            }
            Err(SealFailure::NeedBundles(needed)) => {
                for (user, installations) in needed {
                    self.need_bundles(now, id, user, installations, out);
                }
            }
            Err(SealFailure::Never(why)) => self.refuse_for_good(id, index, why),
        }
    }

    /// Claims bundles of a user's devices for the next message of a conversation, or excludes the devices from it.
    fn need_bundles(
        &mut self,
        now: Instant,
        id: ConversationId,
        user: UserId,
        installations: Vec<InstallationId>,
        out: &mut Vec<Output>,
    ) {
        let may_exclude = self.may_exclude(now, id, user, &installations);
        let is_claimed = self.requests.values().any(
            |(purpose, ..)| matches!(purpose, Purpose::Claim(of, owner, _) if (*of, *owner) == (id, user)),
        );
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        if may_exclude && conversation.are_unusable(&installations) {
            // Their bundles were claimed twice, and no session began: the other devices get the message now.
            let until = now.after(EXCLUDED_MS);
            for device in &installations {
                conversation.excluded.insert(*device, until);
                // The next time one claim decides.
                conversation.answered_claims.insert(*device, CLAIMS - 1);
            }
            return out.push(Output::Event(Ephemeral::Excluded(user, installations)));
        }
        conversation.wait = Wait::Bundles;
        if !is_claimed {
            conversation.claims += 1;
            let purpose = Purpose::Claim(id, user, installations.clone());
            self.request(now, Request::Claim(user, installations), purpose, out);
        }
    }

    /// Whether messages of a conversation may exclude these devices of a user: a device that can read them remains.
    pub(super) fn may_exclude(
        &self,
        now: Instant,
        id: ConversationId,
        user: UserId,
        devices: &[InstallationId],
    ) -> bool {
        let is_excluded = |device: InstallationId| {
            let known = self.conversations.get(&id).and_then(|known| known.excluded.get(&device));
            devices.contains(&device) || known.is_some_and(|until| now < *until)
        };
        let remains = || {
            let list = self.lists.get(&user);
            list.is_some_and(|list| list.list().addresses().any(|device| !is_excluded(device.installation)))
        };
        match id.kind() {
            Ok(ConversationKind::Mailbox) => false,
            // A member never blocks a group.
            Ok(ConversationKind::Group | ConversationKind::Channel) => true,
            _ => user == self.device.user || remains(),
        }
    }

    /// Sends all sealed entries that were not sent on this connection yet.
    pub(super) fn send_ready(&mut self, now: Instant, out: &mut Vec<Output>) {
        if !self.may_send() {
            return;
        }
        let new_ids = Mutant::NewIdOnRetry.is_active();
        let mut unanswered = self.unanswered_bytes();
        for conversation in self.conversations.values_mut() {
            if matches!(conversation.wait, Wait::Until(_)) {
                continue;
            }
            conversation.paced &= !conversation.queue.is_empty();
            while let Some(entry) = conversation.queue.get_mut(conversation.sent) {
                if conversation.paced && conversation.sent > 0 {
                    break;
                }
                let frame = match (&mut entry.publish, entry.number) {
                    (_, Some(number)) if entry.skip => ClientFrame::Skip(number),
                    (Some(publish), _) => {
                        if new_ids && entry.attempted {
                            publish.number.message_id = MessageId::from_bytes(self.rng.bytes());
                            entry.draft.id = publish.number.message_id;
                        }
                        let frame = ClientFrame::Publish(publish.clone());
                        publish.first = false;
                        frame
                    }
                    _ => break,
                };
                entry.attempted = true;
                unanswered += entry.size();
                (entry.sent_at, entry.retry_at) = (now, now.after(retry_ms(unanswered)));
                conversation.sent += 1;
                out.push(Output::Send(frame));
            }
        }
    }

    pub(super) fn retry_publishes(&mut self, now: Instant, out: &mut Vec<Output>) {
        for conversation in self.conversations.values_mut() {
            match conversation.wait {
                Wait::Until(at) if now >= at => conversation.wait = Wait::Nothing,
                Wait::Nothing | Wait::Bundles if conversation.sent > 0 => {
                    let late = conversation.queue.front().is_some_and(|entry| now >= entry.retry_at);
                    if late {
                        conversation.sent = 0;
                    }
                }
                _ => {}
            }
        }
        self.send_ready(now, out);
    }

    pub(super) fn stored(&mut self, now: Instant, mut stored: Stored) {
        if self.epoch != Some(stored.store_epoch) {
            return;
        }
        let by_number = Mutant::AckMatchedByNumber.is_active();
        let mailbox = stored.conversation.kind() == Ok(ConversationKind::Mailbox);
        let numbered = |c: &Conversation| {
            c.queue.iter().any(|e| e.number.is_some_and(|n| n.client_seq == stored.client_seq))
        };
        if by_number && let Some((id, _)) = self.conversations.iter().find(|(_, c)| numbered(c)) {
            stored.conversation = *id;
        }
        let Some(conversation) = self.conversations.get_mut(&stored.conversation) else {
            return;
        };
        let index = conversation.queue.iter().position(|entry| {
            entry.number.is_some_and(|number| {
                number.client_seq == stored.client_seq
                    && (by_number || number.incarnation == stored.incarnation)
                    && (by_number || entry.draft.id == stored.message_id)
            })
        });
        if let Some(index) = index
            && let Some(entry) = conversation.remove(index)
        {
            let id = entry.draft.id;
            self.changes.push(if entry.skip {
                Change::Skipped(id)
            } else {
                Change::Stored(stored.conversation, id, stored.seq)
            });
            conversation.last_own = conversation.last_own.max(stored.seq);
            (conversation.went_back, conversation.doubted) = (None, None);
            conversation.mismatches = 0;
            self.group_message_stored(now, stored.conversation, &entry, stored.seq);
        }
        let Some(conversation) = self.conversations.get(&stored.conversation) else { return };
        let is_next = stored.seq == conversation.cursor + 1 && conversation.checked.is_none();
        if !mailbox && is_next && !self.server_restore.is_held {
            self.advance_cursor(stored.conversation, stored.seq);
        }
        self.reset_attempts();
    }

    pub(super) fn refused(
        &mut self,
        now: Instant,
        id: ConversationId,
        message: MessageId,
        client_seq: ClientSeq,
        refusal: Refusal,
        out: &mut Vec<Output>,
    ) {
        let Some(conversation) = self.conversations.get_mut(&id) else {
            return;
        };
        let index = conversation.position(message).filter(|index| {
            conversation.queue[*index].number.is_some_and(|number| number.client_seq == client_seq)
        });
        let Some(index) = index else { return };
        match refusal {
            Refusal::Retry(wait) | Refusal::Throttled(wait) => {
                if matches!(refusal, Refusal::Throttled(_)) && !conversation.paced {
                    conversation.paced = true;
                    out.push(Output::Event(Ephemeral::Throttled(wait)));
                }
                let jitter = self.rng.below(u64::from(wait) / 2 + 1);
                conversation.wait = Wait::Until(now.after(u64::from(wait).max(50) + jitter));
                conversation.sent = 0;
            }
            Refusal::Expected(next) => self.go_back(now, id, next, out),
            Refusal::Conflict | Refusal::Superseded => self.begin_recovery(now, out),
            Refusal::StaleRoster(version) => self.roster_is_stale(now, id, index, version),
            Refusal::Mismatch(users) => {
                let is_group = id.has_roster();
                for entry in conversation.queue.iter_mut().skip(index) {
                    entry.publish = None;
                    // The answer may be one to an earlier ciphertext.
                    entry.is_uncertain |= is_group;
                }
                conversation.go_back(index);
                if is_group {
                    self.set_sender_key(id, None);
                }
                self.count_mismatch(now, id);
                for user in users {
                    self.stale.insert(user);
                    self.fetch_list(now, user, out);
                }
            }
            refusal if refusal.is_final() => {
                self.refuse_for_good(id, index, refusal.name());
                if id.has_roster() {
                    // A message that carries keys for others is made again: not in a loop.
                    self.count_mismatch(now, id);
                }
                if id.has_roster() && refusal == Refusal::Denied {
                    // This device may be no member any more.
                    self.roster_is_behind(id);
                }
            }
            _ => {
                conversation.wait = Wait::Until(now.after(RETRY_MS));
                conversation.sent = 0;
            }
        }
    }

    /// Counts a message that the server refused because it was sealed for other devices. It backs off instead of looping
    /// if that happens again and again.
    pub(super) fn count_mismatch(&mut self, now: Instant, id: ConversationId) {
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        conversation.mismatches += 1;
        if conversation.mismatches > PATIENT {
            let doublings = (conversation.mismatches - PATIENT).min(6);
            conversation.wait = Wait::Until(now.after(500 << doublings));
        }
    }

    fn go_back(&mut self, now: Instant, id: ConversationId, next: ClientSeq, out: &mut Vec<Output>) {
        let Some(conversation) = self.conversations.get_mut(&id) else {
            return;
        };
        let recent = |(to, at): (ClientSeq, Instant)| to >= next && now < at.after(GO_BACK_MS);
        if conversation.went_back.is_some_and(recent) {
            return;
        }
        let index = conversation.queue.iter().position(|e| e.number.is_some_and(|n| n.client_seq == next));
        match index {
            Some(index) => {
                (conversation.went_back, conversation.doubted) = (Some((next, now)), None);
                conversation.go_back(index);
                self.send_ready(now, out);
            }
            // The server expects a number that was stored before. A late answer can say the same. Only if the
            // server keeps expecting it was the server, or this device, rolled back.
            None => {
                conversation.went_back = Some((next, now));
                let since = *conversation.doubted.get_or_insert(now);
                if now >= since.after(DOUBT_MS) {
                    self.begin_recovery(now, out);
                } else {
                    conversation.go_back(0);
                    self.send_ready(now, out);
                }
            }
        }
    }

    /// Refuses an entry permanently. If it has a number, a skip takes its place, so that the next one can
    /// follow.
    pub(super) fn refuse_for_good(&mut self, id: ConversationId, index: usize, why: &'static str) {
        let Some(conversation) = self.conversations.get_mut(&id) else {
            return;
        };
        let Some(entry) = conversation.queue.get(index) else {
            return;
        };
        if entry.skip {
            return;
        }
        if id.has_roster() {
            self.release_numbers(id, index);
        }
        let Some(conversation) = self.conversations.get_mut(&id) else { return };
        let Some(entry) = conversation.queue.get_mut(index) else { return };
        self.changes.push(Change::Refused(entry.draft.id, why));
        if entry.number.is_some() {
            entry.skip = true;
            entry.publish = None;
            conversation.go_back(index);
        } else {
            conversation.remove(index);
        }
    }
}
