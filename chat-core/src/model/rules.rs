//! Versions of the rules that a shard decides by.

use super::envelope::Publish;
use super::id::ConversationKind;

/// A version of the rules that a shard decides by. A command carries the rules that its gateway asks for, so that two
/// owners that overlap, and every replay of the log, decide by the same ones.
///
/// A release knows its own rules and those of the release before. An owner that meets later rules, in a command or in a
/// state, stops the shard instead of deciding: another release must run it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Rules(pub u32);

impl Rules {
    /// Messages without options.
    pub const BASIC: Self = Self(1);
    /// Messages may have [options](super::message_options::MessageOptions). A release that does not know them would write
    /// rows without them.
    pub const OPTIONS: Self = Self(2);
    /// Conversations may be groups, and deletions erase their targets. A release that does not know groups would write rows
    /// without the part of the group.
    pub const GROUPS: Self = Self(3);
    /// Conversations may be channels. A release that does not know them cannot read their commands.
    pub const CHANNELS: Self = Self(4);
    /// The rules of this release.
    pub const CURRENT: Self = Self::CHANNELS;

    /// Returns the earliest rules that a publish can be decided by. Gateways ask for no later ones, so that the release
    /// before runs the shard as long as no message needs this one.
    pub fn of(publish: &Publish) -> Self {
        if publish.number.conversation.kind() == Ok(ConversationKind::Channel) {
            Self::CHANNELS
        } else if publish.group.is_some() || publish.options.deletion.is_some() {
            Self::GROUPS
        } else if publish.options.is_default() {
            Self::BASIC
        } else {
            Self::OPTIONS
        }
    }
}
