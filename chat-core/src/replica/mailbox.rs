//! To-device messages: a device requests an unreadable message again, and its sender sends it again.
//!
//! A device that cannot decrypt a message requests it once from the sending device, through that device's
//! mailbox. The request itself begins a session if there is none, so a device that lost its sessions can
//! communicate again. The answer may still be sealed in a lost session, if an older message that arrived late
//! made the answering device return to that session. Then the device requests the message a second time, and
//! never a third time: requests cannot loop.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::change::Change;
use super::conversation::Entry;
use super::draft::{Draft, Recipient};
use super::input::Unreadable;
use super::output::Output;
use super::{Mutant, Replica};
use crate::model::id::{ConversationId, ConversationKind, DeviceAddress, InstallationId, MessageId};
use crate::model::time::Instant;
use crate::model::to_device::ToDevice;

const HOUR_MS: u64 = 3600 * 1000;
/// Maximum repeat requests in an hour.
const ASKED: u32 = 100;
/// Maximum answers in an hour to one device: twice [`ASKED`], since the hours of the two devices differ.
const ANSWERED: u32 = 200;
/// Maximum devices in each per-device map; a full map is cleared.
const COUNTED: usize = 1024;

/// An unreadable message: sender, conversation and id.
type Wanted = (DeviceAddress, ConversationId, MessageId);

/// Unreadable messages to request again, and the limits of the current hour.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    unasked: VecDeque<Wanted>,
    /// The newest messages that were requested once.
    once: VecDeque<Wanted>,
    /// Messages to request a second time.
    second: VecDeque<Wanted>,
    asked: Hourly,
    answered: BTreeMap<InstallationId, Hourly>,
    renewed: BTreeMap<InstallationId, Instant>,
}

/// A count that restarts every hour.
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
    pub(super) fn new(unasked: Vec<Wanted>, asked_once: Vec<Wanted>) -> Self {
        let newest = asked_once.len().saturating_sub(ASKED as usize);
        let once = asked_once.into_iter().skip(newest).collect();
        Self { unasked: unasked.into(), once, ..Self::default() }
    }

    /// When the next message may be requested, if one waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits = !self.unasked.is_empty() || !self.second.is_empty();
        waits.then(|| self.asked.since.after(HOUR_MS))
    }
}

impl Replica {
    /// Queues a to-device message. It leaves through the outbox: durable first, sealed when it is sent.
    fn enqueue_to_device(&mut self, now: Instant, to: DeviceAddress, what: &ToDevice) {
        let sent_at = self.server_ms(now);
        let id = MessageId::new(sent_at, self.rng.bytes());
        let draft = Draft { sent_at, ..Draft::new(id, Recipient::Device(to), what.encode()) };
        self.changes.push(Change::Queued(draft.clone()));
        self.enqueue(Entry::from_draft(draft));
    }

    /// Handles a message that cannot be read; `about` is `None` for a to-device message.
    pub(super) fn unreadable(
        &mut self,
        now: Instant,
        sender: DeviceAddress,
        about: Option<(ConversationId, MessageId)>,
        why: Unreadable,
        out: &mut Vec<Output>,
    ) {
        let is_of_channel = about.is_some_and(|(conversation, _)| conversation.is_channel());
        if !why.is_of_session() || is_of_channel || sender.installation == self.device.installation {
            // The writers of a channel do not know its readers, and answer none of them.
            return;
        }
        // A to-device message may begin a session that cannot be opened, while this device still has one that the peer has lost.
        let ends =
            why == Unreadable::Undecryptable || about.is_none() && !Mutant::LostSessionKept.is_active();
        // Without a session there is nothing to end: the next message begins one.
        let is_renewed = ends && self.renew(now, sender.installation, out);
        match about {
            Some((conversation, id)) => {
                self.mailbox.unasked.push_back((sender, conversation, id));
                self.ask_again(now);
            }
            None => {
                // A repeat request brings the new session to the peer; without one, an empty message must.
                if !self.ask_second_time(now, sender.installation) && is_renewed {
                    self.enqueue_to_device(now, sender, &ToDevice::Renew);
                }
            }
        }
    }

    /// Requests the messages of a device that were requested once a second time. Returns whether there are any.
    fn ask_second_time(&mut self, now: Instant, sender: InstallationId) -> bool {
        let (again, once) = std::mem::take(&mut self.mailbox.once)
            .into_iter()
            .partition::<VecDeque<_>, _>(|(asked, ..)| asked.installation == sender);
        self.mailbox.once = once;
        let has_any = !again.is_empty();
        self.mailbox.second.extend(again);
        self.ask_again(now);
        has_any
    }

    /// Requests unreadable messages again, up to the hourly limit; the rest waits for the next hour.
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
            self.changes.push(Change::AskedAgain(sender.installation, conversation, id));
            self.enqueue_to_device(now, sender, &ToDevice::Rerequest { conversation, id });
        }
    }

    /// Ends a failed session, so that the next message begins one, at most once an hour for each peer. Returns whether it did.
    fn renew(&mut self, now: Instant, peer: InstallationId, out: &mut Vec<Output>) -> bool {
        if self.mailbox.renewed.get(&peer).is_some_and(|at| now < at.after(HOUR_MS)) {
            return false;
        }
        if self.mailbox.renewed.len() >= COUNTED {
            self.mailbox.renewed.clear();
        }
        self.mailbox.renewed.insert(peer, now);
        self.ratchets_moved = true;
        self.changes.push(Change::Sessions);
        out.push(Output::EndSession(peer));
        true
    }

    /// Handles a to-device message for this device.
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
                if conversation.kind() == Ok(ConversationKind::Group) {
                    self.lacks_sender_key(conversation, from.installation);
                }
                if self.mailbox.answered.len() >= COUNTED {
                    self.mailbox.answered.clear();
                }
                if self.mailbox.answered.entry(from.installation).or_default().take(now, ANSWERED) {
                    self.recalling += 1;
                    out.push(Output::Recall(from, conversation, id));
                }
            }
            Ok(ToDevice::Recovered { conversation, id, content })
                if !Mutant::RecoveredDropped.is_active() =>
            {
                self.mailbox.once.retain(|wanted| *wanted != (from, conversation, id));
                self.changes.push(Change::Recovered(from, conversation, id, content));
            }
            // It brings a session, because the sender could not open a request.
            Ok(ToDevice::Renew) => drop(self.ask_second_time(now, from.installation)),
            // A message that does not decode may come from a later release.
            Ok(_) | Err(_) => {}
        }
    }

    /// Sends an own message to a device that requested it again, if that device may have it.
    pub(super) fn recalled(
        &mut self,
        now: Instant,
        asker: DeviceAddress,
        conversation: ConversationId,
        id: MessageId,
        content: Option<Bytes>,
    ) {
        self.recalling = self.recalling.saturating_sub(1);
        if let Some(content) = content {
            self.enqueue_to_device(now, asker, &ToDevice::Recovered { conversation, id, content });
        }
    }
}
