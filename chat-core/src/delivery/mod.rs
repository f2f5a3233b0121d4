//! From a publish to every device: admission, order, commit, plan, hub.

mod admission;
mod engine;
mod hub;
mod plan;
mod shard;

pub use engine::{Counters, Engine, EngineSettings, Greeting};
pub use hub::{Bound, Event, Hub};
pub use plan::{Plan, plan};
pub use shard::{Decision, decide};
