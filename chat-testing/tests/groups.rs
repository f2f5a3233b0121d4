//! Groups of clients on a server in the same process: each test is one promise of their documentation.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::time::Duration;

use chat_client::prelude::*;
use chat_client::{GroupAction, GroupInvitation, GroupPolicy, GroupProfile, RefusedReason, Role, Status};
use chat_core::backend::Rules;
use chat_server::Server;
use chat_testing::{TestServer, Unencrypted};

/// Time in which a receipt arrives on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

fn suite() -> Box<dyn Suite> {
    Box::new(Unencrypted::new())
}

/// Waits until a client learns of a change of a group that satisfies a condition.
async fn changed(server: &TestServer, client: &Client, wanted: impl Fn(&GroupAction) -> bool) -> Event {
    let mut events = client.events("changes").await.unwrap();
    let is_wanted = |event: &Event| matches!(event, Event::GroupChanged { action, .. } if wanted(action));
    let record = server.next_event(&mut events, is_wanted).await.unwrap();
    events.handled(&record).await.unwrap();
    record.event
}

async fn next_text(server: &TestServer, client: &Client) -> (UserId, String) {
    loop {
        let message = server.next_message(client).await.unwrap();
        if let Some(text) = message.text() {
            return (message.sender.id, text.to_owned());
        }
    }
}

/// Alice founds a group with Bob and Carol, who both know it.
async fn founded() -> (TestServer, [Client; 3], ConversationId) {
    founded_on(TestServer::start().await.unwrap()).await
}

async fn founded_on(server: TestServer) -> (TestServer, [Client; 3], ConversationId) {
    let alice = server.client("alice").await.unwrap();
    let bob = server.client("bob").await.unwrap();
    let carol = server.client("carol").await.unwrap();
    server.make_contact(&alice, &[&bob, &carol]).await.unwrap();
    let group = alice.create_group("Hiking", &[bob.user(), carol.user()]).await.unwrap();
    for member in [&bob, &carol] {
        changed(&server, member, |action| matches!(action, GroupAction::Create { .. })).await;
    }
    (server, [alice, bob, carol], group)
}

#[tokio::test]
async fn every_member_reads_every_message_once_in_one_order() {
    let (server, [alice, bob, carol], group) = founded().await;
    alice.send(group, "first").await.unwrap().stored().await.unwrap();
    bob.send(group, "second").await.unwrap().stored().await.unwrap();
    carol.send(group, "third").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &bob).await, (alice.user(), "first".into()));
    assert_eq!(next_text(&server, &bob).await, (carol.user(), "third".into()));
    assert_eq!(next_text(&server, &carol).await, (alice.user(), "first".into()));
    assert_eq!(next_text(&server, &carol).await, (bob.user(), "second".into()));
    assert_eq!(next_text(&server, &alice).await, (bob.user(), "second".into()));
    assert_eq!(next_text(&server, &alice).await, (carol.user(), "third".into()));
    let texts = |history: Vec<Message>| -> Vec<String> {
        history.iter().rev().filter_map(|message| message.text().map(str::to_owned)).collect()
    };
    let of_bob = texts(bob.history(group, None, 100).await.unwrap());
    assert_eq!(of_bob, ["first", "second", "third"]);
    assert_eq!(texts(alice.history(group, None, 100).await.unwrap()), of_bob);
}

#[tokio::test]
async fn members_of_a_feed_read_what_was_sent_while_they_were_members() {
    let builder = Server::builder().in_memory().open_registration().feed_devices(2);
    let (server, [alice, bob, carol], group) =
        founded_on(TestServer::start_with(builder).await.unwrap()).await;
    for n in 0..20 {
        alice.send(group, format!("a{n}")).await.unwrap().stored().await.unwrap();
        bob.send(group, format!("b{n}")).await.unwrap().stored().await.unwrap();
    }
    for n in 0..20 {
        assert_eq!(next_text(&server, &carol).await, (alice.user(), format!("a{n}")));
        assert_eq!(next_text(&server, &carol).await, (bob.user(), format!("b{n}")));
    }
    let remove = GroupAction::Remove { users: vec![carol.user()], ban: false };
    alice.change_group(group, remove.clone()).await.unwrap().stored().await.unwrap();
    changed(&server, &carol, |action| *action == remove).await;
    alice.send(group, "without Carol").await.unwrap().stored().await.unwrap();
    let refused = carol.send(group, "am I still here?").await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied);
    let dave = server.client("dave").await.unwrap();
    server.make_contact(&alice, &[&dave]).await.unwrap();
    let add = GroupAction::Add(vec![dave.user()]);
    alice.change_group(group, add.clone()).await.unwrap().stored().await.unwrap();
    changed(&server, &dave, |action| *action == add).await;
    alice.send(group, "with Dave").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &dave).await, (alice.user(), "with Dave".into()));
    for n in 0..20 {
        assert_eq!(next_text(&server, &bob).await, (alice.user(), format!("a{n}")));
    }
    for text in ["without Carol", "with Dave"] {
        assert_eq!(next_text(&server, &bob).await, (alice.user(), text.into()));
    }
}

