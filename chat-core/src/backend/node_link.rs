//! Delivery from one gateway to another.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::{GatewayId, Route};
use crate::model::error::Result;
use crate::model::session_event::SessionEvent;

/// A connection and the events for its session, in order.
pub type SessionDelivery = (Route, Vec<SessionEvent>);

/// Delivers events to the gateway that holds a connection. A hint: a lost row still waits in the device's
/// inbox.
///
/// # Contract
/// - [`deliver`](Self::deliver) returns at once and preserves the order of the events of one session
///   (`deliveries_arrive_in_order`).
/// - If a connection no longer exists, its route is unbound by compare and its device is woken by push
///   (`a_stale_route_is_unbound`).
/// - An unresponsive gateway does not slow down the others. Deliveries that exceed its queue, or that it does
///   not acknowledge within a second, are dropped. Its sessions receive [`SessionEvent::Lagged`] when it responds
///   again.
#[async_trait]
pub trait NodeLink: fmt::Debug + Send + Sync + 'static {
    /// Delivers events to sessions of another gateway.
    fn deliver(&self, gateway: GatewayId, deliveries: Vec<SessionDelivery>);

    /// Returns the offer of a device that waits at another gateway to be linked.
    ///
    /// # Errors
    /// `NotFound` if no such device waits there, `Unavailable` if the gateway does not respond.
    async fn offer(&self, gateway: GatewayId, rendezvous: Bytes) -> Result<Bytes>;

    /// Sends the approving device's sealed answer to the device that made the offer.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    async fn answer_offer(&self, gateway: GatewayId, rendezvous: Bytes, sealed: Bytes) -> Result<()>;
}
