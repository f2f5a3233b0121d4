//! Verification: reads all data of the store and checks its invariants, while nodes may write.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use chat_core::backend::{Commit, ConversationState, SenderFilter};
use chat_core::codec::{decode_row, redo};
use chat_core::envelope::{EmptyReason, InboxCursor, InboxPosition, InboxRow, RowContent};
use chat_core::{
    ClientSeq, ConversationId, ConversationKind, Error, ErrorKind, Incarnation, InstallationId, MessageId,
    Result, Seq,
};
use futures_util::future::ready;
use futures_util::stream::TryStreamExt as _;

use super::commit::{LATE_DAY, minute, now_us};
use super::inbox::DeviceMeta;
use super::stored_row::{Columns, StoredRow};
use super::{BUCKET, CassandraStore, corrupt, signed, unsigned};
use crate::verify::{Verification, broken};

/// Conversations or devices that are checked concurrently.
const VERIFY_CONCURRENCY: usize = 16;
/// Number of attempts of a check, and the pause between them. Data that looks broken may be half written, and
/// a node that does not answer may answer later.
const LOOKS: (u32, Duration) = (4, Duration::from_millis(500));

/// The compared fields of a history row.
struct Placed {
    seq: Seq,
    time_us: u64,
    /// Sender, its incarnation, its `client_seq`, and the message id. `None` if the row is not a message.
    message: Option<(InstallationId, Incarnation, ClientSeq, MessageId)>,
}

/// Progress of the check of a conversation's history.
struct Log {
    next: Seq,
    last_time_us: u64,
    numbers: HashSet<(InstallationId, Incarnation, ClientSeq)>,
}

/// An unacknowledged row of a device's inbox.
#[derive(Clone, Copy)]
struct Waiting {
    first_seq: Seq,
    /// Whether seqs may be missing before this row: the device joined here, or the row is a skip, which may be the device's
    /// own and precede its membership.
    begins: bool,
    /// Whether reads of the device's inbox cover the position of the row.
    is_read: bool,
}

impl CassandraStore {
    /// Reads conversations, ids and inboxes, and checks their invariants; see [`Verification`]. Devices may
    /// send and acknowledge messages meanwhile. A commit that a failed owner left unfinished counts as if it
    /// were finished. The count of devices includes every device with stored cursors or a generation. Rows of
    /// mailboxes are checked in inboxes only.
    ///
    /// # Errors
    /// `Corrupt` with the violated invariant; its source names the conversation or device. `Unavailable` if
    /// Cassandra repeatedly does not answer.
    pub async fn verify(&self) -> Result<Verification> {
        let states =
            self.connection.stream::<(Vec<u8>,)>(&self.connection.statements.conversations, ()).await?;
        let checked = states
            .map_ok(|(id,)| again("conversation", id.clone(), move || self.verify_conversation(id.clone())));
        let (conversations, messages) = checked
            .try_buffer_unordered(VERIFY_CONCURRENCY)
            .try_fold((0, 0), |(count, sum), rows| ready(Ok((count + 1, sum + rows))))
            .await?;
        let began_us = now_us();
        let (days, devices) = self.inboxes().await?;
        let inboxes = futures_util::stream::iter(days.into_iter().map(Ok));
        let checked = inboxes.map_ok(|(device, days)| {
            again("device", device.clone(), move || self.verify_inbox(device.clone(), days.clone(), began_us))
        });
        let waiting = checked
            .try_buffer_unordered(VERIFY_CONCURRENCY)
            .try_fold(0, |sum, rows| ready(Ok(sum + rows)))
            .await?;
        let handles = &self.connection.statements.account_handles;
        let handles = self.connection.stream::<(Option<String>,)>(handles, ()).await?;
        // A deleted account has none.
        let count = |count, (handle,): (Option<String>,)| ready(Ok(count + u64::from(handle.is_some())));
        let accounts = handles.try_fold(0, count).await?;
        Ok(Verification { conversations, messages, waiting, devices, accounts })
    }

