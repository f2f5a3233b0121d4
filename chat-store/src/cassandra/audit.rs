//! Reads everything and proves what the store promises, while others may write.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use chat_core::backend::{Commit, ConversationState};
use chat_core::envelope::{Cell, InboxRow, RowContent};
use chat_core::wire::{decode_row, redo};
use chat_core::{ConversationId, ConversationKind, ErrorKind, InstallationId, MessageId, Result, Seq};
use futures_util::future::ready;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use scylla::deserialize::row::DeserializeRow;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;

use super::commit::{LATE_DAY, minute};
use super::link::unknown;
use super::{BUCKET, CassandraStore, corrupt, signed, unsigned};
use crate::audit::{Audit, broken};

/// Conversations or devices at once.
const AT_ONCE: usize = 16;
/// What looks broken may be half written: so often it is looked at again, and so long after.
const LOOKS: (u32, Duration) = (4, Duration::from_millis(500));

/// What a conversation's history was found to hold so far.
struct Log {
    next: Seq,
    last_time_us: u64,
    places: HashSet<(InstallationId, MessageId)>,
}

impl CassandraStore {
    /// Reads everything and proves what the store promises; see [`Audit`]. Messages may be sent and
    /// acknowledged meanwhile; what a fallen owner left to be finished counts as it will be then.
    ///
    /// # Errors
    /// `Corrupt` with what does not hold, `Unavailable` if Cassandra cannot be reached.
    pub async fn audit(&self) -> Result<Audit> {
        let states = self.stream::<(Vec<u8>,)>(&self.link.statements.conversations, ()).await?;
        let checked = states.map_ok(|(id,)| again(move || self.audit_conversation(id.clone())));
        let (conversations, messages) = checked
            .try_buffer_unordered(AT_ONCE)
            .try_fold((0, 0), |(count, sum), rows| ready(Ok((count + 1, sum + rows))))
            .await?;
        let mut days: HashMap<Vec<u8>, Vec<i32>> = HashMap::new();
        let mut partitions =
            self.stream::<(Vec<u8>, i32)>(&self.link.statements.inbox_partitions, ()).await?;
        while let Some((device, day)) = partitions.try_next().await? {
            days.entry(device).or_default().push(day);
        }
        let mut devices = 0;
        let mut known = self.stream::<(Vec<u8>,)>(&self.link.statements.devices, ()).await?;
        while let Some((device,)) = known.try_next().await? {
            devices += 1;
            days.entry(device).or_default();
        }
        drop(known);
        let inboxes = futures_util::stream::iter(days.into_iter().map(Ok));
        let checked =
            inboxes.map_ok(|(device, days)| again(move || self.audit_inbox(device.clone(), days.clone())));
        let waiting =
            checked.try_buffer_unordered(AT_ONCE).try_fold(0, |sum, rows| ready(Ok(sum + rows))).await?;
        let users = self.stream::<(Vec<u8>,)>(&self.link.statements.users, ()).await?;
        let accounts = users.try_fold(0, |count, _| ready(Ok(count + 1))).await?;
        Ok(Audit { conversations, messages, waiting, devices, accounts })
    }

    /// The rows of a statement, page by page.
    async fn stream<T>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<BoxStream<'static, Result<T>>>
    where
        T: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata> + Send + Unpin + 'static,
    {
        let rows = self.link.session.execute_iter(statement.clone(), values).await.map_err(unknown)?;
        Ok(rows.rows_stream::<T>().map_err(|_| corrupt())?.map_err(unknown).boxed())
    }

    /// A state with what may still have to be written of the commit that made it.
    async fn last_commit(&self, conversation: ConversationId) -> Result<Commit> {
        let found = self.state_and_redo(conversation).await?;
        let (state, redo) = found.unwrap_or_else(|| (ConversationState::default(), Vec::new()));
        redo::decode(redo.into(), conversation, state)
    }

