//! Backends in memory: the executable specification of each trait, and what every example runs on.

mod keys;
mod presence;
mod registry;
mod router;
mod store;

pub use keys::MemoryKeys;
pub use presence::MemoryPresence;
pub use registry::MemoryRegistry;
pub use router::MemoryRouter;
pub use store::{MemoryStore, Tables};

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::backend::{Authenticator, PushSink};
use crate::error::Result;
use crate::id::{DeviceAddress, Handle};
use crate::time::WallClock;

/// A clock that moves when told to.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Sets the time, in microseconds since 1970.
    pub fn set_us(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }
}

impl WallClock for ManualClock {
    fn now_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Remembers whom it was asked to wake.
#[derive(Debug, Default)]
pub struct MemoryPush(Mutex<Vec<DeviceAddress>>);

impl MemoryPush {
    /// Whom it was asked to wake, the last 10,000.
    pub fn woken(&self) -> Vec<DeviceAddress> {
        self.0.lock().clone()
    }
}

#[async_trait]
impl PushSink for MemoryPush {
    async fn wake(&self, devices: &[DeviceAddress]) -> Result<()> {
        let mut woken = self.0.lock();
        if woken.len() > 10_000 {
            woken.clear();
        }
        woken.extend_from_slice(devices);
        Ok(())
    }
}

/// Needs no token: for tests, and for servers that only loopback reaches.
#[derive(Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct OpenRegistration;

#[async_trait]
impl Authenticator for OpenRegistration {
    async fn authenticate(&self, _token: &str) -> Result<Option<Handle>> {
        Ok(None)
    }
}
