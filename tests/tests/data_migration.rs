//! Migration from one process to a cluster: it is interrupted and resumed, and clients lose no message.
//! `CHAT_TEST_MIGRATE_MESSAGES` sets the number of generated messages beside those of real clients.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_core::backend::{
    Commit, ConversationState, FeedChange, Head, KeyDirectory as _, LogPosition, Member, MessageStore as _,
    Roster, Rules, SenderState,
};
use chat_core::device_list::SignedDeviceList;
use chat_core::envelope::{InboxRow, Message, RowContent};
use chat_core::wire::{ClientFrame, Registration};
use chat_core::{ConversationId, DeviceAddress, DeviceId, Handle, InstallationId, MessageId, UserId};
use chat_store::EmbeddedStore;
use chat_store::cassandra::CassandraStore;
use chat_tests::cli_process::register;
use chat_tests::cluster::{Cluster, Services, Size, fresh_name, server_command};
use chat_tests::corpus::real_lines;
use chat_tests::raw_client::User;
use chat_tests::scripted_client::{Progress, ScriptedClient, sendable};
use chat_tests::server::Server;
use chat_tests::{TestRng, binary};

/// A time of revocation, in milliseconds since 1970.
const REVOKED_MS: u64 = 1_760_000_000_000;

/// Fills a store with messages between pairs of generated users: one long conversation and many short ones.
/// The last five rows of each stay unacknowledged.
async fn fill(data: &Path, messages: u64) {
    let store = EmbeddedStore::open(data).unwrap();
    let mut rng = TestRng::new(11);
    let mut number = 0;
    let (mut made, mut now_ms) = (0, 1_760_000_000_000_u64);
    while made < messages {
        let count = if number == 0 { messages / 10 } else { (1 + rng.below(3000)).min(messages - made) };
        let mut commits = Vec::new();
        let mut state = ConversationState::default();
        let (alice, bob) = (person(number, 1), person(number, 2));
        let conversation = ConversationId::direct(alice.user, bob.user);
        let members = [alice, bob].map(|one| Member::new(one.user, 1, vec![one.installation]));
        state.roster = Roster::of_members(members.to_vec());
        for seq in 1..=count {
            now_ms += 50 + rng.below(1000);
            let mut random = [0; 10];
            random[..8].copy_from_slice(&rng.below(u64::MAX).to_be_bytes());
            let id = MessageId::new(now_ms, random);
            state.head = Head {
                seq,
                time_us: now_ms * 1000,
                position: LogPosition { generation: 7, offset: seq },
                rules: Rules::CURRENT,
                is_feed: false,
            };
            let prev = state.senders.get(&alice.installation).map_or(MessageId::NIL, |sender| sender.prev);
            state
                .senders
                .insert(alice.installation, SenderState { incarnation: 0, client_seq: seq, prev: id });
            let message = Arc::new(Message {
                id,
                sender: alice,
                client_seq: seq,
                prev,
                incarnation: 0,
                audience: Vec::new(),
                body: vec![seq as u8; 100 + rng.below(200) as usize].into(),
                sent_at: now_ms,
                options: chat_core::message_options::MessageOptions::default(),
                group: None,
            });
            let row = |joined, sealed: &'static [u8]| InboxRow {
                conversation,
                seq,
                time_us: now_ms * 1000,
                joined,
                content: RowContent::Message { message: message.clone(), sealed: sealed.into() },
            };
            commits.push(Commit {
                history: vec![row(false, b"")],
                ids: vec![(alice.installation, id, seq)],
                inbox: vec![(
                    bob.installation,
                    row(seq == 1, b"a box of about fifty bytes for this device ......"),
                )],
                generations: vec![(alice.installation, seq)],
                feeds: if seq == 3 {
                    vec![FeedChange { device: bob.installation, seq, joins: true }]
                } else {
                    Vec::new()
                },
                ..Commit::of(conversation, state.clone().into())
            });
            if commits.len() == 500 || seq == count {
                for outcome in store.commit(std::mem::take(&mut commits)).await {
                    outcome.unwrap();
                }
            }
        }
        let acked = count.saturating_sub(5);
        if acked > 0 {
            let ack = chat_core::envelope::AckUpTo { conversation, seq: acked };
            store.ack(bob.installation, 3, &[ack]).await.unwrap();
        }
        (made, number) = (made + count, number + 1);
    }
}

/// Registers Dave and deletes his account, and revokes the tokens of another user. Returns Dave's handle and list.
async fn delete_and_revoke(data: &Path) -> (Handle, SignedDeviceList) {
    let store = EmbeddedStore::open(data).unwrap();
    let ClientFrame::Register(registration) = User::new("dave").registration() else { unreachable!() };
    let Registration::Account { handle, list, .. } = *registration else { unreachable!() };
    store.register(&handle, &list).await.unwrap();
    store.delete(list.list().user).await.unwrap();
    store.revoke(person(0, 1).user, REVOKED_MS).await.unwrap();
    (handle, list)
}

