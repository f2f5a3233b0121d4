//! Delivers decided events to sessions on this and other gateways.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures_util::future::join_all;

use super::batch::Batch;
use super::engine::count;
use super::{Engine, Stage, plan};
use crate::backend::{Deliveries, FeedDelivery, GatewayId, Route, SessionDelivery};
use crate::model::envelope::{InboxRow, RowContent};
use crate::model::id::{ConversationId, InstallationId, MessageId, UserId};
use crate::mutant::Mutant;

impl Engine {
    /// Delivers the events of a batch to the connected devices that are not in `delivered`, and wakes the
    /// others by push. Errors are ignored: the messages are stored.
    pub(super) async fn deliver_batch(&self, batch: &mut Batch, delivered: &[Route]) {
        if batch.events.is_empty() && batch.feeds.is_empty() {
            return;
        }
        let routes = self.routes(batch, delivered).await;
        let plan = plan(&batch.events, &routes, delivered);
        count(&self.counters.push_wakeups, plan.wake.len());
        plan.unseen.iter().for_each(|(id, devices)| self.record(*id, Stage::Pushed { devices: *devices }));
        // The commit delivered the rows of feeds. Those that are left have none: records that are replayed.
        let feeds = std::mem::take(&mut batch.feeds);
        self.deliver_with_feeds(plan.deliveries, feeds, &routes).await;
        if !plan.wake.is_empty() {
            let _ = self.backends.push.wake(&plan.wake).await;
        }
    }

    /// Returns the routes of the users that a batch concerns. If the registry fails, `known` takes its place.
    ///
    /// The registry is a hint: a device that is connected here is found in the hub, and a device that waits
    /// for an answer is found at the reply route of its command.
    pub(super) async fn routes(&self, batch: &Batch, known: &[Route]) -> Vec<Route> {
        let users: BTreeSet<UserId> = batch.events.iter().map(|(device, _)| device.user).collect();
        let users: Vec<UserId> = users.into_iter().collect();
        let found = self.backends.registry.lookup(&users).await;
        let mut routes = found.unwrap_or_else(|_| known.to_vec());
        routes.extend_from_slice(&batch.replies);
        let devices: BTreeSet<InstallationId> =
            batch.events.iter().map(|(device, _)| device.installation).collect();
        routes.extend(devices.into_iter().filter_map(|device| self.hub.route(device)));
        routes
    }

    /// Delivers the planned events. Returns the routes that got their events, or may have got them.
    async fn deliver_planned(
        &self,
        deliveries: Vec<SessionDelivery>,
        feeds: BTreeMap<GatewayId, Vec<FeedDelivery>>,
    ) -> Vec<Route> {
        self.record_routes(&deliveries);
        for (route, events) in &deliveries {
            count(&self.counters.events_delivered, events.len());
            if Mutant::TrimOnPush.is_active() {
                self.trim(route.device.installation, events).await;
            }
        }
        let mut routes: Vec<Route> = deliveries.iter().map(|(route, _)| *route).collect();
        let stale = self.deliver_all(deliveries, feeds).await;
        routes.retain(|route| !stale.contains(route));
        routes
    }

    /// Records to which gateways each message is routed.
    fn record_routes(&self, deliveries: &[SessionDelivery]) {
        let mut routed: HashMap<(MessageId, GatewayId), u32> = HashMap::new();
        for (route, events) in deliveries {
            for event in events {
                if let Some(message) = event.message() {
                    *routed.entry((message.id, route.gateway)).or_default() += 1;
                }
            }
        }
        for ((id, gateway), devices) in routed {
            self.record(id, Stage::Routed { gateway, devices });
        }
    }

    /// Returns the gateways that follow feeds. If the registry fails, the readers on other gateways read their feeds at a heartbeat.
    async fn feed_gateways(
        &self,
        feeds: impl Iterator<Item = ConversationId>,
    ) -> BTreeMap<ConversationId, BTreeSet<GatewayId>> {
        let followers = feeds.map(|feed| async move {
            let known = self.backends.registry.followers(feed).await.unwrap_or_default();
            (feed, known.into_iter().collect())
        });
        join_all(followers).await.into_iter().collect()
    }

