//! Cases of commits and their outcomes.

use super::*;

pub(super) async fn commit_is_visible(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commit = talk.next(100)?;
    let row = commit.inbox[1].1.clone();
    make_seen(&store, vec![commit]).await?;
    equal(inbox(&store, BOB).await?, vec![row], "the inbox")?;
    let found = store.find(talk.id, device(ALICE).installation, message_id(1)).await.map_err(failed)?;
    equal(found, Some(1), "the seq found")?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(talk.state), "the state")
}

pub(super) async fn a_durable_commit_counts(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 1).await?;
    let last = talk.next(100)?;
    let at = last.state.head.position;
    let last = Commit { generations: vec![(device(ALICE).installation, 8)], ..last };
    // The shard owner crashes here and does not make the commit visible.
    commit_durable(&store, vec![last.clone()]).await?;
    equal(
        store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?,
        Some(talk.state.clone()),
        "the state",
    )?;
    let generation = store.generation(device(ALICE).installation).await.map_err(failed)?;
    equal(generation, 8, "the generation of the sender")?;
    equal(
        store.state(talk.id, SenderFilter::All, Some(at)).await.map_err(failed)?,
        Some(talk.state),
        "the state to decide on",
    )?;
    let rows = vec![1, 2];
    equal(seqs(&inbox(&store, BOB).await?), rows, "the inbox after a replay read the state")?;
    store.make_visible(vec![last]).await.map_err(failed)?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1, 2], "the inbox after a late owner's make_visible")
}

pub(super) async fn a_durable_row_may_be_acknowledged(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let (first, second) = (talk.next(100)?, talk.next(100)?);
    for (commit, seq) in [(first, 1), (second, 2)] {
        let durable = commit_durable(&store, vec![commit]).await?;
        let refused = ack(&store, BOB, talk.id, seq + 1).await;
        equal(refused.map_err(|e| e.kind()), Err(ErrorKind::Invalid), "an ack above the durable tail")?;
        ack(&store, BOB, talk.id, seq).await.map_err(failed)?;
        store.make_visible(durable).await.map_err(failed)?;
        equal(seqs(&inbox(&store, BOB).await?), Vec::<u64>::new(), "the inbox")?;
    }
    let (stranger, acks) =
        (InstallationId::from_bytes([0xee; 16]), [AckUpTo { conversation: talk.id, seq: 1 }]);
    let refused = store.ack(stranger, 0, &acks).await;
    equal(refused.map_err(|e| e.kind()), Err(ErrorKind::Invalid), "an ack of an unknown device")?;
    let record = store.device(device(BOB).installation, CursorFilter::All).await.map_err(failed)?;
    equal(record.waiting_rows, 0, "rows that wait")?;
    equal(
        record.cursors.iter().map(|(_, cursor)| (cursor.acked, cursor.tail)).collect(),
        vec![(2, 2)],
        "the cursor",
    )
}

pub(super) async fn commit_twice(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commit = talk.next(100)?;
    make_seen(&store, vec![commit.clone()]).await?;
    make_seen(&store, vec![commit]).await?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1], "the inbox")?;
    let record = store.device(device(BOB).installation, CursorFilter::No).await.map_err(failed)?;
    equal(record.waiting_rows, 1, "rows that wait")
}

pub(super) async fn commits_of_many_conversations(store: Store) -> Outcome {
    let mut one = Conversation::direct();
    let mut two = Conversation::new(ConversationId::direct(ALICE, UserId::from_bytes([3; 16])), 5000);
    make_seen(&store, vec![one.next(10)?, two.next(10)?]).await?;
    equal(
        store.state(two.id, SenderFilter::All, None).await.map_err(failed)?,
        Some(two.state),
        "the second state",
    )
}

