//! Decryption and encryption of messages, in the open transaction.

use bytes::Bytes;
use chat_core::device_list::{DeviceEntry, SignedDeviceList};
use chat_core::envelope::{Audience, DeviceBox, InboxRow, Message, Publish, RowContent, SendPosition};
use chat_core::replica::{Draft, GroupSeal, Opened, Recipient, SealFailure, Unreadable};
use chat_core::signing::{prekeys_transcript, verify};
use chat_core::suite::SuiteId;
use chat_core::wire::{Bundle, PrekeyUpload};
use chat_core::{Error, ErrorKind, InstallationId, Result};
use zeroize::Zeroizing;

use super::suite_call::SuiteInput;
use super::{Driver, peer};
use crate::event::Event;
use crate::platform::random;
use crate::sealed_body::{Claims, ListSeen, OpenedBody, SealedBody, open_body};
use crate::suite::PrekeyBundle;

impl Driver {
    pub(super) fn open(&mut self, row: &InboxRow, list: Option<&SignedDeviceList>) -> Result<Opened> {
        let RowContent::Message { message, sealed: in_box } = &row.content else {
            return Ok(Opened::unreadable(Unreadable::Malformed));
        };
        let place = self.store.seq_of(row.conversation, message.sender.installation, message.id)?;
        // Messages of earlier store epochs are below seq 1.
        let (known, repeats) = (place.is_some(), place.is_some_and(|seq| seq > 0));
        let entry = list.and_then(|list| list.list().device(message.sender.device));
        let suite = self.owner.config.suite.id();
        let sealed = SuiteId::of(in_box);
        let entry = entry.filter(|entry| entry.installation() == message.sender.installation);
        if let Some(part) = &message.group {
            let input = SuiteInput::Row(row.conversation, row.seq);
            // A post has no sender that would send it again: it is always opened.
            let is_marked = self.replica.isolates_rows() && !row.conversation.is_channel();
            if is_marked && !self.owner.rejected.contains_key(&input) {
                self.store.mark_opening(&input.to_mark())?;
                self.marked = true;
            }
            let opened = self.open_in_group(input, row.conversation, message, part, in_box, entry)?;
            return self.check_opened(row, message, list, opened, (known, repeats));
        }
        let content = match (entry.map(|entry| peer(suite, entry)), sealed) {
            (None, _) => Err(Unreadable::UnknownDevice),
            (Some(_), Err(_)) => Err(Unreadable::Malformed),
            (Some(Some(peer)), Ok((of, sealed))) if of == suite => {
                let input = SuiteInput::Row(row.conversation, row.seq);
                if self.replica.isolates_rows() && !self.owner.rejected.contains_key(&input) {
                    self.store.mark_opening(&input.to_mark())?;
                    self.marked = true;
                }
                let own = self.account.device.installation;
                let opened = self.call_suite(input, |suite, store| {
                    let opened = suite.open(store, &peer, &sealed)?.map(Zeroizing::new);
                    Ok(opened
                        .and_then(|content| open_body(suite, &content, Some(own), row.conversation, message)))
                })?;
                opened.unwrap_or_else(|rejected| Err(rejected.as_unreadable()))
            }
            (Some(_), Ok(_)) => Err(Unreadable::OtherSuite),
        };
        self.check_opened(row, message, list, content, (known, repeats))
    }

    /// Checks the claims of an opened message, and looks up what the replica asks about it. `known` and `repeats` are those
    /// of [`Opened`].
    fn check_opened(
        &mut self,
        row: &InboxRow,
        message: &Message,
        list: Option<&SignedDeviceList>,
        content: std::result::Result<OpenedBody, Unreadable>,
        (known, repeats): (bool, bool),
    ) -> Result<Opened> {
        let is_empty = |body: &OpenedBody| body.content.is_empty() && message.group.is_none();
        let body = match content {
            // Content is padded: without bytes it is no content. In a group it may carry keys only.
            Ok(body) if is_empty(&body) => {
                return Ok(Opened { known, repeats, ..Opened::unreadable(Unreadable::Malformed) });
            }
            Ok(body) => body,
            Err(reason) => return Ok(Opened { known, repeats, ..Opened::unreadable(reason) }),
        };
        let list_version = body.sender_list.version;
        self.report_excluded(&body.excluded)?;
        if self.is_forked(message, list, &body) {
            return Ok(Opened { known, repeats, list_version, ..Opened::unreadable(Unreadable::Misplaced) });
        }
        let seen = match body.view {
            Some(view) => self.store.row_hash(row.conversation, view.seq)?,
            None => None,
        };
        Ok(Opened {
            content: Ok(body.content.into()),
            body_key: body.key,
            known,
            repeats,
            list_version,
            view: body.view,
            seen,
            knows_prev: self.replica.asks_for_prev(row)
                && self.store.knows(row.conversation, message.sender.installation, message.prev)?,
        })
    }

