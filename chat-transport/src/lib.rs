//! What moves: transports, and the task that drives one connection of a gateway.
//!
//! | module | what |
//! |---|---|
//! | [`websocket`] | RFC 6455 framing with our own limits, over any byte stream |
//! | [`accept`] | the server's side of the upgrade: bounded in bytes and in time |
//! | [`dial`] | the client's side, plain or over TLS 1.3 |
//! | [`duplex`] | two transports joined in memory |
//! | `kafka` (feature) | the log that orders conversations, as a Kafka topic |
//! | `link` (feature) | from one gateway to another |
//! | [`gateway`] | drives a [`Session`](chat_core::session::Session) over a transport: one task a connection |

pub mod accept;
pub mod dial;
pub mod duplex;
pub mod gateway;
mod handshake_limiter;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "node-link")]
pub mod node_link;
pub mod websocket;
