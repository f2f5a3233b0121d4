//! The backend traits, one file each. The engine depends on [`MessageStore`], [`KeyDirectory`] and
//! [`ContactStore`] for correctness. Every other backend is a *hint*: losing all of its state causes delay only.

mod authenticator;
mod contact_store;
mod key_directory;
mod log_anchor;
mod message_store;
mod node_link;
mod presence;
mod push_sink;
mod record_queue;
mod registry;
mod report_sink;
mod router;
mod runtime;
mod service_url;
mod transport;

pub use authenticator::{Authenticated, Authenticator};
pub use contact_store::ContactStore;
pub use key_directory::{AccountKey, BundleParts, DeviceKeys, KeyDirectory, Reincarnation};
pub use log_anchor::{LogAnchor, LogIdentity};
pub use message_store::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, FeedChange, Head, InboxPage,
    MessageStore, PageLimit, SenderFilter, SenderState, StateChange, StoreIdentity,
};
pub use node_link::{Deliveries, FeedDelivery, NodeLink, SessionDelivery};
pub use presence::Presence;
pub use push_sink::PushSink;
pub use record_queue::RecordQueue;
pub use registry::{GatewayId, Registry, Route};
pub use report_sink::ReportSink;
pub use router::{Command, LogPosition, Operation, Record, RecordBatch, Router, Subscription};
pub use runtime::{Runtime, Sleep};
pub use service_url::{Password, ServiceAccess, ServiceLogin, ServiceTls, ServiceUrl};
pub use transport::{Dialer, Transport};

pub use crate::model::roster::{Member, RecipientDevices, Roster};
pub use crate::model::rules::Rules;

use std::sync::Arc;

/// The backends an [`Engine`](crate::Engine) runs on.
///
/// ```
/// use chat_core::Backends;
/// let backends = Backends { push: std::sync::Arc::new(chat_core::memory::MemoryPush::default()), ..Backends::memory() };
/// ```
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)] // built with `..Backends::memory()`
pub struct Backends {
    /// Committed messages, inboxes and conversation states.
    pub store: Arc<dyn MessageStore>,
    /// Device lists and prekeys.
    pub keys: Arc<dyn KeyDirectory>,
    /// Accepted and blocked users.
    pub contacts: Arc<dyn ContactStore>,
    /// Carries commands to the shard of each conversation.
    pub router: Arc<dyn Router>,
    /// Routes: the gateway that each device is connected to.
    pub registry: Arc<dyn Registry>,
    /// Connection to the other gateways.
    pub node_link: Arc<dyn NodeLink>,
    /// Online state of users.
    pub presence: Arc<dyn Presence>,
    /// Push notifications to devices without a connection.
    pub push: Arc<dyn PushSink>,
    /// Reports of abusive messages.
    pub reports: Arc<dyn ReportSink>,
    /// Maps tokens to handles.
    pub authenticator: Arc<dyn Authenticator>,
}
