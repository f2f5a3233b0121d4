use super::window::{MIN_WINDOW, START_WINDOW};
use super::*;
use crate::model::client_frame::GroupReceipt;
use crate::model::envelope::{Publish, SendPosition};
use crate::model::id::{ConversationId, DeviceId, InstallationId, MessageId};
use crate::model::limits::{PAGE_ROWS, WINDOW_BYTES};

/// The limit of a page until the speed of the device is known.
const LIMIT: PageLimit = PageLimit { bytes: START_WINDOW, ..PageLimit::MAX };

fn page_of(rows: Vec<InboxRow>) -> InboxPage {
    InboxPage { has_more: LIMIT.is_reached(&rows), rows }
}

/// Returns the rows of all frames.
fn delivered(outputs: &[Output]) -> Vec<InboxRow> {
    let frames = outputs.iter().map(|output| match output {
        Output::Send(ServerFrame::Deliver(rows, _)) => rows.clone(),
        _ => Vec::new(),
    });
    frames.flatten().collect()
}

fn live() -> Session {
    opened_until(None)
}

/// Returns a session whose token expires at this time.
fn opened_until(expires_at: Option<Instant>) -> Session {
    let device = DeviceAddress {
        user: UserId::from_bytes([1; 16]),
        device: DeviceId::PRIMARY,
        installation: InstallationId::from_bytes([1; 16]),
    };
    let welcome = Welcome::example();
    let mut session = Session::new(Instant::from_millis(0));
    let admitted = Input::Admitted { device, welcome, expires_at };
    session.step(Instant::from_millis(0), admitted, &mut Vec::new());
    session
}

