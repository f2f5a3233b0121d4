//! Reads. Each reads one snapshot of all tables, which holds a commit whole or not at all: a read without one could see
//! the first rows of a commit that the writer is applying. The data read is durable, or soon will be and is harmless to
//! read early.

use std::collections::BTreeMap;

use bytes::Bytes;
use chat_core::backend::{ConversationState, CursorFilter, Feed, PageLimit, SenderFilter};
use chat_core::codec::{decode_row, encode_row, state};
use chat_core::envelope::{InboxCursor, InboxPosition, InboxRow, RowContent};
use chat_core::{ConversationId, ConversationKind, InstallationId, MessageId, Result, Seq};
use fjall::Readable;

use super::{Tables, corrupt, failed, keys};

/// Flag in the first byte of an inbox value: the rest is this device's box. Without it the rest is an encoded
/// row.
const MESSAGE: u8 = 1;
/// Flag in the first byte of an inbox value: the message is the device's first row of the conversation.
const JOINED: u8 = 2;
/// Flag in the first byte of an inbox value: the rest is a row with content that the writer did not know.
const UNKNOWN: u8 = 4;

/// Returns the inbox value of a row. That of a message holds only this device's box; the rest is in history.
pub(super) fn inbox_value(row: &InboxRow) -> Vec<u8> {
    match &row.content {
        RowContent::Message { sealed, .. } => {
            let mut value = Vec::with_capacity(1 + sealed.len());
            value.push(MESSAGE | if row.joined { JOINED } else { 0 });
            value.extend_from_slice(sealed);
            value
        }
        content => {
            let mut value = vec![if matches!(content, RowContent::Unknown(_)) { UNKNOWN } else { 0 }];
            value.extend(encode_row(row));
            value
        }
    }
}

/// Returns whether a device joins with the message of an inbox value; `None` if the value is that of no message.
pub(super) fn joins_with_message(value: &[u8]) -> Option<bool> {
    value.first().filter(|tag| **tag & MESSAGE != 0).map(|tag| tag & JOINED != 0)
}

/// Returns the size of the inbox row with this value. `history` is the history row of its message.
pub(super) fn inbox_size(history: &InboxRow, value: &[u8]) -> usize {
    match value.first() {
        // The message may have lost its content.
        Some(tag) if tag & MESSAGE != 0 => {
            let has_content = matches!(history.content, RowContent::Message { .. });
            history.size() + if has_content { value.len() - 1 } else { 0 }
        }
        Some(tag) if tag & UNKNOWN != 0 => value.len() - 1,
        _ => 64,
    }
}

impl Tables {
    pub(super) fn head_seq(&self, view: &impl Readable, conversation: ConversationId) -> Result<Seq> {
        let value = view.get(&self.heads, conversation.as_bytes()).map_err(failed)?;
        value.map_or(Ok(0), |value| state::decode_head(&value).map(|head| head.seq))
    }

    pub(super) fn read_state(
        &self,
        conversation: ConversationId,
        filter: SenderFilter<'_>,
    ) -> Result<Option<ConversationState>> {
        let view = self.database.snapshot();
        let get = |table, key: &[u8]| view.get(table, key).map_err(failed);
        let Some(head) = get(&self.heads, conversation.as_bytes())? else { return Ok(None) };
        let members = get(&self.members, conversation.as_bytes())?;
        let mut senders = BTreeMap::new();
        match filter {
            SenderFilter::No => {}
            SenderFilter::Of(named) => {
                for sender in named {
                    if let Some(value) = get(&self.senders, &keys::sender(conversation, *sender))? {
                        senders.insert(*sender, state::decode_sender(&value)?);
                    }
                }
            }
            SenderFilter::All => {
                for guard in view.prefix(&self.senders, conversation.as_bytes()) {
                    let (key, value) = guard.into_inner().map_err(failed)?;
                    let sender = InstallationId::parse(key.get(17..).unwrap_or_default());
                    senders.insert(sender.map_err(|_| corrupt())?, state::decode_sender(&value)?);
                }
            }
        }
        Ok(Some(ConversationState {
            head: state::decode_head(&head)?,
            roster: members.map(|members| state::decode_roster(&members)).transpose()?.unwrap_or_default(),
            senders,
        }))
    }

