//! Groups: signed changes of the roster, the rows of each member's devices, and who may do what.

use chat_core::backend::{RecipientDevices, Roster, Rules};
use chat_core::contact::ContactChange;
use chat_core::group::{GroupAction, GroupChange, GroupPart, LinkProof};
use chat_core::limits::MAX_GROUP_DEVICES;
use chat_core::roster::{GroupPolicy, Role, RosterDigest};
use chat_core::{Seq, UserId};

mod channels;
mod feeds;
mod joining;

use super::*;

const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];

/// A group, and the roster that its members have.
struct Group {
    engine: Engine,
    store: Arc<dyn MessageStore>,
    users: Vec<User>,
    id: ConversationId,
    roster: Roster,
    seq: Seq,
    /// The position of each user in the group's order: number and id of its last message.
    sent: Vec<(u64, MessageId)>,
}

fn engine_with(rules: Rules) -> Engine {
    engine_of(EngineSettings { rates: Rates::OFF, rules, ..EngineSettings::default() }).0
}

fn engine_of(settings: EngineSettings) -> (Engine, Arc<dyn MessageStore>) {
    let clock = Arc::new(ManualClock::default());
    clock.set_us(START_US);
    let backends = Backends { router: Arc::new(MemoryRouter::new(4, clock.clone())), ..Backends::memory() };
    engine_on(backends, settings, clock)
}

fn engine_on(
    backends: Backends,
    settings: EngineSettings,
    clock: Arc<ManualClock>,
) -> (Engine, Arc<dyn MessageStore>) {
    let store = backends.store.clone();
    (Engine::new(backends, settings, clock), store)
}

fn devices(user: &User) -> RecipientDevices {
    RecipientDevices {
        user: user.device().user,
        list_version: user.list.list().version,
        installations: user.list.list().addresses().map(|device| device.installation).collect(),
    }
}

impl Group {
    /// Registers four users, which accept each other. Alice founds a group with Bob and Carol.
    fn founded() -> Self {
        let mut group = Self::of_strangers(&[(1, 0), (2, 0), (3, 0), (3, 1)]);
        let action = group.founding();
        assert_eq!(group.change(0, &action, &[0, 1, 2]), None);
        group
    }

    fn founding(&self) -> GroupAction {
        GroupAction::Create { members: vec![self.user(1), self.user(2)], policy: GroupPolicy::default() }
    }

    /// Registers four users. In each of these pairs the first user accepts the second one.
    fn of_strangers(accepted: &[(usize, usize)]) -> Self {
        Self::with(0, accepted)
    }

    /// As [`of_strangers`](Self::of_strangers). A group with more than `feed_devices` devices is a feed.
    fn with(feed_devices: u32, accepted: &[(usize, usize)]) -> Self {
        let rates = Rates::OFF;
        Self::on(engine_of(EngineSettings { rates, feed_devices, ..EngineSettings::default() }), accepted)
    }

    /// As [`with`](Self::with), on an engine and its store.
    fn on((engine, store): (Engine, Arc<dyn MessageStore>), accepted: &[(usize, usize)]) -> Self {
        let users: Vec<User> = USERS.iter().zip(1..).map(|(name, n)| User::new(n, name)).collect();
        users.iter().for_each(|user| user.register(&engine));
        let action = GroupAction::Create {
            members: vec![users[1].device().user, users[2].device().user],
            policy: GroupPolicy::default(),
        };
        let id = ConversationId::group(users[0].device(), message_id(0, 1), &action.encode());
        let sent = vec![(0, MessageId::NIL); users.len()];
        let group = Self { engine, store, users, id, roster: Roster::default(), seq: 0, sent };
        accepted.iter().for_each(|(owner, other)| group.decide(*owner, *other, ContactChange::Accept));
        group
    }

    fn decide(&self, owner: usize, other: usize, change: ContactChange) {
        let request = Request::ChangeContact(self.user(other), change);
        ready(self.engine.respond(self.users[owner].device(), request)).unwrap();
    }

    fn user(&self, n: usize) -> UserId {
        self.users[n].device().user
    }

