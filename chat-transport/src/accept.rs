//! The server side of the WebSocket upgrade. It is bounded in bytes and time, and strict where a web page or
//! a proxy in between could exploit lenient parsing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use bytes::BytesMut;
use chat_core::backend::Transport as _;
use chat_core::limits::MAX_FRAME;
use chat_core::wire::{CloseReason, ServerFrame};
use chat_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tungstenite::handshake::derive_accept_key;

use crate::websocket::{Role, WebSocket};

/// Maximum size of an upgrade request, in bytes.
const HEAD: usize = 8 * 1024;
/// Maximum number of headers in an upgrade request.
const HEADERS: usize = 64;
/// Time limit for reading the request, and again for writing the response.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Seconds after which a client that a proxy forwards may try again, if its address has too many connections.
const RETRY_AFTER: u32 = 5;
/// Browsers whose refused upgrades are completed and closed with a reason at the same time.
const MAX_CLOSING_BROWSERS: usize = 256;

/// Requirements that an upgrade request must meet.
#[derive(Clone, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Upgrade {
    /// Required request path, such as `/v1`.
    pub path: String,
    /// Allowed origins of web pages, exactly as browsers send them. A request without an origin (not from a
    /// browser) is always accepted, because the server does not trust cookies.
    pub origins: Vec<String>,
}

/// Reads an upgrade request, answers it and returns the WebSocket.
///
/// # Errors
/// `Invalid` if the request breaks a rule or is not complete in time (it was answered with the status that
/// `docs/wire.md` lists), `Closed` if the response could not be written in time.
pub async fn accept<S>(io: S, upgrade: &Upgrade) -> Result<WebSocket<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static,
{
    accept_if(io, upgrade, |_| Some(Duration::ZERO)).await
}

/// Accepts a connection like [`accept`], after the time that `admit` returns. It receives the addresses of
/// `X-Forwarded-For` in their order, each added by a proxy: only the last ones, of trusted proxies, can be believed.
///
/// # Errors
/// As [`accept`]. `Throttled` if `admit` returns `None`: the request was answered like by [`busy`].
pub async fn accept_if<S>(
    mut io: S,
    upgrade: &Upgrade,
    admit: impl FnOnce(&[IpAddr]) -> Option<Duration> + Send,
) -> Result<WebSocket<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static,
{
    let head = match tokio::time::timeout(HEAD_TIME, read_head(&mut io)).await {
        Ok(Ok(head)) => head,
        Ok(Err(status)) => return refuse(io, status).await,
        Err(_) => return refuse(io, "408 Request Timeout").await,
    };
    let (request, rest) = head;
    match check(&request, upgrade) {
        // Reject frame bytes sent before the response: nothing can be smuggled behind the request.
        Ok(_) if !rest.is_empty() => refuse(io, "400 Bad Request").await,
        Ok(key) => match admit(&forwarded_for(&request)) {
            Some(wait) => {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                switch_protocols(io, &key).await
            }
            None => {
                match browser_reason(&request, "503") {
                    Some((key, reason)) => close_browser(io, &key, reason, 1000 * RETRY_AFTER).await,
                    None => reject_busy(io, RETRY_AFTER).await,
                }
                Err(Error::new(ErrorKind::Throttled, "too many connections"))
            }
        },
        Err(status) => match browser_reason(&request, status) {
            Some((key, reason)) => {
                close_browser(io, &key, reason, 0).await;
                Err(Error::new(ErrorKind::Invalid, "not a valid upgrade request"))
            }
            None => refuse(io, status).await,
        },
    }
}

/// Returns the addresses of all `X-Forwarded-For` headers. An entry that is no address ends the list before it: proxies add
/// their entries at the end.
fn forwarded_for(head: &[u8]) -> Vec<IpAddr> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(head).is_err() {
        return Vec::new();
    }
    let lists = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("x-forwarded-for"));
    let entries =
        lists.filter_map(|header| std::str::from_utf8(header.value).ok()).flat_map(|list| list.split(','));
    let mut addresses = Vec::new();
    for entry in entries {
        match address(entry.trim()) {
            Some(address) => addresses.push(address),
            None => addresses.clear(),
        }
    }
    addresses
}

