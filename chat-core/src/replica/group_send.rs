//! Messages to a group: which roster they are for, and which devices need the sender key.

use std::collections::BTreeSet;

use super::change::Change;
use super::conversation::Entry;
use super::draft::Draft;
use super::group::GroupSeal;
use super::output::Output;
use super::{Purpose, Replica};
use crate::model::client_frame::Request;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{Audience, Publish, Refusal};
use crate::model::group::{GroupAction, GroupChange};
use crate::model::id::{ConversationId, InstallationId, Seq, UserId};
use crate::model::roster::Roster;
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// Maximum boxes with the sender key in one message: a first box of a session has about 2 KiB. More go ahead, in messages
/// without content.
pub(super) const MAX_KEY_BOXES: usize = 100;
/// Maximum later device lists that one message puts into the roster.
const NEWER_LISTS: usize = 16;
/// Maximum device lists in one request.
const LISTS_AT_ONCE: usize = 32;

/// A message of a group that is ready to be sealed.
pub(super) struct GroupDraft {
    pub draft: Draft,
    pub lists: Vec<SignedDeviceList>,
    pub seal: GroupSeal,
}

impl Replica {
    /// Prepares the entry at `index` of a group's queue, or a message that must go ahead of it. Returns `None` while it waits,
    /// or if it is refused.
    pub(super) fn prepare_group_message(
        &mut self,
        now: Instant,
        id: ConversationId,
        index: usize,
        out: &mut Vec<Output>,
    ) -> Option<GroupDraft> {
        let entry = self.conversations.get(&id)?.queue.get(index)?.clone();
        let own = self.device;
        let action = entry.draft.action.clone();
        if !self.has_roster(now, id, index, action.as_ref(), out) {
            return None;
        }
        let roster = self.group(id).roster.clone();
        let members = roster.members.iter().map(|member| member.user);
        let added = action.iter().flat_map(|action| action.added()).copied();
        let users: BTreeSet<UserId> = members.chain(added).chain([own.user]).collect();
        let has_listed = self.has_listed_devices(now, &roster, out);
        if !self.has_lists(now, &users, out) || !has_listed {
            return None;
        }
        let is_unknown = |user: &UserId| !self.lists.contains_key(user);
        if action.iter().flat_map(|action| action.added()).any(is_unknown) && !entry.attempted {
            self.refuse_for_good(id, index, "unknown_user");
            return None;
        }
        let (action, next, named) = match self.next_roster(id, &entry, &roster) {
            Ok(ready) => ready,
            Err(refusal) => {
                self.refuse_for_good(id, index, refusal.name());
                return None;
            }
        };
        let has_content = !entry.draft.content.is_empty();
        // The key of a channel is in its link.
        let brings_key = !id.is_channel()
            && next.has_device(own.user, own.installation)
            && (has_content || self.has_content_after(id, index));
        let number = entry.number.map_or(self.conversations.get(&id)?.client_seq + 1, |n| n.client_seq);
        let (key, mut lacking) = if brings_key {
            let key = self.sender_key(now, id, next.key_epoch, number);
            let mut has_key = key.holders.clone();
            has_key.extend(self.boxed_before(id, index, key.id));
            has_key.insert(own.installation);
            let lacking = next.installations().filter(|device| !has_key.contains(device));
            (Some(key.id), lacking.collect::<Vec<_>>())
        } else {
            (None, Vec::new())
        };
        if entry.number.is_none() {
            let changes = action.is_some() || next.version != roster.version;
            let reachable = lacking.iter().filter(|device| !self.is_excluded(now, id, **device)).count();
            if !has_content && !changes && reachable == 0 {
                // Another message has done its work.
                self.changes.push(Change::Skipped(entry.draft.id));
                self.conversations.get_mut(&id)?.remove(index);
                return None;
            }
            // Nothing goes ahead of the founding.
            if has_content && reachable > self.max_key_boxes && roster.version > 0 {
                let ahead = self.empty_message(now, id);
                self.conversations.get_mut(&id)?.queue.insert(index, ahead);
                return self.prepare_group_message(now, id, index, out);
            }
        }
        self.limit_boxes(now, id, has_content, &mut lacking);
        let needs = |list: &&SignedDeviceList| {
            let user = list.list().user;
            let lacks = list.list().addresses().any(|device| lacking.contains(&device.installation));
            user == own.user || named.iter().any(|named| named.user == user) || lacks
        };
        let lists = users.iter().filter_map(|user| self.lists.get(user)).filter(needs).cloned().collect();
        let seal = GroupSeal { roster: next, action, audience: named, key, lacking };
        Some(GroupDraft { draft: entry.draft, lists, seal })
    }

