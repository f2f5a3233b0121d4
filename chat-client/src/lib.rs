//! The client of the chat system: a durable outbox, exactly one showing of every message, receipts,
//! several devices, and end-to-end encryption by a [`Suite`] that the application chooses.
//!
//! | module | holds |
//! |---|---|
//! | [`suite`] | what an encryption suite does; `chat-signal` is the Signal protocol |
//! | [`body`], [`content`] | how a message is encrypted once and its key handed to each device |
//! | [`event`] | what an application is told, with a cursor that misses nothing |
//! | [`safety`] | safety numbers |
//! | [`linking`] | how a second device joins |
//! | `store`, `client` (feature `native`) | the local SQLite store, and [`Client`] |
//!
//! There is no default suite: [`Client::builder`] demands one, so nothing is ever sent in the clear by
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
