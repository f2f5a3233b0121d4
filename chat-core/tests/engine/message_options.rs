//! Options that the server reads: rows carry them, rules name them, and only the sender of a message deletes it.

use chat_core::backend::Rules;
use chat_core::envelope::{EmptyReason, InboxRow, Message};
use chat_core::memory::MemoryPush;
use chat_core::message_options::{Deletion, MessageOptions, Urgency};
use chat_core::{MessageId, UserId};

use super::*;

/// Returns the messages of the conversation of two users, oldest first.
fn history(engine: &Engine, a: &User, b: &User) -> Vec<Arc<Message>> {
    let conversation = ConversationId::direct(a.device().user, b.device().user);
    let request = Request::History { conversation, range: HistoryRange::Before(0), limit: 200 };
    let rows = ready(engine.respond(a.device(), request)).unwrap().rows;
    let message = |row: &chat_core::envelope::InboxRow| match &row.content {
        RowContent::Message { message, .. } => Some(message.clone()),
        _ => None,
    };
    rows.iter().rev().filter_map(message).collect()
}

/// Returns why the rows of the conversation of two users are empty, oldest first.
fn reasons(engine: &Engine, a: &User, b: &User) -> Vec<Option<EmptyReason>> {
    let conversation = ConversationId::direct(a.device().user, b.device().user);
    let request = Request::History { conversation, range: HistoryRange::Before(0), limit: 200 };
    let rows = ready(engine.respond(a.device(), request)).unwrap().rows;
    let reason = |row: &InboxRow| match row.content {
        RowContent::Empty { reason, .. } => Some(reason),
        _ => None,
    };
    rows.iter().rev().map(reason).collect()
}

/// Returns the rows that wait for a user's device.
fn waiting(engine: &Engine, user: &User) -> Vec<InboxRow> {
    ready(engine.inbox(user.device().installation, InboxPosition::START, PageLimit::MAX)).unwrap().rows
}

/// Publishes a message with these options. Returns the refusal.
fn send(engine: &Engine, from: &mut User, to: &User, options: MessageOptions) -> Option<Refusal> {
    let publish = Publish { options, ..from.next(to, 10) };
    let refusal = from.send(engine, publish);
    work(engine);
    refusal
}

/// Returns the deletion of a message, signed by a user's device.
fn deletion(by: &User, conversation: ConversationId, seq: u64, message: &Message) -> MessageOptions {
    let mut deletion = Deletion {
        seq,
        installation: message.sender.installation,
        message_id: message.id,
        signature: Bytes::new(),
    };
    deletion.signature = by.key.sign(&deletion.transcript(conversation)).to_bytes().to_vec().into();
    MessageOptions { deletion: Some(Box::new(deletion)), ..MessageOptions::default() }
}

#[test]
fn row_carries_the_options_of_its_message() {
    let (engine, _clock) = engine(Rates::OFF);
    let [mut alice, bob, _] = talkers(&engine);
    let options = MessageOptions {
        urgency: Urgency::Urgent,
        wake: vec![bob.device().user],
        expires_after_ms: 5000,
        media: vec![chat_core::id::MediaId::from_bytes([3; 16])],
        deletion: None,
    };
    assert_eq!(send(&engine, &mut alice, &bob, options.clone()), None);
    let rows =
        ready(engine.inbox(bob.device().installation, InboxPosition::START, PageLimit::MAX)).unwrap().rows;
    let RowContent::Message { message, .. } = &rows.last().unwrap().content else { panic!() };
    assert_eq!(message.options, options);
    assert_eq!(history(&engine, &bob, &alice).last().unwrap().options, options);
}

#[test]
fn command_asks_for_the_rules_that_it_needs() {
    let (engine, _clock) = engine(Rates::OFF);
    let [alice, bob, _] = talkers(&engine);
    let rules = |options| {
        let publish = Publish { options, ..alice.next(&bob, 10) };
        ready(engine.admit_publish(alice.device(), publish)).unwrap().rules
    };
    assert_eq!(rules(MessageOptions::default()), Rules::BASIC);
    assert_eq!(rules(MessageOptions { expires_after_ms: 1, ..MessageOptions::default() }), Rules::OPTIONS);
}

