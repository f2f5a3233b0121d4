//! The part of a conversation that a timeline shows.

use std::time::SystemTime;

use chat_core::{ConversationId, MessageId, Result, Seq, UserId};

use crate::diff::Diff;
use crate::status::Status;
use crate::store::LocalStore;
use crate::timeline::{Place, Target, TimelineItem};

/// An item as a window remembers it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    place: Place,
    user: UserId,
    id: MessageId,
    /// The message is an own one, of which the progress is not complete.
    is_unsettled: bool,
}

impl Entry {
    fn of(place: Place, item: &TimelineItem) -> Self {
        let is_unsettled = match &item.status {
            // Without other users, the roster of the group may not have arrived.
            Some(Status::Stored { delivered, read, .. }) => {
                delivered.of == 0 || !delivered.is_complete() || !read.is_complete()
            }
            Some(Status::Queued) => true,
            Some(Status::Refused(_)) | None => false,
        };
        Self { place, user: item.message.sender.id, id: item.message.id, is_unsettled }
    }
}

/// The part of a conversation that a timeline shows: a range of seqs. It follows the store by the durable events, which
/// name each message that changed, and by the revisions, which count everything else.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    conversation: ConversationId,
    entries: Vec<Entry>,
    from: Seq,
    /// `None`: up to the newest message.
    to: Option<Seq>,
    /// The last durable event that is applied.
    event: u64,
    revision: u64,
}

/// The way in which a window changes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// It follows the store.
    Follow,
    /// It grows by this number of older messages.
    Older(usize),
    /// It grows by this number of newer messages.
    Newer(usize),
    /// It moves to a place, with about this number of messages.
    Jump(Target, usize),
}

/// Number of messages of a new window, and at least after the server went back.
pub(crate) const PAGE: usize = 50;

/// Maximum durable events that a window applies one by one. With more, reading its messages again is cheaper.
const MAX_EVENTS: usize = 512;

impl Window {
    /// Returns a window without messages.
    pub(crate) const fn new(conversation: ConversationId) -> Self {
        Self { conversation, entries: Vec::new(), from: 0, to: None, event: 0, revision: 0 }
    }

    /// Whether there are older messages than those of the window.
    pub(crate) const fn has_older(&self) -> bool {
        self.from > 0
    }

    /// Whether there are newer messages than those of the window.
    pub(crate) const fn has_newer(&self) -> bool {
        self.to.is_some()
    }

    /// Whether the store has changes that the window may not show.
    pub(crate) const fn is_behind(&self, event: u64, revision: u64) -> bool {
        event > self.event || revision > self.revision
    }

    /// Takes a step, and returns the changes of the items.
    pub(crate) fn step(&mut self, store: &LocalStore, step: Step) -> Result<Vec<Diff<TimelineItem>>> {
        let Step::Jump(target, limit) = step else {
            let mut diffs = self.follow(store)?;
            match step {
                Step::Older(limit) if limit > 0 && self.from > 0 => diffs.extend(self.older(store, limit)?),
                Step::Newer(limit) if limit > 0 && self.to.is_some() => {
                    diffs.extend(self.newer(store, limit)?)
                }
                _ => {}
            }
            return Ok(diffs);
        };
        self.move_to(store, target, limit)?;
        self.reload(store).map(|diff| vec![diff])
    }

    fn move_to(&mut self, store: &LocalStore, target: Target, limit: usize) -> Result<()> {
        let conversation = self.conversation;
        let seq = match target {
            Target::Newest => None,
            Target::Seq(seq) => Some(seq),
            Target::Message(message) => {
                let item = store.timeline_item(conversation, message.user, message.id)?;
                item.map(|(place, _)| place.seq).filter(|seq| *seq < Seq::MAX)
            }
            Target::Time(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                store.seq_at(conversation, u64::try_from(since.as_millis()).unwrap_or(u64::MAX))?
            }
        };
        (self.from, self.to) = match seq {
            None => (store.seq_before(conversation, None, limit)?, None),
            Some(seq) => (
                store.seq_before(conversation, Some(seq), limit / 2)?,
                store.seq_after(conversation, seq.saturating_sub(1), limit - limit / 2)?,
            ),
        };
        Ok(())
    }

