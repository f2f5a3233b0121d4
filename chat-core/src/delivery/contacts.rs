//! Contacts, strangers and blocked users: the activity of a user that another user learns, and reports.

use std::sync::atomic::Ordering;

use futures_util::future::{try_join, try_join3};

use super::Engine;
use crate::backend::{PageLimit, SenderFilter};
use crate::model::body_key;
use crate::model::contact::{Contact, ContactChange};
use crate::model::envelope::{InboxRow, RowContent};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{ConversationId, DeviceAddress, Seq, UserId};
use crate::model::limits::MAX_CONTACTS;
use crate::model::presence::PresenceAudience;
use crate::model::report::{Report, VerifiedReport};
use crate::model::session_event::{Hint, SessionEvent};
use crate::mutant::Mutant;

/// Milliseconds for which a gateway remembers whether a user may learn the presence of another one.
const PRESENCE_MS: u64 = 5_000;

impl Engine {
    /// Returns the decision of `owner` about `other`, from the cache if that is fresh enough.
    pub(super) async fn contact(&self, owner: UserId, other: UserId) -> Result<Contact> {
        let now = self.now_ms();
        if let Some(known) = self.decided.get(&(owner, other))
            && now < known.1.saturating_add(self.lasts_ms(owner, known.1))
        {
            return Ok(known.0);
        }
        let before = self.decisions_changed.load(Ordering::Acquire);
        let contact = self.backends.contacts.contact(owner, other).await?;
        if self.decisions_changed.load(Ordering::Acquire) == before {
            if self.decided.len() > 100_000 {
                self.decided.clear();
            }
            self.decided.insert((owner, other), (contact, now));
        }
        Ok(contact)
    }

    /// Returns whether `owner` has blocked `other`.
    pub(super) async fn has_blocked(&self, owner: UserId, other: UserId) -> Result<bool> {
        Ok(self.contact(owner, other).await?.blocked && !Mutant::BlockIgnored.is_active())
    }

    /// Returns whether `other` is no stranger to `owner`, which accepted it or wrote to it. A block does not count.
    pub(super) async fn knows(&self, owner: UserId, other: UserId) -> Result<bool> {
        if self.wrote.contains_key(&(owner, other)) || self.contact(owner, other).await?.accepted {
            return Ok(true);
        }
        let id = ConversationId::direct(owner, other);
        let state = self.backends.store.state(id, SenderFilter::All, None).await?;
        let wrote = state.is_some_and(|state| {
            let own = state.roster.member(owner);
            own.is_some_and(|member| member.installations.iter().any(|i| state.senders.contains_key(i)))
        });
        if wrote {
            if self.wrote.len() > 100_000 {
                self.wrote.clear();
            }
            self.wrote.insert((owner, other), ());
        }
        Ok(wrote)
    }

    /// Returns whether `other` may learn what `owner` does: receipts and typing notifications. A stranger may not, and
    /// neither of two users of which one blocked the other. A failed read counts as no.
    pub(super) async fn shows_activity(&self, owner: UserId, other: UserId) -> bool {
        if owner == other || Mutant::ActivityShownToAll.is_active() {
            return true;
        }
        let may = async {
            let is_blocked = self.has_blocked(owner, other).await? || self.has_blocked(other, owner).await?;
            Ok::<_, Error>(!is_blocked && self.knows(owner, other).await?)
        };
        may.await.unwrap_or(false)
    }

    /// Returns whether `other` may learn whether `owner` is online, and when it was last seen: `other` belongs to the audience
    /// that `owner` has set, and neither has blocked the other. A failed read counts as no.
    ///
    /// A decision counts for [`PRESENCE_MS`], because a device that watches users asks again each second.
    pub(super) async fn shows_presence(&self, owner: UserId, other: UserId) -> bool {
        if owner == other || Mutant::AudienceIgnored.is_active() {
            return true;
        }
        let (now, changes) = (self.now_ms(), self.decisions_changed.load(Ordering::Acquire));
        if let Some(known) = self.presence_shown.get(&(owner, other))
            && known.1 == changes
            && now < known.2
        {
            return known.0;
        }
        let Ok(is_shown) = self.is_in_audience(owner, other).await else { return false };
        if self.presence_shown.len() > 100_000 {
            self.presence_shown.clear();
        }
        self.presence_shown.insert((owner, other), (is_shown, changes, now.saturating_add(PRESENCE_MS)));
        is_shown
    }

    /// Reads the same for every user, so that the time of the answer does not show the reason.
    async fn is_in_audience(&self, owner: UserId, other: UserId) -> Result<bool> {
        let blocks = try_join(self.has_blocked(owner, other), self.has_blocked(other, owner));
        let (blocks, audience, knows) =
            try_join3(blocks, self.audience(owner), self.knows(owner, other)).await?;
        let is_member = match audience {
            PresenceAudience::All => true,
            PresenceAudience::Contacts => knows,
            PresenceAudience::Nobody => false,
        };
        Ok(is_member && blocks == (false, false))
    }

    /// Returns the users that learn the presence of `owner`, from the cache if that is fresh enough.
    async fn audience(&self, owner: UserId) -> Result<PresenceAudience> {
        let now = self.now_ms();
        if let Some(known) = self.audiences.get(&owner)
            && now < known.1.saturating_add(self.lasts_ms(owner, known.1))
        {
            return Ok(known.0);
        }
        let before = self.decisions_changed.load(Ordering::Acquire);
        let audience = self.backends.contacts.audience(owner).await?;
        if self.decisions_changed.load(Ordering::Acquire) == before {
            if self.audiences.len() > 100_000 {
                self.audiences.clear();
            }
            self.audiences.insert(owner, (audience, now));
        }
        Ok(audience)
    }

