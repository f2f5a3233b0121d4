//! Linking of a second device to an account. The new device shows a code, which the user types on the first
//! device.
//!
//! The code is a secret of 16 random bytes that the server never sees. The server finds the offer by an id that is
//! derived from the secret. The offer, with the new device's public keys, and the answer, with the account key that the
//! new device pins, are encrypted under keys that are derived from the secret, so the server can neither read nor forge
//! either. The key of the answer also depends on an ephemeral key of each device.

use std::fmt;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce};
use chat_core::suite::{SuiteId, SuiteKey};
use chat_core::{DeviceId, Error, ErrorKind, Handle, Result, UserId};
use hkdf::Hkdf;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

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
    /// The signed part of the device's first prekeys.
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) signed_prekeys: Vec<u8>,
    /// The signature of the device key over it: the device agrees to be listed.
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) prekeys_signature: Vec<u8>,
    /// The number of the suite, unless it is that of Signal.
    #[prost(uint32, optional, tag = "6")]
    pub(crate) suite: Option<u32>,
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

/// A link code: a secret of 16 random bytes. `Display` writes four groups of eight hexadecimal digits.
///
/// A person with the code can join the account until the link is approved, so a program shows it to its user only.
/// `Debug` does not print it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCode([u8; 16]);

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

impl Offer {
    /// Returns the digest to which an answer is bound.
    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"chat/v2/link");
        let prekeys = [&self.signed_prekeys, &self.prekeys_signature];
        for part in [&self.device_key, &self.suite_key, &self.ephemeral].into_iter().chain(prekeys) {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part);
        }
        if let Some(suite) = self.suite {
            hash.update(suite.to_be_bytes());
        }
        hash.finalize().into()
    }

    /// Returns the identity key of the device.
    ///
    /// # Errors
    /// `Invalid` if the offer names no suite.
    pub(crate) fn suite_key(&self) -> Result<SuiteKey> {
        let suite = self.suite.map_or(Ok(SuiteId::SIGNAL), SuiteId::new)?;
        Ok(SuiteKey { suite, key: self.suite_key.clone().into() })
    }

    /// Encrypts the offer for the holder of its code.
    ///
    /// # Errors
    /// `Invalid` if a key cannot be derived.
    pub(crate) fn seal(&self, code: &LinkCode) -> Result<Bytes> {
        let sealed = code.cipher(b"offer", &[])?.encrypt(&nonce(), &self.encode_to_vec()[..]);
        sealed.map(Bytes::from).map_err(|_| invalid("failed to encrypt the offer"))
    }

    /// Decrypts an offer.
    ///
    /// # Errors
    /// `Denied` if another code made it, `Invalid` if it cannot be decoded.
    pub(crate) fn open(sealed: &[u8], code: &LinkCode) -> Result<Self> {
        let opened = code.cipher(b"offer", &[])?.decrypt(&nonce(), sealed).map_err(|_| {
            Error::new(ErrorKind::Denied, "the offer from the server does not match the link code")
        })?;
        Self::decode(&opened[..]).map_err(|_| invalid("failed to decode the offer"))
    }

    /// Encrypts the answer to this offer; `secret` must be fresh.
    ///
    /// # Errors
    /// `Invalid` if the offer's key is not a valid X25519 key.
    pub(crate) fn answer(&self, code: &LinkCode, joined: &Joined, secret: [u8; 32]) -> Result<Bytes> {
        let theirs: [u8; 32] = self.ephemeral[..].try_into().map_err(|_| invalid("not an X25519 key"))?;
        let secret = StaticSecret::from(secret);
        let own = PublicKey::from(&secret);
        let cipher = code.cipher(b"answer", &*shared(&secret, PublicKey::from(theirs))?)?;
        let raw = RawAnswer {
            account_key: joined.account_key.to_vec(),
            user: joined.user.as_bytes().to_vec(),
            device: u32::from(joined.device.get()),
            handle: joined.handle.as_str().to_owned(),
        };
        let sealed = cipher
            .encrypt(&nonce(), Payload { msg: &raw.encode_to_vec(), aad: &self.hash() })
            .map_err(|_| invalid("failed to encrypt the answer"))?;
        Ok([&own.as_bytes()[..], &sealed].concat().into())
    }

    /// Decrypts the answer to this offer with its code and the secret of its ephemeral key.
    ///
    /// # Errors
    /// `Denied` if a sender without the code made it, or for another offer; `Invalid` if it is malformed.
    pub(crate) fn open_answer(&self, code: &LinkCode, answer: &[u8], secret: &[u8; 32]) -> Result<Joined> {
        let (theirs, sealed) = answer.split_at_checked(32).ok_or_else(|| invalid("truncated answer"))?;
        let theirs: [u8; 32] = theirs.try_into().map_err(|_| invalid("truncated answer"))?;
        let shared = shared(&StaticSecret::from(*secret), PublicKey::from(theirs))?;
        let opened = code
            .cipher(b"answer", &*shared)?
            .decrypt(&nonce(), Payload { msg: sealed, aad: &self.hash() })
            .map_err(|_| {
                Error::new(
                    ErrorKind::Denied,
                    "the answer is not from a device with the link code: link again",
                )
            })?;
        let raw = RawAnswer::decode(&opened[..]).map_err(|_| invalid("failed to decode the answer"))?;
        Ok(Joined {
            account_key: raw.account_key[..].try_into().map_err(|_| invalid("malformed account key"))?,
            user: UserId::parse(&raw.user)?,
            device: DeviceId::new(raw.device)?,
            handle: Handle::new(&raw.handle)?,
        })
    }
}

