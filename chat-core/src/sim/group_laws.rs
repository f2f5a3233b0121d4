//! The laws of groups. Rosters are folded from the log with rules of their own, apart from those of the product.

use std::collections::{BTreeMap, BTreeSet};

use super::device::Device;
use super::group_suite::SimShared;
use super::local_store::Shown;
use super::oracle::Violation;
use crate::model::envelope::{InboxRow, Message, RowContent};
use crate::model::group::{GroupAction, GroupLink, GroupPart, LinkProof};
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, Seq, UserId};
use crate::model::roster::{GroupPolicy, Role, RosterDigest};

/// The members of a group after each seq.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    by_user: BTreeMap<UserId, (Role, BTreeSet<InstallationId>)>,
    policy: GroupPolicy,
    banned: BTreeSet<UserId>,
    /// Users that were invited (`true`) or ask to join.
    pending: BTreeMap<UserId, bool>,
    link: Option<GroupLink>,
    version: u64,
}

/// The users that know another one, first: they accepted it, or wrote to it.
pub(super) type Acquaintances = BTreeSet<(UserId, UserId)>;

impl Members {
    pub(super) fn has(&self, device: DeviceAddress) -> bool {
        self.by_user.get(&device.user).is_some_and(|(_, devices)| devices.contains(&device.installation))
    }

    fn role(&self, user: UserId) -> Option<Role> {
        self.by_user.get(&user).map(|(role, _)| *role)
    }

