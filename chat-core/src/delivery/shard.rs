//! Decisions of a shard about commands: a pure function, so that two owners that overlap, and every replay of
//! the log, write the same bytes.

use crate::backend::{
    Command, Commit, ConversationState, Head, Member, Operation, Record, Roster, SenderState, StateChange,
};
use crate::model::envelope::{EmptyReason, InboxRow, Message, Publish, Refusal, RowContent, SendPosition};
use crate::model::group::{GroupAction, GroupChange};
use crate::model::id::{
    ConversationId, ConversationKind, DeviceAddress, InstallationId, MessageId, Seq, UserId,
};
use crate::mutant::Mutant;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Decision of a shard about a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, clippy::large_enum_variant)]
pub enum Decision {
    /// The record gets this seq. The commit has the changes.
    Store(Seq, Commit),
    /// The message is stored already, at this seq. The commit, if there is one, only uses up its new number.
    Repeat(Seq, Option<Commit>),
    /// The record is refused. The state does not change.
    Refuse(Refusal),
}

/// Decides about a record. `found` is the seq at which the sender's message with this id is stored.
///
/// A record that the state has already applied changes nothing: a replay of the log, and an owner that was
/// replaced but continues, decide it again in a later state. For the same reason a message counts as found
/// only if its seq is at or below the head of *this* state.
pub fn decide(state: &ConversationState, record: &Record, found: Option<Seq>) -> Decision {
    let decision = decide_anew(state, record, found);
    if !state.head.has_applied(record.position) || Mutant::ReplayDecidesAnew.is_active() {
        return decision;
    }
    match decision {
        // Allowed only because the number was used up: the sender drops a number that is answered.
        Decision::Repeat(seq, None) => Decision::Repeat(seq, None),
        // The device sends it again, and the state at that time decides.
        _ => Decision::Refuse(Refusal::Retry(0)),
    }
}

/// Decides about a record without regard to replays.
fn decide_anew(state: &ConversationState, record: &Record, found: Option<Seq>) -> Decision {
    let command = &*record.command;
    let number = *command.number();
    let known = state.senders.get(&command.sender.installation).copied().unwrap_or_default();
    // Ignore ids that only this batch has read, so that two owners, and every replay, decide the same.
    let found = if Mutant::NoDedupe.is_active() || is_new(known, command) { None } else { found };
    let found = found.filter(|seq| *seq <= state.head.seq || Mutant::FoundAheadOfState.is_active());

    if number.incarnation < known.incarnation && !Mutant::OldIncarnationAccepted.is_active() {
        return found.map_or(Decision::Refuse(Refusal::Superseded), |seq| Decision::Repeat(seq, None));
    }
    let last = if number.incarnation > known.incarnation {
        SenderState { incarnation: number.incarnation, ..SenderState::default() }
    } else {
        known
    };
    if number.client_seq <= last.client_seq && !Mutant::AnyClientSeq.is_active() {
        return match found {
            Some(seq) => Decision::Repeat(seq, None),
            None if Mutant::NoDedupe.is_active() => accept(state, record, command, number),
            None => Decision::Refuse(Refusal::Conflict),
        };
    }
    if number.client_seq > last.client_seq + 1 && !Mutant::AnyClientSeq.is_active() {
        // Refused even if the message is stored (in an earlier incarnation): after an answer the sender would
        // drop a number that is not used up yet.
        return match found {
            Some(seq) if Mutant::RepeatAboveNext.is_active() => Decision::Repeat(seq, None),
            _ => Decision::Refuse(Refusal::Expected(last.client_seq + 1)),
        };
    }
    if number.prev != last.prev && !Mutant::NoPrevLink.is_active() && !Mutant::AnyClientSeq.is_active() {
        return Decision::Refuse(Refusal::Conflict);
    }
    if let Some(seq) = found {
        // An id of an earlier incarnation, sent again: the message keeps its seq and uses up its new number.
        return Decision::Repeat(seq, Some(commit(record, next_state(state, record, number))));
    }
    if matches!(command.operation, Operation::Skip(_))
        && !may_void(state, command.sender, number.conversation)
    {
        return Decision::Refuse(Refusal::Denied);
    }
    if let Some(verdict) = &command.verdict {
        return Decision::Refuse(verdict.clone());
    }
    let stale: Vec<_> = command
        .recipients
        .iter()
        .filter(|r| state.roster.member(r.user).is_some_and(|m| m.list_version > r.list_version))
        .map(|r| r.user)
        .collect();
    if !stale.is_empty() && !Mutant::StaleListAccepted.is_active() {
        return Decision::Refuse(Refusal::Mismatch(stale));
    }
    accept(state, record, command, number)
}

