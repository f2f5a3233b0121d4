//! What an audit of a store finds.

use std::fmt;

use chat_core::{Error, ErrorKind};

/// What an audit counted. That there is one means: every record that was read back was whole, every conversation is
/// dense from 1 to its head, every number of a sender has one place, and what waits for devices stands for places
/// that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Verification {
    /// Conversations, mailboxes included.
    pub conversations: u64,
    /// Rows of history.
    pub messages: u64,
    /// Inbox rows that wait.
    pub waiting: u64,
    /// Devices that acknowledged or sent anything.
    pub devices: u64,
    /// Accounts.
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
