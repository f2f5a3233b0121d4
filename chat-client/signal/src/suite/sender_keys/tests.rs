use chat_client::suite::Suite;

use super::*;
use crate::suite::test_device::Device;

const GROUP: ConversationId = ConversationId::from_bytes([0x14; 17]);
const OTHER_GROUP: ConversationId = ConversationId::from_bytes([0x15; 17]);
const KEY: SenderKeyId = SenderKeyId::from_bytes([7; 16]);

fn text(text: &str) -> DecryptResult {
    Ok(text.as_bytes().to_vec())
}

/// Returns alice, bob and the peer alice. Bob accepted her key before its first message, which he has not opened.
fn alice_and_bob() -> (Device, Device, Peer, GroupCiphertext) {
    let (mut alice, mut bob) = (Device::new(1), Device::new(2));
    let a = alice.peer();
    let first = alice.seal_group(GROUP, KEY, "first");
    assert_eq!(bob.accept(GROUP, &a, &first.distribution), Ok(()));
    (alice, bob, a, first)
}

#[test]
fn two_devices_open_one_ciphertext_of_each_of_two_senders() {
    let (mut alice, mut bob, a, first) = alice_and_bob();
    let (mut carol, b) = (Device::new(3), bob.peer());
    assert_eq!(carol.accept(GROUP, &a, &first.distribution), Ok(()));
    // Bob's key has the same id: the ids of two devices are independent.
    let back = bob.seal_group(GROUP, KEY, "back");
    for device in [&mut alice, &mut carol] {
        assert_eq!(device.accept(GROUP, &b, &back.distribution), Ok(()));
        assert_eq!(device.open_group(GROUP, &b, &back.shared), text("back"));
    }
    let second = alice.suite.seal_group(&mut alice.tx, GROUP, KEY, b"second", false).unwrap();
    assert!(second.distribution.is_empty() && second.control.is_empty(), "not requested");
    for device in [&mut bob, &mut carol] {
        assert_eq!(device.open_group(GROUP, &a, &second.shared), text("second"));
        assert_eq!(device.open_group(GROUP, &a, &first.shared), text("first"), "in any order");
    }
}

#[test]
fn device_without_the_key_opens_only_messages_after_its_distribution() {
    let (mut alice, _, a, first) = alice_and_bob();
    let mut carol = Device::new(3);
    assert_eq!(carol.open_group(GROUP, &a, &first.shared), Err(Unreadable::NoSession));
    let second = alice.seal_group(GROUP, KEY, "second");
    assert_eq!(carol.open_group(GROUP, &a, &second.shared), Err(Unreadable::NoSession));
    assert_eq!(carol.accept(GROUP, &a, &second.distribution), Ok(()));
    assert_eq!(carol.open_group(GROUP, &a, &second.shared), text("second"));
    assert_eq!(carol.open_group(GROUP, &a, &first.shared), Err(Unreadable::Undecryptable));
    // An earlier distribution does not move the key back.
    assert_eq!(carol.accept(GROUP, &a, &first.distribution), Ok(()));
    assert_eq!(carol.open_group(GROUP, &a, &first.shared), Err(Unreadable::Undecryptable));
    assert_eq!(carol.open_group(GROUP, &a, &second.shared), Err(Unreadable::Undecryptable));
}

#[test]
fn replayed_message_is_undecryptable() {
    let (_, mut bob, a, first) = alice_and_bob();
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), text("first"));
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), Err(Unreadable::Undecryptable));
    assert_eq!(bob.accept(GROUP, &a, &first.distribution), Ok(()));
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), Err(Unreadable::Undecryptable), "distributed again");
}

