//! A device that speaks the wire protocol without encryption, for tests with load or with many devices.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use chat_core::backend::{Dialer, Transport};
use chat_core::envelope::{AckUpTo, Audience, DeviceBox, InboxRow, Publish, RowContent, SendPosition};
use chat_core::wire::{ClientFrame, ServerFrame};
use chat_core::{ConversationId, MessageId, Result, StoreEpoch};
use chat_transport::dial::WebSocketDialer;

use crate::raw_client::User;

const GENERATION: u64 = 1 << 40;
/// Size of a message body, in bytes. The first 8 bytes hold the send time, the rest is padding.
pub const BODY: usize = 256;

/// A connected device.
#[derive(Debug)]
pub struct LoadClient {
    pub transport: Box<dyn Transport>,
    pub user: User,
    epoch: StoreEpoch,
    sent: u64,
    /// `client_seq` and id of the device's last message in each conversation.
    last: HashMap<ConversationId, (u64, MessageId)>,
    /// Rows that waited at connect time and were delivered then.
    pub caught_up: Vec<InboxRow>,
}

/// The reason why a session was not opened.
#[derive(Debug)]
pub enum Refused {
    /// The server sent `Close` with this `retry_after`, in milliseconds.
    Later(u32),
    Failed(chat_core::Error),
}

impl From<chat_core::Error> for Refused {
    fn from(error: chat_core::Error) -> Self {
        Self::Failed(error)
    }
}

/// Receives the next frame of a connection, or `None` at its end.
pub async fn next(transport: &mut dyn Transport) -> Result<Option<ServerFrame>> {
    transport.recv().await?.map(ServerFrame::parse).transpose()
}

impl LoadClient {
    /// Registers a user and connects its device.
    pub async fn register(dialer: &WebSocketDialer, user: User) -> Result<Self, Refused> {
        Self::open(dialer, user, true).await
    }

    /// Connects a device whose user is registered.
    pub async fn connect(dialer: &WebSocketDialer, user: User) -> Result<Self, Refused> {
        Self::open(dialer, user, false).await
    }

    async fn open(dialer: &WebSocketDialer, user: User, register: bool) -> Result<Self, Refused> {
        let closed = |frame| match frame {
            Some(ServerFrame::Close { retry_after, .. }) => Refused::Later(retry_after),
            _ => Refused::Failed(chat_core::Error::new(chat_core::ErrorKind::Unavailable, "disconnected")),
        };
        let mut transport = dialer.dial().await?;
        let challenge = match next(&mut *transport).await? {
            Some(ServerFrame::Challenge(challenge)) => challenge,
            other => return Err(closed(other)),
        };
        if register {
            transport.send(vec![user.registration().encode()]).await?;
            match next(&mut *transport).await? {
                Some(ServerFrame::Registered(..)) => {}
                other => return Err(closed(other)),
            }
        }
        transport.send(vec![user.hello(challenge.nonce, GENERATION).encode()]).await?;
        let welcome = match next(&mut *transport).await? {
            Some(ServerFrame::Welcome(welcome)) => welcome,
            other => return Err(closed(other)),
        };
        let epoch = welcome.store_epoch;
        let mut online =
            Self { transport, user, epoch, sent: 0, last: HashMap::new(), caught_up: Vec::new() };
        loop {
            match next(&mut *online.transport).await? {
                Some(ServerFrame::Deliver(rows, true)) if rows.is_empty() => return Ok(online),
                Some(ServerFrame::Deliver(rows, _)) => {
                    online.acknowledge(&rows).await?;
                    online.caught_up.extend(rows);
                }
                other @ (None | Some(ServerFrame::Close { .. })) => return Err(closed(other)),
                Some(_) => {}
            }
        }
    }

    /// Acknowledges delivered rows.
    pub async fn acknowledge(&mut self, rows: &[InboxRow]) -> Result<()> {
        let acks = rows.iter().map(|row| AckUpTo { conversation: row.conversation, seq: row.seq }).collect();
        let frame = self.ack(acks);
        self.transport.send(vec![frame]).await
    }

    /// Encodes the next `Publish` to another user. Its body starts with the send time `at`, in nanoseconds.
    pub fn message(&mut self, to: &User, at: u64) -> Bytes {
        self.sent += 1;
        let mut body = BytesMut::with_capacity(BODY);
        body.put_u64(at);
        body.resize(BODY, 7);
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.sent.to_be_bytes());
        let message_id = MessageId::new(at / 1_000_000, random);
        let conversation = ConversationId::direct(self.user.device.user, to.device.user);
        let last = self.last.entry(conversation).or_insert((0, MessageId::NIL));
        let (client_seq, prev) = (last.0 + 1, last.1);
        *last = (client_seq, message_id);
        let publish = Publish {
            number: SendPosition {
                conversation,
                message_id,
                client_seq,
                prev,
                incarnation: 0,
                generation: GENERATION + self.sent,
            },
            first: true,
            audience: [to, &self.user].map(|u| Audience { user: u.device.user, list_version: 1 }).to_vec(),
            body: body.freeze(),
            boxes: vec![DeviceBox {
                installation: to.device.installation,
                data: Bytes::from_static(&[9; 128]),
            }],
            excluded: Vec::new(),
            sent_at: 0,
            options: chat_core::message_options::MessageOptions::default(),
            group: None,
        };
        ClientFrame::Publish(publish).encode()
    }

    /// Returns the id of the last message to another user, or `MessageId::NIL`.
    pub fn last_id(&self, to: &User) -> MessageId {
        let conversation = ConversationId::direct(self.user.device.user, to.device.user);
        self.last.get(&conversation).map_or(MessageId::NIL, |(_, id)| *id)
    }

    pub fn ack(&self, acks: Vec<AckUpTo>) -> Bytes {
        ClientFrame::Ack { acks, store_epoch: self.epoch, generation: GENERATION + self.sent }.encode()
    }
}

/// Returns the send time in a message body, or `None` if the row is not a message.
pub fn sent_at(row: &InboxRow) -> Option<u64> {
    match &row.content {
        RowContent::Message { message, .. } => message.body[..8].try_into().ok().map(u64::from_be_bytes),
        _ => None,
    }
}
