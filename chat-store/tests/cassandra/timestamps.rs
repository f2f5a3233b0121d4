//! What write timestamps are for, looked at in the tables themselves: the suites see them only through what a device
//! acknowledged.

use chat_core::envelope::InboxRow;

use super::*;

impl Keyspace {
    /// How many rows lie in a device's inbox, whatever it acknowledged.
    async fn rows_kept(&self, device: InstallationId) -> i64 {
        let count =
            format!("SELECT count(*) FROM {}.inbox WHERE installation = ? ALLOW FILTERING", self.name());
        let rows = self.session.query_unpaged(count, (&device.as_bytes()[..],)).await.unwrap();
        rows.into_rows_result().unwrap().first_row::<(i64,)>().unwrap().0
    }

    /// `tail`, `acked` and `first` of the only cell of a device.
    async fn cell(&self, device: InstallationId) -> (Option<i64>, Option<i64>, Option<i64>) {
        let cell = format!("SELECT tail, acked, first FROM {}.cells WHERE installation = ?", self.name());
        let rows = self.session.query_unpaged(cell, (&device.as_bytes()[..],)).await.unwrap();
        rows.into_rows_result().unwrap().single_row().unwrap()
    }
}

/// A conversation, of which a hundred messages of now are committed.
async fn hundred(store: &CassandraStore) -> (Talk, Vec<Commit>) {
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let commits: Vec<Commit> = (0..100).map(|_| talk.next(now_us())).collect();
    for one in &commits {
        commit(store, one.clone()).await;
    }
    (talk, commits)
}

async fn page(store: &CassandraStore, device: InstallationId) -> Vec<InboxRow> {
    store.inbox(device, InboxPosition::START, PageLimit::MAX).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn late_writes_of_an_owner_restore_no_deleted_row() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let bob = device(2).installation;
    let (talk, commits) = hundred(&store).await;
    assert_eq!(keyspace.rows_kept(bob).await, 100);
    store.ack(bob, 1, &[AckUpTo { conversation: talk.id(), seq: 100 }]).await.unwrap();
    assert_eq!(keyspace.rows_kept(bob).await, 0, "so many that they were deleted");
    for late in commits {
        store.make_visible(vec![late]).await.unwrap();
    }
    assert_eq!(keyspace.rows_kept(bob).await, 0, "a row is older than its tombstone");
    assert_eq!(keyspace.cell(bob).await, (Some(100), Some(100), Some(1)));
    keyspace.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_lies_above_the_rows_it_stands_for_and_below_its_own_tombstone() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let bob = device(2).installation;
    let (talk, commits) = hundred(&store).await;
    assert_eq!(store.expire(now_us(), 1000).await, Ok(200), "those of both");
    let is_gap = |rows: &[InboxRow]| matches!(rows, [gap] if gap.is_expired() && gap.seq == 100);
    assert!(is_gap(&page(&store, bob).await));
    for late in commits {
        store.make_visible(vec![late]).await.unwrap();
    }
    assert!(is_gap(&page(&store, bob).await), "the rows do not come back, and the gap is not covered");
    assert_eq!(keyspace.rows_kept(bob).await, 1);
    store.ack(bob, 1, &[AckUpTo { conversation: talk.id(), seq: 100 }]).await.unwrap();
    assert_eq!(keyspace.rows_kept(bob).await, 0, "of the same time, the tombstone counts");
    keyspace.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_cells_the_higher_tail_and_ack_stay_and_the_lower_beginning() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let bob = device(2).installation;
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let commits: Vec<Commit> = (0..3).map(|_| talk.next(now_us())).collect();
    let ack = |seq| [AckUpTo { conversation: talk.id(), seq }];
    for one in &commits {
        commit(&store, one.clone()).await;
    }
    store.ack(bob, 1, &ack(2)).await.unwrap();
    store.ack(bob, 1, &ack(1)).await.unwrap();
    for late in commits.iter().rev() {
        store.make_visible(vec![late.clone()]).await.unwrap();
        assert_eq!(keyspace.cell(bob).await, (Some(3), Some(2), Some(1)));
    }
    keyspace.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyspace_with_fewer_copies_than_asked_for_is_refused() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let more = CassandraSettings { replication: 3, ..keyspace.settings.clone() };
    let refused = CassandraStore::connect(&more).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    let forgetful = format!("ALTER KEYSPACE {} WITH durable_writes = false", keyspace.name());
    keyspace.session.query_unpaged(forgetful, ()).await.unwrap();
    let refused = CassandraStore::connect(&keyspace.settings).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    keyspace.remove().await;
}
