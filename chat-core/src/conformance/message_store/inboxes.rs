//! Cases of inboxes, acknowledgements and cursors.

use super::*;

pub(super) async fn rows_wait_for_their_own_ack(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 3).await?;
    ack(&store, ALICE, talk.id, 3).await.map_err(failed)?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1, 2, 3], "Bob's inbox after Alice's ack")?;
    ack(&store, BOB, talk.id, 2).await.map_err(failed)?;
    equal(seqs(&inbox(&store, BOB).await?), vec![3], "Bob's inbox after his own ack")?;
    equal(seqs(&inbox(&store, ALICE).await?), Vec::<u64>::new(), "Alice's inbox")
}

pub(super) async fn expired_rows_leave_a_gap(store: Store) -> Outcome {
    let bob = device(BOB).installation;
    let mut talk = Conversation::direct();
    talk.fill(&store, 6).await?;
    // Message n is committed at 1000 + 10 n µs. Bob acknowledges the first one.
    store.ack(bob, 1, &[AckUpTo { conversation: talk.id, seq: 1 }]).await.map_err(failed)?;
    equal(store.expire(1005, 100).await.map_err(failed)?, 0, "no row is old enough")?;
    let seen = |rows: &[InboxRow]| rows.iter().map(|row| (row.first_seq(), row.seq)).collect::<Vec<_>>();
    // Alice's device has rows 1 to 6, Bob's has rows 2 to 6. Rows 1 to 4 are older than 1045 µs.
    equal(store.expire(1045, 100).await.map_err(failed)?, 4 + 3, "rows removed")?;
    let rows = store.inbox(bob, InboxPosition::START, PageLimit::MAX).await.map_err(failed)?;
    equal(seen(&rows), vec![(2, 4), (5, 5), (6, 6)], "a gap, then the rest")?;
    equal(rows[0].is_expired(), true, "the gap is marked as expired")?;
    equal(store.expire(1045, 100).await.map_err(failed)?, 0, "a gap does not expire")?;
    equal(store.expire(1055, 1).await.map_err(failed)?, 1, "an expiry limited to one row")?;
    equal(store.expire(1055, 100).await.map_err(failed)?, 1, "the remaining old rows")?;
    let rows = store.inbox(bob, InboxPosition::START, PageLimit::MAX).await.map_err(failed)?;
    equal(seen(&rows), vec![(2, 5), (6, 6)], "the gap grew")?;
    let alice = store.inbox(device(ALICE).installation, InboxPosition::START, PageLimit::MAX).await;
    let alice = alice.map_err(failed)?;
    equal((seen(&alice), alice[0].joined), (vec![(1, 5), (6, 6)], true), "the gap keeps `joined`")?;
    equal(store.device(bob, CursorFilter::No).await.map_err(failed)?.waiting_rows, 2, "rows that wait")?;
    let history = store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    equal(history.len(), 6, "history is kept")?;
    store.ack(bob, 1, &[AckUpTo { conversation: talk.id, seq: 5 }]).await.map_err(failed)?;
    let rows = store.inbox(bob, InboxPosition::START, PageLimit::MAX).await.map_err(failed)?;
    equal(seen(&rows), vec![(6, 6)], "an ack removes the gap")?;
    equal(store.device(bob, CursorFilter::No).await.map_err(failed)?.waiting_rows, 1, "one row waits")
}

pub(super) async fn inbox_is_in_drain_order(store: Store) -> Outcome {
    let mut late = Conversation::new(ConversationId::direct(ALICE, BOB), 9000);
    let mut early = Conversation::new(
        ConversationId::mailbox(device(ALICE).installation, device(BOB).installation),
        1000,
    );
    let (a, b) = (late.next(10)?, early.next(10)?);
    make_seen(&store, vec![a]).await?;
    make_seen(&store, vec![b]).await?;
    let rows = inbox(&store, BOB).await?;
    let places: Vec<InboxPosition> = rows.iter().map(InboxRow::position).collect();
    let mut sorted = places.clone();
    sorted.sort_unstable();
    equal(&places, &sorted, "the order")?;
    equal(rows[0].conversation, early.id, "the first row")
}

