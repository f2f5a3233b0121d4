//! Members of a conversation: their devices and, in a group, their roles.

use serde::{Deserialize, Serialize};

use crate::model::id::{InstallationId, Seq, UserId};

/// A user with the devices of one version of its device list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct RecipientDevices {
    pub user: UserId,
    /// The version of the device list.
    pub list_version: u64,
    /// The installations of the devices in that list.
    pub installations: Vec<InstallationId>,
}

/// The rights of a member of a group. The roles are ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// A member without further rights.
    #[default]
    Member,
    /// Removes members, bans users, makes admins and sets the policy.
    Admin,
    /// An admin that also demotes and removes admins, and makes owners.
    Owner,
}

impl Role {
    /// All roles, the lowest first.
    pub const ALL: [Self; 3] = [Self::Member, Self::Admin, Self::Owner];
}

/// The lowest roles that may do something in a group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs)]
pub struct GroupPolicy {
    /// Send messages.
    pub send: Role,
    /// Add members.
    pub add: Role,
    /// Change name, picture and description.
    pub edit: Role,
}

impl Default for GroupPolicy {
    /// All members send, and admins do the rest.
    fn default() -> Self {
        Self { send: Role::Member, add: Role::Admin, edit: Role::Admin }
    }
}

/// A member and the devices of the list that a message last named.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Member {
    pub user: UserId,
    /// The highest version of the user's device list that a message named.
    pub list_version: u64,
    /// The installations of that list.
    pub installations: Vec<InstallationId>,
    /// The role in a group.
    pub role: Role,
    /// The seq with which the user joined a group; 0 in other conversations.
    pub joined: Seq,
}

impl Member {
    /// Returns a member of a conversation that is no group.
    pub const fn new(user: UserId, list_version: u64, installations: Vec<InstallationId>) -> Self {
        Self { user, list_version, installations, role: Role::Member, joined: 0 }
    }
}

/// A user that is no member of a group yet. It gets no row of the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct PendingMember {
    pub user: UserId,
    /// The user that invited it; `None` if it asks to join.
    pub invited_by: Option<UserId>,
}
