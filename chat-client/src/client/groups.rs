//! Groups: founding, members, roles and profiles.

use chat_core::group::{GroupAction, GroupLink};
use chat_core::roster::GroupPolicy;
use chat_core::{ConversationId, Error, ErrorKind, Result, UserId};

use super::{Client, Ticket};
use crate::driver::{Command, GroupDetails};
use crate::group::{Group, MemberReceipt};
use crate::group_profile::GroupProfile;
use crate::invitation::GroupInvitation;
use crate::status::Position;

impl Client {
    /// Founds a group with these users; this user is its owner. Returns its id once the founding is durably in the
    /// outbox: all methods take the id at once. The name is encrypted; the server sees the members.
    /// [`edit_group`](Self::edit_group) adds a description and a picture.
    ///
    /// Users of which this user is a contact are members at once: they have written to it, or accepted it. All others are invited, each with a direct message that
    /// has a [`Content::Invitation`](crate::Content::Invitation). All devices of the members together are at most 256.
    ///
    /// # Errors
    /// `Invalid` unless the name has 1 to 256 bytes. `Closed`, or the error of the local store. If the server refuses the
    /// founding, for example because it has groups disabled, that is an [`Event::Refused`](crate::Event::Refused).
    pub async fn create_group(&self, name: &str, members: &[UserId]) -> Result<ConversationId> {
        let profile = GroupProfile::new(name);
        profile.check()?;
        let members = members.iter().copied().filter(|user| *user != self.user()).collect();
        let action = GroupAction::Create { members, policy: GroupPolicy::default() };
        let details = GroupDetails { profile: Some(profile), link: None };
        let (group, _) =
            self.request(|reply| Command::ChangeGroup { group: None, action, details, reply }).await?;
        Ok(group)
    }

    /// Changes a group: its members, a role, or what roles may do. Returns the ticket of the change. The change is refused if
    /// the role of this user does not allow it at the time when the server stores it.
    ///
    /// `Add` makes members of users of which this user is a contact, and of users that ask to join. It invites all others like
    /// [`create_group`](Self::create_group). `Leave` also declines an invitation.
    ///
    /// # Errors
    /// `NotFound` if this device does not know the group, `Invalid` for the actions that have methods of their own:
    /// [`create_group`](Self::create_group), [`edit_group`](Self::edit_group), [`join_group`](Self::join_group) and
    /// [`create_group_link`](Self::create_group_link). `Closed`, or the error of the local store.
    pub async fn change_group(&self, group: ConversationId, action: GroupAction) -> Result<Ticket> {
        let has_method = match action {
            GroupAction::Create { .. } | GroupAction::Edit | GroupAction::Join(_) => true,
            GroupAction::SetLink(link) => link.is_some(),
            _ => false,
        };
        if has_method {
            return Err(Error::new(ErrorKind::Invalid, "this change of a group has a method of its own"));
        }
        self.submit_change(group, action, GroupDetails::default()).await
    }

    /// Joins a group to which this user was invited, or of which it has the link. Returns the ticket of the change: the
    /// user is a member once it is stored, or, if the link needs approval, asks to join.
    ///
    /// The ticket is refused with [`NotFound`](crate::RefusedReason::NotFound) if there is no such group, or the invitation
    /// or link is not valid any more.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn join_group(&self, invitation: &GroupInvitation) -> Result<Ticket> {
        let proof = invitation.secret().map(|secret| secret.prove(invitation.group(), self.user()));
        let profile = invitation.name().map(GroupProfile::new);
        let details = GroupDetails { profile, link: invitation.secret().cloned() };
        self.submit_change(invitation.group(), GroupAction::Join(proof), details).await
    }

    /// Makes a link with which users join a group, and replaces the one before. With `needs_approval` each of them asks to
    /// join, and an admin adds or removes it. The members learn the link, the server does not. Returns the link and the
    /// ticket of the change, which is refused unless this user is an admin.
    ///
    /// [`change_group`](Self::change_group) with `SetLink(None)` removes the link.
    ///
    /// # Errors
    /// `NotFound` if this device does not know the group. `Closed`, or the error of the local store or of the random number
    /// generator.
    pub async fn create_group_link(
        &self,
        group: ConversationId,
        needs_approval: bool,
    ) -> Result<(GroupInvitation, Ticket)> {
        let name = self.group(group).await?.name().map(str::to_owned);
        let secret = self.request(Command::LinkSecret).await?;
        let link = GroupLink { key: secret.key(), approval: needs_approval };
        let invitation = GroupInvitation::new(group, name, Some(secret.clone()))?;
        let details = GroupDetails { profile: None, link: Some(secret) };
        let ticket = self.submit_change(group, GroupAction::SetLink(Some(link)), details).await?;
        Ok((invitation, ticket))
    }

    /// Replaces the profile of a group: its name, description and picture. Of two changes at the same time the later one
    /// stands. Returns the ticket of the change, which is refused unless the policy of the group allows this user to edit.
    ///
    /// ```
    /// use chat_client::prelude::*;
    ///
    /// async fn describe(client: &Client, group: ConversationId) -> Result<()> {
    ///     let profile = client.group(group).await?.profile.unwrap_or_default();
    ///     client.edit_group(group, profile.description("Every second Sunday.")).await?.stored().await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// `Invalid` if a part of the profile is too long, and the errors of [`change_group`](Self::change_group).
    pub async fn edit_group(&self, group: ConversationId, profile: GroupProfile) -> Result<Ticket> {
        profile.check()?;
        let details = GroupDetails { profile: Some(profile), link: None };
        self.submit_change(group, GroupAction::Edit, details).await
    }

    async fn submit_change(
        &self,
        group: ConversationId,
        action: GroupAction,
        details: GroupDetails,
    ) -> Result<Ticket> {
        let group = Some(group);
        let (_, message) =
            self.request(|reply| Command::ChangeGroup { group, action, details, reply }).await?;
        Ok(Ticket { client: self.clone(), message, repeated: false })
    }

    /// Returns for each other member of a group whether an own message was delivered to it and read by it, as far as this device
    /// knows, and requests newer receipts: [`Event::GroupReceipt`](crate::Event::GroupReceipt) reports them. Members that
    /// joined after the message, or left since, are not in the list.
    ///
    /// # Errors
    /// `Closed`, or the error of the local store.
    pub async fn receipts(&self, position: Position) -> Result<Vec<MemberReceipt>> {
        self.request(|reply| Command::Receipts(position, reply)).await
    }

    /// Returns a group with its members and roles, as this device has followed them. A group that this device just founded
    /// has its first members also before the server has stored it.
    ///
    /// # Errors
    /// `NotFound` if this device does not know the group. `Closed`, or the error of the local store.
    pub async fn group(&self, group: ConversationId) -> Result<Group> {
        self.request(|reply| Command::Group(group, reply)).await
    }
}
