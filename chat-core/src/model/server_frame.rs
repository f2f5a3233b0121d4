//! Frames from the server to a device. `wire` encodes them.

use bytes::Bytes;

use super::close_reason::CloseReason;
use super::contact::Contacts;
use super::device_list::SignedDeviceList;
use super::envelope::{InboxCursor, InboxRow, Refusal, Stored, Subject};
use super::id::{ConversationId, Handle, Incarnation, InstallationId, Seq, StoreEpoch, UserId};
use super::prekeys::Bundle;
use super::presence::UserPresence;
use super::roster::Roster;

/// The first frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// 32 random bytes that the device signs.
    pub nonce: Bytes,
    /// Lowest wire version that the server supports.
    pub min_version: u32,
    /// Highest wire version that the server supports.
    pub max_version: u32,
    /// The server's clock, in milliseconds since 1970; 0 from a release that did not send it.
    pub server_time: u64,
}

/// Answer to `Hello`: the session is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The current epoch of the data set.
    pub store_epoch: StoreEpoch,
    /// The server's clock, in milliseconds since 1970.
    pub server_time: u64,
    /// The device's local store was restored from a backup or cloned.
    pub rollback: bool,
    /// The incarnation that the server has stored for the device.
    pub incarnation: Incarnation,
    /// Number of one-time prekeys stored for the device.
    pub prekeys: u32,
    /// The newest version of the user's own device list.
    pub list_version: u64,
    /// How long rows wait for a device before they expire, in milliseconds; 0 if the server does not say.
    pub retention_ms: u64,
    /// Differs for each run of a server process; 0 if the server does not say.
    pub instance: u64,
    /// The version of the user's contacts.
    pub contacts_version: u64,
    /// Milliseconds until the token expires and the session ends; 0 if it does not.
    pub token_expires_in_ms: u64,
    /// The latest [rules](crate::backend::Rules) of messages that the server accepts; 0 if the server does not say.
    pub rules: u32,
}

#[cfg(test)]
impl Challenge {
    /// Returns a challenge of this release, for tests.
    pub(crate) const fn example() -> Self {
        Self { nonce: Bytes::new(), min_version: 1, max_version: 1, server_time: 0 }
    }
}

#[cfg(test)]
impl Welcome {
    /// Returns the `Welcome` of a server without problems, for tests.
    pub(crate) fn example() -> Self {
        Self {
            store_epoch: StoreEpoch::from_bytes([1; 16]),
            server_time: 0,
            rollback: false,
            incarnation: 0,
            prekeys: 100,
            list_version: 0,
            retention_ms: 0,
            instance: 0,
            contacts_version: 0,
            token_expires_in_ms: 0,
            rules: 0,
        }
    }
}

/// An answer to an [`Request`](super::client_frame::Request): the field that the question was for is set, the rest is empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Response {
    /// For `Resolve`.
    pub user: Option<UserId>,
    /// For `Lists`.
    pub lists: Vec<SignedDeviceList>,
    /// For `Lists`: the handle of each list's user.
    pub handles: Vec<Option<Handle>>,
    /// For `Upload`: the number of stored one-time prekeys.
    pub prekeys: u64,
    /// For `Claim`.
    pub bundles: Vec<Bundle>,
    /// For `History`, newest first.
    pub rows: Vec<InboxRow>,
    /// For `Cursors`.
    pub cursors: Vec<(ConversationId, InboxCursor)>,
    /// For `Reincarnate`: the new incarnation.
    pub incarnation: Incarnation,
    /// For `Offer`.
    pub offer: Bytes,
    /// For `Delivered`: the highest seq that a device of another user acknowledged.
    pub delivered: Seq,
    /// For `Lists` of the own user: the devices that have not uploaded prekeys themselves.
    pub inactive: Vec<InstallationId>,
    /// For `Contacts`. For `ChangeContact`: only the version.
    pub contacts: Contacts,
    /// For `Roster`.
    pub roster: Option<Box<Roster>>,
    /// For `Delivered` in a group: the highest seq that a device of each other member acknowledged.
    pub progress: Vec<(UserId, Seq)>,
}

/// A frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerFrame {
    /// The first frame of a connection.
    Challenge(Challenge),
    /// Answers `Hello`.
    Welcome(Welcome),
    /// Answers `Register`: the user, and the list in force if it was requested.
    Registered(UserId, Option<Box<SignedDeviceList>>),
    /// The message is durable and has a seq.
    Stored(Stored),
    /// The server refused a message, a request or the handshake.
    Refused(Subject, Refusal),
    /// Rows of the device's inbox; `true` if no more rows are waiting.
    Deliver(Vec<InboxRow>, bool),
    /// Answers `Heartbeat` with the server's clock in milliseconds.
    HeartbeatReply(u64),
    /// Answers the request with this id.
    Response(u64, Box<Response>),
    /// Delivery or read progress of a user.
    Receipt {
        conversation: ConversationId,
        user: UserId,
        /// Highest delivered seq; 0 if not reported.
        delivered: Seq,
        /// Highest read seq; 0 if not reported.
        read: Seq,
    },
    /// This user is typing in the conversation.
    Typing(ConversationId, UserId),
    /// Whether a watched user is connected, or when it was last seen.
    Presence(UserId, UserPresence),
    /// A user's device list changed; the number is its newest version.
    ListChanged(UserId, u64),
    /// The offer of a device that waits to be linked is in place.
    LinkOffered,
    /// The sealed answer for a device that waits to be linked.
    LinkAnswer(Bytes),
    /// The server has few one-time prekeys of this device; the number is how many are left.
    PrekeysLow(u32),
    /// The contacts of the user have this version now.
    ContactsChanged(u64),
    /// The server needs the user's read position in this conversation again; in a group, this user needs it.
    ReadRequested(ConversationId, Option<UserId>),
    /// The session has the new token: milliseconds until that expires; 0 if it does not.
    Renewed(u64),
    /// The last frame of a connection.
    Close {
        /// The reason.
        reason: CloseReason,
        /// Milliseconds to wait before the next attempt.
        retry_after: u32,
    },
    /// A frame of a later version.
    Unknown,
}