    /// Returns the next publish of a user, for the roster that follows from the known one; `None` if it allows no such
    /// change. The audience names `listed` users.
    fn publish(&self, from: usize, action: Option<&GroupAction>, listed: &[usize]) -> Publish {
        let lists: Vec<RecipientDevices> = listed.iter().map(|n| devices(&self.users[*n])).collect();
        let actor = self.user(from);
        // A client that ignores the rules signs what the rules would allow an owner.
        let next = self.roster.change(self.id, actor, action, &lists, self.seq + 1).unwrap_or_else(|_| {
            let mut lenient = self.roster.clone();
            for member in lenient.members.iter_mut().filter(|member| member.user == actor) {
                member.role = Role::Owner;
            }
            lenient.change(self.id, actor, action, &lists, self.seq + 1).unwrap_or_else(|_| {
                let mut next = self.roster.clone();
                next.version += 1;
                next
            })
        });
        let (last, prev) = self.sent[from];
        let id = message_id(from, last + 1);
        let change = action.map(|action| {
            let encoded = action.encode();
            let signed = GroupChange::transcript(self.id, id, &encoded, &next.digest);
            let signature = self.users[from].key.sign(&signed).to_bytes().to_vec();
            GroupChange::new(encoded, signature.into()).unwrap()
        });
        let number = SendPosition {
            conversation: self.id,
            message_id: id,
            client_seq: last + 1,
            prev,
            incarnation: 0,
            generation: last + 1,
        };
        let audience = lists.iter().map(|list| Audience { user: list.user, list_version: list.list_version });
        let is_silent = matches!(action, Some(GroupAction::Join(_) | GroupAction::Leave));
        let text = |text: &'static str| Bytes::from_static(if is_silent { b"" } else { text.as_bytes() });
        Publish {
            number,
            first: true,
            audience: audience.collect(),
            body: text("body"),
            boxes: Vec::new(),
            excluded: Vec::new(),
            sent_at: 0,
            options: chat_core::message_options::MessageOptions::default(),
            group: Some(Box::new(GroupPart {
                roster_version: next.version,
                digest: next.digest,
                shared: text("shared"),
                control: Bytes::new(),
                change,
                lists: Vec::new(),
            })),
        }
    }

    /// Sends a publish. Returns the refusal of the gateway or of the shard.
    fn send(&mut self, from: usize, publish: Publish) -> Option<Refusal> {
        let (number, action) = (publish.number, publish.group.clone().and_then(|part| part.change));
        let mut handle = ready(self.engine.bind(self.users[from].device())).unwrap();
        let lists: Vec<RecipientDevices> = publish
            .audience
            .iter()
            .filter_map(|named| self.users.iter().find(|user| user.device().user == named.user))
            .map(devices)
            .collect();
        let refused = ready(submit(&self.engine, self.users[from].device(), publish));
        work(&self.engine);
        let events: Vec<_> = std::iter::from_fn(|| handle.events.try_recv().ok()).flatten().collect();
        let refused = refused.or_else(|| {
            events.into_iter().find_map(|event| match event {
                chat_core::delivery::SessionEvent::Refused(_, refusal) => Some(refusal),
                _ => None,
            })
        });
        if refused.is_none() {
            self.seq += 1;
            self.sent[from] = (number.client_seq, number.message_id);
            let action = action.as_ref().map(GroupChange::action);
            self.roster = self.roster.change(self.id, self.user(from), action, &lists, self.seq).unwrap();
        }
        refused
    }

    fn change(&mut self, from: usize, action: &GroupAction, listed: &[usize]) -> Option<Refusal> {
        let publish = self.publish(from, Some(action), listed);
        self.send(from, publish)
    }

    fn say(&mut self, from: usize) -> Option<Refusal> {
        let publish = self.publish(from, None, &[]);
        self.send(from, publish)
    }

    /// Returns the seqs of the group's rows in the inbox of a user's device.
    fn rows(&self, user: usize) -> Vec<chat_core::envelope::InboxRow> {
        let device = self.users[user].device().installation;
        let rows = ready(self.engine.inbox(device, InboxPosition::START, PageLimit::MAX)).unwrap().rows;
        rows.into_iter().filter(|row| row.conversation == self.id).collect()
    }

    fn seqs(&self, user: usize) -> Vec<Seq> {
        self.rows(user).iter().map(|row| row.seq).collect()
    }

    fn fetched(&self, user: usize) -> Result<Roster, Refusal> {
        self.fetched_with(user, None)
    }

    fn fetched_with(&self, user: usize, proof: Option<LinkProof>) -> Result<Roster, Refusal> {
        let request = Request::Roster(self.id, proof);
        Ok(*ready(self.engine.respond(self.users[user].device(), request))?.roster.unwrap())
    }
}

