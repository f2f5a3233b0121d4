//! Inbox rows as they are stored: a message is in history only, and its inbox row refers to it.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use chat_core::backend::SenderFilter;
use chat_core::codec::{decode_row, encode_row, redo};
use chat_core::envelope::{InboxPosition, InboxRow, RowContent};
use chat_core::{ConversationId, ConversationKind, Result, Seq};
use futures_util::future::try_join_all;

use super::{BUCKET, CassandraStore, corrupt, signed, unsigned};

/// First byte of the value of a row that refers to history: the rest is this device's box. The value of any other row
/// is the encoded row, whose first byte is 0x0a.
const REFERENCE: u8 = 1;
/// As [`REFERENCE`], and the row is the device's first one of the conversation.
const JOINING_REFERENCE: u8 = 3;

/// Messages that one statement reads.
const MESSAGES: usize = 20;

/// An inbox row as stored.
#[derive(Clone, Debug)]
pub(super) struct StoredRow {
    pub position: InboxPosition,
    /// The size of the whole row.
    pub size: usize,
    pub value: Bytes,
}

/// Columns of a stored row: time, conversation, seq, size, value.
pub(super) type Columns = (i64, Vec<u8>, i64, i32, Vec<u8>);

impl StoredRow {
    pub(super) fn read(columns: Columns) -> Result<Self> {
        let (time_us, conversation, seq, size, value) = columns;
        let conversation = ConversationId::parse(&conversation).map_err(|_| corrupt())?;
        let position = InboxPosition { time_us: unsigned(time_us), conversation, seq: unsigned(seq) };
        Ok(Self { position, size: usize::try_from(size).unwrap_or(0), value: value.into() })
    }

    /// Returns whether the device joins with the message that the row refers to; `None` if it refers to none.
    pub(super) fn joins_with_message(&self) -> Option<bool> {
        self.is_reference().then(|| self.value.first() == Some(&JOINING_REFERENCE))
    }

    fn is_reference(&self) -> bool {
        matches!(self.value.first(), Some(&(REFERENCE | JOINING_REFERENCE)))
    }
}

/// Returns the stored value of an inbox row. Mailboxes have no history, so their rows are whole.
pub(super) fn value_of(row: &InboxRow) -> Vec<u8> {
    match &row.content {
        RowContent::Message { sealed, .. } if row.conversation.kind() != Ok(ConversationKind::Mailbox) => {
            let tag = if row.joined { JOINING_REFERENCE } else { REFERENCE };
            [&[tag][..], sealed].concat()
        }
        _ => encode_row(row),
    }
}

impl CassandraStore {
    /// Returns the whole row of each stored one.
    pub(super) async fn whole_rows(&self, stored: Vec<StoredRow>) -> Result<Vec<InboxRow>> {
        let referenced = stored.iter().filter(|row| row.is_reference());
        let mut messages = self.messages(referenced.map(|row| row.position)).await?;
        let whole = |row: StoredRow| {
            if !row.is_reference() {
                return decode_row(row.value).map_err(|_| corrupt());
            }
            let InboxPosition { conversation, seq, time_us } = row.position;
            let whole = messages.remove(&(conversation, seq)).ok_or_else(corrupt)?;
            let is_message = matches!(whole.content, RowContent::Message { .. }) || whole.is_erased();
            if !is_message || whole.time_us != time_us {
                return Err(corrupt());
            }
            Ok(whole.with_box(row.value.slice(1..), row.value[0] == JOINING_REFERENCE))
        };
        stored.into_iter().map(whole).collect()
    }

    /// Returns the history rows at these positions, as far as they exist.
    async fn messages(
        &self,
        positions: impl Iterator<Item = InboxPosition>,
    ) -> Result<HashMap<(ConversationId, Seq), InboxRow>> {
        let mut missing: BTreeMap<ConversationId, Vec<Seq>> = BTreeMap::new();
        for position in positions {
            missing.entry(position.conversation).or_default().push(position.seq);
        }
        let mut found = HashMap::new();
        self.take_written(&mut missing, &mut found).await?;
        if !missing.is_empty() {
            // The last commit may have written its inbox rows before its history.
            let redone = try_join_all(missing.keys().map(|conversation| self.redone(*conversation))).await?;
            found.extend(redone.into_iter().flatten().map(|row| ((row.conversation, row.seq), row)));
            missing.retain(|id, seqs| {
                seqs.retain(|seq| !found.contains_key(&(*id, *seq)));
                !seqs.is_empty()
            });
            // A later commit replaces the redo data once the history of this one is written.
            self.take_written(&mut missing, &mut found).await?;
        }
        Ok(found)
    }

    /// Returns the history row at a position, if it exists.
    pub(super) async fn message_at(&self, position: InboxPosition) -> Result<Option<InboxRow>> {
        let found = self.messages(std::iter::once(position)).await?;
        Ok(found.into_values().find(|row| row.seq == position.seq))
    }

    /// Moves the rows that history holds from `missing` to `found`.
    async fn take_written(
        &self,
        missing: &mut BTreeMap<ConversationId, Vec<Seq>>,
        found: &mut HashMap<(ConversationId, Seq), InboxRow>,
    ) -> Result<()> {
        let mut buckets: BTreeMap<(ConversationId, u64), Vec<i64>> = BTreeMap::new();
        for (conversation, seqs) in &*missing {
            for seq in seqs {
                buckets.entry((*conversation, seq / BUCKET)).or_default().push(signed(*seq));
            }
        }
        let pieces = buckets.iter().flat_map(|(place, seqs)| seqs.chunks(MESSAGES).map(move |s| (place, s)));
        let read = pieces.map(|((conversation, bucket), seqs)| async move {
            let key = (&conversation.as_bytes()[..], signed(*bucket), seqs);
            self.connection.rows(&self.connection.statements.history_in, key).await
        });
        for rows in try_join_all(read).await? {
            for row in rows.rows::<(Vec<u8>,)>().map_err(|_| corrupt())? {
                let (value,) = row.map_err(|_| corrupt())?;
                let row = decode_row(Bytes::from(value)).map_err(|_| corrupt())?;
                found.insert((row.conversation, row.seq), row);
            }
        }
        missing.retain(|id, seqs| {
            seqs.retain(|seq| !found.contains_key(&(*id, *seq)));
            !seqs.is_empty()
        });
        Ok(())
    }

    /// Returns the history rows in the redo data of a conversation's last commit.
    async fn redone(&self, conversation: ConversationId) -> Result<Vec<InboxRow>> {
        let found = self.state_and_redo(conversation, SenderFilter::No).await?;
        let Some((state, redo)) = found else { return Ok(Vec::new()) };
        Ok(redo::decode(redo.into(), conversation, state.head)?.history)
    }
}
