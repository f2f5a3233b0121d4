//! Conformance tests of the Cassandra store on real nodes, at the addresses that
//! `tests/services/services.sh env` prints.
#![cfg(feature = "cassandra")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

mod bounds;
mod history;
mod timestamps;
mod verify;

use std::sync::Arc;

use chat_core::backend::{
    Command, Commit, CommitOutcome, ContactStore, ConversationState, CursorFilter, KeyDirectory, LogAnchor,
    LogIdentity, LogPosition, MessageStore, Operation, PageLimit, RecipientDevices, Record, Rules,
    SenderFilter, StateChange,
};
use chat_core::conformance::{FaultRates, ModelOptions, check_model};
use chat_core::delivery::{Decision, decide};
use chat_core::envelope::{AckUpTo, DeviceBox, InboxPosition, Publish, SendPosition};
use chat_core::{
    ConversationId, DeviceAddress, DeviceId, ErrorKind, InstallationId, MessageId, UserId, conformance,
};
use chat_store::cassandra::{CassandraSettings, CassandraStore};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;

/// A new keyspace for one test.
struct Keyspace {
    settings: CassandraSettings,
    session: Session,
}

impl Keyspace {
    /// Creates a keyspace. Prints a message and returns `None` if `variable` is not set.
    async fn new(variable: &str) -> Option<Self> {
        let Ok(url) = std::env::var(variable) else {
            println!("ignored: {variable} is not set: start Cassandra with tests/services/services.sh");
            return None;
        };
        let mut random = [0; 6];
        getrandom::fill(&mut random).unwrap();
        let mut settings: CassandraSettings = url.parse().unwrap();
        settings.keyspace = format!("test_{}", random.map(|byte| format!("{byte:02x}")).concat());
        CassandraStore::migrate(&settings).await.unwrap();
        let session = SessionBuilder::new().known_nodes(&settings.nodes).build().await.unwrap();
        Some(Self { settings, session })
    }

    /// Empties the tables and returns a store. The tables are emptied at the same time, because each waits for the disk.
    async fn store(&self) -> Arc<CassandraStore> {
        let tables = [
            "state_parts",
            "history",
            "disappearing",
            "feeds",
            "ids",
            "inbox",
            "cells",
            "accounts",
            "handles",
            "owners",
            "devices",
            "contacts",
            "revocations",
        ];
        let emptied = tables.map(|table| {
            let cql = format!("TRUNCATE {}.{table}", self.settings.keyspace);
            self.session.query_unpaged(cql, ())
        });
        futures_util::future::try_join_all(emptied).await.unwrap();
        Arc::new(CassandraStore::connect(&self.settings).await.unwrap())
    }

    fn name(&self) -> &str {
        &self.settings.keyspace
    }

    async fn remove(self) {
        let cql = format!("DROP KEYSPACE {}", self.settings.keyspace);
        self.session.query_unpaged(cql, ()).await.unwrap();
    }
}

