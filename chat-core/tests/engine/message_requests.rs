//! Strangers, contacts and blocked users: the messages that arrive, and the activity that shows.

use std::cell::RefCell;

use chat_core::contact::{Contact, ContactChange};
use chat_core::delivery::{Hint, SessionEvent, SessionHandle};
#[cfg(feature = "sim")]
use chat_core::mutant::Mutant;
use chat_core::presence::PresenceAudience;

use super::*;

/// Applies a change of a contact by a user's device.
fn change(engine: &Engine, owner: &User, other: &User, change: ContactChange) -> u64 {
    let request = Request::ChangeContact(other.device().user, change);
    ready(engine.respond(owner.device(), request)).unwrap().contacts.version
}

/// Alice wrote to Bob, who has not answered. Both are connected.
struct Strangers {
    engine: Engine,
    store: Arc<dyn MessageStore>,
    alice: User,
    bob: User,
    conversation: ConversationId,
    sessions: RefCell<[SessionHandle; 2]>,
}

impl Strangers {
    fn new(rates: Rates) -> Self {
        let (engine, _, store) = engine_and_store(rates);
        let (mut alice, bob) = (User::new(1, "alice"), User::new(2, "bob"));
        alice.register(&engine);
        bob.register(&engine);
        assert_eq!(alice.publish(&engine, &bob, 10), None);
        work(&engine);
        let sessions = [&alice, &bob].map(|user| ready(engine.bind(user.device())).unwrap()).into();
        let conversation = ConversationId::direct(alice.device().user, bob.device().user);
        let acks = [AckUpTo { conversation, seq: 1 }];
        ready(engine.ack(bob.device().installation, 1, &acks)).unwrap();
        Self { engine, store, alice, bob, conversation, sessions }
    }

    /// Returns the events that the session of Alice (0) or Bob (1) received.
    fn events(&self, of: usize) -> Vec<SessionEvent> {
        let queue = &mut self.sessions.borrow_mut()[of].events;
        std::iter::from_fn(|| queue.try_recv().ok()).flatten().collect()
    }

    /// Returns the hints that the session of Alice (0) or Bob (1) received.
    fn hints(&self, of: usize) -> Vec<Hint> {
        let events = self.events(of);
        let hint = |event| match event {
            SessionEvent::Hint(hint) => Some(hint),
            _ => None,
        };
        events.into_iter().filter_map(hint).collect()
    }

    /// Returns the kinds of activity of Bob that Alice learns: delivered, read, typing, online, and the answer for
    /// delivered.
    fn bobs_activity(&self) -> [bool; 5] {
        let (device, conversation) = (self.bob.device(), self.conversation);
        let mut learned = [false; 5];
        self.hints(0);
        ready(self.engine.receipt(device, AckUpTo { conversation, seq: 1 }, false));
        learned[0] = !self.hints(0).is_empty();
        ready(self.engine.receipt(device, AckUpTo { conversation, seq: 1 }, true));
        learned[1] = !self.hints(0).is_empty();
        ready(self.engine.typing(device, conversation));
        learned[2] = !self.hints(0).is_empty();
        learned[3] = self.presence_of_bob(&self.alice) == UserPresence::Online;
        let asked = ready(self.engine.respond(self.alice.device(), Request::Delivered(conversation)));
        learned[4] = asked.unwrap().delivered > 0;
        learned
    }

    /// Returns the presence of Bob as another user learns it.
    fn presence_of_bob(&self, asker: &User) -> UserPresence {
        ready(self.engine.presence(asker.device(), &[self.bob.device().user]))[0].1
    }

    /// Returns the content of the last row in Bob's inbox, and the number of rows of the conversation.
    fn last_row(&self) -> (RowContent, u64) {
        let device = self.bob.device().installation;
        let rows = ready(self.store.inbox(device, InboxPosition::START, PageLimit::MAX)).unwrap();
        let row = rows.last().unwrap();
        (row.content.clone(), row.seq)
    }
}

