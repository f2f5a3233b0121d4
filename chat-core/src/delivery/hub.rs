use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use tokio::sync::mpsc;

use crate::backend::Route;
use crate::model::close_reason::CloseReason;
use crate::model::id::{InstallationId, UserId};
use crate::model::session_event::SessionEvent;

/// Connections of this process, by device.
///
/// Each connection has a bounded queue. When a batch does not fit, the connection is marked *lagged* and its
/// session reads the inbox instead, so no row is lost and memory is bounded.
#[derive(Debug)]
pub struct Hub {
    connections: DashMap<InstallationId, Connection>,
    queue: usize,
    /// Batches that did not fit; their rows are read from inboxes instead.
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Connection {
    route: Route,
    queue: mpsc::Sender<Vec<SessionEvent>>,
    lagged: Arc<AtomicBool>,
}

/// The session's end of its connection to the hub.
#[derive(Debug)]
pub struct SessionHandle {
    pub route: Route,
    /// Batches of events from the engine.
    pub events: mpsc::Receiver<Vec<SessionEvent>>,
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
        Self { connections: DashMap::new(), queue: queue.max(1), dropped: AtomicU64::new(0) }
    }

    /// Connects a session and closes an older one of the same device. Of two sessions the one with the larger
    /// epoch stays, in any order of arrival.
    pub fn bind(&self, route: Route) -> SessionHandle {
        let (queue, events) = mpsc::channel(self.queue);
        let lagged = Arc::new(AtomicBool::new(false));
        let session = SessionHandle { route, events, lagged: lagged.clone() };
        let replaced = vec![SessionEvent::Closed(CloseReason::Replaced)];
        match self.connections.entry(route.device.installation) {
            dashmap::Entry::Occupied(known) if known.get().route.epoch > route.epoch => {
                let _ = queue.try_send(replaced);
            }
            dashmap::Entry::Occupied(mut known) => {
                let old = known.insert(Connection { route, queue, lagged });
                let _ = old.queue.try_send(replaced);
            }
            dashmap::Entry::Vacant(free) => {
                free.insert(Connection { route, queue, lagged });
            }
        }
        session
    }

    /// Disconnects a session. Returns `true` if it was still the device's current one.
    pub fn unbind(&self, route: &Route) -> bool {
        self.connections.remove_if(&route.device.installation, |_, known| known.route == *route).is_some()
    }

    /// Returns the route of a device's session, if it is connected here.
    pub fn route(&self, device: InstallationId) -> Option<Route> {
        self.connections.get(&device).map(|known| known.route)
    }

    /// Queues events for a device's session, and returns `false` if the device is not connected here. After
    /// [`SessionEvent::Lagged`] the session reads its inbox.
    pub fn deliver(&self, device: InstallationId, events: Vec<SessionEvent>) -> bool {
        let Some(connection) = self.connections.get(&device) else {
            return false;
        };
        let lossless = events.iter().any(|event| !matches!(event, SessionEvent::Hint(_)));
        // Set the flag before the wake-up so that the session sees it.
        if events.iter().any(|event| matches!(event, SessionEvent::Lagged)) {
            connection.lagged.store(true, Ordering::Release);
        }
        if connection.queue.try_send(events).is_err() && lossless {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            connection.lagged.store(true, Ordering::Release);
            // Wakes the session. If there is no room for this either, batches are queued and the session
            // still checks the flag.
            let _ = connection.queue.try_send(Vec::new());
        }
        true
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
            let _ = gone.queue.try_send(vec![SessionEvent::Closed(reason)]);
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