/// Returns the nonce of every message: each key encrypts only one.
fn nonce() -> Nonce {
    Nonce::from([0; 12])
}

fn shared(secret: &StaticSecret, theirs: PublicKey) -> Result<Zeroizing<[u8; 32]>> {
    let shared = secret.diffie_hellman(&theirs);
    if shared.was_contributory() {
        Ok(Zeroizing::new(*shared.as_bytes()))
    } else {
        Err(invalid("the key has small order"))
    }
}

impl LinkCode {
    /// Returns the code with this secret, which must be fresh.
    pub(crate) const fn new(secret: [u8; 16]) -> Self {
        Self(secret)
    }

    /// Returns the id under which the server finds the offer.
    ///
    /// # Errors
    /// `Invalid` if it cannot be derived.
    pub(crate) fn rendezvous(&self) -> Result<Bytes> {
        Ok(Bytes::copy_from_slice(&self.derive(b"rendezvous", &[])?[..16]))
    }

    fn cipher(&self, purpose: &[u8], shared: &[u8]) -> Result<ChaCha20Poly1305> {
        Ok(ChaCha20Poly1305::new(&Key::from(*self.derive(purpose, shared)?)))
    }

    /// Derives a key from the secret of the code, and from a secret that both devices share.
    fn derive(&self, purpose: &[u8], shared: &[u8]) -> Result<Zeroizing<[u8; 32]>> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&self.0), shared)
            .expand_multi_info(&[b"chat/v2/link/", purpose], &mut *key)
            .map_err(|_| invalid("failed to derive a key"))?;
        Ok(key)
    }

    /// Parses a code; ignores case, spaces and dashes.
    ///
    /// # Errors
    /// `Invalid` if it does not have 32 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self> {
        let hex: String = text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
        let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
        let digits =
            digits.filter(|d| d.len() == 32).ok_or_else(|| invalid("a code has 32 hexadecimal digits"))?;
        let mut code = [0; 16];
        for (byte, two) in code.iter_mut().zip(digits.chunks(2)) {
            *byte = two[0] << 4 | two[1];
        }
        Ok(Self(code))
    }
}

impl fmt::Display for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let groups: Vec<&str> = (0..hex.len()).step_by(8).map(|at| &hex[at..at + 8]).collect();
        f.write_str(&groups.join("-"))
    }
}

impl fmt::Debug for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkCode")
    }
}

/// The keys of [`open_any`]: of the waiting device, the answering device, and the code.
#[cfg(any(fuzzing, test))]
const KEYS: ([u8; 32], [u8; 32], LinkCode) = ([7; 32], [8; 32], LinkCode::new([3; 16]));

#[cfg(any(fuzzing, test))]
fn offer(secret: [u8; 32]) -> Offer {
    let ephemeral = PublicKey::from(&StaticSecret::from(secret)).as_bytes().to_vec();
    Offer {
        device_key: vec![1; 32],
        suite_key: vec![2; 33],
        ephemeral,
        signed_prekeys: vec![3; 40],
        prekeys_signature: vec![4; 64],
        suite: None,
    }
}

