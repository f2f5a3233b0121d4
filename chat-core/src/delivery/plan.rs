use std::collections::{HashMap, HashSet};

use crate::backend::Route;
use crate::model::id::{DeviceAddress, InstallationId, MessageId};
use crate::model::session_event::SessionEvent;

/// Delivery plan of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)]
pub struct Plan {
    /// For each connected device: its route and its events, in order.
    pub deliveries: Vec<(Route, Vec<SessionEvent>)>,
    /// Devices without a connection that have a new message or must read their inbox.
    pub wake: Vec<DeviceAddress>,
    /// Number of devices without a connection, by message.
    pub unseen: HashMap<MessageId, u32>,
}

/// Plans the delivery of a batch: a pure function of the events with their devices, the known routes, and the
/// routes that got the events already. Events of one device keep their order.
pub fn plan(events: &[(DeviceAddress, SessionEvent)], routes: &[Route], delivered: &[Route]) -> Plan {
    let mut newest: HashMap<InstallationId, Route> = HashMap::with_capacity(routes.len());
    for route in routes {
        let known = newest.entry(route.device.installation).or_insert(*route);
        if route.epoch > known.epoch {
            *known = *route;
        }
    }
    let delivered: HashSet<&Route> = delivered.iter().collect();
    let mut places: HashMap<InstallationId, usize> = HashMap::new();
    let mut plan = Plan::default();
    for (device, event) in events {
        match newest.get(&device.installation) {
            Some(route) if delivered.contains(route) => {}
            Some(route) => {
                let place = *places.entry(device.installation).or_insert_with(|| {
                    plan.deliveries.push((*route, Vec::new()));
                    plan.deliveries.len() - 1
                });
                plan.deliveries[place].1.push(event.clone());
            }
            None => {
                if let Some(message) = event.message() {
                    *plan.unseen.entry(message.id).or_default() += 1;
                    if !message.options.wakes(device.user) {
                        continue;
                    }
                } else if !matches!(event, SessionEvent::Lagged) {
                    continue;
                }
                if !plan.wake.contains(device) {
                    plan.wake.push(*device);
                }
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::GatewayId;
    use crate::model::envelope::{EmptyReason, InboxRow, RowContent};
    use crate::model::id::{ConversationId, DeviceId, UserId};

    fn device(n: u8) -> DeviceAddress {
        DeviceAddress {
            user: UserId::from_bytes([n; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([n; 16]),
        }
    }

    fn row(seq: u64) -> SessionEvent {
        let content = RowContent::Empty { reason: EmptyReason::Skip, from: seq };
        SessionEvent::Row(InboxRow {
            conversation: ConversationId::from_bytes([0x11; 17]),
            seq,
            time_us: seq,
            joined: false,
            content,
        })
    }

    #[test]
    fn newest_route_wins_and_events_keep_their_order() {
        let routes = [2, 1].map(|epoch| Route { device: device(1), gateway: GatewayId(epoch), epoch });
        let events = [(device(1), row(1)), (device(2), row(1)), (device(1), row(2))];
        let plan = plan(&events, &routes, &[]);
        assert_eq!(plan.deliveries, vec![(routes[0], vec![row(1), row(2)])]);
        assert!(plan.wake.is_empty(), "an empty row wakes no device");
    }

    #[test]
    fn event_is_delivered_again_only_to_a_newer_connection() {
        let route = |n, epoch| Route { device: device(n), gateway: GatewayId(epoch), epoch };
        let events = [(device(1), row(1)), (device(2), row(1)), (device(3), SessionEvent::Lagged)];
        let delivered = [route(1, 5), route(2, 5)];
        let plan = plan(&events, &[route(1, 5), route(2, 6)], &delivered);
        assert_eq!(plan.deliveries, vec![(route(2, 6), vec![row(1)])]);
        assert_eq!(plan.wake, vec![device(3)], "a lagged device without a connection is woken");
        assert_eq!(super::plan(&events[..2], &delivered, &delivered), Plan::default());
    }
}
