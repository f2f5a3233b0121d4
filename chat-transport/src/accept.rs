//! The server's side of the upgrade: bounded in bytes and in time, and strict where being lenient would
//! let a browser page or a proxy in between play tricks.

use std::time::Duration;

use base64::Engine as _;
use bytes::BytesMut;
use chat_core::limits::MAX_FRAME;
use chat_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tungstenite::handshake::derive_accept_key;

use crate::websocket::{Role, WebSocket};

/// Bytes an upgrade request may have.
const HEAD: usize = 8 * 1024;
/// Headers it may have.
const HEADERS: usize = 64;
/// How long it may take.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// What an upgrade must look like.
#[derive(Clone, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Upgrade {
    /// The path, `/v1`.
    pub path: String,
    /// Origins of web pages that may connect, exactly as browsers send them. A request without an origin
    /// (not a browser) is always let in: nothing here trusts a cookie.
    pub origins: Vec<String>,
}

/// Reads an upgrade request and answers it.
///
/// # Errors
/// `Invalid` if the request breaks a rule (it was answered with the status `docs/wire.md` names),
/// `Closed` if the stream broke or took too long.
pub async fn accept<S>(mut io: S, upgrade: &Upgrade) -> Result<WebSocket<S>>
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
        Ok(key) => {
            // Bytes of a frame may not come before the answer: there is nothing to smuggle.
            if !rest.is_empty() {
                return refuse(io, "400 Bad Request").await;
            }
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                derive_accept_key(key.as_bytes())
            );
            let answered = async {
                io.write_all(answer.as_bytes()).await?;
                io.flush().await
            };
            match tokio::time::timeout(HEAD_TIME, answered).await {
                Ok(Ok(())) => Ok(WebSocket::new(io, Role::Server, MAX_FRAME, &[])),
                _ => Err(Error::new(ErrorKind::Closed, "the stream broke")),
            }
        }
        Err(status) => refuse(io, status).await,
    }
}

/// Answers with 503 and the seconds to come back after.
pub async fn busy<S: AsyncRead + AsyncWrite + Unpin>(io: S, retry_after: u32) {
    farewell(io, &format!("503 Service Unavailable\r\nRetry-After: {retry_after}\r\nContent-Length: 0"))
        .await;
}

async fn refuse<S: AsyncRead + AsyncWrite + Unpin, T>(io: S, status: &'static str) -> Result<T> {
    let extra =
        if status.starts_with("426") { "\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket" } else { "" };
    farewell(io, &format!("{status}{extra}\r\nContent-Length: 0")).await;
    Err(Error::new(ErrorKind::Invalid, "not an upgrade request we take"))
}

/// Sends an answer, and ends the connection once the other end may have it.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(mut io: S, answer: &str) {
    let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
    let answered = async {
        if io.write_all(answer.as_bytes()).await.is_ok() && io.shutdown().await.is_ok() {
            // Unread bytes would turn the close into a reset, and the answer would be lost.
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

/// The request's bytes up to the empty line, and what came behind it.
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

/// A line that ends without CR is not HTTP, nor is a NUL; a proxy may read them otherwise than we do.
fn is_clean(head: &[u8]) -> bool {
    !head.contains(&0) && !head.windows(2).any(|two| two[1] == b'\n' && two[0] != b'\r')
}

/// Checks a request; gives its key.
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
        // A token in a URL ends up in logs: it travels in the first frame.
        return Err("400 Bad Request");
    }
    if path != upgrade.path {
        return Err("404 Not Found");
    }
    if request.version != Some(1) {
        return Err("505 HTTP Version Not Supported");
    }
    let all = |name: &str| {
        let same: Vec<&[u8]> =
            request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value).collect();
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
        && !upgrade.origins.iter().any(|known| known == origin)
    {
        return Err("403 Forbidden");
    }
    let key = one("Sec-WebSocket-Key")?.ok_or("400 Bad Request")?;
    match base64::engine::general_purpose::STANDARD.decode(key) {
        Ok(bytes) if bytes.len() == 16 => Ok(key.to_owned()),
        _ => Err("400 Bad Request"),
    }
}
