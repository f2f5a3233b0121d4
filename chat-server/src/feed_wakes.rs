//! Wakes the readers of large groups that have no connection.

use std::sync::Arc;
use std::time::Duration;

use chat_core::Engine;

/// Pause between two rounds. All messages that arrive meanwhile wake the readers of their feed once, and the readers that a failure
/// left are woken after it.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs [`Engine::run_wakes`] for as long as the server runs.
pub(crate) async fn wake_forever(engine: Arc<Engine>) {
    loop {
        if let Err(error) = engine.run_wakes().await {
            tracing::warn!(%error, retry_in = ?PAUSE, "failed to wake readers of a large group");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
