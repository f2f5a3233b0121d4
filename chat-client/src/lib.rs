#![doc = include_str!("../README.md")]

pub mod body;
pub mod suite;

#[cfg(feature = "client")]
mod account;
#[cfg(feature = "client")]
mod channel_key;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod config;
#[cfg(feature = "client")]
mod connection_state;
#[cfg(feature = "client")]
mod contact;
#[cfg(feature = "client")]
mod content;
#[cfg(feature = "client")]
mod conversation;
#[cfg(feature = "client")]
mod conversation_setting;
#[cfg(feature = "client")]
mod diff;
#[cfg(feature = "client")]
mod driver;
#[cfg(feature = "client")]
mod event;
#[cfg(feature = "client")]
mod group;
#[cfg(feature = "client")]
mod group_profile;
#[cfg(feature = "client")]
mod invitation;
#[cfg(feature = "client")]
mod linking;
#[cfg(feature = "client")]
mod message;
#[cfg(feature = "client")]
mod message_change;
#[cfg(feature = "client")]
pub mod platform;
#[cfg(feature = "client")]
mod report;
#[cfg(feature = "client")]
mod safety_number;
#[cfg(feature = "client")]
mod sealed_body;
#[cfg(feature = "client")]
mod send;
#[cfg(feature = "client")]
mod settings_sync;
#[cfg(feature = "client")]
mod status;
#[cfg(feature = "client")]
mod store;
#[cfg(feature = "client")]
mod timeline;

pub use suite::Suite;

#[cfg(feature = "client")]
pub use client::{Client, ConversationList, Events, PendingLink, Submission, Ticket, Timeline};
#[cfg(feature = "client")]
pub use config::{ClientConfig, Profile};
#[cfg(feature = "client")]
pub use contact::{Contact, Relation};
#[cfg(feature = "client")]
pub use conversation::Conversation;
#[cfg(feature = "client")]
pub use conversation_setting::ConversationSetting;
#[cfg(feature = "client")]
pub use diff::Diff;
#[cfg(feature = "client")]
pub use event::{Event, EventRecord, GapReason, Presence, RefusedReason};
#[cfg(feature = "client")]
pub use group::{Group, GroupJoinLink, GroupMember, MemberReceipt, PendingMember};
#[cfg(feature = "client")]
pub use group_profile::GroupProfile;
#[cfg(feature = "client")]
pub use invitation::GroupInvitation;
#[cfg(feature = "client")]
pub use linking::LinkCode;
#[cfg(all(feature = "client", any(fuzzing, test)))]
#[doc(hidden)]
pub use linking::{open_any, payloads};
#[cfg(feature = "client")]
pub use message::{Content, Message, MessageRef, Reaction, User};
#[cfg(feature = "client")]
pub use message_change::MessageChange;
#[cfg(feature = "client")]
pub use report::open_reported;
#[cfg(feature = "client")]
pub use safety_number::SafetyNumber;
#[cfg(feature = "client")]
pub use send::{Recipient, SendRequest};
#[cfg(feature = "client")]
pub use status::{Count, Position, Status};
#[cfg(feature = "client")]
pub use timeline::{Target, TimelineItem};

pub use chat_core::group::GroupAction;
pub use chat_core::presence::PresenceAudience;
pub use chat_core::replica::{Unreadable, Violation};
pub use chat_core::roster::{GroupPolicy, Role};
pub use chat_core::{
    ConversationId, ConversationKind, DeviceId, Error, ErrorKind, Handle, MessageId, Result, UserId,
};

/// The items that most programs need.
#[cfg(feature = "client")]
pub mod prelude {
    pub use crate::suite::Suite;
    pub use crate::{
        Client, ClientConfig, Content, ConversationId, Error, ErrorKind, Event, EventRecord, Events, Handle,
        Message, MessageId, Profile, Recipient, Result, SendRequest, Ticket, User, UserId,
    };
}
