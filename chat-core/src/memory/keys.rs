use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::backend::{AccountKey, BundleParts, DeviceKeys, KeyDirectory, Reincarnation};
use crate::model::device_list::SignedDeviceList;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{Handle, Incarnation, InstallationId, UserId};
use crate::model::limits::STORED_PREKEYS;
use crate::model::prekeys::{Bundle, PrekeyUpload};

/// A [`KeyDirectory`] in memory.
#[derive(Debug, Default)]
pub struct MemoryKeys(Mutex<Inner>);

#[derive(Clone, Debug, Default)]
struct Inner {
    handles: HashMap<Handle, UserId>,
    names: HashMap<UserId, Handle>,
    lists: HashMap<UserId, SignedDeviceList>,
    /// All versions.
    versions: HashMap<(UserId, u64), SignedDeviceList>,
    owners: HashMap<InstallationId, UserId>,
    prekeys: HashMap<InstallationId, Prekeys>,
    incarnations: HashMap<InstallationId, (Incarnation, [u8; 16], u64)>,
    revocations: BTreeSet<(u64, UserId)>,
    deleted: BTreeSet<UserId>,
}

#[derive(Clone, Debug, Default)]
struct Prekeys {
    signed: Bytes,
    signature: Bytes,
    one_time: BTreeMap<u64, Bytes>,
    uploaded_through: u64,
}

#[cfg(feature = "sim")]
impl MemoryKeys {
    /// Returns a copy of all data.
    pub(crate) fn copy(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }
}

impl Inner {
    fn put(&mut self, list: &SignedDeviceList) {
        let (user, version) = (list.list().user, list.list().version);
        self.versions.insert((user, version), list.clone());
        self.lists.insert(user, list.clone());
    }

    fn take_installations(&mut self, list: &SignedDeviceList) -> Result<()> {
        let user = list.list().user;
        let mut devices = list.list().addresses();
        if devices.any(|d| self.owners.get(&d.installation).is_some_and(|owner| *owner != user)) {
            return Err(Error::new(ErrorKind::Conflict, "an installation belongs to another user"));
        }
        self.owners.extend(list.list().addresses().map(|d| (d.installation, user)));
        Ok(())
    }
}

#[async_trait]
impl KeyDirectory for MemoryKeys {
    async fn register(&self, handle: &Handle, list: &SignedDeviceList) -> Result<()> {
        let mut inner = self.0.lock();
        let user = list.list().user;
        if list.list().version != 1 {
            return Err(Error::new(ErrorKind::Invalid, "an account begins with version 1 of its list"));
        }
        match (inner.handles.get(handle), inner.lists.get(&user)) {
            (None, None) if !inner.deleted.contains(&user) => {}
            (Some(known), Some(stored)) if *known == user && stored == list => return Ok(()),
            _ => return Err(Error::new(ErrorKind::Conflict, "the handle is taken")),
        }
        inner.take_installations(list)?;
        inner.handles.insert(handle.clone(), user);
        inner.names.insert(user, handle.clone());
        inner.put(list);
        Ok(())
    }

    async fn resolve(&self, handle: &Handle) -> Result<Option<UserId>> {
        Ok(self.0.lock().handles.get(handle).copied())
    }

    async fn handle_of(&self, user: UserId) -> Result<Option<Handle>> {
        Ok(self.0.lock().names.get(&user).cloned())
    }

    async fn list(&self, user: UserId) -> Result<Option<SignedDeviceList>> {
        Ok(self.0.lock().lists.get(&user).cloned())
    }

    async fn list_version(&self, user: UserId, version: u64) -> Result<Option<SignedDeviceList>> {
        Ok(self.0.lock().versions.get(&(user, version)).cloned())
    }

    async fn put_list(&self, list: &SignedDeviceList, key: AccountKey) -> Result<()> {
        let mut inner = self.0.lock();
        let stored = inner.lists.get(&list.list().user);
        let stored = stored.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such account"))?;
        if stored == list {
            return Ok(());
        }
        key.check(list, stored)?;
        let removed = list.removed_since(stored);
        inner.take_installations(list)?;
        inner.put(list);
        removed.iter().for_each(|device| drop(inner.prekeys.remove(device)));
        Ok(())
    }

