//! What an application is told. Durable events carry a number that never goes back: a program that was
//! killed asks for everything after the last one it handled, and misses nothing.

use chat_core::MessageId;
use serde::{Deserialize, Serialize};

/// An event, in the form `chat --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A message is durably in the outbox.
    Queued {
        /// The program's own key for it.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none", default)]
        idempotency_key: Option<String>,
        /// Its id.
        message_id: String,
    },
    /// A message is durable on the server: one tick.
    Stored {
        /// The program's own key for it.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none", default)]
        idempotency_key: Option<String>,
        /// Its id.
        message_id: String,
        /// Its conversation.
        conversation: String,
        /// Its place.
        seq: u64,
    },
    /// A message of somebody else, or of another device of this user.
    Message {
        /// Who sent it.
        from: String,
        /// From which device.
        device: u8,
        /// Its conversation.
        conversation: String,
        /// Its id.
        message_id: String,
        /// Its place.
        seq: u64,
        /// What it says.
        text: String,
    },
    /// Everything up to `seq` is on a device of this user: two ticks.
    Delivered {
        /// The conversation.
        conversation: String,
        /// Whose device.
        user: String,
        /// Up to here.
        seq: u64,
    },
    /// This user has read up to `seq`.
    Read {
        /// The conversation.
        conversation: String,
        /// Who.
        user: String,
        /// Up to here.
        seq: u64,
    },
    /// A message will never be stored.
    Refused {
        /// The program's own key for it.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none", default)]
        idempotency_key: Option<String>,
        /// Its id, if it had one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        message_id: Option<String>,
        /// Why.
        reason: String,
    },
    /// A message arrived that cannot be read.
    Undecryptable {
        /// Who sent it.
        from: String,
        /// Its conversation.
        conversation: String,
        /// Its id.
        message_id: String,
        /// Its place.
        seq: u64,
        /// Why.
        reason: String,
    },
    /// The content of a message that could not be read when it came; it belongs at its old place.
    Recovered {
        /// Who sent it.
        from: String,
        /// From which device.
        device: u8,
        /// Its conversation.
        conversation: String,
        /// Its id.
        message_id: String,
        /// Its place.
        seq: u64,
        /// What it says.
        text: String,
    },
    /// Nothing will come for these places.
    Gap {
        /// The conversation.
        conversation: String,
        /// The first place.
        from_seq: u64,
        /// The last place.
        to_seq: u64,
        /// Why.
        reason: String,
    },
    /// The account key of a user is another one.
    IdentityChanged {
        /// Who.
        user: String,
    },
    /// A user has another device.
    DeviceAdded {
        /// Who.
        user: String,
        /// Which.
        device: u8,
    },
    /// A session with the server is open. Not durable.
    Connected,
    /// It is gone. Not durable.
    Disconnected,
    /// Everything that waited was received. Not durable.
    CaughtUp,
    /// Somebody is writing. Not durable.
    Typing {
        /// Where.
        conversation: String,
        /// Who.
        user: String,
    },
    /// Whether a user is connected. Not durable.
    Presence {
        /// Who.
        user: String,
        /// Whether.
        online: bool,
    },
    /// Something failed; nothing is lost. Not durable.
    Error {
        /// What, for a program.
        reason: String,
        /// What, for a person.
        message: String,
    },
}

/// An event with its number; 0 for those that are not durable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct EventRecord {
    /// The number.
    pub n: u64,
    /// The event.
    pub event: Event,
}

impl EventRecord {
    /// The line `chat --json` prints.
    pub fn to_json(&self) -> String {
        let mut value = serde_json::to_value(&self.event).unwrap_or_default();
        if let (true, Some(object)) = (self.n > 0, value.as_object_mut()) {
            object.insert("n".into(), self.n.into());
        }
        value.to_string()
    }
}

/// What became of a `send`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Enqueued {
    /// The id of the message, durably in the outbox now. `None` if it was refused, or queued before under
    /// the same `ref`.
    pub message_id: Option<MessageId>,
    /// For a `ref` that was used before with the same message: what was said about it, unchanged.
    pub repeated: Vec<EventRecord>,
}
