//! Generated hostile input: each field of each frame of a client is replaced by hostile values. The server does not panic,
//! and a bystander is not affected. `GENERATED_INPUTS` sets the number of inputs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::time::Duration;

use bytes::Bytes;
use chat_core::contact::ContactChange;
use chat_core::envelope::{AckUpTo, Audience, DeviceBox, Publish};
use chat_core::group::LinkSecret;
use chat_core::id::MediaId;
use chat_core::message_options::{Deletion, MessageOptions, Urgency};
use chat_core::presence::PresenceAudience;
use chat_core::report::{Report, ReportedMessage};
use chat_core::wire::{
    ClientFrame, GroupReceipt, HistoryRange, OneTimePrekey, PrekeyUpload, Renewal, Request, ServerFrame,
};
use chat_core::{ConversationId, InstallationId, MessageId, StoreEpoch};
use chat_tests::TestRng;
use chat_tests::raw_client::{RawClient, Received, User, frame};
use chat_tests::server::Server;

/// A field of an encoded protobuf message.
#[derive(Clone)]
struct Field {
    /// Number and wire type.
    tag: u64,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
    /// A nested message.
    Message(Vec<Field>),
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Reads a message that has only numbers and bytes; bytes that read as a message are one.
fn read(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                match read(value).filter(|fields| !fields.is_empty()) {
                    Some(fields) => Value::Message(fields),
                    None => Value::Bytes(value.to_vec()),
                }
            }
            _ => return None,
        };
        if tag >> 3 == 0 {
            return None;
        }
        fields.push(Field { tag, value });
    }
    Some(fields)
}

fn write(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        out.extend(varint(field.tag));
        match &field.value {
            Value::Number(number) => out.extend(varint(*number)),
            Value::Bytes(bytes) => out.extend([varint(bytes.len() as u64), bytes.clone()].concat()),
            Value::Message(fields) => {
                let bytes = write(fields);
                out.extend([varint(bytes.len() as u64), bytes].concat());
            }
        }
    }
    out
}

/// Returns the paths to all fields, from the outermost message.
fn paths(fields: &[Field]) -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    for (at, field) in fields.iter().enumerate() {
        all.push(vec![at]);
        if let Value::Message(inner) = &field.value {
            all.extend(paths(inner).into_iter().map(|path| [vec![at], path].concat()));
        }
    }
    all
}

const NUMBERS: [u64; 9] =
    [0, 1, 127, 1 << 31, u32::MAX as u64, (1 << 53) - 1, 1 << 53, u64::MAX >> 1, u64::MAX];

/// Changes of a field: a value of its kind, the other kind, twice, missing, or as an unknown field.
const CHANGES: usize = NUMBERS.len() + 4;

fn change(fields: &mut Vec<Field>, path: &[usize], change: usize, rng: &mut TestRng) {
    let at = path[0];
    if let ([_, rest @ ..], Value::Message(inner)) = (path, &mut fields[at].value)
        && !rest.is_empty()
    {
        return self::change(inner, rest, change, rng);
    }
    let field = fields[at].clone();
    match change {
        0 => drop(fields.remove(at)),
        1 => fields.insert(at, field),
        2 => fields[at].tag = 5000 << 3 | (field.tag & 7),
        3 => {
            let is_number = matches!(field.value, Value::Number(_));
            fields[at].tag = field.tag >> 3 << 3 | if is_number { 2 } else { 0 };
            fields[at].value = if is_number { Value::Bytes(vec![0xff; 20]) } else { Value::Number(u64::MAX) };
        }
        n => {
            fields[at].value = match field.value {
                Value::Number(_) => Value::Number(NUMBERS[n - 4]),
                value => {
                    let bytes = match value {
                        Value::Message(inner) => write(&inner),
                        Value::Bytes(bytes) => bytes,
                        Value::Number(_) => Vec::new(),
                    };
                    Value::Bytes(hostile_bytes(bytes, n - 4, rng))
                }
            }
        }
    }
}

fn hostile_bytes(mut bytes: Vec<u8>, change: usize, rng: &mut TestRng) -> Vec<u8> {
    match change {
        0 => Vec::new(),
        1 => vec![0],
        2 => vec![0; bytes.len()],
        3 => vec![0xff; bytes.len() + 1],
        4 => bytes[..bytes.len() / 2].to_vec(),
        5 => bytes.repeat(2),
        6 => "\u{202e}\0../'; DROP TABLE".as_bytes().to_vec(),
        7 => vec![b'a'; 40_000],
        _ => {
            if let Some(byte) = bytes.len().checked_sub(1) {
                bytes[rng.below(byte as u64 + 1) as usize] ^= 1 << rng.below(8);
            }
            bytes
        }
    }
}

