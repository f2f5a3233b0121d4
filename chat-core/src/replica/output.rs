//! Outputs of a [`Replica`](super::Replica).

use bytes::Bytes;

use super::change::Changes;
use super::draft::Draft;
use crate::model::client_frame::ClientFrame;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{InboxRow, Refusal, SendPosition};
use crate::model::id::{
    ConversationId, DeviceAddress, Incarnation, InstallationId, MessageId, StoreEpoch, UserId,
};
use crate::model::prekeys::Bundle;
use crate::model::server_frame::Response;

/// What a replica wants done, in order.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Connect; answer with `Connected`, `Disconnected` or `Rejected`.
    Dial,
    /// Drop the connection.
    Hangup,
    /// Sign and send a `Hello` with this nonce, incarnation and generation.
    Hello {
        /// The server's nonce.
        nonce: Bytes,
        /// The incarnation to claim.
        incarnation: Incarnation,
        /// The generation to claim.
        generation: u64,
        /// The epoch of the cursors.
        epoch: Option<StoreEpoch>,
    },
    /// Send a frame.
    Send(ClientFrame),
    /// Decrypt a row of a sender on this list; answer with `Opened` at once.
    Open(InboxRow, Option<SignedDeviceList>),
    /// Encrypt a draft for the devices of these lists; answer with `Sealed` at once.
    Seal {
        /// The draft.
        draft: Draft,
        /// The number it gets.
        number: SendPosition,
        /// The lists of everybody it is for.
        lists: Vec<SignedDeviceList>,
    },
    /// Start sessions with these bundles of devices on this list, in the open transaction.
    Bundles(SignedDeviceList, Vec<Bundle>),
    /// The own message of this id, if its content is still there and this device was in its audience; answer
    /// with `Recalled` at once.
    Recall(DeviceAddress, ConversationId, MessageId),
    /// Let the next message to this device begin a new session, in the open transaction. What is on its way
    /// in the old one can still be read.
    EndSession(InstallationId),
    /// Drop every session, prekey and own sender key in the open transaction: this incarnation begins anew,
    /// and prekey ids go on above those of all earlier ones.
    Forget(Incarnation),
    /// Make prekeys in the open transaction; answer with `Prekeys` at once.
    MakePrekeys {
        /// All old ones are void.
        replace: bool,
        /// So many one-time prekeys; perhaps none, then the signed part alone is uploaded.
        count: u32,
    },
    /// Make these changes and everything since the last commit durable together; answer with `Committed`.
    Commit(Changes, u64),
    /// The answer to a question of the application.
    Answer(u64, Result<Box<Response>, Refusal>),
    /// Something that is not kept.
    Event(Ephemeral),
}

/// Something that is not kept.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Ephemeral {
    /// A session is open.
    Connected,
    /// It is gone.
    Disconnected,
    /// Everything that waited was received.
    CaughtUp,
    /// Somebody is writing.
    Typing(ConversationId, UserId),
    /// Whether a user is connected.
    Presence(UserId, bool),
    /// The server hides a later device list of this user from this device.
    ListHidden(UserId),
    /// The replica gave up.
    Stopped(Stopped),
}

/// Why a replica gave up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stopped {
    /// Token or device are not accepted.
    Unauthorized,
    /// The server speaks no common version.
    Version,
    /// Another copy of this store is in use, or it was restored twice in a day: the user must decide.
    Superseded,
}
