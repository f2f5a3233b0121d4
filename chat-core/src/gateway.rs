//! The gateway: drives the [`Session`](crate::session::Session) of each connected device over its transport.
//!
//! The top layer, and the only one that encodes and parses frames. It is generic over transport, clock and
//! timers: a server runs it on sockets and a real clock, the simulator on queues and its own time.

mod connection;
mod handshake_limiter;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use self::connection::Connection;
use self::handshake_limiter::HandshakeLimiter;
use crate::backend::{Runtime, Transport};
use crate::delivery::Engine;

/// Connections of one process. Clones share the engine and the limits.
#[derive(Clone, Debug)]
pub struct Gateway {
    engine: Arc<Engine>,
    runtime: Arc<dyn Runtime>,
    /// Milliseconds over which a drain spreads reconnects; 0 before a drain begins.
    drain: watch::Receiver<u32>,
    handshakes: Arc<HandshakeLimiter>,
}

/// Starts the graceful shutdown of a [`Gateway`].
#[derive(Debug)]
pub struct Drain(watch::Sender<u32>);

impl Drain {
    /// Closes every session. Each device is asked to reconnect after its own random delay below `spread_ms`
    /// milliseconds.
    pub fn begin(&self, spread_ms: u32) {
        self.0.send_replace(spread_ms.max(1));
    }
}

/// Callback for the outcome of a connection's authentication: `true` if its session was opened, `false` if its
/// token or signature was refused. Dropped without a call if the connection ends before either.
pub type OnAuthenticated = Box<dyn FnOnce(bool) + Send>;

impl Gateway {
    /// Creates a gateway that opens at most `handshakes` sessions at the same time, and the handle that drains
    /// it.
    pub fn new(engine: Arc<Engine>, runtime: Arc<dyn Runtime>, handshakes: u32) -> (Self, Drain) {
        let (sender, drain) = watch::channel(0);
        let handshakes = HandshakeLimiter::new(runtime.clone(), handshakes.max(1));
        (Self { engine, runtime, drain, handshakes }, Drain(sender))
    }

    /// Returns the engine.
    pub const fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Serves one connection until it ends.
    pub async fn serve(&self, transport: Box<dyn Transport>, on_authenticated: OnAuthenticated) {
        let mut nonce = [0; 32];
        if self.runtime.fill_random(&mut nonce).is_err() {
            return;
        }
        let nonce = Bytes::copy_from_slice(&nonce);
        let mut connection = Connection::new(self.clone(), transport, nonce, on_authenticated);
        connection.run().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// A handler that is awaited without a box adds its memory to every idle connection.
    #[test]
    fn idle_connection_reserves_no_memory_for_handlers() {
        let size = size_of_future(
            |(gateway, transport, report): (&'static Gateway, Box<dyn Transport>, OnAuthenticated)| {
                gateway.serve(transport, report)
            },
        );
        assert!(size <= 2048, "{size} bytes");
    }
}
