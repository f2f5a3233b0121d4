//! The part of a message that the server reads.

use bytes::Bytes;

use crate::model::error::Result;
use crate::model::id::{ConversationId, InstallationId, MediaId, MessageId, Seq, UserId};
use crate::model::signing::{transcript, verify};

/// The part of a message that is not encrypted: the server acts on it, and recipients receive it too. The box of each
/// recipient contains the [hash](Self::hash), so a server that changes it is detected.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::exhaustive_structs)]
pub struct MessageOptions {
    /// How soon the message should wake devices without a connection.
    pub urgency: Urgency,
    /// The message wakes the devices of these users of the audience. An empty list means all users.
    pub wake: Vec<UserId>,
    /// Milliseconds after the commit at which the message expires; 0 if it does not.
    pub expires_after_ms: u64,
    /// The media that the message references.
    pub media: Vec<MediaId>,
    /// The message that this one deletes.
    pub deletion: Option<Box<Deletion>>,
}

/// How soon a message should wake devices without a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Urgency {
    /// Wakes them.
    #[default]
    Normal,
    /// Does not wake them.
    Silent,
    /// Wakes them, also where other messages would wait.
    Urgent,
}

impl MessageOptions {
    /// Returns whether all options have their defaults. Such a message names no options at all.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether the message wakes the devices of a user.
    pub fn wakes(&self, user: UserId) -> bool {
        self.urgency != Urgency::Silent && (self.wake.is_empty() || self.wake.contains(&user))
    }

    /// Returns the approximate size on the wire, in bytes.
    pub(crate) fn size(&self) -> usize {
        18 * (self.wake.len() + self.media.len()) + if self.deletion.is_some() { 116 } else { 0 }
    }

    /// Returns the SHA-256 of the encoded options; empty for the defaults.
    pub fn hash(&self) -> Bytes {
        use sha2::{Digest, Sha256};
        if self.is_default() {
            return Bytes::new();
        }
        let media: Vec<u8> = self.media.iter().flat_map(|id| *id.as_bytes()).collect();
        let wake: Vec<u8> = self.wake.iter().flat_map(|user| *user.as_bytes()).collect();
        let deletion =
            self.deletion.as_ref().map(|deletion| [&deletion.target()[..], &deletion.signature].concat());
        let fields: [&[u8]; 5] = [
            &[self.urgency as u8],
            &wake,
            &self.expires_after_ms.to_be_bytes(),
            &media,
            deletion.as_deref().unwrap_or_default(),
        ];
        Bytes::copy_from_slice(&Sha256::digest(transcript("message-options", &fields)))
    }
}

/// Names the message that a message of the same conversation deletes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Deletion {
    /// The position of the deleted message.
    pub seq: Seq,
    /// The installation that sent it.
    pub installation: InstallationId,
    pub message_id: MessageId,
    /// Ed25519 signature by the device that deletes the message, over [`transcript`](Self::transcript).
    pub signature: Bytes,
}

impl Deletion {
    fn target(&self) -> Vec<u8> {
        [&self.seq.to_be_bytes()[..], self.installation.as_bytes(), self.message_id.as_bytes()].concat()
    }

    /// Returns the bytes that the deleting device signs.
    pub fn transcript(&self, conversation: ConversationId) -> Vec<u8> {
        transcript("delete-message", &[conversation.as_bytes(), &self.target()])
    }

    /// Verifies the signature.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`](crate::ErrorKind::Denied) if it does not match the key,
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if it is malformed.
    pub fn verify(&self, device_key: &[u8; 32], conversation: ConversationId) -> Result<()> {
        verify(device_key, &self.transcript(conversation), &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_covers_every_option() {
        let user = UserId::from_bytes([1; 16]);
        let deletion = Deletion {
            seq: 1,
            installation: InstallationId::from_bytes([2; 16]),
            message_id: MessageId::from_bytes([3; 16]),
            signature: Bytes::from_static(b"signature"),
        };
        let none = MessageOptions::default();
        let all = [
            none.clone(),
            MessageOptions { urgency: Urgency::Silent, ..none.clone() },
            MessageOptions { urgency: Urgency::Urgent, ..none.clone() },
            MessageOptions { wake: vec![user], ..none.clone() },
            MessageOptions { expires_after_ms: 1, ..none.clone() },
            MessageOptions { media: vec![MediaId::from_bytes([1; 16])], ..none.clone() },
            MessageOptions { deletion: Some(Box::new(deletion.clone())), ..none.clone() },
            MessageOptions { deletion: Some(Box::new(Deletion { seq: 2, ..deletion })), ..none },
        ];
        let hashes: std::collections::HashSet<Bytes> = all.iter().map(MessageOptions::hash).collect();
        assert_eq!(hashes.len(), all.len());
        assert!(all[0].hash().is_empty());
    }

    #[test]
    fn wakes_the_named_users_unless_silent() {
        let (a, b) = (UserId::from_bytes([1; 16]), UserId::from_bytes([2; 16]));
        let all = MessageOptions::default();
        let only_a = MessageOptions { wake: vec![a], ..MessageOptions::default() };
        let silent = MessageOptions { urgency: Urgency::Silent, ..only_a.clone() };
        assert!(all.wakes(a) && only_a.wakes(a) && !only_a.wakes(b) && !silent.wakes(a));
    }
}
