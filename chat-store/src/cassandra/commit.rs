//! Commits: their writes, and the order of these writes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use chat_core::backend::{Commit, CommitOutcome, Head};
use chat_core::codec::{encode_row, redo};
use chat_core::envelope::{EmptyReason, InboxPosition, InboxRow};
use chat_core::{ConversationId, ConversationKind, InstallationId, MessageId, Result, Seq};
use futures_util::future::{try_join, try_join_all};
use scylla::value::CqlValue;

use super::connection::Write;
use super::stored_row::value_of;
use super::{BUCKET, CassandraStore, signed};

/// Number of rows, and of bytes, at which a request is sent.
const REQUEST: (usize, usize) = (100, 512 * 1024);
/// Maximum number of rows, and of bytes, that go in one request even if they belong to several partitions. A
/// message between two people is seven rows. Seven requests cost the cluster more than one that its
/// coordinator forwards.
const SMALL: (usize, usize) = (16, 32 * 1024);
/// Maximum size in bytes of the redo data in a state. The rows of a larger commit are written before its
/// state.
const REDO: usize = 16 * 1024;
pub(super) const DAY_US: u64 = 24 * 3600 * 1_000_000;
/// Microseconds between a row's time and its write, above which the row is *late*.
const LATE_US: u64 = 2 * 60 * 1_000_000;
/// Day partition of late rows. Every read includes it, regardless of the floor.
pub(super) const LATE_DAY: i32 = 0;
/// Base of the timestamps of registers that keep the smallest value: the timestamp is `TOP` minus the value.
const TOP: i64 = i64::MAX / 2;

pub(super) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

pub(super) fn blob(bytes: &[u8]) -> CqlValue {
    CqlValue::Blob(bytes.to_vec())
}

pub(super) const fn big(number: i64) -> CqlValue {
    CqlValue::BigInt(number)
}

pub(super) fn day_of(time_us: u64) -> i32 {
    i32::try_from(time_us / DAY_US).unwrap_or(i32::MAX)
}

