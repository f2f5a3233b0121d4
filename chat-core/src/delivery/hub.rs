use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::feed_delivery::add_rows;
use crate::backend::{Deliveries, FeedDelivery, Route};
use crate::model::close_reason::CloseReason;
use crate::model::envelope::{InboxRow, RowContent};
use crate::model::id::{ConversationId, InstallationId, Seq, UserId};
use crate::model::limits::MIN_FRAME_BYTES;
use crate::model::session_event::{EventBatch, SessionEvent};
use crate::model::shared_rows::SharedRows;

/// Connections of this process, by device, and the feeds that they follow.
///
/// Each connection has a bounded queue. When a batch does not fit, the connection is marked *lagged* and its
/// session reads the inbox instead, so no row is lost and memory is bounded.
#[derive(Debug)]
pub struct Hub {
    connections: DashMap<InstallationId, Arc<Connection>>,
    /// The feeds that devices of this process follow.
    feeds: DashMap<ConversationId, Followers>,
    /// The number of changes of [`Followers::version`].
    versions: AtomicU64,
    queue: usize,
    /// Batches that did not fit; their rows are read from inboxes instead.
    dropped: AtomicU64,
}

/// The connections of the readers of a feed.
///
/// Each of them was a reader at `changed_at`. A delivery that follows from another roster may lack a change of the readers: then
/// all of them must read their inboxes, which says whether they still read the feed.
#[derive(Debug)]
struct Followers {
    /// The seq of the last change of the roster.
    changed_at: Seq,
    /// Changes with each delivery of rows, and is never used again.
    version: u64,
    connections: HashMap<InstallationId, Arc<Connection>>,
}

#[derive(Debug)]
struct Connection {
    route: Route,
    queue: mpsc::Sender<EventBatch>,
    lagged: Arc<AtomicBool>,
    /// The feeds that the device follows; `None` once the connection has ended.
    feeds: Mutex<Option<BTreeSet<ConversationId>>>,
}

impl Followers {
    /// Adds a connection, if it has not ended.
    fn add(&mut self, feed: ConversationId, connection: &Arc<Connection>) -> bool {
        let mut feeds = connection.feeds.lock();
        let Some(feeds) = &mut *feeds else { return false };
        feeds.insert(feed);
        self.connections.insert(connection.route.device.installation, connection.clone());
        true
    }

    fn remove(&mut self, feed: ConversationId, device: InstallationId) {
        if let Some(connection) = self.connections.remove(&device)
            && let Some(feeds) = &mut *connection.feeds.lock()
        {
            feeds.remove(&feed);
        }
    }
}

impl Connection {
    /// Queues events. After [`SessionEvent::Lagged`] the session reads its inbox.
    fn push(&self, events: Vec<SessionEvent>, dropped: &AtomicU64) {
        let lossless = events.iter().any(|event| !matches!(event, SessionEvent::Hint(_)));
        // Set the flag before the wake-up so that the session sees it.
        if events.iter().any(|event| matches!(event, SessionEvent::Lagged)) {
            self.lagged.store(true, Ordering::Release);
        }
        if self.queue.try_send(EventBatch::Own(events)).is_err() && lossless {
            self.lag(dropped);
        }
    }

    /// Queues rows of a feed. After [`SessionEvent::Lagged`] the session reads its inbox.
    fn push_shared(&self, rows: Arc<[SharedRows]>, dropped: &AtomicU64) {
        if self.queue.try_send(EventBatch::Shared(rows)).is_err() {
            self.lag(dropped);
        }
    }

    /// Lets the session read its inbox for a batch that did not fit.
    fn lag(&self, dropped: &AtomicU64) {
        dropped.fetch_add(1, Ordering::Relaxed);
        self.lagged.store(true, Ordering::Release);
        // Wakes the session. If there is no room for this either, batches are queued and the session
        // still checks the flag.
        let _ = self.queue.try_send(EventBatch::Own(Vec::new()));
    }
}

