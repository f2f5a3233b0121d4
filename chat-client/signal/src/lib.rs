#![doc = include_str!("../README.md")]

pub mod bundle;
pub mod checks;
mod post_quantum;
mod stores;
mod suite;

pub use suite::Signal;

/// Returns the suite, for the configuration of a client.
pub fn suite() -> Box<dyn chat_client::Suite> {
    Box::new(Signal::new())
}
