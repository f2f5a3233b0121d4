//! Frames from a device to the server. `wire` encodes them.

use bytes::Bytes;

use super::contact::ContactChange;
use super::device_list::SignedDeviceList;
use super::envelope::{AckUpTo, Publish, SendPosition};
use super::group::LinkProof;
use super::id::{ConversationId, Handle, Incarnation, InstallationId, Seq, StoreEpoch, UserId};
use super::prekeys::{FirstPrekeys, PrekeyUpload};
use super::presence::PresenceAudience;
use super::report::Report;
use super::signing::HelloClaims;

/// How far a user has received and read a group, for the users that sent the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReceipt {
    pub conversation: ConversationId,
    /// The highest delivered seq; 0 if not reported.
    pub delivered: Seq,
    /// The highest read seq; 0 if not reported.
    pub read: Seq,
    /// The members that get the receipt, at most 16. They sent the messages.
    pub to: Vec<UserId>,
}

/// The handshake of a device that opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The signed claims, with the nonce that the server sent.
    pub claims: HelloClaims,
    /// The store epoch of the device's cursors; `None` before the first connection.
    pub store_epoch: Option<StoreEpoch>,
    /// Ed25519 signature by the device key over [`HelloClaims::transcript`].
    pub signature: Bytes,
}

/// A new token for an open session.
#[derive(Clone, PartialEq, Eq)]
pub struct Renewal {
    pub token: String,
    /// Ed25519 signature by the device key over [`RenewalClaims`](super::signing::RenewalClaims).
    pub signature: Bytes,
}

// The token must not reach a log.
impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").finish_non_exhaustive()
    }
}

/// A request before the handshake: registers an account, or offers a device for linking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Registers or replaces an account.
    Account {
        /// May be empty under open registration.
        token: String,
        handle: Handle,
        /// Version 1 of a new account's list. With `replace`: the version after the one in force, signed by
        /// the new account key.
        list: SignedDeviceList,
        /// Replace an account whose keys are lost.
        replace: bool,
        /// The first prekeys of the devices of the list.
        prekeys: Vec<FirstPrekeys>,
    },
    /// Requests the list in force of an account whose keys are lost.
    Lookup { token: String, handle: Handle },
    /// Offers a device for linking; the device then waits for the answer.
    Link {
        /// From the device's link code.
        rendezvous: Bytes,
        /// The device's public keys, opaque to the server.
        offer: Bytes,
    },
}

/// The rows of a page of history, and their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum HistoryRange {
    /// Rows below a seq, newest first; 0: from the newest.
    Before(Seq),
    /// Rows above a seq, oldest first.
    After(Seq),
}

/// The body of a request from a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Which user a handle means.
    Resolve(Handle),
    /// The device lists of users.
    Lists(Vec<UserId>),
    /// A version of the device list of a user.
    ListVersion(UserId, u64),
    /// A new version of the own list, with the first prekeys of each device that it adds.
    PutList(SignedDeviceList, Vec<FirstPrekeys>),
    /// Upload prekeys of this device.
    Upload(PrekeyUpload),
    /// Claim prekey bundles for devices of a user.
    Claim(UserId, Vec<InstallationId>),
    /// A page of a conversation's history.
    History {
        conversation: ConversationId,
        range: HistoryRange,
        /// Maximum number of rows, 1 to 200.
        limit: u32,
    },
    /// Lets this device read a channel from its next message on. The proof shows that the user has the link.
    Subscribe(ConversationId, LinkProof),
    /// Ends that this device reads a channel.
    Unsubscribe(ConversationId),
    /// Deletes the history of a conversation up to a seq for the user of this device.
    ClearHistory {
        conversation: ConversationId,
        /// A seq above the newest one counts as the newest one.
        through: Seq,
    },
    /// The roster of a group, for a device of a member or of an invited user; with a proof, for a user with the link.
    Roster(ConversationId, Option<LinkProof>),
    /// The cursors of this device in all conversations.
    Cursors,
    /// Request a new incarnation.
    Reincarnate {
        /// The incarnation to replace.
        from: Incarnation,
        /// Idempotency key: a repeated nonce returns the same incarnation.
        nonce: [u8; 16],
        /// The user requested it, so the limit of one a day does not apply.
        asked: bool,
    },
    /// The offer of a device that waits to be linked.
    Offer(Bytes),
    /// The sealed answer to that offer, with its rendezvous.
    LinkAnswer(Bytes, Bytes),
    /// The highest seq that a device of another user in the conversation acknowledged. The server also requests the read
    /// position from the other user's connected devices.
    Delivered(ConversationId),
    /// Accepts, blocks or unblocks a user.
    ChangeContact(UserId, ContactChange),
    /// Changes the users that learn the presence of the own user.
    SetPresenceAudience(PresenceAudience),
    /// The contacts of the own user.
    Contacts,
    /// Reports messages of another user.
    Report(Report),
    /// Deletes the own account: the signature of the account key over
    /// [`deletion_transcript`](super::signing::deletion_transcript).
    DeleteAccount(Bytes),
}

impl Request {
    /// Returns the approximate size of the request on the wire, in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Upload(upload) => {
                upload.signed.len() + upload.one_time.iter().map(|key| key.data.len() + 16).sum::<usize>()
            }
            _ => 64,
        }
    }
}

/// A frame from a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientFrame {
    /// The handshake of a device.
    Hello(Box<Hello>),
    /// Registers an account or offers a device for linking.
    Register(Box<Registration>),
    /// Publishes a message.
    Publish(Publish),
    /// Uses up the number of a message that was refused for good.
    Skip(SendPosition),
    /// Acknowledges rows that are durable on the device.
    Ack {
        /// One entry per conversation.
        acks: Vec<AckUpTo>,
        /// The store epoch of the acknowledged rows.
        store_epoch: StoreEpoch,
        /// The generation of the device's local store.
        generation: u64,
    },
    /// Keeps the session alive.
    Heartbeat,
    /// Requests all unacknowledged rows again, from the oldest.
    CatchUp,
    /// A request with its id.
    Request(u64, Request),
    /// How far this user has read.
    Read(AckUpTo),
    /// How far this user has received and read a group.
    GroupReceipt(GroupReceipt),
    /// The conversation that the user looks at.
    OpenConversation(Option<ConversationId>),
    /// This user is typing.
    Typing(ConversationId),
    /// Users whose presence the server reports; replaces the earlier set.
    Watch(Vec<UserId>),
    /// Continues the session with a new token.
    Renew(Box<Renewal>),
    /// A frame of a later version, with its request id if it has one.
    Unknown(Option<u64>),
}
