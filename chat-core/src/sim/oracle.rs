//! The record of a schedule, and the laws (invariants) that it must obey.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::accounts::ACCOUNTS;
use super::device::Device;
use super::group_laws::{Acquaintances, GroupLog};
use super::group_suite::SimShared;
use super::local_store::Shown;
use super::suite::SimBox;
use crate::backend::{Commit, PageLimit};
use crate::memory::Tables;
use crate::model::envelope::{EmptyReason, InboxRow, RowContent};
use crate::model::id::{
    ConversationId, ConversationKind, DeviceAddress, InstallationId, MessageId, SenderKeyId, Seq, UserId,
};
use crate::replica::Unreadable;

/// A broken law (invariant).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// `lost`, `twice`, `order`, `ghost`, `ack`, `keys`, `differs`, `integrity`, `unreadable`, `erased`, `kept`,
    /// `recovered`, `blocked`, `unlinked`, `authority`, `fold`, `audience`, `lists` or `stuck`.
    pub law: &'static str,
    /// A description with ids and seqs.
    pub how: String,
}

/// The messages that the users sent, and the acknowledgements that they received.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    /// Message ids by sending installation, in sending order.
    pub sent: BTreeMap<InstallationId, Vec<MessageId>>,
    /// Messages that were acknowledged to a device as stored, with their positions.
    pub acked: HashMap<(InstallationId, MessageId), (ConversationId, Seq)>,
    /// The messages that were encrypted without this device, because no session with it could begin.
    pub excluded: HashSet<(MessageId, InstallationId)>,
    /// When each message was queued, in milliseconds of the schedule.
    pub queued: HashMap<MessageId, u64>,
    /// When each message was first known to be stored.
    pub stored: HashMap<MessageId, u64>,
    /// The times in which a user blocked another one: first the user that blocks.
    pub blocks: Vec<(UserId, UserId, Range<u64>)>,
    /// The users that know each other.
    pub acquaintances: Acquaintances,
    /// Messages without content, which replicas made by themselves.
    pub silent: HashSet<MessageId>,
    /// Messages that a device gave up. A copy of its store from before that may send one later, after others.
    pub refused: HashSet<MessageId>,
    /// A device that its user unlinked.
    pub unlinked: Option<InstallationId>,
    /// The stored messages that had a lifetime.
    pub disappearing: Erasures,
    /// The end of the schedule, in microseconds since 1970.
    pub ended_us: u64,
    /// Retention may have removed rows committed before this time, in microseconds since 1970.
    pub swept_us: u64,
    /// The server was restored from a copy; `true`: with a new store epoch.
    pub server_restored: Option<bool>,
    /// Devices that subscribed with a proof of their own.
    pub subscribers: HashSet<InstallationId>,
    violation: Option<Violation>,
}

/// Messages by place: the sending device and the id.
pub(super) type Erasures = HashMap<(ConversationId, Seq), (InstallationId, MessageId)>;

impl Oracle {
    pub(super) fn is_unlinked(&self, device: &Device) -> bool {
        self.unlinked == Some(device.address().installation)
    }

    pub(super) fn acked(
        &mut self,
        device: InstallationId,
        conversation: ConversationId,
        id: MessageId,
        seq: Seq,
    ) {
        let known = self.acked.insert((device, id), (conversation, seq));
        if known.is_some_and(|known| known != (conversation, seq)) {
            self.broken("ack", format!("{id:?} was stored at {known:?} and at {seq}"));
        }
    }

    /// Forgets the acknowledgements of messages that a restored server does not have. `message` returns the message at a
    /// place.
    pub(super) fn forget_lost(
        &mut self,
        message: impl Fn(ConversationId, Seq) -> Option<(InstallationId, MessageId)>,
    ) {
        self.acked.retain(|key, (conversation, seq)| message(*conversation, *seq) == Some(*key));
    }

    pub(super) fn broken(&mut self, law: &'static str, how: String) {
        self.violation.get_or_insert(Violation { law, how });
    }