    /// Returns the days of each inbox, and the number of devices with cursors.
    async fn inboxes(&self) -> Result<(HashMap<Vec<u8>, BTreeSet<i32>>, u64)> {
        let mut days: HashMap<Vec<u8>, BTreeSet<i32>> = HashMap::new();
        let mut partitions = self
            .connection
            .stream::<(Vec<u8>, i32)>(&self.connection.statements.inbox_partitions, ())
            .await?;
        while let Some((device, day)) = partitions.try_next().await? {
            days.entry(device).or_default().insert(day);
        }
        let (mut known, mut devices) =
            (self.connection.stream::<(Vec<u8>,)>(&self.connection.statements.devices, ()).await?, 0);
        while let Some((device,)) = known.try_next().await? {
            devices += 1;
            days.entry(device).or_default();
        }
        Ok((days, devices))
    }

    /// Returns a conversation's last commit: the head and members of its state, and the rows in its redo data, which
    /// may not be written yet.
    async fn last_commit(&self, conversation: ConversationId) -> Result<Commit> {
        let found = self.state_and_redo(conversation, SenderFilter::No).await?;
        let (state, redo) = found.unwrap_or_else(|| (ConversationState::default(), Vec::new()));
        let mut commit = redo::decode(redo.into(), conversation, state.head)?;
        commit.state.roster = Some(state.roster);
        Ok(commit)
    }

