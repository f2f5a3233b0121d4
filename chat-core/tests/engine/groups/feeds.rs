//! Feeds: the messages of large groups are in history only, and each device reads them as rows of its inbox.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use chat_core::backend::{CursorFilter, Deliveries, FeedDelivery, GatewayId, NodeLink};
use chat_core::delivery::{EventBatch, SessionEvent, SessionHandle};
use chat_core::envelope::{AckUpTo, DeviceBox, InboxRow};
use chat_core::memory::{MemoryPush, NoLink};
use futures_util::FutureExt as _;
use parking_lot::Mutex;

use super::*;
use crate::commit_visibility::Later;

fn settings(gateway: u64) -> EngineSettings {
    let gateway = GatewayId(gateway);
    EngineSettings { gateway, feed_devices: 2, rates: Rates::OFF, ..EngineSettings::default() }
}

impl Group {
    /// As [`founded`](Self::founded), of three users. A group with more than two devices is a feed.
    fn feed() -> Self {
        Self::feed_on(engine_of(settings(1)))
    }

    fn feed_on(engine: (Engine, Arc<dyn MessageStore>)) -> Self {
        let mut group = Self::on(engine, &[(1, 0), (2, 0), (3, 0)]);
        let founding = group.founding();
        assert_eq!(group.change(0, &founding, &[0, 1, 2]), None);
        group
    }

    /// As [`feed`](Self::feed), on these backends with a router of its own. Returns further gateways on them, too.
    fn feed_on_gateways<const N: usize>(backends: Backends, others: [u64; N]) -> (Self, [Engine; N]) {
        let clock = Arc::new(ManualClock::default());
        clock.set_us(START_US);
        let router = Arc::new(MemoryRouter::new(4, clock.clone()));
        let backends = Backends { router, ..backends };
        let others = others.map(|gateway| Engine::new(backends.clone(), settings(gateway), clock.clone()));
        (Self::feed_on(engine_on(backends, settings(1), clock)), others)
    }

    fn device(&self, user: usize) -> InstallationId {
        self.users[user].device().installation
    }

    /// Returns the seqs of the rows that are in the inbox of a user's device, without those that it reads from history.
    fn stored(&self, user: usize) -> Vec<Seq> {
        let inbox = self.store.inbox(self.device(user), InboxPosition::START, PageLimit::MAX);
        ready(inbox).unwrap().iter().map(|row| row.seq).collect()
    }

    /// Connects a user's device, which reads its inbox.
    fn connected(&self, user: usize) -> SessionHandle {
        let session = ready(self.engine.bind(self.users[user].device())).unwrap();
        self.seqs(user);
        session
    }

    /// Appends messages of users without applying them.
    fn append(&mut self, from: &[usize]) {
        for user in from {
            let publish = self.publish(*user, None, &[]);
            let number = publish.number;
            assert_eq!(ready(submit(&self.engine, self.users[*user].device(), publish)), None);
            self.seq += 1;
            self.sent[*user] = (number.client_seq, number.message_id);
        }
    }

    fn ack(&self, user: usize, seq: Seq) -> chat_core::Result<()> {
        let ack = AckUpTo { conversation: self.id, seq };
        ready(self.engine.ack(self.device(user), 1, &[ack]))
    }
}

#[test]
fn message_of_a_feed_writes_no_inbox_rows() {
    let mut group = Group::feed();
    for from in [0, 1, 0] {
        assert_eq!(group.say(from), None);
    }
    for user in 0..3 {
        assert_eq!(group.stored(user), [1], "the message with which the group became a feed");
        assert_eq!(group.seqs(user), [1, 2, 3, 4]);
        assert_eq!(group.ack(user, 3), Ok(()));
        assert_eq!(group.stored(user), Vec::<Seq>::new());
        assert_eq!(group.seqs(user), [4], "the rest");
        assert_eq!(group.ack(user, 5).unwrap_err().kind(), chat_core::ErrorKind::Invalid, "above the head");
    }
    let own = |row: &InboxRow| matches!(row.content, RowContent::Own { client_seq: 3, .. });
    assert!(own(&group.rows(0)[0]), "a sender gets no content of its own message: {:?}", group.rows(0));
}

