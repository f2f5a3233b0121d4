//! The authorization matrix: each operation that exists, by each kind of caller. A refusal has one fixed answer that does
//! not reveal if the conversation, the user or the device exists.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::time::Duration;

use bytes::Bytes;
use chat_core::contact::ContactChange;
use chat_core::envelope::{AckUpTo, Audience, DeviceBox, Publish, Refusal, SendPosition, Subject};
use chat_core::group::LinkSecret;
use chat_core::presence::PresenceAudience;
use chat_core::report::{Report, ReportedMessage};
use chat_core::wire::{ClientFrame, GroupReceipt, HistoryRange, PrekeyUpload, Request, ServerFrame};
use chat_core::{ConversationId, InstallationId, MessageId, StoreEpoch, UserId};
use chat_tests::raw_client::{RawClient, Received, User};
use chat_tests::server::Server;

/// The kinds of callers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Caller {
    /// A connection without a session.
    Anonymous,
    /// A user outside of the conversation.
    Stranger,
    /// A member of the conversation.
    Member,
}

use Caller::{Anonymous, Member, Stranger};

/// The outcome of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Outcome {
    Allowed,
    Refused(Refusal),
    /// The server ended the connection with this code.
    Closed(u16),
    /// The server answered nothing, and the session goes on.
    Ignored,
}

use Outcome::{Allowed, Closed, Ignored, Refused};

const ALICE_TEXT: MessageId = MessageId::from_bytes([1; 16]);

/// Alice and Bob have a conversation. Carol is in none with them.
struct World {
    server: Server,
    alice: User,
    bob: User,
    carol: User,
    epoch: StoreEpoch,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path());
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(User::new);
        let (_, welcome) = bob.session(server.port);
        drop(carol.session(server.port));
        let (mut raw, _) = alice.session(server.port);
        let world = Self { server, alice, bob, carol, epoch: welcome.store_epoch, _dir: dir };
        raw.send(&ClientFrame::Publish(world.publish(&world.alice, &world.bob, 1)));
        assert!(matches!(raw.take(), ServerFrame::Stored(_)));
        world
    }

    fn conversation(&self) -> ConversationId {
        ConversationId::direct(self.alice.device.user, self.bob.device.user)
    }

    fn publish(&self, from: &User, to: &User, client_seq: u64) -> Publish {
        let audience = [from, to].map(|user| Audience { user: user.device.user, list_version: 1 });
        Publish {
            number: SendPosition {
                conversation: ConversationId::direct(from.device.user, to.device.user),
                message_id: ALICE_TEXT,
                ..from.publish(client_seq, 1, 0).number
            },
            audience: audience.to_vec(),
            boxes: vec![DeviceBox { installation: to.device.installation, data: Bytes::from_static(b"box") }],
            ..from.publish(client_seq, 1, 0)
        }
    }

    /// Opens a connection of a caller.
    fn connect(&self, caller: Caller) -> RawClient {
        match caller {
            Anonymous => {
                let mut raw = RawClient::open(self.server.port);
                assert!(matches!(raw.take(), ServerFrame::Challenge(_)));
                raw
            }
            Stranger => self.session(&self.carol),
            Member => self.session(&self.bob),
        }
    }

    /// Opens a session, and reads the rows that wait.
    fn session(&self, user: &User) -> RawClient {
        let mut raw = RawClient::open(self.server.port);
        let ServerFrame::Challenge(challenge) = raw.take() else { panic!() };
        raw.send(&user.hello(challenge.nonce, chat_core::limits::MAX_NUMBER / 4));
        loop {
            if let ServerFrame::Deliver(_, true) = raw.take() {
                return raw;
            }
        }
    }

    /// Sends a frame, and returns its outcome.
    fn outcome(&self, caller: Caller, frame: &ClientFrame) -> Outcome {
        let mut raw = self.connect(caller);
        raw.send(frame);
        let is_answered =
            matches!(frame, ClientFrame::Publish(_) | ClientFrame::Skip(_) | ClientFrame::Request(..));
        if caller != Anonymous && matches!(frame, ClientFrame::Ack { .. }) {
            // Acks are applied together, once a second.
            std::thread::sleep(Duration::from_millis(1500));
        }
        if caller != Anonymous && !is_answered {
            raw.send(&ClientFrame::Heartbeat);
        }
        loop {
            match raw.receive(Duration::from_secs(10)) {
                Received::Closed(code) => return Closed(code),
                Received::Gone => return Closed(0),
                Received::Silence => panic!("no answer to {frame:?}"),
                Received::Pong => {}
                Received::Frame(bytes) => match ServerFrame::parse(bytes.into()).unwrap() {
                    ServerFrame::Response(..) | ServerFrame::Stored(_) => return Allowed,
                    ServerFrame::Refused(Subject::Opening, _) => {}
                    ServerFrame::Refused(_, refusal) => return Refused(refusal),
                    ServerFrame::HeartbeatReply(_) => return Ignored,
                    _ => {}
                },
            }
        }
    }
}

