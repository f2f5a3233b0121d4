//! Accounts, device lists and prekeys. The writer's thread applies changes one after the other, and they
//! share its syncs.

use async_trait::async_trait;
use bytes::Bytes;
use chat_core::backend::{AccountKey, BundleParts, DeviceKeys, KeyDirectory, Reincarnation};
use chat_core::codec::{decode_list, encode_list};
use chat_core::device_list::SignedDeviceList;
use chat_core::limits::STORED_PREKEYS;
use chat_core::wire::{Bundle, PrekeyUpload};
use chat_core::{Error, ErrorKind, Handle, Incarnation, InstallationId, Result, UserId};
use fjall::OwnedWriteBatch;

use super::{EmbeddedStore, Tables, corrupt, failed, keys};

impl Tables {
    pub(super) fn read_list(&self, user: UserId) -> Result<Option<SignedDeviceList>> {
        let value = self.lists.get(user.as_bytes()).map_err(failed)?;
        value.map(|value| decode_list(value.into()).map_err(|_| corrupt())).transpose()
    }

    /// Returns a version of a list: the newest, or one that was replaced.
    fn read_list_version(&self, user: UserId, version: u64) -> Result<Option<SignedDeviceList>> {
        if let Some(newest) = self.read_list(user)?
            && newest.list().version <= version
        {
            return Ok(Some(newest).filter(|newest| newest.list().version == version));
        }
        let value = self.list_versions.get(keys::list_version(user, version)).map_err(failed)?;
        value.map(|value| decode_list(value.into()).map_err(|_| corrupt())).transpose()
    }

    /// Writes a list and the owner of its installations. Refuses an installation of another user.
    fn add_list(&self, batch: &mut OwnedWriteBatch, list: &SignedDeviceList) -> Result<()> {
        let user = list.list().user;
        for device in list.list().addresses() {
            let owner = self.owners.get(device.installation.as_bytes()).map_err(failed)?;
            if owner.is_some_and(|owner| owner[..] != user.as_bytes()[..]) {
                return Err(Error::new(ErrorKind::Conflict, "an installation belongs to another user"));
            }
            batch.insert(&self.owners, &device.installation.as_bytes()[..], &user.as_bytes()[..]);
        }
        batch.insert(&self.lists, &user.as_bytes()[..], encode_list(list));
        Ok(())
    }

    /// Returns the signed part, its signature, and the highest one-time prekey id uploaded.
    pub(super) fn read_bundle(&self, device: InstallationId) -> Result<Option<(Bytes, Bytes, u64)>> {
        let Some(value) = self.bundles.get(device.as_bytes()).map_err(failed)? else {
            return Ok(None);
        };
        let value: Bytes = value.into();
        let length =
            value.get(8..12).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes).ok_or_else(corrupt)?;
        let end = 12 + length as usize;
        if value.len() < end {
            return Err(corrupt());
        }
        Ok(Some((value.slice(12..end), value.slice(end..), keys::number(&value[..8])?)))
    }

    fn count_prekeys(&self, device: InstallationId) -> u64 {
        self.prekeys.prefix(device.as_bytes()).count() as u64
    }

    pub(super) fn read_incarnation(
        &self,
        device: InstallationId,
    ) -> Result<Option<(Incarnation, [u8; 16], u64)>> {
        let Some(value) = self.incarnations.get(device.as_bytes()).map_err(failed)? else {
            return Ok(None);
        };
        let incarnation = value.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
        let nonce = value.get(4..20).and_then(|b| b.try_into().ok());
        let at = value.get(20..28).map(keys::number).transpose()?;
        match (incarnation, nonce, at) {
            (Some(incarnation), Some(nonce), Some(at)) => Ok(Some((incarnation, nonce, at))),
            _ => Err(corrupt()),
        }
    }
}

impl Tables {
    fn is_deleted(&self, user: UserId) -> Result<bool> {
        self.deleted.contains_key(user.as_bytes()).map_err(failed)
    }

    /// Returns the installations of all versions of a user's list.
    fn all_installations(&self, user: UserId) -> Result<Vec<InstallationId>> {
        let replaced = self.list_versions.prefix(user.as_bytes()).map(|guard| {
            let value = guard.value().map_err(failed)?;
            decode_list(value.into()).map_err(|_| corrupt())
        });
        let lists = replaced.chain(self.read_list(user)?.map(Ok)).collect::<Result<Vec<_>>>()?;
        Ok(SignedDeviceList::installations_of(&lists))
    }

