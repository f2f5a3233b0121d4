mod retention;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::StoreFault;
use crate::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, FeedChange, LogPosition,
    MessageStore, PageLimit, Roster, Rules, SenderFilter, StoreIdentity,
};
use crate::conformance::pause;
use crate::model::envelope::{AckUpTo, Durability, EmptyReason, InboxCursor, InboxPosition, InboxRow};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{
    ConversationId, ConversationKind, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};

/// A [`MessageStore`] in memory that scans lists, with at most one fault. Without one it passes the suite.
#[derive(Debug)]
pub struct FaultyStore {
    fault: Option<StoreFault>,
    tables: Mutex<Tables>,
}

#[derive(Clone, Debug, Default)]
struct Tables {
    states: Vec<(ConversationId, ConversationState)>,
    history: Vec<InboxRow>,
    ids: Vec<(ConversationId, InstallationId, MessageId, Seq)>,
    inbox: Vec<(InstallationId, InboxRow)>,
    cursors: Vec<(InstallationId, ConversationId, InboxCursor)>,
    generations: Vec<(InstallationId, u64)>,
    /// The highest number of rows that ever waited for each device.
    most_waiting: Vec<(InstallationId, u64)>,
    /// The highest position that each device acknowledged or read; kept by the faults that use it.
    floors: Vec<(InstallationId, InboxPosition)>,
    /// Commits that began, by the time of their state; kept by the faults that use it.
    begun: Vec<(ConversationId, u64)>,
    /// The seq up to which each user has cleared a conversation.
    cleared: Vec<(ConversationId, UserId, Seq)>,
    feeds: Vec<(ConversationId, FeedChange)>,
    /// A commit runs.
    busy: bool,
}

impl FaultyStore {
    /// Returns an empty store with this fault.
    pub fn new(fault: Option<StoreFault>) -> Self {
        Self { fault, tables: Mutex::default() }
    }

    fn has(&self, fault: StoreFault) -> bool {
        self.fault == Some(fault)
    }

    /// Changes a row as the fault has it.
    fn bend(&self, mut row: InboxRow) -> InboxRow {
        use crate::model::envelope::RowContent::Message;
        if self.has(StoreFault::ThirtyTwoBitSeq) {
            row.seq = u64::from(row.seq as u32);
        }
        if self.has(StoreFault::ThirtyTwoBitTime) {
            row.time_us = u64::from(row.time_us as u32);
        }
        use crate::model::envelope::RowContent::Empty;
        if let (Empty { reason, .. }, true) = (&mut row.content, self.has(StoreFault::SkipReadsAsExpired)) {
            *reason = EmptyReason::Expired;
        }
        if let (Message { message, .. }, true) = (&mut row.content, self.has(StoreFault::OptionsLost)) {
            let mut shorter = crate::model::envelope::Message::clone(message);
            shorter.options = crate::model::message_options::MessageOptions::default();
            *message = std::sync::Arc::new(shorter);
        }
        if let (Message { message, .. }, true) = (&mut row.content, self.has(StoreFault::GroupPartLost)) {
            let mut shorter = crate::model::envelope::Message::clone(message);
            shorter.group = None;
            *message = std::sync::Arc::new(shorter);
        }
        if let (Message { message, .. }, true) = (&mut row.content, self.has(StoreFault::AudienceLost)) {
            let mut shorter = crate::model::envelope::Message::clone(message);
            shorter.audience.clear();
            *message = std::sync::Arc::new(shorter);
        }
        if let Message { message, .. } = &mut row.content {
            let is_mailbox = row.conversation.kind() == Ok(ConversationKind::Mailbox);
            let cut = if self.has(StoreFault::LargeBodyCut) {
                30_000
            } else if self.has(StoreFault::MailboxRowsWithoutBody) && is_mailbox {
                0
            } else {
                usize::MAX
            };
            if message.body.len() > cut {
                let mut shorter = crate::model::envelope::Message::clone(message);
                shorter.body.truncate(cut);
                *message = std::sync::Arc::new(shorter);
            }
        }
        row
    }

