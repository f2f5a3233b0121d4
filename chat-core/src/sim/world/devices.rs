//! The users and devices of the simulated world.

use std::collections::VecDeque;

use super::super::accounts::{ACCOUNTS, sign};
use super::super::content::{SimContent, SimFacts};
use super::super::server::ready;
use super::server_restore::message_at;
use super::{Event, World};
use crate::backend::ContactStore;
use crate::model::contact::ContactChange;
use crate::model::id::{ConversationId, ConversationKind, MessageId, UserId};
use crate::model::signing::HelloClaims;
use crate::replica::{Draft, Input, Output, Recipient, Replica};
use crate::wire::{ClientFrame, Hello};

impl World {
    pub(super) fn user_sends(&mut self, device: usize) {
        if self.devices[device].replica.is_none() {
            return;
        }
        if self.options.groups && self.writes_to_group(device) {
            return;
        }
        let own = self.devices[device].address();
        let other = ACCOUNTS.iter().find(|account| account.lists[1].list().user != own.user);
        let to = match other {
            Some(other) if self.rng.chance(85) => Recipient::Handle(other.handle.clone()),
            _ => Recipient::User(own.user),
        };
        self.oracle.acquaintances.insert((own.user, self.other_user(device)));
        let id = MessageId::new(self.now, self.rng.bytes());
        let content = SimContent { id, facts: self.facts(device, &to, id) };
        let after = content.facts.deletes();
        let draft = Draft { sent_at: self.now, after, ..Draft::new(id, to, content.encode()) };
        self.device_step(device, Input::Send(draft));
    }

    /// Draws whether a message disappears, or deletes an earlier one of its user.
    fn facts(&mut self, device: usize, to: &Recipient, id: MessageId) -> SimFacts {
        if !self.options.erasure {
            return SimFacts::None;
        }
        let own = self.devices[device].address().user;
        let conversation = match to {
            Recipient::User(user) => ConversationId::direct(own, *user),
            _ => self.direct_conversation(device),
        };
        let known = self.written.iter().filter(|(user, at, _)| (*user, *at) == (own, conversation));
        let known: Vec<MessageId> = known.map(|(.., id)| *id).collect();
        let facts = match self.rng.below(10) {
            0..=2 => SimFacts::Lifetime([100, 2_000, 20_000, 200_000][self.rng.below(4) as usize]),
            3..=5 if !known.is_empty() => {
                SimFacts::Deletes(known[self.rng.below(known.len() as u64) as usize])
            }
            _ => SimFacts::None,
        };
        if facts.deletes().is_none() {
            self.written.push((own, conversation, id));
        }
        facts
    }

    pub(super) fn other_user(&self, device: usize) -> UserId {
        let own = self.devices[device].address().user;
        let users = ACCOUNTS.iter().map(|account| account.lists[1].list().user);
        users.into_iter().find(|user| *user != own).unwrap_or(own)
    }

    pub(super) fn direct_conversation(&self, device: usize) -> ConversationId {
        ConversationId::direct(self.devices[device].address().user, self.other_user(device))
    }

    pub(super) fn user_reads(&mut self, device: usize) {
        let conversation = self.direct_conversation(device);
        let seq = self.devices[device].store.cursor(conversation);
        self.device_step(device, Input::Read(crate::model::envelope::AckUpTo { conversation, seq }));
    }

    /// The user of a device blocks the other user, or ends the block.
    pub(super) fn change_contact(&mut self, device: usize, change: ContactChange) {
        let (own, other) = (self.devices[device].address().user, self.other_user(device));
        let _ = ready(self.contacts.change(own, other, change, usize::MAX));
        for server in self.servers.iter().flatten() {
            server.invalidate_caches();
        }
        let last = self.oracle.blocks.iter_mut().rev().find(|(owner, ..)| *owner == own);
        match (change, last) {
            (ContactChange::Block, _) => self.oracle.blocks.push((own, other, self.now..u64::MAX)),
            (ContactChange::Unblock, Some((.., times))) => times.end = self.now,
            _ => {}
        }
    }

    pub(super) fn crash_device(&mut self, device: usize) {
        if self.devices[device].replica.is_some() {
            self.report.device_crashes += 1;
            let connection = self.devices[device].connection;
            self.devices[device].crash();
            self.break_pipe_later(connection);
            self.soon(5000, Event::StartDevice(device));
        }
    }

    /// Drives a replica. The device may crash before any output.
    pub(super) fn device_step(&mut self, device: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        // Without a flush, the changes gather for a later commit.
        if self.rng.chance(80) {
            inputs.push_back(Input::Flush);
        }
        while let Some(input) = inputs.pop_front() {
            let now = self.time();
            let Some(replica) = self.devices[device].replica.as_mut() else {
                return;
            };
            let mut outputs = Vec::new();
            replica.step(now, input, &mut outputs);
            let mut answers = VecDeque::new();
            for output in outputs {
                if self.device_crash > 0 && self.rng.below(1000) < self.device_crash {
                    return self.crash_device(device);
                }
                self.device_output(device, output, &mut answers);
            }
            // Answers come before all other waiting inputs.
            while let Some(answer) = answers.pop_back() {
                inputs.push_front(answer);
            }
        }
        self.arm_device(device);
    }

