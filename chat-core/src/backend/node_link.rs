//! Delivery from one gateway to another.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use super::{FeedChange, GatewayId, Route};
use crate::model::envelope::InboxRow;
use crate::model::error::Result;
use crate::model::id::{ConversationId, InstallationId, Seq};
use crate::model::session_event::SessionEvent;

/// A connection and the events for its session, in order.
pub type SessionDelivery = (Route, Vec<SessionEvent>);

/// Events for sessions of one gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Deliveries {
    /// Events for single sessions.
    pub sessions: Vec<SessionDelivery>,
    /// Events for all readers of feeds. An event for a single session replaces the row with the same seq.
    pub feeds: Vec<FeedDelivery>,
}

impl Deliveries {
    /// Returns whether there are no events.
    pub const fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.feeds.is_empty()
    }
}

/// Events for the connected readers of a feed, the same for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct FeedDelivery {
    pub conversation: ConversationId,
    /// New rows of history, in the order of their seqs.
    pub rows: Vec<InboxRow>,
    /// Rows were dropped on the way: the readers must read their inboxes.
    pub is_lagged: bool,
    /// The seqs of the last change of the roster before the rows, and with them. A gateway that knows another one before the rows
    /// may lack a change of the readers.
    pub changed_before: Seq,
    pub changed_after: Seq,
    /// The devices that begin or stop to read with these rows.
    pub changes: Vec<FeedChange>,
    /// The rows that a device must get from its inbox, because they have a part only for it. They come as events of its
    /// session. A session without such an event reads its inbox.
    pub named: Vec<(Seq, InstallationId)>,
}

impl FeedDelivery {
    /// Returns a delivery without rows, for a roster that changed last at a seq.
    pub const fn new(conversation: ConversationId, changed_at: Seq) -> Self {
        Self {
            conversation,
            rows: Vec::new(),
            is_lagged: false,
            changed_before: changed_at,
            changed_after: changed_at,
            changes: Vec::new(),
            named: Vec::new(),
        }
    }

    /// Returns what to deliver if rows of a feed were dropped.
    pub fn lagged(conversation: ConversationId) -> Self {
        Self { is_lagged: true, ..Self::new(conversation, 0) }
    }
}

/// Delivers events to the gateway that holds a connection. A hint: a lost row still waits in the device's
/// inbox.
///
/// # Contract
/// - [`deliver`](Self::deliver) returns at once and preserves the order of the events of one session
///   (`deliveries_arrive_in_order`). The rows of a feed are one delivery for all of its readers.
/// - If a connection no longer exists, its route is unbound by compare and its device is woken by push
///   (`a_stale_route_is_unbound`).
/// - An unresponsive gateway does not slow down the others. Deliveries that exceed its queue, or that it does
///   not acknowledge within a second, are dropped. Its sessions receive [`SessionEvent::Lagged`] when it responds
///   again.
#[async_trait]
pub trait NodeLink: fmt::Debug + Send + Sync + 'static {
    /// Delivers events to sessions of another gateway.
    fn deliver(&self, gateway: GatewayId, deliveries: Deliveries);

    /// Returns the offer of a device that waits at another gateway to be linked.
    ///
    /// # Errors
    /// `NotFound` if no such device waits there, `Unavailable` if the gateway does not respond.
    async fn offer(&self, gateway: GatewayId, rendezvous: Bytes) -> Result<Bytes>;

    /// Sends the approving device's sealed answer to the device that made the offer.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    async fn answer_offer(&self, gateway: GatewayId, rendezvous: Bytes, sealed: Bytes) -> Result<()>;
}
