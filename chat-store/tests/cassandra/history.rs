//! Erased history where the rows of the last commit may not be written yet.

use chat_core::envelope::{InboxRow, RowContent};
use chat_core::limits::MAX_NUMBER;

use super::*;

impl Keyspace {
    /// Returns the redo data of a conversation's last commit.
    async fn redo(&self, conversation: ConversationId) -> Vec<u8> {
        let cql = format!(
            "SELECT redo FROM {}.state_parts WHERE conversation = ? AND part = 0x00",
            self.settings.keyspace
        );
        let rows = self.session.query_unpaged(cql, (&conversation.as_bytes()[..],)).await.unwrap();
        let rows = rows.into_rows_result().unwrap();
        rows.first_row::<(Option<Vec<u8>>,)>().unwrap().0.unwrap_or_default()
    }
}

async fn erased(store: &CassandraStore, conversation: ConversationId) -> Vec<(u64, bool)> {
    let rows = store.history(conversation, 0, PageLimit::MAX).await.unwrap();
    rows.iter().map(|row| (row.seq, row.is_erased())).collect()
}

/// A message is durable, its rows are not written, and every member clears the conversation.
#[tokio::test(flavor = "multi_thread")]
async fn erased_commit_is_finished_and_leaves_no_redo_data() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let first = talk.next(now_us());
    commit(&store, first).await;
    let last = talk.next(now_us());
    let outcome = store.commit(vec![last.clone()]).await.remove(0).unwrap();
    assert!(matches!(outcome, CommitOutcome::Durable(_)), "it has redo data");
    assert!(!keyspace.redo(talk.id()).await.is_empty());

    for user in [device(1).user, device(2).user] {
        store.clear_history(talk.id(), user, MAX_NUMBER).await.unwrap();
    }
    assert_eq!(erased(&store, talk.id()).await, [(2, true), (1, true)]);
    assert_eq!(keyspace.redo(talk.id()).await, b"", "the redo data has the message too");
    let inbox = store.inbox(device(2).installation, InboxPosition::START, PageLimit::MAX).await.unwrap();
    let seen = |row: &InboxRow| (row.seq, matches!(row.content, RowContent::Empty { .. }));
    assert_eq!(
        inbox.iter().map(seen).collect::<Vec<_>>(),
        [(1, true), (2, true)],
        "each row is there, empty"
    );
    // The owner that committed it writes its rows late.
    store.make_visible(vec![last]).await.unwrap();
    assert_eq!(erased(&store, talk.id()).await, [(2, true), (1, true)]);

    let next = talk.next(now_us());
    commit(&store, next).await;
    assert_eq!(erased(&store, talk.id()).await, [(3, false), (2, true), (1, true)]);
    store.verify().await.unwrap();
    keyspace.remove().await;
}

/// A member that has not cleared the last message keeps it, and nothing fails while its rows are not written.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_being_written_are_left_alone() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let old = talk.next(now_us() - 300 * MINUTE_US);
    commit(&store, old).await;
    let last = talk.next(now_us());
    store.commit(vec![last.clone()]).await.remove(0).unwrap();
    assert_eq!(store.expire_history(now_us() - MINUTE_US, 100).await, Ok(1));
    assert_eq!(store.expire_history(now_us() - MINUTE_US, 100).await, Ok(0));
    for user in [device(1).user, device(2).user] {
        store.clear_history(talk.id(), user, 1).await.unwrap();
    }
    assert!(!keyspace.redo(talk.id()).await.is_empty(), "the commit is not finished");
    store.make_visible(vec![last]).await.unwrap();
    assert_eq!(erased(&store, talk.id()).await, [(2, false), (1, true)]);
    keyspace.remove().await;
}