    fn bend_generation(&self, generation: u64) -> u64 {
        if self.has(StoreFault::GenerationAsFloat) { generation as f32 as u64 } else { generation }
    }

    fn apply(&self, tables: &mut Tables, commit: Commit) {
        use StoreFault as F;
        let id = commit.conversation;
        let is_mailbox = id.kind() == Ok(ConversationKind::Mailbox);
        let known = tables.state(id).cloned();
        let is_late = known.as_ref().is_some_and(|known| known.head.time_us > commit.state.head.time_us);
        if !self.has(F::StateWithoutRows) {
            let mut history = commit.history;
            if self.has(F::LastHistoryRowLost) && history.len() > 1 {
                history.pop();
            }
            for row in history {
                let mut row = self.bend(row);
                if self.has(F::BoxKeptInHistory)
                    && let crate::model::envelope::RowContent::Message { sealed, .. } = &mut row.content
                {
                    *sealed = bytes::Bytes::from_static(b"box");
                }
                let same = |known: &InboxRow| (known.conversation, known.seq) == (id, row.seq);
                let is_erased = tables.history.iter().any(|known| same(known) && known.is_erased());
                if is_erased && !self.has(F::ErasedContentComesBack) {
                    continue;
                }
                tables.history.retain(|known| !same(known));
                if !is_mailbox || self.has(F::HistoryKeptForMailboxes) {
                    tables.history.push(row);
                }
            }
            let ids =
                if self.has(F::IdsOfCommitLostButFirst) { commit.ids[..1].to_vec() } else { commit.ids };
            for (sender, message, seq) in ids {
                tables.ids.retain(|known| (known.0, known.1, known.2) != (id, sender, message));
                tables.ids.push((id, sender, message, seq));
            }
            self.apply_inbox(tables, id, commit.inbox, is_late);
            self.delete(tables, id, &commit.deleted);
        }
        if !self.has(F::FeedChangesIgnored) {
            let of_leaving = |change: &FeedChange| !change.joins && self.has(F::FeedLeaveIgnored);
            for change in commit.feeds.into_iter().filter(|change| !of_leaving(change)) {
                let same = |(known, of): &(ConversationId, FeedChange)| {
                    (*known, of.device, of.seq) == (id, change.device, change.seq)
                };
                tables.feeds.retain(|known| !same(known));
                tables.feeds.push((id, change));
            }
        }
        for (device, generation) in commit.generations {
            if !self.has(F::GenerationOfCommitIgnored) {
                tables.raise(
                    device,
                    self.bend_generation(generation),
                    self.has(F::GenerationGoesBackOnCommit),
                );
            }
        }
        if self.has(F::RowsWithoutState) && known.is_some() || is_late && !self.has(F::OlderStateComesBack) {
            return;
        }
        let mut state = known.unwrap_or_default();
        if self.has(F::UnchangedMembersLost) {
            state.roster.members.clear();
        }
        if self.has(F::UnchangedSendersLost) {
            state.senders.clear();
        }
        state.apply(&commit.state);
        if self.has(F::FeedOfStateLost) {
            state.head.is_feed = false;
        }
        if self.has(F::RulesOfStateLost) {
            state.head.rules = Rules::default();
        }
        if self.has(F::SendersOfStateLost) && state.senders.len() > 1 {
            state.senders.pop_first();
        }
        if self.has(F::MembersOfStateLost) {
            state.roster.members.truncate(1);
        }
        if self.has(F::PositionOfStateLost) {
            state.head.position = LogPosition::default();
        }
        if self.has(F::RosterOfGroupLost) {
            state.roster = Roster::of_members(state.roster.members);
        }
        tables.states.retain(|(known, _)| *known != id);
        tables.states.push((id, state));
    }

