//! Frames that a device sends.

use bytes::Bytes;
use prost::Message as _;

use super::{
    ClientFrame, FirstPrekeys, GroupReceipt, Hello, OneTimePrekey, PrekeyUpload, Registration, Renewal,
    Request,
};
use crate::codec::device_list::{list_from_proto, list_to_proto};
use crate::codec::publish::{
    check_generation, publish_from_proto, publish_to_proto, skip_from_proto, skip_to_proto,
};
use crate::codec::{MAX_NUMBER, at_most, invalid};
use crate::model::client_frame::HistoryRange;
use crate::model::contact::ContactChange;
use crate::model::envelope::AckUpTo;
use crate::model::error::Result;
use crate::model::group::LinkProof;
use crate::model::id::{ConversationId, DeviceId, Handle, InstallationId, Seq, StoreEpoch, UserId};
use crate::model::limits::{
    MAX_DEVICES, MAX_FRAME, MAX_RECEIPT_USERS, MAX_WATCHED, PAGE_ROWS, UPLOAD_PREKEYS,
};
use crate::model::presence::PresenceAudience;
use crate::model::report::{MAX_NOTE, MAX_REPORTED, Report, ReportedMessage};
use crate::model::signing::HelloClaims;
use crate::proto;

impl ClientFrame {
    /// Reads one frame and checks every id and size in it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if it is no frame or breaks a rule of the wire.
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
            Frame::Skip(skip) => Self::Skip(skip_from_proto(&skip)?),
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
            Frame::Request(request) if request.id == 0 => return Err(invalid("a request id must not be 0")),
            Frame::Request(request) => match request.body {
                Some(body) => Self::Request(request.id, request_from_proto(body)?),
                None => Self::Unknown(Some(request.id)),
            },
            Frame::Read(read) => Self::Read(ack_from_proto(&read.conversation, read.seq)?),
            Frame::GroupReceipt(receipt) => {
                at_most(receipt.users.len(), MAX_RECEIPT_USERS, "too many users of a receipt")?;
                Self::GroupReceipt(GroupReceipt {
                    conversation: ConversationId::parse(&receipt.conversation)?,
                    delivered: receipt.delivered.min(MAX_NUMBER),
                    read: receipt.read.min(MAX_NUMBER),
                    to: receipt.users.iter().map(|user| UserId::parse(user)).collect::<Result<_>>()?,
                })
            }
            Frame::OpenConversation(open) => {
                let id = (!open.conversation.is_empty()).then(|| ConversationId::parse(&open.conversation));
                Self::OpenConversation(id.transpose()?)
            }
            Frame::Typing(typing) => Self::Typing(ConversationId::parse(&typing.conversation)?),
            Frame::Watch(watch) => {
                at_most(watch.users.len(), MAX_WATCHED, "too many users to watch")?;
                Self::Watch(watch.users.iter().map(|u| UserId::parse(u)).collect::<Result<_>>()?)
            }
            Frame::Renew(renew) => {
                at_most(renew.token.len(), 3000, "the token is too large")?;
                Self::Renew(Box::new(Renewal { token: renew.token, signature: renew.signature }))
            }
        })
    }

    /// Returns the encoded frame.
    pub fn encode(&self) -> Bytes {
        use proto::client_frame::Frame;
        let frame = match self {
            Self::Hello(hello) => Frame::Hello(hello_to_proto(hello)),
            Self::Register(registration) => Frame::Register(registration_to_proto(registration)),
            Self::Publish(publish) => Frame::Publish(publish_to_proto(publish)),
            Self::Skip(number) => Frame::Skip(skip_to_proto(number)),
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
            Self::GroupReceipt(receipt) => Frame::GroupReceipt(proto::GroupReceipt {
                conversation: receipt.conversation.to_bytes(),
                delivered: receipt.delivered,
                read: receipt.read,
                users: receipt.to.iter().map(|user| user.to_bytes()).collect(),
            }),
            Self::OpenConversation(conversation) => Frame::OpenConversation(proto::OpenConversation {
                conversation: conversation.map(ConversationId::to_bytes).unwrap_or_default(),
            }),
            Self::Typing(conversation) => {
                Frame::Typing(proto::Typing { conversation: conversation.to_bytes() })
            }
            Self::Renew(renewal) => Frame::Renew(proto::Renew {
                token: renewal.token.clone(),
                signature: renewal.signature.clone(),
            }),
            Self::Watch(users) => {
                Frame::Watch(proto::Watch { users: users.iter().map(|u| u.to_bytes()).collect() })
            }
            Self::Unknown(_) => return Bytes::new(),
        };
        proto::ClientFrame { frame: Some(frame) }.encode_to_vec().into()
    }
}