/// One valid frame of each kind.
fn frames(user: &User) -> Vec<ClientFrame> {
    let own = ConversationId::own(user.device.user);
    let installation = user.device.installation;
    let other = InstallationId::from_bytes([7; 16]);
    let publish = Publish {
        boxes: vec![DeviceBox { installation: other, data: Bytes::from_static(b"box") }],
        excluded: vec![other],
        audience: vec![Audience { user: user.device.user, list_version: 1 }],
        options: MessageOptions {
            urgency: Urgency::Urgent,
            wake: vec![user.device.user],
            expires_after_ms: 1000,
            media: vec![MediaId::from_bytes([5; 16])],
            deletion: Some(Box::new(Deletion {
                seq: 1,
                installation,
                message_id: MessageId::from_bytes([6; 16]),
                signature: vec![7; 64].into(),
            })),
        },
        ..user.publish(1, 1, 0)
    };
    let upload = PrekeyUpload {
        signed: Bytes::from_static(b"signed"),
        signature: Bytes::from(vec![7; 64]),
        one_time: vec![OneTimePrekey { id: 1, data: Bytes::from_static(b"key") }],
        uploaded_through: 1,
        replace: true,
    };
    let ack = AckUpTo { conversation: own, seq: 1 };
    let requests = [
        Request::Resolve(user.handle.clone()),
        Request::Lists(vec![user.device.user]),
        Request::ListVersion(user.device.user, 1),
        Request::Upload(upload),
        Request::Claim(user.device.user, vec![installation, other]),
        Request::History { conversation: own, range: HistoryRange::Before(5), limit: 10 },
        Request::History { conversation: own, range: HistoryRange::After(5), limit: 10 },
        Request::Subscribe(own, LinkSecret::from_bytes([3; 32]).prove(own, user.device.user)),
        Request::Unsubscribe(own),
        Request::ClearHistory { conversation: own, through: 1 },
        Request::Roster(own, None),
        Request::Cursors,
        Request::Offer(Bytes::from(vec![3; 16])),
        Request::LinkAnswer(Bytes::from(vec![3; 16]), Bytes::from_static(b"answer")),
        Request::Delivered(own),
        Request::Reincarnate { from: 1, nonce: [2; 16], asked: true },
        Request::ChangeContact(user.device.user, ContactChange::Block),
        Request::Contacts,
        Request::SetPresenceAudience(PresenceAudience::All),
        Request::DeleteAccount(Bytes::from(vec![7; 64])),
        Request::Report(Report {
            conversation: own,
            user: user.device.user,
            messages: vec![ReportedMessage { seq: 1, body_key: [4; 32] }],
            note: "note".to_owned(),
        }),
    ];
    let requests = requests.into_iter().map(|request| ClientFrame::Request(9, request));
    let ack_all =
        ClientFrame::Ack { acks: vec![ack], store_epoch: StoreEpoch::from_bytes([1; 16]), generation: 3 };
    [
        ClientFrame::Publish(user.publish(1, 1, 0)),
        ClientFrame::Publish(publish.clone()),
        ClientFrame::Skip(publish.number),
        ack_all,
        ClientFrame::Read(ack),
        ClientFrame::Typing(own),
        ClientFrame::OpenConversation(Some(own)),
        ClientFrame::GroupReceipt(GroupReceipt {
            conversation: own,
            delivered: 2,
            read: 1,
            to: vec![user.device.user],
        }),
        ClientFrame::Watch(vec![user.device.user]),
        ClientFrame::Renew(Box::new(Renewal { token: "token".into(), signature: vec![7; 64].into() })),
        user.registration(),
        user.hello(Bytes::from(vec![1; 32]), 5),
    ]
    .into_iter()
    .chain(requests)
    .collect()
}

/// Whether the session still answers. Frames before the answer are skipped.
fn is_alive(raw: &mut RawClient) -> bool {
    raw.send(&ClientFrame::Heartbeat);
    loop {
        match raw.receive(Duration::from_secs(10)) {
            Received::Frame(bytes) => {
                if matches!(ServerFrame::parse(bytes.into()), Ok(ServerFrame::HeartbeatReply(_))) {
                    return true;
                }
            }
            Received::Pong => {}
            Received::Closed(_) | Received::Gone => return false,
            Received::Silence => panic!("the server neither answers nor closes"),
        }
    }
}

#[test]
fn no_generated_input_affects_a_bystander() {
    let wanted: usize = std::env::var("GENERATED_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let bystander = User::new("bystander");
    let (mut bystander, _) = bystander.session(server.port);
    let before = server.resident();
    let mut rng = TestRng::new(14);
    let (mut tried, mut closed, mut round) = (0, 0, 0);
    let mut session: Option<(User, RawClient)> = None;
    while tried < wanted {
        let template = User::new(&format!("user{round}"));
        round += 1;
        let kinds = frames(&template).len();
        for kind in 0..kinds {
            let bytes = frames(&template)[kind].encode();
            let fields = read(&bytes).unwrap();
            for path in paths(&fields) {
                for one in 0..CHANGES {
                    let (user, mut raw) = session.take().unwrap_or_else(|| {
                        let user = User::new(&format!("sender{tried}"));
                        let (raw, _) = user.session(server.port);
                        (user, raw)
                    });
                    let mut fields = read(&frames(&user)[kind].encode()).unwrap_or_else(|| fields.clone());
                    if paths(&fields).contains(&path) {
                        change(&mut fields, &path, one, &mut rng);
                    }
                    // From the second round on, another field is hostile too.
                    if round > 1 {
                        let more = paths(&fields);
                        let second = more.get(rng.below(more.len().max(1) as u64) as usize).cloned();
                        if let Some(second) = second {
                            change(&mut fields, &second, rng.below(CHANGES as u64) as usize, &mut rng);
                        }
                    }
                    raw.write(&frame(0x82, &write(&fields)));
                    tried += 1;
                    if is_alive(&mut raw) {
                        session = Some((user, raw));
                    } else {
                        closed += 1;
                    }
                    if tried % 500 == 0 {
                        assert!(is_alive(&mut bystander), "the bystander is closed after {tried} inputs");
                    }
                }
            }
        }
    }
    assert!(is_alive(&mut bystander));
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    let grown = server.resident().saturating_sub(before) >> 20;
    println!(
        "{tried} generated inputs: {closed} closed their session, the others were answered; {grown} MiB more in use"
    );
    assert!(closed > 0 && closed < tried, "{closed} of {tried} closed");
    assert!(grown < 64, "{grown} MiB");
}