    fn apply_inbox(
        &self,
        tables: &mut Tables,
        id: ConversationId,
        inbox: Vec<(InstallationId, InboxRow)>,
        is_late: bool,
    ) {
        use StoreFault as F;
        let last_of =
            |device: InstallationId| inbox.iter().rev().find(|(d, _)| *d == device).map(|(_, row)| row.seq);
        for (device, row) in &inbox {
            let (device, row) = (*device, self.bend(row.clone()));
            let mut row = row;
            let erased = tables.history.iter().find(|known| (known.conversation, known.seq) == (id, row.seq));
            if let Some(crate::model::envelope::RowContent::Empty { reason, .. }) =
                erased.filter(|known| known.is_erased()).map(|known| &known.content)
                && !self.has(F::ErasedContentComesBack)
            {
                row.erase(*reason);
            }
            let is_own = matches!(row.content, crate::model::envelope::RowContent::Own { .. });
            let lost = self.has(F::OwnRowLost) && is_own
                || self.has(F::OnlyLastInboxRowOfCommit) && last_of(device) != Some(row.seq)
                || self.has(F::SecondDeviceOfUserLost) && device.as_bytes()[1] == 2;
            if lost {
                continue;
            }
            let cursor = tables.cursor(device, id);
            let joins = (row.joined && cursor.tail == 0 && !self.has(F::JoinIgnored))
                || (self.has(F::JoinOnEveryCommit) && row.seq > cursor.tail && cursor.tail > 0);
            if joins {
                cursor.acked = cursor.acked.max(row.seq - 1);
            }
            cursor.tail =
                if self.has(F::OlderTailComesBack) && is_late { row.seq } else { cursor.tail.max(row.seq) };
            let acked = cursor.acked;
            let mut covered = false;
            if !self.has(F::ExpiredRowComesBack) {
                covered = tables.inbox.iter().any(|(d, gap)| {
                    let same = *d == device && gap.conversation == id && gap.is_expired();
                    same && (gap.first_seq()..=gap.seq).contains(&row.seq)
                });
            }
            if self.has(F::LateRowReplacesGap) {
                tables.inbox.retain(|(d, known)| {
                    (*d, known.position()) != (device, row.position()) || !known.is_expired()
                });
                covered = false;
            }
            if row.seq <= acked && !self.has(F::AckedRowComesBack) || covered {
                continue;
            }
            let position = row.position();
            let same = |(d, known): &(InstallationId, InboxRow)| (*d, known.position()) == (device, position);
            if !self.has(F::RepeatedCommitDuplicatesRows) {
                tables.inbox.retain(|entry| !same(entry) || entry.1.is_expired());
            }
            let mut row = row;
            if self.has(F::RepeatedCommitMovesRows) && is_late {
                row.time_us += 1;
            }
            if !tables.inbox.iter().any(|entry| same(entry) && entry.1.is_expired()) {
                tables.inbox.push((device, row));
            }
        }
        let devices: std::collections::BTreeSet<_> = inbox.iter().map(|(device, _)| *device).collect();
        for device in devices {
            let waiting = tables.inbox.iter().filter(|(d, _)| *d == device).count() as u64;
            match tables.most_waiting.iter_mut().find(|(d, _)| *d == device) {
                Some((_, most)) => *most = waiting.max(*most),
                None => tables.most_waiting.push((device, waiting)),
            }
        }
    }

