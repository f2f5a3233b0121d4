//! Received messages of a group: this device applies each change of the roster as the shard did, and compares digests.

use super::change::Change;
use super::output::Output;
use super::{Purpose, Replica};
use crate::model::device_list::SignedDeviceList;
use crate::model::envelope::{InboxRow, Message, RowContent};
use crate::model::group::{GroupAction, GroupChange, GroupPart};
use crate::model::id::ConversationId;
use crate::model::roster::Roster;
use crate::model::time::Instant;
use crate::mutant::Mutant;

/// Answers older than a row after which the rosters differ: a gateway may read an older state for a moment.
const LATE_ANSWERS: u32 = 5;
/// Milliseconds after which the roster is requested again.
const ASK_AGAIN_MS: u64 = 1000;

/// The way in which a row of a group is handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Follow {
    /// The roster must be fetched first.
    Wait,
    /// The message is for this device.
    Open,
    /// The sender, or this device, is no member: the message is not opened.
    Outside,
}

impl Replica {
    /// Follows the roster over a row. `list` has the sending device, if any list does.
    pub(super) fn follow_roster(
        &mut self,
        now: Instant,
        row: &InboxRow,
        list: Option<&SignedDeviceList>,
        out: &mut Vec<Output>,
    ) -> Follow {
        let RowContent::Message { message, .. } = &row.content else { return Follow::Open };
        let (id, seq) = (row.conversation, row.seq);
        let Some(part) = &message.group else { return Follow::Open };
        let roster = &self.group(id).roster;
        let version = roster.version;
        if part.roster_version < version && seq < roster.changed_at {
            self.note_change(row, message, part, list);
            return self.opens(message, part);
        }
        let changes = part.change.is_some() || !part.lists.is_empty();
        let founds = part.roster_version == 1
            && part.change.as_ref().is_some_and(|one| matches!(one.action(), GroupAction::Create { .. }));
        // If the row makes no change, an own message made the later version, and its answer was lost.
        if part.roster_version == version + 1 && changes && (version > 0 || founds) {
            return self.follow_change(now, row, message, part, list);
        }
        if version == 0 || part.roster_version > version {
            return self.wait_for_roster(now, row, message, part, list, out);
        }
        self.follow_known(row, message, part, list, changes)
    }

    /// Checks a row that is for the known roster. Without an honest server it may be for an earlier one.
    fn follow_known(
        &mut self,
        row: &InboxRow,
        message: &Message,
        part: &GroupPart,
        list: Option<&SignedDeviceList>,
        changes: bool,
    ) -> Follow {
        let (id, seq, user) = (row.conversation, row.seq, message.sender.user);
        let roster = &mut self.group(id).roster;
        if (part.roster_version, part.digest) != (roster.version, roster.digest) {
            let is_member = roster.has_device(user, message.sender.installation);
            self.roster_differs(id, seq);
            // A report does not hide the message of a member.
            return if is_member { Follow::Open } else { Follow::Outside };
        }
        // The digest does not cover this seq, which the server named: the change is not later than a row for its version.
        roster.changed_at = roster.changed_at.min(seq);
        if changes {
            // The change that this device fetched, or the same device lists as in its own message.
            self.note_change(row, message, part, list);
            return self.opens(message, part);
        }
        let is_silent = part.shared.is_empty();
        let is_member = roster.has_device(user, message.sender.installation)
            && (is_silent || roster.may_send(user) || Mutant::RoleIgnored.is_active());
        if is_member {
            return Follow::Open;
        }
        self.roster_differs(id, seq);
        Follow::Outside
    }

