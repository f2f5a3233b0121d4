//! The encoded content of a message: a versioned protobuf, padded so that its length reveals little.

use std::time::Duration;

use chat_core::group::GroupAction;
use chat_core::limits::MAX_EXPIRY_MS;
use chat_core::padding::{pad, unpad};
use chat_core::replica::Unreadable;
use chat_core::{ConversationId, MessageId, UserId};
use prost::Message as _;

use crate::group_profile::GroupProfile;
use crate::invitation::{GroupInvitation, RawInvitation};
use crate::message::{Content, MessageRef, User};
use crate::message_change::{MAX_EMOJI, MessageChange};
use crate::send::SendRequest;

/// Version of the encoding.
const VERSION: u32 = 1;

/// Number of kinds of messages that this version reads. A version that reads another kind raises it: then a store reads its
/// messages of unknown kinds again.
pub(crate) const KINDS: u64 = 1;

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RawContent {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, optional, tag = "2")]
    text: Option<String>,
    /// The name of the group, in a message that founds or edits a group, or adds members.
    #[prost(string, optional, tag = "3")]
    group_name: Option<String>,
    /// An invitation of the recipient, or the link of the group in a message of that group.
    #[prost(message, optional, tag = "4")]
    invitation: Option<RawInvitation>,
    /// The message that this one answers.
    #[prost(message, optional, tag = "5")]
    reply_to: Option<RawRef>,
    /// The users that the text mentions.
    #[prost(bytes = "vec", repeated, tag = "6")]
    mentions: Vec<Vec<u8>>,
    /// The text is that of another message.
    #[prost(bool, tag = "7")]
    forwarded: bool,
    /// The message that this one changes: with a text it replaces the text of that message.
    #[prost(message, optional, tag = "8")]
    target: Option<RawRef>,
    /// The target is deleted; without a target, this message was.
    #[prost(bool, tag = "9")]
    deleted: bool,
    /// A reaction to the target.
    #[prost(string, optional, tag = "10")]
    reaction: Option<String>,
    /// The reaction is taken back.
    #[prost(bool, tag = "11")]
    removed: bool,
    /// The description of the group, beside its name.
    #[prost(string, tag = "12")]
    group_description: String,
    /// The reference to the picture of the group, beside its name.
    #[prost(string, optional, tag = "13")]
    group_picture: Option<String>,
    /// Milliseconds after which the message disappears: on the server after it was stored, on devices after it was read.
    #[prost(uint64, tag = "14")]
    lifetime_ms: u64,
    /// The lifetime of later messages of the conversation; 0 ends it. Also beside the profile of a group, for new members.
    #[prost(uint64, optional, tag = "15")]
    timer_ms: Option<u64>,
}

/// Names a message of the same conversation.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RawRef {
    #[prost(bytes = "vec", tag = "1")]
    user: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
}

impl RawRef {
    fn of(target: &MessageRef) -> Self {
        Self { user: target.user.as_bytes().to_vec(), id: target.id.as_bytes().to_vec() }
    }

    fn read(&self, conversation: ConversationId) -> Option<MessageRef> {
        let (user, id) = (UserId::parse(&self.user).ok()?, MessageId::parse(&self.id).ok()?);
        Some(MessageRef { conversation, user, id })
    }
}

/// A decoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DecodedMessage {
    pub content: Content,
    pub attributes: Attributes,
    /// The message that this one changes, and the change; `None` if it is a message of its own.
    pub change: Option<(MessageRef, MessageChange)>,
}

