//! Server library of the chat SDK: everything an embedder needs around the engine of `chat-core`.
//!
//! ```no_run
//! # #[tokio::main] async fn main() -> Result<(), chat_server::ServerError> {
//! chat_server::Server::builder()
//!     .data_dir("chat-data")
//!     .open_registration()
//!     .listen("127.0.0.1:7777")
//!     .serve()
//!     .await
//! # }
//! ```
//!
//! | item | purpose |
//! |---|---|
//! | [`Server`], [`ServerBuilder`] | listeners, TLS, per-IP limits, supervised shards, retention sweep, graceful drain |
//! | [`Server::axum`] | chat connections on a route of an axum application |
//! | [`Server::admin_router`] | health, readiness, metrics, and the trace of a message |
//! | [`Health`] | whether the server is ready, and which shards failed |
//! | [`metered`] | latency metrics around backends |
//! | `embedded` (feature) | checks of a data directory |
//! | `jwt` (feature) | login by JSON Web Tokens |
//! | `cluster` (feature) | Cassandra, Kafka and Redis from URLs |
//! | `telemetry` (feature) | traces of messages for an OpenTelemetry collector |

/// The README of the crate, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod accept_pacer;
pub mod admin;
mod axum;

mod clock;
#[cfg(feature = "cluster")]
pub mod cluster;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
pub mod explain;
mod health;
mod ip_limiter;
#[cfg(feature = "jwt")]
pub mod jwt;
mod listener;
pub mod metered;
mod optional_token;
mod process;
mod retention;
mod server;
mod shard_supervisor;
#[cfg(feature = "telemetry")]
pub mod telemetry;
mod tls;

pub use clock::SystemClock;
pub use error::ServerError;
pub use health::Health;
pub use process::{raise_file_limit, stop_signal};
pub use server::{Server, ServerBuilder};
