//! The encoded content of a message: a versioned protobuf, padded so that its length reveals little.

use chat_core::padding::{pad, unpad};
use chat_core::replica::Unreadable;
use chat_core::{ConversationId, MessageId, UserId};
use prost::Message as _;

use crate::group_profile::GroupProfile;
use crate::invitation::{GroupInvitation, RawInvitation};
use crate::message::{Content, MessageRef};
use crate::message_change::{MAX_EMOJI, MessageChange};
use crate::send::SendRequest;

/// Version of the encoding.
const VERSION: u32 = 1;

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

/// The parts of a message beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub reply_to: Option<MessageRef>,
    pub mentions: Vec<UserId>,
    pub is_forwarded: bool,
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

/// Returns the encoded and padded content of a message.
pub(crate) fn encode_request(request: &SendRequest) -> Vec<u8> {
    let mut raw = RawContent {
        reply_to: request.reply_to.as_ref().map(RawRef::of),
        mentions: request.mentions.iter().map(|user| user.as_bytes().to_vec()).collect(),
        forwarded: request.is_forwarded,
        ..RawContent::default()
    };
    match &request.change {
        None => raw.text = Some(request.text.clone()),
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
    });
    DecodedMessage { content: Content::of(bytes, raw), attributes: attributes.unwrap_or_default(), change }
}

/// Returns the encoded and padded content of a text message.
#[cfg(test)]
pub(crate) fn encode_text(text: &str) -> Vec<u8> {
    RawContent { text: Some(text.to_owned()), ..RawContent::default() }.encode_padded()
}

/// Returns the encoded and padded content of a message in a group, with the profile of the group, its link, or both.
pub(crate) fn encode_group_details(profile: Option<GroupProfile>, link: Option<&GroupInvitation>) -> Vec<u8> {
    let mut raw = RawContent { invitation: link.map(GroupInvitation::to_raw), ..RawContent::default() };
    if let Some(profile) = profile {
        (raw.group_name, raw.group_description) = (Some(profile.name), profile.description);
        raw.group_picture = profile.picture;
    }
    raw.encode_padded()
}

/// Returns the encoded and padded content of an invitation.
pub(crate) fn encode_invitation(invitation: &GroupInvitation) -> Vec<u8> {
    encode_group_details(None, Some(invitation))
}

/// Returns the profile and the link of the group in padded content.
pub(crate) fn group_details(content: &[u8]) -> (Option<GroupProfile>, Option<GroupInvitation>) {
    let mut raw = unpad(content).ok().and_then(|bytes| RawContent::decode(bytes).ok()).unwrap_or_default();
    let invitation = raw.invitation.take().and_then(|raw| GroupInvitation::from_raw(raw).ok());
    (raw.group_profile(), invitation)
}

impl Content {
    /// Decodes padded content; without bytes, that of a cleared message. A later version's content without a text is [`Content::Unsupported`].
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        Self::of(bytes, unpad(bytes).ok().and_then(|bytes| RawContent::decode(bytes).ok()))
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
                    Self::GroupProfile(Box::new(profile))
                })
            }
            Some(RawContent { invitation: Some(raw), .. }) => match GroupInvitation::from_raw(raw) {
                Ok(invitation) => Self::Invitation(Box::new(invitation)),
                Err(_) => Self::Unreadable(Unreadable::Malformed),
            },
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
            let content = encode_group_details(Some(profile), None);
            assert_eq!(group_details(&content).0, None, "it would fail where the profile is sent on");
            assert_eq!(Content::decode(&content), Content::Unreadable(Unreadable::Malformed));
        }
    }

    #[test]
    fn content_of_a_later_version_is_unsupported() {
        let later = pad(RawContent { version: 2, ..RawContent::default() }.encode_to_vec());
        assert_eq!(Content::decode(&later), Content::Unsupported);
    }
}
