//! Inputs and outputs of a [`Session`](super::Session).

use crate::backend::{InboxPage, PageLimit};
use crate::model::client_frame::{ClientFrame, GroupReceipt, Hello, Registration, Renewal, Request};
use crate::model::close_reason::CloseReason;
use crate::model::envelope::{AckUpTo, InboxPosition, Publish, Refusal, SendPosition, Subject};
use crate::model::id::{ConversationId, DeviceAddress, UserId};
use crate::model::presence::UserPresence;
use crate::model::server_frame::{Response, ServerFrame, Welcome};
use crate::model::session_event::SessionEvent;
use crate::model::shared_rows::SharedRows;
use crate::model::time::Instant;

/// An input of a session.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// A frame of the device.
    Frame(ClientFrame),
    /// The `Hello` was accepted.
    Admitted {
        device: DeviceAddress,
        welcome: Welcome,
        /// When the token expires: the session closes then. `None`: never.
        expires_at: Option<Instant>,
    },
    /// The session continues with a new token.
    Renewed {
        /// When the token expires: the session closes then. `None`: never.
        expires_at: Option<Instant>,
    },
    /// The `Hello` was rejected, or came at the wrong time: the session closes.
    Rejected {
        reason: CloseReason,
        /// Milliseconds after which the device may try again.
        retry_after: u32,
    },
    /// The device waits to be linked.
    Linking,
    /// The engine delivered events.
    Events(Vec<SessionEvent>),
    /// The engine delivered rows of a feed that other sessions send too.
    Shared(SharedRows),
    /// Some events of the engine were dropped.
    Lagged,
    /// The requested page: the rows after this position.
    Page(InboxPosition, InboxPage),
    /// The requested page could not be read.
    PageFailed,
    /// A publish or skip of this session was refused before the log.
    Refused(Subject, Refusal),
    /// The outcome of the request with this id.
    Response(u64, Result<Box<Response>, Refusal>),
    /// The store processed the acks.
    Acked {
        /// An ack was above the tail: the session closes.
        too_high: bool,
    },
    /// Presence of watched users, as the user of this session may learn it.
    Presence(Vec<(UserId, UserPresence)>),
    /// The deadline of the session passed.
    Tick,
    /// The connection ended, on either side or by an error, and no later session of the device took over.
    Gone,
    /// The gateway drains. The device may reconnect after this many milliseconds.
    Drain(u32),
}

/// An output of a session. The driver carries outputs out in order.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send a frame.
    Send(ServerFrame),
    /// Send the frame with these rows.
    SendShared(SharedRows),
    /// Authenticate a `Hello`, bind the session, and report the outcome.
    Authenticate(Box<Hello>),
    /// Check a new token, and report the outcome.
    Renew(Box<Renewal>),
    /// Register an account and answer, or wait to be linked.
    Register(Box<Registration>),
    /// Read the page of the inbox after this position, up to this limit.
    Read(InboxPosition, PageLimit),
    /// Append a publish to the log of its shard.
    Publish(Publish),
    /// Append a skip to the log of its shard.
    Skip(SendPosition),
    /// Apply acks and the device's generation, after the earlier acks and before the next
    /// [`Read`](Self::Read). Report [`Input::Acked`] unless that read reports. An empty list means that a
    /// message raised the generation.
    Ack(Vec<AckUpTo>, u64),
    /// Answer the request with this id.
    Request(u64, Request),
    /// Send a delivery receipt (`false`) or a read receipt (`true`) to the other users of the conversation.
    Receipt(AckUpTo, bool),
    /// Send a receipt in a group to the users that it names.
    GroupReceipt(GroupReceipt),
    /// Send a typing notification to the other users of the conversation.
    Typing(ConversationId),
    /// Query the presence of these users.
    Query(Vec<UserId>),
    /// Record that the device is alive, and answer its heartbeat with the server's time.
    Beat,
    /// Close the connection with this code. Nothing follows.
    Close(CloseReason),
}
