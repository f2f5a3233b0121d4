#![doc = include_str!("../README.md")]
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

pub use model::{
    body_key, contact, device_list, envelope, error, group, id, limits, message_options, padding, presence,
    report, rng, roster, signing, suite, time, to_device, view,
};

pub use backend::Backends;
pub use delivery::{Engine, EngineSettings};
pub use error::{Error, ErrorKind, Result};
pub use id::{
    ClientSeq, ConversationId, ConversationKind, DeviceAddress, DeviceId, Handle, Incarnation,
    InstallationId, MessageId, SenderKeyId, Seq, StoreEpoch, UserId,
};
pub use time::{Instant, WallClock};
