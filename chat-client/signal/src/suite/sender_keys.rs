//! Sender keys: a device encrypts a group message once, and each holder of its sender key decrypts it.
//!
//! | table | key | value |
//! |---|---|---|
//! | [`Table::OwnSenderKeys`] | group ‖ key id | record of libsignal |
//! | [`Table::SenderKeys`] | group ‖ sender ‖ key id | [`AcceptedKey`] |
//! | [`Table::SenderKeys`] | group ‖ sender | ids of the accepted keys, oldest first |

use chat_client::suite::{AcceptResult, DecryptResult, GroupCiphertext, Peer, SuiteTx, Table};
use chat_core::replica::Unreadable;
use chat_core::{ConversationId, InstallationId, Result, SenderKeyId};
use libsignal_protocol::{
    SenderKeyDistributionMessage, SenderKeyMessage, SenderKeyRecord, SignalProtocolError,
    create_sender_key_distribution_message, group_decrypt, group_encrypt,
    process_sender_key_distribution_message,
};
use prost::Message;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::{address, corrupt, own_address, ready, signal};
use crate::checks;
use crate::stores::OneSenderKey;

/// Maximum number of keys that are kept of one sender in one group.
const MAX_KEYS: usize = 8;

/// Maximum number of iterations that libsignal skips for one message.
const MAX_SKIP: u32 = 25_000;

/// Maximum number of segments of one key.
const MAX_SEGMENTS: usize = 2;

/// A sender key of another device.
#[derive(Clone, PartialEq, Message)]
struct AcceptedKey {
    #[prost(uint32, tag = "1")]
    chain_id: u32,
    #[prost(bytes = "vec", tag = "2")]
    signing_key: Vec<u8>,
    /// By rising iteration. A message belongs to the last segment that does not start after it, so no message can be
    /// opened by two segments.
    #[prost(message, repeated, tag = "3")]
    segments: Vec<Segment>,
}

/// The part of a sender key's chain that starts at one distribution. A second one exists only if that distribution was
/// more than [`MAX_SKIP`] iterations ahead of all opened messages.
#[derive(Clone, PartialEq, Message)]
struct Segment {
    /// Iteration of the distribution.
    #[prost(uint32, tag = "1")]
    first: u32,
    /// Iteration after the highest one that was opened.
    #[prost(uint32, tag = "2")]
    next: u32,
    /// The record of libsignal.
    #[prost(bytes = "vec", tag = "3")]
    record: Vec<u8>,
}

fn own_entry(group: ConversationId, key: SenderKeyId) -> Vec<u8> {
    [&group.as_bytes()[..], key.as_bytes()].concat()
}

fn sender_entry(group: ConversationId, sender: InstallationId) -> Vec<u8> {
    [&group.as_bytes()[..], sender.as_bytes()].concat()
}

fn accepted_entry(group: ConversationId, sender: InstallationId, key: &[u8]) -> Vec<u8> {
    [&group.as_bytes()[..], sender.as_bytes(), key].concat()
}

fn read_record(bytes: &[u8]) -> Result<OneSenderKey> {
    SenderKeyRecord::deserialize(bytes).map(|record| OneSenderKey(Some(record))).map_err(|_| corrupt())
}

fn write_record(store: &OneSenderKey) -> Result<Vec<u8>> {
    store.0.as_ref().ok_or_else(corrupt)?.serialize().map_err(signal)
}

fn read_accepted(tx: &mut dyn SuiteTx, entry: &[u8]) -> Result<Option<AcceptedKey>> {
    let bytes = tx.get(Table::SenderKeys, entry)?;
    bytes.map(|bytes| AcceptedKey::decode(&bytes[..])).transpose().map_err(|_| corrupt())
}

/// Encrypts a plaintext with a sender key of this device, and makes the key if it does not exist.
pub(super) fn seal(
    rng: &mut StdRng,
    tx: &mut dyn SuiteTx,
    group: ConversationId,
    key: SenderKeyId,
    plaintext: &[u8],
    distribute: bool,
) -> Result<GroupCiphertext> {
    let entry = own_entry(group, key);
    let known = tx.get(Table::OwnSenderKeys, &entry)?;
    let mut store = known.map(|bytes| read_record(&bytes)).transpose()?.unwrap_or_default();
    let (own, id) = (own_address()?, Uuid::from_bytes(*key.as_bytes()));
    // This call makes the key.
    let distribution =
        ready(create_sender_key_distribution_message(&own, id, &mut store, rng)).map_err(signal)?;
    let message = ready(group_encrypt(&mut store, &own, id, plaintext, rng)).map_err(signal)?;
    tx.put(Table::OwnSenderKeys, &entry, &write_record(&store)?)?;
    Ok(GroupCiphertext {
        shared: message.serialized().to_vec().into(),
        distribution: if distribute { distribution.serialized().to_vec().into() } else { Default::default() },
        control: Default::default(),
    })
}

