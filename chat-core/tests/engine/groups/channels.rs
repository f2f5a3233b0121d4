//! Channels: any number of devices read what a few members write.

use chat_core::delivery::SessionEvent;
use chat_core::envelope::{AckUpTo, EmptyReason};
use chat_core::group::{GroupLink, LinkSecret};
use futures_util::FutureExt as _;

use super::*;

#[cfg(feature = "sim")]
use chat_core::mutant::Mutant;

fn secret() -> LinkSecret {
    LinkSecret::from_bytes([9; 32])
}

impl Group {
    /// Alice founds a channel with a link. The others are no members.
    fn channel() -> Self {
        let mut group = Self::of_strangers(&[]);
        let action = GroupAction::Create { members: Vec::new(), policy: GroupPolicy::default() };
        group.id = ConversationId::channel(group.users[0].device(), message_id(0, 1), &action.encode());
        assert_eq!(group.change(0, &action, &[0]), None);
        let link = GroupLink { key: secret().key(), approval: false };
        assert_eq!(group.change(0, &GroupAction::SetLink(Some(link)), &[]), None);
        group
    }

    fn request(&self, user: usize, request: Request) -> Option<Refusal> {
        let refused = ready(self.engine.respond(self.users[user].device(), request)).err();
        work(&self.engine);
        refused
    }

    fn subscribe(&self, user: usize) -> Option<Refusal> {
        let proof = secret().prove(self.id, self.user(user));
        self.request(user, Request::Subscribe(self.id, proof))
    }

    fn unsubscribe(&self, user: usize) -> Option<Refusal> {
        self.request(user, Request::Unsubscribe(self.id))
    }

    fn history(&self, user: usize, range: HistoryRange) -> Result<Vec<Seq>, Refusal> {
        let request = Request::History { conversation: self.id, range, limit: 3 };
        let answer = ready(self.engine.respond(self.users[user].device(), request))?;
        Ok(answer.rows.iter().map(|row| row.seq).collect())
    }
}

#[test]
fn subscriber_reads_the_messages_that_follow() {
    let mut group = Group::channel();
    assert_eq!(group.say(0), None);
    assert_eq!(group.subscribe(1), None);
    let covers = |from| RowContent::Empty { reason: EmptyReason::NotMember, from };
    let rows = group.rows(1);
    let at = |row: &chat_core::envelope::InboxRow| (row.seq, row.joined, row.content.clone());
    let joins = [(2, true, covers(1)), (3, false, covers(3))];
    assert_eq!(rows.iter().map(at).collect::<Vec<_>>(), joins, "the device joins at the head");
    assert_eq!((group.say(0), group.say(0)), (None, None));
    assert_eq!(group.seqs(1), [2, 3, 4, 5]);
    assert_eq!(group.seqs(2), Vec::<Seq>::new(), "another user reads nothing");
    let ack = |seq| {
        let ack = AckUpTo { conversation: group.id, seq };
        ready(group.engine.ack(group.users[1].device().installation, 1, &[ack]))
    };
    assert!(ack(5).is_ok() && ack(6).is_err());
    assert_eq!(group.seqs(1), Vec::<Seq>::new());
    assert_eq!(group.say(1), Some(Refusal::Denied), "a subscriber does not write");
}

#[test]
fn post_writes_the_same_rows_for_any_number_of_subscribers() {
    let mut group = Group::channel();
    for user in 1..4 {
        assert_eq!(group.subscribe(user), None);
    }
    let waiting = |group: &Group, user: usize| {
        let device = group.users[user].device().installation;
        ready(group.store.device(device, chat_core::backend::CursorFilter::No)).unwrap().waiting_rows
    };
    let before: Vec<u64> = (1..4).map(|user| waiting(&group, user)).collect();
    assert_eq!(group.say(0), None);
    let after: Vec<u64> = (1..4).map(|user| waiting(&group, user)).collect();
    assert_eq!((&before, &after), (&vec![0, 0, 0], &vec![0, 0, 0]), "no row in the inbox of a subscriber");
    assert_eq!(group.seqs(3), [1, 2, 3]);
}

