//! Prekeys as a device uploads them, and as another device claims them.

use bytes::Bytes;

use super::id::InstallationId;

/// One one-time prekey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimePrekey {
    /// Rising.
    pub id: u64,
    /// Opaque.
    pub data: Bytes,
}

/// Prekeys of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrekeyUpload {
    /// Opaque, signed by the device key.
    pub signed: Bytes,
    /// That signature.
    pub signature: Bytes,
    /// One-time prekeys with rising ids.
    pub one_time: Vec<OneTimePrekey>,
    /// The highest id in this and all earlier uploads.
    pub uploaded_through: u64,
    /// Drop the one-time prekeys that were there.
    pub replace: bool,
}

/// A prekey bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose.
    pub installation: InstallationId,
    /// As uploaded.
    pub signed: Bytes,
    /// As uploaded.
    pub signature: Bytes,
    /// A one-time prekey nobody else gets; empty when there is none left.
    pub one_time: Bytes,
}
