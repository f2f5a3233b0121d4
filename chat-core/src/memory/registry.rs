use std::collections::BTreeSet;

use async_trait::async_trait;
use dashmap::DashMap;

use crate::backend::{GatewayId, Registry, Route};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, DeviceAddress, UserId};

/// A [`Registry`] in memory.
#[derive(Debug, Default)]
pub struct MemoryRegistry {
    routes: DashMap<UserId, Vec<Route>>,
    epochs: std::sync::atomic::AtomicU64,
    addresses: DashMap<GatewayId, String>,
    followers: DashMap<ConversationId, BTreeSet<GatewayId>>,
}

impl MemoryRegistry {
    /// Returns whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Removes every route and every follower.
    #[cfg(feature = "sim")]
    pub(crate) fn forget(&self) {
        self.routes.clear();
        self.followers.clear();
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn bind(&self, device: DeviceAddress, gateway: GatewayId) -> Result<u64> {
        let mut routes = self.routes.entry(device.user).or_default();
        // The epoch must exceed every epoch issued before, and every epoch that a renewal restored after a
        // loss.
        let renewed = routes.iter().map(|route| route.epoch).max().unwrap_or(0);
        self.epochs.fetch_max(renewed, std::sync::atomic::Ordering::Relaxed);
        let epoch = self.epochs.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        routes.retain(|route| route.device.installation != device.installation);
        routes.push(Route { device, gateway, epoch });
        Ok(epoch)
    }

    async fn renew(&self, route: Route) -> Result<()> {
        let mut routes = self.routes.entry(route.device.user).or_default();
        match routes.iter().find(|known| known.device.installation == route.device.installation) {
            Some(known) if known.epoch > route.epoch => {
                Err(Error::new(ErrorKind::Conflict, "a newer connection is registered"))
            }
            Some(_) => Ok(()),
            None => {
                routes.push(route);
                Ok(())
            }
        }
    }

    async fn unbind(&self, route: Route) -> Result<()> {
        self.routes.remove_if_mut(&route.device.user, |_, routes| {
            routes.retain(|known| *known != route);
            routes.is_empty()
        });
        Ok(())
    }

    async fn announce(&self, gateway: GatewayId, address: &str) -> Result<()> {
        self.addresses.insert(gateway, address.to_owned());
        Ok(())
    }

    async fn address(&self, gateway: GatewayId) -> Result<Option<String>> {
        Ok(self.addresses.get(&gateway).map(|known| known.clone()))
    }

    async fn lookup(&self, users: &[UserId]) -> Result<Vec<Route>> {
        let known = users.iter().filter_map(|user| self.routes.get(user));
        Ok(known.flat_map(|routes| routes.clone()).collect())
    }

    async fn follow(&self, feed: ConversationId, gateway: GatewayId) -> Result<()> {
        self.followers.entry(feed).or_default().insert(gateway);
        Ok(())
    }

    async fn followers(&self, feed: ConversationId) -> Result<Vec<GatewayId>> {
        Ok(self.followers.get(&feed).map(|known| known.iter().copied().collect()).unwrap_or_default())
    }
}
