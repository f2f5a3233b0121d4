//! Frames that the server sends.

use bytes::Bytes;
use prost::Message as _;

use super::client::{audience_from_proto, audience_to_proto};
use super::{Bundle, Challenge, CloseReason, Response, ServerFrame, Welcome};
use crate::codec::device_list::{list_from_proto, list_to_proto};
use crate::codec::outcome::{refused_from_proto, refused_to_proto, stored_from_proto, stored_to_proto};
use crate::codec::roster::{roster_from_proto, roster_to_proto};
use crate::codec::row::decode_sent_row;
use crate::codec::{MAX_NUMBER, at_most, encode_row, invalid, optional_user};
use crate::model::contact::{Contact, Contacts};
use crate::model::envelope::InboxCursor;
use crate::model::error::Result;
use crate::model::id::{ConversationId, Handle, InstallationId, StoreEpoch, UserId};
use crate::model::limits::{MAX_AUDIENCE, MAX_FRAME};
use crate::model::presence::UserPresence;
use crate::proto;

impl ServerFrame {
    /// Decodes one frame and checks every id in it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the bytes are not a frame or break a rule of the
    /// wire protocol.
    pub fn parse(bytes: Bytes) -> Result<Self> {
        at_most(bytes.len(), 4 * MAX_FRAME, "the frame is too large")?;
        let raw = proto::ServerFrame::decode(bytes).map_err(|e| invalid("not a frame").caused_by(e))?;
        use proto::server_frame::Frame;
        let Some(frame) = raw.frame else {
            return Ok(Self::Unknown);
        };
        Ok(match frame {
            Frame::Challenge(c) => Self::Challenge(Challenge {
                nonce: c.nonce,
                min_version: c.min_version,
                max_version: c.max_version,
                server_time: c.server_time.min(MAX_NUMBER),
            }),
            Frame::Welcome(w) if w.region != 0 => {
                return Err(invalid("the server has the data of another region"));
            }
            Frame::Welcome(w) => Self::Welcome(Welcome {
                store_epoch: StoreEpoch::parse(&w.store_epoch)?,
                server_time: w.server_time.min(MAX_NUMBER),
                rollback: w.rollback,
                incarnation: w.incarnation,
                prekeys: w.prekeys,
                list_version: w.list_version.min(MAX_NUMBER),
                retention_ms: w.retention_ms.min(MAX_NUMBER),
                instance: w.instance.min(MAX_NUMBER),
                contacts_version: w.contacts_version.min(MAX_NUMBER),
                token_expires_in_ms: w.token_expires_in_ms.min(MAX_NUMBER),
                rules: w.rules,
            }),
            Frame::Registered(r) => {
                let list = r.list.map(list_from_proto).transpose()?;
                Self::Registered(UserId::parse(&r.user)?, list.map(Box::new))
            }
            Frame::Stored(stored) => Self::Stored(stored_from_proto(&stored)?),
            Frame::Refused(refused) => {
                let (subject, refusal) = refused_from_proto(refused)?;
                Self::Refused(subject, refusal)
            }
            Frame::Deliver(deliver) => {
                let rows = deliver.rows.into_iter().map(decode_sent_row).collect::<Result<_>>()?;
                Self::Deliver(rows, deliver.caught_up)
            }
            Frame::HeartbeatReply(reply) => Self::HeartbeatReply(reply.server_time.min(MAX_NUMBER)),
            Frame::Response(response) => {
                Self::Response(response.id, Box::new(response_from_proto(response)?))
            }
            Frame::Receipt(r) => Self::Receipt {
                conversation: ConversationId::parse(&r.conversation)?,
                user: UserId::parse(&r.user)?,
                delivered: r.delivered.min(MAX_NUMBER),
                read: r.read.min(MAX_NUMBER),
            },
            Frame::Typing(t) => {
                Self::Typing(ConversationId::parse(&t.conversation)?, UserId::parse(&t.user)?)
            }
            Frame::Presence(p) => Self::Presence(UserId::parse(&p.user)?, presence_from_proto(&p)),
            Frame::ListChanged(changed) => {
                Self::ListChanged(UserId::parse(&changed.user)?, changed.version.min(MAX_NUMBER))
            }
            Frame::LinkOffered(proto::LinkOffered {}) => Self::LinkOffered,
            Frame::LinkAnswer(answer) => Self::LinkAnswer(answer.answer),
            Frame::PrekeysLow(low) => Self::PrekeysLow(low.left),
            Frame::ContactsChanged(changed) => Self::ContactsChanged(changed.version.min(MAX_NUMBER)),
            Frame::Renewed(renewed) => Self::Renewed(renewed.token_expires_in_ms.min(MAX_NUMBER)),
            Frame::ReadRequested(asked) => {
                let asker = optional_user(&asked.user)?;
                Self::ReadRequested(ConversationId::parse(&asked.conversation)?, asker)
            }
            Frame::Close(frame) => Self::Close {
                reason: u16::try_from(frame.code).map_or(CloseReason::Protocol, CloseReason::from_code),
                retry_after: frame.retry_after,
            },
        })
    }