fn message() -> RowContent {
    let message = crate::model::envelope::Message {
        id: crate::model::id::MessageId::from_bytes([9; 16]),
        sender: DeviceAddress {
            user: UserId::from_bytes([2; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([2; 16]),
        },
        client_seq: 1,
        prev: crate::model::id::MessageId::NIL,
        incarnation: 0,
        audience: Vec::new(),
        body: bytes::Bytes::new(),
        sent_at: 0,
        options: crate::model::message_options::MessageOptions::default(),
        group: None,
    };
    RowContent::Message { message: message.into(), sealed: bytes::Bytes::new() }
}

/// Returns a message row with this seq.
fn row(seq: u64) -> InboxRow {
    let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
    InboxRow { conversation, seq, time_us: seq, joined: false, content: message() }
}

/// Returns a row with 4,000 bytes of content.
fn large_row(seq: u64) -> InboxRow {
    let content = RowContent::Unknown(vec![0; 4000].into());
    InboxRow { content, ..row(seq) }
}

fn said(session: &mut Session, at_ms: u64, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    session.step(Instant::from_millis(at_ms), input, &mut out);
    out
}

#[test]
fn typing_is_passed_on_once_per_three_seconds_and_conversation() {
    let mut session = live();
    let conversation = |n| ConversationId::own(UserId::from_bytes([n; 16]));
    let mut passed =
        |at, n| !said(&mut session, at, Input::Frame(ClientFrame::Typing(conversation(n)))).is_empty();
    assert!(passed(0, 1) && !passed(2999, 1) && passed(2999, 2) && passed(3000, 1));
    assert_eq!((0..1000).filter(|n| passed(10_000, *n as u8)).count(), 256, "one per conversation");
}

#[test]
fn typing_in_a_group_reaches_only_devices_that_look_at_it() {
    let group = |n| ConversationId::from_bytes(std::array::from_fn(|i| if i == 0 { 0x14 } else { n }));
    let user = UserId::from_bytes([9; 16]);
    let direct = ConversationId::direct(user, UserId::from_bytes([8; 16]));
    let hears = |session: &mut Session, id| {
        let hint = SessionEvent::Hint(Hint::Typing(id, user));
        !said(session, 0, Input::Events(vec![hint])).is_empty()
    };
    let looks_at = |session: &mut Session, id| {
        said(session, 0, Input::Frame(ClientFrame::OpenConversation(id)));
    };
    let heard = || {
        let mut session = live();
        let mut heard = vec![hears(&mut session, group(1)), hears(&mut session, direct)];
        looks_at(&mut session, Some(group(1)));
        heard.extend([hears(&mut session, group(1)), hears(&mut session, group(2))]);
        looks_at(&mut session, None);
        heard.push(hears(&mut session, group(1)));
        heard
    };
    assert_eq!(heard(), [false, true, true, false, false]);
    #[cfg(feature = "sim")]
    assert_ne!(Mutant::with(Some(Mutant::TypingToAll), heard), heard(), "mutant undetected");
}

#[test]
fn receipts_in_groups_are_limited() {
    let mut session = live();
    let conversation = ConversationId::from_bytes([0x14; 17]);
    let receipt = GroupReceipt { conversation, delivered: 1, read: 0, to: Vec::new() };
    let mut passed = |at| {
        let frame = Input::Frame(ClientFrame::GroupReceipt(receipt.clone()));
        !said(&mut session, at, frame).is_empty()
    };
    assert_eq!((0..100).filter(|_| passed(5000)).count(), 16);
    assert!(!passed(5999) && passed(6000));
}

#[test]
fn closes_when_the_token_expires() {
    let closed = |outputs: Vec<Output>| {
        let close = ServerFrame::Close { reason: CloseReason::Unauthorized, retry_after: 0 };
        outputs == [Output::Send(close), Output::Close(CloseReason::Unauthorized)]
    };
    let heartbeat = || Input::Frame(ClientFrame::Heartbeat);
    let session = || {
        let mut session = opened_until(Some(Instant::from_millis(90_000)));
        assert!(!closed(said(&mut session, 60_000, heartbeat())), "the token is valid");
        said(&mut session, 60_000, Input::Page(InboxPosition::START, InboxPage::default()));
        assert_eq!(session.deadline(), Some(Instant::from_millis(90_000)), "before the idle timeout");
        assert!(said(&mut session, 89_999, Input::Tick).is_empty());
        session
    };
    assert!(closed(said(&mut session(), 90_000, Input::Tick)));
    // A device that always has a frame ready delays the tick: its frame closes the session instead.
    assert!(closed(said(&mut session(), 90_000, heartbeat())));
    // An event is delivered, because its row may be the answer of a send.
    let outputs = said(&mut session(), 90_000, Input::Events(vec![SessionEvent::Row(row(1))]));
    assert!(matches!(&outputs[..], [Output::Send(ServerFrame::Deliver(..)), _, Output::Close(_)]));
    let mut replaced = session();
    let outputs =
        said(&mut replaced, 90_000, Input::Events(vec![SessionEvent::Closed(CloseReason::Replaced)]));
    assert!(matches!(&outputs[..], [_, Output::Close(CloseReason::Replaced)]), "closes once");
}

#[test]
fn acks_are_coalesced_and_flushed_before_a_read_and_at_the_end() {
    let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
    let of = |seq| AckUpTo { conversation, seq };
    let ack = |seq, generation| {
        let store_epoch = Welcome::example().store_epoch;
        Input::Frame(ClientFrame::Ack { acks: vec![of(seq)], store_epoch, generation })
    };
    let caught_up =
        |session: &mut Session| said(session, 0, Input::Page(InboxPosition::START, InboxPage::default()));
    let mut session = live();
    caught_up(&mut session);
    assert!(said(&mut session, 0, ack(1, 7)).is_empty() && said(&mut session, 900, ack(3, 8)).is_empty());
    assert!(said(&mut session, 950, ack(2, 8)).is_empty(), "acks are cumulative");
    assert_eq!(session.deadline(), Some(Instant::from_millis(1000)));
    assert_eq!(said(&mut session, 1000, Input::Tick), vec![Output::Ack(vec![of(3)], 8)]);
    assert_eq!(said(&mut session, 2000, Input::Tick), vec![]);
    // Acks of made-up conversations are flushed once there are more than the window has rows.
    let acks = (0..=WINDOW_ROWS).map(|n| {
        let mut id = [0; 17];
        id[..8].copy_from_slice(&n.to_be_bytes());
        AckUpTo { conversation: ConversationId::from_bytes(id), seq: 1 }
    });
    let store_epoch = Welcome::example().store_epoch;
    let many = ClientFrame::Ack { acks: acks.collect(), store_epoch, generation: 8 };
    let outputs = said(&mut session, 2000, Input::Frame(many));
    assert!(matches!(&outputs[..], [Output::Ack(acks, 8)] if acks.len() == WINDOW_ROWS + 1));
    said(&mut session, 2000, ack(4, 9));
    let outputs = said(&mut session, 2001, Input::Lagged);
    assert_eq!(outputs, vec![Output::Ack(vec![of(4)], 9), Output::Read(InboxPosition::START, LIMIT)]);
    said(&mut session, 2002, ack(5, 10));
    assert_eq!(said(&mut session, 2003, Input::Gone), vec![Output::Ack(vec![of(5)], 10)]);
    let replaced = || Input::Events(vec![SessionEvent::Closed(CloseReason::Replaced)]);
    for (end, outputs) in
        [(Input::Drain(0), true), (Input::Acked { too_high: true }, true), (replaced(), false)]
    {
        let mut session = live();
        said(&mut session, 0, ack(1, 1));
        let out = said(&mut session, 1, end);
        assert_eq!(out.first() == Some(&Output::Ack(vec![of(1)], 1)), outputs, "{out:?}");
        assert_eq!(said(&mut session, 2, Input::Gone), vec![]);
    }
}

#[test]
fn generation_of_an_uncommitted_message_reaches_the_store() {
    let mut session = live();
    let number = SendPosition {
        conversation: ConversationId::own(UserId::from_bytes([1; 16])),
        message_id: MessageId::NIL,
        client_seq: 1,
        prev: MessageId::NIL,
        incarnation: 0,
        generation: 7,
    };
    let publish = Publish {
        number,
        first: true,
        audience: Vec::new(),
        body: bytes::Bytes::new(),
        boxes: Vec::new(),
        excluded: Vec::new(),
        sent_at: 0,
        options: crate::model::message_options::MessageOptions::default(),
        group: None,
    };
    let out = said(&mut session, 0, Input::Frame(ClientFrame::Publish(publish)));
    assert!(matches!(&out[..], [Output::Publish(_)]), "{out:?}");
    assert_eq!(said(&mut session, 1000, Input::Tick), vec![Output::Ack(Vec::new(), 7)]);
}

#[test]
fn acks_wait_for_earlier_acks_and_receipts_for_their_acks() {
    let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
    let of = |seq| AckUpTo { conversation, seq };
    let acked = Input::Acked { too_high: false };
    let ack = |seq| {
        let store_epoch = Welcome::example().store_epoch;
        Input::Frame(ClientFrame::Ack { acks: vec![of(seq)], store_epoch, generation: seq })
    };
    let mut session = live();
    said(&mut session, 0, Input::Page(InboxPosition::START, InboxPage::default()));
    for seq in [1, 2] {
        let message = InboxRow { conversation, seq, time_us: seq, joined: false, content: message() };
        said(&mut session, 0, Input::Events(vec![SessionEvent::Row(message)]));
    }
    assert_eq!(said(&mut session, 0, ack(1)), vec![]);
    assert_eq!(said(&mut session, 1000, Input::Tick), vec![Output::Ack(vec![of(1)], 1)]);
    assert_eq!(said(&mut session, 1100, ack(2)), vec![]);
    assert_eq!(said(&mut session, 2100, Input::Tick), vec![], "the store has not confirmed the first ack");
    let outputs = said(&mut session, 2200, acked);
    assert_eq!(outputs, vec![Output::Receipt(of(1), false), Output::Ack(vec![of(2)], 2)]);
    let outputs = said(&mut session, 3200, Input::Acked { too_high: false });
    assert_eq!(outputs, vec![Output::Receipt(of(2), false)]);
}

#[test]
fn first_and_last_of_many_read_watermarks_are_sent() {
    let mut session = live();
    let conversation = ConversationId::own(UserId::from_bytes([1; 16]));
    let receipt = |seq| Output::Receipt(AckUpTo { conversation, seq }, true);
    let read = |seq| Input::Frame(ClientFrame::Read(AckUpTo { conversation, seq }));
    assert_eq!(said(&mut session, 0, read(1)), vec![receipt(1)]);
    for seq in 2..100 {
        assert_eq!(said(&mut session, 10, read(seq)), vec![]);
    }
    assert!(session.deadline().is_some_and(|at| at <= Instant::from_millis(1010)));
    assert_eq!(said(&mut session, 1010, Input::Tick), vec![receipt(99)]);
    assert_eq!(said(&mut session, 3000, read(100)), vec![receipt(100)]);
}

#[test]
fn a_page_that_is_not_full_is_the_last() {
    let rows = |seqs: std::ops::RangeInclusive<u64>| -> Vec<InboxRow> { seqs.map(row).collect() };
    let deliver = |rows, caught_up| Output::Send(ServerFrame::Deliver(rows, caught_up));
    let page = |session: &mut Session, after, rows| said(session, 0, Input::Page(after, page_of(rows)));
    let mut session = live();
    assert_eq!(
        page(&mut session, InboxPosition::START, rows(1..=3)),
        vec![deliver(rows(1..=3), false), deliver(vec![], true)]
    );
    assert!(session.is_live());
    let full = PAGE_ROWS as u64;
    let (first, next) = (rows(1..=full), row(full).position());
    let mut session = live();
    let outputs = page(&mut session, InboxPosition::START, first.clone());
    assert_eq!((delivered(&outputs), outputs.last()), (first, Some(&Output::Read(next, LIMIT))));
    assert!(!session.is_live());
    assert_eq!(page(&mut session, next, Vec::new()), vec![deliver(vec![], true)]);
    // A row arrived while the page was read: its position may be before the page.
    let mut session = live();
    said(&mut session, 0, Input::Events(vec![SessionEvent::Row(row(1))]));
    let again = page(&mut session, InboxPosition::START, rows(2..=3));
    assert_eq!(again, vec![deliver(rows(2..=3), false), Output::Read(InboxPosition::START, LIMIT)]);
    assert!(!session.is_live());
    let outputs = page(&mut session, InboxPosition::START, rows(1..=3));
    assert_eq!(outputs, vec![deliver(rows(1..=1), false), deliver(vec![], true)]);
    #[cfg(feature = "sim")]
    Mutant::with(Some(Mutant::LiveThoughDropped), || {
        let mut session = live();
        said(&mut session, 0, Input::Events(vec![SessionEvent::Row(row(1))]));
        page(&mut session, InboxPosition::START, rows(2..=3));
        assert!(session.is_live(), "the mutant goes live");
    });
}

#[test]
fn full_window_does_not_block_earlier_rows() {
    let mut session = live();
    said(&mut session, 0, Input::Page(InboxPosition::START, InboxPage::default()));
    // The first row had no live event. The later rows fill the window, and the device cannot acknowledge them
    // before it.
    let later = 2..=WINDOW_ROWS as u64 + 1;
    later.for_each(|seq| drop(said(&mut session, 20_000, Input::Events(vec![SessionEvent::Row(row(seq))]))));
    let outputs = said(&mut session, 30_000, Input::Frame(ClientFrame::Heartbeat));
    assert_eq!(outputs, vec![Output::Beat, Output::Read(InboxPosition::START, LIMIT)]);
    let page: Vec<InboxRow> = (1..=PAGE_ROWS as u64).map(row).collect();
    let outputs = said(&mut session, 30_000, Input::Page(InboxPosition::START, page_of(page.clone())));
    assert_eq!(delivered(&outputs), page);
    // A row in flight is not sent again.
    said(&mut session, 40_000, Input::Lagged);
    let outputs = said(&mut session, 40_000, Input::Page(InboxPosition::START, page_of(page)));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Send(_))), "{outputs:?}");
}