    fn older(&mut self, store: &LocalStore, limit: usize) -> Result<Vec<Diff<TimelineItem>>> {
        let from = store.seq_before(self.conversation, Some(self.from), limit)?;
        let items = store.timeline_range(self.conversation, from, Some(self.from - 1))?;
        self.from = from;
        Ok(self.insert_all(0, items))
    }

    fn newer(&mut self, store: &LocalStore, limit: usize) -> Result<Vec<Diff<TimelineItem>>> {
        let Some(last) = self.to else { return Ok(Vec::new()) };
        let to = store.seq_after(self.conversation, last, limit)?;
        let items = store.timeline_range(self.conversation, last + 1, to)?;
        self.to = to;
        Ok(self.insert_all(self.entries.len(), items))
    }

    fn insert_all(&mut self, at: usize, items: Vec<(Place, TimelineItem)>) -> Vec<Diff<TimelineItem>> {
        let entries = items.iter().map(|(place, item)| Entry::of(*place, item));
        self.entries.splice(at..at, entries);
        let inserted = items.into_iter().enumerate();
        inserted.map(|(n, (_, item))| Diff::Insert { index: at + n, item }).collect()
    }

    fn reload(&mut self, store: &LocalStore) -> Result<Diff<TimelineItem>> {
        (self.event, self.revision) = (store.last_event()?, store.revisions().last());
        let last = store.seq_before(self.conversation, None, 1)?;
        if self.from > last.max(1) {
            // The server went back behind the window, and uses the seqs again.
            let limit = self.entries.len().max(PAGE);
            (self.from, self.to) = (store.seq_before(self.conversation, None, limit)?, None);
        }
        let items = store.timeline_range(self.conversation, self.from, self.to)?;
        self.entries = items.iter().map(|(place, item)| Entry::of(*place, item)).collect();
        Ok(Diff::Reset { items: items.into_iter().map(|(_, item)| item).collect() })
    }

    /// Applies all that has changed in the store since the last step.
    fn follow(&mut self, store: &LocalStore) -> Result<Vec<Diff<TimelineItem>>> {
        let conversation = self.conversation;
        let touched = store.touched_messages(conversation, self.event, MAX_EVENTS)?;
        let Some(touched) =
            touched.filter(|_| !store.revisions().contents_since(conversation, self.revision))
        else {
            return self.reload(store).map(|diff| vec![diff]);
        };
        let has_receipts = store.revisions().statuses_since(conversation, self.revision);
        (self.event, self.revision) = (touched.last_event, store.revisions().last());
        let mut diffs = Vec::new();
        for message in &touched.messages {
            self.refresh(store, message.user, message.id, &mut diffs)?;
        }
        if has_receipts || touched.has_receipts || touched.has_members {
            let own = store.own_user()?;
            let needs = |entry: &&Entry| entry.user == own && (entry.is_unsettled || touched.has_members);
            let entries: Vec<Entry> = self.entries.iter().filter(needs).copied().collect();
            for entry in entries {
                self.refresh(store, entry.user, entry.id, &mut diffs)?;
            }
        }
        Ok(diffs)
    }

    /// Reads a message again, and puts it in its place.
    fn refresh(
        &mut self,
        store: &LocalStore,
        user: UserId,
        id: MessageId,
        diffs: &mut Vec<Diff<TimelineItem>>,
    ) -> Result<()> {
        let item = store.timeline_item(self.conversation, user, id)?;
        let item = item.filter(|(place, _)| self.shows(*place));
        let known = self.entries.iter().rposition(|entry| entry.user == user && entry.id == id);
        if let Some(index) = known {
            match item {
                Some((place, item)) if self.entries[index].place == place => {
                    self.entries[index] = Entry::of(place, &item);
                    diffs.push(Diff::Update { index, item });
                    return Ok(());
                }
                _ => {
                    self.entries.remove(index);
                    diffs.push(Diff::Remove { index });
                }
            }
        }
        if let Some((place, item)) = item {
            let index = self.entries.partition_point(|entry| entry.place < place);
            self.entries.insert(index, Entry::of(place, &item));
            diffs.push(Diff::Insert { index, item });
        }
        Ok(())
    }

    fn shows(&self, place: Place) -> bool {
        place.seq >= self.from && self.to.is_none_or(|to| place.seq <= to)
    }
}

#[cfg(test)]
mod tests;
