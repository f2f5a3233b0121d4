use std::collections::{BTreeMap, VecDeque};

use super::draft::Draft;
use super::group::Group;
use super::integrity::Chain;
use super::send::CLAIMS;
use super::snapshot::{ConversationSnapshot, OutboxEntrySnapshot};
use crate::model::envelope::{Publish, SendPosition};
use crate::model::group::GroupPart;
use crate::model::id::{ClientSeq, InstallationId, MessageId, SenderKeyId, Seq};
use crate::model::time::Instant;

/// The state of a conversation on its device.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// The device received all rows up to this seq.
    pub cursor: Seq,
    /// The last client seq used in this incarnation.
    pub client_seq: ClientSeq,
    /// The message id with that client seq.
    pub prev: MessageId,
    /// The outbox of this conversation: numbered entries first, in the order of their numbers.
    pub queue: VecDeque<Entry>,
    /// Number of entries at the front of `queue` that were sent on this connection.
    pub sent: usize,
    pub wait: Wait,
    pub went_back: Option<(ClientSeq, Instant)>,
    pub doubted: Option<Instant>,
    pub missing: Option<Missing>,
    /// The server sends rows at or below the cursor again, and those up to this seq were compared with the store.
    pub checked: Option<Seq>,
    /// Bundle claims since the last message was sealed.
    pub claims: u32,
    /// Answered claims of each device since the last message was sealed: none of them led to a session.
    pub answered_claims: BTreeMap<InstallationId, u32>,
    /// Devices with which no session can begin, each with the time until which messages exclude it.
    pub excluded: BTreeMap<InstallationId, Instant>,
    /// The server throttles it: one message at a time until the queue is empty.
    pub paced: bool,
    /// `Mismatch` refusals (boxes did not match the device lists) since the last message was stored.
    pub mismatches: u32,
    pub last_own: Seq,
    pub delivered: Seq,
    /// The other user read up to this seq.
    pub peer_read: Seq,
    /// The own user read up to this seq.
    pub read: Seq,
    /// Seqs received without a number: each excuses one missing number of a sender.
    pub excused: u64,
    /// The last message of each sending device.
    pub chains: BTreeMap<InstallationId, Chain>,
    /// Only in groups.
    pub group: Option<Box<Group>>,
}

/// A missing seq: a later row arrived without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Missing {
    pub seq: Seq,
    pub since: Instant,
    /// Since then the server has reported that it sent all waiting rows.
    pub caught_up: bool,
}

/// The condition that a conversation's outbox waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Wait {
    #[default]
    Nothing,
    Until(Instant),
    /// Bundles of devices without a session.
    Bundles,
}

/// A message of the outbox.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub draft: Draft,
    pub number: Option<SendPosition>,
    pub publish: Option<Publish>,
    pub skip: bool,
    /// Its id may have been sent before.
    pub attempted: bool,
    /// Sent as sealed or not at all: it was sealed for an account key that its user no longer has.
    pub bound: bool,
    /// The server may have stored it with an earlier ciphertext. A refusal says that it has not.
    pub is_uncertain: bool,
    /// The sender key in its boxes, if it is stored with this ciphertext or not at all.
    pub key: Option<SenderKeyId>,
    /// When it was last sent.
    pub sent_at: Instant,
    /// When it is sent again without an answer.
    pub retry_at: Instant,
}

impl Entry {
    pub(super) fn from_draft(draft: Draft) -> Self {
        Self {
            draft,
            number: None,
            publish: None,
            skip: false,
            attempted: false,
            bound: false,
            is_uncertain: false,
            key: None,
            sent_at: Instant::default(),
            retry_at: Instant::default(),
        }
    }

