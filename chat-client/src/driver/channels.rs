//! Channels: founding, subscriptions, the boxes of posts, and earlier posts from the history of the server.

use std::collections::BTreeSet;

use bytes::Bytes;
use chat_core::device_list::DeviceEntry;
use chat_core::envelope::{InboxRow, Message, RowContent, SendPosition};
use chat_core::group::{GroupAction, GroupLink, GroupPart};
use chat_core::replica::{Draft, GroupSeal, Input, Unreadable};
use chat_core::roster::GroupPolicy;
use chat_core::wire::{HistoryRange, Request};
use chat_core::{ConversationId, DeviceAddress, Error, ErrorKind, Result, Seq, UserId};

use super::command::{GroupDetails, Reply};
use super::suite_call::SuiteInput;
use super::{Driver, QueuedChange, Waiting};
use crate::channel_key::{ChannelKey, PostId, SealedPost};
use crate::group_profile::GroupProfile;
use crate::invitation::GroupInvitation;
use crate::platform::random;
use crate::sealed_body::{OpenedBody, SealedBody, open_body};

/// Maximum device lists in one request.
const LISTS_AT_ONCE: usize = 32;
/// Pages of history without a message to show that one call reads.
const EMPTY_PAGES: u32 = 10;

/// A request for earlier posts of a channel.
#[derive(Debug)]
pub(crate) struct HistoryRequest {
    pub(crate) channel: ConversationId,
    /// Maximum number of posts in a page.
    pub(crate) limit: u32,
    /// The posts before this seq.
    pub(crate) before: Seq,
    /// Pages that had no post to show.
    pub(crate) empty: u32,
    /// Rows whose senders are looked up.
    pub(crate) rows: Vec<InboxRow>,
    /// Replies with the number of posts; 0 if there are no earlier ones.
    pub(crate) reply: Reply<usize>,
}

impl Driver {
    /// Queues the messages that found a channel: the first one has only this user as member, then its link, then its profile,
    /// which everyone with the link can read.
    pub(super) fn found_channel(&mut self, profile: GroupProfile, reply: Reply<QueuedChange>) -> Result<()> {
        let secret = self.new_link_secret()?;
        let founding = GroupAction::Create { members: Vec::new(), policy: GroupPolicy::default() };
        let id = self.new_message_id()?;
        let channel = ConversationId::channel(self.account.device, id, &founding.encode());
        self.store.expect_group(channel, Some(&profile.name), Some(&secret))?;
        self.changing.push(((channel, id), reply));
        self.send_change(channel, id, founding, GroupDetails::default())?;
        let link = GroupLink { key: secret.key(), approval: false };
        let id = self.new_message_id()?;
        self.send_change(channel, id, GroupAction::SetLink(Some(link)), GroupDetails::default())?;
        self.send_profile(channel, profile)
    }

    /// Replaces the key of a channel without informing its readers: they need the new link.
    pub(super) fn renew_channel_key(
        &mut self,
        channel: ConversationId,
        reply: Reply<QueuedChange>,
    ) -> Result<()> {
        let secret = self.new_link_secret()?;
        self.store.set_link_secret(channel, &secret)?;
        let link = GroupLink { key: secret.key(), approval: false };
        let id = self.new_message_id()?;
        self.changing.push(((channel, id), reply));
        self.send_change(channel, id, GroupAction::SetLink(Some(link)), GroupDetails::default())?;
        match self.store.group_profile(channel)? {
            Some(profile) => self.send_profile(channel, profile),
            None => Ok(()),
        }
    }

    fn new_link_secret(&self) -> Result<chat_core::group::LinkSecret> {
        random(self.owner.config.platform.as_ref()).map(chat_core::group::LinkSecret::from_bytes)
    }

    fn send_profile(&mut self, channel: ConversationId, profile: GroupProfile) -> Result<()> {
        let id = self.new_message_id()?;
        let details = GroupDetails { profile: Some(profile), link: None };
        self.send_change(channel, id, GroupAction::Edit, details)
    }

