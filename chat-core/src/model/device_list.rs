//! Versioned, signed lists of a user's devices. The account key signs them, so a server can neither add nor
//! hide a device without detection. Both servers and clients verify them here.

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest, Sha256};

use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{DeviceAddress, DeviceId, InstallationId, UserId};
use crate::model::limits::{MAX_DEVICES, MAX_NUMBER, MAX_SUITES};
use crate::model::signing::{transcript, verify};
use crate::model::suite::{SuiteId, SuiteKey};
use crate::proto;

/// An entry of a device list.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DeviceEntry {
    pub device: DeviceId,
    /// Ed25519 public key of the device.
    pub device_key: [u8; 32],
    /// Its identity keys, by rising suite: at least one.
    pub suites: Vec<SuiteKey>,
    /// Numbers of the optional features that it supports, rising. `docs/wire.md` lists them.
    pub capabilities: Vec<u32>,
    /// Milliseconds since 1970 by which the device must have uploaded prekeys itself, which completes its linking. 0: no
    /// limit.
    pub activate_by: u64,
}

impl DeviceEntry {
    /// Returns an entry with these keys, of a device that is active and has one suite.
    pub fn new(device: DeviceId, device_key: [u8; 32], suite_key: SuiteKey) -> Self {
        Self { device, device_key, suites: vec![suite_key], capabilities: Vec::new(), activate_by: 0 }
    }

    /// Returns the identity key of the device in a suite.
    pub fn suite_key(&self, suite: SuiteId) -> Option<&Bytes> {
        self.suites.iter().find(|known| known.suite == suite).map(|known| &known.key)
    }

    /// Returns whether the time to complete the linking of the device is over.
    pub const fn is_due(&self, now_ms: u64) -> bool {
        self.activate_by > 0 && now_ms > self.activate_by
    }

    /// Returns the installation, which is derived from the device key.
    pub fn installation(&self) -> InstallationId {
        InstallationId::of_device_key(&self.device_key)
    }
}

/// One immutable version of a user's devices.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DeviceList {
    pub user: UserId,
    /// Dense from 1.
    pub version: u64,
    /// SHA-256 of the encoded previous version; empty in version 1.
    pub previous: Bytes,
    /// Creation time in milliseconds since 1970.
    pub created: u64,
    /// The devices, sorted by rising device id.
    pub devices: Vec<DeviceEntry>,
}

impl DeviceList {
    /// Returns version 1 of a list.
    pub const fn first(user: UserId, created: u64, devices: Vec<DeviceEntry>) -> Self {
        Self { user, version: 1, previous: Bytes::new(), created, devices }
    }

    /// Returns the version after `before`, with these devices.
    #[must_use]
    pub fn next(before: &SignedDeviceList, created: u64, devices: Vec<DeviceEntry>) -> Self {
        let list = before.list();
        Self { user: list.user, version: list.version + 1, previous: before.hash(), created, devices }
    }

    /// Encodes the list: the bytes that are signed and hashed.
    pub fn encode(&self) -> Bytes {
        let later = |entry: &DeviceEntry| {
            let later = entry.suites.iter().filter(|known| known.suite != SuiteId::SIGNAL);
            later.map(|known| proto::SuiteKey { suite: known.suite.get(), key: known.key.clone() }).collect()
        };
        let devices = self.devices.iter().map(|d| proto::DeviceEntry {
            device: u32::from(d.device.get()),
            device_key: Bytes::copy_from_slice(&d.device_key),
            suite_key: d.suite_key(SuiteId::SIGNAL).cloned().unwrap_or_default(),
            activate_by: d.activate_by,
            suites: later(d),
            capabilities: d.capabilities.clone(),
        });
        proto::DeviceList {
            user: self.user.to_bytes(),
            version: self.version,
            previous: self.previous.clone(),
            created: self.created,
            devices: devices.collect(),
            region: 0,
        }
        .encode_to_vec()
        .into()
    }