    /// Whether a message can be sealed for the roster that this device has. If not, the message waits, or is refused.
    fn has_roster(
        &mut self,
        now: Instant,
        id: ConversationId,
        index: usize,
        action: Option<&GroupAction>,
        out: &mut Vec<Output>,
    ) -> bool {
        let own = self.device;
        let version = self.group(id).roster.version;
        // A change of the roster decides what the messages after it are sealed for.
        let queue = self.conversations.get(&id).map(|known| &known.queue);
        let mut parts = queue.into_iter().flat_map(|queue| queue.iter().take(index)).filter_map(Entry::group);
        if parts.any(|part| part.roster_version > version) {
            return false;
        }
        let group = self.group(id);
        let founds = matches!(action, Some(GroupAction::Create { .. }));
        if group.is_behind || version == 0 && !founds && !group.is_hidden {
            self.request_roster(now, id, out);
            return false;
        }
        if version == 0 && !founds {
            self.refuse_for_good(id, index, Refusal::NotFound.name());
            return false;
        }
        let may_be_outside = match action {
            Some(GroupAction::Join(_)) => true,
            Some(GroupAction::Leave) => group.roster.pending(own.user).is_some(),
            _ => false,
        };
        if may_be_outside && group.roster.member(own.user).is_none() {
            if group.is_hidden {
                // This user is not invited any more.
                self.refuse_for_good(id, index, Refusal::NotFound.name());
                return false;
            }
            return true;
        }
        let has_device = group.roster.has_device(own.user, own.installation);
        if version > 0 && (group.roster.member(own.user).is_none() || has_device && group.is_hidden) {
            self.refuse_for_good(id, index, Refusal::Denied.name());
            return false;
        }
        // A message of another member brings this device into the roster.
        version == 0 || has_device
    }

    /// Whether this device has the device lists that a roster names, or the server hides them. Requests those that it has
    /// not.
    fn has_listed_devices(&mut self, now: Instant, roster: &Roster, out: &mut Vec<Output>) -> bool {
        let mut has_all = true;
        for member in &roster.members {
            let known = self.lists.get(&member.user).map(|list| list.list().version);
            let is_hidden =
                self.hidden.get(&member.user).is_some_and(|version| *version >= member.list_version);
            if known.is_some_and(|known| known < member.list_version) && !is_hidden {
                self.claimed_list(now, member.user, member.list_version, out);
                // A version that is much later is not believed.
                has_all &=
                    self.claimed.get(&member.user).is_none_or(|claimed| *claimed < member.list_version);
            }
        }
        has_all
    }

    /// Whether the lists of all these users are known, as far as the server has them. Requests those that are not.
    fn has_lists(&mut self, now: Instant, users: &BTreeSet<UserId>, out: &mut Vec<Output>) -> bool {
        let is_known = |user: &UserId| self.lists.contains_key(user) && !self.stale.contains(user);
        let is_listless = |user: &UserId| self.listless.get(user).is_some_and(|at| now < *at);
        let missing = users.iter().filter(|user| !is_known(user) && !is_listless(user));
        let missing: Vec<UserId> = missing.copied().collect();
        let open = self.requests.values().filter_map(|(purpose, ..)| match purpose {
            Purpose::Lists(users) => Some(users),
            _ => None,
        });
        let open: BTreeSet<UserId> = open.flatten().copied().collect();
        let new: Vec<UserId> = missing.iter().filter(|user| !open.contains(user)).copied().collect();
        for users in new.chunks(LISTS_AT_ONCE) {
            self.request(now, Request::Lists(users.to_vec()), Purpose::Lists(users.to_vec()), out);
        }
        missing.is_empty()
    }

