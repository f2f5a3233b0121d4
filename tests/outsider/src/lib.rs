//! A toy `MessageStore` that uses only the public API. It keeps its rows in lists and scans them: slow, but
//! it passes the conformance suite.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use chat_core::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, FeedChange, LogPosition,
    MessageStore, PageLimit, SenderFilter, StoreIdentity,
};
use chat_core::envelope::{
    AckUpTo, Durability, EmptyReason, InboxCursor, InboxPosition, InboxRow, RowContent,
};
use chat_core::{
    ConversationId, ConversationKind, Error, ErrorKind, InstallationId, MessageId, Result, Seq, StoreEpoch,
    UserId,
};

/// The worked example of the backend guide, compiled and run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/writing-a-backend.md")]
mod guide {}

/// A [`MessageStore`] in memory whose tables are unsorted lists.
#[derive(Debug, Default)]
pub struct ToyStore(Mutex<Toy>);

#[derive(Debug, Default)]
struct Toy {
    states: Vec<(ConversationId, ConversationState)>,
    history: Vec<InboxRow>,
    ids: Vec<(ConversationId, InstallationId, MessageId, Seq)>,
    inbox: Vec<(InstallationId, InboxRow)>,
    cursors: Vec<(InstallationId, ConversationId, InboxCursor)>,
    generations: Vec<(InstallationId, u64)>,
    cleared: Vec<(ConversationId, UserId, Seq)>,
    feeds: Vec<(ConversationId, FeedChange)>,
}

impl Toy {
    fn state(&self, id: ConversationId) -> Option<&ConversationState> {
        self.states.iter().find(|(known, _)| *known == id).map(|(_, state)| state)
    }

    fn head(&self, id: ConversationId) -> Seq {
        self.state(id).map_or(0, |state| state.head.seq)
    }

    fn cursor(&mut self, device: InstallationId, id: ConversationId) -> &mut InboxCursor {
        let at = self.cursors.iter().position(|(d, c, _)| (*d, *c) == (device, id));
        let at = at.unwrap_or_else(|| {
            self.cursors.push((device, id, InboxCursor::default()));
            self.cursors.len() - 1
        });
        &mut self.cursors[at].2
    }

    fn acked(&self, device: InstallationId, id: ConversationId) -> Seq {
        let cursor = self.cursors.iter().find(|(d, c, _)| (*d, *c) == (device, id));
        cursor.map_or(0, |(.., cursor)| cursor.acked)
    }

    fn raise(&mut self, device: InstallationId, generation: u64) {
        match self.generations.iter_mut().find(|(known, _)| *known == device) {
            Some((_, known)) => *known = generation.max(*known),
            None => self.generations.push((device, generation)),
        }
    }

    fn apply(&mut self, commit: Commit) {
        let id = commit.conversation;
        for row in commit.history {
            let same = |known: &InboxRow| (known.conversation, known.seq) == (id, row.seq);
            if self.history.iter().any(|known| same(known) && known.is_erased()) {
                continue;
            }
            self.history.retain(|known| !same(known));
            if id.kind() != Ok(ConversationKind::Mailbox) {
                self.history.push(row);
            }
        }
        for (sender, message, seq) in commit.ids {
            self.ids.retain(|known| (known.0, known.1, known.2) != (id, sender, message));
            self.ids.push((id, sender, message, seq));
        }
        for (device, row) in commit.inbox {
            if self.cursor(device, id).receive(&row) {
                self.inbox.push((device, row));
            }
        }
        for change in commit.feeds {
            if !self.feeds.contains(&(id, change)) {
                self.feeds.push((id, change));
            }
        }
        for (device, generation) in commit.generations {
            self.raise(device, generation);
        }
        let is_deleted = |row: &InboxRow| row.conversation == id && commit.deleted.contains(&row.seq);
        self.erase_content(EmptyReason::Deleted, usize::MAX, is_deleted);
        // An owner of the shard that was replaced may write an older state late.
        if self.state(id).is_none_or(|known| known.head.time_us <= commit.state.head.time_us) {
            match self.states.iter_mut().find(|(known, _)| *known == id) {
                Some((_, known)) => known.apply(&commit.state),
                None => {
                    let mut state = ConversationState::default();
                    state.apply(&commit.state);
                    self.states.push((id, state));
                }
            }
        }
    }
}

impl Toy {
    fn cleared(&self, id: ConversationId, user: UserId) -> Seq {
        let mark = self.cleared.iter().find(|(known, of, _)| (*known, *of) == (id, user));
        mark.map_or(0, |(_, _, seq)| *seq)
    }

