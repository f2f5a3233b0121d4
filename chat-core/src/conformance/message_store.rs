use std::sync::Arc;

use futures_util::future::join_all;

use super::{Case, Outcome, equal, failed, list_cases};
use crate::backend::{
    Command, Commit, CommitOutcome, ConversationState, CursorFilter, Head, LogPosition, Member, MessageStore,
    Operation, PageLimit, RecipientDevices, Record, Rules, SenderFilter, SenderState,
};
use crate::codec::row::encode_unknown_row;
use crate::delivery::{Decision, decide};
use crate::model::envelope::{
    AckUpTo, Audience, DeviceBox, EmptyReason, InboxPosition, InboxRow, Message, Publish, RowContent,
    SendPosition,
};
use crate::model::error::ErrorKind;
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, MessageId, UserId};
use crate::model::limits::MAX_NUMBER;

type Store = Arc<dyn MessageStore>;

/// Returns the conformance cases of [`MessageStore`].
pub fn message_store() -> Vec<Case<dyn MessageStore>> {
    list_cases![
        commit_is_visible,
        a_durable_commit_counts,
        a_durable_row_may_be_acknowledged,
        commit_twice,
        commits_of_many_conversations,
        concurrent_commits_lose_nothing,
        rows_above_the_head_are_not_found,
        rows_wait_for_their_own_ack,
        expired_rows_leave_a_gap,
        inbox_is_in_drain_order,
        inbox_pages,
        a_row_may_appear_below_a_read_position,
        acks_never_go_back,
        ack_above_the_tail,
        a_rejected_ack_changes_nothing,
        an_acked_row_does_not_come_back,
        a_device_that_joins_late_is_not_behind,
        generation_never_goes_back,
        history_is_newest_first_and_pages,
        mailboxes_have_no_history,
        state_reads_back,
        state_has_the_named_senders,
        unchanged_parts_of_a_state_stay,
        every_kind_of_row_reads_back,
        large_rows_read_back,
        numbers_have_53_bits,
        waiting_is_counted,
        an_erased_device_is_empty,
        an_unknown_conversation_is_empty,
    ]
}

/// Returns the conformance cases of a [`MessageStore`] that several processes share, where two owners of a
/// shard may overlap.
pub fn shared_message_store() -> Vec<Case<dyn MessageStore>> {
    list_cases![an_older_state_does_not_come_back, an_owner_that_is_behind_changes_nothing]
}

const ALICE: UserId = UserId::from_bytes([1; 16]);
const BOB: UserId = UserId::from_bytes([2; 16]);

fn device(user: UserId) -> DeviceAddress {
    let installation = InstallationId::from_bytes(*user.as_bytes());
    DeviceAddress { user, device: DeviceId::PRIMARY, installation }
}

/// A conversation of Alice's and Bob's devices in which Alice's device sends. [`decide`], the function that
/// shards use, makes the commits.
struct Conversation {
    id: ConversationId,
    state: ConversationState,
    time_us: u64,
}

impl Conversation {
    fn new(id: ConversationId, time_us: u64) -> Self {
        Self { id, state: ConversationState::default(), time_us }
    }

    fn direct() -> Self {
        Self::new(ConversationId::direct(ALICE, BOB), 1000)
    }

