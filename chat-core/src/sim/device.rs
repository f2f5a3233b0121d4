//! A simulated device: the real [`Replica`] over a store in memory and a suite that counts keys instead of
//! encrypting.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::{BufMut, Bytes, BytesMut};

use super::accounts::sign;
use super::group_suite::SimSenderKeys;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{Audience, DeviceBox, EmptyReason, InboxRow, Publish, RowContent, SendPosition};
use crate::model::id::{
    ConversationId, ConversationKind, DeviceAddress, InstallationId, MessageId, SenderKeyId, Seq, StoreEpoch,
};
use crate::model::prekeys::{Bundle, OneTimePrekey, PrekeyUpload};
use crate::model::rng::Rng;
use crate::model::roster::Roster;
use crate::model::signing::prekeys_transcript;
use crate::model::time::Instant;
use crate::model::view::{RowHash, View};
use crate::replica::{
    AtSeq, Change, Changes, ConversationSnapshot, Draft, Opened, OutboxEntrySnapshot, Recipient, Replica,
    ReplicaSnapshot, SealFailure, UNKNOWN_START, Unreadable, Violation,
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
    conversations: BTreeMap<ConversationId, ConversationSnapshot>,
    /// The shown content, in display order.
    pub shown: Vec<(ConversationId, Seq, Shown)>,
    ids: BTreeSet<(ConversationId, InstallationId, MessageId)>,
    /// Messages of the set that the server lost when it was restored.
    archived: BTreeSet<(InstallationId, MessageId)>,
    /// Own messages by place.
    own_places: BTreeMap<(ConversationId, Seq), MessageId>,
    /// The hash of each message, by its place.
    hashes: BTreeMap<(ConversationId, Seq), RowHash>,
    /// Reports that rows contradict their sender or each other.
    pub violations: Vec<(ConversationId, Violation)>,
    /// Stored own messages, with their conversations.
    sent: BTreeMap<MessageId, ConversationId>,
    /// The roster versions of stored own messages in groups.
    sent_for: BTreeMap<MessageId, u64>,
    /// The rosters that this device followed.
    pub rosters: BTreeMap<(ConversationId, u64), Roster>,
    /// Changes of groups that the device reported, by place.
    pub group_changes: Vec<(ConversationId, Seq)>,
    pub suite: SimSuite,
    /// Number of times that the store was restored to an earlier state.
    pub restored: u32,
}

/// Sessions, counters and prekeys, as the Signal protocol uses them.
#[derive(Clone, Debug, Default)]
pub(super) struct SimSuite {
    /// The session in use, by peer.
    current: HashMap<InstallationId, u64>,
    /// By sending session: the prekey that it began with (0: the peer began it), and the last counter.
    sending: HashMap<u64, (u64, u64)>,
    /// By receiving session: the counters already seen.
    receiving: HashMap<u64, BTreeSet<u64>>,
    prekeys: BTreeSet<u64>,
    last_prekey: u64,
    /// The reusable prekey of this incarnation.
    last_resort: u64,
    pub sender_keys: SimSenderKeys,
}

impl SimSuite {
    pub(super) fn has_session(&self, peer: InstallationId) -> bool {
        self.current.contains_key(&peer)
    }
}

const LAST_RESORT: u64 = 1 << 63;
/// The direction bit of a session: the device that began the session sends without it.
const BACK: u64 = 1;

/// One device box: the key that opens it, and its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimBox {
    pub session: u64,
    pub prekey: u64,
    pub counter: u64,
    pub from: InstallationId,
    pub to: InstallationId,
    pub conversation: ConversationId,
    pub id: MessageId,
    pub view: Option<View>,
    /// A sender key of the sending device, and the number after which it opens messages.
    pub distribution: Option<(SenderKeyId, u64)>,
}

impl SimBox {
    pub(super) fn encode_view(view: Option<View>, bytes: &mut BytesMut) {
        if let Some(view) = view {
            bytes.put_slice(view.epoch.as_bytes());
            bytes.put_u64(view.seq);
            bytes.put_slice(view.hash.as_bytes());
        }
    }

    pub(super) fn decode_view(bytes: &[u8]) -> Option<Option<View>> {
        if bytes.is_empty() {
            return Some(None);
        }
        let seq = u64::from_be_bytes(bytes.get(16..24)?.try_into().ok()?);
        let hash = RowHash::parse(bytes.get(24..)?).ok()?;
        Some(Some(View { epoch: StoreEpoch::parse(bytes.get(..16)?).ok()?, seq, hash }))
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(96);
        bytes.put_u64(self.session);
        bytes.put_u64(self.prekey);
        bytes.put_u64(self.counter);
        bytes.put_slice(self.from.as_bytes());
        bytes.put_slice(self.to.as_bytes());
        bytes.put_slice(self.conversation.as_bytes());
        bytes.put_slice(self.id.as_bytes());
        if let Some((key, after)) = self.distribution {
            bytes.put_slice(key.as_bytes());
            bytes.put_u64(after);
        }
        Self::encode_view(self.view, &mut bytes);
        bytes.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let number =
            |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        // A view has 56 bytes, a distribution 24.
        let rest = bytes.get(89..)?;
        let distributes = matches!(rest.len(), 24 | 80);
        let view = rest.get(if distributes { 24 } else { 0 }..)?;
        Some(Self {
            session: number(0)?,
            prekey: number(8)?,
            counter: number(16)?,
            from: InstallationId::parse(bytes.get(24..40)?).ok()?,
            to: InstallationId::parse(bytes.get(40..56)?).ok()?,
            conversation: ConversationId::parse(bytes.get(56..73)?).ok()?,
            id: MessageId::parse(bytes.get(73..89)?).ok()?,
            view: Self::decode_view(view)?,
            distribution: match distributes {
                true => Some((SenderKeyId::parse(rest.get(..16)?).ok()?, number(105)?)),
                false => None,
            },
        })
    }
}

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
        if conversation.kind() == Ok(ConversationKind::Group) {
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
            options: crate::model::message_options::MessageOptions::default(),
            group: None,
        })
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

    fn apply(&mut self, change: Change) {
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
                self.saved
                    .unasked
                    .retain(|(known, _, message)| (known.installation, *message) != (sender, id));
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
