//! Encryption for groups: one ciphertext for all members, and the sender key for devices that lack it.

use std::collections::BTreeMap;

use bytes::Bytes;
use chat_core::device_list::{DeviceEntry, SignedDeviceList};
use chat_core::envelope::{DeviceBox, Message, Publish, SendPosition};
use chat_core::group::{GroupChange, GroupPart};
use chat_core::replica::{Draft, GroupSeal, SealFailure, Unreadable};
use chat_core::suite::SuiteId;
use chat_core::{ConversationId, ErrorKind, InstallationId, Result, UserId};
use zeroize::Zeroizing;

use super::suite_call::SuiteInput;
use super::{Driver, peer};
use crate::platform::random;
use crate::sealed_body::{Claims, ListSeen, OpenedBody, SealedBody, open_body, open_distribution};
use crate::suite::{GroupCiphertext, Peer};

/// A device that gets the sender key.
struct KeyRecipient {
    installation: InstallationId,
    peer: Peer,
    list: ListSeen,
}

/// The devices that lack the sender key.
#[derive(Default)]
struct Lacking {
    recipients: Vec<KeyRecipient>,
    excluded: Vec<InstallationId>,
    /// Devices without a session, by user.
    needed: BTreeMap<UserId, Vec<InstallationId>>,
}

impl Driver {
    pub(super) fn seal_for_group(
        &mut self,
        draft: &Draft,
        number: SendPosition,
        lists: &[SignedDeviceList],
        excluded: &[InstallationId],
        group: &GroupSeal,
    ) -> Result<Result<Publish, SealFailure>> {
        let cannot_encrypt = || Ok(Err(SealFailure::Never("cannot_encrypt")));
        let Some(lacking) = self.find_lacking(draft, lists, excluded, group)? else {
            return cannot_encrypt();
        };
        if !lacking.needed.is_empty() {
            return Ok(Err(SealFailure::NeedBundles(lacking.needed.into_iter().collect())));
        }
        let (own, input) = (self.account.device, SuiteInput::Draft(draft.id));
        let own_list = lists.iter().find(|list| list.list().user == own.user).or(self.replica.list(own.user));
        let seen = own_list.map_or(ListSeen { version: 0, hash: Bytes::new() }, ListSeen::of);
        let view = match self.replica.epoch() {
            Some(epoch) => self.store.last_seen(number.conversation, epoch)?,
            None => None,
        };
        let options = self.message_options(draft, number.conversation)?;
        let claims = Claims {
            list: seen,
            view,
            excluded: lacking.excluded.clone(),
            options_hash: options.hash(),
            roster: Some((group.roster.version, group.roster.digest)),
        };
        let key = Zeroizing::new(random(self.owner.config.platform.as_ref())?);
        let sealed = self.call_suite(input, |suite, _| {
            Ok(SealedBody::seal(suite, &draft.content, &key, own, &number, &claims))
        })?;
        let Ok(Some(sealed)) = sealed else { return cannot_encrypt() };
        let has_content = !draft.content.is_empty();
        let distributes = !lacking.recipients.is_empty();
        let is_channel = number.conversation.is_channel();
        let post = if is_channel && has_content {
            let Some(post) = self.seal_post(draft, &number, &sealed, group)? else {
                return Ok(Err(SealFailure::Never("no_channel_key")));
            };
            post
        } else {
            Bytes::new()
        };
        let ciphertext = match group.key.filter(|_| has_content || distributes) {
            Some(key) => {
                let shared = sealed.shared_box();
                let id = number.conversation;
                let made = self.call_suite(input, |suite, store| {
                    Ok(suite.seal_group(store, id, key, &shared, distributes))
                })?;
                match made {
                    Ok(Ok(ciphertext)) => ciphertext,
                    Ok(Err(error)) if error.kind() != ErrorKind::Invalid => return Err(error),
                    _ => return cannot_encrypt(),
                }
            }
            None => {
                GroupCiphertext { shared: Bytes::new(), distribution: Bytes::new(), control: Bytes::new() }
            }
        };
        let mut boxes = Vec::with_capacity(lacking.recipients.len());
        let mut without = lacking.excluded;
        for to in lacking.recipients {
            let content = sealed.key_box_for(to.installation, &to.list, &ciphertext.distribution);
            match self.call_suite(input, |suite, store| Ok(suite.seal(store, &to.peer, &content)))? {
                Ok(Ok(data)) => {
                    let data = self.owner.config.suite.id().mark(data);
                    boxes.push(DeviceBox { installation: to.installation, data });
                }
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                    without.push(to.installation);
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return cannot_encrypt(),
            }
        }
        let suite = self.owner.config.suite.id();
        let change = group.action.as_ref().map(|action| {
            let encoded = action.encode();
            let id = number.conversation;
            let signed = GroupChange::transcript(id, draft.id, &encoded, &group.roster.digest);
            GroupChange::new(encoded, self.account.sign(&signed))
        });
        let part = GroupPart {
            roster_version: group.roster.version,
            digest: group.roster.digest,
            shared: match (is_channel, has_content) {
                (true, _) => post,
                (false, true) => suite.mark(ciphertext.shared),
                (false, false) => Bytes::new(),
            },
            control: if has_content { ciphertext.control } else { Bytes::new() },
            change: change.transpose()?,
            lists: Vec::new(),
        };
        Ok(Ok(Publish {
            number,
            first: false,
            audience: group.audience.clone(),
            body: if has_content { sealed.body } else { Bytes::new() },
            boxes,
            excluded: without,
            sent_at: draft.sent_at,
            options,
            group: Some(Box::new(part)),
        }))
    }

