//! Domain types of the message path: publishes, messages, inbox rows, acknowledgements and refusals.

use std::sync::Arc;

use bytes::Bytes;

use crate::model::group::GroupPart;
use crate::model::id::{
    ClientSeq, ConversationId, DeviceAddress, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};
use crate::model::message_options::MessageOptions;

/// A recipient user, and the version of that user's device list that the boxes were encrypted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Audience {
    pub user: UserId,
    pub list_version: u64,
}

/// The ciphertext for one device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceBox {
    pub installation: InstallationId,
    /// Ciphertext that only this device can decrypt.
    pub data: Bytes,
}

/// Position of a publish in its sender's own order. It identifies retries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SendPosition {
    pub conversation: ConversationId,
    /// The idempotency key.
    pub message_id: MessageId,
    /// Dense from 1 in (device, incarnation, conversation).
    pub client_seq: ClientSeq,
    /// The id of the message with `client_seq - 1`; [`MessageId::NIL`] for the first.
    pub prev: MessageId,
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

/// A message on its way to the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// Position in the sender's order.
    pub number: SendPosition,
    /// No incarnation of the device has sent these ids before. The device records that durably before it
    /// sends. Messages that wait when an incarnation begins count as sent.
    pub first: bool,
    /// All recipient users, including the sender's own user.
    pub audience: Vec<Audience>,
    /// The content, encrypted once.
    pub body: Bytes,
    /// One for each device of the audience but the sending one and the excluded ones.
    pub boxes: Vec<DeviceBox>,
    /// Devices of the audience that the sender cannot encrypt for. At least one device of each other user is not
    /// excluded. Their rows are empty.
    pub excluded: Vec<InstallationId>,
    /// The sender's clock in milliseconds since 1970; display data only.
    pub sent_at: u64,
    /// The part that the server reads.
    pub options: MessageOptions,
    /// The part that the members of a group share; `None` in other conversations. In a group the audience names only
    /// the users that the message adds, and members of which the sender has a later device list than the roster; the
    /// boxes are for devices that lack the sender key of this device.
    pub group: Option<Box<GroupPart>>,
}

impl Publish {
    /// Returns the approximate size of the message on the wire, in bytes.
    pub fn size(&self) -> usize {
        let boxes = self.boxes.iter().map(|one| one.data.len() + 24);
        let group = self.group.as_ref().map_or(0, |part| part.size());
        128 + 24 * self.audience.len() + self.body.len() + self.options.size() + group + boxes.sum::<usize>()
    }
}

/// A message of a conversation, as stored in history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub id: MessageId,
    pub sender: DeviceAddress,
    /// The sender's `client_seq`.
    pub client_seq: ClientSeq,
    /// The id of the sender's previous message.
    pub prev: MessageId,
    pub incarnation: Incarnation,
    /// The recipient users.
    pub audience: Vec<Audience>,
    /// The content, encrypted once.
    pub body: Bytes,
    /// The sender's clock in milliseconds since 1970, never later than the server's clock at commit.
    pub sent_at: u64,
    /// The part that the server reads.
    pub options: MessageOptions,
    /// The part that the members of a group share; `None` in other conversations.
    pub group: Option<Box<GroupPart>>,
}

/// The reason why a seq has no content for a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EmptyReason {
    /// Its sender withdrew it.
    Skip,
    /// Retention removed it before the device read it.
    Expired,
    /// It could not be applied.
    Poison,
    /// Its sender could not encrypt it for this device.
    Excluded,
    /// The inbox of this device was full.
    Quota,
    /// The user of this device has blocked the sender.
    Withheld,
    /// Every member has cleared it from the conversation.
    Cleared,
    /// The user of this device was no member of the group.
    NotMember,
    /// A later message of the conversation deleted it for everyone.
    Deleted,
    /// Its lifetime ended: the `expires_after_ms` of its options have passed since its commit.
    Disappeared,
}

impl EmptyReason {
    /// Returns whether a message with this reason had content that was erased in history.
    pub const fn is_erasure(self) -> bool {
        matches!(self, Self::Expired | Self::Cleared | Self::Deleted | Self::Disappeared)
    }
}

/// The content of an inbox row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowContent {
    /// A message of another user, or of another device of the same user.
    Message {
        /// The same in history and inbox.
        message: Arc<Message>,
        /// The ciphertext for this device; empty in history.
        sealed: Bytes,
    },
    /// The device's own message.
    Own { message_id: MessageId, client_seq: ClientSeq, incarnation: Incarnation },
    /// No content from seq `from` up to the row's own seq.
    Empty {
        reason: EmptyReason,
        /// The first seq without content.
        from: Seq,
    },
    /// Content that this release cannot read, for example of a later release: the encoded row.
    Unknown(Bytes),
}

