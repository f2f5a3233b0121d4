//! Wakes the readers of feeds that have no connection, outside of the path of a message.
//!
//! One pass over the members of a feed serves all messages that arrived before it, and a round has one pass of each feed. A pass goes
//! on by ranges of members, so that a large feed delays no other one, and a range that fails is repeated.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Engine;
use super::engine::{address, count};
use crate::backend::{FeedDelivery, Roster};
use crate::model::envelope::{InboxRow, RowContent};
use crate::model::error::Result;
use crate::model::id::{ConversationId, InstallationId, UserId};
use crate::model::message_options::Urgency;

/// Number of members of a range.
const RANGE: usize = 256;
/// Maximum number of users that messages name. Above it all members are woken.
const MAX_NAMED: usize = 1024;

/// The feeds whose readers are to be woken.
#[derive(Debug, Default)]
pub(super) struct FeedWakes {
    waiting: Mutex<BTreeMap<ConversationId, Pass>>,
    more: Notify,
}

/// The users to wake.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Wanted {
    Named(BTreeSet<UserId>),
    All,
}

impl Default for Wanted {
    fn default() -> Self {
        Self::Named(BTreeSet::new())
    }
}

impl Wanted {
    /// Returns the users that the rows of a feed wake.
    fn of(feed: &FeedDelivery) -> Self {
        let mut wanted = Self::default();
        if feed.is_lagged {
            return Self::All;
        }
        for InboxRow { content, .. } in &feed.rows {
            if let RowContent::Message { message, .. } = content
                && message.options.urgency != Urgency::Silent
            {
                let named = &message.options.wake;
                let is_for_all = named.is_empty();
                wanted.add(if is_for_all { Self::All } else { Self::Named(named.iter().copied().collect()) });
            }
        }
        wanted
    }

    fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Named(known), Self::Named(more)) if known.len() + more.len() <= MAX_NAMED => {
                known.extend(more);
            }
            _ => *self = Self::All,
        }
    }

    fn is_none(&self) -> bool {
        matches!(self, Self::Named(users) if users.is_empty())
    }

    fn has(&self, user: UserId) -> bool {
        match self {
            Self::Named(users) => users.contains(&user),
            Self::All => true,
        }
    }
}

/// A pass over the members of a feed.
#[derive(Debug, Default)]
struct Pass {
    wanted: Wanted,
    has_begun: bool,
    /// It belongs to the next round: the feed had a pass in this one, or it failed.
    is_later: bool,
    /// The roster at the begin of the pass, and the number of its members that were handled.
    progress: Option<Progress>,
    /// The users to wake in the next pass, for messages that arrived since this one began.
    next: Wanted,
}

#[derive(Clone, Debug)]
struct Progress {
    roster: Arc<Roster>,
    handled: usize,
}

impl FeedWakes {
    /// Notes the users that new rows of a feed wake.
    pub(super) fn add(&self, feed: &FeedDelivery) {
        let wanted = Wanted::of(feed);
        if wanted.is_none() {
            return;
        }
        let mut waiting = self.waiting.lock();
        let pass = waiting.entry(feed.conversation).or_default();
        let part = if pass.has_begun { &mut pass.next } else { &mut pass.wanted };
        part.add(wanted);
        self.more.notify_one();
    }

    /// Begins a round. Returns whether a pass waits.
    fn begin_round(&self) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, pass| !pass.wanted.is_none());
        waiting.values_mut().for_each(|pass| pass.is_later = false);
        !waiting.is_empty()
    }

    /// Begins or continues the pass of the first feed after another one, so that the feeds take turns.
    fn turn(&self, after: Option<ConversationId>) -> Option<(ConversationId, Wanted, Option<Progress>)> {
        let mut waiting = self.waiting.lock();
        let mut ready = waiting.iter().filter(|(_, pass)| !pass.is_later).map(|(id, _)| *id);
        let first = ready.next()?;
        let id =
            after.and_then(|after| [first].into_iter().chain(ready).find(|id| *id > after)).unwrap_or(first);
        let pass = waiting.get_mut(&id)?;
        pass.has_begun = true;
        Some((id, pass.wanted.clone(), pass.progress.clone()))
    }

    /// Notes the progress of a pass; without one, that the pass is over.
    fn done(&self, feed: ConversationId, progress: Option<Progress>) {
        let mut waiting = self.waiting.lock();
        let Some(pass) = waiting.get_mut(&feed) else { return };
        if progress.is_some() {
            pass.progress = progress;
        } else {
            *pass = Pass { wanted: std::mem::take(&mut pass.next), is_later: true, ..Pass::default() };
        }
    }

    /// Continues a pass that failed in the next round, so that it delays no other feed.
    fn failed(&self, feed: ConversationId) {
        if let Some(pass) = self.waiting.lock().get_mut(&feed) {
            pass.is_later = true;
        }
    }
}

