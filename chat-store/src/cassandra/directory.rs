//! Accounts, device lists and prekeys. Every change is conditional. A prekey counts as claimed only if its
//! conditional deletion was applied.

use async_trait::async_trait;
use bytes::Bytes;
use chat_core::backend::{AccountKey, BundleParts, DeviceKeys, KeyDirectory, Reincarnation};
use chat_core::codec::{decode_list, encode_list};
use chat_core::device_list::SignedDeviceList;
use chat_core::limits::STORED_PREKEYS;
use chat_core::wire::{Bundle, PrekeyUpload};
use chat_core::{Error, ErrorKind, Handle, Incarnation, InstallationId, Result, UserId};
use scylla::value::CqlValue;

use super::commit::{big, blob};
use super::connection::Write;
use super::{CassandraStore, corrupt, signed, unsigned};

/// Maximum number of attempts of a change that loses against concurrent changes.
pub(super) const TRIES: usize = 20;

pub(super) const fn contended() -> Error {
    Error::new(ErrorKind::Unavailable, "too many concurrent updates")
}

/// Signed prekey part and incarnation of a device. Each field may be missing.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) signed: Option<Vec<u8>>,
    #[cfg_attr(not(feature = "fjall"), allow(dead_code))]
    pub(super) signature: Option<Vec<u8>>,
    pub(super) through: Option<i64>,
    incarnation: Option<i32>,
    nonce: Option<Vec<u8>>,
    at_ms: Option<i64>,
}

impl Keys {
    const fn is_empty(&self) -> bool {
        self.signed.is_none() && self.through.is_none() && self.incarnation.is_none()
    }

    pub(super) fn last(&self) -> Result<Option<(Incarnation, [u8; 16], u64)>> {
        let (Some(incarnation), Some(nonce)) = (self.incarnation, &self.nonce) else { return Ok(None) };
        let nonce = nonce.as_slice().try_into().map_err(|_| corrupt())?;
        let incarnation = u32::try_from(incarnation).map_err(|_| corrupt())?;
        Ok(Some((incarnation, nonce, self.at_ms.map_or(0, unsigned))))
    }
}

/// The keys of a device to erase.
#[derive(Clone, Copy)]
enum Erased {
    Prekeys,
    PrekeysAndIncarnation,
}

/// Returns the day of a time in milliseconds since 1970: the partition of its revocations.
fn day_of_ms(at_ms: u64) -> i32 {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    i32::try_from(at_ms / DAY_MS).unwrap_or(i32::MAX)
}

pub(super) fn optional(value: Option<CqlValue>) -> CqlValue {
    value.unwrap_or(CqlValue::Empty)
}

type RawKeys = (Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>, Option<i32>, Option<Vec<u8>>, Option<i64>);

impl CassandraStore {
    pub(super) async fn read_account(&self, user: UserId) -> Result<Option<(Handle, SignedDeviceList)>> {
        let rows = self.connection.rows(&self.connection.statements.account, (&user.as_bytes()[..],)).await?;
        let row = rows.maybe_first_row::<(Option<String>, Option<Vec<u8>>)>().map_err(|_| corrupt())?;
        // A deleted account has neither.
        let Some((Some(handle), Some(list))) = row else { return Ok(None) };
        let handle = Handle::new(&handle).map_err(|_| corrupt())?;
        Ok(Some((handle, decode_list(list.into()).map_err(|_| corrupt())?)))
    }

    pub(super) async fn read_keys(&self, device: InstallationId) -> Result<Keys> {
        let rows = self.connection.rows(&self.connection.statements.keys, (&device.as_bytes()[..],)).await?;
        let row = rows.maybe_first_row::<RawKeys>().map_err(|_| corrupt())?;
        let (signed, signature, through, incarnation, nonce, at_ms) = row.unwrap_or_default();
        Ok(Keys { signed, signature, through, incarnation, nonce, at_ms })
    }

