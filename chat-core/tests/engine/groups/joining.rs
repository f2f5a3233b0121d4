//! Invitations and links of groups, and the receipts of their members.

use chat_core::delivery::Hint;
use chat_core::envelope::{AckUpTo, EmptyReason};
use chat_core::group::{GroupLink, LinkSecret};
use chat_core::wire::GroupReceipt;

use super::*;

#[test]
fn user_is_added_only_by_a_contact() {
    let mut group = Group::of_strangers(&[(1, 0)]);
    let founding = group.founding();
    let (carol, dave) = (group.user(2), group.user(3));
    let refused = group.change(0, &founding, &[0, 1, 2]);
    assert_eq!(refused, Some(Refusal::NoContact(vec![carol])), "Carol does not know Alice");
    group.decide(2, 0, ContactChange::Accept);
    assert_eq!(group.change(0, &founding, &[0, 1, 2]), None);
    let add = GroupAction::Add(vec![dave]);
    assert_eq!(group.change(0, &add, &[3]), Some(Refusal::NoContact(vec![dave])));
    group.decide(3, 0, ContactChange::Accept);
    group.decide(3, 0, ContactChange::Block);
    assert_eq!(group.change(0, &add, &[3]), None, "a blocked user does not notice it");
}

#[test]
fn invited_user_gets_nothing_until_it_joins() {
    let mut group = Group::of_strangers(&[(1, 0), (2, 0)]);
    assert_eq!(group.change(0, &group.founding(), &[0, 1, 2]), None);
    let dave = group.user(3);
    assert_eq!(group.fetched(3), Err(Refusal::NotFound));
    assert_eq!(group.change(3, &GroupAction::Join(None), &[3]), Some(Refusal::Denied), "not invited");
    assert_eq!(group.change(0, &GroupAction::Invite(vec![dave]), &[]), None);
    assert_eq!(group.say(1), None);
    assert_eq!(group.seqs(3), Vec::<Seq>::new());
    assert_eq!(group.fetched(3).as_ref(), Ok(&group.roster), "an invited user sees the roster");
    assert_eq!(group.say(3), Some(Refusal::Denied));
    let leave = GroupAction::Leave;
    assert_eq!(group.change(3, &leave, &[]), None);
    assert_eq!(
        (group.fetched(3), group.change(3, &leave, &[])),
        (Err(Refusal::NotFound), Some(Refusal::Denied))
    );
    assert_eq!(group.change(0, &GroupAction::Invite(vec![dave]), &[]), None);
    assert_eq!(group.change(3, &GroupAction::Join(None), &[3]), None);
    assert_eq!(group.say(1), None);
    let rows = group.rows(3);
    // The refusal of the invitation, at 4, has a row for the device that sent it.
    assert_eq!(
        rows.iter().map(|row| (row.first_seq(), row.seq, row.joined)).collect::<Vec<_>>(),
        [(4, 4, true), (5, 5, false), (6, 6, false), (7, 7, false)]
    );
    assert!(
        matches!(rows[1].content, RowContent::Empty { reason: EmptyReason::NotMember, .. }),
        "{:?}",
        rows[1]
    );
    assert_eq!((group.say(3), group.seqs(1)), (None, (1..=8).collect()));
}

