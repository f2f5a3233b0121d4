//! The encoding of the two parts of a prekey bundle.

use chat_core::{Error, ErrorKind, Result};
use prost::Message as _;

/// The part that the device key signs: signed prekey and reusable KEM prekey.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[allow(clippy::exhaustive_structs)]
pub struct SignedPart {
    /// Version of this encoding: 1.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Creation time in milliseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub created: u64,
    /// libsignal's registration id.
    #[prost(uint32, tag = "3")]
    pub registration_id: u32,
    /// The signed prekey's id.
    #[prost(uint32, tag = "4")]
    pub signed_id: u32,
    /// The signed prekey.
    #[prost(bytes = "vec", tag = "5")]
    pub signed_key: Vec<u8>,
    /// Its signature by the suite identity key.
    #[prost(bytes = "vec", tag = "6")]
    pub signed_signature: Vec<u8>,
    /// The reusable KEM prekey's id.
    #[prost(uint32, tag = "7")]
    pub kem_id: u32,
    /// The reusable KEM prekey.
    #[prost(bytes = "vec", tag = "8")]
    pub kem_key: Vec<u8>,
    /// Its signature by the suite identity key.
    #[prost(bytes = "vec", tag = "9")]
    pub kem_signature: Vec<u8>,
}

/// A one-time prekey: a pair of one for the curve and one for the KEM.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[allow(clippy::exhaustive_structs)]
pub struct OneTimePart {
    /// The id of both prekeys.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// The curve prekey.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    /// The KEM prekey.
    #[prost(bytes = "vec", tag = "3")]
    pub kem_key: Vec<u8>,
    /// The KEM prekey's signature by the suite identity key.
    #[prost(bytes = "vec", tag = "4")]
    pub kem_signature: Vec<u8>,
}

/// Maximum age of a bundle in milliseconds. Its device should have replaced an older one long ago.
const MAX_AGE_MS: u64 = 30 * 24 * 3600 * 1000;

/// Maximum milliseconds that a bundle may be dated in the future. A device with a wrong clock makes new
/// bundles once its clock is right.
const MAX_AHEAD_MS: u64 = 24 * 3600 * 1000;

impl SignedPart {
    /// Decodes the signed part.
    ///
    /// # Errors
    /// `Invalid` if it is malformed, too old, or dated too far in the future.
    pub fn read(bytes: &[u8], now_ms: u64) -> Result<Self> {
        let invalid = |what| Error::new(ErrorKind::Invalid, what);
        let part = Self::decode(bytes).map_err(|_| invalid("failed to decode a prekey bundle"))?;
        if part.version != 1 || part.kem_key.is_empty() || part.signed_key.is_empty() {
            return Err(invalid("a prekey bundle has another version or lacks a part"));
        }
        if now_ms > part.created.saturating_add(MAX_AGE_MS) {
            return Err(invalid("a prekey bundle is too old"));
        }
        if part.created > now_ms.saturating_add(MAX_AHEAD_MS) {
            return Err(invalid("a prekey bundle is dated too far in the future"));
        }
        Ok(part)
    }

    /// Returns the encoded signed part.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

impl OneTimePart {
    /// Decodes a one-time prekey. Returns `None` for empty bytes: the device had none left.
    ///
    /// # Errors
    /// `Invalid` if it is malformed.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        Self::decode(bytes).map(Some).map_err(|_| Error::new(ErrorKind::Invalid, "malformed one-time prekey"))
    }

    /// Returns the encoded one-time prekey.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}