    /// Checks that an unlinked device showed no message that names the list without it.
    fn check_unlinked(&mut self, device: &Device, logs: &BTreeMap<ConversationId, Vec<InboxRow>>) {
        for (conversation, seq, what) in &device.store.shown {
            let row = logs.get(conversation).and_then(|log| log.get(*seq as usize - 1));
            if let (Shown::Message(_, id), Some(row)) = (what, row)
                && !conversation.has_roster()
                && !row.is_erased()
                && !is_for(row, device.address())
            {
                self.broken(
                    "unlinked",
                    format!("{:?} showed {id:?} after it was unlinked", device.address()),
                );
            }
        }
    }

    /// The times in which a user blocked the sender of a message, and the time in which the message was accepted.
    fn blocked(&self, user: UserId, sender: UserId, id: MessageId) -> (Vec<&Range<u64>>, Range<u64>) {
        let queued = self.queued.get(&id).copied().unwrap_or(0);
        let stored = self.stored.get(&id).copied().unwrap_or(u64::MAX);
        let blocks = self.blocks.iter().filter(|(owner, other, _)| (*owner, *other) == (user, sender));
        (blocks.map(|(.., times)| times).collect(), queued..stored)
    }

    fn is_blocked_throughout(&self, user: UserId, sender: UserId, id: MessageId) -> bool {
        let (blocks, sent) = self.blocked(user, sender, id);
        blocks.iter().any(|block| block.start < sent.start && sent.end < block.end)
    }

    fn may_be_withheld(&self, user: UserId, sender: UserId, id: MessageId) -> bool {
        let (blocks, sent) = self.blocked(user, sender, id);
        blocks.iter().any(|block| block.start <= sent.end && sent.start <= block.end)
    }

    /// Checks the laws once the world is at rest.
    pub(super) fn check(mut self, devices: &[Device], tables: &Tables) -> Result<(), Violation> {
        let conversations: HashSet<ConversationId> =
            self.acked.values().map(|(conversation, _)| *conversation).collect();
        let logs: BTreeMap<ConversationId, Vec<InboxRow>> = conversations
            .into_iter()
            .map(|id| {
                let everything = PageLimit { rows: usize::MAX, bytes: usize::MAX };
                (id, tables.history(id, 0, everything).into_iter().rev().collect())
            })
            .collect();
        let erasures = self.check_erasures(&logs);
        for (id, log) in &logs {
            self.check_log(*id, log);
        }
        let groups = fold_groups(devices, &logs, &self.acquaintances);
        self.check_acked(&logs, &erasures);
        let any_restore = devices.iter().any(|device| device.store.restored > 0);
        let restored: HashSet<InstallationId> = devices
            .iter()
            .filter(|device| device.store.restored > 0)
            .map(|device| device.address().installation)
            // It answers no request either.
            .chain(self.unlinked)
            .collect();
        for device in devices {
            self.check_device(device, &logs, &groups, tables, any_restore);
            if !self.is_unlinked(device) {
                self.check_recovered(device, &restored);
            }
        }
        for (id, group) in groups.iter().filter(|_| self.server_restored.is_none()) {
            let reads =
                |device, seq| self.subscribers.contains(&device) && reads_channel(tables, *id, device, seq);
            if let Some(broken) = group.check(*id, devices, |device| self.is_unlinked(device), reads) {
                self.violation.get_or_insert(broken);
            }
        }
        self.violation.map_or(Ok(()), Err)
    }

    fn check_log(&mut self, id: ConversationId, log: &[InboxRow]) {
        let mut seen = HashSet::new();
        let mut places: HashMap<InstallationId, usize> = HashMap::new();
        for (n, row) in log.iter().enumerate() {
            if row.seq != n as u64 + 1 {
                return self.broken("order", format!("seq {} of {id:?} is missing", n + 1));
            }
            let RowContent::Message { message, .. } = &row.content else {
                continue;
            };
            let sender = message.sender.installation;
            if !seen.insert((sender, message.id)) {
                self.broken("twice", format!("{:?} is stored twice in {id:?}", message.id));
            }
            if self.silent.contains(&message.id) {
                continue;
            }
            let sent = self.sent.get(&sender).and_then(|sent| sent.iter().position(|id| *id == message.id));
            let Some(place) = sent else {
                self.broken("ghost", format!("{:?} was never sent", message.id));
                continue;
            };
            if self.refused.contains(&message.id) {
                continue;
            }
            if places.insert(sender, place).is_some_and(|before| before > place) {
                self.broken("order", format!("{:?} of {sender:?} follows a later one", message.id));
            }
        }
    }

