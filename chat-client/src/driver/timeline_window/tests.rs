use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use chat_core::contact::Contact;
use chat_core::envelope::{InboxRow, Message, RowContent};
use chat_core::group::{GroupAction, GroupPart};
use chat_core::replica::{Change, Draft, Opened, Recipient, Unreadable};
use chat_core::roster::{Member, Role, Roster, RosterDigest};
use chat_core::{DeviceAddress, DeviceId, Handle, InstallationId};

use super::*;
use crate::config::Profile;
use crate::contact::Relation;
use crate::content::{encode_group_details, encode_request};
use crate::driver::ConversationWindow;
use crate::group_profile::GroupProfile;
use crate::message::{Content, MessageRef};
use crate::message_change::MessageChange;
use crate::send::SendRequest;
use crate::store::{message_for_test, open_for_test};

/// A small generator: a failing seed fails again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) % n
    }
}

fn device(n: u8) -> DeviceAddress {
    let (user, installation) = (UserId::from_bytes([n; 16]), InstallationId::from_bytes([n; 16]));
    DeviceAddress { user, device: DeviceId::PRIMARY, installation }
}

/// The store of user 1 in a conversation with user 2, or in a group with users 2 and 3.
struct World {
    store: LocalStore,
    conversation: ConversationId,
    random: Random,
    ids: u64,
    head: Seq,
    /// The author and id of each message that is or will be stored.
    sent: Vec<(DeviceAddress, MessageId)>,
    unreadable: Vec<(DeviceAddress, MessageId)>,
    queued: Vec<MessageId>,
    failed: Vec<MessageId>,
    lost: Vec<(DeviceAddress, MessageId)>,
    roster: Roster,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open_for_test(dir.path(), &Profile::from("test")).unwrap();
        store.load(device(1)).unwrap();
        let direct = ConversationId::direct(device(1).user, device(2).user);
        let group = ConversationId::group(device(1), MessageId::from_bytes([9; 16]), b"group");
        let conversation = if seed.is_multiple_of(2) { direct } else { group };
        let mut world = Self {
            store,
            conversation,
            random: Random(seed),
            ids: 0,
            head: 0,
            sent: Vec::new(),
            unreadable: Vec::new(),
            queued: Vec::new(),
            failed: Vec::new(),
            lost: Vec::new(),
            roster: Roster::default(),
            _dir: dir,
        };
        world.apply(Change::Cursor(conversation, 0));
        if world.is_group() {
            let member = |n| Member {
                role: Role::Member,
                ..Member::new(device(n).user, 1, vec![device(n).installation])
            };
            world.roster =
                Roster { members: [1, 2, 3].map(member).to_vec(), version: 1, ..Roster::default() };
            world.apply(Change::Roster(conversation, Box::new(world.roster.clone())));
        }
        world
    }

    fn is_group(&self) -> bool {
        self.conversation.kind() == Ok(chat_core::ConversationKind::Group)
    }

    fn apply(&mut self, change: Change) {
        let changes = chat_core::replica::Changes { list: vec![change], generation: 1 };
        // Without a commit: each would wait for the disk.
        self.store.apply_for_test(changes).unwrap();
    }

    fn id(&mut self) -> MessageId {
        self.ids += 1;
        MessageId::new(self.ids, [7; 10])
    }

    fn content(&mut self) -> Vec<u8> {
        let target = self.random.below(3 + self.sent.len() as u64) as usize;
        let request = match self.sent.get(target) {
            Some((author, id)) => {
                let target = MessageRef { conversation: self.conversation, user: author.user, id: *id };
                let removed = self.random.below(2) == 0;
                let change = match self.random.below(4) {
                    0 => MessageChange::Deleted,
                    1 => MessageChange::Edited,
                    _ => MessageChange::Reacted { emoji: "👍".into(), removed },
                };
                SendRequest::change(target, change, format!("edited {}", self.ids))
            }
            None => {
                let request = SendRequest::text(format!("text {}", self.ids));
                match (self.random.below(4), self.sent.last()) {
                    (0, _) => request.mention(device(1).user),
                    (1, Some((author, id))) => {
                        let conversation = self.conversation;
                        request.reply_to(MessageRef { conversation, user: author.user, id: *id })
                    }
                    _ => request,
                }
            }
        };
        encode_request(&request, 0)
    }

    fn arrives(&mut self) {
        self.head += 1;
        let sender = match self.random.below(4) {
            // Another device of this user.
            0 => DeviceAddress { installation: InstallationId::from_bytes([8; 16]), ..device(1) },
            n if self.is_group() => device(2 + (n % 2) as u8),
            _ => device(2),
        };
        let id = self.id();
        if self.is_group() && self.random.below(4) == 0 {
            return self.changes_group(sender, id);
        }
        let (content, is_readable) = (self.content(), self.random.below(5) > 0);
        if !is_readable {
            self.unreadable.push((sender, id));
        }
        self.sent.push((sender, id));
        let content = if is_readable { Ok(content) } else { Err(Unreadable::NoSession) };
        self.receives_as(self.head, sender, id, content, None);
    }

    /// A message arrives that makes this change of the group.
    fn receives_change(
        &mut self,
        sender: DeviceAddress,
        id: MessageId,
        action: GroupAction,
        content: Result<Vec<u8>, Unreadable>,
    ) {
        self.apply(Change::GroupChanged(self.conversation, self.head, sender, id, action));
        let part = GroupPart {
            roster_version: 1,
            digest: RosterDigest::default(),
            shared: Bytes::new(),
            control: Bytes::new(),
            change: None,
            lists: Vec::new(),
        };
        self.receives_as(self.head, sender, id, content, Some(Box::new(part)));
    }

    /// A message arrives that changes the group; one in three cannot be read, and may be recovered.
    fn changes_group(&mut self, sender: DeviceAddress, id: MessageId) {
        let action = match self.random.below(3) {
            0 => GroupAction::Edit,
            1 => GroupAction::Add(vec![device(4).user]),
            _ => GroupAction::Leave,
        };
        let profile = GroupProfile::new(format!("group {}", self.ids));
        let content = match self.random.below(4) {
            0 => Ok(encode_group_details(Some(profile), None, 0)),
            1 => Ok(Vec::new()),
            2 => Ok(self.content()),
            _ => Err(Unreadable::NoSession),
        };
        if content.is_err() {
            self.unreadable.push((sender, id));
        }
        self.receives_change(sender, id, action, content);
    }

    fn receives(&mut self, seq: Seq, sender: DeviceAddress, content: Result<Vec<u8>, Unreadable>) {
        let id = self.id();
        self.receives_as(seq, sender, id, content, None);
    }

    fn receives_as(
        &mut self,
        seq: Seq,
        sender: DeviceAddress,
        id: MessageId,
        content: Result<Vec<u8>, Unreadable>,
        group: Option<Box<GroupPart>>,
    ) {
        let sent_at = self.ids * 1000;
        let message = Message { sent_at, group, ..message_for_test(id, sender, seq) };
        let conversation = self.conversation;
        let content_row = RowContent::Message { message: Arc::new(message), sealed: Bytes::new() };
        let row = InboxRow { conversation, seq, time_us: seq, joined: seq == 1, content: content_row };
        let unreadable = Opened::unreadable(Unreadable::NoSession);
        let content = content.map(Into::into);
        self.apply(Change::Received(Box::new(row), Opened { content, ..unreadable }));
    }

    fn queues(&mut self) {
        let id = self.id();
        let to = match (self.is_group(), self.random.below(2)) {
            (true, _) => Recipient::Group(self.conversation),
            (false, 0) => Recipient::User(device(2).user),
            (false, _) => Recipient::Handle(Handle::new("bob").unwrap()),
        };
        let mut draft = Draft { sent_at: self.ids * 1000, ..Draft::new(id, to, self.content().into()) };
        if self.is_group() && self.random.below(4) == 0 {
            (draft.action, draft.content) = (Some(GroupAction::Leave), Bytes::new());
        }
        self.queued.push(id);
        self.apply(Change::Queued(draft));
    }

    fn take(random: &mut Random, ids: &mut Vec<MessageId>) -> Option<MessageId> {
        (!ids.is_empty()).then(|| ids.swap_remove(random.below(ids.len() as u64) as usize))
    }

    /// One thing that happens to the store.
    fn happens(&mut self) {
        match self.random.below(20) {
            0..=5 => self.arrives(),
            6 | 7 => self.queues(),
            8 | 9 => {
                if let Some(id) = Self::take(&mut self.random, &mut self.queued) {
                    self.head += 1;
                    self.sent.push((device(1), id));
                    self.apply(Change::Stored(self.conversation, id, self.head));
                }
            }
            10 => {
                if let Some(id) = Self::take(&mut self.random, &mut self.queued) {
                    self.failed.push(id);
                    self.apply(Change::Refused(id, "too_large"));
                }
            }
            11 => {
                if let Some(id) = Self::take(&mut self.random, &mut self.failed) {
                    self.store.remove_failed(self.conversation, id).unwrap();
                }
            }
            12 => {
                if !self.unreadable.is_empty() {
                    let (sender, id) = self.unreadable.swap_remove(0);
                    let content = self.content().into();
                    self.apply(Change::Recovered(sender, self.conversation, id, content));
                }
            }
            13 | 14 => {
                let user = device(2 + self.random.below(2) as u8).user;
                let (delivered, read) = (self.random.below(self.head + 1), self.random.below(self.head + 1));
                self.apply(Change::Receipt(self.conversation, user, delivered.max(read), read));
            }
            15 => {
                let seq = self.random.below(self.head + 1) / 2;
                self.store.clear_history(self.conversation, seq).unwrap();
            }
            16 => {
                // The server goes back, and some of the lost messages return.
                let seq = self.head - self.random.below(self.head.min(4) + 1);
                self.lost.clone_from(&self.sent);
                self.apply(Change::WentBack(self.conversation, seq, self.random.0.is_multiple_of(2)));
                self.head = seq;
            }
            17 => {
                if let Some((sender, id)) = self.lost.pop() {
                    let is_archived = self
                        .store
                        .seq_of(self.conversation, sender.installation, id)
                        .unwrap()
                        .is_some_and(|seq| seq <= 0);
                    if is_archived {
                        self.head += 1;
                        self.apply(Change::Returned(self.conversation, self.head, sender.installation, id));
                    }
                }
            }
            18 if self.random.below(2) == 0 => {
                let seq = self.random.below(self.head + 1);
                self.apply(Change::Read(self.conversation, seq));
            }
            18 => {
                let contact = Contact { accepted: self.random.below(2) == 0, blocked: false };
                self.store.set_contact(device(2).user, contact).unwrap();
            }
            _ if self.is_group() && self.roster.members.len() == 3 && self.random.below(4) == 0 => {
                self.roster.members.pop();
                self.roster.version += 1;
                self.head += 1;
                self.apply(Change::Roster(self.conversation, Box::new(self.roster.clone())));
                let (id, action) = (self.id(), GroupAction::Leave);
                self.apply(Change::GroupChanged(self.conversation, self.head, device(3), id, action));
            }
            _ => self.apply(Change::Handle(Handle::new("bob").unwrap(), device(2).user)),
        }
    }

    fn step(&mut self) -> Step {
        let limit = self.random.below(6) as usize;
        match self.random.below(12) {
            0 => Step::Older(limit),
            1 => Step::Newer(limit),
            2 => {
                let seq = self.random.below(self.head + 2);
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.random.below(self.ids + 1));
                let message = self.sent.first().map(|(author, id)| MessageRef {
                    conversation: self.conversation,
                    user: author.user,
                    id: *id,
                });
                let message = message.map_or(Target::Newest, Target::Message);
                let targets = [Target::Newest, Target::Newest, Target::Seq(seq), Target::Time(time), message];
                Step::Jump(targets[self.random.below(5) as usize], limit)
            }
            _ => Step::Follow,
        }
    }
}

