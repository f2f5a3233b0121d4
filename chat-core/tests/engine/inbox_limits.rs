//! Limits of an inbox: strangers, contacts, and devices that are full.

use chat_core::backend::CursorFilter;
use chat_core::limits::{INBOX_BYTES, INBOX_MESSAGES, STRANGERS_PART};
use std::sync::atomic::Ordering;
use tokio::sync::Semaphore;

use super::commit_visibility::Later;
use super::*;

#[test]
fn strangers_share_a_part_of_an_inbox_and_contacts_have_the_rest() {
    // Strangers are limited, but not by their rate here.
    let stranger = Rates::default().contact;
    let (engine, _clock) = engine(Rates { stranger, ..Rates::OFF });
    let [mut alice, bob, mut eve] = talkers(&engine);
    let fill = |from: &mut User| loop {
        if let Some(refusal) = from.publish(&engine, &bob, 64 * 1024) {
            return refusal;
        }
        work(&engine);
        assert!(from.sent < 2000, "about a thousand messages fill 64 MiB");
    };
    assert_eq!(fill(&mut eve), Refusal::Quota, "a stranger");
    assert!((90..120).contains(&eve.sent), "{} of her messages fill a tenth", eve.sent);
    assert!(matches!(fill(&mut alice), Refusal::Throttled(_)), "a contact sends it again later");
    assert!((900..1000).contains(&alice.sent), "{} messages of a contact fill the rest", alice.sent);
    let number = alice.number(&bob);
    assert_eq!(ready(skip(&engine, alice.device(), number)), None, "a skip does not wait");
}

#[test]
fn device_that_is_behind_costs_its_senders_no_read_per_message() {
    let clock = Arc::new(ManualClock::default());
    clock.set_us(START_US);
    let store = Arc::new(Later::new(Semaphore::MAX_PERMITS));
    let router = Arc::new(MemoryRouter::new(4, clock.clone()));
    let backends = Backends { store: store.clone(), router, ..Backends::memory() };
    // Strangers are limited, but not by their rate here.
    let settings = EngineSettings {
        rates: Rates { stranger: Rates::default().contact, ..Rates::OFF },
        ..Default::default()
    };
    let engine = Engine::new(backends, settings, clock);
    let [mut alice, bob, _] = talkers(&engine);
    // Bob reads nothing. The messages pass the part of strangers, and end far from the limit of the inbox.
    let count = 2 * (INBOX_MESSAGES / STRANGERS_PART) as usize;
    for _ in 0..count {
        assert_eq!(alice.publish(&engine, &bob, 10), None);
        work(&engine);
    }
    let reads = store.device_reads.load(Ordering::Relaxed);
    assert!(reads <= count / 10, "{reads} reads of {count} messages");
}

#[test]
fn full_device_gets_a_gap_and_the_others_the_message() {
    let (engine, _clock, store) = engine_and_store(Rates::OFF);
    let [mut alice, mut bob, _] = talkers(&engine);
    let key = SigningKey::from_bytes(&[77; 32]);
    let tablet = DeviceEntry::new(
        DeviceId::new(2).unwrap(),
        key.verifying_key().to_bytes(),
        SuiteKey::signal(vec![77; 33]),
    );
    let (phone, tablet, prekeys) = (bob.device(), tablet, first_prekeys(&key));
    let devices = [bob.list.list().devices.clone(), vec![tablet.clone()]].concat();
    bob.list = sign(&bob.account, &DeviceList::next(&bob.list, 1, devices));
    let put = Request::PutList(bob.list.clone(), vec![prekeys]);
    assert!(ready(engine.respond(phone, put)).is_ok());
    let inbox = |device| ready(store.inbox(device, InboxPosition::START, PageLimit::MAX)).unwrap();
    // The tablet is off. The phone reads everything.
    let mut send = |size| {
        let mut publish = alice.next(&bob, size);
        publish.boxes = [phone.installation, tablet.installation()]
            .map(|installation| DeviceBox { installation, data: Bytes::from_static(b"box") })
            .into();
        assert_eq!(alice.send(&engine, publish), None, "message {}", alice.sent);
        work(&engine);
        assert!(alice.sent < 2000, "the tablet is never full");
    };
    let last = loop {
        send(64 * 1024);
        let row = inbox(phone.installation).pop().unwrap();
        assert!(matches!(row.content, RowContent::Message { .. }));
        let acks = [AckUpTo { conversation: row.conversation, seq: row.seq }];
        ready(engine.ack(phone.installation, 1, &acks)).unwrap();
        let device = ready(store.device(tablet.installation(), CursorFilter::No)).unwrap();
        if device.waiting_bytes > INBOX_BYTES {
            break row.seq + 1;
        }
    };
    send(10);
    assert!(matches!(inbox(phone.installation)[0].content, RowContent::Message { .. }));
    let mut position = InboxPosition::START;
    let mut rows = Vec::new();
    loop {
        let page = ready(store.inbox(tablet.installation(), position, PageLimit::MAX)).unwrap();
        let Some(end) = page.last() else { break };
        position = end.position();
        rows.extend(page);
    }
    let row = rows.pop().unwrap();
    assert_eq!(row.content, RowContent::Empty { reason: EmptyReason::Quota, from: last });
}

#[test]
fn requests_and_bytes_of_a_user_have_budgets() {
    let (engine, clock) =
        engine(Rates { device: None, contact: None, stranger: None, inbound: None, ..Rates::default() });
    let [mut alice, bob, _] = talkers(&engine);
    let cursors = || ready(engine.respond(alice.device(), Request::Cursors));
    let answered = (0..3000).filter(|_| cursors().is_ok()).count();
    assert_eq!(answered, 2000);
    assert_eq!(cursors(), Err(Refusal::Throttled(10)));
    assert!(ready(engine.respond(bob.device(), Request::Cursors)).is_ok(), "another user");
    clock.set_us(START_US + 1_000_000);
    assert!(cursors().is_ok(), "100 in a second");
    // Messages to oneself count as well.
    let own = |user: &User, n: u64| {
        let mut publish = user.next(&bob, 64 * 1024);
        publish.number.conversation = ConversationId::own(user.device().user);
        publish.number.message_id = MessageId::new(n + 1, [1; 10]);
        publish.audience.truncate(1);
        publish.boxes.clear();
        publish
    };
    let sent =
        (0..5000).take_while(|n| ready(submit(&engine, alice.device(), own(&alice, *n))).is_none()).count();
    assert!((4000..4096).contains(&sent), "{sent} messages of 64 KiB are 256 MiB");
    assert!(matches!(alice.publish(&engine, &bob, 64 * 1024), Some(Refusal::Throttled(_))));
}
