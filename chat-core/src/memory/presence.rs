use std::collections::HashMap;

use async_trait::async_trait;
use dashmap::DashMap;

use crate::backend::Presence;
use crate::model::error::Result;
use crate::model::id::{InstallationId, UserId};
use crate::model::limits::IDLE_MS;

/// A [`Presence`] in memory.
#[derive(Debug, Default)]
pub struct MemoryPresence(DashMap<UserId, HashMap<InstallationId, u64>>);

#[async_trait]
impl Presence for MemoryPresence {
    async fn beat(&self, user: UserId, device: InstallationId, alive: bool, now_ms: u64) -> Result<()> {
        if alive {
            self.0.entry(user).or_default().insert(device, now_ms);
        } else {
            self.0.remove_if_mut(&user, |_, devices| {
                devices.remove(&device);
                devices.is_empty()
            });
        }
        Ok(())
    }

    async fn query(&self, users: &[UserId], now_ms: u64) -> Result<Vec<bool>> {
        let present = |user| {
            self.0
                .get(user)
                .is_some_and(|devices| devices.values().any(|beat| now_ms < beat.saturating_add(IDLE_MS)))
        };
        Ok(users.iter().map(present).collect())
    }
}
