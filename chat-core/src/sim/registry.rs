//! The simulated registry: some calls fail, and some answers are lost.

use std::fmt;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::store::unknown;
use crate::backend::{GatewayId, Registry, Route};
use crate::memory::MemoryRegistry;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, DeviceAddress, UserId};
use crate::model::rng::Rng;

/// A [`Registry`] in memory with injected errors.
pub(super) struct SimRegistry {
    routes: MemoryRegistry,
    rng: Mutex<Rng>,
    /// Percent of calls that fail before they have an effect, and percent that fail after.
    errors: Mutex<(u64, u64)>,
}

impl fmt::Debug for SimRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRegistry")
    }
}

impl SimRegistry {
    pub(super) fn new(seed: u64, errors: (u64, u64)) -> Self {
        Self {
            routes: MemoryRegistry::default(),
            rng: Mutex::new(Rng::new(seed)),
            errors: Mutex::new(errors),
        }
    }

    /// Stops all injected errors.
    pub(super) fn heal(&self) {
        *self.errors.lock() = (0, 0);
    }

    /// Drops all routes and followers.
    pub(super) fn forget(&self) {
        self.routes.forget();
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let (before, after) = *self.errors.lock();
        let (fails, is_lost) = {
            let mut rng = self.rng.lock();
            (rng.chance(before), rng.chance(after))
        };
        if fails {
            return Err(Error::new(ErrorKind::Unavailable, "the registry does not answer"));
        }
        let answer = call.await;
        if is_lost { Err(unknown()) } else { answer }
    }
}

#[async_trait]
impl Registry for SimRegistry {
    async fn bind(&self, device: DeviceAddress, gateway: GatewayId) -> Result<u64> {
        self.call(self.routes.bind(device, gateway)).await
    }

    async fn renew(&self, route: Route) -> Result<()> {
        self.call(self.routes.renew(route)).await
    }

    async fn unbind(&self, route: Route) -> Result<()> {
        self.call(self.routes.unbind(route)).await
    }

    async fn announce(&self, gateway: GatewayId, address: &str) -> Result<()> {
        self.call(self.routes.announce(gateway, address)).await
    }

    async fn address(&self, gateway: GatewayId) -> Result<Option<String>> {
        self.call(self.routes.address(gateway)).await
    }

    async fn lookup(&self, users: &[UserId]) -> Result<Vec<Route>> {
        self.call(self.routes.lookup(users)).await
    }

    async fn follow(&self, feed: ConversationId, gateway: GatewayId) -> Result<()> {
        self.call(self.routes.follow(feed, gateway)).await
    }

    async fn followers(&self, feed: ConversationId) -> Result<Vec<GatewayId>> {
        self.call(self.routes.followers(feed)).await
    }
}
