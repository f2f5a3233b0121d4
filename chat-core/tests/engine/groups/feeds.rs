//! Feeds: the messages of large groups are in history only, and each device reads them as rows of its inbox.

use chat_core::backend::CursorFilter;
use chat_core::envelope::{AckUpTo, DeviceBox, InboxRow};

use super::*;

impl Group {
    /// As [`founded`](Self::founded), of three users. A group with more than two devices is a feed.
    fn feed() -> Self {
        let mut group = Self::with(2, &[(1, 0), (2, 0), (3, 0)]);
        let founding = group.founding();
        assert_eq!(group.change(0, &founding, &[0, 1, 2]), None);
        group
    }

    fn device(&self, user: usize) -> InstallationId {
        self.users[user].device().installation
    }

    /// Returns the seqs of the rows that are in the inbox of a user's device, without those that it reads from history.
    fn stored(&self, user: usize) -> Vec<Seq> {
        let inbox = self.store.inbox(self.device(user), InboxPosition::START, PageLimit::MAX);
        ready(inbox).unwrap().iter().map(|row| row.seq).collect()
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
