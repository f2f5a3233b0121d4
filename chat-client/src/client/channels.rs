//! Channels: few users write, and any number of users read.

use chat_core::{ConversationId, Result};

use super::{Client, Ticket};
use crate::driver::Command;
use crate::group_profile::GroupProfile;
use crate::invitation::GroupInvitation;

impl Client {
    /// Founds a channel; this user is its owner and first writer. Returns its id once the founding is durably in the outbox. The
    /// name is encrypted.
    ///
    /// [`group`](Self::group) returns the channel as a [`Group`](crate::Group): its members are the writers, and its link lets
    /// any number of users [subscribe](Self::subscribe). [`change_group`](Self::change_group) adds writers and bans users.
    /// Posts are sent like messages to a group. The server sees the writers, the subscribed devices and the times of
    /// posts; it cannot read posts. Everyone with the link can.
    ///
    /// ```
    /// use chat_client::prelude::*;
    ///
    /// async fn announce(client: &Client) -> Result<String> {
    ///     let channel = client.create_channel("News").await?;
    ///     client.send(channel, "The first post.").await?.stored().await?;
    ///     let link = client.group(channel).await?.link.and_then(|link| link.invitation);
    ///     Ok(link.map(|invitation| invitation.to_url("https://chat.example.org/join")).unwrap_or_default())
    /// }
    /// ```
    ///
    /// # Errors
    /// `Invalid` unless the name has 1 to 256 bytes. `Closed`, or the error of the local store. If the server refuses the
    /// founding, for example because it has channels disabled, that is an [`Event::Refused`](crate::Event::Refused).
    pub async fn create_channel(&self, name: &str) -> Result<ConversationId> {
        let profile = GroupProfile::new(name);
        profile.check()?;
        let (channel, _) = self.request(|reply| Command::FoundChannel(profile, reply)).await?;
        Ok(channel)
    }

    /// Subscribes this device to a channel with its link: all posts from now on arrive as messages, and
    /// [`load_history`](Self::load_history) reads those before. Returns once the server has confirmed it. No member of the channel is informed. A writer that was added to
    /// the channel takes over its key with this call.
    ///
    /// # Errors
    /// `NotFound` if there is no such channel, the link is not valid any more, or this user is banned. `Invalid` if the
    /// invitation is not the link of a channel. `Unavailable` without a connection: wait for [`ready`](Self::ready), and call
    /// it again. `Denied` if this device reads 1,000 channels, `Throttled` after too many changes, `Unsupported` if the server has
    /// channels disabled. `Closed`, or the error of the local store.
    pub async fn subscribe(&self, channel: &GroupInvitation) -> Result<()> {
        let invitation = channel.clone();
        self.request(|reply| Command::Subscribe(invitation, reply)).await
    }

    /// Ends the subscription of this device to a channel. A writer [leaves](crate::GroupAction::Leave) instead. Its posts stay on this device, and the conversation is listed no more. The
    /// key of the channel is deleted.
    ///
    /// # Errors
    /// `Denied` if this user is a writer, `NotFound` if there is no such channel. `Unavailable` without a connection: wait for
    /// [`ready`](Self::ready). `Closed`, or the error of the local store.
    pub async fn unsubscribe(&self, channel: ConversationId) -> Result<()> {
        self.request(|reply| Command::Unsubscribe(channel, reply)).await
    }

    /// Replaces the key of a channel: users with the old link, and those that were banned, cannot read later posts, even if they
    /// obtain the ciphertext. No reader is informed: each of them needs the new link, which [`group`](Self::group) returns.
    /// Until a device has it, new posts are [unreadable](crate::Unreadable::NoChannelKey) there. Returns the ticket of
    /// the change, which is refused unless this user is an admin.
    ///
    /// [`create_group_link`](Self::create_group_link) replaces the link for new readers only: those that read already learn the
    /// new key.
    ///
    /// # Errors
    /// `NotFound` if this device does not know the channel. `Closed`, or the error of the local store.
    pub async fn renew_channel_key(&self, channel: ConversationId) -> Result<Ticket> {
        let (_, message) = self.request(|reply| Command::RenewChannelKey(channel, reply)).await?;
        Ok(Ticket { client: self.clone(), message, repeated: false })
    }

    /// Reads posts of a channel from the history of the server: those before the oldest one that this device has, at most
    /// `limit`, and at most 200. They are in the timeline and in searches afterwards, and are not unread. Only their edits and
    /// deletions have events. Returns their number; 0 if there are no earlier posts that this device can read.
    ///
    /// Each post is verified to be one of a device that its user lists; posts of devices that were unlinked since are left out. This
    /// device cannot verify that the user was a writer at that time.
    ///
    /// # Errors
    /// `NotFound` if this device does not read the channel. `Invalid` if the server answers with other rows. `Unavailable` without a
    /// connection: wait for [`ready`](Self::ready). `Closed`, or the error of the local store.
    pub async fn load_history(&self, channel: ConversationId, limit: usize) -> Result<usize> {
        self.request(|reply| Command::LoadHistory { channel, limit, reply }).await
    }
}