#[test]
fn snapshot_and_changes_are_a_fresh_query() {
    for seed in 0..100 {
        let mut world = World::new(seed);
        let (mut window, mut items) = (Window::new(world.conversation), Vec::new());
        for number in 0..80 {
            for _ in 0..world.random.below(4) {
                world.happens();
            }
            let step = world.step();
            for diff in window.step(&world.store, step).unwrap() {
                diff.apply(&mut items);
            }
            let fresh = world.store.timeline_range(world.conversation, window.from, window.to).unwrap();
            let fresh: Vec<TimelineItem> = fresh.into_iter().map(|(_, item)| item).collect();
            assert_eq!(items, fresh, "seed {seed}, step {number}: {step:?}");
        }
    }
}

#[test]
fn conversation_list_and_its_changes_are_a_fresh_query() {
    for seed in 1000..1100 {
        let mut world = World::new(seed);
        let (mut list, mut items) = (ConversationWindow::default(), Vec::new());
        for number in 0..80 {
            for _ in 0..world.random.below(4) {
                world.happens();
            }
            for diff in list.follow(&world.store).unwrap() {
                diff.apply(&mut items);
            }
            assert_eq!(items, world.store.conversations().unwrap(), "seed {seed}, step {number}");
            let Some(one) = items.first() else { continue };
            let own = device(1).user;
            let history = world.store.history(world.conversation, None, 1000).unwrap();
            let unread: Vec<_> = history
                .iter()
                .filter(|message| message.seq > one.read && !message.archived && message.sender.id != own)
                .filter(|message| !matches!(message.content(), Content::GroupChanged { .. }))
                .collect();
            assert_eq!(one.unread, unread.len() as u64, "seed {seed}, step {number}");
        }
    }
}