#[test]
fn box_of_a_feed_is_in_the_inbox_of_its_device() {
    let mut group = Group::feed();
    let mut publish = group.publish(0, None, &[]);
    publish.boxes = vec![DeviceBox { installation: group.device(1), data: Bytes::from_static(b"key") }];
    assert_eq!(group.send(0, publish), None);
    assert_eq!(group.say(2), None);
    assert_eq!((group.stored(1), group.stored(2)), (vec![1, 2], vec![1]));
    let sealed = |row: &InboxRow| match &row.content {
        RowContent::Message { sealed, .. } => sealed.clone(),
        _ => Bytes::new(),
    };
    let boxes = |user: usize| group.rows(user).iter().map(sealed).collect::<Vec<_>>();
    assert_eq!(boxes(1), ["", "key", ""]);
    assert_eq!(boxes(2), ["", "", ""]);
}

#[test]
fn device_reads_a_feed_only_while_its_user_is_a_member() {
    let mut group = Group::feed();
    assert_eq!(group.say(0), None);
    assert_eq!(group.change(0, &GroupAction::Add(vec![group.user(3)]), &[3]), None);
    assert_eq!(group.say(1), None);
    let remove = GroupAction::Remove { users: vec![group.user(1)], ban: false };
    assert_eq!(group.change(0, &remove, &[]), None);
    assert_eq!(group.say(0), None);
    assert_eq!(group.change(0, &GroupAction::Add(vec![group.user(1)]), &[1]), None);
    assert_eq!(group.say(2), None);
    assert_eq!(group.seqs(3), [3, 4, 5, 6, 7, 8], "from the message that added it on");
    assert!(group.rows(3)[0].joined);
    assert_eq!(group.seqs(1), [1, 2, 3, 4, 5, 6, 7, 8]);
    let rows = group.rows(1);
    let gap = RowContent::Empty { reason: chat_core::envelope::EmptyReason::NotMember, from: 6 };
    assert_eq!(rows[5].content, gap, "no message that was sent while it was no member");
    assert!(group.roster.members.len() == 4 && group.ack(1, 8).is_ok());
    assert_eq!(group.seqs(1), Vec::<Seq>::new());
}

#[test]
fn feed_is_read_in_pages_together_with_the_inbox() {
    let mut group = Group::feed();
    for n in 0..150 {
        assert_eq!(group.say(n % 2), None);
        if n % 50 == 0 {
            let (from, to) = group.users.split_at_mut(2);
            assert_eq!(from[0].publish(&group.engine, &to[0], 10), None);
        }
    }
    let (device, limit) = (group.device(2), PageLimit::rows(40));
    let (mut after, mut read) = (InboxPosition::START, Vec::new());
    loop {
        let page = ready(group.engine.inbox(device, after, limit)).unwrap();
        assert!(page.rows.len() <= 40);
        read.extend(page.rows.iter().map(InboxRow::position));
        if !page.has_more {
            break;
        }
        after = *read.last().unwrap();
    }
    assert!(read.is_sorted() && read.len() == 151 + 3, "{}", read.len());
    let seqs: Vec<Seq> = read.iter().filter(|at| at.conversation == group.id).map(|at| at.seq).collect();
    assert_eq!(seqs, (1..=151).collect::<Vec<_>>());
    let cursors = ready(group.engine.respond(group.users[2].device(), Request::Cursors)).unwrap().cursors;
    let tail = cursors.iter().find(|(id, _)| *id == group.id).unwrap().1.tail;
    assert_eq!(tail, 151, "a device learns that it is behind");
    let stored = ready(group.store.device(device, CursorFilter::Of(group.id))).unwrap();
    assert_eq!(stored.waiting_rows, 1 + 3, "rows of a feed take no room in an inbox");
}

/// Returns the new events of a session about messages.
fn heard(session: &mut SessionHandle) -> Vec<String> {
    let batches = std::iter::from_fn(|| session.events.try_recv().ok());
    let name = |event| match event {
        SessionEvent::Row(InboxRow { seq, content: RowContent::Own { .. }, .. }) => format!("own row {seq}"),
        SessionEvent::Row(InboxRow { seq, content: RowContent::Message { sealed, .. }, .. }) => {
            format!("row {seq}{}", if sealed.is_empty() { "" } else { " with a box" })
        }
        SessionEvent::Own(stored, _) => format!("own {}", stored.seq),
        other => format!("{other:?}"),
    };
    batches.flatten().map(name).collect()
}

