use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{Deliveries, GatewayId, NodeLink};
use crate::model::error::{Error, ErrorKind, Result};

/// The [`NodeLink`] of a single process without other gateways.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct NoLink;

const fn alone() -> Error {
    Error::new(ErrorKind::NotFound, "there is no other gateway")
}

#[async_trait]
impl NodeLink for NoLink {
    fn deliver(&self, _gateway: GatewayId, _deliveries: Deliveries) {}

    async fn offer(&self, _gateway: GatewayId, _rendezvous: Bytes) -> Result<Bytes> {
        Err(alone())
    }

    async fn answer_offer(&self, _gateway: GatewayId, _rendezvous: Bytes, _sealed: Bytes) -> Result<()> {
        Err(alone())
    }
}
