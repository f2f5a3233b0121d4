//! The backends: narrow traits, one file each. Everything but [`MessageStore`] and [`KeyDirectory`] is a
//! *hint*: lose all of it and only delay follows.

mod authenticator;
mod key_directory;
mod log_anchor;
mod message_store;
mod node_link;
mod presence;
mod push_sink;
mod record_queue;
mod registry;
mod router;
mod transport;

pub use authenticator::Authenticator;
pub use key_directory::{AccountKey, DeviceKeys, KeyDirectory, Reincarnation};
pub use log_anchor::{LogAnchor, LogIdentity};
pub use message_store::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Head, Member, MessageStore,
    PageLimit, SenderState, StoreIdentity,
};
pub use node_link::{NodeLink, SessionDelivery};
pub use presence::Presence;
pub use push_sink::PushSink;
pub use record_queue::RecordQueue;
pub use registry::{GatewayId, Registry, Route};
pub use router::{Command, LogPosition, Operation, RecipientDevices, Record, RecordBatch, Router};
pub use transport::Transport;

use std::sync::Arc;

use crate::memory;

/// The backends an [`Engine`](crate::Engine) runs on.
///
/// ```
/// use chat_core::Backends;
/// let backends = Backends { push: std::sync::Arc::new(chat_core::memory::MemoryPush::default()), ..Backends::memory() };
/// ```
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)] // built with `..Backends::memory()`
pub struct Backends {
    /// What was committed.
    pub store: Arc<dyn MessageStore>,
    /// Device lists and prekeys.
    pub keys: Arc<dyn KeyDirectory>,
    /// Commands to each conversation's shard.
    pub router: Arc<dyn Router>,
    /// Who is connected where.
    pub registry: Arc<dyn Registry>,
    /// To the other gateways.
    pub node_link: Arc<dyn NodeLink>,
    /// Who was heard of lately.
    pub presence: Arc<dyn Presence>,
    /// Wakes sleeping devices.
    pub push: Arc<dyn PushSink>,
    /// Tokens to users.
    pub authenticator: Arc<dyn Authenticator>,
}

impl Backends {
    /// Everything in memory: the executable specification, and what every example runs on.
    pub fn memory() -> Self {
        Self {
            store: Arc::new(memory::MemoryStore::new()),
            keys: Arc::new(memory::MemoryKeys::default()),
            router: Arc::new(memory::MemoryRouter::new(4, Arc::new(memory::ManualClock::default()))),
            registry: Arc::new(memory::MemoryRegistry::default()),
            node_link: Arc::new(memory::NoLink),
            presence: Arc::new(memory::MemoryPresence::default()),
            push: Arc::new(memory::MemoryPush::default()),
            authenticator: Arc::new(memory::OpenRegistration),
        }
    }
}
