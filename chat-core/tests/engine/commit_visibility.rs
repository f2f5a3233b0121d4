//! Deliveries while a commit is durable and not yet visible to every reader.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use chat_core::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, LogPosition, MessageStore,
    PageLimit, SenderFilter, StoreIdentity,
};
use chat_core::delivery::{SessionEvent, SessionHandle};
use chat_core::envelope::{InboxPosition, InboxRow};
use chat_core::memory::{MemoryPush, MemoryStore};
use chat_core::{Error, ErrorKind, InstallationId, Result, Seq, UserId};
use tokio::sync::Semaphore;

use super::*;

/// A store that makes commits durable at once, and visible once a permit is added. It counts the calls of `device` and of
/// `history_after`.
#[derive(Debug)]
pub(super) struct Later {
    store: MemoryStore,
    /// Permits of `make_visible`; it fails if the semaphore is closed.
    pub(super) turns: Semaphore,
    pub(super) device_reads: AtomicUsize,
    pub(super) history_reads: AtomicUsize,
}

impl Later {
    pub(super) fn new(permits: usize) -> Self {
        Self {
            store: MemoryStore::new(),
            turns: Semaphore::new(permits),
            device_reads: AtomicUsize::new(0),
            history_reads: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl MessageStore for Later {
    fn identity(&self) -> StoreIdentity {
        self.store.identity()
    }

    async fn state(
        &self,
        id: ConversationId,
        senders: SenderFilter<'_>,
        next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        self.store.state(id, senders, next).await
    }

    async fn find(&self, id: ConversationId, sender: InstallationId, of: MessageId) -> Result<Option<Seq>> {
        self.store.find(id, sender, of).await
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        commits.into_iter().map(|commit| Ok(CommitOutcome::Durable(Box::new(commit)))).collect()
    }

    async fn make_visible(&self, commits: Vec<Commit>) -> Result<()> {
        let turn = self.turns.acquire().await;
        self.store.commit(commits).await;
        turn.map(|turn| turn.forget()).map_err(|_| Error::new(ErrorKind::Unavailable, "partly visible"))
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        self.store.ack(device, generation, acks).await
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.store.inbox(device, after, limit).await
    }

    async fn history(&self, id: ConversationId, before: Seq, limit: PageLimit) -> Result<Vec<InboxRow>> {
        self.store.history(id, before, limit).await
    }

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        self.history_reads.fetch_add(1, Ordering::Relaxed);
        self.store.history_after(conversation, after, limit).await
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        self.store.feeds(device).await
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        self.store.generation(device).await
    }

    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord> {
        self.device_reads.fetch_add(1, Ordering::Relaxed);
        self.store.device(device, cursors).await
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.store.expire(before_us, limit).await
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        self.store.expire_history(before_us, limit).await
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        self.store.expire_messages(now_us, limit).await
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        self.store.clear_history(conversation, user, through).await
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        self.store.cleared(conversation, user).await
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        self.store.erase(device).await
    }
}

/// A message of Alice to Bob is in the log.
struct Scene {
    engine: Engine,
    store: Arc<Later>,
    push: Arc<MemoryPush>,
    alice: User,
    bob: User,
}

impl Scene {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.set_us(START_US);
        let store = Arc::new(Later::new(0));
        let push = Arc::new(MemoryPush::default());
        let backends = Backends {
            store: store.clone(),
            push: push.clone(),
            router: Arc::new(MemoryRouter::new(1, clock.clone())),
            ..Backends::memory()
        };
        let settings = EngineSettings { rates: Rates::OFF, ..EngineSettings::default() };
        let engine = Engine::new(backends, settings, clock);
        let (alice, bob) = (User::new(1, "alice"), User::new(2, "bob"));
        alice.register(&engine);
        bob.register(&engine);
        let mut scene = Self { engine, store, push, alice, bob };
        assert_eq!(scene.alice.publish(&scene.engine, &scene.bob, 10), None);
        scene
    }

    /// Processes a batch until its commit is durable.
    fn until_safe(&self) -> Pin<Box<dyn Future<Output = Result<()>> + '_>> {
        let mut turn = Box::pin(self.engine.process_batch(0));
        assert!(turn.as_mut().now_or_never().is_none());
        turn
    }

    fn connect(&self) -> SessionHandle {
        ready(self.engine.bind(self.bob.device())).unwrap()
    }

    fn inbox(&self) -> usize {
        ready(self.engine.inbox(self.bob.device().installation, InboxPosition::START, PageLimit::MAX))
            .unwrap()
            .rows
            .len()
    }
}

/// Returns the seqs of the rows that a connection received.
fn delivered(handle: &mut SessionHandle) -> Vec<Seq> {
    let events = std::iter::from_fn(|| handle.events.try_recv().ok()).flatten();
    let rows = events.filter_map(|event| match event {
        SessionEvent::Row(row) => Some(row.seq),
        _ => None,
    });
    rows.collect()
}

#[test]
fn connected_device_gets_a_durable_row_once_before_it_is_visible() {
    let scene = Scene::new();
    let mut bob = scene.connect();
    let turn = scene.until_safe();
    assert_eq!((delivered(&mut bob), scene.inbox()), (vec![1], 0));
    scene.store.turns.add_permits(1);
    ready(turn).unwrap();
    assert_eq!((delivered(&mut bob), scene.inbox()), (vec![], 1));
    assert!(!bob.take_lagged() && scene.push.woken().is_empty());
}

#[test]
fn device_that_connects_before_visibility_gets_the_row_then() {
    for known_before in [false, true] {
        let scene = Scene::new();
        let before = known_before.then(|| scene.connect());
        let turn = scene.until_safe();
        let mut bob = scene.connect();
        assert_eq!((delivered(&mut bob), scene.inbox()), (vec![], 0), "neither delivered nor in its inbox");
        scene.store.turns.add_permits(1);
        ready(turn).unwrap();
        assert_eq!(delivered(&mut bob), vec![1]);
        assert!(scene.push.woken().is_empty());
        drop(before);
    }
}

#[test]
fn absent_device_is_woken_once_the_row_is_visible() {
    for there in [true, false] {
        let scene = Scene::new();
        let bob = there.then(|| scene.connect());
        let turn = scene.until_safe();
        assert!(scene.push.woken().is_empty());
        if let Some(bob) = &bob {
            ready(scene.engine.unbind(bob));
        }
        scene.store.turns.add_permits(1);
        ready(turn).unwrap();
        let woken: Vec<InstallationId> = scene.push.woken().iter().map(|d| d.installation).collect();
        assert_eq!(woken, vec![scene.bob.device().installation], "{there}");
    }
}

#[test]
fn repeated_record_makes_its_devices_reread_or_wakes_them() {
    for there in [true, false] {
        let scene = Scene::new();
        scene.store.turns.close();
        assert!(ready(scene.engine.process_batch(0)).is_err());
        let bob = there.then(|| scene.connect());
        ready(scene.engine.process_batch(0)).unwrap();
        assert_eq!(bob.is_some_and(|bob| bob.take_lagged()), there);
        assert_eq!(scene.push.woken().is_empty(), there);
    }
}
