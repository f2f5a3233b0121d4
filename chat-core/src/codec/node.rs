//! Encoding of the commands in the log and of the events for sessions of another gateway.
//! `chat-core/proto/chat/v1/node.proto` documents every field.

use bytes::Bytes;
use prost::Message as _;

use super::outcome::{refused_from_proto, refused_to_proto, stored_from_proto, stored_to_proto};
use super::publish::{publish_from_proto, publish_to_proto, skip_from_proto, skip_to_proto};
use super::{at_most, decode_row, encode_row, invalid, optional_user};
use crate::backend::{
    Command, Deliveries, FeedChange, FeedDelivery, GatewayId, Operation, RecipientDevices, Route, Rules,
    Subscription,
};
use crate::model::close_reason::CloseReason;
use crate::model::envelope::{Refusal, Subject};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::group::LinkProof;
use crate::model::id::{ConversationId, DeviceAddress, DeviceId, InstallationId, Seq, UserId};
use crate::model::limits::MAX_FRAME;
use crate::model::session_event::{Hint, SessionEvent};
use crate::proto::{self, client_frame, node, server_frame};

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

/// Encodes a command for the log.
pub fn encode_command(command: &Command) -> Vec<u8> {
    let frame = |frame| proto::ClientFrame { frame: Some(frame) }.encode_to_vec().into();
    let (frame, subscription) = match &command.operation {
        Operation::Publish(publish) => (frame(client_frame::Frame::Publish(publish_to_proto(publish))), None),
        Operation::Skip(number) => (frame(client_frame::Frame::Skip(skip_to_proto(number))), None),
        Operation::Subscribe(subscription) => (Bytes::new(), Some(subscription_to_proto(subscription))),
    };
    let verdict = command.verdict.as_ref().map(|verdict| {
        server_frame(server_frame::Frame::Refused(refused_to_proto(&Subject::Opening, verdict)))
    });
    let recipients = command.recipients.iter().map(|recipient| node::RecipientDevices {
        user: recipient.user.to_bytes(),
        list_version: recipient.list_version,
        installations: recipient.installations.iter().map(|one| one.to_bytes()).collect(),
    });
    node::Command {
        frame,
        subscription,
        removed: command.removed.iter().copied().map(device_to_proto).collect(),
        sender: Some(device_to_proto(command.sender)),
        recipients: recipients.collect(),
        verdict: verdict.unwrap_or_default(),
        reply: command.reply.as_ref().map(route_to_proto),
        rules: command.rules.0,
        full: command.full.iter().map(|device| device.to_bytes()).collect(),
        withheld: command.withheld.iter().map(|user| user.to_bytes()).collect(),
        strangers: command.strangers.iter().map(|user| user.to_bytes()).collect(),
        feed_devices: command.feed_devices,
    }
    .encode_to_vec()
}

/// Reads what [`encode_command`] wrote.
///
/// # Errors
/// `Unsupported` if the command asks for rules of a later release. `Invalid` if the bytes are anything else; every
/// reader of the same bytes gets the same error.
pub fn decode_command(bytes: Bytes) -> Result<Command> {
    let raw = node::Command::decode(bytes).map_err(|e| invalid("not a command").caused_by(e))?;
    if Rules(raw.rules) > Rules::CURRENT {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a command asks for the rules of a later release: run that release",
        ));
    }
    let operation = match raw.subscription {
        Some(subscription) => Operation::Subscribe(subscription_from_proto(&subscription)?),
        None => operation_from_frame(raw.frame)?,
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
        rules: Rules(raw.rules),
        full: raw.full.iter().map(|device| InstallationId::parse(device)).collect::<Result<_>>()?,
        withheld: raw.withheld.iter().map(|user| UserId::parse(user)).collect::<Result<_>>()?,
        removed: raw.removed.into_iter().map(|one| device_from_proto(Some(one))).collect::<Result<_>>()?,
        strangers: raw.strangers.iter().map(|user| UserId::parse(user)).collect::<Result<_>>()?,
        feed_devices: raw.feed_devices,
    })
}

fn operation_from_frame(frame: Bytes) -> Result<Operation> {
    at_most(frame.len(), MAX_FRAME, "the frame is too large")?;
    let frame = proto::ClientFrame::decode(frame).map_err(|e| invalid("not a frame").caused_by(e))?;
    match frame.frame {
        Some(client_frame::Frame::Publish(publish)) => Ok(Operation::Publish(publish_from_proto(publish)?)),
        Some(client_frame::Frame::Skip(skip)) => Ok(Operation::Skip(skip_from_proto(&skip)?)),
        _ => Err(invalid("a command is neither a publish nor a skip")),
    }
}