/// Checks the outcomes of an operation for an anonymous caller, a stranger and a member.
fn row(world: &World, name: &str, frame: impl Fn(Caller) -> ClientFrame, expected: [&Outcome; 3]) -> usize {
    for (caller, expected) in [Anonymous, Stranger, Member].into_iter().zip(expected) {
        let outcome = world.outcome(caller, &frame(caller));
        assert_eq!(&outcome, expected, "{name}, {caller:?}");
    }
    expected.len()
}

#[test]
fn each_cell_of_the_matrix_has_its_outcome() {
    let world = World::new();
    // A frame before the handshake breaks the protocol.
    let unauthorized = &Closed(4400);
    let (conversation, bob) = (world.conversation(), world.bob.device);
    let request = |request: Request| move |_: Caller| ClientFrame::Request(5, request.clone());
    let denied = &Refused(Refusal::Denied);
    let missing = &Refused(Refusal::NotFound);
    let mut cells = 0;

    let history = Request::History { conversation, range: HistoryRange::Before(0), limit: 10 };
    cells += row(&world, "read history", request(history), [unauthorized, missing, &Allowed]);
    let unknown = ConversationId::own(UserId::from_bytes([9; 16]));
    let history = Request::History { conversation: unknown, range: HistoryRange::Before(0), limit: 10 };
    cells += row(
        &world,
        "read the history of no conversation",
        request(history),
        [unauthorized, missing, missing],
    );
    let delivered = request(Request::Delivered(conversation));
    cells += row(&world, "read who received", delivered, [unauthorized, missing, &Allowed]);
    let claim = Request::Claim(world.alice.device.user, vec![world.alice.device.installation]);
    cells += row(&world, "claim prekeys", request(claim), [unauthorized, &Allowed, &Allowed]);
    let resolve = request(Request::Resolve(world.alice.handle.clone()));
    cells += row(&world, "resolve a handle", resolve, [unauthorized, &Allowed, &Allowed]);
    let lists = request(Request::Lists(vec![world.alice.device.user]));
    cells += row(&world, "read device lists", lists, [unauthorized, &Allowed, &Allowed]);
    let version = request(Request::ListVersion(world.alice.device.user, 1));
    cells += row(&world, "read a version of a list", version, [unauthorized, &Allowed, &Allowed]);
    let ClientFrame::Register(registration) = world.alice.registration() else { panic!() };
    let chat_core::wire::Registration::Account { list, .. } = *registration else { panic!() };
    let put = request(Request::PutList(list, Vec::new()));
    cells += row(&world, "write the list of another user", put, [unauthorized, denied, denied]);
    let upload = PrekeyUpload {
        signed: Bytes::from_static(b"signed"),
        signature: Bytes::from(vec![7; 64]),
        one_time: Vec::new(),
        uploaded_through: 1,
        replace: false,
    };
    let upload = request(Request::Upload(upload));
    cells += row(&world, "upload prekeys of another device", upload, [unauthorized, denied, denied]);

    // A publish as a member of a conversation of others, and as another user.
    let publish = |caller: Caller| {
        let from = if caller == Member { &world.bob } else { &world.carol };
        let mut publish = world.publish(from, &world.alice, 1);
        publish.number.conversation = conversation;
        ClientFrame::Publish(publish)
    };
    cells += row(&world, "publish in the conversation", publish, [unauthorized, denied, &Allowed]);
    let skip = |caller: Caller| {
        let from = if caller == Member { &world.bob } else { &world.carol };
        let number = world.publish(from, &world.alice, 9).number;
        ClientFrame::Skip(SendPosition { conversation, ..number })
    };
    // A member's number is out of order here: the server says which one it expects.
    let expected = &Refused(Refusal::Expected(2));
    let first = &Refused(Refusal::Expected(1));
    cells += row(&world, "skip in the conversation", skip, [unauthorized, first, expected]);

    let ack = |seq| {
        move |_: Caller| ClientFrame::Ack {
            acks: vec![AckUpTo { conversation, seq }],
            store_epoch: world.epoch,
            generation: chat_core::limits::MAX_NUMBER / 4,
        }
    };
    let too_high = &Closed(4410);
    cells += row(&world, "acknowledge rows of another device", ack(1), [unauthorized, too_high, &Ignored]);
    cells += row(&world, "acknowledge rows that do not exist", ack(99), [unauthorized, too_high, too_high]);
    let read = |_: Caller| ClientFrame::Read(AckUpTo { conversation, seq: 1 });
    cells += row(&world, "send a receipt", read, [unauthorized, &Ignored, &Ignored]);
    let typing = |_: Caller| ClientFrame::Typing(conversation);
    cells += row(&world, "send a typing notification", typing, [unauthorized, &Ignored, &Ignored]);
    let receipt = |_: Caller| {
        let to = vec![world.alice.device.user];
        ClientFrame::GroupReceipt(GroupReceipt { conversation, delivered: 1, read: 1, to })
    };
    cells += row(&world, "send a receipt in a group of others", receipt, [unauthorized, &Ignored, &Ignored]);
    let open = |_: Caller| ClientFrame::OpenConversation(Some(conversation));
    cells += row(&world, "look at the conversation", open, [unauthorized, &Ignored, &Ignored]);
    let cursors = request(Request::Cursors);
    cells += row(&world, "read the own cursors", cursors, [unauthorized, &Allowed, &Allowed]);
    let clear = request(Request::ClearHistory { conversation, through: 1 });
    cells += row(&world, "clear the history of the conversation", clear, [unauthorized, missing, &Allowed]);
    let upwards = Request::History { conversation, range: HistoryRange::After(0), limit: 10 };
    cells += row(&world, "read history upwards", request(upwards), [unauthorized, missing, &Allowed]);
    // A conversation that is no channel looks like a channel of others. The tests of the engine cover those of a channel.
    let channel = ConversationId::from_bytes([0x15; 17]);
    let subscribe = |caller: Caller| {
        let from = if caller == Member { &world.bob } else { &world.carol };
        let proof = LinkSecret::from_bytes([7; 32]).prove(channel, from.device.user);
        ClientFrame::Request(5, Request::Subscribe(channel, proof))
    };
    cells += row(&world, "subscribe to a channel", subscribe, [unauthorized, missing, missing]);
    let unsubscribe = request(Request::Unsubscribe(channel));
    cells += row(&world, "end a subscription", unsubscribe, [unauthorized, missing, missing]);
    // A conversation that is no group looks like a group of others. The tests of the engine cover those of a member.
    let roster = request(Request::Roster(conversation, None));
    cells += row(&world, "read the roster of a group of others", roster, [unauthorized, missing, missing]);
    let block = request(Request::ChangeContact(world.bob.device.user, ContactChange::Unblock));
    cells +=
        row(&world, "change the own contacts", block, [unauthorized, &Allowed, &Refused(Refusal::Invalid)]);
    let audience = request(Request::SetPresenceAudience(PresenceAudience::Nobody));
    cells +=
        row(&world, "change the audience of the own presence", audience, [unauthorized, &Allowed, &Allowed]);
    let contacts = request(Request::Contacts);
    cells += row(&world, "read the own contacts", contacts, [unauthorized, &Allowed, &Allowed]);
    let messages = vec![ReportedMessage { seq: 1, body_key: [7; 32] }];
    let report = Report { conversation, user: world.alice.device.user, messages, note: String::new() };
    let report = request(Request::Report(report));
    let wrong_key = &Refused(Refusal::Invalid);
    cells += row(&world, "report a message of the conversation", report, [unauthorized, missing, wrong_key]);
    let delete = request(Request::DeleteAccount(Bytes::from(vec![7; 64])));
    cells += row(&world, "delete an account without its key", delete, [unauthorized, denied, denied]);
    println!("{cells} cells");

    // No receipt and no typing notification of a stranger reached the members.
    let mut raw = world.session(&world.alice);
    let mut stranger = world.session(&world.carol);
    stranger.send(&ClientFrame::Typing(conversation));
    stranger.send(&ClientFrame::Read(AckUpTo { conversation, seq: 1 }));
    stranger.send(&ClientFrame::Heartbeat);
    while !matches!(stranger.take(), ServerFrame::HeartbeatReply(_)) {}
    raw.send(&ClientFrame::Heartbeat);
    loop {
        match raw.take() {
            ServerFrame::HeartbeatReply(_) => break,
            ServerFrame::Typing(..) | ServerFrame::Receipt { .. } => panic!("of a stranger"),
            _ => {}
        }
    }
    assert_ne!(bob.installation, InstallationId::from_bytes([0; 16]));
}
