//! Sender keys of a simulated device: they count messages instead of encrypting.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use super::accounts::sign;
use super::device::Device;
use super::suite::SimBox;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{DeviceBox, InboxRow, Message, Publish, SendPosition};
use crate::model::group::{GroupChange, GroupPart};
use crate::model::id::{ConversationId, InstallationId, MessageId, SenderKeyId, UserId};
use crate::model::message_options::MessageOptions;
use crate::model::view::View;
use crate::replica::{Draft, GroupSeal, SealFailure, Unreadable};

/// The sender keys of a device.
#[derive(Clone, Debug, Default)]
pub(super) struct SimSenderKeys {
    /// Own keys, each with the last number that it encrypted.
    own: BTreeMap<SenderKeyId, u64>,
    /// Keys of other devices: the number after which they open, and the numbers seen.
    others: BTreeMap<(ConversationId, InstallationId, SenderKeyId), (u64, BTreeSet<u64>)>,
}

impl SimSenderKeys {
    /// Drops the own keys: another copy of the store may have used them.
    pub(super) fn forget_own(&mut self) {
        self.own.clear();
    }

    /// Returns whether this device could decrypt a message.
    pub(super) fn could_open(&self, shared: &SimShared) -> bool {
        let key = self.others.get(&(shared.conversation, shared.from, shared.key));
        key.is_some_and(|(after, _)| *after < shared.number)
    }

    fn open(&mut self, shared: &SimShared) -> Result<(), Unreadable> {
        let key = (shared.conversation, shared.from, shared.key);
        let (after, seen) = self.others.get_mut(&key).ok_or(Unreadable::NoSession)?;
        if shared.number <= *after || !seen.insert(shared.number) {
            return Err(Unreadable::Undecryptable);
        }
        Ok(())
    }
}

/// The ciphertext that all members share: the key and the number that open it, and its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SimShared {
    pub key: SenderKeyId,
    pub number: u64,
    pub from: InstallationId,
    pub conversation: ConversationId,
    pub id: MessageId,
    pub roster_version: u64,
    pub view: Option<View>,
}

impl SimShared {
    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(160);
        bytes.put_slice(self.key.as_bytes());
        bytes.put_u64(self.number);
        bytes.put_slice(self.from.as_bytes());
        bytes.put_slice(self.conversation.as_bytes());
        bytes.put_slice(self.id.as_bytes());
        bytes.put_u64(self.roster_version);
        SimBox::encode_view(self.view, &mut bytes);
        bytes.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Self {
            key: SenderKeyId::parse(bytes.get(..16)?).ok()?,
            number: number(16)?,
            from: InstallationId::parse(bytes.get(24..40)?).ok()?,
            conversation: ConversationId::parse(bytes.get(40..57)?).ok()?,
            id: MessageId::parse(bytes.get(57..73)?).ok()?,
            roster_version: number(73)?,
            view: SimBox::decode_view(bytes.get(81..)?)?,
        })
    }

    /// Returns the ciphertext of a post. Every device has the key of a channel in this world: the laws say which may show posts.
    fn of_channel(
        from: InstallationId,
        conversation: ConversationId,
        id: MessageId,
        roster_version: u64,
        view: Option<View>,
    ) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
        let mut key = *id.as_bytes();
        key[0] ^= 1;
        let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Self { key: SenderKeyId::from_bytes(key), number, from, conversation, id, roster_version, view }
    }

    fn is_of(&self, row: &InboxRow, message: &Message, part: &GroupPart) -> bool {
        self.from == message.sender.installation
            && self.conversation == row.conversation
            && self.id == message.id
            && self.roster_version == part.roster_version
    }
}

