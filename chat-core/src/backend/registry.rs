//! Routes of connected devices.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::{ConversationId, DeviceAddress, UserId};

/// Id of a gateway process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GatewayId(pub u64);

/// The connection of a device to a gateway.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Route {
    pub device: DeviceAddress,
    /// The gateway that holds the connection.
    pub gateway: GatewayId,
    /// The connection's epoch. Of two routes of a device, the one with the larger epoch is current.
    pub epoch: u64,
}

/// Maps devices to the gateways they are connected to, and feeds to the gateways of their readers. A hint: losing it causes
/// delay only.
///
/// # Contract
/// - A bound device is found until it is unbound or its route expires without renewal
///   (`a_bound_device_is_found`, `an_unknown_user_has_no_route`).
/// - [`bind`](Self::bind) returns a larger epoch each time, and the last bind wins (`the_last_bind_wins`).
/// - [`unbind`](Self::unbind) removes only exactly the route it names (`unbind_compares`).
/// - [`renew`](Self::renew) restores a lost route (`renew_brings_a_forgotten_route_back`), but never replaces
///   a newer one (`renew_compares`).
/// - An announced gateway is found by its id (`an_announced_gateway_has_an_address`).
/// - A gateway that [follows](Self::follow) a feed is among its [followers](Self::followers), once, for at least a minute
///   (`a_feed_has_the_gateways_that_follow_it`).
#[async_trait]
pub trait Registry: fmt::Debug + Send + Sync + 'static {
    /// Routes a device to a gateway. Returns the epoch of the new connection.
    ///
    /// # Errors
    /// `Unavailable` if the write fails.
    async fn bind(&self, device: DeviceAddress, gateway: GatewayId) -> Result<u64>;

    /// Extends the lifetime of a route.
    ///
    /// # Errors
    /// `Conflict` if a newer route exists, `Unavailable` if the write fails.
    async fn renew(&self, route: Route) -> Result<()>;

    /// Removes a route if it is still the current one.
    ///
    /// # Errors
    /// `Unavailable` if the write fails.
    async fn unbind(&self, route: Route) -> Result<()>;

    /// Publishes the address where other nodes reach a gateway. The gateway must repeat it every few seconds.
    ///
    /// # Errors
    /// `Unavailable` if the write fails.
    async fn announce(&self, gateway: GatewayId, address: &str) -> Result<()>;

    /// Returns the address of a gateway.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn address(&self, gateway: GatewayId) -> Result<Option<String>>;

    /// Returns the routes of users.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn lookup(&self, users: &[UserId]) -> Result<Vec<Route>>;

    /// Records that a gateway has connected readers of a feed. The gateway repeats it every 20 s while it has some.
    ///
    /// # Errors
    /// `Unavailable` if the write fails.
    async fn follow(&self, feed: ConversationId, gateway: GatewayId) -> Result<()>;

    /// Returns the gateways that follow a feed. Some of them may have no readers any more.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    async fn followers(&self, feed: ConversationId) -> Result<Vec<GatewayId>>;
}
