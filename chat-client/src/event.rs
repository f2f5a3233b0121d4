//! Events for the application. Durable events carry an increasing number: a program that was killed requests
//! all events after the last one that it handled, and misses none.

use chat_core::MessageId;
use serde::{Deserialize, Serialize};

/// An event, in the form that `chat --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A message is durably in the outbox.
    Queued {
        /// The program's own key (`ref`) for the message.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none", default)]
        idempotency_key: Option<String>,
        message_id: String,
    },
    /// A message is durable on the server: one tick.
    Stored {
        /// The program's own key (`ref`) for the message.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none", default)]
        idempotency_key: Option<String>,
        message_id: String,
        conversation: String,
        seq: u64,
    },
    /// A message from another user, or from another device of this user.
    Message {
        /// The sender's handle, or its user id in hexadecimal if the handle is unknown.
        from: String,
        /// The number of the sending device.
        device: u8,
        conversation: String,
        message_id: String,
        seq: u64,
        text: String,
    },
    /// A device of this user has all messages up to `seq`: two ticks.
    Delivered { conversation: String, user: String, seq: u64 },
    /// This user has read all messages up to `seq`.
    Read { conversation: String, user: String, seq: u64 },
    /// A message will never be stored.
    Refused {
        /// The program's own key (`ref`) for the message.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none", default)]
        idempotency_key: Option<String>,
        /// The message id; `None` if the message was refused before it was queued.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        message_id: Option<String>,
        reason: String,
    },
    /// A message arrived that cannot be read.
    Undecryptable {
        /// The sender's handle, or its user id in hexadecimal if the handle is unknown.
        from: String,
        conversation: String,
        message_id: String,
        seq: u64,
        reason: String,
    },
    /// The content of a message that could not be read on arrival; it belongs at its original `seq`.
    Recovered {
        /// The sender's handle, or its user id in hexadecimal if the handle is unknown.
        from: String,
        /// The number of the sending device.
        device: u8,
        conversation: String,
        message_id: String,
        seq: u64,
        text: String,
    },
    /// No message will arrive for these seqs.
    Gap {
        conversation: String,
        /// The first missing seq.
        from_seq: u64,
        /// The last missing seq, inclusive.
        to_seq: u64,
        reason: String,
    },
    /// The account key of a user changed.
    IdentityChanged { user: String },
    /// A user added a device.
    DeviceAdded { user: String, device: u8 },
    /// A session with the server is open. Not durable.
    Connected,
    /// The session with the server ended. Not durable.
    Disconnected,
    /// The device has received all waiting messages. Not durable.
    CaughtUp,
    /// A user is typing. Not durable.
    Typing { conversation: String, user: String },
    /// A user connected or disconnected. Not durable.
    Presence { user: String, online: bool },
    /// An operation failed; no data is lost. Not durable.
    Error {
        /// The reason as a name, for programs.
        reason: String,
        /// The reason as a text, for users.
        message: String,
    },
}

/// An event with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct EventRecord {
    /// The number of a durable event; 0 if the event is not durable.
    pub n: u64,
    pub event: Event,
}

impl EventRecord {
    /// Returns the line that `chat --json` prints.
    pub fn to_json(&self) -> String {
        let mut value = serde_json::to_value(&self.event).unwrap_or_default();
        if let (true, Some(object)) = (self.n > 0, value.as_object_mut()) {
            object.insert("n".into(), self.n.into());
        }
        value.to_string()
    }
}

/// The result of a `send`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Enqueued {
    /// The id of the message, which is now durably in the outbox. `None` if the message was refused, or was
    /// queued before under the same `ref`.
    pub message_id: Option<MessageId>,
    /// The earlier events of the message, unchanged, if its `ref` was used before for the same message.
    pub repeated: Vec<EventRecord>,
}
