//! What goes in and comes out of a [`Replica`](super::Replica).

use bytes::Bytes;

use crate::device_list::SignedDeviceList;
use crate::envelope::{AckUpTo, EmptyReason, InboxRow, Publish, Refusal, SendPosition};
use crate::id::{
    ConversationId, DeviceAddress, Handle, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};
use crate::wire::{Bundle, ClientFrame, PrekeyUpload, Request, Response, ServerFrame};

/// Whom a draft is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Recipient {
    /// A user by the name people type; resolved when there is a connection.
    Handle(Handle),
    /// A user.
    User(UserId),
    /// One device: a to-device message, which nobody is shown.
    Device(DeviceAddress),
}

/// A message that was not sent yet.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Draft {
    /// Its id, kept through every retry.
    pub id: MessageId,
    /// Whom it is for.
    pub to: Recipient,
    /// Its content, as the suite will encrypt it.
    pub content: Bytes,
    /// When it was written, in milliseconds since 1970.
    pub sent_at: u64,
}

/// What happens to a replica.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// The connection asked for by [`Output::Dial`] is there.
    Connected,
    /// It broke, or could not be made.
    Disconnected,
    /// The server has no room for it, and says after how many milliseconds it may.
    Rejected(u32),
    /// A frame of the server.
    Frame(ServerFrame),
    /// Send this.
    Send(Draft),
    /// The user read up to here.
    Read(AckUpTo),
    /// The user is writing.
    Typing(ConversationId),
    /// Whose presence to report.
    Watch(Vec<UserId>),
    /// A question of the application, with a token for its answer.
    Request(u64, Request),
    /// What [`Output::Open`] gave.
    Opened(Opened),
    /// What [`Output::Recall`] gave: who asked, the message, its content if they may have it.
    Recalled(DeviceAddress, ConversationId, MessageId, Option<Bytes>),
    /// What [`Output::Seal`] gave.
    Sealed(Result<Publish, SealFailure>),
    /// What [`Output::MakePrekeys`] made.
    Prekeys(PrekeyUpload),
    /// The server took this new version of the own list.
    OwnList(SignedDeviceList),
    /// A list that the application asked for.
    List(SignedDeviceList),
    /// Nothing more is at hand: make durable what gathered.
    Flush,
    /// A commit is durable.
    Committed(u64),
    /// The deadline passed.
    Tick,
    /// Connect anew, even if stopped.
    Restart,
    /// The user asks for a new incarnation, though there was one within a day: this store goes on, a copy of
    /// it does not.
    Reincarnate,
}

/// What a row held.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Opened {
    /// The content, or why there is none.
    pub content: Result<Bytes, Unreadable>,
    /// The local store has a message of this sender and id already.
    pub known: bool,
    /// The version of its own device list that the sender claims, end to end; 0 if that is not known.
    pub list_version: u64,
}

/// Why a message could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unreadable {
    /// Its sender is on no device list the account key signed.
    UnknownDevice,
    /// There is no session it belongs to.
    NoSession,
    /// It does not decrypt.
    Undecryptable,
    /// It decrypts, but says it is something else: another sender, place or recipient.
    Misplaced,
    /// Its content is not understood.
    Malformed,
}

impl Unreadable {
    /// Whether asking its sender again may help: the session was missing or failed.
    pub const fn is_of_session(self) -> bool {
        matches!(self, Self::NoSession | Self::Undecryptable)
    }

    /// A name for logs and the `chat --json` protocol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownDevice => "unknown_device",
            Self::NoSession => "no_session",
            Self::Undecryptable => "undecryptable",
            Self::Misplaced => "misplaced",
            Self::Malformed => "malformed",
        }
    }
}

/// Why a draft was not sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SealFailure {
    /// These devices of this user have no session yet: their bundles are needed.
    NeedBundles(UserId, Vec<InstallationId>),
    /// It never can be.
    Never(&'static str),
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
    Voided(MessageId),
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