#[test]
fn changed_bytes_are_refused_and_change_nothing() {
    let (mut alice, mut bob, a, first) = alice_and_bob();
    let tables = bob.tx.tables.clone();
    let mut reasons = Vec::new();
    for at in 0..first.shared.len() {
        for bit in 0..8 {
            let mut changed = first.shared.to_vec();
            changed[at] ^= 1 << bit;
            reasons.push(bob.open_group(GROUP, &a, &changed).unwrap_err());
        }
        assert!(bob.open_group(GROUP, &a, &first.shared[..at]).is_err(), "shortened to {at}");
    }
    for reason in [Unreadable::Malformed, Unreadable::NoSession, Unreadable::Undecryptable] {
        assert!(reasons.contains(&reason), "{reason:?}");
    }
    let control = bob.suite.open_group(&mut bob.tx, GROUP, &a, &first.shared, b"a commit").unwrap();
    assert_eq!(control, Err(Unreadable::Malformed));
    assert!(bob.tx.tables == tables);
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), text("first"));

    // A changed distribution never replaces a known key.
    let second = alice.seal_group(GROUP, KEY, "second");
    let tables = bob.tx.tables.clone();
    for at in 0..second.distribution.len() {
        for bit in 0..8 {
            let mut changed = second.distribution.to_vec();
            changed[at] ^= 1 << bit;
            let _ = bob.accept(GROUP, &a, &changed);
            assert_eq!(bob.open_group(GROUP, &a, &second.shared), text("second"), "byte {at}, bit {bit}");
            bob.tx.tables.clone_from(&tables);
        }
        assert_eq!(bob.accept(GROUP, &a, &second.distribution[..at]), Err(Unreadable::Malformed), "{at}");
    }
    assert!(bob.tx.tables == tables);
}

#[test]
fn distribution_with_an_unsafe_signing_key_is_malformed() {
    let (_, _, a, first) = alice_and_bob();
    let wire = SenderKeyDistributionMessage::try_from(&first.distribution[..]).unwrap();
    let key = wire.signing_key().unwrap().serialize();
    let at = first.distribution.windows(key.len()).position(|part| *part == key[..]).unwrap();
    let mut changed = first.distribution.to_vec();
    changed[at + 1..at + key.len()].fill(0);
    assert!(SenderKeyDistributionMessage::try_from(&changed[..]).is_ok(), "libsignal checks it by now");
    assert_eq!(Device::new(3).accept(GROUP, &a, &changed), Err(Unreadable::Malformed));
}

#[test]
fn other_key_with_a_known_id_is_malformed() {
    let (mut alice, mut bob, a, first) = alice_and_bob();
    let known = SenderKeyDistributionMessage::try_from(&first.distribution[..]).unwrap();
    let other = alice.seal_group(OTHER_GROUP, KEY, "other");
    let other = SenderKeyDistributionMessage::try_from(&other.distribution[..]).unwrap();
    let tables = bob.tx.tables.clone();
    for (chain, signing) in [(&other, &known), (&known, &other)] {
        let (chain_id, signing_key) = (chain.chain_id().unwrap(), *signing.signing_key().unwrap());
        let id = Uuid::from_bytes(*KEY.as_bytes());
        // Far ahead, because a distribution within reach changes nothing in any case.
        let mixed =
            SenderKeyDistributionMessage::new(3, id, chain_id, 2 * MAX_SKIP, vec![0; 32], signing_key);
        let refused = bob.accept(GROUP, &a, mixed.unwrap().serialized());
        assert_eq!(refused, Err(Unreadable::Malformed));
    }
    assert!(bob.tx.tables == tables);
}

#[test]
fn key_of_one_group_opens_no_message_of_another_group() {
    let (mut alice, mut bob, a, first) = alice_and_bob();
    assert_eq!(bob.open_group(OTHER_GROUP, &a, &first.shared), Err(Unreadable::NoSession));
    // Not even if both keys have the same id.
    let other = alice.seal_group(OTHER_GROUP, KEY, "other");
    assert_eq!(bob.accept(OTHER_GROUP, &a, &other.distribution), Ok(()));
    assert_eq!(bob.open_group(OTHER_GROUP, &a, &first.shared), Err(Unreadable::NoSession));
    assert_eq!(bob.open_group(OTHER_GROUP, &a, &other.shared), text("other"));
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), text("first"));
}