#[tokio::test]
async fn group_has_its_members_roles_and_profile_on_each_device() {
    let (server, [alice, bob, carol], group) = founded().await;
    alice.send(group, "hello").await.unwrap();
    next_text(&server, &bob).await;
    let known = bob.group(group).await.unwrap();
    assert_eq!((known.name(), known.own_role), (Some("Hiking"), Some(Role::Member)));
    let role = |user| known.members.iter().find(|member| member.user.id == user).unwrap().role;
    assert_eq!(
        [role(alice.user()), role(bob.user()), role(carol.user())],
        [Role::Owner, Role::Member, Role::Member]
    );
    let profile = GroupProfile::new("Climbing").description("At the wall").picture("media:1");
    alice.edit_group(group, profile.clone()).await.unwrap().stored().await.unwrap();
    changed(&server, &bob, |action| *action == GroupAction::Edit).await;
    assert_eq!(bob.group(group).await.unwrap().profile, Some(profile.clone()));
    assert_eq!(alice.group(group).await.unwrap().profile, Some(profile));
    let listed = bob.conversations().await.unwrap();
    assert_eq!(listed.iter().find(|one| one.id == group).unwrap().name.as_deref(), Some("Climbing"));
}

/// The user that made a change, its name, the users that it names, and the new name of the group.
type Shown = (UserId, &'static str, Vec<UserId>, String);

/// Returns the changes of a group that a client shows, the oldest first.
async fn shown_changes(client: &Client, group: ConversationId) -> Vec<Shown> {
    let history = client.history(group, None, 100).await.unwrap();
    let change = |message: &Message| {
        let Content::GroupChanged { action, users, profile } = message.content() else { return None };
        let name = match **action {
            GroupAction::Create { .. } => "create",
            GroupAction::Add(_) => "add",
            GroupAction::SetRole(..) => "role",
            GroupAction::Edit => "edit",
            GroupAction::Leave => "leave",
            _ => "other",
        };
        let users = users.iter().map(|user| user.id).collect();
        let profile = profile.as_ref().map(|profile| profile.name.clone()).unwrap_or_default();
        Some((message.sender.id, name, users, profile))
    };
    history.iter().rev().filter_map(change).collect()
}

#[tokio::test]
async fn changes_are_messages_of_the_group_that_count_as_read() {
    let (server, [alice, bob, carol], group) = founded().await;
    let dave = server.client("dave").await.unwrap();
    server.make_contact(&alice, &[&dave]).await.unwrap();
    let change = |action| async { alice.change_group(group, action).await.unwrap().stored().await.unwrap() };
    change(GroupAction::SetRole(bob.user(), Role::Admin)).await;
    change(GroupAction::Add(vec![dave.user()])).await;
    alice.edit_group(group, GroupProfile::new("Climbing")).await.unwrap().stored().await.unwrap();
    carol.change_group(group, GroupAction::Leave).await.unwrap().stored().await.unwrap();
    for client in [&alice, &bob, &dave] {
        changed(&server, client, |action| *action == GroupAction::Leave).await;
    }
    let line = |user: &Client, name, users: &[&Client], profile: &str| -> Shown {
        (user.user(), name, users.iter().map(|one| one.user()).collect(), profile.to_owned())
    };
    let all = [
        line(&alice, "create", &[&bob, &carol], "Hiking"),
        line(&alice, "role", &[&bob], ""),
        line(&alice, "add", &[&dave], ""),
        line(&alice, "edit", &[], "Climbing"),
        line(&carol, "leave", &[], ""),
    ];
    assert_eq!(shown_changes(&alice, group).await, all);
    let at_dave = shown_changes(&dave, group).await;
    assert_eq!(at_dave[0], line(&alice, "add", &[&dave], "Hiking"), "a new member learns the profile");
    assert_eq!(at_dave[1..], all[3..]);
    for client in [&bob, &dave] {
        let listed = client.conversations().await.unwrap();
        let listed = listed.iter().find(|one| one.id == group).unwrap();
        assert_eq!(listed.unread, 0);
        let last = listed.last_message.as_ref().unwrap();
        let denied = client.react(last, "👍").await.unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::NotFound, "a change is no message to answer");
    }
    let mut events = bob.events_after(Some(0));
    let mut names = Vec::new();
    while names.last().is_none_or(|name| *name != "leave") {
        match events.next().await.unwrap().unwrap().event {
            Event::Message(message) if message.conversation == group => match message.content() {
                Content::GroupChanged { profile: Some(_), .. } => names.push("profile"),
                content => panic!("{content:?}"),
            },
            Event::GroupChanged { action: GroupAction::Leave, .. } => names.push("leave"),
            Event::GroupChanged { .. } => names.push("changed"),
            _ => {}
        }
    }
    let wanted = ["changed", "profile", "changed", "changed", "changed", "profile", "leave"];
    assert_eq!(names, wanted, "each change has one event, and each profile another one");
    bob.clear_history(group).await.unwrap();
    assert_eq!(shown_changes(&bob, group).await, []);
}

