//! RFC 6455 framing with its own limits.
//!
//! `tungstenite` parses the frame header. This module sets the policy, because the `tungstenite` stream joins
//! fragments without counting them, and that cannot be turned off. Here a message has at most 64 fragments, which
//! fit the limit of a message together and arrive within 10 s, and 1 s more for each KiB; the first message of a peer is one frame. Text,
//! reserved bits, unmasked client frames and messages over the limit end the connection with the code that
//! `docs/wire.md` lists. Time limits measure progress, so that a slow link is not taken for a dead one. An idle connection releases its large buffers.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use chat_core::backend::Transport;
use chat_core::limits::MIN_BYTES_PER_SECOND;
use chat_core::wire::CloseReason;
use chat_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

/// The side of the connection. A client masks the frames it sends, a server does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum Role {
    Client,
    Server,
}

/// Time limit for the rest of a message after its first byte, in addition to a second for each
/// `MIN_BYTES_PER_SECOND` that arrived.
const FRAME_TIME: Duration = Duration::from_secs(10);
/// Time limit for the peer to accept some written bytes.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// Time limit for a closing handshake.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Largest first message of a client, in bytes: a handshake. A peer that is not authenticated must not hold more.
const MAX_FIRST: usize = 16 * 1024;
/// Maximum number of fragments of one message, empty ones included.
const MAX_FRAGMENTS: u32 = 64;
/// Maximum number of control frames per second.
const CONTROL_RATE: u32 = 10;
/// Number of masks that a client makes from one call for random bytes.
const MASKS: usize = 64;
/// Largest read buffer that an idle connection keeps, in bytes.
const KEEP: usize = 4096;

/// A WebSocket over a byte stream, after the upgrade.
#[derive(Debug)]
pub struct WebSocket<S> {
    io: S,
    role: Role,
    /// Random bytes for the next masks of a client.
    masks: Vec<u8>,
    /// Largest accepted payload, in bytes.
    limit: usize,
    buffer: BytesMut,
    header: Option<(FrameHeader, usize)>,
    /// The fragments of a message that is not complete.
    fragments: Option<Fragments>,
    /// A whole message arrived. Until then, fragments are refused: an unauthenticated peer must not hold memory.
    has_received: bool,
    started: Option<Instant>,
    control: (Instant, u32),
    /// Encoded pongs that are not written yet. They are kept here and written in pieces, so that `recv` is
    /// cancel safe.
    pongs: BytesMut,
    /// Close code that replaces the one passed to `close`: the peer broke a rule, closed, or did not read.
    verdict: Option<u16>,
    /// The peer sent a close frame.
    closed: bool,
}

/// Fragments of one message, joined as they arrive.
#[derive(Debug)]
struct Fragments {
    joined: BytesMut,
    /// Number of fragments, empty ones included.
    count: u32,
    /// Arrival of the first one.
    started: Instant,
}

/// Returns the time that the slowest link takes for some bytes.
const fn transfer_time(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / MIN_BYTES_PER_SECOND)
}

/// Returns the error for a broken rule, with the close code for the peer.
fn broken(code: u16, what: &'static str) -> (u16, Error) {
    (code, Error::new(ErrorKind::Invalid, what))
}

fn lost(error: io::Error) -> Error {
    Error::new(ErrorKind::Closed, "the connection was lost").caused_by(error)
}

const PROTOCOL_ERROR: u16 = 1002;
const UNSUPPORTED: u16 = 1003;

impl<S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static> WebSocket<S> {
    /// Creates a WebSocket on a stream. `rest` holds bytes that were read after the upgrade.
    pub fn new(io: S, role: Role, limit: usize, rest: &[u8]) -> Self {
        Self {
            io,
            role,
            masks: Vec::new(),
            limit,
            buffer: BytesMut::from(rest),
            header: None,
            fragments: None,
            has_received: false,
            started: None,
            control: (Instant::now(), 0),
            pongs: BytesMut::new(),
            verdict: None,
            closed: false,
        }
    }

    /// Returns the close code that the connection state requires, for example because the peer broke a rule.
    pub const fn verdict(&self) -> Option<u16> {
        self.verdict
    }

