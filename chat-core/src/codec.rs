//! Storage encoding: how backends keep states, rows, device lists and commands as bytes.
//!
//! Every `decode` checks each id and size, and answers [`ErrorKind::Invalid`] or [`ErrorKind::Corrupt`] for
//! bytes that the matching `encode` did not write. A backend reports either as `Corrupt`: it decodes only bytes
//! that it wrote itself. The formats are those of `chat-core/proto/chat/v1`.
//!
//! A backend may use any other encoding that returns equal values.

pub(crate) mod device_list;
mod message_options;
pub mod node;
pub(crate) mod outcome;
pub(crate) mod publish;
pub mod redo;
pub(crate) mod roster;
pub(crate) mod row;
pub mod state;

pub use device_list::{decode_list, encode_list};
pub use row::{decode_row, encode_row};

use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::UserId;
pub(crate) use crate::model::limits::MAX_NUMBER;

pub(crate) const fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

pub(crate) fn at_most(length: usize, most: usize, what: &'static str) -> Result<()> {
    if length <= most { Ok(()) } else { Err(invalid(what)) }
}

/// Reads the id of a user; `None` if the field is not set.
pub(crate) fn optional_user(bytes: &[u8]) -> Result<Option<UserId>> {
    if bytes.is_empty() { Ok(None) } else { UserId::parse(bytes).map(Some) }
}

impl From<prost::DecodeError> for Error {
    fn from(error: prost::DecodeError) -> Self {
        Self::new(ErrorKind::Invalid, "not protobuf").caused_by(error)
    }
}