#[test]
fn only_a_user_with_the_link_subscribes() {
    let mut group = Group::channel();
    let other = LinkSecret::from_bytes([8; 32]);
    for proof in [other.prove(group.id, group.user(1)), secret().prove(group.id, group.user(2))] {
        let refused = group.request(1, Request::Subscribe(group.id, proof));
        assert_eq!(refused, Some(Refusal::NotFound));
    }
    let unknown = ConversationId::from_bytes([0x15; 17]);
    let proof = secret().prove(unknown, group.user(1));
    assert_eq!(
        group.request(1, Request::Subscribe(unknown, proof)),
        Some(Refusal::NotFound),
        "the same answer"
    );
    assert_eq!(group.history(1, HistoryRange::Before(0)), Err(Refusal::NotFound));
    assert_eq!(group.fetched(1), Err(Refusal::NotFound));
    let join = GroupAction::Join(Some(secret().prove(group.id, group.user(1))));
    assert_eq!(group.change(1, &join, &[1]), Some(Refusal::Denied), "the link makes no writers");
    assert_eq!(group.change(0, &GroupAction::SetLink(None), &[]), None);
    assert_eq!(group.subscribe(1), Some(Refusal::NotFound), "the channel has no link any more");
}

#[test]
fn history_is_read_both_ways_also_from_before_the_subscription() {
    let mut group = Group::channel();
    for _ in 0..4 {
        assert_eq!(group.say(0), None);
    }
    assert_eq!(group.subscribe(1), None);
    assert_eq!(group.history(1, HistoryRange::Before(0)), Ok(vec![6, 5, 4]));
    assert_eq!(group.history(1, HistoryRange::Before(4)), Ok(vec![3, 2, 1]));
    assert_eq!(group.history(1, HistoryRange::After(2)), Ok(vec![3, 4, 5]));
    assert_eq!(group.history(1, HistoryRange::After(6)), Ok(vec![]));
    assert_eq!(group.fetched(1), Ok(group.roster.clone()), "a subscriber knows the writers");
    assert_eq!(group.unsubscribe(1), None);
    assert_eq!(group.history(1, HistoryRange::Before(0)), Err(Refusal::NotFound));
}

#[test]
fn subscription_can_be_repeated_ended_and_begun_again() {
    let mut group = Group::channel();
    assert_eq!((group.subscribe(1), group.subscribe(1)), (None, None));
    assert_eq!(group.seqs(1), [1, 2], "once");
    assert_eq!((group.say(0), group.unsubscribe(1), group.unsubscribe(1)), (None, None, None));
    assert_eq!(group.say(0), None);
    assert_eq!(group.seqs(1), [1, 2, 3]);
    assert_eq!((group.say(0), group.subscribe(1), group.say(0)), (None, None, None));
    assert_eq!(group.seqs(1), [1, 2, 3, 4, 5, 6]);
    let covers = |from| RowContent::Empty { reason: EmptyReason::NotMember, from };
    let rows = group.rows(1);
    assert!(matches!(rows[2].content, RowContent::Message { .. }), "the device may still read row 3");
    assert_eq!((&rows[3].content, &rows[4].content), (&covers(4), &covers(5)), "the others it may not read");
    assert!(!rows[3].joined, "nothing before is skipped");
    // Back and forth at the same seq: the last request counts.
    assert_eq!((group.unsubscribe(1), group.subscribe(1)), (None, None));
    assert_eq!((group.unsubscribe(1), group.say(0)), (None, None));
    assert_eq!(group.seqs(1).last(), Some(&6));
    assert_eq!((group.subscribe(1), group.say(0)), (None, None));
    assert_eq!(group.seqs(1).last(), Some(&8));
    assert_eq!(
        (group.subscribe(0), group.unsubscribe(0)),
        (None, Some(Refusal::Denied)),
        "a member reads anyway"
    );
    assert_eq!(group.seqs(0).len(), 8);
}