    fn delete(&self, user: UserId) -> Changed<Vec<InstallationId>> {
        let devices = self.all_installations(user)?;
        if devices.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "there is no such account"));
        }
        let mut batch = self.database.batch();
        batch.insert(&self.deleted, &user.as_bytes()[..], &[][..]);
        if let Some(list) = self.read_list(user)? {
            batch.insert(
                &self.list_versions,
                keys::list_version(user, list.list().version),
                encode_list(&list),
            );
            batch.remove(&self.lists, &user.as_bytes()[..]);
        }
        if let Some(handle) = self.names.get(user.as_bytes()).map_err(failed)? {
            batch.remove(&self.handles, handle);
            batch.remove(&self.names, &user.as_bytes()[..]);
        }
        for device in &devices {
            batch.remove(&self.incarnations, &device.as_bytes()[..]);
            self.erase_prekeys(&mut batch, *device)?;
        }
        Ok((devices, Some(batch)))
    }

    pub(super) fn read_revocations(&self, since_ms: u64) -> Result<Vec<(UserId, u64)>> {
        let read = |guard: fjall::Guard| {
            let key = guard.key().map_err(failed)?;
            let (at, user) = key.split_at_checked(8).ok_or_else(corrupt)?;
            Ok((UserId::parse(user).map_err(|_| corrupt())?, keys::number(at)?))
        };
        self.revocations.range(since_ms.to_be_bytes()..).map(read).collect()
    }
}

fn prekey(device: InstallationId, id: u64) -> Vec<u8> {
    [&device.as_bytes()[..], &id.to_be_bytes()].concat()
}

fn bundle_value(upload: &PrekeyUpload) -> Vec<u8> {
    let length = u32::try_from(upload.signed.len()).unwrap_or(u32::MAX);
    [&upload.uploaded_through.to_be_bytes()[..], &length.to_be_bytes(), &upload.signed, &upload.signature]
        .concat()
}

/// Result of a change: the value for its caller, and the batch that it writes, if any.
type Changed<T> = Result<(T, Option<OwnedWriteBatch>)>;

/// Changes of the key directory. Each reads the current data and returns at most one batch to write.
impl Tables {
    fn register(&self, handle: &Handle, list: &SignedDeviceList) -> Changed<()> {
        let user = list.list().user;
        let named = self.handles.get(handle.as_str()).map_err(failed)?;
        match (named, self.read_list(user)?) {
            (None, None) if !self.is_deleted(user)? => {}
            (Some(named), Some(stored)) if named[..] == user.as_bytes()[..] && stored == *list => {
                return Ok(((), None));
            }
            _ => return Err(Error::new(ErrorKind::Conflict, "the handle is taken")),
        }
        let mut batch = self.database.batch();
        self.add_list(&mut batch, list)?;
        batch.insert(&self.handles, handle.as_str(), &user.as_bytes()[..]);
        batch.insert(&self.names, &user.as_bytes()[..], handle.as_str());
        Ok(((), Some(batch)))
    }

    fn put_list(&self, list: &SignedDeviceList, key: AccountKey) -> Changed<()> {
        let stored = self.read_list(list.list().user)?;
        let stored = stored.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such account"))?;
        if stored == *list {
            return Ok(((), None));
        }
        key.check(list, &stored)?;
        let mut batch = self.database.batch();
        let replaced = keys::list_version(stored.list().user, stored.list().version);
        batch.insert(&self.list_versions, replaced, encode_list(&stored));
        self.add_list(&mut batch, list)?;
        for device in list.removed_since(&stored) {
            self.erase_prekeys(&mut batch, device)?;
        }
        Ok(((), Some(batch)))
    }

    fn upload(&self, device: InstallationId, upload: &PrekeyUpload) -> Changed<u64> {
        let through = self.read_bundle(device)?.map(|(_, _, through)| through);
        let mut kept = self.count_prekeys(device);
        if through.is_some_and(|through| upload.uploaded_through <= through) {
            return Ok((kept, None));
        }
        let through = through.unwrap_or(0);
        let mut batch = self.database.batch();
        if upload.replace {
            kept = 0;
            self.remove_prekeys(&mut batch, device)?;
        }
        let fresh: Vec<_> = upload.one_time.iter().filter(|key| key.id > through).collect();
        kept += fresh.len() as u64;
        if kept > STORED_PREKEYS as u64 {
            return Err(Error::new(ErrorKind::Throttled, "too many prekeys are stored for this device"));
        }
        for key in fresh {
            batch.insert(&self.prekeys, prekey(device, key.id), &key.data[..]);
        }
        batch.insert(&self.bundles, &device.as_bytes()[..], bundle_value(upload));
        Ok((kept, Some(batch)))
    }

    fn claim(&self, device: InstallationId, parts: BundleParts) -> Changed<Option<Bundle>> {
        let Some((signed, signature, _)) = self.read_bundle(device)? else {
            return Ok((None, None));
        };
        let bundle = |one_time| Some(Bundle { installation: device, signed, signature, one_time });
        let first = match parts {
            BundleParts::WithOneTimePrekey => self.prekeys.prefix(device.as_bytes()).next(),
            BundleParts::SignedOnly => None,
        };
        let Some(guard) = first else {
            return Ok((bundle(Bytes::new()), None));
        };
        let (key, value) = guard.into_inner().map_err(failed)?;
        let mut batch = self.database.batch();
        batch.remove(&self.prekeys, key);
        Ok((bundle(value.into()), Some(batch)))
    }

