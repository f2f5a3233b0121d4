//! Cases of the retention and the deletion of history.

use super::*;

/// Returns the history as pairs: the seq, and the reason if the row is empty.
async fn contents(store: &Store, id: ConversationId) -> Result<Vec<(u64, Option<EmptyReason>)>, String> {
    let rows = store.history(id, 0, PageLimit::MAX).await.map_err(failed)?;
    let reason = |row: &InboxRow| match row.content {
        RowContent::Empty { reason, from } if from == row.seq => Some(reason),
        _ => None,
    };
    Ok(rows.iter().map(|row| (row.seq, reason(row))).collect())
}

/// Returns the expected history of five messages: those up to `erased` are empty for this reason.
fn erased_up_to(erased: u64, reason: EmptyReason, last: u64) -> Vec<(u64, Option<EmptyReason>)> {
    (1..=last).rev().map(|seq| (seq, (seq <= erased).then_some(reason))).collect()
}

pub(super) async fn old_history_is_erased(store: Store) -> Outcome {
    let (mut talk, mut other) =
        (Conversation::direct(), Conversation::new(ConversationId::own(ALICE), 500_000));
    talk.fill(&store, 5).await?;
    other.fill(&store, 1).await?;
    let before = store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    for (who, conversation, seq) in [(ALICE, talk.id, 5), (BOB, talk.id, 5)] {
        ack(&store, who, conversation, seq).await.map_err(failed)?;
    }
    // Message n is committed at 1000 + 10 n µs.
    equal(store.expire_history(1010, 100).await.map_err(failed)?, 0, "no message is old enough")?;
    equal(store.expire_history(1030, 100).await.map_err(failed)?, 2, "messages erased")?;
    equal(store.expire_history(1030, 100).await.map_err(failed)?, 0, "messages erased again")?;
    equal(contents(&store, talk.id).await?, erased_up_to(2, EmptyReason::Expired, 5), "the history")?;
    let rows = store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    let times = |rows: &[InboxRow]| rows.iter().map(|row| row.time_us).collect::<Vec<_>>();
    equal(times(&rows), times(&before), "the times")?;
    equal(store.expire_history(1051, 1).await.map_err(failed)?, 1, "messages erased by a limited call")?;
    equal(contents(&store, talk.id).await?, erased_up_to(3, EmptyReason::Expired, 5), "oldest first")?;
    equal(store.expire_history(1051, 100).await.map_err(failed)?, 2, "the other old messages")?;
    equal(contents(&store, other.id).await?, vec![(1, None)], "a younger message")?;
    let sender = device(ALICE).installation;
    for n in 1..=5 {
        let found = store.find(talk.id, sender, message_id(n)).await.map_err(failed)?;
        equal(found, Some(n), "the seq of an erased message")?;
    }
    let state = store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?;
    equal(state, Some(talk.state.clone()), "the state")?;
    talk.fill(&store, 1).await?;
    equal(contents(&store, talk.id).await?, erased_up_to(5, EmptyReason::Expired, 6), "after a new message")
}

pub(super) async fn history_is_erased_once_every_member_cleared_it(store: Store) -> Outcome {
    let (mut talk, mut other) = (
        Conversation::direct(),
        Conversation::new(ConversationId::direct(ALICE, UserId::from_bytes([3; 16])), 1000),
    );
    talk.fill(&store, 5).await?;
    other.fill(&store, 5).await?;
    for who in [ALICE, BOB] {
        ack(&store, who, talk.id, 5).await.map_err(failed)?;
    }
    let clear = async |user, through| store.clear_history(talk.id, user, through).await.map_err(failed);
    let marks = async || {
        let of = async |user| store.cleared(talk.id, user).await.map_err(failed);
        Ok::<_, String>((of(ALICE).await?, of(BOB).await?))
    };
    equal(marks().await?, (0, 0), "before")?;
    clear(ALICE, 4).await?;
    equal(marks().await?, (4, 0), "the records")?;
    equal(
        contents(&store, talk.id).await?,
        erased_up_to(0, EmptyReason::Cleared, 5),
        "one member cleared it",
    )?;
    clear(BOB, 2).await?;
    equal(contents(&store, talk.id).await?, erased_up_to(2, EmptyReason::Cleared, 5), "both cleared a part")?;
    clear(BOB, 1).await?;
    equal(marks().await?, (4, 2), "the records after a lower seq")?;
    for _ in 0..2 {
        clear(BOB, MAX_NUMBER).await?;
        equal(marks().await?, (4, 5), "a seq above the head")?;
    }
    equal(contents(&store, talk.id).await?, erased_up_to(4, EmptyReason::Cleared, 5), "all but the last")?;
    equal(
        contents(&store, other.id).await?,
        erased_up_to(0, EmptyReason::Cleared, 5),
        "another conversation",
    )?;
    equal(store.cleared(other.id, ALICE).await.map_err(failed)?, 0, "the record of another conversation")?;
    let state = store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?;
    equal(state, Some(talk.state.clone()), "the state")?;
    talk.fill(&store, 1).await?;
    equal(contents(&store, talk.id).await?, erased_up_to(4, EmptyReason::Cleared, 6), "after a new message")?;
    equal(store.expire_history(MAX_NUMBER, 100).await.map_err(failed)?, 2 + 5, "retention erases the rest")
}

