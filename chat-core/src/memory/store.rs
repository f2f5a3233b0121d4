use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::backend::{
    Commit, CommitOutcome, ConversationState, CursorFilter, DeviceRecord, Feed, FeedChange, Head,
    LogPosition, MessageStore, PageLimit, SenderFilter, StateChange, StoreIdentity,
};
use crate::model::envelope::{
    AckUpTo, Durability, EmptyReason, InboxCursor, InboxPosition, InboxRow, RowContent,
};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{
    ConversationId, ConversationKind, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};

/// A [`MessageStore`] in memory: each commit is atomic and lost when the process ends.
#[derive(Debug)]
pub struct MemoryStore {
    identity: StoreIdentity,
    tables: Mutex<Tables>,
}

impl MemoryStore {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::with_tables(Tables::default())
    }

    /// Returns a store with these tables as its content.
    pub fn with_tables(tables: Tables) -> Self {
        let identity =
            StoreIdentity { epoch: StoreEpoch::from_bytes([0x5e; 16]), durability: Durability::Memory };
        Self { identity, tables: Mutex::new(tables) }
    }

    /// Returns a copy of all tables.
    pub fn tables(&self) -> Tables {
        self.tables.lock().clone()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

/// The tables of a [`MemoryStore`], in the layout that every other store follows: rows have keys that make
/// repeated writes idempotent, and the state says up to which seq the rows count.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    states: HashMap<ConversationId, ConversationState>,
    history: BTreeMap<(ConversationId, Seq), InboxRow>,
    ids: HashMap<(ConversationId, InstallationId, MessageId), Seq>,
    inbox: BTreeMap<(InstallationId, InboxPosition), Arc<InboxRow>>,
    cursors: BTreeMap<(InstallationId, ConversationId), InboxCursor>,
    generations: HashMap<InstallationId, u64>,
    /// The seqs after which a device began (`true`) or stopped to read a feed.
    feeds: BTreeMap<(InstallationId, ConversationId, Seq), bool>,
    /// The seq up to which each user has cleared a conversation.
    cleared: BTreeMap<(ConversationId, UserId), Seq>,
}

/// One write of a commit.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    History(InboxRow),
    Id((ConversationId, InstallationId, MessageId), Seq),
    Inbox(InstallationId, Arc<InboxRow>),
    /// The highest seq with a row for the device, and the seq at which the device joined, if it did.
    Tail(InstallationId, ConversationId, Seq, Option<Seq>),
    Generation(InstallationId, u64),
    Feed(ConversationId, FeedChange),
    Deleted(ConversationId, Seq),
    State(ConversationId, Box<StateChange>),
}

impl Tables {
    /// Returns the writes of a commit in order: rows first, state last.
    pub(crate) fn writes(commit: Commit) -> Vec<Write> {
        let conversation = commit.conversation;
        let mailbox = conversation.kind() == Ok(ConversationKind::Mailbox);
        let mut writes = Vec::new();
        if !mailbox {
            writes.extend(commit.history.into_iter().map(Write::History));
        }
        writes.extend(
            commit.ids.into_iter().map(|(sender, id, seq)| Write::Id((conversation, sender, id), seq)),
        );
        let mut tails: BTreeMap<InstallationId, (Seq, Option<Seq>)> = BTreeMap::new();
        for (device, row) in &commit.inbox {
            let (tail, joined) = tails.entry(*device).or_default();
            *tail = row.seq.max(*tail);
            *joined = joined.or(row.joined.then_some(row.seq));
        }
        writes.extend(commit.inbox.into_iter().map(|(device, row)| Write::Inbox(device, Arc::new(row))));
        let tails = tails.into_iter();
        writes.extend(tails.map(|(device, (tail, joined))| Write::Tail(device, conversation, tail, joined)));
        writes.extend(commit.generations.into_iter().map(|(device, g)| Write::Generation(device, g)));
        writes.extend(commit.feeds.into_iter().map(|change| Write::Feed(conversation, change)));
        writes.extend(commit.deleted.into_iter().map(|seq| Write::Deleted(conversation, seq)));
        writes.push(Write::State(conversation, Box::new(commit.state)));
        writes
    }

