use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::backend::{AccountKey, BundleParts, DeviceKeys, KeyDirectory, Reincarnation};
use crate::conformance::pause;
use crate::memory::MemoryKeys;
use crate::model::device_list::SignedDeviceList;
use crate::model::error::{ErrorKind, Result};
use crate::model::id::{Handle, Incarnation, InstallationId, UserId};
use crate::model::prekeys::{Bundle, PrekeyUpload};

/// A rule of the [`KeyDirectory`] contract that a [`FaultyDirectory`] breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DirectoryFault {
    TakenHandleAccepted,
    RepeatedRegistrationRefused,
    ListWithoutAccountAccepted,
    ListThatDoesNotFollowAccepted,
    RepeatedListRefused,
    AccountReplacedWithoutBeingAsked,
    AccountNeverReplaced,
    InstallationOfAnotherUserAccepted,
    NewListNotStored,
    NameOfUserForgotten,
    RepeatedUploadAddsPrekeys,
    ReplaceKeepsOldPrekeys,
    PrekeysUnlimited,
    PrekeyClaimedTwice,
    NoBundleWithoutPrekey,
    BundleOfUnknownDevice,
    IncarnationStays,
    NonceIgnored,
    ReincarnationUnlimited,
    NewIncarnationKeepsPrekeys,
    UnknownUserResolves,
    /// Concurrent claims read the same prekey before one of them deletes it.
    ConcurrentClaimsShareAPrekey,
    /// Concurrent registrations check the handle before one of them writes it.
    ConcurrentRegistrationsSucceed,
    /// Concurrent lists are checked before one of them is written.
    ConcurrentListsSucceed,
    EarlierListsLost,
    VersionOfListIgnored,
    PrekeyIdAsFloat,
    SignedOnlyTakesPrekey,
    FirstPrekeysIgnored,
    FirstPrekeysReplace,
    HighestPrekeyIdForgotten,
    RevocationLost,
    RevocationReplaced,
    RevocationsOfAnyTime,
    RevocationAtTheTimeMissing,
    DeletedAccountStays,
    DeletedUserRegistersAgain,
    EarlierDevicesOfDeletedForgotten,
    SecondDeletionRefused,
    RemovedDeviceKeepsPrekeys,
    RemovedDeviceForgetsIncarnation,
    RemovalErasesAllPrekeys,
}

impl DirectoryFault {
    /// All faults.
    pub const ALL: [Self; 42] = [
        Self::TakenHandleAccepted,
        Self::RepeatedRegistrationRefused,
        Self::ListWithoutAccountAccepted,
        Self::ListThatDoesNotFollowAccepted,
        Self::RepeatedListRefused,
        Self::AccountReplacedWithoutBeingAsked,
        Self::AccountNeverReplaced,
        Self::InstallationOfAnotherUserAccepted,
        Self::NewListNotStored,
        Self::NameOfUserForgotten,
        Self::RepeatedUploadAddsPrekeys,
        Self::ReplaceKeepsOldPrekeys,
        Self::PrekeysUnlimited,
        Self::PrekeyClaimedTwice,
        Self::NoBundleWithoutPrekey,
        Self::BundleOfUnknownDevice,
        Self::IncarnationStays,
        Self::NonceIgnored,
        Self::ReincarnationUnlimited,
        Self::NewIncarnationKeepsPrekeys,
        Self::UnknownUserResolves,
        Self::ConcurrentClaimsShareAPrekey,
        Self::ConcurrentRegistrationsSucceed,
        Self::ConcurrentListsSucceed,
        Self::EarlierListsLost,
        Self::VersionOfListIgnored,
        Self::PrekeyIdAsFloat,
        Self::SignedOnlyTakesPrekey,
        Self::FirstPrekeysIgnored,
        Self::FirstPrekeysReplace,
        Self::HighestPrekeyIdForgotten,
        Self::RevocationLost,
        Self::RevocationReplaced,
        Self::RevocationsOfAnyTime,
        Self::RevocationAtTheTimeMissing,
        Self::DeletedAccountStays,
        Self::DeletedUserRegistersAgain,
        Self::EarlierDevicesOfDeletedForgotten,
        Self::SecondDeletionRefused,
        Self::RemovedDeviceKeepsPrekeys,
        Self::RemovedDeviceForgetsIncarnation,
        Self::RemovalErasesAllPrekeys,
    ];
}

