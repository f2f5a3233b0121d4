//! Groups: the actions that change a roster, and the part of a message that the members of a group share.

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};

pub use super::group_link::{GroupLink, LinkProof, LinkSecret};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, MessageId, UserId};
use crate::model::limits::MAX_AUDIENCE;
use crate::model::roster::{GroupPolicy, RecipientDevices, Role, RosterDigest};
use crate::model::signing::{transcript, verify};
use crate::proto;

/// A change of a group's roster, or of what its members see of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GroupAction {
    /// Founds the group. The acting user is its owner, and no member of the list.
    Create {
        members: Vec<UserId>,
        policy: GroupPolicy,
    },
    /// Adds members at once. Each of them must have accepted the acting user as a contact, or written to it, or asked to
    /// join.
    Add(Vec<UserId>),
    /// Invites users. Each becomes a member once it joins; nothing of the group is delivered to it before.
    Invite(Vec<UserId>),
    /// The acting user, which is no member, joins: it was invited, or proves that it has the link of the group. If the link
    /// needs approval, the user then asks to join, until an admin adds or removes it.
    Join(Option<LinkProof>),
    /// Removes members, takes back invitations and rejects requests to join. With `ban` the users cannot be added again; a
    /// user that is no member can be banned too.
    Remove {
        users: Vec<UserId>,
        ban: bool,
    },
    /// The acting user leaves, declines its invitation, or takes back its request to join.
    Leave,
    SetRole(UserId, Role),
    SetPolicy(GroupPolicy),
    /// Replaces the link with which users join. The encrypted body has its secret.
    SetLink(Option<GroupLink>),
    Unban(Vec<UserId>),
    /// The encrypted body has a new name, picture or description.
    Edit,
}

impl GroupAction {
    /// Returns the users that the action names.
    pub fn users(&self) -> &[UserId] {
        match self {
            Self::Create { members: users, .. }
            | Self::Add(users)
            | Self::Invite(users)
            | Self::Remove { users, .. }
            | Self::Unban(users) => users,
            Self::SetRole(user, _) => std::slice::from_ref(user),
            Self::Join(_) | Self::Leave | Self::SetPolicy(_) | Self::SetLink(_) | Self::Edit => &[],
        }
    }

    /// Returns the users that the action adds without asking them.
    pub fn added(&self) -> &[UserId] {
        match self {
            Self::Create { members: users, .. } | Self::Add(users) => users,
            _ => &[],
        }
    }

    /// Returns the users that the action removes against their will.
    pub fn removed(&self) -> &[UserId] {
        match self {
            Self::Remove { users, .. } => users,
            _ => &[],
        }
    }

    /// Encodes the action: these bytes are signed.
    pub fn encode(&self) -> Bytes {
        let mut raw = proto::GroupAction::default();
        let users = |users: &[UserId]| users.iter().map(|user| user.to_bytes()).collect();
        raw.kind = match self {
            Self::Create { members, policy } => {
                (raw.users, raw.policy) = (users(members), Some(policy_to_proto(*policy)));
                proto::GroupActionKind::Create
            }
            Self::Add(added) => {
                raw.users = users(added);
                proto::GroupActionKind::Add
            }
            Self::Invite(invited) => {
                raw.users = users(invited);
                proto::GroupActionKind::Invite
            }
            Self::Join(proof) => {
                raw.proof = proof.as_ref().map(LinkProof::to_bytes).unwrap_or_default();
                proto::GroupActionKind::Join
            }
            Self::SetLink(link) => {
                raw.link = link.as_ref().map(link_to_proto);
                proto::GroupActionKind::SetLink
            }
            Self::Remove { users: removed, ban } => {
                raw.users = users(removed);
                if *ban { proto::GroupActionKind::Ban } else { proto::GroupActionKind::Remove }
            }
            Self::Leave => proto::GroupActionKind::Leave,
            Self::SetRole(user, role) => {
                (raw.users, raw.role) = (users(&[*user]), role_to_proto(*role).into());
                proto::GroupActionKind::SetRole
            }
            Self::SetPolicy(policy) => {
                raw.policy = Some(policy_to_proto(*policy));
                proto::GroupActionKind::SetPolicy
            }
            Self::Unban(unbanned) => {
                raw.users = users(unbanned);
                proto::GroupActionKind::Unban
            }
            Self::Edit => proto::GroupActionKind::Edit,
        }
        .into();
        raw.encode_to_vec().into()
    }

    /// Decodes an action.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the bytes are not those of a known action, or name a user twice.
    pub fn decode(encoded: &[u8]) -> Result<Self> {
        let invalid = |what| Error::new(ErrorKind::Invalid, what);
        let raw = proto::GroupAction::decode(encoded).map_err(|_| invalid("not a group action"))?;
        if raw.users.len() > MAX_AUDIENCE {
            return Err(invalid("a group action names too many users"));
        }
        let users: Vec<UserId> = raw.users.iter().map(|user| UserId::parse(user)).collect::<Result<_>>()?;
        let mut sorted = users.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(invalid("a group action names a user twice"));
        }
        let policy = || policy_from_proto(raw.policy.unwrap_or_default());
        Ok(match raw.kind() {
            proto::GroupActionKind::Create => Self::Create { members: users, policy: policy()? },
            proto::GroupActionKind::Add => Self::Add(users),
            proto::GroupActionKind::Invite => Self::Invite(users),
            proto::GroupActionKind::Join => {
                let proof = (!raw.proof.is_empty()).then(|| LinkProof::parse(&raw.proof));
                Self::Join(proof.transpose()?)
            }
            proto::GroupActionKind::SetLink => {
                Self::SetLink(raw.link.as_ref().map(link_from_proto).transpose()?)
            }
            proto::GroupActionKind::Remove => Self::Remove { users, ban: false },
            proto::GroupActionKind::Ban => Self::Remove { users, ban: true },
            proto::GroupActionKind::Leave => Self::Leave,
            proto::GroupActionKind::SetRole => match users[..] {
                [user] => Self::SetRole(user, role_from_proto(raw.role)?),
                _ => return Err(invalid("a change of a role names one user")),
            },
            proto::GroupActionKind::SetPolicy => Self::SetPolicy(policy()?),
            proto::GroupActionKind::Unban => Self::Unban(users),
            proto::GroupActionKind::Edit => Self::Edit,
            proto::GroupActionKind::Unspecified => return Err(invalid("an unknown group action")),
        })
    }
}

