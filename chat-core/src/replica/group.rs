//! The groups of a device: the roster that it follows, and its sender key in each.

use std::collections::BTreeSet;

use super::change::Change;
use super::conversation::Entry;
use super::draft::{Draft, Recipient};
use super::group_receipts::GroupReceipts;
use super::integrity::Violation;
use super::output::Output;
use super::snapshot::ConversationSnapshot;
use super::{DAY_MS, Phase, Purpose, Recovery, Replica};
use crate::model::client_frame::Request;
use crate::model::envelope::Audience;
use crate::model::group::GroupAction;
use crate::model::id::{
    ClientSeq, ConversationId, DeviceId, Incarnation, InstallationId, MessageId, SenderKeyId, Seq, UserId,
};
use crate::model::roster::{RecipientDevices, Roster};
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// Messages after which a sender key is replaced.
const KEY_MESSAGES: u64 = 1000;
/// Milliseconds after which a sender key is replaced.
const KEY_AGE_MS: u64 = 7 * DAY_MS;

/// The key with which a device encrypts its messages in a group, once for all members.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct SenderKey {
    pub id: SenderKeyId,
    /// The key epoch of the roster that it was made for. A later one needs another key.
    pub key_epoch: u64,
    /// The incarnation of the device that made it. A later one needs another key.
    pub incarnation: Incarnation,
    /// The first number that it encrypted.
    pub first: ClientSeq,
    /// When it was made, in milliseconds of the server's clock.
    pub made_ms: u64,
    /// The devices that have it: a stored message had a box with it for them.
    pub holders: BTreeSet<InstallationId>,
}

/// The encryption of a message for the members of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct GroupSeal {
    /// The roster after the message: the message names its version and digest.
    pub roster: Roster,
    /// The change of the roster, to be signed.
    pub action: Option<GroupAction>,
    /// The users of which the message names a device list.
    pub audience: Vec<Audience>,
    /// The sender key; `None` if the message has no content and distributes no key.
    pub key: Option<SenderKeyId>,
    /// Devices that lack the sender key: each gets a box with it, or is excluded from the message.
    pub lacking: Vec<InstallationId>,
}

/// The state of a group on its device.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// The roster that this device has followed so far; version 0 if it is unknown.
    pub roster: Roster,
    /// The sender key of this device.
    pub key: Option<SenderKey>,
    /// The server has a later roster.
    pub is_behind: bool,
    /// The value of `rows_in` when the open request for the roster was first sent.
    pub asking: Option<u64>,
    /// The value of `rows_in` when the last answered request of this connection was sent.
    pub looked_up: Option<u64>,
    /// The server did not show the roster to this device: it is no member.
    pub is_hidden: bool,
    /// Answers that were older than a received row, one after the other.
    pub late_answers: u32,
    pub receipts: GroupReceipts,
}

impl Group {
    pub(super) fn from_saved(snapshot: &ConversationSnapshot) -> Self {
        let (roster, key) = (snapshot.roster.clone(), snapshot.sender_key.clone());
        Self { roster, key, is_behind: snapshot.roster_behind, ..Self::default() }
    }

    /// Drops all state of the connection.
    pub(super) fn connection_ended(&mut self) {
        (self.asking, self.looked_up, self.is_hidden, self.late_answers) = (None, None, false, 0);
    }
}

impl Replica {
    /// Returns the roster of a group as this device follows it.
    pub fn roster(&self, conversation: ConversationId) -> Option<&Roster> {
        let group = self.conversations.get(&conversation)?.group.as_ref()?;
        Some(&group.roster).filter(|roster| roster.version > 0)
    }

    /// Returns the roster of a group whose founding is still in the outbox, without the devices of its members.
    pub fn founding(&self, conversation: ConversationId) -> Option<Roster> {
        let queue = self.conversations.get(&conversation)?.queue.iter();
        let mut actions = queue.filter(|entry| !entry.skip).map(|entry| &entry.draft.action);
        let action = actions
            .find_map(|action| action.as_ref().filter(|one| matches!(one, GroupAction::Create { .. })))?;
        let own = self.device.user;
        let list = |user| RecipientDevices { user, list_version: 0, installations: Vec::new() };
        let lists: Vec<_> = action.added().iter().copied().chain([own]).map(list).collect();
        Roster::default().change(conversation, own, Some(action), &lists, 0).ok()
    }