#[tokio::test]
async fn new_member_reads_later_messages_and_no_earlier_one() {
    let (server, [alice, bob, _carol], group) = founded().await;
    alice.send(group, "before").await.unwrap().stored().await.unwrap();
    let dave = server.client("dave").await.unwrap();
    server.make_contact(&alice, &[&dave]).await.unwrap();
    let add = GroupAction::Add(vec![dave.user()]);
    alice.change_group(group, add.clone()).await.unwrap().stored().await.unwrap();
    changed(&server, &dave, |action| *action == add).await;
    bob.send(group, "after").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &dave).await, (bob.user(), "after".into()));
    assert_eq!(dave.group(group).await.unwrap().name(), Some("Hiking"));
    let history = dave.history(group, None, 100).await.unwrap();
    assert!(history.iter().all(|message| message.text() != Some("before")));
    dave.send(group, "thanks").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &alice).await, (bob.user(), "after".into()));
    assert_eq!(next_text(&server, &alice).await, (dave.user(), "thanks".into()));
}

#[tokio::test]
async fn removed_member_learns_of_it_and_neither_reads_nor_sends() {
    let (server, [alice, bob, carol], group) = founded().await;
    alice.send(group, "hello").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &carol).await.1, "hello");
    let remove = GroupAction::Remove { users: vec![carol.user()], ban: true };
    alice.change_group(group, remove.clone()).await.unwrap().stored().await.unwrap();
    let Event::GroupChanged { user, .. } = changed(&server, &carol, |action| *action == remove).await else {
        panic!("another event");
    };
    assert_eq!(user.id, alice.user());
    assert_eq!(carol.group(group).await.unwrap().own_role, None);
    let refused = carol.send(group, "am I still here?").await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied);
    alice.send(group, "without Carol").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &bob).await.1, "hello");
    assert_eq!(next_text(&server, &bob).await.1, "without Carol");
    let history = carol.history(group, None, 100).await.unwrap();
    assert!(history.iter().all(|message| message.text() != Some("without Carol")));
}

#[tokio::test]
async fn member_without_the_role_changes_nothing() {
    let (server, [alice, bob, carol], group) = founded().await;
    let remove = GroupAction::Remove { users: vec![carol.user()], ban: false };
    let ticket = bob.change_group(group, remove).await.unwrap();
    assert_eq!(ticket.stored().await.unwrap_err().kind(), ErrorKind::Denied);
    let quiet = GroupPolicy { send: Role::Admin, ..GroupPolicy::default() };
    alice.change_group(group, GroupAction::SetPolicy(quiet)).await.unwrap().stored().await.unwrap();
    changed(&server, &bob, |action| matches!(action, GroupAction::SetPolicy(_))).await;
    assert_eq!(bob.send(group, "psst").await.unwrap().stored().await.unwrap_err().kind(), ErrorKind::Denied);
    alice.change_group(group, GroupAction::SetRole(bob.user(), Role::Admin)).await.unwrap();
    changed(&server, &bob, |action| matches!(action, GroupAction::SetRole(..))).await;
    bob.send(group, "now").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &carol).await, (bob.user(), "now".into()));
}

