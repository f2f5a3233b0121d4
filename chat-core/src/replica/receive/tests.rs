use super::*;
use crate::model::envelope::{Publish, SendPosition};
use crate::model::id::{DeviceAddress, DeviceId, InstallationId, StoreEpoch, UserId};
use crate::model::server_frame::{Challenge, ServerFrame, Welcome};
use crate::replica::recovery::LAST_WORD_MS;
use crate::replica::{Draft, Ephemeral, Input, OutboxEntrySnapshot, Recipient, Replica, ReplicaSnapshot};

/// Returns the outbox length of a device that numbered a message again in its second incarnation, after
/// the row of the first incarnation arrived.
fn left_after_the_old_row() -> usize {
    let user = UserId::from_bytes([1; 16]);
    let installation = InstallationId::from_bytes([1; 16]);
    let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
    let (id, conversation) = (MessageId::from_bytes([7; 16]), ConversationId::own(user));
    let number = SendPosition {
        conversation,
        message_id: id,
        client_seq: 1,
        prev: MessageId::NIL,
        incarnation: 1,
        generation: 1 << 32,
    };
    let (audience, boxes) = (Vec::new(), Vec::new());
    let publish = Publish {
        number,
        first: false,
        audience,
        body: bytes::Bytes::new(),
        boxes,
        excluded: Vec::new(),
        sent_at: 0,
        options: crate::model::message_options::MessageOptions::default(),
        group: None,
    };
    let draft = Draft::new(id, Recipient::User(user), bytes::Bytes::new());
    let snapshot = ReplicaSnapshot {
        incarnation: 1,
        generation: 1 << 32,
        epoch: Some(StoreEpoch::from_bytes([1; 16])),
        outbox: vec![OutboxEntrySnapshot {
            draft,
            publish: Some(publish),
            skip: false,
            attempted: true,
            bound: false,
        }],
        ..ReplicaSnapshot::new(device)
    };
    let now = Instant::from_millis(0);
    let mut replica = Replica::new(now, snapshot, 1);
    let challenge = Challenge::example();
    let welcome = Welcome { incarnation: 1, ..Welcome::example() };
    let content = RowContent::Own { message_id: id, client_seq: 3, incarnation: 0 };
    let old = InboxRow { conversation, seq: 1, time_us: 1, joined: true, content };
    for input in [
        Input::Flush,
        Input::Connected,
        Input::Frame(ServerFrame::Challenge(challenge)),
        Input::Frame(ServerFrame::Welcome(welcome)),
        Input::Frame(ServerFrame::Deliver(vec![old], true)),
    ] {
        replica.step(now, input, &mut Vec::new());
    }
    replica.outbox_len()
}

#[test]
fn a_number_of_this_life_is_used_up_before_its_message_is_forgotten() {
    assert_eq!(left_after_the_old_row(), 1);
    #[cfg(feature = "sim")]
    #[cfg(feature = "sim")]
    assert_eq!(Mutant::with(Some(Mutant::OwnRowFreesNumber), left_after_the_old_row), 0, "the test can fail");
}

#[test]
fn row_of_unknown_kind_is_kept_and_acknowledged() {
    let user = UserId::from_bytes([1; 16]);
    let installation = InstallationId::from_bytes([1; 16]);
    let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
    let conversation = ConversationId::own(user);
    let epoch = Some(StoreEpoch::from_bytes([1; 16]));
    let now = Instant::from_millis(0);
    let mut replica = Replica::new(now, ReplicaSnapshot { epoch, ..ReplicaSnapshot::new(device) }, 1);
    let bytes = bytes::Bytes::from_static(b"of a later release");
    let row = |seq, content| InboxRow { conversation, seq, time_us: seq, joined: seq == 1, content };
    let unknown = row(1, RowContent::Unknown(bytes.clone()));
    let skip = row(2, RowContent::Empty { reason: crate::model::envelope::EmptyReason::Skip, from: 2 });
    let challenge = Challenge::example();
    let mut outputs = Vec::new();
    for input in [
        Input::Flush,
        Input::Connected,
        Input::Frame(ServerFrame::Challenge(challenge)),
        Input::Frame(ServerFrame::Welcome(Welcome { prekeys: 100, ..Welcome::example() })),
        Input::Frame(ServerFrame::Deliver(vec![unknown, skip], true)),
        Input::Flush,
    ] {
        replica.step(now, input, &mut outputs);
    }
    let kept = outputs.iter().any(|output| match output {
        Output::Commit(changes, _) => changes.list.contains(&Change::Unknown(conversation, 1, bytes.clone())),
        _ => false,
    });
    assert!(kept, "{outputs:?}");
    assert_eq!(replica.cursor(conversation), 2, "the row is acknowledged, and the next one is received");
}

