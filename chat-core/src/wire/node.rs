//! What nodes of a cluster say to each other: commands in the log, and what sessions of another gateway are
//! deliveries. `chat-core/proto/chat/v1/node.proto` documents every field.

use bytes::Bytes;
use prost::Message as _;

use super::proto::node;
use super::{ClientFrame, ServerFrame, decode_row, encode_row, invalid};
use crate::backend::{Command, GatewayId, Operation, RecipientDevices, Route, SessionDelivery};
use crate::delivery::Event;
use crate::envelope::{Refusal, Subject};
use crate::error::Result;
use crate::id::{DeviceAddress, DeviceId, InstallationId, UserId};

fn device_to_proto(device: DeviceAddress) -> node::Device {
    node::Device {
        user: device.user.to_bytes(),
        device: u32::from(device.device.get()),
        installation: device.installation.to_bytes(),
    }
}

fn device_from_proto(raw: Option<node::Device>) -> Result<DeviceAddress> {
    let raw = raw.ok_or_else(|| invalid("a device is missing"))?;
    Ok(DeviceAddress {
        user: UserId::parse(&raw.user)?,
        device: DeviceId::new(raw.device)?,
        installation: InstallationId::parse(&raw.installation)?,
    })
}

fn route_to_proto(route: &Route) -> node::Route {
    node::Route { device: Some(device_to_proto(route.device)), gateway: route.gateway.0, epoch: route.epoch }
}

fn route_from_proto(raw: node::Route) -> Result<Route> {
    let device = device_from_proto(raw.device)?;
    Ok(Route { device, gateway: GatewayId(raw.gateway), epoch: raw.epoch })
}

/// A command as the log keeps it.
pub fn encode_command(command: &Command) -> Vec<u8> {
    let frame = match &command.operation {
        Operation::Publish(publish) => ClientFrame::Publish(publish.clone()),
        Operation::Skip(number) => ClientFrame::Skip(*number),
    };
    let verdict = command.verdict.clone().map(|verdict| ServerFrame::Refused(Subject::Opening, verdict));
    let recipients = command.recipients.iter().map(|recipient| node::RecipientDevices {
        user: recipient.user.to_bytes(),
        list_version: recipient.list_version,
        installations: recipient.installations.iter().map(|one| one.to_bytes()).collect(),
    });
    node::Command {
        frame: frame.encode(),
        sender: Some(device_to_proto(command.sender)),
        recipients: recipients.collect(),
        verdict: verdict.map(|verdict| verdict.encode()).unwrap_or_default(),
        reply: command.reply.as_ref().map(route_to_proto),
    }
    .encode_to_vec()
}

/// Reads what [`encode_command`] wrote.
///
/// # Errors
/// `Invalid` if the bytes are anything else: the same for everybody who reads them.
pub fn decode_command(bytes: Bytes) -> Result<Command> {
    let raw = node::Command::decode(bytes).map_err(|e| invalid("not a command").caused_by(e))?;
    let operation = match ClientFrame::parse(raw.frame, &Bytes::new())? {
        ClientFrame::Publish(publish) => Operation::Publish(publish),
        ClientFrame::Skip(number) => Operation::Skip(number),
        _ => return Err(invalid("a command is neither a publish nor a skip")),
    };
    let recipients = raw.recipients.into_iter().map(|recipient| {
        let installations = recipient.installations.iter().map(|one| InstallationId::parse(one));
        Ok(RecipientDevices {
            user: UserId::parse(&recipient.user)?,
            list_version: recipient.list_version,
            installations: installations.collect::<Result<_>>()?,
        })
    });
    Ok(Command {
        sender: device_from_proto(raw.sender)?,
        operation,
        recipients: recipients.collect::<Result<_>>()?,
        verdict: if raw.verdict.is_empty() { None } else { Some(verdict(raw.verdict)?) },
        reply: raw.reply.map(route_from_proto).transpose()?,
    })
}

fn verdict(bytes: Bytes) -> Result<Refusal> {
    match ServerFrame::parse(bytes)? {
        ServerFrame::Refused(_, refusal) => Ok(refusal),
        _ => Err(invalid("a verdict is not a refusal")),
    }
}

fn event_to_proto(event: &Event) -> node::Event {
    use node::event::Event as Raw;
    let raw = match event {
        Event::Row(row) => Raw::Row(encode_row(row).into()),
        Event::Own(stored, time_us) => {
            let stored = ServerFrame::Stored(*stored).encode();
            Raw::Own(node::Own { stored, time_us: *time_us })
        }
        Event::Answer(frame) => Raw::Answer(frame.encode()),
        Event::Ephemeral(frame) => Raw::Ephemeral(frame.encode()),
        Event::Closed(code) => Raw::Closed(u32::from(*code)),
        Event::Lagged => Raw::Lagged(true),
    };
    node::Event { event: Some(raw) }
}

