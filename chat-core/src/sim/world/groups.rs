//! The group of the simulated world.

use bytes::Bytes;

use super::super::accounts::ACCOUNTS;
use super::super::server::ready;
use super::{Event, HEAL_MS, World};
use crate::backend::ContactStore as _;
use crate::model::contact::ContactChange;
use crate::model::group::{GroupAction, GroupLink, LinkSecret};
use crate::model::id::{ConversationId, MessageId, UserId};
use crate::model::roster::{GroupPolicy, Role};
use crate::replica::{Draft, Input, Recipient};

impl World {
    /// Draws the changes of the group.
    pub(super) fn plan_group(&mut self) {
        for device in 0..self.devices.len() {
            // The first device that runs founds the group.
            let found = self.rng.below(HEAL_MS / 8);
            self.at(found, Event::FoundGroup(device));
        }
        let users = ACCOUNTS.iter().map(|account| account.lists[0].list().user).collect::<Vec<_>>();
        for (owner, other) in users.iter().flat_map(|owner| users.iter().map(move |other| (*owner, *other))) {
            if owner != other && self.rng.chance(70) {
                let _ = ready(self.contacts.change(owner, other, ContactChange::Accept, usize::MAX));
                self.oracle.acquaintances.insert((owner, other));
            }
        }
        for _ in 0..self.rng.below(20) {
            let device = self.rng.below(self.devices.len() as u64) as usize;
            let at = HEAL_MS / 16 + self.rng.below(HEAL_MS * 15 / 16);
            self.at(at, Event::ChangeGroup(device));
        }
    }

    pub(super) fn any_user(&mut self) -> UserId {
        ACCOUNTS[self.rng.below(ACCOUNTS.len() as u64) as usize].lists[0].list().user
    }

    pub(super) fn found_group(&mut self, device: usize) {
        if self.group.is_some() || self.devices[device].replica.is_none() {
            return;
        }
        if self.options.channels {
            return self.found_channel(device);
        }
        let own = self.devices[device].address();
        let users = ACCOUNTS.iter().map(|account| account.lists[0].list().user);
        let mut members: Vec<UserId> = users.into_iter().filter(|user| *user != own.user).collect();
        members.truncate(self.rng.below(4) as usize);
        if self.rng.chance(90) {
            // Like clients, which invite all others.
            members.retain(|user| self.oracle.acquaintances.contains(&(*user, own.user)));
        }
        let is_alone = members.is_empty();
        let policy = GroupPolicy { add: Role::Member, ..GroupPolicy::default() };
        let policy = if self.rng.chance(50) { policy } else { GroupPolicy::default() };
        let action = GroupAction::Create { members, policy };
        let id = MessageId::new(self.now, self.rng.bytes());
        let group = ConversationId::group(own, id, &action.encode());
        self.group = Some(group);
        // Like clients: a founding has content only if one message has boxes for all devices.
        let content = if is_alone { Bytes::copy_from_slice(id.as_bytes()) } else { Bytes::new() };
        self.send_group(device, group, id, Some(action), content);
    }

    pub(super) fn change_group(&mut self, device: usize) {
        let Some(group) = self.group.filter(|_| self.devices[device].replica.is_some()) else { return };
        if self.options.channels {
            return self.change_channel(device, group);
        }
        let other = self.any_user();
        let own = self.devices[device].address().user;
        let secret = LinkSecret::from_bytes([self.rng.below(2) as u8; 32]);
        let action = match self.rng.below(17) {
            0..=3 => GroupAction::Add(vec![other]),
            4 | 5 => GroupAction::Remove { users: vec![other], ban: self.rng.chance(30) },
            6 => GroupAction::Leave,
            7 => GroupAction::SetRole(other, Role::ALL[self.rng.below(3) as usize]),
            8 => {
                let send = if self.rng.chance(30) { Role::Admin } else { Role::Member };
                let add = if self.rng.chance(50) { Role::Admin } else { Role::Member };
                GroupAction::SetPolicy(GroupPolicy { send, add, edit: Role::Member })
            }
            9 => GroupAction::Unban(vec![other]),
            10 | 11 => GroupAction::Invite(vec![other]),
            12 => {
                let link = GroupLink { key: secret.key(), approval: self.rng.chance(50) };
                GroupAction::SetLink(self.rng.chance(90).then_some(link))
            }
            13..=15 => GroupAction::Join(self.rng.chance(60).then(|| secret.prove(group, own))),
            _ => GroupAction::Edit,
        };
        let id = MessageId::new(self.now, self.rng.bytes());
        let has_content = matches!(action, GroupAction::Edit);
        let content = if has_content { Bytes::copy_from_slice(id.as_bytes()) } else { Bytes::new() };
        self.send_group(device, group, id, Some(action), content);
    }

    /// A user writes to the group. Returns `false` if it does not.
    pub(super) fn writes_to_group(&mut self, device: usize) -> bool {
        let Some(group) = self.group else { return false };
        if self.rng.chance(25) {
            return false;
        }
        if self.options.channels && self.rng.chance(70) && !self.writes_channel(device, group) {
            // Most subscribers do not try to write.
            return false;
        }
        let id = MessageId::new(self.now, self.rng.bytes());
        self.send_group(device, group, id, None, Bytes::copy_from_slice(id.as_bytes()));
        true
    }

    pub(super) fn send_group(
        &mut self,
        device: usize,
        group: ConversationId,
        id: MessageId,
        action: Option<GroupAction>,
        content: Bytes,
    ) {
        let draft = Draft { sent_at: self.now, action, ..Draft::new(id, Recipient::Group(group), content) };
        self.device_step(device, Input::Send(draft));
    }
}
