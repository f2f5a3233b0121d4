use chat_core::{Error, MessageId, Result};

use super::Client;
use crate::driver::Command;
use crate::event::EventRecord;
use crate::status::{Count, Position, Stage, Status};

/// A message that is durably in the outbox, or was. The ticket only observes: dropping it changes nothing. After a
/// restart, [`Client::ticket`] finds it again by its idempotency key.
#[derive(Clone, Debug)]
pub struct Ticket {
    pub(crate) client: Client,
    pub(crate) message: MessageId,
    pub(crate) repeated: bool,
}

impl Ticket {
    /// Returns the id of the message.
    pub const fn message(&self) -> MessageId {
        self.message
    }

    /// Returns whether the message was queued by an earlier request with the same idempotency key.
    pub const fn is_repeated(&self) -> bool {
        self.repeated
    }

    /// Returns the progress of the message.
    ///
    /// # Errors
    /// `Closed` if the client is closed, or the error of the local store.
    pub async fn status(&self) -> Result<Status> {
        let message = self.message;
        self.client.request(|reply| Command::Status { message, reply }).await
    }

    /// Waits until the message is durable on the server (one tick).
    ///
    /// # Errors
    /// The error of the [reason](crate::RefusedReason) if the message is refused, `Closed` if the client is closed, or the
    /// error of the local store.
    pub async fn stored(&self) -> Result<Position> {
        match self.reached(Stage::Stored).await? {
            Status::Stored { position, .. } => Ok(position),
            Status::Refused(reason) => Err(Error::from(reason)),
            Status::Queued => Err(self.client.failure()),
        }
    }

    /// Waits until a device of every recipient has the message (two ticks). [`status`](Self::status) returns the
    /// number of recipients before that.
    ///
    /// # Errors
    /// The errors of [`stored`](Self::stored).
    pub async fn delivered(&self) -> Result<Count> {
        match self.reached(Stage::Delivered).await? {
            Status::Stored { delivered, .. } => Ok(delivered),
            Status::Refused(reason) => Err(Error::from(reason)),
            Status::Queued => Err(self.client.failure()),
        }
    }

    /// Waits until every recipient has read the message.
    ///
    /// # Errors
    /// The errors of [`stored`](Self::stored).
    pub async fn read(&self) -> Result<Count> {
        match self.reached(Stage::Read).await? {
            Status::Stored { read, .. } => Ok(read),
            Status::Refused(reason) => Err(Error::from(reason)),
            Status::Queued => Err(self.client.failure()),
        }
    }

    /// Returns the durable events of the message so far: queued, then stored or refused.
    ///
    /// # Errors
    /// `Closed` if the client is closed, or the error of the local store.
    pub async fn events(&self) -> Result<Vec<EventRecord>> {
        let message = self.message;
        self.client.request(|reply| Command::EventsOf { message, reply }).await
    }

    async fn reached(&self, stage: Stage) -> Result<Status> {
        let message = self.message;
        self.client.request(|reply| Command::Await { message, stage, reply }).await
    }
}
