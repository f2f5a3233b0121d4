//! Commands about groups.

use bytes::Bytes;
use chat_core::group::GroupAction;
use chat_core::replica::{Change, Changes, Draft, Input, Recipient};
use chat_core::{ConversationId, Error, ErrorKind, MessageId, Result};

use super::command::Reply;
use super::{Driver, QueuedChange};
use crate::content::encode_group_name;
use crate::group::{Group, GroupMember};
use crate::platform::random;
use crate::suite::SuiteTx as _;

/// Maximum members of a founding that has the name of the group.
const NAMED_FOUNDERS: usize = 15;

impl Driver {
    /// Queues a change of a group; without a group, its founding.
    pub(super) fn change_group(
        &mut self,
        group: Option<ConversationId>,
        action: GroupAction,
        name: Option<String>,
        reply: Reply<QueuedChange>,
    ) -> Result<()> {
        if let Some(group) = group
            && !self.store.knows_group(group)?
        {
            let _ = reply.send(Err(unknown_group()));
            return Ok(());
        }
        let now = self.store.now_ms();
        let id = MessageId::new(now, random(self.owner.config.platform.as_ref())?);
        let group = group.unwrap_or_else(|| ConversationId::group(self.account.device, id, &action.encode()));
        // A new member cannot read the message that had the name.
        let name = match (name, &action) {
            (None, GroupAction::Add(_)) => self.store.group_name(group)?,
            (name, _) => name,
        };
        let is_large =
            matches!(&action, GroupAction::Create { members, .. } if members.len() > NAMED_FOUNDERS);
        let (with_action, later) = if is_large { (None, name) } else { (name, None) };
        self.changing.push(((group, id), reply));
        self.send_change(group, id, now, action, with_action)?;
        if later.is_some() {
            // More devices need the sender key than one message has boxes for, and none goes ahead of the founding.
            let next = MessageId::new(now, random(self.owner.config.platform.as_ref())?);
            self.send_change(group, next, now, GroupAction::Edit, later)?;
        }
        Ok(())
    }

    fn send_change(
        &mut self,
        group: ConversationId,
        id: MessageId,
        now: u64,
        action: GroupAction,
        name: Option<String>,
    ) -> Result<()> {
        let content = name.map(|name| Bytes::from(encode_group_name(&name))).unwrap_or_default();
        let draft =
            Draft { sent_at: now, action: Some(action), ..Draft::new(id, Recipient::Group(group), content) };
        self.step(Input::Send(draft))
    }

    /// Drops the sender keys that changes replace: they encrypt no message any more.
    pub(super) fn drop_sender_keys(&mut self, changes: &Changes) -> Result<()> {
        for change in &changes.list {
            let Change::SenderKey(group, key) = change else { continue };
            let old = self.store.sender_key(*group)?.map(|old| old.id);
            if let Some(old) = old.filter(|old| key.as_ref().is_none_or(|key| key.id != *old)) {
                self.call_suite_alone(|suite, store| suite.drop_sender_key(store, *group, old))?;
            }
        }
        Ok(())
    }

    /// Returns a group as this device has followed it.
    pub(super) fn group(&self, id: ConversationId) -> Result<Group> {
        let roster = self.replica.roster(id).ok_or_else(unknown_group)?;
        let members = roster
            .members
            .iter()
            .map(|member| Ok(GroupMember { user: self.store.user(member.user)?, role: member.role }));
        Ok(Group {
            id,
            name: self.store.group_name(id)?,
            members: members.collect::<Result<_>>()?,
            policy: roster.policy,
            banned: roster.banned.iter().map(|user| self.store.user(*user)).collect::<Result<_>>()?,
            own_role: roster.member(self.account.device.user).map(|member| member.role),
        })
    }
}

pub(super) const fn unknown_group() -> Error {
    Error::new(ErrorKind::NotFound, "this device does not know the group")
}