impl Engine {
    /// Waits for messages of feeds, and wakes the readers without a connection. Returns after one pass over each feed. The embedder
    /// runs it beside the shards, once in each process, again and again: all messages that arrive while it pauses share a pass, so
    /// that a busy feed of thousands of members costs one pass for each pause.
    ///
    /// # Errors
    /// `Unavailable` if a roster cannot be read or the push sink fails. The other feeds are handled before it returns, and the next
    /// call continues where a pass failed.
    pub async fn run_wakes(&self) -> Result<()> {
        if !self.feed_wakes.begin_round() {
            self.feed_wakes.more.notified().await;
        }
        let (mut last, mut outcome) = (None, Ok(()));
        while let Some((feed, wanted, progress)) = self.feed_wakes.turn(last) {
            last = Some(feed);
            match self.wake_range(feed, &wanted, progress).await {
                Ok(progress) => self.feed_wakes.done(feed, progress),
                Err(error) => {
                    self.feed_wakes.failed(feed);
                    outcome = outcome.and(Err(error));
                }
            }
        }
        outcome
    }

    /// Wakes the next range of the readers of a feed. Returns the progress of the pass, `None` at its end.
    async fn wake_range(
        &self,
        feed: ConversationId,
        wanted: &Wanted,
        progress: Option<Progress>,
    ) -> Result<Option<Progress>> {
        let Progress { roster, handled } = match progress {
            Some(progress) => progress,
            None => Progress { roster: self.read_roster(feed).await?, handled: 0 },
        };
        let rest = &roster.members[handled..];
        let range = &rest[..rest.len().min(RANGE)];
        let users: Vec<UserId> =
            range.iter().map(|member| member.user).filter(|user| wanted.has(*user)).collect();
        if !users.is_empty() {
            // If the registry fails, connected devices are woken too.
            let routes = self.backends.registry.lookup(&users).await.unwrap_or_default();
            let connected: HashSet<InstallationId> =
                routes.into_iter().map(|route| route.device.installation).collect();
            let devices = range.iter().filter(|member| wanted.has(member.user)).flat_map(|member| {
                member.installations.iter().map(|installation| address(member.user, *installation))
            });
            let asleep: Vec<_> = devices
                .filter(|device| !connected.contains(&device.installation))
                .filter(|device| self.hub.route(device.installation).is_none())
                .collect();
            if !asleep.is_empty() {
                self.backends.push.wake(&asleep).await?;
                count(&self.counters.push_wakeups, asleep.len());
            }
        }
        let handled = handled + range.len();
        let has_more = handled < roster.members.len();
        Ok(has_more.then_some(Progress { roster, handled }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(n: u8) -> UserId {
        UserId::from_bytes([n; 16])
    }

    fn feed(n: u8) -> ConversationId {
        ConversationId::from_bytes([n; 17])
    }

    #[test]
    fn wanted_users_add_up_to_all() {
        let named = |users: &[u8]| Wanted::Named(users.iter().map(|n| user(*n)).collect());
        let mut wanted = named(&[1]);
        wanted.add(named(&[2]));
        assert!(wanted.has(user(2)) && !wanted.has(user(3)) && !wanted.is_none());
        wanted.add(Wanted::All);
        wanted.add(named(&[4]));
        assert_eq!(wanted, Wanted::All);
        let many = |from: u128| {
            Wanted::Named((from..from + 800).map(|n| UserId::from_bytes(n.to_be_bytes())).collect())
        };
        let mut wanted = many(0);
        wanted.add(many(0));
        assert_eq!(wanted, Wanted::All, "above the limit all members are woken");
    }

    #[test]
    fn feeds_take_turns_and_a_message_in_a_pass_waits_for_the_next_round() {
        let wakes = FeedWakes::default();
        let lagged = |n| FeedDelivery::lagged(feed(n));
        let turn = |after| {
            wakes.turn(after).map(|(id, wanted, progress)| (id, wanted, progress.map(|known| known.handled)))
        };
        wakes.add(&FeedDelivery::new(feed(9), 1));
        assert!(!wakes.begin_round() && turn(None).is_none(), "a feed without messages wakes no reader");
        wakes.add(&lagged(1));
        wakes.add(&lagged(2));
        assert!(wakes.begin_round());
        assert_eq!(turn(None), Some((feed(1), Wanted::All, None)));
        assert_eq!(turn(Some(feed(1))), Some((feed(2), Wanted::All, None)));
        assert_eq!(turn(Some(feed(2))), Some((feed(1), Wanted::All, None)));
        wakes.done(feed(2), None);
        wakes.done(feed(1), Some(Progress { roster: Arc::default(), handled: 7 }));
        wakes.add(&lagged(1));
        assert_eq!(turn(None), Some((feed(1), Wanted::All, Some(7))), "the pass goes on");
        wakes.done(feed(1), None);
        wakes.add(&lagged(2));
        assert_eq!(turn(None), None, "both feeds had their pass");
        assert!(wakes.begin_round());
        assert_eq!(turn(None), Some((feed(1), Wanted::All, None)), "another pass");
        wakes.failed(feed(1));
        assert_eq!(turn(None), Some((feed(2), Wanted::All, None)), "a feed that fails delays no other one");
        wakes.done(feed(2), None);
        assert_eq!(turn(None), None);
        assert!(wakes.begin_round());
        assert_eq!(turn(None), Some((feed(1), Wanted::All, None)));
        wakes.done(feed(1), None);
        assert!(!wakes.begin_round() && turn(None).is_none());
    }
}
