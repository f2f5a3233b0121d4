//! The wire: one WebSocket binary message is one frame. `docs/wire.md` is normative.
//!
//! [`ClientFrame::parse`] and [`ServerFrame::parse`] check every id and every size once, at the edge, and
//! return domain types; bodies and boxes stay the bytes they came in.

mod client;
mod server;

pub use crate::model::client_frame::{
    ClientFrame, GroupReceipt, Hello, HistoryRange, Registration, Renewal, Request,
};
pub use crate::model::close_reason::CloseReason;
pub use crate::model::prekeys::{Bundle, FirstPrekeys, OneTimePrekey, PrekeyUpload};
pub use crate::model::server_frame::{Challenge, Response, ServerFrame, Welcome};
