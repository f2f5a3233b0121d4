//! History: a user clears it, retention erases it, and a deleted account leaves nothing that only it could read.

use chat_core::envelope::InboxRow;

use super::*;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Returns the seqs of the history that a user sees, and whether each has content.
fn seen(engine: &Engine, by: &User, conversation: ConversationId) -> Vec<(u64, bool)> {
    let request = Request::History { conversation, range: HistoryRange::Before(0), limit: 200 };
    let rows = ready(engine.respond(by.device(), request)).unwrap().rows;
    let has_content = |row: &InboxRow| matches!(row.content, RowContent::Message { .. });
    rows.iter().map(|row| (row.seq, has_content(row))).collect()
}

fn clear(engine: &Engine, by: &User, conversation: ConversationId, through: u64) -> Option<Refusal> {
    ready(engine.respond(by.device(), Request::ClearHistory { conversation, through })).err()
}

#[test]
fn cleared_history_is_hidden_from_its_user_and_erased_once_all_cleared_it() {
    let (engine, _clock, store) = engine_and_store(Rates::OFF);
    let [mut alice, bob, eve] = talkers(&engine);
    let conversation = ConversationId::direct(alice.device().user, bob.device().user);
    assert_eq!(clear(&engine, &alice, conversation, 1), None);
    assert_eq!(seen(&engine, &alice, conversation), [(2, true)]);
    assert_eq!(seen(&engine, &bob, conversation), [(2, true), (1, true)], "the other user keeps it");
    assert_eq!(clear(&engine, &bob, conversation, u64::MAX >> 11), None);
    assert_eq!(seen(&engine, &bob, conversation), []);
    let rows = ready(store.history(conversation, 0, PageLimit::MAX)).unwrap();
    let reasons: Vec<_> = rows.iter().map(|row| (row.seq, row.is_erased())).collect();
    assert_eq!(reasons, [(2, false), (1, true)], "Alice did not clear the second message");
    assert_eq!(alice.publish(&engine, &bob, 10), None);
    work(&engine);
    assert_eq!(seen(&engine, &bob, conversation), [(3, true)], "later messages are visible");
    for unknown in [conversation, ConversationId::own(bob.device().user)] {
        assert_eq!(clear(&engine, &eve, unknown, 1), Some(Refusal::NotFound), "not a member");
    }
}

#[test]
fn old_history_is_erased_and_a_repeat_is_still_recognised() {
    let (engine, clock, store) = engine_and_store(Rates::OFF);
    let [mut alice, bob, _] = talkers(&engine);
    let conversation = ConversationId::direct(alice.device().user, bob.device().user);
    clock.set_us(START_US + 20 * DAY_MS * 1000);
    assert_eq!(alice.publish(&engine, &bob, 10), None);
    work(&engine);
    clock.set_us(START_US + 31 * DAY_MS * 1000);
    assert_eq!(ready(engine.sweep_history(30 * DAY_MS)), Ok(2));
    assert_eq!(ready(engine.sweep_history(30 * DAY_MS)), Ok(0));
    assert_eq!(seen(&engine, &alice, conversation), [(3, true), (2, false), (1, false)]);
    let inbox =
        ready(engine.inbox(bob.device().installation, InboxPosition::START, PageLimit::MAX)).unwrap().rows;
    let gap = (inbox[0].first_seq(), inbox[0].seq, inbox[0].is_expired());
    assert_eq!(gap, (1, 2, true), "no device waits for an erased message");
    let mut id = [1; 16];
    id[..8].copy_from_slice(&1_u64.to_be_bytes());
    let sender = alice.device().installation;
    assert_eq!(ready(store.find(conversation, sender, MessageId::from_bytes(id))), Ok(Some(1)));
}

#[test]
fn deleted_account_leaves_no_message_that_only_it_could_read() {
    let (engine, _clock, store) = engine_and_store(Rates::OFF);
    let [mut alice, bob, _] = talkers(&engine);
    let user = alice.device().user;
    let note = Publish {
        number: SendPosition { conversation: ConversationId::own(user), ..alice.number(&bob) },
        audience: vec![Audience { user, list_version: 1 }],
        boxes: Vec::new(),
        ..alice.next(&bob, 10)
    };
    let number = SendPosition { client_seq: 1, prev: MessageId::NIL, ..note.number };
    assert_eq!(ready(submit(&engine, alice.device(), Publish { number, ..note })), None);
    alice.sent += 1;
    work(&engine);
    let own = |store: &Arc<dyn MessageStore>| {
        let rows = ready(store.history(ConversationId::own(user), 0, PageLimit::MAX)).unwrap();
        rows.iter().map(|row| row.is_erased()).collect::<Vec<_>>()
    };
    assert_eq!(own(&store), [false]);
    ready(engine.delete_account(&alice.handle)).unwrap();
    assert_eq!(own(&store), [true], "a note to the own devices");
    let conversation = ConversationId::direct(user, bob.device().user);
    assert_eq!(seen(&engine, &bob, conversation), [(2, true), (1, true)], "the other user keeps it");
    assert_eq!(clear(&engine, &bob, conversation, 2), None);
    let rows = ready(store.history(conversation, 0, PageLimit::MAX)).unwrap();
    assert!(rows.iter().all(InboxRow::is_erased), "a deleted user holds nothing back");
}
