//! Retention and deletion of history: messages lose their content, and their rows stay.

use chat_core::backend::Member;
use chat_core::codec::{decode_row, encode_row, state};
use chat_core::envelope::{EmptyReason, InboxRow};
use chat_core::{ConversationId, ConversationKind, InstallationId, Result, Seq, UserId};
use fjall::{OwnedWriteBatch, Readable};

use super::read::{inbox_value, joins_with_message};
use super::{Tables, corrupt, failed, keys};

/// Conversations that a search reads before it lets other tasks run.
const SEARCHED: usize = 256;

impl Tables {
    pub(super) fn read_cleared(&self, conversation: ConversationId, user: UserId) -> Result<Seq> {
        let value = self.cleared.get(keys::cleared(conversation, user)).map_err(failed)?;
        value.map_or(Ok(0), |value| keys::number(&value))
    }

    /// Returns the seq up to which a conversation has no content.
    pub(super) fn erased_through(&self, conversation: ConversationId) -> Result<Seq> {
        let value = self.erased.get(conversation.as_bytes()).map_err(failed)?;
        value.map_or(Ok(0), |value| keys::number(&value))
    }

    pub(super) fn read_members(&self, conversation: ConversationId) -> Result<Vec<Member>> {
        let value = self.members.get(conversation.as_bytes()).map_err(failed)?;
        Ok(value.map(|value| state::decode_roster(&value)).transpose()?.unwrap_or_default().members)
    }