#[test]
fn session_rereads_the_inbox_twice_after_a_drop() {
    let read = || vec![Output::Read(InboxPosition::START, LIMIT)];
    let caught_up = |session: &mut Session, at| {
        said(session, at, Input::Page(InboxPosition::START, InboxPage::default()))
    };
    for input in [Input::Lagged, Input::Frame(ClientFrame::CatchUp)] {
        let mut session = live();
        caught_up(&mut session, 0);
        assert_eq!(said(&mut session, 100, input), read());
        caught_up(&mut session, 100);
        for at in [1100, 5100] {
            assert!(session.is_live(), "the session stays live between the re-reads");
            assert_eq!(session.deadline(), Some(Instant::from_millis(at)));
            assert_eq!(said(&mut session, at, Input::Tick), read());
            caught_up(&mut session, at);
        }
        assert!(session.deadline() > Some(Instant::from_millis(10_000)), "there is no third re-read");
    }
    // An event that does not fit the window is dropped as well.
    let mut session = live();
    caught_up(&mut session, 0);
    for seq in 1..=WINDOW_ROWS as u64 {
        said(&mut session, 0, Input::Events(vec![SessionEvent::Row(row(seq))]));
    }
    assert!(session.is_live());
    said(&mut session, 0, Input::Events(vec![SessionEvent::Row(row(WINDOW_ROWS as u64 + 1))]));
    assert!(!session.is_live());
    assert_eq!(session.deadline(), Some(Instant::from_millis(1000)));
    assert_eq!(said(&mut session, 1000, Input::Tick), vec![], "the window is still full");
    // A failed page does not cancel the next re-read.
    let mut session = live();
    caught_up(&mut session, 0);
    assert_eq!(said(&mut session, 100, Input::Lagged), read());
    assert_eq!(said(&mut session, 100, Input::PageFailed), vec![]);
    assert_eq!(said(&mut session, 1100, Input::Tick), read());
}