    /// Returns the action of a message, the roster after it, and the device lists that it names.
    fn next_roster(
        &self,
        id: ConversationId,
        entry: &Entry,
        roster: &Roster,
    ) -> Result<(Option<GroupAction>, Roster, Vec<Audience>), Refusal> {
        let own = self.device.user;
        let newer = roster.members.iter().filter(|member| {
            self.lists.get(&member.user).is_some_and(|list| list.list().version > member.list_version)
        });
        let mut newer: Vec<UserId> = newer.map(|member| member.user).collect();
        if roster.member(own).is_none() {
            newer.clear();
        }
        // The own list first: only this user's devices surely know it.
        newer.sort_by_key(|user| *user != own);
        newer.truncate(NEWER_LISTS);
        let seq = self.cursor(id) + 1;
        let change = |action: Option<&GroupAction>| {
            let becomes_member = match action {
                Some(GroupAction::Create { .. }) => true,
                Some(GroupAction::Join(_)) => roster.member(own).is_none() && roster.joins_at_once(own),
                _ => false,
            };
            let added = action.iter().flat_map(|action| action.added()).copied();
            let joining = becomes_member.then_some(own);
            let named: BTreeSet<UserId> = newer.iter().copied().chain(added).chain(joining).collect();
            let lists = self.recipient_devices(named);
            let next = roster.change(id, own, action, &lists, seq)?;
            let named =
                lists.iter().map(|list| Audience { user: list.user, list_version: list.list_version });
            Ok((action.cloned(), next, named.collect()))
        };
        let action = entry.draft.action.as_ref();
        if action.is_none() && !entry.draft.content.is_empty() && !roster.may_send(own) {
            return Err(Refusal::Denied);
        }
        match change(action) {
            // It may be stored already: then the server answers the repeat of its id.
            Err(_) if entry.attempted && action.is_some() => change(None),
            changed => changed,
        }
    }

    fn has_content_after(&self, id: ConversationId, index: usize) -> bool {
        let queue = self.conversations.get(&id).map(|known| &known.queue);
        let mut later = queue.into_iter().flat_map(|queue| queue.iter().skip(index + 1));
        later.any(|entry| !entry.skip && !entry.draft.content.is_empty())
    }

    /// Returns the devices for which messages that are not answered yet have boxes with a sender key.
    fn boxed_before(
        &self,
        id: ConversationId,
        index: usize,
        key: crate::model::id::SenderKeyId,
    ) -> Vec<InstallationId> {
        let queue = self.conversations.get(&id).map(|known| &known.queue);
        let before = queue.into_iter().flat_map(|queue| queue.iter().take(index));
        let with_key =
            before.filter(|entry| entry.key == Some(key)).filter_map(|entry| entry.publish.as_ref());
        with_key.flat_map(|publish| publish.boxes.iter().map(|one| one.installation)).collect()
    }

    /// Whether messages exclude a device for now.
    fn is_excluded(&self, now: Instant, id: ConversationId, device: InstallationId) -> bool {
        let excluded = self.conversations.get(&id).and_then(|known| known.excluded.get(&device));
        excluded.is_some_and(|until| now < *until)
    }

    /// Keeps as many devices as one message may have boxes for. A message with content also keeps those that it excludes.
    fn limit_boxes(
        &self,
        now: Instant,
        id: ConversationId,
        has_content: bool,
        lacking: &mut Vec<InstallationId>,
    ) {
        let mut room = self.max_key_boxes;
        lacking.retain(|device| {
            let is_excluded = self.is_excluded(now, id, *device);
            let fits = if is_excluded { has_content } else { room > 0 };
            room = room.saturating_sub(usize::from(!is_excluded));
            fits
        });
    }

