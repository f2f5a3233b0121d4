//! Groups: founding, members, roles and names.

use chat_core::group::GroupAction;
use chat_core::roster::GroupPolicy;
use chat_core::{ConversationId, Error, ErrorKind, Result, UserId};

use super::{Client, Ticket};
use crate::driver::Command;
use crate::group::Group;

/// Maximum bytes of the name of a group.
const MAX_NAME: usize = 256;

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Error::new(ErrorKind::Invalid, "the name of a group has 1 to 256 bytes"));
    }
    Ok(())
}

impl Client {
    /// Founds a group with these members; this user is its owner. Returns its id once the founding is durably in the
    /// outbox: [`send`](Self::send) takes the id at once. The name is encrypted; the server sees the members.
    ///
    /// The members are not asked. All devices of a group together are at most 256.
    ///
    /// # Errors
    /// `Invalid` unless the name has 1 to 256 bytes. `Closed`, or the error of the local store. If the server refuses the
    /// founding, for example because it has groups disabled, that is an [`Event::Refused`](crate::Event::Refused).
    pub async fn create_group(&self, name: &str, members: &[UserId]) -> Result<ConversationId> {
        check_name(name)?;
        let members = members.iter().copied().filter(|user| *user != self.user()).collect();
        let action = GroupAction::Create { members, policy: GroupPolicy::default() };
        let name = Some(name.to_owned());
        let (group, _) =
            self.request(|reply| Command::ChangeGroup { group: None, action, name, reply }).await?;
        Ok(group)
    }

    /// Changes a group: its members, a role, or what roles may do. Returns the ticket of the change. The change is refused if
    /// the role of this user does not allow it at the time when the server stores it.
    ///
    /// # Errors
    /// `NotFound` if this device does not know the group, `Invalid` for `Create` and `Edit`, which
    /// [`create_group`](Self::create_group) and [`rename_group`](Self::rename_group) make. `Closed`, or the error of the
    /// local store.
    pub async fn change_group(&self, group: ConversationId, action: GroupAction) -> Result<Ticket> {
        if matches!(action, GroupAction::Create { .. } | GroupAction::Edit) {
            return Err(Error::new(ErrorKind::Invalid, "found and rename a group with their own methods"));
        }
        self.submit_change(group, action, None).await
    }

    /// Changes the name of a group. Returns the ticket of the change.
    ///
    /// # Errors
    /// `Invalid` unless the name has 1 to 256 bytes, and the errors of [`change_group`](Self::change_group).
    pub async fn rename_group(&self, group: ConversationId, name: &str) -> Result<Ticket> {
        check_name(name)?;
        self.submit_change(group, GroupAction::Edit, Some(name.to_owned())).await
    }

    async fn submit_change(
        &self,
        group: ConversationId,
        action: GroupAction,
        name: Option<String>,
    ) -> Result<Ticket> {
        let group = Some(group);
        let (_, message) = self.request(|reply| Command::ChangeGroup { group, action, name, reply }).await?;
        Ok(Ticket { client: self.clone(), message, repeated: false })
    }

    /// Returns a group with its members and roles, as this device has followed them.
    ///
    /// # Errors
    /// `NotFound` if this device does not know the group. `Closed`, or the error of the local store.
    pub async fn group(&self, group: ConversationId) -> Result<Group> {
        self.request(|reply| Command::Group(group, reply)).await
    }
}