#[test]
fn window_follows_the_speed_of_the_device() {
    let mut session = live();
    said(&mut session, 0, Input::Page(InboxPosition::START, InboxPage::default()));
    let (mut seq, mut now) = (0, 0);
    // Returns the bytes in flight when no more rows are sent, with a device that takes this long for each window.
    let mut bytes_in_flight = |session: &mut Session, took_ms| {
        for _ in 0..12 {
            let mut sent = 0;
            while session.has_room() {
                seq += 1;
                sent += 1;
                said(session, now, Input::Events(vec![SessionEvent::Row(large_row(seq))]));
            }
            now += took_ms;
            if sent == 0 {
                break;
            }
            let acks = vec![AckUpTo { conversation: row(1).conversation, seq }];
            let epoch = session.epoch.unwrap();
            let frame = ClientFrame::Ack { acks, store_epoch: epoch, generation: 1 };
            said(session, now, Input::Frame(frame));
            said(session, now, Input::Acked { too_high: false });
        }
        session.window.bytes()
    };
    assert_eq!(bytes_in_flight(&mut session, 10), WINDOW_BYTES, "a fast device");
    assert_eq!(bytes_in_flight(&mut session, 10_000), MIN_WINDOW, "a slow one");
    assert_eq!(session.window.page_limit().bytes, MIN_WINDOW, "its pages are small too");
    assert_eq!(bytes_in_flight(&mut session, 10), WINDOW_BYTES, "fast again");
}

