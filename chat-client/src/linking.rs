//! Linking of a second device to an account. The new device shows a code, which the user types on the first
//! device.
//!
//! The code holds a rendezvous id and a hash of the new device's public keys. The server forwards the keys,
//! and the hash proves that the server did not change them. The answer is sealed to a key of the offer and
//! contains the account key, which the new device pins.

use std::fmt;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce};
use chat_core::{DeviceId, Error, ErrorKind, Handle, Result, UserId};
use hkdf::Hkdf;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

/// The public keys that the new device sends to the first device, through the server.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Offer {
    /// The Ed25519 device key.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) device_key: Vec<u8>,
    /// The suite identity key.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) suite_key: Vec<u8>,
    /// The X25519 key that the answer is sealed to.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) ephemeral: Vec<u8>,
}

/// The encoded form of the first device's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct RawAnswer {
    #[prost(bytes = "vec", tag = "1")]
    account_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    user: Vec<u8>,
    #[prost(uint32, tag = "3")]
    device: u32,
    #[prost(string, tag = "4")]
    handle: String,
}

/// The account that a new device joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    /// The account key to pin.
    pub(crate) account_key: [u8; 32],
    pub(crate) user: UserId,
    /// The number that the first device assigned to the new one.
    pub(crate) device: DeviceId,
    pub(crate) handle: Handle,
}

/// A link code: 16 bytes of rendezvous id and 16 of the offer's hash. `Display` writes groups of eight hexadecimal
/// digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCode {
    /// The id under which the server finds the offer.
    pub(crate) rendezvous: [u8; 16],
    /// The first 16 bytes of the offer's hash.
    pub(crate) hash: [u8; 16],
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

impl Offer {
    /// Returns the half of the code that authenticates the offer.
    pub(crate) fn hash(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        hash.update(b"chat/v1/link");
        for part in [&self.device_key, &self.suite_key, &self.ephemeral] {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part);
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finalize()[..16]);
        short
    }

    /// Returns the encoded offer.
    pub(crate) fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// Decodes an offer and checks it against a code.
    ///
    /// # Errors
    /// `Denied` if the offer does not match the code, `Invalid` if it cannot be decoded.
    pub(crate) fn check(bytes: &[u8], code: &LinkCode) -> Result<Self> {
        let offer = Self::decode(bytes).map_err(|_| invalid("failed to decode the offer"))?;
        if offer.hash() != code.hash {
            return Err(Error::new(
                ErrorKind::Denied,
                "the offer from the server does not match the link code",
            ));
        }
        Ok(offer)
    }

    /// Seals the answer to this offer; `secret` must be fresh.
    ///
    /// # Errors
    /// `Invalid` if the offer's key is not a valid X25519 key.
    pub(crate) fn answer(&self, joined: &Joined, secret: [u8; 32]) -> Result<Bytes> {
        let theirs: [u8; 32] = self.ephemeral[..].try_into().map_err(|_| invalid("not an X25519 key"))?;
        let secret = StaticSecret::from(secret);
        let own = PublicKey::from(&secret);
        let cipher = cipher(&secret, PublicKey::from(theirs))?;
        let raw = RawAnswer {
            account_key: joined.account_key.to_vec(),
            user: joined.user.as_bytes().to_vec(),
            device: u32::from(joined.device.get()),
            handle: joined.handle.as_str().to_owned(),
        };
        let sealed = cipher
            .encrypt(&Nonce::from([0; 12]), Payload { msg: &raw.encode_to_vec(), aad: &self.hash() })
            .map_err(|_| invalid("failed to seal the answer"))?;
        Ok([&own.as_bytes()[..], &sealed].concat().into())
    }

    /// Decrypts the answer to this offer with the secret of its ephemeral key.
    ///
    /// # Errors
    /// `Denied` if it was not sealed to this offer, `Invalid` if it is malformed.
    pub(crate) fn open(&self, answer: &[u8], secret: &[u8; 32]) -> Result<Joined> {
        let (theirs, sealed) = answer.split_at_checked(32).ok_or_else(|| invalid("truncated answer"))?;
        let theirs: [u8; 32] = theirs.try_into().map_err(|_| invalid("truncated answer"))?;
        let cipher = cipher(&StaticSecret::from(*secret), PublicKey::from(theirs))?;
        let opened = cipher
            .decrypt(&Nonce::from([0; 12]), Payload { msg: sealed, aad: &self.hash() })
            .map_err(|_| Error::new(ErrorKind::Denied, "the answer is not for this device"))?;
        let raw = RawAnswer::decode(&opened[..]).map_err(|_| invalid("failed to decode the answer"))?;
        Ok(Joined {
            account_key: raw.account_key[..].try_into().map_err(|_| invalid("malformed account key"))?,
            user: UserId::parse(&raw.user)?,
            device: DeviceId::new(raw.device)?,
            handle: Handle::new(&raw.handle)?,
        })
    }
}

fn cipher(secret: &StaticSecret, theirs: PublicKey) -> Result<ChaCha20Poly1305> {
    let shared = secret.diffie_hellman(&theirs);
    if !shared.was_contributory() {
        return Err(invalid("the key has small order"));
    }
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(None, shared.as_bytes())
        .expand(b"chat/v1/link-answer", &mut key)
        .map_err(|_| invalid("failed to derive a key"))?;
    Ok(ChaCha20Poly1305::new(&Key::from(key)))
}

impl LinkCode {
    /// Parses a code; ignores case, spaces and dashes.
    ///
    /// # Errors
    /// `Invalid` if it does not have 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self> {
        let hex: String = text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
        let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
        let digits =
            digits.filter(|d| d.len() == 64).ok_or_else(|| invalid("a code has 64 hexadecimal digits"))?;
        let bytes: Vec<u8> = digits.chunks(2).map(|two| two[0] << 4 | two[1]).collect();
        let mut code = Self { rendezvous: [0; 16], hash: [0; 16] };
        code.rendezvous.copy_from_slice(&bytes[..16]);
        code.hash.copy_from_slice(&bytes[16..]);
        Ok(code)
    }
}

impl fmt::Display for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex: String =
            self.rendezvous.iter().chain(&self.hash).map(|byte| format!("{byte:02x}")).collect();
        let groups: Vec<&str> = (0..hex.len()).step_by(8).map(|at| &hex[at..at + 8]).collect();
        f.write_str(&groups.join("-"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_joins_only_with_the_offer_of_its_code() {
        let secret = [7; 32];
        let ephemeral = PublicKey::from(&StaticSecret::from(secret)).as_bytes().to_vec();
        let offer = Offer { device_key: vec![1; 32], suite_key: vec![2; 33], ephemeral };
        let code = LinkCode { rendezvous: [3; 16], hash: offer.hash() };
        assert_eq!(LinkCode::parse(&code.to_string().to_uppercase()), Ok(code.clone()));
        let seen = Offer::check(&offer.to_bytes(), &code).unwrap();
        let joined = Joined {
            account_key: [4; 32],
            user: UserId::from_bytes([5; 16]),
            device: DeviceId::new(2).unwrap(),
            handle: Handle::new("alice").unwrap(),
        };
        let answer = seen.answer(&joined, [8; 32]).unwrap();
        assert_eq!(offer.open(&answer, &secret), Ok(joined));
        assert!(offer.open(&answer, &[9; 32]).is_err(), "opened with the key of another device");

        let swapped = Offer { device_key: vec![6; 32], ..offer };
        assert!(Offer::check(&swapped.to_bytes(), &code).is_err(), "accepted a swapped offer");
    }
}