    pub(crate) fn apply(&mut self, write: Write) {
        match write {
            Write::History(row) => {
                let known = self.history.entry((row.conversation, row.seq)).or_insert_with(|| row.clone());
                // A late copy of a message that was erased must not come back.
                if !known.is_erased() {
                    *known = row;
                }
            }
            Write::Id(key, seq) => {
                self.ids.insert(key, seq);
            }
            Write::Inbox(device, row) => {
                let acked = self.cursors.get(&(device, row.conversation)).map_or(0, |cursor| cursor.acked);
                // A late copy of a row that was acknowledged, or that a gap replaced, must not come back.
                if row.seq > acked && !self.is_expired(device, row.conversation, row.seq) {
                    self.inbox.entry((device, row.position())).or_insert(row);
                }
            }
            Write::Tail(device, conversation, seq, joined) => {
                let cursor = self.cursors.entry((device, conversation)).or_default();
                if let Some(joined) = joined
                    && cursor.tail == 0
                {
                    cursor.acked = cursor.acked.max(joined - 1);
                }
                cursor.tail = cursor.tail.max(seq);
            }
            Write::Generation(device, generation) => {
                let known = self.generations.entry(device).or_default();
                *known = (*known).max(generation);
            }
            Write::Feed(conversation, change) => {
                self.feeds.insert((change.device, conversation, change.seq), change.joins);
            }
            Write::Deleted(conversation, seq) => {
                if let Some(row) = self.history.get_mut(&(conversation, seq)) {
                    row.erase(EmptyReason::Deleted);
                    self.empty_waiting(conversation, &[seq].into(), EmptyReason::Deleted);
                }
            }
            Write::State(conversation, state) => {
                // A replaced owner may write an older state late.
                let known = self.states.entry(conversation).or_default();
                if state.head.time_us >= known.head.time_us {
                    known.apply(&state);
                }
            }
        }
    }

    /// Writes a state even if it is older than the stored one.
    #[cfg(feature = "sim")]
    pub(crate) fn put_state(&mut self, conversation: ConversationId, state: &StateChange) {
        self.states.entry(conversation).or_default().apply(state);
    }

    /// Returns whether history holds different content at the row's position.
    #[cfg(feature = "sim")]
    pub(crate) fn differs(&self, row: &InboxRow) -> bool {
        let known = self.history.get(&(row.conversation, row.seq));
        // A message that was committed together with its deletion has no content.
        known.is_some_and(|known| known != row && !known.is_erased() && !row.is_erased())
    }

    /// Returns whether a gap in the device's inbox covers a seq.
    fn is_expired(&self, device: InstallationId, conversation: ConversationId, seq: Seq) -> bool {
        if seq > self.tail(device, conversation) {
            return false;
        }
        let own = self.inbox.range((device, InboxPosition::START)..);
        own.take_while(|((owner, _), _)| *owner == device).any(|(_, row)| {
            let same = row.conversation == conversation && row.is_expired();
            same && (row.first_seq()..=row.seq).contains(&seq)
        })
    }

    fn tail(&self, device: InstallationId, conversation: ConversationId) -> Seq {
        self.cursors.get(&(device, conversation)).map_or(0, |cursor| cursor.tail)
    }

    /// Returns the highest seq of the device's rows that readers can see.
    fn seen(&self, device: InstallationId, conversation: ConversationId) -> Seq {
        self.head_seq(conversation).min(self.tail(device, conversation))
    }

    pub(crate) fn head(&self, conversation: ConversationId) -> Option<Head> {
        self.states.get(&conversation).map(|state| state.head)
    }

    fn head_seq(&self, conversation: ConversationId) -> Seq {
        self.head(conversation).map_or(0, |head| head.seq)
    }

    pub(crate) fn state(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
    ) -> Option<ConversationState> {
        self.states.get(&conversation).map(|state| state.clone().with_senders(senders))
    }

    pub(crate) fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Option<Seq> {
        let seq = *self.ids.get(&(conversation, sender, id))?;
        (seq <= self.head_seq(conversation)).then_some(seq)
    }

