//! Conformance suites for backends: one test per case, a model-based test, and mutants that prove the suites.
//!
//! A backend has a test target of its own (`harness = false`) whose `main` runs the suite:
//!
//! ```no_run
//! use chat_core::{conformance, memory::MemoryStore};
//! use std::sync::Arc;
//!
//! fn main() -> std::process::ExitCode {
//!     conformance::message_store(|| async { Arc::new(MemoryStore::new()) }).run()
//! }
//! ```
//!
//! Each contract sentence of a trait names its case. [`cases`] has the cases as plain functions, for a program with
//! a runner of its own. The model-based test compares random operations with the in-memory reference, also with
//! injected faults ([`UnreliableStore`]) that the caller answers by repeating its calls. [`mutants`] are backends that break one rule each; the suites find all of them.

mod authenticator;
mod contact_store;
mod durability;
mod faults;
mod key_directory;
mod message_store;
pub(crate) mod model;
pub mod mutants;
mod presence;
mod push_sink;
mod registry;
mod router;
mod suite;
mod talk;
mod transport;

/// The named cases of each trait, as plain functions that run on a fresh backend.
pub mod cases {
    pub use super::authenticator::authenticator;
    pub use super::contact_store::contact_store;
    pub use super::key_directory::key_directory;
    pub use super::message_store::{message_store, shared_message_store};
    pub use super::presence::presence;
    pub use super::push_sink::push_sink;
    pub use super::registry::registry;
    pub use super::router::router;
    pub use super::transport::transport;
}

pub use authenticator::AuthenticatorFixture;
pub use faults::{FaultRates, UnreliableStore};
pub use model::{ModelOptions, check_model};
pub use suite::{
    Suite, authenticator, contact_store, durable_message_store, key_directory, message_store, presence,
    push_sink, registry, router, shared_message_store,
};
pub use transport::TransportPair;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use crate::model::error::{Error, ErrorKind};

/// The result of a case; the error says how the backend broke its contract.
pub type Outcome = Result<(), String>;

/// A case of the suite.
#[allow(clippy::exhaustive_structs)]
pub struct Case<B: ?Sized> {
    /// The name that the contract of the trait uses.
    pub name: &'static str,
    /// Runs the case on a fresh backend.
    #[allow(clippy::type_complexity)]
    pub run: fn(Arc<B>) -> Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

impl<B: ?Sized> fmt::Debug for Case<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Builds a list of cases from functions, each under the function's name.
macro_rules! list_cases {
    ($($name:ident),+ $(,)?) => {
        vec![$(crate::conformance::Case { name: stringify!($name), run: |backend| Box::pin($name(backend)) }),+]
    };
}
use list_cases;

/// Lets other futures of the same task run once.
async fn pause() {
    let mut paused = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn equal<T: PartialEq + fmt::Debug>(left: T, right: T, what: &str) -> Outcome {
    if left == right { Ok(()) } else { Err(format!("{what}: {left:?} is not {right:?}")) }
}

/// Repeats a write while its outcome is unknown, as callers do: a directory on several nodes may answer `Unavailable` to
/// a write that lost against another one.
async fn decided<T, F: Future<Output = crate::Result<T>>>(write: impl Fn() -> F) -> crate::Result<T> {
    const ATTEMPTS: usize = 20;
    for _ in 1..ATTEMPTS {
        match write().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            outcome => return outcome,
        }
    }
    write().await
}

fn failed(error: Error) -> String {
    format!("{error:?}")
}