    /// A conversation is dense from 1 to its head, its times rise, and each message has one place that its id
    /// leads to; gives how many rows it has.
    async fn audit_conversation(&self, id: Vec<u8>) -> Result<u64> {
        let conversation = ConversationId::parse(&id).map_err(|_| corrupt())?;
        let last = self.last_commit(conversation).await?;
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(0);
        }
        let head = last.state.head;
        let mut log = Log { next: 1, last_time_us: 0, places: HashSet::new() };
        for bucket in 0..=head.seq / BUCKET {
            let key = (&conversation.as_bytes()[..], signed(bucket));
            let rows = self.stream::<(Vec<u8>,)>(&self.link.statements.history_of, key).await?;
            let rows = rows.and_then(|(row,)| ready(decode_row(Bytes::from(row)).map_err(|_| corrupt())));
            let written = rows.try_filter(|row| ready(row.seq <= head.seq)).try_collect::<Vec<_>>().await?;
            let to_come = last.history.iter().filter(|row| row.seq / BUCKET == bucket).cloned();
            let mut rows: BTreeMap<Seq, InboxRow> = to_come.map(|row| (row.seq, row)).collect();
            rows.extend(written.into_iter().map(|row| (row.seq, row)));
            for row in rows.values() {
                log.take(row, conversation, head.time_us)?;
            }
            self.audit_ids(&last, rows.values()).await?;
        }
        if log.next != head.seq + 1 {
            return Err(broken("a conversation does not end at its head"));
        }
        Ok(head.seq)
    }

    /// The id of each message leads to it.
    async fn audit_ids(&self, last: &Commit, rows: impl Iterator<Item = &InboxRow>) -> Result<()> {
        let mut partitions: BTreeMap<(InstallationId, i32), Vec<(MessageId, Seq)>> = BTreeMap::new();
        for row in rows {
            if let RowContent::Message { message, .. } = &row.content {
                let key = (message.sender.installation, minute(message.id));
                partitions.entry(key).or_default().push((message.id, row.seq));
            }
        }
        for ((sender, minute), expected) in partitions {
            let found = self.ids_of(last.conversation, sender, minute).await?;
            let to_come = |id, seq| last.ids.contains(&(sender, id, seq));
            if !expected.iter().all(|(id, seq)| found.get(id) == Some(seq) || to_come(*id, *seq)) {
                return Err(broken("an id does not lead to its message"));
            }
        }
        Ok(())
    }

    /// The ids of a sender in one minute.
    pub(super) async fn ids_of(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        minute: i32,
    ) -> Result<HashMap<MessageId, Seq>> {
        let key = (&conversation.as_bytes()[..], &sender.as_bytes()[..], minute);
        let rows = self.link.rows(&self.link.statements.ids_of, key).await?;
        let rows = rows.rows::<(Vec<u8>, i64)>().map_err(|_| corrupt())?;
        rows.map(|row| {
            let (id, seq) = row.map_err(|_| corrupt())?;
            Ok((MessageId::parse(&id).map_err(|_| corrupt())?, unsigned(seq)))
        })
        .collect()
    }

    /// What waits for a device is shown to it, stands for what history holds, and is there up to its cells;
    /// gives how many rows that are.
    async fn audit_inbox(&self, device: Vec<u8>, days: Vec<i32>) -> Result<u64> {
        let device = InstallationId::parse(&device).map_err(|_| corrupt())?;
        // The cells first: what they reach was written with them, or is being written.
        let (standing, cells) = (self.standing(device).await?, self.all_cells(device).await?);
        let mut places: HashSet<(ConversationId, Seq)> = HashSet::new();
        for day in days {
            let key = (&device.as_bytes()[..], day);
            let mut rows = self.stream::<(Vec<u8>,)>(&self.link.statements.inbox_of, key).await?;
            while let Some((row,)) = rows.try_next().await? {
                let row = decode_row(Bytes::from(row)).map_err(|_| corrupt())?;
                let cell = cells.get(&row.conversation).copied().unwrap_or_default();
                if row.seq <= cell.acked || !self.audit_waiting(device, &row, cell).await? {
                    continue;
                }
                if day != LATE_DAY && row.time_us < standing.floor_us {
                    return Err(broken("a row waits below the floor of its inbox"));
                }
                places.insert((row.conversation, row.seq));
            }
        }
        for (conversation, cell) in cells.iter().filter(|(_, cell)| cell.acked < cell.tail) {
            if !places.contains(&(*conversation, cell.tail))
                && self.tail_to_come(*conversation, device).await? < cell.tail
            {
                return Err(broken("a cell reaches beyond its inbox"));
            }
        }
        Ok(places.len() as u64)
    }

    /// Whether a row that was not acknowledged waits: it does not if its commit failed half way. A row that
    /// waits is within its cell, and history holds what it stands for.
    async fn audit_waiting(&self, device: InstallationId, row: &InboxRow, cell: Cell) -> Result<bool> {
        let conversation = row.conversation;
        if !self.is_committed(conversation, row.seq).await? {
            return Ok(false);
        }
        if row.seq > cell.tail && self.tail_to_come(conversation, device).await? < row.seq {
            return Err(broken("an inbox row is outside of its cell"));
        }
        if conversation.kind() == Ok(ConversationKind::Mailbox) || row.is_expired() {
            return Ok(true);
        }
        let key = (&conversation.as_bytes()[..], signed(row.seq / BUCKET), signed(row.seq));
        let found = self.link.rows(&self.link.statements.history_at, key).await?;
        let there = match found.maybe_first_row::<(Vec<u8>,)>().map_err(|_| corrupt())? {
            Some((there,)) => Some(decode_row(Bytes::from(there)).map_err(|_| corrupt())?),
            None => {
                self.last_commit(conversation).await?.history.into_iter().find(|there| there.seq == row.seq)
            }
        };
        if there.is_some_and(|there| there.time_us == row.time_us && is_same(&there.content, &row.content)) {
            return Ok(true);
        }
        Err(broken("an inbox row stands for another message than history holds"))
    }
}

impl Log {
    fn take(&mut self, row: &InboxRow, conversation: ConversationId, head_time_us: u64) -> Result<()> {
        if row.seq != self.next || row.conversation != conversation {
            return Err(broken("a conversation is not dense"));
        }
        if row.time_us <= self.last_time_us || row.time_us > head_time_us {
            return Err(broken("the times of a conversation do not rise"));
        }
        if let RowContent::Message { message, .. } = &row.content
            && !self.places.insert((message.sender.installation, message.id))
        {
            return Err(broken("a message has two places"));
        }
        (self.next, self.last_time_us) = (row.seq + 1, row.time_us);
        Ok(())
    }
}

/// Whether a device's row is of the message that history holds.
fn is_same(history: &RowContent, inbox: &RowContent) -> bool {
    match (history, inbox) {
        (RowContent::Message { message, .. }, RowContent::Message { message: shown, .. }) => message == shown,
        (RowContent::Message { message, .. }, RowContent::Own { message_id, .. }) => {
            message.id == *message_id
        }
        _ => true,
    }
}

/// Looks again at what looks broken: somebody may be writing it.
async fn again<F: Future<Output = Result<u64>>>(look: impl Fn() -> F) -> Result<u64> {
    for _ in 1..LOOKS.0 {
        match look().await {
            Err(error) if error.kind() == ErrorKind::Corrupt => tokio::time::sleep(LOOKS.1).await,
            outcome => return outcome,
        }
    }
    look().await
}
