//! The store of a simulated device, in memory. It applies changes, and records the messages that the device has shown.

use std::collections::{BTreeMap, BTreeSet};

use super::suite::SimSuite;
use crate::model::envelope::{EmptyReason, Publish, RowContent};
use crate::model::id::{ConversationId, ConversationKind, DeviceAddress, InstallationId, MessageId, Seq};
use crate::model::roster::Roster;
use crate::model::view::{RowHash, View};
use crate::replica::{
    AtSeq, Change, ConversationSnapshot, OutboxEntrySnapshot, ReplicaSnapshot, UNKNOWN_START, Unreadable,
    Violation,
};

/// The content that a device showed at a seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Message(InstallationId, MessageId),
    Unreadable(InstallationId, MessageId, Unreadable),
    Nothing,
    /// The sender could not encrypt the message for this device.
    Excluded,
    /// The user of this device has blocked the sender.
    Withheld,
}

/// The durable state of a device.
#[derive(Clone, Debug)]
pub(super) struct LocalStore {
    pub saved: ReplicaSnapshot,
    pub conversations: BTreeMap<ConversationId, ConversationSnapshot>,
    /// The shown content, in display order.
    pub shown: Vec<(ConversationId, Seq, Shown)>,
    pub ids: BTreeSet<(ConversationId, InstallationId, MessageId)>,
    /// Messages of the set that the server lost when it was restored.
    pub archived: BTreeSet<(InstallationId, MessageId)>,
    /// Own messages by place.
    pub own_places: BTreeMap<(ConversationId, Seq), MessageId>,
    /// The hash of each message, by its place.
    pub hashes: BTreeMap<(ConversationId, Seq), RowHash>,
    /// Reports that rows contradict their sender or each other.
    pub violations: Vec<(ConversationId, Violation)>,
    /// Stored own messages, with their conversations.
    pub sent: BTreeMap<MessageId, ConversationId>,
    /// The roster versions of stored own messages in groups.
    pub sent_for: BTreeMap<MessageId, u64>,
    /// The rosters that this device followed.
    pub rosters: BTreeMap<(ConversationId, u64), Roster>,
    /// Changes of groups that the device reported, by place.
    pub group_changes: Vec<(ConversationId, Seq)>,
    pub suite: SimSuite,
    /// Number of times that the store was restored to an earlier state.
    pub restored: u32,
}

impl LocalStore {
    /// Voids all numbers and ciphertexts.
    fn unseal(&mut self) {
        for conversation in self.conversations.values_mut() {
            (conversation.client_seq, conversation.prev) = (0, MessageId::NIL);
            conversation.sender_key = None;
        }
        self.saved.outbox.retain(|entry| !entry.skip);
        for entry in &mut self.saved.outbox {
            (entry.publish, entry.attempted) = (None, true);
        }
    }

    /// Returns whether the device has this message at a seq.
    pub(super) fn at_seq(
        &self,
        id: ConversationId,
        seq: Seq,
        sender: InstallationId,
        message: MessageId,
    ) -> AtSeq {
        let own = self.own_places.get(&(id, seq)).map(|known| (self.saved.device.installation, *known));
        let at = self.shown.iter().rev().find(|(known, at, _)| (*known, *at) == (id, seq));
        let shown = at.and_then(|(_, _, shown)| match shown {
            Shown::Message(from, known) | Shown::Unreadable(from, known, _) => Some((*from, *known)),
            Shown::Nothing | Shown::Excluded | Shown::Withheld => None,
        });
        match own.or(shown) {
            Some(known) if known == (sender, message) => AtSeq::Same,
            Some(_) => AtSeq::Another,
            None => AtSeq::Nothing,
        }
    }

    /// Returns the seq and the sending device of a message.
    pub(super) fn place_of(&self, id: ConversationId, message: MessageId) -> Option<(Seq, InstallationId)> {
        let own = self.own_places.iter().find(|((at, _), known)| (*at, **known) == (id, message));
        let own = own.map(|((_, seq), _)| (*seq, self.saved.device.installation));
        own.or_else(|| {
            self.shown.iter().find_map(|(at, seq, shown)| match shown {
                Shown::Message(sender, known) if (*at, *known) == (id, message) => Some((*seq, *sender)),
                _ => None,
            })
        })
    }

    fn conversation(&mut self, id: ConversationId) -> &mut ConversationSnapshot {
        self.conversations.entry(id).or_insert_with(|| ConversationSnapshot::new(id))
    }

    /// Returns the last message of a conversation that the device saw.
    pub(super) fn view(&self, id: ConversationId) -> Option<View> {
        let last = self.hashes.range((id, 0)..=(id, Seq::MAX)).next_back();
        last.zip(self.saved.epoch).map(|(((_, seq), hash), epoch)| View { epoch, seq: *seq, hash: *hash })
    }

