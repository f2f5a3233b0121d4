//! A client that sends exactly the bytes that a test passes to it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chat_core::device_list::{DeviceEntry, DeviceList, SignedDeviceList};
use chat_core::envelope::{Audience, Publish, SendPosition};
use chat_core::signing::HelloClaims;
use chat_core::suite::SuiteKey;
use chat_core::wire::{ClientFrame, Hello, Registration, ServerFrame, Welcome};
use chat_core::{ConversationId, DeviceAddress, DeviceId, Handle, InstallationId, MessageId, UserId};
use ed25519_dalek::{Signer, SigningKey};

/// A valid upgrade request for `/v1`.
pub const UPGRADE: &str = "GET /v1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A TCP connection that sends and receives raw bytes.
#[derive(Debug)]
pub struct RawClient {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// The result of one read from the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Frame(Vec<u8>),
    Pong,
    Closed(u16),
    /// The stream ended without a close frame.
    Gone,
    /// Nothing arrived before the timeout.
    Silence,
}

/// Encodes one masked WebSocket frame. `first` is its first byte: the flags and the opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut out = vec![first];
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | n as u8),
        n @ 126..=65535 => {
            out.push(0x80 | 126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
    out
}

impl RawClient {
    pub fn connect(port: u16) -> Self {
        Self::try_connect(port).unwrap()
    }

    /// Connects like a proxy that forwards a client's address. Returns `None` if the upgrade is refused.
    pub fn open_forwarded(port: u16, client: &str) -> Option<Self> {
        let mut raw = Self::try_connect(port)?;
        let header = format!("\r\nX-Forwarded-For: {client}\r\n\r\n");
        raw.write(UPGRADE.replace("\r\n\r\n", &header).as_bytes());
        raw.head().starts_with("HTTP/1.1 101").then_some(raw)
    }

    /// Connects; returns `None` if the server does not accept the connection.
    pub fn try_connect(port: u16) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { stream, buffer: Vec::new() })
    }

    /// Connects and completes the WebSocket upgrade.
    pub fn open(port: u16) -> Self {
        let mut raw = Self::connect(port);
        raw.write(UPGRADE.as_bytes());
        assert!(raw.head().starts_with("HTTP/1.1 101"));
        raw
    }

    /// Writes bytes and ignores errors, because the server may close the connection first.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    fn fill(&mut self, until: Instant) -> Option<usize> {
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        self.stream.set_read_timeout(Some(left)).unwrap();
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                Some(n)
            }
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                None
            }
            Err(_) => Some(0),
        }
    }

    /// Reads the head of an HTTP response. At the end of the stream or after 15 s, returns the bytes read so
    /// far.
    pub fn head(&mut self) -> String {
        let until = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            match self.fill(until) {
                Some(0) | None => return String::from_utf8_lossy(&self.buffer).into_owned(),
                Some(_) => {}
            }
        }
    }

    /// Returns the next frame from the server, or why there is none.
    pub fn receive(&mut self, within: Duration) -> Received {
        let until = Instant::now() + within;
        loop {
            if let Some((said, used)) = parse(&self.buffer) {
                self.buffer.drain(..used);
                return said;
            }
            match self.fill(until) {
                Some(0) => return Received::Gone,
                Some(_) => {}
                None => return Received::Silence,
            }
        }
    }

    /// Returns the code of the close frame, or 0 if the stream ends without one. Skips the frames before it.
    pub fn close_code(&mut self) -> u16 {
        loop {
            match self.receive(Duration::from_secs(20)) {
                Received::Closed(code) => return code,
                Received::Gone => return 0,
                Received::Silence => panic!("the connection stays open"),
                _ => {}
            }
        }
    }

    /// Sends a protocol frame.
    pub fn send(&mut self, what: &ClientFrame) {
        self.write(&frame(0x82, &what.encode()));
    }

    /// Returns the next protocol frame.
    pub fn take(&mut self) -> ServerFrame {
        loop {
            match self.receive(Duration::from_secs(10)) {
                Received::Frame(bytes) => return ServerFrame::parse(bytes.into()).unwrap(),
                Received::Pong => {}
                other => panic!("{other:?} instead of a frame"),
            }
        }
    }
}

fn parse(buffer: &[u8]) -> Option<(Received, usize)> {
    let (first, second) = (*buffer.first()?, *buffer.get(1)?);
    let (length, head) = match second {
        126 => (usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(buffer.get(2..10)?.try_into().ok()?) as usize, 10),
        n => (usize::from(n), 2),
    };
    let payload = buffer.get(head..head + length)?;
    let said = match first {
        0x82 => Received::Frame(payload.to_vec()),
        0x88 => Received::Closed(payload.get(..2).map_or(1005, |b| u16::from_be_bytes([b[0], b[1]]))),
        _ => Received::Pong,
    };
    Some((said, head + length))
}

