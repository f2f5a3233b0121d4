//! To-device messages: what cannot be read is asked for again, and what was asked for is sent again.
//!
//! A message that cannot be decrypted is asked for once, of the device that sent it, in its mailbox. The
//! asking itself begins a session if there is none, so whoever lost its sessions is heard again; nothing
//! here can go round in a circle: an answer that cannot be read is not asked for again.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::conversation::Entry;
use super::io::{Change, Draft, Output, To, Unreadable};
use super::{Mutant, Replica};
use crate::id::{ConversationId, DeviceAddress, InstallationId, MessageId};
use crate::time::Instant;
use crate::to_device::ToDevice;

const HOUR_MS: u64 = 3600 * 1000;
/// Messages asked for again in an hour, and answers in an hour to one device.
const AN_HOUR: u32 = 100;
/// Devices whose answers are counted.
const COUNTED: usize = 1024;

/// What was done in the last hour.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    asked: Hourly,
    answered: BTreeMap<InstallationId, Hourly>,
    renewed: BTreeMap<InstallationId, Instant>,
}

/// A count that begins anew every hour.
#[derive(Clone, Copy, Debug, Default)]
struct Hourly {
    since: Instant,
    count: u32,
}

impl Hourly {
    fn take(&mut self, now: Instant) -> bool {
        if now >= self.since.after(HOUR_MS) {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count <= AN_HOUR
    }
}

impl Replica {
    /// Queues something for a device. It leaves with the outbox: durable first, sealed when it is sent.
    fn say(&mut self, now: Instant, to: DeviceAddress, what: &ToDevice) {
        let sent_at = self.server_ms(now);
        let id = MessageId::new(sent_at, self.rng.bytes());
        let draft = Draft { id, to: To::Device(to), content: what.encode(), sent_at };
        self.changes.push(Change::Queued(draft.clone()));
        self.enqueue(Entry::from_draft(draft));
    }

    /// A message came that cannot be read.
    pub(super) fn unreadable(
        &mut self,
        now: Instant,
        sender: DeviceAddress,
        about: Option<(ConversationId, MessageId)>,
        why: Unreadable,
        out: &mut Vec<Output>,
    ) {
        let session = matches!(why, Unreadable::NoSession | Unreadable::Undecryptable);
        if !session || sender.installation == self.device.installation {
            return;
        }
        let renew = self.renew(now, sender.installation, why, out);
        match about {
            Some((conversation, id)) if self.mailbox.asked.take(now) => {
                self.say(now, sender, &ToDevice::Rerequest { conversation, id });
            }
            None if renew => self.say(now, sender, &ToDevice::Renew),
            _ => {}
        }
    }

    /// Lets a session that fails be replaced, once an hour.
    fn renew(&mut self, now: Instant, peer: InstallationId, why: Unreadable, out: &mut Vec<Output>) -> bool {
        if self.mailbox.renewed.get(&peer).is_some_and(|at| now < at.after(HOUR_MS)) {
            return false;
        }
        if self.mailbox.renewed.len() >= COUNTED {
            self.mailbox.renewed.clear();
        }
        self.mailbox.renewed.insert(peer, now);
        // Without a session there is none to end: the first message begins one.
        if why == Unreadable::Undecryptable {
            self.ratchets_moved = true;
            self.changes.push(Change::Sessions);
            out.push(Output::EndSession(peer));
        }
        true
    }

    /// Something came for this device alone.
    pub(super) fn heard(
        &mut self,
        now: Instant,
        from: DeviceAddress,
        content: Result<Bytes, Unreadable>,
        out: &mut Vec<Output>,
    ) {
        let said = match content {
            Ok(content) => ToDevice::decode(&content),
            Err(why) => return self.unreadable(now, from, None, why, out),
        };
        match said {
            Ok(ToDevice::Rerequest { conversation, id }) => {
                if self.mailbox.answered.len() >= COUNTED {
                    self.mailbox.answered.clear();
                }
                if self.mailbox.answered.entry(from.installation).or_default().take(now) {
                    out.push(Output::Recall(from, conversation, id));
                }
            }
            Ok(ToDevice::Recovered { conversation, id, content })
                if !self.mutants.has(Mutant::RecoveredDropped) =>
            {
                self.changes.push(Change::Recovered(from, conversation, id, content));
            }
            // A session was all it brought; or a later release wrote it.
            Ok(_) | Err(_) => {}
        }
    }

    /// The own message that a device asked for again, if it may have it.
    pub(super) fn recalled(
        &mut self,
        now: Instant,
        asker: DeviceAddress,
        conversation: ConversationId,
        id: MessageId,
        content: Option<Bytes>,
    ) {
        if let Some(content) = content {
            self.say(now, asker, &ToDevice::Recovered { conversation, id, content });
        }
    }
}
