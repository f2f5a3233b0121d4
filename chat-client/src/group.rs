//! Groups as the application sees them.

use chat_core::ConversationId;
use chat_core::roster::{GroupPolicy, Role};
use serde::{Deserialize, Serialize};

use crate::message::User;

/// A group and its members, as this device has followed them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Group {
    pub id: ConversationId,
    /// The name; `None` if no message with it has arrived yet.
    pub name: Option<String>,
    /// All members; this user is one of them unless it was removed or has left.
    pub members: Vec<GroupMember>,
    /// The roles that may do something in the group.
    pub policy: GroupPolicy,
    /// Users that cannot be added.
    pub banned: Vec<User>,
    /// The role of this user; `None` if it is no member.
    pub own_role: Option<Role>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GroupMember {
    pub user: User,
    pub role: Role,
}
