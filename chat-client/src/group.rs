//! Groups as the application sees them.

use chat_core::ConversationId;
use chat_core::roster::{GroupPolicy, Role};
use serde::{Deserialize, Serialize};

use crate::group_profile::GroupProfile;
use crate::invitation::GroupInvitation;
use crate::message::User;

/// A group and its members, as this device has followed them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Group {
    pub id: ConversationId,
    /// Name, description and picture; `None` if no message with them has arrived yet.
    pub profile: Option<GroupProfile>,
    /// All members; this user is one of them unless it was removed or has left.
    pub members: Vec<GroupMember>,
    /// The roles that may do something in the group.
    pub policy: GroupPolicy,
    /// Users that cannot be added.
    pub banned: Vec<User>,
    /// The role of this user; `None` if it is no member.
    pub own_role: Option<Role>,
    /// Users that are no members yet: they were invited, or ask to join.
    pub pending: Vec<PendingMember>,
    /// The link with which users join. Its secret is missing if no message with it has reached this device.
    pub link: Option<GroupJoinLink>,
}

impl Group {
    /// Returns the name, if a message with it has arrived.
    pub fn name(&self) -> Option<&str> {
        self.profile.as_ref().map(|profile| &profile.name[..])
    }
}

/// The progress of a message at one member of its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemberReceipt {
    pub user: User,
    /// A device of the member has the message.
    pub delivered: bool,
    /// The member has read it.
    pub read: bool,
}

/// The link of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GroupJoinLink {
    /// An admin approves each user that joins with the link, by adding it.
    pub needs_approval: bool,
    /// The URL that lets users join; `None` if this device does not know its secret.
    pub invitation: Option<GroupInvitation>,
}

/// A user that is no member of a group yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PendingMember {
    pub user: User,
    /// The member that invited the user; `None` if the user asks to join.
    pub invited_by: Option<User>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GroupMember {
    pub user: User,
    pub role: Role,
}
