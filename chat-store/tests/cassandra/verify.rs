//! Tests of verification: its counts, and the error of each invariant, which the test violates in the tables.

use chat_core::codec::encode_row;
use chat_core::envelope::{EmptyReason, InboxRow, RowContent};
use chat_store::Verification;

use super::*;

/// A conversation with five messages, two of which the receiver acknowledged.
struct Five {
    keyspace: Keyspace,
    store: Arc<CassandraStore>,
    talk: Talk,
    commits: Vec<Commit>,
}

const HELD: Verification =
    Verification { conversations: 1, messages: 5, waiting: 8, devices: 2, accounts: 0 };

impl Five {
    async fn new(keyspace: Keyspace) -> Self {
        let store = keyspace.store().await;
        let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
        let commits: Vec<Commit> = (0..5).map(|_| talk.next(now_us())).collect();
        for one in &commits {
            commit(&store, one.clone()).await;
        }
        store.ack(device(2).installation, 1, &[AckUpTo { conversation: talk.id(), seq: 2 }]).await.unwrap();
        Self { keyspace, store, talk, commits }
    }

    async fn run(&self, cql: &str, values: impl scylla::serialize::row::SerializeRow) {
        let cql = cql.replace('@', &format!("{}.", self.keyspace.name()));
        self.keyspace.session.query_unpaged(cql, values).await.unwrap();
    }

    /// Deletes the redo data of the last commit.
    async fn forget_redo(&self) {
        self.run(
            "UPDATE @state_parts SET redo = 0x WHERE conversation = ? AND part = 0x00",
            (self.conversation(),),
        )
        .await;
    }

    async fn delete_history(&self, seq: i64) {
        let key = (self.conversation(), seq);
        self.run("DELETE FROM @history WHERE conversation = ? AND bucket = 0 AND seq = ?", key).await;
    }

    async fn put_history(&self, row: &InboxRow) {
        let values = (self.conversation(), row.seq as i64, encode_row(row));
        self.run("INSERT INTO @history (conversation, bucket, seq, row) VALUES (?, 0, ?, ?)", values).await;
    }

    fn conversation(&self) -> Vec<u8> {
        self.talk.id().as_bytes().to_vec()
    }

    fn bob() -> Vec<u8> {
        device(2).installation.as_bytes().to_vec()
    }