    /// Checks that the server erased only messages that were deleted or had a lifetime, and all deleted ones. Returns the
    /// messages that it erased.
    fn check_erasures(&mut self, logs: &BTreeMap<ConversationId, Vec<InboxRow>>) -> Erasures {
        let mut deleted: Erasures = HashMap::new();
        for (id, log) in logs {
            for row in log {
                let RowContent::Message { message, .. } = &row.content else { continue };
                let Some(deletion) = &message.options.deletion else { continue };
                deleted.insert((*id, deletion.seq), (deletion.installation, deletion.message_id));
                let target = log.get(deletion.seq as usize - 1);
                if !target.is_some_and(InboxRow::is_erased) {
                    self.broken("kept", format!("{:?} of {id:?} deletes {target:?}", message.id));
                }
            }
        }
        let mut erasures = Erasures::new();
        for (id, log) in logs {
            for row in log {
                let RowContent::Empty { reason, .. } = row.content else { continue };
                let place = (*id, row.seq);
                let message = match reason {
                    EmptyReason::Deleted => deleted.get(&place),
                    EmptyReason::Disappeared => self.disappearing.get(&place),
                    _ => continue,
                };
                match message {
                    Some(message) => drop(erasures.insert(place, *message)),
                    None => self.broken("erased", format!("{} of {id:?} is erased: {reason:?}", row.seq)),
                }
            }
        }
        erasures
    }

    fn check_acked(&mut self, logs: &BTreeMap<ConversationId, Vec<InboxRow>>, erasures: &Erasures) {
        let acked: Vec<_> = self.acked.iter().map(|(key, at)| (*key, *at)).collect();
        for ((device, id), (conversation, seq)) in acked {
            let row = logs.get(&conversation).and_then(|log| log.get(seq as usize - 1));
            let there = row.is_some_and(|row| match &row.content {
                RowContent::Message { message, .. } => {
                    message.id == id && message.sender.installation == device
                }
                _ => false,
            });
            let is_erased = erasures.get(&(conversation, seq)) == Some(&(device, id));
            if !there && !is_erased {
                self.broken("lost", format!("{id:?} was acknowledged at {seq} but is lost"));
            }
        }
    }

    /// Checks that the device requested all unreadable messages again, and received those that their senders
    /// still have.
    fn check_recovered(&mut self, device: &Device, restored: &HashSet<InstallationId>) {
        let unasked = device.store.saved.unasked.len();
        if unasked > 0 {
            // The device would request them again at every start.
            self.broken("recovered", format!("{:?} must still request {unasked}", device.address()));
        }
        for (conversation, seq, what) in &device.store.shown {
            if let Shown::Unreadable(sender, id, why) = what
                && *why != Unreadable::NotMember
                && !restored.contains(sender)
                && self.swept_us == 0
                && self.server_restored.is_none()
                // The request, or its answer, may be withheld.
                && self.blocks.is_empty()
            {
                let own = device.address();
                self.broken(
                    "recovered",
                    format!("{own:?} never read {id:?} at {seq} of {conversation:?}: {why:?}"),
                );
            }
        }
    }