/// Deletes a sender key of this device.
pub(super) fn drop_own(tx: &mut dyn SuiteTx, group: ConversationId, key: SenderKeyId) -> Result<()> {
    tx.delete(Table::OwnSenderKeys, &own_entry(group, key))
}

/// Accepts the sender key of another device.
pub(super) fn accept(
    tx: &mut dyn SuiteTx,
    group: ConversationId,
    sender: &Peer,
    distribution: &[u8],
) -> Result<AcceptResult> {
    let Ok(distribution) = SenderKeyDistributionMessage::try_from(distribution) else {
        return Ok(Err(Unreadable::Malformed));
    };
    let chain_id = distribution.chain_id().map_err(signal)?;
    let signing_key = distribution.signing_key().map_err(signal)?.serialize().to_vec();
    let first = distribution.iteration().map_err(signal)?;
    if checks::public_key(&signing_key).is_err() {
        return Ok(Err(Unreadable::Malformed));
    }
    let id = distribution.distribution_id().map_err(signal)?.into_bytes();
    let entry = accepted_entry(group, sender.installation, &id);
    let known = read_accepted(tx, &entry)?;
    let is_new = known.is_none();
    let mut key =
        known.unwrap_or(AcceptedKey { chain_id, signing_key: signing_key.clone(), segments: Vec::new() });
    if key.chain_id != chain_id || key.signing_key != signing_key {
        return Ok(Err(Unreadable::Malformed));
    }
    if key.segments.last().is_some_and(|last| first.saturating_sub(last.next) <= MAX_SKIP) {
        return Ok(Ok(()));
    }
    let mut store = OneSenderKey::default();
    ready(process_sender_key_distribution_message(&address(sender)?, &distribution, &mut store))
        .map_err(signal)?;
    key.segments.push(Segment { first, next: first, record: write_record(&store)? });
    if key.segments.len() > MAX_SEGMENTS {
        key.segments.remove(0);
    }
    if is_new {
        add_to_sender(tx, group, sender.installation, &id)?;
    }
    tx.put(Table::SenderKeys, &entry, &key.encode_to_vec())?;
    Ok(Ok(()))
}

/// Adds a key to the ids of its sender, and deletes the oldest keys above [`MAX_KEYS`].
fn add_to_sender(
    tx: &mut dyn SuiteTx,
    group: ConversationId,
    sender: InstallationId,
    id: &[u8; 16],
) -> Result<()> {
    let entry = sender_entry(group, sender);
    let ids = tx.get(Table::SenderKeys, &entry)?.unwrap_or_default();
    let (ids, []) = ids.as_chunks::<16>() else {
        return Err(corrupt());
    };
    let (old, kept) = ids.split_at((ids.len() + 1).saturating_sub(MAX_KEYS));
    for old in old {
        tx.delete(Table::SenderKeys, &accepted_entry(group, sender, old))?;
    }
    tx.put(Table::SenderKeys, &entry, &[kept.as_flattened(), id].concat())
}

/// Decrypts a message with the sender key of another device.
pub(super) fn open(
    tx: &mut dyn SuiteTx,
    group: ConversationId,
    sender: &Peer,
    shared: &[u8],
    control: &[u8],
) -> Result<DecryptResult> {
    let message = match SenderKeyMessage::try_from(shared) {
        Ok(message) if control.is_empty() => message,
        _ => return Ok(Err(Unreadable::Malformed)),
    };
    let entry = accepted_entry(group, sender.installation, message.distribution_id().as_bytes());
    let mut key = match read_accepted(tx, &entry)? {
        Some(key) if key.chain_id == message.chain_id() => key,
        _ => return Ok(Err(Unreadable::NoSession)),
    };
    let iteration = message.iteration();
    let Some(segment) = key.segments.iter_mut().rfind(|segment| segment.first <= iteration) else {
        return Ok(Err(Unreadable::Undecryptable));
    };
    let mut store = read_record(&segment.record)?;
    match ready(group_decrypt(shared, &mut store, &address(sender)?)) {
        Ok(plaintext) => {
            segment.next = segment.next.max(iteration.saturating_add(1));
            segment.record = write_record(&store)?;
            tx.put(Table::SenderKeys, &entry, &key.encode_to_vec())?;
            Ok(Ok(plaintext))
        }
        // libsignal verifies the signature before it counts the iterations.
        Err(SignalProtocolError::InvalidMessage(..)) if iteration.saturating_sub(segment.next) > MAX_SKIP => {
            Ok(Err(Unreadable::NoSession))
        }
        Err(_) => Ok(Err(Unreadable::Undecryptable)),
    }
}

#[cfg(test)]
mod tests;