fn subscription_to_proto(subscription: &Subscription) -> node::Subscription {
    node::Subscription {
        channel: subscription.channel.to_bytes(),
        begins: subscription.begins,
        proof: subscription.proof.as_ref().map(LinkProof::to_bytes).unwrap_or_default(),
    }
}

fn subscription_from_proto(raw: &node::Subscription) -> Result<Subscription> {
    Ok(Subscription {
        channel: ConversationId::parse(&raw.channel)?,
        begins: raw.begins,
        proof: (!raw.proof.is_empty()).then(|| LinkProof::parse(&raw.proof)).transpose()?,
    })
}

fn verdict(bytes: Bytes) -> Result<Refusal> {
    match parse_server_frame(bytes)? {
        server_frame::Frame::Refused(refused) => Ok(refused_from_proto(refused)?.1),
        _ => Err(invalid("a verdict must be a Refused frame")),
    }
}

fn server_frame(frame: server_frame::Frame) -> Bytes {
    proto::ServerFrame { frame: Some(frame) }.encode_to_vec().into()
}

fn parse_server_frame(bytes: Bytes) -> Result<server_frame::Frame> {
    let raw = proto::ServerFrame::decode(bytes).map_err(|e| invalid("not a frame").caused_by(e))?;
    raw.frame.ok_or_else(|| invalid("a frame holds nothing"))
}

/// Encodes a hint as the frame that its device gets.
pub(crate) fn hint_to_proto(hint: &Hint) -> server_frame::Frame {
    use server_frame::Frame;
    match hint {
        Hint::Receipt { conversation, user, delivered, read } => Frame::Receipt(proto::Receipt {
            conversation: conversation.to_bytes(),
            user: user.to_bytes(),
            delivered: *delivered,
            read: *read,
        }),
        Hint::Typing(conversation, user) => {
            Frame::Typing(proto::TypingFrom { conversation: conversation.to_bytes(), user: user.to_bytes() })
        }
        Hint::ListChanged(user, version) => {
            Frame::ListChanged(proto::ListChanged { user: user.to_bytes(), version: *version })
        }
        Hint::PrekeysLow(left) => Frame::PrekeysLow(proto::PrekeysLow { left: *left }),
        Hint::ContactsChanged(version) => {
            Frame::ContactsChanged(proto::ContactsChanged { version: *version })
        }
        Hint::ReadRequested(conversation, asker) => Frame::ReadRequested(proto::ReadRequested {
            conversation: conversation.to_bytes(),
            user: asker.map(UserId::to_bytes).unwrap_or_default(),
        }),
    }
}

/// Reads a hint from its frame; `None` if the frame is no hint.
pub(crate) fn hint_from_proto(frame: &server_frame::Frame) -> Result<Option<Hint>> {
    use server_frame::Frame;
    Ok(Some(match frame {
        Frame::Receipt(r) => Hint::Receipt {
            conversation: ConversationId::parse(&r.conversation)?,
            user: UserId::parse(&r.user)?,
            delivered: r.delivered,
            read: r.read,
        },
        Frame::Typing(t) => Hint::Typing(ConversationId::parse(&t.conversation)?, UserId::parse(&t.user)?),
        Frame::ListChanged(changed) => Hint::ListChanged(UserId::parse(&changed.user)?, changed.version),
        Frame::PrekeysLow(low) => Hint::PrekeysLow(low.left),
        Frame::ContactsChanged(changed) => Hint::ContactsChanged(changed.version),
        Frame::ReadRequested(asked) => {
            Hint::ReadRequested(ConversationId::parse(&asked.conversation)?, optional_user(&asked.user)?)
        }
        _ => return Ok(None),
    }))
}

fn event_to_proto(event: &SessionEvent) -> node::Event {
    use node::event::Event as Raw;
    use server_frame::Frame;
    let raw = match event {
        SessionEvent::Row(row) => Raw::Row(encode_row(row).into()),
        SessionEvent::Own(stored, time_us) => {
            let stored = server_frame(Frame::Stored(stored_to_proto(stored)));
            Raw::Own(node::Own { stored, time_us: *time_us })
        }
        SessionEvent::Repeated(stored) => Raw::Answer(server_frame(Frame::Stored(stored_to_proto(stored)))),
        SessionEvent::Refused(subject, refusal) => {
            Raw::Answer(server_frame(Frame::Refused(refused_to_proto(subject, refusal))))
        }
        SessionEvent::Hint(hint) => Raw::Ephemeral(server_frame(hint_to_proto(hint))),
        SessionEvent::Closed(reason) => Raw::Closed(u32::from(reason.code())),
        SessionEvent::Lagged => Raw::Lagged(true),
    };
    node::Event { event: Some(raw) }
}

