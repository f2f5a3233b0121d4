//! Commands from client handles, and the server's answers to requests.

use chat_core::device_list::{DeviceEntry, SignedDeviceList};
use chat_core::envelope::{AckUpTo, Refusal};
use chat_core::group::LinkSecret;
use chat_core::replica::{self, Draft, Input};
use chat_core::wire::{FirstPrekeys, Request, Response};
use chat_core::{ConversationId, DeviceId, Error, ErrorKind, InstallationId, MessageId, Result, UserId};
use tokio::sync::oneshot;

use super::groups::unknown_group;
use super::linking::LINKING_RETRY_MS;
use super::{Command, Driver, Reply, Token, Waiting};
use crate::connection_state::ConnectionState;
use crate::content::{decode_message, encode_request};
use crate::event::RefusedReason;
use crate::linking::Offer;
use crate::platform::random;
use crate::safety_number::SafetyNumber;
use crate::send::{Enqueued, Recipient, SendRequest};
use crate::store::KnownKey;
use crate::suite::SuiteTx;

impl Driver {
    pub(super) fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Send { to, request, reply } => self.send(&to, *request, reply)?,
            Command::FindKey(key, reply) => {
                let _ = reply.send(self.store.message_of_key(&key));
            }
            Command::Status { message, reply } => {
                let _ = reply.send(self.store.status(message));
            }
            Command::Await { message, stage, reply } => {
                self.owner.waiters.tickets.add(&self.store, message, stage, reply);
            }
            Command::EventsOf { message, reply } => {
                let _ = reply.send(self.store.events_of(message));
            }
            Command::Read(conversation, seq) => {
                let before = self.replica.read_position(conversation);
                self.step(Input::Read(AckUpTo { conversation, seq }))?;
                if self.replica.read_position(conversation) > before {
                    self.note_read(conversation)?;
                }
            }
            Command::Search { search, conversation, limit, reply } => {
                let _ = reply.send(self.store.search(&search, conversation, limit));
            }
            Command::ChangeSetting(conversation, setting, reply) => {
                self.change_setting(conversation, &setting, reply)?;
            }
            Command::Typing(conversation) => self.step(Input::Typing(conversation))?,
            Command::Watch(users) => {
                self.owner.watched.clone_from(&users);
                self.step(Input::Watch(users))?;
            }
            Command::Cursor(name, reply) => {
                let _ = reply.send(self.store.event_cursor(&name));
            }
            Command::Handled { name, number, reply } => {
                // The open transaction may hold ratchet state: commit it together with the replica's changes first.
                self.step(Input::Flush)?;
                self.store.set_event_cursor(&name, number)?;
                self.store.commit_open()?;
                let _ = reply.send(Ok(()));
            }
            Command::Events { after, limit, reply } => {
                let _ = reply.send(self.store.events(after, limit));
            }
            Command::Conversations(reply) => {
                let _ = reply.send(self.store.conversations());
            }
            Command::History { conversation, before, limit, reply } => {
                let _ = reply.send(self.store.history(conversation, before, limit));
            }
            Command::Resolve(handle, reply) => match self.replica.user(&handle) {
                Some(user) => {
                    let _ = reply.send(Ok(user));
                }
                None => self.request(Request::Resolve(handle), Waiting::Resolve(reply))?,
            },
            Command::List(user, reply) => match self.replica.list(user) {
                Some(list) => {
                    let _ = reply.send(Ok(list.clone()));
                }
                None => self.request(Request::Lists(vec![user]), Waiting::List(user, reply))?,
            },
            Command::ApproveLink(code, reply) => match code.rendezvous() {
                Ok(rendezvous) => {
                    self.request(Request::Offer(rendezvous), Waiting::Offer(code, reply))?;
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            Command::Unlink(device, reply) => self.unlink(device, reply)?,
            Command::OutboxLen(reply) => {
                let _ = reply.send(Ok(self.replica.outbox_len()));
            }
            Command::Drained(reply) => {
                if self.replica.outbox_len() == 0 {
                    let _ = reply.send(Ok(()));
                } else {
                    self.owner.waiters.drained.push(reply);
                }
            }
            Command::AcceptIdentity(user, number, reply) => {
                self.step(Input::Flush)?;
                let _ = reply.send(self.accept_identity(user, &number));
            }
            Command::ChangeContact(user, change, reply) => self.change_contact(user, change, reply)?,
            Command::SetPresenceAudience(audience, reply) => self.set_audience(audience, reply)?,
            Command::PresenceAudience(reply) => {
                let _ = reply.send(self.store.presence_audience());
            }
            Command::Relation(user, reply) => {
                let _ = reply.send(self.store.relation(user));
            }
            Command::Contacts(reply) => {
                let _ = reply.send(self.contacts());
            }
            Command::Report { conversation, user, seqs, note, reply } => {
                self.report(conversation, user, seqs, note, reply)?;
            }
            Command::ClearHistory(conversation, reply) => {
                let through = self.replica.cursor(conversation);
                let request = Request::ClearHistory { conversation, through };
                self.request(request, Waiting::Cleared(conversation, through, reply))?;
            }
            Command::ChangeGroup { group, action, details, reply } => {
                self.change_group(group, action, details, reply)?;
            }
            Command::FoundChannel(profile, reply) => self.found_channel(profile, reply)?,
            Command::RenewChannelKey(channel, reply) => {
                if channel.is_channel() && self.store.knows_group(channel)? {
                    self.renew_channel_key(channel, reply)?;
                } else {
                    let _ = reply.send(Err(unknown_group()));
                }
            }
            Command::Subscribe(invitation, reply) => self.subscribe(&invitation, reply)?,
            Command::Unsubscribe(channel, reply) => self.unsubscribe(channel, reply)?,
            Command::LoadHistory { channel, limit, reply } => self.load_history(channel, limit, reply)?,
            Command::LinkSecret(reply) => {
                let secret = random(self.owner.config.platform.as_ref()).map(LinkSecret::from_bytes);
                let _ = reply.send(secret);
            }
            Command::Receipts(position, reply) => {
                self.step(Input::RequestReceipts(position.conversation))?;
                let _ = reply.send(self.store.member_receipts(position.conversation, position.seq));
            }
            Command::OpenConversation(conversation) => {
                self.owner.open_conversation = conversation;
                self.step(Input::OpenConversation(conversation))?;
            }
            Command::Timeline(mut window, step, reply) => {
                // A timeline shows nothing that may be lost again.
                self.step(Input::Flush)?;
                let diffs = window.step(&self.store, step);
                let _ = reply.send(diffs.map(|diffs| (window, diffs)));
            }
            Command::ConversationList(mut window, reply) => {
                self.step(Input::Flush)?;
                let diffs = window.follow(&self.store);
                let _ = reply.send(diffs.map(|diffs| (window, diffs)));
            }
            Command::Failed { message, retry, reply } => self.end_failed(message, retry, reply)?,
            Command::Group(id, reply) => {
                let _ = reply.send(self.group(id));
            }
            Command::DeleteAccount(reply) => {
                let signed = self.own_list().and_then(|list| self.account.sign_deletion(list.list().version));
                match signed {
                    Ok(signature) => {
                        self.request(Request::DeleteAccount(signature), Waiting::Deletion(reply))?;
                    }
                    Err(error) => {
                        let _ = reply.send(Err(error));
                    }
                }
            }
            Command::SetToken(Token(token), reply) => {
                self.step(Input::Flush)?;
                self.store.set_meta("token", token.as_bytes())?;
                self.store.commit_open()?;
                self.token.newest = token;
                if !self.renew_token() {
                    self.stand(ConnectionState::restarted);
                    self.step(Input::Restart)?;
                }
                let _ = reply.send(Ok(()));
            }
            Command::Reincarnate(reply) => {
                self.stand(ConnectionState::restarted);
                self.step(Input::Reincarnate)?;
                self.step(Input::Flush)?;
                let _ = reply.send(Ok(()));
            }
        }
        Ok(())
    }

