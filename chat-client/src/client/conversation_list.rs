//! The observable list of conversations.

use chat_core::{ConversationId, Result};

use super::Client;
use super::observed::{Observed, View, ViewReply};
use crate::conversation::Conversation;
use crate::conversation_setting::ConversationSetting;
use crate::diff::Diff;
use crate::driver::{Command, ConversationWindow};

impl View for ConversationWindow {
    type Item = Conversation;

    fn is_behind(&self, event: u64, revision: u64) -> bool {
        Self::is_behind(self, event, revision)
    }

    fn follow(self, reply: ViewReply<Self>) -> Command {
        Command::ConversationList(self, reply)
    }
}

/// All conversations as a list for a screen, pinned ones first, then the one with the newest message: a snapshot, and the
/// changes that keep it up to date. Dropping it ends it.
///
/// ```
/// use chat_client::prelude::*;
///
/// async fn show(client: &Client) -> Result<()> {
///     let mut list = client.conversation_list().await?;
///     while list.next().await?.is_some() {
///         for one in list.items() {
///             println!("{:?} {:?}: {} unread", one.name, one.peer, one.unread);
///         }
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct ConversationList(Observed<ConversationWindow>);

impl ConversationList {
    /// Returns the conversations.
    pub fn items(&self) -> &[Conversation] {
        &self.0.items
    }

    /// Waits for changes, applies them to [`items`](Self::items), and returns them. Returns `None` once the client is closed.
    /// Cancel safe: a cancelled call loses no change.
    ///
    /// # Errors
    /// The error of the local store.
    pub async fn next(&mut self) -> Result<Option<Vec<Diff<Conversation>>>> {
        self.0.next().await
    }
}

impl Client {
    /// Changes a setting of a conversation, on this device at once and on the other devices of this user once they are
    /// connected. Of two changes at the same time, all devices keep the same one. Durable when it returns.
    ///
    /// Set a draft when the user leaves the conversation, and not with each key: each change is a message to the other devices.
    ///
    /// # Errors
    /// `Invalid` if a draft is too long. `Closed`, or the error of the local store.
    pub async fn change_setting(
        &self,
        conversation: ConversationId,
        setting: ConversationSetting,
    ) -> Result<()> {
        setting.check()?;
        self.request(|reply| Command::ChangeSetting(conversation, setting, reply)).await
    }

    /// Returns the list of all conversations, which follows the store.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn conversation_list(&self) -> Result<ConversationList> {
        let mut list = ConversationList(Observed::new(self, ConversationWindow::default()));
        list.0.step(View::follow).await?;
        Ok(list)
    }
}
