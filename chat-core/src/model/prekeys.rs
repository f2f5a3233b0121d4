//! Prekeys as a device uploads them, and as another device claims them.

use bytes::Bytes;

use super::id::InstallationId;

/// A one-time prekey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimePrekey {
    /// Rises with each key of a device.
    pub id: u64,
    /// Opaque to the server.
    pub data: Bytes,
}

/// A prekey upload of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrekeyUpload {
    /// Opaque to the server, signed by the device key.
    pub signed: Bytes,
    /// Ed25519 signature by the device key over `signed`.
    pub signature: Bytes,
    /// One-time prekeys with rising ids.
    pub one_time: Vec<OneTimePrekey>,
    /// The highest id in this and all earlier uploads.
    pub uploaded_through: u64,
    /// Drop the one-time prekeys of earlier uploads.
    pub replace: bool,
}

/// The signed part of the first prekeys of a device. The server stores it before the list that names the device, so that
/// no device is listed without keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstPrekeys {
    pub installation: InstallationId,
    /// As in an upload.
    pub signed: Bytes,
    /// As in an upload.
    pub signature: Bytes,
}

impl From<FirstPrekeys> for PrekeyUpload {
    /// Returns the upload that every upload of the device itself follows.
    fn from(first: FirstPrekeys) -> Self {
        let FirstPrekeys { signed, signature, .. } = first;
        Self { signed, signature, one_time: Vec::new(), uploaded_through: 0, replace: false }
    }
}

/// A prekey bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The installation whose prekeys these are.
    pub installation: InstallationId,
    /// As uploaded.
    pub signed: Bytes,
    /// As uploaded.
    pub signature: Bytes,
    /// A one-time prekey that no other device receives; empty if none is left.
    pub one_time: Bytes,
}