    /// Returns the commit of the next message, with a body of `size` bytes.
    fn next(&mut self, size: usize) -> Result<Commit, String> {
        let (alice, bob) = (device(ALICE), device(BOB));
        let sent = self.state.senders.get(&alice.installation).copied().unwrap_or_default();
        let n = sent.client_seq + 1;
        let number = SendPosition {
            conversation: self.id,
            message_id: message_id(n),
            client_seq: n,
            prev: sent.prev,
            incarnation: 0,
            generation: 7,
        };
        let recipient = |d: DeviceAddress| RecipientDevices {
            user: d.user,
            list_version: 1,
            installations: vec![d.installation],
        };
        let publish = Publish {
            number,
            first: true,
            audience: Vec::new(),
            body: vec![n as u8; size].into(),
            boxes: vec![DeviceBox { installation: bob.installation, data: vec![n as u8; 32].into() }],
            excluded: Vec::new(),
            sent_at: 1,
        };
        let command = Command {
            sender: alice,
            operation: Operation::Publish(publish),
            recipients: vec![recipient(alice), recipient(bob)],
            verdict: None,
            reply: None,
            rules: Rules::CURRENT,
            full: Vec::new(),
            withheld: Vec::new(),
        };
        let record = Record {
            position: LogPosition { generation: 1, offset: n },
            appended_us: self.time_us + n * 10,
            command: Arc::new(command),
        };
        match decide(&self.state, &record, None) {
            Decision::Store(_, commit) => {
                self.state.apply(&commit.state);
                Ok(commit)
            }
            other => Err(format!("the shard decided {other:?}")),
        }
    }

    async fn fill(&mut self, store: &Store, count: usize) -> Outcome {
        for _ in 0..count {
            let commit = self.next(100)?;
            make_seen(store, vec![commit]).await?;
        }
        Ok(())
    }
}

fn message_id(n: u64) -> MessageId {
    let mut id = [9; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    MessageId::from_bytes(id)
}

/// Commits until everything is durable. Returns the commits that are not visible yet.
async fn commit_durable(store: &Store, commits: Vec<Commit>) -> Result<Vec<Commit>, String> {
    let count = commits.len();
    let outcomes = store.commit(commits).await;
    equal(outcomes.len(), count, "outcomes")?;
    let mut durable = Vec::new();
    for outcome in outcomes {
        if let CommitOutcome::Durable(commit) = outcome.map_err(failed)? {
            durable.push(*commit);
        }
    }
    Ok(durable)
}

/// Commits until every reader sees the commits.
async fn make_seen(store: &Store, commits: Vec<Commit>) -> Outcome {
    let durable = commit_durable(store, commits).await?;
    store.make_visible(durable).await.map_err(failed)
}

async fn inbox(store: &Store, who: UserId) -> Result<Vec<InboxRow>, String> {
    store.inbox(device(who).installation, InboxPosition::START, PageLimit::MAX).await.map_err(failed)
}

fn seqs(rows: &[InboxRow]) -> Vec<u64> {
    rows.iter().map(|row| row.seq).collect()
}

async fn ack(store: &Store, who: UserId, conversation: ConversationId, seq: u64) -> crate::Result<()> {
    store.ack(device(who).installation, 0, &[AckUpTo { conversation, seq }]).await
}

async fn commit_is_visible(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commit = talk.next(100)?;
    let row = commit.inbox[1].1.clone();
    make_seen(&store, vec![commit]).await?;
    equal(inbox(&store, BOB).await?, vec![row], "the inbox")?;
    let found = store.find(talk.id, device(ALICE).installation, message_id(1)).await.map_err(failed)?;
    equal(found, Some(1), "the seq found")?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(talk.state), "the state")
}

async fn a_durable_commit_counts(store: Store) -> Outcome {
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

async fn a_durable_row_may_be_acknowledged(store: Store) -> Outcome {
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

async fn commit_twice(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commit = talk.next(100)?;
    make_seen(&store, vec![commit.clone()]).await?;
    make_seen(&store, vec![commit]).await?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1], "the inbox")?;
    let record = store.device(device(BOB).installation, CursorFilter::No).await.map_err(failed)?;
    equal(record.waiting_rows, 1, "rows that wait")
}

async fn commits_of_many_conversations(store: Store) -> Outcome {
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
async fn concurrent_commits_lose_nothing(store: Store) -> Outcome {
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

async fn an_older_state_does_not_come_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let early = talk.next(100)?;
    make_seen(&store, vec![early.clone()]).await?;
    talk.fill(&store, 2).await?;
    make_seen(&store, vec![early]).await?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(talk.state), "the state")
}