#[test]
fn stranger_learns_nothing_until_it_is_accepted() {
    let all = Strangers::new(Rates::OFF);
    assert_eq!(all.bobs_activity(), [false; 5]);
    change(&all.engine, &all.bob, &all.alice, ContactChange::Accept);
    let Strangers { conversation, bob, .. } = &all;
    let receipt =
        Hint::Receipt { conversation: *conversation, user: bob.device().user, delivered: 1, read: 0 };
    assert_eq!(all.hints(0), [receipt], "the receipt that was held back");
    assert_eq!(
        all.hints(1),
        [Hint::ReadRequested(*conversation, None)],
        "and the read position is asked for"
    );
    assert_eq!(all.bobs_activity(), [true; 5]);
    let alice = ready(all.engine.presence(bob.device(), &[all.alice.device().user]))[0].1;
    assert_eq!(alice, UserPresence::Online, "the user that wrote first shows its activity");
}

/// Changes the audience of Bob's presence. Returns the version of his contacts.
fn set_audience(all: &Strangers, audience: PresenceAudience) -> u64 {
    let request = Request::SetPresenceAudience(audience);
    ready(all.engine.respond(all.bob.device(), request)).unwrap().contacts.version
}

#[test]
fn presence_goes_to_the_audience_only() {
    let all = Strangers::new(Rates::OFF);
    let eve = User::new(3, "eve");
    change(&all.engine, &all.bob, &all.alice, ContactChange::Accept);
    let seen_by = |all: &Strangers| {
        [&all.alice, &eve, &all.bob].map(|asker| all.presence_of_bob(asker) == UserPresence::Online)
    };
    assert_eq!(seen_by(&all), [true, false, true], "contacts");
    assert_eq!(set_audience(&all, PresenceAudience::Nobody), 2);
    assert_eq!(seen_by(&all), [false, false, true], "nobody");
    assert_eq!(set_audience(&all, PresenceAudience::All), 3);
    assert_eq!(seen_by(&all), [true, true, true], "all");
    change(&all.engine, &all.bob, &eve, ContactChange::Block);
    assert_eq!(seen_by(&all), [true, false, true], "a blocked user");
    change(&all.engine, &all.bob, &eve, ContactChange::Unblock);
    ready(
        all.engine.respond(eve.device(), Request::ChangeContact(all.bob.device().user, ContactChange::Block)),
    )
    .unwrap();
    assert_eq!(seen_by(&all), [true, false, true], "a user that blocked");
    assert_eq!(all.bobs_activity(), [true; 5]);
    set_audience(&all, PresenceAudience::Nobody);
    assert_eq!(all.bobs_activity(), [true, true, true, false, true], "receipts are no presence");
    let contacts = ready(all.engine.respond(all.bob.device(), Request::Contacts)).unwrap().contacts;
    assert_eq!(contacts.audience, PresenceAudience::Nobody);
}

#[test]
fn last_seen_is_part_of_the_presence() {
    let all = Strangers::new(Rates::OFF);
    change(&all.engine, &all.bob, &all.alice, ContactChange::Accept);
    ready(all.engine.unbind(&all.sessions.borrow()[1]));
    let seen = UserPresence::Offline { last_seen_ms: Some(START_US / 1000) };
    assert_eq!(all.presence_of_bob(&all.alice), seen);
    set_audience(&all, PresenceAudience::Nobody);
    assert_eq!(all.presence_of_bob(&all.alice), UserPresence::HIDDEN);
    assert_eq!(all.presence_of_bob(&all.bob), seen, "the own devices");
    set_audience(&all, PresenceAudience::All);
    assert_eq!(all.presence_of_bob(&User::new(3, "eve")), seen);
    let handle = Handle::new("bob").unwrap();
    ready(all.engine.delete_account(&handle)).unwrap();
    assert_eq!(all.presence_of_bob(&all.alice), UserPresence::HIDDEN, "a deleted user");
    assert_eq!(all.presence_of_bob(&all.bob), UserPresence::HIDDEN);
}