/// Returns whether a number comes directly after the last one of its sender.
pub(super) fn is_next(last: SenderState, number: &SendPosition) -> bool {
    number.incarnation == last.incarnation
        && number.client_seq == last.client_seq + 1
        && number.prev == last.prev
}

/// Returns whether a message cannot be stored yet: its device declares that it never sent it, and it has the
/// next number. A message stored in this incarnation has a lower number, and a message that waited when an
/// incarnation began counts as sent before. A late copy has a number that is used up, so its declaration is
/// not trusted.
pub(super) fn is_new(last: SenderState, command: &Command) -> bool {
    let first = matches!(&command.operation, Operation::Publish(publish) if publish.first);
    first && (is_next(last, command.number()) || Mutant::FirstIsEnough.is_active())
}

/// Returns whether a sender may skip a number: in a conversation of which it is a member, or which has no
/// members yet.
fn may_void(state: &ConversationState, sender: DeviceAddress, id: ConversationId) -> bool {
    let members = &state.roster.members;
    match id.kind() {
        Ok(ConversationKind::Own) => id == ConversationId::own(sender.user),
        Ok(ConversationKind::Direct) => members.is_empty() || state.roster.member(sender.user).is_some(),
        Ok(ConversationKind::Mailbox) => {
            let is_to = |one| id == ConversationId::mailbox(sender.installation, one);
            // A device that sent to the mailbox may skip after the receiving device was unlinked: its number would block it.
            let has_sent = state.senders.contains_key(&sender.installation);
            members.is_empty() || has_sent || state.roster.installations().any(is_to)
        }
        Ok(ConversationKind::Group) => state.roster.has_device(sender.user, sender.installation),
        _ => false,
    }
}

/// Returns the change that records the number of a sender. Every change of the state gets its own time, which
/// orders its writes in the store.
fn next_state(state: &ConversationState, record: &Record, number: SendPosition) -> StateChange {
    let head = Head {
        position: record.position,
        time_us: record.appended_us.max(state.head.time_us + 1),
        rules: record.command.rules.max(state.head.rules),
        ..state.head
    };
    let senders = [(record.command.sender.installation, SenderState::after(&number))].into();
    StateChange { head, roster: None, senders }
}

fn commit(record: &Record, state: StateChange) -> Commit {
    let number = record.command.number();
    Commit {
        conversation: number.conversation,
        history: Vec::new(),
        ids: Vec::new(),
        inbox: Vec::new(),
        generations: vec![(record.command.sender.installation, number.generation)],
        state,
    }
}

