//! Encoding of rosters, and of the part of a group's message that all members receive.

use super::{MAX_NUMBER, at_most, invalid, optional_user};
use crate::model::error::Result;
use crate::model::group::{
    GroupChange, GroupPart, link_from_proto, link_to_proto, policy_from_proto, policy_to_proto,
    role_from_proto, role_to_proto,
};
use crate::model::id::{InstallationId, UserId};
use crate::model::limits::{
    MAX_AUDIENCE, MAX_BANNED, MAX_BOX, MAX_BOXES, MAX_CONTROL, MAX_FORMER_DEVICES, MAX_PENDING,
};
use crate::model::roster::{Member, PendingMember, RecipientDevices, Roster, RosterDigest};
use crate::proto;

fn installations_from_proto(raw: &[bytes::Bytes]) -> Result<Vec<InstallationId>> {
    at_most(raw.len(), MAX_BOXES, "too many devices in a list")?;
    raw.iter().map(|one| InstallationId::parse(one)).collect()
}

fn installations_to_proto(installations: &[InstallationId]) -> Vec<bytes::Bytes> {
    installations.iter().map(|one| one.to_bytes()).collect()
}

const fn check_number(number: u64) -> Result<u64> {
    if number > MAX_NUMBER {
        return Err(invalid("a number of a group must be below 2^53"));
    }
    Ok(number)
}

pub(crate) fn roster_to_proto(roster: &Roster) -> proto::Roster {
    let members = roster.members.iter().map(|member| proto::RosterMember {
        user: member.user.to_bytes(),
        list_version: member.list_version,
        installations: installations_to_proto(&member.installations),
        role: role_to_proto(member.role).into(),
        joined: member.joined,
    });
    proto::Roster {
        version: roster.version,
        epoch: roster.epoch,
        key_epoch: roster.key_epoch,
        changed_at: roster.changed_at,
        policy: Some(policy_to_proto(roster.policy)),
        members: members.collect(),
        banned: roster.banned.iter().map(|user| user.to_bytes()).collect(),
        previous: bytes::Bytes::copy_from_slice(roster.previous.as_bytes()),
        digest: bytes::Bytes::copy_from_slice(roster.digest.as_bytes()),
        former: roster
            .former
            .iter()
            .map(|(device, left)| proto::FormerDevice { installation: device.to_bytes(), left: *left })
            .collect(),
        pending: roster.pending.iter().map(pending_to_proto).collect(),
        link: roster.link.as_ref().map(link_to_proto),
    }
}

pub(crate) fn roster_from_proto(raw: proto::Roster) -> Result<Roster> {
    at_most(raw.members.len(), MAX_AUDIENCE, "too many members in a roster")?;
    at_most(raw.pending.len(), MAX_PENDING, "too many pending users in a roster")?;
    at_most(raw.former.len(), MAX_FORMER_DEVICES, "too many former devices in a roster")?;
    at_most(raw.banned.len(), MAX_BANNED, "too many banned users in a roster")?;
    let members = raw.members.into_iter().map(|member| {
        Ok(Member {
            user: UserId::parse(&member.user)?,
            list_version: check_number(member.list_version)?,
            installations: installations_from_proto(&member.installations)?,
            role: role_from_proto(member.role)?,
            joined: check_number(member.joined)?,
        })
    });
    Ok(Roster {
        members: members.collect::<Result<_>>()?,
        version: check_number(raw.version)?,
        epoch: check_number(raw.epoch)?,
        key_epoch: check_number(raw.key_epoch)?,
        changed_at: check_number(raw.changed_at)?,
        policy: policy_from_proto(raw.policy.unwrap_or_default())?,
        banned: raw.banned.iter().map(|user| UserId::parse(user)).collect::<Result<_>>()?,
        previous: RosterDigest::parse(&raw.previous)?,
        digest: RosterDigest::parse(&raw.digest)?,
        former: raw
            .former
            .iter()
            .map(|one| Ok((InstallationId::parse(&one.installation)?, check_number(one.left)?)))
            .collect::<Result<_>>()?,
        pending: raw.pending.iter().map(pending_from_proto).collect::<Result<_>>()?,
        link: raw.link.as_ref().map(link_from_proto).transpose()?,
    })
}

fn pending_to_proto(pending: &PendingMember) -> proto::PendingMember {
    let invited_by = pending.invited_by.map(UserId::to_bytes).unwrap_or_default();
    proto::PendingMember { user: pending.user.to_bytes(), invited_by }
}

fn pending_from_proto(raw: &proto::PendingMember) -> Result<PendingMember> {
    Ok(PendingMember { user: UserId::parse(&raw.user)?, invited_by: optional_user(&raw.invited_by)? })
}

pub(crate) fn part_to_proto(part: &GroupPart) -> proto::GroupPart {
    let lists = part.lists.iter().map(|list| proto::MemberDevices {
        user: list.user.to_bytes(),
        list_version: list.list_version,
        installations: installations_to_proto(&list.installations),
    });
    proto::GroupPart {
        roster_version: part.roster_version,
        digest: bytes::Bytes::copy_from_slice(part.digest.as_bytes()),
        shared: part.shared.clone(),
        control: part.control.clone(),
        action: part.change.as_ref().map(|change| change.encoded().clone()).unwrap_or_default(),
        signature: part.change.as_ref().map(|change| change.signature().clone()).unwrap_or_default(),
        lists: lists.collect(),
    }
}