/// Commits of four conversations with the same two devices, an ack and a read run at the same time, three rounds long.
pub(super) async fn concurrent_commits_lose_nothing(store: Store) -> Outcome {
    let ids = [
        ConversationId::direct(ALICE, BOB),
        ConversationId::mailbox(device(ALICE).installation, device(BOB).installation),
        ConversationId::direct(ALICE, UserId::from_bytes([3; 16])),
        ConversationId::own(ALICE),
    ];
    let mut talks = ids.map(|id| Conversation::new(id, 1000));
    for round in 1..=3 {
        let commits = talks.iter_mut().map(|talk| talk.next(100)).collect::<Result<Vec<_>, _>>()?;
        let made = commits.into_iter().map(|commit| make_seen(&store, vec![commit]));
        let acks = [AckUpTo { conversation: talks[0].id, seq: round - 1 }];
        let acked = async {
            let acks = if round > 1 { &acks[..] } else { &[] };
            store.ack(device(BOB).installation, 20 + round, acks).await.map_err(failed)
        };
        let read = async { inbox(&store, BOB).await.map(drop) };
        let (made, acked, read) = futures_util::future::join3(join_all(made), acked, read).await;
        made.into_iter().chain([acked, read]).collect::<Outcome>()?;
    }
    for talk in &talks {
        equal(
            store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?,
            Some(talk.state.clone()),
            "a state",
        )?;
        let found = store.find(talk.id, device(ALICE).installation, message_id(3)).await.map_err(failed)?;
        equal(found, Some(3), "the seq found")?;
    }
    let rows = inbox(&store, BOB).await?;
    for talk in &talks {
        let own = rows.iter().filter(|row| row.conversation == talk.id).map(|row| row.seq);
        let expected = if talk.id == talks[0].id { vec![3] } else { vec![1, 2, 3] };
        equal(own.collect(), expected, "the rows of concurrent commits that were not acknowledged")?;
    }
    let record = store.device(device(BOB).installation, CursorFilter::All).await.map_err(failed)?;
    equal((record.waiting_rows, record.cursors.len()), (10, 4), "rows that wait, and cursors")?;
    let generation = store.generation(device(BOB).installation).await.map_err(failed)?;
    equal(generation, 23, "the generation of the device that acknowledged")
}

pub(super) async fn an_older_state_does_not_come_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let early = talk.next(100)?;
    make_seen(&store, vec![early.clone()]).await?;
    talk.fill(&store, 2).await?;
    make_seen(&store, vec![early]).await?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(talk.state), "the state")
}

pub(super) async fn an_owner_that_is_behind_changes_nothing(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commits = (0..4).map(|_| talk.next(100)).collect::<Result<Vec<_>, _>>()?;
    for commit in &commits {
        make_seen(&store, vec![commit.clone()]).await?;
    }
    ack(&store, BOB, talk.id, 3).await.map_err(failed)?;
    let seen = || async {
        Ok::<_, String>((
            inbox(&store, BOB).await?,
            store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?,
        ))
    };
    let before = seen().await?;
    for commit in commits {
        make_seen(&store, vec![commit]).await?;
        equal(seen().await?, before.clone(), "inbox and history after a late commit")?;
    }
    let cursor = store.device(device(BOB).installation, CursorFilter::All).await.map_err(failed)?.cursors;
    equal(cursor.iter().map(|(_, cursor)| (cursor.acked, cursor.tail)).collect(), vec![(3, 4)], "the cursor")
}

pub(super) async fn rows_above_the_head_are_not_found(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 1).await?;
    // A commit that was interrupted before it wrote its state: the rows are new, the head is old.
    let mut torn = talk.next(100)?;
    torn.state.head.seq = 1;
    torn.feeds.push(FeedChange { device: device(BOB).installation, seq: 2, joins: true });
    make_seen(&store, vec![torn]).await?;
    let found = store.find(talk.id, device(ALICE).installation, message_id(2)).await.map_err(failed)?;
    equal(found, None, "the seq found")?;
    let history = store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    equal(seqs(&history), vec![1], "the history")?;
    let after = store.history_after(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    equal(seqs(&after), vec![1], "the history, oldest first")?;
    equal(store.feeds(device(BOB).installation).await.map_err(failed)?, Vec::new(), "the feeds")?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1], "the inbox")
}