/// A list of one device, which belongs to the account with this key.
fn own_list(user: UserId) -> crate::model::device_list::SignedDeviceList {
    use ed25519_dalek::{Signer, SigningKey};
    let key = SigningKey::from_bytes(&[7; 32]);
    let entry = crate::model::device_list::DeviceEntry::new(
        DeviceId::PRIMARY,
        [3; 32],
        crate::model::suite::SuiteKey::signal(vec![3; 33]),
    );
    let list = crate::model::device_list::DeviceList::first(user, 0, vec![entry]);
    let encoded = list.encode();
    let signature = key.sign(&crate::model::device_list::DeviceList::transcript(&encoded));
    let signature = signature.to_bytes().to_vec().into();
    crate::model::device_list::SignedDeviceList::verify(encoded, key.verifying_key().to_bytes(), signature)
        .unwrap()
}

fn message(sender: DeviceAddress, conversation: ConversationId) -> InboxRow {
    let message = crate::model::envelope::Message {
        id: MessageId::from_bytes([9; 16]),
        sender,
        client_seq: 1,
        prev: MessageId::NIL,
        incarnation: 0,
        audience: Vec::new(),
        body: bytes::Bytes::new(),
        sent_at: 0,
        options: crate::model::message_options::MessageOptions::default(),
        group: None,
    };
    let content = RowContent::Message { message: message.into(), sealed: bytes::Bytes::new() };
    InboxRow { conversation, seq: 1, time_us: 1, joined: true, content }
}

/// Returns the ids of the requests for a user's list in these outputs.
fn asked(outputs: &[Output], user: UserId) -> Vec<u64> {
    let asked = outputs.iter().filter_map(|output| match output {
        Output::Send(ClientFrame::Request(id, crate::model::client_frame::Request::Lists(users)))
            if *users == [user] =>
        {
            Some(*id)
        }
        _ => None,
    });
    asked.collect()
}

#[test]
fn list_requested_before_a_row_arrived_is_not_used_for_its_sender() {
    let (own, other) = (UserId::from_bytes([1; 16]), UserId::from_bytes([2; 16]));
    let list = own_list(own);
    let device = list.list().addresses().next().unwrap();
    let snapshot =
        ReplicaSnapshot { epoch: Some(StoreEpoch::from_bytes([1; 16])), ..ReplicaSnapshot::new(device) };
    let now = Instant::from_millis(0);
    let mut replica = Replica::new(now, snapshot, 1);
    let mut step = |input| {
        let mut outputs = Vec::new();
        replica.step(now, input, &mut outputs);
        outputs
    };
    let answer = |id, lists| {
        let answer =
            crate::model::server_frame::Response { lists, ..crate::model::server_frame::Response::default() };
        Input::Frame(ServerFrame::Response(id, Box::new(answer)))
    };
    let challenge = Challenge::example();
    step(Input::Flush);
    step(Input::Connected);
    step(Input::Frame(ServerFrame::Challenge(challenge)));
    let welcome = Welcome { list_version: 1, prekeys: 100, ..Welcome::example() };
    let first = asked(&step(Input::Frame(ServerFrame::Welcome(welcome))), own);
    // The first row is from an unknown user, and the answer with the list of that user is delayed.
    let stranger = DeviceAddress { user: other, ..device };
    let head = message(stranger, ConversationId::direct(own, other));
    let about_other = asked(&step(Input::Frame(ServerFrame::Deliver(vec![head], true))), other);
    step(answer(first[0], vec![list.clone()]));
    // Meanwhile a device is linked and sends a message.
    let linked = DeviceAddress { installation: InstallationId::from_bytes([8; 16]), ..device };
    let row = message(linked, ConversationId::own(own));
    step(Input::Frame(ServerFrame::Deliver(vec![row], true)));
    let outputs = step(answer(about_other[0], Vec::new()));
    assert!(outputs.iter().any(|output| matches!(output, Output::Open(_, None))), "{outputs:?}");
    let opened = Opened::unreadable(Unreadable::UnknownDevice);
    let outputs = step(Input::Opened(opened));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Open(..))), "{outputs:?}");
    assert_eq!(asked(&outputs, own).len(), 1, "one new list request: {outputs:?}");
}

