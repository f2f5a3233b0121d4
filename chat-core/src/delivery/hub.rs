use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use tokio::sync::mpsc;

use crate::backend::Route;
use crate::model::close_reason::CloseReason;
use crate::model::id::InstallationId;
use crate::model::session_event::SessionEvent;

/// The connections of this process, by device.
///
/// Each has a bounded queue. When a batch does not fit, the connection is marked *lagged*: its session
/// then reads its inbox instead, so nothing is lost and nothing grows.
#[derive(Debug)]
pub struct Hub {
    connections: DashMap<InstallationId, Connection>,
    queue: usize,
    /// Batches that did not fit and are read from inboxes instead.
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Connection {
    route: Route,
    queue: mpsc::Sender<Vec<SessionEvent>>,
    lagged: Arc<AtomicBool>,
}

/// A session's end of its connection to the hub.
#[derive(Debug)]
pub struct SessionHandle {
    /// The route that was session.
    pub route: Route,
    /// What the engine tells this session.
    pub events: mpsc::Receiver<Vec<SessionEvent>>,
    lagged: Arc<AtomicBool>,
}

impl SessionHandle {
    /// Whether events were dropped since this was asked last.
    pub fn take_lagged(&self) -> bool {
        self.lagged.swap(false, Ordering::AcqRel)
    }
}

impl Hub {
    /// A hub whose connections each hold this many batches.
    pub fn new(queue: usize) -> Self {
        Self { connections: DashMap::new(), queue: queue.max(1), dropped: AtomicU64::new(0) }
    }

    /// Connects a session; an older one of the same device is told to close. Of two sessions the one with
    /// the larger epoch stays, whichever comes first.
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

    /// Disconnects a session; `true` if it was still the device's current one.
    pub fn unbind(&self, route: &Route) -> bool {
        self.connections.remove_if(&route.device.installation, |_, known| known.route == *route).is_some()
    }

    /// Whether a device is connected here, and as what.
    pub fn route(&self, device: InstallationId) -> Option<Route> {
        self.connections.get(&device).map(|known| known.route)
    }

    /// Tells a device's session these events; `false` if it is not connected here. SessionDelivery [`SessionEvent::Lagged`],
    /// it reads its inbox.
    pub fn deliver(&self, device: InstallationId, events: Vec<SessionEvent>) -> bool {
        let Some(connection) = self.connections.get(&device) else {
            return false;
        };
        let lossless = events.iter().any(|event| !matches!(event, SessionEvent::Hint(_)));
        // The mark comes before the word that makes the session look at it.
        if events.iter().any(|event| matches!(event, SessionEvent::Lagged)) {
            connection.lagged.store(true, Ordering::Release);
        }
        if connection.queue.try_send(events).is_err() && lossless {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            connection.lagged.store(true, Ordering::Release);
            // If there is no room for this either, the session has yet to look.
            let _ = connection.queue.try_send(Vec::new());
        }
        true
    }

    /// Ends a device's session.
    pub fn close(&self, device: InstallationId, reason: CloseReason) {
        self.close_if(device, reason, |_| true);
    }

    /// Ends a session, if it is still the device's current one.
    pub fn close_session(&self, route: &Route, reason: CloseReason) {
        self.close_if(route.device.installation, reason, |known| known == route);
    }

    /// Dropping its queue ends a session even if the word does not fit.
    fn close_if(&self, device: InstallationId, reason: CloseReason, is_meant: impl FnOnce(&Route) -> bool) {
        if let Some((_, gone)) = self.connections.remove_if(&device, |_, known| is_meant(&known.route)) {
            let _ = gone.queue.try_send(vec![SessionEvent::Closed(reason)]);
        }
    }

    /// How many batches of events did not fit and are read from inboxes instead, since the process began.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}
