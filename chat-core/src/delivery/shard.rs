//! Decisions of a shard about commands: a pure function, so that two owners that overlap, and every replay of
//! the log, write the same bytes.

use crate::backend::{
    Command, Commit, ConversationState, FeedChange, Head, Member, Operation, Record, Roster, Rules,
    SenderState, StateChange, Subscription,
};
use crate::model::envelope::{EmptyReason, InboxRow, Message, Publish, Refusal, RowContent, SendPosition};
use crate::model::group::{GroupAction, GroupChange};
use crate::model::id::{
    ConversationId, ConversationKind, DeviceAddress, InstallationId, MessageId, Seq, UserId,
};
use crate::mutant::Mutant;

use std::borrow::Cow;
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
    /// A device begins or stops to read a channel. The record gets no seq.
    Subscribe(Commit),
    /// The record changes nothing, and its device gets no answer.
    Ignore,
    /// The record is refused. The state does not change.
    Refuse(Refusal),
}

/// Decides about a record. `found` is the seq at which the sender's message with this id is stored.
///
/// A record that the state has already applied changes nothing: a replay of the log, and an owner that was
/// replaced but continues, decide it again in a later state. For the same reason a message counts as found
/// only if its seq is at or below the head of *this* state.
pub fn decide(state: &ConversationState, record: &Record, found: Option<Seq>) -> Decision {
    let number = match &record.command.operation {
        Operation::Publish(publish) => publish.number,
        Operation::Skip(number) => *number,
        Operation::Subscribe(subscription) => return subscribe(state, record, subscription),
    };
    let decision = decide_anew(state, record, number, found);
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
fn decide_anew(
    state: &ConversationState,
    record: &Record,
    number: SendPosition,
    found: Option<Seq>,
) -> Decision {
    let command = &*record.command;
    let known = state.senders.get(&command.sender.installation).copied().unwrap_or_default();
    // Ignore ids that only this batch has read, so that two owners, and every replay, decide the same.
    let found = if Mutant::NoDedupe.is_active() || is_new(known, command, &number) { None } else { found };
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
        return Decision::Repeat(seq, Some(commit(record, &number, next_state(state, record, number))));
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
pub(super) fn is_new(last: SenderState, command: &Command, number: &SendPosition) -> bool {
    let first = matches!(&command.operation, Operation::Publish(publish) if publish.first);
    first && (is_next(last, number) || Mutant::FirstIsEnough.is_active())
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
        Ok(ConversationKind::Group | ConversationKind::Channel) => {
            state.roster.has_device(sender.user, sender.installation)
        }
        _ => false,
    }
}

/// Decides about a subscription to a channel. It only changes the readers of the feed, and no seq, so a repeated one is harmless. A
/// reader gets an empty row for the seqs that it may not read when it reads its inbox.
fn subscribe(state: &ConversationState, record: &Record, subscription: &Subscription) -> Decision {
    let (sender, channel) = (record.command.sender, subscription.channel);
    let (head, roster) = (&state.head, &state.roster);
    let admits = || {
        let proof = subscription.proof.as_ref();
        roster.is_admitted(channel, sender.user, proof) || Mutant::SubscribeUnchecked.is_active()
    };
    // The roster says what the device of a member reads.
    let is_member = roster.has_device(sender.user, sender.installation);
    let is_channel = channel.is_channel() && head.is_feed && roster.version > 0;
    if head.has_applied(record.position) || !is_channel || is_member || subscription.begins && !admits() {
        return Decision::Ignore;
    }
    let time_us = record.appended_us.max(head.time_us + 1);
    let rules = record.command.rules.max(head.rules);
    let next = Head { position: record.position, time_us, rules, ..*head };
    let mut made = Commit::of(
        channel,
        StateChange { head: next, roster: None, senders: std::collections::BTreeMap::new() },
    );
    made.feeds = vec![FeedChange { device: sender.installation, seq: head.seq, joins: subscription.begins }];
    Decision::Subscribe(made)
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

fn commit(record: &Record, number: &SendPosition, state: StateChange) -> Commit {
    let generations = vec![(record.command.sender.installation, number.generation)];
    Commit { generations, ..Commit::of(number.conversation, state) }
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
    let is_group = number.conversation.has_roster();
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
        _ => (RowContent::Empty { reason: EmptyReason::Skip, from: seq }, &[][..], &[][..]),
    };
    let own = match &command.operation {
        Operation::Publish(_) => RowContent::Own {
            message_id: number.message_id,
            client_seq: number.client_seq,
            incarnation: number.incarnation,
        },
        _ => content.clone(),
    };
    let boxes: HashMap<InstallationId, &bytes::Bytes> =
        boxes.iter().map(|one| (one.installation, &one.data)).collect();
    // The message with which a group becomes a feed still has a row for each device.
    let is_feed = state.head.is_feed;
    let is_large = || is_above(command.feed_devices, roster) || number.conversation.is_channel();
    let becomes_feed = is_group && !is_feed && is_large();
    next.head.is_feed = is_feed || becomes_feed;
    let reads_history = |installation: &InstallationId| {
        is_feed && known.as_ref().is_none_or(|known| known.contains(installation))
    };
    let members = roster.members.iter().map(|member| (member, true));
    let others = removed.chain(&outside).map(|member| (member, false));
    // Most messages of a feed have a row for no device.
    let has_rows = !is_feed || known.is_some() || !boxes.is_empty() || !excluded.is_empty();
    let mut inbox = Vec::with_capacity(if has_rows { roster.members.len() } else { 1 });
    for (member, is_member) in members.filter(|_| has_rows).chain(others) {
        for installation in &member.installations {
            let is_new = known.as_ref().is_some_and(|known| !known.contains(installation));
            let has_own_content = || boxes.contains_key(installation) || excluded.contains(installation);
            if is_member && reads_history(installation) && !has_own_content() {
                continue;
            }
            // The readers of a channel are more than its members: where they join is known when they read.
            let is_new = is_new && !(is_member && number.conversation.is_channel());
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
    let mut feeds = feed_changes(&state.roster, roster, seq, is_feed, becomes_feed);
    if number.conversation.is_channel() && !Mutant::RemovedReaderStays.is_active() {
        let ends = |device: &DeviceAddress| FeedChange { device: device.installation, seq, joins: false };
        feeds.extend(command.removed.iter().map(ends));
    }
    let sender_reads =
        reads_history(&sender.installation) && roster.has_device(sender.user, sender.installation);
    let mut made = commit(record, &number, next);
    (made.inbox, made.feeds) = (inbox, feeds);
    let sender = command.sender.installation;
    let has_row = sender_reads || made.inbox.iter().any(|(installation, _)| *installation == sender);
    if !mailbox && !has_row {
        // A skip in a conversation without members: the sender's own cursor still gets its row.
        let first = state.senders.get(&sender).is_none_or(|known| *known == SenderState::default());
        made.inbox.push((sender, row(first, own)));
    }
    made.history.push(row(false, content));
    made.ids.extend(command.dedupe_id().map(|id| (command.sender.installation, id, seq)));
    if let Operation::Publish(publish) = &command.operation
        && let Some(deletion) = &publish.options.deletion
        && made.state.head.rules >= Rules::GROUPS
        && deletion.seq < seq
        && !Mutant::DeletionKept.is_active()
    {
        made.deleted.push(deletion.seq);
    }
    Decision::Store(seq, made)
}

/// Returns whether a roster has more devices than the number at which a group becomes a feed.
fn is_above(feed_devices: u32, roster: &Roster) -> bool {
    feed_devices > 0 && roster.installations().nth(feed_devices as usize).is_some()
}

/// Returns the devices that begin or stop to read a feed with the message at a seq. All begin when the group becomes one.
fn feed_changes(
    before: &Roster,
    after: &Roster,
    seq: Seq,
    is_feed: bool,
    becomes_feed: bool,
) -> Vec<FeedChange> {
    if becomes_feed {
        let seq = seq + u64::from(Mutant::SwitchLosesSeq.is_active());
        let change = |device| FeedChange { device, seq, joins: true };
        return after.installations().map(change).collect();
    }
    let change = |joins| move |device| FeedChange { device, seq, joins };
    if !is_feed || before.version == after.version {
        return Vec::new();
    }
    let (old, new): (HashSet<_>, HashSet<_>) =
        (before.installations().collect(), after.installations().collect());
    let joined = after.installations().filter(|device| !old.contains(device)).map(change(true));
    let is_gone = |device: &InstallationId| !new.contains(device) && !Mutant::LeaverStillFed.is_active();
    let left = before.installations().filter(is_gone).map(change(false));
    joined.chain(left).collect()
}

/// Returns the roster after a command, if the command changes it.
fn changed_roster(state: &ConversationState, command: &Command, seq: Seq) -> Result<Option<Roster>, Refusal> {
    let Operation::Publish(publish) = &command.operation else {
        // A skip changes no group.
        return Ok(if command.conversation().has_roster() { None } else { changed_members(state, command) });
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
    let lists = &command.recipients;
    // Most messages change nothing: they do not copy a roster of thousands of devices.
    let mut next = match action {
        None if lists.is_empty() => Cow::Borrowed(roster),
        _ => Cow::Owned(roster.change(command.conversation(), sender.user, action, lists, seq)?),
    };
    if next.version > roster.version && !next.has_device(sender.user, sender.installation) {
        let was_member = roster.has_device(sender.user, sender.installation);
        if !was_member && !publish.boxes.is_empty() {
            // A user that only asks to join says nothing to the members.
            return Err(Refusal::Invalid);
        }
        next.to_mut().note_row(sender.installation, seq);
    }
    if part.roster_version != next.version {
        return stale();
    }
    if part.digest != next.digest {
        return Err(Refusal::Invalid);
    }
    Ok((next.version != roster.version).then(|| next.into_owned()))
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
mod tests;
