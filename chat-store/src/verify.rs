//! Result of verifying a store.

use std::fmt;

use chat_core::{Error, ErrorKind};

/// Counts of a store that passed verification. A value means that every record that was read back is intact,
/// every conversation is dense from 1 to its head, every number of a sender has one seq, and every waiting
/// inbox row refers to a row that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Verification {
    /// Conversations, mailboxes included.
    pub conversations: u64,
    /// Rows of history.
    pub messages: u64,
    /// Inbox rows that are not acknowledged yet.
    pub waiting: u64,
    /// Devices that acknowledged or sent anything.
    pub devices: u64,
    pub accounts: u64,
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { conversations, messages, waiting, devices, accounts } = self;
        write!(
            f,
            "conversations {conversations} messages {messages} waiting {waiting} devices {devices} accounts {accounts}"
        )
    }
}

pub(crate) const fn broken(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}
