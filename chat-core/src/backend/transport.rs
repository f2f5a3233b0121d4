//! Connection that carries whole frames, and the dialer that opens one.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::model::error::Result;

/// A pipe for whole frames, in order while it lasts. A hint: it may end at any moment.
///
/// # Contract
/// - Frames arrive whole, once and in order (`frames_arrive_whole_and_in_order`, `both_ways`), of any size up
///   to [`MAX_FRAME`](crate::model::limits::MAX_FRAME) (`an_empty_frame_and_the_largest`).
/// - A close ends the other end after what was sent before it (`a_close_ends_the_other_end`), and sending
///   into a pipe that ended fails, if not at once (`sending_after_the_end_fails`).
#[async_trait]
pub trait Transport: fmt::Debug + Send + 'static {
    /// Receives the next frame; `None` when the other end closed. Cancel safe.
    ///
    /// # Errors
    /// `Invalid` if the other end broke the framing rules, `Closed` if the connection broke.
    async fn recv(&mut self) -> Result<Option<Bytes>>;

    /// Sends frames in order and flushes once.
    ///
    /// # Errors
    /// `Closed` if the connection broke; some frames may have been sent.
    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()>;

    /// Closes with a code of [`CloseReason::code`](crate::model::close_reason::CloseReason::code), in bounded time.
    async fn close(&mut self, code: u16);
}

/// Opens connections to one server. A client dials again after every lost connection.
#[async_trait]
pub trait Dialer: fmt::Debug + Send + Sync + 'static {
    /// Returns the authority of the server, `host:port`. The device signs it, so that a session cannot be relayed to
    /// another server.
    fn authority(&self) -> &str;

    /// Opens a connection, in bounded time.
    ///
    /// # Errors
    /// `Closed` if the server cannot be reached, `Denied` if it cannot prove its identity, `Throttled` if it is busy
    /// (with the [time to wait](crate::Error::retry_after_ms)), `Invalid` if it is not a chat server.
    async fn dial(&self) -> Result<Box<dyn Transport>>;
}