#[tokio::test]
async fn further_devices_join_the_groups_of_their_user() {
    let (server, [alice, bob, _carol], group) = founded().await;
    alice.send(group, "before").await.unwrap().stored().await.unwrap();
    let tablet = server.linked_client(&bob, "tablet", suite()).await.unwrap();
    // Bob's first device brings the new one into the group, without a message of Bob.
    let mut joined = false;
    for _ in 0..200 {
        let ticket = alice.send(group, "after").await.unwrap();
        ticket.stored().await.unwrap();
        joined = tablet.history(group, None, 10).await.unwrap().iter().any(|one| one.text() == Some("after"));
        if joined {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(joined);
    tablet.send(group, "from the tablet").await.unwrap().stored().await.unwrap();
    loop {
        let (sender, text) = next_text(&server, &alice).await;
        if (sender, text.as_str()) == (bob.user(), "from the tablet") {
            break;
        }
    }
    let history = tablet.history(group, None, 300).await.unwrap();
    assert!(history.iter().all(|message| message.text() != Some("before")));
}

#[tokio::test]
async fn group_survives_a_restart_of_a_client() {
    let (server, [alice, bob, carol], group) = founded().await;
    alice.send(group, "one").await.unwrap().stored().await.unwrap();
    alice.close().await;
    bob.change_group(group, GroupAction::Leave).await.unwrap().stored().await.unwrap();
    let alice = server.client("alice").await.unwrap();
    changed(&server, &alice, |action| *action == GroupAction::Leave).await;
    alice.send(group, "two").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &carol).await.1, "one");
    assert_eq!(next_text(&server, &carol).await.1, "two");
    assert_eq!(carol.group(group).await.unwrap().members.len(), 2);
}

#[tokio::test]
async fn founder_uses_the_group_before_the_server_has_it() {
    let server = TestServer::start().await.unwrap();
    let alice = server.client("alice").await.unwrap();
    let bob = server.client("bob").await.unwrap();
    server.make_contact(&alice, &[&bob]).await.unwrap();
    alice.close().await;
    let (alice, network) = server.offline_client("alice").await.unwrap();
    let group = alice.create_group("Hiking", &[bob.user()]).await.unwrap();
    let known = alice.group(group).await.unwrap();
    assert_eq!((known.name(), known.own_role, known.members.len()), (Some("Hiking"), Some(Role::Owner), 2));
    alice.edit_group(group, GroupProfile::new("Hiking").description("Every Sunday.")).await.unwrap();
    alice.set_disappearing_timer(group, Some(Duration::from_secs(3600))).await.unwrap();
    let (link, _) = alice.create_group_link(group, false).await.unwrap();
    assert_eq!(link.name(), Some("Hiking"));
    let last = alice.send(group, "hello").await.unwrap();
    network.set_up(true);
    last.stored().await.unwrap();
    assert_eq!(next_text(&server, &bob).await, (alice.user(), "hello".into()));
    let known = bob.group(group).await.unwrap();
    assert_eq!(known.profile.unwrap().description, "Every Sunday.");
    assert!(known.link.is_some());
}

#[tokio::test]
async fn server_with_groups_disabled_refuses_the_founding() {
    let builder = chat_server::Server::builder().in_memory().open_registration().rules(Rules::OPTIONS);
    let server = TestServer::start_with(builder).await.unwrap();
    let alice = server.client("alice").await.unwrap();
    let group = alice.create_group("Hiking", &[]).await.unwrap();
    let mut events = alice.events("changes").await.unwrap();
    let record =
        server.next_event(&mut events, |event| matches!(event, Event::Refused { .. })).await.unwrap();
    let Event::Refused { reason, .. } = record.event else { panic!("another event") };
    assert_eq!(reason, RefusedReason::Unsupported);
    assert_eq!(alice.group(group).await.unwrap_err().kind(), ErrorKind::NotFound);
}

/// Returns the next invitation in the direct conversations of a client.
async fn next_invitation(server: &TestServer, client: &Client) -> (UserId, GroupInvitation) {
    loop {
        let message = server.next_message(client).await.unwrap();
        if let Content::Invitation(invitation) = message.content() {
            return (message.sender.id, GroupInvitation::clone(invitation));
        }
    }
}

