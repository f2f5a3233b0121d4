//! A simulated device: the real [`Replica`] over a store in memory and a suite that counts keys instead of
//! encrypting.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::accounts::sign;
use super::content::{SimContent, SimFacts};
use super::local_store::LocalStore;
use super::suite::{BACK, LAST_RESORT, SimBox, SimSuite};
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{Audience, DeviceBox, InboxRow, Publish, RowContent, SendPosition};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, MessageId, SenderKeyId, Seq};
use crate::model::message_options::{Deletion, MessageOptions};
use crate::model::prekeys::{Bundle, OneTimePrekey, PrekeyUpload};
use crate::model::rng::Rng;
use crate::model::signing::prekeys_transcript;
use crate::model::time::Instant;
use crate::model::view::View;
use crate::replica::{
    Change, Changes, Draft, Opened, Recipient, Replica, ReplicaSnapshot, SealFailure, Unreadable,
};

/// A device: its durable state, and its process while it runs.
#[derive(Debug)]
pub(super) struct Device {
    pub store: LocalStore,
    pub replica: Option<Replica>,
    /// The suite with the changes of the open transaction.
    pub suite: SimSuite,
    pub connection: Option<u64>,
    pub snapshot: Option<LocalStore>,
    /// Increases with each start and crash, so that old timers are ignored.
    pub boot: u64,
    /// A row was opened since the last commit.
    pub has_opened: bool,
}

impl Device {
    pub(super) fn new(address: DeviceAddress) -> Self {
        let store = LocalStore {
            saved: ReplicaSnapshot::new(address),
            conversations: BTreeMap::new(),
            shown: Vec::new(),
            ids: BTreeSet::new(),
            archived: BTreeSet::new(),
            own_places: BTreeMap::new(),
            hashes: BTreeMap::new(),
            violations: Vec::new(),
            sent: BTreeMap::new(),
            sent_for: BTreeMap::new(),
            rosters: BTreeMap::new(),
            group_changes: Vec::new(),
            suite: SimSuite { last_resort: LAST_RESORT, ..SimSuite::default() },
            restored: 0,
        };
        Self {
            suite: store.suite.clone(),
            store,
            replica: None,
            connection: None,
            snapshot: None,
            boot: 0,
            has_opened: false,
        }
    }

    pub(super) fn address(&self) -> DeviceAddress {
        self.store.saved.device
    }

    pub(super) fn start(&mut self, now: Instant, seed: u64) {
        self.boot += 1;
        self.suite = self.store.suite.clone();
        self.has_opened = false;
        let saved = ReplicaSnapshot {
            // Every second start, as after a row that ended the process.
            isolate_rows: self.boot % 4 == 3,
            conversations: self.store.conversations.values().cloned().collect(),
            ..self.store.saved.clone()
        };
        let mut replica = Replica::new(now, saved, seed);
        // So few that messages with keys go ahead of others.
        replica.set_max_key_boxes(2);
        self.replica = Some(replica);
    }

    pub(super) fn crash(&mut self) {
        self.replica = None;
        self.connection = None;
        self.boot += 1;
    }

    pub(super) fn restore(&mut self) -> bool {
        let Some(snapshot) = self.snapshot.take() else {
            return false;
        };
        self.crash();
        let restored = self.store.restored + 1;
        self.store = snapshot;
        self.store.restored = restored;
        true
    }

    // ---- the suite -----------------------------------------------------------------------------------

    pub(super) fn open(&mut self, row: &InboxRow, list: Option<&SignedDeviceList>) -> Opened {
        let RowContent::Message { message, sealed } = &row.content else {
            return Opened::unreadable(Unreadable::Malformed);
        };
        let knows_prev =
            self.store.ids.contains(&(row.conversation, message.sender.installation, message.prev));
        let opened = message
            .group
            .as_ref()
            .filter(|_| list.is_some())
            .map(|part| self.open_in_group(row, message, part, sealed));
        let view = match &opened {
            Some((_, view)) => *view,
            None => SimBox::decode(sealed).and_then(|sealed| sealed.view),
        };
        let seen = view.and_then(|view| self.store.hashes.get(&(row.conversation, view.seq)).copied());
        let known = self.store.ids.contains(&(row.conversation, message.sender.installation, message.id));
        let content = match (list, opened, SimBox::decode(sealed)) {
            (None, ..) => Err(Unreadable::UnknownDevice),
            (_, Some((content, _)), _) => content,
            (.., None) => Err(Unreadable::Malformed),
            (.., Some(sealed)) => self.open_box(&sealed, row).map(|()| message.body.clone()),
        };
        // A message that the server lost has no seq.
        let repeats = known && !self.store.archived.contains(&(message.sender.installation, message.id));
        Opened { content, body_key: None, known, repeats, list_version: 0, view, seen, knows_prev }
    }

