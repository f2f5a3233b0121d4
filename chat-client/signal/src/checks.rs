//! Checks that this release of libsignal lacks, for public keys that make the shared secret a constant.

use chat_core::{Error, ErrorKind, Result};
use libsignal_protocol::{PreKeySignalMessage, PublicKey, SignalMessage};

use crate::post_quantum;

/// u-coordinates of Curve25519 points of small order, and their unreduced forms (RFC 7748, section 6.1, and
/// the list of libsodium).
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    // p - 1, p, p + 1
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
    [
        0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
    [
        0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
];

/// Rejects a serialized Curve25519 key if its point has small order.
///
/// # Errors
/// `Invalid` for such a key, and for bytes that are not a serialized Curve25519 key.
pub fn public_key(serialized: &[u8]) -> Result<()> {
    let invalid = |what| Error::new(ErrorKind::Invalid, what);
    let [0x05, key @ ..] = serialized else {
        return Err(invalid("not a Curve25519 key"));
    };
    let mut key: [u8; 32] = key.try_into().map_err(|_| invalid("a Curve25519 key has 32 bytes"))?;
    // X25519 ignores the highest bit.
    key[31] &= 0x7f;
    if SMALL_ORDER.contains(&key) { Err(invalid("the key has small order")) } else { Ok(()) }
}

fn key(key: &PublicKey) -> Result<()> {
    public_key(&key.serialize())
}

/// Checks a message before it is decrypted.
///
/// # Errors
/// `Invalid` for an unsafe key or a malformed post-quantum part.
pub fn message(message: &SignalMessage) -> Result<()> {
    key(message.sender_ratchet_key())?;
    post_quantum::check(message.pq_ratchet())
}

/// Checks a message that starts a session, and that its sender has the identity from the device list.
///
/// # Errors
/// `Invalid` for unsafe keys, a missing KEM part, or another identity.
pub fn first_message(first: &PreKeySignalMessage, identity: &[u8]) -> Result<()> {
    key(first.base_key())?;
    let sender = first.identity_key().serialize();
    public_key(&sender)?;
    if sender[..] != *identity {
        return Err(Error::new(ErrorKind::Invalid, "the message is from another identity"));
    }
    if first.kyber_pre_key_id().is_none() || first.kyber_ciphertext().is_none() {
        return Err(Error::new(ErrorKind::Invalid, "the post-quantum part is missing"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_order_keys_are_rejected_with_either_high_bit() {
        for point in SMALL_ORDER {
            for high in [0, 0x80] {
                let mut serialized = vec![0x05];
                serialized.extend_from_slice(&point);
                serialized[32] |= high;
                assert!(public_key(&serialized).is_err(), "{serialized:02x?}");
            }
        }
        let mut base = vec![0x05, 9];
        base.resize(33, 0);
        assert!(public_key(&base).is_ok(), "the base point");
        assert!(public_key(&base[1..]).is_err() && public_key(&[]).is_err());
    }
}