    /// Commits in two steps, with an `await` between them. The faults show if the second step never comes.
    async fn commit_in_steps(&self, commit: Commit) -> Result<CommitOutcome> {
        use StoreFault as F;
        let id = commit.conversation;
        let known = self.tables.lock().state(id).cloned().unwrap_or_default();
        if self.has(F::InterruptedCommitBlocksTheStore) {
            for waited in 0.. {
                if !std::mem::replace(&mut self.tables.lock().busy, true) {
                    break;
                }
                if waited == 20 {
                    return Err(Error::new(ErrorKind::Unavailable, "another commit runs"));
                }
                pause().await;
            }
        }
        let is_done = if self.has(F::InterruptedCommitIsLost) {
            let (mut tables, key) = (self.tables.lock(), (id, commit.state.head.time_us));
            let is_done = tables.begun.contains(&key);
            tables.begun.push(key);
            is_done
        } else {
            self.has(F::InterruptedCommitStaysHalf) && known.head.time_us == commit.state.head.time_us
        };
        if is_done {
            return Ok(CommitOutcome::Visible);
        }
        let mut first = commit.clone();
        if self.has(F::InterruptedCommitStaysHalf) {
            first.inbox.truncate(commit.inbox.len() / 2);
            self.apply(&mut self.tables.lock(), first);
        } else if self.has(F::InterruptedStateIsPart) {
            first.state.senders.clear();
            self.apply(&mut self.tables.lock(), first);
        }
        pause().await;
        let mut tables = self.tables.lock();
        self.apply(&mut tables, commit);
        tables.busy = false;
        Ok(CommitOutcome::Visible)
    }

    fn acknowledge(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        use StoreFault as F;
        let mut tables = self.tables.lock();
        let fits = |tables: &Tables, ack: &AckUpTo| {
            let is_of_feed = |(id, change): &(ConversationId, FeedChange)| {
                (*id, change.device) == (ack.conversation, device)
            };
            let is_feed = tables.feeds.iter().any(is_of_feed) && !self.has(F::FeedAckRefused);
            if is_feed && (ack.seq <= tables.head(ack.conversation) || self.has(F::FeedAckAboveHeadAccepted))
            {
                return true;
            }
            let cursor = tables.cursors.iter().find(|(d, c, _)| (*d, *c) == (device, ack.conversation));
            match cursor {
                Some((.., cursor)) => {
                    ack.seq <= cursor.tail
                        || self.has(F::AckAboveTailAccepted)
                        || self.has(F::AckAboveTailClamped)
                }
                None => self.has(F::AckOfUnknownConversationAccepted),
            }
        };
        let rejected = acks.iter().any(|ack| !fits(&tables, ack));
        if !rejected || self.has(F::RejectedAckRaisesGeneration) {
            tables.raise(device, self.bend_generation(generation), self.has(F::GenerationGoesBackOnAck));
        }
        if rejected && !self.has(F::RejectedAckHasEffects) {
            return Err(Error::new(ErrorKind::Invalid, "an ack is above the tail"));
        }
        let count = if self.has(F::SecondAckOfCallIgnored) { 1 } else { acks.len() };
        let accepted: Vec<&AckUpTo> = acks.iter().take(count).filter(|ack| fits(&tables, ack)).collect();
        for ack in accepted {
            let seq = if self.has(F::AckAboveTailClamped) {
                ack.seq.min(tables.cursor(device, ack.conversation).tail)
            } else {
                ack.seq
            };
            let cursor = tables.cursor(device, ack.conversation);
            if !self.has(F::AckWithoutCursor) {
                let may_fall = self.has(F::AckGoesBack)
                    || self.has(F::LowerAckOfSameCallCounts)
                        && acks.iter().filter(|other| other.conversation == ack.conversation).count() > 1;
                let is_above = seq > cursor.tail;
                if !(is_above && self.has(F::FeedAckForgotten)) {
                    cursor.acked = if may_fall { seq } else { cursor.acked.max(seq) };
                }
                if is_above && !self.has(F::FeedAckKeepsTail) && !self.has(F::AckAboveTailAccepted) {
                    cursor.tail = cursor.acked;
                }
            }
            if self.has(F::RowsBelowAckHidden) {
                let own = tables.inbox.iter().filter(|(d, _)| *d == device).map(|(_, row)| row);
                let gone = own.filter(|row| row.conversation == ack.conversation && row.seq <= seq);
                let floor = gone.map(InboxRow::position).max();
                tables.raise_floor(device, floor);
            }
            if self.has(F::InterruptedAckKeepsRows) {
                continue;
            }
            let mut left = if self.has(F::AckRemovesOneRowOnly) { 1 } else { usize::MAX };
            tables.inbox.retain(|(d, row)| {
                let own = *d == device || self.has(F::AckOfOneDeviceCountsForAll);
                let same = row.conversation == ack.conversation || self.has(F::AckCountsForAllConversations);
                let below = if self.has(F::AckKeepsItsOwnRow) { row.seq < seq } else { row.seq <= seq };
                let removed = own && same && below && left > 0;
                left -= usize::from(removed && left > 0);
                !removed
            });
        }
        if rejected { Err(Error::new(ErrorKind::Invalid, "an ack is above the tail")) } else { Ok(()) }
    }

