//! Receipts in groups. Only the users that sent the messages get them: a device names these users in each receipt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::change::Change;
use super::output::Output;
use super::{Purpose, Recovery, Replica};
use crate::model::client_frame::{ClientFrame, GroupReceipt, Request};
use crate::model::id::{ConversationId, ConversationKind, Seq, UserId};
use crate::model::limits::MAX_RECEIPT_USERS;
use crate::model::time::Instant;

/// Minimum milliseconds between a message and its delivery receipt, which covers those after it too. Up to as many again are
/// random: the devices of a group do not all answer a message at once.
const RECEIPT_MS: u64 = 1000;
/// A device remembers the senders of at most this number of unread messages in a group.
const MAX_UNREAD: usize = 256;
/// After a reconnect a device requests the progress of at most this number of groups.
const GROUPS_AT_ONCE: usize = 4;

/// The receipts of a group since this device started. Lost ones come again when their sender asks.
#[derive(Debug, Default)]
pub(super) struct GroupReceipts {
    /// Users whose messages arrived after the last delivery receipt.
    unreported: BTreeSet<UserId>,
    /// Users that asked for a receipt, and whose messages this device has.
    asked: BTreeSet<UserId>,
    /// The newest messages that this user has not read, the latest last.
    unread: VecDeque<(Seq, UserId)>,
    /// How far each other member received the group, and how far it read it.
    progress: BTreeMap<UserId, (Seq, Seq)>,
}

impl Replica {
    fn receipts(&mut self, id: ConversationId) -> &mut GroupReceipts {
        &mut self.group(id).receipts
    }

    /// Notes a message of another member, to which receipts are due.
    pub(super) fn owe_receipt(&mut self, now: Instant, id: ConversationId, seq: Seq, sender: UserId) {
        if id.kind() != Ok(ConversationKind::Group) || sender == self.device.user {
            return;
        }
        self.receipts_are_due(now);
        let receipts = self.receipts(id);
        receipts.unreported.insert(sender);
        if receipts.unread.len() == MAX_UNREAD {
            receipts.unread.pop_front();
        }
        receipts.unread.push_back((seq, sender));
    }

    fn receipts_are_due(&mut self, now: Instant) {
        let jitter = self.rng.below(RECEIPT_MS);
        self.receipts_at = self.receipts_at.or(Some(now.after(RECEIPT_MS + jitter)));
    }

    /// Sends the delivery receipts that are due. They wait until all received messages are durable.
    pub(super) fn send_group_receipts(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.receipts_at.is_none_or(|at| now < at) {
            return;
        }
        let is_durable = self.changes.is_empty() && self.committing.is_none();
        if !is_durable || self.recovery != Recovery::No {
            self.receipts_at = Some(now.after(RECEIPT_MS));
            return;
        }
        self.receipts_at = None;
        for (id, known) in &mut self.conversations {
            let Some(group) = &mut known.group else { continue };
            let to = std::mem::take(&mut group.receipts.unreported);
            push_receipts(*id, (known.cursor, 0), to, out);
            let asked = std::mem::take(&mut group.receipts.asked);
            push_receipts(*id, (known.cursor, known.read), asked, out);
        }
    }

    /// Sends receipts for the messages that this user has just read.
    pub(super) fn report_read(&mut self, id: ConversationId, read: Seq, out: &mut Vec<Output>) {
        if id.kind() != Ok(ConversationKind::Group) {
            return;
        }
        let is_online = self.is_online();
        let receipts = self.receipts(id);
        let mut to = BTreeSet::new();
        while let Some((_, sender)) = receipts.unread.front().copied().filter(|(seq, _)| *seq <= read) {
            receipts.unread.pop_front();
            to.insert(sender);
        }
        if is_online {
            push_receipts(id, (0, read), to, out);
        }
    }

    /// Notes that a member of a group asks how far this user received and read it. It gets an answer if this device has a
    /// message of it: with the next receipts, when all rows are durable.
    pub(super) fn receipt_requested(&mut self, now: Instant, id: ConversationId, asker: UserId) {
        let known = self.conversations.get(&id);
        let member = self.roster(id).and_then(|roster| roster.member(asker)).zip(known);
        let has_message = member.is_some_and(|(member, known)| {
            member.installations.iter().any(|device| known.chains.contains_key(device))
        });
        if has_message {
            self.receipts(id).asked.insert(asker);
            self.receipts_are_due(now);
        }
    }