    /// Parses the header of the next frame, if the buffer holds it.
    fn parse_header(&mut self) -> std::result::Result<(), (u16, Error)> {
        if self.header.is_some() {
            return Ok(());
        }
        let mut cursor = io::Cursor::new(&self.buffer[..]);
        let parsed = FrameHeader::parse(&mut cursor);
        let Some((header, length)) =
            parsed.map_err(|_| broken(PROTOCOL_ERROR, "the frame header is invalid"))?
        else {
            return Ok(());
        };
        let used = cursor.position() as usize;
        let minimal = match length {
            0..=125 => 2,
            126..=65535 => 4,
            _ => 10,
        };
        let masked = if header.mask.is_some() { 4 } else { 0 };
        if used != minimal + masked {
            return Err(broken(PROTOCOL_ERROR, "the frame length is not in its shortest form"));
        }
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(broken(PROTOCOL_ERROR, "a reserved bit is set"));
        }
        if header.mask.is_some() != (self.role == Role::Server) {
            return Err(broken(PROTOCOL_ERROR, "a client must mask its frames, a server must not"));
        }
        match header.opcode {
            OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)) => {
                return Err(broken(PROTOCOL_ERROR, "the opcode is unknown"));
            }
            OpCode::Control(_) if !header.is_final || length > 125 => {
                return Err(broken(
                    PROTOCOL_ERROR,
                    "a control frame must have at most 125 bytes and no fragments",
                ));
            }
            OpCode::Control(_) => {}
            OpCode::Data(Data::Text) => return Err(broken(UNSUPPORTED, "text frames are not supported")),
            OpCode::Data(Data::Continue) if self.fragments.is_none() => {
                return Err(broken(PROTOCOL_ERROR, "there is no message to continue"));
            }
            OpCode::Data(Data::Binary) if self.fragments.is_some() => {
                return Err(broken(PROTOCOL_ERROR, "a fragmented message must end before the next one"));
            }
            OpCode::Data(Data::Binary) if !header.is_final && !self.has_received => {
                return Err(broken(UNSUPPORTED, "the first message must be one frame"));
            }
            OpCode::Data(Data::Binary | Data::Continue) => {}
        }
        let joined = self.fragments.as_ref().map_or(0, |fragments| fragments.joined.len());
        let limit = match self.role {
            Role::Server if !self.has_received => self.limit.min(MAX_FIRST),
            _ => self.limit,
        };
        if length > limit.saturating_sub(joined) as u64 && matches!(header.opcode, OpCode::Data(_)) {
            return Err(broken(CloseReason::TooBig.code(), "the frame is larger than the limit"));
        }
        self.buffer.advance(used);
        self.header = Some((header, length as usize));
        Ok(())
    }

    /// Takes the next complete frame out of the buffer, if there is one.
    fn take_frame(&mut self) -> std::result::Result<Option<(FrameHeader, Bytes)>, (u16, Error)> {
        self.parse_header()?;
        let Some((_, length)) = &self.header else {
            return Ok(None);
        };
        if self.buffer.len() < *length {
            return Ok(None);
        }
        let Some((header, length)) = self.header.take() else {
            return Ok(None);
        };
        let mut payload = self.buffer.split_to(length);
        if let Some(mask) = header.mask {
            unmask(&mut payload, mask);
        }
        self.started = None;
        Ok(Some((header, payload.freeze())))
    }

    fn count_control(&mut self) -> std::result::Result<(), (u16, Error)> {
        let now = Instant::now();
        if now.duration_since(self.control.0) >= Duration::from_secs(1) {
            self.control = (now, 0);
        }
        self.control.1 += 1;
        if self.control.1 > CONTROL_RATE {
            return Err(broken(1008, "too many control frames"));
        }
        Ok(())
    }

    /// Handles a frame. Returns `Some(Some(_))` for a message, `Some(None)` if the peer closed, else `None`.
    fn handle(
        &mut self,
        header: &FrameHeader,
        payload: Bytes,
    ) -> std::result::Result<Option<Option<Bytes>>, (u16, Error)> {
        match header.opcode {
            OpCode::Data(_) => Ok(self.join(payload, header.is_final)?.map(Some)),
            OpCode::Control(Control::Close) => {
                self.closed = true;
                let code = payload.get(..2).map(|b| u16::from_be_bytes([b[0], b[1]]));
                let allowed = code.is_none_or(|c| matches!(c, 1000..=1003 | 1007..=1014 | 3000..=4999));
                let text = payload.get(2..).unwrap_or_default();
                if payload.len() == 1 || !allowed || std::str::from_utf8(text).is_err() {
                    return Err(broken(PROTOCOL_ERROR, "a close frame must hold a valid code and UTF-8"));
                }
                self.verdict = Some(1000);
                Ok(Some(None))
            }
            OpCode::Control(Control::Ping) => {
                self.count_control()?;
                let mut out = Vec::with_capacity(payload.len() + 6);
                self.format(&mut out, Frame::pong(payload)).map_err(|error| (PROTOCOL_ERROR, error))?;
                self.pongs.extend_from_slice(&out);
                Ok(None)
            }
            OpCode::Control(_) => self.count_control().map(|()| None),
        }
    }

    /// Adds a data frame to the message it belongs to. Returns the message once it is whole.
    fn join(&mut self, payload: Bytes, is_final: bool) -> std::result::Result<Option<Bytes>, (u16, Error)> {
        let message = match (self.fragments.take(), is_final) {
            (None, true) => payload,
            (known, _) => {
                let mut fragments = known.unwrap_or_else(|| Fragments {
                    joined: BytesMut::new(),
                    count: 0,
                    started: Instant::now(),
                });
                fragments.count += 1;
                if fragments.count > MAX_FRAGMENTS {
                    return Err(broken(1008, "a message has too many fragments"));
                }
                fragments.joined.extend_from_slice(&payload);
                if !is_final {
                    self.fragments = Some(fragments);
                    return Ok(None);
                }
                fragments.joined.freeze()
            }
        };
        self.has_received = true;
        Ok(Some(message))
    }

    /// Returns the start of the message that is on its way, if one is.
    fn message_started(&self) -> Option<Instant> {
        self.fragments.as_ref().map(|fragments| fragments.started).or(self.started)
    }

    async fn fill(&mut self) -> Result<usize> {
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP {
            self.buffer = BytesMut::new();
        }
        let missing = self.header.as_ref().map_or(0, |(_, length)| length.saturating_sub(self.buffer.len()));
        self.buffer.reserve(missing.clamp(512, 64 * 1024));
        let started = self.message_started();
        let arrived = self.fragments.as_ref().map_or(0, |known| known.joined.len()) + self.buffer.len();
        let read = self.io.read_buf(&mut self.buffer);
        // A connection may be idle between frames, but the rest of a started frame has a time limit.
        match started {
            None => read.await.map_err(lost),
            Some(started) => match timeout_at(started + FRAME_TIME + transfer_time(arrived), read).await {
                Ok(read) => read.map_err(lost),
                Err(_) => {
                    self.verdict = Some(1008);
                    Err(Error::new(ErrorKind::Invalid, "a frame did not arrive in time"))
                }
            },
        }
    }

    async fn next_message(&mut self) -> Result<Option<Bytes>> {
        loop {
            let taken = self.take_frame().and_then(|frame| match frame {
                Some((header, payload)) => self.handle(&header, payload).map(|out| (true, out)),
                None => Ok((false, None)),
            });
            match taken {
                Ok((_, Some(message))) => return Ok(message),
                Ok((true, None)) => {
                    if !self.pongs.is_empty() {
                        self.send_pongs().await?;
                    }
                }
                Ok((false, None)) => {
                    if self.started.is_none() && (self.header.is_some() || !self.buffer.is_empty()) {
                        self.started = Some(Instant::now());
                    }
                    if self.fill().await? == 0 {
                        return Ok(None);
                    }
                }
                Err((code, error)) => {
                    self.verdict = Some(code);
                    return Err(error);
                }
            }
        }
    }

    /// Writes the remaining pongs. Cancel safe: a cancelled write has written nothing.
    async fn send_pongs(&mut self) -> Result<()> {
        while !self.pongs.is_empty() {
            let written = timeout(WRITE_TIME, self.io.write(&self.pongs)).await;
            match written {
                Ok(Ok(n)) if n > 0 => self.pongs.advance(n),
                Ok(Ok(_)) => return Err(Error::new(ErrorKind::Closed, "the connection was lost")),
                Ok(Err(error)) => return Err(lost(error)),
                Err(_) => return Err(Error::new(ErrorKind::Closed, "the peer did not read in time")),
            }
        }
        self.io.flush().await.map_err(lost)
    }

    /// Returns the mask of the next frame of a client.
    fn mask(&mut self) -> Result<[u8; 4]> {
        if self.masks.is_empty() {
            let mut random = [0; 4 * MASKS];
            getrandom::fill(&mut random)
                .map_err(|_| Error::new(ErrorKind::Unavailable, "failed to get random bytes"))?;
            self.masks.extend_from_slice(&random);
        }
        let mut mask = [0; 4];
        let rest = self.masks.len().saturating_sub(mask.len());
        mask.copy_from_slice(&self.masks[rest..]);
        self.masks.truncate(rest);
        Ok(mask)
    }

    fn format(&mut self, out: &mut Vec<u8>, mut frame: Frame) -> Result<()> {
        if self.role == Role::Client {
            frame.header_mut().mask = Some(self.mask()?);
        }
        frame.format(out).map_err(|e| Error::new(ErrorKind::Invalid, "failed to encode a frame").caused_by(e))
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // TLS takes up to 64 KiB before it has sent them.
        let deadline = Instant::now() + WRITE_TIME + transfer_time(bytes.len() + 64 * 1024);
        let mut rest = bytes;
        while !rest.is_empty() {
            let until = deadline.min(Instant::now() + WRITE_TIME);
            match timeout_at(until, self.io.write(rest)).await {
                Ok(Ok(n)) if n > 0 => rest = &rest[n..],
                Ok(Ok(_)) => return Err(Error::new(ErrorKind::Closed, "the connection was lost")),
                Ok(Err(error)) => return Err(lost(error)),
                Err(_) => return Err(self.too_slow()),
            }
        }
        timeout_at(deadline, self.io.flush()).await.map_err(|_| self.too_slow())?.map_err(lost)
    }

    const fn too_slow(&mut self) -> Error {
        self.verdict = Some(CloseReason::Slow.code());
        Error::new(ErrorKind::Closed, "the peer did not read in time")
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let word = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut words = payload.chunks_exact_mut(8);
    for chunk in &mut words {
        if let Ok(bytes) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ word).to_ne_bytes());
        }
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= mask;
    }
    // For a remainder of more than four bytes the mask repeats.
    let tail = payload.len() % 8;
    if tail > 4 {
        let start = payload.len() - tail + 4;
        for (byte, mask) in payload[start..].iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
}

