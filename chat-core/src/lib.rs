//! The core of a durable, end-to-end encrypted chat system: what must be the same everywhere.
//!
//! | module | holds |
//! |---|---|
//! | [`id`], [`envelope`], [`device_list`], [`signing`] | the words: ids, messages and rows, signed device lists, what is signed |
//! | [`to_device`], [`padding`] | what devices say to each other unseen, and how lengths are hidden |
//! | [`wire`] | the frames, parsed and checked once, at the edge |
//! | [`backend`] | the traits that stores, routers and registries implement |
//! | [`memory`] | all of them in memory: the executable specification |
//! | [`delivery`] | the engine: admit, order, commit, plan, deliver |
//! | [`session`] | the gateway's side of a device, as a pure state machine |
//! | [`replica`] | the device's side, as a pure state machine |
//! | `conformance` (feature) | the suite that every backend passes |
//! | `sim` (feature) | the simulator: the real machines and engine under every fault it can think of |
//!
//! Nothing in here opens a socket, reads a clock, draws randomness or spawns a task.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
pub mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod delivery;
pub mod gateway;
pub mod memory;
pub mod model;
pub mod mutant;
mod proto;
pub mod replica;
pub mod session;
#[cfg(feature = "sim")]
pub mod sim;
pub mod wire;

pub use model::{device_list, envelope, error, id, limits, padding, rng, signing, time, to_device};

pub use backend::Backends;
pub use delivery::{Engine, EngineSettings};
pub use error::{Error, ErrorKind, Result};
pub use id::{
    ClientSeq, ConversationId, ConversationKind, DeviceAddress, DeviceId, Handle, Incarnation,
    InstallationId, MessageId, Seq, StoreEpoch, UserId,
};
pub use time::{Instant, WallClock};
