//! Commands from client handles to the driver.

use std::fmt;

use chat_core::contact::ContactChange;
use chat_core::device_list::SignedDeviceList;
use chat_core::group::{GroupAction, LinkSecret};
use chat_core::presence::PresenceAudience;
use chat_core::{ConversationId, DeviceId, Handle, MessageId, Result, Seq, UserId};
use tokio::sync::oneshot;

use super::conversation_window::ConversationWindow;
use super::timeline_window::{Step, Window};
use crate::contact::{Contact, Relation};
use crate::conversation::Conversation;
use crate::conversation_setting::ConversationSetting;
use crate::diff::Diff;
use crate::event::EventRecord;
use crate::group::{Group, MemberReceipt};
use crate::group_profile::GroupProfile;
use crate::invitation::GroupInvitation;
use crate::linking::LinkCode;
use crate::message::Message;
use crate::safety_number::SafetyNumber;
use crate::send::{Enqueued, Recipient, SendRequest};
use crate::status::{Position, Stage, Status};
use crate::timeline::TimelineItem;

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// A command from a client handle to the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Send {
        to: Recipient,
        request: Box<SendRequest>,
        reply: Reply<Enqueued>,
    },
    FindKey(String, Reply<Option<MessageId>>),
    Status {
        message: MessageId,
        reply: Reply<Status>,
    },
    /// Replies once the message has reached the stage, or is refused.
    Await {
        message: MessageId,
        stage: Stage,
        reply: Reply<Status>,
    },
    EventsOf {
        message: MessageId,
        reply: Reply<Vec<EventRecord>>,
    },
    Read(ConversationId, u64),
    Typing(ConversationId),
    Watch(Vec<UserId>),
    /// Replies with the number of the last event that was handled under this cursor.
    Cursor(String, Reply<u64>),
    Handled {
        name: String,
        number: u64,
        reply: Reply<()>,
    },
    Events {
        after: u64,
        limit: usize,
        reply: Reply<Vec<EventRecord>>,
    },
    Conversations(Reply<Vec<Conversation>>),
    History {
        conversation: ConversationId,
        before: Option<u64>,
        limit: usize,
        reply: Reply<Vec<Message>>,
    },
    Resolve(Handle, Reply<UserId>),
    List(UserId, Reply<SignedDeviceList>),
    ApproveLink(LinkCode, Reply<DeviceId>),
    Unlink(DeviceId, Reply<()>),
    OutboxLen(Reply<usize>),
    /// Replies once the outbox is empty.
    Drained(Reply<()>),
    /// Accepts the account key of a user if this is the safety number.
    AcceptIdentity(UserId, SafetyNumber, Reply<()>),
    ChangeContact(UserId, ContactChange, Reply<()>),
    SetPresenceAudience(PresenceAudience, Reply<()>),
    PresenceAudience(Reply<PresenceAudience>),
    Relation(UserId, Reply<Relation>),
    Contacts(Reply<Vec<Contact>>),
    Report {
        conversation: ConversationId,
        user: UserId,
        seqs: Vec<Seq>,
        note: String,
        reply: Reply<()>,
    },
    ClearHistory(ConversationId, Reply<()>),
    /// Founds a group (`None`) or changes one. Replies with the group and the message once it is queued durably.
    ChangeGroup {
        group: Option<ConversationId>,
        action: GroupAction,
        details: GroupDetails,
        reply: Reply<(ConversationId, MessageId)>,
    },
    /// Founds a channel. Replies with the channel and the message once it is queued durably.
    FoundChannel(GroupProfile, Reply<(ConversationId, MessageId)>),
    /// Replaces the key of a channel, without informing its readers.
    RenewChannelKey(ConversationId, Reply<(ConversationId, MessageId)>),
    Subscribe(GroupInvitation, Reply<()>),
    Unsubscribe(ConversationId, Reply<()>),
    /// Replies with the number of earlier posts of a channel that the server had.
    LoadHistory {
        channel: ConversationId,
        limit: usize,
        reply: Reply<usize>,
    },
    Group(ConversationId, Reply<Group>),
    /// Requests newer receipts, and replies with the known ones of a message.
    Receipts(Position, Reply<Vec<MemberReceipt>>),
    OpenConversation(Option<ConversationId>),
    Search {
        search: String,
        conversation: Option<ConversationId>,
        limit: usize,
        reply: Reply<Vec<Message>>,
    },
    ChangeSetting(ConversationId, ConversationSetting, Reply<()>),
    /// Brings the list of conversations up to date, and replies with it and the changes of its items.
    ConversationList(ConversationWindow, Reply<(ConversationWindow, Vec<Diff<Conversation>>)>),
    /// Takes a step with the window of a timeline, and replies with it and the changes of its items.
    Timeline(Window, Step, Reply<(Window, Vec<Diff<TimelineItem>>)>),
    /// Sends a refused message again (`true`), or removes it.
    Failed {
        message: MessageId,
        retry: bool,
        reply: Reply<Option<MessageId>>,
    },
    /// Makes the secret of a group's link.
    LinkSecret(Reply<LinkSecret>),
    DeleteAccount(Reply<()>),
    SetToken(Token, Reply<()>),
    Reincarnate(Reply<()>),
}

/// The part of a change of a group that the server does not see.
#[derive(Debug, Default)]
pub(crate) struct GroupDetails {
    /// Name, description and picture.
    pub profile: Option<GroupProfile>,
    /// The secret of its link.
    pub link: Option<LinkSecret>,
}

/// A login token, which `Debug` does not print.
pub(crate) struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// A command to the owner of the profile.
#[derive(Debug)]
pub(crate) enum Control {
    Suspend(Reply<()>),
    Resume(Reply<()>),
    Stop,
}