impl DecodedMessage {
    /// Returns the lifetime in milliseconds of later messages of the conversation, if the message sets it; 0 ends it.
    pub(crate) fn timer_ms(&self) -> Option<u64> {
        let Content::DisappearingTimer(after) = &self.content else { return None };
        Some(after.map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The parts of a message beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub reply_to: Option<MessageRef>,
    pub mentions: Vec<UserId>,
    pub is_forwarded: bool,
    /// Milliseconds after which the message disappears; 0 if it does not.
    pub lifetime_ms: u64,
}

impl Attributes {
    /// Returns whether the message mentions a user, or answers one of its messages.
    pub(crate) fn directs_at(&self, user: UserId) -> bool {
        self.mentions.contains(&user) || self.reply_to.is_some_and(|target| target.user == user)
    }
}

impl RawContent {
    fn encode_padded(self) -> Vec<u8> {
        pad(Self { version: VERSION, ..self }.encode_to_vec())
    }

    fn change(&self, conversation: ConversationId) -> Option<(MessageRef, MessageChange)> {
        let target = self.target.as_ref()?.read(conversation)?;
        let change = match (&self.reaction, &self.text) {
            _ if self.deleted => MessageChange::Deleted,
            (Some(emoji), _) if (1..=MAX_EMOJI).contains(&emoji.len()) => {
                MessageChange::Reacted { emoji: emoji.clone(), removed: self.removed }
            }
            (_, Some(_)) => MessageChange::Edited,
            _ => return None,
        };
        Some((target, change))
    }

    /// Returns the profile of a group. A member chooses it: one with sizes that are not allowed is ignored.
    fn group_profile(self) -> Option<GroupProfile> {
        let (name, description) = (self.group_name?, self.group_description);
        let profile = GroupProfile { name, description, picture: self.group_picture };
        profile.check().is_ok().then_some(profile)
    }
}

/// Returns the encoded and padded content of a message. `lifetime_ms` is the timer of its conversation, which a deletion and a
/// new timer outlive.
pub(crate) fn encode_request(request: &SendRequest, lifetime_ms: u64) -> Vec<u8> {
    let is_deletion = matches!(request.change, Some((_, MessageChange::Deleted)));
    let mut raw = RawContent {
        lifetime_ms: if is_deletion || request.timer_ms.is_some() { 0 } else { lifetime_ms },
        timer_ms: request.timer_ms,
        reply_to: request.reply_to.as_ref().map(RawRef::of),
        mentions: request.mentions.iter().map(|user| user.as_bytes().to_vec()).collect(),
        forwarded: request.is_forwarded,
        ..RawContent::default()
    };
    match &request.change {
        None => raw.text = request.timer_ms.is_none().then(|| request.text.clone()),
        Some((target, change)) => {
            raw.target = Some(RawRef::of(target));
            match change {
                MessageChange::Edited => raw.text = Some(request.text.clone()),
                MessageChange::Deleted => raw.deleted = true,
                MessageChange::Reacted { emoji, removed } => {
                    (raw.reaction, raw.removed) = (Some(emoji.clone()), *removed);
                }
            }
        }
    }
    raw.encode_padded()
}

/// Returns the encoded and padded content in the place of a deleted message.
pub(crate) fn encode_deleted() -> Vec<u8> {
    RawContent { deleted: true, ..RawContent::default() }.encode_padded()
}

/// Returns the message that padded content changes, and the change; `None` if it is a message of its own.
pub(crate) fn change_in(conversation: ConversationId, content: &[u8]) -> Option<(MessageRef, MessageChange)> {
    RawContent::decode(unpad(content).ok()?).ok()?.change(conversation)
}

/// Decodes a message from padded content.
pub(crate) fn decode_message(conversation: ConversationId, bytes: &[u8]) -> DecodedMessage {
    let raw = unpad(bytes).ok().and_then(|bytes| RawContent::decode(bytes).ok());
    let change = raw.as_ref().and_then(|raw| raw.change(conversation));
    let attributes = raw.as_ref().map(|raw| Attributes {
        reply_to: raw.reply_to.as_ref().and_then(|target| target.read(conversation)),
        mentions: raw.mentions.iter().filter_map(|user| UserId::parse(user).ok()).collect(),
        is_forwarded: raw.forwarded,
        lifetime_ms: raw.lifetime_ms.min(MAX_EXPIRY_MS),
    });
    DecodedMessage { content: Content::of(bytes, raw), attributes: attributes.unwrap_or_default(), change }
}

/// The parts of a message from which its options for the server are made.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerFacts {
    /// Milliseconds after which it disappears; 0 if it does not.
    pub lifetime_ms: u64,
    /// The author and the id of the message that it deletes.
    pub deletes: Option<(UserId, MessageId)>,
}

impl ServerFacts {
    /// Reads padded content.
    pub(crate) fn of(content: &[u8]) -> Self {
        let Some(raw) = unpad(content).ok().and_then(|bytes| RawContent::decode(bytes).ok()) else {
            return Self::default();
        };
        let target = raw.target.as_ref().filter(|_| raw.deleted);
        let target = target.map(|target| (UserId::parse(&target.user), MessageId::parse(&target.id)));
        let deletes = target.and_then(|(user, id)| Some((user.ok()?, id.ok()?)));
        Self { lifetime_ms: raw.lifetime_ms.min(MAX_EXPIRY_MS), deletes }
    }
}

/// Returns the encoded and padded content of a text message.
#[cfg(test)]
pub(crate) fn encode_text(text: &str) -> Vec<u8> {
    RawContent { text: Some(text.to_owned()), ..RawContent::default() }.encode_padded()
}

/// Returns the encoded and padded content of a message in a group, with the profile of the group, its link, or both.
/// `timer_ms` is the timer of the group, beside the profile.
pub(crate) fn encode_group_details(
    profile: Option<GroupProfile>,
    link: Option<&GroupInvitation>,
    timer_ms: u64,
) -> Vec<u8> {
    let mut raw = RawContent { invitation: link.map(GroupInvitation::to_raw), ..RawContent::default() };
    if let Some(profile) = profile {
        raw.timer_ms = Some(timer_ms);
        (raw.group_name, raw.group_description) = (Some(profile.name), profile.description);
        raw.group_picture = profile.picture;
    }
    raw.encode_padded()
}

/// Returns the encoded and padded content of an invitation.
pub(crate) fn encode_invitation(invitation: &GroupInvitation) -> Vec<u8> {
    encode_group_details(None, Some(invitation), 0)
}

/// The parts of a message of a group that describe the group.
#[derive(Debug, Default)]
pub(crate) struct ReceivedDetails {
    pub profile: Option<GroupProfile>,
    pub link: Option<GroupInvitation>,
    /// The timer of the group, beside the profile.
    pub timer_ms: Option<u64>,
}

/// Returns the profile and the link of the group in padded content.
pub(crate) fn group_details(content: &[u8]) -> ReceivedDetails {
    let mut raw = unpad(content).ok().and_then(|bytes| RawContent::decode(bytes).ok()).unwrap_or_default();
    let link = raw.invitation.take().and_then(|raw| GroupInvitation::from_raw(raw).ok());
    let timer_ms = raw.timer_ms.map(|timer_ms| timer_ms.min(MAX_EXPIRY_MS));
    ReceivedDetails { profile: raw.group_profile(), link, timer_ms }
}

impl Content {
    /// Decodes padded content; without bytes, that of a cleared message. A later version's content without a text is [`Content::Unsupported`].
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        Self::of(bytes, unpad(bytes).ok().and_then(|bytes| RawContent::decode(bytes).ok()))
    }

