//! Commands about groups.

use std::borrow::Cow;

use bytes::Bytes;
use chat_core::group::{GroupAction, GroupLink, LinkSecret};
use chat_core::replica::{Change, Changes, Draft, Input, Recipient};
use chat_core::roster::Roster;
use chat_core::{ConversationId, DeviceId, Error, ErrorKind, MessageId, Result, UserId};

use super::command::{GroupDetails, Reply};
use super::{Driver, QueuedChange};
use crate::content::{encode_group_details, encode_invitation};
use crate::event::Event;
use crate::group::{Group, GroupJoinLink, GroupMember, PendingMember};
use crate::invitation::GroupInvitation;
use crate::platform::random;
use crate::suite::SuiteTx as _;

/// Maximum members of a founding that has the profile of the group.
const NAMED_FOUNDERS: usize = 15;

impl Driver {
    /// Queues a change of a group; without a group, its founding.
    pub(super) fn change_group(
        &mut self,
        group: Option<ConversationId>,
        action: GroupAction,
        details: GroupDetails,
        reply: Reply<QueuedChange>,
    ) -> Result<()> {
        let may_be_unknown = matches!(action, GroupAction::Join(_) | GroupAction::Leave);
        if let Some(group) = group
            && !may_be_unknown
            && !self.store.knows_group(group)?
        {
            let _ = reply.send(Err(unknown_group()));
            return Ok(());
        }
        let (action, strangers) = self.split_off_strangers(group, action)?;
        let id = self.new_message_id()?;
        let group = group.unwrap_or_else(|| ConversationId::group(self.account.device, id, &action.encode()));
        if let (GroupAction::Create { .. }, Some(profile)) = (&action, &details.profile) {
            self.store.expect_group(group, Some(&profile.name), None)?;
        }
        self.changing.push(((group, id), reply));
        let mut name = details.profile.as_ref().map(|profile| profile.name.clone());
        match &action {
            // A new member cannot read the messages that had the details.
            GroupAction::Add(_) => {
                let link = self.replica.roster(group).and_then(|roster| roster.link);
                let is_current = |secret: &LinkSecret| link.is_some_and(|link| link.key == secret.key());
                let link = self.store.link_secret(group)?.filter(is_current);
                let details = GroupDetails { profile: self.store.group_profile(group)?, link };
                name = details.profile.as_ref().map(|profile| profile.name.clone());
                let added = action.added().to_vec();
                self.send_change(group, id, action, details)?;
                if group.is_channel() {
                    self.invite_writers(group, &added)?;
                }
            }
            GroupAction::SetLink(_) => {
                if let Some(secret) = &details.link {
                    self.store.set_link_secret(group, secret)?;
                }
                self.send_change(group, id, action, details)?;
            }
            GroupAction::Join(_) => {
                let name = name.map_or_else(|| self.store.invited_to(group), |name| Ok(Some(name)))?;
                self.store.expect_group(group, name.as_deref(), details.link.as_ref())?;
                return self.send_change(group, id, action, GroupDetails::default());
            }
            // More devices need the sender key than one message has boxes for, and none goes ahead of the founding.
            GroupAction::Create { members, .. } if members.len() > NAMED_FOUNDERS => {
                self.send_change(group, id, action, GroupDetails::default())?;
                let next = self.new_message_id()?;
                self.send_change(group, next, GroupAction::Edit, details)?;
            }
            GroupAction::Invite(users) if group.is_channel() => {
                let users = users.clone();
                self.send_change(group, id, action, details)?;
                self.invite_writers(group, &users)?;
            }
            GroupAction::Invite(users) => {
                let users = users.clone();
                name = self.store.group_profile(group)?.map(|profile| profile.name);
                self.send_change(group, id, action, details)?;
                self.send_invitations(group, name.clone(), &users)?;
            }
            _ => self.send_change(group, id, action, details)?,
        }
        if strangers.is_empty() {
            return Ok(());
        }
        let next = self.new_message_id()?;
        self.send_change(group, next, GroupAction::Invite(strangers.clone()), GroupDetails::default())?;
        if group.is_channel() {
            return self.invite_writers(group, &strangers);
        }
        self.send_invitations(group, name, &strangers)
    }

    /// Takes the users out of an action that can only be invited, because they do not know this user. If they are all users
    /// of an addition, it becomes an invitation.
    fn split_off_strangers(
        &self,
        group: Option<ConversationId>,
        action: GroupAction,
    ) -> Result<(GroupAction, Vec<UserId>)> {
        let roster = group.and_then(|group| self.replica.roster(group));
        let (mut known, mut strangers) = (Vec::new(), Vec::new());
        for user in action.added() {
            let asks = roster.is_some_and(|roster| roster.asks_to_join(*user));
            let is_known = asks || self.store.is_contact_of(*user)?;
            (if is_known { &mut known } else { &mut strangers }).push(*user);
        }
        Ok(match action {
            GroupAction::Create { policy, .. } => (GroupAction::Create { members: known, policy }, strangers),
            GroupAction::Add(_) if known.is_empty() => (GroupAction::Invite(strangers), Vec::new()),
            GroupAction::Add(_) => (GroupAction::Add(known), strangers),
            action => (action, Vec::new()),
        })
    }

    /// Sends each new writer of a channel the link, with which it reads and writes posts.
    fn invite_writers(&mut self, channel: ConversationId, users: &[UserId]) -> Result<()> {
        let name = self.store.group_profile(channel)?.map(|profile| profile.name);
        let link = self.replica.roster(channel).and_then(|roster| roster.link);
        let secret = self.store.channel_secret(channel, link)?;
        self.send_invitation(&GroupInvitation::new(channel, name, secret)?, users)
    }