fn accept(state: &ConversationState, record: &Record, command: &Command, number: SendPosition) -> Decision {
    let mut next = next_state(state, record, number);
    next.head.seq += 1;
    let (seq, time_us) = (next.head.seq, next.head.time_us);
    let mailbox = number.conversation.kind() == Ok(ConversationKind::Mailbox);
    let row = |joined, content| InboxRow { conversation: number.conversation, seq, time_us, joined, content };

    next.roster = match changed_roster(state, command, seq) {
        Ok(roster) => roster,
        Err(refusal) => return Decision::Refuse(refusal),
    };
    let roster = next.roster.as_ref().unwrap_or(&state.roster);
    // Most messages change no roster: then no device joins, and no member is removed.
    let known: Option<HashSet<InstallationId>> =
        next.roster.as_ref().map(|_| state.roster.installations().collect());
    // A member that this message removes still learns of it.
    let is_removed = |member: &&Member| known.is_some() && roster.member(member.user).is_none();
    let removed = state.roster.members.iter().filter(is_removed);
    // A user that asks to join gets no row of other messages. Its sending device gets the row of its own message.
    let is_group = number.conversation.kind() == Ok(ConversationKind::Group);
    let sender = command.sender;
    let is_outside = is_group
        && !roster.has_device(sender.user, sender.installation)
        && !state.roster.has_device(sender.user, sender.installation);
    let outside = is_outside.then(|| Member::new(sender.user, 0, vec![sender.installation]));

    let (content, boxes, excluded) = match &command.operation {
        Operation::Publish(publish) => {
            let row = message_row(command, publish, &state.roster, roster, time_us);
            (row, &publish.boxes[..], &publish.excluded[..])
        }
        Operation::Skip(_) => (RowContent::Empty { reason: EmptyReason::Skip, from: seq }, &[][..], &[][..]),
    };
    let own = RowContent::Own {
        message_id: number.message_id,
        client_seq: number.client_seq,
        incarnation: number.incarnation,
    };
    let boxes: HashMap<InstallationId, &bytes::Bytes> =
        boxes.iter().map(|one| (one.installation, &one.data)).collect();
    let mut inbox = Vec::with_capacity(roster.members.len());
    for member in roster.members.iter().chain(removed).chain(&outside) {
        for installation in &member.installations {
            let is_new = known.as_ref().is_some_and(|known| !known.contains(installation));
            let left = is_new.then(|| state.roster.left(*installation)).flatten();
            let joined = is_new && left.is_none();
            if let Some(left) = left.filter(|left| left + 1 < seq) {
                // It joins again: its rows have no hole.
                let content = RowContent::Empty { reason: EmptyReason::NotMember, from: left + 1 };
                let gap = InboxRow { seq: seq - 1, ..row(false, content) };
                inbox.push((*installation, gap));
            }
            let content = if *installation == command.sender.installation {
                own.clone()
            } else {
                match (&content, boxes.get(installation).copied()) {
                    (RowContent::Message { message, .. }, Some(sealed)) => {
                        RowContent::Message { message: message.clone(), sealed: sealed.clone() }
                    }
                    (RowContent::Message { .. }, None) if command.withheld.contains(&member.user) => {
                        RowContent::Empty { reason: EmptyReason::Withheld, from: seq }
                    }
                    (RowContent::Message { .. }, None) if command.full.contains(installation) => {
                        RowContent::Empty { reason: EmptyReason::Quota, from: seq }
                    }
                    (RowContent::Message { .. }, None) if excluded.contains(installation) => {
                        RowContent::Empty { reason: EmptyReason::Excluded, from: seq }
                    }
                    // The device has the sender key.
                    (RowContent::Message { message, .. }, None) if is_group => {
                        RowContent::Message { message: message.clone(), sealed: bytes::Bytes::new() }
                    }
                    // A member that the command does not name, or a skip: the device still gets a row for the
                    // seq.
                    _ => RowContent::Empty { reason: EmptyReason::Skip, from: seq },
                }
            };
            if !mailbox || *installation != command.sender.installation {
                inbox.push((*installation, row(joined, content)));
            }
        }
    }
    let mut made = commit(record, next);
    made.inbox = inbox;
    let sender = command.sender.installation;
    if !mailbox && !made.inbox.iter().any(|(installation, _)| *installation == sender) {
        // A skip in a conversation without members: the sender's own cursor still gets its row.
        let first = state.senders.get(&sender).is_none_or(|known| *known == SenderState::default());
        made.inbox.push((sender, row(first, own)));
    }
    made.history.push(row(false, content));
    made.ids.push((command.sender.installation, number.message_id, seq));
    Decision::Store(seq, made)
}

