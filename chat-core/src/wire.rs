//! The wire: one WebSocket binary message is one frame. `docs/wire.md` is normative.
//!
//! The generated types stay in here. [`ClientFrame::parse`] and [`ServerFrame::parse`] check every id and
//! every size once, at the edge, and give domain types; bodies and boxes stay the bytes they came in.

mod client;
pub mod node;
pub mod redo;
mod row;
mod server;
pub mod state;

pub use client::{ClientFrame, Hello, OneTimePrekey, PrekeyUpload, Registration, Request};
pub use row::{decode_row, encode_row};
pub use server::{Bundle, Challenge, Response, ServerFrame, Welcome};

use bytes::Bytes;

use crate::device_list::SignedDeviceList;
use crate::error::{Error, ErrorKind, Result};

/// Types generated from `proto/chat/v1` by `make generate`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod proto {
    include!("wire/generated/chat.v1.rs");

    pub(crate) mod store {
        include!("wire/generated/chat.store.v1.rs");
    }

    pub(crate) mod node {
        include!("wire/generated/chat.node.v1.rs");
    }
}

/// Close codes; `docs/wire.md` says what each means and what a client does.
pub mod close {
    /// Going away: the server restarts or drains.
    pub const DRAIN: u16 = 4503;
    /// A frame that cannot be read, or one that is not allowed now.
    pub const PROTOCOL: u16 = 4400;
    /// Token or signature are not accepted.
    pub const UNAUTHORIZED: u16 = 4401;
    /// A later connection of the same device took over.
    pub const REPLACED: u16 = 4409;
    /// The device does not read.
    pub const SLOW: u16 = 4408;
    /// An acknowledgement of something that was never given.
    pub const ACK_TOO_HIGH: u16 = 4410;
    /// The cursors belong to another life of the data set.
    pub const EPOCH: u16 = 4411;
    /// No version in common.
    pub const VERSION: u16 = 4426;
    /// Too much, too fast.
    pub const THROTTLED: u16 = 4429;
    /// The same head was delivered again and again and never acknowledged.
    pub const LOOP: u16 = 4508;
    /// Nothing was heard for too long.
    pub const IDLE: u16 = 4504;
    /// A frame larger than the limit (the WebSocket code of that name).
    pub const TOO_BIG: u16 = 1009;
}

/// The largest seq, number and time: nothing that is counted on from it overflows.
const MAX_NUMBER: u64 = i64::MAX as u64;

const fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

fn at_most(length: usize, most: usize, what: &'static str) -> Result<()> {
    if length <= most { Ok(()) } else { Err(invalid(what)) }
}

fn list_to_proto(list: &SignedDeviceList) -> proto::SignedDeviceList {
    proto::SignedDeviceList {
        list: list.encoded().clone(),
        account_key: Bytes::copy_from_slice(list.account_key()),
        signature: list.signature().clone(),
    }
}

fn list_from_proto(raw: proto::SignedDeviceList) -> Result<SignedDeviceList> {
    at_most(raw.list.len(), 4096, "the device list is too large")?;
    let key = raw.account_key.as_ref().try_into().map_err(|_| invalid("an account key has 32 bytes"))?;
    SignedDeviceList::verify(raw.list, key, raw.signature)
}

/// A signed list as stores keep it.
pub fn encode_list(list: &SignedDeviceList) -> Vec<u8> {
    prost::Message::encode_to_vec(&list_to_proto(list))
}

/// Reads what [`encode_list`] wrote, checking it again.
///
/// # Errors
/// As [`SignedDeviceList::verify`].
pub fn decode_list(bytes: Bytes) -> Result<SignedDeviceList> {
    let raw = <proto::SignedDeviceList as prost::Message>::decode(bytes);
    list_from_proto(raw.map_err(|e| invalid("not a signed device list").caused_by(e))?)
}
