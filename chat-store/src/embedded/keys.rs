//! Encoding of keys and small values: fixed widths, big endian, so that byte order is the logical order.

use chat_core::envelope::{InboxCursor, InboxPosition};
use chat_core::{ConversationId, InstallationId, MessageId, Result, Seq, UserId};

use super::corrupt;

pub(super) fn history(conversation: ConversationId, seq: Seq) -> Vec<u8> {
    [&conversation.as_bytes()[..], &seq.to_be_bytes()].concat()
}

/// Returns the key of a message that disappears at a time.
pub(super) fn disappearing(due_us: u64, conversation: ConversationId, seq: Seq) -> Vec<u8> {
    [&due_us.to_be_bytes()[..], conversation.as_bytes(), &seq.to_be_bytes()].concat()
}

/// Returns the conversation and seq of a key of [`disappearing`].
pub(super) fn read_disappearing(key: &[u8]) -> Result<(ConversationId, Seq)> {
    if key.len() != 8 + 17 + 8 {
        return Err(corrupt());
    }
    Ok((ConversationId::parse(&key[8..25]).map_err(|_| corrupt())?, number(&key[25..])?))
}

pub(super) fn id(conversation: ConversationId, sender: InstallationId, id: MessageId) -> Vec<u8> {
    [&conversation.as_bytes()[..], sender.as_bytes(), id.as_bytes()].concat()
}

pub(super) fn cleared(conversation: ConversationId, user: UserId) -> Vec<u8> {
    [&conversation.as_bytes()[..], user.as_bytes()].concat()
}

/// Returns the key of a change of a feed.
pub(super) fn feed(device: InstallationId, conversation: ConversationId, seq: Seq) -> Vec<u8> {
    [&device.as_bytes()[..], conversation.as_bytes(), &seq.to_be_bytes()].concat()
}

/// Returns the conversation and the seq of a key of [`feed`].
pub(super) fn read_feed(key: &[u8]) -> Result<(ConversationId, Seq)> {
    if key.len() != 16 + 17 + 8 {
        return Err(corrupt());
    }
    Ok((ConversationId::parse(&key[16..33]).map_err(|_| corrupt())?, number(&key[33..])?))
}

pub(super) fn list_version(user: UserId, version: u64) -> Vec<u8> {
    [&user.as_bytes()[..], &version.to_be_bytes()].concat()
}

pub(super) fn sender(conversation: ConversationId, sender: InstallationId) -> Vec<u8> {
    [&conversation.as_bytes()[..], sender.as_bytes()].concat()
}

pub(super) fn inbox(device: InstallationId, position: InboxPosition) -> Vec<u8> {
    [
        &device.as_bytes()[..],
        &position.time_us.to_be_bytes(),
        position.conversation.as_bytes(),
        &position.seq.to_be_bytes(),
    ]
    .concat()
}

/// Returns the device and position of an inbox key.
pub(super) fn read_inbox(key: &[u8]) -> Result<(InstallationId, InboxPosition)> {
    if key.len() != 16 + 8 + 17 + 8 {
        return Err(corrupt());
    }
    let position = InboxPosition {
        time_us: number(&key[16..24])?,
        conversation: ConversationId::parse(&key[24..41]).map_err(|_| corrupt())?,
        seq: number(&key[41..49])?,
    };
    Ok((InstallationId::parse(&key[..16]).map_err(|_| corrupt())?, position))
}

pub(super) fn cursor(device: InstallationId, conversation: ConversationId) -> Vec<u8> {
    [&device.as_bytes()[..], conversation.as_bytes()].concat()
}

pub(super) fn cursor_value(cursor: InboxCursor) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&cursor.acked.to_be_bytes());
    value[8..].copy_from_slice(&cursor.tail.to_be_bytes());
    value
}

pub(super) fn read_cursor(value: &[u8]) -> Result<InboxCursor> {
    if value.len() != 16 {
        return Err(corrupt());
    }
    Ok(InboxCursor { acked: number(&value[..8])?, tail: number(&value[8..])? })
}

pub(super) fn number(bytes: &[u8]) -> Result<u64> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| corrupt())
}
