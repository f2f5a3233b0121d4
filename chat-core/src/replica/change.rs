//! Changes that a [`Replica`](super::Replica) makes to the local store in one transaction.

use bytes::Bytes;

use super::draft::Draft;
use super::group::SenderKey;
use super::input::Opened;
use super::integrity::{Chain, Violation};
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{EmptyReason, InboxRow, Publish};
use crate::model::group::GroupAction;
use crate::model::id::{
    ClientSeq, ConversationId, DeviceAddress, Handle, Incarnation, InstallationId, MessageId, Seq,
    StoreEpoch, UserId,
};
use crate::model::roster::Roster;

/// Changes that become durable together.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Changes {
    /// Applied in order.
    pub list: Vec<Change>,
    /// The store's generation after this commit.
    pub generation: u64,
}

/// The kind of change of a device list.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ListChange {
    /// The user's first list.
    First,
    /// A later version signed by the same account key; these devices are new.
    Updated(Vec<DeviceAddress>),
    /// The list is signed by another account key. The application must notify the user.
    IdentityChanged,
}

/// One change to the local store.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Change {
    /// A draft entered the outbox.
    Queued(Draft),
    /// A draft received its number and ciphertext. The number also updates the conversation's send state.
    Sealed(Box<Publish>),
    /// Numbers and ciphertexts of these drafts are void: the conversation continues after this number and message id.
    Unsealed(ConversationId, ClientSeq, MessageId, Vec<MessageId>),
    /// The server stored a draft at this seq; it leaves the outbox.
    Stored(ConversationId, MessageId, Seq),
    /// A draft is refused permanently, for this reason. If it has a number, it stays in the outbox as a skip.
    Refused(MessageId, &'static str),
    /// A draft was sealed for an account key that its user no longer has. It is sent as sealed or not at all.
    Bound(MessageId),
    /// The number of a skip is used up; the skip leaves the outbox.
    Skipped(MessageId),
    /// A message arrived.
    Received(Box<InboxRow>, Opened),
    /// The content of a message that could not be read on arrival: sender, conversation, id, content.
    Recovered(DeviceAddress, ConversationId, MessageId, Bytes),
    /// All rows up to this seq were received.
    Cursor(ConversationId, Seq),
    /// No message will arrive for the seqs from the first to the second, both included.
    Gap(ConversationId, Seq, Seq, EmptyReason),
    /// The message at this seq is one that the store has already, at another seq.
    Duplicate(ConversationId, Seq),
    /// A handle was resolved to a user.
    Handle(Handle, UserId),
    /// A device list was added or replaced.
    List(SignedDeviceList, ListChange),
    /// A user's watermarks rose: delivered seq, then read seq (0: not reported).
    Receipt(ConversationId, UserId, Seq, Seq),
    /// This user's own read watermark rose.
    Read(ConversationId, Seq),
    /// The store epoch of the server, on the first session.
    Epoch(StoreEpoch),
    /// The server's data set has another epoch: numbers are reset, and the cursors must be compared.
    NewEpoch(StoreEpoch),
    /// The cursors were compared since the epoch changed.
    EpochCompared,
    /// The server may no longer have the messages after this seq, and surely lost some if the last field says so: it was
    /// restored from an older copy. This device keeps them, outside of the numbers, and continues after the seq.
    WentBack(ConversationId, Seq, bool),
    /// A message that the server had lost arrived again, at this seq: sender and id.
    Returned(ConversationId, Seq, InstallationId, MessageId),
    /// A recovery begins; it requests a new incarnation with this nonce.
    Nonce([u8; 16]),
    /// The user requested a new incarnation.
    Asked,
    /// A new incarnation began: sessions, prekeys, numbers and ciphertexts of the old one are void.
    Reincarnated(Incarnation),
    /// Prekeys were made.
    PrekeysMade,
    /// The server stored the prekeys, at this time of its clock in milliseconds.
    Prekeys(u64),
    /// An unreadable message of this sender was requested again: for the first time if it was not requested before, otherwise
    /// for the last time.
    AskedAgain(InstallationId, ConversationId, MessageId),
    /// Sessions were started.
    Sessions,
    /// A row arrived whose content this release cannot read: its encoded form is kept.
    Unknown(ConversationId, Seq, Bytes),
    /// The last message of a sending device in a conversation.
    Chain(ConversationId, InstallationId, Chain),
    /// The number of seqs of a conversation that excuse missing numbers.
    Excused(ConversationId, u64),
    /// The roster of a group as this device follows it; version 0 if it must be fetched again.
    Roster(ConversationId, Box<Roster>),
    /// Whether the server has a later roster of a group than this device.
    RosterBehind(ConversationId, bool),
    /// The sender key of this device in a group; `None` if it encrypts no message any more.
    SenderKey(ConversationId, Option<Box<SenderKey>>),
    /// A device changed a group with this message, and signed it.
    GroupChanged(ConversationId, Seq, DeviceAddress, MessageId, GroupAction),
    /// Rows contradict their sender or each other. The device is that of the message that shows it.
    Violated(ConversationId, Option<DeviceAddress>, Violation),
}