/// Returns the minute (65.5 s) in which an id was created, as the id states. It keeps a partition of ids
/// small.
pub(super) fn minute(id: MessageId) -> i32 {
    let bytes = id.as_bytes();
    i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn late_before_us() -> u64 {
    now_us().saturating_sub(LATE_US)
}

/// Returns the day partition of an inbox row. `late` is the time in microseconds below which rows are late.
fn day_in_inbox(row: &InboxRow, late: u64) -> i32 {
    if row.time_us < late { LATE_DAY } else { day_of(row.time_us) }
}

/// Returns whether a commit's state may be written before its rows. Rows of one partition become visible
/// together. A commit is fit if its inbox rows have one day and its history rows one bucket: then no reader
/// sees only a part of them. Mailbox commits are not fit, because their messages may be stored in inboxes
/// only. Nor are inbox rows of a feed: a device that reads the row of history before its inbox has its box would miss the box.
fn is_fit_for_redo(commit: &Commit) -> bool {
    if commit.state.head.is_feed && !commit.inbox.is_empty() {
        return false;
    }
    let late = late_before_us();
    let days: BTreeSet<i32> = commit.inbox.iter().map(|(_, row)| day_in_inbox(row, late)).collect();
    let buckets: BTreeSet<u64> = commit.history.iter().map(|row| row.seq / BUCKET).collect();
    let mailbox = commit.conversation.kind() == Ok(ConversationKind::Mailbox);
    days.len() <= 1 && buckets.len() <= 1 && !mailbox
}

/// Joins all writes into one group if they are within [`SMALL`].
fn joined_if_small(partitions: Vec<Vec<Write<'_>>>) -> Vec<Vec<Write<'_>>> {
    let rows: usize = partitions.iter().map(Vec::len).sum();
    let bytes: usize = partitions.iter().flatten().map(Write::size).sum();
    if rows > SMALL.0 || bytes > SMALL.1 {
        return partitions;
    }
    vec![partitions.into_iter().flatten().collect()]
}

impl CassandraStore {
    /// Writes a commit: its rows with their commit times as timestamps, its state with the time of its head.
    /// The state is written first if it can hold the redo data.
    pub(super) async fn commit_one(&self, commit: Commit) -> Result<CommitOutcome> {
        let redo = if is_fit_for_redo(&commit) { redo::encode(&commit) } else { Vec::new() };
        if redo.is_empty() || redo.len() > REDO {
            self.commit_in_order(&commit).await?;
            return Ok(CommitOutcome::Visible);
        }
        self.commit_durable(&commit, redo).await?;
        Ok(CommitOutcome::Durable(Box::new(commit)))
    }

    /// Writes the state, and the generations of the senders. A device may receive *stored* and then be
    /// restored from a backup: its stored generation must show that the backup is behind.
    async fn commit_durable(&self, commit: &Commit, redo: Vec<u8>) -> Result<()> {
        try_join(self.write_state(commit, redo), self.write_generations(commit)).await.map(drop)
    }

    pub(super) async fn write_rows(&self, commit: &Commit) -> Result<()> {
        let groups = joined_if_small(self.partitions(commit));
        try_join_all(groups.iter().map(|writes| self.write_partition(writes))).await?;
        self.erase_deleted(commit).await
    }

    /// Erases the messages that a commit deletes. They are of an earlier commit, or have no content.
    async fn erase_deleted(&self, commit: &Commit) -> Result<()> {
        let devices: BTreeSet<InstallationId> = commit.inbox.iter().map(|(device, _)| *device).collect();
        let devices: Vec<InstallationId> = devices.into_iter().collect();
        for seq in &commit.deleted {
            let position = InboxPosition { time_us: 0, conversation: commit.conversation, seq: *seq };
            if let Some(row) = self.message_at(position).await? {
                self.erase_message(row, EmptyReason::Deleted, &devices).await?;
            }
        }
        Ok(())
    }

    /// Writes the rows and generations first, then the state, without redo data.
    pub(super) async fn commit_in_order(&self, commit: &Commit) -> Result<()> {
        try_join(self.write_rows(commit), self.write_generations(commit)).await?;
        self.write_state(commit, Vec::new()).await
    }

    /// Finishes the commit that produced a state: writes its rows, and again the state and the generations,
    /// because less than a quorum may have them.
    pub(super) async fn finish(&self, conversation: ConversationId, head: Head, redo: Vec<u8>) -> Result<()> {
        let commit = redo::decode(redo.clone().into(), conversation, head)?;
        try_join(self.commit_durable(&commit, redo), self.write_rows(&commit)).await.map(drop)
    }

    pub(super) async fn write_partition(&self, writes: &[Write<'_>]) -> Result<()> {
        let (mut from, mut bytes) = (0, 0);
        for (at, write) in writes.iter().enumerate() {
            bytes += write.size();
            if at + 1 - from >= REQUEST.0 || bytes >= REQUEST.1 {
                self.connection.batch(&writes[from..=at]).await?;
                (from, bytes) = (at + 1, 0);
            }
        }
        self.connection.batch(&writes[from..]).await
    }

    /// Returns the writes of a commit by partition, without its state and generations.
    fn partitions(&self, commit: &Commit) -> Vec<Vec<Write<'_>>> {
        let mut partitions: Vec<Vec<Write<'_>>> = Vec::new();
        let mailbox = commit.conversation.kind() == Ok(ConversationKind::Mailbox);
        if !mailbox {
            partitions.extend(self.history_writes(commit));
            let disappear =
                |row: &InboxRow| Some(vec![self.disappearing_write(row.disappears_at_us()?, row)]);
            partitions.extend(commit.history.iter().filter_map(disappear));
        }
        partitions.extend(self.id_writes(commit));
        partitions.extend(self.inbox_writes(&commit.inbox));
        partitions.extend(self.cell_writes(commit));
        let time_us = commit.state.head.time_us;
        partitions.extend(
            commit.feeds.iter().map(|change| vec![self.feed_write(commit.conversation, *change, time_us)]),
        );
        partitions
    }

    fn history_writes(&self, commit: &Commit) -> impl Iterator<Item = Vec<Write<'_>>> {
        let mut buckets: BTreeMap<u64, Vec<Write<'_>>> = BTreeMap::new();
        for row in &commit.history {
            let bucket = row.seq / BUCKET;
            let values = vec![
                blob(row.conversation.as_bytes()),
                big(signed(bucket)),
                big(signed(row.seq)),
                CqlValue::Blob(encode_row(row)),
                big(signed(row.time_us)),
            ];
            let write = Write { statement: &self.connection.statements.put_history, values };
            buckets.entry(bucket).or_default().push(write);
        }
        buckets.into_values()
    }

    fn id_writes(&self, commit: &Commit) -> impl Iterator<Item = Vec<Write<'_>>> {
        let mut minutes: BTreeMap<(InstallationId, i32), Vec<Write<'_>>> = BTreeMap::new();
        let rows = commit.history.iter().chain(commit.inbox.iter().map(|(_, row)| row));
        let times: BTreeMap<Seq, u64> = rows.map(|row| (row.seq, row.time_us)).collect();
        for (sender, id, seq) in &commit.ids {
            let minute = minute(*id);
            let time_us = times.get(seq).copied().unwrap_or(commit.state.head.time_us);
            let values = vec![
                blob(commit.conversation.as_bytes()),
                blob(sender.as_bytes()),
                CqlValue::Int(minute),
                blob(id.as_bytes()),
                big(signed(*seq)),
                big(signed(time_us)),
            ];
            let write = Write { statement: &self.connection.statements.put_id, values };
            minutes.entry((*sender, minute)).or_default().push(write);
        }
        minutes.into_values()
    }

    fn inbox_writes(&self, rows: &[(InstallationId, InboxRow)]) -> impl Iterator<Item = Vec<Write<'_>>> {
        let mut days: BTreeMap<(InstallationId, i32), Vec<Write<'_>>> = BTreeMap::new();
        let late = late_before_us();
        for (device, row) in rows {
            let day = day_in_inbox(row, late);
            let write = self.inbox_write(*device, day, row, row.time_us);
            days.entry((*device, day)).or_default().push(write);
        }
        days.into_values()
    }

    pub(super) fn inbox_write(
        &self,
        device: InstallationId,
        day: i32,
        row: &InboxRow,
        timestamp: u64,
    ) -> Write<'_> {
        let values = vec![
            blob(device.as_bytes()),
            CqlValue::Int(day),
            big(signed(row.time_us)),
            blob(row.conversation.as_bytes()),
            big(signed(row.seq)),
            CqlValue::Int(i32::try_from(row.size()).unwrap_or(i32::MAX)),
            CqlValue::Blob(value_of(row)),
            big(signed(timestamp)),
        ];
        Write { statement: &self.connection.statements.put_inbox, values }
    }

    /// Returns the cursor writes of a commit by device: the tail, and the seq at which the device joined.
    fn cell_writes(&self, commit: &Commit) -> impl Iterator<Item = Vec<Write<'_>>> {
        let statements = &self.connection.statements;
        let mut devices: BTreeMap<InstallationId, Vec<Write<'_>>> = BTreeMap::new();
        let mut tails: BTreeMap<InstallationId, &InboxRow> = BTreeMap::new();
        let conversation = || blob(commit.conversation.as_bytes());
        for (device, row) in &commit.inbox {
            let tail = tails.entry(*device).or_insert(row);
            if row.seq > tail.seq {
                *tail = row;
            }
            if row.joined {
                let writes = devices.entry(*device).or_default();
                let seq = signed(row.seq);
                let first = vec![big(TOP - seq), big(seq), blob(device.as_bytes()), conversation()];
                writes.push(Write { statement: &statements.put_first, values: first });
                writes.push(self.born_write(*device, row.time_us));
            }
        }
        for (device, row) in tails {
            let values =
                vec![big(signed(row.time_us)), big(signed(row.seq)), blob(device.as_bytes()), conversation()];
            devices.entry(device).or_default().push(Write { statement: &statements.put_tail, values });
        }
        devices.into_values()
    }

    async fn write_generations(&self, commit: &Commit) -> Result<()> {
        let mut highest: BTreeMap<InstallationId, u64> = BTreeMap::new();
        for (device, generation) in &commit.generations {
            let known = highest.entry(*device).or_default();
            *known = (*known).max(*generation);
        }
        let writes: Vec<_> = highest
            .into_iter()
            .map(|(device, generation)| self.generation_write(device, generation))
            .collect();
        self.connection.batch(&writes).await
    }

    /// Returns the write of `born`: the device has no row that is older than `time_us`.
    pub(super) fn born_write(&self, device: InstallationId, time_us: u64) -> Write<'_> {
        let time = signed(time_us);
        let values = vec![big(TOP - time), big(time), blob(device.as_bytes())];
        Write { statement: &self.connection.statements.put_born, values }
    }

    /// Returns the write of a generation. The two highest generations share a timestamp; of two values with the
    /// same timestamp, Cassandra keeps the larger one.
    pub(super) fn generation_write(&self, device: InstallationId, generation: u64) -> Write<'_> {
        let generation = signed(generation);
        let values = vec![big(generation.saturating_add(1)), big(generation), blob(device.as_bytes())];
        Write { statement: &self.connection.statements.put_generation, values }
    }
}
