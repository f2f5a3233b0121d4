//! Messages that have a lifetime: an index by the minute in which it ends.
//!
//! A sweep reads the minutes since the last one, and the last ten minutes again: a writer may be that late. A message that
//! is written more than five minutes after its time goes to [`LATE`], which every sweep includes.

use std::collections::BTreeSet;

use chat_core::backend::SenderFilter;
use chat_core::codec::redo;
use chat_core::envelope::{EmptyReason, InboxPosition, InboxRow};
use chat_core::{ConversationId, InstallationId, Result, Seq};
use futures_util::future::try_join_all;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::commit::{LATE_DAY, big, blob, day_of, now_us};
use super::connection::Write;
use super::stored_row::{Columns, StoredRow};
use super::{CassandraStore, corrupt, signed, unsigned};

const MINUTE_US: u64 = 60 * 1_000_000;
/// Minutes that a sweep reads again.
const AGAIN: u64 = 10;
/// Minutes since the last sweep above which it is cheaper to read which minutes have entries.
const MINUTES: u64 = 1000;
/// The minute of late messages.
const LATE: u64 = 0;
const LATE_US: u64 = 5 * MINUTE_US;
/// Inboxes that are read at the same time.
const INBOXES: usize = 32;
/// Messages that are erased at the same time.
const TOGETHER: usize = 16;

/// A message of the index.
struct Due {
    minute: u64,
    due_us: u64,
    conversation: ConversationId,
    seq: Seq,
}

