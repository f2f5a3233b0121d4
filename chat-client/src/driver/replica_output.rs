//! Carries out the outputs of the replica.

use std::collections::VecDeque;
use std::time::{Duration, UNIX_EPOCH};

use chat_core::limits::WIRE_VERSION;
use chat_core::presence::UserPresence;
use chat_core::replica::{Change, Changes, Ephemeral, Input, Output, Stopped};
use chat_core::signing::HelloClaims;
use chat_core::wire::{ClientFrame, Hello};
use chat_core::{MessageId, Result};

use super::Driver;
use crate::connection_state::ConnectionState;
use crate::event::{Event, Presence};
use crate::send::Enqueued;

impl Driver {
    pub(super) fn step(&mut self, input: Input) -> Result<()> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut outputs = Vec::new();
            let now = self.now();
            self.replica.step(now, input, &mut outputs);
            let mut answers = Vec::new();
            for output in outputs {
                if let Some(answer) = self.carry_out(output)? {
                    answers.push(answer);
                }
            }
            answers.into_iter().rev().for_each(|answer| inputs.push_front(answer));
        }
        self.leave_groups()
    }

    fn carry_out(&mut self, output: Output) -> Result<Option<Input>> {
        match output {
            Output::Dial => {
                let dialer = self.owner.config.dialer.clone();
                self.dialing = Some(Box::pin(async move { dialer.dial().await }));
            }
            Output::Hangup => {
                self.out.clear();
                self.transport = None;
                self.dialing = None;
            }
            Output::Hello { nonce, incarnation, generation, epoch } => {
                let claims = HelloClaims {
                    authority: self.owner.config.dialer.authority().to_owned(),
                    token: self.token.begin(nonce.clone()),
                    nonce,
                    version: WIRE_VERSION,
                    user: self.account.device.user,
                    device: self.account.device.device,
                    incarnation,
                    generation,
                };
                let signature = self.account.sign(&claims.transcript());
                let hello = Hello { claims, store_epoch: epoch, signature };
                self.out.push(ClientFrame::Hello(Box::new(hello)).encode());
            }
            Output::Send(frame) => self.out.push(frame.encode()),
            Output::Open(row, list) => return self.open(&row, list.as_ref()).map(|o| Some(Input::Opened(o))),
            Output::Compare { conversation, seq, sender, id } => {
                return self.store.at_seq(conversation, seq, sender, id).map(|at| Some(Input::Compared(at)));
            }
            Output::Recall(asker, conversation, id) => {
                let content = self.store.recall(conversation, id, asker)?;
                return Ok(Some(Input::Recalled(asker, conversation, id, content)));
            }
            Output::EndSession(peer) => {
                self.call_suite_alone(|suite, store| suite.end_session(store, peer))?;
            }
            Output::Seal { draft, number, lists, excluded, group } => {
                return self
                    .seal(&draft, number, &lists, &excluded, group.as_deref())
                    .map(|sealed| Some(Input::Sealed(sealed)));
            }
            Output::Bundles(list, bundles) => self.begin_sessions(&list, bundles)?,
            Output::Forget(incarnation) => {
                self.call_suite_alone(|suite, store| suite.reset(store))?;
                self.store.set_meta("last_prekey", &(u64::from(incarnation) << 20).to_be_bytes())?;
            }
            Output::MakePrekeys { replace, count } => {
                return self.make_prekeys(replace, u64::from(count)).map(|p| Some(Input::Prekeys(p)));
            }
            Output::Commit(changes, ticket) => {
                self.commit(changes)?;
                return Ok(Some(Input::Committed(ticket)));
            }
            Output::Answer(token, answer) => self.answered(token, answer)?,
            Output::Event(event) => self.ephemeral(event)?,
            _ => {}
        }
        Ok(None)
    }

    fn commit(&mut self, changes: Changes) -> Result<()> {
        let (mut queued, mut stored) = (Vec::new(), Vec::new());
        for change in &changes.list {
            match change {
                Change::Queued(draft) => queued.push(draft.id),
                Change::Stored(conversation, id, _) => {
                    stored.push(*conversation);
                    self.settings.message_ended(*id);
                    self.owner.waiters.tickets.message_changed(*id);
                }
                Change::Refused(id, _) => {
                    self.settings.message_ended(*id);
                    self.owner.waiters.tickets.message_changed(*id);
                }
                Change::Receipt(conversation, ..) => {
                    self.owner.waiters.tickets.receipt_changed(*conversation)
                }
                // A new device of this user needs the settings.
                Change::List(list, _) if list.list().user == self.account.device.user => {
                    self.settings.is_due = true;
                }
                Change::WentBack(..) => self.settings.is_due = true,
                Change::Prekeys(_) => self.stand(ConnectionState::prekeys_stored),
                // Rows of the new data set have the seqs of old ones.
                Change::NewEpoch(_) => self.owner.rejected.clear(),
                _ => {}
            }
        }
        self.drop_sender_keys(&changes)?;
        self.call_suite_alone(|suite, store| suite.flush(store))?;
        if self.marked && !self.replica.has_rows() {
            self.store.remove_opening_mark()?;
            self.marked = false;
        }
        self.note_unwanted_groups(&changes)?;
        let receipts = self.receipts_in_groups(&changes)?;
        self.store.commit(changes)?;
        self.owner.channels.last.send_replace(self.store.last_event()?);
        for conversation in stored {
            self.accept_recipient(conversation)?;
        }
        receipts.into_iter().for_each(|receipt| self.pass(receipt));
        self.answer_queued(&queued);
        for (change, reply) in std::mem::take(&mut self.changing) {
            if queued.contains(&change.1) {
                let _ = reply.send(Ok(change));
            } else {
                self.changing.push((change, reply));
            }
        }
        self.owner.waiters.tickets.answer(&self.store);
        if self.replica.outbox_len() == 0 {
            self.owner.waiters.answer_drained();
        }
        Ok(())
    }

    fn answer_queued(&mut self, ids: &[MessageId]) {
        for (message, reply) in std::mem::take(&mut self.queued) {
            if ids.contains(&message) {
                let _ = reply.send(Ok(Enqueued { message, repeated: false }));
            } else {
                self.queued.push((message, reply));
            }
        }
    }

    fn ephemeral(&mut self, event: Ephemeral) -> Result<()> {
        match event {
            Ephemeral::Connected => self.stand(ConnectionState::connected),
            Ephemeral::Disconnected => {
                self.accepting.clear();
                self.abandon_subscriptions();
                self.stand(ConnectionState::disconnected);
            }
            Ephemeral::CaughtUp => self.stand(ConnectionState::caught_up),
            Ephemeral::Stopped(Stopped::Unauthorized) if self.token.is_replaced() => {
                self.restart_due = true;
            }
            Ephemeral::Stopped(Stopped::Unauthorized) => {
                self.stand(|state| state.stopped(Event::TokenRequired))
            }
            Ephemeral::Stopped(Stopped::Version) => self.stand(|state| state.stopped(Event::UpdateRequired)),
            Ephemeral::Stopped(_) => self.stand(|state| state.stopped(Event::Superseded)),
            Ephemeral::Throttled(wait) => self.throttled(wait),
            Ephemeral::Slow => self.pass(Event::Slow),
            Ephemeral::Typing(conversation, user) => {
                self.pass(Event::Typing { conversation, user: self.store.user(user)? });
            }
            Ephemeral::Presence(user, presence) => {
                let presence = match presence {
                    UserPresence::Online => Presence::Online,
                    UserPresence::Offline { last_seen_ms } => {
                        let at = |ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms));
                        Presence::Offline { last_seen: last_seen_ms.and_then(at) }
                    }
                };
                self.pass(Event::Presence { user: self.store.user(user)?, presence });
            }
            Ephemeral::Excluded(user, installations) => {
                let list = self.replica.list(user).map(|list| list.list().addresses().collect::<Vec<_>>());
                let user = self.store.user(user)?;
                for device in list.into_iter().flatten().filter(|d| installations.contains(&d.installation)) {
                    self.pass(Event::DeviceExcluded { user: user.clone(), device: device.device });
                }
            }
            Ephemeral::ListHidden(user) => {
                self.pass(Event::DeviceListHidden { user: self.store.user(user)? })
            }
            _ => {}
        }
        Ok(())
    }
}