/// Returns the roster after a command, if the command changes it.
fn changed_roster(state: &ConversationState, command: &Command, seq: Seq) -> Result<Option<Roster>, Refusal> {
    let Operation::Publish(publish) = &command.operation else {
        // A skip changes no group.
        let is_group = command.conversation().kind() == Ok(ConversationKind::Group);
        return Ok(if is_group { None } else { changed_members(state, command) });
    };
    let Some(part) = &publish.group else { return Ok(changed_members(state, command)) };
    let (roster, sender) = (&state.roster, command.sender);
    let is_founding = part
        .change
        .as_ref()
        .is_some_and(|change| matches!(change.action(), GroupAction::Create { .. }) && roster.version == 0);
    let action = part.change.as_ref().map(GroupChange::action);
    // `Roster::change` decides whether a user that is no member may do that.
    let may_be_outside = matches!(action, Some(GroupAction::Join(_) | GroupAction::Leave));
    if !is_founding && !may_be_outside && !roster.has_device(sender.user, sender.installation) {
        return Err(Refusal::Denied);
    }
    let is_content = !part.shared.is_empty() && action.is_none();
    let stale = || Err(Refusal::StaleRoster(roster.version));
    if part.roster_version < roster.version + u64::from(action.is_some()) {
        return stale();
    }
    if is_content && !roster.may_send(sender.user) {
        return Err(Refusal::Denied);
    }
    if may_be_outside && !part.shared.is_empty() {
        // It would be content of a user that may not send.
        return Err(Refusal::Invalid);
    }
    let is_stranger = |user: &&UserId| command.strangers.contains(user) && !roster.asks_to_join(**user);
    let strangers: Vec<UserId> =
        action.iter().flat_map(|action| action.added()).filter(is_stranger).copied().collect();
    if !strangers.is_empty() {
        return Err(Refusal::NoContact(strangers));
    }
    let mut next = roster.change(command.conversation(), sender.user, action, &command.recipients, seq)?;
    if next.version > roster.version && !next.has_device(sender.user, sender.installation) {
        let was_member = roster.has_device(sender.user, sender.installation);
        if !was_member && !publish.boxes.is_empty() {
            // A user that only asks to join says nothing to the members.
            return Err(Refusal::Invalid);
        }
        next.note_row(sender.installation, seq);
    }
    if part.roster_version != next.version {
        return stale();
    }
    if part.digest != next.digest {
        return Err(Refusal::Invalid);
    }
    Ok((next.version != roster.version).then_some(next))
}

/// Returns the roster of a conversation that is no group after a command, if the command changes it.
fn changed_members(state: &ConversationState, command: &Command) -> Option<Roster> {
    let skip = matches!(command.operation, Operation::Skip(_));
    let mut changed: Option<Vec<Member>> = None;
    for recipient in &command.recipients {
        let members = changed.as_ref().unwrap_or(&state.roster.members);
        let place = members.iter().position(|m| m.user == recipient.user);
        let is_same = |m: &Member| {
            m.list_version == recipient.list_version && m.installations == recipient.installations
        };
        // A skip adds no member: otherwise any device that skips a number could read the conversation.
        if place.map_or(skip, |place| is_same(&members[place])) {
            continue;
        }
        let member = Member::new(recipient.user, recipient.list_version, recipient.installations.clone());
        let members = changed.get_or_insert_with(|| state.roster.members.clone());
        match place {
            Some(place) => members[place] = member,
            None => members.push(member),
        }
    }
    changed.map(Roster::of_members)
}