/// The session's end of its connection to the hub.
#[derive(Debug)]
pub struct SessionHandle {
    pub route: Route,
    /// Batches of events from the engine.
    pub events: mpsc::Receiver<EventBatch>,
    lagged: Arc<AtomicBool>,
}

impl SessionHandle {
    /// Returns whether events were dropped since the last call, and resets the flag.
    pub fn take_lagged(&self) -> bool {
        self.lagged.swap(false, Ordering::AcqRel)
    }
}

impl Hub {
    /// Creates a hub whose connections each queue this many batches.
    pub fn new(queue: usize) -> Self {
        Self {
            connections: DashMap::new(),
            feeds: DashMap::new(),
            versions: AtomicU64::new(0),
            queue: queue.max(1),
            dropped: AtomicU64::new(0),
        }
    }

    /// Connects a session and closes an older one of the same device. Of two sessions the one with the larger
    /// epoch stays, in any order of arrival.
    pub fn bind(&self, route: Route) -> SessionHandle {
        let (queue, events) = mpsc::channel(self.queue);
        let lagged = Arc::new(AtomicBool::new(false));
        let session = SessionHandle { route, events, lagged: lagged.clone() };
        let feeds = Mutex::new(Some(BTreeSet::new()));
        let new = Arc::new(Connection { route, queue, lagged, feeds });
        let replaced = EventBatch::Own(vec![SessionEvent::Closed(CloseReason::Replaced)]);
        let old = match self.connections.entry(route.device.installation) {
            dashmap::Entry::Occupied(known) if known.get().route.epoch > route.epoch => Some(new),
            dashmap::Entry::Occupied(mut known) => Some(known.insert(new)),
            dashmap::Entry::Vacant(free) => {
                free.insert(new);
                None
            }
        };
        if let Some(old) = old {
            self.stop_following(&old);
            let _ = old.queue.try_send(replaced);
        }
        session
    }

    /// Disconnects a session. Returns `true` if it was still the device's current one.
    pub fn unbind(&self, route: &Route) -> bool {
        let gone = self.connections.remove_if(&route.device.installation, |_, known| known.route == *route);
        gone.inspect(|(_, gone)| self.stop_following(gone)).is_some()
    }

    /// Returns the route of a device's session, if it is connected here.
    pub fn route(&self, device: InstallationId) -> Option<Route> {
        self.connections.get(&device).map(|known| known.route)
    }

    /// Returns whether a device is connected here and follows a feed.
    pub(super) fn follows(&self, device: InstallationId, feed: ConversationId) -> bool {
        self.feeds.get(&feed).is_some_and(|known| known.connections.contains_key(&device))
    }

    /// Returns a number that each delivery of rows of a feed changes, if a device follows the feed. While it is the same, the device
    /// gets each row that another reader of this process has not read from the store by a delivery.
    pub(super) fn feed_version(&self, feed: ConversationId, device: InstallationId) -> Option<u64> {
        let known = self.feeds.get(&feed)?;
        known.connections.contains_key(&device).then_some(known.version)
    }

    fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the seq of the last change of the roster of a feed, if a device of this process follows the feed.
    pub(super) fn feed_changed_at(&self, feed: ConversationId) -> Option<Seq> {
        self.feeds.get(&feed).map(|known| known.changed_at)
    }

    /// Lets a device follow a feed that it reads since the last change of the roster, which was at `changed_at`. Returns `false` if
    /// the roster has changed meanwhile, or the device is not connected here.
    pub(super) fn follow(&self, device: InstallationId, feed: ConversationId, changed_at: Seq) -> bool {
        let Some(connection) = self.connections.get(&device).map(|known| known.clone()) else { return false };
        let (connections, version) = (HashMap::new(), self.next_version());
        let mut known = self.feeds.entry(feed).or_insert(Followers { changed_at, version, connections });
        known.changed_at == changed_at && known.add(feed, &connection)
    }