/// A [`KeyDirectory`] in memory with at most one fault. Without one it passes the suite.
#[derive(Debug)]
pub struct FaultyDirectory {
    fault: Option<DirectoryFault>,
    keys: MemoryKeys,
    /// The list written last.
    last: Mutex<Option<SignedDeviceList>>,
    /// The bundle claimed last.
    claimed: Mutex<Option<Bundle>>,
    uploads: Mutex<u64>,
    /// Writes that run at this moment.
    running: Mutex<usize>,
    /// The bundle of the claim that runs at this moment.
    claiming: Mutex<Option<Bundle>>,
    /// The devices that the list written last does not name.
    removed: Mutex<Vec<InstallationId>>,
}

impl FaultyDirectory {
    /// Returns an empty directory with this fault.
    pub fn new(fault: Option<DirectoryFault>) -> Self {
        Self {
            fault,
            keys: MemoryKeys::default(),
            last: Mutex::default(),
            claimed: Mutex::default(),
            uploads: Mutex::default(),
            running: Mutex::default(),
            claiming: Mutex::default(),
            removed: Mutex::default(),
        }
    }

    async fn put_and_erase(
        &self,
        list: &SignedDeviceList,
        key: AccountKey,
        removed: &[InstallationId],
    ) -> Result<()> {
        use DirectoryFault as F;
        let keeps = self.has(F::RemovedDeviceKeepsPrekeys) && !removed.is_empty();
        let kept = if keeps { self.keys.claim(removed[0], BundleParts::SignedOnly).await? } else { None };
        self.keys.put_list(list, key).await?;
        self.removed.lock().extend(removed);
        self.restore(kept).await?;
        if self.has(F::RemovalErasesAllPrekeys) && !removed.is_empty() {
            for device in list.list().addresses() {
                let through = self.keys.device(device.installation).await?.uploaded_through + 1;
                let none = PrekeyUpload {
                    signed: Bytes::new(),
                    signature: Bytes::new(),
                    one_time: Vec::new(),
                    uploaded_through: through,
                    replace: true,
                };
                self.keys.upload(device.installation, &none).await?;
            }
        }
        Ok(())
    }

    /// Writes a bundle that was erased.
    async fn restore(&self, bundle: Option<Bundle>) -> Result<()> {
        let Some(bundle) = bundle else { return Ok(()) };
        let upload = PrekeyUpload {
            signed: bundle.signed,
            signature: bundle.signature,
            one_time: Vec::new(),
            uploaded_through: 0,
            replace: false,
        };
        self.keys.upload(bundle.installation, &upload).await.map(drop)
    }

    fn has(&self, fault: DirectoryFault) -> bool {
        self.fault == Some(fault)
    }

    /// Answers a conflict with success if another write of the same kind runs.
    async fn race(&self, outcome: Result<()>) -> Result<()> {
        let others = std::mem::replace(&mut *self.running.lock(), 1);
        pause().await;
        *self.running.lock() = 0;
        if others > 0 { Ok(()) } else { outcome }
    }
}