#[tokio::test]
async fn user_that_is_no_contact_is_invited_and_gets_nothing_until_it_joins() {
    let (server, [alice, bob, _carol], group) = founded().await;
    let dave = server.client("dave").await.unwrap();
    let add = GroupAction::Add(vec![dave.user()]);
    alice.change_group(group, add).await.unwrap().stored().await.unwrap();
    let (from, invitation) = next_invitation(&server, &dave).await;
    assert_eq!((from, invitation.group(), invitation.name()), (alice.user(), group, Some("Hiking")));
    let known = alice.group(group).await.unwrap();
    let pending: Vec<_> = known.pending.iter().map(|one| (one.user.id, one.invited_by.clone())).collect();
    assert_eq!((known.members.len(), pending.len()), (3, 1));
    assert_eq!((pending[0].0, pending[0].1.as_ref().unwrap().id), (dave.user(), alice.user()));
    bob.send(group, "before").await.unwrap().stored().await.unwrap();
    assert!(dave.conversations().await.unwrap().iter().all(|one| one.id != group));

    dave.join_group(&invitation).await.unwrap().stored().await.unwrap();
    let known = dave.group(group).await.unwrap();
    assert_eq!((known.name(), known.own_role), (Some("Hiking"), Some(Role::Member)));
    changed(&server, &bob, |action| *action == GroupAction::Join(None)).await;
    bob.send(group, "after").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &dave).await, (bob.user(), "after".into()));
    dave.send(group, "thanks").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &bob).await.1, "thanks");
    let history = dave.history(group, None, 100).await.unwrap();
    assert!(history.iter().all(|message| message.text() != Some("before")));
    assert!(dave.conversations().await.unwrap().iter().any(|one| one.id == group));
}

#[tokio::test]
async fn group_of_strangers_is_founded_with_invitations() {
    let server = TestServer::start().await.unwrap();
    let [alice, bob, carol] =
        [server.client("alice").await, server.client("bob").await, server.client("carol").await]
            .map(Result::unwrap);
    server.make_contact(&alice, &[&bob]).await.unwrap();
    let group = alice.create_group("Hiking", &[bob.user(), carol.user()]).await.unwrap();
    changed(&server, &bob, |action| matches!(action, GroupAction::Create { .. })).await;
    let (_, invitation) = next_invitation(&server, &carol).await;
    carol.change_group(group, GroupAction::Leave).await.unwrap().stored().await.unwrap();
    let refused = carol.join_group(&invitation).await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound, "she declined");
    assert_eq!(alice.group(group).await.unwrap().pending.len(), 0);
    assert!(carol.conversations().await.unwrap().iter().all(|one| one.id != group), "it is not listed");
    let bad = GroupInvitation::new(ConversationId::from_bytes([0x14; 17]), None, None).unwrap();
    let refused = carol.join_group(&bad).await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound, "there is no such group");
}

#[tokio::test]
async fn invitation_that_is_taken_back_lets_nobody_in() {
    let (server, [alice, _bob, carol], group) = founded().await;
    let dave = server.client("dave").await.unwrap();
    let invite = GroupAction::Invite(vec![dave.user()]);
    alice.change_group(group, invite.clone()).await.unwrap().stored().await.unwrap();
    let (_, invitation) = next_invitation(&server, &dave).await;
    let refused = carol.change_group(group, invite).await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied, "a member invites no user by default");
    let remove = GroupAction::Remove { users: vec![dave.user()], ban: false };
    alice.change_group(group, remove).await.unwrap().stored().await.unwrap();
    let refused = dave.join_group(&invitation).await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn link_lets_users_join_until_it_is_replaced() {
    let (server, [alice, bob, _carol], group) = founded().await;
    let [dave, erin] = [server.client("dave").await, server.client("erin").await].map(Result::unwrap);
    let denied = bob.create_group_link(group, false).await.unwrap().1.stored().await;
    assert_eq!(denied.unwrap_err().kind(), ErrorKind::Denied, "Bob is no admin");
    let (link, ticket) = alice.create_group_link(group, false).await.unwrap();
    ticket.stored().await.unwrap();
    let url = link.to_url("https://chat.example.org/join");
    dave.join_group(&url.parse().unwrap()).await.unwrap().stored().await.unwrap();
    let known = dave.group(group).await.unwrap();
    assert_eq!((known.name(), known.members.len()), (Some("Hiking"), 4));
    assert_eq!(known.link.unwrap().invitation.as_ref(), Some(&link), "a member can pass it on");
    changed(&server, &bob, |action| matches!(action, GroupAction::Join(Some(_)))).await;
    assert_eq!(bob.group(group).await.unwrap().link.unwrap().invitation, Some(link.clone()));
    bob.send(group, "welcome").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &dave).await.1, "welcome");

    let (closed, ticket) = alice.create_group_link(group, true).await.unwrap();
    ticket.stored().await.unwrap();
    let refused = erin.join_group(&link).await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound, "the link was replaced");
    erin.join_group(&closed).await.unwrap().stored().await.unwrap();
    assert_eq!(erin.group(group).await.unwrap().own_role, None);
    let refused = erin.send(group, "let me in").await.unwrap().stored().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied);
    changed(&server, &alice, |action| matches!(action, GroupAction::Join(Some(_)))).await;
    changed(&server, &alice, |action| matches!(action, GroupAction::Join(Some(_)))).await;
    let pending = alice.group(group).await.unwrap().pending;
    assert_eq!((pending.len(), pending[0].user.id, &pending[0].invited_by), (1, erin.user(), &None));
    let add = GroupAction::Add(vec![erin.user()]);
    alice.change_group(group, add.clone()).await.unwrap().stored().await.unwrap();
    changed(&server, &erin, |action| *action == add).await;
    assert_eq!(erin.group(group).await.unwrap().members.len(), 5);
    bob.send(group, "welcome, Erin").await.unwrap().stored().await.unwrap();
    assert_eq!(next_text(&server, &erin).await.1, "welcome, Erin");
}