    /// Returns the encoded frame.
    pub fn encode(&self) -> Bytes {
        use proto::server_frame::Frame;
        let frame = match self {
            Self::Challenge(c) => Frame::Challenge(proto::Challenge {
                nonce: c.nonce.clone(),
                min_version: c.min_version,
                max_version: c.max_version,
                server_time: c.server_time,
            }),
            Self::Welcome(w) => Frame::Welcome(proto::Welcome {
                region: 0,
                version: crate::model::limits::WIRE_VERSION,
                store_epoch: w.store_epoch.to_bytes(),
                server_time: w.server_time,
                rollback: w.rollback,
                incarnation: w.incarnation,
                window: crate::model::limits::WINDOW_ROWS as u32,
                max_publish: MAX_FRAME as u32,
                prekeys: w.prekeys,
                list_version: w.list_version,
                retention_ms: w.retention_ms,
                instance: w.instance,
                contacts_version: w.contacts_version,
                token_expires_in_ms: w.token_expires_in_ms,
                rules: w.rules,
                heartbeat: (crate::model::limits::HEARTBEAT_MS / 1000) as u32,
            }),
            Self::Registered(user, list) => Frame::Registered(proto::Registered {
                user: user.to_bytes(),
                list: list.as_deref().map(list_to_proto),
            }),
            Self::Stored(s) => Frame::Stored(stored_to_proto(s)),
            Self::Refused(subject, refusal) => Frame::Refused(refused_to_proto(subject, refusal)),
            Self::Deliver(rows, caught_up) => Frame::Deliver(proto::Deliver {
                rows: rows.iter().map(|row| encode_row(row).into()).collect(),
                caught_up: *caught_up,
            }),
            Self::HeartbeatReply(time) => Frame::HeartbeatReply(proto::HeartbeatReply { server_time: *time }),
            Self::Response(id, answer) => Frame::Response(response_to_proto(*id, answer)),
            Self::Receipt { conversation, user, delivered, read } => Frame::Receipt(proto::Receipt {
                conversation: conversation.to_bytes(),
                user: user.to_bytes(),
                delivered: *delivered,
                read: *read,
            }),
            Self::Typing(conversation, user) => Frame::Typing(proto::TypingFrom {
                conversation: conversation.to_bytes(),
                user: user.to_bytes(),
            }),
            Self::Presence(user, presence) => Frame::Presence(presence_to_proto(*user, *presence)),
            Self::ListChanged(user, version) => {
                Frame::ListChanged(proto::ListChanged { user: user.to_bytes(), version: *version })
            }
            Self::LinkOffered => Frame::LinkOffered(proto::LinkOffered {}),
            Self::LinkAnswer(answer) => {
                Frame::LinkAnswer(proto::LinkAnswer { rendezvous: Bytes::new(), answer: answer.clone() })
            }
            Self::PrekeysLow(left) => Frame::PrekeysLow(proto::PrekeysLow { left: *left }),
            Self::ContactsChanged(version) => {
                Frame::ContactsChanged(proto::ContactsChanged { version: *version })
            }
            Self::Renewed(token_expires_in_ms) => {
                Frame::Renewed(proto::Renewed { token_expires_in_ms: *token_expires_in_ms })
            }
            Self::ReadRequested(conversation, asker) => Frame::ReadRequested(proto::ReadRequested {
                conversation: conversation.to_bytes(),
                user: asker.map(UserId::to_bytes).unwrap_or_default(),
            }),
            Self::Close { reason, retry_after } => {
                let code = u32::from(reason.code());
                Frame::Close(proto::Close { code, retry_after: *retry_after })
            }
            Self::Unknown => return Bytes::new(),
        };
        proto::ServerFrame { frame: Some(frame) }.encode_to_vec().into()
    }
}

fn presence_to_proto(user: UserId, presence: UserPresence) -> proto::PresenceOf {
    let (online, last_seen_ms) = match presence {
        UserPresence::Online => (true, 0),
        UserPresence::Offline { last_seen_ms } => (false, last_seen_ms.unwrap_or(0)),
    };
    proto::PresenceOf { user: user.to_bytes(), online, last_seen_ms }
}

