//! What the server sends to a device. `wire` encodes it.

use bytes::Bytes;

use super::close_reason::CloseReason;
use super::device_list::SignedDeviceList;
use super::envelope::{InboxCursor, InboxRow, Refusal, Stored, Subject};
use super::id::{ConversationId, Handle, Incarnation, Seq, StoreEpoch, UserId};
use super::prekeys::Bundle;

/// The first frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// 32 random bytes.
    pub nonce: Bytes,
    /// Lowest version spoken.
    pub min_version: u32,
    /// Highest version spoken.
    pub max_version: u32,
}

/// Opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Which life of the data set.
    pub store_epoch: StoreEpoch,
    /// The server's clock, in milliseconds.
    pub server_time: u64,
    /// The device's store was restored or cloned.
    pub rollback: bool,
    /// The incarnation the server holds for the device.
    pub incarnation: Incarnation,
    /// One-time prekeys held for the device.
    pub prekeys: u32,
    /// The newest version of the user's own device list.
    pub list_version: u64,
}

#[cfg(test)]
impl Welcome {
    /// That of a server on which all is well, for tests.
    pub(crate) fn example() -> Self {
        Self {
            store_epoch: StoreEpoch::from_bytes([1; 16]),
            server_time: 0,
            rollback: false,
            incarnation: 0,
            prekeys: 100,
            list_version: 0,
        }
    }
}

/// An answer to an [`Request`](super::client_frame::Request): the field that the question was for is set, the rest is empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Response {
    /// To `Resolve`.
    pub user: Option<UserId>,
    /// To `Lists`.
    pub lists: Vec<SignedDeviceList>,
    /// To `Lists`: the handle of each list's user.
    pub handles: Vec<Option<Handle>>,
    /// To `Upload`.
    pub prekeys: u64,
    /// To `Claim`.
    pub bundles: Vec<Bundle>,
    /// To `History`, newest first.
    pub rows: Vec<InboxRow>,
    /// To `Cursors`.
    pub cursors: Vec<(ConversationId, InboxCursor)>,
    /// To `Reincarnate`.
    pub incarnation: Incarnation,
    /// To `Offer`.
    pub offer: Bytes,
    /// To `Delivered`.
    pub delivered: Seq,
}

/// A frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerFrame {
    /// The first frame.
    Challenge(Challenge),
    /// Answers `Hello`.
    Welcome(Welcome),
    /// Answers `Register`: the user, and the list in force where that was asked for.
    Registered(UserId, Option<Box<SignedDeviceList>>),
    /// One tick.
    Stored(Stored),
    /// What cannot be done.
    Refused(Subject, Refusal),
    /// Rows; `true` if nothing waits behind them.
    Deliver(Vec<InboxRow>, bool),
    /// Answers `Heartbeat` with the server's clock in milliseconds.
    HeartbeatReply(u64),
    /// Answers a request.
    Response(u64, Box<Response>),
    /// A watermark of a user.
    Receipt {
        /// Where.
        conversation: ConversationId,
        /// Whose.
        user: UserId,
        /// Delivered up to here; 0: not said.
        delivered: Seq,
        /// Read up to here; 0: not said.
        read: Seq,
    },
    /// Somebody is writing.
    Typing(ConversationId, UserId),
    /// Whether a user is connected.
    Presence(UserId, bool),
    /// A device list changed.
    ListChanged(UserId, u64),
    /// The answer a device that waits to be linked waits for.
    LinkAnswer(Bytes),
    /// Few one-time prekeys are left on the server.
    PrekeysLow(u32),
    /// The last frame.
    Close {
        /// The reason.
        reason: CloseReason,
        /// Milliseconds before the next attempt.
        retry_after: u32,
    },
    /// A frame of a later version.
    Unknown,
}