    pub(super) fn open_box(&mut self, sealed: &SimBox, row: &InboxRow) -> Result<(), Unreadable> {
        let own = self.address().installation;
        let suite = &mut self.suite;
        if !suite.receiving.contains_key(&sealed.session) {
            let reusable = sealed.prekey == suite.last_resort;
            if !reusable && !suite.prekeys.remove(&sealed.prekey) {
                return Err(Unreadable::NoSession);
            }
            suite.sending.insert(sealed.session ^ BACK, (0, 0));
        }
        if !suite.receiving.entry(sealed.session).or_default().insert(sealed.counter) {
            return Err(Unreadable::Undecryptable);
        }
        // The device answers in the session that it last received in, as libsignal promotes it.
        suite.current.insert(sealed.from, sealed.session ^ BACK);
        let RowContent::Message { message, .. } = &row.content else {
            return Err(Unreadable::Malformed);
        };
        let placed = sealed.to == own
            && sealed.from == message.sender.installation
            && sealed.conversation == row.conversation
            && sealed.id == message.id;
        if placed { Ok(()) } else { Err(Unreadable::Misplaced) }
    }

    /// Returns the content of an own message, for a device that requests it again.
    pub(super) fn recall(
        &self,
        asker: DeviceAddress,
        conversation: ConversationId,
        id: MessageId,
    ) -> Option<Bytes> {
        // Other devices may have the message before this device learns that it is stored.
        let sealed = self.store.saved.outbox.iter().filter_map(|entry| entry.publish.as_ref());
        let waits = sealed.into_iter().find(|publish| publish.number.message_id == id);
        let own = self.store.sent.get(&id).copied().or(waits.map(|publish| publish.number.conversation))?;
        if conversation.has_roster() {
            let part = waits.and_then(|publish| publish.group.as_ref());
            let version = self.store.sent_for.get(&id).copied().or(part.map(|part| part.roster_version))?;
            let known = self.store.rosters.range((conversation, 0)..=(conversation, version)).next_back();
            let later =
                || self.store.rosters.range((conversation, version)..=(conversation, u64::MAX)).next();
            let known = known.or_else(later);
            // Of a change that waits, the roster is not known yet.
            let is_named = waits.is_some_and(|one| one.audience.iter().any(|named| named.user == asker.user));
            let has = known.is_some_and(|(_, roster)| roster.has_device(asker.user, asker.installation));
            if !has && !is_named {
                return None;
            }
        }
        (own == conversation).then(|| Bytes::copy_from_slice(id.as_bytes()))
    }

    pub(super) fn end_session(&mut self, peer: InstallationId) {
        self.suite.current.remove(&peer);
    }

    pub(super) fn seal(
        &mut self,
        draft: &Draft,
        number: SendPosition,
        lists: &[SignedDeviceList],
        excluded: &[InstallationId],
    ) -> Result<Publish, SealFailure> {
        let own = self.address().installation;
        let wanted = |device: &InstallationId| match &draft.to {
            Recipient::Device(only) => *device == only.installation,
            _ => *device != own,
        };
        for list in lists {
            let mut listed = list.list().addresses().map(|device| device.installation).filter(wanted);
            let none_reads = !listed.any(|device| self.suite.current.contains_key(&device));
            let missing: Vec<_> = list
                .list()
                .addresses()
                .map(|device| device.installation)
                .filter(|device| wanted(device) && !self.suite.current.contains_key(device))
                .filter(|device| {
                    !excluded.contains(device) || list.list().user != self.address().user && none_reads
                })
                .collect();
            if !missing.is_empty() {
                return Err(SealFailure::NeedBundles(vec![(list.list().user, missing)]));
            }
        }
        let mut boxes = Vec::new();
        let view = self.store.view(number.conversation);
        let devices = lists.iter().flat_map(|list| list.list().addresses()).map(|device| device.installation);
        let mut without_session = Vec::new();
        for to in devices.filter(wanted) {
            match self.seal_box(to, number.conversation, draft.id, view, None) {
                Some(sealed) => boxes.push(DeviceBox { installation: to, data: sealed.encode() }),
                None => without_session.push(to),
            }
        }
        let audience = lists.iter().map(|l| Audience { user: l.list().user, list_version: l.list().version });
        Ok(Publish {
            number,
            first: false,
            audience: audience.collect(),
            body: draft.content.clone(),
            boxes,
            excluded: without_session,
            sent_at: draft.sent_at,
            options: self.options(draft, number.conversation),
            group: None,
        })
    }

