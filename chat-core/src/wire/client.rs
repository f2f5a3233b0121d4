//! What a device sends.

use bytes::Bytes;
use prost::Message as _;

use super::row::{audience_from_proto, audience_to_proto, prev_from_proto, prev_to_proto};
use super::{at_most, invalid, list_from_proto, list_to_proto, proto};
use crate::device_list::SignedDeviceList;
use crate::envelope::{AckUpTo, DeviceBox, Publish, SendPosition};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{
    ConversationId, DeviceId, Handle, Incarnation, InstallationId, MessageId, Seq, StoreEpoch, UserId,
};
use crate::limits::{
    MAX_BODY, MAX_BOX, MAX_BOXES, MAX_DEVICES, MAX_FRAME, MAX_WATCHED, PAGE_ROWS, UPLOAD_PREKEYS,
};
use crate::signing::HelloClaims;

/// Opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What is signed; the nonce in it is the one the server sent.
    pub claims: HelloClaims,
    /// The store epoch of the device's cursors, if it has any.
    pub store_epoch: Option<StoreEpoch>,
    /// Ed25519 by the device key over [`HelloClaims::transcript`].
    pub signature: Bytes,
}

/// Opens an account, or waits to be linked to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// A new account.
    Account {
        /// The token; may be empty under open registration.
        token: String,
        /// The name people type.
        handle: Handle,
        /// Version 1 of the new account's list; or the version after the one in force, by the new account
        /// key.
        list: SignedDeviceList,
        /// Replace an account whose keys are lost.
        replace: bool,
    },
    /// Asks for the list in force of an account whose keys are lost.
    Lookup {
        /// The token.
        token: String,
        /// The name people type.
        handle: Handle,
    },
    /// A device that waits to be linked.
    Link {
        /// From its code.
        rendezvous: Bytes,
        /// Its public keys, opaque here.
        offer: Bytes,
    },
}

/// One one-time prekey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimePrekey {
    /// Rising.
    pub id: u64,
    /// Opaque.
    pub data: Bytes,
}

/// Prekeys of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrekeyUpload {
    /// Opaque, signed by the device key.
    pub signed: Bytes,
    /// That signature.
    pub signature: Bytes,
    /// One-time prekeys with rising ids.
    pub one_time: Vec<OneTimePrekey>,
    /// The highest id in this and all earlier uploads.
    pub uploaded_through: u64,
    /// Drop the one-time prekeys that were there.
    pub replace: bool,
}

/// A question of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Which user a handle means.
    Resolve(Handle),
    /// The device lists of users.
    Lists(Vec<UserId>),
    /// A new version of the own list.
    PutList(SignedDeviceList),
    /// Prekeys.
    Upload(PrekeyUpload),
    /// Bundles of devices of a user.
    Claim(UserId, Vec<InstallationId>),
    /// A page of a conversation: rows below `before` (0: from the newest), at most `limit`.
    History {
        /// The conversation.
        conversation: ConversationId,
        /// Rows below this seq; 0: from the newest.
        before: Seq,
        /// At most this many.
        limit: u32,
    },
    /// Where this device stands in all its conversations.
    Cursors,
    /// A new incarnation.
    Reincarnate {
        /// The one it replaces.
        from: Incarnation,
        /// The same nonce gets the same answer.
        nonce: [u8; 16],
        /// The user asked for it.
        asked: bool,
    },
    /// The offer of a device that waits to be linked.
    Offer(Bytes),
    /// The answer to it.
    LinkAnswer(Bytes, Bytes),
    /// How far the others have a conversation.
    Delivered(ConversationId),
}

/// A frame from a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientFrame {
    /// Opens a session.
    Hello(Box<Hello>),
    /// Opens an account.
    Register(Box<Registration>),
    /// A message.
    Publish(Publish),
    /// Uses up a number.
    Skip(SendPosition),
    /// What is durably on the device.
    Ack {
        /// One for each conversation.
        acks: Vec<AckUpTo>,
        /// The epoch of the cursors.
        store_epoch: StoreEpoch,
        /// The generation of the local store.
        generation: u64,
    },
    /// Still there.
    Heartbeat,
    /// Everything unacknowledged again.
    CatchUp,
    /// A question with its id.
    Request(u64, Request),
    /// How far this user has read.
    Read(AckUpTo),
    /// This user is writing.
    Typing(ConversationId),
    /// Whose presence to report.
    Watch(Vec<UserId>),
    /// A frame of a later version, with the id of its request if it has one.
    Unknown(Option<u64>),
}