    fn page(
        &self,
        rows: impl Iterator<Item = InboxRow>,
        limit: PageLimit,
        bytes_ignored: bool,
    ) -> Vec<InboxRow> {
        let mut bytes = 0;
        let mut page = Vec::new();
        for row in rows {
            if self.has(StoreFault::LargeRowEndsPage) && bytes + row.size() > limit.bytes {
                break;
            }
            bytes += row.size();
            page.push(row);
            let full = page.len() >= limit.rows && !self.has(StoreFault::InboxRowLimitIgnored);
            if full || bytes >= limit.bytes && !bytes_ignored {
                break;
            }
        }
        page
    }
}

impl Tables {
    fn state(&self, id: ConversationId) -> Option<&ConversationState> {
        self.states.iter().find(|(known, _)| *known == id).map(|(_, state)| state)
    }

    fn head(&self, id: ConversationId) -> Seq {
        self.state(id).map_or(0, |state| state.head.seq)
    }

    fn cleared(&self, id: ConversationId, user: UserId) -> Seq {
        let mark = self.cleared.iter().find(|(known, of, _)| (*known, *of) == (id, user));
        mark.map_or(0, |(.., seq)| *seq)
    }

    fn cursor(&mut self, device: InstallationId, id: ConversationId) -> &mut InboxCursor {
        let at = self.cursors.iter().position(|(d, c, _)| (*d, *c) == (device, id)).unwrap_or_else(|| {
            self.cursors.push((device, id, InboxCursor::default()));
            self.cursors.len() - 1
        });
        &mut self.cursors[at].2
    }

    fn raise_floor(&mut self, device: InstallationId, position: Option<InboxPosition>) {
        let Some(position) = position else { return };
        match self.floors.iter_mut().find(|(known, _)| *known == device) {
            Some((_, floor)) => *floor = position.max(*floor),
            None => self.floors.push((device, position)),
        }
    }

    fn raise(&mut self, device: InstallationId, generation: u64, may_fall: bool) {
        match self.generations.iter_mut().find(|(known, _)| *known == device) {
            Some((_, known)) => *known = if may_fall { generation } else { generation.max(*known) },
            None => self.generations.push((device, generation)),
        }
    }
}