#[test]
fn content_of_a_change_of_the_group_changes_nothing_else() {
    let mut world = World::new(1);
    let (text, sender) = (world.id(), device(2));
    world.head = 1;
    world.receives_as(1, sender, text, Ok(encode_request(&SendRequest::text("text"), 0)), None);
    let target = MessageRef { conversation: world.conversation, user: sender.user, id: text };
    let deletion = SendRequest::change(target, MessageChange::Deleted, String::new());
    for content in [encode_request(&deletion, 0), encode_request(&SendRequest::text("swordfish"), 0)] {
        world.head += 1;
        let id = world.id();
        world.receives_change(sender, id, GroupAction::Leave, Ok(content));
    }
    let history = world.store.history(world.conversation, None, 10).unwrap();
    let is_change =
        |message: &crate::message::Message| matches!(message.content(), Content::GroupChanged { .. });
    assert_eq!(history.iter().map(is_change).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(history[2].text(), Some("text"));
    assert!(world.store.search("swordfish", None, 10).unwrap().is_empty());
    assert_eq!(world.store.conversations().unwrap()[0].unread, 1);
}

#[test]
fn refused_message_is_not_kept_if_its_deletion_waits() {
    let mut world = World::new(0);
    let to = || Recipient::User(device(2).user);
    let queue = |world: &mut World, request: &SendRequest| {
        let id = world.id();
        let content = encode_request(request, 0);
        let after = request.follows(device(1).user);
        world.apply(Change::Queued(Draft { after, ..Draft::new(id, to(), content.into()) }));
        id
    };
    let [kept, deleted] = ["kept", "deleted"].map(|text| queue(&mut world, &SendRequest::text(text)));
    let target = MessageRef { conversation: world.conversation, user: device(1).user, id: deleted };
    queue(&mut world, &SendRequest::change(target, MessageChange::Deleted, String::new()));
    let listed = &world.store.conversations().unwrap()[0];
    assert_eq!((listed.id, listed.relation), (world.conversation, Relation::Contact), "it waits");
    for id in [kept, deleted] {
        world.apply(Change::Refused(id, "too_large"));
    }
    let items = world.store.timeline_range(world.conversation, 0, None).unwrap();
    let texts: Vec<_> = items.iter().filter_map(|(_, item)| item.message.text()).collect();
    assert_eq!(texts, ["kept"]);
}

#[test]
fn mentions_and_answers_are_counted_until_they_are_read() {
    let mut world = World::new(0);
    let own = device(1).user;
    let answered = MessageRef { conversation: world.conversation, user: own, id: world.id() };
    for (seq, request) in [
        (1, SendRequest::text("plain")),
        (2, SendRequest::text("@alice").mention(own)),
        (3, SendRequest::text("yes").reply_to(answered)),
        (4, SendRequest::text("no").reply_to(MessageRef { user: device(2).user, ..answered })),
    ] {
        world.receives(seq, device(2), Ok(encode_request(&request, 0)));
    }
    let counts = |world: &World| {
        let one = world.store.conversation(world.conversation).unwrap().unwrap();
        (one.unread, one.mentions)
    };
    assert_eq!(counts(&world), (4, 2));
    world.apply(Change::Read(world.conversation, 2));
    assert_eq!(counts(&world), (2, 1));
}

/// Returns the steps of the database that a timeline and the list need for a message that arrives after others.
fn steps_for_one_message(before: u64) -> u64 {
    let mut world = World::new(0);
    for seq in 1..=before {
        world.receives(seq, device(2), Ok(encode_request(&SendRequest::text("text"), 0)));
    }
    let (mut window, mut list) = (Window::new(world.conversation), ConversationWindow::default());
    window.step(&world.store, Step::Jump(Target::Newest, 50)).unwrap();
    list.follow(&world.store).unwrap();
    let steps = world.store.count_steps_for_test();
    world.receives(before + 1, device(2), Ok(encode_request(&SendRequest::text("text"), 0)));
    assert_eq!(window.step(&world.store, Step::Follow).unwrap().len(), 1);
    assert_eq!(list.follow(&world.store).unwrap().len(), 1);
    steps.load(Ordering::Relaxed)
}

#[test]
fn cost_of_a_message_does_not_depend_on_the_length_of_its_conversation() {
    let (short, long) = (steps_for_one_message(100), steps_for_one_message(5_000));
    assert!(long <= short + short / 4, "{short} steps after 100 messages, {long} after 5,000");
}

#[test]
fn window_follows_new_messages_after_the_server_went_back_behind_it() {
    let mut world = World::new(0);
    for seq in 1..=30 {
        world.receives(seq, device(2), Ok(encode_request(&SendRequest::text("text"), 0)));
    }
    let mut window = Window::new(world.conversation);
    window.step(&world.store, Step::Jump(Target::Newest, 5)).unwrap();
    world.apply(Change::WentBack(world.conversation, 10, true));
    window.step(&world.store, Step::Follow).unwrap();
    assert!(!window.entries.is_empty() && !window.has_newer());
    world.receives(11, device(2), Ok(encode_request(&SendRequest::text("after"), 0)));
    window.step(&world.store, Step::Follow).unwrap();
    assert_eq!(window.entries.last().unwrap().place.seq, 11);
    window.step(&world.store, Step::Older(usize::MAX)).unwrap();
    assert_eq!((window.entries.len(), window.has_older()), (31, false));
}

#[test]
fn window_has_the_number_of_messages_that_was_requested() {
    let mut world = World::new(0);
    for _ in 0..30 {
        world.head += 1;
        let (id, user) = (world.id(), Recipient::User(device(2).user));
        let content = encode_request(&SendRequest::text("text"), 0);
        world.apply(Change::Queued(Draft::new(id, user, content.into())));
        world.apply(Change::Stored(world.conversation, id, world.head));
    }
    let mut window = Window::new(world.conversation);
    let seqs = |window: &mut Window, step| {
        window.step(&world.store, step).unwrap();
        let places: Vec<Seq> = window.entries.iter().map(|entry| entry.place.seq).collect();
        (places[0], *places.last().unwrap(), window.has_older(), window.has_newer())
    };
    assert_eq!(seqs(&mut window, Step::Jump(Target::Newest, 10)), (21, 30, true, false));
    assert_eq!(seqs(&mut window, Step::Older(10)), (11, 30, true, false));
    assert_eq!(seqs(&mut window, Step::Older(10)), (1, 30, false, false));
    assert_eq!(seqs(&mut window, Step::Jump(Target::Seq(15), 6)), (12, 17, true, true));
    assert_eq!(seqs(&mut window, Step::Newer(13)), (12, 30, true, false));
    assert_eq!(seqs(&mut window, Step::Jump(Target::Seq(1), 6)), (1, 3, false, true));
}
