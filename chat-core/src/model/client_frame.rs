//! What a device sends to the server. `wire` encodes it.

use bytes::Bytes;

use super::device_list::SignedDeviceList;
use super::envelope::{AckUpTo, Publish, SendPosition};
use super::id::{ConversationId, Handle, Incarnation, InstallationId, Seq, StoreEpoch, UserId};
use super::prekeys::PrekeyUpload;
use super::signing::HelloClaims;

/// Opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What is signed; the nonce in it is the one the server sent.
    pub claims: HelloClaims,
    /// The store epoch of the device's cursors, if it has any.
    pub store_epoch: Option<StoreEpoch>,
    /// Ed25519 by the device key over [`HelloClaims::transcript`].
    pub signature: Bytes,
}

/// Opens an account, or waits to be linked to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// A new account.
    Account {
        /// The token; may be empty under open registration.
        token: String,
        /// The name people type.
        handle: Handle,
        /// Version 1 of the new account's list; or the version after the one in force, by the new account
        /// key.
        list: SignedDeviceList,
        /// Replace an account whose keys are lost.
        replace: bool,
    },
    /// Asks for the list in force of an account whose keys are lost.
    Lookup {
        /// The token.
        token: String,
        /// The name people type.
        handle: Handle,
    },
    /// A device that waits to be linked.
    Link {
        /// From its code.
        rendezvous: Bytes,
        /// Its public keys, opaque here.
        offer: Bytes,
    },
}

/// A question of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Which user a handle means.
    Resolve(Handle),
    /// The device lists of users.
    Lists(Vec<UserId>),
    /// A new version of the own list.
    PutList(SignedDeviceList),
    /// Prekeys.
    Upload(PrekeyUpload),
    /// Bundles of devices of a user.
    Claim(UserId, Vec<InstallationId>),
    /// A page of a conversation: rows below `before` (0: from the newest), at most `limit`.
    History {
        /// The conversation.
        conversation: ConversationId,
        /// Rows below this seq; 0: from the newest.
        before: Seq,
        /// At most this many.
        limit: u32,
    },
    /// Where this device stands in all its conversations.
    Cursors,
    /// A new incarnation.
    Reincarnate {
        /// The one it replaces.
        from: Incarnation,
        /// The same nonce gets the same answer.
        nonce: [u8; 16],
        /// The user asked for it.
        asked: bool,
    },
    /// The offer of a device that waits to be linked.
    Offer(Bytes),
    /// The answer to it.
    LinkAnswer(Bytes, Bytes),
    /// How far the others have a conversation.
    Delivered(ConversationId),
}

/// A frame from a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientFrame {
    /// Opens a session.
    Hello(Box<Hello>),
    /// Opens an account.
    Register(Box<Registration>),
    /// A message.
    Publish(Publish),
    /// Uses up a number.
    Skip(SendPosition),
    /// What is durably on the device.
    Ack {
        /// One for each conversation.
        acks: Vec<AckUpTo>,
        /// The epoch of the cursors.
        store_epoch: StoreEpoch,
        /// The generation of the local store.
        generation: u64,
    },
    /// Still there.
    Heartbeat,
    /// Everything unacknowledged again.
    CatchUp,
    /// A question with its id.
    Request(u64, Request),
    /// How far this user has read.
    Read(AckUpTo),
    /// This user is writing.
    Typing(ConversationId),
    /// Whose presence to report.
    Watch(Vec<UserId>),
    /// A frame of a later version, with the id of its request if it has one.
    Unknown(Option<u64>),
}
