//! Events for the application.

use std::time::{Duration, SystemTime};

use chat_core::group::GroupAction;
use chat_core::presence::PresenceAudience;
use chat_core::replica::Violation;
use chat_core::{ConversationId, DeviceId, Error, ErrorKind, MessageId};
use serde::{Deserialize, Serialize};

use crate::contact::Relation;
use crate::message::{Message, MessageRef, User};
use crate::message_change::MessageChange;

/// An event. Durable events are kept in the profile: a program that was killed receives them again. Transient events
/// report the current state of the connection and of other users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// A message is durably in the outbox.
    Queued {
        message: MessageId,
        /// The program's own key for the message.
        idempotency_key: Option<String>,
    },
    /// A message is durable on the server: one tick.
    Stored {
        message: MessageId,
        /// The program's own key for the message.
        idempotency_key: Option<String>,
        conversation: ConversationId,
        seq: u64,
    },
    /// A message will never be stored.
    Refused {
        message: MessageId,
        /// The program's own key for the message.
        idempotency_key: Option<String>,
        reason: RefusedReason,
    },
    /// A message from another user, or from another device of this user.
    Message(Message),
    /// A readable copy of a message that could not be read on arrival. It belongs at its original seq.
    Recovered(Message),
    /// A device of this user has all messages up to `seq`: two ticks.
    Delivered { conversation: ConversationId, user: User, seq: u64 },
    /// This user has read all messages up to `seq`.
    Read { conversation: ConversationId, user: User, seq: u64 },
    /// A user changed an earlier message; also this user, on any of its devices, once the change is stored. This device has
    /// checked that the user may do that.
    MessageChanged {
        /// The seq of the change.
        seq: u64,
        /// The user that made the change.
        user: User,
        message: MessageRef,
        change: MessageChange,
    },
    /// No message will arrive for these seqs.
    Gap {
        conversation: ConversationId,
        /// The first missing seq.
        from_seq: u64,
        /// The last missing seq, inclusive.
        to_seq: u64,
        reason: GapReason,
    },
    /// The lifetime of a message ended, and this device has erased it.
    MessageDisappeared { message: MessageRef, seq: u64 },
    /// A member changed a group, and its device signed the change. This device has checked that the role of the member
    /// allows it, except for changes from before it knew the roster.
    GroupChanged {
        group: ConversationId,
        seq: u64,
        /// The member that made the change.
        user: User,
        action: GroupAction,
    },
    /// The account key of a user changed: compare safety numbers.
    IdentityChanged { user: User },
    /// A user added a device.
    DeviceAdded { user: User, device: DeviceId },
    /// The rows of a conversation contradict their senders, or each other: the server, or something between it and this
    /// device, dropped, swapped, repeated or replaced messages. The message that shows it is authentic and is not hidden.
    Integrity {
        conversation: ConversationId,
        /// The sender of the message that shows it; `None` if no message does.
        user: Option<User>,
        /// The device of that sender.
        device: Option<DeviceId>,
        violation: Violation,
    },
    /// The server was restored from an older copy of its data: it no longer has the messages of the conversation after
    /// this seq, and numbers later messages from there. This device keeps them: the history shows them after the message
    /// at the seq, as [archived](crate::Message::archived).
    ServerRestored { conversation: ConversationId, after_seq: u64 },
    /// A durable event that a later version of the client recorded in this profile.
    Unsupported,

    /// A session with the server is open. Transient.
    Connected,
    /// The session with the server ended; the client reconnects by itself. Transient.
    Disconnected,
    /// The device has received all waiting messages. Transient.
    CaughtUp,
    /// A member of a group has received all messages up to `delivered_seq`, and read all up to `read_seq`. Only members
    /// with messages of their own get it; [`Ticket::status`](crate::Ticket::status) counts the members. Transient.
    GroupReceipt { group: ConversationId, user: User, delivered_seq: u64, read_seq: u64 },
    /// A user is typing. In a group it is reported only while this user
    /// [looks at it](crate::Client::open_conversation). Transient.
    Typing { conversation: ConversationId, user: User },
    /// A watched user connected or disconnected, or the server learned when it was last seen. Transient.
    Presence { user: User, presence: Presence },
    /// The server limits the rate of this device. The client continues by itself after this time. Transient.
    Throttled { retry_after: Duration },
    /// The token expires soon, and with it the session: get a new one and call
    /// [`Client::set_token`](crate::Client::set_token), which keeps the connection. Transient.
    TokenExpiring { expires_in: Duration },
    /// The token expired, or this device was unlinked: get a new token and call
    /// [`Client::set_token`](crate::Client::set_token). Transient.
    TokenRequired,
    /// The server does not support the protocol version of this client: update the program. Transient.
    UpdateRequired,
    /// The users that learn the presence of this user changed, on this device or on another one. Transient.
    PresenceAudienceChanged { audience: PresenceAudience },
    /// The relation of this user to another one changed, on this device or on another one. Transient.
    RelationChanged { user: User, relation: Relation },
    /// Another copy of this profile is in use, or it was restored twice within a day. The user decides whether this
    /// copy continues: [`Client::reincarnate`](crate::Client::reincarnate). Transient.
    Superseded,
    /// The server cannot be dialled, and retrying alone will not help: its certificate is not trusted (`Denied`), or
    /// it is not a chat server (`Invalid`). The client keeps trying. Transient.
    ConnectionFailed { kind: ErrorKind, message: String },
    /// The server hides a later device list of a user from this device. Transient.
    DeviceListHidden { user: User },
    /// The server sent prekeys that their device did not sign, or that are unsafe. The client requests others.
    /// Transient.
    PrekeysRejected,
    /// Messages to a user exclude this device for now, because no session with it can begin: it has no prekeys, or they
    /// are rejected, for example because it has been off for a month. The user's other devices receive the messages; this
    /// one receives a gap. The senders report it, and the other devices of the user. Transient.
    DeviceExcluded { user: User, device: DeviceId },
    /// The clock of this device and the server's differ by 10 minutes or more. The client uses the server's time.
    /// `ahead_ms` is the device's time minus the server's. Transient.
    ClockWrong { ahead_ms: i64 },
    /// The link or the server is slow: a message has waited for 5 seconds for its answer, or the waiting messages have not
    /// all arrived. They arrive as fast as the link allows. At most once in a connection. Transient.
    Slow,
    /// A session with this device of a user began without a one-time prekey, because none was left or too many were
    /// claimed. Until the device answers, a later theft of its keys reveals the messages of this session. Transient.
    SessionDegraded { user: User, device: DeviceId },
}

