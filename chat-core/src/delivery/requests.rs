//! Answers requests of devices: device lists, prekeys, history, cursors.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::admission::refusal_of;
use super::rates::Wait;
use crate::backend::{AccountKey, BundleParts, CursorFilter, Member, PageLimit, Reincarnation, SenderFilter};
use crate::model::client_frame::Request;
use crate::model::close_reason::CloseReason;
use crate::model::device_list::{DeviceList, SignedDeviceList};
use crate::model::envelope::Refusal;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, Seq, UserId};
use crate::model::limits::LOW_PREKEYS;
use crate::model::prekeys::{Bundle, FirstPrekeys, PrekeyUpload};
use crate::model::server_frame::Response;
use crate::model::session_event::{Hint, SessionEvent};
use crate::model::signing::{prekeys_transcript, verify};

impl Engine {
    /// Answers a request of a device.
    ///
    /// # Errors
    /// The refusal to send.
    pub async fn respond(&self, device: DeviceAddress, request: Request) -> Result<Response, Refusal> {
        self.pace_request(device, &request).map_err(Refusal::Throttled)?;
        if let Request::Subscribe(channel, proof) = request {
            return self.subscribe(device, channel, proof).await.map(|()| Response::default());
        }
        self.try_respond(device, request).await.map_err(|error| refusal_of(&error))
    }

    fn pace_request(&self, device: DeviceAddress, request: &Request) -> Result<(), Wait> {
        let now = self.now_ms();
        self.limits.request(device.user, now)?;
        match request {
            Request::Resolve(_) => self.limits.resolve(device.user, now),
            Request::Offer(_) | Request::PutList(..) => self.limits.link(device.user, now),
            Request::ChangeContact(..)
            | Request::SetPresenceAudience(_)
            | Request::Subscribe(..)
            | Request::Unsubscribe(_) => self.limits.change_contact(device.user, now),
            Request::Report(_) => self.limits.report(device.user, now),
            _ => Ok(()),
        }
    }

