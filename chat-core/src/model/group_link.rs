//! Links with which users join a group.

use std::fmt;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, UserId};
use crate::model::signing::{transcript, verify};

/// The public part of a group's link, as the roster has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs)]
pub struct GroupLink {
    /// The Ed25519 key that verifies proofs: see [`LinkSecret::key`].
    pub key: [u8; 32],
    /// A user that joins with the link asks first, and an admin adds it.
    pub approval: bool,
}

/// The secret of a group's link. The members know it, and the server does not.
///
/// ```
/// use chat_core::group::{GroupLink, LinkSecret};
/// use chat_core::{ConversationId, UserId};
/// let secret = LinkSecret::from_bytes([7; 32]);
/// let link = GroupLink { key: secret.key(), approval: false };
/// let (group, user) = (ConversationId::from_bytes([0x14; 17]), UserId::from_bytes([1; 16]));
/// let proof = secret.prove(group, user);
/// assert!(link.admits(group, user, &proof));
/// assert!(!link.admits(group, UserId::from_bytes([2; 16]), &proof));
/// ```
#[derive(Clone)]
pub struct LinkSecret(Zeroizing<[u8; 32]>);

impl LinkSecret {
    /// Returns the secret with these bytes, which must be random.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the key that verifies proofs of this secret.
    pub fn key(&self) -> [u8; 32] {
        self.signing_key().verifying_key().to_bytes()
    }

    /// Proves to the members of a group that a user has the secret.
    pub fn prove(&self, group: ConversationId, user: UserId) -> LinkProof {
        LinkProof(self.signing_key().sign(&proof_transcript(group, user)).to_bytes().to_vec())
    }

    fn signing_key(&self) -> SigningKey {
        SigningKey::from_bytes(&self.0)
    }
}

impl fmt::Debug for LinkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkSecret")
    }
}

/// The proof that a user has the secret of a group's link: a signature of 64 bytes over group and user.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct LinkProof(Vec<u8>);

impl LinkProof {
    /// Reads a proof. [`GroupLink::admits`] verifies it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless there are 64 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() != 64 {
            return Err(Error::new(ErrorKind::Invalid, "the proof of a link has 64 bytes"));
        }
        Ok(Self(bytes.to_vec()))
    }

    /// Returns the bytes.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl GroupLink {
    /// Returns whether a proof shows that a user has the secret of this link of the group.
    pub fn admits(&self, group: ConversationId, user: UserId, proof: &LinkProof) -> bool {
        verify(&self.key, &proof_transcript(group, user), &proof.0).is_ok()
    }
}

/// Returns the bytes that the secret signs. They name the user, so a proof that was seen admits no other one.
fn proof_transcript(group: ConversationId, user: UserId) -> Vec<u8> {
    transcript("group-link", &[group.as_bytes(), user.as_bytes()])
}
