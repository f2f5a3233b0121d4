//! A pipe for whole frames.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;

/// A pipe for whole frames, in order while it lasts. A hint: it may end at any moment.
#[async_trait]
pub trait Transport: fmt::Debug + Send + 'static {
    /// The next frame; `None` when the other end closed. Cancel safe.
    ///
    /// # Errors
    /// `Invalid` if the other end broke the framing rules, `Closed` if the pipe broke.
    async fn recv(&mut self) -> Result<Option<Bytes>>;

    /// Sends frames in order and flushes once.
    ///
    /// # Errors
    /// `Closed` if the pipe broke; some frames may have gone out.
    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()>;

    /// Closes with a code of [`wire::close`](crate::wire::close), in bounded time.
    async fn close(&mut self, code: u16);
}
