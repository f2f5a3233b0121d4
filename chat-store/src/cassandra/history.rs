//! Retention and deletion of history: messages lose their content, and their rows stay.
//!
//! An empty row is written with the commit time plus one as its timestamp. A repeated write of the message has the commit
//! time, so it never brings the content back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chat_core::backend::{PageLimit, SenderFilter};
use chat_core::codec::{decode_row, encode_row, redo};
use chat_core::envelope::{EmptyReason, InboxRow};
use chat_core::{ConversationId, ConversationKind, Result, Seq, UserId};
use futures_util::TryStreamExt as _;
use futures_util::future::try_join_all;
use scylla::value::CqlValue;

use super::commit::{big, blob, now_us};
use super::connection::Write;
use super::state::{ERASED, cleared_part};
use super::{BUCKET, CassandraStore, corrupt, signed, unsigned};

/// Rows that one statement reads.
const PAGE: i32 = 50;
/// Rows after which the progress of an erasure is recorded.
const MARK_EVERY: u64 = 1000;
/// Microseconds after which the rows of a commit are written: its owner, or the next one, has finished it.
const SETTLED_US: u64 = 3600 * 1_000_000;
/// Conversations that are searched at the same time.
const SEARCHES: usize = 16;
/// Conversations with old content that one search finds, at most.
const FOUND: usize = 10_000;

impl CassandraStore {
    /// Returns the seq that a part of a conversation's state records; 0 if there is none.
    async fn mark(&self, conversation: ConversationId, part: Vec<u8>) -> Result<Seq> {
        let key = (&conversation.as_bytes()[..], vec![part]);
        let rows = self.connection.rows(&self.connection.statements.parts, key).await?;
        let row = rows.maybe_first_row::<(Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>)>();
        let value = row.map_err(|_| corrupt())?.and_then(|(_, value, _)| value);
        value.map_or(Ok(0), |value| value.try_into().map(u64::from_be_bytes).map_err(|_| corrupt()))
    }

    /// Raises the seq that a part records. The timestamp is the seq, so the highest one stays.
    async fn raise_mark(&self, conversation: ConversationId, part: Vec<u8>, seq: Seq) -> Result<()> {
        let values = (&conversation.as_bytes()[..], part, seq.to_be_bytes().to_vec(), signed(seq));
        self.connection.write(&self.connection.statements.put_part, values).await
    }

    pub(super) async fn cleared_by(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        self.mark(conversation, cleared_part(user)).await
    }

    /// Records that a user cleared a conversation up to a seq.
    pub(super) async fn put_cleared(
        &self,
        conversation: ConversationId,
        user: UserId,
        through: Seq,
    ) -> Result<()> {
        self.raise_mark(conversation, cleared_part(user), through).await
    }

    pub(super) async fn clear(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        let Some((state, _)) = self.state_and_redo(conversation, SenderFilter::No).await? else {
            return Ok(());
        };
        self.put_cleared(conversation, user, through.min(state.head.seq)).await?;
        let marks = state.roster.members.iter().map(|member| self.cleared_by(conversation, member.user));
        let by_all = try_join_all(marks).await?.into_iter().min().unwrap_or(0);
        if by_all <= self.mark(conversation, ERASED.to_vec()).await? {
            return Ok(());
        }
        let is_chosen = |row: &InboxRow| row.seq <= by_all;
        self.erase_content(conversation, EmptyReason::Cleared, usize::MAX, is_chosen).await.map(drop)
    }

    /// Erases the content of at most `limit` messages, from the oldest that has content on, for as long as they are chosen.
    /// Returns how many.
    async fn erase_content(
        &self,
        conversation: ConversationId,
        reason: EmptyReason,
        limit: usize,
        is_chosen: impl Fn(&InboxRow) -> bool,
    ) -> Result<usize> {
        let found = self.state_and_redo(conversation, SenderFilter::No).await?;
        let Some((state, redo)) = found.filter(|_| conversation.kind() != Ok(ConversationKind::Mailbox))
        else {
            return Ok(0);
        };
        let last = redo::decode(redo.clone().into(), conversation, state.head)?;
        let is_last_chosen = last.history.iter().any(&is_chosen);
        if is_last_chosen && now_us().saturating_sub(state.head.time_us) < SETTLED_US {
            // Its rows may not be written yet. Those of an older commit are: finishing it again would put rows that devices
            // have acknowledged among the late ones.
            self.finish(conversation, state.head, redo).await?;
        }
        let before = self.mark(conversation, ERASED.to_vec()).await?;
        let (mut count, mut through, mut marked) = (0, before, before);
        let mut is_done = false;
        while through < state.head.seq && !is_done {
            let page = self.rows_after(conversation, through, PAGE).await?;
            let mut writes = Vec::new();
            // An empty page: the rows of the last commit, which is not chosen, are being written.
            is_done = page.is_empty();
            for mut row in page {
                let is_next = row.seq == through + 1 && row.seq <= state.head.seq;
                if !is_next || count == limit || !is_chosen(&row) {
                    is_done = true;
                    break;
                }
                through = row.seq;
                if row.erase(reason) {
                    count += 1;
                    writes.push(self.erased_write(&row));
                }
            }
            self.write_partition(&writes).await?;
            if is_last_chosen && through == state.head.seq {
                // Before the mark: after a crash in between, the next call erases the redo data again.
                let key = (signed(state.head.time_us), &conversation.as_bytes()[..]);
                self.connection.write(&self.connection.statements.drop_redo, key).await?;
            }
            if through > marked && (is_done || through == state.head.seq || through - marked >= MARK_EVERY) {
                self.raise_mark(conversation, ERASED.to_vec(), through).await?;
                marked = through;
            }
        }
        Ok(count)
    }

