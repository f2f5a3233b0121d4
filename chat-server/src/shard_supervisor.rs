use std::sync::Arc;
use std::time::Duration;

use chat_core::backend::Router;
use chat_core::{Engine, ErrorKind};

use crate::health::Health;

/// Pause before the first retry of a shard that failed. It doubles with each failure in a row.
const MIN_BACKOFF: Duration = Duration::from_millis(200);
/// Longest pause between two retries.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Runs one shard for as long as there is a log.
///
/// After an error or a panic the records come again until every reader sees them: a shard stalls, it never skips,
/// and the other shards go on.
pub(crate) struct ShardSupervisor {
    pub engine: Arc<Engine>,
    pub router: Arc<dyn Router>,
    pub health: Health,
    pub shard: usize,
}

impl ShardSupervisor {
    pub(crate) async fn run(self) {
        let Self { shard, .. } = self;
        let mut backoff = MIN_BACKOFF;
        loop {
            let (engine, health) = (self.engine.clone(), self.health.clone());
            let batch = tokio::spawn(async move {
                let mut applied = 0_u64;
                loop {
                    if let Err(error) = engine.process_batch(shard).await {
                        return (applied, error);
                    }
                    applied += 1;
                    if health.shard_recovered(shard) {
                        tracing::info!(shard, "shard recovered: it applies records again");
                    }
                }
            });
            let error = match batch.await {
                Ok((_, error)) if error.kind() == ErrorKind::Closed => return,
                Ok((applied, error)) => {
                    if applied > 0 {
                        backoff = MIN_BACKOFF;
                    }
                    error.to_string()
                }
                Err(error) if error.is_panic() => {
                    if let Err(error) = self.router.rewind(shard).await {
                        tracing::error!(%error, shard, "failed to rewind the shard: its records wait for a restart");
                    }
                    "the shard panicked".to_owned()
                }
                Err(_) => return,
            };
            tracing::error!(%error, shard, retry_in = ?backoff, "shard failed: its messages stay queued");
            self.health.shard_failed(shard, error);
            tokio::time::sleep(backoff).await;
            backoff = (2 * backoff).min(MAX_BACKOFF);
        }
    }
}