#[cfg(any(fuzzing, test))]
fn joined() -> Result<Joined> {
    let (device, handle) = (DeviceId::new(2)?, Handle::new("alice")?);
    Ok(Joined { account_key: [4; 32], user: UserId::from_bytes([5; 16]), device, handle })
}

/// Returns a valid offer before it is encrypted, and a valid encrypted answer, for [`open_any`] to start from.
///
/// # Errors
/// If a constant is not valid.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub fn payloads() -> Result<[Vec<u8>; 2]> {
    let (secret, answering, code) = KEYS;
    let offer = offer(secret);
    Ok([offer.encode_to_vec(), offer.answer(&code, &joined()?, answering)?.to_vec()])
}

/// Opens bytes as offer and as answer: as a server that changed them sends them, and as a person that has the code encrypts
/// them. Tests and the fuzzer call it: no bytes may panic.
///
/// # Errors
/// `Invalid` unless the bytes are the content of an offer.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub fn open_any(bytes: &[u8]) -> Result<()> {
    let (secret, answering, code) = KEYS;
    let own_offer = offer(secret);
    let _ = Offer::open(bytes, &code);
    let _ = own_offer.open_answer(&code, bytes, &secret);
    let failed = |_| invalid("failed to encrypt");
    let own = PublicKey::from(&StaticSecret::from(answering));
    let shared = shared(&StaticSecret::from(secret), own)?;
    let payload = Payload { msg: bytes, aad: &own_offer.hash() };
    let sealed = code.cipher(b"answer", &*shared)?.encrypt(&nonce(), payload).map_err(failed)?;
    let _ = own_offer.open_answer(&code, &[&own.as_bytes()[..], &sealed].concat(), &secret);
    let sealed = code.cipher(b"offer", &[])?.encrypt(&nonce(), bytes).map_err(failed)?;
    let offer = Offer::open(&sealed, &code)?;
    let _ = offer.suite_key();
    let _ = offer.answer(&code, &joined()?, answering);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_joins_with_the_answer_of_a_device_that_has_its_code() {
        let (secret, code) = ([7; 32], LinkCode::new([3; 16]));
        assert_eq!(LinkCode::parse(&code.to_string().to_uppercase()), Ok(code.clone()));
        let offer = offer(secret);
        let sealed = offer.seal(&code).unwrap();
        let seen = Offer::open(&sealed, &code).unwrap();
        assert_eq!(seen, offer);
        let answer = seen.answer(&code, &joined().unwrap(), [8; 32]).unwrap();
        assert_eq!(offer.open_answer(&code, &answer, &secret), joined());
        assert!(
            offer.open_answer(&code, &answer, &[9; 32]).is_err(),
            "opened with the key of another device"
        );
    }

    #[test]
    fn server_without_the_code_forges_neither_offer_nor_answer() {
        let (secret, code, guess) = ([7; 32], LinkCode::new([3; 16]), LinkCode::new([6; 16]));
        let offer = offer(secret);
        let forged = Offer { device_key: vec![6; 32], ..offer.clone() }.seal(&guess).unwrap();
        assert_eq!(Offer::open(&forged, &code).unwrap_err().kind(), ErrorKind::Denied);
        // The server knows the id of the offer, which does not reveal the code, and it may know the keys of the offer.
        assert_ne!(code.rendezvous().unwrap()[..], code.0);
        let answer = offer.answer(&guess, &joined().unwrap(), [8; 32]).unwrap();
        assert_eq!(offer.open_answer(&code, &answer, &secret).unwrap_err().kind(), ErrorKind::Denied);
        // An answer to another offer with the same code.
        let other = Offer { device_key: vec![6; 32], ..offer.clone() };
        let answer = other.answer(&code, &joined().unwrap(), [8; 32]).unwrap();
        assert_eq!(offer.open_answer(&code, &answer, &secret).unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(format!("{code:?}"), "LinkCode");
    }

    #[test]
    fn no_payload_panics() {
        let payloads = payloads().unwrap();
        let mut rng = chat_core::rng::Rng::new(5);
        let mut opened = 0;
        for _ in 0..20_000 {
            let mut bytes = payloads[rng.below(2) as usize].clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len() as u64) as usize;
                match rng.below(3) {
                    0 => bytes[at] = rng.below(256) as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, rng.below(256) as u8),
                }
            }
            opened += u32::from(open_any(&bytes).is_ok());
        }
        assert!(opened > 1000, "{opened} offers could be decoded");
    }
}
