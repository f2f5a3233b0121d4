use super::*;

fn user(n: u8) -> UserId {
    UserId::from_bytes([n; 16])
}

fn list(n: u8, list_version: u64, devices: &[u8]) -> RecipientDevices {
    let installations = devices.iter().map(|one| InstallationId::from_bytes([*one; 16])).collect();
    RecipientDevices { user: user(n), list_version, installations }
}

fn conversation() -> ConversationId {
    ConversationId::from_bytes([0x14; 17])
}

/// User 1 founds a group with users 2 and 3.
fn founded() -> Roster {
    let action = GroupAction::Create { members: vec![user(2), user(3)], policy: GroupPolicy::default() };
    let lists = [list(1, 1, &[1]), list(2, 1, &[2, 12]), list(3, 1, &[3])];
    Roster::default().change(conversation(), user(1), Some(&action), &lists, 1).unwrap()
}

fn after(roster: &Roster, seq: Seq, action: &GroupAction, lists: &[RecipientDevices]) -> Roster {
    roster.change(conversation(), user(1), Some(action), lists, seq).unwrap()
}

#[test]
fn digest_covers_every_part() {
    let roster = founded();
    let changes: [fn(&mut Roster); 17] = [
        |_| (),
        |roster| roster.version += 1,
        |roster| roster.epoch += 1,
        |roster| roster.key_epoch += 1,
        |roster| roster.policy.send = Role::Admin,
        |roster| roster.policy.add = Role::Owner,
        |roster| roster.policy.edit = Role::Owner,
        |roster| roster.members[1].role = Role::Admin,
        |roster| roster.members[1].list_version += 1,
        |roster| roster.members[1].installations[0] = InstallationId::from_bytes([7; 16]),
        |roster| roster.members[2].user = user(4),
        |roster| roster.banned.push(user(9)),
        |roster| roster.pending.push(PendingMember { user: user(9), invited_by: None }),
        |roster| roster.pending.push(PendingMember { user: user(9), invited_by: Some(user(1)) }),
        |roster| roster.link = Some(GroupLink { key: [9; 32], approval: false }),
        |roster| roster.link = Some(GroupLink { key: [9; 32], approval: true }),
        |roster| roster.previous = roster.digest,
    ];
    let digests = changes.iter().map(|change| {
        let mut changed = roster.clone();
        change(&mut changed);
        *changed.compute_digest(conversation()).as_bytes()
    });
    let mut digests: Vec<[u8; 32]> = digests.collect();
    digests.push(*roster.compute_digest(ConversationId::from_bytes([0x15; 17])).as_bytes());
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), changes.len() + 1);
    let mut turned = roster.clone();
    turned.members[1].installations.reverse();
    assert_eq!(turned.compute_digest(conversation()), roster.digest, "devices have no order");
}

#[test]
fn digest_covers_the_versions_before() {
    let policy = |send| GroupAction::SetPolicy(GroupPolicy { send, ..GroupPolicy::default() });
    let (roster, last) = (founded(), policy(Role::Member));
    let [one, other] =
        [Role::Admin, Role::Owner].map(|first| after(&after(&roster, 2, &policy(first), &[]), 3, &last, &[]));
    assert_eq!((one.version, &one.members, one.policy), (other.version, &other.members, other.policy));
    assert_ne!(one.digest, other.digest);
    assert_eq!((one.check(conversation()), other.check(conversation())), (Ok(()), Ok(())));
    let moved = Roster { digest: other.digest, ..one };
    assert!(moved.check(conversation()).is_err());
}

#[test]
fn member_that_joined_first_follows_the_owner() {
    let remove = GroupAction::Remove { users: vec![user(2)], ban: false };
    let without = after(&founded(), 2, &remove, &[]);
    let again = after(&without, 3, &GroupAction::Add(vec![user(2)]), &[list(2, 1, &[2])]);
    let left = after(&again, 4, &GroupAction::Leave, &[]);
    let roles: Vec<_> = left.members.iter().map(|member| (member.user, member.role)).collect();
    assert_eq!(roles, [(user(2), Role::Member), (user(3), Role::Owner)]);
}

#[test]
fn device_lists_never_go_back() {
    let roster = founded().change(conversation(), user(3), None, &[list(2, 5, &[2])], 2).unwrap();
    assert_eq!((roster.version, roster.key_epoch), (2, 1), "a device is gone");
    let back = roster.change(conversation(), user(3), None, &[list(2, 4, &[2, 12])], 3);
    assert_eq!(back, Err(Refusal::Mismatch(vec![user(2)])));
    let same = roster.change(conversation(), user(3), None, &[list(2, 5, &[2, 12])], 3);
    assert_eq!(same, Ok(roster), "a version has one list");
}

fn try_after(
    roster: &Roster,
    actor: u8,
    action: &GroupAction,
    lists: &[RecipientDevices],
) -> Result<Roster, Refusal> {
    roster.change(conversation(), user(actor), Some(action), lists, 9)
}

