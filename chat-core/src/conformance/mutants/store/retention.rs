//! Retention and deletion of the faulty store.

use super::*;

impl FaultyStore {
    /// Removes old rows and old gaps. Returns how many rows, and the gaps that replace them.
    pub(super) fn remove_old(
        &self,
        before_us: u64,
        limit: usize,
    ) -> (usize, Vec<(InstallationId, InboxRow)>) {
        use StoreFault as F;
        let mut tables = self.tables.lock();
        tables.inbox.sort_by_key(|(device, row)| (*device, row.position()));
        if self.has(F::NewestExpireFirst) {
            tables.inbox.reverse();
        }
        let heads: Vec<(ConversationId, Seq)> =
            tables.states.iter().map(|(id, state)| (*id, state.head.seq)).collect();
        let head =
            |id: ConversationId| heads.iter().find(|(known, _)| *known == id).map_or(0, |(_, seq)| *seq);
        let (mut kept, mut gaps, mut removed): (Vec<_>, Vec<(InstallationId, InboxRow)>, usize) =
            (Vec::new(), Vec::new(), 0);
        for (device, row) in std::mem::take(&mut tables.inbox) {
            let old =
                row.time_us < before_us || row.time_us == before_us && self.has(F::ExpiryIncludesItsTime);
            let full = removed >= limit && !self.has(F::ExpiryIgnoresLimit);
            if !old || full || row.seq > head(row.conversation) {
                kept.push((device, row));
                continue;
            }
            removed += usize::from(!row.is_expired() || self.has(F::GapsCountAsRemoved));
            let known = gaps.iter_mut().find(|(owner, gap)| {
                let same = gap.conversation == row.conversation || self.has(F::GapHidesOtherConversations);
                *owner == device && same
            });
            let joined = |before: bool| (before || row.joined) && !self.has(F::GapForgetsJoin);
            match known {
                Some((_, gap)) => {
                    let first = if self.has(F::GapForgetsItsStart) {
                        row.seq
                    } else {
                        gap.first_seq().min(row.first_seq())
                    };
                    let last = gap.position().max(row.position());
                    *gap = InboxRow::expired(gap.conversation, first, last, joined(gap.joined));
                }
                None => {
                    let gap =
                        InboxRow::expired(row.conversation, row.first_seq(), row.position(), joined(false));
                    gaps.push((device, gap));
                }
            }
        }
        if removed == 0 && !self.has(F::GapsCountAsRemoved) {
            kept.extend(gaps.clone());
            gaps.clear();
        }
        tables.inbox = kept;
        if self.has(F::ExpiryMovesCursor) {
            for (device, gap) in &gaps {
                tables.cursor(*device, gap.conversation).acked = gap.seq;
            }
        }
        if self.has(F::ExpiryOfHistory) {
            tables.history.retain(|row| row.time_us >= before_us);
        }
        if self.has(F::ExpiryWithoutGap) {
            gaps.clear();
        }
        (removed, gaps)
    }

    /// Erases the content of the chosen rows of history, oldest first, and of the inbox rows that wait for them. Returns how
    /// many rows lost content.
    pub(super) fn erase_content(
        &self,
        tables: &mut Tables,
        reason: EmptyReason,
        limit: usize,
        chosen: impl Fn(&InboxRow) -> bool,
    ) -> usize {
        use StoreFault as F;
        let reason = if self.has(F::ErasedRowsHaveOneReason) { EmptyReason::Expired } else { reason };
        tables.history.sort_by_key(|row| (row.conversation, row.seq));
        if self.has(F::NewestHistoryExpiresFirst) {
            tables.history.reverse();
        }
        let heads: Vec<_> = tables.states.iter().map(|(id, state)| (*id, state.head.seq)).collect();
        let mut erased = Vec::new();
        let mut count = 0;
        for row in &mut tables.history {
            let is_visible = heads.contains(&(row.conversation, row.seq))
                || heads.iter().any(|(id, head)| *id == row.conversation && row.seq < *head);
            if !is_visible || !chosen(row) || count >= limit && !self.has(F::HistoryExpiryIgnoresLimit) {
                continue;
            }
            let is_counted = row.erase(reason) || row.is_erased() && self.has(F::ErasedHistoryCountsAgain);
            count += usize::from(is_counted);
            erased.push((row.conversation, row.seq));
        }
        for (_, row) in &mut tables.inbox {
            let is_message = matches!(row.content, crate::model::envelope::RowContent::Message { .. });
            let waits = is_message && erased.contains(&(row.conversation, row.seq));
            if waits && !self.has(F::WaitingRowsKeepErasedContent) {
                row.erase(reason);
            }
        }
        if self.has(F::HistoryExpiryForgetsIds) {
            tables.ids.retain(|known| !erased.contains(&(known.0, known.3)));
        }
        if self.has(F::HistoryExpiryDropsRows) {
            tables.history.retain(|row| !erased.contains(&(row.conversation, row.seq)));
        }
        count
    }

    /// Erases the messages that a commit deletes.
    pub(super) fn delete(&self, tables: &mut Tables, id: ConversationId, deleted: &[Seq]) {
        use StoreFault as F;
        if deleted.is_empty() || self.has(F::DeletionIgnored) {
            return;
        }
        let earlier = self.has(F::DeletionErasesEarlierMessages);
        let everywhere = self.has(F::DeletionErasesInOtherConversations);
        let chosen = |row: &InboxRow| {
            let is_named = deleted.iter().any(|seq| *seq == row.seq || earlier && *seq > row.seq);
            is_named && (row.conversation == id || everywhere)
        };
        self.erase_content(tables, EmptyReason::Deleted, usize::MAX, chosen);
        if self.has(F::DeletionRemovesRows) {
            tables.inbox.retain(|(_, row)| row.conversation != id || !deleted.contains(&row.seq));
        }
        if self.has(F::DeletionBringsBackAckedRows) {
            let rows = tables.history.iter().filter(|row| chosen(row)).cloned();
            let devices: Vec<InstallationId> = tables
                .cursors
                .iter()
                .filter(|(_, known, _)| *known == id)
                .map(|(device, ..)| *device)
                .collect();
            let again: Vec<_> =
                rows.flat_map(|row| devices.iter().map(move |device| (*device, row.clone()))).collect();
            for (device, row) in again {
                if !tables.inbox.iter().any(|(d, known)| (*d, known.position()) == (device, row.position())) {
                    tables.inbox.push((device, row));
                }
            }
        }
    }

    /// Erases messages whose lifetime has ended.
    pub(super) fn disappear(&self, tables: &mut Tables, now_us: u64, limit: usize) -> usize {
        use StoreFault as F;
        if self.has(F::DisappearingIgnored) {
            return 0;
        }
        let is_over = |row: &InboxRow| {
            row.disappears_at_us().is_some_and(|at_us| {
                at_us < now_us
                    || at_us == now_us && !self.has(F::DisappearingExcludesItsTime)
                    || self.has(F::DisappearsAtOnce)
            })
        };
        let erased = self.erase_content(tables, EmptyReason::Disappeared, limit, is_over);
        erased + usize::from(self.has(F::DisappearingCountsAgain) && erased == 0)
    }
}
