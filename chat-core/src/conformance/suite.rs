//! The runner of a conformance suite: one test per case, with name, filter and ignored cases.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libtest_mimic::{Arguments, Trial};

use super::model::{self, Owners};
use super::{Case, Outcome, cases, durability};
use crate::backend::{KeyDirectory, MessageStore, Presence, PushSink, Registry, Router};

/// A boxed future of a case or a backend.
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Runs a case once, on a fresh backend.
type Test = Arc<dyn Fn() -> Boxed<Outcome> + Send + Sync>;
/// Drives the future of a case to its end.
type Executor = Arc<dyn Fn(Boxed<Outcome>) -> Outcome + Send + Sync>;

/// Seeds of the model-based test, unless `CONFORMANCE_SEEDS` says otherwise.
const SEEDS: u64 = 200;

/// A conformance suite for one backend.
///
/// It runs as a test target of its own: `harness = false` in `Cargo.toml`, and
///
/// ```no_run
/// use chat_core::{conformance, memory::MemoryStore};
/// use std::sync::Arc;
///
/// fn main() -> std::process::ExitCode {
///     conformance::message_store(|| async { Arc::new(MemoryStore::new()) }).run()
/// }
/// ```
///
/// The test takes the arguments of `cargo test`: a filter, `--list`, `--exact`, `--test-threads`.
#[must_use]
pub struct Suite {
    name: &'static str,
    tests: Vec<(String, Test)>,
    ignored: Vec<(&'static str, &'static str)>,
    missing: Option<String>,
    executor: Executor,
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Drives a future on the current thread, which sleeps while the future waits.
fn block_on<T>(mut future: Boxed<T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

impl Suite {
    fn new(name: &'static str) -> Self {
        Self { name, tests: Vec::new(), ignored: Vec::new(), missing: None, executor: Arc::new(block_on) }
    }

    fn cases<B, S, F, Fut>(
        mut self,
        cases: Vec<Case<B>>,
        fresh: &Arc<F>,
        unsize: fn(Arc<S>) -> Arc<B>,
    ) -> Self
    where
        B: ?Sized + Send + Sync + 'static,
        S: Send + Sync + 'static,
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Arc<S>> + Send + 'static,
    {
        for case in cases {
            let fresh = fresh.clone();
            let test = move || -> Boxed<Outcome> {
                let backend = fresh();
                Box::pin(async move { (case.run)(unsize(backend.await)).await })
            };
            self.tests.push((case.name.to_owned(), Arc::new(test)));
        }
        self
    }

    fn model<S, F, Fut>(mut self, fresh: Arc<F>, owners: Owners) -> Self
    where
        S: MessageStore,
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Arc<S>> + Send + 'static,
    {
        let model = move || -> Boxed<Outcome> {
            let fresh = fresh.clone();
            Box::pin(async move {
                for seed in 0..seeds() {
                    let fresh = || async { fresh().await as Arc<dyn MessageStore> };
                    model::check(seed, owners, fresh).await?;
                }
                Ok(())
            })
        };
        self.tests.push(("model_based".to_owned(), Arc::new(model)));
        self
    }

    /// Runs cases by this function, for backends that need a runtime:
    /// `.executor(|case| runtime.block_on(case))`.
    pub fn executor(mut self, executor: impl Fn(Boxed<Outcome>) -> Outcome + Send + Sync + 'static) -> Self {
        self.executor = Arc::new(executor);
        self
    }

    /// Declares that the backend does not pass a case, and why. The case is listed as ignored.
    pub fn ignore(mut self, case: &'static str, reason: &'static str) -> Self {
        self.ignored.push((case, reason));
        self
    }

    /// Declares that the service of the backend is missing. The suite fails, unless `CHAT_SERVICES_OPTIONAL=1` is set:
    /// then all its cases are ignored.
    pub fn missing(mut self, service: impl Into<String>) -> Self {
        self.missing = Some(service.into());
        self
    }

    /// Runs the suite as a test program.
    pub fn run(self) -> ExitCode {
        let arguments = Arguments::from_args();
        let optional = std::env::var("CHAT_SERVICES_OPTIONAL").is_ok_and(|value| value == "1");
        if let (Some(service), false) = (&self.missing, optional) {
            eprintln!("{}: {service} is missing (CHAT_SERVICES_OPTIONAL=1 ignores its cases)", self.name);
            return ExitCode::FAILURE;
        }
        let unknown = self.ignored.iter().find(|(case, _)| self.tests.iter().all(|(name, _)| name != case));
        if let Some((case, _)) = unknown {
            eprintln!("{}: there is no case {case} to ignore", self.name);
            return ExitCode::FAILURE;
        }
        let trials = self.tests.into_iter().map(|(name, test)| {
            let reason = self.ignored.iter().find(|(case, _)| *case == name).map(|(_, reason)| *reason);
            let reason = reason.or(self.missing.as_ref().map(|_| "its service is missing"));
            let executor = self.executor.clone();
            let shown = reason.map_or(name.clone(), |reason| format!("{name} ({reason})"));
            Trial::test(shown, move || executor(test()).map_err(Into::into))
                .with_kind(self.name)
                .with_ignored_flag(reason.is_some())
        });
        libtest_mimic::run(&arguments, trials.collect()).exit_code()
    }
}

fn seeds() -> u64 {
    std::env::var("CONFORMANCE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS)
}

/// The suite of a [`MessageStore`] that one process uses: named cases, and the model-based test. `fresh` returns an
/// empty store.
pub fn message_store<S, F, Fut>(fresh: F) -> Suite
where
    S: MessageStore,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Arc<S>> + Send + 'static,
{
    let fresh = Arc::new(fresh);
    Suite::new("MessageStore").cases(cases::message_store(), &fresh, |store| store).model(fresh, Owners::One)
}

/// The suite of a [`MessageStore`] that several processes share: that of [`message_store`], with owners of a shard that
/// overlap.
pub fn shared_message_store<S, F, Fut>(fresh: F) -> Suite
where
    S: MessageStore,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Arc<S>> + Send + 'static,
{
    let fresh = Arc::new(fresh);
    Suite::new("MessageStore")
        .cases(cases::message_store(), &fresh, |store| store)
        .cases(cases::shared_message_store(), &fresh, |store| store)
        .model(fresh, Owners::Several)
}

/// The suite of a durable [`MessageStore`] whose data lies in a directory: that of [`message_store`], and cases that
/// reopen the store and that kill a process which writes to it. `open` opens the store in a directory, which is empty
/// at first.
///
/// The suite starts its own program again as the process to kill: call [`Suite::run`] first thing in `main`.
pub fn durable_message_store<S, F, Fut>(open: F) -> Suite
where
    S: MessageStore,
    F: Fn(PathBuf) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Arc<S>> + Send + 'static,
{
    if let Some(dir) = durability::child_directory() {
        block_on(Box::pin(durability::write_until_killed(open.clone(), dir)) as Boxed<()>);
    }
    let fresh = open.clone();
    let mut suite = message_store(move || fresh(scratch()));
    let reopened = open.clone();
    let killed = open;
    let reopen = move || -> Boxed<Outcome> {
        Box::pin(durability::reopened_store_is_the_same(reopened.clone(), scratch()))
    };
    let kill = move || -> Boxed<Outcome> {
        Box::pin(durability::acknowledged_commits_survive_sigkill(killed.clone(), scratch()))
    };
    suite.tests.push(("reopened_store_is_the_same".to_owned(), Arc::new(reopen)));
    suite.tests.push(("acknowledged_commits_survive_sigkill".to_owned(), Arc::new(kill)));
    suite
}

/// Returns a new directory below the system's temporary directory. The next run of the same process id removes it.
fn scratch() -> PathBuf {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir()
        .join(format!("chat-conformance-{}", std::process::id()))
        .join(number.to_string());
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

/// Defines the suite of a trait that has only named cases.
macro_rules! suite_of {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        pub fn $name<S, F, Fut>(fresh: F) -> Suite
        where
            S: $kind,
            F: Fn() -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Arc<S>> + Send + 'static,
        {
            Suite::new(stringify!($kind)).cases(cases::$name(), &Arc::new(fresh), |backend| backend)
        }
    };
}

suite_of!(
    /// The suite of a [`KeyDirectory`]. `fresh` returns an empty directory.
    key_directory, KeyDirectory
);
suite_of!(
    /// The suite of a [`Registry`]. `fresh` returns an empty registry.
    registry, Registry
);
suite_of!(
    /// The suite of a [`Router`]. `fresh` returns a router with an empty log.
    router, Router
);
suite_of!(
    /// The suite of a [`Presence`]. `fresh` returns one without users.
    presence, Presence
);
suite_of!(
    /// The suite of a [`PushSink`].
    push_sink, PushSink
);

/// The suite of an [`Authenticator`](crate::backend::Authenticator), with tokens that it accepts.
pub fn authenticator<F, Fut>(fixture: F) -> Suite
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Arc<super::AuthenticatorFixture>> + Send + 'static,
{
    Suite::new("Authenticator").cases(cases::authenticator(), &Arc::new(fixture), |fixture| fixture)
}