#[test]
fn link_lets_users_join_at_once_or_after_approval() {
    let mut group = Group::of_strangers(&[(1, 0)]);
    let create = GroupAction::Create { members: vec![group.user(1)], policy: GroupPolicy::default() };
    group.id = ConversationId::group(group.users[0].device(), message_id(0, 1), &create.encode());
    assert_eq!(group.change(0, &create, &[0, 1]), None);
    let secret = LinkSecret::from_bytes([8; 32]);
    let [carol, dave] = [2, 3].map(|n| secret.prove(group.id, group.user(n)));
    let set = |approval| GroupAction::SetLink(Some(GroupLink { key: secret.key(), approval }));
    assert_eq!(group.change(1, &set(false), &[]), Some(Refusal::Denied), "Bob is no admin");
    assert_eq!(group.change(0, &set(false), &[]), None);
    assert_eq!(
        group.fetched_with(2, Some(dave.clone())),
        Err(Refusal::NotFound),
        "the proof of another user"
    );
    assert_eq!(group.fetched_with(2, Some(carol.clone())).as_ref(), Ok(&group.roster));
    assert_eq!(group.change(2, &GroupAction::Join(Some(dave.clone())), &[2]), Some(Refusal::Denied));
    let mut talks = group.publish(2, Some(&GroupAction::Join(Some(carol.clone()))), &[2]);
    talks.group.as_mut().unwrap().shared = Bytes::from_static(b"spam");
    talks.body = Bytes::from_static(b"spam");
    assert_eq!(group.send(2, talks), Some(Refusal::Invalid), "content that no policy allows");
    assert_eq!(group.change(2, &GroupAction::Join(Some(carol)), &[2]), None);
    assert_eq!((group.say(2), group.seqs(2)), (None, vec![3, 4]));

    assert_eq!(group.change(0, &set(true), &[]), None);
    let mut talks = group.publish(3, Some(&GroupAction::Join(Some(dave.clone()))), &[]);
    talks.group.as_mut().unwrap().shared = Bytes::from_static(b"spam");
    talks.body = Bytes::from_static(b"spam");
    assert_eq!(group.send(3, talks), Some(Refusal::Invalid), "a request to join has no content");
    assert_eq!(group.change(3, &GroupAction::Join(Some(dave)), &[]), None);
    assert!(group.roster.asks_to_join(group.user(3)));
    assert_eq!((group.say(3), group.say(0)), (Some(Refusal::Denied), None));
    // Dave asked, so Alice adds him although he does not know her.
    assert_eq!(group.change(0, &GroupAction::Add(vec![group.user(3)]), &[3]), None);
    assert_eq!(group.say(3), None);
    let rows: Vec<_> = group.rows(3).iter().map(|row| (row.first_seq(), row.seq, row.joined)).collect();
    assert_eq!(rows, [(6, 6, true), (7, 7, false), (8, 8, false), (9, 9, false)]);
    assert_eq!(group.fetched(0).as_ref(), Ok(&group.roster));
}

#[test]
fn receipts_reach_the_named_members_and_nobody_else() {
    let mut group = Group::founded();
    assert_eq!(group.say(0), None);
    let mut sessions: Vec<_> =
        group.users.iter().map(|user| ready(group.engine.bind(user.device())).unwrap()).collect();
    let mut hints = |of: usize| -> Vec<Hint> {
        let events = std::iter::from_fn(|| sessions[of].events.try_recv().ok()).flatten();
        let hint = |event| match event {
            chat_core::delivery::SessionEvent::Hint(hint) => Some(hint),
            _ => None,
        };
        events.filter_map(hint).collect()
    };
    let (conversation, bob) = (group.id, group.user(1));
    let receipt = |group: &Group, from: usize, to: &[usize]| {
        let to = to.iter().map(|n| group.user(*n)).collect();
        let receipt = GroupReceipt { conversation, delivered: 2, read: 1, to };
        ready(group.engine.group_receipt(group.users[from].device(), receipt));
    };
    receipt(&group, 1, &[0, 1, 3]);
    let expected = Hint::Receipt { conversation, user: bob, delivered: 2, read: 1 };
    assert_eq!(hints(0), [expected]);
    assert_eq!((hints(1), hints(2), hints(3)), (vec![], vec![], vec![]), "Dave is no member");
    receipt(&group, 3, &[0]);
    assert_eq!(hints(0), [], "Dave has nothing to report");

    // An ack reaches no other member, and a read position only the own devices.
    let at = AckUpTo { conversation, seq: 2 };
    ready(group.engine.ack(group.users[1].device().installation, 1, &[at])).unwrap();
    ready(group.engine.receipt(group.users[1].device(), at, false));
    ready(group.engine.receipt(group.users[1].device(), at, true));
    assert_eq!((hints(0), hints(2)), (vec![], vec![]));

    let progress = |group: &Group| {
        let request = Request::Delivered(conversation);
        ready(group.engine.respond(group.users[0].device(), request)).unwrap().progress
    };
    let sorted = |mut progress: Vec<(UserId, Seq)>| {
        progress.sort_unstable();
        progress
    };
    assert_eq!(sorted(progress(&group)), sorted(vec![(bob, 2), (group.user(2), 0)]));
    let asked = Hint::ReadRequested(conversation, Some(group.user(0)));
    assert_eq!((hints(1), hints(2), hints(3)), (vec![asked.clone()], vec![asked], vec![]));
    let outsider = ready(group.engine.respond(group.users[3].device(), Request::Delivered(conversation)));
    assert_eq!(outsider, Err(Refusal::NotFound));

    group.decide(1, 0, ContactChange::Block);
    hints(1);
    receipt(&group, 1, &[0, 2]);
    assert_eq!((hints(0).len(), hints(2).len()), (0, 1), "Bob blocked Alice");
    assert_eq!(progress(&group), [(group.user(2), 0)]);
}