    fn send(&mut self, to: &Recipient, request: SendRequest, reply: Reply<Enqueued>) -> Result<()> {
        let (text, idempotency_key) = (&request.text, &request.idempotency_key);
        let to = match self.replica_recipient(to) {
            Ok(to) => to,
            Err(error) => {
                let _ = reply.send(Err(error));
                return Ok(());
            }
        };
        if let Some(key) = idempotency_key {
            match self.store.find_key(key, &to, text)? {
                KnownKey::New => {}
                KnownKey::Same(message) => {
                    // The message may be in the open transaction: it is durable before the reply.
                    self.step(Input::Flush)?;
                    let _ = reply.send(Ok(Enqueued { message, repeated: true }));
                    return Ok(());
                }
                KnownKey::Other => {
                    let _ = reply.send(Err(Error::new(
                        ErrorKind::Conflict,
                        "the idempotency key belongs to another message: use a new key",
                    )));
                    return Ok(());
                }
            }
        }
        if let Some((target, _)) = &request.change
            && !self.store.has_message(target)?
            && !self.store.is_queued(target)?
        {
            let _ = reply.send(Err(Error::new(ErrorKind::NotFound, "this device has no such message")));
            return Ok(());
        }
        if self.is_blocked(&to)? {
            let _ = reply.send(Err(Error::new(ErrorKind::Denied, "this user is blocked: unblock it first")));
            return Ok(());
        }
        if self.owner.config.strict && self.is_unaccepted(&to)? {
            let _ = reply.send(Err(Error::from(RefusedReason::IdentityChanged)));
            return Ok(());
        }
        let now = self.store.now_ms();
        let id = MessageId::new(now, random(self.owner.config.platform.as_ref())?);
        let conversation = self.conversation_of(&to);
        let lifetime_ms = conversation.map_or(Ok(0), |conversation| self.store.timer_ms(conversation))?;
        if let (Some(conversation), Some(timer_ms)) = (conversation, request.timer_ms) {
            self.store.set_timer(conversation, timer_ms)?;
        }
        let content = encode_request(&request, lifetime_ms);
        let after = request.follows(self.account.device.user);
        let draft = Draft { sent_at: now, after, ..Draft::new(id, to, content.into()) };
        if let Some(key) = idempotency_key {
            self.store.add_idempotency_key(key, &draft, text)?;
        }
        self.queued.push((id, reply));
        self.step(Input::Send(draft))
    }