pub(super) async fn erased_content_does_not_come_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 2).await?;
    let last = talk.next(100)?;
    make_seen(&store, vec![last.clone()]).await?;
    for who in [ALICE, BOB] {
        ack(&store, who, talk.id, 3).await.map_err(failed)?;
        store.clear_history(talk.id, who, 3).await.map_err(failed)?;
    }
    make_seen(&store, vec![last]).await?;
    equal(contents(&store, talk.id).await?, erased_up_to(3, EmptyReason::Cleared, 3), "the history")?;
    equal(inbox(&store, BOB).await?.len(), 0, "the inbox")
}

pub(super) async fn a_waiting_row_of_an_erased_message_is_empty(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 3).await?;
    let before = inbox(&store, BOB).await?;
    for who in [ALICE, BOB] {
        store.clear_history(talk.id, who, 2).await.map_err(failed)?;
    }
    let mut expected = before;
    expected[..2].iter_mut().for_each(|row| {
        row.erase(EmptyReason::Cleared);
    });
    equal(inbox(&store, BOB).await?, expected, "the inbox")?;
    equal(seqs(&inbox(&store, ALICE).await?), vec![1, 2, 3], "the inbox of the sender")?;
    ack(&store, BOB, talk.id, 3).await.map_err(failed)?;
    equal(inbox(&store, BOB).await?.len(), 0, "the inbox after the ack")?;
    let record = store.device(device(BOB).installation, CursorFilter::No).await.map_err(failed)?;
    equal((record.waiting_rows, record.waiting_bytes), (0, 0), "waiting rows and bytes after the ack")
}