async fn an_owner_that_is_behind_changes_nothing(store: Store) -> Outcome {
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

async fn rows_above_the_head_are_not_found(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 1).await?;
    // A commit that was interrupted before it wrote its state: the rows are new, the head is old.
    let mut torn = talk.next(100)?;
    torn.state.head.seq = 1;
    make_seen(&store, vec![torn]).await?;
    let found = store.find(talk.id, device(ALICE).installation, message_id(2)).await.map_err(failed)?;
    equal(found, None, "the seq found")?;
    let history = store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?;
    equal(seqs(&history), vec![1], "the history")?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1], "the inbox")
}

async fn rows_wait_for_their_own_ack(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 3).await?;
    ack(&store, ALICE, talk.id, 3).await.map_err(failed)?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1, 2, 3], "Bob's inbox after Alice's ack")?;
    ack(&store, BOB, talk.id, 2).await.map_err(failed)?;
    equal(seqs(&inbox(&store, BOB).await?), vec![3], "Bob's inbox after his own ack")?;
    equal(seqs(&inbox(&store, ALICE).await?), Vec::<u64>::new(), "Alice's inbox")
}

async fn expired_rows_leave_a_gap(store: Store) -> Outcome {
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

async fn inbox_is_in_drain_order(store: Store) -> Outcome {
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

async fn inbox_pages(store: Store) -> Outcome {
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
async fn a_row_may_appear_below_a_read_position(store: Store) -> Outcome {
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

async fn acks_never_go_back(store: Store) -> Outcome {
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

async fn ack_above_the_tail(store: Store) -> Outcome {
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

async fn a_rejected_ack_changes_nothing(store: Store) -> Outcome {
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

async fn an_acked_row_does_not_come_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commit = talk.next(100)?;
    make_seen(&store, vec![commit.clone()]).await?;
    ack(&store, BOB, talk.id, 1).await.map_err(failed)?;
    make_seen(&store, vec![commit]).await?;
    equal(seqs(&inbox(&store, BOB).await?), Vec::<u64>::new(), "the inbox after a late copy of the commit")
}

async fn a_device_that_joins_late_is_not_behind(store: Store) -> Outcome {
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

async fn generation_never_goes_back(store: Store) -> Outcome {
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

async fn history_is_newest_first_and_pages(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 7).await?;
    let newest = store.history(talk.id, 0, PageLimit::rows(3)).await.map_err(failed)?;
    equal(seqs(&newest), vec![7, 6, 5], "the newest page")?;
    let next = store.history(talk.id, 5, PageLimit::MAX).await.map_err(failed)?;
    equal(seqs(&next), vec![4, 3, 2, 1], "the page before 5")?;
    match &next[3].content {
        RowContent::Message { message, sealed } => {
            equal(sealed.len(), 0, "history holds no boxes")?;
            equal((message.id, message.body.len()), (message_id(1), 100), "the oldest message")
        }
        other => Err(format!("the oldest row is {other:?}")),
    }
}

async fn mailboxes_have_no_history(store: Store) -> Outcome {
    let mut talk = Conversation::new(
        ConversationId::mailbox(device(ALICE).installation, device(BOB).installation),
        1000,
    );
    talk.fill(&store, 1).await?;
    equal(store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?.len(), 0, "rows of history")?;
    match inbox(&store, BOB).await?.as_slice() {
        [InboxRow { content: RowContent::Message { message, .. }, .. }] => {
            equal(message.body.len(), 100, "the body of a message that history does not hold")
        }
        other => Err(format!("the inbox is {other:?}")),
    }
}

async fn state_reads_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 2).await?;
    equal(
        store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?,
        Some(talk.state.clone()),
        "the state",
    )?;
    // A read for a record that is already applied returns the same state.
    let again =
        store.state(talk.id, SenderFilter::All, Some(talk.state.head.position)).await.map_err(failed)?;
    equal(again, Some(talk.state), "the state to decide on")?;
    equal(seqs(&inbox(&store, BOB).await?), vec![1, 2], "the inbox")
}

async fn state_has_the_named_senders(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let (alice, bob, other) =
        (device(ALICE).installation, device(BOB).installation, InstallationId::from_bytes([0xee; 16]));
    let mut commit = talk.next(100)?;
    let at = commit.state.head.position;
    let sender = SenderState { incarnation: 2, client_seq: 9, prev: message_id(9) };
    commit.state.senders.insert(bob, sender);
    talk.state.senders.insert(bob, sender);
    make_seen(&store, vec![commit]).await?;
    let filters = [
        SenderFilter::No,
        SenderFilter::Of(&[]),
        SenderFilter::Of(&[bob]),
        SenderFilter::Of(&[other]),
        SenderFilter::Of(&[other, alice, bob]),
        SenderFilter::All,
    ];
    for filter in filters {
        for next in [None, Some(at)] {
            let state = store.state(talk.id, filter, next).await.map_err(failed)?;
            let expected = Some(talk.state.clone().with_senders(filter));
            equal(state, expected, &format!("the state with {filter:?}"))?;
        }
    }
    Ok(())
}

async fn unchanged_parts_of_a_state_stay(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 1).await?;
    let bob = device(BOB).installation;
    for change in 0..4 {
        // The members in the second commit, another sender in the third, and neither in the fourth.
        let mut commit = talk.next(100)?;
        commit.state.members = None;
        if change == 1 {
            let (user, installations) = (UserId::from_bytes([3; 16]), vec![]);
            talk.state.members.push(Member { user, list_version: 2, installations });
            commit.state.members = Some(talk.state.members.clone());
        }
        if change == 2 {
            let sender = SenderState { incarnation: 2, client_seq: 9, prev: message_id(9) };
            talk.state.senders.insert(bob, sender);
            commit.state.senders.insert(bob, sender);
        }
        make_seen(&store, vec![commit]).await?;
        let state = store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?;
        equal(state, Some(talk.state.clone()), &format!("the state after change {change}"))?;
    }
    Ok(())
}

async fn every_kind_of_row_reads_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let (alice, bob) = (device(ALICE), device(BOB).installation);
    let mut commit = talk.next(100)?;
    // A message with an audience, a skip, a record that could not be applied, the device's own message, and content of
    // a later release.
    let RowContent::Message { message, sealed } = commit.inbox[1].1.content.clone() else {
        return Err("the row of a recipient is no message".into());
    };
    let mut message = Message::clone(&message);
    message.audience =
        [(ALICE, 3), (BOB, MAX_NUMBER)].map(|(user, list_version)| Audience { user, list_version }).to_vec();
    (message.incarnation, message.prev) = (u32::MAX >> 1, message_id(MAX_NUMBER));
    let message = Arc::new(message);
    let own = RowContent::Own { message_id: message_id(4), client_seq: 4, incarnation: 2 };
    let empty = |reason, from| RowContent::Empty { reason, from };
    let time_us = commit.state.head.time_us;
    let contents = [
        RowContent::Message { message: message.clone(), sealed },
        empty(EmptyReason::Skip, 2),
        empty(EmptyReason::Poison, 3),
        own,
        RowContent::Unknown(encode_unknown_row(talk.id, 5, time_us + 4, false)),
    ];
    let row = |at: usize, content: &RowContent| InboxRow {
        conversation: talk.id,
        seq: at as u64 + 1,
        time_us: time_us + at as u64,
        joined: at == 0,
        content: content.clone(),
    };
    let rows: Vec<InboxRow> = contents.iter().enumerate().map(|(at, content)| row(at, content)).collect();
    commit.inbox = rows.iter().map(|row| (bob, row.clone())).collect();
    commit.history = rows.clone();
    commit.history[0].content = RowContent::Message { message, sealed: bytes::Bytes::new() };
    commit.history[3].content = empty(EmptyReason::Skip, 4);
    commit.ids = (1..=4).map(|n| (alice.installation, message_id(n), n)).collect();
    let mut state = talk.state.clone();
    state.head = Head {
        seq: 5,
        time_us: time_us + 4,
        group_epoch: 6,
        rules: Rules(u32::MAX),
        position: state.head.position,
    };
    state.members[1].list_version = 1 << 40;
    state.members[1].installations.push(alice.installation);
    state.members.push(Member { user: UserId::from_bytes([3; 16]), list_version: 2, installations: vec![] });
    let sender = SenderState { incarnation: 7, client_seq: 1 << 50, prev: MessageId::NIL };
    state.senders.insert(bob, sender);
    commit.state = state.clone().into();
    let history = commit.history.iter().rev().cloned().collect::<Vec<_>>();
    make_seen(&store, vec![commit]).await?;
    equal(inbox(&store, BOB).await?, rows, "the inbox")?;
    equal(store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?, history, "the history")?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(state), "the state")
}

async fn numbers_have_53_bits(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let (alice, bob) = (device(ALICE).installation, device(BOB).installation);
    talk.fill(&store, 1).await?;
    let mut commit = talk.next(100)?;
    commit.generations = vec![(alice, MAX_NUMBER - 1)];
    commit.state.head.position = LogPosition { generation: MAX_NUMBER, offset: MAX_NUMBER };
    let mut state = talk.state.clone();
    state.apply(&commit.state);
    make_seen(&store, vec![commit]).await?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(state), "the state")?;
    let generation = |store: Store, device| async move { store.generation(device).await.map_err(failed) };
    equal(generation(store.clone(), alice).await?, MAX_NUMBER - 1, "the generation of a commit")?;
    for raised in [MAX_NUMBER, MAX_NUMBER - 1] {
        store.ack(alice, raised, &[]).await.map_err(failed)?;
        store.ack(bob, raised, &[]).await.map_err(failed)?;
        equal(generation(store.clone(), alice).await?, MAX_NUMBER, "the generation after an ack")?;
        equal(generation(store.clone(), bob).await?, MAX_NUMBER, "the generation after the first ack")?;
    }
    let above = ack(&store, BOB, talk.id, MAX_NUMBER).await;
    equal(above.map_err(|e| e.kind()), Err(ErrorKind::Invalid), "the highest ack")?;
    let rows = store.history(talk.id, MAX_NUMBER, PageLimit::MAX).await.map_err(failed)?;
    equal(seqs(&rows), vec![2, 1], "the history below the highest seq")
}

async fn large_rows_read_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commit = talk.next(crate::model::limits::MAX_BODY)?;
    let row = commit.inbox[1].1.clone();
    make_seen(&store, vec![commit]).await?;
    equal(inbox(&store, BOB).await?, vec![row], "the inbox")
}

async fn waiting_is_counted(store: Store) -> Outcome {
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

async fn an_erased_device_is_empty(store: Store) -> Outcome {
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

async fn an_unknown_conversation_is_empty(store: Store) -> Outcome {
    let id = ConversationId::own(ALICE);
    equal(store.state(id, SenderFilter::All, None).await.map_err(failed)?, None, "the state")?;
    equal(store.history(id, 0, PageLimit::MAX).await.map_err(failed)?.len(), 0, "the history")?;
    equal(inbox(&store, ALICE).await?.len(), 0, "the inbox")?;
    let record = store.device(device(ALICE).installation, CursorFilter::All).await.map_err(failed)?;
    equal((record.waiting_rows, record.cursors.len()), (0, 0), "the device")?;
    let generation = store.generation(device(ALICE).installation).await.map_err(failed)?;
    equal(generation, 0, "the generation")
}