#[async_trait]
impl MessageStore for FaultyStore {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { epoch: StoreEpoch::from_bytes([2; 16]), durability: Durability::Memory }
    }

    async fn state(
        &self,
        id: ConversationId,
        senders: SenderFilter<'_>,
        _: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        let senders = match senders {
            SenderFilter::Of(named) if self.has(StoreFault::OneSenderRead) => {
                SenderFilter::Of(&named[..named.len().min(1)])
            }
            _ if self.has(StoreFault::SenderFilterIgnored) => SenderFilter::All,
            senders => senders,
        };
        Ok(self.tables.lock().state(id).map(|state| state.clone().with_senders(senders)))
    }

    async fn find(
        &self,
        id: ConversationId,
        sender: InstallationId,
        message: MessageId,
    ) -> Result<Option<Seq>> {
        use StoreFault as F;
        let tables = self.tables.lock();
        let skipped = if self.has(F::IdsForgottenAfterTen) { tables.ids.len().saturating_sub(10) } else { 0 };
        let found = tables.ids.iter().skip(skipped).find(|known| {
            let sender_fits = known.1 == sender || self.has(F::FindIgnoresSender);
            let conversation_fits = known.0 == id || self.has(F::FindIgnoresConversation);
            sender_fits && conversation_fits && known.2 == message
        });
        let head = tables.head(id);
        let seq = found.map(|known| known.3).filter(|seq| *seq <= head || self.has(F::FindSeesAboveHead));
        Ok(if self.has(F::FindReturnsHead) { seq.map(|_| head) } else { seq })
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let steps = [
            StoreFault::InterruptedCommitStaysHalf,
            StoreFault::InterruptedCommitIsLost,
            StoreFault::InterruptedStateIsPart,
            StoreFault::InterruptedCommitBlocksTheStore,
        ];
        if self.fault.is_some_and(|fault| steps.contains(&fault)) {
            let mut outcomes = Vec::new();
            for commit in commits {
                outcomes.push(self.commit_in_steps(commit).await);
            }
            return outcomes;
        }
        if self.has(StoreFault::ConcurrentCommitsOverwrite) {
            let (count, mut copy) = (commits.len(), self.tables.lock().clone());
            commits.into_iter().for_each(|commit| self.apply(&mut copy, commit));
            pause().await;
            *self.tables.lock() = copy;
            return vec![Ok(CommitOutcome::Visible); count];
        }
        let mut tables = self.tables.lock();
        let count = commits.len();
        let applied = if self.has(StoreFault::OnlyFirstCommitOfCall) { 1 } else { count };
        commits.into_iter().take(applied).for_each(|commit| self.apply(&mut tables, commit));
        let outcomes = if self.has(StoreFault::OutcomeMissing) { count.saturating_sub(1) } else { count };
        (0..outcomes).map(|_| Ok(CommitOutcome::Visible)).collect()
    }

    async fn make_visible(&self, _commits: Vec<Commit>) -> Result<()> {
        Ok(())
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        if !self.has(StoreFault::InterruptedAckKeepsRows) {
            return self.acknowledge(device, generation, acks);
        }
        let before = self.tables.lock().clone();
        self.acknowledge(device, generation, acks)?;
        pause().await;
        for ack in acks {
            let cursor = before.cursors.iter().find(|(d, c, _)| (*d, *c) == (device, ack.conversation));
            if cursor.is_some_and(|(.., cursor)| cursor.acked < ack.seq) {
                let mut tables = self.tables.lock();
                tables.inbox.retain(|(d, row)| {
                    *d != device || row.conversation != ack.conversation || row.seq > ack.seq
                });
            }
        }
        Ok(())
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        use StoreFault as F;
        let mut tables = self.tables.lock();
        let floor = tables.floors.iter().find(|(d, _)| *d == device).map(|(_, floor)| *floor);
        let mut rows: Vec<InboxRow> = tables
            .inbox
            .iter()
            .filter(|(d, row)| {
                let behind = if self.has(F::TiesLostAtPageBoundary) {
                    row.time_us > after.time_us
                } else if self.has(F::PageRepeatsItsStart) {
                    row.position() >= after
                } else {
                    row.position() > after
                };
                let visible = row.seq <= tables.head(row.conversation) || self.has(F::InboxShowsAboveHead);
                let hidden = floor.is_some_and(|floor| row.position() < floor);
                *d == device && behind && visible && !hidden
            })
            .map(|(_, row)| row.clone())
            .collect();
        rows.sort_by_key(InboxRow::position);
        if self.has(F::InboxBySeq) {
            rows.sort_by_key(|row| row.seq);
        }
        if self.has(F::InboxNewestFirst) {
            rows.reverse();
        }
        let mut page = self.page(rows.into_iter(), limit, self.has(F::InboxByteLimitIgnored));
        if self.has(F::PageEndsEarly) && page.len() > 1 && limit.is_reached(&page) {
            page.pop();
        }
        if self.has(F::RowsBelowReadHidden) {
            // Rows that wait at this moment are read again. Rows that come later below them are not.
            let oldest = page.first().filter(|_| after == InboxPosition::START).map(InboxRow::position);
            tables.raise_floor(device, oldest);
        }
        Ok(page)
    }

    async fn history(&self, id: ConversationId, before: Seq, limit: PageLimit) -> Result<Vec<InboxRow>> {
        use StoreFault as F;
        let tables = self.tables.lock();
        let head = if self.has(F::HistoryAboveHead) { u64::MAX } else { tables.head(id) };
        let fits = |row: &&InboxRow| {
            let below = before == 0 && !self.has(F::HistoryStartZeroIsEmpty)
                || row.seq < before
                || row.seq == before && self.has(F::HistoryIncludesItsStart);
            row.conversation == id && row.seq <= head && below
        };
        let mut rows: Vec<InboxRow> = tables.history.iter().filter(fits).cloned().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.seq));
        if self.has(F::HistoryOldestFirst) {
            rows.reverse();
        }
        Ok(self.page(rows.into_iter(), limit, self.has(F::HistoryByteLimitIgnored)))
    }

    async fn history_after(&self, id: ConversationId, after: Seq, limit: PageLimit) -> Result<Vec<InboxRow>> {
        use StoreFault as F;
        let tables = self.tables.lock();
        let head = if self.has(F::HistoryAfterAboveHead) { u64::MAX } else { tables.head(id) };
        let fits = |row: &&InboxRow| {
            let is_above = row.seq > after || row.seq == after && self.has(F::HistoryAfterIncludesItsStart);
            let is_here = row.conversation == id || self.has(F::HistoryAfterOfAllConversations);
            is_here && row.seq <= head && is_above
        };
        let mut rows: Vec<InboxRow> = tables.history.iter().filter(fits).cloned().collect();
        rows.sort_by_key(|row| row.seq);
        if self.has(F::HistoryAfterNewestFirst) {
            rows.reverse();
        }
        if self.has(F::HistoryAfterIgnoresLimit) {
            return Ok(rows);
        }
        Ok(self.page(rows.into_iter(), limit, false))
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        use StoreFault as F;
        let mut tables = self.tables.lock();
        let mut changes = tables.feeds.clone();
        changes.retain(|(id, change)| {
            let is_own = change.device == device || self.has(F::FeedsOfOtherDevices);
            is_own && (change.seq <= tables.head(*id) || self.has(F::FeedChangeAboveHeadCounts))
        });
        changes.sort_by_key(|(id, change)| (*id, change.seq));
        let mut feeds: Vec<Feed> = Vec::new();
        for (id, change) in changes {
            if feeds.last().is_none_or(|feed| feed.conversation != id) {
                let acked = tables.cursor(device, id).acked;
                feeds.push(Feed { conversation: id, acked, changes: Vec::new() });
            }
            feeds
                .iter_mut()
                .last()
                .into_iter()
                .for_each(|feed| feed.changes.push((change.seq, change.joins)));
        }
        Ok(feeds)
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        Ok(self.tables.lock().generations.iter().find(|(d, _)| *d == device).map_or(0, |(_, g)| *g))
    }

    async fn device(&self, device: InstallationId, want: CursorFilter) -> Result<DeviceRecord> {
        use StoreFault as F;
        let tables = self.tables.lock();
        let waiting: Vec<_> =
            tables.inbox.iter().filter(|(d, _)| *d == device).map(|(_, row)| row.size()).collect();
        let want = if self.has(F::CursorFilterIgnored) && want != CursorFilter::No {
            CursorFilter::All
        } else {
            want
        };
        let cursors = tables
            .cursors
            .iter()
            .filter(|(d, c, _)| *d == device && (want == CursorFilter::All || want == CursorFilter::Of(*c)));
        let most = tables.most_waiting.iter().find(|(d, _)| *d == device).map_or(0, |(_, most)| *most);
        let rows = waiting.len() as u64;
        let count = if self.has(F::CursorOfOneConversationOnly) { 1 } else { usize::MAX };
        Ok(DeviceRecord {
            waiting_rows: if self.has(F::WaitingRowsNeverFall) { most.max(rows) } else { rows },
            waiting_bytes: if self.has(F::WaitingBytesUnknown) {
                0
            } else {
                waiting.iter().sum::<usize>() as u64
            },
            cursors: cursors.map(|(_, c, cursor)| (*c, *cursor)).take(count).collect(),
        })
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        let (removed, gaps) = self.remove_old(before_us, limit);
        if self.has(StoreFault::InterruptedExpiryLosesRows) {
            pause().await;
        }
        self.tables.lock().inbox.extend(gaps);
        Ok(removed)
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        let equal = self.has(StoreFault::HistoryExpiryIncludesItsTime);
        let is_old = |row: &InboxRow| row.time_us < before_us || row.time_us == before_us && equal;
        Ok(self.erase_content(&mut self.tables.lock(), EmptyReason::Expired, limit, is_old))
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        Ok(self.disappear(&mut self.tables.lock(), now_us, limit))
    }

    async fn clear_history(&self, id: ConversationId, user: UserId, through: Seq) -> Result<()> {
        use StoreFault as F;
        let mut tables = self.tables.lock();
        let capped =
            if self.has(F::ClearingCountsAboveHead) { through } else { through.min(tables.head(id)) };
        let known = tables.cleared(id, user);
        let mark = if self.has(F::ClearingGoesBack) { capped } else { capped.max(known) };
        tables.cleared.retain(|(conversation, of, _)| (*conversation, *of) != (id, user));
        tables.cleared.push((id, user, mark));
        let members: Vec<UserId> = tables
            .state(id)
            .iter()
            .flat_map(|state| &state.roster.members)
            .map(|member| member.user)
            .collect();
        let counts = |member: &&UserId| {
            !self.has(F::ClearingCountsForAllUsers) && !self.has(F::ClearingOfOneMemberErases)
                || **member == user
        };
        let by_all =
            members.iter().filter(counts).map(|member| tables.cleared(id, *member)).min().unwrap_or(0);
        let everywhere = self.has(F::ClearingErasesOtherConversations);
        let chosen = |row: &InboxRow| (row.conversation == id || everywhere) && row.seq <= by_all;
        if !self.has(F::ClearedHistoryStays) {
            self.erase_content(&mut tables, EmptyReason::Cleared, usize::MAX, chosen);
        }
        Ok(())
    }

    async fn cleared(&self, id: ConversationId, user: UserId) -> Result<Seq> {
        let tables = self.tables.lock();
        if self.has(StoreFault::ClearingCountsForAllUsers) {
            let marks = tables.cleared.iter().filter(|(known, ..)| *known == id);
            return Ok(marks.map(|(.., seq)| *seq).max().unwrap_or(0));
        }
        Ok(tables.cleared(id, user))
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        use StoreFault as F;
        let mut tables = self.tables.lock();
        if !self.has(F::ErasedInboxStays) {
            tables.inbox.retain(|(known, _)| *known != device || self.has(F::EraseHidesOtherDevices));
        }
        if self.has(F::EraseHidesOtherDevices) {
            tables.inbox.clear();
        }
        if !self.has(F::ErasedCursorsStay) {
            tables.cursors.retain(|(known, ..)| *known != device);
        }
        if !self.has(F::ErasedFeedsStay) {
            tables.feeds.retain(|(_, change)| change.device != device);
        }
        if !self.has(F::ErasedGenerationStays) {
            tables.generations.retain(|(known, _)| *known != device);
        }
        if self.has(F::EraseDropsHistory) {
            tables.history.clear();
        }
        Ok(())
    }
}