pub(crate) fn part_from_proto(raw: proto::GroupPart) -> Result<GroupPart> {
    at_most(raw.shared.len(), MAX_BOX, "the shared box is too large")?;
    at_most(raw.control.len(), MAX_CONTROL, "the part of the encryption suite is too large")?;
    at_most(raw.lists.len(), MAX_AUDIENCE, "too many device lists in a message")?;
    let lists = raw.lists.into_iter().map(|list| {
        Ok(RecipientDevices {
            user: UserId::parse(&list.user)?,
            list_version: check_number(list.list_version)?,
            installations: installations_from_proto(&list.installations)?,
        })
    });
    Ok(GroupPart {
        roster_version: check_number(raw.roster_version)?,
        digest: RosterDigest::parse(&raw.digest)?,
        shared: raw.shared,
        control: raw.control,
        change: if raw.action.is_empty() { None } else { Some(GroupChange::new(raw.action, raw.signature)?) },
        lists: lists.collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::group::{GroupAction, GroupLink, LinkProof, LinkSecret};
    use crate::model::id::ConversationId;
    use crate::model::roster::{GroupPolicy, Role};

    fn user(n: u8) -> UserId {
        UserId::from_bytes([n; 16])
    }

    fn devices(n: u8) -> RecipientDevices {
        let installations =
            vec![InstallationId::from_bytes([n; 16]), InstallationId::from_bytes([n + 1; 16])];
        RecipientDevices { user: user(n), list_version: u64::from(n), installations }
    }

    #[test]
    fn roster_round_trips() {
        let policy = GroupPolicy { send: Role::Admin, add: Role::Member, edit: Role::Owner };
        let create = GroupAction::Create { members: vec![user(3)], policy };
        let conversation = ConversationId::from_bytes([0x14; 17]);
        let lists = [devices(1), devices(3)];
        let founded = Roster::default().change(conversation, user(1), Some(&create), &lists, 1).unwrap();
        let ban = GroupAction::Remove { users: vec![user(3), user(7)], ban: true };
        let banned = founded.change(conversation, user(1), Some(&ban), &[], 2).unwrap();
        let link = GroupLink { key: LinkSecret::from_bytes([3; 32]).key(), approval: true };
        let linked =
            banned.change(conversation, user(1), Some(&GroupAction::SetLink(Some(link))), &[], 3).unwrap();
        let proof = LinkSecret::from_bytes([3; 32]).prove(conversation, user(8));
        let asked =
            linked.change(conversation, user(8), Some(&GroupAction::Join(Some(proof))), &[], 4).unwrap();
        let invite = GroupAction::Invite(vec![user(5), user(6)]);
        let invited = asked.change(conversation, user(1), Some(&invite), &[], 5).unwrap();
        assert_eq!(invited.pending.len(), 3);
        for roster in [founded, banned, linked, asked, invited] {
            assert_eq!(roster_from_proto(roster_to_proto(&roster)), Ok(roster.clone()));
            assert_eq!(roster.check(conversation), Ok(()));
        }
    }

    #[test]
    fn part_round_trips_with_every_action() {
        let users = vec![user(1), user(2)];
        let policy = GroupPolicy::default();
        for action in [
            GroupAction::Create { members: users.clone(), policy },
            GroupAction::Add(users.clone()),
            GroupAction::Remove { users: users.clone(), ban: false },
            GroupAction::Remove { users: users.clone(), ban: true },
            GroupAction::Leave,
            GroupAction::SetRole(user(1), Role::Owner),
            GroupAction::SetPolicy(policy),
            GroupAction::Unban(users.clone()),
            GroupAction::Edit,
            GroupAction::Invite(users.clone()),
            GroupAction::Join(None),
            GroupAction::Join(Some(LinkProof::parse(&[5; 64]).unwrap())),
            GroupAction::SetLink(None),
            GroupAction::SetLink(Some(GroupLink { key: [6; 32], approval: true })),
        ] {
            let change = GroupChange::new(action.encode(), vec![7; 64].into()).unwrap();
            assert_eq!(*change.action(), action);
            let part = GroupPart {
                roster_version: 9,
                digest: RosterDigest::parse(&[4; 32]).unwrap(),
                shared: vec![1; 5].into(),
                control: vec![2; 5].into(),
                change: Some(change),
                lists: vec![devices(5)],
            };
            assert_eq!(part_from_proto(part_to_proto(&part)), Ok(part));
        }
    }

    #[test]
    fn part_that_breaks_a_rule_is_refused() {
        let part = |change: fn(&mut proto::GroupPart)| {
            let mut raw =
                proto::GroupPart { roster_version: 1, digest: vec![1; 32].into(), ..Default::default() };
            change(&mut raw);
            part_from_proto(raw)
        };
        assert!(part(|_| ()).is_ok());
        assert!(part(|raw| raw.digest = vec![1; 31].into()).is_err());
        assert!(part(|raw| raw.roster_version = MAX_NUMBER + 1).is_err());
        assert!(part(|raw| raw.shared = vec![0; MAX_BOX + 1].into()).is_err());
        assert!(part(|raw| raw.control = vec![0; MAX_CONTROL + 1].into()).is_err());
        assert!(part(|raw| raw.action = GroupAction::Edit.encode()).is_err(), "no signature");
        let twice = GroupAction::Add(vec![user(1), user(1)]).encode();
        assert!(GroupChange::new(twice, vec![7; 64].into()).is_err());
        assert!(GroupChange::new(vec![8, 99].into(), vec![7; 64].into()).is_err(), "an unknown action");
    }
}