fn message_id(user: usize, n: u64) -> MessageId {
    let mut id = [user as u8 + 1; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    MessageId::from_bytes(id)
}

#[test]
fn members_get_a_row_for_each_seq_and_removed_ones_get_the_removal() {
    let mut group = Group::founded();
    assert_eq!(group.say(1), None);
    assert_eq!(group.change(0, &GroupAction::Add(vec![group.user(3)]), &[3]), None);
    let remove = GroupAction::Remove { users: vec![group.user(1)], ban: false };
    assert_eq!(group.change(0, &remove, &[]), None);
    assert_eq!(group.say(2), None);
    assert_eq!(group.seqs(0), [1, 2, 3, 4, 5]);
    assert_eq!(group.seqs(1), [1, 2, 3, 4], "Bob learns that he was removed, and nothing after that");
    assert_eq!(group.seqs(3), [3, 4, 5], "Dave has no earlier message");
    let rows = group.rows(3);
    assert!(rows[0].joined && !rows[1].joined);
    let RowContent::Message { message, sealed } = &rows[0].content else { panic!("{:?}", rows[0]) };
    assert!(sealed.is_empty(), "there was no box for the device, which gets the shared one");
    let part = message.group.as_ref().unwrap();
    assert_eq!((&part.shared[..], &part.lists[..]), (&b"shared"[..], &[devices(&group.users[3])][..]));
    assert_eq!(group.say(1), Some(Refusal::Denied), "Bob is no member any more");
}

#[test]
fn server_and_members_have_the_same_roster() {
    let mut group = Group::founded();
    let (bob, carol, dave) = (group.user(1), group.user(2), group.user(3));
    for (from, action, listed) in [
        (0, GroupAction::SetRole(bob, Role::Admin), vec![]),
        (1, GroupAction::Add(vec![dave]), vec![3]),
        (1, GroupAction::SetPolicy(GroupPolicy { add: Role::Member, ..GroupPolicy::default() }), vec![]),
        (1, GroupAction::Edit, vec![]),
        (1, GroupAction::Remove { users: vec![carol], ban: true }, vec![]),
        (0, GroupAction::Leave, vec![]),
    ] {
        assert_eq!(group.change(from, &action, &listed), None, "{action:?}");
        let fetched = group.fetched(1).unwrap();
        assert_eq!(fetched, group.roster, "{action:?}");
        assert_eq!(fetched.check(group.id), Ok(()));
    }
    assert_eq!((group.roster.version, group.roster.epoch, group.roster.key_epoch), (7, 4, 2));
    assert_eq!(
        group.roster.member(bob).map(|member| member.role),
        Some(Role::Owner),
        "an admin follows the owner"
    );
    for outsider in [0, 2] {
        assert_eq!(group.fetched(outsider), Err(Refusal::NotFound), "no member");
    }
}

#[test]
fn message_for_another_roster_is_refused_and_changes_nothing() {
    let mut group = Group::founded();
    let stale = group.publish(1, None, &[]);
    let both = group.publish(2, Some(&GroupAction::Leave), &[]);
    assert_eq!(group.change(0, &GroupAction::Edit, &[]), None);
    assert_eq!(group.send(1, stale), Some(Refusal::StaleRoster(2)));
    assert_eq!(group.send(2, both), Some(Refusal::StaleRoster(2)), "two changes of one version");
    let mut ahead = group.publish(1, None, &[]);
    ahead.group.as_mut().unwrap().roster_version += 1;
    assert_eq!(group.send(1, ahead), Some(Refusal::StaleRoster(2)));
    let mut other = group.publish(1, None, &[]);
    other.group.as_mut().unwrap().digest = RosterDigest::default();
    assert_eq!(group.send(1, other), Some(Refusal::Invalid), "another roster of the same version");
    assert_eq!(group.say(1), None);
    assert_eq!(group.seqs(1), [1, 2, 3]);
}

#[test]
fn each_role_has_its_rights_only() {
    let mut group = Group::founded();
    let [alice, bob, carol, dave] = [0, 1, 2, 3].map(|n| group.user(n));
    let admins_only = [
        (GroupAction::Add(vec![dave]), vec![3]),
        (GroupAction::Remove { users: vec![carol], ban: false }, vec![]),
        (GroupAction::Remove { users: vec![dave], ban: true }, vec![]),
        (GroupAction::SetRole(carol, Role::Admin), vec![]),
        (GroupAction::SetPolicy(GroupPolicy::default()), vec![]),
        (GroupAction::Unban(vec![dave]), vec![]),
        (GroupAction::Edit, vec![]),
    ];
    for (action, listed) in &admins_only {
        assert_eq!(group.change(1, action, listed), Some(Refusal::Denied), "a member: {action:?}");
        assert_eq!(group.change(3, action, listed), Some(Refusal::Denied), "no member: {action:?}");
    }
    assert_eq!(group.change(0, &GroupAction::SetRole(bob, Role::Admin), &[]), None);
    for action in [
        GroupAction::Remove { users: vec![alice], ban: false },
        GroupAction::SetRole(alice, Role::Member),
        GroupAction::SetRole(carol, Role::Owner),
        GroupAction::SetRole(bob, Role::Owner),
    ] {
        assert_eq!(group.change(1, &action, &[]), Some(Refusal::Denied), "an admin: {action:?}");
    }
    for (action, listed) in &admins_only[3..] {
        assert_eq!(group.change(1, action, listed), None, "an admin: {action:?}");
    }
    assert_eq!(group.change(1, &GroupAction::Remove { users: vec![dave], ban: true }, &[]), None);
    assert_eq!(group.change(1, &GroupAction::Add(vec![dave]), &[3]), Some(Refusal::Denied), "Dave is banned");
    assert_eq!(group.change(0, &GroupAction::Unban(vec![dave]), &[]), None);
    assert_eq!(group.change(1, &GroupAction::Add(vec![dave]), &[3]), None);
    let quiet = GroupPolicy { send: Role::Admin, ..GroupPolicy::default() };
    assert_eq!(group.change(0, &GroupAction::SetPolicy(quiet), &[]), None);
    assert_eq!((group.say(3), group.say(1)), (Some(Refusal::Denied), None), "only admins send");
}

#[test]
fn change_needs_the_signature_of_the_sending_device() {
    let mut group = Group::founded();
    let resigned = |group: &Group, by: usize, changed: bool| {
        let mut publish = group.publish(0, Some(&GroupAction::Edit), &[]);
        let part = publish.group.as_mut().unwrap();
        let (id, encoded) = (publish.number.message_id, GroupAction::Edit.encode());
        let digest = if changed { RosterDigest::default() } else { part.digest };
        let signed = GroupChange::transcript(group.id, id, &encoded, &digest);
        let signature = group.users[by].key.sign(&signed).to_bytes().to_vec();
        part.change = Some(GroupChange::new(encoded, signature.into()).unwrap());
        publish
    };
    let (forged, moved) = (resigned(&group, 1, false), resigned(&group, 0, true));
    assert_eq!(group.send(0, forged), Some(Refusal::Denied), "another device signed");
    assert_eq!(group.send(0, moved), Some(Refusal::Denied), "signed for another roster");
    let mut replayed = group.publish(0, Some(&GroupAction::Edit), &[]);
    assert_eq!(group.change(0, &GroupAction::Edit, &[]), None);
    let number = group.publish(0, None, &[]).number;
    replayed.number = number;
    assert_eq!(group.send(0, replayed), Some(Refusal::Denied), "signed for another message");
}

#[test]
fn group_id_belongs_to_its_founding() {
    let mut group = Group::founded();
    let action = GroupAction::Create { members: Vec::new(), policy: GroupPolicy::default() };
    assert_eq!(group.change(0, &action, &[0]), Some(Refusal::Invalid), "the id is that of another founding");
    // Dave repeats the founding of Alice with his own signature.
    let create =
        GroupAction::Create { members: vec![group.user(1), group.user(2)], policy: GroupPolicy::default() };
    assert_eq!(group.change(3, &create, &[3, 1, 2]), Some(Refusal::Invalid));
}

#[test]
fn group_is_limited_and_audience_must_fit() {
    let mut group = Group::founded();
    assert_eq!(
        group.change(0, &GroupAction::Add(vec![group.user(3)]), &[]),
        Some(Refusal::Invalid),
        "no list"
    );
    let twice = group.change(0, &GroupAction::Add(vec![group.user(1)]), &[1]);
    assert_eq!(twice, Some(Refusal::Invalid), "Bob is a member");
    let mut listed = group.publish(0, None, &[]);
    listed.audience = vec![Audience { user: group.user(3), list_version: 1 }];
    assert_eq!(group.send(0, listed), Some(Refusal::Invalid), "the list of a user that is no member");
    let mut doubled = group.publish(0, None, &[1]);
    doubled.audience.push(doubled.audience[0]);
    assert_eq!(group.send(0, doubled), Some(Refusal::Denied), "a user that is named twice");
    let mut direct = group.users[0].next(&group.users[1], 10);
    direct.group = group.publish(0, None, &[]).group;
    assert_eq!(ready(submit(&group.engine, group.users[0].device(), direct)), Some(Refusal::Invalid));
    let mut plain = group.publish(0, None, &[]);
    plain.group = None;
    assert_eq!(group.send(0, plain), Some(Refusal::Invalid), "a group needs the part of the group");

    let members: Vec<RecipientDevices> = (0..=MAX_GROUP_DEVICES as u32)
        .map(|n| {
            let mut id = [9; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            let installations = vec![InstallationId::from_bytes(id)];
            RecipientDevices { user: UserId::from_bytes(id), list_version: 1, installations }
        })
        .collect();
    let founded = |count: usize| {
        let users = members[1..count].iter().map(|list| list.user).collect();
        let action = GroupAction::Create { members: users, policy: GroupPolicy::default() };
        Roster::default().change(group.id, members[0].user, Some(&action), &members[..count], 1)
    };
    assert!(founded(MAX_GROUP_DEVICES).is_ok());
    assert_eq!(founded(MAX_GROUP_DEVICES + 1), Err(Refusal::TooLarge));
}

#[test]
fn later_device_list_joins_the_roster_with_any_message() {
    let mut group = Group::founded();
    let key = SigningKey::from_bytes(&[77; 32]);
    let before = group.users[1].list.clone();
    let tablet = DeviceEntry::new(
        DeviceId::new(2).unwrap(),
        key.verifying_key().to_bytes(),
        SuiteKey::signal(vec![77; 33]),
    );
    let put = |group: &mut Group, devices: Vec<DeviceEntry>, prekeys| {
        let list = DeviceList::next(&group.users[1].list, 1, devices);
        group.users[1].list = sign(&group.users[1].account, &list);
        let request = Request::PutList(group.users[1].list.clone(), prekeys);
        ready(group.engine.respond(group.users[1].device(), request)).unwrap();
    };
    let phone = before.list().devices[0].clone();
    put(&mut group, vec![phone.clone(), tablet], vec![first_prekeys(&key)]);
    let own = group.users[1].list.list().addresses().nth(1).unwrap();
    let mut early = group.publish(1, None, &[1]);
    early.number = SendPosition { client_seq: 1, prev: MessageId::NIL, ..early.number };
    let mut handle = ready(group.engine.bind(own)).unwrap();
    assert_eq!(ready(submit(&group.engine, own, early)), None);
    work(&group.engine);
    let events: Vec<_> = std::iter::from_fn(|| handle.events.try_recv().ok()).flatten().collect();
    let denied = |event: &chat_core::delivery::SessionEvent| {
        matches!(event, chat_core::delivery::SessionEvent::Refused(_, Refusal::Denied))
    };
    assert!(events.iter().any(denied), "the group does not have the tablet yet: {events:?}");
    let linked = group.publish(2, None, &[1]);
    assert_eq!(group.send(2, linked), None, "Carol has seen the list before the group has it");
    let tablet = group.users[1].list.list().addresses().nth(1).unwrap();
    assert_eq!(group.roster.key_epoch, 0);
    let rows =
        ready(group.engine.inbox(tablet.installation, InboxPosition::START, PageLimit::MAX)).unwrap().rows;
    assert_eq!(rows.iter().map(|row| (row.seq, row.joined)).collect::<Vec<_>>(), [(2, true)]);
    let again = group.publish(0, None, &[1]);
    assert_eq!((group.send(0, again), group.roster.version), (None, 2), "the list is there already");
    put(&mut group, vec![phone], Vec::new());
    let unlinked = group.publish(0, None, &[1]);
    assert_eq!(group.send(0, unlinked), None);
    assert_eq!(
        (group.roster.key_epoch, group.roster.epoch),
        (1, 1),
        "sender keys must change, members did not"
    );
    let mut stale = group.publish(0, None, &[1]);
    stale.audience[0].list_version = 2;
    assert_eq!(group.send(0, stale), Some(Refusal::Mismatch(vec![group.user(1)])));
}

#[test]
fn full_device_gets_a_gap_and_never_blocks_the_group() {
    let mut group = Group::founded();
    let is_gap = |row: &chat_core::envelope::InboxRow| {
        matches!(row.content, RowContent::Empty { reason: EmptyReason::Quota, .. })
    };
    // Bob reads nothing, and Carol reads everything.
    let carol = group.users[2].device().installation;
    let bob = group.users[1].device().installation;
    let last = |group: &Group, device| {
        let mut after = InboxPosition::START;
        let mut last = None;
        loop {
            let page = ready(group.engine.inbox(device, after, PageLimit::MAX)).unwrap().rows;
            let Some(row) = page.last() else { return last };
            (after, last) = (row.position(), Some(row.clone()));
        }
    };
    loop {
        let body = Bytes::from(vec![7; 64 * 1024]);
        let publish = Publish { body, ..group.publish(0, None, &[]) };
        assert_eq!(group.send(0, publish), None);
        assert!(group.seq < 2000, "about a thousand messages fill 64 MiB");
        let read = AckUpTo { conversation: group.id, seq: group.seq };
        ready(group.engine.ack(carol, 1, &[read])).unwrap();
        if group.seq.is_multiple_of(50) && last(&group, bob).is_some_and(|row| is_gap(&row)) {
            break;
        }
    }
    assert_eq!(group.say(0), None);
    assert!(last(&group, bob).is_some_and(|row| is_gap(&row) && row.seq == group.seq));
    assert!(last(&group, carol).is_some_and(|row| !is_gap(&row) && row.seq == group.seq));
}

#[test]
fn groups_are_refused_unless_they_are_enabled() {
    let engine = engine_with(Rules::OPTIONS);
    let mut group = Group::founded();
    let publish = group.publish(0, None, &[]);
    group.users.iter().for_each(|user| user.register(&engine));
    assert_eq!(ready(submit(&engine, group.users[0].device(), publish)), Some(Refusal::Unsupported));
    assert_eq!(group.say(0), None);
}

#[cfg(feature = "sim")]
#[test]
fn mutants_of_the_roster_are_killed() {
    use chat_core::mutant::Mutant;
    let group = Group::founded();
    let (bob, carol) = (group.user(1), group.user(2));
    let remove = GroupAction::Remove { users: vec![carol], ban: false };
    let by = |actor| group.roster.change(group.id, actor, Some(&remove), &[], 2);
    assert_eq!(by(bob), Err(Refusal::Denied));
    assert!(Mutant::with(Some(Mutant::RoleIgnored), || by(bob)).is_ok());
    let key_epoch = || by(group.user(0)).unwrap().key_epoch;
    assert_eq!((key_epoch(), Mutant::with(Some(Mutant::KeyEpochStays), key_epoch)), (1, 0));
}

#[test]
fn admin_deletes_messages_of_members_and_no_changes() {
    let mut group = Group::founded();
    assert_eq!(group.say(1), None);
    let written = group.rows(2).last().unwrap().clone();
    let RowContent::Message { message, .. } = &written.content else { panic!() };
    let deletion = |group: &Group, by: usize, seq: u64, message: &chat_core::envelope::Message| {
        let mut deletion = chat_core::message_options::Deletion {
            seq,
            installation: message.sender.installation,
            message_id: message.id,
            signature: Bytes::new(),
        };
        let signature = group.users[by].key.sign(&deletion.transcript(group.id));
        deletion.signature = signature.to_bytes().to_vec().into();
        let mut publish = group.publish(by, None, &[]);
        publish.options.deletion = Some(Box::new(deletion));
        publish
    };
    let by_carol = deletion(&group, 2, written.seq, message);
    assert_eq!(group.send(2, by_carol), Some(Refusal::Denied), "a member");
    let mut stale = deletion(&group, 0, written.seq, message);
    stale.group.as_mut().unwrap().roster_version -= 1;
    assert!(matches!(group.send(0, stale), Some(Refusal::StaleRoster(_))), "the role is that of one roster");
    let founding = group.rows(2)[0].clone();
    let RowContent::Message { message: change, .. } = &founding.content else { panic!() };
    let of_change = deletion(&group, 0, founding.seq, change);
    assert_eq!(group.send(0, of_change), Some(Refusal::Denied), "late readers need the change");
    let mut expiring = group.publish(0, Some(&GroupAction::Add(vec![group.user(3)])), &[3]);
    expiring.options.expires_after_ms = 1;
    assert_eq!(group.send(0, expiring), Some(Refusal::Invalid), "late readers need the change");
    let by_admin = deletion(&group, 0, written.seq, message);
    assert_eq!(group.send(0, by_admin), None);
    let erased = group.rows(2).into_iter().find(|row| row.seq == written.seq).unwrap();
    assert!(erased.is_erased());
}