    pub(super) fn from_saved(snapshot: OutboxEntrySnapshot) -> Self {
        let number = snapshot.publish.as_ref().map(|publish| publish.number);
        Self {
            number,
            publish: snapshot.publish,
            skip: snapshot.skip,
            attempted: snapshot.attempted || number.is_some(),
            bound: snapshot.bound,
            is_uncertain: snapshot.attempted,
            ..Self::from_draft(snapshot.draft)
        }
    }

    /// Returns the approximate size of its frame, in bytes.
    pub(super) fn size(&self) -> usize {
        self.publish.as_ref().map_or(128, Publish::size)
    }

    /// Returns the part of a group's message that all members receive.
    pub(super) fn group(&self) -> Option<&GroupPart> {
        self.publish.as_ref().and_then(|publish| publish.group.as_deref())
    }

    /// Returns the version of the roster that a group's message was sealed for: the one before its own change.
    pub(super) fn sealed_for(&self) -> Option<u64> {
        let publish = self.publish.as_ref()?;
        let part = publish.group.as_ref()?;
        let changes = part.change.is_some() || !publish.audience.is_empty();
        Some(part.roster_version.saturating_sub(u64::from(changes)))
    }

    /// Whether this message without content will name the newest device lists. Another message may be refused, and one that
    /// a closed incarnation sent may be stored as it was.
    pub(super) fn will_name_lists(&self) -> bool {
        let is_empty = self.draft.content.is_empty() && self.draft.action.is_none();
        is_empty && self.publish.is_none() && !self.is_uncertain
    }

    /// Whether the entry can be sent: it is sealed or a skip.
    pub(super) fn is_ready(&self) -> bool {
        self.skip || self.publish.is_some()
    }

    /// Notes that the server may have stored this message with another ciphertext.
    pub(super) fn doubt(&mut self) {
        (self.is_uncertain, self.key) = (true, None);
    }

    /// Drops number and ciphertext: they belong to a closed incarnation, which may have sent the message.
    pub(super) fn unseal(&mut self) {
        (self.attempted, self.is_uncertain) = (true, true);
        self.number = None;
        self.publish = None;
    }
}

impl Conversation {
    pub(super) fn from_saved(snapshot: &ConversationSnapshot) -> Self {
        Self {
            cursor: snapshot.cursor,
            client_seq: snapshot.client_seq,
            prev: snapshot.prev,
            last_own: snapshot.last_own,
            delivered: snapshot.delivered,
            peer_read: snapshot.peer_read,
            read: snapshot.read,
            excused: snapshot.excused,
            chains: snapshot.chains.iter().copied().collect(),
            group: snapshot.id.has_roster().then(|| Box::new(Group::from_saved(snapshot))),
            ..Self::default()
        }
    }

    /// Whether the bundles of these devices were claimed often enough, and no session began.
    pub(super) fn are_unusable(&self, devices: &[InstallationId]) -> bool {
        devices.iter().all(|device| self.answered_claims.get(device).is_some_and(|n| *n >= CLAIMS))
    }

    pub(super) fn position(&self, id: MessageId) -> Option<usize> {
        self.queue.iter().position(|entry| entry.draft.id == id)
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<Entry> {
        if index < self.sent {
            self.sent -= 1;
        }
        self.queue.remove(index)
    }

    /// Marks the entries from `index` on as unsent, so that they are sent again.
    pub(super) fn go_back(&mut self, index: usize) {
        self.sent = self.sent.min(index);
    }

    pub(super) fn begin_anew(&mut self) {
        self.client_seq = 0;
        self.prev = MessageId::NIL;
        self.sent = 0;
        (self.went_back, self.doubted, self.missing) = (None, None, None);
        self.wait = Wait::Nothing;
        if let Some(group) = &mut self.group {
            group.key = None;
        }
        self.queue.retain(|entry| !entry.skip);
        self.queue.iter_mut().for_each(Entry::unseal);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.wait {
            Wait::Until(at) => Some(at),
            _ if self.sent > 0 => self.queue.front().map(|entry| entry.retry_at),
            _ => None,
        }
    }
}
