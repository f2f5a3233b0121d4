//! What travels and what is kept: drafts, messages, inbox rows, acknowledgements and answers.

use std::sync::Arc;

use bytes::Bytes;

use crate::model::id::{
    ClientSeq, ConversationId, DeviceAddress, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};

/// A user a message is for, and the version of that user's device list its boxes were made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Audience {
    /// The user.
    pub user: UserId,
    /// The version of the list.
    pub list_version: u64,
}

/// The ciphertext for one device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceBox {
    /// The recipient device.
    pub installation: InstallationId,
    /// What only that device can open.
    pub data: Bytes,
}

/// The place of a publish in its sender's own order: what makes a retry recognisable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendPosition {
    /// The conversation.
    pub conversation: ConversationId,
    /// The idempotency key.
    pub message_id: MessageId,
    /// Dense from 1 in (device, incarnation, conversation).
    pub client_seq: ClientSeq,
    /// The id with `client_seq - 1`, [`MessageId::NIL`] for the first.
    pub prev: MessageId,
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// The generation of the sender's local store.
    pub generation: u64,
}

impl SendPosition {
    /// Returns the subject of an answer to the publish or skip that has this position.
    pub const fn subject(&self) -> Subject {
        Subject::Message(self.conversation, self.message_id, self.client_seq, self.incarnation)
    }
}

/// A draft on its way to the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// Its place in the sender's order.
    pub number: SendPosition,
    /// These ids were never sent before (remembered durably before sending), by this incarnation or an earlier
    /// one: what waits when an incarnation begins counts as sent.
    pub first: bool,
    /// Everybody it is for, the sender's own user included.
    pub audience: Vec<Audience>,
    /// The content, encrypted once.
    pub body: Bytes,
    /// One for each device of the audience but the sending one.
    pub boxes: Vec<DeviceBox>,
    /// The sender's clock in milliseconds; display data.
    pub sent_at: u64,
}

/// A message of a conversation, as history keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Who sent it.
    pub sender: DeviceAddress,
    /// The sender's count.
    pub client_seq: ClientSeq,
    /// The sender's message before it.
    pub prev: MessageId,
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// Whom it was for.
    pub audience: Vec<Audience>,
    /// The content, encrypted once.
    pub body: Bytes,
    /// The sender's clock in milliseconds, never later than the server's at commit.
    pub sent_at: u64,
}

/// Why a seq holds nothing for a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EmptyReason {
    /// Its sender withdrew it.
    Skip,
    /// Retention or quota removed it unread.
    Expired,
    /// It could not be applied.
    Poison,
}

/// What an inbox row holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowContent {
    /// A message of somebody else, or of another device of the same user.
    Message {
        /// The message; in history and inbox alike.
        message: Arc<Message>,
        /// This device's ciphertext; empty in history.
        sealed: Bytes,
    },
    /// The device's own message.
    Own {
        /// Its id.
        message_id: MessageId,
        /// Its number.
        client_seq: ClientSeq,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// Nothing, from `from` up to the row's seq.
    Empty {
        /// Why.
        reason: EmptyReason,
        /// The first seq that holds nothing.
        from: Seq,
    },
}

/// A row of a device's inbox: every seq gives exactly one to every device of the lists it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InboxRow {
    /// The conversation.
    pub conversation: ConversationId,
    /// The place in it.
    pub seq: Seq,
    /// The commit time, strictly rising in a conversation.
    pub time_us: u64,
    /// The device's first row of this conversation.
    pub joined: bool,
    /// What it holds.
    pub content: RowContent,
}

impl InboxRow {
    /// Where the row stands in its device's drain order.
    pub const fn position(&self) -> InboxPosition {
        InboxPosition { time_us: self.time_us, conversation: self.conversation, seq: self.seq }
    }

    /// The lowest seq the row speaks for.
    pub const fn first_seq(&self) -> Seq {
        match self.content {
            RowContent::Empty { from, .. } => from,
            _ => self.seq,
        }
    }