fn event_from_proto(raw: node::Event) -> Result<SessionEvent> {
    use node::event::Event as Raw;
    use server_frame::Frame;
    Ok(match raw.event.ok_or_else(|| invalid("an event has no content"))? {
        Raw::Row(row) => SessionEvent::Row(decode_row(row)?),
        Raw::Own(own) => match parse_server_frame(own.stored)? {
            Frame::Stored(stored) => SessionEvent::Own(stored_from_proto(&stored)?, own.time_us),
            _ => return Err(invalid("an own event must hold a Stored frame")),
        },
        Raw::Answer(frame) => match parse_server_frame(frame)? {
            Frame::Stored(stored) => SessionEvent::Repeated(stored_from_proto(&stored)?),
            Frame::Refused(refused) => {
                let (subject, refusal) = refused_from_proto(refused)?;
                SessionEvent::Refused(subject, refusal)
            }
            _ => return Err(invalid("not an outcome of a publish")),
        },
        Raw::Ephemeral(frame) => {
            let hint = hint_from_proto(&parse_server_frame(frame)?)?;
            SessionEvent::Hint(hint.ok_or_else(|| invalid("not a hint"))?)
        }
        Raw::Closed(code) => {
            let code = u16::try_from(code).map_err(|_| invalid("not a close code"))?;
            SessionEvent::Closed(CloseReason::from_code(code))
        }
        Raw::Lagged(_) => SessionEvent::Lagged,
    })
}

/// Encodes events for sessions of another gateway, for the node link.
pub fn encode_deliveries(deliveries: &Deliveries) -> Vec<u8> {
    let sessions = deliveries.sessions.iter().map(|(route, events)| node::Delivery {
        route: Some(route_to_proto(route)),
        events: events.iter().map(event_to_proto).collect(),
    });
    let feeds = deliveries.feeds.iter().map(|feed| node::FeedDelivery {
        conversation: feed.conversation.to_bytes(),
        rows: feed.rows.iter().map(|row| encode_row(row).into()).collect(),
        lagged: feed.is_lagged,
        changes: feed.changes.iter().map(feed_change_to_proto).collect(),
        named: feed.named.iter().map(named_row_to_proto).collect(),
        changed_before: feed.changed_before,
        changed_after: feed.changed_after,
    });
    node::SessionDeliveries { deliveries: sessions.collect(), feeds: feeds.collect() }.encode_to_vec()
}

fn feed_change_to_proto(change: &FeedChange) -> node::FeedChange {
    node::FeedChange { installation: change.device.to_bytes(), seq: change.seq, joins: change.joins }
}

fn named_row_to_proto((seq, device): &(Seq, InstallationId)) -> node::NamedRow {
    node::NamedRow { seq: *seq, installation: device.to_bytes() }
}

fn feed_from_proto(raw: node::FeedDelivery) -> Result<FeedDelivery> {
    let change = |raw: node::FeedChange| {
        let device = InstallationId::parse(&raw.installation)?;
        Ok(FeedChange { device, seq: raw.seq, joins: raw.joins })
    };
    let named = |raw: node::NamedRow| Ok((raw.seq, InstallationId::parse(&raw.installation)?));
    Ok(FeedDelivery {
        conversation: ConversationId::parse(&raw.conversation)?,
        rows: raw.rows.into_iter().map(decode_row).collect::<Result<_>>()?,
        is_lagged: raw.lagged,
        changed_before: raw.changed_before,
        changed_after: raw.changed_after,
        changes: raw.changes.into_iter().map(change).collect::<Result<_>>()?,
        named: raw.named.into_iter().map(named).collect::<Result<_>>()?,
    })
}

/// Decodes deliveries written by [`encode_deliveries`].
///
/// # Errors
/// `Invalid` if the bytes are not session deliveries.
pub fn decode_deliveries(bytes: Bytes) -> Result<Deliveries> {
    let raw = node::SessionDeliveries::decode(bytes)
        .map_err(|e| invalid("not a list of deliveries").caused_by(e))?;
    let sessions = raw.deliveries.into_iter().map(|delivery| {
        let route = delivery.route.ok_or_else(|| invalid("a delivery has no route"))?;
        let events = delivery.events.into_iter().map(event_from_proto);
        Ok((route_from_proto(route)?, events.collect::<Result<_>>()?))
    });
    Ok(Deliveries {
        sessions: sessions.collect::<Result<_>>()?,
        feeds: raw.feeds.into_iter().map(feed_from_proto).collect::<Result<_>>()?,
    })
}

