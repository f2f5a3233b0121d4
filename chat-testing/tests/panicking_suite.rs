//! A suite that panics on some inputs, or ends the process: each input is rejected alone, and the client goes on.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chat_client::prelude::*;
use chat_client::suite::{AcceptResult, DecryptResult, GroupCiphertext, Peer, PrekeyBundle, SuiteTx, Table};
use chat_client::{GapReason, RefusedReason, Status};
use chat_core::suite::SuiteId;
use chat_core::wire::OneTimePrekey;
use chat_core::{ConversationId, InstallationId, SenderKeyId, replica::Unreadable};
use chat_testing::{TestServer, Unencrypted};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

/// Counts and switches that the test and its suite share.
#[derive(Debug, Default)]
struct Seen {
    panics: AtomicU32,
    /// The next call of `start_session` panics.
    bundle: AtomicBool,
    /// Bundles of second devices are rejected.
    rejects_second: AtomicBool,
    /// A panic ends the process, as it does in a browser.
    aborts: bool,
}

/// Encrypts nothing. Panics on bodies that contain a word, after it changed its tables, as a bug in a library would.
#[derive(Debug)]
struct Panicking {
    inner: Unencrypted,
    seen: Arc<Seen>,
    /// Sessions are remembered in memory and written by `flush`: the number of messages opened.
    opened: u64,
}

impl Panicking {
    fn new(seen: &Arc<Seen>) -> Box<Self> {
        Box::new(Self { inner: Unencrypted::new(), seen: seen.clone(), opened: 0 })
    }

    fn fail(&self) -> ! {
        if self.seen.aborts {
            std::process::abort();
        }
        self.seen.panics.fetch_add(1, Ordering::SeqCst);
        panic!("a library found a broken invariant")
    }
}

fn contains(content: &[u8], word: &str) -> bool {
    content.windows(word.len()).any(|part| part == word.as_bytes())
}

impl Suite for Panicking {
    fn id(&self) -> SuiteId {
        self.inner.id()
    }

    fn identity(&mut self, tx: &mut dyn SuiteTx) -> Result<Bytes> {
        self.inner.identity(tx)
    }

    fn has_session(&mut self, tx: &mut dyn SuiteTx, peer: &Peer) -> Result<bool> {
        Ok(tx.get(Table::Sessions, peer.installation.as_bytes())?.is_some())
    }

    fn start_session(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, _: &PrekeyBundle) -> Result<()> {
        if self.seen.rejects_second.load(Ordering::SeqCst) && peer.device.get() == 2 {
            return Err(Error::new(ErrorKind::Invalid, "the bundle is too old"));
        }
        tx.put(Table::Sessions, peer.installation.as_bytes(), b"half")?;
        if self.seen.bundle.swap(false, Ordering::SeqCst) {
            self.fail();
        }
        tx.put(Table::Sessions, peer.installation.as_bytes(), b"whole")
    }

    fn seal(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, plaintext: &[u8]) -> Result<Bytes> {
        assert_eq!(tx.get(Table::Sessions, peer.installation.as_bytes())?.as_deref(), Some(&b"whole"[..]));
        self.inner.seal(tx, peer, plaintext)
    }

    fn open(&mut self, tx: &mut dyn SuiteTx, peer: &Peer, sealed: &[u8]) -> Result<DecryptResult> {
        let written = tx.get(Table::SeenBaseKeys, b"opened")?.map_or(0, |n| u64::from(n[0]));
        self.opened = self.opened.max(written) + 1;
        self.inner.open(tx, peer, sealed)
    }

    fn end_session(&mut self, tx: &mut dyn SuiteTx, peer: InstallationId) -> Result<()> {
        tx.delete(Table::Sessions, peer.as_bytes())
    }

    fn encrypt_body(&self, _: &[u8; 32], _: &[u8], content: &[u8]) -> Option<Vec<u8>> {
        if contains(content, "unsealable") {
            self.fail();
        }
        Some(content.to_vec())
    }

    fn decrypt_body(&self, _: &[u8], _: &[u8], body: &[u8]) -> Option<Vec<u8>> {
        if contains(body, "poison") {
            self.fail();
        }
        Some(body.to_vec())
    }

    fn make_prekeys(
        &mut self,
        tx: &mut dyn SuiteTx,
        first: u64,
        count: u64,
    ) -> Result<(Bytes, Vec<OneTimePrekey>)> {
        self.inner.make_prekeys(tx, first, count)
    }

    fn seal_group(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        key: SenderKeyId,
        plaintext: &[u8],
        distribute: bool,
    ) -> Result<GroupCiphertext> {
        self.inner.seal_group(tx, group, key, plaintext, distribute)
    }