#[test]
fn banned_subscriber_gets_its_removal_and_nothing_after_it() {
    let mut group = Group::channel();
    assert_eq!((group.subscribe(1), group.say(0)), (None, None));
    let ban = GroupAction::Remove { users: vec![group.user(1), group.user(2)], ban: true };
    assert_eq!(group.change(0, &ban, &[]), None);
    assert_eq!(group.say(0), None);
    assert_eq!(group.seqs(1), [1, 2, 3, 4], "the device learns that its user was removed");
    assert_eq!(group.seqs(2), Vec::<Seq>::new(), "a user that did not read learns nothing");
    assert_eq!(group.subscribe(1), Some(Refusal::NotFound));
    assert_eq!(group.history(1, HistoryRange::Before(0)), Err(Refusal::NotFound));
    assert_eq!(group.change(0, &GroupAction::Unban(vec![group.user(1)]), &[]), None);
    assert_eq!((group.subscribe(1), group.say(0)), (None, None));
    assert_eq!(group.seqs(1), [1, 2, 3, 4, 5, 6, 7]);
    // The other user had nothing of the channel when it was banned.
    assert_eq!(group.change(0, &GroupAction::Unban(vec![group.user(2)]), &[]), None);
    assert_eq!((group.subscribe(2), group.say(0)), (None, None));
    assert_eq!(group.seqs(2), [7, 8, 9]);
    assert!(group.rows(2)[0].joined);
    #[cfg(feature = "sim")]
    {
        let ban = GroupAction::Remove { users: vec![group.user(1)], ban: true };
        Mutant::with(Some(Mutant::RemovedReaderStays), || assert_eq!(group.change(0, &ban, &[]), None));
        assert_eq!(group.seqs(1).last(), Some(&10), "the test can fail: it still reads");
        assert_eq!(group.say(0), None);
        assert_eq!(group.seqs(1).last(), Some(&11));
    }
}

#[test]
fn connected_subscriber_gets_each_message_once_and_in_order() {
    let mut group = Group::channel();
    let mut session = ready(group.engine.bind(group.users[1].device())).unwrap();
    assert_eq!(group.seqs(1), Vec::<Seq>::new());
    let mut take = |group: &Group| {
        let events = std::iter::from_fn(|| session.events.recv().now_or_never().flatten()).flatten();
        let row = |event| match event {
            SessionEvent::Row(row) => (row.conversation == group.id).then_some(row.seq),
            _ => None,
        };
        events.filter_map(row).collect::<Vec<Seq>>()
    };
    assert_eq!((group.say(0), group.subscribe(1)), (None, None));
    assert_eq!(take(&group), Vec::<Seq>::new(), "the session reads its inbox");
    assert_eq!((group.say(0), group.say(0)), (None, None));
    assert_eq!(take(&group), [4, 5], "the device follows the channel from its subscription on");
    assert_eq!((group.unsubscribe(1), group.say(0)), (None, None));
    assert_eq!(take(&group), Vec::<Seq>::new());
    assert_eq!((group.subscribe(1), group.say(0)), (None, None));
    assert_eq!(take(&group), [7]);
    let ban = GroupAction::Remove { users: vec![group.user(1)], ban: true };
    assert_eq!((group.change(0, &ban, &[]), group.say(0)), (None, None));
    assert_eq!(take(&group), Vec::<Seq>::new());
    assert_eq!(group.seqs(1).last(), Some(&8), "the row that removes the user");
}

#[test]
fn shard_checks_a_subscription_again() {
    use chat_core::backend::{Command, Operation, Subscription};
    let group = Group::channel();
    let append = |user: usize, subscription: Subscription| {
        let operation = Operation::Subscribe(subscription);
        let command = Command::new(group.users[user].device(), operation, Vec::new(), Rules::CHANNELS);
        assert_eq!(ready(group.engine.append(command)), Ok(()));
        work(&group.engine);
    };
    let begins = |proof| Subscription { channel: group.id, begins: true, proof };
    append(1, begins(None));
    append(1, begins(Some(secret().prove(group.id, group.user(2)))));
    assert_eq!(group.seqs(1), Vec::<Seq>::new(), "a gateway cannot admit without the proof");
    let direct = ConversationId::direct(group.user(0), group.user(1));
    append(1, Subscription { channel: direct, begins: true, proof: None });
    append(1, begins(Some(secret().prove(group.id, group.user(1)))));
    assert_eq!(group.seqs(1), [1, 2]);
    #[cfg(feature = "sim")]
    {
        Mutant::with(Some(Mutant::SubscribeUnchecked), || append(2, begins(None)));
        assert_eq!(group.seqs(2), [1, 2], "the test can fail");
    }
}