/// A row of a device's inbox. Each seq produces exactly one row for every device of the device lists it
/// names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InboxRow {
    pub conversation: ConversationId,
    /// Position in the conversation.
    pub seq: Seq,
    /// The commit time in microseconds, strictly rising in a conversation.
    pub time_us: u64,
    /// This is the device's first row of the conversation.
    pub joined: bool,
    pub content: RowContent,
}

impl InboxRow {
    /// Returns the position of the row in its device's drain order.
    pub const fn position(&self) -> InboxPosition {
        InboxPosition { time_us: self.time_us, conversation: self.conversation, seq: self.seq }
    }

    /// Returns the lowest seq that the row covers.
    pub const fn first_seq(&self) -> Seq {
        match self.content {
            RowContent::Empty { from, .. } => from,
            _ => self.seq,
        }
    }

    /// Returns the row that replaces all rows from `from` to `last`, which retention removed.
    pub const fn expired(conversation: ConversationId, from: Seq, last: InboxPosition, joined: bool) -> Self {
        let content = RowContent::Empty { reason: EmptyReason::Expired, from };
        Self { conversation, seq: last.seq, time_us: last.time_us, joined, content }
    }

    /// Returns the inbox row of a device, made from this row of history. The row gets the box of the device if the message
    /// still has content.
    #[must_use]
    pub fn with_box(mut self, data: Bytes, joined: bool) -> Self {
        self.joined = joined;
        if let RowContent::Message { sealed, .. } = &mut self.content {
            *sealed = data;
        }
        self
    }

    /// Returns the row of history as a device reads it in a feed: its own message has no content.
    #[must_use]
    pub fn for_device(mut self, device: InstallationId) -> Self {
        if let RowContent::Message { message, .. } = &self.content
            && message.sender.installation == device
        {
            self.content = RowContent::Own {
                message_id: message.id,
                client_seq: message.client_seq,
                incarnation: message.incarnation,
            };
        }
        self
    }

    /// Erases the content of a message, or of a kind that this release does not know: the row is then empty, for this
    /// reason. Returns whether it had content.
    ///
    /// ```
    /// use chat_core::envelope::{EmptyReason, InboxRow, RowContent};
    /// use chat_core::{ConversationId, UserId};
    /// let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
    /// let content = RowContent::Unknown("later".into());
    /// let mut row = InboxRow { conversation, seq: 4, time_us: 9, joined: false, content };
    /// assert!(row.erase(EmptyReason::Expired));
    /// assert_eq!(row.content, RowContent::Empty { reason: EmptyReason::Expired, from: 4 });
    /// assert!(!row.erase(EmptyReason::Cleared), "the first reason stays");
    /// ```
    pub fn erase(&mut self, reason: EmptyReason) -> bool {
        let has_content = matches!(self.content, RowContent::Message { .. } | RowContent::Unknown(_));
        if has_content {
            self.content = RowContent::Empty { reason, from: self.seq };
        }
        has_content
    }

    /// Returns whether the row of history has lost its content.
    pub const fn is_erased(&self) -> bool {
        matches!(self.content, RowContent::Empty { reason, .. } if reason.is_erasure())
    }

    /// Returns the time, in microseconds since 1970, at which the lifetime of a message ends; `None` if it has none.
    pub fn disappears_at_us(&self) -> Option<u64> {
        let RowContent::Message { message, .. } = &self.content else { return None };
        let after_ms = message.options.expires_after_ms;
        (after_ms > 0).then(|| self.time_us.saturating_add(after_ms.saturating_mul(1000)))
    }

    /// Erases a message whose lifetime ended at `now_us` or before. Returns whether it did.
    pub fn disappear(&mut self, now_us: u64) -> bool {
        let is_over = self.disappears_at_us().is_some_and(|at_us| at_us <= now_us);
        is_over && self.erase(EmptyReason::Disappeared)
    }

    /// Returns whether the row replaces rows that retention removed.
    pub const fn is_expired(&self) -> bool {
        matches!(self.content, RowContent::Empty { reason: EmptyReason::Expired, .. })
    }

    /// Returns the approximate size of the row on the wire, in bytes.
    pub fn size(&self) -> usize {
        match &self.content {
            RowContent::Message { message, sealed } => {
                let options = message.options.size();
                let group = message.group.as_ref().map_or(0, |part| part.size());
                220 + 24 * message.audience.len() + message.body.len() + options + group + sealed.len()
            }
            RowContent::Unknown(bytes) => bytes.len(),
            _ => 64,
        }
    }
}

/// A position in a device's drain order: commit time, then conversation, then seq.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InboxPosition {
    /// Commit time in microseconds.
    pub time_us: u64,
    pub conversation: ConversationId,
    pub seq: Seq,
}

