//! The accept loop: per-IP limits, pacing, TLS, and the WebSocket upgrade.

use std::sync::Arc;
use std::time::Duration;

use chat_core::backend::Transport;
use chat_core::gateway::Gateway;
use chat_transport::accept::{Upgrade, accept, busy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::accept_pacer::AcceptPacer;
use crate::ip_limiter::{IpLimiter, PendingConnection};

/// Longest TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent 503 responses. A connection beyond that is closed without one.
const MAX_BUSY_RESPONSES: usize = 256;
/// Pause after a failed accept, most likely because the process has no file descriptors left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// A listening socket and the limits of its connections.
pub(crate) struct Listener {
    pub listener: TcpListener,
    /// The newest certificate.
    pub tls: Option<watch::Receiver<TlsAcceptor>>,
    pub upgrade: Arc<Upgrade>,
    pub ip_limiter: Arc<IpLimiter>,
    /// New connections per second.
    pub accept_rate: u32,
    /// Permits of all connections of the server.
    pub connections: Arc<Semaphore>,
    pub gateway: Gateway,
}

impl Listener {
    /// Accepts connections until the task is cancelled.
    pub(crate) async fn run(self) {
        let mut pacer = AcceptPacer::new(self.accept_rate, Instant::now());
        let busy_responses = Arc::new(Semaphore::new(MAX_BUSY_RESPONSES));
        loop {
            let (stream, from) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection: trying again in 50 ms");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let now = Instant::now();
            let permit = || self.connections.clone().try_acquire_owned().map_err(|_| "connections");
            let admitted = self
                .ip_limiter
                .admit(from.ip(), now.into_std())
                .ok_or("address")
                .and_then(|pending| Ok((pending, permit()?)))
                .and_then(|(pending, permit)| Ok((pending, permit, pacer.admit(now).ok_or("rate")?)));
            let (pending, permit, due) = match admitted {
                Ok(admitted) => admitted,
                Err(reason) => {
                    metrics::counter!("chat_connections_rejected_total", "reason" => reason).increment(1);
                    // A response over TLS would cost the handshake that the server has no capacity for.
                    if let (None, Ok(permit)) = (&self.tls, busy_responses.clone().try_acquire_owned()) {
                        tokio::spawn(async move {
                            busy(stream, retry_after_seconds()).await;
                            drop(permit);
                        });
                    }
                    continue;
                }
            };
            let (gateway, tls, upgrade) = (
                self.gateway.clone(),
                self.tls.as_ref().map(|tls| tls.borrow().clone()),
                self.upgrade.clone(),
            );
            tokio::spawn(async move {
                if due > now {
                    tokio::time::sleep_until(due).await;
                }
                serve_connection(stream, &gateway, tls, &upgrade, pending).await;
                drop(permit);
            });
        }
    }
}

/// Returns a random delay for a rejected client, so that not all of them come back at the same time.
fn retry_after_seconds() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    1 + (RandomState::new().hash_one(0_u8) % 10) as u32
}

async fn serve_connection(
    stream: TcpStream,
    gateway: &Gateway,
    tls: Option<TlsAcceptor>,
    upgrade: &Upgrade,
    pending: PendingConnection,
) {
    let _ = stream.set_nodelay(true);
    // Boxed, because an idle connection must not reserve the memory that the handshakes need.
    if let Some(transport) = Box::pin(open(stream, tls, upgrade)).await {
        gateway.serve(transport, Box::new(move |accepted| pending.answered(accepted))).await;
    }
}

async fn open(stream: TcpStream, tls: Option<TlsAcceptor>, upgrade: &Upgrade) -> Option<Box<dyn Transport>> {
    match tls {
        None => Some(Box::new(accept(stream, upgrade).await.ok()?)),
        Some(tls) => {
            let stream = tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)).await.ok()?.ok()?;
            Some(Box::new(accept(stream, upgrade).await.ok()?))
        }
    }
}
