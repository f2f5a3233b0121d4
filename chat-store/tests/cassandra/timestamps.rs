//! Tests of write timestamps that read the tables. The conformance suites see their effects only through
//! acks.

use chat_core::envelope::InboxRow;

use super::*;

impl Keyspace {
    /// Returns the number of rows in a device's inbox, acknowledged or not.
    async fn rows_kept(&self, device: InstallationId) -> i64 {
        let count =
            format!("SELECT count(*) FROM {}.inbox WHERE installation = ? ALLOW FILTERING", self.name());
        let rows = self.session.query_unpaged(count, (&device.as_bytes()[..],)).await.unwrap();
        rows.into_rows_result().unwrap().first_row::<(i64,)>().unwrap().0
    }

    /// Returns `tail`, `acked` and `first` of the only cursor of a device.
    async fn cell(&self, device: InstallationId) -> (Option<i64>, Option<i64>, Option<i64>) {
        let cell = format!("SELECT tail, acked, first FROM {}.cells WHERE installation = ?", self.name());
        let rows = self.session.query_unpaged(cell, (&device.as_bytes()[..],)).await.unwrap();
        rows.into_rows_result().unwrap().single_row().unwrap()
    }
}

/// Commits a hundred messages with the current time to a conversation.
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
    assert_eq!(keyspace.rows_kept(bob).await, 0, "100 acks exceed the threshold at which rows are deleted");
    for late in commits {
        store.make_visible(vec![late]).await.unwrap();
    }
    assert_eq!(keyspace.rows_kept(bob).await, 0, "a late write has a timestamp below that of its tombstone");
    assert_eq!(keyspace.cell(bob).await, (Some(100), Some(100), Some(1)));
    keyspace.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gap_overrides_late_rows_and_yields_to_its_tombstone() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let bob = device(2).installation;
    let (talk, commits) = hundred(&store).await;
    assert_eq!(store.expire(now_us(), 1000).await, Ok(200), "the rows of both devices");
    let is_gap = |rows: &[InboxRow]| matches!(rows, [gap] if gap.is_expired() && gap.seq == 100);
    assert!(is_gap(&page(&store, bob).await));
    for late in commits {
        store.make_visible(vec![late]).await.unwrap();
    }
    assert!(is_gap(&page(&store, bob).await), "late writes restore no row and do not overwrite the gap");
    assert_eq!(keyspace.rows_kept(bob).await, 1);
    store.ack(bob, 1, &[AckUpTo { conversation: talk.id(), seq: 100 }]).await.unwrap();
    assert_eq!(keyspace.rows_kept(bob).await, 0, "a tombstone wins over a row with the same timestamp");
    keyspace.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cursor_keeps_highest_tail_and_ack_and_lowest_first() {
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
async fn connect_refuses_keyspace_with_fewer_copies_or_without_durable_writes() {
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