impl InboxPosition {
    /// The position before every row.
    pub const START: Self = Self { time_us: 0, conversation: ConversationId::from_bytes([0; 17]), seq: 0 };
}

/// The failures that an acknowledged write survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Durability {
    /// Forced to stable storage.
    Fsync,
    /// Held in memory only, for tests: survives no failure.
    Memory,
}

/// Confirmation that a message is durable and has a seq.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    pub conversation: ConversationId,
    /// As in the publish.
    pub message_id: MessageId,
    /// As in the publish.
    pub client_seq: ClientSeq,
    /// The incarnation it was sent in.
    pub incarnation: Incarnation,
    /// The message's position in the conversation.
    pub seq: Seq,
    /// The epoch of the data set.
    pub store_epoch: StoreEpoch,
    pub durability: Durability,
}

/// Why something was not done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The outcome is unknown: send the same ids again after this many milliseconds.
    Retry(u32),
    /// Send again from this `client_seq`.
    Expected(ClientSeq),
    /// The ids contradict the stored ones: the sender's store was restored from a backup or cloned.
    Conflict,
    /// The boxes do not match the device lists of these users.
    Mismatch(Vec<UserId>),
    /// The incarnation is closed.
    Superseded,
    /// The operation is not allowed, or the user or conversation does not exist.
    Denied,
    /// Larger than the limits.
    TooLarge,
    /// A recipient's inbox is full.
    Quota,
    /// Not understood by this server.
    Unsupported,
    /// Rate limit exceeded: try again after this many milliseconds.
    Throttled(u32),
    /// The frame breaks a rule of the wire protocol.
    Invalid,
    /// The requested item does not exist.
    NotFound,
    /// Another user has the handle, or a later version of the device list is stored.
    Taken,
    /// The message is for another version of the group's roster than the current one, which is this.
    StaleRoster(u64),
    /// The sender is no contact of these users, so it can not add them to a group. It can invite them.
    NoContact(Vec<UserId>),
}

impl Refusal {
    /// Returns whether sending the same ids again can never succeed.
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Denied
                | Self::TooLarge
                | Self::Quota
                | Self::Unsupported
                | Self::Invalid
                | Self::NotFound
                | Self::NoContact(_)
        )
    }

    /// Returns the name for logs, metrics and the `chat --json` protocol.
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
            Self::StaleRoster(_) => "stale_roster",
            Self::NoContact(_) => "no_contact",
        }
    }
}

/// The message, request or handshake that a [`Refusal`] answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A publish or skip, with its `client_seq` and the incarnation it was sent in.
    Message(ConversationId, MessageId, ClientSeq, Incarnation),
    /// A request with this id.
    Request(u64),
    /// The handshake of the connection.
    Opening,
}

/// Acknowledgement: everything up to `seq` is durable on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AckUpTo {
    pub conversation: ConversationId,
    /// The highest contiguous seq.
    pub seq: Seq,
}

/// Where a device stands in a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InboxCursor {
    /// The highest seq that the device acknowledged.
    pub acked: Seq,
    /// The highest seq that has a row for it.
    pub tail: Seq,
}

impl InboxCursor {
    /// Applies a row of an atomic commit, and returns whether the store must keep the row.
    ///
    /// The rules that every store with atomic commits shares: a device that joins starts behind its first row; the tail
    /// never falls; a row at or below the tail was stored before, so a repeated commit brings back neither a row that
    /// the device acknowledged nor one that retention replaced by a gap.
    ///
    /// ```
    /// use chat_core::envelope::{EmptyReason, InboxCursor, InboxRow, RowContent};
    /// use chat_core::{ConversationId, UserId};
    /// let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
    /// let content = RowContent::Empty { reason: EmptyReason::Skip, from: 4 };
    /// let row = InboxRow { conversation, seq: 4, time_us: 9, joined: true, content };
    /// let mut cursor = InboxCursor::default();
    /// assert!(cursor.receive(&row));
    /// assert_eq!((cursor.acked, cursor.tail), (3, 4));
    /// assert!(!cursor.receive(&row), "it was stored before");
    /// ```
    pub const fn receive(&mut self, row: &InboxRow) -> bool {
        let is_new = row.seq > self.tail;
        if row.joined && self.tail == 0 && self.acked < row.seq - 1 {
            self.acked = row.seq - 1;
        }
        if is_new {
            self.tail = row.seq;
        }
        is_new && row.seq > self.acked
    }

    /// Returns the cursor as a store reports it. A device acknowledges the rows of a feed above the rows of its inbox.
    #[must_use]
    pub const fn with_feed(self) -> Self {
        Self { tail: if self.tail < self.acked { self.acked } else { self.tail }, ..self }
    }
}
