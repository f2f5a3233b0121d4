//! Inputs of a [`Replica`](super::Replica).

use bytes::Bytes;

use super::draft::Draft;
use crate::model::client_frame::Request;
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{AckUpTo, Publish};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, MessageId, UserId};
use crate::model::prekeys::PrekeyUpload;
use crate::model::server_frame::ServerFrame;

/// What happens to a replica.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// The connection asked for by [`Output::Dial`] is there.
    Connected,
    /// It broke, or could not be made.
    Disconnected,
    /// The server has no room for it, and says after how many milliseconds it may.
    Rejected(u32),
    /// A frame of the server.
    Frame(ServerFrame),
    /// Send this.
    Send(Draft),
    /// The user read up to here.
    Read(AckUpTo),
    /// The user is writing.
    Typing(ConversationId),
    /// Whose presence to report.
    Watch(Vec<UserId>),
    /// A question of the application, with a token for its answer.
    Request(u64, Request),
    /// What [`Output::Open`] gave.
    Opened(Opened),
    /// What [`Output::Recall`] gave: who asked, the message, its content if they may have it.
    Recalled(DeviceAddress, ConversationId, MessageId, Option<Bytes>),
    /// What [`Output::Seal`] gave.
    Sealed(Result<Publish, SealFailure>),
    /// What [`Output::MakePrekeys`] made.
    Prekeys(PrekeyUpload),
    /// The server took this new version of the own list.
    OwnList(SignedDeviceList),
    /// A list that the application asked for.
    List(SignedDeviceList),
    /// Nothing more is at hand: make durable what gathered.
    Flush,
    /// A commit is durable.
    Committed(u64),
    /// The deadline passed.
    Tick,
    /// Connect anew, even if stopped.
    Restart,
    /// The user asks for a new incarnation, though there was one within a day: this store goes on, a copy of
    /// it does not.
    Reincarnate,
}

/// What a row held.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Opened {
    /// The content, or why there is none.
    pub content: Result<Bytes, Unreadable>,
    /// The local store has a message of this sender and id already.
    pub known: bool,
    /// The version of its own device list that the sender claims, end to end; 0 if that is not known.
    pub list_version: u64,
}

/// Why a message could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unreadable {
    /// Its sender is on no device list the account key signed.
    UnknownDevice,
    /// There is no session it belongs to.
    NoSession,
    /// It does not decrypt.
    Undecryptable,
    /// It decrypts, but says it is something else: another sender, place or recipient.
    Misplaced,
    /// Its content is not understood.
    Malformed,
}

impl Unreadable {
    /// Whether asking its sender again may help: the session was missing or failed.
    pub const fn is_of_session(self) -> bool {
        matches!(self, Self::NoSession | Self::Undecryptable)
    }

    /// A name for logs and the `chat --json` protocol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownDevice => "unknown_device",
            Self::NoSession => "no_session",
            Self::Undecryptable => "undecryptable",
            Self::Misplaced => "misplaced",
            Self::Malformed => "malformed",
        }
    }
}

/// Why a draft was not sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SealFailure {
    /// These devices of this user have no session yet: their bundles are needed.
    NeedBundles(UserId, Vec<InstallationId>),
    /// It never can be.
    Never(&'static str),
}