    fn accept_sender_key(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        sender: &Peer,
        distribution: &[u8],
    ) -> Result<AcceptResult> {
        self.inner.accept_sender_key(tx, group, sender, distribution)
    }

    fn open_group(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        sender: &Peer,
        shared: &[u8],
        control: &[u8],
    ) -> Result<DecryptResult> {
        self.inner.open_group(tx, group, sender, shared, control)
    }

    fn drop_sender_key(
        &mut self,
        tx: &mut dyn SuiteTx,
        group: ConversationId,
        key: SenderKeyId,
    ) -> Result<()> {
        self.inner.drop_sender_key(tx, group, key)
    }

    fn reset(&mut self, tx: &mut dyn SuiteTx) -> Result<()> {
        tx.clear(Table::Sessions)?;
        self.inner.reset(tx)
    }

    fn clear_cache(&mut self) {
        self.opened = 0;
    }

    fn flush(&mut self, tx: &mut dyn SuiteTx) -> Result<()> {
        if self.opened > 0 {
            tx.put(Table::SeenBaseKeys, b"opened", &[u8::try_from(self.opened).unwrap()])?;
        }
        Ok(())
    }
}

async fn start() -> (TestServer, Client, Client, Arc<Seen>) {
    let server = TestServer::start().await.unwrap();
    let seen = Arc::new(Seen::default());
    let alice = server.client("alice").await.unwrap();
    let bob = server.client_with("bob", Panicking::new(&seen)).await.unwrap();
    (server, alice, bob, seen)
}

