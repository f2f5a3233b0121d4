//! Contacts of this user: changes, the copy of the server's list, and reports.

use chat_core::contact::{Contact, ContactChange, Contacts};
use chat_core::presence::PresenceAudience;
use chat_core::replica::Input;
use chat_core::report::{Report, ReportedMessage};
use chat_core::wire::{Request, ServerFrame};
use chat_core::{ConversationId, ConversationKind, Error, ErrorKind, Result, Seq, UserId};

use super::{Driver, Reply, Waiting};
use crate::contact;
use crate::event::Event;

impl Driver {
    /// Compares the version of the stored contacts with that of the server.
    pub(super) fn compare_contacts(&mut self, frame: &ServerFrame) -> Result<()> {
        let version = match frame {
            ServerFrame::Welcome(welcome) => welcome.contacts_version,
            ServerFrame::ContactsChanged(version) => *version,
            _ => return Ok(()),
        };
        let known = self.store.contacts_version()?;
        if version > known {
            self.contacts_due = true;
        } else if version < known && matches!(frame, ServerFrame::Welcome(_)) {
            // The server was restored from an older copy, which lacks changes. Each connection compares the contacts until
            // the server has all of them.
            self.step(Input::Flush)?;
            self.store.set_contacts_version(u64::MAX)?;
            self.store.commit_open()?;
            self.contacts_due = true;
        }
        Ok(())
    }

    /// Records that a message to a conversation was stored: this accepts its user.
    pub(super) fn accept_recipient(&mut self, conversation: ConversationId) -> Result<()> {
        if conversation.kind() == Ok(ConversationKind::Direct)
            && self.accepting.insert(conversation)
            && let Some(peer) = self.store.peer(conversation)?
            && !self.store.contact(peer)?.accepted
        {
            self.contact_changes.push((peer, ContactChange::Accept));
        }
        Ok(())
    }

    /// Sends the requests about contacts that are due.
    pub(super) fn request_contacts(&mut self) -> Result<()> {
        if !self.replica.is_live() {
            return Ok(());
        }
        for (user, change) in std::mem::take(&mut self.contact_changes) {
            self.request(Request::ChangeContact(user, change), Waiting::Contact(user, change, None))?;
        }
        if let Some(audience) = self.audience_due.take() {
            self.request(Request::SetPresenceAudience(audience), Waiting::Audience(audience, None))?;
        }
        if std::mem::take(&mut self.contacts_due) {
            self.request(Request::Contacts, Waiting::Contacts)?;
        }
        Ok(())
    }

    pub(super) fn change_contact(
        &mut self,
        user: UserId,
        change: ContactChange,
        reply: Reply<()>,
    ) -> Result<()> {
        if user == self.account.device.user {
            let _ =
                reply.send(Err(Error::new(ErrorKind::Invalid, "the own user cannot be accepted or blocked")));
            return Ok(());
        }
        self.request(Request::ChangeContact(user, change), Waiting::Contact(user, change, Some(reply)))
    }

    pub(super) fn set_audience(&mut self, audience: PresenceAudience, reply: Reply<()>) -> Result<()> {
        self.request(Request::SetPresenceAudience(audience), Waiting::Audience(audience, Some(reply)))
    }

    /// Takes over a change that the server stored. `version` is that of the contacts after it.
    pub(super) fn contact_changed(
        &mut self,
        user: UserId,
        change: ContactChange,
        version: u64,
    ) -> Result<()> {
        let before = self.store.contact(user)?;
        let after = change.apply(before);
        self.step(Input::Flush)?;
        self.store.set_contact(user, after)?;
        self.take_version(version)?;
        self.store.commit_open()?;
        self.report_relations(if after == before { &[] } else { std::slice::from_ref(&user) })
    }

    /// Takes over an audience of the presence that the server stored. `version` is that of the contacts after it.
    pub(super) fn audience_changed(&mut self, audience: PresenceAudience, version: u64) -> Result<()> {
        let before = self.store.presence_audience()?;
        self.step(Input::Flush)?;
        self.store.set_presence_audience(audience)?;
        self.take_version(version)?;
        self.store.commit_open()?;
        self.report_audience(before)
    }

    /// Takes over the version of the contacts after a change by this device.
    fn take_version(&mut self, version: u64) -> Result<()> {
        let known = self.store.contacts_version()?;
        if version.checked_sub(1) == Some(known) {
            self.store.set_contacts_version(version)?;
        } else if version > known {
            // Another device changed some, too.
            self.contacts_due = true;
        } else if version < known {
            // The server lacked this change, and may lack others.
            let is_change = |one: &Waiting| matches!(one, Waiting::Contact(..) | Waiting::Audience(..));
            self.contacts_due |= !self.waiting.values().any(is_change);
        }
        Ok(())
    }

    /// Takes over all contacts of the server. If it lacks changes of this user, makes these again first.
    pub(super) fn contacts_received(&mut self, contacts: &Contacts) -> Result<()> {
        /// Maximum number of changes that are made again at once: the server limits their rate.
        const REPEATED: usize = 100;
        if contacts.version < self.store.contacts_version()? {
            let missing = self.store.changes_missing_from(contacts)?;
            self.contact_changes.extend(missing.into_iter().take(REPEATED));
            let own = self.store.presence_audience()?;
            // This device may have missed a later change: a restored server must not show more than before.
            self.audience_due = own.is_narrower_than(contacts.audience).then_some(own);
            if !self.contact_changes.is_empty() || self.audience_due.is_some() {
                return Ok(());
            }
        }
        self.step(Input::Flush)?;
        let before = self.store.presence_audience()?;
        let changed = self.store.replace_contacts(contacts)?;
        self.store.commit_open()?;
        self.report_audience(before)?;
        self.report_relations(&changed)
    }

    fn report_audience(&self, before: PresenceAudience) -> Result<()> {
        let audience = self.store.presence_audience()?;
        if audience != before {
            self.pass(Event::PresenceAudienceChanged { audience });
        }
        Ok(())
    }

    fn report_relations(&self, users: &[UserId]) -> Result<()> {
        for user in users {
            let relation = self.store.relation(*user)?;
            self.pass(Event::RelationChanged { user: self.store.user(*user)?, relation });
        }
        Ok(())
    }

    pub(super) fn contacts(&self) -> Result<Vec<contact::Contact>> {
        let entries = self.store.contacts()?.entries.into_iter();
        entries
            .filter(|(_, entry)| *entry != Contact::default())
            .map(|(user, _)| {
                Ok(contact::Contact { user: self.store.user(user)?, relation: self.store.relation(user)? })
            })
            .collect()
    }

    pub(super) fn report(
        &mut self,
        conversation: ConversationId,
        user: UserId,
        seqs: Vec<Seq>,
        note: String,
        reply: Reply<()>,
    ) -> Result<()> {
        let mut messages = Vec::with_capacity(seqs.len());
        for seq in seqs {
            let Some(body_key) = self.store.body_key(conversation, seq)? else {
                let what = "this device does not have the key of the message";
                let _ = reply.send(Err(Error::new(ErrorKind::NotFound, what)));
                return Ok(());
            };
            messages.push(ReportedMessage { seq, body_key });
        }
        let report = Report { conversation, user, messages, note };
        self.request(Request::Report(report), Waiting::Report(reply))
    }
}