    /// Returns the rule that a join breaks, if it breaks one.
    fn check_join(
        &self,
        group: ConversationId,
        actor: UserId,
        proof: Option<&LinkProof>,
    ) -> Option<&'static str> {
        let has_link = self.link.zip(proof).is_some_and(|(link, proof)| link.admits(group, actor, proof));
        let may_join = self.pending.get(&actor) == Some(&true) || has_link && !group.is_channel();
        (!may_join || self.banned.contains(&actor)).then_some("the user may not join")
    }

    /// Applies a message. Returns the rule that it breaks, if it breaks one.
    fn apply(
        &mut self,
        group: ConversationId,
        message: &Message,
        part: &GroupPart,
        known: &Acquaintances,
    ) -> Option<&'static str> {
        let actor = message.sender.user;
        let role = self.role(actor);
        let action = part.change.as_ref().map(|change| change.action());
        let is_stranger =
            |user: &&UserId| !known.contains(&(**user, actor)) && self.pending.get(*user) != Some(&false);
        let strangers = action.iter().flat_map(|action| action.added()).filter(is_stranger).count();
        let rule = match (action, role) {
            _ if strangers > 0 => Some("a stranger is added"),
            (Some(GroupAction::Create { .. }), _) => (self.version > 0).then_some("a group is founded twice"),
            (Some(GroupAction::Join(proof)), None) => self.check_join(group, actor, proof.as_ref()),
            (Some(GroupAction::Leave), None) if self.pending.contains_key(&actor) => None,
            (Some(GroupAction::Join(_)), Some(_)) => Some("a member joins"),
            (_, None) => Some("the sender is no member"),
            (None, Some(role)) => {
                (!part.shared.is_empty() && role < self.policy.send).then_some("the role may not send")
            }
            (Some(GroupAction::Add(users)), Some(role)) => {
                let is_banned = users.iter().any(|user| self.banned.contains(user));
                (role < self.policy.add || is_banned).then_some("the user may not be added")
            }
            (Some(GroupAction::Remove { users, .. }), Some(role)) => {
                let above = users.iter().filter_map(|user| self.role(*user));
                let is_above = above.into_iter().any(|other| role < Role::Owner && other >= role);
                (role < Role::Admin || is_above).then_some("the user may not be removed")
            }
            (Some(GroupAction::SetRole(user, to)), Some(role)) => {
                let raises = self.role(*user) == Some(Role::Member) && *to <= Role::Admin;
                let needed = if raises { Role::Admin } else { Role::Owner };
                (role < needed).then_some("the role may not be set")
            }
            (Some(GroupAction::Invite(users)), Some(role)) => {
                let is_out = |user: &UserId| self.banned.contains(user) || self.by_user.contains_key(user);
                (role < self.policy.add || users.iter().any(is_out)).then_some("the user may not be invited")
            }
            (Some(GroupAction::SetLink(Some(link))), _) if group.is_channel() && link.approval => {
                Some("a link of a channel needs approval")
            }
            (
                Some(GroupAction::SetPolicy(_) | GroupAction::Unban(_) | GroupAction::SetLink(_)),
                Some(role),
            ) => (role < Role::Admin).then_some("the policy may not be set"),
            (Some(GroupAction::Edit), Some(role)) => {
                (role < self.policy.edit).then_some("the role may not edit")
            }
            (Some(GroupAction::Leave), Some(_)) => None,
        };
        self.change(actor, action);
        for list in &part.lists {
            let devices = list.installations.iter().copied().collect();
            let known = self.by_user.entry(list.user).or_insert((Role::Member, BTreeSet::new()));
            known.1 = devices;
        }
        self.version += u64::from(action.is_some() || !part.lists.is_empty());
        rule
    }

    fn change(&mut self, actor: UserId, action: Option<&GroupAction>) {
        match action {
            Some(GroupAction::Create { policy, .. }) => {
                self.policy = *policy;
                self.by_user.insert(actor, (Role::Owner, BTreeSet::new()));
            }
            Some(GroupAction::Invite(users)) => {
                self.pending.extend(users.iter().map(|user| (*user, true)));
            }
            Some(GroupAction::Join(_)) => {
                let is_asked = self.link.is_some_and(|link| link.approval);
                if self.pending.get(&actor) == Some(&true) || !is_asked {
                    self.pending.remove(&actor);
                    self.by_user.insert(actor, (Role::Member, BTreeSet::new()));
                } else {
                    self.pending.insert(actor, false);
                }
            }
            Some(GroupAction::Add(users)) => self.pending.retain(|user, _| !users.contains(user)),
            Some(GroupAction::SetLink(link)) => self.link = *link,
            Some(GroupAction::Remove { users, ban }) => {
                self.by_user.retain(|user, _| !users.contains(user));
                self.pending.retain(|user, _| !users.contains(user));
                if *ban {
                    self.banned.extend(users);
                }
            }
            Some(GroupAction::Leave) => {
                self.by_user.remove(&actor);
                self.pending.remove(&actor);
            }
            Some(GroupAction::SetRole(user, role)) => {
                if let Some(known) = self.by_user.get_mut(user) {
                    known.0 = *role;
                }
            }
            Some(GroupAction::SetPolicy(policy)) => self.policy = *policy,
            Some(GroupAction::Unban(users)) => self.banned.retain(|user| !users.contains(user)),
            _ => {}
        }
    }
}

/// A group's log, with the members after each message.
#[derive(Debug)]
pub(super) struct GroupLog<'a> {
    rows: Vec<(Seq, &'a Message, &'a GroupPart, Members)>,
    digests: BTreeMap<u64, RosterDigest>,
    last: Members,
    broken: Option<String>,
}

impl<'a> GroupLog<'a> {
    /// Folds a log. The owner that replaces one that left is the one that the server says: `owners` of a version.
    pub(super) fn fold(
        id: ConversationId,
        log: &'a [InboxRow],
        roles: &BTreeMap<u64, BTreeMap<UserId, Role>>,
        known: &Acquaintances,
    ) -> Self {
        let mut folded =
            Self { rows: Vec::new(), digests: BTreeMap::new(), last: Members::default(), broken: None };
        for row in log {
            let RowContent::Message { message, .. } = &row.content else { continue };
            let Some(part) = &message.group else { continue };
            let before = folded.last.version;
            if let Some(rule) = folded.last.apply(id, message, part, known) {
                folded.broken.get_or_insert(format!("{:?} at {}: {rule}", message.id, row.seq));
            }
            if folded.last.version > before {
                folded.digests.insert(folded.last.version, part.digest);
                // A group without an owner gets one: which one, the followed rosters say.
                for (user, role) in roles.get(&folded.last.version).into_iter().flatten() {
                    if let Some(known) = folded.last.by_user.get_mut(user) {
                        known.0 = *role;
                    }
                }
            }
            if part.roster_version != folded.last.version {
                folded.broken.get_or_insert(format!(
                    "{:?} at {} is for version {} of {}",
                    message.id, row.seq, part.roster_version, folded.last.version
                ));
            }
            folded.rows.push((row.seq, message.as_ref(), part.as_ref(), folded.last.clone()));
        }
        folded
    }

