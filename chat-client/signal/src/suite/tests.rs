use super::test_device::Device;
use super::*;

#[test]
fn ended_session_restarts_and_messages_in_flight_decrypt() {
    let (mut alice, mut bob) = (Device::new(1), Device::new(2));
    let (a, b) = (alice.peer(), bob.peer());
    let bundle = bob.bundle(1);
    alice.suite.start_session(&mut alice.tx, &b, &bundle).unwrap();
    let hello = alice.seal(&b, "hello");
    assert_eq!(bob.open(&a, &hello), Ok(b"hello".to_vec()));
    let back = bob.seal(&a, "on its way");
    alice.suite.end_session(&mut alice.tx, b.installation).unwrap();
    assert_eq!(alice.suite.has_session(&mut alice.tx, &b), Ok(false));
    let again = bob.bundle(2);
    alice.suite.start_session(&mut alice.tx, &b, &again).unwrap();
    let anew = alice.seal(&b, "anew");
    assert_eq!(alice.open(&b, &back), Ok(b"on its way".to_vec()));
    assert_eq!(bob.open(&a, &anew), Ok(b"anew".to_vec()));
}

#[test]
fn reset_device_decrypts_only_messages_of_a_new_session() {
    let (mut alice, mut bob) = (Device::new(1), Device::new(2));
    let (a, b) = (alice.peer(), bob.peer());
    let bundle = bob.bundle(1);
    alice.suite.start_session(&mut alice.tx, &b, &bundle).unwrap();
    let hello = alice.seal(&b, "hello");
    assert!(bob.open(&a, &hello).is_ok());
    bob.suite.reset(&mut bob.tx).unwrap();
    let lost = alice.seal(&b, "lost");
    assert_eq!(bob.open(&a, &lost), Err(Unreadable::NoSession));
    // The device that was reset starts a session, and its peer answers in that session.
    let bundle = alice.bundle(1);
    bob.suite.start_session(&mut bob.tx, &a, &bundle).unwrap();
    let ask = bob.seal(&a, "again, please");
    assert!(alice.open(&b, &ask).is_ok());
    let again = alice.seal(&b, "lost");
    assert_eq!(bob.open(&a, &again), Ok(b"lost".to_vec()));
}

#[test]
fn expired_and_replayed_bundles_are_rejected() {
    let (mut alice, mut bob) = (Device::new(1), Device::new(2));
    let b = bob.peer();
    let old = bob.bundle(1);
    bob.tx.now_ms += 8 * DAY_MS;
    let new = bob.bundle(2);
    alice.tx.now_ms = bob.tx.now_ms;
    alice.suite.start_session(&mut alice.tx, &b, &new).unwrap();
    let refused = alice.suite.start_session(&mut alice.tx, &b, &old);
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::Invalid), "replayed");
    alice.tx.now_ms += 31 * DAY_MS;
    let refused = alice.suite.start_session(&mut alice.tx, &b, &new);
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::Invalid), "too old");
}

/// The fields of a Signal message that the tests change.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(bytes = "vec", optional, tag = "1")]
    ratchet_key: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "2")]
    counter: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    previous_counter: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "4")]
    ciphertext: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pq_ratchet: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "6")]
    addresses: Option<Vec<u8>>,
}

/// Replaces the post-quantum part of a message, as a server can: libsignal reads it before it verifies the message.
fn with_post_quantum_part(sealed: &[u8], part: &[u8]) -> Vec<u8> {
    use prost::Message;
    let (head, rest) = sealed.split_at(2);
    let (message, mac) = rest.split_at(rest.len() - 8);
    let wire = Wire::decode(message).unwrap();
    assert!(wire.pq_ratchet.is_some() && wire.encode_to_vec() == message, "the format of libsignal changed");
    let changed = Wire { pq_ratchet: Some(part.to_vec()), ..wire };
    [head, &changed.encode_to_vec(), mac].concat()
}

#[test]
fn malformed_post_quantum_part_is_unreadable_and_changes_nothing() {
    let (mut alice, mut bob) = (Device::new(1), Device::new(2));
    let (a, b) = (alice.peer(), bob.peer());
    let bundle = bob.bundle(1);
    alice.suite.start_session(&mut alice.tx, &b, &bundle).unwrap();
    let first = alice.seal(&b, "first");
    assert_eq!(bob.open(&a, &first), Ok(b"first".to_vec()));
    let sealed = bob.seal(&a, "second");
    assert_eq!(sealed[0], WHISPER);
    let malformed: [&[u8]; 4] = [
        &[1, 1, 0],
        &[1, 0, 0, 0],
        &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        &[1],
    ];
    for part in malformed {
        let changed = with_post_quantum_part(&sealed, part);
        assert_eq!(alice.open(&b, &changed), Err(Unreadable::Malformed), "{part:02x?}");
    }
    // Well formed, and not what the sender wrote.
    let changed = with_post_quantum_part(&sealed, &[1, 1, 0, 0]);
    assert_eq!(alice.open(&b, &changed), Err(Unreadable::Undecryptable));
    assert_eq!(alice.open(&b, &sealed), Ok(b"second".to_vec()));
}