    fn options(&self, draft: &Draft, conversation: ConversationId) -> MessageOptions {
        if matches!(draft.to, Recipient::Device(_)) {
            return MessageOptions::default();
        }
        match SimContent::facts(&draft.content) {
            SimFacts::None => MessageOptions::default(),
            SimFacts::Lifetime(ms) => MessageOptions { expires_after_ms: ms, ..MessageOptions::default() },
            SimFacts::Deletes(message_id) => {
                // Without a place the deletion erases nothing on the server.
                let place = self.store.place_of(conversation, message_id);
                let deletion = place.map(|(seq, installation)| {
                    let unsigned = Deletion { seq, installation, message_id, signature: Bytes::new() };
                    let signature = sign(self.address(), &unsigned.transcript(conversation));
                    Box::new(Deletion { signature, ..unsigned })
                });
                MessageOptions { deletion, ..MessageOptions::default() }
            }
        }
    }

    /// Returns the next box of the session with a device; `None` if there is no session.
    pub(super) fn seal_box(
        &mut self,
        to: InstallationId,
        conversation: ConversationId,
        id: MessageId,
        view: Option<View>,
        distribution: Option<(SenderKeyId, u64)>,
    ) -> Option<SimBox> {
        let from = self.address().installation;
        let session = self.suite.current.get(&to).copied()?;
        let (prekey, counter) = self.suite.sending.get_mut(&session)?;
        *counter += 1;
        let (prekey, counter) = (*prekey, *counter);
        Some(SimBox { session, prekey, counter, from, to, conversation, id, view, distribution })
    }

    pub(super) fn start_sessions(&mut self, bundles: Vec<Bundle>, rng: &mut Rng) {
        for bundle in bundles {
            let raw = if bundle.one_time.is_empty() { &bundle.signed } else { &bundle.one_time };
            if let Ok(prekey) = raw.as_ref().try_into().map(u64::from_be_bytes) {
                let session = rng.next_u64() & !BACK;
                if let Entry::Vacant(free) = self.suite.current.entry(bundle.installation) {
                    free.insert(session);
                    self.suite.sending.insert(session, (prekey, 0));
                    self.suite.receiving.entry(session | BACK).or_default();
                }
            }
        }
    }

    /// Drops every session and prekey: another copy of the store may have used them.
    pub(super) fn forget(&mut self, incarnation: u32) {
        let mut sender_keys = std::mem::take(&mut self.suite.sender_keys);
        sender_keys.forget_own();
        self.suite = SimSuite {
            sender_keys,
            last_prekey: u64::from(incarnation) << 32,
            last_resort: LAST_RESORT | u64::from(incarnation),
            ..SimSuite::default()
        };
    }

    pub(super) fn make_prekeys(&mut self, replace: bool) -> PrekeyUpload {
        if replace {
            self.suite.prekeys.clear();
        }
        let first = self.suite.last_prekey + 1;
        self.suite.last_prekey += 20;
        let ids = first..=self.suite.last_prekey;
        self.suite.prekeys.extend(ids.clone());
        let signed = Bytes::copy_from_slice(&self.suite.last_resort.to_be_bytes());
        PrekeyUpload {
            signature: sign(self.address(), &prekeys_transcript(&signed)),
            signed,
            one_time: ids
                .map(|id| OneTimePrekey { id, data: Bytes::copy_from_slice(&id.to_be_bytes()) })
                .collect(),
            uploaded_through: self.suite.last_prekey,
            replace,
        }
    }

    // ---- the local store -----------------------------------------------------------------------------

    /// Makes changes durable. Returns the newly stored messages as (conversation, id, seq).
    pub(super) fn commit(&mut self, changes: Changes) -> Vec<(ConversationId, MessageId, Seq)> {
        let mut stored = Vec::new();
        self.store.saved.generation = changes.generation;
        for change in changes.list {
            if let Change::Stored(conversation, id, seq) = &change {
                stored.push((*conversation, *id, *seq));
            }
            self.store.apply(change);
        }
        self.store.suite = self.suite.clone();
        self.has_opened = false;
        stored
    }
}
