//! Inboxes of devices: reads, acks, trims and expiry.

use std::collections::{BTreeMap, HashMap, HashSet};

use chat_core::backend::{CursorFilter, DeviceRecord, PageLimit};
use chat_core::envelope::{AckUpTo, InboxCursor, InboxPosition, InboxRow};
use chat_core::{ConversationId, Error, ErrorKind, InstallationId, Result};
use futures_util::TryStreamExt as _;
use futures_util::future::{try_join, try_join_all};
use scylla::response::query_result::QueryRowsResult;
use scylla::value::CqlValue;

use super::commit::{DAY_US, LATE_DAY, big, blob, day_of, now_us};
use super::connection::{Write, unknown};
use super::stored_row::{Columns, StoredRow};
use super::{CassandraStore, corrupt, signed, unsigned};

/// Microseconds that the floor of an inbox stays behind the clock. This is more than the delay after which a
/// row counts as late, plus the clock difference between nodes, plus the time that a stopped node keeps its
/// shards. A read skips the tombstones above the floor, so it bounds their number too.
pub(super) const FLOOR_BEHIND_US: u64 = 5 * 60 * 1_000_000;
/// Every 8th trim scans the whole inbox and raises its floor; the others scan only rows since the last trim.
const TRIMS_PER_FLOOR: u32 = 8;
/// Microseconds since the last scan of the whole inbox, after which the next trim scans it again.
const FLOOR_AGE_US: u64 = FLOOR_BEHIND_US;
/// Maximum number of days that a read scans. Retention is at most a year.
pub(super) const DAYS_READ: i32 = 400;
/// Number of acknowledged rows of a device at which they are deleted.
const TRIM_AT: u64 = 64;
/// Maximum number of rows in one read request.
const PAGE: usize = 64;

/// Generation and inbox floor of a device.
#[derive(Clone, Copy, Default)]
pub(super) struct DeviceMeta {
    pub(super) generation: u64,
    /// Microseconds. Every row with an older time is acknowledged, except late rows.
    pub(super) floor_us: u64,
}

/// Trim progress of a device's inbox in this process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Untrimmed {
    /// Rows acknowledged since the last trim.
    rows: u64,
    /// Trims since the last scan of the whole inbox.
    trims: u32,
    /// Time of the last scan of the whole inbox, in microseconds; 0 if there was none.
    whole_us: u64,
    /// Time in microseconds at which the next trim starts. All older rows are deleted, except late rows and
    /// rows that were acknowledged before they were written.
    from_us: u64,
}

/// The key and size of an inbox row.
#[derive(Clone, Copy)]
pub(super) struct Key {
    day: i32,
    pub(super) position: InboxPosition,
    size: u64,
}

/// Cursors of a device by conversation. `acked` is the acknowledged seq, or the seq before the device joined
/// if that is higher.
pub(super) type Cursors = HashMap<ConversationId, InboxCursor>;

fn read_cursors(rows: &QueryRowsResult) -> Result<Cursors> {
    let mut cursors = HashMap::new();
    for row in
        rows.rows::<(Option<Vec<u8>>, Option<i64>, Option<i64>, Option<i64>)>().map_err(|_| corrupt())?
    {
        let (conversation, tail, acked, first) = row.map_err(|_| corrupt())?;
        // A partition of which only the static columns are set reads as one row without a key.
        let Some(conversation) = conversation else { continue };
        let joined = first.map_or(0, |first| unsigned(first).saturating_sub(1));
        let cursor =
            InboxCursor { acked: acked.map_or(0, unsigned).max(joined), tail: tail.map_or(0, unsigned) };
        cursors.insert(ConversationId::parse(&conversation).map_err(|_| corrupt())?, cursor.with_feed());
    }
    Ok(cursors)
}

fn conversations(keys: &[Key]) -> HashSet<ConversationId> {
    keys.iter().map(|key| key.position.conversation).collect()
}

impl CassandraStore {
    pub(super) async fn meta(&self, device: InstallationId) -> Result<DeviceMeta> {
        let rows =
            self.connection.rows(&self.connection.statements.device, (&device.as_bytes()[..],)).await?;
        let row = rows.maybe_first_row::<(Option<i64>, Option<i64>, Option<i64>)>().map_err(|_| corrupt())?;
        let Some((generation, born, floor)) = row else { return Ok(DeviceMeta::default()) };
        let floor_us = born.map_or(0, unsigned).max(floor.map_or(0, unsigned));
        Ok(DeviceMeta { generation: generation.map_or(0, unsigned), floor_us })
    }