    /// Checks that a conversation is dense from 1 to its head, that its times rise, and that each number of a
    /// sender has one seq, to which its id refers. Returns the number of rows.
    async fn verify_conversation(&self, id: Vec<u8>) -> Result<u64> {
        let conversation = ConversationId::parse(&id).map_err(|_| corrupt())?;
        let last = self.last_commit(conversation).await?;
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(0);
        }
        let head = last.state.head;
        let mut log = Log { next: 1, last_time_us: 0, numbers: HashSet::new() };
        for bucket in 0..=head.seq / BUCKET {
            let to_come = last.history.iter().filter(|row| row.seq / BUCKET == bucket);
            let mut rows: BTreeMap<Seq, Placed> = to_come.map(|row| (row.seq, Placed::new(row))).collect();
            let key = (&conversation.as_bytes()[..], signed(bucket));
            let mut written =
                self.connection.stream::<(Vec<u8>,)>(&self.connection.statements.history_of, key).await?;
            while let Some((row,)) = written.try_next().await? {
                let row = decode_row(Bytes::from(row)).map_err(|_| corrupt())?;
                if row.conversation != conversation {
                    return Err(broken("a history row belongs to another conversation"));
                }
                if row.seq <= head.seq {
                    rows.insert(row.seq, Placed::new(&row));
                }
            }
            for row in rows.values() {
                log.take(row, head.time_us)?;
            }
            self.verify_ids(&last, rows.values()).await?;
        }
        if log.next != head.seq + 1 {
            return Err(broken("a conversation does not end at its head"));
        }
        Ok(head.seq)
    }

    /// Checks that the id of each message refers to its seq, or to a later seq for which its sender reused
    /// the id.
    async fn verify_ids(&self, last: &Commit, rows: impl Iterator<Item = &Placed>) -> Result<()> {
        let mut partitions: BTreeMap<(InstallationId, i32), Vec<(MessageId, Seq)>> = BTreeMap::new();
        for row in rows {
            if let Some((sender, _, _, id)) = row.message {
                partitions.entry((sender, minute(id))).or_default().push((id, row.seq));
            }
        }
        for ((sender, minute), expected) in partitions {
            let found = self.ids_of(last.conversation, sender, minute).await?;
            let to_come = |id, seq| last.ids.contains(&(sender, id, seq));
            let leads = |id: &MessageId, seq: Seq| found.get(id).is_some_and(|there| *there >= seq);
            if !expected.iter().all(|(id, seq)| leads(id, *seq) || to_come(*id, *seq)) {
                return Err(broken("an id does not refer to its message"));
            }
        }
        Ok(())
    }

    /// Returns the ids of a sender in one minute.
    pub(super) async fn ids_of(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        minute: i32,
    ) -> Result<HashMap<MessageId, Seq>> {
        let key = (&conversation.as_bytes()[..], &sender.as_bytes()[..], minute);
        let rows = self.connection.rows(&self.connection.statements.ids_of, key).await?;
        let rows = rows.rows::<(Vec<u8>, i64)>().map_err(|_| corrupt())?;
        rows.map(|row| {
            let (id, seq) = row.map_err(|_| corrupt())?;
            Ok((MessageId::parse(&id).map_err(|_| corrupt())?, unsigned(seq)))
        })
        .collect()
    }

    /// Checks that a device's unacknowledged rows have no hole up to the tails of its cursors, that reads
    /// cover them, and that they match history. Returns the number of these rows.
    async fn verify_inbox(&self, device: Vec<u8>, mut days: BTreeSet<i32>, began_us: u64) -> Result<u64> {
        let device = InstallationId::parse(&device).map_err(|_| corrupt())?;
        // The cursors are read first: the rows up to their tails are written, or are being written.
        let (meta, cursors) = (self.meta(device).await?, self.all_cursors(device).await?);
        let mut waiting: HashMap<ConversationId, BTreeMap<Seq, Waiting>> =
            cursors.keys().map(|conversation| (*conversation, BTreeMap::new())).collect();
        // New days may have begun since `days` was read.
        days.extend(Self::days(meta, began_us).chain([LATE_DAY]));
        for day in days {
            let key = (&device.as_bytes()[..], day);
            let mut rows =
                self.connection.stream::<Columns>(&self.connection.statements.inbox_of, key).await?;
            while let Some(columns) = rows.try_next().await? {
                let stored = StoredRow::read(columns)?;
                let InboxPosition { conversation, seq, .. } = stored.position;
                let acked = cursors.get(&conversation).map_or(0, |cursor| cursor.acked);
                if seq > acked && self.is_committed(conversation, seq).await? {
                    let row = self.whole_row(stored).await?;
                    let there = self.verify_content(device, &row).await?;
                    let found = Waiting::new(&row, there.as_ref());
                    let place = waiting.entry(row.conversation).or_default().entry(row.seq);
                    place.or_insert(found).is_read |= is_read(meta, day, &row);
                }
            }
        }
        let mut count = 0;
        for (conversation, rows) in waiting {
            let cursor = cursors.get(&conversation).copied().unwrap_or_default();
            count += self.verify_rows(device, conversation, cursor, rows).await?;
        }
        Ok(count)
    }

    /// Checks the unacknowledged rows of one conversation. `before` is its cursor, read before the rows.
    async fn verify_rows(
        &self,
        device: InstallationId,
        conversation: ConversationId,
        before: InboxCursor,
        mut rows: BTreeMap<Seq, Waiting>,
    ) -> Result<u64> {
        let last = self.last_commit(conversation).await?;
        // The cursor is read after the state: it covers every commit that is not in the redo data.
        let cursors = self.cursors_of(device, &HashSet::from([conversation])).await?;
        let cursor = cursors.get(&conversation).copied().unwrap_or_default();
        let to_come = last.inbox.iter().filter(|(owner, _)| *owner == device).map(|(_, row)| row);
        let mut reach = cursor.tail;
        // Rows above `looked_for` arrived after the scan.
        let looked_for = rows.keys().next_back().map_or(before.tail, |last| before.tail.max(*last));
        for row in to_come.filter(|row| row.seq <= looked_for) {
            reach = reach.max(row.seq);
            let there = last.history.iter().find(|there| there.seq == row.seq);
            rows.entry(row.seq).or_insert(Waiting { is_read: true, ..Waiting::new(row, there) });
        }
        let mut members = last.state.roster.iter().flat_map(|roster| &roster.members);
        let is_member = conversation.kind() == Ok(ConversationKind::Mailbox)
            || members.any(|member| member.installations.contains(&device));
        rows.retain(|seq, _| *seq > cursor.acked);
        let mut above = cursor.acked;
        for (seq, row) in &rows {
            if *seq > reach {
                return Err(broken("an inbox row is outside of its cursor"));
            }
            if !row.is_read {
                return Err(broken("reads of an inbox miss a row"));
            }
            let may_have_holes = row.begins || last.state.head.is_feed;
            if row.first_seq > above + 1 && !may_have_holes && is_member {
                return Err(broken("an inbox has a hole"));
            }
            above = *seq;
        }
        if before.tail > above && self.is_committed(conversation, before.tail).await? {
            return Err(broken("the tail of a cursor is above its inbox"));
        }
        Ok(rows.len() as u64)
    }

    /// Returns the whole row of a stored one.
    async fn whole_row(&self, stored: StoredRow) -> Result<InboxRow> {
        let whole = self.whole_rows(vec![stored]).await.map_err(|error| match error.kind() {
            ErrorKind::Corrupt => broken("an inbox row does not match history"),
            _ => error,
        })?;
        whole.into_iter().next().ok_or_else(corrupt)
    }

    /// Checks that history holds the message of an inbox row. Returns the history row; `None` for mailboxes
    /// and expired rows.
    async fn verify_content(&self, device: InstallationId, row: &InboxRow) -> Result<Option<InboxRow>> {
        let conversation = row.conversation;
        if conversation.kind() == Ok(ConversationKind::Mailbox) || row.is_expired() {
            return Ok(None);
        }
        let there = self.message_at(row.position()).await?;
        let same =
            |there: &InboxRow| there.time_us == row.time_us && is_same(device, &there.content, &row.content);
        if there.as_ref().is_some_and(same) {
            return Ok(there);
        }
        Err(broken("an inbox row does not match history"))
    }
}