#[test]
fn skips_and_refused_publishes_ask_for_no_later_rules() {
    let (engine, _clock) = engine(Rates::OFF);
    let [alice, bob, eve] = talkers(&engine);
    let skip = ready(engine.admit_skip(alice.device(), alice.number(&bob))).unwrap();
    assert_eq!(skip.rules, Rules::BASIC);
    for options in [
        MessageOptions { wake: vec![eve.device().user], ..MessageOptions::default() },
        deletion(&bob, alice.number(&bob).conversation, 1, &history(&engine, &alice, &bob)[0]),
    ] {
        let publish = Publish { options, first: false, ..alice.next(&bob, 10) };
        let command = ready(engine.admit_publish(alice.device(), publish)).unwrap();
        assert_eq!((command.rules, command.verdict.is_some()), (Rules::BASIC, true));
    }
}

#[test]
fn options_are_refused_while_nodes_of_the_release_before_run() {
    let clock = Arc::new(ManualClock::default());
    let settings = EngineSettings { rates: Rates::OFF, rules: Rules::BASIC, ..EngineSettings::default() };
    let engine = Engine::new(Backends::memory(), settings, clock);
    let [mut alice, bob, _] = talkers(&engine);
    let options = MessageOptions { urgency: Urgency::Silent, ..MessageOptions::default() };
    assert_eq!(send(&engine, &mut alice, &bob, options), Some(Refusal::Unsupported));
    assert_eq!(send(&engine, &mut alice, &bob, MessageOptions::default()), None);
}

#[test]
fn message_wakes_only_the_users_that_it_names() {
    let clock = Arc::new(ManualClock::default());
    clock.set_us(START_US);
    let push = Arc::new(MemoryPush::default());
    let backends = Backends {
        router: Arc::new(MemoryRouter::new(4, clock.clone())),
        push: push.clone(),
        ..Backends::memory()
    };
    let settings = EngineSettings { rates: Rates::OFF, ..EngineSettings::default() };
    let engine = Engine::new(backends, settings, clock);
    let [mut alice, bob, _] = talkers(&engine);
    let mut woken = |options: MessageOptions| {
        let before = push.woken().len();
        assert_eq!(send(&engine, &mut alice, &bob, options), None);
        push.woken()[before..].iter().any(|device| *device == bob.device())
    };
    let named = |user: UserId| MessageOptions { wake: vec![user], ..MessageOptions::default() };
    let silent = MessageOptions { urgency: Urgency::Silent, ..MessageOptions::default() };
    assert!(woken(MessageOptions::default()));
    assert!(woken(named(bob.device().user)));
    assert!(!woken(named(UserId::from_bytes([1; 16]))), "it names only Alice");
    assert!(!woken(silent));
}

#[test]
fn only_users_of_the_audience_can_be_named() {
    let (engine, _clock) = engine(Rates::OFF);
    let [mut alice, bob, eve] = talkers(&engine);
    let options = MessageOptions { wake: vec![eve.device().user], ..MessageOptions::default() };
    assert_eq!(send(&engine, &mut alice, &bob, options), Some(Refusal::Invalid));
}