    /// Returns the cursors of at least these conversations.
    pub(super) async fn cursors_of(
        &self,
        device: InstallationId,
        conversations: &HashSet<ConversationId>,
    ) -> Result<Cursors> {
        /// Number of conversations above which it is cheaper to read all cursors.
        const NAMED: usize = 50;
        if conversations.is_empty() {
            return Ok(Cursors::new());
        }
        if conversations.len() > NAMED {
            return self.all_cursors(device).await;
        }
        let wanted: Vec<&[u8]> = conversations.iter().map(|id| &id.as_bytes()[..]).collect();
        let rows = self
            .connection
            .rows(&self.connection.statements.cursors_of, (&device.as_bytes()[..], wanted))
            .await?;
        read_cursors(&rows)
    }

    pub(super) async fn all_cursors(&self, device: InstallationId) -> Result<Cursors> {
        read_cursors(
            &self.connection.rows(&self.connection.statements.cursors, (&device.as_bytes()[..],)).await?,
        )
    }

    /// Returns the days that may hold rows of a device from a time on, oldest first, without [`LATE_DAY`].
    pub(super) fn days(meta: DeviceMeta, from_us: u64) -> impl Iterator<Item = i32> {
        let from = meta.floor_us.max(from_us);
        // A broker's clock may be ahead, and commit times run ahead of it.
        let to = day_of(now_us() + DAY_US / 24);
        // No row is older than the retention. A device with floor 0 has no rows, so one day is enough.
        let oldest = if meta.floor_us == 0 { to } else { day_of(from).max(to - DAYS_READ) };
        oldest..=to
    }

    /// Erases the inbox and the cursors of a device that never returns. The timestamp is above that of every row, also of
    /// one that an owner writes late.
    pub(super) async fn erase_device(&self, device: InstallationId) -> Result<()> {
        const LAST: i64 = i64::MAX / 2;
        let (id, statements) = (&device.as_bytes()[..], &self.connection.statements);
        let meta = self.meta(device).await?;
        for day in Self::days(meta, 0).chain([LATE_DAY]) {
            self.connection.write(&statements.erase_inbox, (LAST, id, day)).await?;
        }
        self.untrimmed.remove(&device);
        self.connection.write(&statements.erase_feeds, (LAST, id)).await?;
        self.connection.write(&statements.erase_cells, (LAST, id)).await
    }

