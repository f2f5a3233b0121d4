use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, RedisResult};
use chat_core::Result;

use super::connection::{PROBE_EVERY, REQUEST_TIMEOUT, ask, failed};

/// Connection to a single server. While the server does not answer, calls fail at once.
#[derive(Clone)]
pub(super) struct Single(Arc<Server>);

struct Server {
    client: Client,
    connection: Mutex<ConnectionManager>,
    is_silent: AtomicBool,
}

impl Single {
    pub(super) async fn connect(client: Client) -> Result<Self> {
        let connection = Mutex::new(connection(&client).await.map_err(failed)?);
        Ok(Self(Arc::new(Server { client, connection, is_silent: AtomicBool::new(false) })))
    }

    /// Makes a call. Fails at once while the server does not answer.
    pub(super) async fn call<T, F: Future<Output = RedisResult<T>>>(
        &self,
        call: impl FnOnce(ConnectionManager) -> F,
    ) -> Result<T> {
        ask(&self.0.is_silent, call(self.0.connection()), || self.note_silence()).await
    }

    /// Marks the server as silent: calls fail at once until a probe succeeds. Each probe uses a new
    /// connection, because a broken connection need not report an error.
    fn note_silence(&self) {
        if self.0.is_silent.swap(true, Ordering::Relaxed) {
            return;
        }
        let server = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while let Some(server) = server.upgrade() {
                if let Ok(Ok(fresh)) = tokio::time::timeout(REQUEST_TIMEOUT, connection(&server.client)).await
                {
                    *server.connection.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                    server.is_silent.store(false, Ordering::Relaxed);
                    return;
                }
                drop(server);
                tokio::time::sleep(PROBE_EVERY).await;
            }
        });
    }
}

impl Server {
    fn connection(&self) -> ConnectionManager {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Opens a connection and returns it after the server answered a `PING` on it.
async fn connection(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(REQUEST_TIMEOUT))
        .set_response_timeout(Some(REQUEST_TIMEOUT))
        .set_number_of_retries(1);
    let mut connection = client.get_connection_manager_with_config(config).await?;
    ::redis::cmd("PING").query_async::<String>(&mut connection).await?;
    Ok(connection)
}
