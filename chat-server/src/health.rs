use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Health of a running server. Clones share the state.
///
/// A server is ready while it accepts sessions and all its shards apply records. A shard that fails is retried
/// for ever; its messages stay queued until then.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_draining: bool,
    /// The error of each shard that failed and did not recover yet.
    failed: BTreeMap<usize, String>,
}

impl Health {
    /// Whether the server accepts sessions and all its shards apply records.
    pub fn is_ready(&self) -> bool {
        let state = self.0.lock();
        !state.is_draining && state.failed.is_empty()
    }

    /// Whether the server drains: it closes its sessions and accepts no new ones.
    pub fn is_draining(&self) -> bool {
        self.0.lock().is_draining
    }

    /// Returns the shards that failed and did not recover yet, with the error of each.
    pub fn failed_shards(&self) -> Vec<(usize, String)> {
        self.0.lock().failed.iter().map(|(shard, error)| (*shard, error.clone())).collect()
    }

    pub(crate) fn drain(&self) {
        self.0.lock().is_draining = true;
    }

    pub(crate) fn shard_failed(&self, shard: usize, error: String) {
        self.0.lock().failed.insert(shard, error);
    }

    /// Returns whether the shard had failed before.
    pub(crate) fn shard_recovered(&self, shard: usize) -> bool {
        self.0.lock().failed.remove(&shard).is_some()
    }
}