    pub(super) async fn is_deleted(&self, user: UserId) -> Result<bool> {
        let statement = &self.connection.statements.account_version;
        let rows = self.connection.rows(statement, (&user.as_bytes()[..],)).await?;
        let row = rows.maybe_first_row::<(Option<i64>,)>().map_err(|_| corrupt())?;
        Ok(row == Some((Some(-1),)))
    }

    /// Returns the installations of all versions of a user's list.
    async fn all_installations(&self, user: UserId) -> Result<Vec<InstallationId>> {
        let statement = &self.connection.statements.list_versions;
        let rows = self.connection.rows(statement, (&user.as_bytes()[..],)).await?;
        let mut lists: Vec<SignedDeviceList> = self.list(user).await?.into_iter().collect();
        for row in rows.rows::<(Vec<u8>,)>().map_err(|_| corrupt())? {
            let (list,) = row.map_err(|_| corrupt())?;
            lists.push(decode_list(list.into()).map_err(|_| corrupt())?);
        }
        Ok(SignedDeviceList::installations_of(&lists))
    }

    /// Erases the prekeys of the devices that a list, which is stored, names no more, or as many as it can: the next list of
    /// the user erases what is left.
    async fn erase_removed(&self, list: &SignedDeviceList) {
        let Ok(devices) = self.all_installations(list.list().user).await else { return };
        let listed = SignedDeviceList::installations_of(std::slice::from_ref(list));
        for device in devices.into_iter().filter(|device| !listed.contains(device)) {
            // A conditional write may time out because of another one.
            for _ in 0..3 {
                if self.erase_keys(device, Erased::Prekeys).await.is_ok() {
                    break;
                }
            }
        }
    }

    async fn erase_keys(&self, device: InstallationId, erased: Erased) -> Result<()> {
        let statement = match erased {
            Erased::Prekeys => &self.connection.statements.erase_bundle,
            Erased::PrekeysAndIncarnation => &self.connection.statements.erase_keys,
        };
        for _ in 0..TRIES {
            let (keys, known) =
                futures_util::future::try_join(self.read_keys(device), self.prekey_ids(device)).await?;
            let is_erased = match erased {
                Erased::Prekeys => keys.signed.is_none(),
                Erased::PrekeysAndIncarnation => keys.is_empty(),
            };
            if is_erased && known.is_empty() {
                return Ok(());
            }
            let mut writes = self.drop_prekeys(device, &known);
            let values = vec![
                blob(device.as_bytes()),
                optional(keys.incarnation.map(CqlValue::Int)),
                optional(keys.through.map(big)),
            ];
            writes.push(Write { statement, values });
            if self.connection.batch_applied(&writes).await? {
                return Ok(());
            }
        }
        Err(contended())
    }

    async fn prekey_ids(&self, device: InstallationId) -> Result<Vec<i64>> {
        let rows =
            self.connection.rows(&self.connection.statements.prekey_ids, (&device.as_bytes()[..],)).await?;
        let ids = rows.rows::<(Option<i64>,)>().map_err(|_| corrupt())?;
        let ids = ids.map(|row| row.map(|(id,)| id).map_err(|_| corrupt())).collect::<Result<Vec<_>>>()?;
        Ok(ids.into_iter().flatten().collect())
    }

    pub(super) async fn owner_of(&self, device: InstallationId) -> Result<Option<Vec<u8>>> {
        let rows = self.connection.rows(&self.connection.statements.owner, (&device.as_bytes()[..],)).await?;
        Ok(rows.maybe_first_row::<(Vec<u8>,)>().map_err(|_| corrupt())?.map(|(user,)| user))
    }