    /// Erases the content of chosen rows of history, and of the inbox rows that wait for them.
    fn erase_content(
        &mut self,
        reason: EmptyReason,
        limit: usize,
        is_chosen: impl Fn(&InboxRow) -> bool,
    ) -> usize {
        self.history.sort_by_key(|row| (row.conversation, row.seq));
        let heads: Vec<Seq> = self.history.iter().map(|row| self.head(row.conversation)).collect();
        let visible = self.history.iter_mut().zip(heads).filter(|(row, head)| row.seq <= *head);
        let chosen = visible.map(|(row, _)| row).filter(|row| is_chosen(row));
        let erase = |row: &mut InboxRow| row.erase(reason).then_some((row.conversation, row.seq));
        let erased: Vec<(ConversationId, Seq)> = chosen.filter_map(erase).take(limit).collect();
        for (_, row) in &mut self.inbox {
            let is_message = matches!(row.content, RowContent::Message { .. });
            if is_message && erased.contains(&(row.conversation, row.seq)) {
                row.erase(reason);
            }
        }
        erased.len()
    }
}

fn page(rows: impl Iterator<Item = InboxRow>, limit: PageLimit) -> Vec<InboxRow> {
    let mut bytes = 0;
    let mut page = Vec::new();
    for row in rows.take(limit.rows) {
        bytes += row.size();
        page.push(row);
        if bytes >= limit.bytes {
            break;
        }
    }
    page
}

impl ToyStore {
    fn lock(&self) -> Result<std::sync::MutexGuard<'_, Toy>> {
        self.0.lock().map_err(|_| Error::new(ErrorKind::Unavailable, "the store's lock is poisoned"))
    }
}