    fn check_device(
        &mut self,
        device: &Device,
        logs: &BTreeMap<ConversationId, Vec<InboxRow>>,
        groups: &BTreeMap<ConversationId, GroupLog<'_>>,
        tables: &Tables,
        any_restore: bool,
    ) {
        let is_for = |id: &ConversationId, row: &InboxRow, device: DeviceAddress| match groups.get(id) {
            Some(group) => {
                // The last row of a device that is removed says only that.
                let is_removal = || group.removes(row.seq, device.user);
                group.is_for(row.seq, device)
                    || reads_channel(tables, *id, device.installation, row.seq) && !is_removal()
            }
            None => is_for(row, device),
        };
        let own = device.address();
        let mut shown: BTreeMap<(ConversationId, Seq), &Shown> = BTreeMap::new();
        let mut last: HashMap<ConversationId, Seq> = HashMap::new();
        let mut ids = HashSet::new();
        for (conversation, seq, what) in &device.store.shown {
            if last.insert(*conversation, *seq).is_some_and(|before| before >= *seq) {
                self.broken("order", format!("{own:?} showed {seq} of {conversation:?} out of order"));
            }
            if let Shown::Message(sender, id) = what
                && !ids.insert((*sender, *id))
            {
                self.broken("twice", format!("{own:?} showed {id:?} twice"));
            }
            if let Shown::Unreadable(_, _, why) = what
                && *why != Unreadable::NotMember
                // Retention may have removed the row with the sender key.
                && (self.swept_us == 0 || !conversation.has_roster())
                && !any_restore
                && self.server_restored.is_none()
            {
                self.broken(
                    "unreadable",
                    format!("{own:?} could not read {seq} of {conversation:?}: {why:?}"),
                );
            }
            shown.insert((*conversation, *seq), what);
        }
        // An unannounced restore is a server that sends two messages under one seq.
        let honest = self.server_restored != Some(false);
        for (id, violation) in device.store.violations.iter().filter(|_| honest) {
            self.broken("integrity", format!("{own:?} reports {violation:?} in {id:?} of an honest server"));
        }
        if self.is_unlinked(device) {
            return self.check_unlinked(device, logs);
        }
        for (id, log) in logs {
            let others = id.kind() == Ok(ConversationKind::Own) && *id != ConversationId::own(own.user);
            if others {
                continue;
            }
            let cursor = device.store.cursor(*id);
            let last = log.iter().rev().find(|row| is_for(id, row, own)).map_or(0, |row| row.seq);
            if cursor < last {
                self.broken("stuck", format!("{own:?} has {cursor} of {last} rows of {id:?}"));
            }
            for row in log.iter().filter(|row| is_for(id, row, own)) {
                let RowContent::Message { message, .. } = &row.content else {
                    continue;
                };
                if message.sender.installation == own.installation {
                    continue;
                }
                match shown.get(&(*id, row.seq)) {
                    Some(Shown::Message(sender, id))
                        if (*sender, *id) == (message.sender.installation, message.id) =>
                    {
                        if message.group.is_none()
                            && self.is_blocked_throughout(own.user, message.sender.user, message.id)
                        {
                            self.broken("blocked", format!("{own:?} showed {id:?} of a blocked user"));
                        }
                    }
                    Some(Shown::Withheld)
                        if self.may_be_withheld(own.user, message.sender.user, message.id) => {}
                    Some(Shown::Message(..)) => {
                        self.broken("order", format!("{own:?} showed another message at {}", row.seq));
                    }
                    Some(Shown::Unreadable(..) | Shown::Nothing) if any_restore => {}
                    Some(Shown::Unreadable(..)) if self.server_restored.is_some() => {}
                    Some(Shown::Unreadable(..)) if self.swept_us > 0 && message.group.is_some() => {}
                    Some(Shown::Nothing) if row.time_us < self.swept_us => {}
                    Some(Shown::Nothing)
                        if row.disappears_at_us().is_some_and(|at_us| at_us <= self.ended_us) => {}
                    Some(Shown::Excluded) if self.excluded.contains(&(message.id, own.installation)) => {}
                    other => {
                        self.broken("lost", format!("{own:?} showed {other:?} at {} of {id:?}", row.seq))
                    }
                }
            }
        }
        let waiting = device.replica.as_ref().map_or(usize::MAX, |replica| replica.outbox_len());
        if waiting != 0 {
            self.broken("stuck", format!("{own:?} still has {waiting} unsent messages"));
        }
    }
}

