//! The Signal protocol as a [`Suite`](chat_client::Suite): PQXDH, Double Ratchet and SPQR, by libsignal.
//!
//! libsignal's stores are asynchronous traits. Here every operation has its own small in-memory stores. They
//! are filled with the records that the operation needs, and written into the open transaction if it
//! succeeds. So its future is ready at the first poll.
//!
//! [`checks`] adds the checks that this release of libsignal lacks.
//!
//! ```
//! use chat_client::Suite;
//! let suite: Box<dyn Suite> = chat_signal::suite();
//! ```

pub mod bundle;
pub mod checks;
mod stores;
mod suite;

pub use suite::Signal;

/// Returns the suite, for the configuration of a client.
pub fn suite() -> Box<dyn chat_client::Suite> {
    Box::new(Signal::new())
}
