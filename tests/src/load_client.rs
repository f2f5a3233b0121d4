//! A device that speaks the wire protocol without encryption, for tests with load or with many devices.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use chat_core::backend::{Dialer, RecipientDevices, Roster, Transport};
use chat_core::contact::ContactChange;
use chat_core::envelope::{AckUpTo, Audience, DeviceBox, InboxRow, Publish, RowContent, SendPosition};
use chat_core::group::{GroupAction, GroupChange, GroupLink, GroupPart, LinkSecret};
use chat_core::roster::GroupPolicy;
use chat_core::wire::{ClientFrame, Request, ServerFrame};
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
    groups: HashMap<ConversationId, Roster>,
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
        let mut online = Self {
            transport,
            user,
            epoch,
            sent: 0,
            last: HashMap::new(),
            groups: HashMap::new(),
            caught_up: Vec::new(),
        };
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
        let (message_id, body) = self.stamped(at);
        let conversation = ConversationId::direct(self.user.device.user, to.device.user);
        let publish = Publish {
            number: self.number(conversation, message_id),
            first: true,
            audience: [to, &self.user].map(|u| Audience { user: u.device.user, list_version: 1 }).to_vec(),
            body,
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

    /// Accepts a user as a contact, so that it may add this one to groups.
    pub async fn accept(&mut self, user: &User) {
        let request = Request::ChangeContact(user.device.user, ContactChange::Accept);
        self.transport.send(vec![ClientFrame::Request(1, request).encode()]).await.unwrap();
        while !matches!(next(&mut *self.transport).await.unwrap().unwrap(), ServerFrame::Response(1, _)) {}
    }

    /// Founds a group with these users, which have accepted this one. Returns it with its roster once it is stored.
    pub async fn found_group(&mut self, users: &[User]) -> (ConversationId, Roster) {
        let action = GroupAction::Create {
            members: users.iter().map(|user| user.device.user).collect(),
            policy: GroupPolicy::default(),
        };
        let message_id = MessageId::from_bytes([1; 16]);
        let group = ConversationId::group(self.user.device, message_id, &action.encode());
        let roster = self.change(group, &Roster::default(), message_id, &action, users).await;
        (group, roster)
    }

    /// Founds a channel with this link. Returns it with its roster once both are stored.
    pub async fn found_channel(&mut self, secret: &LinkSecret) -> (ConversationId, Roster) {
        let founding = GroupAction::Create { members: Vec::new(), policy: GroupPolicy::default() };
        let message_id = MessageId::from_bytes([1; 16]);
        let channel = ConversationId::channel(self.user.device, message_id, &founding.encode());
        let roster = self.change(channel, &Roster::default(), message_id, &founding, &[]).await;
        let link = GroupAction::SetLink(Some(GroupLink { key: secret.key(), approval: false }));
        let roster = self.change(channel, &roster, MessageId::from_bytes([2; 16]), &link, &[]).await;
        (channel, roster)
    }

    /// Subscribes the device to a channel. Returns once the row with which it joins has arrived.
    pub async fn subscribe(&mut self, channel: ConversationId, secret: &LinkSecret) {
        let proof = secret.prove(channel, self.user.device.user);
        let request = ClientFrame::Request(2, Request::Subscribe(channel, proof)).encode();
        self.transport.send(vec![request]).await.unwrap();
        loop {
            match next(&mut *self.transport).await.unwrap().unwrap() {
                ServerFrame::Refused(_, refusal) => panic!("{refusal:?}"),
                ServerFrame::Deliver(rows, _) if rows.iter().any(|row| row.conversation == channel) => {
                    return self.acknowledge(&rows).await.unwrap();
                }
                _ => {}
            }
        }
    }

    /// Makes a change of a group, of which this user and `users` are the members after it. Returns the roster once it is stored.
    async fn change(
        &mut self,
        group: ConversationId,
        before: &Roster,
        message_id: MessageId,
        action: &GroupAction,
        users: &[User],
    ) -> Roster {
        let all = users.iter().chain((before.version == 0).then_some(&self.user));
        let lists: Vec<RecipientDevices> = all
            .map(|user| RecipientDevices {
                user: user.device.user,
                list_version: 1,
                installations: vec![user.device.installation],
            })
            .collect();
        let (own, encoded) = (self.user.device.user, action.encode());
        let seq = before.changed_at + 1;
        let roster = before.change(group, own, Some(action), &lists, seq).unwrap();
        let signed = GroupChange::transcript(group, message_id, &encoded, &roster.digest);
        let change = GroupChange::new(encoded, self.user.sign(&signed)).unwrap();
        let audience = lists.iter().map(|list| Audience { user: list.user, list_version: 1 }).collect();
        let publish = self.group_publish(group, &roster, message_id, audience, Bytes::new(), Some(change));
        self.transport.send(vec![ClientFrame::Publish(publish).encode()]).await.unwrap();
        loop {
            match next(&mut *self.transport).await.unwrap().unwrap() {
                ServerFrame::Stored(_) => return roster,
                ServerFrame::Refused(_, refusal) => panic!("{refusal:?}"),
                _ => {}
            }
        }
    }

    /// Notes the roster of a group, for [`group_message`](Self::group_message).
    pub fn join(&mut self, group: ConversationId, roster: &Roster) {
        self.groups.insert(group, roster.clone());
    }

    /// Encodes the next `Publish` to a group. Its body starts with the send time `at`, in nanoseconds.
    pub fn group_message(&mut self, group: ConversationId, at: u64) -> Bytes {
        let (message_id, body) = self.stamped(at);
        let roster = self.groups[&group].clone();
        ClientFrame::Publish(self.group_publish(group, &roster, message_id, Vec::new(), body, None)).encode()
    }

    fn group_publish(
        &mut self,
        group: ConversationId,
        roster: &Roster,
        message_id: MessageId,
        audience: Vec<Audience>,
        body: Bytes,
        change: Option<GroupChange>,
    ) -> Publish {
        let shared = if body.is_empty() { Bytes::new() } else { Bytes::from_static(&[9; 300]) };
        let part = GroupPart {
            roster_version: roster.version,
            digest: roster.digest,
            shared,
            control: Bytes::new(),
            change,
            lists: Vec::new(),
        };
        Publish {
            number: self.number(group, message_id),
            first: true,
            audience,
            body,
            boxes: Vec::new(),
            excluded: Vec::new(),
            sent_at: 0,
            options: chat_core::message_options::MessageOptions::default(),
            group: Some(Box::new(part)),
        }
    }

    /// Returns a new message id, and a body that starts with the send time in nanoseconds.
    fn stamped(&mut self, at: u64) -> (MessageId, Bytes) {
        self.sent += 1;
        let mut body = BytesMut::with_capacity(BODY);
        body.put_u64(at);
        body.resize(BODY, 7);
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.sent.to_be_bytes());
        (MessageId::new(at / 1_000_000, random), body.freeze())
    }

    /// Returns the next position in a conversation.
    fn number(&mut self, conversation: ConversationId, message_id: MessageId) -> SendPosition {
        let last = self.last.entry(conversation).or_insert((0, MessageId::NIL));
        let (client_seq, prev) = (last.0 + 1, last.1);
        *last = (client_seq, message_id);
        let generation = GENERATION + self.sent;
        SendPosition { conversation, message_id, client_seq, prev, incarnation: 0, generation }
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
        RowContent::Message { message, .. } => message.body.get(..8)?.try_into().ok().map(u64::from_be_bytes),
        _ => None,
    }
}