impl Device {
    pub(super) fn seal_for_group(
        &mut self,
        draft: &Draft,
        number: SendPosition,
        lists: &[SignedDeviceList],
        excluded: &[InstallationId],
        group: &GroupSeal,
    ) -> Result<Publish, SealFailure> {
        let own = self.address();
        let mut needed: BTreeMap<UserId, Vec<InstallationId>> = BTreeMap::new();
        let (mut with_session, mut without) = (Vec::new(), Vec::new());
        for device in &group.lacking {
            let owner = lists.iter().map(|list| list.list());
            let owner =
                owner.into_iter().find(|list| list.addresses().any(|one| one.installation == *device));
            match owner {
                Some(_) if self.suite.has_session(*device) => with_session.push(*device),
                Some(list) if !excluded.contains(device) => {
                    needed.entry(list.user).or_default().push(*device)
                }
                _ => without.push(*device),
            }
        }
        if !needed.is_empty() {
            return Err(SealFailure::NeedBundles(needed.into_iter().collect()));
        }
        let view = self.store.view(number.conversation);
        let last = group.key.map(|key| self.suite.sender_keys.own.get(&key).copied().unwrap_or(0));
        let mut boxes = Vec::new();
        for to in with_session {
            let distribution = group.key.zip(last);
            if let Some(sealed) = self.seal_box(to, number.conversation, draft.id, view, distribution) {
                boxes.push(DeviceBox { installation: to, data: sealed.encode() });
            }
        }
        let shared = match group.key.zip(last).filter(|_| !draft.content.is_empty()) {
            Some((key, last)) => {
                self.suite.sender_keys.own.insert(key, last + 1);
                SimShared {
                    key,
                    number: last + 1,
                    from: own.installation,
                    conversation: number.conversation,
                    id: draft.id,
                    roster_version: group.roster.version,
                    view,
                }
                .encode()
            }
            None => Bytes::new(),
        };
        let shared = match number.conversation.is_channel() && !draft.content.is_empty() {
            true => SimShared::of_channel(
                own.installation,
                number.conversation,
                draft.id,
                group.roster.version,
                view,
            )
            .encode(),
            false => shared,
        };
        let digest = group.roster.digest;
        let change = group.action.as_ref().and_then(|action| {
            let encoded = action.encode();
            let signed = GroupChange::transcript(number.conversation, draft.id, &encoded, &digest);
            GroupChange::new(encoded, sign(own, &signed)).ok()
        });
        Ok(Publish {
            number,
            first: false,
            audience: group.audience.clone(),
            body: draft.content.clone(),
            boxes,
            excluded: without,
            sent_at: draft.sent_at,
            options: MessageOptions::default(),
            group: Some(Box::new(GroupPart {
                roster_version: group.roster.version,
                digest,
                shared,
                control: Bytes::new(),
                change,
                lists: Vec::new(),
            })),
        })
    }

    /// Opens a message of a group. A message without content opens even if its box does not: a later message then lacks
    /// the key.
    pub(super) fn open_in_group(
        &mut self,
        row: &InboxRow,
        message: &Message,
        part: &GroupPart,
        sealed: &[u8],
    ) -> (Result<Bytes, Unreadable>, Option<View>) {
        let mut failed = None;
        if let Some(one) = SimBox::decode(sealed) {
            match self.open_box(&one, row) {
                Ok(()) => {
                    if let Some((key, after)) = one.distribution {
                        let place = (row.conversation, one.from, key);
                        self.suite.sender_keys.others.entry(place).or_insert((after, BTreeSet::new()));
                    }
                }
                Err(why) => failed = Some(why),
            }
        }
        if part.shared.is_empty() {
            return (Ok(Bytes::new()), None);
        }
        let Some(shared) = SimShared::decode(&part.shared) else {
            return (Err(Unreadable::Malformed), None);
        };
        if !shared.is_of(row, message, part) {
            return (Err(Unreadable::Misplaced), None);
        }
        if row.conversation.is_channel() {
            return (Ok(message.body.clone()), shared.view);
        }
        match self.suite.sender_keys.open(&shared) {
            Ok(()) => (Ok(message.body.clone()), shared.view),
            Err(why) => (Err(failed.unwrap_or(why)), None),
        }
    }
}