pub(super) async fn a_deleted_message_is_erased(store: Store) -> Outcome {
    let (mut talk, mut other) = (
        Conversation::direct(),
        Conversation::new(ConversationId::direct(ALICE, UserId::from_bytes([3; 16])), 1000),
    );
    talk.fill(&store, 2).await?;
    other.fill(&store, 2).await?;
    let third = talk.next(40_000)?;
    make_seen(&store, vec![third.clone()]).await?;
    let before = inbox(&store, BOB).await?;
    let waiting_bytes = async || {
        let record = store.device(device(BOB).installation, CursorFilter::No).await.map_err(failed)?;
        Ok::<_, String>(record.waiting_bytes)
    };
    let bytes_before = waiting_bytes().await?;
    let deletion = talk.next_with(100, deletes(3))?;
    make_seen(&store, vec![deletion.clone()]).await?;
    let only = |seqs: &[u64], last: u64| -> Vec<_> {
        (1..=last).rev().map(|seq| (seq, seqs.contains(&seq).then_some(EmptyReason::Deleted))).collect()
    };
    equal(contents(&store, talk.id).await?, only(&[3], 4), "the history")?;
    equal(contents(&store, other.id).await?, only(&[], 2), "another conversation")?;
    let is_smaller = waiting_bytes().await? + 30_000 < bytes_before;
    equal(is_smaller, true, "the waiting bytes are less without the deleted message")?;
    let mut expected = before;
    for row in expected.iter_mut().filter(|row| (row.conversation, row.seq) == (talk.id, 3)) {
        row.erase(EmptyReason::Deleted);
    }
    let waiting = inbox(&store, BOB).await?;
    equal(&waiting[..waiting.len() - 1], &expected[..], "the rows before the deletion")?;
    equal(waiting.last().map(|row| row.seq), Some(4), "the row of the deletion")?;
    let own = inbox(&store, ALICE).await?;
    let is_own = |row: &InboxRow| matches!(row.content, RowContent::Own { .. });
    equal(
        own.iter().filter(|row| row.conversation == talk.id).filter(|row| is_own(row)).count(),
        4,
        "own rows",
    )?;
    // An owner that crashed repeats its last records as one commit.
    let mut repeated = third;
    repeated.merge(deletion);
    make_seen(&store, vec![repeated]).await?;
    equal(contents(&store, talk.id).await?, only(&[3], 4), "the history after a repeated commit")?;
    let found = store.find(talk.id, device(ALICE).installation, message_id(3)).await.map_err(failed)?;
    equal(found, Some(3), "the seq of a deleted message")?;
    // A row that was acknowledged stays away.
    ack(&store, BOB, talk.id, 4).await.map_err(failed)?;
    ack(&store, BOB, other.id, 2).await.map_err(failed)?;
    make_seen(&store, vec![talk.next_with(100, deletes(1))?]).await?;
    equal(seqs(&inbox(&store, BOB).await?), vec![5], "the inbox after an ack")?;
    equal(contents(&store, talk.id).await?, only(&[1, 3], 5), "the history after a second deletion")?;
    // A message and its deletion in one commit.
    let mut both = talk.next(100)?;
    both.merge(talk.next_with(100, deletes(6))?);
    make_seen(&store, vec![both]).await?;
    equal(contents(&store, talk.id).await?, only(&[1, 3, 6], 7), "the history after one commit of both")?;
    equal(seqs(&inbox(&store, BOB).await?), vec![5, 6, 7], "the inbox after one commit of both")
}

pub(super) async fn a_message_disappears_when_its_time_is_over(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    // Message n is committed at 1000 + 10 n us.
    for options in [MessageOptions::default(), disappears(1), disappears(5), disappears(1)] {
        make_seen(&store, vec![talk.next_with(100, options)?]).await?;
    }
    let mut expected = inbox(&store, BOB).await?;
    let gone = |seqs: &[u64], last: u64| -> Vec<_> {
        (1..=last).rev().map(|seq| (seq, seqs.contains(&seq).then_some(EmptyReason::Disappeared))).collect()
    };
    let sweep = async |now_us, limit| store.expire_messages(now_us, limit).await.map_err(failed);
    equal(sweep(2019, 100).await?, 0, "no lifetime has ended")?;
    equal(contents(&store, talk.id).await?, gone(&[], 4), "the history before")?;
    equal(sweep(2020, 100).await?, 1, "messages erased")?;
    equal(sweep(2020, 100).await?, 0, "messages erased again")?;
    equal(contents(&store, talk.id).await?, gone(&[2], 4), "the history")?;
    expected[1].erase(EmptyReason::Disappeared);
    equal(inbox(&store, BOB).await?, expected, "the inbox")?;
    ack(&store, BOB, talk.id, 4).await.map_err(failed)?;
    equal(sweep(MAX_NUMBER, 1).await?, 1, "messages erased by a limited call")?;
    equal(sweep(MAX_NUMBER, 100).await?, 1, "the other message")?;
    equal(contents(&store, talk.id).await?, gone(&[2, 3, 4], 4), "the history at the end")?;
    equal(inbox(&store, BOB).await?.len(), 0, "the inbox after the ack")?;
    // Deleted before its lifetime ends.
    make_seen(&store, vec![talk.next_with(100, disappears(5))?]).await?;
    make_seen(&store, vec![talk.next_with(100, deletes(5))?]).await?;
    equal(sweep(MAX_NUMBER, 100).await?, 0, "messages erased after a deletion")?;
    equal(contents(&store, talk.id).await?[1], (5, Some(EmptyReason::Deleted)), "the first reason stays")
}
