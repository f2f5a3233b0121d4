//! The key of a channel. Everyone with the channel's link derives it; the server does not know it.

use chat_core::group::LinkSecret;
use chat_core::signing::{transcript, verify};
use chat_core::{ConversationId, InstallationId, MessageId};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::body;

/// The first byte of the box of a post.
const VERSION: u8 = 1;
const KEY_ID: usize = 8;
const SALT: usize = 16;
const SIGNATURE: usize = 64;

/// The key that encrypts the boxes of posts: HKDF-SHA256 of the secret of a link.
///
/// A box is `version | key id | salt | ciphertext | signature`. Each has a key of its own, derived from a random salt, the channel
/// and the id of the message. The signature is that of the sending device, because all readers have the key.
pub(crate) struct ChannelKey {
    key: Zeroizing<[u8; 32]>,
    id: [u8; KEY_ID],
}

/// A parsed box of a post.
pub(crate) struct SealedPost<'a> {
    /// Names the key that opens it.
    pub(crate) key_id: [u8; KEY_ID],
    signed: &'a [u8],
    salt: &'a [u8],
    ciphertext: &'a [u8],
    signature: &'a [u8],
}

/// A post: its channel, its message and the device that sent it.
#[derive(Clone, Copy)]
pub(crate) struct PostId {
    pub(crate) channel: ConversationId,
    pub(crate) message: MessageId,
    pub(crate) sender: InstallationId,
}

impl PostId {
    fn context(&self) -> Vec<u8> {
        [&self.channel.as_bytes()[..], self.message.as_bytes()].concat()
    }

    fn transcript(&self, unsigned: &[u8]) -> Vec<u8> {
        let (channel, message) = (self.channel.as_bytes(), self.message.as_bytes());
        transcript("channel-post", &[channel, message, self.sender.as_bytes(), unsigned])
    }
}

impl ChannelKey {
    /// Derives the key of a channel from the secret of its link.
    pub(crate) fn of(secret: &LinkSecret, channel: ConversationId) -> Self {
        let derivation = Hkdf::<Sha256>::new(Some(channel.as_bytes()), secret.as_bytes());
        let mut key = Zeroizing::new([0; 32]);
        let mut id = [0; KEY_ID];
        // The outputs are shorter than the longest one of HKDF, which is the only error.
        let _ = derivation.expand(b"chat/v1/channel-key", &mut *key);
        let _ = derivation.expand(b"chat/v1/channel-key-id", &mut id);
        Self { key, id }
    }

    /// Returns the id that boxes name.
    pub(crate) const fn id(&self) -> [u8; KEY_ID] {
        self.id
    }

    fn box_key(&self, post: PostId, salt: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        let info = [b"chat/v1/channel-box", &post.context()[..]].concat();
        let _ = Hkdf::<Sha256>::new(Some(salt), &*self.key).expand(&info, &mut *key);
        key
    }

    /// Encrypts the plaintext of a box. `salt` must be random, and `sign` returns the signature of the sending device.
    pub(crate) fn seal(
        &self,
        post: PostId,
        plaintext: &[u8],
        salt: [u8; SALT],
        sign: impl FnOnce(&[u8]) -> bytes::Bytes,
    ) -> Option<Vec<u8>> {
        let ciphertext = body::encrypt(&self.box_key(post, &salt), &post.context(), plaintext)?;
        let mut sealed = [&[VERSION][..], &self.id, &salt, &ciphertext].concat();
        let signature = sign(&post.transcript(&sealed));
        sealed.extend_from_slice(&signature);
        Some(sealed)
    }

    /// Decrypts a box. Returns `None` if it is not one of this post under this key.
    pub(crate) fn open(&self, post: PostId, sealed: &SealedPost<'_>) -> Option<Zeroizing<Vec<u8>>> {
        let opened = body::decrypt(&self.box_key(post, sealed.salt)[..], &post.context(), sealed.ciphertext);
        opened.map(Zeroizing::new)
    }
}

