//! Groups at the gateway: its checks before the log, and the rosters that it remembers.

use std::sync::Arc;

use futures_util::future::try_join_all;

use super::Engine;
use crate::backend::{Roster, SenderFilter};
use crate::model::envelope::{Publish, Refusal};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::group::{GroupAction, LinkProof};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, UserId};
use crate::mutant::Mutant;

/// Maximum number of rosters that a gateway remembers.
const MAX_ROSTERS: usize = 10_000;

impl Engine {
    /// Returns the reason to refuse the change of a roster, if there is one: its signature is not that of the sending
    /// device, or the id of the group is not the hash of its founding. The shard decides whether the sender may make it.
    pub(super) async fn check_change(
        &self,
        sender: DeviceAddress,
        publish: &Publish,
    ) -> Result<Option<Refusal>> {
        let Some(part) = &publish.group else { return Ok(None) };
        let Some(change) = &part.change else { return Ok(None) };
        let (conversation, id) = (publish.number.conversation, publish.number.message_id);
        if let GroupAction::Create { .. } = change.action()
            && !conversation.is_founded_by(sender, id, change.encoded())
        {
            return Ok(Some(Refusal::Invalid));
        }
        let list = self.device_list(sender.user).await?;
        let entry = list.as_ref().and_then(|list| list.list().device(sender.device));
        let is_signed = |key| change.verify(key, conversation, id, &part.digest).is_ok();
        Ok((!entry.is_some_and(|entry| is_signed(&entry.device_key))).then_some(Refusal::Denied))
    }

    /// Returns the users that a message adds to a group although they do not know its sender: they never wrote to it, and
    /// did not accept it. The shard refuses to add them, except those that ask to join. A block does not count, so that a
    /// blocked user does not notice it.
    pub(super) async fn added_strangers(
        &self,
        sender: DeviceAddress,
        publish: &Publish,
    ) -> Result<Vec<UserId>> {
        let change = publish.group.as_ref().and_then(|part| part.change.as_ref());
        if !change
            .is_some_and(|change| matches!(change.action(), GroupAction::Add(_) | GroupAction::Create { .. }))
        {
            return Ok(Vec::new());
        }
        let added: Vec<UserId> = change.iter().flat_map(|change| change.action().added()).copied().collect();
        let others = added.iter().filter(|user| **user != sender.user);
        let others: Vec<UserId> = others.copied().collect();
        let known = try_join_all(others.iter().map(|user| self.knows(*user, sender.user))).await?;
        let is_stranger = |known: bool| !known && !Mutant::StrangerAdded.is_active();
        Ok(others
            .into_iter()
            .zip(known)
            .filter(|(_, known)| is_stranger(*known))
            .map(|(user, _)| user)
            .collect())
    }

    /// Returns the devices that get an inbox row of a group's message, as this gateway knows them. In a feed these are the devices
    /// with a box, otherwise the devices of all members. The gateway only checks their inboxes for room: the shard decides which
    /// devices get the message.
    pub(super) async fn group_inboxes(&self, publish: &Publish) -> Result<Vec<InstallationId>> {
        let conversation = publish.number.conversation;
        // A message that changes the roster names the version after it.
        let version = publish.group.as_ref().map_or(0, |part| part.roster_version.saturating_sub(1));
        let known = self.rosters.get(&conversation).map(|roster| roster.clone());
        let roster = match known.filter(|roster| roster.version >= version) {
            Some(roster) => roster,
            None => self.read_roster(conversation).await?,
        };
        if conversation.is_channel() || self.is_feed(&roster) {
            return Ok(publish.boxes.iter().map(|one| one.installation).collect());
        }
        Ok(roster.installations().collect())
    }

    /// Returns whether a group with this roster is a feed. A feed that became smaller counts as none.
    fn is_feed(&self, roster: &Roster) -> bool {
        let feed_devices = self.settings.feed_devices;
        feed_devices > 0 && roster.installations().nth(feed_devices as usize).is_some()
    }

    pub(super) async fn read_roster(&self, conversation: ConversationId) -> Result<Arc<Roster>> {
        let state = self.backends.store.state(conversation, SenderFilter::No, None).await?;
        let roster = Arc::new(state.map(|state| state.roster).unwrap_or_default());
        if self.rosters.len() > MAX_ROSTERS {
            self.rosters.clear();
        }
        if roster.version > 0 {
            self.rosters.insert(conversation, roster.clone());
        }
        Ok(roster)
    }

    /// Returns the current roster of a group for a device of a member or of a user that may join.
    ///
    /// # Errors
    /// `NotFound` if there is no such group, or the device is neither.
    pub(super) async fn roster_for(
        &self,
        device: DeviceAddress,
        conversation: ConversationId,
        proof: Option<&LinkProof>,
    ) -> Result<Roster> {
        let roster = self.read_roster(conversation).await?;
        let is_shown = roster.has_device(device.user, device.installation)
            || roster.is_shown_to(conversation, device.user, proof)
            || self.has_rows_of_channel(device, conversation).await?;
        if roster.version > 0 && is_shown {
            return Ok(Roster::clone(&roster));
        }
        Err(Error::new(ErrorKind::NotFound, "no such group"))
    }
}
