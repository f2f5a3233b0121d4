//! What the server sends.

use bytes::Bytes;
use prost::Message as _;

use super::row::{from_proto as row_from_proto, to_proto as row_to_proto};
use super::{MAX_NUMBER, at_most, invalid, list_from_proto, list_to_proto, proto};
use crate::device_list::SignedDeviceList;
use crate::envelope::{Durability, InboxCursor, InboxRow, Refusal, Stored, Subject};
use crate::error::Result;
use crate::id::{ConversationId, Handle, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId};
use crate::limits::MAX_FRAME;

/// The first frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// 32 random bytes.
    pub nonce: Bytes,
    /// Lowest version spoken.
    pub min_version: u32,
    /// Highest version spoken.
    pub max_version: u32,
}

/// Opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Which life of the data set.
    pub store_epoch: StoreEpoch,
    /// The server's clock, in milliseconds.
    pub server_time: u64,
    /// The device's store was restored or cloned.
    pub rollback: bool,
    /// The incarnation the server holds for the device.
    pub incarnation: Incarnation,
    /// One-time prekeys held for the device.
    pub prekeys: u32,
    /// The newest version of the user's own device list.
    pub list_version: u64,
}

#[cfg(test)]
impl Welcome {
    /// That of a server on which all is well, for tests.
    pub(crate) fn example() -> Self {
        Self {
            store_epoch: StoreEpoch::from_bytes([1; 16]),
            server_time: 0,
            rollback: false,
            incarnation: 0,
            prekeys: 100,
            list_version: 0,
        }
    }
}

/// A prekey bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose.
    pub installation: InstallationId,
    /// As uploaded.
    pub signed: Bytes,
    /// As uploaded.
    pub signature: Bytes,
    /// A one-time prekey nobody else gets; empty when there is none left.
    pub one_time: Bytes,
}

/// An answer to an [`Request`](super::Request): the field that the question was for is set, the rest is empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Response {
    /// To `Resolve`.
    pub user: Option<UserId>,
    /// To `Lists`.
    pub lists: Vec<SignedDeviceList>,
    /// To `Lists`: the handle of each list's user.
    pub handles: Vec<Option<Handle>>,
    /// To `Upload`.
    pub prekeys: u64,
    /// To `Claim`.
    pub bundles: Vec<Bundle>,
    /// To `History`, newest first.
    pub rows: Vec<InboxRow>,
    /// To `Cursors`.
    pub cursors: Vec<(ConversationId, InboxCursor)>,
    /// To `Reincarnate`.
    pub incarnation: Incarnation,
    /// To `Offer`.
    pub offer: Bytes,
    /// To `Delivered`.
    pub delivered: Seq,
}

/// A frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerFrame {
    /// The first frame.
    Challenge(Challenge),
    /// Answers `Hello`.
    Welcome(Welcome),
    /// Answers `Register`: the user, and the list in force where that was asked for.
    Registered(UserId, Option<Box<SignedDeviceList>>),
    /// One tick.
    Stored(Stored),
    /// What cannot be done.
    Refused(Subject, Refusal),
    /// Rows; `true` if nothing waits behind them.
    Deliver(Vec<InboxRow>, bool),
    /// Answers `Heartbeat` with the server's clock in milliseconds.
    HeartbeatReply(u64),
    /// Answers a request.
    Response(u64, Box<Response>),
    /// A watermark of a user.
    Receipt {
        /// Where.
        conversation: ConversationId,
        /// Whose.
        user: UserId,
        /// Delivered up to here; 0: not said.
        delivered: Seq,
        /// Read up to here; 0: not said.
        read: Seq,
    },
    /// Somebody is writing.
    Typing(ConversationId, UserId),
    /// Whether a user is connected.
    Presence(UserId, bool),
    /// A device list changed.
    ListChanged(UserId, u64),
    /// The answer a device that waits to be linked waits for.
    LinkAnswer(Bytes),
    /// Few one-time prekeys are left on the server.
    PrekeysLow(u32),
    /// The last frame.
    Close {
        /// As the WebSocket close code.
        code: u16,
        /// Milliseconds before the next attempt.
        retry_after: u32,
    },
    /// A frame of a later version.
    Unknown,
}