    /// Ends that a device follows a feed.
    pub(super) fn unfollow(&self, device: InstallationId, feed: ConversationId) {
        self.feeds.remove_if_mut(&feed, |_, known| {
            known.remove(feed, device);
            known.connections.is_empty()
        });
    }

    fn remove_follower(&self, feed: ConversationId, connection: &Arc<Connection>) {
        self.feeds.remove_if_mut(&feed, |_, known| {
            let device = connection.route.device.installation;
            if known.connections.get(&device).is_some_and(|other| Arc::ptr_eq(other, connection)) {
                known.connections.remove(&device);
            }
            known.connections.is_empty()
        });
    }

    /// Removes a connection that ended from the feeds that it follows.
    fn stop_following(&self, connection: &Arc<Connection>) {
        let feeds = connection.feeds.lock().take().unwrap_or_default();
        feeds.into_iter().for_each(|feed| self.remove_follower(feed, connection));
    }

    /// Queues events for a device's session, and returns `false` if the device is not connected here. After
    /// [`SessionEvent::Lagged`] the session reads its inbox.
    pub fn deliver(&self, device: InstallationId, events: Vec<SessionEvent>) -> bool {
        let known = self.connections.get(&device).map(|known| known.clone());
        known.inspect(|connection| connection.push(events, &self.dropped)).is_some()
    }

    /// Queues events for single sessions and for the readers of feeds. The events of a session are in the order of their seqs
    /// in each conversation. Returns the routes of sessions that are not connected here, and the number of readers
    /// of each feed that got its rows.
    pub(super) fn deliver_all(&self, deliveries: Deliveries) -> (Vec<Route>, Vec<u32>) {
        let Deliveries { sessions, feeds } = deliveries;
        let mut single: Vec<(Route, Vec<SessionEvent>)> = sessions;
        let mut places = HashMap::new();
        if !feeds.is_empty() {
            let mut merged: Vec<(Route, Vec<SessionEvent>)> = Vec::with_capacity(single.len());
            for (route, events) in single {
                let place = *places.entry(route.device.installation).or_insert(merged.len());
                match merged.get_mut(place) {
                    Some(known) if known.0 == route => known.1.extend(events),
                    _ => merged.push((route, events)),
                }
            }
            single = merged;
        }
        let reached = feeds.iter().map(|feed| self.deliver_feed(feed, &places, &mut single)).collect();
        let absent = |(route, events): (Route, Vec<SessionEvent>)| {
            (!self.deliver(route.device.installation, events)).then_some(route)
        };
        (single.into_iter().filter_map(absent).collect(), reached)
    }

    /// Queues the rows of a feed for its readers. Most of them share the rows. A reader with events of its own gets both in order.
    /// Returns the number of readers.
    fn deliver_feed(
        &self,
        feed: &FeedDelivery,
        places: &HashMap<InstallationId, usize>,
        single: &mut [(Route, Vec<SessionEvent>)],
    ) -> u32 {
        let Some(followers) = self.readers_of(feed) else { return 0 };
        let mut named: HashMap<InstallationId, Vec<Seq>> = HashMap::new();
        for (seq, device) in &feed.named {
            named.entry(*device).or_default().push(*seq);
        }
        let differing = with_own_rows(feed);
        let shared: Arc<[SharedRows]> = SharedRows::split(&feed.rows, MIN_FRAME_BYTES).into();
        for follower in &followers {
            let device = follower.route.device.installation;
            if !differing.contains(&device) && !places.contains_key(&device) {
                if !shared.is_empty() {
                    follower.push_shared(shared.clone(), &self.dropped);
                }
                continue;
            }
            let named = named.get(&device).map_or(&[][..], Vec::as_slice);
            if let Some((_, events)) = places.get(&device).and_then(|place| single.get_mut(*place)) {
                add_rows(events, feed, device, named);
                continue;
            }
            let mut events = Vec::new();
            add_rows(&mut events, feed, device, named);
            if !events.is_empty() {
                follower.push(events, &self.dropped);
            }
        }
        followers.len() as u32
    }

