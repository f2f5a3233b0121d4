//! Decryption and encryption of messages, in the open transaction.

use bytes::Bytes;
use chat_core::device_list::{DeviceEntry, SignedDeviceList};
use chat_core::envelope::{Audience, DeviceBox, InboxRow, Publish, RowContent, SendPosition};
use chat_core::replica::{Draft, Opened, Recipient, SealFailure, Unreadable};
use chat_core::signing::{prekeys_transcript, verify};
use chat_core::wire::{Bundle, PrekeyUpload};
use chat_core::{ErrorKind, Result};
use zeroize::Zeroizing;

use super::{Driver, peer};
use crate::event::Event;
use crate::platform::random;
use crate::sealed_body::{ListSeen, SealedBody, open_body};
use crate::suite::PrekeyBundle;

impl Driver {
    pub(super) fn open(&mut self, row: &InboxRow, list: Option<&SignedDeviceList>) -> Result<Opened> {
        let RowContent::Message { message, sealed } = &row.content else {
            return Ok(Opened { content: Err(Unreadable::Malformed), known: false, list_version: 0 });
        };
        let known = self.store.knows(message.sender.installation, message.id)?;
        let entry = list.and_then(|list| list.list().device(message.sender.device));
        let content = match entry {
            Some(entry) if entry.installation() == message.sender.installation => {
                let own = self.account.device.installation;
                let opened =
                    self.owner.config.suite.open(&mut self.store, &peer(entry), sealed)?.map(Zeroizing::new);
                opened.and_then(|content| {
                    open_body(self.owner.config.suite.as_ref(), &content, own, row.conversation, message)
                })
            }
            _ => Err(Unreadable::UnknownDevice),
        };
        let list_version = content.as_ref().map_or(0, |(_, seen)| seen.version);
        let forked = |seen: &ListSeen| {
            list.is_some_and(|list| list.list().version == seen.version && list.hash() != seen.hash)
        };
        let content = match content {
            // The server sent the sender another list of that version than this device.
            Ok((_, seen)) if forked(&seen) => Err(Unreadable::Misplaced),
            content => content.map(|(content, _)| Bytes::from(content)),
        };
        Ok(Opened { content, known, list_version })
    }

    pub(super) fn seal(
        &mut self,
        draft: &Draft,
        number: SendPosition,
        lists: &[SignedDeviceList],
    ) -> Result<Result<Publish, SealFailure>> {
        let own = self.account.device;
        let wanted = |entry: &&DeviceEntry| match &draft.to {
            Recipient::Device(only) => entry.installation() == only.installation,
            _ => entry.installation() != own.installation,
        };
        if let Recipient::Device(only) = &draft.to
            && !lists.iter().any(|list| list.list().addresses().any(|device| device == *only))
        {
            return Ok(Err(SealFailure::Never("unlinked")));
        }
        if self.owner.config.strict && !matches!(draft.to, Recipient::Device(_)) {
            // The call does not check a handle that was unknown then; its user may have changed keys.
            for list in lists {
                if list.list().user != own.user && self.store.is_unaccepted(list.list().user)? {
                    return Ok(Err(SealFailure::Never("identity_changed")));
                }
            }
        }
        for list in lists {
            let mut missing = Vec::new();
            for entry in list.list().devices.iter().filter(wanted) {
                if !self.owner.config.suite.has_session(&mut self.store, &peer(entry))? {
                    missing.push(entry.installation());
                }
            }
            if !missing.is_empty() {
                return Ok(Err(SealFailure::NeedBundles(list.list().user, missing)));
            }
        }
        let own_list = lists.iter().find(|list| list.list().user == own.user).or(self.replica.list(own.user));
        let seen = own_list.map_or(ListSeen { version: 0, hash: Bytes::new() }, |list| ListSeen {
            version: list.list().version,
            hash: list.hash(),
        });
        let key = Zeroizing::new(random(self.owner.config.platform.as_ref())?);
        let Some(body) =
            SealedBody::seal(self.owner.config.suite.as_ref(), &draft.content, &key, own, &number, &seen)
        else {
            return Ok(Err(SealFailure::Never("cannot_encrypt")));
        };
        let mut boxes = Vec::new();
        for entry in lists.iter().flat_map(|list| &list.list().devices).filter(wanted) {
            let installation = entry.installation();
            let content = body.box_for(installation);
            match self.owner.config.suite.seal(&mut self.store, &peer(entry), &content) {
                Ok(data) => boxes.push(DeviceBox { installation, data }),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let user =
                        lists.iter().find(|l| l.list().addresses().any(|d| d.installation == installation));
                    let user = user.map_or(own.user, |list| list.list().user);
                    return Ok(Err(SealFailure::NeedBundles(user, vec![installation])));
                }
                Err(error) if error.kind() == ErrorKind::Invalid => {
                    return Ok(Err(SealFailure::Never("cannot_encrypt")));
                }
                Err(error) => return Err(error),
            }
        }
        let audience = lists.iter().map(|l| Audience { user: l.list().user, list_version: l.list().version });
        Ok(Ok(Publish {
            number,
            first: false,
            audience: audience.collect(),
            body: body.body,
            boxes,
            sent_at: draft.sent_at,
        }))
    }

    pub(super) fn begin_sessions(&mut self, list: &SignedDeviceList, bundles: Vec<Bundle>) -> Result<()> {
        for bundle in bundles {
            let Some(entry) = list.list().devices.iter().find(|d| d.installation() == bundle.installation)
            else {
                continue;
            };
            let signed = verify(&entry.device_key, &prekeys_transcript(&bundle.signed), &bundle.signature);
            let offered = PrekeyBundle { signed: bundle.signed, one_time: bundle.one_time };
            let begun = signed.and_then(|()| {
                self.owner.config.suite.start_session(&mut self.store, &peer(entry), &offered)
            });
            match begun {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Denied) => {
                    tracing::warn!(%error, "rejected a prekey bundle; claiming another one later");
                    self.pass(Event::PrekeysRejected);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn make_prekeys(&mut self, replace: bool, count: u64) -> Result<PrekeyUpload> {
        let last =
            self.store.meta("last_prekey")?.and_then(|v| v.try_into().ok()).map_or(0, u64::from_be_bytes);
        let (signed, one_time) =
            self.owner.config.suite.make_prekeys(&mut self.store, last.saturating_add(1), count)?;
        // An upload of the signed part alone also takes a new number.
        let uploaded_through = last.saturating_add(count.max(1));
        self.store.set_meta("last_prekey", &uploaded_through.to_be_bytes())?;
        let signature = self.account.sign(&prekeys_transcript(&signed));
        Ok(PrekeyUpload { signed, signature, one_time, uploaded_through, replace })
    }
}
