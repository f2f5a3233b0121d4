//! What goes in and comes out of a [`Session`](super::Session).

use crate::model::client_frame::{ClientFrame, Hello, Registration, Request};
use crate::model::close_reason::CloseReason;
use crate::model::envelope::{AckUpTo, InboxPosition, InboxRow, Publish, Refusal, SendPosition, Subject};
use crate::model::id::{ConversationId, DeviceAddress, UserId};
use crate::model::server_frame::{Response, ServerFrame, Welcome};
use crate::model::session_event::SessionEvent;

/// What happens to a session.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// A frame of the device.
    Frame(ClientFrame),
    /// The `Hello` was right.
    Admitted(DeviceAddress, Welcome),
    /// The `Hello` was wrong, or came at the wrong time: close with this.
    Rejected {
        reason: CloseReason,
        /// Milliseconds after which the device may try again.
        retry_after: u32,
    },
    /// The device waits to be linked.
    Linking,
    /// What the engine says.
    Events(Vec<SessionEvent>),
    /// Some of what the engine said was dropped.
    Lagged,
    /// The page after this place, as it was asked for.
    Page(InboxPosition, Vec<InboxRow>),
    /// The page could not be read now.
    PageFailed,
    /// A publish or skip of this session was refused before the log.
    Refused(Subject, Refusal),
    /// The outcome of the request with this id.
    Response(u64, Result<Box<Response>, Refusal>),
    /// The store was given the acks; whether one was above what there is.
    Acked {
        /// That is not to be.
        too_high: bool,
    },
    /// Who is present.
    Presence(Vec<(UserId, bool)>),
    /// The deadline passed.
    Tick,
    /// The connection ended, by whatever side or accident, and no later session of the device took over.
    Gone,
    /// The gateway drains: the device may come back after this many milliseconds.
    Drain(u32),
}

/// What a session wants done, in order.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send a frame.
    Send(ServerFrame),
    /// Check a `Hello`, bind the session, and say what came of it.
    Authenticate(Box<Hello>),
    /// Open an account and answer, or wait to be linked.
    Register(Box<Registration>),
    /// Read a page of the inbox.
    Read(InboxPosition),
    /// Take a publish to its shard.
    Publish(Publish),
    /// Take a skip to its shard.
    Skip(SendPosition),
    /// Apply acks and the device's generation, after those before them and before the next [`Read`](Self::Read)
    /// reads, and say so ([`Input::Acked`]) unless that read does. No acks: a message raised the generation.
    Ack(Vec<AckUpTo>, u64),
    /// Answer a question.
    Request(u64, Request),
    /// Tell the others how far this device has a conversation (`false`) or has read it (`true`).
    Receipt(AckUpTo, bool),
    /// Tell the others that this user is writing.
    Typing(ConversationId),
    /// Find out who of these is present.
    Query(Vec<UserId>),
    /// Note that the device is alive, and answer its heartbeat with the server's time.
    Beat,
    /// Close the connection with this code. Nothing follows.
    Close(CloseReason),
}