    /// Applies the changes of the readers that a delivery names. Returns the readers that get a part of it. If it does not follow from
    /// the known roster, the readers read their inboxes instead, and follow the feed again with that.
    fn readers_of(&self, feed: &FeedDelivery) -> Option<Vec<Arc<Connection>>> {
        let id = feed.conversation;
        let known = self.feeds.get(&id).map(|known| known.changed_at);
        if known.is_some_and(|at| at != feed.changed_before) || feed.is_lagged {
            let (_, gone) = self.feeds.remove(&id)?;
            for connection in gone.connections.into_values() {
                if let Some(feeds) = &mut *connection.feeds.lock() {
                    feeds.remove(&id);
                }
                connection.push(vec![SessionEvent::Lagged], &self.dropped);
            }
            return None;
        }
        let joined = feed.changes.iter().filter(|change| change.joins);
        let joined: Vec<_> = joined
            .filter_map(|change| self.connections.get(&change.device).map(|known| known.clone()))
            .collect();
        if known.is_none() && joined.is_empty() {
            return None;
        }
        let (changed_at, version) = (feed.changed_before, self.next_version());
        let connections = HashMap::new();
        let mut known = self.feeds.entry(id).or_insert(Followers { changed_at, version, connections });
        known.version = version;
        if known.changed_at != feed.changed_before {
            // A reader that connects at this moment has read a later roster: it gets the rows from its inbox.
            return None;
        }
        for connection in &joined {
            known.add(id, connection);
        }
        let readers = known.connections.values().cloned().collect();
        let mut reads: HashMap<InstallationId, bool> = HashMap::new();
        for change in &feed.changes {
            reads.insert(change.device, change.joins);
        }
        for (device, _) in reads.into_iter().filter(|(_, reads)| !reads) {
            known.remove(id, device);
        }
        known.changed_at = feed.changed_after;
        drop(known);
        // The last reader may have left, or its connection may have ended before it joined.
        self.feeds.remove_if(&id, |_, known| known.connections.is_empty());
        Some(readers)
    }

    /// Closes the session of a device.
    pub fn close(&self, device: InstallationId, reason: CloseReason) {
        self.close_if(device, reason, |_| true);
    }

    /// Closes all sessions of a user.
    pub fn close_user(&self, user: UserId, reason: CloseReason) {
        let of_user =
            self.connections.iter().filter(|one| one.route.device.user == user).map(|one| one.route);
        for route in of_user.collect::<Vec<_>>() {
            self.close_session(&route, reason);
        }
    }

    /// Closes a session if it is still the device's current one.
    pub fn close_session(&self, route: &Route, reason: CloseReason) {
        self.close_if(route.device.installation, reason, |known| known == route);
    }

    /// Closes the session of a device if `is_meant` accepts its route. Dropping the queue ends the session
    /// even if the `Closed` event does not fit.
    fn close_if(&self, device: InstallationId, reason: CloseReason, is_meant: impl FnOnce(&Route) -> bool) {
        if let Some((_, gone)) = self.connections.remove_if(&device, |_, known| is_meant(&known.route)) {
            self.stop_following(&gone);
            let _ = gone.queue.try_send(EventBatch::Own(vec![SessionEvent::Closed(reason)]));
        }
    }

    /// Returns the number of batches that did not fit since the process started; their rows are read from
    /// inboxes instead.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns the number of sessions.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Returns whether there are no sessions.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}

/// Returns the devices that do not get all rows of a feed unchanged.
fn with_own_rows(feed: &FeedDelivery) -> HashSet<InstallationId> {
    let sender = |row: &InboxRow| match &row.content {
        RowContent::Message { message, .. } => Some(message.sender.installation),
        _ => None,
    };
    let senders = feed.rows.iter().filter_map(sender);
    let changed = feed.changes.iter().map(|change| change.device);
    senders.chain(changed).chain(feed.named.iter().map(|(_, device)| *device)).collect()
}