fn message_row(
    command: &Command,
    publish: &Publish,
    before: &Roster,
    after: &Roster,
    time_us: u64,
) -> RowContent {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let commit_ms = time_us / 1000;
    let message = Message {
        id: publish.number.message_id,
        sender: command.sender,
        client_seq: publish.number.client_seq,
        prev: publish.number.prev,
        incarnation: publish.number.incarnation,
        audience: publish.audience.clone(),
        body: publish.body.clone(),
        sent_at: publish.sent_at.clamp(commit_ms.saturating_sub(DAY_MS), commit_ms),
        options: publish.options.clone(),
        group: publish.group.clone().map(|mut part| {
            part.lists.clear();
            if after.version != before.version {
                part.lists.clone_from(&command.recipients);
            }
            part
        }),
    };
    RowContent::Message { message: Arc::new(message), sealed: bytes::Bytes::new() }
}

/// Deduplication key of a message: conversation, sender and id.
pub(super) type IdKey = (crate::model::id::ConversationId, InstallationId, MessageId);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{LogPosition, RecipientDevices, Rules};
    use crate::model::id::{ConversationId, DeviceAddress, DeviceId, UserId};

    const ALICE: UserId = UserId::from_bytes([1; 16]);
    const BOB: UserId = UserId::from_bytes([2; 16]);

    fn device(user: UserId, n: u8) -> DeviceAddress {
        DeviceAddress { user, device: DeviceId::PRIMARY, installation: InstallationId::from_bytes([n; 16]) }
    }

    fn id(n: u8) -> MessageId {
        if n == 0 { MessageId::NIL } else { MessageId::from_bytes([n; 16]) }
    }

    fn next_position() -> LogPosition {
        static OFFSET: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        LogPosition { generation: 0, offset: OFFSET.fetch_add(1, std::sync::atomic::Ordering::Relaxed) }
    }

    /// Returns a publish of Alice's device to Bob. `n` is the message id, `prev` the id before it, and
    /// `list_version` the version of Bob's list.
    fn publish(client_seq: u64, n: u8, prev: u8, incarnation: u32, list_version: u64) -> Record {
        let number = SendPosition {
            conversation: ConversationId::direct(ALICE, BOB),
            message_id: id(n),
            client_seq,
            prev: id(prev),
            incarnation,
            generation: 1,
        };
        let boxes = vec![crate::model::envelope::DeviceBox {
            installation: device(BOB, 2).installation,
            data: vec![n].into(),
        }];
        let publish = Publish {
            number,
            first: false,
            audience: Vec::new(),
            body: vec![n].into(),
            boxes,
            excluded: Vec::new(),
            sent_at: 5,
            options: crate::model::message_options::MessageOptions::default(),
            group: None,
        };
        let recipient = |user, n, list_version| RecipientDevices {
            user,
            list_version,
            installations: vec![InstallationId::from_bytes([n; 16])],
        };
        let command = Command {
            sender: device(ALICE, 1),
            operation: Operation::Publish(publish),
            recipients: vec![recipient(ALICE, 1, 1), recipient(BOB, 2, list_version)],
            verdict: None,
            reply: None,
            rules: Rules::CURRENT,
            full: Vec::new(),
            withheld: Vec::new(),
            strangers: Vec::new(),
        };
        let position = next_position();
        Record { position, appended_us: 1000, command: Arc::new(command) }
    }

    /// Returns the state after these records were stored.
    fn after(records: &[Record]) -> ConversationState {
        records.iter().fold(ConversationState::default(), |state, record| {
            match decide(&state, record, None) {
                Decision::Store(_, commit) => changed(&state, &commit),
                other => panic!("{other:?}"),
            }
        })
    }

    fn changed(state: &ConversationState, commit: &Commit) -> ConversationState {
        let mut state = state.clone();
        state.apply(&commit.state);
        state
    }

    /// Marks a publish as never sent before.
    fn first(record: Record) -> Record {
        let mut command = Command::clone(&record.command);
        if let Operation::Publish(publish) = &mut command.operation {
            publish.first = true;
        }
        Record { command: Arc::new(command), ..record }
    }

    #[test]
    fn new_message_is_decided_independent_of_known_ids() {
        let state = after(&[publish(1, 1, 0, 0, 1)]);
        // A device makes a false declaration: the same id again, as a new message with the next number.
        let lie = first(publish(2, 1, 1, 0, 1));
        let alone = decide(&state, &lie, None);
        assert!(matches!(alone, Decision::Store(2, _)));
        assert_eq!(decide(&state, &lie, Some(1)), alone);
        // A late copy of a new message is not new.
        let late = first(publish(1, 1, 0, 0, 1));
        assert_eq!(decide(&state, &late, Some(1)), Decision::Repeat(1, None));
    }

    fn refusal(decision: Decision) -> Refusal {
        match decision {
            Decision::Refuse(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_device_gets_exactly_one_row_and_times_rise() {
        let first = publish(1, 1, 0, 0, 1);
        let state = after(std::slice::from_ref(&first));
        let Decision::Store(2, commit) = decide(&state, &publish(2, 2, 1, 0, 1), None) else { panic!() };
        let devices: Vec<_> = commit.inbox.iter().map(|(device, _)| *device).collect();
        assert_eq!(devices, vec![device(ALICE, 1).installation, device(BOB, 2).installation]);
        assert!(matches!(commit.inbox[0].1.content, RowContent::Own { client_seq: 2, .. }));
        assert!(matches!(commit.inbox[1].1.content, RowContent::Message { .. }));
        assert_eq!(
            (state.head.time_us, commit.state.head.time_us),
            (1000, 1001),
            "times rise although the log's clock does not"
        );
        assert!(!commit.inbox[1].1.joined, "only a device's first row is marked as joined");
    }

    #[test]
    fn deciding_twice_writes_the_same_bytes() {
        let state = after(&[publish(1, 1, 0, 0, 1)]);
        let record = publish(2, 2, 1, 0, 1);
        assert_eq!(decide(&state, &record, None), decide(&state, &record, None));
    }

    #[test]
    fn applied_record_changes_nothing_again() {
        let (early, first) = (publish(2, 2, 1, 0, 1), publish(1, 1, 0, 0, 1));
        let state = after(std::slice::from_ref(&first));
        // It was refused because it came before the first message. A replay must not accept it.
        assert_eq!(refusal(decide(&state, &early, None)), Refusal::Retry(0));
        assert_eq!(decide(&state, &first, Some(1)), Decision::Repeat(1, None));
        // A message of an earlier incarnation, with a number that came too early in this one: the message is
        // stored, but its number is not used up.
        let (again, next) = (publish(2, 1, 9, 1, 1), publish(1, 8, 0, 1, 1));
        assert_eq!(refusal(decide(&state, &again, Some(1))), Refusal::Expected(1));
        let Decision::Store(_, commit) = decide(&state, &next, None) else { panic!() };
        assert_eq!(refusal(decide(&changed(&state, &commit), &again, Some(1))), Refusal::Retry(0));
        // A newer owner may have stored the message: that must not change the decision.
        let second = publish(2, 2, 1, 0, 1);
        let alone = decide(&state, &second, None);
        assert_eq!(decide(&state, &second, Some(2)), alone);
    }

    #[test]
    fn numbers_are_taken_in_order_only() {
        let state = after(&[publish(1, 1, 0, 0, 1)]);
        assert_eq!(refusal(decide(&state, &publish(3, 3, 2, 0, 1), None)), Refusal::Expected(2));
        assert_eq!(refusal(decide(&state, &publish(1, 9, 0, 0, 1), None)), Refusal::Conflict);
        assert_eq!(decide(&state, &publish(1, 1, 0, 0, 1), Some(1)), Decision::Repeat(1, None));
    }

    #[test]
    fn number_with_another_prev_is_a_conflict() {
        let state = after(&[publish(1, 1, 0, 0, 1)]);
        let forked = publish(2, 2, 7, 0, 1);
        assert_eq!(refusal(decide(&state, &forked, None)), Refusal::Conflict);
    }

    #[test]
    fn new_incarnation_closes_the_old_one_and_keeps_seqs_of_resent_messages() {
        let state = after(&[publish(1, 1, 0, 0, 1)]);
        let Decision::Repeat(1, Some(commit)) = decide(&state, &publish(1, 1, 0, 1, 1), Some(1)) else {
            panic!()
        };
        assert!(commit.inbox.is_empty() && commit.state.head.seq == 1, "it uses up a number but no seq");
        let (state, late) = (changed(&state, &commit), publish(2, 2, 1, 0, 1));
        assert_eq!(refusal(decide(&state, &late, None)), Refusal::Superseded);
        assert!(matches!(decide(&state, &publish(2, 3, 1, 1, 1), None), Decision::Store(2, _)));
    }

    #[test]
    fn a_lower_list_version_than_seen_is_a_mismatch() {
        let state = after(&[publish(1, 1, 0, 0, 2)]);
        assert_eq!(refusal(decide(&state, &publish(2, 2, 1, 0, 1), None)), Refusal::Mismatch(vec![BOB]));
    }

    #[test]
    fn a_verdict_counts_only_if_the_message_is_not_stored() {
        let state = after(&[publish(1, 1, 0, 0, 1)]);
        let with = |mut record: Record| {
            let command = Command { verdict: Some(Refusal::Quota), ..Command::clone(&record.command) };
            record.command = Arc::new(command);
            record
        };
        assert_eq!(refusal(decide(&state, &with(publish(2, 2, 1, 0, 1)), None)), Refusal::Quota);
        let stored = with(publish(1, 1, 0, 0, 1));
        assert_eq!(decide(&state, &stored, Some(1)), Decision::Repeat(1, None));
    }

    fn skip(sender: DeviceAddress, client_seq: u64) -> Record {
        let number = SendPosition {
            conversation: ConversationId::direct(ALICE, BOB),
            message_id: id(99),
            client_seq,
            prev: MessageId::NIL,
            incarnation: 0,
            generation: 1,
        };
        let own =
            RecipientDevices { user: sender.user, list_version: 1, installations: vec![sender.installation] };
        let command = Command {
            sender,
            operation: Operation::Skip(number),
            recipients: vec![own],
            verdict: None,
            reply: None,
            rules: Rules::CURRENT,
            full: Vec::new(),
            withheld: Vec::new(),
            strangers: Vec::new(),
        };
        let position = next_position();
        Record { position, appended_us: 1000, command: Arc::new(command) }
    }

    #[test]
    fn skip_adds_no_member_to_a_conversation() {
        let mallory = device(UserId::from_bytes([3; 16]), 3);
        let state = after(&[publish(1, 1, 0, 0, 1)]);
        assert_eq!(refusal(decide(&state, &skip(mallory, 1), None)), Refusal::Denied);
        let empty = ConversationState::default();
        let Decision::Store(1, commit) = decide(&empty, &skip(mallory, 1), None) else { panic!() };
        assert_eq!(commit.state.roster, None, "the skip used up a number and added no member");
    }

    #[cfg(feature = "sim")]
    #[test]
    fn mutants_change_the_decision() {
        let state = after(&[publish(1, 1, 0, 0, 2)]);
        let newer = after(&[publish(1, 1, 0, 1, 1)]);
        let stores = |state: &ConversationState, record: &Record, mutant| {
            Mutant::with(Some(mutant), || matches!(decide(state, record, None), Decision::Store(..)))
        };
        assert!(stores(&state, &publish(2, 2, 7, 0, 2), Mutant::NoPrevLink));
        assert!(stores(&state, &publish(2, 2, 1, 0, 1), Mutant::StaleListAccepted));
        assert!(stores(&newer, &publish(2, 2, 1, 0, 1), Mutant::OldIncarnationAccepted));
    }
}
