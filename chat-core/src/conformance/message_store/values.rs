//! Cases of history and states, and of the values that read back.

use super::*;
use crate::backend::{RecipientDevices, Roster};
use crate::model::group::{GroupAction, GroupChange, GroupPart};
use crate::model::id::MediaId;
use crate::model::limits::MAX_EXPIRY_MS;
use crate::model::message_options::{Deletion, MessageOptions, Urgency};
use crate::model::roster::{GroupPolicy, Role};

pub(super) async fn history_is_newest_first_and_pages(store: Store) -> Outcome {
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

pub(super) async fn mailboxes_have_no_history(store: Store) -> Outcome {
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

pub(super) async fn state_reads_back(store: Store) -> Outcome {
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

pub(super) async fn state_has_the_named_senders(store: Store) -> Outcome {
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

pub(super) async fn unchanged_parts_of_a_state_stay(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    talk.fill(&store, 1).await?;
    let bob = device(BOB).installation;
    for change in 0..4 {
        // The members in the second commit, another sender in the third, and neither in the fourth.
        let mut commit = talk.next(100)?;
        commit.state.roster = None;
        if change == 1 {
            let (user, installations) = (UserId::from_bytes([3; 16]), vec![]);
            talk.state.roster.members.push(Member::new(user, 2, installations));
            commit.state.roster = Some(talk.state.roster.clone());
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

pub(super) async fn every_kind_of_row_reads_back(store: Store) -> Outcome {
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
    message.options = MessageOptions {
        urgency: Urgency::Urgent,
        wake: vec![BOB],
        expires_after_ms: MAX_EXPIRY_MS,
        media: vec![MediaId::from_bytes([7; 16])],
        deletion: Some(Box::new(Deletion {
            seq: MAX_NUMBER,
            installation: alice.installation,
            message_id: message_id(1),
            signature: vec![9; 64].into(),
        })),
    };
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
        rules: Rules(u32::MAX),
        position: state.head.position,
        is_feed: true,
    };
    state.roster.members[1].list_version = 1 << 40;
    state.roster.members[1].installations.push(alice.installation);
    state.roster.members.push(Member::new(UserId::from_bytes([3; 16]), 2, vec![]));
    let sender = SenderState { incarnation: 7, client_seq: 1 << 50, prev: MessageId::NIL };
    state.senders.insert(bob, sender);
    commit.state = state.clone().into();
    let history = commit.history.iter().rev().cloned().collect::<Vec<_>>();
    make_seen(&store, vec![commit]).await?;
    equal(inbox(&store, BOB).await?, rows, "the inbox")?;
    equal(store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?, history, "the history")?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(state), "the state")
}

pub(super) async fn groups_read_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let (alice, bob) = (device(ALICE).installation, device(BOB).installation);
    let mut commit = talk.next(100)?;
    let lists = [(ALICE, alice), (BOB, bob)].map(|(user, installation)| {
        let installations = vec![installation, InstallationId::from_bytes([8; 16])];
        RecipientDevices { user, list_version: 1 << 40, installations }
    });
    let policy = GroupPolicy { send: Role::Admin, add: Role::Member, edit: Role::Owner };
    let create = GroupAction::Create { members: vec![BOB], policy };
    let ban = GroupAction::Remove { users: vec![UserId::from_bytes([9; 16])], ban: true };
    let refused = |refusal| format!("the roster refused {refusal:?}");
    let roster = Roster::default().change(talk.id, ALICE, Some(&create), &lists, 1).map_err(refused)?;
    let roster = roster.change(talk.id, ALICE, Some(&ban), &[], 1).map_err(refused)?;
    let part = GroupPart {
        roster_version: roster.version,
        digest: roster.digest,
        shared: vec![1; 50].into(),
        control: vec![2; 5].into(),
        change: Some(GroupChange::new(ban.encode(), vec![3; 64].into()).map_err(failed)?),
        lists: lists.to_vec(),
    };
    // A device that has the sender key gets no box.
    let RowContent::Message { message, .. } = commit.inbox[1].1.content.clone() else {
        return Err("the row of a recipient is no message".into());
    };
    let message = Arc::new(Message { group: Some(Box::new(part)), ..Message::clone(&message) });
    let content = RowContent::Message { message, sealed: bytes::Bytes::new() };
    commit.inbox[1].1.content = content.clone();
    commit.history[0].content = content;
    let (mut state, rows) = (talk.state.clone(), commit.history.clone());
    state.roster = roster;
    commit.state.roster = Some(state.roster.clone());
    let waiting = vec![commit.inbox[1].1.clone()];
    make_seen(&store, vec![commit]).await?;
    equal(inbox(&store, BOB).await?, waiting, "the inbox")?;
    equal(store.history(talk.id, 0, PageLimit::MAX).await.map_err(failed)?, rows, "the history")?;
    equal(store.state(talk.id, SenderFilter::All, None).await.map_err(failed)?, Some(state), "the state")
}

pub(super) async fn numbers_have_53_bits(store: Store) -> Outcome {
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

pub(super) async fn large_rows_read_back(store: Store) -> Outcome {
    let mut talk = Conversation::direct();
    let commit = talk.next(crate::model::limits::MAX_BODY)?;
    let row = commit.inbox[1].1.clone();
    make_seen(&store, vec![commit]).await?;
    equal(inbox(&store, BOB).await?, vec![row], "the inbox")
}

pub(super) async fn an_unknown_conversation_is_empty(store: Store) -> Outcome {
    let id = ConversationId::own(ALICE);
    equal(store.state(id, SenderFilter::All, None).await.map_err(failed)?, None, "the state")?;
    equal(store.history(id, 0, PageLimit::MAX).await.map_err(failed)?.len(), 0, "the history")?;
    equal(inbox(&store, ALICE).await?.len(), 0, "the inbox")?;
    let record = store.device(device(ALICE).installation, CursorFilter::All).await.map_err(failed)?;
    equal((record.waiting_rows, record.cursors.len()), (0, 0), "the device")?;
    let generation = store.generation(device(ALICE).installation).await.map_err(failed)?;
    equal(generation, 0, "the generation")
}
