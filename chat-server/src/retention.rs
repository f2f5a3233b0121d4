use std::sync::Arc;
use std::time::Duration;

use chat_core::Engine;

/// Time between two sweeps.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Time between two sweeps of disappearing messages.
const MESSAGES_INTERVAL: Duration = Duration::from_secs(60);

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Once an hour, replaces inbox rows that waited longer than `inbox` by gaps, and erases messages of history that are older
/// than `history`.
pub(crate) async fn sweep_forever(engine: Arc<Engine>, inbox: Duration, history: Option<Duration>) {
    loop {
        match engine.sweep(ms(inbox)).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "retention removed inbox rows"),
            Err(error) => tracing::warn!(%error, "retention sweep failed: retrying in 1 h"),
        }
        if let Some(history) = history {
            match engine.sweep_history(ms(history)).await {
                Ok(0) => {}
                Ok(messages) => tracing::info!(messages, "retention erased messages of history"),
                Err(error) => tracing::warn!(%error, "retention sweep of history failed: retrying in 1 h"),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Once a minute, erases messages whose lifetime has ended. Gateways show them as empty at once.
pub(crate) async fn sweep_messages_forever(engine: Arc<Engine>) {
    loop {
        match engine.sweep_messages().await {
            Ok(0) => {}
            Ok(messages) => tracing::info!(messages, "erased messages whose lifetime had ended"),
            Err(error) => tracing::warn!(%error, "sweep of disappearing messages failed: retrying in 1 min"),
        }
        tokio::time::sleep(MESSAGES_INTERVAL).await;
    }
}