    pub(super) fn erased_write(&self, row: &InboxRow) -> Write<'_> {
        let values = vec![
            blob(row.conversation.as_bytes()),
            big(signed(row.seq / BUCKET)),
            big(signed(row.seq)),
            CqlValue::Blob(encode_row(row)),
            big(signed(row.time_us) + 1),
        ];
        Write { statement: &self.connection.statements.put_history, values }
    }

    /// Returns the first rows of history after a seq that are in one partition.
    async fn rows_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: i32,
    ) -> Result<Vec<InboxRow>> {
        let bucket = (after + 1) / BUCKET;
        let key = (&conversation.as_bytes()[..], signed(bucket), signed(after), limit);
        let rows = self.connection.rows(&self.connection.statements.history_after, key).await?;
        let rows = rows.rows::<(Vec<u8>,)>().map_err(|_| corrupt())?;
        rows.map(|row| decode_row(row.map_err(|_| corrupt())?.0.into()).map_err(|_| corrupt())).collect()
    }

    /// Returns the rows of a conversation above a seq, oldest first, up to one that is not written yet.
    pub(super) async fn read_history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let head = self.head_seq(conversation).await?;
        let (mut page, mut bytes, mut last) = (Vec::new(), 0, after);
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(page);
        }
        while last < head && page.len() < limit.rows && (page.is_empty() || bytes < limit.bytes) {
            let most = i32::try_from(limit.rows - page.len()).unwrap_or(PAGE).min(PAGE);
            let rows = self.rows_after(conversation, last, most).await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                let is_next = row.seq == last + 1 && row.seq <= head;
                if !is_next || !page.is_empty() && bytes >= limit.bytes {
                    return Ok(page);
                }
                (last, bytes) = (row.seq, bytes + row.size());
                page.push(row);
            }
        }
        Ok(page)
    }

    pub(super) async fn expire_content(&self, before_us: u64, limit: usize) -> Result<usize> {
        let mut left = std::mem::take(&mut *self.old.lock());
        let (mut count, mut failed) = (0, None);
        loop {
            let is_search = left.is_empty();
            if is_search {
                left = self.find_old(before_us).await?;
            }
            let is_complete = is_search && left.len() < FOUND;
            while let Some(conversation) = left.last().copied() {
                let is_old = |row: &InboxRow| row.time_us < before_us;
                let (reason, room) = (EmptyReason::Expired, limit - count);
                match self.erase_content(conversation, reason, room, is_old).await {
                    Ok(erased) => count += erased,
                    // The other conversations go on. The next search finds this one again.
                    Err(error) => failed = failed.or(Some(error)),
                }
                if count >= limit {
                    *self.old.lock() = left;
                    return Ok(count);
                }
                left.pop();
            }
            if is_complete || failed.is_some() {
                return failed.map_or(Ok(count), Err);
            }
        }
    }

    /// Returns the conversations that have content older than `before_us`.
    async fn find_old(&self, before_us: u64) -> Result<Vec<ConversationId>> {
        let all = self.connection.stream::<(Vec<u8>,)>(&self.connection.statements.conversations, ()).await?;
        let found = Arc::new(AtomicUsize::new(0));
        let is_old = |(id,): (Vec<u8>,)| {
            let found = found.clone();
            async move {
                let conversation = ConversationId::parse(&id).map_err(|_| corrupt())?;
                if found.load(Ordering::Relaxed) >= FOUND || !self.is_old(conversation, before_us).await? {
                    return Ok(None);
                }
                found.fetch_add(1, Ordering::Relaxed);
                Ok(Some(conversation))
            }
        };
        let old = all.map_ok(is_old).try_buffer_unordered(SEARCHES);
        old.try_filter_map(|found| async move { Ok(found) }).try_collect().await
    }

    async fn is_old(&self, conversation: ConversationId, before_us: u64) -> Result<bool> {
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(false);
        }
        let key = (&conversation.as_bytes()[..], vec![vec![0], ERASED.to_vec()]);
        let rows = self.connection.rows(&self.connection.statements.marks, key).await?;
        let (mut head, mut erased) = (0, 0);
        for row in rows.rows::<(Vec<u8>, Option<i64>, Option<Vec<u8>>)>().map_err(|_| corrupt())? {
            let (part, seq, value) = row.map_err(|_| corrupt())?;
            if part == ERASED {
                let value = value.and_then(|value| value.try_into().ok()).ok_or_else(corrupt)?;
                erased = u64::from_be_bytes(value);
            } else {
                head = seq.map_or(0, unsigned);
            }
        }
        if erased >= head {
            return Ok(false);
        }
        // A message that is not written yet is not old.
        let rows = self.rows_after(conversation, erased, 1).await?;
        Ok(rows.first().is_some_and(|row| row.time_us < before_us))
    }
}