#[test]
fn other_installation_cannot_pass_as_the_owner_of_a_key() {
    let (_, mut bob, a, first) = alice_and_bob();
    let mut carol = Device::new(3);
    let c = carol.peer();
    assert_eq!(bob.open_group(GROUP, &c, &first.shared), Err(Unreadable::NoSession));
    // A key of carol with the same id opens nothing as alice, and replaces nothing.
    let forged = carol.seal_group(GROUP, KEY, "forged");
    assert_eq!(bob.accept(GROUP, &c, &forged.distribution), Ok(()));
    assert_eq!(bob.open_group(GROUP, &a, &forged.shared), Err(Unreadable::NoSession));
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), text("first"));
}

#[test]
fn later_distribution_keeps_skipped_messages() {
    let (mut alice, mut bob, a, first) = alice_and_bob();
    let second = alice.seal_group(GROUP, KEY, "second");
    let third = alice.seal_group(GROUP, KEY, "third");
    assert_eq!(bob.open_group(GROUP, &a, &second.shared), text("second"));
    assert_eq!(bob.accept(GROUP, &a, &third.distribution), Ok(()));
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), text("first"));
    assert_eq!(bob.open_group(GROUP, &a, &third.shared), text("third"));
    for message in [first, second, third] {
        assert_eq!(bob.accept(GROUP, &a, &message.distribution), Ok(()));
        assert_eq!(bob.open_group(GROUP, &a, &message.shared), Err(Unreadable::Undecryptable));
    }
}

#[test]
fn message_too_far_ahead_needs_a_new_distribution_which_keeps_the_messages_before() {
    let (mut alice, mut bob, a, first) = alice_and_bob();
    let sealed: Vec<_> = (1..=2 * MAX_SKIP + 3).map(|_| alice.seal_group(GROUP, KEY, "later")).collect();
    let at = |iteration: u32| &sealed[iteration as usize - 1];
    let far = at(MAX_SKIP + 1);
    assert_eq!(bob.open_group(GROUP, &a, &far.shared), Err(Unreadable::NoSession));
    let mut forged = far.shared.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(bob.open_group(GROUP, &a, &forged), Err(Unreadable::Undecryptable), "forged");
    // A distribution within reach changes nothing.
    let tables = bob.tx.tables.clone();
    assert_eq!(bob.accept(GROUP, &a, &at(MAX_SKIP).distribution), Ok(()));
    assert!(bob.tx.tables == tables);
    assert_eq!(bob.accept(GROUP, &a, &far.distribution), Ok(()));
    assert_eq!(bob.open_group(GROUP, &a, &at(MAX_SKIP + 2).shared), text("later"));
    assert_eq!(bob.open_group(GROUP, &a, &far.shared), text("later"));
    // The messages before are still readable, and each message only once, also within reach of both segments.
    assert_eq!(bob.open_group(GROUP, &a, &at(2).shared), text("later"));
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), text("first"));
    assert_eq!(bob.open_group(GROUP, &a, &far.shared), Err(Unreadable::Undecryptable));
    // It counts from the highest message that was opened.
    let farther = at(2 * MAX_SKIP + 3);
    let tables = bob.tx.tables.clone();
    assert_eq!(bob.accept(GROUP, &a, &farther.distribution), Ok(()));
    assert!(bob.tx.tables == tables);
    assert_eq!(bob.open_group(GROUP, &a, &farther.shared), text("later"), "25,000 ahead");
    // The third segment replaces the first, and takes no place of another key.
    let (mut dave, iteration) = (Device::new(4), |iteration: u32| &at(iteration).distribution);
    for start in [1, MAX_SKIP + 2, 2 * MAX_SKIP + 3] {
        assert_eq!(dave.accept(GROUP, &a, iteration(start)), Ok(()));
    }
    let ids = dave.tx.get(Table::SenderKeys, &sender_entry(GROUP, a.installation)).unwrap();
    assert_eq!(ids.as_deref(), Some(&KEY.as_bytes()[..]));
    assert_eq!(dave.open_group(GROUP, &a, &at(1).shared), Err(Unreadable::Undecryptable));
    assert_eq!(dave.open_group(GROUP, &a, &at(MAX_SKIP + 2).shared), text("later"));
    assert_eq!(dave.open_group(GROUP, &a, &farther.shared), text("later"));
}