    /// Applies acks. `to_come` returns the highest seq of a commit that is durable and not yet visible.
    pub(crate) fn ack(
        &mut self,
        device: InstallationId,
        generation: u64,
        acks: &[AckUpTo],
        to_come: &dyn Fn(ConversationId) -> Seq,
    ) -> Result<()> {
        for ack in acks {
            let head = self.reads_feed(device, ack.conversation).then(|| self.head_seq(ack.conversation));
            let tail = self.tail(device, ack.conversation).max(to_come(ack.conversation));
            if ack.seq > tail.max(head.unwrap_or(0)) {
                return Err(Error::new(ErrorKind::Invalid, "an ack is above the tail"));
            }
        }
        self.apply(Write::Generation(device, generation));
        for ack in acks {
            let cursor = self.cursors.entry((device, ack.conversation)).or_default();
            if ack.seq > cursor.acked {
                cursor.acked = ack.seq;
                cursor.tail = cursor.tail.max(ack.seq);
                let from = (device, InboxPosition::START);
                let gone: Vec<_> = self
                    .inbox
                    .range(from..)
                    .take_while(|((owner, _), _)| *owner == device)
                    .filter(|((_, position), _)| {
                        position.conversation == ack.conversation && position.seq <= ack.seq
                    })
                    .map(|(key, _)| *key)
                    .collect();
                for key in gone {
                    self.inbox.remove(&key);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Vec<InboxRow> {
        use std::ops::Bound::{Excluded, Unbounded};
        let rows = self
            .inbox
            .range((Excluded((device, after)), Unbounded))
            .take_while(|((owner, _), _)| *owner == device)
            // Rows above the head, or above the device's tail, do not exist yet.
            .filter(|((_, position), _)| position.seq <= self.seen(device, position.conversation))
            .map(|(_, row)| InboxRow::clone(row));
        page(rows, limit)
    }

    pub(crate) fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Vec<InboxRow> {
        let head = self.head_seq(conversation);
        let end = if before == 0 { head } else { (before - 1).min(head) };
        if end == 0 {
            return Vec::new();
        }
        page(
            self.history.range((conversation, 1)..=(conversation, end)).rev().map(|(_, row)| row.clone()),
            limit,
        )
    }

    pub(crate) fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Vec<InboxRow> {
        let head = self.head_seq(conversation);
        if after >= head {
            return Vec::new();
        }
        let rows = self.history.range((conversation, after + 1)..=(conversation, head));
        page(rows.map(|(_, row)| row.clone()), limit)
    }

    fn reads_feed(&self, device: InstallationId, conversation: ConversationId) -> bool {
        let all = (device, conversation, 0)..=(device, conversation, Seq::MAX);
        self.feeds.range(all).next().is_some()
    }

    pub(crate) fn feeds(&self, device: InstallationId) -> Vec<Feed> {
        let mut feeds: Vec<Feed> = Vec::new();
        let own = self.feeds.range((device, ConversationId::from_bytes([0; 17]), 0)..);
        for ((_, conversation, seq), joins) in own.take_while(|((owner, ..), _)| *owner == device) {
            // A change above the head does not exist yet.
            if *seq > self.head_seq(*conversation) {
                continue;
            }
            match feeds.last_mut().filter(|feed| feed.conversation == *conversation) {
                Some(feed) => feed.changes.push((*seq, *joins)),
                None => {
                    let acked = self.cursors.get(&(device, *conversation)).map_or(0, |cursor| cursor.acked);
                    let changes = vec![(*seq, *joins)];
                    feeds.push(Feed { conversation: *conversation, acked, changes });
                }
            }
        }
        feeds
    }

    /// Returns whether a feed has rows that the device did not acknowledge.
    #[cfg(feature = "sim")]
    pub(crate) fn is_behind_feed(&self, device: InstallationId) -> bool {
        let is_behind =
            |feed: &Feed| feed.next(feed.acked).is_some_and(|next| next <= self.head_seq(feed.conversation));
        self.feeds(device).iter().any(is_behind)
    }

    pub(crate) fn generation(&self, device: InstallationId) -> u64 {
        self.generations.get(&device).copied().unwrap_or(0)
    }

    pub(crate) fn device(&self, device: InstallationId, want: CursorFilter) -> DeviceRecord {
        let waiting =
            self.inbox.range((device, InboxPosition::START)..).take_while(|((owner, _), _)| *owner == device);
        let (rows, bytes) = waiting.fold((0, 0), |(n, b), (_, row)| (n + 1, b + row.size() as u64));
        let cursors = match want {
            CursorFilter::No => Vec::new(),
            CursorFilter::Of(conversation) => self
                .cursors
                .get(&(device, conversation))
                .map(|cursor| (conversation, *cursor))
                .into_iter()
                .collect(),
            CursorFilter::All => self
                .cursors
                .range((device, ConversationId::from_bytes([0; 17]))..)
                .take_while(|((owner, _), _)| *owner == device)
                .map(|((_, conversation), cursor)| (*conversation, *cursor))
                .collect(),
        };
        DeviceRecord { waiting_rows: rows, waiting_bytes: bytes, cursors }
    }
}

/// A gap while it is built: its first seq, whether the device joined within it, and its last position.
type Gap = (Seq, bool, InboxPosition);

impl Tables {
    pub(crate) fn erase(&mut self, device: InstallationId) {
        self.inbox.retain(|(known, _), _| *known != device);
        self.cursors.retain(|(known, _), _| *known != device);
        self.feeds.retain(|(known, ..), _| *known != device);
        self.generations.remove(&device);
    }

    pub(crate) fn clear_history(&mut self, conversation: ConversationId, user: UserId, through: Seq) {
        let through = through.min(self.head_seq(conversation));
        let mark = self.cleared.entry((conversation, user)).or_default();
        *mark = through.max(*mark);
        let members =
            self.states.get(&conversation).map(|state| &state.roster.members[..]).unwrap_or_default();
        let by_all = members.iter().map(|member| self.cleared(conversation, member.user)).min().unwrap_or(0);
        let rows = self.history.range_mut((conversation, 0)..=(conversation, by_all));
        let erased =
            rows.filter_map(|((_, seq), row)| row.erase(EmptyReason::Cleared).then_some(*seq)).collect();
        self.empty_waiting(conversation, &erased, EmptyReason::Cleared);
    }

    pub(crate) fn cleared(&self, conversation: ConversationId, user: UserId) -> Seq {
        self.cleared.get(&(conversation, user)).copied().unwrap_or(0)
    }

    pub(crate) fn expire_history(&mut self, before_us: u64, limit: usize) -> usize {
        let mut erased: BTreeMap<ConversationId, BTreeSet<Seq>> = BTreeMap::new();
        let mut count = 0;
        let heads: HashMap<ConversationId, Seq> =
            self.states.iter().map(|(conversation, state)| (*conversation, state.head.seq)).collect();
        for ((conversation, seq), row) in &mut self.history {
            let is_old = row.time_us < before_us && heads.get(conversation).is_some_and(|head| seq <= head);
            if count < limit && is_old && row.erase(EmptyReason::Expired) {
                erased.entry(*conversation).or_default().insert(*seq);
                count += 1;
            }
        }
        for (conversation, seqs) in erased {
            self.empty_waiting(conversation, &seqs, EmptyReason::Expired);
        }
        count
    }

    pub(crate) fn expire_messages(&mut self, now_us: u64, limit: usize) -> usize {
        let mut erased: Vec<(ConversationId, Seq)> = Vec::new();
        let heads: HashMap<ConversationId, Seq> =
            self.states.iter().map(|(conversation, state)| (*conversation, state.head.seq)).collect();
        for ((conversation, seq), row) in &mut self.history {
            let is_visible = heads.get(conversation).is_some_and(|head| seq <= head);
            if erased.len() < limit && is_visible && row.disappear(now_us) {
                erased.push((*conversation, *seq));
            }
        }
        for (conversation, seq) in &erased {
            self.empty_waiting(*conversation, &[*seq].into(), EmptyReason::Disappeared);
        }
        erased.len()
    }

    /// Empties the rows that wait for messages which were erased.
    fn empty_waiting(&mut self, conversation: ConversationId, erased: &BTreeSet<Seq>, reason: EmptyReason) {
        for ((_, position), row) in &mut self.inbox {
            let is_message = matches!(row.content, RowContent::Message { .. });
            if position.conversation == conversation && is_message && erased.contains(&position.seq) {
                Arc::make_mut(row).erase(reason);
            }
        }
    }

    pub(crate) fn expire(&mut self, before_us: u64, limit: usize) -> usize {
        let mut gaps: BTreeMap<(InstallationId, ConversationId), Gap> = BTreeMap::new();
        let mut gone = Vec::new();
        let mut count = 0;
        for ((device, position), row) in &self.inbox {
            if count == limit {
                break;
            }
            if position.time_us >= before_us || position.seq > self.seen(*device, position.conversation) {
                continue;
            }
            let gap =
                gaps.entry((*device, position.conversation)).or_insert((row.first_seq(), false, *position));
            (gap.1, gap.2) = (gap.1 | row.joined, *position);
            gone.push((*device, *position));
            // A row that is already a gap does not count as removed.
            count += usize::from(!row.is_expired());
        }
        if count == 0 {
            return 0;
        }
        for key in gone {
            self.inbox.remove(&key);
        }
        for ((device, conversation), (from, joined, position)) in gaps {
            let row = InboxRow::expired(conversation, from, position, joined);
            self.inbox.insert((device, position), Arc::new(row));
        }
        count
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

#[async_trait]
impl MessageStore for MemoryStore {
    fn identity(&self) -> StoreIdentity {
        self.identity
    }

    async fn state(
        &self,
        conversation: ConversationId,
        senders: SenderFilter<'_>,
        _next: Option<LogPosition>,
    ) -> Result<Option<ConversationState>> {
        Ok(self.tables.lock().state(conversation, senders))
    }

    async fn find(
        &self,
        conversation: ConversationId,
        sender: InstallationId,
        id: MessageId,
    ) -> Result<Option<Seq>> {
        Ok(self.tables.lock().find(conversation, sender, id))
    }

    async fn commit(&self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome>> {
        let mut tables = self.tables.lock();
        let done = commits.into_iter().map(|commit| {
            Tables::writes(commit).into_iter().for_each(|write| tables.apply(write));
            Ok(CommitOutcome::Visible)
        });
        done.collect()
    }

    async fn make_visible(&self, _commits: Vec<Commit>) -> Result<()> {
        Ok(())
    }

    async fn ack(&self, device: InstallationId, generation: u64, acks: &[AckUpTo]) -> Result<()> {
        self.tables.lock().ack(device, generation, acks, &|_| 0)
    }

    async fn inbox(
        &self,
        device: InstallationId,
        after: InboxPosition,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        Ok(self.tables.lock().inbox(device, after, limit))
    }

    async fn history(
        &self,
        conversation: ConversationId,
        before: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        Ok(self.tables.lock().history(conversation, before, limit))
    }

    async fn history_after(
        &self,
        conversation: ConversationId,
        after: Seq,
        limit: PageLimit,
    ) -> Result<Vec<InboxRow>> {
        Ok(self.tables.lock().history_after(conversation, after, limit))
    }

    async fn feeds(&self, device: InstallationId) -> Result<Vec<Feed>> {
        Ok(self.tables.lock().feeds(device))
    }

    async fn generation(&self, device: InstallationId) -> Result<u64> {
        Ok(self.tables.lock().generation(device))
    }

    async fn device(&self, device: InstallationId, cursors: CursorFilter) -> Result<DeviceRecord> {
        Ok(self.tables.lock().device(device, cursors))
    }

    async fn expire(&self, before_us: u64, limit: usize) -> Result<usize> {
        Ok(self.tables.lock().expire(before_us, limit))
    }

    async fn expire_history(&self, before_us: u64, limit: usize) -> Result<usize> {
        Ok(self.tables.lock().expire_history(before_us, limit))
    }

    async fn expire_messages(&self, now_us: u64, limit: usize) -> Result<usize> {
        Ok(self.tables.lock().expire_messages(now_us, limit))
    }

    async fn clear_history(&self, conversation: ConversationId, user: UserId, through: Seq) -> Result<()> {
        self.tables.lock().clear_history(conversation, user, through);
        Ok(())
    }

    async fn cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        Ok(self.tables.lock().cleared(conversation, user))
    }

    async fn erase(&self, device: InstallationId) -> Result<()> {
        self.tables.lock().erase(device);
        Ok(())
    }
}