    /// Subscribes this device to a channel. The secret is stored first: a post may arrive with the answer.
    pub(super) fn subscribe(&mut self, invitation: &GroupInvitation, reply: Reply<()>) -> Result<()> {
        let channel = invitation.group();
        let Some(secret) = invitation.secret().filter(|_| channel.is_channel()) else {
            let _ = reply
                .send(Err(Error::new(ErrorKind::Invalid, "the invitation is not the link of a channel")));
            return Ok(());
        };
        self.step(Input::Flush)?;
        let is_new = !self.store.has_channel_key(channel)?;
        self.store.expect_group(channel, invitation.name(), Some(secret))?;
        self.store.commit_open()?;
        let proof = secret.prove(channel, self.account.device.user);
        self.request(Request::Subscribe(channel, proof), Waiting::Subscribed { channel, is_new, reply })
    }

    pub(super) fn unsubscribe(&mut self, channel: ConversationId, reply: Reply<()>) -> Result<()> {
        self.request(Request::Unsubscribe(channel), Waiting::Unsubscribed(channel, reply))
    }

    /// Replies to subscriptions whose first row has arrived: from then on the device knows where it joined.
    pub(super) fn confirm_subscriptions(&mut self) {
        for (channel, reply) in std::mem::take(&mut self.subscribing) {
            if self.replica.cursor(channel) > 0 {
                let _ = reply.send(Ok(()));
            } else {
                self.subscribing.push((channel, reply));
            }
        }
    }

    /// Replies that subscriptions are not confirmed: the connection ended.
    pub(super) fn abandon_subscriptions(&mut self) {
        for (_, reply) in self.subscribing.drain(..) {
            let error = Error::new(ErrorKind::Unavailable, "the subscription was not confirmed: try again");
            let _ = reply.send(Err(error));
        }
    }

    /// Drops the keys of a channel that this device does not read any more.
    pub(super) fn forget_channel(&mut self, channel: ConversationId) -> Result<()> {
        self.step(Input::Flush)?;
        self.store.forget_channel(channel)?;
        self.store.commit_open()
    }

    /// Encrypts the box of a post. Returns `None` if this device does not have the key that the readers have.
    pub(super) fn seal_post(
        &self,
        draft: &Draft,
        number: &SendPosition,
        sealed: &SealedBody,
        group: &GroupSeal,
    ) -> Result<Option<Bytes>> {
        let channel = number.conversation;
        // A new link is for those that read with the one before, if there was one.
        let before = self.replica.roster(channel).and_then(|roster| roster.link);
        let link = before.filter(|_| matches!(draft.action, Some(GroupAction::SetLink(_))));
        let Some(secret) = self.store.channel_secret(channel, link.or(group.roster.link))? else {
            return Ok(None);
        };
        let sender = self.account.device.installation;
        let post = PostId { channel, message: number.message_id, sender };
        let salt = random(self.owner.config.platform.as_ref())?;
        let sign = |signed: &[u8]| self.account.sign(signed);
        Ok(ChannelKey::of(&secret, channel).seal(post, &sealed.shared_box(), salt, sign).map(Bytes::from))
    }

    /// Opens a post of a channel.
    pub(super) fn open_post(
        &mut self,
        input: SuiteInput,
        channel: ConversationId,
        message: &Message,
        part: &GroupPart,
        sender: Option<&DeviceEntry>,
    ) -> Result<std::result::Result<OpenedBody, Unreadable>> {
        if part.shared.is_empty() {
            return Ok(Ok(OpenedBody::empty()));
        }
        let Some(sender) = sender else { return Ok(Err(Unreadable::UnknownDevice)) };
        let Some(sealed) = SealedPost::parse(&part.shared) else { return Ok(Err(Unreadable::Malformed)) };
        let post = PostId { channel, message: message.id, sender: message.sender.installation };
        if !sealed.is_signed(post, &sender.device_key) {
            return Ok(Err(Unreadable::Undecryptable));
        }
        let secrets = self.store.channel_secrets(channel)?;
        let mut keys = secrets.iter().map(|secret| ChannelKey::of(secret, channel));
        let Some(key) = keys.find(|key| key.id() == sealed.key_id) else {
            return Ok(Err(Unreadable::NoChannelKey));
        };
        let Some(content) = key.open(post, &sealed) else { return Ok(Err(Unreadable::Undecryptable)) };
        let opened =
            self.call_suite(input, |suite, _| Ok(open_body(suite, &content, None, channel, message)))?;
        Ok(opened.unwrap_or_else(|rejected| Err(rejected.as_unreadable())))
    }