#[test]
fn post_with_boxes_and_link_with_approval_are_refused() {
    let mut group = Group::channel();
    assert_eq!(group.subscribe(1), None);
    let mut publish = group.publish(0, None, &[]);
    let installation = group.users[1].device().installation;
    publish.boxes = vec![chat_core::envelope::DeviceBox { installation, data: Bytes::from_static(b"box") }];
    assert_eq!(group.send(0, publish), Some(Refusal::Denied));
    let link = GroupLink { key: secret().key(), approval: true };
    assert_eq!(group.change(0, &GroupAction::SetLink(Some(link)), &[]), Some(Refusal::Invalid));
}

#[test]
fn other_users_learn_nothing_of_a_reader() {
    let mut group = Group::channel();
    assert_eq!((group.subscribe(1), group.say(0)), (None, None));
    group.decide(1, 0, ContactChange::Accept);
    group.decide(0, 1, ContactChange::Accept);
    let mut writer = ready(group.engine.bind(group.users[0].device())).unwrap();
    let reader = group.users[1].device();
    let at = AckUpTo { conversation: group.id, seq: 3 };
    for read in [false, true] {
        ready(group.engine.receipt(reader, at, read));
    }
    ready(group.engine.typing(reader, group.id));
    ready(group.engine.typing(group.users[0].device(), group.id));
    assert_eq!(group.request(1, Request::Delivered(group.id)), Some(Refusal::NotFound));
    assert_eq!(writer.events.recv().now_or_never(), None);
}

#[test]
fn reader_that_becomes_a_writer_misses_nothing() {
    let mut group = Group::of_strangers(&[(1, 0), (2, 0)]);
    let founding = GroupAction::Create { members: Vec::new(), policy: GroupPolicy::default() };
    group.id = ConversationId::channel(group.users[0].device(), message_id(0, 1), &founding.encode());
    let link = GroupAction::SetLink(Some(GroupLink { key: secret().key(), approval: false }));
    assert_eq!((group.change(0, &founding, &[0]), group.change(0, &link, &[])), (None, None));
    assert_eq!((group.subscribe(1), group.say(0)), (None, None));
    // The reader has not read anything yet.
    let add = GroupAction::Add(vec![group.user(1), group.user(2)]);
    assert_eq!((group.change(0, &add, &[1, 2]), group.say(1)), (None, None));
    let rows = group.rows(1);
    assert_eq!(
        rows.iter().map(|row| (row.seq, row.joined)).collect::<Vec<_>>()[..3],
        [(1, true), (2, false), (3, false)]
    );
    assert!(matches!(rows[2].content, RowContent::Message { .. }), "the post before it was added");
    assert_eq!(group.seqs(1), [1, 2, 3, 4, 5]);
    let added: Vec<_> = group.rows(2).iter().map(|row| (row.seq, row.joined)).collect();
    assert_eq!(added, [(3, true), (4, false), (5, false)], "a user that did not read joins there");
    assert_eq!(group.change(0, &GroupAction::Remove { users: vec![group.user(2)], ban: false }, &[]), None);
    assert_eq!((group.say(0), group.subscribe(2), group.say(0)), (None, None, None));
    assert_eq!(group.seqs(2), [3, 4, 5, 6, 7, 8], "a removed writer reads again, and 7 is covered");
}

#[test]
fn number_of_subscriptions_is_limited() {
    use chat_core::limits::MAX_SUBSCRIPTIONS;
    let group = Group::channel();
    let reader = group.users[1].device().installation;
    let commit = |n: usize| {
        let mut id = [0x15; 17];
        id[1..9].copy_from_slice(&(n as u64).to_be_bytes());
        let mut commit = chat_core::backend::Commit::of(ConversationId::from_bytes(id), Default::default());
        commit.feeds = vec![chat_core::backend::FeedChange { device: reader, seq: 0, joins: true }];
        commit
    };
    let outcomes = ready(group.store.commit((1..MAX_SUBSCRIPTIONS).map(commit).collect()));
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(group.subscribe(1), None, "one less than the limit");
    assert_eq!(group.unsubscribe(1), None);
    assert!(ready(group.store.commit(vec![commit(MAX_SUBSCRIPTIONS)]))[0].is_ok());
    assert_eq!(group.subscribe(1), Some(Refusal::TooLarge));
    assert_eq!(group.subscribe(2), None, "another device");
}

