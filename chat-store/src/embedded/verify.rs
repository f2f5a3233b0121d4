//! Verification: reads all data of the embedded store and checks its invariants.

use std::collections::HashSet;

use chat_core::codec::{decode_row, state};
use chat_core::envelope::RowContent;
use chat_core::{ClientSeq, ConversationId, ConversationKind, Incarnation, InstallationId, Result};

use super::{Tables, corrupt, failed, keys};
use crate::verify::{Verification, broken};

pub(super) fn run(tables: &Tables) -> Result<Verification> {
    let mut found = Verification::default();
    for guard in tables.heads.iter() {
        let (key, value) = guard.into_inner().map_err(failed)?;
        let conversation = ConversationId::parse(&key).map_err(|_| corrupt())?;
        found.conversations += 1;
        let head = state::decode_head(&value)?;
        if conversation.kind() != Ok(ConversationKind::Mailbox) {
            found.messages += check_log(tables, conversation, head.seq, head.time_us)?;
        }
    }
    for guard in tables.ids.iter() {
        let (key, value) = guard.into_inner().map_err(failed)?;
        check_id(tables, &key, keys::number(&value)?)?;
    }
    for guard in tables.inbox.iter() {
        let (key, _) = guard.into_inner().map_err(failed)?;
        let (device, place) = keys::read_inbox(&key)?;
        let cursor =
            tables.read_cursor(device, place.conversation)?.ok_or(broken("an inbox row has no cursor"))?;
        if place.seq <= cursor.acked || place.seq > cursor.tail {
            return Err(broken("an inbox row is outside of its cursor"));
        }
        if tables.history.get(keys::history(place.conversation, place.seq)).map_err(failed)?.is_none() {
            return Err(broken("an inbox row has no message"));
        }
        found.waiting += 1;
    }
    found.devices = count(tables.devices.iter())?;
    found.accounts = count(tables.lists.iter())?;
    Ok(found)
}

fn count(rows: fjall::Iter) -> Result<u64> {
    rows.map(|guard| guard.value().map(|_| 1).map_err(failed)).sum()
}

fn check_log(tables: &Tables, conversation: ConversationId, head: u64, head_time: u64) -> Result<u64> {
    let mut next = 1;
    let mut last_time = 0;
    let mut seen: HashSet<(InstallationId, Incarnation, ClientSeq)> = HashSet::new();
    for guard in tables.history.prefix(conversation.as_bytes()) {
        let row = decode_row(guard.value().map_err(failed)?.into()).map_err(|_| corrupt())?;
        if row.seq != next || row.conversation != conversation {
            return Err(broken("a conversation is not dense"));
        }
        if row.time_us <= last_time || row.time_us > head_time {
            return Err(broken("the times of a conversation do not rise"));
        }
        if let RowContent::Message { message, .. } = &row.content
            && !seen.insert((message.sender.installation, message.incarnation, message.client_seq))
        {
            return Err(broken("a message has two places"));
        }
        (next, last_time) = (next + 1, row.time_us);
    }
    if next != head + 1 {
        return Err(broken("a conversation does not end at its head"));
    }
    Ok(head)
}

fn check_id(tables: &Tables, key: &[u8], seq: u64) -> Result<()> {
    if key.len() != 17 + 16 + 16 {
        return Err(corrupt());
    }
    let conversation = ConversationId::parse(&key[..17]).map_err(|_| corrupt())?;
    if conversation.kind() == Ok(ConversationKind::Mailbox) {
        return Ok(());
    }
    let value = tables.history.get(keys::history(conversation, seq)).map_err(failed)?;
    let row = decode_row(value.ok_or(broken("an id has no message"))?.into()).map_err(|_| corrupt())?;
    match &row.content {
        RowContent::Message { message, .. }
            if message.sender.installation.as_bytes()[..] != key[17..33]
                || message.id.as_bytes()[..] != key[33..] =>
        {
            Err(broken("an id refers to another message"))
        }
        _ => Ok(()),
    }
}
