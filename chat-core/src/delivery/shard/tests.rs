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
    let recipients = vec![recipient(ALICE, 1, 1), recipient(BOB, 2, list_version)];
    let command = Command::new(device(ALICE, 1), Operation::Publish(publish), recipients, Rules::CURRENT);
    let position = next_position();
    Record { position, appended_us: 1000, command: Arc::new(command) }
}

/// Returns the state after these records were stored.
fn after(records: &[Record]) -> ConversationState {
    records.iter().fold(ConversationState::default(), |state, record| match decide(&state, record, None) {
        Decision::Store(_, commit) => changed(&state, &commit),
        other => panic!("{other:?}"),
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
    let command = Command::new(sender, Operation::Skip(number), vec![own], Rules::CURRENT);
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

#[test]
fn skip_does_not_count_as_the_message_that_it_replaces() {
    let state = after(&[publish(1, 1, 0, 0, 1)]);
    let (skipped, given_up) = (skip(device(ALICE, 1), 2), publish(2, 99, 1, 0, 1));
    let Operation::Skip(number) = skipped.command.operation.clone() else { panic!() };
    let operation = Operation::Skip(SendPosition { prev: id(1), ..number });
    let command = Arc::new(Command { operation, ..Command::clone(&skipped.command) });
    let skipped = Record { command, ..skipped };
    let Decision::Store(2, commit) = decide(&state, &skipped, None) else { panic!() };
    assert_eq!(skipped.command.number().unwrap().message_id, given_up.command.number().unwrap().message_id);
    let key = |record: &Record| super::super::batch::id_key(record).unwrap();
    assert_ne!(key(&skipped), key(&given_up), "a copy of the store sends the message again");
    assert_eq!(commit.ids, [(device(ALICE, 1).installation, key(&skipped).2, 2)], "the skip may be repeated");
    let is_own = |row: &InboxRow| matches!(row.content, RowContent::Own { .. });
    assert!(!commit.inbox.iter().any(|(_, row)| is_own(row)), "its device does not take it for the message");
}

#[test]
fn sender_of_a_mailbox_skips_after_the_receiving_device_was_unlinked() {
    let (sender, gone) = (device(ALICE, 1), InstallationId::from_bytes([9; 16]));
    let conversation = ConversationId::mailbox(sender.installation, gone);
    let left = Member::new(BOB, 3, vec![device(BOB, 2).installation]);
    let state = |senders: &[InstallationId]| ConversationState {
        roster: Roster::of_members(vec![left.clone()]),
        senders: senders.iter().map(|one| (*one, SenderState::default())).collect(),
        ..ConversationState::default()
    };
    let record = skip(sender, 1);
    let Operation::Skip(number) = record.command.operation.clone() else { panic!() };
    let operation = Operation::Skip(SendPosition { conversation, ..number });
    let command = Arc::new(Command { operation, ..Command::clone(&record.command) });
    let record = Record { command, ..record };
    assert!(matches!(decide(&state(&[sender.installation]), &record, None), Decision::Store(..)));
    assert_eq!(refusal(decide(&state(&[]), &record, None)), Refusal::Denied, "another device");
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
