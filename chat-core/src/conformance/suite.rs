//! The runner of a conformance suite: one test per case, with name, filter and ignored cases.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libtest_mimic::{Arguments, Trial};

use super::model::{self, Calls, Owners};
use super::{Case, Outcome, cases, durability};
use crate::backend::{ContactStore, KeyDirectory, MessageStore, Presence, PushSink, Registry, Router};

/// A boxed future of a case or a backend.
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Runs a case once, on a fresh backend.
type Test = Arc<dyn Fn() -> Boxed<Outcome> + Send + Sync>;
/// Drives the future of a case to its end.
type Executor = Arc<dyn Fn(Boxed<Outcome>) -> Outcome + Send + Sync>;

/// Seeds of the model-based test, unless `CONFORMANCE_SEEDS` says otherwise.
const SEEDS: u64 = 200;
/// One of this many seeds is also run with faults.
const UNRELIABLE_SHARE: u64 = 10;

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

    fn model<S, F, Fut>(mut self, fresh: &Arc<F>, owners: Owners) -> Self
    where
        S: MessageStore,
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Arc<S>> + Send + 'static,
    {
        let test = |calls: Calls, seeds: u64| {
            let fresh = fresh.clone();
            move || -> Boxed<Outcome> {
                let fresh = fresh.clone();
                Box::pin(async move {
                    for seed in 0..seeds {
                        let fresh = || async { fresh().await as Arc<dyn MessageStore> };
                        model::check(seed, calls, fresh).await?;
                    }
                    Ok(())
                })
            }
        };
        let (reliable, unreliable) = (Calls::of(owners), Calls::unreliable(owners));
        let seeds = seeds();
        self.tests.push(("model_based".to_owned(), Arc::new(test(reliable, seeds))));
        let few = seeds.div_ceil(UNRELIABLE_SHARE);
        self.tests.push(("model_based_with_faults".to_owned(), Arc::new(test(unreliable, few))));
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
    Suite::new("MessageStore").cases(cases::message_store(), &fresh, |store| store).model(&fresh, Owners::One)
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
        .model(&fresh, Owners::Several)
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
    /// The suite of a [`ContactStore`]. `fresh` returns an empty store.
    contact_store, ContactStore
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{
        ManualClock, MemoryContacts, MemoryKeys, MemoryPresence, MemoryPush, MemoryRegistry, MemoryRouter,
        MemoryStore,
    };

    /// Returns the docs of a trait from its source file.
    fn docs_of(name: &str, source: &str) -> String {
        let end = source.find(&format!("pub trait {name}:")).unwrap();
        let above: Vec<&str> = source[..end].lines().rev().collect();
        let docs = above.iter().take_while(|line| line.starts_with("///") || line.starts_with("#["));
        let docs: Vec<&str> = docs.filter_map(|line| line.strip_prefix("///")).map(str::trim_start).collect();
        docs.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Returns the words in backquotes that have the form of a case's name.
    fn named(text: &str) -> impl Iterator<Item = &str> {
        let quoted = text.split('`').skip(1).step_by(2);
        quoted.filter(|word| {
            let letters = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            letters && word.contains('_')
        })
    }

    /// Returns the differences between the cases of a suite and the contract in the docs of its trait.
    fn differences(name: &str, source: &str, cases: &[String]) -> Vec<String> {
        let docs = docs_of(name, source);
        let contract = docs.split("# Contract").nth(1).unwrap_or("");
        let contract = contract.split("\n# ").next().unwrap_or("");
        let mut found = Vec::new();
        for case in cases.iter().filter(|case| !named(contract).any(|word| word == *case)) {
            found.push(format!("{name}: no sentence of the contract names the case {case}"));
        }
        for word in named(contract).filter(|word| !source.contains(&format!("fn {word}("))) {
            if !cases.iter().any(|case| case == word) {
                found.push(format!("{name}: there is no case {word}"));
            }
        }
        for rule in contract.split("\n- ").skip(1) {
            if !named(rule).any(|word| cases.iter().any(|case| case == word)) {
                found.push(format!("{name}: no case for: {}", rule.replace('\n', " ")));
            }
        }
        found
    }

    #[test]
    fn contracts_and_cases_name_each_other() {
        let names = |suite: Suite| suite.tests.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let store = || async { Arc::new(MemoryStore::new()) };
        let mut stores = names(durable_message_store(|_| async { Arc::new(MemoryStore::new()) }));
        stores.extend(names(shared_message_store(store)));
        let router = || async { Arc::new(MemoryRouter::new(4, Arc::new(ManualClock::default()))) };
        let of_case = |name: &'static str| name.to_owned();
        let traits = [
            ("MessageStore", include_str!("../backend/message_store.rs"), stores),
            (
                "KeyDirectory",
                include_str!("../backend/key_directory.rs"),
                names(key_directory(|| async { Arc::new(MemoryKeys::default()) })),
            ),
            (
                "Registry",
                include_str!("../backend/registry.rs"),
                names(registry(|| async { Arc::new(MemoryRegistry::default()) })),
            ),
            (
                "ContactStore",
                include_str!("../backend/contact_store.rs"),
                names(contact_store(|| async { Arc::new(MemoryContacts::default()) })),
            ),
            ("Router", include_str!("../backend/router.rs"), names(super::router(router))),
            (
                "Presence",
                include_str!("../backend/presence.rs"),
                names(presence(|| async { Arc::new(MemoryPresence::default()) })),
            ),
            (
                "PushSink",
                include_str!("../backend/push_sink.rs"),
                names(push_sink(|| async { Arc::new(MemoryPush::default()) })),
            ),
            (
                "Authenticator",
                include_str!("../backend/authenticator.rs"),
                cases::authenticator().iter().map(|case| of_case(case.name)).collect(),
            ),
            (
                "Transport",
                include_str!("../backend/transport.rs"),
                cases::transport().iter().map(|case| of_case(case.name)).collect(),
            ),
        ];
        let found: Vec<String> =
            traits.iter().flat_map(|(name, source, cases)| differences(name, source, cases)).collect();
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn guide_names_existing_cases_only() {
        let guide = include_str!("../../../docs/writing-a-backend.md");
        let known = cases::message_store().iter().map(|case| case.name).collect::<Vec<_>>();
        let others = cases::key_directory().into_iter().map(|case| case.name);
        let known = [known, others.chain(["model_based_with_faults"]).collect()].concat();
        // Answers name their cases in parentheses.
        let answers = guide.split("## Answers").nth(1).unwrap().split("\n## ").next().unwrap();
        let in_parentheses = answers.split('(').skip(1).filter_map(|text| text.split_once(')'));
        let words: Vec<&str> = in_parentheses.flat_map(|(text, _)| named(text)).collect();
        assert!(words.len() > 5, "{words:?}");
        for word in words {
            assert!(known.contains(&word), "the guide names {word}, which is no case");
        }
    }

    #[test]
    fn differences_in_both_directions_are_found() {
        let source = "/// A trait.\n///\n/// # Contract\n/// - One (`the_one`).\n/// - Two (`no_case`).\n/// - Three.\npub trait T: X {";
        let cases = ["the_one", "the_other"].map(str::to_owned);
        assert_eq!(
            differences("T", source, &cases),
            [
                "T: no sentence of the contract names the case the_other",
                "T: there is no case no_case",
                "T: no case for: Two (`no_case`).",
                "T: no case for: Three.",
            ]
        );
    }
}
