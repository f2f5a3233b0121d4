//! A shard stops at the rules of a later release instead of deciding by them.

use chat_core::ErrorKind;
use chat_core::backend::{Commit, Head, MessageStore, Rules, SenderFilter, StateChange};
use chat_core::memory::MemoryStore;

use super::*;

const LATER: Rules = Rules(Rules::CURRENT.0 + 1);

/// Processes all waiting records of every shard. Returns the first error.
fn work_or_stop(engine: &Engine) -> Option<chat_core::Error> {
    (0..engine.shards()).find_map(|shard| engine.process_batch(shard).now_or_never()?.err())
}

#[test]
fn shard_stops_at_a_command_of_later_rules() {
    let (engine, _clock) = engine(Rates::OFF);
    let (alice, bob) = (User::new(1, "alice"), User::new(2, "bob"));
    alice.register(&engine);
    bob.register(&engine);
    let command = ready(engine.admit_publish(alice.device(), alice.next(&bob, 10))).unwrap();
    assert_eq!(command.rules, Rules::BASIC);
    ready(engine.append(chat_core::backend::Command { rules: LATER, ..command })).unwrap();
    for _ in 0..2 {
        assert_eq!(
            work_or_stop(&engine).unwrap().kind(),
            ErrorKind::Unsupported,
            "it waits for another owner"
        );
    }
    let inbox =
        ready(engine.inbox(bob.device().installation, InboxPosition::START, PageLimit::MAX)).unwrap().rows;
    assert!(inbox.is_empty());
}

#[test]
fn shard_stops_at_a_state_of_later_rules() {
    let store = Arc::new(MemoryStore::new());
    let (router, clock) = (MemoryRouter::new(4, Arc::new(ManualClock::default())), ManualClock::default());
    let backends = Backends { router: Arc::new(router), store: store.clone(), ..Backends::memory() };
    let settings = EngineSettings { rates: Rates::OFF, ..EngineSettings::default() };
    let engine = Engine::new(backends, settings, Arc::new(clock));
    let (mut alice, bob) = (User::new(1, "alice"), User::new(2, "bob"));
    alice.register(&engine);
    bob.register(&engine);
    let conversation = alice.number(&bob).conversation;
    let head = Head { time_us: 1, rules: LATER, ..Head::default() };
    let later = Commit::of(conversation, StateChange { head, ..StateChange::default() });
    ready(store.commit(vec![later]));
    let before = ready(store.state(conversation, SenderFilter::All, None)).unwrap();
    assert_eq!(alice.publish(&engine, &bob, 10), None, "it is in the log");
    assert_eq!(work_or_stop(&engine).unwrap().kind(), ErrorKind::Unsupported);
    assert_eq!(
        ready(store.state(conversation, SenderFilter::All, None)).unwrap(),
        before,
        "nothing is written"
    );
}