    /// Applies the change of the roster that a row makes.
    fn follow_change(
        &mut self,
        now: Instant,
        row: &InboxRow,
        message: &Message,
        part: &GroupPart,
        list: Option<&SignedDeviceList>,
    ) -> Follow {
        let (id, sender, own) = (row.conversation, message.sender, self.device);
        let roster = &self.group(id).roster;
        let was_member = roster.has_device(own.user, own.installation);
        let Some(next) = follow(roster, row, message, part, list) else {
            if list.is_some() {
                self.roster_differs(id, row.seq);
            }
            // Without the keys of the sender the change cannot be checked: the next row finds a later roster.
            return Follow::Open;
        };
        let is_member = next.has_device(own.user, own.installation);
        // A channel is read by devices that are no members, until their user is removed.
        let is_reader = id.is_channel() && !was_member && !next.banned.contains(&own.user);
        self.adopt_roster(now, id, next);
        if let Some(change) = &part.change {
            let action = change.action().clone();
            self.changes.push(Change::GroupChanged(id, row.seq, sender, message.id, action));
        }
        if is_member || is_reader { Follow::Open } else { Follow::Outside }
    }

    /// Waits for the roster that a row is for, which is later than the known one.
    fn wait_for_roster(
        &mut self,
        now: Instant,
        row: &InboxRow,
        message: &Message,
        part: &GroupPart,
        list: Option<&SignedDeviceList>,
        out: &mut Vec<Output>,
    ) -> Follow {
        let id = row.conversation;
        let first = self.rows_in - self.rows.len() as u64;
        let rows_in = self.rows_in;
        let group = self.group(id);
        if group.looked_up.is_none_or(|asked_after| asked_after <= first) {
            self.request_roster(now, id, out);
            return Follow::Wait;
        }
        if !group.is_hidden && group.late_answers < LATE_ANSWERS {
            if group.asking.is_none() {
                group.late_answers += 1;
                group.asking = Some(rows_in);
                let request = self.roster_request(id);
                self.request_at(now.after(ASK_AGAIN_MS), request, Purpose::Roster(id));
            }
            return Follow::Wait;
        }
        if id.is_channel() {
            // An honest server shows the roster to each device that has rows of a channel. Without it the device cannot separate posts of
            // writers from those of other users with the link.
            self.roster_differs(id, row.seq);
            return Follow::Outside;
        }
        if !group.is_hidden {
            self.roster_differs(id, row.seq);
        }
        // The server shows no roster to a device that is no member any more. It was one when the row was stored.
        self.note_change(row, message, part, list);
        self.opens(message, part)
    }

    /// Returns whether this device may read a message that an earlier roster decided.
    fn opens(&self, message: &Message, part: &GroupPart) -> Follow {
        let own = self.device.user;
        let removes = |action: &GroupAction| match action {
            GroupAction::Leave => message.sender.user == own,
            action => action.removed().contains(&own),
        };
        if part.change.as_ref().is_some_and(|change| removes(change.action())) {
            return Follow::Outside;
        }
        Follow::Open
    }

    /// Reports a change that an earlier roster decided, if its sender signed it.
    fn note_change(
        &mut self,
        row: &InboxRow,
        message: &Message,
        part: &GroupPart,
        list: Option<&SignedDeviceList>,
    ) {
        if let Some(change) = &part.change
            && is_signed(change, row.conversation, message, part, list)
        {
            let action = change.action().clone();
            self.changes.push(Change::GroupChanged(
                row.conversation,
                row.seq,
                message.sender,
                message.id,
                action,
            ));
        }
    }
}

/// Returns the roster after a message, if its sender may make that change and names its digest.
fn follow(
    roster: &Roster,
    row: &InboxRow,
    message: &Message,
    part: &GroupPart,
    list: Option<&SignedDeviceList>,
) -> Option<Roster> {
    let (id, sender) = (row.conversation, message.sender);
    let change = part.change.as_ref();
    let may_send = match change.map(|change| (change, change.action())) {
        Some((founding, GroupAction::Create { .. })) => {
            id.is_founded_by(sender, message.id, founding.encoded())
        }
        // `Roster::change` decides whether a user that is no member may do that.
        Some((_, GroupAction::Join(_) | GroupAction::Leave)) => part.shared.is_empty(),
        _ => roster.has_device(sender.user, sender.installation),
    };
    let is_signed = change.is_none_or(|change| is_signed(change, id, message, part, list));
    if !may_send || !is_signed {
        return None;
    }
    let next = roster.change(id, sender.user, change.map(GroupChange::action), &part.lists, row.seq).ok()?;
    Some(next).filter(|next| (next.version, next.digest) == (part.roster_version, part.digest))
}

