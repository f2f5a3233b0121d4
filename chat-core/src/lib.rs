//! The core of a durable, end-to-end encrypted chat system: the code that clients and servers share.
//!
//! | module | holds |
//! |---|---|
//! | [`id`], [`envelope`] | ids, messages, inbox rows and acknowledgements |
//! | [`device_list`], [`signing`] | signed device lists, and the bytes that keys sign |
//! | [`to_device`], [`padding`] | messages between devices that users do not see; padding of lengths |
//! | [`wire`] | the frames, decoded and checked once, when they arrive |
//! | [`backend`] | the traits that stores, routers and registries implement |
//! | [`memory`] | in-memory backends: the executable specification |
//! | [`delivery`] | the engine: admit, order, commit, plan, deliver |
//! | [`session`] | the gateway's side of a device connection, as a pure state machine |
//! | [`replica`] | the device's side of the connection, as a pure state machine |
//! | `conformance` (feature) | the test suite that every backend must pass |
//! | `sim` (feature) | the simulator: the real state machines and engine under injected faults |
//!
//! The crate opens no socket, reads no clock, draws no randomness and spawns no task.
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