impl Placed {
    fn new(row: &InboxRow) -> Self {
        let message = match &row.content {
            RowContent::Message { message, .. } => {
                Some((message.sender.installation, message.incarnation, message.client_seq, message.id))
            }
            _ => None,
        };
        Self { seq: row.seq, time_us: row.time_us, message }
    }
}

impl Log {
    fn take(&mut self, row: &Placed, head_time_us: u64) -> Result<()> {
        if row.seq != self.next {
            return Err(broken("a conversation is not dense"));
        }
        if row.time_us <= self.last_time_us || row.time_us > head_time_us {
            return Err(broken("the times of a conversation do not rise"));
        }
        if let Some((sender, incarnation, number, _)) = row.message
            && !self.numbers.insert((sender, incarnation, number))
        {
            return Err(broken("a message has two places"));
        }
        (self.next, self.last_time_us) = (row.seq + 1, row.time_us);
        Ok(())
    }
}

impl Waiting {
    fn new(row: &InboxRow, history: Option<&InboxRow>) -> Self {
        let is_skip = matches!(row.content, RowContent::Empty { reason: EmptyReason::Skip, .. });
        let own = is_skip || matches!(row.content, RowContent::Own { .. });
        let void = history.is_some_and(|there| matches!(there.content, RowContent::Empty { .. }));
        Self { first_seq: row.first_seq(), begins: row.joined || (own && void), is_read: false }
    }
}

/// Returns whether reads of a device's inbox cover a row in this day.
fn is_read(meta: DeviceMeta, day: i32, row: &InboxRow) -> bool {
    let in_its_day = || CassandraStore::days(meta, 0).any(|read| read == day);
    day == LATE_DAY || (row.time_us >= meta.floor_us && in_its_day())
}

/// Returns whether an inbox row of a device matches the history row.
fn is_same(device: InstallationId, history: &RowContent, inbox: &RowContent) -> bool {
    match (history, inbox) {
        (RowContent::Message { message, .. }, RowContent::Message { message: shown, .. }) => message == shown,
        (RowContent::Message { message, .. }, RowContent::Own { message_id, .. }) => {
            message.id == *message_id && message.sender.installation == device
        }
        // The bytes of an inbox row may have a box, and those of a history row have none.
        (RowContent::Unknown(_), RowContent::Unknown(_) | RowContent::Own { .. }) => true,
        (_, RowContent::Empty { .. }) | (RowContent::Empty { .. }, RowContent::Own { .. }) => true,
        _ => false,
    }
}

/// Repeats a failed check, because its data may be half written. If the check keeps failing, the error's
/// source names the conversation or device.
async fn again<F: Future<Output = Result<u64>>>(
    what: &'static str,
    id: Vec<u8>,
    look: impl Fn() -> F,
) -> Result<u64> {
    for _ in 1..LOOKS.0 {
        match look().await {
            Err(_) => tokio::time::sleep(LOOKS.1).await,
            outcome => return outcome,
        }
    }
    look().await.map_err(|error| {
        if error.kind() != ErrorKind::Corrupt {
            return error;
        }
        let place: String = id.iter().take(9).map(|byte| format!("{byte:02x}")).collect();
        Error::new(error.kind(), error.what()).caused_by(std::io::Error::other(format!("{what} {place}…")))
    })
}