#[async_trait]
impl KeyDirectory for FaultyDirectory {
    async fn register(&self, handle: &Handle, list: &SignedDeviceList) -> Result<()> {
        use DirectoryFault as F;
        let known = self.keys.resolve(handle).await?;
        let outcome = self.keys.register(handle, list).await;
        if self.has(F::ConcurrentRegistrationsSucceed) {
            return self.race(outcome).await;
        }
        let is_conflict = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict);
        let was_deleted =
            is_conflict && known.is_none() && self.keys.list_version(list.list().user, 1).await?.is_some();
        if self.has(F::DeletedUserRegistersAgain) && was_deleted {
            return Ok(());
        }
        match known {
            Some(_) if self.has(F::TakenHandleAccepted) && is_conflict => Ok(()),
            Some(_) if self.has(F::RepeatedRegistrationRefused) && outcome.is_ok() => {
                Err(crate::Error::new(ErrorKind::Conflict, "the handle is taken"))
            }
            None if self.has(F::InstallationOfAnotherUserAccepted) && is_conflict => Ok(()),
            _ => outcome,
        }
    }

    async fn resolve(&self, handle: &Handle) -> Result<Option<UserId>> {
        let user = self.keys.resolve(handle).await?;
        let unknown = self.has(DirectoryFault::UnknownUserResolves).then(|| UserId::from_bytes([0; 16]));
        Ok(user.or(unknown))
    }

    async fn handle_of(&self, user: UserId) -> Result<Option<Handle>> {
        Ok(self.keys.handle_of(user).await?.filter(|_| !self.has(DirectoryFault::NameOfUserForgotten)))
    }

    async fn list(&self, user: UserId) -> Result<Option<SignedDeviceList>> {
        if self.has(DirectoryFault::ListThatDoesNotFollowAccepted)
            && let Some(last) = self.last.lock().clone().filter(|last| last.list().user == user)
        {
            return Ok(Some(last));
        }
        self.keys.list(user).await
    }

    async fn list_version(&self, user: UserId, version: u64) -> Result<Option<SignedDeviceList>> {
        let newest = self.keys.list(user).await?;
        if self.has(DirectoryFault::EarlierListsLost) {
            return Ok(newest.filter(|list| list.list().version == version));
        }
        if self.has(DirectoryFault::VersionOfListIgnored) {
            return Ok(newest);
        }
        self.keys.list_version(user, version).await
    }

    async fn put_list(&self, list: &SignedDeviceList, key: AccountKey) -> Result<()> {
        use DirectoryFault as F;
        let before = self.keys.list(list.list().user).await?;
        if self.has(F::RepeatedListRefused) && before.as_ref() == Some(list) {
            return Err(crate::Error::new(ErrorKind::Conflict, "the list is stored"));
        }
        if self.has(F::AccountNeverReplaced) && matches!(key, AccountKey::New) {
            return Err(crate::Error::new(ErrorKind::Conflict, "another account key"));
        }
        if self.has(F::NewListNotStored) && before.is_some() {
            return Ok(());
        }
        let key = if self.has(F::AccountReplacedWithoutBeingAsked)
            && before.as_ref().is_some_and(|before| before.account_key() != list.account_key())
        {
            AccountKey::New
        } else {
            key
        };
        let removed = before.map_or_else(Vec::new, |before| list.removed_since(&before));
        match self.put_and_erase(list, key, &removed).await {
            outcome if self.has(F::ConcurrentListsSucceed) => self.race(outcome).await,
            Err(error) if self.has(F::ListWithoutAccountAccepted) && error.kind() == ErrorKind::NotFound => {
                Ok(())
            }
            Err(error)
                if self.has(F::ListThatDoesNotFollowAccepted) && error.kind() == ErrorKind::Conflict =>
            {
                *self.last.lock() = Some(list.clone());
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn upload(&self, device: InstallationId, upload: &PrekeyUpload) -> Result<u64> {
        use DirectoryFault as F;
        let mut upload = upload.clone();
        if self.has(F::FirstPrekeysIgnored) && upload.uploaded_through == 0 {
            return Ok(0);
        }
        if self.has(F::FirstPrekeysReplace) && upload.uploaded_through == 0 {
            upload.uploaded_through = self.keys.device(device).await?.uploaded_through + 1;
        }
        if self.has(F::RepeatedUploadAddsPrekeys) {
            // Each upload looks like a new one.
            let shift = {
                let mut uploads = self.uploads.lock();
                *uploads += 1;
                *uploads * 10_000
            };
            upload.one_time.iter_mut().for_each(|key| key.id += shift);
            upload.uploaded_through += shift;
        }
        if self.has(F::PrekeyIdAsFloat) {
            let bend = |id: u64| id as f32 as u64;
            upload.one_time.iter_mut().for_each(|key| key.id = bend(key.id));
            upload.uploaded_through = bend(upload.uploaded_through);
        }
        if self.has(F::ReplaceKeepsOldPrekeys) {
            upload.replace = false;
        }
        match self.keys.upload(device, &upload).await {
            Err(error) if self.has(F::PrekeysUnlimited) && error.kind() == ErrorKind::Throttled => Ok(1001),
            outcome => outcome,
        }
    }

    async fn claim(&self, device: InstallationId, parts: BundleParts) -> Result<Option<Bundle>> {
        use DirectoryFault as F;
        let parts = if self.has(F::SignedOnlyTakesPrekey) { BundleParts::WithOneTimePrekey } else { parts };
        if self.has(F::PrekeyClaimedTwice)
            && let Some(bundle) = self.claimed.lock().take()
        {
            return Ok(Some(bundle));
        }
        if self.has(F::ConcurrentClaimsShareAPrekey) {
            let running = self.claiming.lock().clone();
            if running.is_some() {
                return Ok(running);
            }
            let bundle = self.keys.claim(device, parts).await?;
            self.claiming.lock().clone_from(&bundle);
            pause().await;
            *self.claiming.lock() = None;
            return Ok(bundle);
        }
        let bundle = self.keys.claim(device, parts).await?;
        (*self.claimed.lock()).clone_from(&bundle);
        Ok(match bundle {
            Some(bundle) if self.has(F::NoBundleWithoutPrekey) && bundle.one_time.is_empty() => None,
            None if self.has(F::BundleOfUnknownDevice) => {
                let empty = bytes::Bytes::new;
                Some(Bundle { installation: device, signed: empty(), signature: empty(), one_time: empty() })
            }
            bundle => bundle,
        })
    }

    async fn device(&self, device: InstallationId) -> Result<DeviceKeys> {
        let keys = self.keys.device(device).await?;
        Ok(match self.fault {
            Some(DirectoryFault::RemovedDeviceForgetsIncarnation)
                if self.removed.lock().contains(&device) =>
            {
                DeviceKeys { incarnation: 0, ..keys }
            }
            Some(DirectoryFault::IncarnationStays) => DeviceKeys { incarnation: 0, ..keys },
            Some(DirectoryFault::HighestPrekeyIdForgotten) => DeviceKeys { uploaded_through: 0, ..keys },
            _ => keys,
        })
    }

    async fn reincarnate(&self, device: InstallationId, wish: Reincarnation) -> Result<Incarnation> {
        use DirectoryFault as F;
        let mut wish = wish;
        if self.has(F::NonceIgnored) {
            let mut uploads = self.uploads.lock();
            *uploads += 1;
            wish.nonce[8..].copy_from_slice(&uploads.to_be_bytes());
            wish.asked = true;
        }
        if self.has(F::ReincarnationUnlimited) {
            wish.asked = true;
        }
        let keeps = self.has(F::NewIncarnationKeepsPrekeys);
        let before = if keeps { self.keys.claim(device, BundleParts::SignedOnly).await? } else { None };
        let incarnation = self.keys.reincarnate(device, wish).await?;
        self.restore(before).await?;
        Ok(incarnation)
    }

    async fn delete(&self, user: UserId) -> Result<Vec<InstallationId>> {
        use DirectoryFault as F;
        let known = self.keys.list(user).await?;
        if self.has(F::SecondDeletionRefused) && known.is_none() {
            return Err(crate::Error::new(ErrorKind::NotFound, "there is no such account"));
        }
        if self.has(F::DeletedAccountStays)
            && let Some(list) = &known
        {
            return Ok(list.list().addresses().map(|device| device.installation).collect());
        }
        let devices = self.keys.delete(user).await?;
        Ok(if self.has(F::EarlierDevicesOfDeletedForgotten) { Vec::new() } else { devices })
    }

    async fn revoke(&self, user: UserId, not_before_ms: u64) -> Result<()> {
        let known = self.keys.revocations(0).await?;
        if self.has(DirectoryFault::RevocationLost) && known.iter().any(|(other, _)| *other == user) {
            return Ok(());
        }
        self.keys.revoke(user, not_before_ms).await
    }

    async fn revocations(&self, since_ms: u64) -> Result<Vec<(UserId, u64)>> {
        use DirectoryFault as F;
        let since_ms = match self.fault {
            Some(F::RevocationsOfAnyTime) => 0,
            Some(F::RevocationAtTheTimeMissing) => since_ms + 1,
            _ => since_ms,
        };
        let all = self.keys.revocations(since_ms).await?;
        if self.has(F::RevocationReplaced) {
            // Only the last one of each user, by time.
            let last = |user: UserId| all.iter().filter(|(known, _)| *known == user).map(|(_, at)| *at).max();
            return Ok(all.iter().copied().filter(|(user, at)| last(*user) == Some(*at)).collect());
        }
        Ok(all)
    }
}