    pub(super) fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        let view = self.database.snapshot();
        let Some(seq) = view.get(&self.ids, keys::id(conversation, sender, id)).map_err(failed)? else {
            return Ok(None);
        };
        let seq = keys::number(&seq)?;
        Ok((seq <= self.head_seq(&view, conversation)?).then_some(seq))
    }

    pub(super) fn read_inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let mut start = keys::inbox(device, after);
        start.push(0);
        let mut end = keys::inbox(device, after);
        end[16..].fill(0xff);
        let view = self.database.snapshot();
        let mut rows: Vec<InboxRow> = Vec::new();
        let mut bytes = 0;
        let mut heads: std::collections::HashMap<ConversationId, Seq> = std::collections::HashMap::new();
        for guard in view.range(&self.inbox, start..=end) {
            let (key, value) = guard.into_inner().map_err(failed)?;
            let (_, place) = keys::read_inbox(&key)?;
            let head = match heads.get(&place.conversation) {
                Some(head) => *head,
                None => {
                    let head = self.head_seq(&view, place.conversation)?;
                    heads.insert(place.conversation, head);
                    head
                }
            };
            if place.seq > head {
                continue;
            }
            let row = self.inbox_row(&view, place, value.into())?;
            bytes += row.size();
            rows.push(row);
            if rows.len() >= limit.rows || bytes >= limit.bytes {
                break;
            }
        }
        Ok(rows)
    }

    fn inbox_row(&self, view: &impl Readable, position: InboxPosition, value: Bytes) -> Result<InboxRow> {
        let tag = *value.first().ok_or_else(corrupt)?;
        let rest = value.slice(1..);
        if tag & MESSAGE == 0 {
            return decode_row(rest).map_err(|_| corrupt());
        }
        let history =
            view.get(&self.history, keys::history(position.conversation, position.seq)).map_err(failed)?;
        let row = decode_row(history.ok_or_else(corrupt)?.into()).map_err(|_| corrupt())?;
        if !matches!(row.content, RowContent::Message { .. }) && !row.is_erased() {
            return Err(corrupt());
        }
        Ok(row.with_box(rest, tag & JOINED != 0))
    }

    pub(super) fn read_history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let view = self.database.snapshot();
        let head = self.head_seq(&view, conversation)?;
        let last = if before == 0 { head } else { head.min(before - 1) };
        let mut rows = Vec::new();
        let mut bytes = 0;
        if last == 0 || conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(rows);
        }
        let range = keys::history(conversation, 1)..=keys::history(conversation, last);
        for guard in view.range(&self.history, range).rev() {
            let row = decode_row(guard.value().map_err(failed)?.into()).map_err(|_| corrupt())?;
            bytes += row.size();
            rows.push(row);
            if rows.len() >= limit.rows || bytes >= limit.bytes {
                break;
            }
        }
        Ok(rows)
    }

    pub(super) fn read_history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let view = self.database.snapshot();
        let head = self.head_seq(&view, conversation)?;
        let mut rows = Vec::new();
        let mut bytes = 0;
        if after >= head || conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(rows);
        }
        let range = keys::history(conversation, after + 1)..=keys::history(conversation, head);
        for guard in view.range(&self.history, range) {
            let row = decode_row(guard.value().map_err(failed)?.into()).map_err(|_| corrupt())?;
            bytes += row.size();
            rows.push(row);
            if rows.len() >= limit.rows || bytes >= limit.bytes {
                break;
            }
        }
        Ok(rows)
    }

    pub(super) fn read_feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        let view = self.database.snapshot();
        let mut feeds: Vec<Feed> = Vec::new();
        for guard in view.prefix(&self.feeds, device.as_bytes()) {
            let (key, joins) = guard.into_inner().map_err(failed)?;
            let (conversation, seq) = keys::read_feed(&key)?;
            if seq > self.head_seq(&view, conversation)? {
                continue;
            }
            let change = (seq, joins.first() == Some(&1));
            match feeds.last_mut().filter(|feed| feed.conversation == conversation) {
                Some(feed) => feed.changes.push(change),
                None => {
                    let acked = self.read_cursor(device, conversation)?.map_or(0, |cursor| cursor.acked);
                    feeds.push(Feed { conversation, acked, changes: vec![change] });
                }
            }
        }
        Ok(feeds)
    }

    /// Returns the highest seq of a feed that a device may acknowledge; 0 if the conversation is no feed for it.
    pub(super) fn feed_head(&self, device: InstallationId, conversation: ConversationId) -> Result<Seq> {
        let view = self.database.snapshot();
        let is_feed = view.prefix(&self.feeds, keys::cursor(device, conversation)).next().is_some();
        if is_feed { self.head_seq(&view, conversation) } else { Ok(0) }
    }

    pub(super) fn read_generation(&self, device: InstallationId) -> Result<u64> {
        self.devices.get(device.as_bytes()).map_err(failed)?.map_or(Ok(0), |value| keys::number(&value))
    }

    pub(super) fn read_cursor(
        &self,
        device: InstallationId,
        conversation: ConversationId,
    ) -> Result<Option<InboxCursor>> {
        let value = self.cursors.get(keys::cursor(device, conversation)).map_err(failed)?;
        value.map(|value| keys::read_cursor(&value)).transpose()
    }

    pub(super) fn read_cursors(
        &self,
        device: InstallationId,
        want: CursorFilter,
    ) -> Result<Vec<(ConversationId, InboxCursor)>> {
        match want {
            CursorFilter::No => Ok(Vec::new()),
            CursorFilter::Of(conversation) => Ok(self
                .read_cursor(device, conversation)?
                .map(|cursor| (conversation, cursor.with_feed()))
                .into_iter()
                .collect()),
            CursorFilter::All => self
                .cursors
                .prefix(device.as_bytes())
                .map(|guard| {
                    let (key, value) = guard.into_inner().map_err(failed)?;
                    let conversation = ConversationId::parse(key.get(16..).unwrap_or_default());
                    Ok((conversation.map_err(|_| corrupt())?, keys::read_cursor(&value)?.with_feed()))
                })
                .collect(),
        }
    }
}