pub(super) async fn inbox_pages(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 25).await?;
    // Acknowledged rows with the same commit times must not count towards a page.
    let mut read_already = Conversation::new(ConversationId::direct(BOB, UserId::from_bytes([3; 16])), 1000);
    read_already.fill(&store, 20).await?;
    ack(&store, BOB, read_already.id, 20).await.map_err(failed)?;
    let size = inbox(&store, BOB).await?[0].size();
    for limit in [PageLimit::rows(4), PageLimit { rows: 100, bytes: 3 * size + 1 }] {
        let (mut after, mut read) = (InboxPosition::START, Vec::new());
        for _ in 0..20 {
            let page = store.inbox(device(BOB).installation, after, limit).await.map_err(failed)?;
            read.extend(seqs(&page));
            match page.last() {
                Some(last) if limit.is_reached(&page) => after = last.position(),
                _ => break,
            }
        }
        equal(read, (1..=25).collect::<Vec<_>>(), "the pages up to the first that is not full")?;
    }
    Ok(())
}

/// A shard commits a record with an older time after another shard's newer row was read and acknowledged.
pub(super) async fn a_row_may_appear_below_a_read_position(store: Store) -> Outcome {
    let mut newer = Conversation::new(ConversationId::direct(ALICE, BOB), 9000);
    let mut older = Conversation::new(ConversationId::direct(BOB, UserId::from_bytes([3; 16])), 1000);
    newer.fill(&store, 2).await?;
    let read = inbox(&store, BOB).await?;
    let last = read.last().ok_or("the inbox is empty")?.position();
    ack(&store, BOB, newer.id, 1).await.map_err(failed)?;
    older.fill(&store, 2).await?;
    let rows = inbox(&store, BOB).await?;
    let seen = rows.iter().map(|row| (row.conversation, row.seq)).collect::<Vec<_>>();
    let expected = vec![(older.id, 1), (older.id, 2), (newer.id, 2)];
    equal(seen, expected, "the inbox with rows below a position that was read")?;
    let after = store.inbox(device(BOB).installation, last, PageLimit::MAX).await.map_err(failed)?;
    equal(seqs(&after), Vec::<u64>::new(), "the page after the position that was read")?;
    ack(&store, BOB, newer.id, 2).await.map_err(failed)?;
    older.fill(&store, 1).await?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1, 2, 3], "the inbox after an ack of newer rows")?;
    ack(&store, BOB, older.id, 3).await.map_err(failed)?;
    equal(seqs(&inbox(&store, BOB).await?), Vec::<u64>::new(), "the inbox after all acks")
}

pub(super) async fn acks_never_go_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 3).await?;
    ack(&store, BOB, talk.id, 2).await.map_err(failed)?;
    ack(&store, BOB, talk.id, 1).await.map_err(failed)?;
    let record = store.device(device(BOB).installation, CursorFilter::Of(talk.id)).await.map_err(failed)?;
    equal(
        record.cursors.iter().map(|(_, cursor)| (cursor.acked, cursor.tail)).collect(),
        vec![(2, 3)],
        "the cursor",
    )
}

pub(super) async fn ack_above_the_tail(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 2).await?;
    let acks = [
        AckUpTo { conversation: talk.id, seq: 1 },
        AckUpTo { conversation: ConversationId::own(BOB), seq: 1 },
    ];
    let refused = store.ack(device(BOB).installation, 0, &acks).await;
    equal(refused.map_err(|e| e.kind()), Err(ErrorKind::Invalid), "an ack without a cursor")?;
    let refused = ack(&store, BOB, talk.id, 3).await;
    equal(refused.map_err(|e| e.kind()), Err(ErrorKind::Invalid), "an ack above the tail")?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1, 2], "the inbox")
}

