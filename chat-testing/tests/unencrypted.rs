//! The sender keys of the suite for tests behave like those of a real suite.
#![allow(clippy::unwrap_used, missing_docs)]

use bytes::Bytes;
use chat_client::suite::{DecryptResult, GroupCiphertext, Peer, Suite};
use chat_core::replica::Unreadable;
use chat_core::{ConversationId, DeviceId, InstallationId, SenderKeyId};
use chat_testing::{SuiteTables, Unencrypted};

const GROUP: ConversationId = ConversationId::from_bytes([0x14; 17]);
const KEY: SenderKeyId = SenderKeyId::from_bytes([7; 16]);

fn seal(tx: &mut SuiteTables, text: &str) -> GroupCiphertext {
    Unencrypted::new().seal_group(tx, GROUP, KEY, text.as_bytes(), true).unwrap()
}

fn open(
    tx: &mut SuiteTables,
    group: ConversationId,
    from: &Peer,
    message: &GroupCiphertext,
) -> DecryptResult {
    Unencrypted::new().open_group(tx, group, from, &message.shared, &message.control).unwrap()
}

#[test]
fn group_message_opens_once_and_only_with_its_sender_key() {
    let peer = |n| Peer {
        installation: InstallationId::from_bytes([n; 16]),
        device: DeviceId::PRIMARY,
        identity: Bytes::new(),
    };
    let (alice, carol, mut suite) = (peer(1), peer(3), Unencrypted::new());
    let (mut a, mut b) = (SuiteTables::default(), SuiteTables::default());
    let (first, second) = (seal(&mut a, "first"), seal(&mut a, "second"));
    assert_eq!(open(&mut b, GROUP, &alice, &second), Err(Unreadable::NoSession));
    let mut accept = |tx: &mut SuiteTables, distribution: &[u8]| {
        suite.accept_sender_key(tx, GROUP, &alice, distribution).unwrap()
    };
    assert_eq!(accept(&mut b, &second.distribution), Ok(()));
    assert_eq!(accept(&mut b, &first.distribution), Ok(()));
    assert_eq!(accept(&mut b, b"short"), Err(Unreadable::Malformed));
    assert_eq!(open(&mut b, GROUP, &alice, &first), Err(Unreadable::Undecryptable));
    assert_eq!(open(&mut b, GROUP, &carol, &second), Err(Unreadable::NoSession));
    let other_group = ConversationId::from_bytes([0x15; 17]);
    assert_eq!(open(&mut b, other_group, &alice, &second), Err(Unreadable::NoSession));
    let without_control = GroupCiphertext { control: Bytes::new(), ..second.clone() };
    assert_eq!(open(&mut b, GROUP, &alice, &without_control), Err(Unreadable::Malformed));
    assert_eq!(open(&mut b, GROUP, &alice, &second), Ok(b"second".to_vec()));
    assert_eq!(open(&mut b, GROUP, &alice, &second), Err(Unreadable::Undecryptable));
    // A reset makes another key of the same id.
    Unencrypted::new().reset(&mut a).unwrap();
    let again = seal(&mut a, "again");
    assert_eq!(accept(&mut b, &again.distribution), Err(Unreadable::Malformed));
    assert_eq!(open(&mut b, GROUP, &alice, &again), Err(Unreadable::NoSession));
    Unencrypted::new().drop_sender_key(&mut a, GROUP, KEY).unwrap();
    assert!(a.is_empty());
}