#[test]
fn invited_user_joins_only_by_itself() {
    let invited = after(&founded(), 2, &GroupAction::Invite(vec![user(4), user(5)]), &[]);
    assert_eq!((invited.epoch, invited.members.len()), (founded().epoch, 3), "an invitation adds no member");
    let join = GroupAction::Join(None);
    let joined = try_after(&invited, 4, &join, &[list(4, 1, &[4])]).unwrap();
    assert!(joined.has_device(user(4), InstallationId::from_bytes([4; 16])));
    assert_eq!((joined.pending(user(4)), joined.epoch), (None, founded().epoch + 1));
    assert_eq!(try_after(&invited, 6, &join, &[list(6, 1, &[6])]), Err(Refusal::Denied), "not invited");
    assert_eq!(try_after(&invited, 4, &join, &[]), Err(Refusal::Invalid), "without its device list");
    assert_eq!(try_after(&invited, 2, &join, &[]), Err(Refusal::Invalid), "a member");
    let declined = try_after(&invited, 5, &GroupAction::Leave, &[]).unwrap();
    assert_eq!((declined.pending(user(5)), declined.members.len()), (None, 3));
    assert_eq!(try_after(&declined, 5, &join, &[list(5, 1, &[5])]), Err(Refusal::Denied));
    for ban in [false, true] {
        let remove = GroupAction::Remove { users: vec![user(4)], ban };
        let removed = try_after(&invited, 1, &remove, &[]).unwrap();
        assert_eq!(try_after(&removed, 4, &join, &[list(4, 1, &[4])]), Err(Refusal::Denied));
        assert_eq!(try_after(&removed, 1, &GroupAction::Invite(vec![user(4)]), &[]).is_ok(), !ban);
    }
    assert_eq!(try_after(&founded(), 2, &GroupAction::Invite(vec![user(4)]), &[]), Err(Refusal::Denied));
    let none = try_after(&founded(), 4, &GroupAction::Leave, &[]);
    assert_eq!(none, Err(Refusal::Denied), "a user that was not invited has nothing to decline");
}

#[test]
fn link_admits_users_with_its_secret() {
    use crate::model::group::LinkSecret;
    let secret = LinkSecret::from_bytes([3; 32]);
    let set = |approval| GroupAction::SetLink(Some(GroupLink { key: secret.key(), approval }));
    let join = |secret: &LinkSecret, n| GroupAction::Join(Some(secret.prove(conversation(), user(n))));
    let open = after(&founded(), 2, &set(false), &[]);
    let own = [list(4, 1, &[4])];
    assert_eq!(try_after(&open, 4, &join(&secret, 4), &own).unwrap().members.len(), 4);
    assert_eq!(try_after(&open, 4, &GroupAction::Join(None), &own), Err(Refusal::Denied));
    assert_eq!(
        try_after(&open, 4, &join(&secret, 5), &own),
        Err(Refusal::Denied),
        "the proof of another user"
    );
    let other = LinkSecret::from_bytes([4; 32]);
    assert_eq!(try_after(&open, 4, &join(&other, 4), &own), Err(Refusal::Denied), "another secret");
    let closed = after(&open, 3, &GroupAction::SetLink(None), &[]);
    assert_eq!(try_after(&closed, 4, &join(&secret, 4), &own), Err(Refusal::Denied));
    let banned = after(&open, 3, &GroupAction::Remove { users: vec![user(4)], ban: true }, &[]);
    assert_eq!(try_after(&banned, 4, &join(&secret, 4), &own), Err(Refusal::Denied));
    assert_eq!(try_after(&open, 2, &set(true), &[]), Err(Refusal::Denied), "a member sets no link");

    let closed = after(&founded(), 2, &set(true), &[]);
    let asked = try_after(&closed, 4, &join(&secret, 4), &[]).unwrap();
    assert!(asked.asks_to_join(user(4)) && asked.member(user(4)).is_none());
    assert_eq!(try_after(&asked, 4, &join(&secret, 4), &[]), Err(Refusal::Invalid), "it asks already");
    let mut full = closed.clone();
    let asking = |n: usize| PendingMember { user: UserId::from_bytes([n as u8; 16]), invited_by: None };
    full.pending = (0..MAX_PENDING / 2).map(|n| asking(n + 100)).collect();
    assert_eq!(try_after(&full, 4, &join(&secret, 4), &[]), Err(Refusal::TooLarge));
    assert!(try_after(&full, 1, &GroupAction::Invite(vec![user(4)]), &[]).is_ok());
    assert_eq!(try_after(&asked, 4, &GroupAction::Join(None), &own), Err(Refusal::Denied));
    let added = after(&asked, 3, &GroupAction::Add(vec![user(4)]), &own);
    assert_eq!((added.members.len(), added.pending.len()), (4, 0));
}