#[test]
fn founder_that_clears_its_history_erases_no_post() {
    let mut group = Group::channel();
    assert_eq!((group.say(0), group.subscribe(1)), (None, None));
    let clear = Request::ClearHistory { conversation: group.id, through: 9 };
    assert_eq!(group.request(0, clear), None);
    let rows = ready(group.store.history(group.id, 0, PageLimit::MAX)).unwrap();
    assert!(rows.iter().all(|row| matches!(row.content, RowContent::Message { .. })), "{rows:?}");
}

#[test]
fn only_an_admin_makes_the_gateway_look_for_readers() {
    let mut group = Group::channel();
    assert_eq!((group.subscribe(1), group.say(0)), (None, None));
    let ban = |users: Vec<UserId>| GroupAction::Remove { users, ban: true };
    let users = (0..40).map(|n| UserId::from_bytes([n; 16])).collect();
    assert_eq!(group.change(0, &ban(users), &[]), Some(Refusal::TooLarge));
    assert_eq!(group.change(2, &ban(vec![group.user(1)]), &[]), Some(Refusal::Denied), "no member");
    assert_eq!(group.say(0), None);
    assert_eq!(group.seqs(1), [1, 2, 3, 4], "it still reads");
}

#[test]
fn ban_names_only_devices_that_read() {
    let mut group = Group::channel();
    let ban = GroupAction::Remove { users: vec![group.user(1)], ban: true };
    assert_eq!(group.change(0, &ban, &[]), None);
    let device = group.users[1].device();
    assert_eq!(
        ready(group.store.feeds(device.installation)),
        Ok(Vec::new()),
        "an outsider's record stays empty"
    );
    let cursors = ready(group.engine.respond(device, Request::Cursors)).unwrap().cursors;
    assert_eq!(cursors, []);
}

#[test]
fn device_that_subscribed_during_the_ban_of_its_user_reads_nothing() {
    let mut group = Group::channel();
    let ban = GroupAction::Remove { users: vec![group.user(1)], ban: true };
    assert_eq!((group.change(0, &ban, &[]), group.say(0)), (None, None));
    // The ban did not name the device.
    let device = group.users[1].device();
    let mut commit = chat_core::backend::Commit::of(ConversationId::own(device.user), Default::default());
    commit.conversation = group.id;
    let state =
        ready(group.store.state(group.id, chat_core::backend::SenderFilter::No, None)).unwrap().unwrap();
    commit.state.head = state.head;
    commit.feeds = vec![chat_core::backend::FeedChange { device: device.installation, seq: 2, joins: true }];
    assert!(ready(group.store.commit(vec![commit]))[0].is_ok());
    let _session = ready(group.engine.bind(device)).unwrap();
    assert_eq!(group.seqs(1), Vec::<Seq>::new());
    assert_eq!(group.history(1, HistoryRange::Before(0)), Err(Refusal::NotFound));
    assert_eq!(group.fetched(1), Err(Refusal::NotFound));
}

#[test]
fn removed_reader_gets_the_roster_while_it_has_rows_to_read() {
    let mut group = Group::channel();
    assert_eq!((group.subscribe(1), group.say(0)), (None, None));
    let ban = GroupAction::Remove { users: vec![group.user(1)], ban: true };
    assert_eq!(group.change(0, &ban, &[]), None);
    assert_eq!(group.fetched(1), Ok(group.roster.clone()), "it checks the rows with it");
    let ack = AckUpTo { conversation: group.id, seq: 4 };
    assert_eq!(ready(group.engine.ack(group.users[1].device().installation, 1, &[ack])), Ok(()));
    assert_eq!(group.fetched(1), Err(Refusal::NotFound));
}