/// An event with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EventRecord {
    /// The number of a durable event, rising from 1 within the profile; `None` for a transient event.
    pub number: Option<u64>,
    pub event: Event,
}

impl EventRecord {
    pub(crate) const fn durable(number: u64, event: Event) -> Self {
        Self { number: Some(number), event }
    }

    pub(crate) const fn transient(event: Event) -> Self {
        Self { number: None, event }
    }
}

/// The online state of a user, as far as its [audience](crate::Client::set_presence_audience) includes this user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Presence {
    Online,
    Offline {
        /// When a device of the user was connected last; `None` if the user hides it, or the server does not know it.
        last_seen: Option<SystemTime>,
    },
}

/// The reason why a message will never be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RefusedReason {
    /// There is no such user.
    UnknownUser,
    /// The message was written before the account key of the recipient changed. Compare safety numbers, then send it
    /// again.
    IdentityChanged,
    /// The inbox of the recipient is full.
    Quota,
    /// The server does not allow the message.
    Denied,
    /// The message is too large for the server.
    TooLarge,
    /// The server does not support the message.
    Unsupported,
    /// The encryption suite cannot encrypt for a device of the recipient.
    CannotEncrypt,
    /// The change does not fit the group: for example the user is a member already.
    Invalid,
    /// There is no such group, or a user that the change names is no member.
    NotFound,
    /// A user did not accept this user as a contact, and never wrote to it: invite it instead.
    NoContact,
    /// This device does not have the key of the channel: it needs the new link.
    NoChannelKey,
    /// A reason of a later version.
    Other,
}

/// The names of reasons in the local store and in `chat --json`.
const REFUSED_REASONS: [(RefusedReason, &str); 11] = [
    (RefusedReason::UnknownUser, "unknown_user"),
    (RefusedReason::IdentityChanged, "identity_changed"),
    (RefusedReason::Quota, "quota"),
    (RefusedReason::Denied, "denied"),
    (RefusedReason::TooLarge, "too_large"),
    (RefusedReason::Unsupported, "unsupported"),
    (RefusedReason::CannotEncrypt, "cannot_encrypt"),
    (RefusedReason::Invalid, "invalid"),
    (RefusedReason::NotFound, "not_found"),
    (RefusedReason::NoContact, "no_contact"),
    (RefusedReason::NoChannelKey, "no_channel_key"),
];

