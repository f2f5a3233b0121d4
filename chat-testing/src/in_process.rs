use std::fmt;
use std::future::Future;
use std::pin::Pin;

use async_trait::async_trait;
use chat_core::Result;
use chat_core::backend::{Dialer, Transport};
use chat_transport::duplex::duplex;
use tokio::runtime::Handle;

/// Number of frames that a connection buffers in each direction.
const FRAMES: usize = 256;

/// Serves a connection until it ends.
pub(crate) type Accept =
    Box<dyn Fn(Box<dyn Transport>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Connects clients to a server in the same process.
pub(crate) struct InProcessDialer {
    pub(crate) accept: Accept,
    /// The runtime of the server: a session outlives the thread of its client.
    pub(crate) runtime: Handle,
}

impl fmt::Debug for InProcessDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessDialer").finish_non_exhaustive()
    }
}

#[async_trait]
impl Dialer for InProcessDialer {
    fn authority(&self) -> &str {
        "in-process:0"
    }

    async fn dial(&self) -> Result<Box<dyn Transport>> {
        let (client, server) = duplex(FRAMES);
        self.runtime.spawn((self.accept)(Box::new(server)));
        Ok(Box::new(client))
    }
}
