//! Signatures: Ed25519 (RFC 8032, strict verification) over the domain `chat/v1/<purpose>` and
//! length-prefixed fields. The domain prevents that a signature for one purpose is valid for another.

use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{DeviceId, Incarnation, UserId};

/// Returns the bytes to sign for a purpose: the domain, then each field after its length (u32, big endian).
///
/// ```
/// let bytes = chat_core::signing::transcript("example", &[b"ab"]);
/// assert_eq!(bytes, b"chat/v1/example\0\0\0\x02ab");
/// ```
pub fn transcript(purpose: &str, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("chat/v1/{purpose}").into_bytes();
    for field in fields {
        let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

/// Verifies a signature.
///
/// # Errors
/// [`ErrorKind::Denied`] if the signature does not match the key and the message; [`ErrorKind::Invalid`] if
/// the key or the signature is malformed.
pub fn verify(key: &[u8; 32], message: &[u8], signature: &[u8]) -> Result<()> {
    let key =
        VerifyingKey::from_bytes(key).map_err(|_| Error::new(ErrorKind::Invalid, "not an Ed25519 key"))?;
    let signature = Signature::from_slice(signature)
        .map_err(|_| Error::new(ErrorKind::Invalid, "not an Ed25519 signature"))?;
    key.verify_strict(message, &signature)
        .map_err(|_| Error::new(ErrorKind::Denied, "the signature does not match"))
}

/// The claims that a device signs to open a session. They include the authority that the client dialled, so a
/// hostile server cannot forward the challenge of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloClaims {
    /// The `host:port` that the client dialled.
    pub authority: String,
    /// The nonce of the server's challenge.
    pub nonce: Bytes,
    /// The chosen wire version.
    pub version: u32,
    pub token: String,
    pub user: UserId,
    pub device: DeviceId,
    pub incarnation: Incarnation,
    /// The local store's generation.
    pub generation: u64,
}

impl HelloClaims {
    /// Returns the bytes to sign.
    pub fn transcript(&self) -> Vec<u8> {
        transcript(
            "hello",
            &[
                self.authority.as_bytes(),
                &self.nonce,
                &self.version.to_be_bytes(),
                &Sha256::digest(self.token.as_bytes()),
                self.user.as_bytes(),
                &[self.device.get()],
                &self.incarnation.to_be_bytes(),
                &self.generation.to_be_bytes(),
            ],
        )
    }
}

/// The claims that a device signs to continue its session with a new token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewalClaims {
    /// The nonce of the challenge that began the connection.
    pub nonce: Bytes,
    pub token: String,
    pub user: UserId,
    pub device: DeviceId,
}

impl RenewalClaims {
    /// Returns the bytes to sign.
    pub fn transcript(&self) -> Vec<u8> {
        let token = Sha256::digest(self.token.as_bytes());
        transcript("renew", &[&self.nonce, &token, self.user.as_bytes(), &[self.device.get()]])
    }
}

/// Returns the bytes that an account key signs to delete its account, whose newest list has this version.
pub fn deletion_transcript(user: UserId, list_version: u64) -> Vec<u8> {
    transcript("delete-account", &[user.as_bytes(), &list_version.to_be_bytes()])
}

/// Returns the bytes that a device key signs for a prekey upload.
pub fn prekeys_transcript(signed: &[u8]) -> Vec<u8> {
    transcript("prekeys", &[signed])
}