    /// Handles an own message of a group that is stored at a seq.
    pub(super) fn group_message_stored(&mut self, now: Instant, id: ConversationId, entry: &Entry, seq: Seq) {
        if !id.has_roster() {
            return;
        }
        let Some((publish, part)) = entry.publish.as_ref().zip(entry.group()) else {
            return self.roster_is_behind(id);
        };
        if let Some(mut key) = self.group(id).key.clone().filter(|key| entry.key == Some(key.id))
            && !publish.boxes.is_empty()
        {
            key.holders.extend(publish.boxes.iter().map(|one| one.installation));
            self.set_sender_key(id, Some(key));
        }
        let version = self.group(id).roster.version;
        if part.roster_version <= version {
            return;
        }
        match self
            .own_change(id, publish, seq)
            .filter(|_| !entry.is_uncertain && part.roster_version == version + 1)
        {
            Some(next) if next.digest == part.digest => {
                self.adopt_roster(now, id, next);
                if let Some(action) = part.change.as_ref().map(GroupChange::action) {
                    let own = self.device;
                    self.changes.push(Change::GroupChanged(id, seq, own, entry.draft.id, action.clone()));
                }
            }
            // An earlier ciphertext may be stored, or a list changed since.
            _ => self.roster_is_behind(id),
        }
    }

    /// Returns the roster after an own message.
    fn own_change(&self, id: ConversationId, publish: &Publish, seq: Seq) -> Option<Roster> {
        let lists = self.recipient_devices(publish.audience.iter().map(|audience| audience.user));
        let is_same = |audience: &Audience| {
            lists.iter().any(|list| (list.user, list.list_version) == (audience.user, audience.list_version))
        };
        if !publish.audience.iter().all(is_same) {
            return None;
        }
        let part = publish.group.as_ref()?;
        let action = part.change.as_ref().map(GroupChange::action);
        let group = self.conversations.get(&id)?.group.as_ref()?;
        group.roster.change(id, self.device.user, action, &lists, seq).ok()
    }

    /// Handles a message that was sealed for another roster than the current one: it is sealed again.
    pub(super) fn roster_is_stale(&mut self, now: Instant, id: ConversationId, index: usize, version: u64) {
        let entry = self.conversations.get(&id).and_then(|known| known.queue.get(index));
        // The answer to an earlier ciphertext may come late.
        if entry.and_then(Entry::sealed_for).is_none_or(|sealed_for| version <= sealed_for) {
            return;
        }
        self.release_numbers(id, index);
        self.roster_is_behind(id);
        self.count_mismatch(now, id);
    }