    /// Delivers the planned events, and the events for the readers of feeds. Returns the routes that got their planned events, or may
    /// have got them.
    ///
    /// The rows of the feeds must be visible in history: a gateway that does not follow a feed yet reads them there.
    pub(super) async fn deliver_with_feeds(
        &self,
        sessions: Vec<SessionDelivery>,
        feeds: BTreeMap<ConversationId, FeedDelivery>,
        routes: &[Route],
    ) -> Vec<Route> {
        let mut gateways = self.feed_gateways(feeds.keys().copied()).await;
        let mut of_gateways: BTreeMap<GatewayId, Vec<FeedDelivery>> = BTreeMap::new();
        for (id, feed) in &feeds {
            let mut gateways = gateways.remove(id).unwrap_or_default();
            // The gateway of a device that begins to read does not follow the feed yet.
            let joined: HashSet<_> =
                feed.changes.iter().filter(|change| change.joins).map(|change| change.device).collect();
            for route in routes.iter().filter(|route| joined.contains(&route.device.installation)) {
                if gateways.insert(route.gateway) {
                    let _ = self.backends.registry.follow(*id, route.gateway).await;
                }
            }
            gateways.insert(self.settings.gateway);
            for gateway in gateways {
                of_gateways.entry(gateway).or_default().push(feed.clone());
            }
        }
        let delivered = self.deliver_planned(sessions, of_gateways).await;
        // A reader that is woken and connects at once must not be earlier than the delivery to its gateway.
        feeds.values().for_each(|feed| self.feed_wakes.add(feed));
        delivered
    }

    /// Delivers events to sessions on this and other gateways.
    pub(super) async fn deliver(&self, sessions: Vec<SessionDelivery>) {
        self.deliver_all(sessions, BTreeMap::new()).await;
    }

    /// Delivers events to sessions, and to the readers of feeds, on this and other gateways. Returns the routes of this process
    /// that are stale; they are unbound from the registry.
    async fn deliver_all(
        &self,
        sessions: Vec<SessionDelivery>,
        feeds: BTreeMap<GatewayId, Vec<FeedDelivery>>,
    ) -> Vec<Route> {
        let mut deliveries: BTreeMap<GatewayId, Deliveries> = BTreeMap::new();
        for (route, events) in sessions {
            deliveries.entry(route.gateway).or_default().sessions.push((route, events));
        }
        for (gateway, feeds) in feeds {
            deliveries.entry(gateway).or_default().feeds = feeds;
        }
        let here = deliveries.remove(&self.settings.gateway).unwrap_or_default();
        for (gateway, deliveries) in deliveries {
            count(&self.counters.forwarded, 1);
            self.backends.node_link.deliver(gateway, deliveries);
        }
        let gone = self.deliver_local(here);
        for stale in &gone {
            let _ = self.backends.registry.unbind(*stale).await;
        }
        gone
    }

    /// Delivers events to sessions of this process, also on behalf of another one. Returns the routes whose
    /// device is not connected here.
    pub fn deliver_local(&self, deliveries: Deliveries) -> Vec<Route> {
        let rows: Vec<(usize, Vec<MessageId>)> =
            deliveries.feeds.iter().map(|feed| (feed.rows.len(), messages_of(&feed.rows))).collect();
        let (absent, reached) = self.hub.deliver_all(deliveries);
        for ((rows, messages), devices) in rows.into_iter().zip(reached) {
            count(&self.counters.events_delivered, rows * devices as usize);
            let gateway = self.settings.gateway;
            messages.into_iter().for_each(|id| self.record(id, Stage::Routed { gateway, devices }));
        }
        absent
    }
}

/// Returns the ids of the messages of rows.
fn messages_of(rows: &[InboxRow]) -> Vec<MessageId> {
    let message = |row: &InboxRow| match &row.content {
        RowContent::Message { message, .. } => Some(message.id),
        _ => None,
    };
    rows.iter().filter_map(message).collect()
}
