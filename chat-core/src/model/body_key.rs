//! The keys of a message body, which is encrypted once. The box of each device contains the body key.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// The keys that are derived from a body key.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct BodyKeys {
    /// Key of the ChaCha20-Poly1305 ciphertext.
    pub encryption: Zeroizing<[u8; 32]>,
    /// The first 32 bytes of the body: no body has two keys.
    pub commitment: [u8; 32],
}

/// Derives both keys by HKDF-SHA-256 (RFC 5869).
#[allow(clippy::missing_panics_doc)] // HKDF yields up to 8160 bytes
pub fn derive(body_key: &[u8]) -> BodyKeys {
    let mut out = Zeroizing::new([0; 64]);
    let expanded = Hkdf::<Sha256>::new(None, body_key).expand(b"chat/v1/body", &mut out[..]);
    debug_assert!(expanded.is_ok());
    let mut keys = BodyKeys { encryption: Zeroizing::new([0; 32]), commitment: [0; 32] };
    keys.encryption.copy_from_slice(&out[..32]);
    keys.commitment.copy_from_slice(&out[32..]);
    keys
}

/// Returns whether a body was encrypted under this body key.
pub fn is_key_of(body_key: &[u8], body: &[u8]) -> bool {
    body.starts_with(&derive(body_key).commitment)
}