/// Reads an address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// Completes the upgrade.
async fn switch_protocols<S>(mut io: S, key: &str) -> Result<WebSocket<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static,
{
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    let answered = async {
        io.write_all(answer.as_bytes()).await?;
        io.flush().await
    };
    match tokio::time::timeout(HEAD_TIME, answered).await {
        Ok(Ok(())) => Ok(upgraded(io)),
        _ => Err(Error::new(ErrorKind::Closed, "failed to write the upgrade response")),
    }
}

/// Returns the key and the close reason of a browser's request that is refused with this status. A page cannot read the
/// status of a failed upgrade, so the upgrade is completed and closed with a reason.
fn browser_reason(head: &[u8], status: &str) -> Option<(String, CloseReason)> {
    let reason = match status.split(' ').next() {
        Some("403") => CloseReason::Origin,
        Some("404") => CloseReason::Path,
        Some("503") => CloseReason::Draining,
        _ => return None,
    };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).ok()?;
    let headers: Vec<(&str, &[u8])> = request.headers.iter().map(|h| (h.name, h.value)).collect();
    let origin = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("origin"))?;
    let origin = std::str::from_utf8(origin.1).ok()?.trim().to_owned();
    Some((check_headers(&headers, &[origin]).ok()?, reason))
}

/// Completes the upgrade of a browser's request and closes it with a reason, unless too many are being closed.
async fn close_browser<S>(io: S, key: &str, reason: CloseReason, retry_after: u32)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static,
{
    static CLOSING: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(MAX_CLOSING_BROWSERS);
    let Ok(_permit) = CLOSING.try_acquire() else { return };
    if let Ok(mut socket) = switch_protocols(io, key).await {
        let _ = socket.send(vec![ServerFrame::Close { reason, retry_after }.encode()]).await;
        socket.close(reason.code()).await;
    }
}

/// Reads the request and answers with status 503 and a `Retry-After` of `retry_after` seconds. A browser gets close
/// code 4503 instead.
pub async fn busy<S>(mut io: S, retry_after: u32)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static,
{
    const STATUS: &str = "503 Service Unavailable";
    let head = tokio::time::timeout(Duration::from_secs(1), read_head(&mut io)).await;
    if let Ok(Ok((request, _))) = head
        && let Some((key, reason)) = browser_reason(&request, STATUS)
    {
        return close_browser(io, &key, reason, retry_after.saturating_mul(1000)).await;
    }
    reject_busy(io, retry_after).await;
}

async fn reject_busy<S: AsyncRead + AsyncWrite + Unpin>(io: S, retry_after: u32) {
    let answer = format!("503 Service Unavailable\r\nRetry-After: {retry_after}\r\nContent-Length: 0");
    farewell(io, &answer).await;
}

async fn refuse<S: AsyncRead + AsyncWrite + Unpin, T>(io: S, status: &'static str) -> Result<T> {
    let extra =
        if status.starts_with("426") { "\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket" } else { "" };
    farewell(io, &format!("{status}{extra}\r\nContent-Length: 0")).await;
    Err(Error::new(ErrorKind::Invalid, "not a valid upgrade request"))
}

/// Sends a response, drains unread input and closes the connection. Takes at most one second.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(mut io: S, answer: &str) {
    let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
    let answered = async {
        if io.write_all(answer.as_bytes()).await.is_ok() && io.shutdown().await.is_ok() {
            // Closing with unread bytes would reset the connection, and the client would lose the response.
            let mut rest = [0; 1024];
            let mut taken = 0;
            while taken < 1 << 20 {
                match io.read(&mut rest).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => taken += n,
                }
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), answered).await;
}

/// Reads the request head up to and including the empty line. Returns it with the bytes that came after it.
async fn read_head<S: AsyncRead + Unpin>(
    io: &mut S,
) -> std::result::Result<(Vec<u8>, Vec<u8>), &'static str> {
    let mut buffer = BytesMut::with_capacity(1024);
    loop {
        if buffer.starts_with(b"PRI * HTTP/2.0") {
            return Err("505 HTTP Version Not Supported");
        }
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            return if is_clean(&buffer) {
                Ok((buffer.to_vec(), rest.to_vec()))
            } else {
                Err("400 Bad Request")
            };
        }
        if buffer.len() >= HEAD {
            return Err("431 Request Header Fields Too Large");
        }
        if !is_clean(&buffer) {
            return Err("400 Bad Request");
        }
        buffer.reserve(512);
        let room = HEAD - buffer.len();
        match (&mut *io).take(room as u64).read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return Err("400 Bad Request"),
            Ok(_) => {}
        }
    }
}

