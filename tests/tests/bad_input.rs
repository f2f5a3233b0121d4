//! Hostile input: each item gets the answer that `docs/wire.md` names, uses little memory, and does not
//! affect another client.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::time::Duration;

use bytes::Bytes;
use chat_core::envelope::{AckUpTo, DeviceBox, Publish, Refusal};
use chat_core::wire::{ClientFrame, ServerFrame};
use chat_core::{ConversationId, StoreEpoch};
use chat_tests::raw_client::{RawClient, Received, UPGRADE, User, frame};
use chat_tests::server::Server;

const MIB: u64 = 1024 * 1024;

/// A server, a bystander with an open session, and the number of items tried.
struct Stage {
    server: Server,
    bystander: (User, RawClient),
    tried: usize,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path());
        let user = User::new("bystander");
        let (raw, _) = user.session(server.port);
        let mut stage = Self { server, bystander: (user, raw), tried: 0, _dir: dir };
        // Warm up, so that the memory that the process needs anyway is not measured.
        for _ in 0..50 {
            drop(RawClient::open(stage.server.port));
        }
        stage.check_bystander();
        stage
    }

    fn check_bystander(&mut self) {
        self.bystander.1.send(&ClientFrame::Heartbeat);
        assert!(matches!(self.bystander.1.take(), ServerFrame::HeartbeatReply(_)));
    }

    /// Tries one item. The server must grow by less than 1 MiB and must still answer the bystander.
    fn item(&mut self, name: &str, attack: impl FnOnce(u16)) {
        let before = self.server.resident();
        attack(self.server.port);
        std::thread::sleep(Duration::from_millis(30));
        let after = self.server.resident();
        assert!(after < before + MIB, "{name}: resident memory grew by {} bytes", after - before);
        self.check_bystander();
        self.tried += 1;
    }

    fn status(&mut self, name: &str, request: &[u8], status: &str) {
        let request = request.to_vec();
        let status = status.to_owned();
        let shown = name.to_owned();
        self.item(name, move |port| {
            let mut raw = RawClient::connect(port);
            raw.write(&request);
            let head = raw.head();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{shown}: {head:?}");
        });
    }

    /// Sends a browser's request and expects that the upgrade is completed and closed with this code.
    fn refuses_browser(&mut self, name: &str, request: Vec<u8>, code: u16) {
        let shown = name.to_owned();
        self.item(name, move |port| {
            let mut raw = RawClient::connect(port);
            raw.write(&request);
            let head = raw.head();
            assert!(head.starts_with("HTTP/1.1 101"), "{shown}: {head:?}");
            assert!(matches!(raw.take(), ServerFrame::Close { .. }), "{shown}");
            assert_eq!(raw.close_code(), code, "{shown}");
        });
    }

    /// Sends bytes after the upgrade and expects this close code.
    fn closes(&mut self, name: &str, bytes: &[u8], code: u16) {
        let bytes = bytes.to_vec();
        let shown = name.to_owned();
        self.item(name, move |port| {
            let mut raw = RawClient::open(port);
            raw.write(&bytes);
            assert_eq!(raw.close_code(), code, "{shown}");
        });
    }

    /// Sends a frame in a session and expects this close code.
    fn session_closes(&mut self, name: &str, bytes: &[u8], code: u16) {
        let bytes = bytes.to_vec();
        let shown = name.to_owned();
        self.item(name, move |port| {
            let (mut raw, _) = User::new(&unique()).session(port);
            raw.write(&frame(0x82, &bytes));
            assert_eq!(raw.close_code(), code, "{shown}");
        });
    }
}

fn unique() -> String {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    format!("u{}", hex::encode(random))
}

fn with(header: &str) -> Vec<u8> {
    UPGRADE.replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n")).into_bytes()
}

fn replaced(from: &str, to: &str) -> Vec<u8> {
    assert!(UPGRADE.contains(from));
    UPGRADE.replace(from, to).into_bytes()
}