#[tokio::test]
async fn row_on_which_the_suite_panics_is_shown_as_malformed_and_does_not_stop_the_client() {
    let (server, alice, bob, seen) = start().await;
    bob.suspend().await.unwrap();
    for text in ["one", "poison", "two", "poison again", "three"] {
        alice.send(bob.user(), text).await.unwrap();
    }
    alice.drained().await.unwrap();
    bob.resume().await.unwrap();
    let mut shown = Vec::new();
    for _ in 0..5 {
        let message = server.next_message(&bob).await.unwrap();
        shown.push((message.seq, message.content().clone()));
    }
    let text = |text: &str| Content::Text(text.into());
    let malformed = || Content::Unreadable(Unreadable::Malformed);
    let wanted = [(1, text("one")), (2, malformed()), (3, text("two")), (4, malformed()), (5, text("three"))];
    assert_eq!(shown, wanted);
    assert_eq!(seen.panics.load(Ordering::SeqCst), 2, "each row is given to the suite once");
    // The row is acknowledged: a restart does not open it again.
    bob.close().await;
    let bob = server.client_with("bob", Panicking::new(&seen)).await.unwrap();
    alice.send(bob.user(), "four").await.unwrap();
    loop {
        if server.next_message(&bob).await.unwrap().text() == Some("four") {
            break;
        }
    }
    assert_eq!(seen.panics.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn draft_on_which_the_suite_panics_is_refused_and_others_are_sent() {
    let (server, alice, bob, seen) = start().await;
    // The first message waits for a prekey bundle, so it is durable when it is sealed.
    let broken = bob.send(alice.user(), "unsealable").await.unwrap();
    let after = bob.send(alice.user(), "after").await.unwrap();
    timeout(LIMIT, after.stored()).await.unwrap().unwrap();
    assert!(timeout(LIMIT, broken.stored()).await.unwrap().is_err());
    let status = broken.status().await.unwrap();
    assert!(matches!(status, Status::Refused(RefusedReason::CannotEncrypt)), "{status:?}");
    assert_eq!(server.next_message(&alice).await.unwrap().text(), Some("after"));
    // With a session, the message is sealed before it is durable: the call returns the error.
    let refused = timeout(LIMIT, bob.send(alice.user(), "unsealable too")).await.unwrap();
    assert_eq!(refused.map(drop).unwrap_err().kind(), ErrorKind::Invalid);
    bob.send(alice.user(), "last").await.unwrap();
    assert_eq!(server.next_message(&alice).await.unwrap().text(), Some("last"));
    assert_eq!(seen.panics.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn bundle_on_which_the_suite_panics_is_rejected_and_other_users_are_reached() {
    let (server, alice, bob, seen) = start().await;
    let carol = server.client("carol").await.unwrap();
    let mut events = bob.events("bob").await.unwrap();
    seen.bundle.store(true, Ordering::SeqCst);
    let waits = bob.send(alice.user(), "hello").await.unwrap();
    let rejected =
        async { while !matches!(events.next().await.unwrap().unwrap().event, Event::PrekeysRejected) {} };
    timeout(LIMIT, rejected).await.unwrap();
    // `seal` asserts that it never sees the half of a session that the panic left.
    bob.send(carol.user(), "hello").await.unwrap();
    assert_eq!(server.next_message(&carol).await.unwrap().text(), Some("hello"));
    assert!(matches!(waits.status().await.unwrap(), Status::Queued));
    assert_eq!(seen.panics.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn device_with_unusable_prekeys_does_not_block_its_user() {
    let (server, alice, bob, seen) = start().await;
    let tablet = server.linked_client(&alice, "tablet", Box::new(Unencrypted::new())).await.unwrap();
    seen.rejects_second.store(true, Ordering::SeqCst);
    let (mut events, mut gaps) = (bob.events("bob").await.unwrap(), tablet.events("gaps").await.unwrap());
    let began = std::time::Instant::now();
    for text in ["one", "two"] {
        let ticket = bob.send(alice.user(), text).await.unwrap();
        timeout(LIMIT, ticket.stored()).await.unwrap().unwrap();
        assert_eq!(server.next_message(&alice).await.unwrap().text(), Some(text));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "the message waited for the device");
    let excluded = async {
        loop {
            if let Event::DeviceExcluded { user, device } = events.next().await.unwrap().unwrap().event {
                return (user.id, device);
            }
        }
    };
    assert_eq!(timeout(LIMIT, excluded).await.unwrap(), (alice.user(), tablet.device()));
    let gap = async {
        loop {
            if let Event::Gap { from_seq, reason, .. } = gaps.next().await.unwrap().unwrap().event {
                return (from_seq, reason);
            }
        }
    };
    assert_eq!(timeout(LIMIT, gap).await.unwrap(), (1, GapReason::Excluded));
    // Its next bundle is accepted: after a while the bundle is claimed again.
    seen.rejects_second.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    bob.send(alice.user(), "three").await.unwrap();
    assert_eq!(server.next_message(&tablet).await.unwrap().text(), Some("three"));
}

/// The environment of a child process: the URL of the server, and the directory of the profiles.
const CHILD: &str = "CHAT_TEST_CHILD";

fn bob_of(url: &str, directory: &std::path::Path, aborts: bool) -> chat_client::ClientConfig {
    let suite = Panicking::new(&Arc::new(Seen { aborts, ..Seen::default() }));
    chat_client::ClientConfig::new(url, "bob", suite).unwrap().directory(directory)
}

/// The child process of the next test: prints the messages that bob receives, up to the last one.
#[tokio::test]
async fn child() {
    let Ok(given) = std::env::var(CHILD) else { return };
    let (url, directory) = given.split_once(' ').unwrap();
    let bob = Client::open(bob_of(url, directory.as_ref(), true)).await.unwrap();
    let mut events = bob.events("child").await.unwrap();
    loop {
        let record = events.next().await.unwrap().unwrap();
        if let Event::Message(message) = &record.event {
            println!("shown {} {:?}", message.seq, message.content());
            events.handled(&record).await.unwrap();
            if message.text() == Some("last") {
                bob.close().await;
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_that_ended_the_process_twice_is_not_opened_again() {
    let builder = chat_server::Server::builder().in_memory().open_registration();
    let server = TestServer::start_with(builder.listen("127.0.0.1:0")).await.unwrap();
    let url = server.server().url().unwrap();
    let alice = server.client("alice").await.unwrap();
    let profiles = tempfile::tempdir().unwrap();
    let bob = Client::register(bob_of(&url, profiles.path(), false), "bob").await.unwrap();
    bob.ready().await.unwrap();
    let user = bob.user();
    bob.close().await;
    for text in ["one", "poison", "two", "last"] {
        alice.send(user, text).await.unwrap();
    }
    alice.drained().await.unwrap();
    // Otherwise she would send the unreadable message again.
    alice.close().await;
    let run = || {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["child", "--exact", "--nocapture"]);
        child.env(CHILD, format!("{url} {}", profiles.path().display()));
        tokio::task::block_in_place(|| child.output().unwrap())
    };
    let runs: Vec<_> = (0..3).map(|_| run()).collect();
    let succeeded: Vec<bool> = runs.iter().map(|run| run.status.success()).collect();
    assert_eq!(succeeded, [false, false, true], "{}", String::from_utf8_lossy(&runs[2].stderr));
    let mut shown: Vec<String> = runs
        .iter()
        .flat_map(|run| String::from_utf8_lossy(&run.stdout).lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.starts_with("shown"))
        .collect();
    // A run that ended between an event and its cursor shows the event again.
    shown.dedup();
    let wanted = [
        "shown 1 Text(\"one\")",
        "shown 2 Unreadable(NoSession)",
        "shown 3 Text(\"two\")",
        "shown 4 Text(\"last\")",
    ];
    assert_eq!(shown, wanted);
}
