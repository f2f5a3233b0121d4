//! The members of a conversation and, in a group, their roles.

use std::collections::HashSet;
use std::fmt;

use sha2::{Digest, Sha256};

pub use super::member::{GroupPolicy, Member, PendingMember, RecipientDevices, Role};
use crate::model::envelope::Refusal;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::group::{GroupAction, GroupLink, LinkProof};
use crate::model::id::{ConversationId, InstallationId, Seq, UserId};
use crate::model::limits::{MAX_BANNED, MAX_FORMER_DEVICES, MAX_GROUP_DEVICES, MAX_NUMBER, MAX_PENDING};
use crate::mutant::Mutant;

/// SHA-256 of a version of a group's roster, and of the version before it: so it covers all versions up to this one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RosterDigest([u8; 32]);

impl RosterDigest {
    /// Returns the digest with these bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless there are 32 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.try_into();
        Ok(Self(bytes.map_err(|_| Error::new(ErrorKind::Invalid, "a roster digest has 32 bytes"))?))
    }

    /// Returns the bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RosterDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "roster…{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2])
    }
}

/// The members of a conversation. In a group also their roles, and numbers that count the changes.
///
/// The shard of a group and every member's device apply the same changes to the same roster, and compare digests: a
/// server that shows a device another roster is detected.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct Roster {
    /// In a group: sorted by user.
    pub members: Vec<Member>,
    /// Counts the changes of a group, dense from 1; 0 in other conversations.
    pub version: u64,
    /// Counts the changes of the set of members.
    pub epoch: u64,
    /// Counts the removals of a member or of a device: sender keys of an earlier key epoch encrypt no message any more.
    pub key_epoch: u64,
    /// The seq of the last change.
    pub changed_at: Seq,
    pub policy: GroupPolicy,
    /// Users that cannot be added, sorted.
    pub banned: Vec<UserId>,
    /// Users that were invited, or ask to join, sorted by user.
    pub pending: Vec<PendingMember>,
    /// The link with which users join.
    pub link: Option<GroupLink>,
    /// The digest of the version before this one.
    pub previous: RosterDigest,
    /// The digest of this version.
    pub digest: RosterDigest,
    /// Devices of former members and of users that asked to join, each with the seq of its last row, the latest last. If
    /// one joins later, a row without content covers the seqs between. The digest does not cover them.
    pub former: Vec<(InstallationId, Seq)>,
}

impl Roster {
    /// Returns the roster of a conversation that is no group.
    pub fn of_members(members: Vec<Member>) -> Self {
        Self { members, ..Self::default() }
    }

    /// Returns the entry of a user.
    pub fn member(&self, user: UserId) -> Option<&Member> {
        self.members.iter().find(|member| member.user == user)
    }

