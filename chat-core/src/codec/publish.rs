//! Publishes and skips, on the wire and in the log.

use super::message_options::{options_from_proto, options_to_proto};
use super::roster::{part_from_proto, part_to_proto};
use super::row::{audience_from_proto, audience_to_proto, prev_from_proto, prev_to_proto};
use super::{MAX_NUMBER, at_most, invalid};
use crate::model::envelope::{DeviceBox, Publish, SendPosition};
use crate::model::error::Result;
use crate::model::id::{ConversationId, InstallationId, MessageId};
use crate::model::limits::{MAX_BODY, MAX_BOX, MAX_BOXES};
use crate::proto;

/// Refuses a generation above [`MAX_NUMBER`].
pub(crate) fn check_generation(generation: u64) -> Result<()> {
    if generation > MAX_NUMBER { Err(invalid("a generation must be below 2^53")) } else { Ok(()) }
}

fn number_from_proto(
    conversation: &[u8],
    message_id: &[u8],
    client_seq: u64,
    prev: &[u8],
    incarnation: u32,
    generation: u64,
) -> Result<SendPosition> {
    if client_seq == 0 || client_seq > MAX_NUMBER {
        return Err(invalid("a client_seq must be 1 to 2^53-1"));
    }
    check_generation(generation)?;
    let conversation = ConversationId::parse(conversation)?;
    conversation.kind()?;
    let message_id = MessageId::parse(message_id)?;
    if message_id == MessageId::NIL {
        return Err(invalid("a message id must not be nil"));
    }
    Ok(SendPosition {
        conversation,
        message_id,
        client_seq,
        prev: prev_from_proto(prev)?,
        incarnation,
        generation,
    })
}

/// Reads the position that a skip uses up.
pub(crate) fn skip_from_proto(raw: &proto::Skip) -> Result<SendPosition> {
    number_from_proto(
        &raw.conversation,
        &raw.message_id,
        raw.client_seq,
        &raw.prev,
        raw.incarnation,
        raw.generation,
    )
}

pub(crate) fn skip_to_proto(n: &SendPosition) -> proto::Skip {
    proto::Skip {
        conversation: n.conversation.to_bytes(),
        message_id: n.message_id.to_bytes(),
        client_seq: n.client_seq,
        prev: prev_to_proto(n.prev),
        incarnation: n.incarnation,
        generation: n.generation,
    }
}

pub(crate) fn publish_from_proto(raw: proto::Publish) -> Result<Publish> {
    at_most(raw.body.len(), MAX_BODY, "the body is too large")?;
    at_most(raw.boxes.len(), MAX_BOXES, "too many boxes")?;
    let number = number_from_proto(
        &raw.conversation,
        &raw.message_id,
        raw.client_seq,
        &raw.prev,
        raw.incarnation,
        raw.generation,
    )?;
    let mut boxes = Vec::with_capacity(raw.boxes.len());
    for one in raw.boxes {
        at_most(one.data.len(), MAX_BOX, "a box is too large")?;
        boxes.push(DeviceBox { installation: InstallationId::parse(&one.installation)?, data: one.data });
    }
    let audience = audience_from_proto(raw.audience)?;
    let group = raw.group.map(part_from_proto).transpose()?.map(Box::new);
    if audience.is_empty() && group.is_none() {
        return Err(invalid("an audience must not be empty"));
    }
    at_most(raw.excluded.len(), MAX_BOXES, "too many excluded devices")?;
    let excluded = raw.excluded.iter().map(|device| InstallationId::parse(device)).collect::<Result<_>>()?;
    Ok(Publish {
        number,
        first: raw.first,
        audience,
        body: raw.body,
        boxes,
        excluded,
        sent_at: raw.sent_at,
        options: options_from_proto(raw.options)?,
        group,
    })
}

pub(crate) fn publish_to_proto(publish: &Publish) -> proto::Publish {
    let n = &publish.number;
    proto::Publish {
        conversation: n.conversation.to_bytes(),
        message_id: n.message_id.to_bytes(),
        client_seq: n.client_seq,
        prev: prev_to_proto(n.prev),
        incarnation: n.incarnation,
        generation: n.generation,
        first: publish.first,
        audience: audience_to_proto(&publish.audience),
        body: publish.body.clone(),
        boxes: publish
            .boxes
            .iter()
            .map(|b| proto::DeviceBox { installation: b.installation.to_bytes(), data: b.data.clone() })
            .collect(),
        sent_at: publish.sent_at,
        excluded: publish.excluded.iter().map(|device| device.to_bytes()).collect(),
        options: options_to_proto(&publish.options),
        group: publish.group.as_deref().map(part_to_proto),
    }
}
