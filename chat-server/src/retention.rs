use std::sync::Arc;
use std::time::Duration;

use chat_core::Engine;

/// Time between two sweeps.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Replaces rows that waited longer than `retention` by gaps, once an hour.
pub(crate) async fn sweep_forever(engine: Arc<Engine>, retention: Duration) {
    let retention_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    loop {
        match engine.sweep(retention_ms).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "retention removed inbox rows"),
            Err(error) => tracing::warn!(%error, "retention sweep failed: retrying in 1 h"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