/// Returns whether the head has no NUL and no LF without CR. A proxy may parse those differently.
fn is_clean(head: &[u8]) -> bool {
    !head.contains(&0) && !head.windows(2).any(|two| two[1] == b'\n' && two[0] != b'\r')
}

/// Checks a request. Returns its `Sec-WebSocket-Key`, or the status to answer with.
fn check(head: &[u8], upgrade: &Upgrade) -> std::result::Result<String, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err("431 Request Header Fields Too Large"),
        _ => return Err("400 Bad Request"),
    }
    let path = request.path.unwrap_or_default();
    if request.method != Some("GET") {
        return Err("405 Method Not Allowed");
    }
    if path.contains('?') {
        // A token in a URL would end up in logs. Clients send it in the first frame instead.
        return Err("400 Bad Request");
    }
    if path != upgrade.path {
        return Err("404 Not Found");
    }
    if request.version != Some(1) {
        return Err("505 HTTP Version Not Supported");
    }
    let headers: Vec<(&str, &[u8])> = request.headers.iter().map(|h| (h.name, h.value)).collect();
    check_headers(&headers, &upgrade.origins)
}

/// Checks the headers of an upgrade request that another HTTP server parsed; returns the value of
/// `Sec-WebSocket-Accept`.
///
/// # Errors
/// The status line to answer with.
pub fn accept_key(
    headers: &[(&str, &[u8])],
    origins: &[String],
) -> std::result::Result<String, &'static str> {
    check_headers(headers, origins).map(|key| derive_accept_key(key.as_bytes()))
}

/// Returns the server's end of a WebSocket on a stream that another HTTP server upgraded.
pub fn upgraded<S>(io: S) -> WebSocket<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static,
{
    WebSocket::new(io, Role::Server, MAX_FRAME, &[])
}

/// Checks the headers of an upgrade request; returns its key.
fn check_headers(headers: &[(&str, &[u8])], origins: &[String]) -> std::result::Result<String, &'static str> {
    let all = |name: &str| {
        let same: Vec<&[u8]> = headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
            .collect();
        same
    };
    let one = |name: &str| match all(name).as_slice() {
        [value] => Ok(std::str::from_utf8(value).ok().map(str::trim)),
        [] => Ok(None),
        _ => Err("400 Bad Request"),
    };
    let has = |value: Option<&str>, word: &str| {
        value.is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    if one("Host")?.is_none_or(str::is_empty) || !all("Transfer-Encoding").is_empty() {
        return Err("400 Bad Request");
    }
    if one("Content-Length")?.is_some_and(|length| length != "0") {
        return Err("400 Bad Request");
    }
    if !has(one("Upgrade")?, "websocket") || !has(one("Connection")?, "upgrade") {
        return Err("426 Upgrade Required");
    }
    if one("Sec-WebSocket-Version")? != Some("13") {
        return Err("426 Upgrade Required");
    }
    if let Some(origin) = one("Origin")?
        && !origins.iter().any(|known| known == origin)
    {
        return Err("403 Forbidden");
    }
    let key = one("Sec-WebSocket-Key")?.ok_or("400 Bad Request")?;
    match base64::engine::general_purpose::STANDARD.decode(key) {
        Ok(bytes) if bytes.len() == 16 => Ok(key.to_owned()),
        _ => Err("400 Bad Request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_addresses_are_read_in_order() {
        let read = |headers: &str| {
            let head = format!("GET /v1 HTTP/1.1\r\n{headers}\r\n\r\n");
            forwarded_for(head.as_bytes()).iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(read("X-Forwarded-For: 192.0.2.1, 2001:db8::1"), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(
            read("x-forwarded-for: 192.0.2.1:80,[2001:db8::1]:443, [2001:db8::2]"),
            ["192.0.2.1", "2001:db8::1", "2001:db8::2"]
        );
        assert_eq!(
            read("X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2"),
            ["192.0.2.1", "192.0.2.2"]
        );
        assert_eq!(read("X-Forwarded-For: 192.0.2.1, unknown, 192.0.2.3"), ["192.0.2.3"]);
        assert_eq!(read("X-Forwarded-For: 192.0.2.1, unknown"), [""; 0]);
        assert_eq!(read("Host: a"), [""; 0]);
    }
}
