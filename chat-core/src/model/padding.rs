//! Padding of plaintext, so that ciphertext lengths reveal little.

use crate::model::error::{Error, ErrorKind, Result};

/// Lengths are rounded up to a multiple of this many bytes.
const BUCKET: usize = 160;

/// Pads with a 0x80 and zeros (ISO/IEC 7816-4) to a multiple of 160 bytes.
///
/// ```
/// use chat_core::padding::{pad, unpad};
/// assert_eq!(pad(b"hi".to_vec()).len(), pad(b"hello".to_vec()).len());
/// assert_eq!(unpad(&pad(b"hi".to_vec())).unwrap(), b"hi");
/// ```
pub fn pad(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(0x80);
    bytes.resize(bytes.len().next_multiple_of(BUCKET), 0);
    bytes
}

/// Returns the content without its padding.
///
/// # Errors
/// `Invalid` if the padding is missing or malformed.
pub fn unpad(bytes: &[u8]) -> Result<&[u8]> {
    match bytes.iter().rposition(|byte| *byte != 0) {
        Some(end) if bytes[end] == 0x80 => Ok(&bytes[..end]),
        _ => Err(Error::new(ErrorKind::Invalid, "not padded content")),
    }
}
