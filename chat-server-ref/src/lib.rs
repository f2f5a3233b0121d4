//! The reference server as a library: settings, tokens, wiring. What is interesting is in `chat-core`.

pub mod admin;
pub mod backends;
pub mod explain;
pub mod ip_limiter;
pub mod metered;
pub mod serve;
pub mod settings;
#[cfg(feature = "telemetry")]
pub mod telemetry;
pub mod tokens;