/// Returns the ids of the cursor requests in these outputs.
fn asked_for_cells(outputs: &[Output]) -> Vec<u64> {
    let asked = outputs.iter().filter_map(|output| match output {
        Output::Send(ClientFrame::Request(id, Request::Cursors)) => Some(*id),
        _ => None,
    });
    asked.collect()
}

/// Whether a device that keeps missing a row recovers when the server reports this acknowledged seq.
fn recovers(acked: Seq) -> bool {
    let user = UserId::from_bytes([1; 16]);
    let installation = InstallationId::from_bytes([1; 16]);
    let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
    let snapshot =
        ReplicaSnapshot { epoch: Some(StoreEpoch::from_bytes([1; 16])), ..ReplicaSnapshot::new(device) };
    let mut replica = Replica::new(Instant::from_millis(0), snapshot, 1);
    let mut step = |at, input| {
        let mut outputs = Vec::new();
        replica.step(Instant::from_millis(at), input, &mut outputs);
        outputs
    };
    let conversation = ConversationId::own(user);
    let row = || {
        let content = RowContent::Empty { reason: crate::model::envelope::EmptyReason::Skip, from: 3 };
        InboxRow { conversation, seq: 3, time_us: 3, joined: false, content }
    };
    let deliver = |rows, caught_up| Input::Frame(ServerFrame::Deliver(rows, caught_up));
    let challenge = Challenge::example();
    step(0, Input::Flush);
    step(0, Input::Connected);
    step(0, Input::Frame(ServerFrame::Challenge(challenge)));
    step(0, Input::Frame(ServerFrame::Welcome(Welcome { prekeys: 100, ..Welcome::example() })));
    assert!(asked_for_cells(&step(0, deliver(vec![row()], false))).is_empty(), "row may be in transit");
    let late = DOUBT_MS + 1;
    assert!(asked_for_cells(&step(late, deliver(vec![row()], false))).is_empty(), "not caught up");
    step(late, deliver(Vec::new(), true));
    let asked = asked_for_cells(&step(late, deliver(vec![row()], false)));
    assert_eq!(asked.len(), 1, "the row is missing after the catch-up");
    let cursors = vec![(conversation, crate::model::envelope::InboxCursor { acked, tail: 3 })];
    let answer = Box::new(crate::model::server_frame::Response {
        cursors,
        ..crate::model::server_frame::Response::default()
    });
    step(late, Input::Frame(ServerFrame::Response(asked[0], answer)));
    // A recovery begins with the same request.
    !asked_for_cells(&step(late + LAST_WORD_MS, Input::Tick)).is_empty()
}