fn person(number: u32, which: u8) -> DeviceAddress {
    let mut id = [which; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    DeviceAddress {
        user: UserId::from_bytes(id),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes(id),
    }
}

/// Runs `migrate-data`: kills it `kills` times, then lets it finish. Returns the output of the last run.
fn copy(from: &str, to: &str, kills: u64, pause: Duration) -> String {
    for _ in 0..kills {
        let mut child = Command::new(binary("chat-server-ref"))
            .args(["migrate-data", "--from", from, "--to", to])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(pause);
        assert!(child.try_wait().unwrap().is_none(), "the migration ended before the kill");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let start = Instant::now();
    let out = server_command(&["migrate-data", "--from", from, "--to", to]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    println!(
        "after {kills} kills, the last run took {:?}: {}",
        start.elapsed(),
        text.lines().last().unwrap()
    );
    text
}

#[test]
fn data_migrates_to_a_cluster_and_conversations_continue() {
    let Some(services) = Services::single() else { return };
    let messages =
        std::env::var("CHAT_TEST_MIGRATE_MESSAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000);
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let a = register(dir.path(), &server.url(), "alice");
    let b = register(dir.path(), &server.url(), "bob");
    let (from_a, from_b) = (real_lines(2000, 0), real_lines(1000, 2000));
    let (to_a, to_b) = (sendable(&from_b), sendable(&from_a));
    let progress = Progress::default();
    let end = Instant::now() + Duration::from_secs(120);
    let mut alice = ScriptedClient::new(a, vec![server.url()], "bob", &from_a, &to_a);
    let mut bob = ScriptedClient::new(b, vec![server.url()], "alice", &from_b, &to_b);
    // Both clients send, then Alice continues while Bob is offline. A few lines are too long and never
    // arrive.
    std::thread::scope(|scope| {
        scope.spawn(|| alice.run_until(900, 490, &progress, end));
        scope.spawn(|| bob.run_until(500, 490, &progress, end));
    });
    alice.run_until(1500, 490, &progress, end);
    server.terminate();
    let start = Instant::now();
    tokio::runtime::Runtime::new().unwrap().block_on(fill(&server.data, messages));
    println!("{messages} generated messages in {:?}", start.elapsed());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (dave, list) = runtime.block_on(delete_and_revoke(&server.data));

    let name = fresh_name();
    let from = format!("fjall:{}", server.data.display());
    let to = services.keyspace(&name);
    let pause = Duration::from_millis(1500 + messages / 100);
    let text = copy(&from, &to, 3, pause);
    let counts: BTreeMap<&str, u64> = counts(text.lines().last().unwrap());
    assert!(counts["messages"] >= messages && counts["accounts"] == 2, "{text}");
    runtime.block_on(async {
        let copied = CassandraStore::connect(&to.parse().unwrap()).await.unwrap();
        assert_eq!(copied.revocations(0).await.unwrap(), [(person(0, 1).user, REVOKED_MS)]);
        assert_eq!(copied.list_version(list.list().user, 1).await.unwrap().as_ref(), Some(&list));
        assert!(copied.register(&dave, &list).await.is_err(), "a deleted user is never used again");
    });
    let again = server_command(&["migrate-data", "--from", &from, "--to", &to]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("already finished"));
    let served = server_command(&["--data", server.data.to_str().unwrap(), "serve"]);
    assert!(!served.status.success() && String::from_utf8_lossy(&served.stderr).contains("sealed"));

    let cluster = Cluster::start(dir.path(), &services, &name, Size { gateways: 2, routers: 1 }, None);
    (alice.urls, bob.urls) = (cluster.urls(0), cluster.urls(1));
    let end = Instant::now() + Duration::from_secs(120);
    std::thread::scope(|scope| {
        let one = scope.spawn(|| alice.run(None, &progress, end));
        let two = scope.spawn(|| bob.run(None, &progress, end));
        assert!(one.join().is_ok() && two.join().is_ok(), "{}", cluster.logs());
    });
    println!(
        "{} lines before and after the migration: 0 lost, 0 duplicated, 0 out of order",
        to_a.len() + to_b.len()
    );
}

/// Parses the counts of a line such as `migrated: conversations 3 messages 5 …`.
fn counts(line: &str) -> BTreeMap<&str, u64> {
    let words: Vec<&str> = line.split([' ', ',', ':']).filter(|word| !word.is_empty()).collect();
    words.windows(2).filter_map(|pair| Some((pair[0], pair[1].parse().ok()?))).collect()
}