pub(crate) const fn role_to_proto(role: Role) -> proto::GroupRole {
    match role {
        Role::Member => proto::GroupRole::Member,
        Role::Admin => proto::GroupRole::Admin,
        Role::Owner => proto::GroupRole::Owner,
    }
}

pub(crate) fn role_from_proto(raw: i32) -> Result<Role> {
    match proto::GroupRole::try_from(raw) {
        Ok(proto::GroupRole::Member) => Ok(Role::Member),
        Ok(proto::GroupRole::Admin) => Ok(Role::Admin),
        Ok(proto::GroupRole::Owner) => Ok(Role::Owner),
        Err(_) => Err(Error::new(ErrorKind::Invalid, "an unknown role")),
    }
}

pub(crate) fn policy_to_proto(policy: GroupPolicy) -> proto::GroupPolicy {
    proto::GroupPolicy {
        send: role_to_proto(policy.send).into(),
        add: role_to_proto(policy.add).into(),
        edit: role_to_proto(policy.edit).into(),
    }
}

pub(crate) fn policy_from_proto(raw: proto::GroupPolicy) -> Result<GroupPolicy> {
    Ok(GroupPolicy {
        send: role_from_proto(raw.send)?,
        add: role_from_proto(raw.add)?,
        edit: role_from_proto(raw.edit)?,
    })
}

pub(crate) fn link_to_proto(link: &GroupLink) -> proto::GroupLink {
    proto::GroupLink { key: Bytes::copy_from_slice(&link.key), approval: link.approval }
}

pub(crate) fn link_from_proto(raw: &proto::GroupLink) -> Result<GroupLink> {
    let key = raw.key.as_ref().try_into();
    let key = key.map_err(|_| Error::new(ErrorKind::Invalid, "the key of a link has 32 bytes"))?;
    Ok(GroupLink { key, approval: raw.approval })
}

/// An action, signed by the acting device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupChange {
    action: GroupAction,
    encoded: Bytes,
    signature: Bytes,
}

impl GroupChange {
    /// Returns a change with an encoded action and its signature. The caller [verifies](Self::verify) the signature.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the action cannot be decoded, or the signature does not have 64 bytes.
    pub fn new(encoded: Bytes, signature: Bytes) -> Result<Self> {
        if signature.len() != 64 {
            return Err(Error::new(ErrorKind::Invalid, "the signature of a group change has 64 bytes"));
        }
        Ok(Self { action: GroupAction::decode(&encoded)?, encoded, signature })
    }

    /// Returns the bytes that the acting device signs. The digest is that of the roster after the change, and covers all
    /// versions before it: so a signed change fits only one history of the group.
    pub fn transcript(
        conversation: ConversationId,
        message: MessageId,
        encoded: &[u8],
        digest: &RosterDigest,
    ) -> Vec<u8> {
        let fields: [&[u8]; 4] = [conversation.as_bytes(), message.as_bytes(), encoded, digest.as_bytes()];
        transcript("group-change", &fields)
    }

    /// Verifies the signature.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] if it does not match the key, [`ErrorKind::Invalid`] if it is malformed.
    pub fn verify(
        &self,
        device_key: &[u8; 32],
        conversation: ConversationId,
        message: MessageId,
        digest: &RosterDigest,
    ) -> Result<()> {
        let signed = Self::transcript(conversation, message, &self.encoded, digest);
        verify(device_key, &signed, &self.signature)
    }

    /// Returns the action.
    pub const fn action(&self) -> &GroupAction {
        &self.action
    }

    /// Returns the encoded action, as signed.
    pub const fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Returns the signature.
    pub const fn signature(&self) -> &Bytes {
        &self.signature
    }
}

/// The part of a group's message that all members receive.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct GroupPart {
    /// The version of the roster that the message is for. A message that changes the roster names the version after it.
    pub roster_version: u64,
    /// The digest of that version.
    pub digest: RosterDigest,
    /// The box of all devices, encrypted with the sender key of the sending device. Empty in a message without content.
    pub shared: Bytes,
    /// A part of the encryption suite that all members must process; empty in the Signal suite.
    pub control: Bytes,
    /// The signed change of the roster, if the message makes one.
    pub change: Option<GroupChange>,
    /// The device lists that the message puts into the roster. Empty in a publish: the shard sets them.
    pub lists: Vec<RecipientDevices>,
}

impl GroupPart {
    /// Returns the approximate size on the wire, in bytes.
    pub(crate) fn size(&self) -> usize {
        let lists = self.lists.iter().map(|list| 32 + 18 * list.installations.len());
        let change = self.change.as_ref().map_or(0, |change| 80 + change.encoded.len());
        64 + self.shared.len() + self.control.len() + change + lists.sum::<usize>()
    }
}
