//! The devices of this user: linking, and unlinking.

use chat_core::device_list::{DeviceEntry, SignedDeviceList};
use chat_core::replica::Input;
use chat_core::wire::Request;
use chat_core::{DeviceId, Error, ErrorKind, Result};

use super::{Driver, Reply, Waiting};
use crate::linking::{Joined, LinkCode, Offer};
use crate::suite::SuiteTx as _;

/// Milliseconds in which a newly listed device must connect. Then its entry expires, and this device unlinks it.
const LINKING_MS: u64 = 5 * 60 * 1000;

/// Milliseconds until the check of a newly listed device is repeated.
pub(super) const LINKING_RETRY_MS: u64 = 30_000;

impl Driver {
    /// Records a device durably before it is listed, so that [`check_linking`](Self::check_linking) checks it
    /// even if a later step fails or this process ends.
    pub(super) fn remember_linking(&mut self, list: &SignedDeviceList, device: DeviceId) -> Result<()> {
        let Some(listed) = list.list().addresses().find(|listed| listed.device == device) else {
            return Ok(());
        };
        let at = self.store.now_ms();
        let value = [&listed.installation.as_bytes()[..], &[device.get()], &at.to_be_bytes()].concat();
        self.step(Input::Flush)?;
        self.store.set_meta("linking", &value)?;
        self.store.commit_open()?;
        self.linking = Some((listed.installation, device, at));
        Ok(())
    }

    pub(super) fn forget_linking(&mut self) -> Result<()> {
        self.linking = None;
        self.step(Input::Flush)?;
        self.store.remove_meta("linking")?;
        self.store.commit_open()
    }

    /// Checks, `LINKING_MS` after a device was listed, whether it connected. Unlinks it if it did not.
    pub(super) fn check_linking(&mut self) -> Result<()> {
        let Some((installation, device, at)) = self.linking else { return Ok(()) };
        let asked = self.waiting.values().any(|waiting| matches!(waiting, Waiting::Alive(..)));
        if asked || !self.replica.is_live() || self.store.now_ms() <= at.saturating_add(LINKING_MS) {
            return Ok(());
        }
        let listed = self.own_list()?.list().addresses().any(|known| known.installation == installation);
        if !listed {
            return self.forget_linking();
        }
        self.request(Request::Lists(vec![self.account.device.user]), Waiting::Alive(installation, device))
    }

    pub(super) fn own_list(&self) -> Result<SignedDeviceList> {
        let list = self.replica.list(self.account.device.user).cloned();
        list.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "this user's device list is not loaded yet: connect first")
        })
    }

    pub(super) fn approve(
        &self,
        code: &LinkCode,
        offer: &[u8],
    ) -> Result<(SignedDeviceList, (Offer, Joined))> {
        let offer = Offer::open(offer, code)?;
        let before = self.own_list()?;
        let full = || Error::new(ErrorKind::Conflict, "the account has the maximum number of devices");
        let device = before.list().free_device().ok_or_else(full)?;
        let key = offer.device_key[..]
            .try_into()
            .map_err(|_| Error::new(ErrorKind::Invalid, "the device key of the offer is malformed"))?;
        let mut devices = before.list().devices.clone();
        let mut entry = DeviceEntry::new(device, key, offer.suite_key()?);
        entry.activate_by = self.store.now_ms().saturating_add(LINKING_MS);
        devices.push(entry);
        devices.sort_by_key(|entry| entry.device);
        let list = self.account.sign_list(&before, devices, self.store.now_ms())?;
        let joined = Joined {
            account_key: *self.account.account_key(),
            user: self.account.device.user,
            device,
            handle: self.account.handle.clone(),
        };
        Ok((list, (offer, joined)))
    }

    pub(super) fn unlink(&mut self, device: DeviceId, reply: Reply<()>) -> Result<()> {
        let made = self.own_list().and_then(|before| {
            if device == self.account.device.device {
                return Err(Error::new(ErrorKind::Invalid, "this device cannot unlink itself"));
            }
            let mut devices = before.list().devices.clone();
            devices.retain(|entry| entry.device != device);
            if devices.len() == before.list().devices.len() {
                return Err(Error::new(ErrorKind::NotFound, "there is no such device"));
            }
            self.account.sign_list(&before, devices, self.store.now_ms())
        });
        match made {
            Ok(list) => {
                let request = Request::PutList(list.clone(), Vec::new());
                self.request(request, Waiting::Unlinked(list, reply))
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                Ok(())
            }
        }
    }
}