#[test]
fn only_its_sender_deletes_a_message() {
    let (engine, _clock) = engine(Rates::OFF);
    let [mut alice, mut bob, _] = talkers(&engine);
    let conversation = ConversationId::direct(alice.device().user, bob.device().user);
    let [first, answer] = &history(&engine, &alice, &bob)[..] else { panic!() };
    assert_eq!(first.sender, alice.device());

    let by_bob = deletion(&bob, conversation, 1, first);
    assert_eq!(
        send(&engine, &mut bob, &alice, by_bob.clone()),
        Some(Refusal::Denied),
        "another user's message"
    );
    assert_eq!(send(&engine, &mut alice, &bob, by_bob), Some(Refusal::Denied), "another device signed");
    let elsewhere = deletion(&alice, ConversationId::own(alice.device().user), 1, first);
    assert_eq!(send(&engine, &mut alice, &bob, elsewhere), Some(Refusal::Denied), "another conversation");
    let other_seq = deletion(&alice, conversation, 2, first);
    assert_eq!(send(&engine, &mut alice, &bob, other_seq), Some(Refusal::NotFound));
    let later = deletion(&alice, conversation, 9, first);
    assert_eq!(send(&engine, &mut alice, &bob, later), Some(Refusal::NotFound));
    let other_id = deletion(
        &alice,
        conversation,
        1,
        &Message { id: MessageId::from_bytes([8; 16]), ..Message::clone(first) },
    );
    assert_eq!(send(&engine, &mut alice, &bob, other_id), Some(Refusal::NotFound));
    assert_eq!(answer.sender, bob.device());

    let options = deletion(&alice, conversation, 1, first);
    let expiring = MessageOptions { expires_after_ms: 1, ..options.clone() };
    assert_eq!(send(&engine, &mut alice, &bob, expiring), Some(Refusal::Invalid), "it must stay");
    assert_eq!(reasons(&engine, &alice, &bob), [None, None], "no refusal erased anything");
    assert_eq!(send(&engine, &mut alice, &bob, options.clone()), None);
    assert_eq!(history(&engine, &bob, &alice).last().unwrap().options, options);
    assert_eq!(reasons(&engine, &alice, &bob), [Some(EmptyReason::Deleted), None, None]);
    let waiting = waiting(&engine, &bob);
    assert!(matches!(waiting[0].content, RowContent::Empty { reason: EmptyReason::Deleted, from: 1 }));
    // Another device may not know yet that it is deleted. Its deletion must reach the devices that have the message.
    assert_eq!(send(&engine, &mut alice, &bob, options), None);
}

#[test]
fn disappeared_message_is_empty_before_and_after_the_sweep() {
    let (engine, clock) = engine(Rates::OFF);
    let [mut alice, bob, _] = talkers(&engine);
    let options = MessageOptions { expires_after_ms: 5000, ..MessageOptions::default() };
    assert_eq!(send(&engine, &mut alice, &bob, options), None);
    assert_eq!(send(&engine, &mut alice, &bob, MessageOptions::default()), None);
    let due_us = waiting(&engine, &bob)[2].time_us + 5000 * 1000;
    let gone = Some(EmptyReason::Disappeared);
    let shown = || {
        let inbox = waiting(&engine, &bob)[2].content.clone();
        let is_hidden = matches!(inbox, RowContent::Empty { reason: EmptyReason::Disappeared, .. });
        assert_eq!(is_hidden, reasons(&engine, &alice, &bob)[2] == gone, "history and inbox agree");
        is_hidden
    };
    clock.set_us(due_us - 1);
    assert!(!shown());
    assert_eq!(ready(engine.sweep_messages()), Ok(0));
    // The clock of the engine has milliseconds.
    clock.set_us(due_us + 999);
    assert!(shown(), "before the sweep");
    assert_eq!(ready(engine.sweep_messages()), Ok(1));
    assert!(shown());
    assert_eq!(reasons(&engine, &alice, &bob)[3], None);
}

#[test]
fn page_that_disappeared_is_not_the_last_one() {
    let (engine, clock) = engine(Rates::OFF);
    let [mut alice, bob, _] = talkers(&engine);
    for _ in 0..3 {
        let options = MessageOptions { expires_after_ms: 1, ..MessageOptions::default() };
        let publish = Publish { options, ..alice.next(&bob, 10_000) };
        assert_eq!(alice.send(&engine, publish), None);
        work(&engine);
    }
    clock.set_us(START_US + 3_600_000_000);
    let limit = PageLimit { rows: 100, bytes: 15_000 };
    let page = ready(engine.inbox(bob.device().installation, InboxPosition::START, limit)).unwrap();
    assert!(page.has_more && page.rows.iter().any(|row| row.is_erased()), "{page:?}");
}
