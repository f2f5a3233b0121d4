//! Ephemeral events, which may be lost: receipts, typing notifications, presence.

use std::sync::Arc;

use futures_util::future::join_all;

use super::Engine;
use crate::backend::SenderFilter;
use crate::model::client_frame::GroupReceipt;
use crate::model::envelope::AckUpTo;
use crate::model::error::Result;
use crate::model::id::{ConversationId, ConversationKind, DeviceAddress, UserId};
use crate::model::presence::UserPresence;
use crate::model::session_event::{Hint, SessionEvent};

/// Milliseconds for which a gateway remembers the members of a group, so that a message that all of them answer is not as
/// many reads of the roster. A member that was removed may send hints for as long, and a new one may miss some.
const GROUP_MEMBERS_MS: u64 = 10_000;
/// Decisions about the presence of watched users that are read at the same time.
const DECISIONS: usize = 16;

impl Engine {
    /// Sends a delivery receipt, or a read receipt (`read`), to the other users of a conversation that are contacts. A read
    /// receipt also goes to the user's other devices; in a group to these only, because receipts of a group name their users
    /// ([`group_receipt`](Self::group_receipt)).
    pub async fn receipt(&self, device: DeviceAddress, at: AckUpTo, read: bool) {
        if at.conversation.has_roster() && !read {
            return;
        }
        let (delivered, seen) = if read { (0, at.seq) } else { (at.seq, 0) };
        let hint = Hint::Receipt { conversation: at.conversation, user: device.user, delivered, read: seen };
        if at.conversation.is_channel() {
            // The readers of a channel are no members, and other users do not learn what they read.
            return self.hint_to_users(device, &[device.user], &hint).await;
        }
        self.deliver_to_members(device, at.conversation, hint, read).await;
    }

    /// Sends a receipt in a group to the members that it names.
    pub async fn group_receipt(&self, device: DeviceAddress, receipt: GroupReceipt) {
        let GroupReceipt { conversation, delivered, read, to } = receipt;
        let Ok(Some(members)) = self.members_of(conversation).await else { return };
        if conversation.kind() != Ok(ConversationKind::Group) || !members.contains(&device.user) {
            return;
        }
        let mut others = Vec::with_capacity(to.len());
        for user in to.into_iter().filter(|user| *user != device.user && members.contains(user)) {
            if self.shows_receipts(device.user, user).await {
                others.push(user);
            }
        }
        self.hint(&others, &Hint::Receipt { conversation, user: device.user, delivered, read }).await;
    }

    /// Sends a typing notification to the other users of a conversation that are contacts. In a group it goes to all members
    /// without a block between them; the session of a device passes it on only while the user looks at the group. A channel has
    /// none.
    pub async fn typing(&self, device: DeviceAddress, conversation: ConversationId) {
        if conversation.is_channel() {
            return;
        }
        self.deliver_to_members(device, conversation, Hint::Typing(conversation, device.user), false).await;
    }

    async fn deliver_to_members(
        &self,
        from: DeviceAddress,
        conversation: ConversationId,
        hint: Hint,
        own_devices: bool,
    ) {
        let Ok(Some(members)) = self.members_of(conversation).await else {
            return;
        };
        if !members.contains(&from.user) {
            return;
        }
        let is_group = conversation.kind() == Ok(ConversationKind::Group);
        let mut others = Vec::with_capacity(members.len());
        for user in members.iter().copied().filter(|user| own_devices || *user != from.user) {
            let is_shown = match is_group {
                // Read positions of a group go to the senders, as receipts of their own.
                true if own_devices => user == from.user,
                true => self.shows_receipts(from.user, user).await,
                false => self.shows_activity(from.user, user).await,
            };
            if is_shown {
                others.push(user);
            }
        }
        self.hint_to_users(from, &others, &hint).await;
    }

    /// Sends a hint to all devices of users but the one that it comes from.
    async fn hint_to_users(&self, from: DeviceAddress, users: &[UserId], hint: &Hint) {
        let routes = self.backends.registry.lookup(users).await.unwrap_or_default();
        let others = routes.into_iter().filter(|route| route.device.installation != from.installation);
        self.deliver(others.map(|route| (route, vec![SessionEvent::Hint(hint.clone())])).collect()).await;
    }

    async fn members_of(&self, conversation: ConversationId) -> Result<Option<Arc<[UserId]>>> {
        if matches!(conversation.kind(), Ok(ConversationKind::Mailbox) | Err(_)) {
            return Ok(None);
        }
        let now = self.now_ms();
        if let Some(known) = self.members.get(&conversation)
            && now < known.1
        {
            return Ok(Some(known.0.clone()));
        }
        let Some(state) = self.backends.store.state(conversation, SenderFilter::No, None).await? else {
            return Ok(None);
        };
        let members: Arc<[UserId]> = state.roster.members.iter().map(|m| m.user).collect();
        if self.members.len() > 100_000 {
            self.members.clear();
        }
        let until = match conversation.kind() {
            Ok(kind) if kind.has_roster() => now.saturating_add(GROUP_MEMBERS_MS),
            // The members do not change once the first message of a direct conversation named both.
            Ok(ConversationKind::Direct) if members.len() < 2 => now,
            _ => u64::MAX,
        };
        self.members.insert(conversation, (members.clone(), until));
        Ok(Some(members))
    }

    /// Returns whether each of these users is online, or when it was last seen. A user whose audience does not include the
    /// asking device's user looks like one that does not exist.
    pub async fn presence(&self, asker: DeviceAddress, users: &[UserId]) -> Vec<(UserId, UserPresence)> {
        let present = self.backends.presence.query(users, self.now_ms()).await.unwrap_or_default();
        // All users are decided in the same way: also those that look hidden anyway.
        let mut shown = Vec::with_capacity(users.len());
        for some in users.chunks(DECISIONS) {
            shown.extend(join_all(some.iter().map(|user| self.shows_presence(*user, asker.user))).await);
        }
        let answers = users.iter().zip(present).zip(shown);
        answers
            .map(|((user, present), shown)| (*user, if shown { present } else { UserPresence::HIDDEN }))
            .collect()
    }
}
