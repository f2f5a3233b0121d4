//! Conformance suite for backends. Each trait has a list of cases: plain functions with names, each run on a
//! fresh and isolated backend. Each contract sentence of a trait names its case.
//!
//! ```
//! use chat_core::{conformance, memory::MemoryStore};
//! # fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
//! #     let mut future = std::pin::pin!(future);
//! #     loop {
//! #         let mut context = std::task::Context::from_waker(std::task::Waker::noop());
//! #         if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) { return value; }
//! #     }
//! # }
//! for case in conformance::message_store() {
//!     block_on((case.run)(std::sync::Arc::new(MemoryStore::new()))).unwrap_or_else(|e| panic!("{}: {e}", case.name));
//! }
//! ```

mod authenticator;
mod key_directory;
mod message_store;
mod presence;
mod push_sink;
mod registry;
mod router;
mod transport;

pub use authenticator::{AuthenticatorFixture, authenticator};
pub use key_directory::key_directory;
pub use message_store::{message_store, shared_message_store};
pub use presence::presence;
pub use push_sink::push_sink;
pub use registry::registry;
pub use router::router;
pub use transport::{TransportPair, transport};

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::model::error::Error;

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
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        vec![$(crate::conformance::Case { name: stringify!($name), run: |backend| Box::pin($name(backend)) }),+]
    };
}
use cases;

fn equal<T: PartialEq + fmt::Debug>(left: T, right: T, what: &str) -> Outcome {
    if left == right { Ok(()) } else { Err(format!("{what}: {left:?} is not {right:?}")) }
}

fn failed(error: Error) -> String {
    format!("{error:?}")
}
