//! The part of a server's frame that a load generator reads: decoding whole rows would cost it more than they cost the server.

use bytes::Bytes;
use prost::Message as _;

/// A frame of the server, with the fields that a member of the benchmark needs.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ThinFrame {
    #[prost(message, optional, tag = "4")]
    pub stored: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    pub refused: Option<Empty>,
    #[prost(message, optional, tag = "6")]
    pub deliver: Option<Deliver>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Deliver {
    #[prost(message, repeated, tag = "1")]
    pub rows: Vec<ThinRow>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ThinRow {
    #[prost(bytes = "bytes", tag = "1")]
    pub conversation: Bytes,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    #[prost(message, optional, tag = "5")]
    pub message: Option<ThinMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ThinMessage {
    #[prost(bytes = "bytes", tag = "9")]
    pub body: Bytes,
}

impl ThinFrame {
    pub(crate) fn parse(bytes: Bytes) -> Self {
        Self::decode(bytes).unwrap()
    }
}

impl ThinRow {
    /// Returns the send time at the start of the body, or `None` if the row is not a message.
    pub(crate) fn sent_at(&self) -> Option<u64> {
        let body = &self.message.as_ref()?.body;
        body.get(..8)?.try_into().ok().map(u64::from_be_bytes)
    }
}