    /// Changes the users that learn the presence of a device's user, and returns the version of the contacts.
    pub(super) async fn set_audience(
        &self,
        device: DeviceAddress,
        audience: PresenceAudience,
    ) -> Result<u64> {
        let changed = self.backends.contacts.set_audience(device.user, audience).await;
        self.decisions_changed.fetch_add(1, Ordering::AcqRel);
        self.audiences.remove(&device.user);
        let version = changed?;
        self.contacts_changed(device, version).await;
        Ok(version)
    }

    /// Notifies the other devices of a user of a new version of its contacts.
    async fn contacts_changed(&self, device: DeviceAddress, version: u64) {
        let routes = self.backends.registry.lookup(&[device.user]).await.unwrap_or_default();
        let own = routes.into_iter().filter(|route| route.device.installation != device.installation);
        let changed = SessionEvent::Hint(Hint::ContactsChanged(version));
        self.deliver(own.map(|route| (route, vec![changed.clone()])).collect()).await;
    }

    /// Returns whether a member of a group may learn how far another one received and read it: neither has blocked the
    /// other. A failed read counts as no.
    pub(super) async fn shows_receipts(&self, owner: UserId, other: UserId) -> bool {
        let may = async {
            Ok::<_, Error>(!self.has_blocked(owner, other).await? && !self.has_blocked(other, owner).await?)
        };
        may.await.unwrap_or(false)
    }

    /// Changes the decision of a device's user about another user, and returns the version of the contacts. After an
    /// acceptance, and after a block ends, the other user learns how far its messages were delivered and read.
    pub(super) async fn change_contact(
        &self,
        device: DeviceAddress,
        other: UserId,
        change: ContactChange,
    ) -> Result<u64> {
        let owner = device.user;
        if other == owner {
            return Err(Error::new(ErrorKind::Invalid, "a user is no contact of itself"));
        }
        let changed = self.backends.contacts.change(owner, other, change, MAX_CONTACTS).await;
        // A failed change may still be stored. A decision whose read began earlier must not be cached.
        self.decisions_changed.fetch_add(1, Ordering::AcqRel);
        self.decided.remove(&(owner, other));
        let version = changed?;
        self.contacts_changed(device, version).await;
        if change != ContactChange::Block && self.shows_activity(owner, other).await {
            self.show_progress(owner, other).await;
        }
        Ok(version)
    }

    /// Sends the devices of `other` the position up to which devices of `owner` received their conversation, and requests
    /// the read position from the latter. Both are hints, which may be lost.
    async fn show_progress(&self, owner: UserId, other: UserId) {
        let conversation = ConversationId::direct(owner, other);
        let state = self.backends.store.state(conversation, SenderFilter::No, None).await.ok().flatten();
        let members = state.map(|state| state.roster.members).unwrap_or_default();
        if let Ok(delivered @ 1..) = self.acknowledged(conversation, &members, &[owner]).await {
            let hint = Hint::Receipt { conversation, user: owner, delivered, read: 0 };
            self.hint(&[other], &hint).await;
        }
        self.hint(&[owner], &Hint::ReadRequested(conversation, None)).await;
    }

    /// Delivers a hint to all connected devices of these users.
    pub(super) async fn hint(&self, users: &[UserId], hint: &Hint) {
        let routes = self.backends.registry.lookup(users).await.unwrap_or_default();
        let event = |route| (route, vec![SessionEvent::Hint(hint.clone())]);
        self.deliver(routes.into_iter().map(event).collect()).await;
    }

    /// Checks the reported messages against the stored ones, and passes the report on.
    pub(super) async fn report(&self, device: DeviceAddress, report: Report) -> Result<()> {
        let Report { conversation, user, messages, note } = report;
        let state = self.backends.store.state(conversation, SenderFilter::No, None).await?;
        let members = state.map(|state| state.roster.members).unwrap_or_default();
        if user == device.user || ![user, device.user].iter().all(|u| members.iter().any(|m| m.user == *u)) {
            return Err(Error::new(ErrorKind::NotFound, "no such conversation"));
        }
        let mut verified = Vec::with_capacity(messages.len());
        for reported in messages {
            let row = self.history_row(conversation, reported.seq).await?;
            let message = match row.map(|row| row.content) {
                Some(RowContent::Message { message, .. }) if message.sender.user == user => message,
                _ => return Err(Error::new(ErrorKind::NotFound, "the server does not have the message")),
            };
            if !body_key::is_key_of(&reported.body_key, &message.body) {
                return Err(Error::new(ErrorKind::Invalid, "the key is not that of the message"));
            }
            verified.push((reported.seq, message.as_ref().clone(), reported.body_key));
        }
        self.backends
            .reports
            .submit(VerifiedReport {
                conversation,
                reported_by: device.user,
                user,
                reported_at: self.now_ms(),
                messages: verified,
                note,
            })
            .await
    }

    async fn history_row(&self, conversation: ConversationId, seq: Seq) -> Result<Option<InboxRow>> {
        let rows = self.backends.store.history(conversation, seq + 1, PageLimit::rows(1)).await?;
        Ok(rows.into_iter().find(|row| row.seq == seq))
    }
}
