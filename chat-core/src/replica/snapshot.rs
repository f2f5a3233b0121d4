//! The state of a [`Replica`](super::Replica) in the local store.

use super::draft::Draft;
use super::group::SenderKey;
use super::integrity::Chain;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::Publish;
use crate::model::id::{
    ConversationId, DeviceAddress, Handle, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};
use crate::model::roster::Roster;

/// The stored state that a replica starts from.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct ReplicaSnapshot {
    pub device: DeviceAddress,
    /// The account key of the device's user, if known. The replica accepts no list of this user that another
    /// key signed.
    pub account_key: Option<[u8; 32]>,
    pub incarnation: Incarnation,
    pub generation: u64,
    /// The store epoch that the cursors belong to; `None` before the first session.
    pub epoch: Option<StoreEpoch>,
    /// The epoch changed, and the cursors were not compared since; `true` if this device had sent messages before.
    pub epoch_changed: Option<bool>,
    /// The nonce of an unfinished recovery.
    pub nonce: Option<[u8; 16]>,
    /// The user requested a new incarnation that the device has not taken yet.
    pub reincarnation_asked: bool,
    /// The device took a new incarnation by itself within the last day.
    pub reincarnated_lately: bool,
    /// Unreadable messages that were not requested again yet: sender, conversation and id of each.
    pub unasked: Vec<(DeviceAddress, ConversationId, MessageId)>,
    /// Unreadable messages that were requested again once and did not come yet, the oldest first.
    pub asked_once: Vec<(DeviceAddress, ConversationId, MessageId)>,
    /// When the server last stored prekeys, in milliseconds of its clock.
    pub prekeys_at: u64,
    /// A row may end the process when it is opened: until all waiting rows are received, each row is opened in a
    /// transaction of its own, with nothing uncommitted before it.
    pub isolate_rows: bool,
    pub conversations: Vec<ConversationSnapshot>,
    /// In sending order.
    pub outbox: Vec<OutboxEntrySnapshot>,
    pub lists: Vec<SignedDeviceList>,
    /// The resolved handles.
    pub handles: Vec<(Handle, UserId)>,
}

impl ReplicaSnapshot {
    /// Returns the state of a device that has sent and received nothing.
    pub const fn new(device: DeviceAddress) -> Self {
        Self {
            device,
            account_key: None,
            incarnation: 0,
            generation: 0,
            epoch: None,
            epoch_changed: None,
            nonce: None,
            reincarnation_asked: false,
            reincarnated_lately: false,
            unasked: Vec::new(),
            asked_once: Vec::new(),
            prekeys_at: 0,
            isolate_rows: false,
            conversations: Vec::new(),
            outbox: Vec::new(),
            lists: Vec::new(),
            handles: Vec::new(),
        }
    }
}

/// The stored state of a conversation.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct ConversationSnapshot {
    pub id: ConversationId,
    /// The device received all rows up to this seq.
    pub cursor: Seq,
    /// The last client seq used.
    pub client_seq: u64,
    /// The message id with that client seq.
    pub prev: MessageId,
    /// The seq of the last stored own message.
    pub last_own: Seq,
    /// Messages up to this seq were delivered to another user.
    pub delivered: Seq,
    /// Another user read up to this seq.
    pub peer_read: Seq,
    /// The user read up to this seq.
    pub read: Seq,
    /// The number of seqs that excuse missing numbers.
    pub excused: u64,
    /// The last message of each sending device.
    pub chains: Vec<(InstallationId, Chain)>,
    /// The roster of a group as the device follows it; version 0 if it is unknown, and in other conversations.
    pub roster: Roster,
    /// The server has a later roster.
    pub roster_behind: bool,
    /// The sender key of the device in a group.
    pub sender_key: Option<SenderKey>,
}

impl ConversationSnapshot {
    /// Returns the state of a conversation without messages.
    pub fn new(id: ConversationId) -> Self {
        Self {
            id,
            cursor: 0,
            client_seq: 0,
            prev: MessageId::NIL,
            last_own: 0,
            delivered: 0,
            peer_read: 0,
            read: 0,
            excused: 0,
            chains: Vec::new(),
            roster: Roster::default(),
            roster_behind: false,
            sender_key: None,
        }
    }
}

/// The stored state of an outbox entry.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct OutboxEntrySnapshot {
    pub draft: Draft,
    /// The sealed message, if the draft is sealed. A retry sends it unchanged.
    pub publish: Option<Publish>,
    /// It was refused permanently, and only its number must still be used up.
    pub skip: bool,
    /// Its id may have been sent before, in an earlier incarnation.
    pub attempted: bool,
    /// It is sent as sealed or not at all.
    pub bound: bool,
}