    /// Returns the conversation that a message is sent to, if this device knows the user.
    fn conversation_of(&self, to: &replica::Recipient) -> Option<ConversationId> {
        match to {
            replica::Recipient::Group(group) => Some(*group),
            to => Some(ConversationId::direct(self.account.device.user, self.recipient_user(to)?)),
        }
    }

    /// Removes a refused message. With `retry` a new message has its content.
    fn end_failed(&mut self, message: MessageId, retry: bool, reply: Reply<Option<MessageId>>) -> Result<()> {
        self.step(Input::Flush)?;
        let Some((conversation, content)) = self.store.failed_message(message)? else {
            let unknown = Error::new(ErrorKind::NotFound, "this device has no such refused message");
            let _ = reply.send(Err(unknown));
            return Ok(());
        };
        let to = match self.replica_recipient(&Recipient::Conversation(conversation)) {
            Ok(to) => to,
            Err(error) => {
                let _ = reply.send(Err(error));
                return Ok(());
            }
        };
        if retry && self.is_blocked(&to)? {
            let _ = reply.send(Err(Error::new(ErrorKind::Denied, "this user is blocked: unblock it first")));
            return Ok(());
        }
        if retry && self.owner.config.strict && self.is_unaccepted(&to)? {
            let _ = reply.send(Err(Error::from(RefusedReason::IdentityChanged)));
            return Ok(());
        }
        self.store.remove_failed(conversation, message)?;
        let mut sent = None;
        if retry {
            let now = self.store.now_ms();
            let id = MessageId::new(now, random(self.owner.config.platform.as_ref())?);
            // The same commit removes the old message.
            if let Some(timer_ms) = decode_message(conversation, &content).timer_ms() {
                self.store.set_timer(conversation, timer_ms)?;
            }
            self.step(Input::Send(Draft { sent_at: now, ..Draft::new(id, to, content.into()) }))?;
            sent = Some(id);
        }
        self.step(Input::Flush)?;
        self.store.commit_open()?;
        let _ = reply.send(Ok(sent));
        Ok(())
    }

    /// Returns the recipient as the replica knows it: the user of a direct conversation.
    fn replica_recipient(&mut self, to: &Recipient) -> Result<replica::Recipient> {
        Ok(match to {
            Recipient::Handle(handle) => replica::Recipient::Handle(handle.clone()),
            Recipient::User(user) => replica::Recipient::User(*user),
            Recipient::Conversation(group) if group.has_roster() => {
                if !self.store.knows_group(*group)? {
                    return Err(unknown_group());
                }
                replica::Recipient::Group(*group)
            }
            Recipient::Conversation(conversation) => {
                let peer = self.store.peer(*conversation)?;
                replica::Recipient::User(peer.ok_or_else(|| {
                    Error::new(
                        ErrorKind::NotFound,
                        "this device does not know the conversation: name the user",
                    )
                })?)
            }
        })
    }

