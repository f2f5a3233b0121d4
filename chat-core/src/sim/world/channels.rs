//! The channel of the simulated world.

use bytes::Bytes;

use super::World;
use crate::model::client_frame::Request;
use crate::model::group::{GroupAction, GroupLink, LinkSecret};
use crate::model::id::{ConversationId, MessageId};
use crate::model::roster::{GroupPolicy, Role};
use crate::replica::Input;

/// Returns one of the secrets of links in this world.
fn secret(n: u64) -> LinkSecret {
    LinkSecret::from_bytes([n as u8; 32])
}

impl World {
    /// A user founds the channel, and makes its link.
    pub(super) fn found_channel(&mut self, device: usize) {
        let own = self.devices[device].address();
        let action = GroupAction::Create { members: Vec::new(), policy: GroupPolicy::default() };
        let id = MessageId::new(self.now, self.rng.bytes());
        let channel = ConversationId::channel(own, id, &action.encode());
        self.group = Some(channel);
        self.send_group(device, channel, id, Some(action), Bytes::new());
        let id = MessageId::new(self.now, self.rng.bytes());
        let link = GroupLink { key: secret(0).key(), approval: false };
        self.send_group(device, channel, id, Some(GroupAction::SetLink(Some(link))), Bytes::new());
    }

    /// Whether the user of a device is a member of the channel, as the device knows.
    pub(super) fn writes_channel(&self, device: usize, channel: ConversationId) -> bool {
        let own = self.devices[device].address().user;
        let replica = self.devices[device].replica.as_ref();
        let roster = replica.and_then(|replica| replica.roster(channel));
        roster.is_some_and(|roster| roster.member(own).is_some())
    }

    /// A device subscribes, or ends its subscription; or a user changes the roster of the channel.
    pub(super) fn change_channel(&mut self, device: usize, channel: ConversationId) {
        let own = self.devices[device].address();
        if self.rng.chance(55) {
            // Each tenth proof is one of another user.
            let user = if self.rng.chance(90) { own.user } else { self.any_user() };
            let proof = secret(self.rng.below(2)).prove(channel, user);
            let request = if self.rng.chance(75) {
                if user == own.user {
                    self.oracle.subscribers.insert(own.installation);
                }
                Request::Subscribe(channel, proof)
            } else {
                Request::Unsubscribe(channel)
            };
            return self.device_step(device, Input::Request(self.now, request));
        }
        let other = self.any_user();
        let action = match self.rng.below(10) {
            0 => GroupAction::Add(vec![other]),
            1..=3 => GroupAction::Remove { users: vec![other], ban: self.rng.chance(80) },
            4 => GroupAction::Leave,
            5 => GroupAction::SetRole(other, Role::ALL[self.rng.below(3) as usize]),
            6 | 7 => GroupAction::Unban(vec![other]),
            8 => {
                let link = GroupLink { key: secret(self.rng.below(2)).key(), approval: self.rng.chance(10) };
                GroupAction::SetLink(self.rng.chance(90).then_some(link))
            }
            _ => GroupAction::Join(Some(secret(0).prove(channel, own.user))),
        };
        let id = MessageId::new(self.now, self.rng.bytes());
        self.send_group(device, channel, id, Some(action), Bytes::new());
    }
}