fn presence_from_proto(raw: &proto::PresenceOf) -> UserPresence {
    if raw.online {
        return UserPresence::Online;
    }
    UserPresence::Offline { last_seen_ms: Some(raw.last_seen_ms.min(MAX_NUMBER)).filter(|at| *at > 0) }
}

fn contact_from_proto(raw: &proto::Contact) -> Result<(UserId, Contact)> {
    Ok((UserId::parse(&raw.user)?, Contact { accepted: raw.accepted, blocked: raw.blocked }))
}

fn response_to_proto(id: u64, answer: &Response) -> proto::Response {
    proto::Response {
        id,
        user: answer.user.map_or_else(Bytes::new, UserId::to_bytes),
        lists: answer.lists.iter().map(list_to_proto).collect(),
        handles: answer
            .handles
            .iter()
            .map(|h| h.as_ref().map_or_else(String::new, |h| h.as_str().to_owned()))
            .collect(),
        prekeys: answer.prekeys,
        bundles: answer
            .bundles
            .iter()
            .map(|b| proto::Bundle {
                installation: b.installation.to_bytes(),
                signed: b.signed.clone(),
                signature: b.signature.clone(),
                one_time: b.one_time.clone(),
                uploaded_through: 0,
            })
            .collect(),
        rows: answer.rows.iter().map(|row| encode_row(row).into()).collect(),
        cursors: answer
            .cursors
            .iter()
            .map(|(c, cursor)| proto::InboxCursor {
                conversation: c.to_bytes(),
                acked: cursor.acked,
                tail: cursor.tail,
            })
            .collect(),
        incarnation: answer.incarnation,
        offer: answer.offer.clone(),
        delivered: answer.delivered,
        progress: answer
            .progress
            .iter()
            .map(|(user, delivered)| proto::MemberProgress { user: user.to_bytes(), delivered: *delivered })
            .collect(),
        inactive: answer.inactive.iter().map(|device| device.to_bytes()).collect(),
        contacts: answer
            .contacts
            .entries
            .iter()
            .map(|(user, contact)| proto::Contact {
                user: user.to_bytes(),
                accepted: contact.accepted,
                blocked: contact.blocked,
            })
            .collect(),
        contacts_version: answer.contacts.version,
        presence_audience: audience_to_proto(answer.contacts.audience).into(),
        roster: answer.roster.as_deref().map(roster_to_proto),
    }
}

fn response_from_proto(raw: proto::Response) -> Result<Response> {
    let audience = raw.presence_audience;
    let bundles = raw.bundles.into_iter().map(|b| {
        Ok(Bundle {
            installation: InstallationId::parse(&b.installation)?,
            signed: b.signed,
            signature: b.signature,
            one_time: b.one_time,
        })
    });
    let cursors = raw.cursors.into_iter().map(|c| {
        let cursor = InboxCursor { acked: c.acked.min(MAX_NUMBER), tail: c.tail.min(MAX_NUMBER) };
        Ok((ConversationId::parse(&c.conversation)?, cursor))
    });
    at_most(raw.progress.len(), MAX_AUDIENCE, "too many members in an answer")?;
    let progress = raw
        .progress
        .iter()
        .map(|member| Ok((UserId::parse(&member.user)?, member.delivered.min(MAX_NUMBER))));
    Ok(Response {
        user: optional_user(&raw.user)?,
        lists: raw.lists.into_iter().map(list_from_proto).collect::<Result<_>>()?,
        handles: raw.handles.iter().map(|h| Handle::new(h).ok()).collect(),
        prekeys: raw.prekeys,
        bundles: bundles.collect::<Result<_>>()?,
        rows: raw.rows.into_iter().map(decode_sent_row).collect::<Result<_>>()?,
        cursors: cursors.collect::<Result<_>>()?,
        incarnation: raw.incarnation,
        offer: raw.offer,
        delivered: raw.delivered.min(MAX_NUMBER),
        progress: progress.collect::<Result<_>>()?,
        inactive: raw.inactive.iter().map(|device| InstallationId::parse(device)).collect::<Result<_>>()?,
        contacts: Contacts {
            version: raw.contacts_version.min(MAX_NUMBER),
            entries: raw.contacts.iter().map(contact_from_proto).collect::<Result<_>>()?,
            audience: audience_from_proto(audience).unwrap_or_default(),
        },
        roster: raw.roster.map(roster_from_proto).transpose()?.map(Box::new),
    })
}