    pub(super) fn group(&mut self, id: ConversationId) -> &mut Group {
        self.conversations.entry(id).or_default().group.get_or_insert_default()
    }

    /// Notes that the server has a later roster than this device.
    pub(super) fn roster_is_behind(&mut self, id: ConversationId) {
        self.set_behind(id, true);
        self.rosters_behind.insert(id);
    }

    fn set_behind(&mut self, id: ConversationId, is_behind: bool) {
        let group = self.group(id);
        if group.is_behind != is_behind {
            group.is_behind = is_behind;
            self.changes.push(Change::RosterBehind(id, is_behind));
        }
    }

    /// Requests the rosters that are known to be behind.
    pub(super) fn request_rosters(&mut self, now: Instant, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Online { .. }) && self.recovery == Recovery::No {
            for id in std::mem::take(&mut self.rosters_behind) {
                self.request_roster(now, id, out);
            }
        }
    }

    pub(super) fn request_roster(&mut self, now: Instant, id: ConversationId, out: &mut Vec<Output>) {
        let purpose = Purpose::Roster(id);
        if !self.is_asked(&purpose) {
            self.group(id).asking = Some(self.rows_in);
            let request = self.roster_request(id);
            self.request(now, request, purpose, out);
        }
    }

    /// Returns the group of a draft with which a user that is no member joins it, or declines to.
    pub(super) fn acts_outside(&self, draft: &Draft) -> Option<ConversationId> {
        let Recipient::Group(id) = draft.to else { return None };
        let is_member = self.roster(id).is_some_and(|roster| roster.member(self.device.user).is_some());
        let acts = matches!(draft.action, Some(GroupAction::Join(_) | GroupAction::Leave));
        (acts && !is_member).then_some(id)
    }

    /// Returns the request for a roster. A user that joins with a link shows the proof.
    pub(super) fn roster_request(&self, id: ConversationId) -> Request {
        let queue = self.conversations.get(&id).into_iter().flat_map(|known| &known.queue);
        let proofs = queue.filter_map(|entry| match &entry.draft.action {
            Some(GroupAction::Join(proof)) => proof.clone(),
            _ => None,
        });
        Request::Roster(id, proofs.last())
    }

    /// Handles the server's roster of a group; `None` if it shows none to this device.
    pub(super) fn roster_answered(&mut self, now: Instant, id: ConversationId, roster: Option<Roster>) {
        self.set_behind(id, false);
        let group = self.group(id);
        group.looked_up = group.asking.take().or(Some(0));
        group.is_hidden = roster.is_none();
        let known = (group.roster.version, group.roster.digest);
        let Some(roster) = roster else { return };
        let is_other = roster.version == known.0 && roster.digest != known.1;
        if roster.check(id).is_err() || is_other {
            return self.roster_differs(id, roster.changed_at);
        }
        if roster.version > known.0 {
            self.adopt_roster(now, id, roster);
        }
    }

    pub(super) fn roster_differs(&mut self, id: ConversationId, seq: Seq) {
        self.report_violation(id, None, Violation::RosterDiffers { seq });
    }

    /// Replaces the roster by a later one.
    pub(super) fn adopt_roster(&mut self, now: Instant, id: ConversationId, roster: Roster) {
        self.changes.push(Change::Roster(id, Box::new(roster.clone())));
        let group = self.group(id);
        (group.roster, group.late_answers, group.is_hidden) = (roster, 0, false);
        self.update_roster(now, id);
    }

    /// Forgets all rosters: the server may be older than they are.
    pub(super) fn forget_rosters(&mut self) {
        for (id, known) in &mut self.conversations {
            if let Some(group) = known.group.as_mut().filter(|group| group.roster.version > 0) {
                **group = Group { key: group.key.take(), ..Group::default() };
                self.changes.push(Change::Roster(*id, Box::default()));
            }
        }
    }

    /// Queues a message without content in each group that has an older device list of this user. Only the primary device
    /// does it, since it makes the lists.
    pub(super) fn update_rosters(&mut self, now: Instant) {
        let ids = self.conversations.keys().copied();
        let groups: Vec<_> = ids.filter(|id| id.has_roster()).collect();
        groups.into_iter().for_each(|id| self.update_roster(now, id));
    }

    fn update_roster(&mut self, now: Instant, id: ConversationId) {
        let own = self.device;
        if own.device != DeviceId::PRIMARY || Mutant::ListUpdateForgotten.is_active() {
            return;
        }
        let listed = self.lists.get(&own.user).map_or(0, |list| list.list().version);
        let member = self.roster(id).and_then(|roster| roster.member(own.user));
        let is_older = member.is_some_and(|member| member.list_version < listed);
        let known = self.conversations.get(&id);
        let waits = known.is_some_and(|known| known.queue.iter().any(Entry::will_name_lists));
        if is_older && !waits {
            let entry = self.empty_message(now, id);
            self.enqueue(entry);
        }
    }

    /// Returns a message without content for a group. It is not shown: it carries device lists, or boxes with the sender key.
    pub(super) fn empty_message(&mut self, now: Instant, id: ConversationId) -> Entry {
        let sent_at = self.server_ms(now);
        let message = MessageId::new(sent_at, self.rng.bytes());
        let draft = Draft { sent_at, ..Draft::new(message, Recipient::Group(id), bytes::Bytes::new()) };
        self.changes.push(Change::Queued(draft.clone()));
        Entry::from_draft(draft)
    }

    /// Returns the sender key for a message with this number, and makes it if there is none that may encrypt it.
    pub(super) fn sender_key(
        &mut self,
        now: Instant,
        id: ConversationId,
        key_epoch: u64,
        number: ClientSeq,
    ) -> SenderKey {
        let (incarnation, made_ms) = (self.incarnation, self.server_ms(now));
        let fits = |key: &SenderKey| {
            (key.key_epoch == key_epoch || Mutant::SenderKeyKept.is_active())
                && key.incarnation == incarnation
                && number.saturating_sub(key.first) < KEY_MESSAGES
                && made_ms < key.made_ms.saturating_add(KEY_AGE_MS)
        };
        if let Some(key) = self.group(id).key.clone().filter(fits) {
            return key;
        }
        let key = SenderKey {
            id: SenderKeyId::from_bytes(self.rng.bytes()),
            key_epoch,
            incarnation,
            first: number,
            made_ms,
            holders: BTreeSet::new(),
        };
        self.set_sender_key(id, Some(key.clone()));
        key
    }

    pub(super) fn set_sender_key(&mut self, id: ConversationId, key: Option<SenderKey>) {
        self.changes.push(Change::SenderKey(id, key.clone().map(Box::new)));
        self.group(id).key = key;
    }

    /// Handles a device that could not read a message: if it lacks the sender key, it gets it with the next message.
    pub(super) fn lacks_sender_key(&mut self, id: ConversationId, device: InstallationId) {
        let group = self.conversations.get(&id).and_then(|known| known.group.as_ref());
        let key = group.and_then(|group| group.key.clone());
        if let Some(mut key) = key.filter(|key| key.holders.contains(&device)) {
            key.holders.remove(&device);
            self.set_sender_key(id, Some(key));
        }
    }

    /// Returns the devices of the lists that this device has.
    pub(super) fn recipient_devices(&self, users: impl IntoIterator<Item = UserId>) -> Vec<RecipientDevices> {
        let lists = users.into_iter().filter_map(|user| self.lists.get(&user));
        let devices = lists.map(|list| RecipientDevices {
            user: list.list().user,
            list_version: list.list().version,
            installations: list.list().addresses().map(|device| device.installation).collect(),
        });
        devices.collect()
    }
}