impl ClientFrame {
    /// Reads one frame and checks every id and size in it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it is no frame or breaks a rule of the wire.
    pub fn parse(bytes: Bytes, nonce: &Bytes) -> Result<Self> {
        at_most(bytes.len(), MAX_FRAME, "the frame is too large")?;
        let raw = proto::ClientFrame::decode(bytes).map_err(|e| invalid("not a frame").caused_by(e))?;
        use proto::client_frame::Frame;
        let Some(frame) = raw.frame else {
            return Ok(Self::Unknown(None));
        };
        Ok(match frame {
            Frame::Hello(hello) => Self::Hello(Box::new(hello_from_proto(hello, nonce)?)),
            Frame::Register(register) => Self::Register(Box::new(registration_from_proto(register)?)),
            Frame::Publish(publish) => Self::Publish(publish_from_proto(publish)?),
            Frame::Skip(skip) => Self::Skip(number_from_proto(
                &skip.conversation,
                &skip.message_id,
                skip.client_seq,
                &skip.prev,
                skip.incarnation,
                skip.generation,
            )?),
            Frame::Ack(ack) => {
                at_most(ack.acks.len(), 4096, "too many acks in a frame")?;
                check_generation(ack.generation)?;
                let acks = ack.acks.iter().map(|a| ack_from_proto(&a.conversation, a.seq));
                Self::Ack {
                    acks: acks.collect::<Result<_>>()?,
                    store_epoch: StoreEpoch::parse(&ack.store_epoch)?,
                    generation: ack.generation,
                }
            }
            Frame::Heartbeat(_) => Self::Heartbeat,
            Frame::CatchUp(_) => Self::CatchUp,
            Frame::Request(request) if request.id == 0 => return Err(invalid("a request has an id above 0")),
            Frame::Request(request) => match request.body {
                Some(body) => Self::Request(request.id, request_from_proto(body)?),
                None => Self::Unknown(Some(request.id)),
            },
            Frame::Read(read) => Self::Read(ack_from_proto(&read.conversation, read.seq)?),
            Frame::Typing(typing) => Self::Typing(ConversationId::parse(&typing.conversation)?),
            Frame::Watch(watch) => {
                at_most(watch.users.len(), MAX_WATCHED, "too many users to watch")?;
                Self::Watch(watch.users.iter().map(|u| UserId::parse(u)).collect::<Result<_>>()?)
            }
        })
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Bytes {
        use proto::client_frame::Frame;
        let frame = match self {
            Self::Hello(hello) => Frame::Hello(hello_to_proto(hello)),
            Self::Register(registration) => Frame::Register(registration_to_proto(registration)),
            Self::Publish(publish) => Frame::Publish(publish_to_proto(publish)),
            Self::Skip(n) => Frame::Skip(proto::Skip {
                conversation: n.conversation.to_bytes(),
                message_id: n.message_id.to_bytes(),
                client_seq: n.client_seq,
                prev: prev_to_proto(n.prev),
                incarnation: n.incarnation,
                generation: n.generation,
            }),
            Self::Ack { acks, store_epoch, generation } => Frame::Ack(proto::Ack {
                acks: acks
                    .iter()
                    .map(|a| proto::AckUpTo { conversation: a.conversation.to_bytes(), seq: a.seq })
                    .collect(),
                store_epoch: store_epoch.to_bytes(),
                generation: *generation,
            }),
            Self::Heartbeat => Frame::Heartbeat(proto::Heartbeat {}),
            Self::CatchUp => Frame::CatchUp(proto::CatchUp {}),
            Self::Request(id, request) => {
                Frame::Request(proto::Request { id: *id, body: Some(request_to_proto(request)) })
            }
            Self::Read(read) => {
                Frame::Read(proto::Read { conversation: read.conversation.to_bytes(), seq: read.seq })
            }
            Self::Typing(conversation) => {
                Frame::Typing(proto::Typing { conversation: conversation.to_bytes() })
            }
            Self::Watch(users) => {
                Frame::Watch(proto::Watch { users: users.iter().map(|u| u.to_bytes()).collect() })
            }
            Self::Unknown(_) => return Bytes::new(),
        };
        proto::ClientFrame { frame: Some(frame) }.encode_to_vec().into()
    }
}

fn ack_from_proto(conversation: &[u8], seq: Seq) -> Result<AckUpTo> {
    if seq == 0 || seq > u64::MAX / 2 {
        return Err(invalid("a seq is above 0"));
    }
    Ok(AckUpTo { conversation: ConversationId::parse(conversation)?, seq })
}

/// A generation that leaves room to rise, in stores that count in signed numbers, too.
fn check_generation(generation: u64) -> Result<()> {
    if generation > u64::MAX / 2 { Err(invalid("a generation is below 2^63")) } else { Ok(()) }
}

fn hello_from_proto(raw: proto::Hello, nonce: &Bytes) -> Result<Hello> {
    check_generation(raw.generation)?;
    at_most(raw.token.len(), 3000, "the token is too large")?;
    at_most(raw.authority.len(), 300, "the authority is too large")?;
    let store_epoch =
        if raw.store_epoch.is_empty() { None } else { Some(StoreEpoch::parse(&raw.store_epoch)?) };
    Ok(Hello {
        claims: HelloClaims {
            authority: raw.authority,
            nonce: nonce.clone(),
            version: raw.version,
            token: raw.token,
            user: UserId::parse(&raw.user)?,
            device: DeviceId::new(raw.device)?,
            incarnation: raw.incarnation,
            generation: raw.generation,
        },
        store_epoch,
        signature: raw.signature,
    })
}

fn hello_to_proto(hello: &Hello) -> proto::Hello {
    let claims = &hello.claims;
    proto::Hello {
        version: claims.version,
        token: claims.token.clone(),
        user: claims.user.to_bytes(),
        device: u32::from(claims.device.get()),
        signature: hello.signature.clone(),
        incarnation: claims.incarnation,
        generation: claims.generation,
        store_epoch: hello.store_epoch.map_or_else(Bytes::new, StoreEpoch::to_bytes),
        authority: claims.authority.clone(),
    }
}

fn registration_from_proto(raw: proto::Register) -> Result<Registration> {
    at_most(raw.token.len(), 3000, "the token is too large")?;
    if let Some(link) = raw.link {
        if link.rendezvous.len() != 16 {
            return Err(invalid("a rendezvous has 16 bytes"));
        }
        at_most(link.offer.len(), 1024, "the offer is too large")?;
        return Ok(Registration::Link { rendezvous: link.rendezvous, offer: link.offer });
    }
    let handle = Handle::new(&raw.handle)?;
    let list = match raw.list {
        Some(list) => list_from_proto(list)?,
        None if raw.replace => return Ok(Registration::Lookup { token: raw.token, handle }),
        None => return Err(invalid("a registration brings a device list")),
    };
    Ok(Registration::Account { token: raw.token, handle, list, replace: raw.replace })
}

fn registration_to_proto(registration: &Registration) -> proto::Register {
    match registration {
        Registration::Account { token, handle, list, replace } => proto::Register {
            token: token.clone(),
            handle: handle.as_str().to_owned(),
            list: Some(list_to_proto(list)),
            replace: *replace,
            link: None,
        },
        Registration::Lookup { token, handle } => proto::Register {
            token: token.clone(),
            handle: handle.as_str().to_owned(),
            replace: true,
            ..Default::default()
        },
        Registration::Link { rendezvous, offer } => proto::Register {
            link: Some(proto::LinkOffer { rendezvous: rendezvous.clone(), offer: offer.clone() }),
            ..Default::default()
        },
    }
}

fn number_from_proto(
    conversation: &[u8],
    message_id: &[u8],
    client_seq: u64,
    prev: &[u8],
    incarnation: u32,
    generation: u64,
) -> Result<SendPosition> {
    if client_seq == 0 || client_seq > u64::MAX / 2 {
        return Err(invalid("a client_seq is 1 or more"));
    }
    check_generation(generation)?;
    let conversation = ConversationId::parse(conversation)?;
    conversation.kind()?;
    let message_id = MessageId::parse(message_id)?;
    if message_id == MessageId::NIL {
        return Err(invalid("a message id is not nil"));
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

fn publish_from_proto(raw: proto::Publish) -> Result<Publish> {
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
    if audience.is_empty() {
        return Err(invalid("an audience is not empty"));
    }
    Ok(Publish { number, first: raw.first, audience, body: raw.body, boxes, sent_at: raw.sent_at })
}

fn publish_to_proto(publish: &Publish) -> proto::Publish {
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
    }
}

fn upload_from_proto(raw: proto::Prekeys) -> Result<PrekeyUpload> {
    at_most(raw.signed.len(), 8192, "the signed prekeys are too large")?;
    at_most(raw.one_time.len(), UPLOAD_PREKEYS, "too many prekeys in one upload")?;
    let mut one_time = Vec::with_capacity(raw.one_time.len());
    let mut last = 0;
    for key in raw.one_time {
        at_most(key.data.len(), 4096, "a prekey is too large")?;
        if key.id <= last || key.id > raw.uploaded_through {
            return Err(invalid("prekey ids rise and end at uploaded_through"));
        }
        last = key.id;
        one_time.push(OneTimePrekey { id: key.id, data: key.data });
    }
    Ok(PrekeyUpload {
        signed: raw.signed,
        signature: raw.signature,
        one_time,
        uploaded_through: raw.uploaded_through,
        replace: raw.replace,
    })
}

fn request_from_proto(raw: proto::request::Body) -> Result<Request> {
    use proto::request::Body as Raw;
    Ok(match raw {
        Raw::Resolve(resolve) => Request::Resolve(Handle::new(&resolve.handle)?),
        Raw::FetchLists(fetch) => {
            at_most(fetch.users.len(), 64, "too many users in one request")?;
            Request::Lists(fetch.users.iter().map(|u| UserId::parse(u)).collect::<Result<_>>()?)
        }
        Raw::PutList(list) => Request::PutList(list_from_proto(list)?),
        Raw::Upload(upload) => Request::Upload(upload_from_proto(upload)?),
        Raw::Claim(claim) => {
            at_most(claim.installations.len(), MAX_DEVICES, "too many installations in one request")?;
            let installations = claim.installations.iter().map(|i| InstallationId::parse(i));
            Request::Claim(UserId::parse(&claim.user)?, installations.collect::<Result<_>>()?)
        }
        Raw::History(fetch) => {
            if fetch.limit == 0 || fetch.limit as usize > PAGE_ROWS {
                return Err(invalid("a history page has 1 to 200 rows"));
            }
            Request::History {
                conversation: ConversationId::parse(&fetch.conversation)?,
                before: fetch.before,
                limit: fetch.limit,
            }
        }
        Raw::Cursors(_) => Request::Cursors,
        Raw::Reincarnate(r) => Request::Reincarnate {
            from: r.from,
            nonce: r.nonce.as_ref().try_into().map_err(|_| invalid("a nonce has 16 bytes"))?,
            asked: r.asked,
        },
        Raw::FetchOffer(fetch) => Request::Offer(fetch.rendezvous),
        Raw::LinkAnswer(answer) => {
            at_most(answer.answer.len(), 8192, "the answer is too large")?;
            Request::LinkAnswer(answer.rendezvous, answer.answer)
        }
        Raw::Delivered(fetch) => Request::Delivered(ConversationId::parse(&fetch.conversation)?),
    })
}

fn request_to_proto(request: &Request) -> proto::request::Body {
    use proto::request::Body as Raw;
    match request {
        Request::Resolve(handle) => Raw::Resolve(proto::Resolve { handle: handle.as_str().to_owned() }),
        Request::Lists(users) => {
            Raw::FetchLists(proto::FetchLists { users: users.iter().map(|u| u.to_bytes()).collect() })
        }
        Request::PutList(list) => Raw::PutList(list_to_proto(list)),
        Request::Upload(upload) => Raw::Upload(proto::Prekeys {
            signed: upload.signed.clone(),
            signature: upload.signature.clone(),
            one_time: upload
                .one_time
                .iter()
                .map(|k| proto::OneTimePrekey { id: k.id, data: k.data.clone() })
                .collect(),
            uploaded_through: upload.uploaded_through,
            replace: upload.replace,
        }),
        Request::Claim(user, installations) => Raw::Claim(proto::Claim {
            user: user.to_bytes(),
            installations: installations.iter().map(|i| i.to_bytes()).collect(),
        }),
        Request::History { conversation, before, limit } => Raw::History(proto::FetchHistory {
            conversation: conversation.to_bytes(),
            before: *before,
            limit: *limit,
        }),
        Request::Cursors => Raw::Cursors(proto::FetchCells {}),
        Request::Reincarnate { from, nonce, asked } => Raw::Reincarnate(proto::Reincarnate {
            from: *from,
            nonce: Bytes::copy_from_slice(nonce),
            asked: *asked,
        }),
        Request::Offer(rendezvous) => Raw::FetchOffer(proto::FetchOffer { rendezvous: rendezvous.clone() }),
        Request::LinkAnswer(rendezvous, answer) => {
            Raw::LinkAnswer(proto::LinkAnswer { rendezvous: rendezvous.clone(), answer: answer.clone() })
        }
        Request::Delivered(conversation) => {
            Raw::Delivered(proto::FetchDelivered { conversation: conversation.to_bytes() })
        }
    }
}

impl From<prost::DecodeError> for Error {
    fn from(error: prost::DecodeError) -> Self {
        Self::new(ErrorKind::Invalid, "not protobuf").caused_by(error)
    }
}
