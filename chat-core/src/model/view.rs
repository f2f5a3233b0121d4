//! A sender's view of a conversation: the last message that its device saw.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::model::envelope::Message;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, InstallationId, MessageId, Seq, StoreEpoch};

/// SHA-256 of a message and its place: conversation, seq, sender installation, message id and the hash of the
/// encrypted body. It covers one row only, so a device that joined late can check it too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowHash([u8; 32]);

impl RowHash {
    /// Returns the hash of a message at this place.
    pub fn of(conversation: ConversationId, seq: Seq, message: &Message) -> Self {
        Self::of_parts(conversation, seq, message.sender.installation, message.id, &message.body)
    }

    /// As [`of`](Self::of), from the parts of the message.
    pub fn of_parts(
        conversation: ConversationId,
        seq: Seq,
        sender: InstallationId,
        id: MessageId,
        body: &[u8],
    ) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"chat/v1/row");
        hash.update(conversation.as_bytes());
        hash.update(seq.to_be_bytes());
        hash.update(sender.as_bytes());
        hash.update(id.as_bytes());
        hash.update(Sha256::digest(body));
        Self(hash.finalize().into())
    }

    /// Returns the hash with these bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless there are 32 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes =
            bytes.try_into().map_err(|_| Error::new(ErrorKind::Invalid, "a row hash has 32 bytes"))?;
        Ok(Self(bytes))
    }

    /// Returns the bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RowHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row…{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2])
    }
}

/// The last message of a conversation that a device saw before it sealed its own. It is encrypted in each box.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct View {
    /// The data set that the seq belongs to.
    pub epoch: StoreEpoch,
    pub seq: Seq,
    pub hash: RowHash,
}