#[test]
fn handshakes() {
    let mut stage = Stage::new();
    stage.status("1 no Upgrade", &replaced("Upgrade: websocket\r\n", ""), "426");
    stage.status("2 version 7", &replaced("Version: 13", "Version: 7"), "426");
    stage.status("3 key not 16 bytes", &replaced("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), "400");
    stage.status("4 two keys", &with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), "400");
    stage.status("5 a header of 1 MiB", &with(&format!("X: {}", "x".repeat(1 << 20))), "431");
    stage.status("6 10,000 headers", &with(&"X: y\r\n".repeat(10_000)), "431");
    stage.status("6 65 headers", &with(&vec!["X: y"; 65].join("\r\n")), "431");
    stage.item("7 a byte at a time", |port| {
        let mut raw = RawClient::connect(port);
        for byte in UPGRADE.bytes().take(7) {
            raw.write(&[byte]);
            std::thread::sleep(Duration::from_millis(800));
        }
        assert!(raw.head().starts_with("HTTP/1.1 408"));
    });
    stage.status("8 bare LF", &replaced("Host: localhost\r\n", "Host: localhost\n"), "400");
    stage.status("9 NUL", &with("X: a\0b"), "400");
    let elsewhere = String::from_utf8(with("Origin: https://evil")).unwrap().replace("GET /v1 ", "GET /v2 ");
    stage.refuses_browser("10 a browser at another path", elsewhere.into_bytes(), 4404);
    stage.refuses_browser(
        "10 a foreign origin with a cookie",
        with("Origin: https://evil\r\nCookie: s=1"),
        4403,
    );
    stage.refuses_browser("11 origin null", with("Origin: null"), 4403);
    stage.refuses_browser("12 a look-alike origin", with("Origin: https://app.example.com.evil"), 4403);
    let smuggled = [UPGRADE.as_bytes(), &frame(0x82, b"x")].concat();
    stage.status("13 bytes after the request", &smuggled, "400");
    stage.status("14 two lengths", &with("Transfer-Encoding: chunked\r\nContent-Length: 5"), "400");
    stage.item("15 an offered extension is declined", |port| {
        let mut raw = RawClient::connect(port);
        raw.write(&with("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"));
        let head = raw.head();
        assert!(head.starts_with("HTTP/1.1 101") && !head.to_lowercase().contains("extensions"), "{head}");
    });
    stage.status("16 a token in the URL", &replaced("/v1", "/v1?token=secret-token"), "400");
    stage.status("17 HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505");
    assert!(!stage.server.log().contains("secret-token"));
    println!("{} handshakes", stage.tried);
}

#[test]
fn frames() {
    let mut stage = Stage::new();
    stage.closes("19 unmasked", &[0x82, 1, 0], 1002);
    stage.item("20 a mask of zeros is allowed", |port| {
        let mut raw = RawClient::open(port);
        let Received::Frame(_) = raw.receive(Duration::from_secs(5)) else { panic!() };
        let registration = User::new(&unique()).registration().encode();
        let mut bytes = vec![0x82, 0x80 | 126];
        bytes.extend((registration.len() as u16).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&registration);
        raw.write(&bytes);
        assert!(matches!(raw.take(), ServerFrame::Registered(..)));
    });
    stage.closes("21 RSV1", &frame(0xC2, b"x"), 1002);
    stage.closes("22 opcode 3", &frame(0x83, b"x"), 1002);
    stage.closes("23 a continuation of nothing", &frame(0x80, b"x"), 1002);
    stage.closes("24 a message inside of a message", &[frame(0x02, b"x"), frame(0x81, b"y")].concat(), 1003);
    stage.closes("25 a control frame of 126 bytes", &frame(0x89, &[0; 126]), 1002);
    stage.closes("26 a fragmented ping", &frame(0x09, b"x"), 1002);
    let declared = |length: u64| [&[0x82, 0xFF][..], &length.to_be_bytes(), &[0; 5]].concat();
    stage.closes("27 length 2^63", &declared(1 << 63), 1009);
    stage.closes("28 length 2^64 - 1", &declared(u64::MAX), 1009);
    stage.closes(
        "29 a length not in its shortest form",
        &[0x82, 0x80 | 126, 0, 5, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        1002,
    );
    stage.closes("30 one byte over the limit", &declared(256 * 1024 + 1), 1009);
    stage.closes("30 a handshake above 16 KiB", &declared(64 * 1024 + 1), 1009);
    stage.item("31 16 KiB declared, one byte sent", |port| {
        let mut raw = RawClient::open(port);
        raw.write(&[0x82, 0x80 | 126, 0x40, 0, 0, 0, 0, 0, 1]);
        let code = raw.close_code();
        // Without a `Hello`, the handshake timeout may close the connection first.
        assert!(matches!(code, 1008 | 4504), "{code}");
    });
    stage.closes("32 65 fragments", &[frame(0x02, b"x"), frame(0x00, b"x").repeat(64)].concat(), 1003);
    stage.closes(
        "33 empty fragments without end",
        &[frame(0x02, b""), frame(0x00, b"").repeat(1000)].concat(),
        1003,
    );
    stage.closes("34 fragments of a byte, never the last", &frame(0x02, b"x").repeat(100), 1003);
    for pieces in [4, 60] {
        stage.item("34 a publish in fragments, with pings between them, is stored", move |port| {
            let user = User::new(&unique());
            let (mut session, _) = user.session(port);
            let body = vec![7; 64 * 1024].into();
            let bytes = ClientFrame::Publish(Publish { body, ..user.publish(1, 1, 0) }).encode();
            let pieces: Vec<&[u8]> = bytes.chunks(bytes.len() / pieces + 1).collect();
            for (at, piece) in pieces.iter().enumerate() {
                let opcode = if at == 0 { 0x02 } else { 0x00 };
                let last = if at + 1 == pieces.len() { 0x80 } else { 0 };
                session.write(&frame(opcode | last, piece));
                if at < 5 {
                    session.write(&frame(0x89, b"between"));
                }
            }
            assert!(matches!(session.take(), ServerFrame::Stored(stored) if stored.seq == 1));
        });
    }
    let publish = |port| {
        let user = User::with_devices(&unique(), 3);
        let (mut session, _) = user.session(port);
        let data = Bytes::from(vec![8; 68 * 1024]);
        let boxes =
            user.other_devices().map(|installation| DeviceBox { installation, data: data.clone() }).collect();
        let body = vec![7; 64 * 1024].into();
        let bytes = ClientFrame::Publish(Publish { body, boxes, ..user.publish(1, 1, 0) }).encode();
        assert!(bytes.len() >= 200 * 1024, "{} bytes", bytes.len());
        let pieces: Vec<&[u8]> = bytes.chunks(64 * 1024).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let opcode = if at == 0 { 0x02 } else { 0x00 };
            let last = if at + 1 == pieces.len() { 0x80 } else { 0 };
            session.write(&frame(opcode | last, piece));
        }
        assert!(matches!(session.take(), ServerFrame::Stored(stored) if stored.seq == 1));
    };
    // The store allocates its tables for the first message of this size.
    publish(stage.server.port);
    stage.item("34 a publish of 200 KiB in fragments of 64 KiB is stored", publish);
    for (name, bytes, code) in [
        ("34 65 fragments in a session", [frame(0x02, b"x"), frame(0x00, b"x").repeat(64)].concat(), 1008),
        ("34 a message inside of a message", [frame(0x02, b"x"), frame(0x82, b"y")].concat(), 1002),
        (
            "34 fragments over the limit",
            frame(0x02, &[0; 60_000]).into_iter().chain(frame(0x00, &[0; 60_000]).repeat(4)).collect(),
            1009,
        ),
    ] {
        stage.item(name, move |port| {
            let (mut raw, _) = User::new(&unique()).session(port);
            raw.write(&bytes);
            assert_eq!(raw.close_code(), code, "{name}");
        });
    }
    stage.closes("35 text that is not UTF-8", &frame(0x81, &[0xff, 0xfe]), 1003);
    for code in [1005_u16, 999, 65535] {
        stage.closes("36 a forbidden close code", &frame(0x88, &code.to_be_bytes()), 1002);
    }
    stage.closes("37 a close frame of one byte", &frame(0x88, &[3]), 1002);
    stage.closes("38 data after the close", &[frame(0x88, &[3, 232]), frame(0x82, b"x")].concat(), 1000);
    stage.closes("39 10,000 pings", &frame(0x89, b"p").repeat(10_000), 1008);
    stage.closes("40 10,000 pongs", &frame(0x8A, b"p").repeat(10_000), 1008);
    stage.item("40 an unsolicited pong", |port| {
        let (mut raw, _) = User::new(&unique()).session(port);
        raw.write(&frame(0x8A, b"p"));
        raw.send(&ClientFrame::Heartbeat);
        assert!(matches!(raw.take(), ServerFrame::HeartbeatReply(_)));
    });
    println!("{} frames", stage.tried);
}

#[test]
fn client_that_never_reads_uses_bounded_memory() {
    let mut stage = Stage::new();
    let user = User::new(&unique());
    let (mut raw, _) = user.session(stage.server.port);
    let mut prev = 0;
    for n in 1..=100_u8 {
        let mut publish = user.publish(u64::from(n), n, prev);
        publish.body = Bytes::from(vec![n; 60_000]);
        raw.send(&ClientFrame::Publish(publish));
        prev = n;
        assert!(matches!(raw.take(), ServerFrame::Stored(_)));
    }
    let before = stage.server.resident();
    raw.stream.set_nonblocking(true).unwrap();
    let request = chat_core::wire::Request::History {
        conversation: ConversationId::own(user.device.user),
        range: chat_core::wire::HistoryRange::Before(0),
        limit: 200,
    };
    let request = frame(0x82, &ClientFrame::Request(1, request).encode());
    for _ in 0..10_000 {
        use std::io::Write;
        let _ = raw.stream.write(&request);
    }
    std::thread::sleep(Duration::from_secs(2));
    let grown = stage.server.resident().saturating_sub(before);
    println!("a client that never reads: {} KiB", grown / 1024);
    assert!(grown < 4 * MIB, "{grown} bytes");
    stage.check_bystander();
}

#[test]
fn protocol() {
    let mut stage = Stage::new();
    stage.item("42 an unknown frame", |port| {
        let (mut raw, _) = User::new(&unique()).session(port);
        raw.write(&frame(0x82, &[0xfa, 0x01, 0x00]));
        // A request with an id and a body of a later version.
        raw.write(&frame(0x82, &[0x42, 0x05, 0x08, 0x07, 0xfa, 0x01, 0x00]));
        let ServerFrame::Refused(subject, Refusal::Unsupported) = raw.take() else { panic!() };
        assert_eq!(subject, chat_core::envelope::Subject::Request(7));
        raw.send(&ClientFrame::Heartbeat);
        assert!(matches!(raw.take(), ServerFrame::HeartbeatReply(_)));
    });
    stage.session_closes("43 a truncated varint", &[0x08, 0x80], 4400);
    stage.session_closes(
        "43 a varint of 11 bytes",
        &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        4400,
    );
    stage.item("44 a field twice: the last one counts", |port| {
        let (mut raw, _) = User::new(&unique()).session(port);
        let twice = [ClientFrame::CatchUp.encode(), ClientFrame::Heartbeat.encode()].concat();
        raw.write(&frame(0x82, &twice));
        assert!(matches!(raw.take(), ServerFrame::HeartbeatReply(_)));
    });
    stage.session_closes("45 groups 10,000 deep", &[0x7b; 10_000], 4400);
    stage.session_closes("46 2^31 bytes declared", &[0x1a, 0xff, 0xff, 0xff, 0xff, 0x07], 4400);
    let user = User::new("x");
    let publish = |client_seq| ClientFrame::Publish(user.publish(client_seq, 1, 0)).encode();
    stage.session_closes("47 client_seq 2^64 - 1", &publish(u64::MAX), 4400);
    stage.session_closes("48 client_seq 0", &publish(0), 4400);
    stage.item("48 client_seq skipped, repeated, and 50 another prev", |port| {
        let user = User::new(&unique());
        let (mut raw, _) = user.session(port);
        let mut say = |publish| {
            raw.send(&ClientFrame::Publish(publish));
            raw.take()
        };
        assert!(matches!(say(user.publish(1, 1, 0)), ServerFrame::Stored(s) if s.seq == 1));
        assert!(matches!(say(user.publish(3, 3, 1)), ServerFrame::Refused(_, Refusal::Expected(2))));
        assert!(matches!(say(user.publish(1, 9, 0)), ServerFrame::Refused(_, Refusal::Conflict)));
        assert!(matches!(say(user.publish(2, 2, 7)), ServerFrame::Refused(_, Refusal::Conflict)));
        assert!(matches!(say(user.publish(1, 1, 0)), ServerFrame::Stored(s) if s.seq == 1));
        assert!(matches!(say(user.publish(2, 2, 1)), ServerFrame::Stored(s) if s.seq == 2));
    });
    stage.item("49 an ack of an undelivered row", |port| {
        let user = User::new(&unique());
        let (mut raw, welcome) = user.session(port);
        let acks = vec![AckUpTo { conversation: ConversationId::own(user.device.user), seq: 5 }];
        raw.send(&ClientFrame::Ack {
            acks,
            store_epoch: welcome.store_epoch,
            generation: chat_core::limits::MAX_NUMBER / 4,
        });
        assert_eq!(raw.close_code(), 4410);
    });
    stage.item("49 an ack of another store epoch", |port| {
        let (mut raw, _) = User::new(&unique()).session(port);
        let store_epoch = StoreEpoch::from_bytes([9; 16]);
        raw.send(&ClientFrame::Ack { acks: Vec::new(), store_epoch, generation: 0 });
        assert_eq!(raw.close_code(), 4411);
    });
    stage.item("a signature of another user", |port| {
        let (user, other) = (User::new(&unique()), User::new(&unique()));
        drop(user.session(port));
        let mut raw = RawClient::open(port);
        let ServerFrame::Challenge(challenge) = raw.take() else { panic!() };
        let ClientFrame::Hello(mut hello) = other.hello(challenge.nonce, 0) else { panic!() };
        hello.claims.user = user.device.user;
        raw.send(&ClientFrame::Hello(hello));
        assert_eq!(raw.close_code(), 4401);
    });
    stage.item("a challenge used twice", |port| {
        let user = User::new(&unique());
        drop(user.session(port));
        let mut raw = RawClient::open(port);
        let _ = raw.take();
        raw.send(&user.hello(Bytes::from_static(&[0; 32]), 0));
        assert_eq!(raw.close_code(), 4401);
    });
    stage.item("silence instead of a Hello", |port| {
        let mut raw = RawClient::open(port);
        assert_eq!(raw.close_code(), 4504);
    });
    stage.item("a frame before the Hello", |port| {
        let mut raw = RawClient::open(port);
        raw.send(&ClientFrame::Heartbeat);
        assert_eq!(raw.close_code(), 4400);
    });
    println!("{} protocol items", stage.tried);
}