    async fn try_respond(&self, device: DeviceAddress, request: Request) -> Result<Response> {
        let mut answer = Response::default();
        match request {
            Request::Resolve(handle) => {
                let user = self.backends.keys.resolve(&handle).await?;
                answer.user = Some(user.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such user"))?);
            }
            Request::Lists(users) => {
                for user in users {
                    if let Some(list) = self.device_list(user).await? {
                        answer.lists.push(SignedDeviceList::clone(&list));
                        answer.handles.push(self.backends.keys.handle_of(user).await?);
                        if user == device.user {
                            answer.inactive = self.inactive(list.list()).await?;
                        }
                    }
                }
            }
            Request::ListVersion(user, version) => {
                answer.lists.extend(self.backends.keys.list_version(user, version).await?);
            }
            Request::PutList(list, prekeys) => {
                self.put_list(device.user, &list, AccountKey::Same, prekeys).await?;
            }
            Request::Upload(upload) => answer.prekeys = self.upload(device, &upload).await?,
            Request::Claim(user, installations) => {
                answer.bundles = self.claim(device, user, &installations).await?;
            }
            Request::History { conversation, range, limit } => {
                let limit = PageLimit::rows(limit as usize);
                answer.rows = self.history(device, conversation, range, limit).await?;
            }
            // `respond` answers it.
            Request::Subscribe(..) => {}
            Request::Unsubscribe(channel) => self.unsubscribe(device, channel).await?,
            Request::ClearHistory { conversation, through } => {
                self.clear_history(device.user, conversation, through).await?;
            }
            Request::Roster(conversation, proof) => {
                let roster = self.roster_for(device, conversation, proof.as_ref()).await?;
                answer.roster = Some(Box::new(roster));
            }
            Request::Cursors => {
                answer.cursors = self.cursors(device.installation).await?;
            }
            Request::Reincarnate { from, nonce, asked } => {
                let wish = Reincarnation { nonce, asked, from, now_ms: self.now_ms() };
                answer.incarnation = self.backends.keys.reincarnate(device.installation, wish).await?;
            }
            Request::Offer(rendezvous) => answer.offer = self.find_offer(rendezvous).await?,
            Request::LinkAnswer(rendezvous, sealed) => self.pass_link_answer(rendezvous, sealed).await?,
            Request::Delivered(conversation) => {
                self.delivered(device, conversation, &mut answer).await?;
            }
            Request::ChangeContact(user, change) => {
                answer.contacts.version = self.change_contact(device, user, change).await?;
            }
            Request::SetPresenceAudience(audience) => {
                answer.contacts.version = self.set_audience(device, audience).await?;
            }
            Request::Contacts => answer.contacts = self.backends.contacts.contacts(device.user).await?,
            Request::Report(report) => self.report(device, report).await?,
            Request::DeleteAccount(signature) => self.delete_own_account(device, &signature).await?,
        }
        Ok(answer)
    }

    /// Claims a bundle of each wanted device that the user lists. Above the limit of claims the bundles have no one-time
    /// prekey: the user stays reachable, and the prekeys are not used up. A request without such a device counts as none.
    async fn claim(
        &self,
        device: DeviceAddress,
        user: UserId,
        wanted: &[InstallationId],
    ) -> Result<Vec<Bundle>> {
        let list = self.device_list(user).await?;
        let listed = list.iter().flat_map(|list| list.list().addresses()).map(|listed| listed.installation);
        let claimed: Vec<InstallationId> =
            listed.filter(|listed| wanted.contains(listed) && *listed != device.installation).collect();
        // Claims for the user's own devices are not limited.
        let is_limited = !claimed.is_empty()
            && user != device.user
            && self.limits.claim((device.user, user), self.now_ms()).is_err();
        let parts = if is_limited { BundleParts::SignedOnly } else { BundleParts::WithOneTimePrekey };
        let mut bundles = Vec::new();
        for installation in claimed {
            if self.is_half_linked(&list, installation).await? {
                continue;
            }
            bundles.extend(self.backends.keys.claim(installation, parts).await?);
            if !is_limited {
                self.warn_of_few_prekeys(installation).await;
            }
        }
        Ok(bundles)
    }

    /// Notifies a device that few of its prekeys are left, if it is connected here. Otherwise its next
    /// `Welcome` carries the number.
    async fn warn_of_few_prekeys(&self, device: InstallationId) {
        if self.hub.route(device).is_some()
            && let Ok(keys) = self.backends.keys.device(device).await
            && keys.prekeys < u64::from(LOW_PREKEYS)
        {
            let low = Hint::PrekeysLow(u32::try_from(keys.prekeys).unwrap_or(0));
            self.hub.deliver(device, vec![SessionEvent::Hint(low)]);
        }
    }

    pub(super) async fn put_list(
        &self,
        user: UserId,
        list: &SignedDeviceList,
        key: AccountKey,
        prekeys: Vec<FirstPrekeys>,
    ) -> Result<()> {
        if list.list().user != user {
            return Err(Error::new(ErrorKind::Denied, "the list belongs to another user"));
        }
        let before = self.read_list(user).await?;
        let is_new = |device: &InstallationId| {
            !before.iter().any(|before| before.list().addresses().any(|known| known.installation == *device))
        };
        if !list
            .list()
            .addresses()
            .map(|device| device.installation)
            .filter(is_new)
            .all(|device| prekeys.iter().any(|first| first.installation == device))
        {
            return Err(Error::new(ErrorKind::Invalid, "a new device needs its first prekeys"));
        }
        // The directory decides. This check keeps the prekeys of refused lists out of it.
        if let Some(before) = before.iter().find(|before| before.as_ref() != list) {
            key.check(list, before)?;
        }
        let prekeys = prekeys.into_iter().filter(|first| is_new(&first.installation)).collect();
        self.store_first_prekeys(list, prekeys).await?;
        let put = self.backends.keys.put_list(list, key).await;
        // A failed put may still be stored. A list whose read began earlier must not be cached.
        self.lists_changed.fetch_add(1, Ordering::AcqRel);
        if put.is_err() {
            self.lists.remove(&user);
        }
        put?;
        let list = self.remember(Arc::new(list.clone()));
        let listed = |device: InstallationId| list.list().addresses().any(|d| d.installation == device);
        let removed = before.map_or_else(Vec::new, |before| list.removed_since(&before));
        for device in &removed {
            self.hub.close(*device, CloseReason::Unauthorized);
        }
        let changed = Hint::ListChanged(user, list.list().version);
        let routes = self.backends.registry.lookup(&[user]).await.unwrap_or_default();
        let deliveries = routes.into_iter().map(|route| {
            let event = if listed(route.device.installation) {
                SessionEvent::Hint(changed.clone())
            } else {
                SessionEvent::Closed(CloseReason::Unauthorized)
            };
            (route, vec![event])
        });
        self.deliver(deliveries.collect()).await;
        for device in removed {
            // Retention removes the rows that stay after a failure, and those of messages that still name the device.
            let _ = self.backends.store.erase(device).await;
        }
        Ok(())
    }

    /// Stores the first prekeys of devices of a list, before the list. The signature of its device key shows that a device
    /// agreed to be listed. Devices that have prekeys keep them.
    pub(super) async fn store_first_prekeys(
        &self,
        list: &SignedDeviceList,
        prekeys: Vec<FirstPrekeys>,
    ) -> Result<()> {
        for first in prekeys {
            let entry = list.list().devices.iter().find(|entry| entry.installation() == first.installation);
            let entry =
                entry.ok_or_else(|| Error::new(ErrorKind::Invalid, "prekeys of an unlisted device"))?;
            verify(&entry.device_key, &prekeys_transcript(&first.signed), &first.signature)?;
            self.backends.keys.upload(first.installation, &first.into()).await?;
        }
        Ok(())
    }

    /// Returns the devices of a list that have not uploaded prekeys themselves.
    async fn inactive(&self, list: &DeviceList) -> Result<Vec<InstallationId>> {
        let mut inactive = Vec::new();
        for device in list.devices.iter().filter(|entry| entry.activate_by > 0) {
            if !self.backends.keys.device(device.installation()).await?.is_active() {
                inactive.push(device.installation());
            }
        }
        Ok(inactive)
    }

    /// Returns whether a device did not complete its linking in time.
    pub(super) async fn is_half_linked(
        &self,
        list: &Option<Arc<SignedDeviceList>>,
        device: InstallationId,
    ) -> Result<bool> {
        let entries = list.iter().flat_map(|list| &list.list().devices);
        let is_due = entries.filter(|entry| entry.installation() == device).any(|e| e.is_due(self.now_ms()));
        Ok(is_due && !self.backends.keys.device(device).await?.is_active())
    }

    async fn upload(&self, device: DeviceAddress, upload: &PrekeyUpload) -> Result<u64> {
        let list = self.device_list(device.user).await?;
        let entry = list.iter().find_map(|list| list.list().device(device.device).cloned());
        let entry = entry.ok_or_else(|| Error::new(ErrorKind::Denied, "the device is not listed"))?;
        verify(&entry.device_key, &prekeys_transcript(&upload.signed), &upload.signature)?;
        self.backends.keys.upload(device.installation, upload).await
    }

    /// Answers how far the devices of other users acknowledged a conversation, in a group each of them, and requests how far
    /// these read it. Users that do not show their activity to the asking user count as if they had no device.
    async fn delivered(
        &self,
        device: DeviceAddress,
        conversation: ConversationId,
        answer: &mut Response,
    ) -> Result<()> {
        let state =
            self.backends.store.state(conversation, SenderFilter::No, None).await?.unwrap_or_default();
        let members = &state.roster.members;
        if state.roster.member(device.user).is_none() {
            return Err(Error::new(ErrorKind::NotFound, "no such conversation"));
        }
        if state.head.is_feed {
            // The answer would cost a read for each device: the members of a feed report by receipts only.
            return Ok(());
        }
        let is_group = conversation.has_roster();
        let mut others = Vec::new();
        for other in members.iter().map(|member| member.user).filter(|user| *user != device.user) {
            let is_shown = match is_group {
                true => self.shows_receipts(other, device.user).await,
                false => self.shows_activity(other, device.user).await,
            };
            if is_shown {
                others.push(other);
            }
        }
        let asker = is_group.then_some(device.user);
        self.hint(&others, &Hint::ReadRequested(conversation, asker)).await;
        if is_group {
            for other in others {
                let delivered = self.acknowledged(conversation, members, &[other]).await?;
                answer.progress.push((other, delivered));
            }
        } else {
            answer.delivered = self.acknowledged(conversation, members, &others).await?;
        }
        Ok(())
    }

    /// Returns the highest seq of a conversation that a device of these users acknowledged; 0 if there is none.
    pub(super) async fn acknowledged(
        &self,
        conversation: ConversationId,
        members: &[Member],
        users: &[UserId],
    ) -> Result<Seq> {
        let mut highest = 0;
        for device in members.iter().filter(|m| users.contains(&m.user)).flat_map(|m| &m.installations) {
            let record = self.backends.store.device(*device, CursorFilter::Of(conversation)).await?;
            highest = record.cursors.iter().map(|(_, cursor)| cursor.acked).fold(highest, Seq::max);
        }
        Ok(highest)
    }
}