/// Whether the sending device signed a change.
fn is_signed(
    change: &GroupChange,
    id: ConversationId,
    message: &Message,
    part: &GroupPart,
    list: Option<&SignedDeviceList>,
) -> bool {
    let entry = list.and_then(|list| list.list().device(message.sender.device));
    let entry = entry.filter(|entry| entry.installation() == message.sender.installation);
    entry.is_some_and(|entry| change.verify(&entry.device_key, id, message.id, &part.digest).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::group::GroupPart;
    use crate::model::id::{DeviceAddress, DeviceId, InstallationId, MessageId, UserId};
    use crate::model::message_options::MessageOptions;
    use crate::model::roster::{Member, RosterDigest};
    use crate::replica::{ConversationSnapshot, ReplicaSnapshot};

    const ID: ConversationId = ConversationId::from_bytes([0x14; 17]);

    fn device(n: u8) -> DeviceAddress {
        let (user, installation) = (UserId::from_bytes([n; 16]), InstallationId::from_bytes([n; 16]));
        DeviceAddress { user, device: DeviceId::PRIMARY, installation }
    }

    /// A device that fetched version 4 of a roster with the users 1 and 2. The server says that it changed at this seq.
    fn fetched(changed_at: u64) -> Replica {
        let member = |n| Member::new(device(n).user, 1, vec![device(n).installation]);
        let roster = Roster {
            members: vec![member(1), member(2)],
            version: 4,
            changed_at,
            digest: digest(7),
            ..Roster::default()
        };
        let known = ConversationSnapshot { roster, ..ConversationSnapshot::new(ID) };
        let snapshot = ReplicaSnapshot { conversations: vec![known], ..ReplicaSnapshot::new(device(1)) };
        Replica::new(Instant::from_millis(0), snapshot, 1)
    }

    fn digest(n: u8) -> RosterDigest {
        RosterDigest::parse(&[n; 32]).unwrap()
    }

    /// Returns how the device handles a message of user `sender`, and whether it reports that the rosters differ.
    fn follow(
        replica: &mut Replica,
        seq: u64,
        sender: u8,
        version: u64,
        digest: RosterDigest,
    ) -> (Follow, bool) {
        let part = GroupPart {
            roster_version: version,
            digest,
            shared: "shared".into(),
            control: bytes::Bytes::new(),
            change: None,
            lists: Vec::new(),
        };
        let message = Message {
            id: MessageId::from_bytes([seq as u8; 16]),
            sender: device(sender),
            client_seq: 1,
            prev: MessageId::NIL,
            incarnation: 0,
            audience: Vec::new(),
            body: "body".into(),
            sent_at: 0,
            options: MessageOptions::default(),
            group: Some(Box::new(part)),
        };
        let content =
            RowContent::Message { message: std::sync::Arc::new(message), sealed: bytes::Bytes::new() };
        let row = InboxRow { conversation: ID, seq, time_us: seq, joined: false, content };
        replica.changes.clear();
        let followed = replica.follow_roster(Instant::from_millis(0), &row, None, &mut Vec::new());
        (followed, replica.changes.iter().any(|change| matches!(change, Change::Violated(..))))
    }

    #[test]
    fn server_does_not_switch_checks_off_with_the_seq_of_the_change() {
        let mut replica = fetched(1 << 40);
        assert_eq!(follow(&mut replica, 8, 2, 3, digest(6)), (Follow::Open, false), "before the change");
        assert_eq!(follow(&mut replica, 9, 3, 4, digest(7)), (Follow::Outside, true), "no member");
        assert_eq!(follow(&mut replica, 10, 2, 4, digest(7)), (Follow::Open, false));
        assert_eq!(follow(&mut replica, 11, 2, 3, digest(6)), (Follow::Open, true), "for an earlier version");
    }

    #[test]
    fn other_roster_of_the_same_version_is_reported() {
        let mut replica = fetched(5);
        assert_eq!(follow(&mut replica, 6, 2, 4, digest(8)), (Follow::Open, true));
        assert_eq!(follow(&mut replica, 7, 3, 4, digest(8)), (Follow::Outside, true));
    }
}