    /// Accepts the account key of a user if `compared` is the safety number for that key.
    fn accept_identity(&mut self, user: UserId, compared: &SafetyNumber) -> Result<()> {
        let list = self.replica.list(user);
        let list =
            list.ok_or_else(|| Error::new(ErrorKind::NotFound, "the keys of this user are unknown"))?;
        let own = (self.account.device.user, *self.account.account_key());
        if SafetyNumber::new(own, (user, *list.account_key())) != *compared {
            return Err(Error::new(
                ErrorKind::Denied,
                "the number is not the current safety number with this user: compare again",
            ));
        }
        self.store.accept(user)?;
        self.store.commit_open()
    }

    /// Returns the user that a message is for, if this device knows it.
    fn recipient_user(&self, to: &replica::Recipient) -> Option<UserId> {
        match to {
            replica::Recipient::Handle(handle) => self.replica.user(handle),
            replica::Recipient::User(user) => Some(*user),
            _ => None,
        }
    }

    /// Returns whether the recipient has a new account key that this user did not accept yet.
    fn is_unaccepted(&self, to: &replica::Recipient) -> Result<bool> {
        self.recipient_user(to).map_or(Ok(false), |user| self.store.is_unaccepted(user))
    }

    /// Returns whether a message is for a user that this user has blocked.
    fn is_blocked(&self, to: &replica::Recipient) -> Result<bool> {
        self.recipient_user(to).map_or(Ok(false), |user| Ok(self.store.contact(user)?.blocked))
    }

    pub(super) fn request(&mut self, request: Request, waiting: Waiting) -> Result<()> {
        self.tokens += 1;
        self.waiting.insert(self.tokens, waiting);
        self.step(Input::Request(self.tokens, request))
    }

