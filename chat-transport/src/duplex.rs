//! Two transports connected in memory, for tests and for a client in the server's own process.

use async_trait::async_trait;
use bytes::Bytes;
use chat_core::backend::Transport;
use chat_core::{Error, ErrorKind, Result};
use tokio::sync::mpsc;

/// One end of an in-memory transport.
#[derive(Debug)]
pub struct Duplex {
    /// `None` once closed.
    out: Option<mpsc::Sender<Bytes>>,
    into: mpsc::Receiver<Bytes>,
}

/// Returns two connected ends. Each direction buffers at most `frames` frames.
pub fn duplex(frames: usize) -> (Duplex, Duplex) {
    let (a, from_a) = mpsc::channel(frames);
    let (b, from_b) = mpsc::channel(frames);
    (Duplex { out: Some(a), into: from_b }, Duplex { out: Some(b), into: from_a })
}

#[async_trait]
impl Transport for Duplex {
    async fn recv(&mut self) -> Result<Option<Bytes>> {
        Ok(self.into.recv().await)
    }

    async fn send(&mut self, frames: Vec<Bytes>) -> Result<()> {
        let gone = || Error::new(ErrorKind::Closed, "the connection is closed");
        let out = self.out.as_ref().ok_or_else(gone)?;
        for frame in frames {
            out.send(frame).await.map_err(|_| gone())?;
        }
        Ok(())
    }

    async fn close(&mut self, _code: u16) {
        self.out = None;
        self.into.close();
    }
}