    pub(super) fn cursor(&self, id: ConversationId) -> Seq {
        self.conversations.get(&id).map_or(0, |c| c.cursor)
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Queued(draft) => self.saved.outbox.push(OutboxEntrySnapshot {
                draft,
                publish: None,
                skip: false,
                attempted: false,
                bound: false,
            }),
            Change::Sealed(publish) => {
                let conversation = self.conversation(publish.number.conversation);
                if publish.number.client_seq > conversation.client_seq {
                    conversation.client_seq = publish.number.client_seq;
                    conversation.prev = publish.number.message_id;
                }
                let id = publish.number.message_id;
                if let Some(entry) = self.saved.outbox.iter_mut().find(|entry| entry.draft.id == id) {
                    // Sealed again: an earlier ciphertext may be the one that is stored.
                    entry.attempted |= entry.publish.is_some();
                    // A restored copy has sent it too: a refusal must come from the shard, which knows.
                    let first = publish.first && publish.group.is_none();
                    entry.publish = Some(Publish { first, ..*publish });
                }
            }
            Change::Unsealed(id, client_seq, prev, messages) => {
                let known = self.conversation(id);
                (known.client_seq, known.prev) = (client_seq, prev);
                let unsealed = |entry: &&mut OutboxEntrySnapshot| messages.contains(&entry.draft.id);
                for entry in self.saved.outbox.iter_mut().filter(unsealed) {
                    (entry.publish, entry.attempted) = (None, true);
                }
            }
            Change::Recovered(sender, conversation, id, content) => {
                let placeholder = |(place, _, shown): &&mut (ConversationId, Seq, Shown)| {
                    *place == conversation
                        && matches!(shown, Shown::Unreadable(from, known, _)
                            if (*from, *known) == (sender.installation, id))
                };
                if let (Some((.., shown)), true) =
                    (self.shown.iter_mut().find(placeholder), content[..] == id.as_bytes()[..])
                {
                    *shown = Shown::Message(sender.installation, id);
                    self.saved.asked_once.retain(|wanted| *wanted != (sender, conversation, id));
                }
            }
            Change::Stored(conversation, id, seq) => {
                if conversation.kind() != Ok(ConversationKind::Mailbox) {
                    self.sent.insert(id, conversation);
                    self.own_places.insert((conversation, seq), id);
                }
                let own = self.saved.device.installation;
                let entry = self.saved.outbox.iter().find(|entry| entry.draft.id == id);
                let part = entry.and_then(|entry| entry.publish.as_ref()).and_then(|one| one.group.as_ref());
                self.sent_for.extend(part.map(|part| (id, part.roster_version)));
                let sealed = entry.filter(|entry| !entry.attempted);
                if let Some(publish) = sealed.and_then(|entry| entry.publish.as_ref()) {
                    // A message that was sealed again may be stored as it was sealed before.
                    let hash = RowHash::of_parts(conversation, seq, own, id, &publish.body);
                    self.hashes.insert((conversation, seq), hash);
                }
                self.saved.outbox.retain(|entry| entry.draft.id != id);
                self.ids.insert((conversation, own, id));
                let known = self.conversation(conversation);
                known.last_own = known.last_own.max(seq);
            }
            Change::Refused(id, _) => {
                let numbered = |entry: &OutboxEntrySnapshot| entry.draft.id != id || entry.publish.is_some();
                self.saved.outbox.retain(numbered);
                for entry in self.saved.outbox.iter_mut().filter(|entry| entry.draft.id == id) {
                    entry.skip = true;
                }
            }
            Change::Bound(id) => {
                for entry in self.saved.outbox.iter_mut().filter(|entry| entry.draft.id == id) {
                    entry.bound = true;
                }
            }
            Change::Skipped(id) => self.saved.outbox.retain(|entry| entry.draft.id != id),
            Change::Received(row, opened) => {
                let RowContent::Message { message, .. } = &row.content else {
                    return;
                };
                let key = (message.sender.installation, message.id);
                self.ids.insert((row.conversation, key.0, key.1));
                let hash = RowHash::of(row.conversation, row.seq, message);
                self.hashes.insert((row.conversation, row.seq), hash);
                if let (Err(why), false) = (&opened.content, opened.known)
                    && why.is_of_session()
                {
                    self.saved.unasked.push((message.sender, row.conversation, message.id));
                }
                let shown = match opened.content {
                    Ok(_) => Shown::Message(key.0, key.1),
                    Err(why) => Shown::Unreadable(key.0, key.1, why),
                };
                self.shown.push((row.conversation, row.seq, shown));
            }
            Change::Cursor(conversation, seq) => self.conversation(conversation).cursor = seq,
            Change::Gap(conversation, from, _, EmptyReason::Excluded) => {
                self.shown.push((conversation, from, Shown::Excluded));
            }
            Change::Gap(conversation, from, _, EmptyReason::Withheld) => {
                self.shown.push((conversation, from, Shown::Withheld));
            }
            Change::Gap(conversation, from, to, _) => {
                self.shown.extend((from..=to).map(|seq| (conversation, seq, Shown::Nothing)));
            }
            Change::Unknown(conversation, seq, _) => {
                self.shown.push((conversation, seq, Shown::Nothing));
            }
            Change::Duplicate(conversation, seq) => self.shown.push((conversation, seq, Shown::Nothing)),
            Change::Returned(conversation, seq, sender, id) => {
                self.archived.remove(&(sender, id));
                if sender != self.saved.device.installation {
                    self.shown.push((conversation, seq, Shown::Message(sender, id)));
                }
            }
            Change::WentBack(id, seq, _) => {
                self.hashes.retain(|(conversation, at), _| *conversation != id || *at <= seq);
                self.own_places.retain(|(conversation, at), _| *conversation != id || *at <= seq);
                let (kept, lost): (Vec<_>, Vec<_>) = std::mem::take(&mut self.shown)
                    .into_iter()
                    .partition(|(known, at, _)| *known != id || *at <= seq);
                self.shown = kept;
                self.archived.extend(lost.into_iter().filter_map(|(_, _, shown)| match shown {
                    Shown::Message(sender, id) | Shown::Unreadable(sender, id, _) => Some((sender, id)),
                    Shown::Nothing | Shown::Excluded | Shown::Withheld => None,
                }));
                let known = self.conversation(id);
                let marks = [&mut known.delivered, &mut known.peer_read, &mut known.read];
                for mark in [&mut known.cursor, &mut known.last_own].into_iter().chain(marks) {
                    *mark = seq.min(*mark);
                }
                known.chains.clear();
                known.excused = UNKNOWN_START;
            }
            Change::EpochCompared => self.saved.epoch_changed = None,
            Change::Handle(handle, user) => self.saved.handles.push((handle, user)),
            Change::List(list, _) => {
                self.saved.lists.retain(|known| known.list().user != list.list().user);
                self.saved.lists.push(list);
            }
            Change::Receipt(conversation, _, delivered, read) => {
                let known = self.conversation(conversation);
                known.delivered = known.delivered.max(delivered);
                known.peer_read = known.peer_read.max(read);
            }
            Change::Read(conversation, seq) => self.conversation(conversation).read = seq,
            Change::Epoch(epoch) => self.saved.epoch = Some(epoch),
            Change::NewEpoch(epoch) => {
                self.saved.epoch = Some(epoch);
                let had_sent = self.conversations.values().any(|known| known.client_seq > 0);
                self.saved.epoch_changed = Some(had_sent || self.saved.epoch_changed == Some(true));
                self.unseal();
            }
            Change::Nonce(nonce) => self.saved.nonce = Some(nonce),
            Change::Reincarnated(incarnation) => {
                self.saved.incarnation = incarnation;
                (self.saved.nonce, self.saved.reincarnation_asked) = (None, false);
                self.unseal();
            }
            Change::AskedAgain(sender, _, id) => {
                let is_it = |(known, _, message): &(DeviceAddress, ConversationId, MessageId)| {
                    (known.installation, *message) == (sender, id)
                };
                self.saved.asked_once.retain(|wanted| !is_it(wanted));
                let asked = self.saved.unasked.extract_if(.., |wanted| is_it(wanted));
                self.saved.asked_once.extend(asked);
            }
            Change::Prekeys(at) => self.saved.prekeys_at = at,
            Change::Asked => self.saved.reincarnation_asked = true,
            Change::Sessions | Change::PrekeysMade => {}
            Change::Chain(conversation, sender, chain) => {
                let known = self.conversation(conversation);
                known.chains.retain(|(known, _)| *known != sender);
                known.chains.push((sender, chain));
            }
            Change::Excused(conversation, excused) => self.conversation(conversation).excused = excused,
            Change::Roster(id, roster) => {
                let version = roster.version;
                if version == 0 {
                    self.rosters.retain(|(known, _), _| *known != id);
                }
                self.conversation(id).roster = Roster::clone(&roster);
                if version > 0 {
                    self.rosters.insert((id, version), *roster);
                }
            }
            Change::RosterBehind(id, is_behind) => self.conversation(id).roster_behind = is_behind,
            Change::SenderKey(id, key) => self.conversation(id).sender_key = key.map(|key| *key),
            Change::GroupChanged(id, seq, ..) => self.group_changes.push((id, seq)),
            Change::Violated(conversation, _, violation) => self.violations.push((conversation, violation)),
        }
    }
}
