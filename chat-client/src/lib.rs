//! The client of the chat system: a durable outbox, exactly-once display of messages, receipts, several
//! devices, and end-to-end encryption by a [`Suite`] that the application chooses.
//!
//! | module | contents |
//! |---|---|
//! | [`suite`] | trait of an encryption suite; `chat-signal` implements the Signal protocol |
//! | [`body`], [`content`] | encryption of a message once, and of its key for each device |
//! | [`event`] | events for the application, with a cursor that misses none |
//! | [`safety`] | safety numbers |
//! | [`linking`] | linking of a second device |
//! | `store`, `client` (feature `native`) | the local SQLite store, and [`Client`] |
//!
//! There is no default suite: [`Client::builder`] requires one, so the client never sends plaintext by
//! accident.

pub mod body;
pub mod content;
pub mod event;
pub mod linking;
pub mod safety;
pub mod suite;

#[cfg(feature = "native")]
mod client;
#[cfg(feature = "native")]
mod connection_state;
#[cfg(feature = "native")]
mod driver;
#[cfg(feature = "native")]
mod profile;
#[cfg(feature = "native")]
mod random;
#[cfg(feature = "native")]
pub mod store;

#[cfg(feature = "native")]
pub use client::{Builder, Client, Events};
pub use event::Enqueued;
#[cfg(feature = "native")]
pub use profile::{PendingLink, Profile};
#[cfg(feature = "native")]
pub use store::StoreConfig;
pub use suite::Suite;
