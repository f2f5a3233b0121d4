//! Delivers decided events to sessions on this and other gateways.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::batch::Batch;
use super::engine::count;
use super::{Engine, Stage, plan};
use crate::backend::{GatewayId, Route, SessionDelivery};
use crate::model::id::{InstallationId, MessageId, UserId};
use crate::mutant::Mutant;

impl Engine {
    /// Delivers the events of a batch to the connected devices that are not in `delivered`, and wakes the
    /// others by push. Errors are ignored: the messages are stored.
    pub(super) async fn deliver_batch(&self, batch: &Batch, delivered: &[Route]) {
        if batch.events.is_empty() {
            return;
        }
        let plan = plan(&batch.events, &self.routes(batch, delivered).await, delivered);
        count(&self.counters.push_wakeups, plan.wake.len());
        plan.unseen.iter().for_each(|(id, devices)| self.record(*id, Stage::Pushed { devices: *devices }));
        self.deliver_planned(plan.deliveries).await;
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
    pub(super) async fn deliver_planned(&self, deliveries: Vec<SessionDelivery>) -> Vec<Route> {
        self.record_routes(&deliveries);
        for (route, events) in &deliveries {
            count(&self.counters.events_delivered, events.len());
            if Mutant::TrimOnPush.is_active() {
                self.trim(route.device.installation, events).await;
            }
        }
        let mut routes: Vec<Route> = deliveries.iter().map(|(route, _)| *route).collect();
        let stale = self.deliver(deliveries).await;
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

    /// Delivers events to sessions on this and other gateways. Returns the routes of this process that are
    /// stale; they are unbound from the registry.
    pub(super) async fn deliver(&self, deliveries: Vec<SessionDelivery>) -> Vec<Route> {
        let mut elsewhere: BTreeMap<GatewayId, Vec<SessionDelivery>> = BTreeMap::new();
        let mut here = Vec::with_capacity(deliveries.len());
        for (route, events) in deliveries {
            if route.gateway == self.settings.gateway {
                here.push((route, events));
            } else {
                elsewhere.entry(route.gateway).or_default().push((route, events));
            }
        }
        for (gateway, deliveries) in elsewhere {
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
    pub fn deliver_local(&self, deliveries: Vec<SessionDelivery>) -> Vec<Route> {
        let absent = |(route, events): SessionDelivery| {
            let here = self.hub.deliver(route.device.installation, events);
            (!here).then_some(route)
        };
        deliveries.into_iter().filter_map(absent).collect()
    }
}