impl ServerFrame {
    /// Reads one frame and checks every id in it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if it is no frame or breaks a rule of the wire.
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
            }),
            Frame::Welcome(w) => Self::Welcome(Welcome {
                store_epoch: StoreEpoch::parse(&w.store_epoch)?,
                server_time: w.server_time.min(MAX_NUMBER),
                rollback: w.rollback,
                incarnation: w.incarnation,
                prekeys: w.prekeys,
                list_version: w.list_version,
            }),
            Frame::Registered(r) => {
                let list = r.list.map(list_from_proto).transpose()?;
                Self::Registered(UserId::parse(&r.user)?, list.map(Box::new))
            }
            Frame::Stored(stored) => Self::Stored(stored_from_proto(&stored)?),
            Frame::Refused(refused) => refused_from_proto(refused)?,
            Frame::Deliver(deliver) => {
                let rows = deliver.rows.into_iter().map(row_from_proto).collect::<Result<_>>()?;
                Self::Deliver(rows, deliver.caught_up)
            }
            Frame::HeartbeatReply(reply) => Self::HeartbeatReply(reply.server_time.min(MAX_NUMBER)),
            Frame::Response(response) => {
                Self::Response(response.id, Box::new(response_from_proto(response)?))
            }
            Frame::Receipt(r) => Self::Receipt {
                conversation: ConversationId::parse(&r.conversation)?,
                user: UserId::parse(&r.user)?,
                delivered: r.delivered,
                read: r.read,
            },
            Frame::Typing(t) => {
                Self::Typing(ConversationId::parse(&t.conversation)?, UserId::parse(&t.user)?)
            }
            Frame::Presence(p) => Self::Presence(UserId::parse(&p.user)?, p.online),
            Frame::ListChanged(changed) => Self::ListChanged(UserId::parse(&changed.user)?, changed.version),
            Frame::LinkAnswer(answer) => Self::LinkAnswer(answer.answer),
            Frame::PrekeysLow(low) => Self::PrekeysLow(low.left),
            Frame::Close(close) => Self::Close {
                code: u16::try_from(close.code).unwrap_or(super::close::PROTOCOL),
                retry_after: close.retry_after,
            },
        })
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Bytes {
        use proto::server_frame::Frame;
        let frame = match self {
            Self::Challenge(c) => Frame::Challenge(proto::Challenge {
                nonce: c.nonce.clone(),
                min_version: c.min_version,
                max_version: c.max_version,
            }),
            Self::Welcome(w) => Frame::Welcome(proto::Welcome {
                version: crate::limits::WIRE_VERSION,
                store_epoch: w.store_epoch.to_bytes(),
                server_time: w.server_time,
                rollback: w.rollback,
                incarnation: w.incarnation,
                window: crate::limits::WINDOW_ROWS as u32,
                max_publish: MAX_FRAME as u32,
                prekeys: w.prekeys,
                list_version: w.list_version,
                heartbeat: (crate::limits::HEARTBEAT_MS / 1000) as u32,
            }),
            Self::Registered(user, list) => Frame::Registered(proto::Registered {
                user: user.to_bytes(),
                list: list.as_deref().map(list_to_proto),
            }),
            Self::Stored(s) => Frame::Stored(stored_to_proto(s)),
            Self::Refused(subject, refusal) => Frame::Refused(refused_to_proto(subject, refusal)),
            Self::Deliver(rows, caught_up) => Frame::Deliver(proto::Deliver {
                rows: rows.iter().map(row_to_proto).collect(),
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
            Self::Presence(user, online) => {
                Frame::Presence(proto::PresenceOf { user: user.to_bytes(), online: *online })
            }
            Self::ListChanged(user, version) => {
                Frame::ListChanged(proto::ListChanged { user: user.to_bytes(), version: *version })
            }
            Self::LinkAnswer(answer) => {
                Frame::LinkAnswer(proto::LinkAnswer { rendezvous: Bytes::new(), answer: answer.clone() })
            }
            Self::PrekeysLow(left) => Frame::PrekeysLow(proto::PrekeysLow { left: *left }),
            Self::Close { code, retry_after } => {
                Frame::Close(proto::Close { code: u32::from(*code), retry_after: *retry_after })
            }
            Self::Unknown => return Bytes::new(),
        };
        proto::ServerFrame { frame: Some(frame) }.encode_to_vec().into()
    }
}

fn stored_to_proto(s: &Stored) -> proto::Stored {
    let durability = match s.durability {
        Durability::Fsync => proto::Durability::Fsync,
        Durability::Memory => proto::Durability::Memory,
    };
    proto::Stored {
        conversation: s.conversation.to_bytes(),
        message_id: s.message_id.to_bytes(),
        client_seq: s.client_seq,
        incarnation: s.incarnation,
        seq: s.seq,
        store_epoch: s.store_epoch.to_bytes(),
        durability: durability.into(),
    }
}

fn stored_from_proto(raw: &proto::Stored) -> Result<Stored> {
    if raw.seq > MAX_NUMBER || raw.client_seq > MAX_NUMBER {
        return Err(invalid("a message has a seq that can be counted on from"));
    }
    Ok(Stored {
        conversation: ConversationId::parse(&raw.conversation)?,
        message_id: MessageId::parse(&raw.message_id)?,
        client_seq: raw.client_seq,
        incarnation: raw.incarnation,
        seq: raw.seq,
        store_epoch: StoreEpoch::parse(&raw.store_epoch)?,
        durability: match raw.durability() {
            proto::Durability::Fsync => Durability::Fsync,
            _ => Durability::Memory,
        },
    })
}

fn refused_to_proto(subject: &Subject, refusal: &Refusal) -> proto::Refused {
    let mut raw = proto::Refused::default();
    match *subject {
        Subject::Message(conversation, message_id, client_seq, incarnation) => {
            raw.incarnation = incarnation;
            raw.conversation = conversation.to_bytes();
            raw.message_id = message_id.to_bytes();
            raw.client_seq = client_seq;
        }
        Subject::Request(id) => raw.request = id,
        Subject::Opening => {}
    }
    let reason = match refusal {
        Refusal::Retry(after) => {
            raw.retry_after = *after;
            proto::Reason::Retry
        }
        Refusal::Throttled(after) => {
            raw.retry_after = *after;
            proto::Reason::Throttled
        }
        Refusal::Expected(next) => {
            raw.expected = *next;
            proto::Reason::Expected
        }
        Refusal::Mismatch(users) => {
            raw.users = users.iter().map(|u| u.to_bytes()).collect();
            proto::Reason::Mismatch
        }
        Refusal::Conflict => proto::Reason::Conflict,
        Refusal::Superseded => proto::Reason::Superseded,
        Refusal::Denied => proto::Reason::Denied,
        Refusal::TooLarge => proto::Reason::TooLarge,
        Refusal::Quota => proto::Reason::Quota,
        Refusal::Unsupported => proto::Reason::Unsupported,
        Refusal::Invalid => proto::Reason::Invalid,
        Refusal::NotFound => proto::Reason::NotFound,
        Refusal::Taken => proto::Reason::Taken,
    };
    raw.reason = reason.into();
    raw
}

fn refused_from_proto(raw: proto::Refused) -> Result<ServerFrame> {
    let subject = if raw.request != 0 {
        Subject::Request(raw.request)
    } else if raw.message_id.is_empty() {
        Subject::Opening
    } else {
        Subject::Message(
            ConversationId::parse(&raw.conversation)?,
            MessageId::parse(&raw.message_id)?,
            raw.client_seq,
            raw.incarnation,
        )
    };
    let refusal = match raw.reason() {
        proto::Reason::Expected => Refusal::Expected(raw.expected),
        proto::Reason::Conflict => Refusal::Conflict,
        proto::Reason::Mismatch => {
            Refusal::Mismatch(raw.users.iter().map(|u| UserId::parse(u)).collect::<Result<_>>()?)
        }
        proto::Reason::Superseded => Refusal::Superseded,
        proto::Reason::Denied => Refusal::Denied,
        proto::Reason::TooLarge => Refusal::TooLarge,
        proto::Reason::Quota => Refusal::Quota,
        proto::Reason::Unsupported => Refusal::Unsupported,
        proto::Reason::Throttled => Refusal::Throttled(raw.retry_after),
        proto::Reason::Invalid => Refusal::Invalid,
        proto::Reason::NotFound => Refusal::NotFound,
        proto::Reason::Taken => Refusal::Taken,
        // A reason of a later version: nothing is known, so repeating the same ids is right.
        proto::Reason::Retry | proto::Reason::Unspecified => Refusal::Retry(raw.retry_after),
    };
    Ok(ServerFrame::Refused(subject, refusal))
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
        rows: answer.rows.iter().map(row_to_proto).collect(),
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
    }
}

fn response_from_proto(raw: proto::Response) -> Result<Response> {
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
    Ok(Response {
        user: if raw.user.is_empty() { None } else { Some(UserId::parse(&raw.user)?) },
        lists: raw.lists.into_iter().map(list_from_proto).collect::<Result<_>>()?,
        handles: raw.handles.iter().map(|h| Handle::new(h).ok()).collect(),
        prekeys: raw.prekeys,
        bundles: bundles.collect::<Result<_>>()?,
        rows: raw.rows.into_iter().map(row_from_proto).collect::<Result<_>>()?,
        cursors: cursors.collect::<Result<_>>()?,
        incarnation: raw.incarnation,
        offer: raw.offer,
        delivered: raw.delivered,
    })
}
