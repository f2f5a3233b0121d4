//! Timelines of conversations.

use chat_core::{ConversationId, MessageId, Result};

use super::observed::{Observed, View, ViewReply};
use super::{Client, Ticket};
use crate::diff::Diff;
use crate::driver::{Command, PAGE, Step, Window};
use crate::timeline::{Target, TimelineItem};

impl View for Window {
    type Item = TimelineItem;

    fn is_behind(&self, event: u64, revision: u64) -> bool {
        Self::is_behind(self, event, revision)
    }

    fn follow(self, reply: ViewReply<Self>) -> Command {
        Command::Timeline(self, Step::Follow, reply)
    }
}

/// The messages of a conversation as a list for a screen: a snapshot, and the changes that keep it up to date.
///
/// A timeline shows a range of a conversation, the oldest message first. A new one shows the newest messages and follows
/// new ones. Own messages are in it from the moment when they are queued, after all others; they move to their place when the
/// server has stored them. A refused message stays until it is [sent again](Client::retry) or
/// [removed](Client::discard).
///
/// Dropping it ends it. One message that arrives costs a few reads of the local store, at any length of the conversation.
///
/// ```
/// use chat_client::prelude::*;
///
/// async fn show(client: &Client, conversation: ConversationId) -> Result<()> {
///     let mut timeline = client.timeline(conversation).await?;
///     while timeline.next().await?.is_some() {
///         for item in timeline.items() {
///             println!("{}: {:?} {:?}", item.message.sender, item.message.content(), item.status);
///         }
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Timeline(Observed<Window>);

impl Timeline {
    /// Returns the items, the oldest first.
    pub fn items(&self) -> &[TimelineItem] {
        &self.0.items
    }

    /// Returns whether the conversation has older messages, which [`older`](Self::older) reads.
    pub const fn has_older(&self) -> bool {
        self.0.view.has_older()
    }

    /// Returns whether the conversation has newer messages, which [`newer`](Self::newer) reads. While it has, new messages do
    /// not appear.
    pub const fn has_newer(&self) -> bool {
        self.0.view.has_newer()
    }

    /// Waits for changes, applies them to [`items`](Self::items), and returns them. Returns `None` once the client is closed.
    /// Cancel safe: a cancelled call loses no change.
    ///
    /// # Errors
    /// The error of the local store.
    pub async fn next(&mut self) -> Result<Option<Vec<Diff<TimelineItem>>>> {
        self.0.next().await
    }

    /// Reads up to this number of older messages, and returns the changes. They may contain others that happened meanwhile.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn older(&mut self, limit: usize) -> Result<Vec<Diff<TimelineItem>>> {
        self.step(Step::Older(limit)).await
    }

    /// Reads up to this number of newer messages, and returns the changes, as [`older`](Self::older) does.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn newer(&mut self, limit: usize) -> Result<Vec<Diff<TimelineItem>>> {
        self.step(Step::Newer(limit)).await
    }

    /// Moves to a place of the conversation, and returns the new items as one change. If there is no such place, it
    /// shows the newest messages.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn jump(&mut self, target: Target) -> Result<Vec<Diff<TimelineItem>>> {
        self.step(Step::Jump(target, PAGE)).await
    }

    async fn step(&mut self, step: Step) -> Result<Vec<Diff<TimelineItem>>> {
        self.0.step(|window, reply| Command::Timeline(window, step, reply)).await
    }
}

impl Client {
    /// Returns the timeline of a conversation, with its newest 50 messages. A conversation without messages has an empty one.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn timeline(&self, conversation: ConversationId) -> Result<Timeline> {
        let mut timeline = Timeline(Observed::new(self, Window::new(conversation)));
        timeline.jump(Target::Newest).await?;
        Ok(timeline)
    }

    /// Sends a refused message again, as a new message. Returns its ticket; the refused one leaves the timeline.
    ///
    /// # Errors
    /// `NotFound` if this device has no such refused message. `Closed`, or the error of the local store.
    pub async fn retry(&self, message: MessageId) -> Result<Ticket> {
        let sent = self.request(|reply| Command::Failed { message, retry: true, reply }).await?;
        let message = sent.unwrap_or(message);
        Ok(Ticket { client: self.clone(), message, repeated: false })
    }

    /// Removes a refused message from this device.
    ///
    /// # Errors
    /// `NotFound` if this device has no such refused message. `Closed`, or the error of the local store.
    pub async fn discard(&self, message: MessageId) -> Result<()> {
        self.request(|reply| Command::Failed { message, retry: false, reply }).await.map(drop)
    }
}
