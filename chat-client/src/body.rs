//! Encryption of a message's body: once, under a fresh key. The box of each device contains that key.
//!
//! The body commits to its key: it begins with a commitment derived from the key, and the hash in the box
//! covers context, commitment and ciphertext. So two recipients cannot decrypt one body to different
//! contents.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce};
use chat_core::body_key::{BodyKeys, derive};

/// Encrypts a body under a single-use key. Returns a commitment to the key, then the ChaCha20-Poly1305
/// ciphertext.
pub fn encrypt(key: &[u8; 32], context: &[u8], content: &[u8]) -> Option<Vec<u8>> {
    let BodyKeys { encryption, commitment } = derive(key);
    let cipher = ChaCha20Poly1305::new(&Key::from(*encryption));
    // The key is used once, so the nonce may be fixed.
    let sealed = cipher.encrypt(&Nonce::from([0; 12]), Payload { msg: content, aad: context }).ok()?;
    Some([&commitment[..], &sealed].concat())
}

/// Decrypts a body that [`encrypt`] returned. Returns `None` if it does not belong to the key and context.
pub fn decrypt(key: &[u8], context: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    let BodyKeys { encryption, commitment } = derive(key);
    let (claimed, sealed) = body.split_at_checked(32)?;
    if claimed != commitment {
        return None;
    }
    let cipher = ChaCha20Poly1305::new(&Key::from(*encryption));
    cipher.decrypt(&Nonce::from([0; 12]), Payload { msg: sealed, aad: context }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_decrypts_only_with_its_own_key_and_context() {
        let sealed = encrypt(&[5; 32], b"context", b"content").unwrap();
        assert_eq!(decrypt(&[5; 32], b"context", &sealed).as_deref(), Some(&b"content"[..]));
        assert_eq!(decrypt(&[6; 32], b"context", &sealed), None, "another key");
        assert_eq!(decrypt(&[5; 32], b"contexT", &sealed), None, "another context");
        for i in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[i] ^= 1;
            assert_eq!(decrypt(&[5; 32], b"context", &altered), None, "byte {i}");
            assert_eq!(decrypt(&[5; 32], b"context", &sealed[..i]), None, "cut at {i}");
        }
    }
}
