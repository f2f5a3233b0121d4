use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use chat_core::Result;
use tokio::sync::oneshot;

use super::{Client, Ticket};
use crate::send::Enqueued;

/// A message on its way to the outbox. It resolves to the ticket once the message is durably queued. Dropping it does
/// not withdraw the message.
#[must_use = "the message is durable only once this future has resolved"]
pub struct Submission(Pin<Box<dyn Future<Output = Result<Ticket>> + Send>>);

impl Submission {
    pub(super) fn new(client: Client, answer: oneshot::Receiver<Result<Enqueued>>) -> Self {
        Self(Box::pin(async move {
            let Enqueued { message, repeated } = match answer.await {
                Ok(enqueued) => enqueued?,
                Err(_) => return Err(client.end().await),
            };
            Ok(Ticket { client, message, repeated })
        }))
    }
}

impl fmt::Debug for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submission").finish_non_exhaustive()
    }
}

impl Future for Submission {
    type Output = Result<Ticket>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}