    /// Returns the installations of all members.
    pub fn installations(&self) -> impl Iterator<Item = InstallationId> + '_ {
        self.members.iter().flat_map(|member| &member.installations).copied()
    }

    /// Returns whether a device belongs to a member.
    pub fn has_device(&self, user: UserId, installation: InstallationId) -> bool {
        self.member(user).is_some_and(|member| member.installations.contains(&installation))
    }

    /// Returns the entry of a user that is no member yet.
    pub fn pending(&self, user: UserId) -> Option<&PendingMember> {
        self.pending.iter().find(|pending| pending.user == user)
    }

    /// Returns whether a user asks to join.
    pub fn asks_to_join(&self, user: UserId) -> bool {
        self.pending(user).is_some_and(|pending| pending.invited_by.is_none())
    }

    /// Returns whether a user that is no member may see the roster: it was invited, asks to join, or has the link.
    pub fn is_shown_to(&self, group: ConversationId, user: UserId, proof: Option<&LinkProof>) -> bool {
        self.pending(user).is_some()
            || self.is_admitted(group, user, proof)
            || Mutant::JoinUnchecked.is_active()
    }

    /// Returns whether a proof shows that a user has the link, and the user is not banned.
    pub(crate) fn is_admitted(&self, group: ConversationId, user: UserId, proof: Option<&LinkProof>) -> bool {
        let admits = |(link, proof): (&GroupLink, &LinkProof)| link.admits(group, user, proof);
        !self.banned.contains(&user) && self.link.as_ref().zip(proof).is_some_and(admits)
    }

    /// Returns whether `Join` makes a user a member at once. Otherwise it asks to join, or is refused.
    pub fn joins_at_once(&self, user: UserId) -> bool {
        let is_invited = self.pending(user).is_some_and(|pending| pending.invited_by.is_some());
        is_invited || self.link.is_some_and(|link| !link.approval)
    }

    /// Returns whether a user may send messages with content. Every member may name device lists and distribute its key.
    pub fn may_send(&self, user: UserId) -> bool {
        self.member(user).is_some_and(|member| member.role >= self.policy.send)
    }

    /// Returns the roster after a message of `actor` at `seq`: after its action, if it has one, and with the device lists
    /// that it names. A message that changes nothing leaves the version as it is.
    ///
    /// # Errors
    /// `Denied` if the actor is no member or its role does not allow the action, `Mismatch` with the users of which
    /// a lower list version is named than before, `TooLarge` above the limits, `Invalid` if the action does not fit the
    /// roster.
    pub fn change(
        &self,
        conversation: ConversationId,
        actor: UserId,
        action: Option<&GroupAction>,
        lists: &[RecipientDevices],
        seq: Seq,
    ) -> Result<Self, Refusal> {
        let mut next = self.clone();
        let role = self.member(actor).map(|member| member.role);
        match (action, role) {
            (Some(GroupAction::Create { members, policy }), _) => {
                next.create(actor, members, *policy, lists, seq)?;
            }
            (Some(GroupAction::Join(proof)), None) => {
                next.join(conversation, actor, proof.as_ref(), lists, seq)?;
            }
            (Some(GroupAction::Leave), None) if self.pending(actor).is_some() => next.drop_pending(actor),
            (_, None) => return Err(Refusal::Denied),
            (None, Some(_)) => {}
            (Some(GroupAction::SetLink(Some(link))), _) if conversation.is_channel() && link.approval => {
                // A device subscribes by itself.
                return Err(Refusal::Invalid);
            }
            (Some(action), Some(role)) => next.act(actor, role, action, lists, seq)?,
        }
        next.update_lists(lists)?;
        if action.is_none() && next == *self {
            return Ok(next);
        }
        let removed = self.members.iter().filter(|member| next.member(member.user).is_none()).count();
        let is_same_set = removed == 0 && next.members.len() == self.members.len();
        next.epoch += u64::from(!is_same_set);
        next.key_epoch += u64::from(self.loses_device(&next) && !Mutant::KeyEpochStays.is_active());
        if next.installations().count() > MAX_GROUP_DEVICES
            || next.banned.len() > MAX_BANNED
            || next.pending.len() > MAX_PENDING
        {
            return Err(Refusal::TooLarge);
        }
        next.note_former(self, seq);
        next.version += 1;
        next.changed_at = seq;
        next.previous = self.digest;
        next.digest = next.compute_digest(conversation);
        Ok(next)
    }

    /// Records the devices of members that the message at a seq removes, and drops those that joined again.
    fn note_former(&mut self, before: &Self, seq: Seq) {
        let gone = before.members.iter().filter(|member| self.member(member.user).is_none());
        let gone: Vec<_> = gone.flat_map(|member| &member.installations).map(|one| (*one, seq)).collect();
        self.former.extend(gone);
        self.trim_former();
    }

    /// Records the last row of a device that belongs to no member. The device wrote the row: it asks to join, or takes that
    /// back.
    pub(crate) fn note_row(&mut self, device: InstallationId, seq: Seq) {
        self.former.retain(|(known, _)| *known != device);
        self.former.push((device, seq));
        self.trim_former();
    }

    fn trim_former(&mut self) {
        let present: HashSet<InstallationId> = self.installations().collect();
        self.former.retain(|(device, _)| !present.contains(device));
        let excess = self.former.len().saturating_sub(MAX_FORMER_DEVICES);
        self.former.drain(..excess);
    }

    /// Returns the seq of the last row that a device got before it left the group, or before it joins.
    pub fn left(&self, device: InstallationId) -> Option<Seq> {
        self.former.iter().find(|(known, _)| *known == device).map(|(_, left)| *left)
    }

    /// Returns whether a device of this roster is not in the next one.
    fn loses_device(&self, next: &Self) -> bool {
        let kept = |member: &Member, one: &InstallationId| next.has_device(member.user, *one);
        self.members.iter().any(|member| member.installations.iter().any(|one| !kept(member, one)))
    }

    fn create(
        &mut self,
        actor: UserId,
        members: &[UserId],
        policy: GroupPolicy,
        lists: &[RecipientDevices],
        seq: Seq,
    ) -> Result<(), Refusal> {
        if self.version > 0 {
            return Err(Refusal::Denied);
        }
        self.policy = policy;
        self.add(&[actor], lists, seq)?;
        self.members[0].role = Role::Owner;
        self.add(members, lists, seq)
    }

    fn act(
        &mut self,
        actor: UserId,
        role: Role,
        action: &GroupAction,
        lists: &[RecipientDevices],
        seq: Seq,
    ) -> Result<(), Refusal> {
        let needs = |needed: Role| {
            if role >= needed || Mutant::RoleIgnored.is_active() { Ok(()) } else { Err(Refusal::Denied) }
        };
        match action {
            GroupAction::Create { .. } | GroupAction::Join(_) => Err(Refusal::Invalid),
            GroupAction::Invite(users) => needs(self.policy.add)
                .and_then(|()| users.iter().try_for_each(|user| self.invite(*user, actor))),
            GroupAction::SetLink(link) => {
                needs(Role::Admin)?;
                self.link = *link;
                Ok(())
            }
            GroupAction::Add(users) => needs(self.policy.add).and_then(|()| self.add(users, lists, seq)),
            GroupAction::Remove { users, ban } => {
                needs(Role::Admin)?;
                users.iter().try_for_each(|user| self.remove(role, *user, *ban))
            }
            GroupAction::Leave => {
                self.members.retain(|member| member.user != actor);
                self.replace_owner();
                Ok(())
            }
            GroupAction::SetRole(user, to) => {
                let from = self.member(*user).ok_or(Refusal::NotFound)?.role;
                // An admin makes admins. Only an owner takes a role away, and makes owners.
                needs(if from == Role::Member && *to <= Role::Admin { Role::Admin } else { Role::Owner })?;
                for member in self.members.iter_mut().filter(|member| member.user == *user) {
                    member.role = *to;
                }
                self.replace_owner();
                Ok(())
            }
            GroupAction::SetPolicy(policy) => {
                needs(Role::Admin)?;
                self.policy = *policy;
                Ok(())
            }
            GroupAction::Unban(users) => {
                needs(Role::Admin)?;
                self.banned.retain(|banned| !users.contains(banned));
                Ok(())
            }
            GroupAction::Edit => needs(self.policy.edit),
        }
    }

    fn add(&mut self, users: &[UserId], lists: &[RecipientDevices], seq: Seq) -> Result<(), Refusal> {
        for user in users {
            if self.banned.contains(user) {
                return Err(Refusal::Denied);
            }
            let list = lists.iter().find(|list| list.user == *user).ok_or(Refusal::Invalid)?;
            let place = self.members.binary_search_by_key(user, |member| member.user);
            let Err(place) = place else { return Err(Refusal::Invalid) };
            let member = Member::new(*user, list.list_version, list.installations.clone());
            self.members.insert(place, Member { joined: seq, ..member });
            self.drop_pending(*user);
        }
        Ok(())
    }

    /// Invites a user. Of one that asks to join this is the approval, but the user still has to join.
    fn invite(&mut self, user: UserId, by: UserId) -> Result<(), Refusal> {
        if self.banned.contains(&user) {
            return Err(Refusal::Denied);
        }
        if self.member(user).is_some() {
            return Err(Refusal::Invalid);
        }
        self.set_pending(PendingMember { user, invited_by: Some(by) });
        Ok(())
    }

    fn join(
        &mut self,
        group: ConversationId,
        actor: UserId,
        proof: Option<&LinkProof>,
        lists: &[RecipientDevices],
        seq: Seq,
    ) -> Result<(), Refusal> {
        let is_invited = self.pending(actor).is_some_and(|pending| pending.invited_by.is_some());
        // The link of a channel admits readers, which are no members.
        let may_join = is_invited || !group.is_channel() && self.is_admitted(group, actor, proof);
        let is_unchecked = Mutant::JoinUnchecked.is_active();
        if !may_join && !is_unchecked {
            return Err(Refusal::Denied);
        }
        if self.joins_at_once(actor) || is_unchecked {
            return self.add(&[actor], lists, seq);
        }
        if self.asks_to_join(actor) {
            return Err(Refusal::Invalid);
        }
        let asking = self.pending.iter().filter(|pending| pending.invited_by.is_none()).count();
        if asking >= MAX_PENDING / 2 {
            // Requests leave room for invitations.
            return Err(Refusal::TooLarge);
        }
        self.set_pending(PendingMember { user: actor, invited_by: None });
        Ok(())
    }

    fn set_pending(&mut self, pending: PendingMember) {
        match self.pending.binary_search_by_key(&pending.user, |known| known.user) {
            Ok(place) => self.pending[place] = pending,
            Err(place) => self.pending.insert(place, pending),
        }
    }

    fn drop_pending(&mut self, user: UserId) {
        self.pending.retain(|pending| pending.user != user);
    }

    fn remove(&mut self, role: Role, user: UserId, ban: bool) -> Result<(), Refusal> {
        match self.member(user) {
            Some(member) if member.role >= role && role < Role::Owner && !Mutant::RoleIgnored.is_active() => {
                return Err(Refusal::Denied);
            }
            Some(_) => self.members.retain(|member| member.user != user),
            None if !ban && self.pending(user).is_none() => return Err(Refusal::NotFound),
            None => self.drop_pending(user),
        }
        if let (true, Err(place)) = (ban, self.banned.binary_search(&user)) {
            self.banned.insert(place, user);
        }
        self.replace_owner();
        Ok(())
    }

    /// Makes the member with the highest role an owner if there is none; of several, the one that joined first.
    fn replace_owner(&mut self) {
        if self.members.iter().any(|member| member.role == Role::Owner) {
            return;
        }
        let rank = |member: &&mut Member| (std::cmp::Reverse(member.role), member.joined, member.user);
        if let Some(member) = self.members.iter_mut().min_by_key(rank) {
            member.role = Role::Owner;
        }
    }

    /// Takes over later device lists of members.
    fn update_lists(&mut self, lists: &[RecipientDevices]) -> Result<(), Refusal> {
        let mut stale = Vec::new();
        for list in lists {
            let place = self.members.binary_search_by_key(&list.user, |member| member.user);
            let Ok(place) = place else { return Err(Refusal::Invalid) };
            let member = &mut self.members[place];
            if list.list_version < member.list_version {
                stale.push(list.user);
            } else if list.list_version > member.list_version {
                member.list_version = list.list_version;
                member.installations.clone_from(&list.installations);
            }
        }
        if stale.is_empty() { Ok(()) } else { Err(Refusal::Mismatch(stale)) }
    }

    /// Returns the digest of this version.
    pub fn compute_digest(&self, conversation: ConversationId) -> RosterDigest {
        let mut hash = Sha256::new();
        hash.update(b"chat/v1/roster");
        hash.update(conversation.as_bytes());
        hash.update(self.previous.as_bytes());
        for number in [self.version, self.epoch, self.key_epoch] {
            hash.update(number.to_be_bytes());
        }
        hash.update([self.policy.send as u8, self.policy.add as u8, self.policy.edit as u8]);
        hash.update((self.members.len() as u64).to_be_bytes());
        for member in &self.members {
            hash.update(member.user.as_bytes());
            hash.update([member.role as u8]);
            hash.update(member.list_version.to_be_bytes());
            hash.update((member.installations.len() as u64).to_be_bytes());
            // An installation is the hash of its device key: so the digest covers the devices themselves.
            let mut installations = member.installations.clone();
            installations.sort_unstable();
            installations.iter().for_each(|one| hash.update(one.as_bytes()));
        }
        hash.update((self.banned.len() as u64).to_be_bytes());
        self.banned.iter().for_each(|user| hash.update(user.as_bytes()));
        hash.update((self.pending.len() as u64).to_be_bytes());
        for pending in &self.pending {
            hash.update(pending.user.as_bytes());
            hash.update([u8::from(pending.invited_by.is_some())]);
            pending.invited_by.iter().for_each(|by| hash.update(by.as_bytes()));
        }
        if let Some(link) = &self.link {
            hash.update([u8::from(link.approval)]);
            hash.update(link.key);
        }
        RosterDigest(hash.finalize().into())
    }

    /// Checks the form of a group's roster that a server sent, and its digest.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the digest is not that of the roster, or the members are not in order.
    pub fn check(&self, conversation: ConversationId) -> Result<()> {
        let rises = self.members.windows(2).all(|pair| pair[0].user < pair[1].user);
        let numbers = [self.version, self.epoch, self.key_epoch, self.changed_at];
        let fits = numbers.iter().all(|number| *number < MAX_NUMBER);
        if self.version > 0 && rises && fits && self.compute_digest(conversation) == self.digest {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Invalid, "the roster does not have its digest"))
    }
}

#[cfg(test)]
mod tests;