    /// Returns the bytes that the account key signs for an encoded list.
    pub fn transcript(encoded: &[u8]) -> Vec<u8> {
        transcript("device-list", &[encoded])
    }

    /// Returns the entry of a device.
    pub fn device(&self, device: DeviceId) -> Option<&DeviceEntry> {
        self.devices.iter().find(|d| d.device == device)
    }

    /// Returns the addresses of all devices.
    pub fn addresses(&self) -> impl Iterator<Item = DeviceAddress> + '_ {
        self.devices.iter().map(|d| DeviceAddress {
            user: self.user,
            device: d.device,
            installation: d.installation(),
        })
    }

    /// Returns the lowest unused device id.
    pub fn free_device(&self) -> Option<DeviceId> {
        (1..=127).filter_map(|id| DeviceId::new(id).ok()).find(|id| self.device(*id).is_none())
    }

    /// Decodes a list that is not signed yet.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the list breaks a rule.
    pub fn read(bytes: Vec<u8>) -> Result<Self> {
        Self::decode(bytes.into())
    }

    fn decode(bytes: Bytes) -> Result<Self> {
        let raw = proto::DeviceList::decode(bytes)
            .map_err(|e| Error::new(ErrorKind::Invalid, "not a device list").caused_by(e))?;
        let mut devices: Vec<DeviceEntry> = Vec::with_capacity(raw.devices.len().min(MAX_DEVICES));
        for entry in raw.devices {
            let device_key = entry.device_key.as_ref().try_into();
            devices.push(DeviceEntry {
                device: DeviceId::new(entry.device)?,
                device_key: device_key
                    .map_err(|_| Error::new(ErrorKind::Invalid, "a device key has 32 bytes"))?,
                suites: suites_from_proto(entry.suite_key, entry.suites)?,
                capabilities: entry.capabilities,
                activate_by: entry.activate_by.min(MAX_NUMBER),
            });
        }
        if raw.region != 0 {
            return Err(Error::new(ErrorKind::Invalid, "a device list of another region"));
        }
        let list = Self {
            user: UserId::parse(&raw.user)?,
            version: raw.version,
            previous: raw.previous,
            created: raw.created,
            devices,
        };
        list.check().map(|()| list)
    }

    fn check(&self) -> Result<()> {
        let broken = |what| Err(Error::new(ErrorKind::Invalid, what));
        if self.devices.is_empty() || self.devices.len() > MAX_DEVICES {
            return broken("a device list has 1 to 6 devices");
        }
        if !self.devices.windows(2).all(|pair| pair[0].device < pair[1].device) {
            return broken("the device ids of a list must rise");
        }
        for (i, a) in self.devices.iter().enumerate() {
            if a.suites.is_empty() || a.suites.len() > MAX_SUITES || a.capabilities.len() > MAX_SUITES {
                return broken("a device has 1 to 8 suites and at most 8 capabilities");
            }
            if !a.suites.windows(2).all(|pair| pair[0].suite < pair[1].suite)
                || !a.capabilities.windows(2).all(|pair| pair[0] < pair[1])
            {
                return broken("the suites and capabilities of a device must rise");
            }
            a.suites.iter().try_for_each(SuiteKey::check)?;
            let shares = |b: &DeviceEntry| {
                a.device_key == b.device_key || a.suites.iter().any(|suite| b.suites.contains(suite))
            };
            if self.devices[..i].iter().any(shares) {
                return broken("two devices of a list share a key");
            }
        }
        match (self.version, self.previous.len()) {
            // The upper bound leaves room for increments: a signer can write any number.
            (1, 0) | (2..=MAX_NUMBER, 32) => Ok(()),
            _ => broken("a device list has a wrong version or no previous hash"),
        }
    }
}