    pub(super) fn answered(
        &mut self,
        token: u64,
        answer: std::result::Result<Box<Response>, Refusal>,
    ) -> Result<()> {
        let Some(waiting) = self.waiting.remove(&token) else {
            return Ok(());
        };
        let answer = answer.map_err(|refusal| match refusal {
            Refusal::NotFound => {
                Error::new(ErrorKind::NotFound, "the server has no such user, message or link code")
            }
            Refusal::Unsupported => {
                Error::new(ErrorKind::Unsupported, "the server does not support the request")
            }
            Refusal::Taken => Error::new(ErrorKind::Conflict, "the device list has changed: try again"),
            Refusal::Retry(_) => Error::new(
                ErrorKind::Unavailable,
                "there is no connection to the server: wait until the client is ready",
            ),
            Refusal::Throttled(_) => Error::new(ErrorKind::Throttled, "too many requests: try again later"),
            Refusal::TooLarge => Error::new(ErrorKind::Denied, "the limit of the server is reached"),
            _ => Error::new(ErrorKind::Denied, "the server refused the request"),
        });
        match (waiting, answer) {
            (Waiting::Resolve(reply), answer) => {
                let user = answer
                    .and_then(|a| a.user.ok_or(Error::new(ErrorKind::NotFound, "there is no such user")));
                let _ = reply.send(user);
            }
            (Waiting::List(user, reply), answer) => {
                let list = match answer {
                    Ok(answer) => {
                        let list = answer.lists.into_iter().find(|list| list.list().user == user);
                        // From here on the list is pinned, like any list that sending needs.
                        if let Some(list) = list {
                            self.step(Input::List(list))?;
                        }
                        let known = self.replica.list(user).cloned();
                        known.ok_or(Error::new(ErrorKind::NotFound, "there is no such user"))
                    }
                    Err(error) => Err(error),
                };
                let _ = reply.send(list);
            }
            (Waiting::Subscribed { channel, is_new, reply }, answer) => {
                // A lost connection says nothing: the server may have the subscription.
                let is_final = |error: &Error| error.kind() != ErrorKind::Unavailable;
                if is_new && answer.as_ref().is_err_and(is_final) {
                    self.forget_channel(channel)?;
                }
                let no_channel = |error: Error| match error.kind() {
                    ErrorKind::NotFound => Error::new(
                        ErrorKind::NotFound,
                        "there is no such channel, its link is not valid any more, or this user is banned",
                    ),
                    _ => error,
                };
                match answer.map_err(no_channel) {
                    Ok(_) => self.subscribing.push((channel, reply)),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            (Waiting::Unsubscribed(channel, reply), answer) => {
                if answer.is_ok() {
                    self.forget_channel(channel)?;
                }
                let _ = reply.send(answer.map(drop));
            }
            (Waiting::History(request), Ok(answer)) => self.history_received(*request, answer.rows)?,
            (Waiting::HistorySenders(request), Ok(answer)) => {
                for list in answer.lists {
                    self.step(Input::List(list))?;
                }
                self.keep_history(*request)?;
            }
            (Waiting::History(request) | Waiting::HistorySenders(request), Err(error)) => {
                let _ = request.reply.send(Err(error));
            }
            (Waiting::Offer(code, reply), answer) => {
                // Seal the answer before changing the list, so that a device that cannot be answered is not
                // listed.
                let begun = answer.and_then(|answer| self.approve(&code, &answer.offer)).and_then(
                    |(list, joined)| {
                        let secret = random(self.owner.config.platform.as_ref())?;
                        let sealed = joined.0.answer(&code, &joined.1, secret)?;
                        let (Offer { signed_prekeys, prekeys_signature, .. }, joined) = joined;
                        let installation = listed_as(&list, joined.device)?;
                        let (signed, signature) = (signed_prekeys.into(), prekeys_signature.into());
                        Ok((list, sealed, joined, FirstPrekeys { installation, signed, signature }))
                    },
                );
                match begun {
                    Ok((list, sealed, joined, prekeys)) => {
                        self.remember_linking(&list, joined.device)?;
                        let request = Request::PutList(list.clone(), vec![prekeys]);
                        let waiting = Waiting::Approved(list, Box::new((sealed, code, joined)), reply);
                        self.request(request, waiting)?;
                    }
                    Err(error) => {
                        let _ = reply.send(Err(error));
                    }
                }
            }
            (Waiting::Approved(list, parts, reply), Ok(_)) => {
                self.step(Input::OwnList(list))?;
                let (sealed, code, joined) = *parts;
                let request = Request::LinkAnswer(code.rendezvous()?, sealed);
                self.request(request, Waiting::Linked(joined.device, reply))?;
            }
            (Waiting::Linked(device, reply), answer) => {
                // Its prekeys show whether the device received the answer: see `check_linking`.
                let _ = reply.send(answer.map(|_| device));
            }
            (Waiting::Alive(installation, device), Ok(answer)) => {
                self.forget_linking()?;
                if answer.inactive.contains(&installation) {
                    // The device never connected: its linking did not complete. The server no longer lets it in.
                    let (ignored, _) = oneshot::channel();
                    self.unlink(device, ignored)?;
                }
            }
            (Waiting::Alive(..), Err(_)) => {
                // Not at once: the server may be unable to answer for a while.
                if let Some((_, _, at)) = &mut self.linking {
                    *at = at.saturating_add(LINKING_RETRY_MS);
                }
            }
            (Waiting::Unlinked(list, reply), Ok(_)) => {
                self.step(Input::OwnList(list))?;
                let _ = reply.send(Ok(()));
            }
            (Waiting::Contact(user, change, reply), answer) => {
                let changed = match answer {
                    Ok(answer) => {
                        self.contact_changed(user, change, answer.contacts.version)?;
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                if let Some(reply) = reply {
                    let _ = reply.send(changed);
                }
            }
            (Waiting::Audience(audience, reply), answer) => {
                let changed = match answer {
                    Ok(answer) => {
                        self.audience_changed(audience, answer.contacts.version)?;
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                if let Some(reply) = reply {
                    let _ = reply.send(changed);
                }
            }
            (Waiting::Contacts, Ok(answer)) => self.contacts_received(&answer.contacts)?,
            // The next connection compares the versions again.
            (Waiting::Contacts, Err(_)) => {}
            (Waiting::Cleared(conversation, through, reply), answer) => {
                let is_unknown = answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
                let mut outcome = answer.map(drop);
                if outcome.is_ok() || is_unknown {
                    self.step(Input::Flush)?;
                    let erased = self.store.clear_history(conversation, through)?;
                    self.store.commit_open()?;
                    // The server may have lost a conversation of which this device still has messages.
                    outcome = if erased > 0 { Ok(()) } else { outcome };
                }
                let _ = reply.send(outcome);
            }
            (Waiting::Report(reply) | Waiting::Deletion(reply), answer) => {
                let _ = reply.send(answer.map(drop));
            }
            (Waiting::Approved(_, _, reply), Err(error)) => {
                let _ = reply.send(Err(error));
            }
            (Waiting::Unlinked(_, reply), Err(error)) => {
                let _ = reply.send(Err(error));
            }
        }
        Ok(())
    }
}

fn listed_as(list: &SignedDeviceList, device: DeviceId) -> Result<InstallationId> {
    let entry = list.list().device(device).map(DeviceEntry::installation);
    entry.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such device"))
}
