use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use chat_core::{Error, ErrorKind, Result};
use futures_core::Stream;
use tokio::sync::{broadcast, watch};

use super::Client;
use crate::connection_state::ConnectionState;
use crate::driver::Command;
use crate::event::{Event, EventRecord};

/// Maximum number of durable events in one read.
const PAGE: usize = 256;

/// A stream of events: every durable event after its cursor, in order, the changes of the connection state, and
/// transient events. A new stream first reports the current connection state once it has returned all durable events.
///
/// It is also a [`Stream`], for use with combinators. The stream ends when the client is closed; it continues after
/// [`suspend`](Client::suspend) and [`resume`](Client::resume).
#[derive(Debug)]
pub struct Events {
    /// The name of the durable cursor.
    name: Option<String>,
    client: Client,
    /// The number of the last durable event that was returned.
    after: u64,
    /// Durable events that were read and not returned yet.
    page: VecDeque<EventRecord>,
    waiting: Waiting,
}

/// The part of a stream that waits for the next event.
#[derive(Debug)]
struct Subscription {
    client: Client,
    last: watch::Receiver<u64>,
    connection_state: watch::Receiver<ConnectionState>,
    reported: ConnectionState,
    transient: broadcast::Receiver<Event>,
}

type Read = Pin<Box<dyn Future<Output = (Subscription, Result<Next>)> + Send>>;

enum Waiting {
    Idle(Box<Subscription>),
    /// A read in progress. It survives when [`Events::next`] is cancelled.
    Reading(Read),
    Ended,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Idle(_) => "Idle",
            Self::Reading(_) => "Reading",
            Self::Ended => "Ended",
        })
    }
}

enum Next {
    Page(Vec<EventRecord>),
    Transient(Box<Event>),
    Ended,
}

impl Subscription {
    /// Waits for durable events after a number, or for a transient event.
    async fn next(&mut self, after: u64) -> Result<Next> {
        loop {
            if *self.last.borrow_and_update() > after {
                let page = self.client.request(|reply| Command::Events { after, limit: PAGE, reply }).await;
                return match page {
                    Err(error) if error.kind() == ErrorKind::Closed => self.end().await,
                    page => page.map(Next::Page),
                };
            }
            if let Some(event) = self.reported.follow(&self.connection_state.borrow_and_update()) {
                return Ok(Next::Transient(Box::new(event)));
            }
            tokio::select! {
                biased;
                changed = self.connection_state.changed() => {
                    if changed.is_err() {
                        return self.end().await;
                    }
                }
                transient = self.transient.recv() => match transient {
                    Ok(event) => return Ok(Next::Transient(Box::new(event))),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return self.end().await,
                },
                changed = self.last.changed() => {
                    if changed.is_err() {
                        return self.end().await;
                    }
                }
            }
        }
    }

    /// A client that was closed ends the stream; one that failed returns its error.
    async fn end(&self) -> Result<Next> {
        match self.client.end().await {
            failure if failure.kind() == ErrorKind::Closed => Ok(Next::Ended),
            failure => Err(failure),
        }
    }
}

impl Events {
    pub(crate) fn new(client: Client, name: Option<String>, after: u64) -> Self {
        let subscription = Subscription {
            last: client.last.clone(),
            connection_state: client.connection_state.clone(),
            reported: ConnectionState::default(),
            transient: client.transient.subscribe(),
            client: client.clone(),
        };
        Self { name, client, after, page: VecDeque::new(), waiting: Waiting::Idle(Box::new(subscription)) }
    }

    /// Returns the number of the last durable event that the stream returned; 0 before the first event of the profile.
    pub const fn position(&self) -> u64 {
        self.after
    }

    /// Waits for the next event. Returns `None` once the client is closed. Cancel safe: a cancelled call loses no event.
    ///
    /// # Errors
    /// The error of the local store, after which the stream ends. Durable events that were not returned are not lost:
    /// open the profile again.
    pub async fn next(&mut self) -> Result<Option<EventRecord>> {
        poll_fn(|context| self.poll(context)).await
    }

    /// Advances the durable cursor: this event and all earlier ones count as handled, and a later stream with the same
    /// cursor starts after them. Durable when it returns. Does nothing for a transient event. To handle many events per
    /// disk write, call it for the last of a batch.
    ///
    /// # Errors
    /// `Invalid` if the stream has no cursor, `Closed`, or the error of the local store.
    pub async fn handled(&self, record: &EventRecord) -> Result<()> {
        let name = self.name.clone().ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "this stream has no cursor in the profile: use `Client::events`")
        })?;
        match record.number {
            Some(number) => self.client.request(|reply| Command::Handled { name, number, reply }).await,
            None => Ok(()),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<EventRecord>>> {
        loop {
            if let Some(record) = self.page.pop_front() {
                self.after = record.number.unwrap_or(self.after);
                return Poll::Ready(Ok(Some(record)));
            }
            let mut read = match std::mem::replace(&mut self.waiting, Waiting::Ended) {
                Waiting::Idle(mut subscription) => {
                    let after = self.after;
                    Box::pin(async move {
                        let next = subscription.next(after).await;
                        (*subscription, next)
                    }) as Read
                }
                Waiting::Reading(read) => read,
                Waiting::Ended => return Poll::Ready(Ok(None)),
            };
            let polled = read.as_mut().poll(context);
            if polled.is_pending() {
                self.waiting = Waiting::Reading(read);
            }
            let (subscription, next) = ready!(polled);
            match next? {
                Next::Page(page) => self.page.extend(page),
                Next::Transient(event) => {
                    self.waiting = Waiting::Idle(Box::new(subscription));
                    return Poll::Ready(Ok(Some(EventRecord::transient(*event))));
                }
                Next::Ended => return Poll::Ready(Ok(None)),
            }
            self.waiting = Waiting::Idle(Box::new(subscription));
        }
    }
}

impl Stream for Events {
    type Item = Result<EventRecord>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context).map(Result::transpose)
    }
}
