//! The options of a message, in publishes and rows.

use super::{at_most, invalid};
use crate::model::error::Result;
use crate::model::id::{InstallationId, MediaId, MessageId, UserId};
use crate::model::limits::{MAX_AUDIENCE, MAX_EXPIRY_MS, MAX_MEDIA, MAX_NUMBER};
use crate::model::message_options::{Deletion, MessageOptions, Urgency};
use crate::proto;

/// Returns nothing for the defaults.
pub(super) fn options_to_proto(options: &MessageOptions) -> Option<proto::MessageOptions> {
    if options.is_default() {
        return None;
    }
    let urgency = match options.urgency {
        Urgency::Normal => proto::Urgency::Normal,
        Urgency::Silent => proto::Urgency::Silent,
        Urgency::Urgent => proto::Urgency::Urgent,
    };
    Some(proto::MessageOptions {
        urgency: urgency.into(),
        wake: options.wake.iter().map(|user| user.to_bytes()).collect(),
        expires_after: options.expires_after_ms,
        media: options.media.iter().map(|id| id.to_bytes()).collect(),
        deletion: options.deletion.as_ref().map(|deletion| proto::Deletion {
            seq: deletion.seq,
            installation: deletion.installation.to_bytes(),
            message_id: deletion.message_id.to_bytes(),
            signature: deletion.signature.clone(),
        }),
    })
}

pub(super) fn options_from_proto(raw: Option<proto::MessageOptions>) -> Result<MessageOptions> {
    let Some(raw) = raw else { return Ok(MessageOptions::default()) };
    at_most(raw.wake.len(), MAX_AUDIENCE, "too many users to wake")?;
    at_most(raw.media.len(), MAX_MEDIA, "too many media")?;
    if raw.expires_after > MAX_EXPIRY_MS {
        return Err(invalid("a message must expire within 366 days"));
    }
    let urgency = match proto::Urgency::try_from(raw.urgency) {
        Ok(proto::Urgency::Silent) => Urgency::Silent,
        Ok(proto::Urgency::Urgent) => Urgency::Urgent,
        Ok(proto::Urgency::Normal) => Urgency::Normal,
        Err(_) => return Err(invalid("an unknown urgency")),
    };
    Ok(MessageOptions {
        urgency,
        wake: raw.wake.iter().map(|user| UserId::parse(user)).collect::<Result<_>>()?,
        expires_after_ms: raw.expires_after,
        media: raw.media.iter().map(|id| MediaId::parse(id)).collect::<Result<_>>()?,
        deletion: raw.deletion.map(deletion_from_proto).transpose()?.map(Box::new),
    })
}

fn deletion_from_proto(raw: proto::Deletion) -> Result<Deletion> {
    if raw.seq == 0 || raw.seq > MAX_NUMBER {
        return Err(invalid("the seq of a deleted message must be 1 to 2^53-1"));
    }
    if raw.signature.len() != 64 {
        return Err(invalid("the signature of a deletion must have 64 bytes"));
    }
    Ok(Deletion {
        seq: raw.seq,
        installation: InstallationId::parse(&raw.installation)?,
        message_id: MessageId::parse(&raw.message_id)?,
        signature: raw.signature,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> MessageOptions {
        MessageOptions {
            urgency: Urgency::Urgent,
            wake: vec![UserId::from_bytes([1; 16])],
            expires_after_ms: 5,
            media: vec![MediaId::from_bytes([2; 16])],
            deletion: Some(Box::new(Deletion {
                seq: 3,
                installation: InstallationId::from_bytes([4; 16]),
                message_id: MessageId::from_bytes([5; 16]),
                signature: vec![6; 64].into(),
            })),
        }
    }

    #[test]
    fn options_round_trip_and_defaults_take_no_bytes() {
        assert_eq!(options_from_proto(options_to_proto(&options())), Ok(options()));
        assert_eq!(options_to_proto(&MessageOptions::default()), None);
        assert_eq!(options_from_proto(None), Ok(MessageOptions::default()));
    }

    #[test]
    fn options_that_break_a_rule_are_refused() {
        let changed = |change: fn(&mut proto::MessageOptions)| {
            let mut raw = options_to_proto(&options()).unwrap();
            change(&mut raw);
            options_from_proto(Some(raw))
        };
        assert!(changed(|raw| raw.urgency = 9).is_err());
        assert!(changed(|raw| raw.wake[0] = vec![1; 15].into()).is_err());
        assert!(changed(|raw| raw.expires_after = MAX_EXPIRY_MS + 1).is_err());
        assert!(changed(|raw| raw.media = vec![raw.media[0].clone(); MAX_MEDIA + 1]).is_err());
        let deletion = |raw: &mut proto::MessageOptions| raw.deletion.take().unwrap();
        let with = |change: fn(&mut proto::Deletion)| {
            let mut raw = options_to_proto(&options()).unwrap();
            let mut changed = deletion(&mut raw);
            change(&mut changed);
            options_from_proto(Some(proto::MessageOptions { deletion: Some(changed), ..raw }))
        };
        assert!(with(|deletion| deletion.seq = 0).is_err());
        assert!(with(|deletion| deletion.seq = MAX_NUMBER + 1).is_err());
        assert!(with(|deletion| deletion.signature = vec![0; 63].into()).is_err());
    }
}
