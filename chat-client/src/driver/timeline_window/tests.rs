use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use chat_core::contact::Contact;
use chat_core::envelope::{InboxRow, Message, RowContent};
use chat_core::group::GroupAction;
use chat_core::replica::{Change, Draft, Opened, Recipient, Unreadable};
use chat_core::roster::{Member, Role, Roster};
use chat_core::{DeviceAddress, DeviceId, Handle, InstallationId};

use super::*;
use crate::config::Profile;
use crate::content::encode_request;
use crate::driver::ConversationWindow;
use crate::message::MessageRef;
use crate::message_change::MessageChange;
use crate::send::SendRequest;
use crate::store::open_for_test;

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
        encode_request(&request)
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
        let (content, is_readable) = (self.content(), self.random.below(5) > 0);
        if !is_readable {
            self.unreadable.push((sender, id));
        }
        self.sent.push((sender, id));
        let content = if is_readable { Ok(content) } else { Err(Unreadable::NoSession) };
        self.receives_as(self.head, sender, id, content);
    }

    fn receives(&mut self, seq: Seq, sender: DeviceAddress, content: Result<Vec<u8>, Unreadable>) {
        let id = self.id();
        self.receives_as(seq, sender, id, content);
    }

    fn receives_as(
        &mut self,
        seq: Seq,
        sender: DeviceAddress,
        id: MessageId,
        content: Result<Vec<u8>, Unreadable>,
    ) {
        let message = Message {
            id,
            sender,
            client_seq: seq,
            prev: MessageId::NIL,
            incarnation: 0,
            audience: Vec::new(),
            body: Bytes::new(),
            sent_at: self.ids * 1000,
            options: chat_core::message_options::MessageOptions::default(),
            group: None,
        };
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
        let draft = Draft { sent_at: self.ids * 1000, ..Draft::new(id, to, self.content().into()) };
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
                .collect();
            assert_eq!(one.unread, unread.len() as u64, "seed {seed}, step {number}");
        }
    }
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
        world.receives(seq, device(2), Ok(encode_request(&request)));
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
        world.receives(seq, device(2), Ok(encode_request(&SendRequest::text("text"))));
    }
    let (mut window, mut list) = (Window::new(world.conversation), ConversationWindow::default());
    window.step(&world.store, Step::Jump(Target::Newest, 50)).unwrap();
    list.follow(&world.store).unwrap();
    let steps = world.store.count_steps_for_test();
    world.receives(before + 1, device(2), Ok(encode_request(&SendRequest::text("text"))));
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
        world.receives(seq, device(2), Ok(encode_request(&SendRequest::text("text"))));
    }
    let mut window = Window::new(world.conversation);
    window.step(&world.store, Step::Jump(Target::Newest, 5)).unwrap();
    world.apply(Change::WentBack(world.conversation, 10, true));
    window.step(&world.store, Step::Follow).unwrap();
    assert!(!window.entries.is_empty() && !window.has_newer());
    world.receives(11, device(2), Ok(encode_request(&SendRequest::text("after"))));
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
        let content = encode_request(&SendRequest::text("text"));
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
