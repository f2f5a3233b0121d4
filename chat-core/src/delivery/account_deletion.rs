//! Deletion of an account.

use std::sync::atomic::Ordering;

use super::Engine;
use crate::model::close_reason::CloseReason;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{DeviceAddress, Handle, UserId};
use crate::model::session_event::SessionEvent;
use crate::model::signing::{deletion_transcript, verify};

impl Engine {
    /// Deletes the account of a device, which sent the signature of its account key. An answer means that everything stored
    /// until then is erased. A node with a cached device list may accept a message for the devices after that, for as long as
    /// [`EngineSettings::lists_ms`](super::EngineSettings::lists_ms). Retention removes such rows, and those of a deletion
    /// without an answer.
    pub(super) async fn delete_own_account(&self, device: DeviceAddress, signature: &[u8]) -> Result<()> {
        let newest = self.device_list(device.user).await?;
        let list = newest.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such account"))?;
        verify(list.account_key(), &deletion_transcript(device.user, list.list().version), signature)?;
        self.delete_user(device.user).await
    }

    /// Deletes the account of a handle, for an operator. The handle is free afterwards.
    ///
    /// # Errors
    /// `NotFound` if there is no such user. `Unavailable`: a part may be erased, so repeat the call; rows that are left are
    /// removed by retention.
    pub async fn delete_account(&self, handle: &Handle) -> Result<()> {
        let user = self.backends.keys.resolve(handle).await?;
        self.delete_user(user.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such user"))?).await
    }

    /// Deletes a user. An error of one step does not keep the others from being done, because a deleted user cannot be named
    /// again.
    async fn delete_user(&self, user: UserId) -> Result<()> {
        let devices = self.backends.keys.delete(user).await?;
        // From here on this node accepts no message for the devices, so that no row follows the erased ones.
        self.lists_changed.fetch_add(1, Ordering::AcqRel);
        self.lists.remove(&user);
        let routes = self.backends.registry.lookup(&[user]).await.unwrap_or_default();
        let closed = |route| (route, vec![SessionEvent::Closed(CloseReason::Unauthorized)]);
        self.deliver(routes.into_iter().map(closed).collect()).await;
        // The cursors name the conversations, so all are read before any is erased.
        let mut outcome = self.clear_all_history(user, &devices).await;
        for device in devices {
            outcome = outcome.and(self.backends.store.erase(device).await);
        }
        outcome = outcome.and(self.backends.contacts.erase(user).await);
        outcome = outcome.and(self.backends.presence.forget(user).await);
        self.decisions_changed.fetch_add(1, Ordering::AcqRel);
        self.decided.retain(|(owner, _), _| *owner != user);
        self.audiences.remove(&user);
        outcome
    }
}