    async fn upload(&self, device: InstallationId, upload: &PrekeyUpload) -> Result<u64> {
        let mut inner = self.0.lock();
        let prekeys = inner.prekeys.entry(device).or_default();
        if upload.uploaded_through > prekeys.uploaded_through || prekeys.signed.is_empty() {
            let kept = if upload.replace { 0 } else { prekeys.one_time.len() };
            if kept + upload.one_time.len() > STORED_PREKEYS {
                return Err(Error::new(ErrorKind::Throttled, "too many prekeys are stored for this device"));
            }
            if upload.replace {
                prekeys.one_time.clear();
            }
            let through = prekeys.uploaded_through;
            let fresh = upload.one_time.iter().filter(|key| key.id > through);
            prekeys.one_time.extend(fresh.map(|key| (key.id, key.data.clone())));
            prekeys.uploaded_through = upload.uploaded_through;
            prekeys.signed = upload.signed.clone();
            prekeys.signature = upload.signature.clone();
        }
        Ok(prekeys.one_time.len() as u64)
    }

    async fn claim(&self, device: InstallationId, parts: BundleParts) -> Result<Option<Bundle>> {
        let mut inner = self.0.lock();
        Ok(inner.prekeys.get_mut(&device).map(|prekeys| Bundle {
            installation: device,
            signed: prekeys.signed.clone(),
            signature: prekeys.signature.clone(),
            one_time: match parts {
                BundleParts::WithOneTimePrekey => prekeys.one_time.pop_first().map(|(_, data)| data),
                BundleParts::SignedOnly => None,
            }
            .unwrap_or_default(),
        }))
    }

    async fn device(&self, device: InstallationId) -> Result<DeviceKeys> {
        let inner = self.0.lock();
        Ok(DeviceKeys {
            incarnation: inner.incarnations.get(&device).map_or(0, |last| last.0),
            prekeys: inner.prekeys.get(&device).map_or(0, |prekeys| prekeys.one_time.len() as u64),
            uploaded_through: inner.prekeys.get(&device).map_or(0, |prekeys| prekeys.uploaded_through),
        })
    }

    async fn reincarnate(&self, device: InstallationId, wish: Reincarnation) -> Result<Incarnation> {
        let mut inner = self.0.lock();
        let last = inner.incarnations.get(&device).copied();
        let next =
            wish.decide(last).ok_or_else(|| Error::new(ErrorKind::Throttled, "one new incarnation a day"))?;
        if last.is_none_or(|last| last.0 != next) {
            inner.incarnations.insert(device, (next, wish.nonce, wish.now_ms));
            inner.prekeys.remove(&device);
        }
        Ok(next)
    }

    async fn delete(&self, user: UserId) -> Result<Vec<InstallationId>> {
        let mut inner = self.0.lock();
        let versions = inner.versions.iter().filter(|((known, _), _)| *known == user);
        let devices: BTreeSet<InstallationId> = versions
            .flat_map(|(_, list)| list.list().addresses())
            .map(|device| device.installation)
            .collect();
        if devices.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "there is no such account"));
        }
        inner.deleted.insert(user);
        inner.lists.remove(&user);
        if let Some(handle) = inner.names.remove(&user) {
            inner.handles.remove(&handle);
        }
        for device in &devices {
            inner.prekeys.remove(device);
            inner.incarnations.remove(device);
        }
        Ok(devices.into_iter().collect())
    }

    async fn revoke(&self, user: UserId, not_before_ms: u64) -> Result<()> {
        self.0.lock().revocations.insert((not_before_ms, user));
        Ok(())
    }

    async fn revocations(&self, since_ms: u64) -> Result<Vec<(UserId, u64)>> {
        let inner = self.0.lock();
        Ok(inner
            .revocations
            .iter()
            .filter(|(at, _)| *at >= since_ms)
            .map(|(at, user)| (*user, *at))
            .collect())
    }
}
