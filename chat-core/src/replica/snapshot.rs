//! The state of a [`Replica`](super::Replica) as the local store holds it.

use super::draft::Draft;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::Publish;
use crate::model::id::{
    ConversationId, DeviceAddress, Handle, Incarnation, MessageId, Seq, StoreEpoch, UserId,
};

/// What a local store gives a replica to go on from.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct ReplicaSnapshot {
    /// The device.
    pub device: DeviceAddress,
    /// The account key of its user, where it is known: no list of this user by another key is taken.
    pub account_key: Option<[u8; 32]>,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The store's generation.
    pub generation: u64,
    /// The epoch of the cursors.
    pub epoch: Option<StoreEpoch>,
    /// The nonce of an unfinished re-incarnation.
    pub nonce: Option<[u8; 16]>,
    /// The user asked for a new incarnation that it did not take yet.
    pub reincarnation_asked: bool,
    /// It took a new incarnation by itself within the last day.
    pub reincarnated_lately: bool,
    /// Messages that cannot be read and were not asked for again yet: their senders, conversations and ids.
    pub unasked: Vec<(DeviceAddress, ConversationId, MessageId)>,
    /// When the server last took prekeys, in its milliseconds.
    pub prekeys_at: u64,
    /// The conversations.
    pub conversations: Vec<ConversationSnapshot>,
    /// The outbox, in order.
    pub outbox: Vec<OutboxEntrySnapshot>,
    /// The device lists.
    pub lists: Vec<SignedDeviceList>,
    /// The handles.
    pub handles: Vec<(Handle, UserId)>,
}

impl ReplicaSnapshot {
    /// A device that never did anything.
    pub const fn new(device: DeviceAddress) -> Self {
        Self {
            device,
            account_key: None,
            incarnation: 0,
            generation: 0,
            epoch: None,
            nonce: None,
            reincarnation_asked: false,
            reincarnated_lately: false,
            unasked: Vec::new(),
            prekeys_at: 0,
            conversations: Vec::new(),
            outbox: Vec::new(),
            lists: Vec::new(),
            handles: Vec::new(),
        }
    }
}

/// A conversation as a local store keeps it.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct ConversationSnapshot {
    /// Which.
    pub id: ConversationId,
    /// Received up to here.
    pub cursor: Seq,
    /// The last number used.
    pub client_seq: u64,
    /// The id that has it.
    pub prev: MessageId,
    /// The last own message stored.
    pub last_own: Seq,
    /// Delivered to somebody up to here.
    pub delivered: Seq,
    /// Read by the user up to here.
    pub read: Seq,
}

/// An entry of the outbox as a local store keeps it.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct OutboxEntrySnapshot {
    /// The draft.
    pub draft: Draft,
    /// What was sent, or is to be sent the same again.
    pub publish: Option<Publish>,
    /// It was refused for good and only its number is to be used up.
    pub skip: bool,
    /// Its id may have been sent before, in an earlier incarnation.
    pub attempted: bool,
    /// It is sent as it is sealed or not at all.
    pub bound: bool,
}
