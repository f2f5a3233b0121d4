//! Cases of feeds. Devices read the rows of a feed from history.

use super::*;

/// Adds a change of a feed to the commit of a conversation's next message.
fn with_change(conversation: &mut Conversation, user: UserId, joins: bool) -> Result<Commit, String> {
    let mut commit = conversation.next(10)?;
    let seq = commit.state.head.seq;
    commit.feeds.push(FeedChange { device: device(user).installation, seq, joins });
    Ok(commit)
}

async fn feeds(store: &Store, user: UserId) -> Result<Vec<Feed>, String> {
    store.feeds(device(user).installation).await.map_err(failed)
}

pub(super) async fn history_after_is_oldest_first(store: Store) -> Outcome {
    let (mut talk, mut other) =
        (Conversation::direct(), Conversation::new(ConversationId::own(ALICE), 500_000));
    talk.fill(&store, 5).await?;
    other.fill(&store, 7).await?;
    let seqs = async |after, limit| {
        let rows = store.history_after(talk.id, after, limit).await.map_err(failed)?;
        Ok::<_, String>(rows.iter().map(|row| row.seq).collect::<Vec<_>>())
    };
    equal(seqs(0, PageLimit::MAX).await?, vec![1, 2, 3, 4, 5], "the whole history")?;
    equal(seqs(2, PageLimit::rows(2)).await?, vec![3, 4], "a page of two rows")?;
    equal(seqs(2, PageLimit { rows: 10, bytes: 1 }).await?, vec![3], "a page of one byte")?;
    equal(seqs(5, PageLimit::MAX).await?, Vec::new(), "above the head")?;
    let mut newest_first = store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    newest_first.reverse();
    let rows = store.history_after(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    equal(rows, newest_first, "the same rows as newest first")?;
    let unknown = ConversationId::own(BOB);
    equal(store.history_after(unknown, 0, PageLimit::MAX).await.map_err(failed)?, Vec::new(), "no rows")
}

pub(super) async fn feeds_of_a_device_read_back(store: Store) -> Outcome {
    let (mut talk, mut other) =
        (Conversation::direct(), Conversation::new(ConversationId::own(ALICE), 500_000));
    talk.fill(&store, 1).await?;
    equal(feeds(&store, BOB).await?, Vec::new(), "a device without feeds")?;
    let joined = with_change(&mut talk, BOB, true)?;
    make_seen(&store, vec![joined.clone()]).await?;
    let first = Feed { conversation: talk.id, acked: 0, changes: vec![(2, true)] };
    equal(feeds(&store, BOB).await?, vec![first], "after it joined")?;
    let left = with_change(&mut talk, BOB, false)?;
    let again = with_change(&mut talk, BOB, true)?;
    make_seen(&store, vec![left]).await?;
    make_seen(&store, vec![again.clone()]).await?;
    make_seen(&store, vec![again]).await?;
    let of_other = with_change(&mut other, BOB, true)?;
    make_seen(&store, vec![of_other]).await?;
    ack(&store, BOB, talk.id, 1).await.map_err(failed)?;
    let changes = vec![(2, true), (3, false), (4, true)];
    let mut expected = vec![
        Feed { conversation: talk.id, acked: 1, changes },
        Feed { conversation: other.id, acked: 0, changes: vec![(1, true)] },
    ];
    expected.sort_by_key(|feed| feed.conversation);
    equal(feeds(&store, BOB).await?, expected, "the feeds, in the order of their ids")?;
    equal(feeds(&store, ALICE).await?, Vec::new(), "another device")
}

pub(super) async fn a_feed_is_acknowledged_above_the_tail(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let joined = with_change(&mut talk, BOB, true)?;
    make_seen(&store, vec![joined]).await?;
    for _ in 0..3 {
        let mut commit = talk.next(10)?;
        commit.inbox.clear();
        make_seen(&store, vec![commit]).await?;
    }
    let id = talk.id;
    let cursor = async || {
        let filter = CursorFilter::Of(id);
        let read = store.device(device(BOB).installation, filter).await.map_err(failed)?;
        Ok::<_, String>(read.cursors.first().map(|(_, cursor)| (cursor.acked, cursor.tail)))
    };
    equal(cursor().await?, Some((0, 1)), "only the first row is in the inbox")?;
    for (acked, expected) in [(3, 3), (2, 3), (4, 4)] {
        ack(&store, BOB, id, acked).await.map_err(failed)?;
        equal(cursor().await?, Some((expected, expected)), "the cursor")?;
        equal(feeds(&store, BOB).await?[0].acked, expected, "the position in the feed")?;
    }
    equal(inbox(&store, BOB).await?.len(), 0, "the inbox")?;
    let refused = ack(&store, BOB, id, 5).await.map_err(|error| error.kind());
    equal(refused, Err(ErrorKind::Invalid), "an ack above the head")?;
    let refused = ack(&store, ALICE, id, 4).await.map_err(|error| error.kind());
    equal(refused, Err(ErrorKind::Invalid), "a device that reads no feed")?;
    // A later row of the inbox, with content for this device only.
    talk.fill(&store, 1).await?;
    equal(cursor().await?, Some((4, 5)), "after another row of the inbox")?;
    equal(inbox(&store, BOB).await?.len(), 1, "the inbox")?;
    store.erase(device(BOB).installation).await.map_err(failed)?;
    equal(feeds(&store, BOB).await?, Vec::new(), "the feeds of an erased device")
}
