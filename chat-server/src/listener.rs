//! The accept loop: per-IP limits, pacing, TLS, and the WebSocket upgrade.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chat_core::backend::Transport;
use chat_core::gateway::Gateway;
use chat_transport::accept::{Upgrade, accept_if, busy};
use parking_lot::Mutex;
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
        let pacer = Arc::new(Mutex::new(AcceptPacer::new(self.accept_rate, Instant::now())));
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
            let mut arrival = Arrival {
                pending: None,
                is_proxied: self.ip_limiter.is_proxy(from.ip()),
                ip_limiter: self.ip_limiter.clone(),
                pacer: pacer.clone(),
            };
            let permit = || self.connections.clone().try_acquire_owned().map_err(|_| "connections");
            let admitted = permit().and_then(|permit| {
                // The address behind a proxy is known, and counts, once the request is read.
                let wait = if arrival.is_proxied { Duration::ZERO } else { arrival.admit(from.ip())? };
                Ok((permit, wait))
            });
            let (permit, wait) = match admitted {
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
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                serve_connection(stream, &gateway, tls, &upgrade, arrival).await;
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

/// A connection whose address counts from the start, or, behind a proxy, once the request is read.
struct Arrival {
    pending: Option<PendingConnection>,
    is_proxied: bool,
    ip_limiter: Arc<IpLimiter>,
    pacer: Arc<Mutex<AcceptPacer>>,
}

impl Arrival {
    /// Admits an address. Returns the time to wait, or the reason to reject the connection.
    fn admit(&mut self, address: IpAddr) -> Result<Duration, &'static str> {
        let now = Instant::now();
        self.pending = Some(self.ip_limiter.admit(address, now.into_std()).ok_or("address")?);
        self.wait(now)
    }

    /// Admits the client that a proxy forwards. Does nothing for a connection without a proxy.
    fn admit_forwarded(&mut self, forwarded: &[IpAddr]) -> Result<Duration, &'static str> {
        if !self.is_proxied {
            return Ok(Duration::ZERO);
        }
        let now = Instant::now();
        let pending = self.ip_limiter.admit_forwarded(forwarded, now.into_std());
        self.pending = Some(pending.ok_or("address")?);
        self.wait(now)
    }

    /// Takes the next place in the pace of new connections.
    fn wait(&self, now: Instant) -> Result<Duration, &'static str> {
        let due = self.pacer.lock().admit(now).ok_or("rate")?;
        Ok(due.saturating_duration_since(now))
    }
}

async fn serve_connection(
    stream: TcpStream,
    gateway: &Gateway,
    tls: Option<TlsAcceptor>,
    upgrade: &Upgrade,
    mut arrival: Arrival,
) {
    let _ = stream.set_nodelay(true);
    // Boxed, because an idle connection must not reserve the memory that the handshakes need.
    if let Some(transport) = Box::pin(open(stream, tls, upgrade, &mut arrival)).await {
        let pending = arrival.pending;
        let answered = move |is_accepted| {
            if let Some(pending) = pending {
                pending.answered(is_accepted);
            }
        };
        gateway.serve(transport, Box::new(answered)).await;
    }
}

async fn open(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    upgrade: &Upgrade,
    arrival: &mut Arrival,
) -> Option<Box<dyn Transport>> {
    let admit = |forwarded: &[IpAddr]| {
        let rejected = |reason| {
            metrics::counter!("chat_connections_rejected_total", "reason" => reason).increment(1);
        };
        arrival.admit_forwarded(forwarded).map_err(rejected).ok()
    };
    match tls {
        None => Some(Box::new(accept_if(stream, upgrade, admit).await.ok()?)),
        Some(tls) => {
            let stream = tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)).await.ok()?.ok()?;
            Some(Box::new(accept_if(stream, upgrade, admit).await.ok()?))
        }
    }
}