fn event_from_proto(raw: node::Event) -> Result<Event> {
    use node::event::Event as Raw;
    Ok(match raw.event.ok_or_else(|| invalid("an event holds nothing"))? {
        Raw::Row(row) => Event::Row(decode_row(row)?),
        Raw::Own(own) => match ServerFrame::parse(own.stored)? {
            ServerFrame::Stored(stored) => Event::Own(stored, own.time_us),
            _ => return Err(invalid("an own message was not stored")),
        },
        Raw::Answer(frame) => Event::Answer(ServerFrame::parse(frame)?),
        Raw::Ephemeral(frame) => Event::Ephemeral(ServerFrame::parse(frame)?),
        Raw::Closed(code) => Event::Closed(u16::try_from(code).map_err(|_| invalid("not a close code"))?),
        Raw::Lagged(_) => Event::Lagged,
    })
}

/// What sessions of a gateway are deliveries, as the node link carries it.
pub fn encode_deliveries(deliveries: &[SessionDelivery]) -> Vec<u8> {
    let deliveries = deliveries.iter().map(|(route, events)| node::Delivery {
        route: Some(route_to_proto(route)),
        events: events.iter().map(event_to_proto).collect(),
    });
    node::SessionDeliveries { deliveries: deliveries.collect() }.encode_to_vec()
}

/// Reads what [`encode_deliveries`] wrote.
///
/// # Errors
/// `Invalid` if the bytes are anything else.
pub fn decode_deliveries(bytes: Bytes) -> Result<Vec<SessionDelivery>> {
    let raw = node::SessionDeliveries::decode(bytes)
        .map_err(|e| invalid("not what sessions are deliveries").caused_by(e))?;
    let deliveries = raw.deliveries.into_iter().map(|delivery| {
        let route = delivery.route.ok_or_else(|| invalid("a delivery names no connection"))?;
        let events = delivery.events.into_iter().map(event_from_proto);
        Ok((route_from_proto(route)?, events.collect::<Result<_>>()?))
    });
    deliveries.collect()
}

/// The connections that were not there.
pub fn encode_not_here(routes: &[Route]) -> Vec<u8> {
    node::NotHere { routes: routes.iter().map(route_to_proto).collect() }.encode_to_vec()
}

/// Reads what [`encode_not_here`] wrote.
///
/// # Errors
/// `Invalid` if the bytes are anything else.
pub fn decode_not_here(bytes: Bytes) -> Result<Vec<Route>> {
    let raw = node::NotHere::decode(bytes).map_err(|e| invalid("not a list of routes").caused_by(e))?;
    raw.routes.into_iter().map(route_from_proto).collect()
}

/// A question for the offer of a device that waits to be linked, or (with `sealed`) the answer to it.
pub fn encode_rendezvous(rendezvous: &Bytes, sealed: Option<&Bytes>) -> Vec<u8> {
    let sealed = sealed.cloned().unwrap_or_default();
    node::Rendezvous { rendezvous: rendezvous.clone(), sealed }.encode_to_vec()
}

/// Reads what [`encode_rendezvous`] wrote.
///
/// # Errors
/// `Invalid` if the bytes are anything else.
pub fn decode_rendezvous(bytes: Bytes) -> Result<(Bytes, Option<Bytes>)> {
    let raw = node::Rendezvous::decode(bytes).map_err(|e| invalid("not a rendezvous").caused_by(e))?;
    Ok((raw.rendezvous, (!raw.sealed.is_empty()).then_some(raw.sealed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Audience, DeviceBox, Publish, SendPosition};
    use crate::id::{ConversationId, MessageId};
    use crate::wire::close;

    fn route(n: u8) -> Route {
        let device = DeviceAddress {
            user: UserId::from_bytes([n; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([n; 16]),
        };
        Route { device, gateway: GatewayId(u64::MAX), epoch: 7 }
    }

    #[test]
    fn a_command_reads_back() {
        let (alice, bob) = (route(1).device, route(2).device);
        let number = SendPosition {
            conversation: ConversationId::direct(alice.user, bob.user),
            message_id: MessageId::from_bytes([9; 16]),
            client_seq: 1,
            prev: MessageId::NIL,
            incarnation: 0,
            generation: 3,
        };
        let publish = Publish {
            number,
            first: true,
            audience: vec![Audience { user: bob.user, list_version: 2 }],
            body: vec![1; 100].into(),
            boxes: vec![DeviceBox { installation: bob.installation, data: vec![2; 10].into() }],
            sent_at: 5,
        };
        let recipient =
            RecipientDevices { user: bob.user, list_version: 2, installations: vec![bob.installation] };
        for (operation, verdict) in [
            (Operation::Publish(publish), Some(Refusal::Mismatch(vec![bob.user]))),
            (Operation::Skip(number), None),
        ] {
            let command = Command {
                sender: alice,
                operation,
                recipients: vec![recipient.clone()],
                verdict,
                reply: Some(route(1)),
            };
            assert_eq!(decode_command(encode_command(&command).into()), Ok(command));
        }
        assert!(decode_command(Bytes::from_static(b"\xff")).is_err());
    }

    #[test]
    fn session_deliveries_read_back() {
        let refused = ServerFrame::Refused(Subject::Opening, Refusal::Quota);
        let deliveries = vec![
            (route(1), vec![Event::Answer(refused), Event::Lagged]),
            (route(2), vec![Event::Closed(close::REPLACED)]),
        ];
        assert_eq!(decode_deliveries(encode_deliveries(&deliveries).into()), Ok(deliveries));
        let routes = vec![route(1), route(2)];
        assert_eq!(decode_not_here(encode_not_here(&routes).into()), Ok(routes));
    }
}
