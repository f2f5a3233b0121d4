//! The client side of a connection: `ws://` for loopback, `wss://` (TLS 1.3) for all other hosts.

use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use base64::Engine as _;
use chat_core::backend::Transport;
use chat_core::limits::MAX_FRAME;
use chat_core::{Error, ErrorKind, Result};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tungstenite::handshake::derive_accept_key;

use crate::websocket::{Role, WebSocket};

/// Time limit for dialling, including TLS and the upgrade.
const DIAL_TIME: Duration = Duration::from_secs(10);

/// The address of a server, and the certificates to trust.
#[derive(Clone)]
pub struct Dialer {
    host: String,
    port: u16,
    path: String,
    tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("authority", &self.authority())
            .field("tls", &self.tls.is_some())
            .finish()
    }
}

impl Dialer {
    /// Creates a dialer for a URL: `ws://host[:port][/path]` or `wss://…`. The default path is `/v1`.
    /// `extra_roots` are trusted in addition to the system's certificates.
    ///
    /// # Errors
    /// `Invalid` if the URL has another form, or is `ws://` to a host that is not loopback.
    pub fn new(url: &str, extra_roots: &[CertificateDer<'static>]) -> Result<Self> {
        let invalid = |what| Error::new(ErrorKind::Invalid, what);
        let (secure, rest) = match url.split_once("://") {
            Some(("ws", rest)) => (false, rest),
            Some(("wss", rest)) => (true, rest),
            _ => return Err(invalid("a server URL must begin with ws:// or wss://")),
        };
        let (authority, path) =
            rest.split_once('/').map_or((rest, "v1"), |(a, p)| (a, if p.is_empty() { "v1" } else { p }));
        if path.contains(['?', '#', ' ', '\r', '\n']) || authority.contains('@') {
            return Err(invalid("a server URL must have a host, and only an optional port and path"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| invalid("the port of the server URL is not a number"))?)
            }
            _ => (authority, if secure { 443 } else { 80 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(invalid("the server URL has no host"));
        }
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if !secure && !loopback {
            return Err(invalid("a server on another machine requires TLS: use wss://"));
        }
        let tls = if secure { Some(Arc::new(tls(extra_roots)?)) } else { None };
        Ok(Self { host: host.to_owned(), port, path: format!("/{path}"), tls })
    }

    /// Returns the dialled authority, `host:port`. It is part of the data that the device signs.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Connects to the server.
    ///
    /// # Errors
    /// `Closed` if the server cannot be reached or does not answer in time, `Denied` if its certificate is
    /// not trusted, `Throttled` if it is busy (with the [time to wait](Error::retry_after_ms)), `Invalid` if
    /// it is not a chat server.
    pub async fn dial(&self) -> Result<Box<dyn Transport>> {
        match tokio::time::timeout(DIAL_TIME, self.connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::new(ErrorKind::Closed, "the server did not answer in time")),
        }
    }

    async fn connect(&self) -> Result<Box<dyn Transport>> {
        let lost = |e| Error::new(ErrorKind::Closed, "the server cannot be reached").caused_by(e);
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        match &self.tls {
            None => Ok(Box::new(self.upgrade(tcp).await?)),
            Some(config) => {
                let name = ServerName::try_from(self.host.clone())
                    .map_err(|e| Error::new(ErrorKind::Invalid, "the host name is invalid").caused_by(e))?;
                let tls = tokio_rustls::TlsConnector::from(config.clone()).connect(name, tcp).await;
                let tls = tls.map_err(|e| match e.kind() {
                    // `InvalidData` is a TLS failure; any other error comes from the network.
                    io::ErrorKind::InvalidData => {
                        Error::new(ErrorKind::Denied, "failed to establish a secure connection").caused_by(e)
                    }
                    _ => lost(e),
                })?;
                Ok(Box::new(self.upgrade(tls).await?))
            }
        }
    }

    async fn upgrade<S>(&self, mut io: S) -> Result<WebSocket<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug + 'static,
    {
        let lost = |e| Error::new(ErrorKind::Closed, "the connection was lost").caused_by(e);
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "failed to get random bytes"))?;
        let key = base64::engine::general_purpose::STANDARD.encode(nonce);
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n",
            self.path,
            self.authority(),
        );
        io.write_all(request.as_bytes()).await.map_err(lost)?;
        io.flush().await.map_err(lost)?;
        let mut head = Vec::with_capacity(256);
        while !head.ends_with(b"\r\n\r\n") {
            // Byte by byte, so that the first frame, which the server may send at once, is not consumed.
            let byte = io.read_u8().await.map_err(lost)?;
            head.push(byte);
            if head.len() > 8192 {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "the response to the upgrade request is too long",
                ));
            }
        }
        let text = String::from_utf8_lossy(&head);
        let accepted = text.starts_with("HTTP/1.1 101")
            && header(&text, "sec-websocket-accept") == Some(derive_accept_key(key.as_bytes()).as_str());
        if accepted {
            Ok(WebSocket::new(io, Role::Client, 4 * MAX_FRAME, &[]))
        } else if text.starts_with("HTTP/1.1 503") {
            Err(Error::new(ErrorKind::Throttled, "the server is busy").retry_after(retry_after_ms(&text)))
        } else {
            Err(Error::new(ErrorKind::Invalid, "the server is not a chat server"))
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    headers.into_iter().find_map(|(known, value)| known.eq_ignore_ascii_case(name).then(|| value.trim()))
}

/// Returns the `Retry-After` of a 503 response in milliseconds, or 0 if there is none. At most one minute,
/// because the response may come from a proxy.
fn retry_after_ms(head: &str) -> u32 {
    const MAX_RETRY_AFTER_MS: u32 = 60_000;
    let seconds = header(head, "retry-after").and_then(|value| value.parse::<u32>().ok());
    seconds.unwrap_or(0).saturating_mul(1000).min(MAX_RETRY_AFTER_MS)
}

fn tls(extra_roots: &[CertificateDer<'static>]) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(extra_roots.iter().cloned());
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::new(ErrorKind::Unavailable, "TLS 1.3 is not available").caused_by(e))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_strictly() {
        for bad in [
            "http://x",
            "localhost:7777",
            "ws://",
            "ws://localhost:x/v1",
            "ws://u@localhost",
            "ws://localhost/v1?token=x",
            "ws://example.com/v1",
        ] {
            assert!(Dialer::new(bad, &[]).is_err(), "{bad}");
        }
        for (good, authority, path) in [
            ("ws://127.0.0.1:7777", "127.0.0.1:7777", "/v1"),
            ("ws://[::1]:7777/v1", "::1:7777", "/v1"),
            ("wss://chat.example/", "chat.example:443", "/v1"),
        ] {
            let dialer = Dialer::new(good, &[]).unwrap();
            assert_eq!((dialer.authority().as_str(), dialer.path.as_str()), (authority, path));
        }
    }

    #[tokio::test]
    async fn dial_returns_retry_after_when_the_server_is_busy() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for seconds in [7, 3600] {
                crate::accept::busy(listener.accept().await.unwrap().0, seconds).await;
            }
        });
        let dialer = Dialer::new(&url, &[]).unwrap();
        for wait in [7000, 60_000] {
            let error = dialer.dial().await.unwrap_err();
            assert_eq!((error.kind(), error.retry_after_ms()), (ErrorKind::Throttled, wait));
        }
        assert_eq!(retry_after_ms("HTTP/1.1 503 Service Unavailable\r\nRetry-After: soon\r\n\r\n"), 0);
    }
}
