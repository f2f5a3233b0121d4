//! Requests that remove old data: rows of inboxes, and the content of history.

use super::*;

impl Work {
    /// Applies a request that removes old data. It writes a batch of its own, because it must see the rows of the batch
    /// before it.
    pub(super) fn remove_old(&self, request: Request) {
        match request {
            Request::Expire(before_us, limit, answer) => {
                let _ = answer.send(self.expire(before_us, limit));
            }
            Request::ExpireHistory(conversations, before_us, limit, answer) => {
                let _ = answer.send(self.expire_history(&conversations, before_us, limit));
            }
            Request::ExpireMessages(now_us, limit, answer) => {
                let _ = answer.send(self.expire_messages(now_us, limit));
            }
            Request::ClearHistory(conversation, user, through, answer) => {
                let _ = answer.send(self.clear_history(conversation, user, through));
            }
            _ => {}
        }
    }

    /// Erases the content of old messages. It is not synced: after a crash a later call repeats it.
    fn expire_history(
        &self,
        conversations: &[ConversationId],
        before_us: u64,
        limit: usize,
    ) -> Result<usize> {
        let mut batch = OwnedWriteBatch::with_capacity(self.tables.database.clone(), limit.min(BATCH));
        let is_old = |row: &InboxRow| row.time_us < before_us;
        let mut count = 0;
        for conversation in conversations {
            let (left, reason) = (limit - count, EmptyReason::Expired);
            let erased = self.tables.erase_content(&mut batch, *conversation, reason, left, is_old)?;
            if erased > 0 {
                self.forget_waiting(&[*conversation]);
            }
            count += erased;
        }
        batch.durability(Some(PersistMode::Buffer)).commit().map_err(failed)?;
        Ok(count)
    }

    fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        let mut all = 0;
        loop {
            let mut batch = OwnedWriteBatch::with_capacity(self.tables.database.clone(), 8);
            let erased = self.tables.clear_history(&mut batch, conversation, user, through, BATCH)?;
            all += erased;
            let is_last = erased < BATCH;
            let mode = if is_last { PersistMode::SyncData } else { PersistMode::Buffer };
            batch.durability(Some(mode)).commit().map_err(failed)?;
            if is_last {
                break;
            }
        }
        if all > 0 {
            self.forget_waiting(&[conversation]);
        }
        Ok(())
    }

    /// Erases messages whose lifetime has ended. It is not synced: after a crash a later call repeats it.
    fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        let mut batch = OwnedWriteBatch::with_capacity(self.tables.database.clone(), limit.min(BATCH));
        let (count, conversations) = self.tables.expire_messages(&mut batch, now_us, limit)?;
        batch.durability(Some(PersistMode::Buffer)).commit().map_err(failed)?;
        self.forget_waiting(&conversations);
        Ok(count)
    }

    /// Forgets the sizes of the inboxes that may hold rows of these conversations: they are counted again.
    pub(super) fn forget_waiting(&self, conversations: &[ConversationId]) {
        for conversation in conversations {
            // The sizes are approximate. A list that cannot be read now fails the next commit of the conversation.
            for member in self.tables.read_members(*conversation).unwrap_or_default() {
                for device in &member.installations {
                    self.waiting.remove(device);
                }
            }
        }
    }

    /// Removes old rows of every inbox and leaves gaps. It is not synced: after a crash a later call repeats
    /// it.
    fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        let mut batch = OwnedWriteBatch::with_capacity(self.tables.database.clone(), limit.min(BATCH));
        let mut waiting: HashMap<InstallationId, (i64, i64)> = HashMap::new();
        let mut removed = 0;
        let mut next = vec![0; 16];
        while removed < limit {
            let Some(first) = self.tables.inbox.range(next..).next() else { break };
            let (device, oldest) = keys::read_inbox(&first.key().map_err(failed)?)?;
            // Most inboxes hold no row that old: reading the oldest key suffices for them.
            if oldest.time_us < before_us {
                removed += self.expire_of(&mut batch, &mut waiting, device, before_us, limit - removed)?;
            }
            // Continue with the next inbox: no key of this one is higher.
            next = [&device.as_bytes()[..], &[0xff; 34]].concat();
        }
        batch.durability(Some(PersistMode::Buffer)).commit().map_err(failed)?;
        for (device, (rows, bytes)) in waiting {
            if let Some(mut known) = self.waiting.get_mut(&device) {
                known.rows = known.rows.saturating_add_signed(rows);
                known.bytes = known.bytes.saturating_add_signed(bytes);
            }
        }
        Ok(removed)
    }

    /// Returns the oldest rows of an inbox that were committed before `before_us`: at most `limit` rows, and
    /// the gaps between them.
    fn old_rows(&self, device: InstallationId, before_us: u64, limit: usize) -> Result<Vec<InboxRow>> {
        let mut old = Vec::new();
        let mut count = 0;
        let mut after = InboxPosition::START;
        loop {
            let page = self.tables.read_inbox(device, after, PageLimit::rows(1000))?;
            let Some(last) = page.last() else { return Ok(old) };
            after = last.position();
            for row in page {
                if row.time_us >= before_us || count == limit {
                    return Ok(old);
                }
                count += usize::from(!row.is_expired());
                old.push(row);
            }
        }
    }

    fn expire_of(
        &self,
        batch: &mut OwnedWriteBatch,
        waiting: &mut HashMap<InstallationId, (i64, i64)>,
        device: InstallationId,
        before_us: u64,
        limit: usize,
    ) -> Result<usize> {
        let old = self.old_rows(device, before_us, limit)?;
        let removed = old.iter().filter(|row| !row.is_expired()).count();
        if removed == 0 {
            return Ok(0);
        }
        let mut gaps: HashMap<ConversationId, InboxRow> = HashMap::new();
        let counted = waiting.entry(device).or_default();
        for row in old {
            let known = gaps.get(&row.conversation);
            let (from, joined) =
                known.map_or((row.first_seq(), row.joined), |gap| (gap.first_seq(), gap.joined));
            let grown = InboxRow::expired(row.conversation, from, row.position(), joined);
            // A mailbox keeps only the history row at the gap's last seq: the ack of the gap reads it.
            if let (Some(before), Ok(ConversationKind::Mailbox)) =
                (gaps.insert(row.conversation, grown), row.conversation.kind())
            {
                batch.remove(&self.tables.history, keys::history(row.conversation, before.seq));
            }
            batch.remove(&self.tables.inbox, keys::inbox(device, row.position()));
            (counted.0, counted.1) = (counted.0 - 1, counted.1 - row.size() as i64);
        }
        for gap in gaps.into_values() {
            (counted.0, counted.1) = (counted.0 + 1, counted.1 + gap.size() as i64);
            batch.insert(&self.tables.inbox, keys::inbox(device, gap.position()), inbox_value(&gap));
        }
        Ok(removed)
    }
}