    /// Returns `Conflict` if an installation of a list belongs to another user. Writes nothing.
    async fn check_owners(&self, list: &SignedDeviceList) -> Result<()> {
        for device in list.list().addresses() {
            let owner = self.owner_of(device.installation).await?;
            if owner.is_some_and(|owner| owner != list.list().user.as_bytes()) {
                return Err(Error::new(ErrorKind::Conflict, "an installation belongs to another user"));
            }
        }
        Ok(())
    }

    async fn take_owners(&self, list: &SignedDeviceList) -> Result<()> {
        for device in list.list().addresses() {
            if self.owner_of(device.installation).await?.is_none() {
                let values = (&device.installation.as_bytes()[..], &list.list().user.as_bytes()[..]);
                self.connection.applied(&self.connection.statements.take_owner, values).await?;
            }
        }
        self.check_owners(list).await
    }

    /// Keeps a version of a list that is about to be replaced.
    pub(super) async fn write_list_version(&self, list: &SignedDeviceList) -> Result<()> {
        let values = (&list.list().user.as_bytes()[..], signed(list.list().version), encode_list(list));
        self.connection.write(&self.connection.statements.put_list_version, values).await
    }

    fn drop_prekeys(&self, device: InstallationId, ids: &[i64]) -> Vec<Write<'_>> {
        let write = |id: &i64| Write {
            statement: &self.connection.statements.drop_prekey,
            values: vec![blob(device.as_bytes()), big(*id)],
        };
        ids.iter().map(write).collect()
    }
}

#[async_trait]
impl KeyDirectory for CassandraStore {
    async fn register(&self, handle: &Handle, list: &SignedDeviceList) -> Result<()> {
        let user = list.list().user;
        if list.list().version != 1 {
            return Err(Error::new(ErrorKind::Invalid, "an account begins with version 1 of its list"));
        }
        let taken = || Error::new(ErrorKind::Conflict, "the handle is taken");
        let known = self.read_account(user).await?;
        if known.as_ref().is_some_and(|(name, stored)| name != handle || stored != list) {
            return Err(taken());
        }
        if self.is_deleted(user).await? {
            return Err(taken());
        }
        self.check_owners(list).await?;
        // An earlier attempt of the same registration may have completed any of these steps.
        let values = (handle.as_str(), &user.as_bytes()[..]);
        if !self.connection.applied(&self.connection.statements.take_handle, values).await?
            && self.resolve(handle).await? != Some(user)
        {
            return Err(taken());
        }
        self.take_owners(list).await?;
        let values = (&user.as_bytes()[..], handle.as_str(), 1_i64, encode_list(list));
        self.connection.applied(&self.connection.statements.open_account, values).await?;
        match self.read_account(user).await? {
            Some((name, stored)) if name == *handle && stored == *list => Ok(()),
            _ => Err(taken()),
        }
    }

    async fn resolve(&self, handle: &Handle) -> Result<Option<UserId>> {
        let rows = self.connection.rows(&self.connection.statements.resolve, (handle.as_str(),)).await?;
        let row = rows.maybe_first_row::<(Vec<u8>,)>().map_err(|_| corrupt())?;
        row.map(|(user,)| UserId::parse(&user).map_err(|_| corrupt())).transpose()
    }

    async fn handle_of(&self, user: UserId) -> Result<Option<Handle>> {
        Ok(self.read_account(user).await?.map(|(handle, _)| handle))
    }

    async fn list(&self, user: UserId) -> Result<Option<SignedDeviceList>> {
        Ok(self.read_account(user).await?.map(|(_, list)| list))
    }

    async fn list_version(&self, user: UserId, version: u64) -> Result<Option<SignedDeviceList>> {
        if let Some(newest) = self.list(user).await?
            && newest.list().version <= version
        {
            return Ok(Some(newest).filter(|newest| newest.list().version == version));
        }
        let key = (&user.as_bytes()[..], signed(version));
        let rows = self.connection.rows(&self.connection.statements.list_version, key).await?;
        let row = rows.maybe_first_row::<(Vec<u8>,)>().map_err(|_| corrupt())?;
        row.map(|(list,)| decode_list(list.into()).map_err(|_| corrupt())).transpose()
    }

