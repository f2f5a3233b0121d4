use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use chat_core::Result;
use tokio::sync::oneshot;

use super::{Client, Ticket};
use crate::send::Enqueued;

/// A message on its way to the outbox. It resolves to the ticket once the message is durably queued. Dropping it does
/// not withdraw the message.
#[derive(Debug)]
#[must_use = "the message is durable only once this future has resolved"]
pub struct Submission {
    pub(crate) client: Client,
    pub(crate) answer: oneshot::Receiver<Result<Enqueued>>,
}

impl Future for Submission {
    type Output = Result<Ticket>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| {
            let Enqueued { message, repeated } = answer.map_err(|_| self.client.failure())??;
            Ok(Ticket { client: self.client.clone(), message, repeated })
        })
    }
}