#[test]
fn rows_are_not_sent_again_while_the_device_acknowledges_some() {
    let mut session = live();
    said(&mut session, 0, Input::Page(InboxPosition::START, InboxPage::default()));
    for seq in 1..=20 {
        said(&mut session, 0, Input::Events(vec![SessionEvent::Row(large_row(seq))]));
    }
    let heartbeat = |session: &mut Session, at| said(session, at, Input::Frame(ClientFrame::Heartbeat));
    let starts_over = |outputs: &[Output]| {
        outputs.iter().any(|output| matches!(output, Output::Read(InboxPosition::START, _)))
    };
    for at in [29_000, 58_000, 87_000] {
        let acks = vec![AckUpTo { conversation: row(1).conversation, seq: at / 29_000 }];
        let frame = ClientFrame::Ack { acks, store_epoch: session.epoch.unwrap(), generation: 1 };
        said(&mut session, at, Input::Frame(frame));
        heartbeat(&mut session, at + 1);
        assert_eq!(session.loops, 0, "at {at}");
    }
    // 30 s, and the time that the slowest link takes for the rows in flight.
    let patience = 30_000 + session.flights.bytes() as u64 * 1000 / MIN_BYTES_PER_SECOND;
    heartbeat(&mut session, 87_000 + patience - 1);
    assert_eq!(session.loops, 0);
    let outputs = heartbeat(&mut session, 87_000 + patience);
    assert_eq!(session.loops, 1);
    assert!(starts_over(&outputs));
}

#[test]
fn shared_rows_go_out_whole_or_are_read_later() {
    let shared = |seqs: std::ops::RangeInclusive<u64>| {
        let rows: Vec<InboxRow> = seqs.map(row).collect();
        Input::Shared(SharedRows::split(&rows, usize::MAX).remove(0))
    };
    let sent = |outputs: &[Output]| -> Vec<u64> {
        let rows = outputs.iter().flat_map(|output| match output {
            Output::SendShared(rows) => rows.rows(),
            _ => &[],
        });
        rows.map(|row| row.seq).collect()
    };
    let page = |session: &mut Session, rows: Vec<InboxRow>| {
        delivered(&said(session, 0, Input::Page(InboxPosition::START, page_of(rows))))
    };
    let mut session = live();
    assert!(page(&mut session, Vec::new()).is_empty());
    let outputs = said(&mut session, 0, shared(1..=3));
    assert_eq!(sent(&outputs), [1, 2, 3]);
    let outputs = said(&mut session, 0, shared(4..=WINDOW_ROWS as u64 + 1));
    assert!(matches!(outputs[..], [Output::Read(..)]), "one row too many: {outputs:?}");
    assert!(!session.is_live());
    assert!(said(&mut session, 0, shared(4..=4)).is_empty(), "the page that is read may lack earlier rows");
    assert_eq!(page(&mut session, (1..=4).map(row).collect()), [row(4)], "the others are in flight");
}
