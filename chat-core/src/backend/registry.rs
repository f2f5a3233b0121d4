//! Who is connected where.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::{DeviceAddress, UserId};

/// A gateway process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GatewayId(pub u64);

/// Where a device is connected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Route {
    /// The device.
    pub device: DeviceAddress,
    /// The gateway that has its connection.
    pub gateway: GatewayId,
    /// The connection's epoch: of two routes of a device the one with the larger epoch is right.
    pub epoch: u64,
}

/// Where users' devices are connected now. A hint: losing it costs delay only.
///
/// # Contract
/// - A bound device is found until it is unbound or not renewed (`a_bound_device_is_found`,
///   `an_unknown_user_has_no_route`).
/// - [`bind`](Self::bind) gives a larger epoch each time, and the last one wins (`the_last_bind_wins`).
/// - [`unbind`](Self::unbind) removes only the very route it names (`unbind_compares`).
/// - [`renew`](Self::renew) brings a forgotten route back (`renew_brings_a_forgotten_route_back`), but never
///   over a newer one (`renew_compares`).
/// - An announced gateway is found by its id (`an_announced_gateway_has_an_address`).
#[async_trait]
pub trait Registry: fmt::Debug + Send + Sync + 'static {
    /// Routes a device to a gateway; gives the new connection's epoch.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be done now.
    async fn bind(&self, device: DeviceAddress, gateway: GatewayId) -> Result<u64>;

    /// Keeps a route alive.
    ///
    /// # Errors
    /// `Conflict` if a newer one is there, `Unavailable` if it cannot be done now.
    async fn renew(&self, route: Route) -> Result<()>;

    /// Removes a route, if it is still this one.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be done now.
    async fn unbind(&self, route: Route) -> Result<()>;

    /// Says where the other nodes reach a gateway; to be said again every few seconds.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be done now.
    async fn announce(&self, gateway: GatewayId, address: &str) -> Result<()>;

    /// Where a gateway is reached.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read now.
    async fn address(&self, gateway: GatewayId) -> Result<Option<String>>;

    /// The routes of users.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be read now.
    async fn lookup(&self, users: &[UserId]) -> Result<Vec<Route>>;
}