    async fn finds(self, what: &str) -> Self {
        let found = self.store.verify().await.expect_err(what);
        assert_eq!((found.kind(), found.what()), (ErrorKind::Corrupt, what));
        let place = std::error::Error::source(&found).unwrap().to_string();
        assert!(place.starts_with("conversation ") || place.starts_with("device "), "{place}");
        Self::new(self.keyspace).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_violated_invariant() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let five = Five::new(keyspace).await;
    assert_eq!(five.store.verify().await, Ok(HELD));

    // Redo data stands for missing rows of the last commit, because the next owner writes them.
    five.delete_history(5).await;
    assert_eq!(five.store.verify().await, Ok(HELD));
    five.forget_redo().await;
    let five = five.finds("a conversation does not end at its head").await;

    five.delete_history(3).await;
    let five = five.finds("a conversation is not dense").await;

    let third = &five.commits[2].history[0];
    five.put_history(&InboxRow { time_us: 1, ..third.clone() }).await;
    let five = five.finds("the times of a conversation do not rise").await;

    let content = five.commits[1].history[0].content.clone();
    five.put_history(&InboxRow { content, ..five.commits[2].history[0].clone() }).await;
    let five = five.finds("a message has two places").await;

    let (sender, id, _) = five.commits[2].ids[0];
    let minute = i32::from_be_bytes(id.as_bytes()[..4].try_into().unwrap());
    let key = (five.conversation(), &sender.as_bytes()[..], minute, &id.as_bytes()[..]);
    five.run("DELETE FROM @ids WHERE conversation = ? AND sender = ? AND minute = ? AND id = ?", key).await;
    let five = five.finds("an id does not refer to its message").await;

    let tail = (Five::bob(), five.conversation());
    five.run("UPDATE @cells SET tail = 3 WHERE installation = ? AND conversation = ?", tail).await;
    assert_eq!(five.store.verify().await, Ok(HELD), "the redo data holds the tail");
    five.forget_redo().await;
    let five = five.finds("an inbox row is outside of its cursor").await;

    let last = five.commits[4].history[0].time_us;
    let key = (Five::bob(), (last / (24 * 60 * MINUTE_US)) as i32, last as i64);
    five.run("DELETE FROM @inbox WHERE installation = ? AND day = ? AND time_us = ?", key).await;
    assert_eq!(five.store.verify().await, Ok(HELD), "the redo data holds the row");
    five.forget_redo().await;
    let five = five.finds("the tail of a cursor is above its inbox").await;

    let fourth = five.commits[3].history[0].time_us;
    let key = (Five::bob(), (fourth / (24 * 60 * MINUTE_US)) as i32, fourth as i64);
    five.run("DELETE FROM @inbox WHERE installation = ? AND day = ? AND time_us = ?", key).await;
    let five = five.finds("an inbox has a hole").await;

    let floor = (now_us() as i64 + 1, Five::bob());
    five.run("UPDATE @cells SET floor = ? WHERE installation = ?", floor).await;
    let five = five.finds("reads of an inbox miss a row").await;

    let fourth = five.commits[3].history[0].clone();
    let content = RowContent::Empty { reason: EmptyReason::Skip, from: 4 };
    five.put_history(&InboxRow { content, ..fourth }).await;
    let five = five.finds("an inbox row does not match history").await;
    five.keyspace.remove().await;
}

/// Rare but valid data: late rows, gaps, and a large commit with rows but no state yet.
#[tokio::test(flavor = "multi_thread")]
async fn verify_accepts_late_rows_gaps_and_partial_commits() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    for minutes in [300, 200, 100, 0] {
        let next = talk.next(now_us() - minutes * MINUTE_US);
        commit(&store, next).await;
    }
    let held = Verification { conversations: 1, messages: 4, waiting: 8, devices: 2, accounts: 0 };
    assert_eq!(store.verify().await, Ok(held), "late rows");
    store.expire(now_us() - 150 * MINUTE_US, 1000).await.unwrap();
    assert_eq!(store.verify().await, Ok(Verification { waiting: 6, ..held }), "one gap replaces two rows");
    let large = talk.several(101);
    store.make_visible(vec![large.clone()]).await.unwrap();
    assert_eq!(
        store.verify().await,
        Ok(Verification { waiting: 6, ..held }),
        "rows above the head do not count"
    );
    commit(&store, large).await;
    assert_eq!(store.verify().await, Ok(Verification { messages: 105, waiting: 208, ..held }));
    keyspace.remove().await;
}

/// A large commit stops before its state, and its log is abandoned. Its seqs will hold other messages.
#[tokio::test(flavor = "multi_thread")]
async fn uncommitted_rows_are_purged_with_their_log() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let log = |generation| LogIdentity { generation, id: [1; 16], partitions: 4, opened: false };
    store.begin_log(log(1)).await.unwrap();
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let first = talk.next(now_us());
    commit(&store, first).await;
    let before = talk.state.clone();
    let half = talk.several(101);
    store.make_visible(vec![half.clone()]).await.unwrap();
    store.begin_log(log(2)).await.unwrap();
    assert_eq!(store.state(talk.id(), SenderFilter::All, None).await.unwrap().unwrap().head.seq, 1);
    let (sender, last_id, seq) = half.ids[100];
    assert_eq!((seq, store.find(talk.id(), sender, last_id).await), (102, Ok(None)));
    // The other device first sends as many messages as the partial commit had. Then the sender retries.
    let mut other = Talk { from: device(2), to: device(1), state: before };
    other.state.head.time_us = now_us() + MINUTE_US;
    other.state.head.position.generation = 0;
    for _ in 0..101 {
        let next = other.next(now_us());
        commit(&store, next).await;
    }
    assert_eq!(store.find(talk.id(), sender, last_id).await, Ok(None), "the id is not stored");
    talk.state = other.state;
    talk.state.head.position.generation = 0;
    let mut again = talk.next(now_us());
    again.ids = vec![(sender, last_id, 103)];
    commit(&store, again.clone()).await;
    assert_eq!(store.find(talk.id(), sender, last_id).await, Ok(Some(103)));
    let bob = device(2).installation;
    let places: Vec<InboxPosition> = drain(&store, bob).await;
    assert_eq!(places.iter().map(|place| place.seq).collect::<Vec<_>>(), (1..=103).collect::<Vec<_>>());
    assert_eq!(places[102].time_us, again.history[0].time_us, "not the time of the purged row");
    keyspace.remove().await;
}
