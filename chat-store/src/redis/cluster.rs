use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use ::redis::{Cmd, FromRedisValue, RedisResult, cmd};
use chat_core::{Error, ErrorKind, Result};
use crc16::{State, XMODEM};

use super::connection::{PROBE_EVERY, REQUEST_TIMEOUT, ask, failed};

/// Number of slots of a Cluster.
const SLOTS: usize = 16384;
/// Number of adjacent slots that share one silent flag. One master usually owns all of them.
const TOGETHER: usize = 256;

/// Connection to a Cluster. While a master does not answer, calls for its keys fail at once. Calls for keys
/// of other masters succeed.
#[derive(Clone)]
pub(super) struct Cluster {
    connection: ClusterConnection,
    /// Whether the master of each group of adjacent slots does not answer.
    silent: Arc<[AtomicBool; SLOTS / TOGETHER]>,
}

/// Returns the slot of a key, as the Redis Cluster specification defines it: the hash of the text in its
/// first braces, or of the whole key.
fn slot(key: &str) -> usize {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    usize::from(State::<XMODEM>::calculate(hashed.as_bytes())) % SLOTS
}

impl Cluster {
    pub(super) fn new(connection: ClusterConnection) -> Self {
        Self { connection, silent: Arc::new([const { AtomicBool::new(false) }; SLOTS / TOGETHER]) }
    }

    /// Makes a call for a key. Fails at once while the master of the key's slot group does not answer.
    pub(super) async fn call<T, F: Future<Output = RedisResult<T>>>(
        &self,
        key: &str,
        call: impl FnOnce(ClusterConnection) -> F,
    ) -> Result<T> {
        let part = slot(key) / TOGETHER;
        ask(&self.silent[part], call(self.connection.clone()), || self.note_silence(part, key)).await
    }

    /// Marks the slot group of a key as silent. Its calls fail at once until a probe of the key succeeds.
    fn note_silence(&self, part: usize, key: &str) {
        if self.silent[part].swap(true, Ordering::Relaxed) {
            return;
        }
        let (parts, mut connection) = (Arc::downgrade(&self.silent), self.connection.clone());
        let mut probe = cmd("EXISTS");
        probe.arg(key);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PROBE_EVERY).await;
                let answer =
                    tokio::time::timeout(REQUEST_TIMEOUT, probe.query_async::<bool>(&mut connection)).await;
                let Some(parts) = parts.upgrade() else { return };
                if matches!(answer, Ok(Ok(_))) {
                    parts[part].store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }

    /// Sends a command to a random node, and once more to a random node if that fails.
    pub(super) async fn ask_any<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        match self.ask_one(command).await {
            Err(_) => self.ask_one(command).await,
            answer => answer,
        }
    }

    async fn ask_one<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let mut connection = self.connection.clone();
        let silent = |e| Error::new(ErrorKind::Unavailable, "Redis does not answer in time").caused_by(e);
        let asked =
            tokio::time::timeout(REQUEST_TIMEOUT, connection.route_command(command.clone(), any)).await;
        let answer = asked.map_err(silent)?.map_err(failed)?;
        ::redis::from_redis_value(answer).map_err(|error| failed(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!((slot("123456789"), slot("foo"), slot("a{foo}b")), (0x31C3, 12182, 12182));
        assert_eq!(slot("{}foo"), usize::from(State::<XMODEM>::calculate(b"{}foo")) % SLOTS);
    }
}