/// Encodes the routes of connections that no longer exist.
pub fn encode_not_here(routes: &[Route]) -> Vec<u8> {
    node::NotHere { routes: routes.iter().map(route_to_proto).collect() }.encode_to_vec()
}

/// Decodes routes written by [`encode_not_here`].
///
/// # Errors
/// `Invalid` if the bytes are not a list of routes.
pub fn decode_not_here(bytes: Bytes) -> Result<Vec<Route>> {
    let raw = node::NotHere::decode(bytes).map_err(|e| invalid("not a list of routes").caused_by(e))?;
    raw.routes.into_iter().map(route_from_proto).collect()
}

/// Encodes a request for the offer of a device that waits to be linked or, with `sealed`, the answer to it.
pub fn encode_rendezvous(rendezvous: &Bytes, sealed: Option<&Bytes>) -> Vec<u8> {
    let sealed = sealed.cloned().unwrap_or_default();
    node::Rendezvous { rendezvous: rendezvous.clone(), sealed }.encode_to_vec()
}

/// Decodes a message written by [`encode_rendezvous`].
///
/// # Errors
/// `Invalid` if the bytes are not a rendezvous.
pub fn decode_rendezvous(bytes: Bytes) -> Result<(Bytes, Option<Bytes>)> {
    let raw = node::Rendezvous::decode(bytes).map_err(|e| invalid("not a rendezvous").caused_by(e))?;
    Ok((raw.rendezvous, (!raw.sealed.is_empty()).then_some(raw.sealed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::envelope::{
        Audience, DeviceBox, EmptyReason, InboxRow, Publish, RowContent, SendPosition,
    };
    use crate::model::id::{ConversationId, MessageId};

    fn route(n: u8) -> Route {
        let device = DeviceAddress {
            user: UserId::from_bytes([n; 16]),
            device: DeviceId::PRIMARY,
            installation: InstallationId::from_bytes([n; 16]),
        };
        Route { device, gateway: GatewayId(u64::MAX), epoch: 7 }
    }

    #[test]
    fn command_round_trips() {
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
            excluded: Vec::new(),
            sent_at: 5,
            options: crate::model::message_options::MessageOptions::default(),
            group: None,
        };
        let recipient =
            RecipientDevices { user: bob.user, list_version: 2, installations: vec![bob.installation] };
        for (operation, verdict) in [
            (Operation::Publish(publish), Some(Refusal::Mismatch(vec![bob.user]))),
            (Operation::Skip(number), None),
        ] {
            let command = Command::new(alice, operation, vec![recipient.clone()], Rules::CURRENT);
            let command = Command { verdict, reply: Some(route(1)), ..command };
            assert_eq!(decode_command(encode_command(&command).into()), Ok(command.clone()));
            let later = Command { rules: Rules(Rules::CURRENT.0 + 1), ..command };
            let refused = decode_command(encode_command(&later).into()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
        }
        assert!(decode_command(Bytes::from_static(b"\xff")).is_err());
    }

    #[test]
    fn session_deliveries_round_trip() {
        let (alice, bob) = (route(1).device, route(2).device);
        let conversation = ConversationId::direct(alice.user, bob.user);
        let refused = SessionEvent::Refused(
            Subject::Message(conversation, MessageId::from_bytes([9; 16]), 4, 1),
            Refusal::Expected(3),
        );
        let hints = [
            Hint::Receipt { conversation, user: bob.user, delivered: 4, read: 2 },
            Hint::Typing(conversation, bob.user),
            Hint::ListChanged(bob.user, 7),
            Hint::PrekeysLow(3),
        ];
        let sessions = vec![
            (route(1), vec![refused, SessionEvent::Lagged]),
            (route(1), hints.map(SessionEvent::Hint).to_vec()),
            (route(2), vec![SessionEvent::Closed(CloseReason::Replaced)]),
        ];
        let content = RowContent::Empty { reason: EmptyReason::Skip, from: 4 };
        let feed = FeedDelivery {
            rows: vec![InboxRow { conversation, seq: 4, time_us: 9, joined: false, content }],
            changed_after: 4,
            changes: vec![FeedChange { device: bob.installation, seq: 4, joins: true }],
            named: vec![(4, bob.installation)],
            ..FeedDelivery::new(conversation, 2)
        };
        let deliveries = Deliveries { sessions, feeds: vec![feed, FeedDelivery::lagged(conversation)] };
        assert_eq!(decode_deliveries(encode_deliveries(&deliveries).into()), Ok(deliveries));
        let routes = vec![route(1), route(2)];
        assert_eq!(decode_not_here(encode_not_here(&routes).into()), Ok(routes));
    }
}