impl<'a> SealedPost<'a> {
    /// Parses a box; `None` if its form is unknown.
    pub(crate) fn parse(sealed: &'a [u8]) -> Option<Self> {
        let (signed, signature) = sealed.split_at_checked(sealed.len().checked_sub(SIGNATURE)?)?;
        let (version, rest) = signed.split_first()?;
        let (key_id, rest) = rest.split_at_checked(KEY_ID)?;
        let (salt, ciphertext) = rest.split_at_checked(SALT)?;
        (*version == VERSION).then_some(())?;
        Some(Self { key_id: key_id.try_into().ok()?, signed, salt, ciphertext, signature })
    }

    /// Returns whether the device with this key signed the box for this post.
    pub(crate) fn is_signed(&self, post: PostId, device_key: &[u8; 32]) -> bool {
        verify(device_key, &post.transcript(self.signed), self.signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    fn post() -> PostId {
        PostId {
            channel: ConversationId::from_bytes([0x15; 17]),
            message: MessageId::from_bytes([2; 16]),
            sender: InstallationId::from_bytes([3; 16]),
        }
    }

    fn signing_key() -> SigningKey {
        SigningKey::from_bytes(&[4; 32])
    }

    fn sealed(key: &ChannelKey, salt: u8) -> Vec<u8> {
        let sign = |signed: &[u8]| signing_key().sign(signed).to_bytes().to_vec().into();
        key.seal(post(), b"header", [salt; SALT], sign).unwrap()
    }

    fn key(n: u8) -> ChannelKey {
        ChannelKey::of(&LinkSecret::from_bytes([n; 32]), post().channel)
    }

    #[test]
    fn box_opens_with_its_key_and_for_its_post_only() {
        let sealed = sealed(&key(1), 9);
        let parsed = SealedPost::parse(&sealed).unwrap();
        assert_eq!(parsed.key_id, key(1).id());
        assert_eq!(key(1).open(post(), &parsed).as_deref(), Some(&b"header".to_vec()));
        assert!(key(2).open(post(), &parsed).is_none());
        let other = PostId { message: MessageId::from_bytes([7; 16]), ..post() };
        assert!(key(1).open(other, &parsed).is_none());
        let elsewhere = ConversationId::from_bytes([0x16; 17]);
        let same_secret = ChannelKey::of(&LinkSecret::from_bytes([1; 32]), elsewhere);
        assert_ne!(same_secret.id(), key(1).id(), "each channel has keys of its own");
    }

    #[test]
    fn signature_covers_post_sender_and_box() {
        let sealed = sealed(&key(1), 9);
        let device_key = signing_key().verifying_key().to_bytes();
        let parsed = SealedPost::parse(&sealed).unwrap();
        assert!(parsed.is_signed(post(), &device_key));
        let others = [
            PostId { message: MessageId::from_bytes([7; 16]), ..post() },
            PostId { sender: InstallationId::from_bytes([7; 16]), ..post() },
            PostId { channel: ConversationId::from_bytes([7; 17]), ..post() },
        ];
        assert!(!others.iter().any(|other| parsed.is_signed(*other, &device_key)));
        assert!(!parsed.is_signed(post(), &SigningKey::from_bytes(&[5; 32]).verifying_key().to_bytes()));
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            let is_signed = SealedPost::parse(&altered).is_some_and(|one| one.is_signed(post(), &device_key));
            assert!(!is_signed, "byte {at}");
            assert!(SealedPost::parse(&sealed[..at]).is_none_or(|one| !one.is_signed(post(), &device_key)));
        }
    }

    #[test]
    fn two_boxes_of_one_post_have_different_keys() {
        let (one, two) = (sealed(&key(1), 9), sealed(&key(1), 8));
        let body = 1 + KEY_ID + SALT;
        assert_ne!(one[body..one.len() - SIGNATURE], two[body..two.len() - SIGNATURE]);
    }
}
