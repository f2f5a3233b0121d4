#![doc = include_str!("../README.md")]

pub mod accept;
pub mod dial;
pub mod duplex;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "node-link")]
pub mod node_link;
pub mod runtime;
pub mod websocket;