    pub(super) async fn read_inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let late = self.read_day(device, LATE_DAY, after, limit);
        let (meta, late) = try_join(self.meta(device), late).await?;
        let mut rows: BTreeMap<InboxPosition, InboxRow> =
            late.into_iter().map(|row| (row.position(), row)).collect();
        let (mut read, mut bytes) = (0, 0);
        // Rows below the floor are deleted. Skipping their tombstones would cost as much as reading the rows.
        let above = after.max(InboxPosition { time_us: meta.floor_us, ..InboxPosition::START });
        for day in Self::days(meta, after.time_us) {
            for row in self.read_day(device, day, above, limit).await? {
                (read, bytes) = (read + 1, bytes + row.size());
                rows.insert(row.position(), row);
            }
            if read >= limit.rows || bytes >= limit.bytes {
                break;
            }
        }
        let (mut page, mut bytes) = (Vec::new(), 0);
        for row in rows.into_values() {
            bytes += row.size();
            page.push(row);
            if page.len() >= limit.rows || bytes >= limit.bytes {
                break;
            }
        }
        Ok(page)
    }

    /// Returns the rows of one day after a position that are committed and not acknowledged.
    async fn read_day(
        &self,
        device: InstallationId,
        day: i32,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let (mut page, mut bytes, mut after) = (Vec::new(), 0, after);
        loop {
            let most = PAGE.min(limit.rows.max(1));
            let values = (
                &device.as_bytes()[..],
                day,
                signed(after.time_us),
                &after.conversation.as_bytes()[..],
                signed(after.seq),
                i32::try_from(most).unwrap_or(1),
            );
            let read = self.connection.rows(&self.connection.statements.inbox, values).await?;
            let mut rows = Vec::new();
            for columns in read.rows::<Columns>().map_err(|_| corrupt())? {
                rows.push(StoredRow::read(columns.map_err(|_| corrupt())?)?);
            }
            let more = rows.len() == most;
            if let Some(last) = rows.last() {
                after = last.position;
            }
            let mut waiting = self.waiting(device, rows).await?;
            // The sizes say how many messages the page has room for.
            let mut fits = 0;
            for row in &waiting {
                if fits > 0 && bytes >= limit.bytes {
                    break;
                }
                (fits, bytes) = (fits + 1, bytes + row.size);
            }
            waiting.truncate(fits);
            page.extend(self.whole_rows(waiting).await?);
            if !more || page.len() >= limit.rows || bytes >= limit.bytes {
                return Ok(page);
            }
        }
    }

    async fn waiting(&self, device: InstallationId, rows: Vec<StoredRow>) -> Result<Vec<StoredRow>> {
        let conversations: HashSet<ConversationId> =
            rows.iter().map(|row| row.position.conversation).collect();
        let cursors = self.cursors_of(device, &conversations).await?;
        let committed = rows.iter().map(|row| self.is_committed(row.position.conversation, row.position.seq));
        let committed = try_join_all(committed).await?;
        // A row is visible once the tail of its cursor reaches it.
        let waits = |row: &StoredRow| {
            let InboxPosition { conversation, seq, .. } = row.position;
            cursors.get(&conversation).is_some_and(|cursor| cursor.acked < seq && seq <= cursor.tail)
        };
        let rows = rows.into_iter().zip(committed);
        Ok(rows.filter(|(row, committed)| *committed && waits(row)).map(|(row, _)| row).collect())
    }

    pub(super) async fn acknowledge(
        &self,
        device: InstallationId,
        generation: u64,
        acks: &[AckUpTo],
    ) -> Result<()> {
        let conversations: HashSet<ConversationId> = acks.iter().map(|ack| ack.conversation).collect();
        let cursors = self.cursors_of(device, &conversations).await?;
        let cursor = |ack: &AckUpTo| cursors.get(&ack.conversation).copied().unwrap_or_default();
        // One after the other, so that the first invalid ack ends a request with many of them.
        for ack in acks.iter().filter(|ack| ack.seq > cursor(ack).tail) {
            self.check_unsettled(device, *ack).await?;
        }
        let mut writes = vec![self.generation_write(device, generation)];
        let mut removed = 0;
        for ack in acks.iter().filter(|ack| ack.seq > cursor(ack).acked) {
            // The rows of a feed are not in the inbox.
            removed += ack.seq.min(cursor(ack).tail) - cursor(ack).acked;
            let values = vec![
                big(signed(ack.seq)),
                big(signed(ack.seq)),
                blob(device.as_bytes()),
                blob(ack.conversation.as_bytes()),
            ];
            writes.push(Write { statement: &self.connection.statements.put_acked, values });
        }
        self.connection.batch(&writes).await?;
        self.note_removed(device, removed).await;
        Ok(())
    }

    /// Checks an ack above the tail of its cursor. It is valid if the commit of its row is durable: the row
    /// may be delivered before it is visible.
    async fn check_unsettled(&self, device: InstallationId, ack: AckUpTo) -> Result<()> {
        if ack.seq <= self.tail_to_come(ack.conversation, device).await? {
            return Ok(());
        }
        if self.reads_feed(device, ack.conversation).await?
            && self.is_committed(ack.conversation, ack.seq).await?
        {
            return Ok(());
        }
        // A later commit may have replaced the redo data: then this commit became visible after the cursor
        // was read.
        let cursors = self.cursors_of(device, &HashSet::from([ack.conversation])).await?;
        if cursors.get(&ack.conversation).is_some_and(|cursor| ack.seq <= cursor.tail) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Invalid, "an ack is above the tail"))
    }

    /// Counts acknowledged rows, and deletes them at [`TRIM_AT`]. Deletion only frees space, so errors are
    /// ignored.
    async fn note_removed(&self, device: InstallationId, removed: u64) {
        let known = {
            let mut known = self.untrimmed.entry(device).or_default();
            known.rows += removed;
            *known
        };
        if known.rows < TRIM_AT {
            return;
        }
        let now = now_us();
        let whole = known.trims + 1 >= TRIMS_PER_FLOOR || now.saturating_sub(known.whole_us) > FLOOR_AGE_US;
        if let Ok(from_us) = self.trim(device, if whole { 0 } else { known.from_us }).await {
            let (trims, whole_us) = if whole { (0, now) } else { (known.trims + 1, known.whole_us) };
            self.untrimmed.insert(device, Untrimmed { rows: 0, trims, whole_us, from_us });
        }
        if self.untrimmed.len() > 100_000 {
            self.untrimmed.clear();
        }
    }

    /// Returns the keys of the rows in a device's inbox from a time on, acknowledged or not. 0 includes late
    /// rows.
    pub(super) async fn keys(
        &self,
        device: InstallationId,
        meta: DeviceMeta,
        from_us: u64,
    ) -> Result<Vec<Key>> {
        let mut keys = Vec::new();
        let late = (from_us == 0).then_some(LATE_DAY);
        for day in late.into_iter().chain(Self::days(meta, from_us)) {
            let from = if day == LATE_DAY { 0 } else { meta.floor_us.max(from_us) };
            keys.extend(self.keys_of_day(device, day, from).await?);
        }
        Ok(keys)
    }

    async fn keys_of_day(&self, device: InstallationId, day: i32, from_us: u64) -> Result<Vec<Key>> {
        let key = (&device.as_bytes()[..], day, signed(from_us));
        let rows = self.connection.rows(&self.connection.statements.inbox_keys, key).await?;
        let rows = rows.rows::<(i64, Vec<u8>, i64, i32)>().map_err(|_| corrupt())?;
        rows.map(|row| {
            let (time_us, conversation, seq, size) = row.map_err(|_| corrupt())?;
            let conversation = ConversationId::parse(&conversation).map_err(|_| corrupt())?;
            let position = InboxPosition { time_us: unsigned(time_us), conversation, seq: unsigned(seq) };
            Ok(Key { day, position, size: u64::try_from(size).unwrap_or(0) })
        })
        .collect()
    }

    /// Deletes the acknowledged rows from a time on, and returns the time from which rows may be left. With
    /// `from_us` 0 it scans the whole inbox and raises the floor.
    async fn trim(&self, device: InstallationId, from_us: u64) -> Result<u64> {
        let meta = self.meta(device).await?;
        let now = now_us();
        let (keys, cursors) = try_join(self.keys(device, meta, from_us), self.all_cursors(device)).await?;
        let acked = |key: &Key| {
            cursors.get(&key.position.conversation).is_some_and(|cursor| key.position.seq <= cursor.acked)
        };
        let gone: Vec<Key> = keys.iter().copied().filter(acked).collect();
        self.delete(device, &gone).await?;
        // No row waits below the first remaining row or, without one, below now. A row that is written later
        // with an older time is late.
        let left = keys
            .iter()
            .filter(|key| !acked(key) && key.day != LATE_DAY)
            .map(|key| key.position.time_us)
            .min();
        let behind = now.saturating_sub(FLOOR_BEHIND_US);
        let floor = left.map_or(behind, |left| left.min(behind));
        if from_us == 0 && floor > meta.floor_us && meta.floor_us > 0 {
            let values = (signed(floor), signed(floor), &device.as_bytes()[..]);
            self.connection.write(&self.connection.statements.put_floor, values).await?;
            self.delete_below(device, meta.floor_us, floor).await?;
        }
        Ok(left.unwrap_or(now))
    }

    /// Covers the rows deleted between two floors with one tombstone a day. Inbox reads start above it, and a
    /// scan of the whole day skips one tombstone instead of one per row.
    async fn delete_below(&self, device: InstallationId, from_us: u64, floor: u64) -> Result<()> {
        let days = day_of(from_us).max(day_of(floor) - DAYS_READ)..=day_of(floor);
        let write = |day| {
            let below = big(signed(floor));
            let values = vec![below.clone(), blob(device.as_bytes()), CqlValue::Int(day), below];
            Write { statement: &self.connection.statements.delete_below, values }
        };
        let writes: Vec<Write<'_>> = days.map(write).collect();
        for some in writes.chunks(50) {
            self.connection.batch(some).await?;
        }
        Ok(())
    }

    /// Deletes rows. The tombstone's timestamp is the commit time plus two: above that of an original row, and of an empty
    /// row in the place of an erased message, and equal to that of a gap, over which a tombstone wins.
    pub(super) async fn delete(&self, device: InstallationId, keys: &[Key]) -> Result<()> {
        let mut days: BTreeMap<i32, Vec<Write<'_>>> = BTreeMap::new();
        for key in keys {
            let values = vec![
                big(signed(key.position.time_us) + 2),
                blob(device.as_bytes()),
                CqlValue::Int(key.day),
                big(signed(key.position.time_us)),
                blob(key.position.conversation.as_bytes()),
                big(signed(key.position.seq)),
            ];
            let write = Write { statement: &self.connection.statements.delete_inbox, values };
            days.entry(key.day).or_default().push(write);
        }
        for writes in days.values() {
            for some in writes.chunks(200) {
                self.connection.batch(some).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn read_device(
        &self,
        device: InstallationId,
        want: CursorFilter,
    ) -> Result<DeviceRecord> {
        let meta = self.meta(device).await?;
        let keys = self.keys(device, meta, 0).await?;
        let mut needed = conversations(&keys);
        if let CursorFilter::Of(one) = want {
            needed.insert(one);
        }
        let cursors = match want {
            CursorFilter::All => self.all_cursors(device).await?,
            _ => self.cursors_of(device, &needed).await?,
        };
        // A row may be both in its day and in `LATE_DAY`, if two owners disagreed on whether it was late.
        let mut places = HashSet::new();
        let waiting = keys.iter().filter(|key| {
            let acked = cursors.get(&key.position.conversation).map_or(0, |cursor| cursor.acked);
            key.position.seq > acked && places.insert(key.position)
        });
        let (rows, bytes) = waiting.fold((0, 0), |(rows, bytes), key| (rows + 1, bytes + key.size));
        let mut cursors: Vec<_> = match want {
            CursorFilter::No => Vec::new(),
            CursorFilter::Of(one) => cursors.get(&one).map(|cursor| (one, *cursor)).into_iter().collect(),
            CursorFilter::All => cursors.into_iter().collect(),
        };
        cursors.sort_unstable_by_key(|(conversation, _)| *conversation);
        Ok(DeviceRecord { waiting_rows: rows, waiting_bytes: bytes, cursors })
    }

    pub(super) async fn expire_rows(&self, before_us: u64, limit: usize) -> Result<usize> {
        // The inbox partitions of all devices, page by page.
        let all = self
            .connection
            .session
            .execute_iter(self.connection.statements.inbox_partitions.clone(), ())
            .await;
        let mut rows = all.map_err(unknown)?.rows_stream::<(Vec<u8>, i32)>().map_err(|_| corrupt())?;
        let mut devices = HashSet::new();
        while let Some((device, day)) = rows.try_next().await.map_err(unknown)? {
            if day <= day_of(before_us) {
                devices.insert(InstallationId::parse(&device).map_err(|_| corrupt())?);
            }
        }
        let mut devices: Vec<InstallationId> = devices.into_iter().collect();
        devices.sort_unstable();
        let mut removed = 0;
        for device in devices {
            if removed >= limit {
                break;
            }
            removed += self.expire_of(device, before_us, limit - removed).await?;
        }
        Ok(removed)
    }

    /// Expires old rows of one inbox: those of each conversation become one gap, at the position of the last
    /// one. Returns the number of expired rows.
    async fn expire_of(&self, device: InstallationId, before_us: u64, limit: usize) -> Result<usize> {
        let all = PageLimit { rows: usize::MAX, bytes: usize::MAX };
        let rows = self.read_inbox(device, InboxPosition::START, all).await?;
        let mut gaps: BTreeMap<ConversationId, (u64, bool, InboxPosition)> = BTreeMap::new();
        let mut places = HashSet::new();
        let mut count = 0;
        for row in rows.iter().filter(|row| row.time_us < before_us) {
            if count == limit {
                break;
            }
            let gap = gaps.entry(row.conversation).or_insert((row.first_seq(), false, row.position()));
            (gap.1, gap.2) = (gap.1 | row.joined, row.position());
            places.insert(row.position());
            count += usize::from(!row.is_expired());
        }
        if count == 0 {
            return Ok(0);
        }
        let keys = self.keys(device, self.meta(device).await?, 0).await?;
        let gone = keys.iter().filter(|key| places.contains(&key.position)).copied();
        let (last, gone): (Vec<Key>, Vec<Key>) =
            gone.partition(|key| gaps.values().any(|gap| gap.2 == key.position));
        // The gap is written first: a concurrent reader sees rows that will be deleted, never a hole.
        for key in last {
            if let Some((from, joined, place)) = gaps.get(&key.position.conversation) {
                let row = InboxRow::expired(key.position.conversation, *from, *place, *joined);
                self.connection.batch(&[self.inbox_write(device, key.day, &row, place.time_us + 2)]).await?;
            }
        }
        self.delete(device, &gone).await?;
        Ok(count)
    }
}