/// Reads the suites of an entry. That of suite 1 has a field of its own, which every release reads.
fn suites_from_proto(signal: Bytes, later: Vec<proto::SuiteKey>) -> Result<Vec<SuiteKey>> {
    let mut suites = Vec::with_capacity(1 + later.len().min(MAX_SUITES));
    if !signal.is_empty() {
        suites.push(SuiteKey { suite: SuiteId::SIGNAL, key: signal });
    }
    for one in later {
        suites.push(SuiteKey { suite: SuiteId::new(one.suite)?, key: one.key });
    }
    Ok(suites)
}

/// A [`DeviceList`] with a valid form and a valid signature of its account key. The caller must compare the
/// account key with the expected one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedDeviceList {
    list: DeviceList,
    encoded: Bytes,
    account_key: [u8; 32],
    signature: Bytes,
}

impl SignedDeviceList {
    /// Verifies the form and the signature of a list.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the list breaks a rule, [`ErrorKind::Denied`] if the signature does not
    /// match.
    pub fn verify(encoded: Bytes, account_key: [u8; 32], signature: Bytes) -> Result<Self> {
        verify(&account_key, &DeviceList::transcript(&encoded), &signature)?;
        Ok(Self { list: DeviceList::decode(encoded.clone())?, encoded, account_key, signature })
    }

