//! Domain types: ids, messages, rows, device lists, and what devices and the server say to each other.
//!
//! The lowest layer. Nothing here depends on a backend, an encoding of frames or the engine.

pub mod body_key;
pub mod client_frame;
pub mod close_reason;
pub mod contact;
pub mod device_list;
pub mod envelope;
pub mod error;
pub mod group;
pub mod group_link;
pub mod id;
pub mod limits;
mod member;
pub mod message_options;
pub mod padding;
pub mod prekeys;
pub mod presence;
pub mod report;
pub mod rng;
pub mod roster;
pub mod rules;
pub mod server_frame;
pub mod session_event;
pub mod shared_rows;
pub mod signing;
pub mod suite;
pub mod time;
pub mod to_device;
pub mod view;