pub(super) async fn a_rejected_ack_changes_nothing(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 2).await?;
    let bob = device(BOB).installation;
    store.ack(bob, 5, &[AckUpTo { conversation: talk.id, seq: 1 }]).await.map_err(failed)?;
    for above in [3, MAX_NUMBER] {
        // A valid ack beside the one that is above the tail.
        let acks = [2, above].map(|seq| AckUpTo { conversation: talk.id, seq });
        let refused = store.ack(bob, 9, &acks).await;
        equal(refused.map_err(|e| e.kind()), Err(ErrorKind::Invalid), "an ack above the tail")?;
    }
    equal(store.generation(bob).await.map_err(failed)?, 5, "the generation after a rejected ack")?;
    equal(seqs(&inbox(&store, BOB).await?), vec![2], "the inbox after a rejected ack")?;
    let cursors = store.device(bob, CursorFilter::All).await.map_err(failed)?.cursors;
    let cursors = cursors.iter().map(|(_, cursor)| (cursor.acked, cursor.tail)).collect::<Vec<_>>();
    equal(cursors, vec![(1, 2)], "the cursor after a rejected ack")
}

pub(super) async fn an_acked_row_does_not_come_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commit = talk.next(100)?;
    make_seen(&store, vec![commit.clone()]).await?;
    ack(&store, BOB, talk.id, 1).await.map_err(failed)?;
    make_seen(&store, vec![commit]).await?;
    equal(seqs(&inbox(&store, BOB).await?), Vec::<u64>::new(), "the inbox after a late copy of the commit")
}

pub(super) async fn a_device_that_joins_late_is_not_behind(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 3).await?;
    let mut commit = talk.next(100)?;
    let late = InstallationId::from_bytes([0xee; 16]);
    let mut row = commit.inbox[1].1.clone();
    row.joined = true;
    commit.inbox.push((late, row));
    make_seen(&store, vec![commit]).await?;
    let record = store.device(late, CursorFilter::All).await.map_err(failed)?;
    equal(
        record.cursors.iter().map(|(_, cursor)| (cursor.acked, cursor.tail)).collect(),
        vec![(3, 4)],
        "the cursor",
    )
}

pub(super) async fn generation_never_goes_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 1).await?;
    let generation =
        |store: Store| async move { store.generation(device(ALICE).installation).await.map_err(failed) };
    equal(generation(store.clone()).await?, 7, "after a commit")?;
    store.ack(device(ALICE).installation, 9, &[]).await.map_err(failed)?;
    equal(generation(store.clone()).await?, 9, "after an ack")?;
    talk.fill(&store, 1).await?;
    equal(generation(store).await?, 9, "after a commit with a lower generation")
}

pub(super) async fn waiting_is_counted(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 5).await?;
    let bob = device(BOB).installation;
    let before = store.device(bob, CursorFilter::No).await.map_err(failed)?;
    equal(before.waiting_rows, 5, "rows that wait")?;
    if before.waiting_bytes < 5 * 132 {
        return Err(format!("{} bytes wait", before.waiting_bytes));
    }
    ack(&store, BOB, talk.id, 5).await.map_err(failed)?;
    let after = store.device(bob, CursorFilter::No).await.map_err(failed)?;
    equal((after.waiting_rows, after.waiting_bytes), (0, 0), "waiting rows and bytes after the ack")
}

pub(super) async fn an_erased_device_is_empty(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 5).await?;
    ack(&store, BOB, talk.id, 2).await.map_err(failed)?;
    ack(&store, ALICE, talk.id, 1).await.map_err(failed)?;
    let (bob, alice) = (device(BOB).installation, device(ALICE).installation);
    store.ack(bob, 9, &[]).await.map_err(failed)?;
    for _ in 0..2 {
        store.erase(bob).await.map_err(failed)?;
        equal(inbox(&store, BOB).await?.len(), 0, "the inbox")?;
        let record = store.device(bob, CursorFilter::All).await.map_err(failed)?;
        equal((record.waiting_rows, record.waiting_bytes), (0, 0), "the waiting rows")?;
        equal(record.cursors.len(), 0, "the cursors")?;
        equal(store.generation(bob).await.map_err(failed)?, 0, "the generation")?;
    }
    equal(seqs(&inbox(&store, ALICE).await?), vec![2, 3, 4, 5], "the inbox of the other device")?;
    equal(store.generation(alice).await.map_err(failed)?, 7, "the generation of the other device")?;
    let history = store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    equal(seqs(&history), vec![5, 4, 3, 2, 1], "the history")?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(talk.state), "the state")
}
