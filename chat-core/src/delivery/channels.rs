//! Channels at the gateway: devices subscribe with the link, and read the channel as a feed.

use super::Engine;
use crate::backend::{Command, Operation, RemovedReader, Rules, Subscription};
use crate::model::envelope::{Publish, Refusal};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::group::{GroupChange, LinkProof};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId};

impl Engine {
    /// Lets a device read a channel from its next message on. The row with which the device joins arrives with its inbox.
    ///
    /// # Errors
    /// `NotFound` if there is no such channel, the proof is not one of its link, or the user is banned: a user without the link
    /// does not learn whether the channel exists. `Unavailable` if the subscription cannot be decided now.
    pub(super) async fn subscribe(
        &self,
        device: DeviceAddress,
        channel: ConversationId,
        proof: LinkProof,
    ) -> Result<()> {
        let roster = self.read_roster(channel).await?;
        let is_admitted = roster.is_admitted(channel, device.user, Some(&proof));
        if !channel.is_channel() || roster.version == 0 || !is_admitted {
            return Err(Error::new(ErrorKind::NotFound, "no such channel"));
        }
        let is_member = roster.has_device(device.user, device.installation);
        if is_member || self.reads_channel(device.installation, channel).await? {
            return Ok(());
        }
        self.append_subscription(device, Subscription { channel, begins: true, proof: Some(proof) }).await
    }

    /// Ends that a device reads a channel.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be decided now. A device that does not read the channel gets no error.
    pub(super) async fn unsubscribe(&self, device: DeviceAddress, channel: ConversationId) -> Result<()> {
        let roster = self.read_roster(channel).await?;
        let is_member = roster.has_device(device.user, device.installation);
        if is_member || !self.reads_channel(device.installation, channel).await? {
            return Ok(());
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

    /// Returns whether a device reads a channel as its subscriber or member.
    pub(super) async fn reads_channel(
        &self,
        device: InstallationId,
        channel: ConversationId,
    ) -> Result<bool> {
        if !channel.is_channel() {
            return Ok(false);
        }
        let feeds = self.backends.store.feeds(device).await?;
        Ok(feeds.iter().any(|feed| feed.conversation == channel && feed.is_read()))
    }

    /// Returns the devices of the users that a message removes from a channel. Those of members are in the roster.
    pub(super) async fn removed_readers(&self, publish: &Publish) -> Result<Vec<RemovedReader>> {
        let channel = publish.number.conversation;
        let change = publish.group.as_ref().and_then(|part| part.change.as_ref()).map(GroupChange::action);
        let users = change.filter(|_| channel.is_channel()).map_or(&[][..], |action| action.removed());
        if users.is_empty() {
            return Ok(Vec::new());
        }
        let roster = self.read_roster(channel).await?;
        let mut removed = Vec::new();
        for user in users.iter().filter(|user| roster.member(**user).is_none()) {
            let list = self.device_list(*user).await?;
            for device in list.iter().flat_map(|list| list.list().addresses()) {
                let is_known = self.reads_channel(device.installation, channel).await?;
                removed.push(RemovedReader { device, is_known });
            }
        }
        Ok(removed)
    }
}