    /// Reports the devices of this user that a sender could not encrypt for, each once.
    fn report_excluded(&mut self, excluded: &[InstallationId]) -> Result<()> {
        let Some(list) = self.replica.list(self.account.device.user) else { return Ok(()) };
        let own = list.list().addresses().filter(|device| excluded.contains(&device.installation));
        for device in own.collect::<Vec<_>>() {
            if self.excluded.insert(device.installation) {
                let user = self.store.user(device.user)?;
                self.pass(Event::DeviceExcluded { user, device: device.device });
            }
        }
        Ok(())
    }

    /// Whether the server sent the sender another list of some version than this device, or changed the version that
    /// the message was sealed for.
    fn is_forked(&self, message: &Message, list: Option<&SignedDeviceList>, body: &OpenedBody) -> bool {
        let own = self.account.device.user;
        let audience = message.audience.iter().find(|audience| audience.user == own);
        let is_changed =
            audience.is_some_and(|audience| audience.list_version != body.recipient_list.version);
        list.is_some_and(|list| body.sender_list.forks(list))
            || self.replica.list(own).is_some_and(|list| body.recipient_list.forks(list))
            || body.recipient_list.version > 0 && is_changed
    }

    pub(super) fn seal(
        &mut self,
        draft: &Draft,
        number: SendPosition,
        lists: &[SignedDeviceList],
        excluded: &[InstallationId],
        group: Option<&GroupSeal>,
    ) -> Result<Result<Publish, SealFailure>> {
        if let Some(group) = group {
            return self.seal_for_group(draft, number, lists, excluded, group);
        }
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
        let input = SuiteInput::Draft(draft.id);
        let cannot_encrypt = || Ok(Err(SealFailure::Never("cannot_encrypt")));
        let suite = self.owner.config.suite.id();
        let mut without_session = Vec::new();
        for list in lists {
            let mut missing = Vec::new();
            let mut entries = list.list().devices.iter().filter(wanted);
            if list.list().user != own.user && !entries.clone().any(|entry| entry.suite_key(suite).is_some())
            {
                return cannot_encrypt();
            }
            for entry in entries.by_ref() {
                let installation = entry.installation();
                let Some(peer) = peer(suite, entry) else {
                    without_session.push(installation);
                    continue;
                };
                match self.call_suite(input, |suite, store| suite.has_session(store, &peer))? {
                    Ok(true) => {}
                    Ok(false) if excluded.contains(&installation) => without_session.push(installation),
                    Ok(false) => missing.push(installation),
                    Err(_) => return cannot_encrypt(),
                }
            }
            let user = list.list().user;
            let wanted = list.list().devices.iter().filter(wanted).map(DeviceEntry::installation);
            let reads = |device: InstallationId| !without_session.contains(&device);
            if user != own.user && missing.is_empty() && !wanted.clone().any(reads) {
                // Without a session the message would reach no device of the user.
                missing.extend(wanted);
            }
            if !missing.is_empty() {
                return Ok(Err(SealFailure::NeedBundles(vec![(user, missing)])));
            }
        }
        let own_list = lists.iter().find(|list| list.list().user == own.user).or(self.replica.list(own.user));
        let seen = own_list.map_or(ListSeen { version: 0, hash: Bytes::new() }, ListSeen::of);
        let view = match self.replica.epoch() {
            Some(epoch) => self.store.last_seen(number.conversation, epoch)?,
            None => None,
        };
        let key = Zeroizing::new(random(self.owner.config.platform.as_ref())?);
        let options = self.message_options(draft, number.conversation)?;
        let claims = Claims {
            list: seen,
            view,
            excluded: without_session.clone(),
            options_hash: options.hash(),
            roster: None,
        };
        let body = self.call_suite(input, |suite, _| {
            Ok(SealedBody::seal(suite, &draft.content, &key, own, &number, &claims))
        })?;
        let Ok(Some(body)) = body else { return cannot_encrypt() };
        let mut boxes = Vec::new();
        let entries =
            lists.iter().flat_map(|list| list.list().devices.iter().map(move |entry| (list, entry)));
        for (list, entry) in entries.filter(|(_, entry)| wanted(entry)) {
            let installation = entry.installation();
            let Some(peer) = peer(suite, entry).filter(|_| !without_session.contains(&installation)) else {
                continue;
            };
            let content = body.box_for(installation, &ListSeen::of(list));
            // An error of the suite refuses the draft; an error of the call is a panic and ends the driver.
            match self.call_suite(input, |suite, store| Ok(suite.seal(store, &peer, &content)))? {
                Ok(Ok(data)) => boxes.push(DeviceBox { installation, data: suite.mark(data) }),
                Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
                    let user =
                        lists.iter().find(|l| l.list().addresses().any(|d| d.installation == installation));
                    let user = user.map_or(own.user, |list| list.list().user);
                    return Ok(Err(SealFailure::NeedBundles(vec![(user, vec![installation])])));
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Invalid => return cannot_encrypt(),
                Ok(Err(error)) => return Err(error),
                Err(_) => return cannot_encrypt(),
            }
        }
        let audience = lists.iter().map(|l| Audience { user: l.list().user, list_version: l.list().version });
        Ok(Ok(Publish {
            number,
            first: false,
            audience: audience.collect(),
            body: body.body,
            boxes,
            excluded: without_session,
            sent_at: draft.sent_at,
            options,
            group: None,
        }))
    }

