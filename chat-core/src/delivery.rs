//! The delivery engine: carries a publish to every device through admission, ordering, commit, plan and hub.

mod account_deletion;
mod admission;
mod batch;
mod channels;
mod contacts;
mod counters;
mod device_linking;
mod dispatch;
mod engine;
mod ephemeral;
mod explain;
mod feed_delivery;
mod feed_pages;
mod feed_wakes;
mod feeds;
mod groups;
mod handshake;
mod history;
mod hub;
mod plan;
mod rates;
mod requests;
mod revocation;
mod shard;
mod trace;

pub use crate::model::session_event::{Hint, SessionEvent};
pub use counters::Counters;
pub use device_linking::Linking;
pub use engine::{Engine, EngineSettings};
pub use explain::{Explanation, Whereabouts};
pub use handshake::{Greeting, Registered};
pub use hub::{Hub, SessionHandle};
pub use plan::{Plan, plan};
pub use rates::{Rate, Rates};
pub use shard::{Decision, decide};
pub use trace::{MessageTrace, Stage, TraceEvent};
