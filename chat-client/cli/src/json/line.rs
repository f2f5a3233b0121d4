//! The input lines of `chat --json`.

use chat_client::PresenceAudience;
use serde::Deserialize;

use crate::contacts::Decision;
use crate::conversations::SettingsEdit;
use crate::groups::{GroupRole, Policy, ProfileEdit};

/// Names a message: by its author, a handle or an id (this user if there is none), and its id.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    #[serde(default)]
    pub(super) from: Option<String>,
    pub(super) message_id: String,
}

/// A command.
#[derive(Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub(super) enum Line {
    Send {
        #[serde(default)]
        to: Option<String>,
        /// A group.
        #[serde(default)]
        conversation: Option<String>,
        text: String,
        #[serde(rename = "ref")]
        idempotency_key: Option<String>,
        #[serde(default)]
        reply_to: Option<Named>,
        #[serde(default)]
        mentions: Vec<String>,
        #[serde(default)]
        forwarded: bool,
    },
    Edit {
        conversation: String,
        message_id: String,
        text: String,
    },
    Delete {
        conversation: String,
        #[serde(flatten)]
        message: Named,
    },
    React {
        conversation: String,
        #[serde(flatten)]
        message: Named,
        emoji: String,
        #[serde(default)]
        remove: bool,
    },
    Read {
        conversation: String,
        seq: u64,
    },
    Typing {
        #[serde(default)]
        to: Option<String>,
        #[serde(default)]
        conversation: Option<String>,
    },
    Presence {
        users: Vec<String>,
    },
    PresenceAudience {
        #[serde(default)]
        audience: Option<PresenceAudience>,
    },
    History {
        #[serde(default)]
        with: Option<String>,
        #[serde(default)]
        conversation: Option<String>,
        #[serde(default)]
        before: u64,
        #[serde(default = "fifty")]
        limit: usize,
    },
    Conversations,
    Configure {
        #[serde(default)]
        with: Option<String>,
        #[serde(default)]
        conversation: Option<String>,
        #[serde(flatten)]
        edit: SettingsEdit,
    },
    Search {
        text: String,
        #[serde(default)]
        with: Option<String>,
        #[serde(default)]
        conversation: Option<String>,
        #[serde(default = "fifty")]
        limit: usize,
    },
    Accept {
        user: String,
        number: String,
    },
    SafetyNumber {
        user: String,
    },
    Contact {
        user: String,
        decision: Decision,
    },
    Contacts,
    ClearHistory {
        user: String,
    },
    GroupCreate {
        name: String,
        #[serde(default)]
        users: Vec<String>,
    },
    GroupChange {
        conversation: String,
        action: String,
        #[serde(default)]
        users: Vec<String>,
        #[serde(default)]
        role: Option<GroupRole>,
        #[serde(flatten)]
        edit: ProfileEdit,
        #[serde(default)]
        policy: Option<Policy>,
    },
    GroupJoin {
        invitation: String,
    },
    ChannelCreate {
        name: String,
    },
    Subscribe {
        invitation: String,
    },
    Unsubscribe {
        conversation: String,
    },
    RenewChannelKey {
        conversation: String,
    },
    LoadHistory {
        conversation: String,
        #[serde(default = "fifty")]
        limit: usize,
    },
    Receipts {
        conversation: String,
        seq: u64,
    },
    Open {
        #[serde(default)]
        conversation: Option<String>,
    },
    GroupLink {
        conversation: String,
        #[serde(default)]
        needs_approval: bool,
    },
    Group {
        conversation: String,
    },
    Report {
        user: String,
        #[serde(default = "five")]
        messages: usize,
        #[serde(default)]
        note: String,
    },
    Token {
        token: String,
    },
    Reincarnate,
    Quit,
}

const fn fifty() -> usize {
    50
}

const fn five() -> usize {
    5
}