fn ack_from_proto(conversation: &[u8], seq: Seq) -> Result<AckUpTo> {
    if seq == 0 || seq > MAX_NUMBER {
        return Err(invalid("a seq must be 1 to 2^53-1"));
    }
    Ok(AckUpTo { conversation: ConversationId::parse(conversation)?, seq })
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
        at_most(link.offer.len(), 3072, "the offer is too large")?;
        return Ok(Registration::Link { rendezvous: link.rendezvous, offer: link.offer });
    }
    let handle = Handle::new(&raw.handle)?;
    let list = match raw.list {
        Some(list) => list_from_proto(list)?,
        None if raw.replace => return Ok(Registration::Lookup { token: raw.token, handle }),
        None => return Err(invalid("a registration must carry a device list")),
    };
    let prekeys = first_from_proto(raw.prekeys)?;
    Ok(Registration::Account { token: raw.token, handle, list, replace: raw.replace, prekeys })
}

fn registration_to_proto(registration: &Registration) -> proto::Register {
    match registration {
        Registration::Account { token, handle, list, replace, prekeys } => proto::Register {
            token: token.clone(),
            handle: handle.as_str().to_owned(),
            list: Some(list_to_proto(list)),
            replace: *replace,
            link: None,
            prekeys: prekeys.iter().map(first_to_proto).collect(),
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

fn first_from_proto(raw: Vec<proto::FirstPrekeys>) -> Result<Vec<FirstPrekeys>> {
    at_most(raw.len(), MAX_DEVICES, "too many devices")?;
    let one = |raw: proto::FirstPrekeys| {
        check_signed(&raw.signed)?;
        let installation = InstallationId::parse(&raw.installation)?;
        Ok(FirstPrekeys { installation, signed: raw.signed, signature: raw.signature })
    };
    raw.into_iter().map(one).collect()
}

fn first_to_proto(first: &FirstPrekeys) -> proto::FirstPrekeys {
    proto::FirstPrekeys {
        installation: first.installation.to_bytes(),
        signed: first.signed.clone(),
        signature: first.signature.clone(),
    }
}

fn check_signed(signed: &[u8]) -> Result<()> {
    at_most(signed.len(), 8192, "the signed prekeys are too large")
}

fn upload_from_proto(raw: proto::Prekeys) -> Result<PrekeyUpload> {
    check_signed(&raw.signed)?;
    at_most(raw.one_time.len(), UPLOAD_PREKEYS, "too many prekeys in one upload")?;
    let mut one_time = Vec::with_capacity(raw.one_time.len());
    let mut last = 0;
    if raw.uploaded_through > MAX_NUMBER {
        return Err(invalid("a prekey id must be below 2^53"));
    }
    for key in raw.one_time {
        at_most(key.data.len(), 4096, "a prekey is too large")?;
        if key.id <= last || key.id > raw.uploaded_through {
            return Err(invalid("prekey ids must rise and not exceed uploaded_through"));
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

pub(super) fn audience_from_proto(raw: i32) -> Option<PresenceAudience> {
    u8::try_from(raw).ok().and_then(PresenceAudience::from_number)
}

pub(super) const fn audience_to_proto(audience: PresenceAudience) -> proto::PresenceAudience {
    match audience {
        PresenceAudience::Contacts => proto::PresenceAudience::Contacts,
        PresenceAudience::Nobody => proto::PresenceAudience::Nobody,
        PresenceAudience::All => proto::PresenceAudience::All,
    }
}

fn change_from_proto(raw: proto::ContactChange) -> Result<ContactChange> {
    match raw {
        proto::ContactChange::Accept => Ok(ContactChange::Accept),
        proto::ContactChange::Block => Ok(ContactChange::Block),
        proto::ContactChange::Unblock => Ok(ContactChange::Unblock),
        proto::ContactChange::Unspecified => Err(invalid("an unknown change of a contact")),
    }
}

const fn change_to_proto(change: ContactChange) -> proto::ContactChange {
    match change {
        ContactChange::Accept => proto::ContactChange::Accept,
        ContactChange::Block => proto::ContactChange::Block,
        ContactChange::Unblock => proto::ContactChange::Unblock,
    }
}

fn report_from_proto(raw: proto::Report) -> Result<Report> {
    at_most(raw.messages.len(), MAX_REPORTED, "too many messages in one report")?;
    at_most(raw.note.len(), MAX_NOTE, "the note is too large")?;
    if raw.messages.is_empty() {
        return Err(invalid("a report names a message"));
    }
    let message = |raw: &proto::ReportedMessage| {
        if raw.seq == 0 || raw.seq >= MAX_NUMBER {
            return Err(invalid("a seq must be 1 to 2^53-2"));
        }
        let body_key = raw.body_key.as_ref().try_into().map_err(|_| invalid("a body key has 32 bytes"))?;
        Ok(ReportedMessage { seq: raw.seq, body_key })
    };
    Ok(Report {
        conversation: ConversationId::parse(&raw.conversation)?,
        user: UserId::parse(&raw.user)?,
        messages: raw.messages.iter().map(message).collect::<Result<_>>()?,
        note: raw.note,
    })
}

fn report_to_proto(report: &Report) -> proto::Report {
    let message = |one: &ReportedMessage| proto::ReportedMessage {
        seq: one.seq,
        body_key: Bytes::copy_from_slice(&one.body_key),
    };
    proto::Report {
        conversation: report.conversation.to_bytes(),
        user: report.user.to_bytes(),
        messages: report.messages.iter().map(message).collect(),
        note: report.note.clone(),
    }
}

fn request_from_proto(raw: proto::request::Body) -> Result<Request> {
    use proto::request::Body as Raw;
    Ok(match raw {
        Raw::Resolve(resolve) => Request::Resolve(Handle::new(&resolve.handle)?),
        Raw::FetchLists(fetch) => {
            at_most(fetch.users.len(), 64, "too many users in one request")?;
            Request::Lists(fetch.users.iter().map(|u| UserId::parse(u)).collect::<Result<_>>()?)
        }
        Raw::FetchListVersion(fetch) => {
            Request::ListVersion(UserId::parse(&fetch.user)?, fetch.version.min(MAX_NUMBER))
        }
        Raw::PutList(put) => {
            let list = put.list.ok_or_else(|| invalid("the request must carry a device list"))?;
            Request::PutList(list_from_proto(list)?, first_from_proto(put.prekeys)?)
        }
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
                range: match fetch.after {
                    Some(after) => HistoryRange::After(after.min(MAX_NUMBER)),
                    None => HistoryRange::Before(fetch.before.min(MAX_NUMBER)),
                },
                limit: fetch.limit,
            }
        }
        Raw::FetchRoster(fetch) => {
            let proof = (!fetch.proof.is_empty()).then(|| LinkProof::parse(&fetch.proof)).transpose()?;
            Request::Roster(ConversationId::parse(&fetch.conversation)?, proof)
        }
        Raw::Subscribe(subscribe) => Request::Subscribe(
            ConversationId::parse(&subscribe.conversation)?,
            LinkProof::parse(&subscribe.proof)?,
        ),
        Raw::Unsubscribe(unsubscribe) => {
            Request::Unsubscribe(ConversationId::parse(&unsubscribe.conversation)?)
        }
        Raw::ClearHistory(clear) => Request::ClearHistory {
            conversation: ConversationId::parse(&clear.conversation)?,
            through: clear.through.min(MAX_NUMBER),
        },
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
        Raw::ChangeContact(change) => {
            Request::ChangeContact(UserId::parse(&change.user)?, change_from_proto(change.change())?)
        }
        Raw::FetchContacts(_) => Request::Contacts,
        Raw::SetPresenceAudience(set) => Request::SetPresenceAudience(
            audience_from_proto(set.audience).ok_or(invalid("an unknown audience of the presence"))?,
        ),
        Raw::Report(report) => Request::Report(report_from_proto(report)?),
        Raw::DeleteAccount(deletion) => Request::DeleteAccount(deletion.signature),
    })
}

fn request_to_proto(request: &Request) -> proto::request::Body {
    use proto::request::Body as Raw;
    match request {
        Request::Resolve(handle) => Raw::Resolve(proto::Resolve { handle: handle.as_str().to_owned() }),
        Request::Lists(users) => {
            Raw::FetchLists(proto::FetchLists { users: users.iter().map(|u| u.to_bytes()).collect() })
        }
        Request::ListVersion(user, version) => {
            Raw::FetchListVersion(proto::FetchListVersion { user: user.to_bytes(), version: *version })
        }
        Request::PutList(list, prekeys) => Raw::PutList(proto::PutList {
            list: Some(list_to_proto(list)),
            prekeys: prekeys.iter().map(first_to_proto).collect(),
        }),
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
        Request::History { conversation, range, limit } => {
            let (before, after) = match range {
                HistoryRange::Before(before) => (*before, None),
                HistoryRange::After(after) => (0, Some(*after)),
            };
            let conversation = conversation.to_bytes();
            Raw::History(proto::FetchHistory { conversation, before, limit: *limit, after })
        }
        Request::Subscribe(channel, proof) => {
            Raw::Subscribe(proto::Subscribe { conversation: channel.to_bytes(), proof: proof.to_bytes() })
        }
        Request::Unsubscribe(channel) => {
            Raw::Unsubscribe(proto::Unsubscribe { conversation: channel.to_bytes() })
        }
        Request::Roster(conversation, proof) => Raw::FetchRoster(proto::FetchRoster {
            conversation: conversation.to_bytes(),
            proof: proof.as_ref().map(LinkProof::to_bytes).unwrap_or_default(),
        }),
        Request::ClearHistory { conversation, through } => Raw::ClearHistory(proto::ClearHistory {
            conversation: conversation.to_bytes(),
            through: *through,
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
        Request::ChangeContact(user, change) => Raw::ChangeContact(proto::ChangeContact {
            user: user.to_bytes(),
            change: change_to_proto(*change) as i32,
        }),
        Request::Contacts => Raw::FetchContacts(proto::FetchContacts {}),
        Request::SetPresenceAudience(audience) => Raw::SetPresenceAudience(proto::SetPresenceAudience {
            audience: audience_to_proto(*audience).into(),
        }),
        Request::Report(report) => Raw::Report(report_to_proto(report)),
        Request::DeleteAccount(signature) => {
            Raw::DeleteAccount(proto::DeleteAccount { signature: signature.clone() })
        }
    }
}
