//! Lines that the user enters.

use std::time::{Duration, SystemTime};

use chat_client::ConversationSetting;

use crate::contacts::Decision;

/// A line of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered<'a> {
    Nothing,
    To(&'a str),
    Decide(Decision),
    Report(&'a str),
    /// Change or answer the newest message.
    Change(Change<'a>),
    /// Join a group: with a link, or by the newest invitation in the open conversation.
    Join(Option<&'a str>),
    /// Search all conversations.
    Search(&'a str),
    /// Change a setting of the open conversation.
    Configure(ConversationSetting),
    /// Show the message with this number in the open conversation.
    Jump(u64),
    /// Set the timer of the open conversation.
    Disappear(&'a str),
    UnknownCommand(&'a str),
    Text(&'a str),
}

/// A change of, or an answer to, the newest message of the open conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// Replace the text of the newest own message.
    Edit(&'a str),
    /// Delete the newest own message.
    Delete,
    /// React to the newest message of another user.
    React(&'a str),
    /// Answer the newest message of another user.
    Reply(&'a str),
    /// Send the newest refused message again.
    Retry,
    /// Remove the newest refused message.
    Discard,
}

/// The end of a mute that the user ends.
const FOR_EVER: Duration = Duration::from_secs(253_402_300_799);

impl<'a> Entered<'a> {
    pub(super) fn read(input: &'a str) -> Self {
        let trimmed = input.trim();
        match trimmed.strip_prefix('/') {
            _ if trimmed.is_empty() => Self::Nothing,
            // A text may begin with a slash that is written twice.
            Some(escaped) if escaped.starts_with('/') => Self::Text(escaped),
            Some("accept") => Self::Decide(Decision::Accept),
            Some("block") => Self::Decide(Decision::Block),
            Some("unblock") => Self::Decide(Decision::Unblock),
            Some("report") => Self::Report(""),
            Some("join") => Self::Join(None),
            Some("mute") => {
                Self::Configure(ConversationSetting::MutedUntil(SystemTime::UNIX_EPOCH.checked_add(FOR_EVER)))
            }
            Some("unmute") => Self::Configure(ConversationSetting::MutedUntil(None)),
            Some("pin") => Self::Configure(ConversationSetting::Pinned(true)),
            Some("unpin") => Self::Configure(ConversationSetting::Pinned(false)),
            Some("archive") => Self::Configure(ConversationSetting::Archived(true)),
            Some("unarchive") => Self::Configure(ConversationSetting::Archived(false)),
            Some("delete") => Self::Change(Change::Delete),
            Some("retry") => Self::Change(Change::Retry),
            Some("discard") => Self::Change(Change::Discard),
            Some(command) => match command.split_once(' ') {
                Some(("to", name)) => Self::To(name.trim()),
                Some(("edit", text)) => Self::Change(Change::Edit(text.trim())),
                Some(("react", emoji)) => Self::Change(Change::React(emoji.trim())),
                Some(("reply", text)) => Self::Change(Change::Reply(text.trim())),
                Some(("join", link)) => Self::Join(Some(link.trim())),
                Some(("search", words)) => Self::Search(words.trim()),
                Some(("disappear", time)) => Self::Disappear(time.trim()),
                Some(("report", note)) => Self::Report(note.trim()),
                Some(("jump", number)) => {
                    number.trim().parse().map_or(Self::UnknownCommand("jump"), Self::Jump)
                }
                _ => Self::UnknownCommand(command.split(' ').next().unwrap_or_default()),
            },
            None => Self::Text(input),
        }
    }
}