#[test]
fn reset_drops_own_keys_and_keeps_those_of_others() {
    let (mut alice, mut bob, a, first) = alice_and_bob();
    bob.seal_group(GROUP, KEY, "mine");
    let before = bob.tx.get(Table::OwnSenderKeys, &own_entry(GROUP, KEY)).unwrap();
    assert!(before.is_some());
    bob.suite.reset(&mut bob.tx).unwrap();
    assert_eq!(bob.tx.get(Table::OwnSenderKeys, &own_entry(GROUP, KEY)), Ok(None));
    assert_eq!(bob.open_group(GROUP, &a, &first.shared), text("first"));
    // A key that is made again with a used id is another key: devices that know the id refuse it.
    alice.suite.reset(&mut alice.tx).unwrap();
    let again = alice.seal_group(GROUP, KEY, "again");
    assert_eq!(bob.accept(GROUP, &a, &again.distribution), Err(Unreadable::Malformed));
    assert_eq!(bob.open_group(GROUP, &a, &again.shared), Err(Unreadable::NoSession));
    let anew = alice.seal_group(GROUP, SenderKeyId::from_bytes([8; 16]), "anew");
    assert_eq!(bob.accept(GROUP, &a, &anew.distribution), Ok(()));
    assert_eq!(bob.open_group(GROUP, &a, &anew.shared), text("anew"));
}

#[test]
fn last_8_keys_of_a_sender_in_a_group_are_kept() {
    let (mut alice, mut bob) = (Device::new(1), Device::new(2));
    let (a, mut carol) = (alice.peer(), Device::new(3));
    let c = carol.peer();
    let other = alice.seal_group(OTHER_GROUP, KEY, "other group");
    let others = carol.seal_group(GROUP, KEY, "other sender");
    assert_eq!(bob.accept(OTHER_GROUP, &a, &other.distribution), Ok(()));
    assert_eq!(bob.accept(GROUP, &c, &others.distribution), Ok(()));
    let entries = bob.tx.tables.len();
    let sealed: Vec<_> =
        (0..20).map(|n| alice.seal_group(GROUP, SenderKeyId::from_bytes([n; 16]), "kept")).collect();
    for message in &sealed {
        assert_eq!(bob.accept(GROUP, &a, &message.distribution), Ok(()));
        // A known key takes no place of another one.
        assert_eq!(bob.accept(GROUP, &a, &message.distribution), Ok(()));
    }
    assert_eq!(bob.tx.tables.len(), entries + MAX_KEYS + 1);
    let (dropped, kept) = sealed.split_at(sealed.len() - MAX_KEYS);
    for message in dropped {
        assert_eq!(bob.open_group(GROUP, &a, &message.shared), Err(Unreadable::NoSession));
    }
    for message in kept {
        assert_eq!(bob.open_group(GROUP, &a, &message.shared), text("kept"));
    }
    assert_eq!(bob.open_group(OTHER_GROUP, &a, &other.shared), text("other group"));
    assert_eq!(bob.open_group(GROUP, &c, &others.shared), text("other sender"));
}

#[test]
fn dropped_sender_key_leaves_no_entry() {
    let mut alice = Device::new(1);
    alice.peer();
    let entries = alice.tx.tables.len();
    let other = SenderKeyId::from_bytes([8; 16]);
    alice.seal_group(GROUP, KEY, "one");
    alice.seal_group(GROUP, other, "two");
    alice.suite.drop_sender_key(&mut alice.tx, GROUP, KEY).unwrap();
    alice.suite.drop_sender_key(&mut alice.tx, OTHER_GROUP, other).unwrap();
    alice.suite.drop_sender_key(&mut alice.tx, GROUP, KEY).unwrap();
    assert_eq!(alice.tx.tables.len(), entries + 1);
    assert!(alice.tx.get(Table::OwnSenderKeys, &own_entry(GROUP, other)).unwrap().is_some());
}