    /// Takes back the numbers and ciphertexts of all entries from `index` on. The shard has refused the first of these
    /// numbers, so it is free, and a late copy of one of the ciphertexts is refused again. The server has
    /// seen the boxes, and a device that is in the roster no more may have the sender key of one: so that key encrypts no
    /// message any more.
    pub(super) fn release_numbers(&mut self, id: ConversationId, index: usize) {
        let Some(known) = self.conversations.get_mut(&id) else { return };
        let mut first = None;
        let (mut messages, mut had_boxes) = (Vec::new(), false);
        for entry in known.queue.iter_mut().skip(index) {
            let Some(number) = entry.number.take() else { continue };
            first.get_or_insert(number);
            messages.push(entry.draft.id);
            entry.attempted = true;
            had_boxes |= entry.publish.take().is_some_and(|publish| !publish.boxes.is_empty());
        }
        let Some(first) = first else { return };
        known.go_back(index);
        (known.client_seq, known.prev) = (first.client_seq - 1, first.prev);
        self.changes.push(Change::Unsealed(id, known.client_seq, known.prev, messages));
        if had_boxes && !Mutant::StaleKeyKept.is_active() {
            self.set_sender_key(id, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::envelope::{DeviceBox, SendPosition, Subject};
    use crate::model::group::GroupPart;
    use crate::model::id::{DeviceAddress, DeviceId, MessageId, SenderKeyId, StoreEpoch};
    use crate::model::message_options::MessageOptions;
    use crate::model::roster::{GroupPolicy, Member, RosterDigest};
    use crate::model::server_frame::{Challenge, ServerFrame, Welcome};
    use crate::replica::{
        ConversationSnapshot, Input, OutboxEntrySnapshot, Recipient, ReplicaSnapshot, SenderKey,
    };

    const ID: ConversationId = ConversationId::from_bytes([0x14; 17]);

    fn device(n: u8) -> DeviceAddress {
        let (user, installation) = (UserId::from_bytes([n; 16]), InstallationId::from_bytes([n; 16]));
        DeviceAddress { user, device: DeviceId::PRIMARY, installation }
    }

    /// A device with a sealed message for version 4 of a roster. The message brings its sender key to another device.
    fn sealed() -> Replica {
        let member = |n| Member::new(device(n).user, 1, vec![device(n).installation]);
        let members = vec![member(1), member(2)];
        let roster = Roster { members, version: 4, policy: GroupPolicy::default(), ..Roster::default() };
        let id = MessageId::from_bytes([7; 16]);
        let number = SendPosition {
            conversation: ID,
            message_id: id,
            client_seq: 3,
            prev: MessageId::from_bytes([6; 16]),
            incarnation: 0,
            generation: 1,
        };
        let part = GroupPart {
            roster_version: 4,
            digest: RosterDigest::default(),
            shared: "shared".into(),
            control: bytes::Bytes::new(),
            change: None,
            lists: Vec::new(),
        };
        let publish = Publish {
            number,
            first: false,
            audience: Vec::new(),
            body: "body".into(),
            boxes: vec![DeviceBox { installation: device(2).installation, data: "key".into() }],
            excluded: Vec::new(),
            sent_at: 0,
            options: MessageOptions::default(),
            group: Some(Box::new(part)),
        };
        let key = SenderKey {
            id: SenderKeyId::from_bytes([8; 16]),
            key_epoch: 0,
            incarnation: 0,
            first: 1,
            made_ms: 0,
            holders: BTreeSet::new(),
        };
        let known = ConversationSnapshot {
            client_seq: 3,
            prev: id,
            roster,
            sender_key: Some(key),
            ..ConversationSnapshot::new(ID)
        };
        let entry = OutboxEntrySnapshot {
            draft: Draft::new(id, Recipient::Group(ID), "text".into()),
            publish: Some(publish),
            skip: false,
            attempted: false,
            bound: false,
        };
        let snapshot = ReplicaSnapshot {
            epoch: Some(StoreEpoch::from_bytes([1; 16])),
            conversations: vec![known],
            outbox: vec![entry],
            ..ReplicaSnapshot::new(device(1))
        };
        Replica::new(Instant::from_millis(0), snapshot, 1)
    }

    /// The server refuses the message, because the roster has this version. Returns the changes of the device.
    fn refused_at(version: u64) -> Vec<Change> {
        let mut replica = sealed();
        let mut out = Vec::new();
        let subject = Subject::Message(ID, MessageId::from_bytes([7; 16]), 3, 0);
        let welcome = Welcome { store_epoch: StoreEpoch::from_bytes([1; 16]), ..Welcome::example() };
        for input in [
            Input::Tick,
            Input::Connected,
            Input::Frame(ServerFrame::Challenge(Challenge::example())),
            Input::Frame(ServerFrame::Welcome(welcome)),
            Input::Frame(ServerFrame::Refused(subject, Refusal::StaleRoster(version))),
            Input::Flush,
        ] {
            replica.step(Instant::from_millis(0), input, &mut out);
        }
        let changes = out.into_iter().filter_map(|output| match output {
            Output::Commit(changes, _) => Some(changes.list),
            _ => None,
        });
        changes.flatten().collect()
    }

    #[test]
    fn refused_message_gives_back_its_number_and_its_sender_key() {
        let changes = refused_at(5);
        let (before, id) = (MessageId::from_bytes([6; 16]), MessageId::from_bytes([7; 16]));
        assert!(changes.contains(&Change::Unsealed(ID, 2, before, vec![id])), "{changes:?}");
        let drops_key = |changes: &[Change]| changes.contains(&Change::SenderKey(ID, None));
        assert!(drops_key(&changes), "a device that is no member any more may have the key");
        #[cfg(feature = "sim")]
        assert!(!drops_key(&Mutant::with(Some(Mutant::StaleKeyKept), || refused_at(5))), "mutant undetected");
    }

    #[test]
    fn late_refusal_of_an_earlier_ciphertext_changes_nothing() {
        let unseals = |changes: &[Change]| changes.iter().any(|one| matches!(one, Change::Unsealed(..)));
        assert!(!unseals(&refused_at(4)), "the message is for this version");
        assert!(!unseals(&refused_at(3)));
    }
}
