//! Inputs of a [`Replica`](super::Replica).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::draft::Draft;
use crate::model::client_frame::Request;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{AckUpTo, Publish};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, MessageId, UserId};
use crate::model::prekeys::PrekeyUpload;
use crate::model::server_frame::ServerFrame;
use crate::model::view::{RowHash, View};

/// An input to a replica.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// The connection requested by [`Output::Dial`](super::Output::Dial) is open.
    Connected,
    /// The connection broke or could not be opened.
    Disconnected,
    /// The server rejected the connection. The replica may dial again after this many milliseconds.
    Rejected(u32),
    /// A frame from the server.
    Frame(ServerFrame),
    /// Send this draft.
    Send(Draft),
    /// The user read up to this seq.
    Read(AckUpTo),
    /// The user is typing.
    Typing(ConversationId),
    /// The conversation that the user looks at: the device gets the typing notifications of that group.
    OpenConversation(Option<ConversationId>),
    /// Request how far the other members of a conversation received and read it.
    RequestReceipts(ConversationId),
    /// Users whose presence to report. Replaces the former list.
    Watch(Vec<UserId>),
    /// A request of the application, with a token for its answer.
    Request(u64, Request),
    /// The result of [`Output::Open`](super::Output::Open).
    Opened(Opened),
    /// The result of [`Output::Compare`](super::Output::Compare).
    Compared(AtSeq),
    /// The result of [`Output::Recall`](super::Output::Recall): the requesting device, the conversation and message id, and the
    /// content if that device may have it.
    Recalled(DeviceAddress, ConversationId, MessageId, Option<Bytes>),
    /// The result of [`Output::Seal`](super::Output::Seal).
    Sealed(Result<Publish, SealFailure>),
    /// The result of [`Output::MakePrekeys`](super::Output::MakePrekeys).
    Prekeys(PrekeyUpload),
    /// The server stored this new version of the user's own list.
    OwnList(SignedDeviceList),
    /// A list that the application requested.
    List(SignedDeviceList),
    /// No further input is ready: commit the gathered changes.
    Flush,
    /// The commit with this ticket is durable.
    Committed(u64),
    /// The deadline of the replica passed.
    Tick,
    /// Reconnect, even if the replica is stopped.
    Restart,
    /// The user requests a new incarnation, even if there was one within the last day. This store continues;
    /// any copy of it stops.
    Reincarnate,
}

/// The message that the local store has at a seq.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_enums)]
pub enum AtSeq {
    /// The one that was asked for.
    Same,
    Another,
    Nothing,
}

/// The result of opening a row.
#[derive(Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Opened {
    /// The content, or the reason why it cannot be read.
    pub content: Result<Bytes, Unreadable>,
    /// The key of the body, if the content was decrypted with it: a report reveals it.
    pub body_key: Option<[u8; 32]>,
    /// The local store already has a message with this sender and id.
    pub known: bool,
    /// That message is of this store epoch: the server repeats it.
    pub repeats: bool,
    /// The version of its own device list that the sender claims, end to end; 0 if unknown.
    pub list_version: u64,
    /// The last message of the conversation that the sender saw, end to end.
    pub view: Option<View>,
    /// The hash of the message that the local store has at the seq of that view.
    pub seen: Option<RowHash>,
    /// The local store has the sender's message before this one. Needed only if
    /// [`asks_for_prev`](super::Replica::asks_for_prev) says so.
    pub knows_prev: bool,
}

// Neither content nor key may reach a log.
impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("content", &self.content.as_ref().map(Bytes::len))
            .field("known", &self.known)
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

impl Opened {
    /// Returns the result for a row that cannot be read.
    pub const fn unreadable(reason: Unreadable) -> Self {
        Self {
            content: Err(reason),
            body_key: None,
            known: false,
            repeats: false,
            list_version: 0,
            view: None,
            seen: None,
            knows_prev: false,
        }
    }
}

/// The reason why a message could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Unreadable {
    /// The sender is on no device list that its account key signed.
    UnknownDevice,
    /// This device has no session for it.
    NoSession,
    /// Decryption failed.
    Undecryptable,
    /// It decrypts, but names another sender, conversation or recipient than its row.
    Misplaced,
    /// Its content cannot be parsed.
    Malformed,
    /// Another encryption suite than that of this device made it.
    OtherSuite,
    /// Its sender, or this device, is no member of the group any more.
    NotMember,
    /// This device does not have the key of the channel: a newer invitation has it.
    NoChannelKey,
}

impl Unreadable {
    /// Whether the sender may send it again: the session was missing or failed.
    pub const fn is_of_session(self) -> bool {
        matches!(self, Self::NoSession | Self::Undecryptable)
    }

    /// Returns the name used in logs and in the `chat --json` protocol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownDevice => "unknown_device",
            Self::NoSession => "no_session",
            Self::Undecryptable => "undecryptable",
            Self::Misplaced => "misplaced",
            Self::Malformed => "malformed",
            Self::OtherSuite => "other_suite",
            Self::NotMember => "not_member",
            Self::NoChannelKey => "no_channel_key",
        }
    }

    /// Returns the reason with this name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        let session = [Self::NoSession, Self::Undecryptable];
        let others = [
            Self::UnknownDevice,
            Self::Misplaced,
            Self::Malformed,
            Self::OtherSuite,
            Self::NotMember,
            Self::NoChannelKey,
        ];
        session.into_iter().chain(others).find(|reason| reason.name() == name)
    }
}

/// The reason why a draft was not sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SealFailure {
    /// This device has no session with these devices of these users: it needs their bundles.
    NeedBundles(Vec<(UserId, Vec<InstallationId>)>),
    /// The draft can never be sealed; the text is the reason.
    Never(&'static str),
}
