use std::collections::HashMap;

use async_trait::async_trait;
use dashmap::DashMap;

use crate::backend::Presence;
use crate::model::error::Result;
use crate::model::id::{InstallationId, UserId};
use crate::model::limits::IDLE_MS;
use crate::model::presence::UserPresence;

/// A [`Presence`] in memory.
#[derive(Debug, Default)]
pub struct MemoryPresence(DashMap<UserId, Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// The time of the last beat of each device that has not left.
    devices: HashMap<InstallationId, u64>,
    /// The last time at which a device sent a beat or left.
    last_ms: u64,
}

#[async_trait]
impl Presence for MemoryPresence {
    async fn beat(&self, user: UserId, device: InstallationId, alive: bool, now_ms: u64) -> Result<()> {
        if alive {
            let mut seen = self.0.entry(user).or_default();
            seen.devices.insert(device, now_ms);
            seen.last_ms = seen.last_ms.max(now_ms);
        } else if let Some(mut seen) = self.0.get_mut(&user)
            && seen.devices.remove(&device).is_some()
        {
            seen.last_ms = seen.last_ms.max(now_ms);
        }
        Ok(())
    }

    async fn query(&self, users: &[UserId], now_ms: u64) -> Result<Vec<UserPresence>> {
        let present = |user| {
            let Some(seen) = self.0.get(user) else { return UserPresence::HIDDEN };
            let is_alive = |beat: &u64| now_ms < beat.saturating_add(IDLE_MS);
            if seen.devices.values().any(is_alive) {
                return UserPresence::Online;
            }
            UserPresence::Offline { last_seen_ms: Some(seen.last_ms) }
        };
        Ok(users.iter().map(present).collect())
    }

    async fn forget(&self, user: UserId) -> Result<()> {
        self.0.remove(&user);
        Ok(())
    }
}