    pub(super) fn device_output(&mut self, device: usize, output: Output, answers: &mut VecDeque<Input>) {
        let one = &mut self.devices[device];
        match output {
            Output::Dial => {
                self.last_pipe += 1;
                let (id, boot) = (self.last_pipe, one.boot);
                let delay = self.network.delay;
                self.soon(delay, Event::Dialled(device, boot, id));
            }
            Output::Hangup => {
                let connection = one.connection.take();
                self.break_pipe_later(connection);
            }
            Output::Hello { nonce, incarnation, generation, epoch } => {
                let address = one.address();
                let claims = HelloClaims {
                    authority: String::new(),
                    nonce,
                    version: crate::model::limits::WIRE_VERSION,
                    token: String::new(),
                    user: address.user,
                    device: address.device,
                    incarnation,
                    generation,
                };
                let signature = sign(address, &claims.transcript());
                let hello = Hello { claims, store_epoch: epoch, signature };
                self.send_to_server(device, ClientFrame::Hello(Box::new(hello)));
            }
            Output::Send(frame) => self.send_to_server(device, frame),
            Output::Open(row, list) => {
                if one.has_opened && one.replica.as_ref().is_some_and(Replica::isolates_rows) {
                    self.oracle.broken(
                        "isolation",
                        format!("row {} is opened in the transaction of another row", row.seq),
                    );
                }
                one.has_opened = true;
                answers.push_back(Input::Opened(one.open(&row, list.as_ref())));
            }
            Output::Compare { conversation, seq, sender, id } => {
                answers.push_back(Input::Compared(one.store.at_seq(conversation, seq, sender, id)));
            }
            Output::Recall(asker, conversation, id) => {
                let content = one.recall(asker, conversation, id);
                answers.push_back(Input::Recalled(asker, conversation, id, content));
            }
            Output::EndSession(peer) => one.end_session(peer),
            Output::Seal { draft, number, lists, excluded, group } => {
                let sealed = match group {
                    Some(group) => one.seal_for_group(&draft, number, &lists, &excluded, &group),
                    None => one.seal(&draft, number, &lists, &excluded),
                };
                if let Ok(publish) = &sealed {
                    let without = publish.excluded.iter().map(|device| (draft.id, *device));
                    self.oracle.excluded.extend(without);
                }
                answers.push_back(Input::Sealed(sealed));
            }
            Output::Bundles(_, bundles) => one.start_sessions(bundles, &mut self.rng),
            Output::Forget(incarnation) => one.forget(incarnation),
            Output::MakePrekeys { replace, .. } => {
                answers.push_back(Input::Prekeys(one.make_prekeys(replace)));
            }
            Output::Commit(changes, ticket) => {
                let installation = one.address().installation;
                for change in &changes.list {
                    let changes_group = matches!(change, crate::replica::Change::GroupChanged(..));
                    self.report.group_changes += u64::from(changes_group);
                    if let crate::replica::Change::Queued(draft) = change
                        && matches!(draft.to, Recipient::Group(_))
                        && (draft.content.is_empty() && draft.action.is_none())
                    {
                        self.oracle.silent.insert(draft.id);
                    } else if let crate::replica::Change::Refused(id, _) = change {
                        self.oracle.refused.insert(*id);
                    } else if let crate::replica::Change::Queued(draft) = change
                        && !matches!(draft.to, Recipient::Device(_))
                    {
                        self.oracle.sent.entry(installation).or_default().push(draft.id);
                        self.oracle.queued.entry(draft.id).or_insert(self.now);
                        self.report.sent += 1;
                    }
                }
                for (conversation, id, seq) in one.commit(changes) {
                    if conversation.kind() == Ok(ConversationKind::Mailbox) {
                        continue;
                    }
                    if self.oracle.server_restored.is_some()
                        && message_at(&self.tables.lock(), conversation, seq) != Some((installation, id))
                    {
                        // The confirmation is older than the restore.
                        continue;
                    }
                    self.oracle.acked(installation, conversation, id, seq);
                    self.oracle.stored.entry(id).or_insert(self.now);
                    self.report.acked += 1;
                }
                answers.push_back(Input::Committed(ticket));
            }
            Output::Answer(..) | Output::Event(_) => {}
        }
    }

    pub(super) fn arm_device(&mut self, device: usize) {
        let one = &self.devices[device];
        if let Some(at) = one.replica.as_ref().and_then(|replica| replica.deadline()) {
            let boot = one.boot;
            self.at(at.as_millis().max(self.now + 1), Event::DeviceTimer(device, boot));
        }
    }
}