#[async_trait]
impl MessageStore for ToyStore {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity { epoch: StoreEpoch::from_bytes([1; 16]), durability: Durability::Memory }
    }

    async fn state(
        &self,
        id: ConversationId,
        senders: SenderFilter<'_>,
        _next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        Ok(self.lock()?.state(id).map(|state| state.clone().with_senders(senders)))
    }

    async fn find(
        &self,
        id: ConversationId,
        sender: InstallationId,
        message: MessageId,
    ) -> Result<Option<Seq>> {
        let toy = self.lock()?;
        let seq =
            toy.ids.iter().find(|known| (known.0, known.1, known.2) == (id, sender, message)).map(|k| k.3);
        Ok(seq.filter(|seq| *seq <= toy.head(id)))
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let apply = |commit| self.lock().map(|mut toy| toy.apply(commit)).map(|()| CommitOutcome::Visible);
        commits.into_iter().map(apply).collect()
    }

    async fn make_visible(&self, _commits: Vec<Commit>) -> Result<()> {
        Ok(())
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        let mut toy = self.lock()?;
        let known = |toy: &Toy, ack: &AckUpTo| {
            let is_read = |(id, change): &(ConversationId, FeedChange)| {
                (*id, change.device) == (ack.conversation, device) && ack.seq <= toy.head(*id)
            };
            if toy.feeds.iter().any(is_read) {
                return true;
            }
            toy.cursors
                .iter()
                .any(|(d, c, cursor)| (*d, *c) == (device, ack.conversation) && ack.seq <= cursor.tail)
        };
        if !acks.iter().all(|ack| known(&toy, ack)) {
            return Err(Error::new(ErrorKind::Invalid, "an ack is above the tail"));
        }
        toy.raise(device, generation);
        for ack in acks {
            let cursor = toy.cursor(device, ack.conversation);
            cursor.acked = cursor.acked.max(ack.seq);
            cursor.tail = cursor.tail.max(cursor.acked);
            toy.inbox
                .retain(|(d, row)| *d != device || row.conversation != ack.conversation || row.seq > ack.seq);
        }
        Ok(())
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        let toy = self.lock()?;
        let mut rows: Vec<InboxRow> = toy
            .inbox
            .iter()
            .filter(|(d, row)| {
                *d == device && row.position() > after && row.seq <= toy.head(row.conversation)
            })
            .map(|(_, row)| row.clone())
            .collect();
        rows.sort_by_key(InboxRow::position);
        Ok(page(rows.into_iter(), limit))
    }

    async fn history(&self, id: ConversationId, before: Seq, limit: PageLimit) -> Result<Vec<InboxRow>> {
        let toy = self.lock()?;
        let head = toy.head(id);
        let fits =
            |row: &&InboxRow| row.conversation == id && row.seq <= head && (before == 0 || row.seq < before);
        let mut rows: Vec<InboxRow> = toy.history.iter().filter(fits).cloned().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.seq));
        Ok(page(rows.into_iter(), limit))
    }

    async fn history_after(&self, id: ConversationId, after: Seq, limit: PageLimit) -> Result<Vec<InboxRow>> {
        let toy = self.lock()?;
        let head = toy.head(id);
        let fits = |row: &&InboxRow| row.conversation == id && row.seq <= head && row.seq > after;
        let mut rows: Vec<InboxRow> = toy.history.iter().filter(fits).cloned().collect();
        rows.sort_by_key(|row| row.seq);
        Ok(page(rows.into_iter(), limit))
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        let toy = self.lock()?;
        let mut feeds: BTreeMap<ConversationId, Feed> = BTreeMap::new();
        let mut changes = toy.feeds.clone();
        changes.sort_by_key(|(_, change)| change.seq);
        for (conversation, change) in changes {
            if change.device == device && change.seq <= toy.head(conversation) {
                let acked = toy.acked(device, conversation);
                let new = || Feed { conversation, acked, changes: Vec::new() };
                feeds.entry(conversation).or_insert_with(new).changes.push((change.seq, change.joins));
            }
        }
        Ok(feeds.into_values().collect())
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        Ok(self.lock()?.generations.iter().find(|(d, _)| *d == device).map_or(0, |(_, g)| *g))
    }

    async fn device(&self, device: InstallationId, want: CursorFilter) -> Result<DeviceRecord> {
        let toy = self.lock()?;
        let waiting: Vec<_> =
            toy.inbox.iter().filter(|(d, _)| *d == device).map(|(_, row)| row.size()).collect();
        let cursors = toy
            .cursors
            .iter()
            .filter(|(d, c, _)| *d == device && (want == CursorFilter::All || want == CursorFilter::Of(*c)));
        Ok(DeviceRecord {
            waiting_rows: waiting.len() as u64,
            waiting_bytes: waiting.iter().sum::<usize>() as u64,
            cursors: cursors.map(|(_, c, cursor)| (*c, *cursor)).collect(),
        })
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        let mut toy = self.lock()?;
        toy.inbox.sort_by_key(|(device, row)| (*device, row.position()));
        let (mut kept, mut gaps, mut removed): (Vec<_>, Vec<(InstallationId, InboxRow)>, _) =
            (Vec::new(), Vec::new(), 0);
        for (device, row) in std::mem::take(&mut toy.inbox) {
            if row.time_us >= before_us || removed == limit {
                kept.push((device, row));
                continue;
            }
            removed += usize::from(!row.is_expired());
            let same = |gap: &&mut (InstallationId, InboxRow)| {
                (gap.0, gap.1.conversation) == (device, row.conversation)
            };
            match gaps.iter_mut().find(same) {
                Some((_, gap)) => {
                    *gap = InboxRow::expired(row.conversation, gap.first_seq(), row.position(), gap.joined);
                }
                None => {
                    let gap =
                        InboxRow::expired(row.conversation, row.first_seq(), row.position(), row.joined);
                    gaps.push((device, gap));
                }
            }
        }
        toy.inbox = kept;
        toy.inbox.extend(gaps);
        Ok(removed)
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        Ok(self.lock()?.erase_content(EmptyReason::Expired, limit, |row| row.time_us < before_us))
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        Ok(self.lock()?.erase_content(EmptyReason::Disappeared, limit, |row| {
            row.disappears_at_us().is_some_and(|at_us| at_us <= now_us)
        }))
    }

    async fn clear_history(&self, id: ConversationId, user: UserId, through: Seq) -> Result<()> {
        let mut toy = self.lock()?;
        let mark = through.min(toy.head(id)).max(toy.cleared(id, user));
        toy.cleared.retain(|(conversation, of, _)| (*conversation, *of) != (id, user));
        toy.cleared.push((id, user, mark));
        let members = toy.state(id).map(|state| state.roster.members.clone()).unwrap_or_default();
        let by_all = members.iter().map(|member| toy.cleared(id, member.user)).min().unwrap_or(0);
        let is_cleared = |row: &InboxRow| row.conversation == id && row.seq <= by_all;
        toy.erase_content(EmptyReason::Cleared, usize::MAX, is_cleared);
        Ok(())
    }

    async fn cleared(&self, id: ConversationId, user: UserId) -> Result<Seq> {
        Ok(self.lock()?.cleared(id, user))
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        let mut toy = self.lock()?;
        toy.inbox.retain(|(known, _)| *known != device);
        toy.cursors.retain(|(known, _, _)| *known != device);
        toy.generations.retain(|(known, _)| *known != device);
        toy.feeds.retain(|(_, change)| change.device != device);
        Ok(())
    }
}
