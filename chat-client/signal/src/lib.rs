//! The Signal protocol as a [`Suite`](chat_client::Suite): PQXDH, Double Ratchet and SPQR, by libsignal.
//!
//! libsignal's stores are asynchronous traits. Here every operation gets its own small stores, filled with
//! what the operation will ask for and emptied into the open transaction if it succeeds; its future is
//! ready at the first poll.
//!
//! What this release of libsignal does not check, [`checks`] does.
//!
//! ```
//! use chat_client::Suite;
//! let suite: Box<dyn Suite> = Box::new(chat_signal::Signal::new());
//! ```

pub mod bundle;
pub mod checks;
mod stores;
mod suite;

pub use suite::Signal;
