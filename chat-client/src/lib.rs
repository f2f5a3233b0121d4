//! The client of the chat system: a durable outbox, exactly-once display of messages, receipts, several
//! devices, and end-to-end encryption by a [`Suite`] that the application chooses.
#![cfg_attr(
    feature = "native",
    doc = r#"
```no_run
use chat_client::prelude::*;

# fn suite() -> Box<dyn Suite> { unimplemented!() }
# async fn echo() -> Result<()> {
let config = ClientConfig::new("wss://chat.example", "echo-bot", suite())?; // `chat_signal::suite()`
let client = Client::register_if_new(config, "echo-bot").await?;
let mut events = client.events("echo").await?; // a durable cursor: after a restart no event is missed
while let Some(record) = events.next().await? {
    if let Event::Message(message) = &record.event
        && let Content::Text(text) = message.content()
    {
        message.reply(&client, text.as_str()).await?;
    }
    events.handled(&record).await?;
}
# Ok(())
# }
```
"#
)]
//!
//! | item | purpose |
//! |---|---|
//! | [`Client`] | handle to one profile: register, link, send, read, close |
//! | [`ClientConfig`], [`Profile`] | server, profile, suite and options of a client |
//! | [`Events`], [`Event`] | stream of events with a durable cursor |
//! | [`Message`], [`Content`] | a message that was received or sent |
//! | [`SendRequest`], [`Ticket`] | a message to send, and its progress: stored, delivered, read |
//! | [`platform`] | traits that a platform implements: tasks, clock, storage |
//! | [`suite`], [`body`] | traits that an encryption suite implements; `chat-signal` implements the Signal protocol |
//!
//! There is no default suite, so the client never sends plaintext by accident.
//!
//! | feature | adds |
//! |---|---|
//! | `native` (default) | threads, profiles in a directory, WebSockets |
//! | `client` | the client without a platform, for browsers and other targets |
//! | `encrypted` | profiles that are encrypted at rest (SQLCipher with OpenSSL) |

pub mod body;
pub mod suite;

#[cfg(feature = "client")]
mod account;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod config;
#[cfg(feature = "client")]
mod connection_state;
#[cfg(feature = "client")]
mod content;
#[cfg(feature = "client")]
mod conversation;
#[cfg(feature = "client")]
mod driver;
#[cfg(feature = "client")]
mod event;
#[cfg(feature = "client")]
mod linking;
#[cfg(feature = "client")]
mod message;
#[cfg(feature = "client")]
pub mod platform;
#[cfg(feature = "client")]
mod safety_number;
#[cfg(feature = "client")]
mod sealed_body;
#[cfg(feature = "client")]
mod send;
#[cfg(feature = "client")]
mod status;
#[cfg(feature = "client")]
mod store;

pub use suite::Suite;

#[cfg(feature = "client")]
pub use client::{Client, Events, PendingLink, Submission, Ticket};
#[cfg(feature = "client")]
pub use config::{ClientConfig, Profile};
#[cfg(feature = "client")]
pub use conversation::Conversation;
#[cfg(feature = "client")]
pub use event::{Event, EventRecord, GapReason, Presence, RefusedReason};
#[cfg(feature = "client")]
pub use linking::LinkCode;
#[cfg(feature = "client")]
pub use message::{Content, Message, User};
#[cfg(feature = "client")]
pub use safety_number::SafetyNumber;
#[cfg(feature = "client")]
pub use send::{Recipient, SendRequest};
#[cfg(feature = "client")]
pub use status::{Count, Position, Status};

pub use chat_core::replica::Unreadable;
pub use chat_core::{
    ConversationId, ConversationKind, DeviceId, Error, ErrorKind, Handle, MessageId, Result, UserId,
};

/// The items that most programs need.
#[cfg(feature = "client")]
pub mod prelude {
    pub use crate::suite::Suite;
    pub use crate::{
        Client, ClientConfig, Content, ConversationId, Error, ErrorKind, Event, EventRecord, Events, Handle,
        Message, MessageId, Profile, Recipient, Result, SendRequest, Ticket, User, UserId,
    };
}