    /// Records how far a member received and read a group.
    pub(super) fn group_receipt(&mut self, id: ConversationId, user: UserId, delivered: Seq, read: Seq) {
        if self.roster(id).and_then(|roster| roster.member(user)).is_none() {
            return;
        }
        let known = self.receipts(id).progress.entry(user).or_default();
        let risen = (known.0.max(delivered).max(read), known.1.max(read));
        if risen != *known {
            *known = risen;
            self.changes.push(Change::Receipt(id, user, risen.0, risen.1));
        }
    }

    /// Requests the progress of the members of groups in which they have not read an own message.
    pub(super) fn request_group_progress(&mut self, now: Instant, out: &mut Vec<Output>) {
        let own = self.device.user;
        let mut asked = Vec::new();
        for (id, known) in &self.conversations {
            let Some(group) = known.group.as_ref().filter(|_| known.last_own > 0 && !id.is_channel()) else {
                // The readers of a channel report nothing.
                continue;
            };
            let mut others = group.roster.members.iter().filter(|member| member.user != own);
            let has_read = |user| group.receipts.progress.get(&user).is_some_and(|at| at.1 >= known.last_own);
            if group.roster.member(own).is_some() && !others.all(|member| has_read(member.user)) {
                asked.push(*id);
            }
        }
        self.rotate(&mut asked, GROUPS_AT_ONCE);
        for id in asked.into_iter().take(GROUPS_AT_ONCE) {
            self.request(now, Request::Delivered(id), Purpose::Delivered(id), out);
        }
    }
}