    /// Whether a device is a member after the message at a seq.
    pub(super) fn is_for(&self, seq: Seq, device: DeviceAddress) -> bool {
        self.rows.iter().find(|(at, ..)| *at == seq).is_some_and(|(.., members)| members.has(device))
    }

    /// Whether the message at a seq removes a user.
    pub(super) fn removes(&self, seq: Seq, user: UserId) -> bool {
        let row = self.rows.iter().find(|(at, ..)| *at == seq);
        row.is_some_and(|(_, message, part, _)| match part.change.as_ref().map(|change| change.action()) {
            Some(GroupAction::Leave) => message.sender.user == user,
            Some(action) => action.removed().contains(&user),
            None => false,
        })
    }

    /// Whether a user is banned after the message at a seq.
    fn bans(&self, seq: Seq, user: UserId) -> bool {
        self.rows
            .iter()
            .rev()
            .find(|(at, ..)| *at <= seq)
            .is_some_and(|(.., members)| members.banned.contains(&user))
    }

    /// Returns the devices of a user in the group, and in the list of its primary device; `None` for other devices.
    fn listed_devices(
        &self,
        device: &Device,
    ) -> Option<(BTreeSet<InstallationId>, BTreeSet<InstallationId>)> {
        let own = device.address();
        let list = device.replica.as_ref()?.list(own.user).filter(|_| own.device == DeviceId::PRIMARY)?;
        let (_, known) = self.last.by_user.get(&own.user)?;
        Some((known.clone(), list.list().addresses().map(|one| one.installation).collect()))
    }

    /// Checks the laws of the group.
    pub(super) fn check(
        &self,
        id: ConversationId,
        devices: &[Device],
        skip: impl Fn(&Device) -> bool,
        reads: impl Fn(InstallationId, Seq) -> bool,
    ) -> Option<Violation> {
        let broken = |law, how| Some(Violation { law, how });
        if let Some(how) = &self.broken {
            return broken("authority", how.clone());
        }
        for device in devices {
            let own = device.address();
            let known = device.replica.as_ref().and_then(|replica| replica.roster(id));
            for roster in known
                .into_iter()
                .chain(device.store.rosters.range((id, 0)..=(id, u64::MAX)).map(|(_, one)| one))
            {
                if self.digests.get(&roster.version) != Some(&roster.digest) {
                    return broken(
                        "fold",
                        format!("{own:?} has another roster of version {}", roster.version),
                    );
                }
            }
            if self.last.has(own)
                && !skip(device)
                && known.map(|roster| roster.version) != Some(self.last.version)
            {
                let version = known.map(|roster| roster.version);
                return broken("fold", format!("{own:?} has roster {version:?} of {}", self.last.version));
            }
            if let Some((known, listed)) = self.listed_devices(device)
                && known != listed
            {
                return broken(
                    "lists",
                    format!("{own:?}: the group has {known:?} of its user, not {listed:?}"),
                );
            }
            for (seq, message, part, members) in &self.rows {
                let shown =
                    device.store.shown.iter().any(|(place, at, what)| {
                        (place, at) == (&id, seq) && matches!(what, Shown::Message(..))
                    });
                let has_key = SimShared::decode(&part.shared)
                    .is_some_and(|shared| device.store.suite.sender_keys.could_open(&shared));
                let is_reader = || reads(own.installation, *seq) && !self.bans(*seq, own.user);
                let may_read =
                    members.has(own) || message.sender.installation == own.installation || is_reader();
                if (shown || has_key) && !may_read {
                    let what = if shown { "showed" } else { "has the key of" };
                    return broken(
                        "audience",
                        format!("{own:?} {what} {:?} at {seq}, as no member", message.id),
                    );
                }
            }
        }
        None
    }
}
