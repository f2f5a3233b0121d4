//! The client side of a connection: `ws://` for loopback, `wss://` (TLS 1.3) for all other hosts.

use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use base64::Engine as _;
use chat_core::backend::{Dialer, Transport};
use chat_core::limits::MAX_FRAME;
use chat_core::{Error, ErrorKind, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tungstenite::handshake::derive_accept_key;
use url::{Host, Url};

use crate::websocket::{Role, WebSocket};

/// Time limit for dialling, including TLS and the upgrade.
const DIAL_TIME: Duration = Duration::from_secs(10);

/// Opens WebSocket connections to a server: plain for loopback, over TLS 1.3 for all other hosts.
#[derive(Clone)]
pub struct WebSocketDialer {
    host: String,
    port: u16,
    path: String,
    authority: String,
    secure: bool,
    tls: Arc<OnceLock<Arc<ClientConfig>>>,
    /// Certificates that are trusted in addition to the system's.
    roots: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for WebSocketDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketDialer")
            .field("authority", &self.authority)
            .field("secure", &self.secure)
            .finish_non_exhaustive()
    }
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

impl WebSocketDialer {
    /// Creates a dialer for a URL: `ws://host[:port][/path]` or `wss://…`. The default path is `/v1`.
    ///
    /// ```
    /// use chat_core::backend::Dialer;
    /// use chat_transport::dial::WebSocketDialer;
    /// assert_eq!(WebSocketDialer::new("wss://chat.example")?.authority(), "chat.example:443");
    /// # Ok::<(), chat_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Invalid` if the URL has another form, or is `ws://` to a host that is not loopback.
    pub fn new(url: &str) -> Result<Self> {
        let url = Url::parse(url).map_err(|e| invalid("the server URL is malformed").caused_by(e))?;
        let secure = match url.scheme() {
            "ws" => false,
            "wss" => true,
            _ => return Err(invalid("a server URL must begin with ws:// or wss://")),
        };
        let extra = !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some();
        if extra {
            return Err(invalid("a server URL must have a host, and only an optional port and path"));
        }
        let host = url.host().ok_or_else(|| invalid("the server URL has no host"))?;
        let loopback = match &host {
            Host::Domain(name) => *name == "localhost",
            Host::Ipv4(ip) => ip.is_loopback(),
            Host::Ipv6(ip) => ip.is_loopback(),
        };
        if !secure && !loopback {
            return Err(invalid("a server on another machine requires TLS: use wss://"));
        }
        let port = url.port_or_known_default().ok_or_else(|| invalid("the server URL has no port"))?;
        let path = match url.path().trim_end_matches('/') {
            "" => "/v1",
            path => path,
        };
        // In a URL and in an authority an IPv6 address has brackets (RFC 3986, 3.2.2); a socket address has none.
        let authority = format!("{host}:{port}");
        let host = match host {
            Host::Ipv6(ip) => ip.to_string(),
            host => host.to_string(),
        };
        let (path, tls) = (path.to_owned(), Arc::default());
        Ok(Self { host, port, path, authority, secure, tls, roots: Vec::new() })
    }

    /// Trusts the certificates of a PEM text in addition to the system's.
    ///
    /// # Errors
    /// `Invalid` if the text is not PEM, or has no certificate.
    pub fn trust_pem(mut self, pem: &[u8]) -> Result<Self> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let roots = roots.map_err(|e| invalid("failed to read the certificates").caused_by(e))?;
        if roots.is_empty() {
            return Err(invalid("the PEM text has no certificate"));
        }
        self.roots.extend(roots);
        self.tls = Arc::default();
        Ok(self)
    }

    fn tls(&self) -> Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let config = Arc::new(client_config(&self.roots)?);
        Ok(self.tls.get_or_init(|| config).clone())
    }

    async fn connect(&self) -> Result<Box<dyn Transport>> {
        let lost = |e| Error::new(ErrorKind::Closed, "the server cannot be reached").caused_by(e);
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        if !self.secure {
            return Ok(Box::new(self.upgrade(tcp).await?));
        }
        let name = ServerName::try_from(self.host.clone())
            .map_err(|e| invalid("the host name is invalid").caused_by(e))?;
        let tls = tokio_rustls::TlsConnector::from(self.tls()?).connect(name, tcp).await;
        let tls = tls.map_err(|e| match e.kind() {
            // `InvalidData` is a TLS failure; any other error comes from the network.
            io::ErrorKind::InvalidData => Error::new(ErrorKind::Denied, tls_failure(&e)).caused_by(e),
            _ => lost(e),
        })?;
        Ok(Box::new(self.upgrade(tls).await?))
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
            self.path, self.authority,
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

#[async_trait]
impl Dialer for WebSocketDialer {
    fn authority(&self) -> &str {
        &self.authority
    }

    async fn dial(&self) -> Result<Box<dyn Transport>> {
        match tokio::time::timeout(DIAL_TIME, self.connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::new(ErrorKind::Closed, "the server did not answer in time")),
        }
    }
}

/// Returns the cause of a failed TLS handshake, with the remedy if there is one.
fn tls_failure(error: &io::Error) -> &'static str {
    use rustls::CertificateError as Cause;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(cause)) => match cause {
            Cause::Expired | Cause::ExpiredContext { .. } => {
                "no secure connection: the certificate of the server has expired, or the clock of this device is wrong"
            }
            Cause::NotValidYet | Cause::NotValidYetContext { .. } => {
                "no secure connection: the certificate of the server is not valid yet, or the clock of this device is wrong"
            }
            Cause::NotValidForName | Cause::NotValidForNameContext { .. } => {
                "no secure connection: the certificate of the server is for another host name"
            }
            Cause::UnknownIssuer => {
                "no secure connection: this device trusts no issuer of the server's certificate"
            }
            Cause::Revoked => "no secure connection: the certificate of the server is revoked",
            _ => "no secure connection: the certificate of the server is not valid",
        },
        Some(rustls::Error::InvalidMessage(_)) => "no secure connection: the server does not speak TLS",
        Some(rustls::Error::PeerIncompatible(_)) => {
            "no secure connection: the server does not support TLS 1.3"
        }
        _ => "failed to establish a secure connection",
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

fn client_config(extra_roots: &[CertificateDer<'static>]) -> Result<ClientConfig> {
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
            assert!(WebSocketDialer::new(bad).is_err(), "{bad}");
        }
        for (good, authority, path) in [
            ("ws://127.0.0.1:7777", "127.0.0.1:7777", "/v1"),
            ("ws://[::1]:7777/v1", "[::1]:7777", "/v1"),
            ("wss://Chat.Example/other", "chat.example:443", "/other"),
            ("wss://chat.example/", "chat.example:443", "/v1"),
            ("wss://chat.example:443/", "chat.example:443", "/v1"),
            ("wss://chat.example/v1/", "chat.example:443", "/v1"),
            ("WS://LOCALHOST:7777/", "localhost:7777", "/v1"),
            ("ws://[0:0::1]:7777/", "[::1]:7777", "/v1"),
        ] {
            let dialer = WebSocketDialer::new(good).unwrap();
            assert_eq!((dialer.authority(), dialer.path.as_str()), (authority, path));
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
        let dialer = WebSocketDialer::new(&url).unwrap();
        for wait in [7000, 60_000] {
            let error = dialer.dial().await.unwrap_err();
            assert_eq!((error.kind(), error.retry_after_ms()), (ErrorKind::Throttled, wait));
        }
        assert_eq!(retry_after_ms("HTTP/1.1 503 Service Unavailable\r\nRetry-After: soon\r\n\r\n"), 0);
    }
}