#[test]
fn opened_store_checks_once_whether_a_copy_acknowledged_more() {
    let installation = InstallationId::from_bytes([1; 16]);
    let device = DeviceAddress { user: UserId::from_bytes([1; 16]), device: DeviceId::PRIMARY, installation };
    let conversation = ConversationId::own(device.user);
    let known = crate::replica::ConversationSnapshot {
        cursor: 2,
        ..crate::replica::ConversationSnapshot::new(conversation)
    };
    let received = ReplicaSnapshot { conversations: vec![known], ..ReplicaSnapshot::new(device) };
    let nothing = ReplicaSnapshot::new(device);
    // Without a received row, rows from before this device joined count as acknowledged.
    for (snapshot, acked, recovers) in
        [(&received, 2, false), (&received, 3, true), (&nothing, 2, false), (&nothing, 3, true)]
    {
        let mut replica = Replica::new(Instant::from_millis(0), snapshot.clone(), 1);
        let mut step = |at, input| {
            let mut outputs = Vec::new();
            replica.step(Instant::from_millis(at), input, &mut outputs);
            outputs
        };
        let challenge = Challenge::example();
        step(0, Input::Flush);
        step(0, Input::Connected);
        step(0, Input::Frame(ServerFrame::Challenge(challenge)));
        step(0, Input::Frame(ServerFrame::Welcome(Welcome { prekeys: 100, ..Welcome::example() })));
        step(0, Input::Frame(ServerFrame::Deliver(Vec::new(), true)));
        let asked = asked_for_cells(&step(crate::model::limits::HEARTBEAT_MS, Input::Tick));
        let cursors = vec![(conversation, crate::model::envelope::InboxCursor { acked, tail: 3 })];
        let answer = Box::new(crate::model::server_frame::Response {
            cursors,
            ..crate::model::server_frame::Response::default()
        });
        let at = crate::model::limits::HEARTBEAT_MS;
        step(at, Input::Frame(ServerFrame::Response(asked[0], answer)));
        let at_once = step(at + LAST_WORD_MS - 1, Input::Tick);
        assert!(asked_for_cells(&at_once).is_empty(), "the last ack of the copy may be in transit");
        let outputs = step(at + LAST_WORD_MS, Input::Tick);
        assert_eq!(!asked_for_cells(&outputs).is_empty(), recovers, "{outputs:?}");
        assert!(recovers || asked_for_cells(&step(2 * at, Input::Tick)).is_empty(), "asked twice");
    }
}

#[test]
fn device_recovers_when_the_server_counts_a_missing_row_as_acknowledged() {
    assert!(recovers(2) && recovers(1), "seq 1 is acknowledged and missing");
    assert!(!recovers(0), "seq 1 is not acknowledged: it waits in the inbox");
}

#[test]
fn device_has_caught_up_once_the_rows_are_durable() {
    let installation = InstallationId::from_bytes([1; 16]);
    let user = UserId::from_bytes([1; 16]);
    let device = DeviceAddress { user, device: DeviceId::PRIMARY, installation };
    let snapshot =
        ReplicaSnapshot { epoch: Some(StoreEpoch::from_bytes([1; 16])), ..ReplicaSnapshot::new(device) };
    let mut replica = Replica::new(Instant::from_millis(0), snapshot, 1);
    let mut step = |input| {
        let mut outputs = Vec::new();
        replica.step(Instant::from_millis(0), input, &mut outputs);
        outputs
    };
    let reports = |outputs: &[Output]| outputs.contains(&Output::Event(Ephemeral::CaughtUp));
    step(Input::Flush);
    step(Input::Connected);
    step(Input::Frame(ServerFrame::Challenge(Challenge::example())));
    step(Input::Frame(ServerFrame::Welcome(Welcome { prekeys: 100, ..Welcome::example() })));
    let content = RowContent::Empty { reason: crate::model::envelope::EmptyReason::Skip, from: 1 };
    let conversation = ConversationId::own(user);
    let row = InboxRow { conversation, seq: 1, time_us: 1, joined: true, content };
    assert!(!reports(&step(Input::Frame(ServerFrame::Deliver(vec![row], true)))), "it is not durable");
    let outputs = step(Input::Flush);
    let ticket = outputs.iter().find_map(|output| match output {
        Output::Commit(_, ticket) => Some(*ticket),
        _ => None,
    });
    assert!(!reports(&outputs));
    assert!(reports(&step(Input::Committed(ticket.unwrap()))));
    assert!(!reports(&step(Input::Frame(ServerFrame::Deliver(Vec::new(), true)))), "once");
}
