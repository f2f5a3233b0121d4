//! The list of conversations as an observer sees it.

use chat_core::{ConversationId, Result};

use crate::conversation::{Conversation, ListPlace};
use crate::diff::Diff;
use crate::store::LocalStore;

/// Maximum durable events that the list applies one by one. With more, reading all conversations is cheaper.
const MAX_EVENTS: usize = 2_048;

/// The conversations in their order. It follows the store like the window of a timeline.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConversationWindow {
    entries: Vec<(ListPlace, ConversationId)>,
    event: u64,
    revision: u64,
}

impl ConversationWindow {
    /// Whether the store has changes that the list may not show.
    pub(crate) const fn is_behind(&self, event: u64, revision: u64) -> bool {
        event > self.event || revision > self.revision
    }

    /// Applies all that has changed in the store, and returns the changes of the items.
    pub(crate) fn follow(&mut self, store: &LocalStore) -> Result<Vec<Diff<Conversation>>> {
        let touched = store.touched_conversations(self.event, MAX_EVENTS)?;
        let Some((mut touched, event)) = touched.filter(|_| !store.revisions().all_since(self.revision))
        else {
            return self.reload(store).map(|diff| vec![diff]);
        };
        touched.extend(store.revisions().conversations_since(self.revision));
        touched.sort_unstable();
        touched.dedup();
        (self.event, self.revision) = (event, store.revisions().last());
        let mut diffs = Vec::new();
        for id in touched {
            self.refresh(store, id, &mut diffs)?;
        }
        Ok(diffs)
    }

    fn reload(&mut self, store: &LocalStore) -> Result<Diff<Conversation>> {
        (self.event, self.revision) = (store.last_event()?, store.revisions().last());
        let items = store.conversations()?;
        self.entries = items.iter().map(|item| (item.place(), item.id)).collect();
        Ok(Diff::Reset { items })
    }

    fn refresh(
        &mut self,
        store: &LocalStore,
        id: ConversationId,
        diffs: &mut Vec<Diff<Conversation>>,
    ) -> Result<()> {
        let item = store.conversation(id)?;
        let known = self.entries.iter().position(|(_, known)| *known == id);
        if let Some(index) = known {
            self.entries.remove(index);
        }
        let at = item.as_ref().map(|item| {
            let place = item.place();
            let index = self.entries.partition_point(|(known, _)| *known < place);
            self.entries.insert(index, (place, id));
            index
        });
        match (known, at.zip(item)) {
            (Some(known), Some((index, item))) if known == index => diffs.push(Diff::Update { index, item }),
            (known, placed) => {
                diffs.extend(known.map(|index| Diff::Remove { index }));
                diffs.extend(placed.map(|(index, item)| Diff::Insert { index, item }));
            }
        }
        Ok(())
    }
}
