//! Channels at the gateway: devices subscribe with the link, and read the channel as a feed.

use super::Engine;
use super::admission::refusal_of;
use crate::backend::{Command, Feed, Operation, Rules, Subscription};
use crate::model::envelope::{Publish, Refusal};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::group::{GroupChange, LinkProof};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId};
use crate::model::limits::MAX_SUBSCRIPTIONS;
use crate::model::roster::Role;

impl Engine {
    /// Lets a device read a channel from its next message on. The row with which the device joins arrives with its inbox.
    ///
    /// # Errors
    /// `NotFound` if there is no such channel, the proof is not one of its link, or the user is banned: a user without the link
    /// does not learn whether the channel exists. `Unsupported` if the rules of the server have no channels, `TooLarge` if the
    /// device reads [`MAX_SUBSCRIPTIONS`] channels. `Retry` if it cannot be decided now.
    pub(super) async fn subscribe(
        &self,
        device: DeviceAddress,
        channel: ConversationId,
        proof: LinkProof,
    ) -> Result<(), Refusal> {
        if self.settings.rules < Rules::CHANNELS {
            return Err(Refusal::Unsupported);
        }
        let roster = self.read_roster(channel).await.map_err(|error| refusal_of(&error))?;
        let is_admitted = roster.is_admitted(channel, device.user, Some(&proof));
        if !channel.is_channel() || roster.version == 0 || !is_admitted {
            return Err(Refusal::NotFound);
        }
        let feeds = self.backends.store.feeds(device.installation).await;
        let feeds = feeds.map_err(|error| refusal_of(&error))?;
        let mut read = feeds.iter().filter(|feed| feed.conversation.is_channel() && feed.is_read());
        let is_member = roster.has_device(device.user, device.installation);
        if is_member {
            return Ok(());
        }
        // A device that reads the channel already may have a request in the log that ends it.
        let is_new = !read.clone().any(|feed| feed.conversation == channel);
        if is_new && read.nth(MAX_SUBSCRIPTIONS - 1).is_some() {
            return Err(Refusal::TooLarge);
        }
        let subscription = Subscription { channel, begins: true, proof: Some(proof) };
        self.append_subscription(device, subscription).await.map_err(|error| refusal_of(&error))
    }

    /// Ends that a device reads a channel.
    ///
    /// # Errors
    /// `Denied` for a member: it leaves instead. `NotFound` if there is no such channel. `Unavailable` if it cannot be decided now. A
    /// device that does not read the channel gets no error.
    pub(super) async fn unsubscribe(&self, device: DeviceAddress, channel: ConversationId) -> Result<()> {
        let roster = self.read_roster(channel).await?;
        if !channel.is_channel() || roster.version == 0 {
            return Err(Error::new(ErrorKind::NotFound, "no such channel"));
        }
        if roster.has_device(device.user, device.installation) {
            return Err(Error::new(ErrorKind::Denied, "a member of the channel reads it"));
        }
        self.append_subscription(device, Subscription { channel, begins: false, proof: None }).await
    }

    async fn append_subscription(&self, device: DeviceAddress, subscription: Subscription) -> Result<()> {
        let operation = Operation::Subscribe(subscription);
        let command = Command::new(device, operation, Vec::new(), Rules::CHANNELS);
        let reply = self.hub.route(device.installation);
        match self.append(Command { reply, ..command }).await {
            Ok(()) => Ok(()),
            Err(Refusal::Retry(_)) => Err(Error::new(ErrorKind::Unavailable, "the log is not available")),
            Err(_) => Err(Error::new(ErrorKind::Unavailable, "the subscription was not accepted")),
        }
    }

    /// Returns whether a device reads a channel, as a subscriber or a member. A banned user does not, even if one of its devices
    /// subscribed while it was banned.
    pub(super) async fn reads_channel(&self, device: DeviceAddress, channel: ConversationId) -> Result<bool> {
        if !channel.is_channel() {
            return Ok(false);
        }
        let roster = self.read_roster(channel).await?;
        Ok(!roster.banned.contains(&device.user)
            && self.follows_channel(device.installation, channel).await?)
    }

    /// Returns whether a device reads a channel, or still has to acknowledge rows from before it left or was removed: it needs the
    /// roster to check them.
    pub(super) async fn has_rows_of_channel(
        &self,
        device: DeviceAddress,
        channel: ConversationId,
    ) -> Result<bool> {
        if self.reads_channel(device, channel).await? {
            return Ok(true);
        }
        let feeds = self.backends.store.feeds(device.installation).await?;
        let has_rows = |feed: &Feed| !feed.is_read() && feed.next(feed.acked).is_some();
        Ok(feeds.iter().any(|feed| channel.is_channel() && feed.conversation == channel && has_rows(feed)))
    }

    async fn follows_channel(&self, device: InstallationId, channel: ConversationId) -> Result<bool> {
        let feeds = self.backends.store.feeds(device).await?;
        Ok(feeds.iter().any(|feed| feed.conversation == channel && feed.is_read()))
    }

    /// Returns the devices that stop to read a channel because a message of an admin removes their users. Those in the roster stop
    /// with it.
    pub(super) async fn removed_readers(
        &self,
        sender: DeviceAddress,
        publish: &Publish,
    ) -> Result<Vec<DeviceAddress>> {
        let channel = publish.number.conversation;
        let Some(part) = publish.group.as_ref().filter(|_| channel.is_channel()) else {
            return Ok(Vec::new());
        };
        let change = part.change.as_ref().map(GroupChange::action);
        let users = change.map_or(&[][..], |action| action.removed());
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let roster = self.read_roster(channel).await?;
        let is_admin = roster.member(sender.user).is_some_and(|member| member.role >= Role::Admin);
        if !is_admin || part.roster_version != roster.version + 1 {
            // The shard refuses it.
            return Ok(Vec::new());
        }
        let mut removed = Vec::new();
        for user in users {
            // A cached list may lack a device that subscribed through another gateway.
            let list = self.read_list(*user).await?;
            for device in list.iter().flat_map(|list| list.list().addresses()) {
                let is_listed = roster.has_device(*user, device.installation);
                if !is_listed && self.follows_channel(device.installation, channel).await? {
                    removed.push(device);
                }
            }
        }
        Ok(removed)
    }
}