#[async_trait]
impl<S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static> Transport for WebSocket<S> {
    async fn recv(&mut self) -> Result<Option<Bytes>> {
        self.next_message().await
    }

    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()> {
        let size: usize = frames.iter().map(|frame| frame.len() + 14).sum();
        let mut out = Vec::with_capacity(size);
        self.send_pongs().await?;
        for frame in frames {
            self.format(&mut out, Frame::message(frame, OpCode::Data(Data::Binary), true))?;
        }
        self.write(&out).await
    }

    async fn close(&mut self, code: u16) {
        let code = self.verdict.unwrap_or(code);
        let farewell = async {
            let mut out = Vec::new();
            let mut frame = Frame::close(Some(tungstenite::protocol::CloseFrame {
                code: code.into(),
                reason: tungstenite::Utf8Bytes::default(),
            }));
            if self.role == Role::Client {
                frame.header_mut().mask = Some(self.mask().unwrap_or_default());
            }
            if frame.format(&mut out).is_ok() && self.io.write_all(&out).await.is_ok() {
                let _ = self.io.flush().await;
                let _ = self.io.shutdown().await;
                // Closing a socket with unread bytes resets it, and the peer would not receive the code.
                let mut rest = [0; 1024];
                let mut taken = 0;
                while !self.closed && taken < 1 << 20 {
                    match self.io.read(&mut rest).await {
                        Ok(0) | Err(_) => break,
                        Ok(n) => taken += n,
                    }
                }
            }
        };
        let _ = timeout(CLOSE_TIME, farewell).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmasking_is_byte_for_byte() {
        let mask = [1, 2, 3, 4];
        for length in 0..40 {
            let plain: Vec<u8> = (0..length).collect();
            let mut fast = plain.clone();
            unmask(&mut fast, mask);
            let slow: Vec<u8> = plain.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            assert_eq!(fast, slow, "{length} bytes");
        }
    }

    #[tokio::test]
    async fn each_frame_of_a_client_has_a_mask_of_its_own() {
        let mut client = WebSocket::new(tokio::io::duplex(64).0, Role::Client, 1 << 20, &[]);
        let masks: std::collections::HashSet<_> = (0..3 * MASKS).map(|_| client.mask().unwrap()).collect();
        assert!(masks.len() > 3 * MASKS - 2, "the masks repeat");
    }

    #[tokio::test]
    async fn first_message_of_a_client_is_small() {
        for (size, accepted) in [(MAX_FIRST, true), (MAX_FIRST + 1, false)] {
            let (a, b) = tokio::io::duplex(1 << 20);
            let mut client = WebSocket::new(a, Role::Client, 1 << 20, &[]);
            let mut server = WebSocket::new(b, Role::Server, 1 << 20, &[]);
            client.send(vec![vec![7; size].into(), vec![7; 200_000].into()]).await.unwrap();
            assert_eq!(server.recv().await.is_ok(), accepted, "{size} bytes");
            if accepted {
                assert_eq!(server.recv().await.unwrap().map(|bytes| bytes.len()), Some(200_000));
            } else {
                assert_eq!(server.verdict(), Some(CloseReason::TooBig.code()));
            }
        }
    }

    #[tokio::test]
    async fn frames_cross_a_pipe_whole() {
        let (a, b) = tokio::io::duplex(64);
        let mut client = WebSocket::new(a, Role::Client, 1 << 20, &[]);
        let mut server = WebSocket::new(b, Role::Server, 1 << 20, &[]);
        // The first message is a handshake, which is small.
        let frames: Vec<Bytes> = [0, 1, 125, 126, 65535, 65536, 200_000].map(|n| vec![7; n].into()).to_vec();
        let sent = frames.clone();
        let sender = tokio::spawn(async move { client.send(sent).await.map(|()| client) });
        for frame in frames {
            assert_eq!(server.recv().await, Ok(Some(frame)));
        }
        assert!(sender.await.unwrap().is_ok());
    }
}