    /// Sends each of these users the invitation in a direct message.
    fn send_invitations(
        &mut self,
        group: ConversationId,
        name: Option<String>,
        users: &[UserId],
    ) -> Result<()> {
        let own = self.account.device.user;
        let may_add =
            |roster: &Roster| roster.member(own).is_some_and(|member| member.role >= roster.policy.add);
        if !self.replica.roster(group).is_none_or(may_add) {
            // The change will be refused, and the invitation would be of no use.
            return Ok(());
        }
        self.send_invitation(&GroupInvitation::new(group, name, None)?, users)
    }

    fn send_invitation(&mut self, invitation: &GroupInvitation, users: &[UserId]) -> Result<()> {
        let content = Bytes::from(encode_invitation(invitation));
        for user in users {
            let draft = Draft {
                sent_at: self.store.now_ms(),
                ..Draft::new(self.new_message_id()?, Recipient::User(*user), content.clone())
            };
            self.step(Input::Send(draft))?;
        }
        Ok(())
    }

    pub(super) fn new_message_id(&self) -> Result<MessageId> {
        Ok(MessageId::new(self.store.now_ms(), random(self.owner.config.platform.as_ref())?))
    }

    pub(super) fn send_change(
        &mut self,
        group: ConversationId,
        id: MessageId,
        action: GroupAction,
        details: GroupDetails,
    ) -> Result<()> {
        let link = details.link.map(|secret| {
            let name = details.profile.as_ref().map(|profile| profile.name.clone());
            GroupInvitation::new(group, name, Some(secret))
        });
        let link = link.transpose()?;
        let has_details = link.is_some() || details.profile.is_some();
        let timer_ms = self.store.timer_ms(group)?;
        let content =
            has_details.then(|| Bytes::from(encode_group_details(details.profile, link.as_ref(), timer_ms)));
        let draft = Draft {
            sent_at: self.store.now_ms(),
            action: Some(action),
            ..Draft::new(id, Recipient::Group(group), content.unwrap_or_default())
        };
        self.step(Input::Send(draft))
    }

    /// Notes the groups to which a blocked user added this user. The server does not refuse it, because the blocked user
    /// would notice.
    ///
    /// The note is part of the commit of the change.
    pub(super) fn note_unwanted_groups(&mut self, changes: &Changes) -> Result<()> {
        let own = self.account.device;
        for change in &changes.list {
            if let Change::GroupChanged(group, _, actor, _, action) = change
                && own.device == DeviceId::PRIMARY
                && action.added().contains(&own.user)
                && self.store.contact(actor.user)?.blocked
                && !self.store.asks_to_join(*group)?
            {
                self.store.note_unwanted_group(*group)?;
                self.has_unwanted_groups = true;
            }
        }
        Ok(())
    }

    /// Returns the events of receipts in groups.
    pub(super) fn receipts_in_groups(&self, changes: &Changes) -> Result<Vec<Event>> {
        let receipts = changes.list.iter().filter_map(|change| match change {
            Change::Receipt(group, user, delivered, read) if group.has_roster() => {
                Some((*group, *user, *delivered, *read))
            }
            _ => None,
        });
        let event = |(group, user, delivered_seq, read_seq)| {
            Ok(Event::GroupReceipt { group, user: self.store.user(user)?, delivered_seq, read_seq })
        };
        receipts.map(event).collect()
    }

    /// Leaves the groups to which blocked users added this user. The note ends with the commit that queues the change.
    pub(super) fn leave_groups(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.has_unwanted_groups) {
            return Ok(());
        }
        for group in self.store.take_unwanted_groups()? {
            let id = self.new_message_id()?;
            self.send_change(group, id, GroupAction::Leave, GroupDetails::default())?;
        }
        Ok(())
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

    /// Returns a group as this device has followed it, or founds it.
    pub(super) fn group(&self, id: ConversationId) -> Result<Group> {
        let founding = || self.replica.founding(id).map(Cow::Owned);
        let roster =
            self.replica.roster(id).map(Cow::Borrowed).or_else(founding).ok_or_else(unknown_group)?;
        let members = roster
            .members
            .iter()
            .map(|member| Ok(GroupMember { user: self.store.user(member.user)?, role: member.role }));
        let pending = roster.pending.iter().map(|pending| {
            let invited_by = pending.invited_by.map(|user| self.store.user(user)).transpose()?;
            Ok(PendingMember { user: self.store.user(pending.user)?, invited_by })
        });
        let profile = self.store.group_profile(id)?;
        let name = profile.as_ref().map(|profile| profile.name.clone());
        let secret = self.store.link_secret(id)?;
        // The link of a channel is queued with its founding.
        let is_founding = id.is_channel() && self.replica.roster(id).is_none();
        let founded = secret.as_ref().filter(|_| is_founding);
        let founded = founded.map(|secret| GroupLink { key: secret.key(), approval: false });
        let link = roster.link.or(founded).map(|link| {
            let secret = secret.filter(|secret| secret.key() == link.key);
            let invitation = secret.map(|secret| GroupInvitation::new(id, name.clone(), Some(secret)));
            invitation
                .transpose()
                .map(|invitation| GroupJoinLink { needs_approval: link.approval, invitation })
        });
        Ok(Group {
            id,
            pending: pending.collect::<Result<_>>()?,
            link: link.transpose()?,
            profile,
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