fn fold_groups<'a>(
    devices: &[Device],
    logs: &'a BTreeMap<ConversationId, Vec<InboxRow>>,
    known: &Acquaintances,
) -> BTreeMap<ConversationId, GroupLog<'a>> {
    let groups = logs.iter().filter(|(id, _)| id.has_roster());
    let folded = groups.map(|(id, log)| {
        let followed =
            devices.iter().flat_map(|device| device.store.rosters.range((*id, 0)..=(*id, u64::MAX)));
        let roles = followed.map(|((_, version), roster)| {
            (*version, roster.members.iter().map(|member| (member.user, member.role)).collect())
        });
        (*id, GroupLog::fold(*id, log, &roles.collect(), known))
    });
    folded.collect()
}

/// Whether a device read a channel at a seq, by the record of the store. The laws check that record against the requests of
/// devices and the bans in the log.
fn reads_channel(tables: &Tables, channel: ConversationId, device: InstallationId, seq: Seq) -> bool {
    let feeds = if channel.is_channel() { tables.feeds(device) } else { Vec::new() };
    feeds.iter().any(|feed| feed.conversation == channel && feed.reads(seq))
}

/// Whether a row's message was encrypted for a device.
fn is_for(row: &InboxRow, device: DeviceAddress) -> bool {
    let RowContent::Message { message, .. } = &row.content else {
        return false;
    };
    message.audience.iter().any(|audience| {
        let account = ACCOUNTS.iter().find(|account| account.lists[0].list().user == audience.user);
        let list = account.and_then(|account| account.lists.get(audience.list_version as usize - 1));
        list.is_some_and(|list| list.list().addresses().any(|listed| listed == device))
    })
}

/// The ratchet keys in all commits. Each key may seal only one message.
#[derive(Debug, Default)]
pub(super) struct KeyUse {
    used: HashMap<(u64, u64), (MessageId, InstallationId)>,
    /// The messages by sender key and number.
    shared: HashMap<(SenderKeyId, u64), MessageId>,
    /// The messages that have a lifetime.
    pub disappearing: Erasures,
    twice: Option<String>,
    /// A row that was written again with different bytes.
    pub differing: Option<String>,
    /// A conversation that one process committed twice at a time.
    pub overlap: Option<String>,
}

impl KeyUse {
    /// Notes the messages of a commit that have a lifetime, before the commit is applied.
    pub(super) fn note_disappearing(&mut self, commit: &Commit) {
        for row in &commit.history {
            let RowContent::Message { message, .. } = &row.content else { continue };
            if message.options.expires_after_ms > 0 {
                let named = (message.sender.installation, message.id);
                self.disappearing.insert((row.conversation, row.seq), named);
            }
        }
    }

    pub(super) fn note(&mut self, commit: &Commit) {
        for row in &commit.history {
            let RowContent::Message { message, .. } = &row.content else { continue };
            let part = message.group.as_ref();
            let Some(shared) = part.and_then(|part| SimShared::decode(&part.shared)) else { continue };
            let used = self.shared.insert((shared.key, shared.number), shared.id);
            if used.is_some_and(|used| used != shared.id) {
                self.twice =
                    Some(format!("number {} of {:?} sealed two messages", shared.number, shared.key));
            }
        }
        for (_, row) in &commit.inbox {
            let RowContent::Message { sealed, .. } = &row.content else {
                continue;
            };
            let Some(one) = SimBox::decode(sealed) else {
                continue;
            };
            let used = self.used.insert((one.session, one.counter), (one.id, one.to));
            if used.is_some_and(|used| used != (one.id, one.to)) {
                self.twice =
                    Some(format!("key {} of session {:x} sealed two messages", one.counter, one.session));
            }
        }
    }

    pub(super) fn check(&self, oracle: &mut Oracle) {
        oracle.disappearing.clone_from(&self.disappearing);
        if let Some(how) = &self.twice {
            oracle.broken("keys", how.clone());
        }
        if let Some(how) = &self.differing {
            oracle.broken("differs", how.clone());
        }
        if let Some(how) = &self.overlap {
            oracle.broken("overlap", how.clone());
        }
    }
}