    /// Requests the posts of a channel before the oldest one that this device has.
    pub(super) fn load_history(
        &mut self,
        channel: ConversationId,
        limit: usize,
        reply: Reply<usize>,
    ) -> Result<()> {
        if !self.store.has_channel_key(channel)? {
            let _ = reply.send(Err(Error::new(ErrorKind::NotFound, "this device does not read the channel")));
            return Ok(());
        }
        let cursor = self.replica.cursor(channel);
        if cursor == 0 {
            let error = "the subscription is not confirmed yet: try again";
            let _ = reply.send(Err(Error::new(ErrorKind::Unavailable, error)));
            return Ok(());
        }
        let limit = u32::try_from(limit.clamp(1, 200)).unwrap_or(200);
        let before = self.store.oldest_of_channel(channel)?.unwrap_or(cursor + 1).min(cursor + 1);
        // All posts before those that this device has count as read.
        self.step(Input::Flush)?;
        self.store.read_before(channel, before)?;
        self.store.commit_open()?;
        self.request_history(HistoryRequest { channel, limit, before, empty: 0, rows: Vec::new(), reply })
    }

    fn request_history(&mut self, request: HistoryRequest) -> Result<()> {
        if request.before <= 1 {
            let _ = request.reply.send(Ok(0));
            return Ok(());
        }
        let (conversation, range) = (request.channel, HistoryRange::Before(request.before));
        let page = Request::History { conversation, range, limit: request.limit };
        self.request(page, Waiting::History(Box::new(request)))
    }

    /// Looks up the senders of a page of history that this device does not know, then keeps the posts.
    pub(super) fn history_received(
        &mut self,
        mut request: HistoryRequest,
        rows: Vec<InboxRow>,
    ) -> Result<()> {
        // The server must not put posts where others may be.
        let mut below = request.before;
        let is_lower = |row: &InboxRow| row.seq > 0 && row.seq < std::mem::replace(&mut below, row.seq);
        if !rows.iter().all(is_lower) {
            let error = Error::new(ErrorKind::Invalid, "the server sent other rows than requested");
            let _ = request.reply.send(Err(error));
            return Ok(());
        }
        request.rows = rows;
        let senders = request.rows.iter().filter_map(|row| match &row.content {
            RowContent::Message { message, .. } => Some(message.sender),
            _ => None,
        });
        let is_listed = |sender: &DeviceAddress| {
            let list = self.replica.list(sender.user);
            list.is_some_and(|list| list.list().addresses().any(|device| device == *sender))
        };
        let unknown = senders.filter(|sender| !is_listed(sender)).map(|sender| sender.user);
        let unknown: BTreeSet<UserId> = unknown.collect();
        if unknown.is_empty() {
            return self.keep_history(request);
        }
        let unknown = unknown.into_iter().take(LISTS_AT_ONCE).collect();
        self.request(Request::Lists(unknown), Waiting::HistorySenders(Box::new(request)))
    }

    /// Keeps the posts of a page of history. A page without a post to show is followed by the next one.
    pub(super) fn keep_history(&mut self, mut request: HistoryRequest) -> Result<()> {
        let channel = request.channel;
        self.step(Input::Flush)?;
        let rows = std::mem::take(&mut request.rows);
        let mut shown = 0;
        for row in &rows {
            let RowContent::Message { message, .. } = &row.content else { continue };
            let Some(part) = message.group.as_ref().filter(|_| row.conversation == channel) else { continue };
            let list = self.replica.list(message.sender.user);
            let entry = list.and_then(|list| list.list().device(message.sender.device)).cloned();
            let entry = entry.filter(|entry| entry.installation() == message.sender.installation);
            let input = SuiteInput::Row(channel, row.seq);
            if let Ok(opened) = self.open_post(input, channel, message, part, entry.as_ref())? {
                shown += usize::from(self.store.keep_earlier(row, &opened.content, opened.key)?);
            }
        }
        self.store.note_earlier(channel)?;
        self.store.commit_open()?;
        self.owner.channels.last.send_replace(self.store.last_event()?);
        let oldest = rows.last().map_or(0, InboxRow::first_seq);
        if shown > 0 || oldest <= 1 || request.empty >= EMPTY_PAGES {
            let _ = request.reply.send(Ok(shown));
            return Ok(());
        }
        self.request_history(HistoryRequest { empty: request.empty + 1, before: oldest, ..request })
    }
}
