//! To-device messages: what cannot be read is asked for again, and what was asked for is sent again.
//!
//! A message that cannot be decrypted is asked for once, of the device that sent it, in its mailbox. The
//! asking itself begins a session if there is none, so whoever lost its sessions is heard again. An answer
//! may still be sealed in a session that is gone: a message of before, heard late, made the answerer go back
//! to it. Then it is asked for once more, and never a third time: nothing here can go round in a circle.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::change::Change;
use super::conversation::Entry;
use super::draft::{Draft, Recipient};
use super::input::Unreadable;
use super::output::Output;
use super::{Mutant, Replica};
use crate::model::id::{ConversationId, DeviceAddress, InstallationId, MessageId};
use crate::model::time::Instant;
use crate::model::to_device::ToDevice;

const HOUR_MS: u64 = 3600 * 1000;
/// Messages asked for again in an hour.
const ASKED: u32 = 100;
/// Answers in an hour to one device: twice what it may ask, since its hours begin at other times.
const ANSWERED: u32 = 200;
/// Devices whose answers are counted.
const COUNTED: usize = 1024;

/// A message that cannot be read, and whose it is.
type Wanted = (DeviceAddress, ConversationId, MessageId);

/// What waits to be asked for, and what was done in the last hour.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    unasked: VecDeque<Wanted>,
    /// What was asked for once, the newest.
    once: VecDeque<Wanted>,
    /// What is to be asked for a second time.
    second: VecDeque<Wanted>,
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
    fn take(&mut self, now: Instant, most: u32) -> bool {
        if now >= self.since.after(HOUR_MS) {
            *self = Self { since: now, count: 0 };
        }
        if self.count < most {
            self.count += 1;
            return true;
        }
        false
    }
}

impl Mailbox {
    pub(super) fn new(unasked: Vec<Wanted>) -> Self {
        Self { unasked: unasked.into(), ..Self::default() }
    }

    /// When the next may be asked for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits = !self.unasked.is_empty() || !self.second.is_empty();
        waits.then(|| self.asked.since.after(HOUR_MS))
    }
}

impl Replica {
    /// Queues something for a device. It leaves with the outbox: durable first, sealed when it is sent.
    fn enqueue_to_device(&mut self, now: Instant, to: DeviceAddress, what: &ToDevice) {
        let sent_at = self.server_ms(now);
        let id = MessageId::new(sent_at, self.rng.bytes());
        let draft = Draft { id, to: Recipient::Device(to), content: what.encode(), sent_at };
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
        if !why.is_of_session() || sender.installation == self.device.installation {
            return;
        }
        let renew = self.renew(now, sender.installation, why, out);
        match about {
            Some((conversation, id)) => {
                self.mailbox.unasked.push_back((sender, conversation, id));
                self.ask_again(now);
            }
            None => {
                let (again, once) = std::mem::take(&mut self.mailbox.once)
                    .into_iter()
                    .partition::<VecDeque<_>, _>(|(asked, ..)| asked.installation == sender.installation);
                self.mailbox.once = once;
                // Whoever is asked hears from this device; else a word that says nothing has to do.
                if renew && again.is_empty() {
                    self.enqueue_to_device(now, sender, &ToDevice::Renew);
                }
                self.mailbox.second.extend(again);
                self.ask_again(now);
            }
        }
    }

    /// Asks for what cannot be read, as much as an hour allows; the rest waits for the next.
    pub(super) fn ask_again(&mut self, now: Instant) {
        while !self.mailbox.unasked.is_empty() && self.mailbox.asked.take(now, ASKED) {
            let Some((sender, conversation, id)) = self.mailbox.unasked.pop_front() else { return };
            self.changes.push(Change::AskedAgain(sender.installation, conversation, id));
            self.enqueue_to_device(now, sender, &ToDevice::Rerequest { conversation, id });
            if self.mailbox.once.len() >= ASKED as usize {
                self.mailbox.once.pop_front();
            }
            self.mailbox.once.push_back((sender, conversation, id));
        }
        while !self.mailbox.second.is_empty() && self.mailbox.asked.take(now, ASKED) {
            let Some((sender, conversation, id)) = self.mailbox.second.pop_front() else { return };
            self.enqueue_to_device(now, sender, &ToDevice::Rerequest { conversation, id });
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
                if self.mailbox.answered.entry(from.installation).or_default().take(now, ANSWERED) {
                    out.push(Output::Recall(from, conversation, id));
                }
            }
            Ok(ToDevice::Recovered { conversation, id, content })
                if !Mutant::RecoveredDropped.is_active() =>
            {
                self.mailbox.once.retain(|wanted| *wanted != (from, conversation, id));
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
            self.enqueue_to_device(now, asker, &ToDevice::Recovered { conversation, id, content });
        }
    }
}
