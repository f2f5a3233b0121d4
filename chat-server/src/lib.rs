#![doc = include_str!("../README.md")]

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
mod feed_wakes;
mod function_authenticator;
mod health;
mod ip_limiter;
#[cfg(feature = "jwt")]
pub mod jwt;
mod listener;
pub mod metered;
mod optional_token;
mod process;
mod report_log;
mod retention;
pub mod revocation;
mod server;
mod shard_supervisor;
#[cfg(feature = "telemetry")]
pub mod telemetry;
mod tls;

pub use chat_core::backend::{Authenticated, Authenticator};
pub use chat_core::{Error, ErrorKind, Handle};
pub use clock::SystemClock;
pub use error::ServerError;
pub use health::Health;
pub use process::{raise_file_limit, stop_signal};
pub use report_log::ReportLog;
pub use server::{Server, ServerBuilder};