/// Pushes a receipt for these users, in as many frames as they need.
fn push_receipts(
    conversation: ConversationId,
    (delivered, read): (Seq, Seq),
    to: BTreeSet<UserId>,
    out: &mut Vec<Output>,
) {
    let to: Vec<UserId> = to.into_iter().collect();
    for to in to.chunks(MAX_RECEIPT_USERS) {
        let receipt = GroupReceipt { conversation, delivered, read, to: to.to_vec() };
        out.push(Output::Send(ClientFrame::GroupReceipt(receipt)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::envelope::AckUpTo;
    use crate::model::id::{DeviceAddress, DeviceId, InstallationId, MessageId, StoreEpoch};
    use crate::model::roster::{Member, Roster};
    use crate::model::server_frame::{Challenge, ServerFrame, Welcome};
    use crate::replica::{Chain, ConversationSnapshot, Input, ReplicaSnapshot};

    fn group(n: u8) -> ConversationId {
        ConversationId::from_bytes(std::array::from_fn(|i| if i == 0 { 0x14 } else { n }))
    }

    fn device(n: u8) -> DeviceAddress {
        let (user, installation) = (UserId::from_bytes([n; 16]), InstallationId::from_bytes([n; 16]));
        DeviceAddress { user, device: DeviceId::PRIMARY, installation }
    }

    fn user(n: u8) -> UserId {
        device(n).user
    }

    /// The device of user 1, online, in `count` groups with users 2 and 3. It has 5 messages of each group, among them some
    /// of user 2 and of its own.
    struct World(Replica);

    impl World {
        fn with_groups(count: u8) -> Self {
            let member = |n| Member::new(user(n), 1, vec![device(n).installation]);
            let chain =
                Chain { incarnation: 0, client_seq: 2, id: MessageId::from_bytes([9; 16]), excused: 0 };
            let conversations = (1..=count).map(|n| ConversationSnapshot {
                cursor: 5,
                last_own: 4,
                roster: Roster {
                    members: vec![member(1), member(2), member(3)],
                    version: 1,
                    ..Roster::default()
                },
                chains: [(device(2).installation, chain)].into(),
                ..ConversationSnapshot::new(group(n))
            });
            let snapshot = ReplicaSnapshot {
                epoch: Some(StoreEpoch::from_bytes([1; 16])),
                conversations: conversations.collect(),
                ..ReplicaSnapshot::new(device(1))
            };
            let mut world = Self(Replica::new(Instant::from_millis(0), snapshot, 7));
            for input in [
                Input::Tick,
                Input::Connected,
                Input::Frame(ServerFrame::Challenge(Challenge::example())),
                Input::Frame(ServerFrame::Welcome(Welcome::example())),
            ] {
                world.step(0, input);
            }
            world
        }

        /// Returns the frames that the device sends.
        fn step(&mut self, at: u64, input: Input) -> Vec<ClientFrame> {
            let mut out = Vec::new();
            self.0.step(Instant::from_millis(at), input, &mut out);
            let frames = out.into_iter().filter_map(|output| match output {
                Output::Send(frame) => Some(frame),
                _ => None,
            });
            frames.collect()
        }

        fn receipts(&mut self, at: u64, input: Input) -> Vec<GroupReceipt> {
            let frames = self.step(at, input).into_iter().filter_map(|frame| match frame {
                ClientFrame::GroupReceipt(receipt) => Some(receipt),
                _ => None,
            });
            frames.collect()
        }
    }

    fn receipt(delivered: Seq, read: Seq, to: &[u8]) -> GroupReceipt {
        let to = to.iter().map(|n| user(*n)).collect();
        GroupReceipt { conversation: group(1), delivered, read, to }
    }

    /// After the longest time that a receipt waits.
    const LATER: u64 = 2 * RECEIPT_MS;

    #[test]
    fn receipts_go_to_the_senders_of_the_messages() {
        let mut world = World::with_groups(1);
        for (seq, sender) in [(4, 3), (5, 2), (5, 1)] {
            world.0.owe_receipt(Instant::from_millis(0), group(1), seq, user(sender));
        }
        assert_eq!(world.receipts(RECEIPT_MS - 1, Input::Tick), []);
        assert_eq!(world.receipts(LATER, Input::Tick), [receipt(5, 0, &[2, 3])]);
        assert_eq!(world.receipts(2 * LATER, Input::Tick), [], "once");
        let read = |seq| Input::Read(AckUpTo { conversation: group(1), seq });
        assert_eq!(world.receipts(LATER, read(4)), [receipt(0, 4, &[3])]);
        assert_eq!(world.receipts(LATER, read(5)), [receipt(0, 5, &[2])]);
    }

    #[test]
    fn receipt_waits_until_the_messages_are_durable() {
        let mut world = World::with_groups(1);
        world.0.owe_receipt(Instant::from_millis(0), group(1), 5, user(2));
        world.0.changes.push(Change::Cursor(group(1), 5));
        assert_eq!(world.receipts(LATER, Input::Tick), []);
        assert!(world.0.deadline().is_some_and(|at| at > Instant::from_millis(LATER)), "it does not spin");
        world.0.changes.clear();
        assert_eq!(world.receipts(2 * LATER, Input::Tick), [receipt(5, 0, &[2])]);
    }

    #[test]
    fn request_is_answered_to_members_with_messages_only() {
        let mut world = World::with_groups(1);
        for asker in [2, 3, 4] {
            let asked = Input::Frame(ServerFrame::ReadRequested(group(1), Some(user(asker))));
            assert_eq!(world.receipts(0, asked), [], "not at once: all devices are asked together");
        }
        assert_eq!(world.receipts(LATER, Input::Tick), [receipt(5, 0, &[2])]);
    }

    #[test]
    fn every_group_is_asked_about_sometimes() {
        let mut world = World::with_groups(12);
        let mut asked = BTreeSet::new();
        for _ in 0..50 {
            let mut out = Vec::new();
            world.0.requests.clear();
            world.0.request_group_progress(Instant::from_millis(0), &mut out);
            let ids: Vec<_> = out
                .iter()
                .filter_map(|output| match output {
                    Output::Send(ClientFrame::Request(_, Request::Delivered(id))) => Some(*id),
                    _ => None,
                })
                .collect();
            assert_eq!(ids.len(), GROUPS_AT_ONCE);
            asked.extend(ids);
        }
        assert_eq!(asked.len(), 12);
        for n in 1..=12 {
            for member in [2, 3] {
                world.0.group_receipt(group(n), user(member), 4, 4);
            }
        }
        let mut out = Vec::new();
        world.0.request_group_progress(Instant::from_millis(0), &mut out);
        assert_eq!(out, [], "all have read it");
    }

    #[test]
    fn unread_messages_are_bounded() {
        let mut world = World::with_groups(1);
        for seq in 0..2 * MAX_UNREAD as u64 {
            world.0.owe_receipt(Instant::from_millis(0), group(1), seq, user(2));
        }
        assert_eq!(world.0.receipts(group(1)).unread.len(), MAX_UNREAD);
    }
}
