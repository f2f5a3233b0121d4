//! Transports, the Kafka log and the node link.
//!
//! | module | what |
//! |---|---|
//! | [`websocket`] | RFC 6455 framing with our own limits, over any byte stream |
//! | [`accept`] | the server's side of the upgrade: bounded in bytes and in time |
//! | [`dial`] | the client's side, plain or over TLS 1.3 |
//! | [`duplex`] | two transports joined in memory |
//! | `kafka` (feature) | the log that orders conversations, as a Kafka topic |
//! | `node-link` (feature) | from one gateway to another |
//! | [`runtime`] | the clock, timers and randomness that a gateway runs on |

pub mod accept;
pub mod dial;
pub mod duplex;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "node-link")]
pub mod node_link;
pub mod runtime;
pub mod websocket;