    async fn put_list(&self, list: &SignedDeviceList, key: AccountKey) -> Result<()> {
        let user = list.list().user;
        let missing = || Error::new(ErrorKind::NotFound, "there is no such account");
        let stored = self.list(user).await?.ok_or_else(missing)?;
        if stored == *list {
            self.erase_removed(list).await;
            return Ok(());
        }
        key.check(list, &stored)?;
        self.check_owners(list).await?;
        self.take_owners(list).await?;
        // Every writer writes the same bytes, and before the list counts as replaced.
        self.write_list_version(&stored).await?;
        let (next, last) = (signed(list.list().version), signed(stored.list().version));
        let values = (next, encode_list(list), &user.as_bytes()[..], last);
        if self.connection.applied(&self.connection.statements.put_list, values).await?
            || self.list(user).await?.as_ref() == Some(list)
        {
            self.erase_removed(list).await;
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "another device list was written concurrently"))
    }

    async fn upload(&self, device: InstallationId, upload: &PrekeyUpload) -> Result<u64> {
        for _ in 0..TRIES {
            let (keys, known) =
                futures_util::future::try_join(self.read_keys(device), self.prekey_ids(device)).await?;
            let through = if keys.signed.is_some() { keys.through } else { None };
            if through.is_some_and(|through| signed(upload.uploaded_through) <= through) {
                return Ok(known.len() as u64);
            }
            let fresh = upload.one_time.iter().filter(|key| signed(key.id) > through.unwrap_or(0));
            let mut writes = if upload.replace { self.drop_prekeys(device, &known) } else { Vec::new() };
            let mut count = if upload.replace { 0 } else { known.len() };
            for key in fresh {
                let values =
                    vec![blob(device.as_bytes()), big(signed(key.id)), CqlValue::Blob(key.data.to_vec())];
                writes.push(Write { statement: &self.connection.statements.put_prekey, values });
                count += 1;
            }
            if count > STORED_PREKEYS {
                return Err(Error::new(ErrorKind::Throttled, "too many prekeys are stored for this device"));
            }
            let values = vec![
                CqlValue::Blob(upload.signed.to_vec()),
                CqlValue::Blob(upload.signature.to_vec()),
                big(signed(upload.uploaded_through)),
                blob(device.as_bytes()),
                optional(keys.through.map(big)),
                optional(keys.incarnation.map(CqlValue::Int)),
            ];
            writes.push(Write { statement: &self.connection.statements.put_bundle, values });
            if self.connection.batch_applied(&writes).await? {
                return Ok(count as u64);
            }
        }
        Err(contended())
    }

    async fn claim(&self, device: InstallationId, parts: BundleParts) -> Result<Option<Bundle>> {
        for _ in 0..TRIES {
            let rows = self
                .connection
                .rows(&self.connection.statements.first_prekey, (&device.as_bytes()[..],))
                .await?;
            let row = rows
                .maybe_first_row::<(Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>, Option<Vec<u8>>)>()
                .map_err(|_| corrupt())?;
            let Some((Some(signed), Some(signature), id, data)) = row else { return Ok(None) };
            let bundle = |one_time: Vec<u8>| Bundle {
                installation: device,
                signed: signed.into(),
                signature: signature.into(),
                one_time: Bytes::from(one_time),
            };
            let (Some(id), Some(data), BundleParts::WithOneTimePrekey) = (id, data, parts) else {
                return Ok(Some(bundle(Vec::new())));
            };
            // If the outcome is unknown, the call fails: the key may be deleted, and no device gets it then.
            if self
                .connection
                .applied(&self.connection.statements.take_prekey, (&device.as_bytes()[..], id))
                .await?
            {
                return Ok(Some(bundle(data)));
            }
        }
        Err(contended())
    }

    async fn device(&self, device: InstallationId) -> Result<DeviceKeys> {
        let rows = self.connection.rows(&self.connection.statements.stock, (&device.as_bytes()[..],)).await?;
        let mut keys = DeviceKeys::default();
        // A partition without prekeys reads as one row without a prekey.
        for row in rows.rows::<(Option<i32>, Option<i64>, Option<i64>)>().map_err(|_| corrupt())? {
            let (incarnation, through, prekey) = row.map_err(|_| corrupt())?;
            keys.incarnation = incarnation.map_or(Ok(0), Incarnation::try_from).map_err(|_| corrupt())?;
            keys.uploaded_through = through.map_or(Ok(0), u64::try_from).map_err(|_| corrupt())?;
            keys.prekeys += u64::from(prekey.is_some());
        }
        Ok(keys)
    }

    async fn reincarnate(&self, device: InstallationId, wish: Reincarnation) -> Result<Incarnation> {
        for _ in 0..TRIES {
            let (keys, known) =
                futures_util::future::try_join(self.read_keys(device), self.prekey_ids(device)).await?;
            let last = keys.last()?;
            let throttled = || Error::new(ErrorKind::Throttled, "one new incarnation a day");
            let next = wish.decide(last).ok_or_else(throttled)?;
            if last.is_some_and(|last| last.0 == next) {
                return Ok(next);
            }
            let mut writes = self.drop_prekeys(device, &known);
            let values = vec![
                CqlValue::Int(i32::try_from(next).unwrap_or(i32::MAX)),
                blob(&wish.nonce),
                big(signed(wish.now_ms)),
                blob(device.as_bytes()),
                optional(keys.incarnation.map(CqlValue::Int)),
            ];
            writes.push(Write { statement: &self.connection.statements.put_incarnation, values });
            if self.connection.batch_applied(&writes).await? {
                return Ok(next);
            }
        }
        Err(contended())
    }

    async fn delete(&self, user: UserId) -> Result<Vec<InstallationId>> {
        let statements = &self.connection.statements;
        let account = self.read_account(user).await?;
        if let Some((_, list)) = &account {
            self.write_list_version(list).await?;
        }
        let devices = self.all_installations(user).await?;
        if devices.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "there is no such account"));
        }
        // First: a deletion that is repeated does not know the handle of an account that is deleted.
        if let Some((handle, _)) = account {
            self.connection.applied(&statements.free_handle, (handle.as_str(), &user.as_bytes()[..])).await?;
        }
        self.connection.applied(&statements.delete_account, (&user.as_bytes()[..],)).await?;
        for device in &devices {
            self.erase_keys(*device, Erased::PrekeysAndIncarnation).await?;
        }
        Ok(devices)
    }

    async fn revoke(&self, user: UserId, not_before_ms: u64) -> Result<()> {
        let values = (day_of_ms(not_before_ms), signed(not_before_ms), &user.as_bytes()[..]);
        self.connection.write(&self.connection.statements.put_revocation, values).await
    }

    async fn revocations(&self, since_ms: u64) -> Result<Vec<(UserId, u64)>> {
        let statements = &self.connection.statements;
        let first = day_of_ms(since_ms);
        let days = self.connection.rows(&statements.revocation_days, ()).await?;
        let days = days.rows::<(i32,)>().map_err(|_| corrupt())?;
        let mut revocations = Vec::new();
        for day in days {
            let (day,) = day.map_err(|_| corrupt())?;
            if day < first {
                continue;
            }
            let rows = self.connection.rows(&statements.revocations, (day, signed(since_ms))).await?;
            for row in rows.rows::<(i64, Vec<u8>)>().map_err(|_| corrupt())? {
                let (at, user) = row.map_err(|_| corrupt())?;
                revocations.push((UserId::parse(&user).map_err(|_| corrupt())?, unsigned(at)));
            }
        }
        Ok(revocations)
    }
}