impl RefusedReason {
    /// Returns the name of the reason in `chat --json`.
    pub fn name(self) -> &'static str {
        REFUSED_REASONS.iter().find(|(reason, _)| *reason == self).map_or("other", |(_, name)| name)
    }

    pub(crate) fn from_name(name: &str) -> Self {
        REFUSED_REASONS.iter().find(|(_, known)| *known == name).map_or(Self::Other, |(reason, _)| *reason)
    }
}

impl From<RefusedReason> for Error {
    fn from(reason: RefusedReason) -> Self {
        match reason {
            RefusedReason::UnknownUser => Self::new(ErrorKind::NotFound, "there is no such user"),
            RefusedReason::IdentityChanged => Self::new(
                ErrorKind::Denied,
                "the keys of the recipient changed: compare safety numbers, then send it again",
            ),
            RefusedReason::Quota => {
                Self::new(ErrorKind::Throttled, "the inbox of the recipient is full: send it later")
            }
            RefusedReason::Denied => Self::new(ErrorKind::Denied, "the server does not allow the message"),
            RefusedReason::TooLarge => {
                Self::new(ErrorKind::Invalid, "the message is too large for the server")
            }
            RefusedReason::Unsupported => {
                Self::new(ErrorKind::Invalid, "the server does not support the message")
            }
            RefusedReason::CannotEncrypt => {
                Self::new(ErrorKind::Invalid, "a device of the recipient has keys that cannot be used")
            }
            RefusedReason::Invalid => Self::new(ErrorKind::Invalid, "the change does not fit the group"),
            RefusedReason::NotFound => {
                Self::new(ErrorKind::NotFound, "there is no such group, or the user is no member")
            }
            RefusedReason::NoContact => {
                Self::new(ErrorKind::Denied, "the user has not accepted you as a contact: invite it instead")
            }
            RefusedReason::NoChannelKey => Self::new(
                ErrorKind::Denied,
                "this device lacks the key of the channel: subscribe with the new link",
            ),
            RefusedReason::Other => Self::new(ErrorKind::Denied, "the message was refused"),
        }
    }
}

/// The reason why no message arrives for a seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GapReason {
    /// Retention removed the messages before this device read them.
    Expired,
    /// The server could not apply the messages.
    Poison,
    /// The sender could not encrypt the message for this device. Other devices of this user may have it.
    Excluded,
    /// The inbox of this device was full. Other devices of this user may have the messages.
    Quota,
    /// This user has blocked the sender. Its sender knows it as stored.
    Withheld,
    /// By the server's word, the sender withdrew the message before it was stored. Nothing proves it: a server that
    /// drops a message can say so too.
    Withdrawn,
    /// All members have [cleared](crate::Client::clear_history) the conversation, before this device read the message.
    Cleared,
    /// This user was no member of the group.
    NotMember,
    /// The message was deleted for all before this device read it. The deletion itself is a later message.
    Deleted,
    /// The lifetime of the message ended before this device received it.
    Disappeared,
    /// The row has content that this release cannot read, for example of a later release. The profile keeps it.
    Unsupported,
}

impl GapReason {
    /// Returns the name of the reason in `chat --json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Poison => "poison",
            Self::Excluded => "excluded",
            Self::Quota => "quota",
            Self::Withheld => "withheld",
            Self::Withdrawn => "withdrawn",
            Self::Cleared => "cleared",
            Self::NotMember => "not_member",
            Self::Deleted => "deleted",
            Self::Disappeared => "disappeared",
            Self::Unsupported => "unsupported",
        }
    }

    pub(crate) fn from_name(name: &str) -> Self {
        match name {
            "expired" => Self::Expired,
            "excluded" => Self::Excluded,
            "quota" => Self::Quota,
            "withheld" => Self::Withheld,
            "withdrawn" => Self::Withdrawn,
            "cleared" => Self::Cleared,
            "not_member" => Self::NotMember,
            "deleted" => Self::Deleted,
            "disappeared" => Self::Disappeared,
            "unsupported" => Self::Unsupported,
            _ => Self::Poison,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_names_of_reasons_are_read_back() {
        for (reason, name) in REFUSED_REASONS {
            assert_eq!((RefusedReason::from_name(name), reason.name()), (reason, name));
        }
        assert_eq!(RefusedReason::from_name("later"), RefusedReason::Other);
        let reasons = [
            GapReason::Expired,
            GapReason::Poison,
            GapReason::Excluded,
            GapReason::Quota,
            GapReason::Withheld,
            GapReason::Withdrawn,
            GapReason::NotMember,
            GapReason::Deleted,
            GapReason::Disappeared,
            GapReason::Unsupported,
        ];
        for reason in reasons {
            assert_eq!(GapReason::from_name(reason.name()), reason);
        }
    }
}