#[test]
fn answer_accepts() {
    let mut all = Strangers::new(Rates::OFF);
    assert_eq!(all.bob.publish(&all.engine, &all.alice, 10), None);
    work(&all.engine);
    assert_eq!(all.bobs_activity(), [true; 5]);
}

#[test]
fn blocked_user_learns_stored_and_nothing_else() {
    let mut all = Strangers::new(Rates::OFF);
    assert_eq!(all.bob.publish(&all.engine, &all.alice, 10), None);
    work(&all.engine);
    change(&all.engine, &all.bob, &all.alice, ContactChange::Block);
    assert_eq!(all.bobs_activity(), [false; 5]);
    assert_eq!(all.alice.publish(&all.engine, &all.bob, 10), None, "accepted like any other");
    work(&all.engine);
    let (content, seq) = all.last_row();
    assert_eq!(content, RowContent::Empty { reason: EmptyReason::Withheld, from: seq });
    let stored = all.events(0).into_iter().any(|event| matches!(event, SessionEvent::Own(..)));
    assert!(stored, "the blocked user gets its answer");
    // The user that blocked learns nothing of the other either.
    all.hints(1);
    ready(all.engine.typing(all.alice.device(), all.conversation));
    assert_eq!(all.hints(1), []);
    change(&all.engine, &all.bob, &all.alice, ContactChange::Unblock);
    assert_eq!(all.alice.publish(&all.engine, &all.bob, 10), None);
    work(&all.engine);
    assert!(matches!(all.last_row(), (RowContent::Message { .. }, 4)));
    assert_eq!(all.bobs_activity(), [true; 5]);
}

#[test]
fn block_changes_no_rate_limit() {
    let mut all = Strangers::new(Rates::default());
    change(&all.engine, &all.bob, &all.alice, ContactChange::Accept);
    change(&all.engine, &all.bob, &all.alice, ContactChange::Block);
    for n in 0..200 {
        assert_eq!(all.alice.publish(&all.engine, &all.bob, 10), None, "message {n} of a contact");
    }
}

#[test]
fn contacts_of_a_user_are_read_by_its_devices() {
    let all = Strangers::new(Rates::OFF);
    let eve = User::new(3, "eve");
    assert_eq!(change(&all.engine, &all.bob, &all.alice, ContactChange::Accept), 1);
    assert_eq!(change(&all.engine, &all.bob, &eve, ContactChange::Block), 2);
    let contacts = ready(all.engine.respond(all.bob.device(), Request::Contacts)).unwrap().contacts;
    assert_eq!(contacts.version, 2);
    let mut entries = contacts.entries;
    entries.sort_unstable_by_key(|(user, _)| *user);
    assert_eq!(
        entries,
        [
            (all.alice.device().user, Contact { accepted: true, blocked: false }),
            (eve.device().user, Contact { accepted: false, blocked: true })
        ]
    );
    let own = Request::ChangeContact(all.bob.device().user, ContactChange::Block);
    assert_eq!(ready(all.engine.respond(all.bob.device(), own)), Err(Refusal::Invalid));
}

#[test]
#[cfg(feature = "sim")]
fn tests_notice_an_engine_without_the_rules() {
    let noticed = |mutant, test: fn()| {
        let ran = std::panic::catch_unwind(|| Mutant::with(Some(mutant), test));
        assert!(ran.is_err(), "{mutant:?} survives");
    };
    noticed(Mutant::BlockIgnored, blocked_user_learns_stored_and_nothing_else);
    noticed(Mutant::AudienceIgnored, presence_goes_to_the_audience_only);
    noticed(Mutant::ActivityShownToAll, stranger_learns_nothing_until_it_is_accepted);
}