async fn suites(variable: &str) {
    let Some(keyspace) = Keyspace::new(variable).await else { return };
    for case in conformance::cases::message_store() {
        let backend: Arc<dyn MessageStore> = keyspace.store().await;
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
    println!("{variable}: {} cases of MessageStore passed", conformance::cases::message_store().len());
    for case in conformance::cases::shared_message_store() {
        let backend: Arc<dyn MessageStore> = keyspace.store().await;
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
    for case in conformance::cases::key_directory() {
        let backend: Arc<dyn KeyDirectory> = keyspace.store().await;
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
    println!("{variable}: {} cases of KeyDirectory passed", conformance::cases::key_directory().len());
    for case in conformance::cases::contact_store() {
        let backend: Arc<dyn ContactStore> = keyspace.store().await;
        assert_eq!((case.run)(backend).await, Ok(()), "{}", case.name);
    }
    println!("{variable}: {} cases of ContactStore passed", conformance::cases::contact_store().len());
    anchors(&*keyspace.store().await).await;
    keyspace.remove().await;
}

async fn anchors(store: &CassandraStore) {
    let log = |generation, n| LogIdentity { generation, id: [n; 16], partitions: 4, opened: false };
    assert_eq!(store.log().await, Ok(None));
    assert_eq!(store.begin_log(log(1, 1)).await, Ok(log(1, 1)));
    assert_eq!(store.begin_log(log(1, 2)).await, Ok(log(1, 1)), "the first log of a generation stays");
    store.open_log(1).await.unwrap();
    assert_eq!(store.log().await, Ok(Some(LogIdentity { opened: true, ..log(1, 1) })));
    assert_eq!(store.begin_log(log(2, 3)).await, Ok(log(2, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_passes() {
    suites("CHAT_TEST_CASSANDRA").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_pass() {
    suites("CHAT_TEST_CASSANDRA_CLUSTER").await;
}

fn from_env(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs random histories from a time on. `CONFORMANCE_SEEDS` and `CONFORMANCE_OPERATIONS` set how many, and how long they
/// are. The store relies on seqs that begin at 1, and on times that are not in the future.
async fn random_histories(begin_us: u64, faults: Option<FaultRates>) {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let began = std::time::Instant::now();
    let options = ModelOptions {
        seeds: 0..from_env("CONFORMANCE_SEEDS", 5),
        operations: from_env("CONFORMANCE_OPERATIONS", 40) as usize,
        several_owners: true,
        faults,
        begin_us,
        long: (begin_us, 0),
    };
    let outcome = check_model(&options, || async { keyspace.store().await as Arc<dyn MessageStore> }).await;
    assert_eq!(outcome, Ok(()));
    println!("{} random histories passed in {} s", options.seeds.end, began.elapsed().as_secs());
    keyspace.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_histories_of_late_rows_equal_the_model() {
    random_histories(now_us() - 10 * MINUTE_US, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_histories_of_timely_rows_equal_the_model() {
    random_histories(now_us(), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_histories_with_faults_equal_the_model() {
    random_histories(now_us(), Some(FaultRates::SUITE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_refuses_keyspace_without_schema() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let other = CassandraSettings { keyspace: "test_missing".to_owned(), ..keyspace.settings.clone() };
    let refused = CassandraStore::connect(&other).await.err().unwrap();
    assert!(refused.what().contains("migrate"), "{refused}");
    let copies = CassandraSettings { replication: 9, ..keyspace.settings.clone() };
    let refused = CassandraStore::migrate(&copies).await.err().unwrap();
    assert!(refused.what().contains("fewer nodes"), "{refused}");
    keyspace.remove().await;
}

const MINUTE_US: u64 = 60 * 1_000_000;

fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_micros() as u64
}

fn device(n: u8) -> DeviceAddress {
    DeviceAddress {
        user: UserId::from_bytes([n; 16]),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes([n; 16]),
    }
}

/// Messages from one device to another, with commit times that the test chooses.
struct Talk {
    from: DeviceAddress,
    to: DeviceAddress,
    state: ConversationState,
}

impl Talk {
    fn id(&self) -> ConversationId {
        ConversationId::direct(self.from.user, self.to.user)
    }

    fn next(&mut self, time_us: u64) -> Commit {
        let sent = self.state.senders.get(&self.from.installation).copied().unwrap_or_default();
        let n = sent.client_seq + 1;
        let mut id = [self.from.installation.as_bytes()[0]; 16];
        id[8..].copy_from_slice(&n.to_be_bytes());
        let number = SendPosition {
            conversation: self.id(),
            message_id: MessageId::from_bytes(id),
            client_seq: n,
            prev: sent.prev,
            incarnation: 0,
            generation: n,
        };
        let boxes = vec![DeviceBox { installation: self.to.installation, data: vec![1; 20].into() }];
        let audience = Vec::new();
        let publish = Publish {
            number,
            first: true,
            audience,
            body: vec![n as u8; 100].into(),
            boxes,
            excluded: Vec::new(),
            sent_at: 0,
            options: chat_core::message_options::MessageOptions::default(),
            group: None,
        };
        let recipients = [self.from, self.to].map(|one| RecipientDevices {
            user: one.user,
            list_version: 1,
            installations: vec![one.installation],
        });
        let command =
            Command::new(self.from, Operation::Publish(publish), recipients.to_vec(), Rules::CURRENT);
        let position = LogPosition { generation: 1, offset: n };
        let record = Record { position, appended_us: time_us, command: Arc::new(command) };
        match decide(&self.state, &record, None) {
            Decision::Store(_, commit) => {
                self.state.apply(&commit.state);
                commit
            }
            other => unreachable!("{other:?}"),
        }
    }
}

impl Talk {
    /// Returns one commit with `n` messages of the current time.
    fn several(&mut self, n: usize) -> Commit {
        let mut all = self.next(now_us());
        for _ in 1..n {
            let more = self.next(now_us());
            all.history.extend(more.history);
            all.ids.extend(more.ids);
            all.inbox.extend(more.inbox);
            all.generations.extend(more.generations);
            all.state.merge(more.state);
        }
        all
    }
}

/// Commits until the commit is durable. Returns it if it is not visible yet.
async fn commit_durable(store: &CassandraStore, commit: Commit) -> Vec<Commit> {
    let outcomes = store.commit(vec![commit]).await.into_iter();
    let durable = outcomes.filter_map(|outcome| match outcome.unwrap() {
        CommitOutcome::Durable(commit) => Some(*commit),
        CommitOutcome::Visible => None,
    });
    durable.collect()
}

/// Commits until every reader sees the commit.
async fn commit(store: &CassandraStore, commit: Commit) {
    let durable = commit_durable(store, commit).await;
    store.make_visible(durable).await.unwrap();
}

/// An owner fails after it wrote the state of a commit and before its rows. Only an owner that processes the
/// commit's last record, or an earlier one, writes the rows: an owner at a later record may rely on them.
#[tokio::test(flavor = "multi_thread")]
async fn replay_finishes_durable_commit() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let mut alice = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let first = alice.next(now_us());
    commit(&store, first).await;
    let (bob, id) = (device(2).installation, alice.id());
    store.ack(bob, 0, &[AckUpTo { conversation: id, seq: 1 }]).await.unwrap();
    let last = alice.several(2);
    assert_eq!(commit_durable(&store, last.clone()).await, vec![last.clone()]);
    let name = &keyspace.settings.keyspace;
    let select = format!("SELECT WRITETIME(value) FROM {name}.state_parts WHERE part = 0x00 ALLOW FILTERING");
    let rows = keyspace.session.query_unpaged(select, ()).await.unwrap().into_rows_result().unwrap();
    assert_eq!(rows.single_row::<(i64,)>().unwrap().0 as u64, last.state.head.time_us);

    let at = last.state.head.position;
    let later = LogPosition { offset: at.offset + 1, ..at };
    for next in [None, Some(later)] {
        assert_eq!(store.state(id, SenderFilter::All, next).await, Ok(Some(alice.state.clone())));
        assert_eq!(drain(&store, bob).await, Vec::new(), "{next:?}");
    }
    let unwritten = store.history(id, 0, PageLimit::MAX).await.unwrap_err();
    assert_eq!(unwritten.kind(), ErrorKind::Unavailable, "a missing newest row is an error, not a hole");
    let below = store.history(id, 3, PageLimit::MAX).await.unwrap_err();
    assert_eq!(below.kind(), ErrorKind::Unavailable, "a page below the newest row is an error too");
    // The record before the last one of the commit, the last one, and a record of another log.
    let before = LogPosition { offset: at.offset - 1, ..at };
    let elsewhere = LogPosition { generation: 9, offset: 0 };
    for next in [before, at, elsewhere] {
        assert_eq!(store.state(id, SenderFilter::All, Some(next)).await, Ok(Some(alice.state.clone())));
        let rows = store.inbox(bob, InboxPosition::START, PageLimit::MAX).await.unwrap();
        let wanted: Vec<_> =
            last.inbox.iter().filter(|(device, _)| *device == bob).map(|(_, row)| row.clone()).collect();
        assert_eq!(rows, wanted);
        let newest = store.history(id, 0, PageLimit::rows(2)).await.unwrap();
        assert_eq!(newest, last.history.iter().rev().cloned().collect::<Vec<_>>());
        let found = store.find(id, device(1).installation, last.ids[1].1).await;
        assert_eq!(found, Ok(Some(3)));
        assert_eq!(store.generation(device(1).installation).await, Ok(3));
        // A row is visible once the tail of its cursor reaches it. The time of the first row stays known: it decides
        // which days a reader reads.
        keyspace.session.query_unpaged(format!("TRUNCATE {name}.cells"), ()).await.unwrap();
        let born = (&bob.as_bytes()[..], last.inbox[0].1.time_us as i64);
        let insert = format!("INSERT INTO {name}.cells (installation, born) VALUES (?, ?) USING TIMESTAMP 1");
        keyspace.session.query_unpaged(insert, born).await.unwrap();
        assert_eq!(drain(&store, bob).await, Vec::new());
        for table in ["history", "ids", "inbox"] {
            keyspace.session.query_unpaged(format!("TRUNCATE {name}.{table}"), ()).await.unwrap();
        }
    }
    // A new log does not replay the record, so beginning it finishes the commit.
    let log = |generation| LogIdentity { generation, id: [1; 16], partitions: 4, opened: false };
    for generation in [1, 2] {
        assert_eq!(drain(&store, bob).await, Vec::new(), "{generation}");
        store.begin_log(log(generation)).await.unwrap();
    }
    assert_eq!(drain(&store, bob).await.len(), 2);
    keyspace.remove().await;
}

/// The rows of a large commit are written before its state, so the state needs no redo data.
#[tokio::test(flavor = "multi_thread")]
async fn large_commit_stores_no_redo() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let mut alice = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let all = alice.several(101);
    commit(&store, all).await;
    assert_eq!(drain(&store, device(2).installation).await.len(), 101);
    let select = format!(
        "SELECT redo FROM {}.state_parts WHERE part = 0x00 ALLOW FILTERING",
        keyspace.settings.keyspace
    );
    let rows = keyspace.session.query_unpaged(select, ()).await.unwrap().into_rows_result().unwrap();
    assert_eq!(rows.single_row::<(Vec<u8>,)>().unwrap().0, Vec::<u8>::new());
    keyspace.remove().await;
}

/// Returns a state as the previous version encoded it, in one value.
fn format_1(state: &ConversationState) -> Vec<u8> {
    use chat_core::codec::state::{encode_head, encode_roster, encode_sender};
    let mut whole = encode_head(&state.head);
    for member in &state.roster.members {
        let mut one = encode_roster(&chat_core::backend::Roster::of_members(vec![member.clone()]));
        one[0] = 6 << 3 | 2;
        whole.extend(one);
    }
    for (installation, sender) in &state.senders {
        let sender = [&[1 << 3 | 2, 16], &installation.as_bytes()[..], &encode_sender(sender)].concat();
        whole.extend([7 << 3 | 2, sender.len() as u8]);
        whole.extend(sender);
    }
    whole
}

/// `connect` refuses a keyspace of the previous version. `migrate` upgrades it and keeps its data.
#[tokio::test(flavor = "multi_thread")]
async fn migrate_upgrades_keyspace_of_previous_version() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let mut alice = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let first = alice.next(now_us());
    commit(&store, first).await;
    let name = &keyspace.settings.keyspace;
    for cql in [
        format!("TRUNCATE {name}.state_parts"),
        format!(
            "CREATE TABLE {name}.state (conversation blob PRIMARY KEY, seq bigint, state blob, redo blob)"
        ),
        format!("UPDATE {name}.meta SET version = 2 WHERE one = 'life' IF version = 3"),
    ] {
        keyspace.session.query_unpaged(cql, ()).await.unwrap();
    }
    // The last commit of the previous version has redo data without parts of the state, and its rows are missing.
    let last = alice.next(now_us());
    alice.state.head.rules = Rules::default();
    let whole = format_1(&alice.state);
    let mut rows = last.clone();
    rows.state = StateChange::default();
    let put = format!("INSERT INTO {name}.state (conversation, seq, state, redo) VALUES (?, 2, ?, ?)");
    let values = (alice.id().as_bytes().to_vec(), whole, chat_core::codec::redo::encode(&rows));
    keyspace.session.query_unpaged(put, values).await.unwrap();
    let refused = CassandraStore::connect(&keyspace.settings).await.err().unwrap();
    assert!(refused.what().contains("migrate"), "{refused}");
    CassandraStore::migrate(&keyspace.settings).await.unwrap();
    let migrated = CassandraStore::connect(&keyspace.settings).await.unwrap();
    assert_eq!(migrated.identity(), store.identity());
    let next = Some(alice.state.head.position);
    assert_eq!(migrated.state(alice.id(), SenderFilter::All, next).await, Ok(Some(alice.state.clone())));
    assert_eq!(drain(&migrated, device(2).installation).await.len(), 2);
    CassandraStore::migrate(&keyspace.settings).await.unwrap();
    assert_eq!(migrated.state(alice.id(), SenderFilter::All, None).await, Ok(Some(alice.state.clone())));
    keyspace.remove().await;
}

/// A partition of history holds 10,000 rows.
#[tokio::test(flavor = "multi_thread")]
async fn history_page_spans_two_partitions() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let mut talk = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    talk.state.head.seq = 9_994;
    for _ in 0..5 {
        let next = talk.next(now_us());
        commit(&store, next).await;
    }
    let across = talk.several(5);
    commit(&store, across).await;
    let page = |before, rows| {
        let (store, id) = (store.clone(), talk.id());
        async move {
            let rows = store.history(id, before, PageLimit::rows(rows)).await.unwrap();
            rows.iter().map(|row| row.seq).collect::<Vec<_>>()
        }
    };
    assert_eq!(page(0, 10).await, (9_995..=10_004).rev().collect::<Vec<_>>());
    assert_eq!(page(10_001, 2).await, [10_000, 9_999]);
    assert_eq!(page(10_000, 2).await, [9_999, 9_998]);
    keyspace.remove().await;
}

/// Returns the positions of all unacknowledged rows of a device, read page by page.
async fn drain(store: &CassandraStore, device: InstallationId) -> Vec<InboxPosition> {
    let mut places = Vec::new();
    loop {
        let after = places.last().copied().unwrap_or(InboxPosition::START);
        let page = store.inbox(device, after, PageLimit::rows(70)).await.unwrap();
        if page.is_empty() {
            return places;
        }
        places.extend(page.iter().map(chat_core::envelope::InboxRow::position));
    }
}

/// The conformance suites use times of 1970, so all their rows are late. These rows are of the last three
/// days.
#[tokio::test(flavor = "multi_thread")]
async fn inbox_of_several_days_is_read_in_order_and_trimmed_behind_clock() {
    let Some(keyspace) = Keyspace::new("CHAT_TEST_CASSANDRA").await else { return };
    let store = keyspace.store().await;
    let now = now_us();
    let bob = device(2).installation;
    let mut alice = Talk { from: device(1), to: device(2), state: ConversationState::default() };
    let mut carol = Talk { from: device(3), to: device(2), state: ConversationState::default() };
    // Every quarter of an hour for three days, from Alice and Carol in turn: all of these rows are late.
    for n in 0..288 {
        let time_us = now - (288 - n) * 15 * MINUTE_US;
        let talk = if n % 2 == 0 { &mut alice } else { &mut carol };
        let next = talk.next(time_us);
        commit(&store, next).await;
    }
    // 200 more rows within the last minute, which are not late.
    for n in 0..200 {
        let next = alice.next(now - MINUTE_US + n * 250_000);
        commit(&store, next).await;
    }
    let all = drain(&store, bob).await;
    assert_eq!(all.len(), 488);
    assert!(all.is_sorted(), "late rows and rows of days are in one order");
    // Acks in several steps, as a device sends them. Each exceeds the threshold at which the store deletes
    // rows.
    for ack in [100, 200, 300] {
        let acks = [AckUpTo { conversation: alice.id(), seq: ack }];
        store.ack(bob, 1, &acks).await.unwrap();
        let left = drain(&store, bob).await;
        assert_eq!(left.len() as u64, 488 - ack);
        let record = MessageStore::device(&*store, bob, CursorFilter::No).await.unwrap();
        assert_eq!(record.waiting_rows, 488 - ack);
    }
    let all_of = |talk: &Talk| AckUpTo { conversation: talk.id(), seq: talk.state.head.seq };
    // The first of these trims scanned the whole inbox, the others only newer rows. No acknowledged row of
    // Alice's last minute is left.
    let kept = format!(
        "SELECT count(*) FROM {}.inbox WHERE installation = ? AND day > 0 AND conversation = ? AND seq <= 300 \
         ALLOW FILTERING",
        keyspace.settings.keyspace
    );
    let with_alice = alice.id();
    let of_alice = (&bob.as_bytes()[..], &with_alice.as_bytes()[..]);
    let rows = keyspace.session.query_unpaged(kept, of_alice).await.unwrap();
    let (kept,) = rows.into_rows_result().unwrap().first_row::<(i64,)>().unwrap();
    assert_eq!(kept, 0, "acknowledged rows since the last trim are deleted");
    // A new row with an older time than those still waits for the device.
    let behind = carol.next(now - 50_000_000);
    commit(&store, behind).await;
    assert_eq!(drain(&store, bob).await.len(), 488 - 300 + 1);
    // Another process acknowledges the rest: its first trim scans the whole inbox.
    let other = CassandraStore::connect(&keyspace.settings).await.unwrap();
    other.ack(bob, 1, &[all_of(&alice), all_of(&carol)]).await.unwrap();
    assert_eq!(drain(&store, bob).await, Vec::new());
    let kept = format!(
        "SELECT count(*) FROM {}.inbox WHERE installation = ? ALLOW FILTERING",
        keyspace.settings.keyspace
    );
    let rows = keyspace.session.query_unpaged(kept, (&bob.as_bytes()[..],)).await.unwrap();
    let (kept,) = rows.into_rows_result().unwrap().first_row::<(i64,)>().unwrap();
    assert_eq!(kept, 0, "acknowledged rows are deleted");
    let floor =
        format!("SELECT floor FROM {}.cells WHERE installation = ? LIMIT 1", keyspace.settings.keyspace);
    let rows = keyspace.session.query_unpaged(floor, (&bob.as_bytes()[..],)).await.unwrap();
    let (floor,) = rows.into_rows_result().unwrap().first_row::<(i64,)>().unwrap();
    assert!(now - (floor as u64) > 4 * MINUTE_US, "the floor stays behind the clock");
    // A shard that was stopped for a day continues: its row is below the floor and still visible.
    let mut dave = Talk { from: device(4), to: device(2), state: ConversationState::default() };
    let (late, fresh) = (dave.next(now - 24 * 60 * MINUTE_US), carol.next(now));
    assert!(late.state.head.time_us < floor as u64);
    commit(&store, fresh).await;
    commit(&store, late).await;
    let seen: Vec<_> = drain(&store, bob).await.iter().map(|place| place.conversation).collect();
    assert_eq!(seen, vec![dave.id(), carol.id()]);
    keyspace.remove().await;
}