    /// The row that stands for all from `from` to a place that retention removed.
    pub const fn expired(conversation: ConversationId, from: Seq, last: InboxPosition, joined: bool) -> Self {
        let content = RowContent::Empty { reason: EmptyReason::Expired, from };
        Self { conversation, seq: last.seq, time_us: last.time_us, joined, content }
    }

    /// Whether it stands for what retention removed.
    pub const fn is_expired(&self) -> bool {
        matches!(self.content, RowContent::Empty { reason: EmptyReason::Expired, .. })
    }

    /// About how many bytes it takes on the wire.
    pub fn size(&self) -> usize {
        match &self.content {
            RowContent::Message { message, sealed } => {
                220 + 24 * message.audience.len() + message.body.len() + sealed.len()
            }
            _ => 64,
        }
    }
}

/// A place in a device's drain order: commit time, then conversation, then seq.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InboxPosition {
    /// Commit time in microseconds.
    pub time_us: u64,
    /// The conversation.
    pub conversation: ConversationId,
    /// The seq.
    pub seq: Seq,
}

impl InboxPosition {
    /// Before every row.
    pub const START: Self = Self { time_us: 0, conversation: ConversationId::from_bytes([0; 17]), seq: 0 };
}

/// What an acknowledged write survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Durability {
    /// Forced to stable storage.
    Fsync,
    /// Nothing: memory, for tests.
    Memory,
}

/// One tick: the message is durable and has its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The conversation.
    pub conversation: ConversationId,
    /// The id that was sent.
    pub message_id: MessageId,
    /// The number that was sent.
    pub client_seq: ClientSeq,
    /// The incarnation it was sent in.
    pub incarnation: Incarnation,
    /// The place.
    pub seq: Seq,
    /// Which life of the data set.
    pub store_epoch: StoreEpoch,
    /// What it survives.
    pub durability: Durability,
}

/// Why something was not done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// Nothing is known: send the same ids again after this many milliseconds.
    Retry(u32),
    /// Go back to this `client_seq`.
    Expected(ClientSeq),
    /// The numbers contradict what is stored: the sender's store was restored or cloned.
    Conflict,
    /// The boxes do not match these users' device lists.
    Mismatch(Vec<UserId>),
    /// The incarnation is closed.
    Superseded,
    /// Not allowed, or no such user or conversation.
    Denied,
    /// Larger than the limits.
    TooLarge,
    /// A recipient's inbox is full.
    Quota,
    /// Not understood by this server.
    Unsupported,
    /// Too many for now: again after this many milliseconds.
    Throttled(u32),
    /// It breaks a rule of the wire.
    Invalid,
    /// No such thing.
    NotFound,
    /// Somebody else has it, or a later version is there.
    Taken,
}

impl Refusal {
    /// Whether sending the same ids again can never succeed.
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Denied | Self::TooLarge | Self::Quota | Self::Unsupported | Self::Invalid | Self::NotFound
        )
    }

    /// A name for logs, metrics and the `chat --json` protocol.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Retry(_) => "retry",
            Self::Expected(_) => "expected",
            Self::Conflict => "conflict",
            Self::Mismatch(_) => "mismatch",
            Self::Superseded => "superseded",
            Self::Denied => "denied",
            Self::TooLarge => "too_large",
            Self::Quota => "quota",
            Self::Unsupported => "unsupported",
            Self::Throttled(_) => "throttled",
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Taken => "taken",
        }
    }
}

/// What a [`Refusal`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A publish or void, with its number and the incarnation it was sent in.
    Message(ConversationId, MessageId, ClientSeq, Incarnation),
    /// A request.
    Request(u64),
    /// The connection's opening.
    Opening,
}

/// Everything up to `seq` is durably on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AckUpTo {
    /// The conversation.
    pub conversation: ConversationId,
    /// The highest contiguous seq.
    pub seq: Seq,
}

/// Where a device stands in a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InboxCursor {
    /// The highest seq it acknowledged.
    pub acked: Seq,
    /// The highest seq that has a row for it.
    pub tail: Seq,
}
