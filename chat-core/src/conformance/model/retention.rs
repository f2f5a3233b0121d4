//! Retention and deletion in the model-based test.

use super::*;

impl Run {
    /// Expires everything before a time, a piece at a time: after each piece, gaps and rows are in order.
    pub(super) async fn expire(&self, share: u64, piece: usize) -> Outcome {
        let newest = self.talks.iter().take(5).map(|talk| talk.state.head.time_us).max().unwrap_or(0);
        let before_us = self.begin_us + newest.saturating_sub(self.begin_us) * share / 100;
        let mut removed = 0;
        for call in 0.. {
            if call > 2_000 {
                return Err("an expiry does not end".into());
            }
            let count = self.store.expire(before_us, piece).await.map_err(failed)?;
            if count > piece {
                return Err(format!("an expiry of at most {piece} rows removed {count}"));
            }
            removed += count;
            for device in &self.devices {
                self.gaps_are_in_order(device.installation, before_us).await?;
            }
            if count < piece {
                break;
            }
        }
        let mut expected = 0;
        loop {
            let count = self.reference.expire(before_us, 1000).await.map_err(failed)?;
            expected += count;
            if count < 1000 {
                break;
            }
        }
        // The count of a call that failed is lost.
        if self.calls.faults.is_none() {
            equal(removed, expected, "rows expired")?;
        }
        for device in &self.devices {
            self.inbox(device.installation, PageLimit::MAX).await?;
            self.record(device.installation).await?;
        }
        Ok(())
    }

    /// Erases the history before a time, a piece at a time, after the rows that wait for it expired.
    pub(super) async fn expire_history(&mut self, share: u64, piece: usize) -> Outcome {
        let newest = self.talks.iter().take(5).map(|talk| talk.state.head.time_us).max().unwrap_or(0);
        let before_us = self.begin_us + newest.saturating_sub(self.begin_us) * share / 100;
        self.expire(share, 1000).await?;
        self.erased = true;
        let erased = erased_in_pieces(piece, || self.store.expire_history(before_us, piece)).await?;
        let expected = self.reference.expire_history(before_us, usize::MAX).await.map_err(failed)?;
        self.same_count(erased, expected, "messages erased")?;
        self.histories().await
    }

    /// Erases the messages that are due, `piece` of them in each call.
    pub(super) async fn expire_messages(&self, share: u64, piece: usize) -> Outcome {
        let newest = self.talks.iter().take(5).map(|talk| talk.state.head.time_us).max().unwrap_or(0);
        let now_us = self.begin_us + (newest.saturating_sub(self.begin_us) + 4000) * share / 100;
        let erased = erased_in_pieces(piece, || self.store.expire_messages(now_us, piece)).await?;
        let expected = self.reference.expire_messages(now_us, usize::MAX).await.map_err(failed)?;
        self.same_count(erased, expected, "messages that disappeared")?;
        for device in &self.devices {
            self.inbox(device.installation, PageLimit::MAX).await?;
        }
        self.histories().await
    }

    /// A member clears a conversation up to a share of its head; above 100, up to a seq that does not exist.
    pub(super) async fn clear(&mut self, talk: usize, member: usize, share: u64) -> Outcome {
        let talk = &self.talks[talk];
        let user = talk.members[member % talk.members.len()].0;
        let head = talk.state.head.seq;
        let through = head.saturating_sub(40) + head.min(40) * share / 100;
        self.erased = true;
        self.store.clear_history(talk.id, user, through).await.map_err(failed)?;
        self.reference.clear_history(talk.id, user, through).await.map_err(failed)?;
        self.histories().await
    }

    /// Compares numbers of erased messages. Without faults only: the count of a call that failed is lost.
    fn same_count(&self, ours: usize, theirs: usize, what: &str) -> Outcome {
        if self.calls.faults.is_none() { equal(ours, theirs, what) } else { Ok(()) }
    }

    /// Compares all histories and the records of cleared ones.
    async fn histories(&self) -> Outcome {
        for talk in &self.talks {
            self.history(talk.id, PageLimit::MAX).await?;
            for (user, _) in &talk.members {
                let ours = self.store.cleared(talk.id, *user).await.map_err(failed)?;
                let theirs = self.reference.cleared(talk.id, *user).await.map_err(failed)?;
                equal(ours, theirs, "the seq up to which a user cleared a conversation")?;
            }
        }
        Ok(())
    }

    /// Whether what is left of an inbox covers every seq once, and no row is older than a gap after it.
    async fn gaps_are_in_order(&self, device: InstallationId, before_us: u64) -> Outcome {
        let rows = self.store.inbox(device, InboxPosition::START, PageLimit { rows: 10_000, bytes: 1 << 30 });
        let rows = rows.await.map_err(failed)?;
        let mut last: std::collections::BTreeMap<ConversationId, Seq> = Default::default();
        for row in &rows {
            if let Some(before) = last.insert(row.conversation, row.seq)
                && row.first_seq() != before + 1
            {
                return Err(format!("seq {} follows {before} in an inbox", row.first_seq()));
            }
        }
        let gap_after = |row: &InboxRow| {
            rows.iter().any(|gap| {
                gap.is_expired() && gap.conversation == row.conversation && gap.position() > row.position()
            })
        };
        match rows.iter().find(|row| !row.is_expired() && row.time_us < before_us && gap_after(row)) {
            Some(row) => Err(format!("seq {} is older than a gap after it", row.seq)),
            None => Ok(()),
        }
    }
}

/// Calls a sweep of at most `piece` messages until it erases fewer. Returns the sum.
async fn erased_in_pieces<F: Future<Output = crate::Result<usize>>>(
    piece: usize,
    sweep: impl Fn() -> F,
) -> Result<usize, String> {
    let mut erased = 0;
    for _ in 0..2_000 {
        let count = sweep().await.map_err(failed)?;
        if count > piece {
            return Err(format!("a sweep of at most {piece} messages erased {count}"));
        }
        erased += count;
        if count < piece {
            return Ok(erased);
        }
    }
    Err("a sweep of messages does not end".into())
}
