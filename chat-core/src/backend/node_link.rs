//! From one gateway to another.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::{GatewayId, Route};
use crate::model::error::Result;
use crate::model::session_event::SessionEvent;

/// A connection and what its session is deliveries, in order.
pub type SessionDelivery = (Route, Vec<SessionEvent>);

/// Carries what happened to the gateway that holds a connection. A hint: what is lost on the way waits in an
/// inbox.
///
/// # Contract
/// - [`deliver`](Self::deliver) returns at once, and keeps the order of what one session is deliveries
///   (`deliveries_arrive_in_order`).
/// - A connection that is not there is unbound by compare, and its device woken
///   (`a_stale_route_is_unbound`).
/// - A gateway that does not answer costs nobody else anything: what does not fit its queue, or is not
///   answered within a second, is dropped, and its sessions are deliveries that they lag as soon as it answers again.
#[async_trait]
pub trait NodeLink: fmt::Debug + Send + Sync + 'static {
    /// Tells sessions of another gateway.
    fn deliver(&self, gateway: GatewayId, deliveries: Vec<SessionDelivery>);

    /// The offer of a device that waits to be linked at another gateway.
    ///
    /// # Errors
    /// `NotFound` if nobody waits there, `Unavailable` if the gateway does not answer.
    async fn offer(&self, gateway: GatewayId, rendezvous: Bytes) -> Result<Bytes>;

    /// Answers such an offer.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    async fn answer_offer(&self, gateway: GatewayId, rendezvous: Bytes, sealed: Bytes) -> Result<()>;
}