    /// Erases the content of at most `limit` messages, from the oldest that has content on, for as long as they are
    /// chosen. Returns how many.
    pub(super) fn erase_content(
        &self,
        batch: &mut OwnedWriteBatch,
        conversation: ConversationId,
        reason: EmptyReason,
        limit: usize,
        is_chosen: impl Fn(&InboxRow) -> bool,
    ) -> Result<usize> {
        let before = self.erased_through(conversation)?;
        let head = self.head_seq(&self.database.snapshot(), conversation)?;
        if head <= before || conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(0);
        }
        let (mut count, mut through) = (0, before);
        let range = keys::history(conversation, before + 1)..=keys::history(conversation, head);
        for guard in self.history.range(range) {
            let mut row = decode_row(guard.value().map_err(failed)?.into()).map_err(|_| corrupt())?;
            if count == limit || !is_chosen(&row) {
                break;
            }
            if row.erase(reason) {
                batch.insert(&self.history, keys::history(conversation, row.seq), encode_row(&row));
                count += 1;
            }
            through = row.seq;
        }
        if through > before {
            batch.insert(&self.erased, &conversation.as_bytes()[..], &through.to_be_bytes()[..]);
        }
        Ok(count)
    }

    /// Returns a row of history.
    pub(super) fn find_history(&self, conversation: ConversationId, seq: Seq) -> Result<Option<InboxRow>> {
        let value = self.history.get(keys::history(conversation, seq)).map_err(failed)?;
        value.map(|value| decode_row(value.into()).map_err(|_| corrupt())).transpose()
    }

    /// Erases the content of one message, and the boxes of the members' devices for which the row waits. Returns whether it
    /// had content.
    pub(super) fn erase_message(
        &self,
        batch: &mut OwnedWriteBatch,
        mut row: InboxRow,
        reason: EmptyReason,
        waits_for: impl Fn(InstallationId) -> Result<bool>,
    ) -> Result<bool> {
        if !row.erase(reason) {
            return Ok(false);
        }
        batch.insert(&self.history, keys::history(row.conversation, row.seq), encode_row(&row));
        let members = self.read_members(row.conversation)?;
        for device in members.into_iter().flat_map(|member| member.installations) {
            let key = keys::inbox(device, row.position());
            let Some(value) = self.inbox.get(&key).map_err(failed)? else { continue };
            if let Some(joined) = joins_with_message(&value)
                && waits_for(device)?
            {
                let waiting = InboxRow { joined, ..row.clone() };
                batch.insert(&self.inbox, key, inbox_value(&waiting));
            }
        }
        Ok(true)
    }

    /// Erases at most `limit` messages whose lifetime ended at `now_us` or before. Returns how many, and their conversations.
    pub(super) fn expire_messages(
        &self,
        batch: &mut OwnedWriteBatch,
        now_us: u64,
        limit: usize,
    ) -> Result<(usize, Vec<ConversationId>)> {
        let (mut count, mut conversations) = (0, Vec::new());
        let end = now_us.saturating_add(1).to_be_bytes();
        for guard in self.disappearing.range(..end.to_vec()) {
            if count == limit {
                break;
            }
            let key = guard.key().map_err(failed)?;
            let (conversation, seq) = keys::read_disappearing(&key)?;
            if let Some(row) = self.find_history(conversation, seq)?
                && row.disappears_at_us().is_some_and(|at_us| at_us <= now_us)
                && self.erase_message(batch, row, EmptyReason::Disappeared, |_| Ok(true))?
            {
                count += 1;
                conversations.push(conversation);
            }
            batch.remove(&self.disappearing, key);
        }
        conversations.dedup();
        Ok((count, conversations))
    }

    /// Records that a user cleared a conversation, and erases the content that every member has cleared: at most `limit`
    /// messages. Returns how many.
    pub(super) fn clear_history(
        &self,
        batch: &mut OwnedWriteBatch,
        conversation: ConversationId,
        user: UserId,
        through: Seq,
        limit: usize,
    ) -> Result<usize> {
        let head = self.head_seq(&self.database.snapshot(), conversation)?;
        let mark = self.read_cleared(conversation, user)?.max(through.min(head));
        batch.insert(&self.cleared, keys::cleared(conversation, user), &mark.to_be_bytes()[..]);
        let by_all = self.cleared_by_all(conversation, (user, mark))?;
        let is_chosen = |row: &InboxRow| row.seq <= by_all;
        self.erase_content(batch, conversation, EmptyReason::Cleared, limit, is_chosen)
    }

    /// Returns whether a user has cleared a conversation up to a seq, and nothing is left to erase.
    pub(super) fn is_cleared(
        &self,
        conversation: ConversationId,
        user: UserId,
        through: Seq,
    ) -> Result<bool> {
        let mark = self.read_cleared(conversation, user)?;
        let head = self.head_seq(&self.database.snapshot(), conversation)?;
        let is_recorded = mark >= through.min(head);
        Ok(is_recorded
            && self.cleared_by_all(conversation, (user, mark))? <= self.erased_through(conversation)?)
    }

    /// Returns the seq up to which every member has cleared a conversation, one of them up to this mark.
    fn cleared_by_all(&self, conversation: ConversationId, (user, mark): (UserId, Seq)) -> Result<Seq> {
        let mut by_all = None;
        for member in self.read_members(conversation)? {
            let of_member =
                if member.user == user { mark } else { self.read_cleared(conversation, member.user)? };
            by_all = Some(by_all.map_or(of_member, |least: Seq| least.min(of_member)));
        }
        Ok(by_all.unwrap_or(0))
    }

    /// Returns conversations with messages that are older than `before_us` and have content, until they have `limit` of
    /// them, and how many they have. The search begins with the conversation `first` and ends before it.
    pub(super) async fn find_old(
        &self,
        first: Option<ConversationId>,
        before_us: u64,
        limit: usize,
    ) -> Result<(Vec<ConversationId>, usize)> {
        let from = first.map_or(Vec::new(), |first| first.as_bytes().to_vec());
        let (mut found, mut count, mut searched) = (Vec::new(), 0, 0);
        let all = self.heads.range(from.clone()..).chain(self.heads.range(..from));
        for guard in all {
            let conversation = ConversationId::parse(&guard.key().map_err(failed)?).map_err(|_| corrupt())?;
            let old = self.count_old(conversation, before_us, limit - count)?;
            if old > 0 {
                count += old;
                found.push(conversation);
            }
            if count >= limit {
                break;
            }
            searched += 1;
            if searched % SEARCHED == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok((found, count))
    }

    /// Returns how many old messages with content a conversation has, up to `limit`.
    fn count_old(&self, conversation: ConversationId, before_us: u64, limit: usize) -> Result<usize> {
        if conversation.kind() == Ok(ConversationKind::Mailbox) {
            return Ok(0);
        }
        let view = self.database.snapshot();
        let head = self.head_seq(&view, conversation)?;
        let from = self.erased_through(conversation)? + 1;
        let range = keys::history(conversation, from)..=keys::history(conversation, head.max(from));
        let mut count = 0;
        for guard in view.range(&self.history, range) {
            let mut row = decode_row(guard.value().map_err(failed)?.into()).map_err(|_| corrupt())?;
            if count == limit || row.seq > head || row.time_us >= before_us {
                break;
            }
            count += usize::from(row.erase(EmptyReason::Expired));
        }
        Ok(count)
    }
}
