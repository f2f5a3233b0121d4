use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use chat_core::backend::{Dialer, Transport};
use chat_core::{Error, ErrorKind, Result};

/// The network between a client and a server, which may be down. Connections that exist stay: a client that is opened while the
/// network is down is offline.
///
/// ```
/// use chat_client::{Client, ClientConfig};
/// use chat_testing::{Network, TestServer, Unencrypted};
/// # #[tokio::main]
/// # async fn main() -> chat_client::Result<()> {
/// let (server, profiles) = (TestServer::start().await?, tempfile::tempdir().unwrap());
/// let network = Network::new(server.dialer());
/// let suite = Box::new(Unencrypted::new());
/// let config = ClientConfig::with_dialer(network.clone(), "alice", suite).directory(profiles.path());
/// let alice = Client::register_if_new(config, "alice").await?;
/// # alice.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Network {
    server: Arc<dyn Dialer>,
    is_up: AtomicBool,
}

impl Network {
    /// Returns a network that is up.
    pub fn new(server: Arc<dyn Dialer>) -> Arc<Self> {
        Arc::new(Self { server, is_up: AtomicBool::new(true) })
    }

    /// Lets connections begin, or not.
    pub fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Relaxed);
    }
}

#[async_trait]
impl Dialer for Network {
    fn authority(&self) -> &str {
        self.server.authority()
    }

    async fn dial(&self) -> Result<Box<dyn Transport>> {
        if self.is_up.load(Ordering::Relaxed) {
            return self.server.dial().await;
        }
        Err(Error::new(ErrorKind::Unavailable, "the network is down"))
    }
}