    /// Sorts the devices that lack the sender key: with a session, without one, and those that the message excludes.
    /// Returns `None` if the suite panicked on the draft before.
    fn find_lacking(
        &mut self,
        draft: &Draft,
        lists: &[SignedDeviceList],
        excluded: &[InstallationId],
        group: &GroupSeal,
    ) -> Result<Option<Lacking>> {
        let suite = self.owner.config.suite.id();
        let mut lacking = Lacking::default();
        for installation in group.lacking.iter().copied() {
            let entry = lists.iter().find_map(|list| {
                let entry = list.list().devices.iter().find(|entry| entry.installation() == installation);
                entry.map(|entry| (list, entry))
            });
            let with_key = entry.and_then(|(list, entry)| Some((list, peer(suite, entry)?)));
            let Some((list, peer)) = with_key else {
                lacking.excluded.push(installation);
                continue;
            };
            if self.owner.config.strict && self.store.is_unaccepted(list.list().user)? {
                // This user did not compare the new keys of the member yet.
                lacking.excluded.push(installation);
                continue;
            }
            let input = SuiteInput::Draft(draft.id);
            match self.call_suite(input, |suite, store| suite.has_session(store, &peer))? {
                Ok(true) => {
                    let list = ListSeen::of(list);
                    lacking.recipients.push(KeyRecipient { installation, peer, list });
                }
                Ok(false) if excluded.contains(&installation) => lacking.excluded.push(installation),
                Ok(false) => lacking.needed.entry(list.list().user).or_default().push(installation),
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(lacking))
    }

    /// Opens a message of a group. A message without content opens even if its box does not: then a later message lacks
    /// the sender key.
    pub(super) fn open_in_group(
        &mut self,
        input: SuiteInput,
        id: ConversationId,
        message: &Message,
        part: &GroupPart,
        sealed: &Bytes,
        sender: Option<&DeviceEntry>,
    ) -> Result<Result<OpenedBody, Unreadable>> {
        if id.is_channel() {
            return self.open_post(input, id, message, part, sender);
        }
        let suite = self.owner.config.suite.id();
        let Some(sender) = sender else { return Ok(Err(Unreadable::UnknownDevice)) };
        let Some(peer) = peer(suite, sender) else { return Ok(Err(Unreadable::OtherSuite)) };
        let failed = match sealed.is_empty() {
            true => None,
            false => self.accept_key(input, id, message, sealed, &peer)?.err(),
        };
        if part.shared.is_empty() {
            return Ok(Ok(OpenedBody::empty()));
        }
        let shared = match SuiteId::of(&part.shared) {
            Ok((of, shared)) if of == suite => shared,
            Ok(_) => return Ok(Err(Unreadable::OtherSuite)),
            Err(_) => return Ok(Err(Unreadable::Malformed)),
        };
        let opened = self.call_suite(input, |suite, store| {
            let opened = suite.open_group(store, id, &peer, &shared, &part.control)?.map(Zeroizing::new);
            Ok(opened.and_then(|content| open_body(suite, &content, None, id, message)))
        })?;
        let opened = opened.unwrap_or_else(|rejected| Err(rejected.as_unreadable()));
        Ok(opened.map_err(|why| if why == Unreadable::NoSession { failed.unwrap_or(why) } else { why }))
    }

    /// Takes over the sender key in the box of this device.
    fn accept_key(
        &mut self,
        input: SuiteInput,
        id: ConversationId,
        message: &Message,
        sealed: &Bytes,
        sender: &Peer,
    ) -> Result<Result<(), Unreadable>> {
        let (of, sealed) = match SuiteId::of(sealed) {
            Ok(sealed) => sealed,
            Err(_) => return Ok(Err(Unreadable::Malformed)),
        };
        if of != self.owner.config.suite.id() {
            return Ok(Err(Unreadable::OtherSuite));
        }
        let own = self.account.device.installation;
        let accepted = self.call_suite(input, |suite, store| {
            let content = match suite.open(store, sender, &sealed)? {
                Ok(content) => Zeroizing::new(content),
                Err(why) => return Ok(Err(why)),
            };
            match open_distribution(&content, own, id, message) {
                Ok(distribution) => suite.accept_sender_key(store, id, sender, &distribution),
                Err(why) => Ok(Err(why)),
            }
        })?;
        Ok(accepted.unwrap_or_else(|rejected| Err(rejected.as_unreadable())))
    }
}