    /// Checks that this list may follow `before`: same user and account key, next version, correct hash.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it may not.
    pub fn check_follows(&self, before: &Self) -> Result<()> {
        let follows = self.account_key == before.account_key
            && self.list.user == before.list.user
            && self.list.version == before.list.version + 1
            && self.list.previous == before.hash();
        if follows {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Conflict, "the device list does not follow the previous version"))
        }
    }

    /// Checks that this list may replace `before`, whose account key is lost: same user, next version,
    /// correct hash, another account key.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if it may not.
    pub fn check_replaces(&self, before: &Self) -> Result<()> {
        let replaces = self.account_key != before.account_key
            && self.list.user == before.list.user
            && self.list.version == before.list.version + 1
            && self.list.previous == before.hash();
        if replaces {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Conflict, "the device list does not replace the previous version"))
        }
    }

    /// Returns the devices of an earlier version that this one does not name.
    pub fn removed_since(&self, before: &Self) -> Vec<InstallationId> {
        let devices =
            |list: &Self| list.list.addresses().map(|device| device.installation).collect::<Vec<_>>();
        let listed = devices(self);
        devices(before).into_iter().filter(|device| !listed.contains(device)).collect()
    }

    /// Returns the installations that these lists name, each once and in order.
    pub fn installations_of(lists: &[Self]) -> Vec<InstallationId> {
        let devices = lists.iter().flat_map(|list| list.list.addresses()).map(|device| device.installation);
        devices.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// Returns the list.
    pub const fn list(&self) -> &DeviceList {
        &self.list
    }

    /// Returns the account key that signed the list.
    pub const fn account_key(&self) -> &[u8; 32] {
        &self.account_key
    }

    /// Returns the SHA-256 of the encoded list.
    pub fn hash(&self) -> Bytes {
        Bytes::copy_from_slice(&Sha256::digest(&self.encoded))
    }

    /// Returns the encoded list, as signed.
    pub const fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Returns the signature.
    pub const fn signature(&self) -> &Bytes {
        &self.signature
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    fn entry(device: u32, key: u8) -> DeviceEntry {
        DeviceEntry::new(DeviceId::new(device).unwrap(), [key; 32], suite_key(1, key, 33))
    }

    fn suite_key(suite: u32, key: u8, length: usize) -> SuiteKey {
        SuiteKey { suite: SuiteId::new(suite).unwrap(), key: vec![key; length].into() }
    }

    #[test]
    fn entry_keeps_its_suites_and_capabilities() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let user = UserId::from_bytes([1; 16]);
        let listed = |suites: Vec<SuiteKey>| {
            let entry = DeviceEntry { suites, capabilities: vec![1, 900], ..entry(1, 1) };
            sign(&DeviceList::first(user, 0, vec![entry]), &key)
        };
        for good in [vec![suite_key(1, 1, 33), suite_key(9, 2, 64)], vec![suite_key(2, 1, 1)]] {
            let list = listed(good.clone()).unwrap();
            assert_eq!(list.list().devices[0].suites, good);
            assert_eq!(list.list().devices[0].capabilities, [1, 900]);
        }
        let unordered = vec![suite_key(3, 1, 1), suite_key(2, 1, 1)];
        for bad in [vec![], unordered, vec![suite_key(1, 1, 65)], vec![suite_key(2, 1, 0)]] {
            assert!(listed(bad).is_err());
        }
    }

    #[test]
    fn list_of_another_region_is_refused() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let list = DeviceList::first(UserId::from_bytes([1; 16]), 0, vec![entry(1, 1)]);
        // Field 6, the region, with the value 1.
        let encoded = Bytes::from([&list.encode()[..], &[0x30, 1]].concat());
        let signature = key.sign(&DeviceList::transcript(&encoded)).to_bytes().to_vec();
        assert!(SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature.into()).is_err());
    }

    fn sign(list: &DeviceList, key: &SigningKey) -> Result<SignedDeviceList> {
        let encoded = list.encode();
        let signature = key.sign(&DeviceList::transcript(&encoded)).to_bytes().to_vec();
        SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature.into())
    }

    #[test]
    fn check_follows_accepts_only_the_next_version() {
        let (key, other) = (SigningKey::from_bytes(&[7; 32]), SigningKey::from_bytes(&[8; 32]));
        let user = UserId::from_bytes([1; 16]);
        let v1 = sign(&DeviceList::first(user, 0, vec![entry(1, 1)]), &key).unwrap();
        let v2 = DeviceList::next(&v1, 1, vec![entry(1, 1), entry(2, 2)]);
        assert!(sign(&v2, &key).unwrap().check_follows(&v1).is_ok());
        assert!(sign(&v2, &other).unwrap().check_follows(&v1).is_err(), "another account key");
        let skipped = DeviceList { version: 3, ..v2.clone() };
        assert!(sign(&skipped, &key).unwrap().check_follows(&v1).is_err(), "a skipped version");
        let forked = DeviceList { previous: vec![0; 32].into(), ..v2 };
        assert!(sign(&forked, &key).unwrap().check_follows(&v1).is_err(), "another previous hash");
    }

    #[test]
    fn bad_lists_are_refused() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let user = UserId::from_bytes([1; 16]);
        for devices in [
            vec![],
            vec![entry(2, 2), entry(1, 1)],
            vec![entry(1, 1), entry(2, 1)],
            (1..=7).map(|n| entry(n, n as u8)).collect(),
        ] {
            assert!(sign(&DeviceList::first(user, 0, devices), &key).is_err());
        }
    }

    #[test]
    fn version_above_the_maximum_is_refused() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let v1 = sign(&DeviceList::first(UserId::from_bytes([1; 16]), 0, vec![entry(1, 1)]), &key).unwrap();
        let next = DeviceList::next(&v1, 1, vec![entry(1, 1)]);
        assert!(sign(&DeviceList { version: MAX_NUMBER, ..next.clone() }, &key).is_ok());
        assert!(sign(&DeviceList { version: MAX_NUMBER + 1, ..next.clone() }, &key).is_err());
        assert!(sign(&DeviceList { version: u64::MAX, ..next }, &key).is_err());
    }

    #[test]
    fn verify_detects_one_changed_bit() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let good = sign(&DeviceList::first(UserId::from_bytes([1; 16]), 0, vec![entry(1, 1)]), &key).unwrap();
        for i in 0..good.encoded().len() {
            let mut bad = good.encoded().to_vec();
            bad[i] ^= 1;
            assert!(
                SignedDeviceList::verify(bad.into(), *good.account_key(), good.signature().clone()).is_err()
            );
        }
    }
}