#[tokio::test]
async fn user_leaves_a_group_to_which_a_blocked_user_added_it() {
    let (server, [alice, bob, carol], group) = founded().await;
    let dave = server.client("dave").await.unwrap();
    server.make_contact(&alice, &[&dave]).await.unwrap();
    dave.block(alice.user()).await.unwrap();
    let add = GroupAction::Add(vec![dave.user()]);
    alice.change_group(group, add).await.unwrap().stored().await.unwrap();
    changed(&server, &carol, |action| *action == GroupAction::Leave).await;
    assert_eq!(bob.group(group).await.unwrap().members.len(), 3);
}

#[tokio::test]
async fn sender_learns_how_many_members_have_and_read_a_message() {
    let (server, [alice, bob, carol], group) = founded().await;
    let ticket = alice.send(group, "hello").await.unwrap();
    let position = ticket.stored().await.unwrap();
    let delivered = tokio::time::timeout(LIMIT, ticket.delivered()).await.unwrap().unwrap();
    assert_eq!((delivered.reached, delivered.of), (2, 2));
    next_text(&server, &bob).await;
    bob.read(group, position.seq).await.unwrap();
    let mut events = alice.events("receipts").await.unwrap();
    let is_read = |event: &Event| {
        matches!(event, Event::GroupReceipt { user, read_seq, .. }
            if user.id == bob.user() && *read_seq >= position.seq)
    };
    loop {
        let Status::Stored { read, .. } = ticket.status().await.unwrap() else { panic!("stored") };
        if read.reached == 1 {
            break;
        }
        server.next_event(&mut events, is_read).await.unwrap();
    }
    let receipts = alice.receipts(position).await.unwrap();
    let of = |user| receipts.iter().find(|one| one.user.id == user).map(|one| (one.delivered, one.read));
    assert_eq!(
        (receipts.len(), of(bob.user()), of(carol.user())),
        (2, Some((true, true)), Some((true, false)))
    );
    carol.read(group, position.seq).await.unwrap();
    let read = tokio::time::timeout(LIMIT, ticket.read()).await.unwrap().unwrap();
    assert_eq!((read.reached, read.of), (2, 2));
}

#[tokio::test]
async fn typing_in_a_group_is_shown_to_members_that_look_at_it() {
    let (server, [alice, bob, carol], group) = founded().await;
    bob.open_conversation(Some(group)).await.unwrap();
    let mut of_bob = bob.events("typing").await.unwrap();
    let mut of_carol = carol.events("typing").await.unwrap();
    let is_typing = |event: &Event| matches!(event, Event::Typing { .. });
    // The first report may come before the server knows that Bob looks at the group.
    let heard = async {
        loop {
            alice.typing(group).await.unwrap();
            tokio::select! {
                found = server.next_event(&mut of_bob, is_typing) => return found.unwrap().event,
                () = tokio::time::sleep(std::time::Duration::from_secs(4)) => {}
            }
        }
    };
    let Event::Typing { conversation, user } = tokio::time::timeout(LIMIT, heard).await.unwrap() else {
        panic!("another event");
    };
    assert_eq!((conversation, user.id), (group, alice.user()));
    alice.send(group, "done").await.unwrap();
    let first = server
        .next_event(&mut of_carol, |event| is_typing(event) || matches!(event, Event::Message(_)))
        .await
        .unwrap();
    assert!(matches!(first.event, Event::Message(_)), "Carol does not look at the group: {first:?}");
}
