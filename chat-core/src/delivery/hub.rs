use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use tokio::sync::mpsc;

use crate::backend::Route;
use crate::envelope::{InboxRow, Message, RowContent, Stored};
use crate::id::InstallationId;
use crate::wire::ServerFrame;

/// What the engine tells a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A row was committed to this device's inbox.
    Row(InboxRow),
    /// A message of this device was committed, at this time.
    Own(Stored, u64),
    /// An answer to a publish of this device.
    Answer(ServerFrame),
    /// Something that may be lost: a receipt, typing, a changed list.
    Ephemeral(ServerFrame),
    /// A later connection of this device took over, or the device was unlinked.
    Closed(u16),
    /// Something was dropped on the way: read the inbox.
    Lagged,
}

impl Event {
    /// The message that it brings to a device of somebody else, if it is one.
    pub fn message(&self) -> Option<&Message> {
        match self {
            Self::Row(InboxRow { content: RowContent::Message { message, .. }, .. }) => Some(message),
            _ => None,
        }
    }
}

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
    queue: mpsc::Sender<Vec<Event>>,
    lagged: Arc<AtomicBool>,
}

/// A session's end of its connection to the hub.
#[derive(Debug)]
pub struct SessionHandle {
    /// The route that was session.
    pub route: Route,
    /// What the engine tells this session.
    pub events: mpsc::Receiver<Vec<Event>>,
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
        let replaced = vec![Event::Closed(crate::wire::close::REPLACED)];
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

    /// Tells a device's session these events; `false` if it is not connected here. SessionDelivery [`Event::Lagged`],
    /// it reads its inbox.
    pub fn deliver(&self, device: InstallationId, events: Vec<Event>) -> bool {
        let Some(connection) = self.connections.get(&device) else {
            return false;
        };
        let lossless = events.iter().any(|event| !matches!(event, Event::Ephemeral(_)));
        // The mark comes before the word that makes the session look at it.
        if events.iter().any(|event| matches!(event, Event::Lagged)) {
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
    pub fn close(&self, device: InstallationId, code: u16) {
        self.close_if(device, code, |_| true);
    }

    /// Ends a session, if it is still the device's current one.
    pub fn close_session(&self, route: &Route, code: u16) {
        self.close_if(route.device.installation, code, |known| known == route);
    }

    /// Dropping its queue ends a session even if the word does not fit.
    fn close_if(&self, device: InstallationId, code: u16, is_meant: impl FnOnce(&Route) -> bool) {
        if let Some((_, gone)) = self.connections.remove_if(&device, |_, known| is_meant(&known.route)) {
            let _ = gone.queue.try_send(vec![Event::Closed(code)]);
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