    pub(super) fn begin_sessions(&mut self, list: &SignedDeviceList, bundles: Vec<Bundle>) -> Result<()> {
        for bundle in bundles {
            let Some(entry) = list.list().devices.iter().find(|d| d.installation() == bundle.installation)
            else {
                continue;
            };
            let signed = verify(&entry.device_key, &prekeys_transcript(&bundle.signed), &bundle.signature);
            let suite = self.owner.config.suite.id();
            let (Ok((of, prekeys)), Some(peer)) = (SuiteId::of(&bundle.signed), peer(suite, entry)) else {
                continue;
            };
            let offered = PrekeyBundle { signed: prekeys, one_time: bundle.one_time };
            let input = SuiteInput::bundle(bundle.installation, &offered);
            let begun = match signed {
                Ok(()) if of != suite => {
                    Err(Error::new(ErrorKind::Invalid, "the prekeys are of another encryption suite"))
                }
                Ok(()) => {
                    let begun = self
                        .call_suite(input, |suite, store| Ok(suite.start_session(store, &peer, &offered)))?;
                    begun.unwrap_or(Err(Error::new(ErrorKind::Invalid, "the suite panicked on the bundle")))
                }
                Err(error) => Err(error),
            };
            match begun {
                Ok(()) if offered.one_time.is_empty() => {
                    let user = self.store.user(list.list().user)?;
                    self.pass(Event::SessionDegraded { user, device: entry.device });
                }
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
        let first = last.saturating_add(1);
        let (signed, one_time) =
            self.call_suite_alone(|suite, store| suite.make_prekeys(store, first, count))?;
        let signed = self.owner.config.suite.id().mark(signed);
        // An upload of the signed part alone also takes a new number.
        let uploaded_through = last.saturating_add(count.max(1));
        self.store.set_meta("last_prekey", &uploaded_through.to_be_bytes())?;
        let signature = self.account.sign(&prekeys_transcript(&signed));
        Ok(PrekeyUpload { signed, signature, one_time, uploaded_through, replace })
    }
}
