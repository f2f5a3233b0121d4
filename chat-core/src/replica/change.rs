//! Changes that a [`Replica`](super::Replica) makes to the local store in one transaction.

use bytes::Bytes;

use super::draft::Draft;
use super::input::Opened;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{EmptyReason, InboxRow, Publish};
use crate::model::id::{
    ConversationId, DeviceAddress, Handle, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};

/// Changes that become durable together.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Changes {
    /// In order.
    pub list: Vec<Change>,
    /// The store's generation from here on.
    pub generation: u64,
}

/// How a list changed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ListChange {
    /// The user's first list.
    First,
    /// A later version by the same account key, with these devices added.
    Updated(Vec<DeviceAddress>),
    /// Another account key: the user must be told.
    IdentityChanged,
}

/// One change of the local store.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Change {
    /// A draft entered the outbox.
    Queued(Draft),
    /// A draft got its number and ciphertext; the conversation's send state follows from the number.
    Sealed(Box<Publish>),
    /// A draft is stored at this place; it leaves the outbox.
    Stored(ConversationId, MessageId, Seq),
    /// A draft is refused for good. If it has a number it stays in the outbox as a skip.
    Refused(MessageId, &'static str),
    /// A draft was sealed for an account key that is no longer its user's: it is sent as it is or not at all.
    Bound(MessageId),
    /// A skip used its number up; it leaves the outbox.
    Skipped(MessageId),
    /// A message arrived.
    Received(Box<InboxRow>, Opened),
    /// The content of a message that could not be read when it came: sender, conversation, id, content.
    Recovered(DeviceAddress, ConversationId, MessageId, Bytes),
    /// Everything up to this place was received.
    Cursor(ConversationId, Seq),
    /// Nothing will come for these places.
    Gap(ConversationId, Seq, Seq, EmptyReason),
    /// A handle means a user.
    Handle(Handle, UserId),
    /// A device list.
    List(SignedDeviceList, ListChange),
    /// A watermark of a user rose: delivered, read (0: not said).
    Receipt(ConversationId, UserId, Seq, Seq),
    /// The own read watermark rose.
    Read(ConversationId, Seq),
    /// The first session with this data set.
    Epoch(StoreEpoch),
    /// The server's data set is another one: cursors and numbers begin anew.
    NewEpoch(StoreEpoch),
    /// About to take a new incarnation with this nonce.
    Nonce([u8; 16]),
    /// The user asked for a new incarnation.
    Asked,
    /// A new incarnation: sessions, prekeys, numbers and ciphertexts of the old one are void.
    Reincarnated(Incarnation),
    /// Prekeys were made.
    PrekeysMade,
    /// The server has the prekeys, since this time of its clock.
    Prekeys(u64),
    /// A message of this sender that cannot be read was asked for again.
    AskedAgain(InstallationId, ConversationId, MessageId),
    /// Sessions were started.
    Sessions,
}