#[test]
fn connected_readers_of_a_feed_get_its_rows_in_order() {
    let mut group = Group::feed();
    let [mut alice, mut bob, mut carol] = [0, 1, 2].map(|user| group.connected(user));
    group.append(&[0, 1, 1, 0]);
    let publish = group.publish(2, None, &[]);
    let boxes = vec![DeviceBox { installation: group.device(0), data: Bytes::from_static(b"key") }];
    assert_eq!(ready(submit(&group.engine, group.users[2].device(), Publish { boxes, ..publish })), None);
    work(&group.engine);
    assert_eq!(heard(&mut alice), ["own 2", "row 3", "row 4", "own 5", "row 6 with a box"]);
    assert_eq!(heard(&mut bob), ["row 2", "own 3", "own 4", "row 5", "row 6"]);
    assert_eq!(heard(&mut carol), ["row 2", "row 3", "row 4", "row 5", "own 6"]);
    assert_eq!(group.stored(1), [1], "the rows are in history only");
}

#[test]
fn readers_without_rows_of_their_own_share_the_rows_of_a_message() {
    let mut group = Group::feed();
    let mut sessions = [0, 1, 2].map(|user| group.connected(user));
    group.append(&[0, 0]);
    work(&group.engine);
    let [own, first, second] = sessions.each_mut().map(|session| session.events.try_recv().unwrap());
    assert!(matches!(own, EventBatch::Own(_)), "the sender gets the outcome and no row");
    let (EventBatch::Shared(first), EventBatch::Shared(second)) = (first, second) else {
        panic!("the readers have batches of their own");
    };
    assert!(Arc::ptr_eq(&first, &second), "encoded once");
    assert_eq!(first.iter().flat_map(|frame| frame.rows()).map(|row| row.seq).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn session_gets_the_rows_of_a_feed_only_while_its_user_reads_it() {
    let mut group = Group::feed();
    let mut bob = group.connected(1);
    let mut carol = ready(group.engine.bind(group.users[2].device())).unwrap();
    assert_eq!(group.say(0), None);
    assert_eq!(heard(&mut bob), ["row 2"]);
    assert_eq!(
        heard(&mut carol),
        Vec::<String>::new(),
        "it reads the row from its inbox, which it has not read yet"
    );
    assert_eq!(group.seqs(2), [1, 2]);
    let mut dave = ready(group.engine.bind(group.users[3].device())).unwrap();
    assert_eq!(group.change(0, &GroupAction::Add(vec![group.user(3)]), &[3]), None);
    assert_eq!(group.say(0), None);
    for session in [&mut bob, &mut carol, &mut dave] {
        assert_eq!(heard(session), ["row 3", "row 4"], "also the device that joined");
    }
    let remove = GroupAction::Remove { users: vec![group.user(1)], ban: false };
    assert_eq!(group.change(0, &remove, &[]), None);
    assert_eq!(group.say(0), None);
    assert_eq!(heard(&mut bob), ["row 5"], "its removal is the last row");
    assert_eq!(heard(&mut carol), ["row 5", "row 6"]);
    group.seqs(1);
    let mut carol_again = group.connected(2);
    assert_eq!(group.say(0), None);
    assert_eq!(heard(&mut bob), Vec::<String>::new(), "also after it read its inbox again");
    assert_eq!(heard(&mut carol).len(), 1, "the earlier session was closed");
    assert_eq!(heard(&mut carol_again), ["row 7"]);
}

#[test]
fn readers_that_return_together_share_the_end_of_a_feed() {
    let store = Arc::new(Later::new(1000));
    let backends = Backends { store: store.clone(), ..Backends::memory() };
    let (mut group, []) = Group::feed_on_gateways(backends, []);
    let reads = || store.history_reads.swap(0, Ordering::Relaxed);
    assert_eq!((group.say(0), group.say(0)), (None, None));
    let bob = group.connected(1);
    reads();
    let carol = group.connected(2);
    assert_eq!((group.seqs(1), group.seqs(2), reads()), (vec![1, 2, 3], vec![1, 2, 3], 0));
    assert_eq!(group.say(0), None);
    #[cfg(feature = "sim")]
    {
        use chat_core::mutant::Mutant;
        let stale = Mutant::with(Some(Mutant::EndOfFeedKept), || group.seqs(1));
        assert_eq!(stale, [1, 2, 3], "the end before the delivery");
    }
    assert_eq!((group.seqs(1), group.seqs(2), reads()), (vec![1, 2, 3, 4], vec![1, 2, 3, 4], 1));
    ready(group.engine.unbind(&carol));
    assert_eq!((group.seqs(2), reads()), (vec![1, 2, 3, 4], 1), "it gets no delivery of later rows");
    drop(bob);
}

#[test]
fn device_whose_inbox_is_ahead_of_the_end_of_a_feed_reads_the_end_itself() {
    let backends = Backends { node_link: Arc::new(QueuedLink::default()), ..Backends::memory() };
    let (mut group, [other]) = Group::feed_on_gateways(backends, [2]);
    let sessions = [1, 2].map(|user| ready(other.bind(group.users[user].device())).unwrap());
    let seqs = |group: &Group, user: usize| -> Vec<Seq> {
        let page = ready(other.inbox(group.device(user), InboxPosition::START, PageLimit::MAX)).unwrap();
        page.rows.iter().map(|row| row.seq).collect()
    };
    assert_eq!(seqs(&group, 1), [1]);
    // The delivery waits. Its row has a box for Carol, which her inbox has.
    let boxes = vec![DeviceBox { installation: group.device(2), data: Bytes::from_static(b"key") }];
    let publish = Publish { boxes, ..group.publish(0, None, &[]) };
    assert_eq!(group.send(0, publish), None);
    assert_eq!((seqs(&group, 2), seqs(&group, 1)), (vec![1, 2], vec![1, 2]), "the end was read again");
    drop(sessions);
}

#[test]
fn gateway_that_begins_to_follow_a_feed_during_a_commit_gets_its_rows() {
    let (link, store) = (QueuedLink::default(), Arc::new(Later::new(1000)));
    let backends = Backends { node_link: Arc::new(link.clone()), store: store.clone(), ..Backends::memory() };
    let (mut group, [other]) = Group::feed_on_gateways(backends, [2]);
    group.append(&[0]);
    store.turns.forget_permits(1000);
    let mut turns: Vec<_> = (0..4).map(|shard| Box::pin(group.engine.process_batch(shard))).collect();
    turns.retain_mut(|turn| turn.as_mut().now_or_never().is_none());
    let bob = ready(other.bind(group.users[1].device())).unwrap();
    let read = ready(other.inbox(group.device(1), InboxPosition::START, PageLimit::MAX)).unwrap();
    assert_eq!(read.rows.last().map(|row| row.seq), Some(1), "the row is not visible yet");
    store.turns.add_permits(1000);
    turns.into_iter().for_each(|turn| drop(turn.now_or_never()));
    let sent = std::mem::take(&mut *link.0.lock());
    let to_other = |(gateway, deliveries): &(GatewayId, Deliveries)| {
        *gateway == GatewayId(2) && deliveries.feeds.iter().any(|feed| feed.rows[0].seq == 2)
    };
    assert!(sent.iter().any(to_other), "{sent:?}");
    drop(bob);
}

#[test]
fn reader_with_rows_of_its_own_gets_none_of_the_shared_ones() {
    let mut group = Group::feed();
    let [mut alice, mut bob, mut carol] = [0, 1, 2].map(|user| group.connected(user));
    group.append(&[0, 1]);
    work(&group.engine);
    for session in [&mut alice, &mut bob, &mut carol] {
        assert_eq!(heard(session).len(), 2);
    }
    let rows = ready(group.store.history_after(group.id, 1, PageLimit::MAX)).unwrap();
    assert_eq!(rows.len(), 2);
    let feed = FeedDelivery { rows, named: vec![(3, group.device(2))], ..FeedDelivery::new(group.id, 1) };
    let delivery = Deliveries { sessions: Vec::new(), feeds: vec![feed] };
    assert_eq!(group.engine.deliver_local(delivery), []);
    let heard = [&mut alice, &mut bob, &mut carol].map(heard);
    assert_eq!(heard[0], ["own row 2", "row 3"], "the sender gets its row without content");
    assert_eq!(heard[1], ["row 2", "own row 3"]);
    assert_eq!(heard[2], ["Lagged"], "its box is in its inbox");
}

/// The link from a gateway to the others, with the deliveries that wait for them.
#[derive(Clone, Debug, Default)]
struct QueuedLink(Arc<Mutex<Vec<(GatewayId, Deliveries)>>>);

#[async_trait]
impl NodeLink for QueuedLink {
    fn deliver(&self, gateway: GatewayId, deliveries: Deliveries) {
        self.0.lock().push((gateway, deliveries));
    }

    async fn offer(&self, gateway: GatewayId, rendezvous: Bytes) -> chat_core::Result<Bytes> {
        NoLink.offer(gateway, rendezvous).await
    }

    async fn answer_offer(
        &self,
        gateway: GatewayId,
        rendezvous: Bytes,
        sealed: Bytes,
    ) -> chat_core::Result<()> {
        NoLink.answer_offer(gateway, rendezvous, sealed).await
    }
}

#[test]
fn other_gateway_gets_one_delivery_for_all_of_its_readers() {
    let link = QueuedLink::default();
    let backends = Backends { node_link: Arc::new(link.clone()), ..Backends::memory() };
    let (mut group, [other, third]) = Group::feed_on_gateways(backends, [2, 3]);
    let mut there = [1, 2].map(|user| {
        let session = ready(other.bind(group.users[user].device())).unwrap();
        ready(other.inbox(group.device(user), InboxPosition::START, PageLimit::MAX)).unwrap();
        session
    });
    group.append(&[0, 0]);
    work(&group.engine);
    let sent = std::mem::take(&mut *link.0.lock());
    let [(GatewayId(2), deliveries)] = &sent[..] else { panic!("{sent:?}") };
    assert!(deliveries.sessions.is_empty() && deliveries.feeds.len() == 1);
    assert_eq!(deliveries.feeds[0].rows.len(), 2);
    assert_eq!(other.deliver_local(deliveries.clone()), []);
    for session in &mut there {
        assert_eq!(heard(session), ["row 2", "row 3"]);
    }
    // A device that connects to a gateway without readers, and joins there.
    let mut dave = ready(third.bind(group.users[3].device())).unwrap();
    assert_eq!(group.change(0, &GroupAction::Add(vec![group.user(3)]), &[3]), None);
    assert_eq!(group.say(0), None);
    for (gateway, deliveries) in std::mem::take(&mut *link.0.lock()) {
        if gateway == GatewayId(3) {
            assert_eq!(third.deliver_local(deliveries), []);
        }
    }
    assert_eq!(heard(&mut dave), ["row 4", "row 5"]);
}

#[test]
fn readers_of_a_feed_without_a_connection_are_woken_outside_of_the_path_of_the_message() {
    let push = Arc::new(MemoryPush::default());
    let backends = Backends { push: push.clone(), ..Backends::memory() };
    let (mut group, []) = Group::feed_on_gateways(backends, []);
    let woken = |group: &Group, before: usize| -> Vec<InstallationId> {
        let waits = |rounds: &usize| group.engine.run_wakes().now_or_never().is_none() || *rounds > 9;
        assert!((0..).find(waits).unwrap() < 9, "it waits for the next message");
        push.woken()[before..].iter().map(|device| device.installation).collect()
    };
    woken(&group, 0);
    let before = push.woken().len();
    let bob = group.connected(1);
    assert_eq!(group.say(0), None);
    assert_eq!(push.woken().len(), before);
    assert_eq!(woken(&group, before), [group.device(2)]);
    let before = push.woken().len();
    let mut silent = group.publish(0, None, &[]);
    silent.options.urgency = chat_core::message_options::Urgency::Silent;
    assert_eq!(group.send(0, silent), None);
    assert_eq!(woken(&group, before), []);
    for (user, wanted) in [(1, vec![]), (2, vec![group.device(2)])] {
        let mut directed = group.publish(0, None, &[]);
        directed.options.wake = vec![group.user(user)];
        assert_eq!(group.send(0, directed), None);
        assert_eq!(woken(&group, before), wanted, "Bob is connected");
    }
    ready(group.engine.unbind(&bob));
    let before = push.woken().len();
    assert_eq!(group.say(0), None);
    assert_eq!(woken(&group, before).len(), 2);
}
