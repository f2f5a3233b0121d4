//! The users of the simulated world. Their keys are fixed, so that each list is signed once, and not once in
//! every schedule.

use std::sync::LazyLock;

use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};

use crate::model::device_list::{DeviceEntry, DeviceList, SignedDeviceList};
use crate::model::id::{DeviceAddress, DeviceId, Handle, UserId};
use crate::model::suite::SuiteKey;

/// A user: a handle and the versions of its device list.
#[derive(Debug)]
pub(super) struct Account {
    pub handle: Handle,
    /// Version 1 has the first device, version 2 both, version 3 the first again.
    pub lists: [SignedDeviceList; 3],
}

fn device_key(n: u8, device: u8) -> SigningKey {
    SigningKey::from_bytes(&[n * 16 + device; 32])
}

/// Signs with the key of a device.
pub(super) fn sign(device: DeviceAddress, transcript: &[u8]) -> Bytes {
    let key = &DEVICE_KEYS[usize::from(device.user.as_bytes()[0]) - 1][usize::from(device.device.get()) - 1];
    Bytes::copy_from_slice(&key.sign(transcript).to_bytes())
}

static DEVICE_KEYS: LazyLock<[[SigningKey; 2]; 4]> =
    LazyLock::new(|| [1, 2, 3, 4].map(|n| [1, 2].map(|device| device_key(n, device))));

#[allow(clippy::expect_used)] // constants
fn account(name: &str, n: u8) -> Account {
    let key = SigningKey::from_bytes(&[n; 32]);
    let user = UserId::from_bytes([n; 16]);
    let entry = |device: u8| {
        let device_key = device_key(n, device).verifying_key().to_bytes();
        let id = DeviceId::new(u32::from(device)).expect("valid device id");
        DeviceEntry::new(id, device_key, SuiteKey::signal(vec![n * 16 + device; 33]))
    };
    let sign = |list: &DeviceList| {
        let encoded = list.encode();
        let signature = key.sign(&DeviceList::transcript(&encoded)).to_bytes().to_vec();
        SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature.into()).expect("signed")
    };
    let first = sign(&DeviceList::first(user, 1, vec![entry(1)]));
    let second = sign(&DeviceList::next(&first, 2, vec![entry(1), entry(2)]));
    let third = sign(&DeviceList::next(&second, 3, vec![entry(1)]));
    Account { handle: Handle::new(name).expect("valid handle"), lists: [first, second, third] }
}

/// The first two users; the others are in the world with groups only.
pub(super) static ACCOUNTS: LazyLock<[Account; 4]> =
    LazyLock::new(|| [account("alice", 1), account("bob", 2), account("carol", 3), account("dave", 4)]);