impl CassandraStore {
    /// Returns the entry of a message that disappears at `due_us`.
    pub(super) fn disappearing_write(&self, due_us: u64, row: &InboxRow) -> Write<'_> {
        let is_late = due_us.saturating_add(LATE_US) < now_us();
        let minute = if is_late { LATE } else { due_us / MINUTE_US };
        let values = vec![
            big(signed(minute)),
            big(signed(due_us)),
            blob(row.conversation.as_bytes()),
            big(signed(row.seq)),
            big(signed(row.time_us)),
        ];
        Write { statement: &self.connection.statements.put_disappearing, values }
    }

    pub(super) async fn erase_disappeared(&self, now_us: u64, limit: usize) -> Result<usize> {
        let last = now_us / MINUTE_US;
        let known = *self.swept_minute.lock();
        let minutes = match known {
            Some(swept) if last.saturating_sub(swept) <= MINUTES => {
                (swept.saturating_sub(AGAIN)..=last).collect()
            }
            _ => self.minutes_through(last).await?,
        };
        let mut count = 0;
        for minute in minutes.into_iter().filter(|minute| *minute != LATE).chain([LATE]) {
            let mut due = self.due_in(minute, now_us).await?;
            loop {
                if count == limit {
                    return Ok(count);
                }
                let room = TOGETHER.min(limit - count);
                let some: Vec<Due> = due.by_ref().take(room).try_collect().await?;
                if some.is_empty() {
                    break;
                }
                let erased = try_join_all(some.iter().map(|due| self.erase_due(due, now_us))).await?;
                count += erased.into_iter().filter(|erased| *erased).count();
            }
        }
        *self.swept_minute.lock() = Some(last);
        Ok(count)
    }

    /// Returns the minutes up to one that have entries.
    async fn minutes_through(&self, last: u64) -> Result<BTreeSet<u64>> {
        let statement = &self.connection.statements.disappearing_minutes;
        let all = self.connection.stream::<(i64,)>(statement, ()).await?;
        let all: Vec<(i64,)> = all.try_collect().await?;
        Ok(all.into_iter().map(|(minute,)| unsigned(minute)).filter(|minute| *minute <= last).collect())
    }

    /// Returns the entries of a minute up to a time, page by page.
    async fn due_in(&self, minute: u64, now_us: u64) -> Result<BoxStream<'static, Result<Due>>> {
        let statement = &self.connection.statements.disappearing_in;
        let values = (signed(minute), signed(now_us));
        let rows = self.connection.stream::<(i64, Vec<u8>, i64)>(statement, values).await?;
        let read = move |(due_us, conversation, seq): (i64, Vec<u8>, i64)| {
            let conversation = ConversationId::parse(&conversation).map_err(|_| corrupt())?;
            Ok(Due { minute, due_us: unsigned(due_us), conversation, seq: unsigned(seq) })
        };
        Ok(rows.map(move |row| row.and_then(read)).boxed())
    }

    /// Erases a message whose lifetime has ended, and its entry. Returns whether it had content. Without a visible message the
    /// entry stays: its commit is being written, or it never will be.
    async fn erase_due(&self, due: &Due, now_us: u64) -> Result<bool> {
        let Some((state, redo)) = self.state_and_redo(due.conversation, SenderFilter::No).await? else {
            return Ok(false);
        };
        if due.seq > state.head.seq {
            return Ok(false);
        }
        let last = redo::decode(redo.clone().into(), due.conversation, state.head)?;
        let is_last = last.history.iter().any(|row| row.seq == due.seq);
        if is_last {
            // Its rows may not be written yet.
            self.finish(due.conversation, state.head, redo).await?;
        }
        let position = InboxPosition { time_us: 0, conversation: due.conversation, seq: due.seq };
        let Some(row) = self.message_at(position).await? else { return Ok(false) };
        // Another message may have this seq, if the log of the one in the index was abandoned.
        let is_over = row.disappears_at_us().is_some_and(|at_us| at_us <= now_us);
        let devices: Vec<InstallationId> = state.roster.installations().collect();
        let erased = is_over && self.erase_message(row.clone(), EmptyReason::Disappeared, &devices).await?;
        if is_last {
            let key = (signed(state.head.time_us), &due.conversation.as_bytes()[..]);
            self.connection.write(&self.connection.statements.drop_redo, key).await?;
        }
        let values = (
            signed(row.time_us) + 1,
            signed(due.minute),
            signed(due.due_us),
            &due.conversation.as_bytes()[..],
            signed(due.seq),
        );
        self.connection.write(&self.connection.statements.delete_disappearing, values).await?;
        Ok(erased)
    }

    /// Erases the content of one message, and the boxes of these devices for which the row waits. Returns whether it had
    /// content.
    pub(super) async fn erase_message(
        &self,
        mut row: InboxRow,
        reason: EmptyReason,
        devices: &[InstallationId],
    ) -> Result<bool> {
        if !row.erase(reason) {
            return Ok(false);
        }
        self.write_partition(&[self.erased_write(&row)]).await?;
        for some in devices.chunks(INBOXES) {
            try_join_all(some.iter().map(|device| self.erase_box(*device, &row))).await?;
        }
        Ok(true)
    }

    /// Replaces the row of a device that refers to an erased message. A row that was acknowledged and deleted meanwhile
    /// stays deleted: the timestamp of its tombstone is higher.
    async fn erase_box(&self, device: InstallationId, row: &InboxRow) -> Result<()> {
        for day in [day_of(row.time_us), LATE_DAY] {
            let values = (
                &device.as_bytes()[..],
                day,
                signed(row.time_us),
                &row.conversation.as_bytes()[..],
                signed(row.seq) - 1,
                1,
            );
            let found = self.connection.rows(&self.connection.statements.inbox, values).await?;
            let Some(columns) = found.maybe_first_row::<Columns>().map_err(|_| corrupt())? else { continue };
            let stored = StoredRow::read(columns)?;
            if let Some(joined) = stored.joins_with_message().filter(|_| stored.position == row.position()) {
                let waiting = InboxRow { joined, ..row.clone() };
                let write = self.inbox_write(device, day, &waiting, row.time_us + 1);
                self.connection.batch(&[write]).await?;
            }
        }
        Ok(())
    }
}
