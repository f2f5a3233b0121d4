//! Wakes the readers of feeds that have no connection, outside of the path of a message.
//!
//! One pass over the members of a feed serves all messages that arrived before it. A pass goes on by ranges of members, so
//! that a large feed delays no other one, and a range that fails is repeated.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Engine;
use super::engine::{address, count};
use crate::backend::FeedDelivery;
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
    /// The last member that was handled.
    after: Option<UserId>,
    /// The users to wake in the next pass, for messages that arrived since this one began.
    next: Wanted,
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

    /// Begins or continues the pass of the first feed after another one, so that the feeds take turns.
    fn turn(&self, after: Option<ConversationId>) -> Option<(ConversationId, Wanted, Option<UserId>)> {
        let mut waiting = self.waiting.lock();
        let later = after.and_then(|after| waiting.keys().copied().find(|id| *id > after));
        let id = later.or_else(|| waiting.keys().next().copied())?;
        let pass = waiting.get_mut(&id)?;
        pass.has_begun = true;
        Some((id, pass.wanted.clone(), pass.after))
    }

    /// Notes that the members up to a user were handled; without one, that the pass is over.
    fn done(&self, feed: ConversationId, up_to: Option<UserId>) {
        let mut waiting = self.waiting.lock();
        let Some(pass) = waiting.get_mut(&feed) else { return };
        if up_to.is_some() {
            pass.after = up_to;
        } else if pass.next.is_none() {
            waiting.remove(&feed);
        } else {
            *pass = Pass { wanted: std::mem::take(&mut pass.next), ..Pass::default() };
        }
    }
}

impl Engine {
    /// Wakes the readers of feeds that have no connection, until an error occurs. The embedder runs it beside the shards, once
    /// in each process.
    ///
    /// # Errors
    /// `Unavailable` if a roster cannot be read or the push sink fails. The caller runs it again: it continues where it failed.
    pub async fn run_wakes(&self) -> Result<()> {
        let mut last = None;
        loop {
            last = self.wake_range(last).await?;
            if last.is_none() {
                self.feed_wakes.more.notified().await;
            }
        }
    }

    /// Wakes a range of the readers of one feed, the next one after `last`. Returns the feed, or `None` if no reader waits
    /// to be woken.
    pub(super) async fn wake_range(&self, last: Option<ConversationId>) -> Result<Option<ConversationId>> {
        let Some((feed, wanted, after)) = self.feed_wakes.turn(last) else { return Ok(None) };
        let roster = self.read_roster(feed).await?;
        let mut members: Vec<_> =
            roster.members.iter().filter(|member| after.is_none_or(|after| member.user > after)).collect();
        members.sort_unstable_by_key(|member| member.user);
        let range = &members[..members.len().min(RANGE)];
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
        let is_last = range.len() == members.len();
        self.feed_wakes.done(feed, range.last().filter(|_| !is_last).map(|member| member.user));
        Ok(Some(feed))
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
    fn feeds_take_turns_and_a_message_in_a_pass_starts_another_one() {
        let wakes = FeedWakes::default();
        let lagged = |n| FeedDelivery::lagged(feed(n));
        wakes.add(&FeedDelivery::new(feed(9), 1));
        assert_eq!(wakes.turn(None), None, "a feed without messages wakes no reader");
        wakes.add(&lagged(1));
        wakes.add(&lagged(2));
        assert_eq!(wakes.turn(None), Some((feed(1), Wanted::All, None)));
        assert_eq!(wakes.turn(Some(feed(1))), Some((feed(2), Wanted::All, None)));
        assert_eq!(wakes.turn(Some(feed(2))), Some((feed(1), Wanted::All, None)));
        wakes.done(feed(2), None);
        wakes.done(feed(1), Some(user(7)));
        wakes.add(&lagged(1));
        assert_eq!(wakes.turn(None), Some((feed(1), Wanted::All, Some(user(7)))), "the pass goes on");
        wakes.done(feed(1), None);
        assert_eq!(wakes.turn(None), Some((feed(1), Wanted::All, None)), "another pass");
        wakes.done(feed(1), None);
        assert_eq!(wakes.turn(None), None);
    }
}