/// A user with one device whose keys the test holds.
#[derive(Debug)]
pub struct User {
    pub device: DeviceAddress,
    pub handle: Handle,
    /// Empty where the server has open registration.
    pub token: String,
    key: SigningKey,
    list: SignedDeviceList,
}

impl User {
    pub fn new(name: &str) -> Self {
        Self::with_devices(name, 1)
    }

    /// Returns a user whose first device is the one of this client. The test holds no keys of the other devices.
    pub fn with_devices(name: &str, devices: u32) -> Self {
        let mut seed = [0; 32];
        let key = |seed: &mut [u8; 32]| {
            getrandom::fill(seed).unwrap();
            SigningKey::from_bytes(seed)
        };
        let (account, device) = (key(&mut seed), key(&mut seed));
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let public = device.verifying_key().to_bytes();
        let entries = (1..=devices).map(|number| {
            let public = if number == 1 { public } else { key(&mut seed).verifying_key().to_bytes() };
            DeviceEntry::new(DeviceId::new(number).unwrap(), public, SuiteKey::signal(public.to_vec()))
        });
        let list = DeviceList::first(UserId::from_bytes(id), 1, entries.collect());
        let encoded = list.encode();
        let signature = Bytes::copy_from_slice(&account.sign(&DeviceList::transcript(&encoded)).to_bytes());
        let list = SignedDeviceList::verify(encoded, account.verifying_key().to_bytes(), signature).unwrap();
        let address = list.list().addresses().next().unwrap();
        Self { device: address, handle: Handle::new(name).unwrap(), token: String::new(), key: device, list }
    }

    /// Returns the other devices of the user.
    pub fn other_devices(&self) -> impl Iterator<Item = InstallationId> {
        self.list.list().addresses().skip(1).map(|device| device.installation)
    }

    /// Signs with the key of the device.
    pub fn sign(&self, bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(&self.key.sign(bytes).to_bytes())
    }

    pub fn registration(&self) -> ClientFrame {
        ClientFrame::Register(Box::new(Registration::Account {
            token: self.token.clone(),
            handle: self.handle.clone(),
            list: self.list.clone(),
            replace: false,
            prekeys: Vec::new(),
        }))
    }

    /// Builds a `Hello` that answers a challenge.
    pub fn hello(&self, nonce: Bytes, generation: u64) -> ClientFrame {
        let claims = HelloClaims {
            authority: "localhost:1".into(),
            nonce,
            version: 1,
            token: self.token.clone(),
            user: self.device.user,
            device: self.device.device,
            incarnation: 0,
            generation,
        };
        let signature = Bytes::copy_from_slice(&self.key.sign(&claims.transcript()).to_bytes());
        ClientFrame::Hello(Box::new(Hello { claims, store_epoch: None, signature }))
    }

    /// Registers the user, which is idempotent, and opens a session.
    pub fn session(&self, port: u16) -> (RawClient, Welcome) {
        let mut raw = RawClient::open(port);
        let ServerFrame::Challenge(challenge) = raw.take() else { panic!() };
        raw.send(&self.registration());
        let _ = raw.take();
        raw.send(&self.hello(challenge.nonce, chat_core::limits::MAX_NUMBER / 4));
        let ServerFrame::Welcome(welcome) = raw.take() else { panic!("no welcome") };
        assert_eq!(raw.take(), ServerFrame::Deliver(Vec::new(), true));
        (raw, welcome)
    }

    /// Builds a `Publish` to the user's own conversation.
    pub fn publish(&self, client_seq: u64, id: u8, prev: u8) -> Publish {
        let id_of = |n: u8| {
            if n == 0 { MessageId::NIL } else { MessageId::from_bytes([n; 16]) }
        };
        Publish {
            number: SendPosition {
                conversation: ConversationId::own(self.device.user),
                message_id: id_of(id),
                client_seq,
                prev: id_of(prev),
                incarnation: 0,
                generation: chat_core::limits::MAX_NUMBER / 4,
            },
            first: true,
            audience: vec![Audience { user: self.device.user, list_version: 1 }],
            body: Bytes::from_static(b"body"),
            boxes: Vec::new(),
            excluded: Vec::new(),
            sent_at: 1,
            options: chat_core::message_options::MessageOptions::default(),
            group: None,
        }
    }
}

impl User {
    /// Returns a copy of this user, including its keys.
    #[must_use]
    pub fn public(&self) -> Self {
        Self {
            device: self.device,
            handle: self.handle.clone(),
            token: self.token.clone(),
            key: self.key.clone(),
            list: self.list.clone(),
        }
    }
}