    /// Returns the content of a message that makes a change of its group, as the user `own` sees it. `users` are those that the
    /// change names.
    pub(crate) fn of_change(self, action: GroupAction, users: Vec<User>, own: UserId) -> Self {
        let has_profile = match &action {
            GroupAction::Create { .. } | GroupAction::Edit => true,
            // A new member could not read the message that set the profile.
            action => action.added().contains(&own),
        };
        match self {
            Self::Invitation(link) if matches!(action, GroupAction::SetLink(_)) => Self::Invitation(link),
            Self::GroupChanged { profile, .. } if has_profile => {
                Self::GroupChanged { action: Box::new(action), users, profile }
            }
            _ => Self::GroupChanged { action: Box::new(action), users, profile: None },
        }
    }

    /// Returns whether the content of a message shows more than the change of a group that the message makes: a profile, or a
    /// link.
    pub(crate) fn adds_to(self, action: GroupAction, own: UserId) -> bool {
        match self.of_change(action, Vec::new(), own) {
            Self::GroupChanged { profile, .. } => profile.is_some(),
            content => matches!(content, Self::Invitation(_)),
        }
    }

    /// Returns the content of a message that makes no change of a group.
    pub(crate) fn of_no_change(self) -> Self {
        match self {
            // Its sender claims a change that it may not make.
            Self::GroupChanged { .. } => Self::Unreadable(Unreadable::Malformed),
            content => content,
        }
    }

    fn of(bytes: &[u8], raw: Option<RawContent>) -> Self {
        if bytes.is_empty() {
            // Encoded content is padded.
            return Self::Cleared;
        }
        match raw {
            Some(RawContent { deleted: true, .. }) => Self::Deleted,
            Some(RawContent { text: Some(text), .. }) => Self::Text(text),
            Some(raw @ RawContent { group_name: Some(_), .. }) => {
                raw.group_profile().map_or(Self::Unreadable(Unreadable::Malformed), |profile| {
                    Self::GroupChanged {
                        action: Box::new(GroupAction::Edit),
                        users: Vec::new(),
                        profile: Some(Box::new(profile)),
                    }
                })
            }
            Some(RawContent { invitation: Some(raw), .. }) => match GroupInvitation::from_raw(raw) {
                Ok(invitation) => Self::Invitation(Box::new(invitation)),
                Err(_) => Self::Unreadable(Unreadable::Malformed),
            },
            Some(RawContent { timer_ms: Some(timer_ms), target: None, .. }) => {
                let after = Duration::from_millis(timer_ms.min(MAX_EXPIRY_MS));
                Self::DisappearingTimer((timer_ms > 0).then_some(after))
            }
            Some(_) => Self::Unsupported,
            None => Self::Unreadable(Unreadable::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_restores_any_encoded_text() {
        for text in ["", "\0\0", "x", &"é".repeat(1000), "\u{80}"] {
            assert_eq!(Content::decode(&encode_text(text)), Content::Text(text.into()));
        }
        for malformed in [&[0][..], &[0; 160]] {
            assert_eq!(Content::decode(malformed), Content::Unreadable(Unreadable::Malformed));
        }
        assert_eq!(Content::decode(&[]), Content::Cleared);
        assert_eq!(encode_text("hi").len(), encode_text("hello").len());
        let long =
            |profile: GroupProfile| [profile.clone().description("x".repeat(4_097)), profile.picture("")];
        let nameless = [GroupProfile::default(), GroupProfile::new("x".repeat(257))];
        for profile in nameless.into_iter().chain(long(GroupProfile::new("Hiking"))) {
            let content = encode_group_details(Some(profile), None, 0);
            assert_eq!(group_details(&content).profile, None, "it would fail where the profile is sent on");
            assert_eq!(Content::decode(&content), Content::Unreadable(Unreadable::Malformed));
        }
    }

    #[test]
    fn content_of_a_later_version_is_unsupported() {
        let later = pad(RawContent { version: 2, ..RawContent::default() }.encode_to_vec());
        assert_eq!(Content::decode(&later), Content::Unsupported);
    }
}
