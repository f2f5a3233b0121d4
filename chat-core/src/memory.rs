//! In-memory backends: the executable specification of each trait, used by every example.

mod contacts;
mod keys;
mod node_link;
mod presence;
mod registry;
mod reports;
mod router;
mod runtime;
mod store;

pub use contacts::MemoryContacts;
pub use keys::MemoryKeys;
pub use node_link::NoLink;
pub use presence::MemoryPresence;
pub use registry::MemoryRegistry;
pub use reports::{MemoryReports, NoReports};
pub use router::MemoryRouter;
pub use runtime::ManualRuntime;
#[cfg(feature = "sim")]
pub(crate) use store::Write;
pub use store::{MemoryStore, Tables};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::backend::{Authenticated, Authenticator, Backends, LogAnchor, LogIdentity, PushSink};
use crate::model::error::Result;
use crate::model::id::DeviceAddress;
use crate::model::time::WallClock;

impl Backends {
    /// Returns in-memory backends: the executable specification of each trait, which every example uses.
    pub fn memory() -> Self {
        Self {
            store: Arc::new(MemoryStore::new()),
            keys: Arc::new(MemoryKeys::default()),
            contacts: Arc::new(MemoryContacts::default()),
            router: Arc::new(MemoryRouter::new(4, Arc::new(ManualClock::default()))),
            registry: Arc::new(MemoryRegistry::default()),
            node_link: Arc::new(NoLink),
            presence: Arc::new(MemoryPresence::default()),
            push: Arc::new(MemoryPush::default()),
            reports: Arc::new(MemoryReports::default()),
            authenticator: Arc::new(OpenRegistration),
        }
    }
}

/// A clock that moves only when a caller sets it.
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

/// A [`LogAnchor`] in memory.
#[derive(Debug, Default)]
pub struct MemoryAnchor(Mutex<Option<LogIdentity>>);

#[async_trait]
impl LogAnchor for MemoryAnchor {
    async fn log(&self) -> Result<Option<LogIdentity>> {
        Ok(*self.0.lock())
    }

    async fn begin_log(&self, log: LogIdentity) -> Result<LogIdentity> {
        let mut known = self.0.lock();
        if known.is_none_or(|known| known.generation < log.generation) {
            *known = Some(log);
        }
        Ok(known.unwrap_or(log))
    }

    async fn open_log(&self, generation: u64) -> Result<()> {
        if let Some(known) = self.0.lock().as_mut().filter(|known| known.generation == generation) {
            known.opened = true;
        }
        Ok(())
    }
}

/// A [`PushSink`] that records the devices it was asked to wake.
#[derive(Debug, Default)]
pub struct MemoryPush(Mutex<Vec<DeviceAddress>>);

impl MemoryPush {
    /// Returns the recorded devices. The record is cleared when it exceeds 10,000 entries.
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

/// An [`Authenticator`] that accepts connections without a token: for tests, and for servers on loopback
/// only.
#[derive(Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct OpenRegistration;

#[async_trait]
impl Authenticator for OpenRegistration {
    async fn authenticate(&self, _token: &str) -> Result<Authenticated> {
        Ok(Authenticated::open())
    }
}