    fn reincarnate(&self, device: InstallationId, wish: Reincarnation) -> Changed<Incarnation> {
        let last = self.read_incarnation(device)?;
        let next =
            wish.decide(last).ok_or_else(|| Error::new(ErrorKind::Throttled, "one new incarnation a day"))?;
        if last.is_some_and(|last| last.0 == next) {
            return Ok((next, None));
        }
        let value = [&next.to_be_bytes()[..], &wish.nonce, &wish.now_ms.to_be_bytes()].concat();
        let mut batch = self.database.batch();
        batch.insert(&self.incarnations, &device.as_bytes()[..], value);
        self.erase_prekeys(&mut batch, device)?;
        Ok((next, Some(batch)))
    }

    /// Erases the signed part of the bundle, and the one-time prekeys.
    fn erase_prekeys(&self, batch: &mut OwnedWriteBatch, device: InstallationId) -> Result<()> {
        batch.remove(&self.bundles, &device.as_bytes()[..]);
        self.remove_prekeys(batch, device)
    }

    fn remove_prekeys(&self, batch: &mut OwnedWriteBatch, device: InstallationId) -> Result<()> {
        for guard in self.prekeys.prefix(device.as_bytes()) {
            batch.remove(&self.prekeys, guard.key().map_err(failed)?);
        }
        Ok(())
    }
}

#[async_trait]
impl KeyDirectory for EmbeddedStore {
    async fn register(&self, handle: &Handle, list: &SignedDeviceList) -> Result<()> {
        if list.list().version != 1 {
            return Err(Error::new(ErrorKind::Invalid, "an account begins with version 1 of its list"));
        }
        let (handle, list) = (handle.clone(), list.clone());
        self.writer.change(move |tables| tables.register(&handle, &list)).await
    }

    async fn resolve(&self, handle: &Handle) -> Result<Option<UserId>> {
        let value = self.tables.handles.get(handle.as_str()).map_err(failed)?;
        value.map(|value| UserId::parse(&value).map_err(|_| corrupt())).transpose()
    }

    async fn handle_of(&self, user: UserId) -> Result<Option<Handle>> {
        let value = self.tables.names.get(user.as_bytes()).map_err(failed)?;
        let read = |value: fjall::Slice| {
            std::str::from_utf8(&value).ok().and_then(|text| Handle::new(text).ok()).ok_or_else(corrupt)
        };
        value.map(read).transpose()
    }

    async fn list(&self, user: UserId) -> Result<Option<SignedDeviceList>> {
        self.tables.read_list(user)
    }

    async fn list_version(&self, user: UserId, version: u64) -> Result<Option<SignedDeviceList>> {
        self.tables.read_list_version(user, version)
    }

    async fn put_list(&self, list: &SignedDeviceList, key: AccountKey) -> Result<()> {
        let list = list.clone();
        self.writer.change(move |tables| tables.put_list(&list, key)).await
    }

    async fn upload(&self, device: InstallationId, upload: &PrekeyUpload) -> Result<u64> {
        let upload = upload.clone();
        self.writer.change(move |tables| tables.upload(device, &upload)).await
    }

    async fn claim(&self, device: InstallationId, parts: BundleParts) -> Result<Option<Bundle>> {
        self.writer.change(move |tables| tables.claim(device, parts)).await
    }

    async fn device(&self, device: InstallationId) -> Result<DeviceKeys> {
        let incarnation = self.tables.read_incarnation(device)?.map_or(0, |last| last.0);
        let uploaded_through = self.tables.read_bundle(device)?.map_or(0, |(_, _, through)| through);
        Ok(DeviceKeys { incarnation, prekeys: self.tables.count_prekeys(device), uploaded_through })
    }

    async fn reincarnate(&self, device: InstallationId, wish: Reincarnation) -> Result<Incarnation> {
        self.writer.change(move |tables| tables.reincarnate(device, wish)).await
    }

    async fn delete(&self, user: UserId) -> Result<Vec<InstallationId>> {
        self.writer.change(move |tables| tables.delete(user)).await
    }

    async fn revoke(&self, user: UserId, not_before_ms: u64) -> Result<()> {
        self.writer
            .change(move |tables| {
                let mut batch = tables.database.batch();
                let key = [&not_before_ms.to_be_bytes()[..], user.as_bytes()].concat();
                batch.insert(&tables.revocations, key, &[][..]);
                Ok(((), Some(batch)))
            })
            .await
    }

    async fn revocations(&self, since_ms: u64) -> Result<Vec<(UserId, u64)>> {
        self.tables.read_revocations(since_ms)
    }
}
