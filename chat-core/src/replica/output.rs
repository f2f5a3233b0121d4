//! Outputs of a [`Replica`](super::Replica).

use bytes::Bytes;

use super::change::Changes;
use super::draft::Draft;
use super::group::GroupSeal;
use crate::model::client_frame::ClientFrame;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{InboxRow, Refusal, SendPosition};
use crate::model::id::{
    ConversationId, DeviceAddress, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};
use crate::model::prekeys::Bundle;
use crate::model::presence::UserPresence;
use crate::model::server_frame::Response;

/// An action that a replica requests from its driver. The driver carries actions out in order.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Dial the server; answer with `Connected`, `Disconnected` or `Rejected`.
    Dial,
    /// Drop the connection.
    Hangup,
    /// Sign and send a `Hello` with this nonce, incarnation and generation.
    Hello {
        /// The nonce from the server's challenge.
        nonce: Bytes,
        incarnation: Incarnation,
        generation: u64,
        /// The store epoch that the cursors belong to.
        epoch: Option<StoreEpoch>,
    },
    /// Send a frame.
    Send(ClientFrame),
    /// Decrypt a row; the list is the one that contains its sender, or `None` if no known list does. Answer
    /// with `Opened` at once.
    Open(InboxRow, Option<SignedDeviceList>),
    /// Look up whether the local store has this message at a seq; answer with `Compared` at once.
    Compare { conversation: ConversationId, seq: Seq, sender: InstallationId, id: MessageId },
    /// Encrypt a draft for the devices of these lists; answer with `Sealed` at once.
    Seal {
        draft: Draft,
        /// The position to assign to it.
        number: SendPosition,
        /// The device lists of all users that the draft is sealed for.
        lists: Vec<SignedDeviceList>,
        /// Devices without a usable bundle: those that still have no session are excluded from the message.
        excluded: Vec<InstallationId>,
        /// The roster and the sender key of a message in a group.
        group: Option<Box<GroupSeal>>,
    },
    /// Start sessions with these bundles, for devices on this list, in the open transaction.
    Bundles(SignedDeviceList, Vec<Bundle>),
    /// Look up the own message with this id, if its content is still stored and the given device was in its
    /// audience, in a group in the roster that the message is for; answer with `Recalled` at once.
    Recall(DeviceAddress, ConversationId, MessageId),
    /// End the session with this device in the open transaction, so that the next message to it begins a new
    /// one. Messages in flight in the old session stay readable.
    EndSession(InstallationId),
    /// Drop every session, prekey and own sender key in the open transaction: this incarnation starts without
    /// them. New prekey ids are higher than those of all earlier incarnations.
    Forget(Incarnation),
    /// Make prekeys in the open transaction; answer with `Prekeys` at once.
    MakePrekeys {
        /// All old prekeys are void.
        replace: bool,
        /// Number of one-time prekeys. If it is 0, only the signed prekey is uploaded.
        count: u32,
    },
    /// Commit these changes, and the open transaction, durably and atomically; answer with `Committed` and
    /// this ticket.
    Commit(Changes, u64),
    /// The answer to a request of the application, with its token.
    Answer(u64, Result<Box<Response>, Refusal>),
    /// An event that is not stored.
    Event(Ephemeral),
}

/// An event that is not stored.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Ephemeral {
    /// A session is open.
    Connected,
    /// The session ended.
    Disconnected,
    /// The device received all waiting rows.
    CaughtUp,
    /// A user is typing.
    Typing(ConversationId, UserId),
    /// Whether a user is connected, or when it was last seen.
    Presence(UserId, UserPresence),
    /// The server hides a later device list of this user from this device; reported once for each version.
    ListHidden(UserId),
    /// The server limits the rate of this device: sending continues by itself after this many milliseconds.
    Throttled(u32),
    /// These devices of a user are excluded from messages for now: no session with them can begin.
    Excluded(UserId, Vec<InstallationId>),
    /// A message, or the end of the waiting rows, has been waited for unusually long.
    Slow,
    /// The replica stopped and does not reconnect by itself.
    Stopped(Stopped),
}

/// The reason why a replica stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stopped {
    /// The server rejected the token or the device.
    Unauthorized,
    /// The server and the device have no common protocol version.
    Version,
    /// Another copy of this store is in use, or the store was restored twice within a day. The user must
    /// decide.
    Superseded,
}
