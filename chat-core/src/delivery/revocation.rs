//! Revoked tokens: a time for each user before which no token of it counts.

use std::time::{Duration, SystemTime};

use super::Engine;
use crate::backend::Authenticated;
use crate::model::client_frame::Renewal;
use crate::model::close_reason::CloseReason;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::id::{DeviceAddress, Handle, UserId};
use crate::model::signing::{RenewalClaims, verify};

/// Age in milliseconds above which no token is accepted, so that revocations need not be read further back.
const MAX_TOKEN_AGE_MS: u64 = 400 * 24 * 3600 * 1000;
/// How far before the last read a read begins, in milliseconds: the clocks of nodes differ.
const OVERLAP_MS: u64 = 3600 * 1000;

/// Returns milliseconds since 1970.
fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Engine {
    /// Ends all tokens of a user that were issued before now, and the sessions that began with them: on this node at once, on
    /// the others when they [read the revocations](Self::read_revocations).
    ///
    /// # Errors
    /// `NotFound` if there is no such user. `Unavailable` if the revocation may not be stored: repeat the call.
    pub async fn revoke(&self, handle: &Handle) -> Result<()> {
        let user = self.backends.keys.resolve(handle).await?;
        let user = user.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such user"))?;
        let now = self.now_ms();
        self.backends.keys.revoke(user, now).await?;
        self.note_revocation(user, now);
        Ok(())
    }

    /// Reads the revocations of all nodes, and closes the sessions that they end. The embedder calls this before it accepts
    /// connections, and then at least every 30 s.
    ///
    /// # Errors
    /// `Unavailable` if the read fails.
    pub async fn read_revocations(&self) -> Result<()> {
        let now = self.now_ms();
        let back = if self.revocations_read.lock().is_some() { OVERLAP_MS } else { MAX_TOKEN_AGE_MS };
        for (user, not_before) in self.backends.keys.revocations(now.saturating_sub(back)).await? {
            self.note_revocation(user, not_before);
        }
        *self.revocations_read.lock() = Some(now);
        Ok(())
    }

    /// Closes the sessions of a user if this node did not know the revocation. Their devices connect again, with a token that
    /// counts or not.
    fn note_revocation(&self, user: UserId, not_before: u64) {
        let mut known = self.revoked.entry(user).or_insert(0);
        if *known < not_before {
            *known = not_before;
            drop(known);
            self.hub.close_user(user, CloseReason::Draining);
        }
    }

    /// Returns whether a token of a user no longer counts. Without tokens (open registration) there is nothing to revoke.
    pub(super) fn is_revoked(&self, user: UserId, token: &Authenticated) -> bool {
        if token.handle.is_none() {
            return false;
        }
        // Most tokens name the second in which they were issued: one of the second of the revocation does not count.
        let issued = token.issued_at.map_or(0, unix_ms);
        let not_before = self.revoked.get(&user).map(|at| *at);
        let is_too_old = token.issued_at.is_some() && issued < self.now_ms().saturating_sub(MAX_TOKEN_AGE_MS);
        is_too_old || not_before.is_some_and(|at| issued < at)
    }

    /// Checks a new token for an open session. Returns the time until it expires; `None`: never.
    ///
    /// # Errors
    /// The reason to close the session with.
    pub async fn renew(
        &self,
        device: DeviceAddress,
        nonce: &bytes::Bytes,
        renewal: &Renewal,
    ) -> Result<Option<Duration>, CloseReason> {
        let later = |_: Error| CloseReason::Draining;
        let now = self.now_ms();
        self.limits.renew(device.installation, now).map_err(|_| CloseReason::Throttled)?;
        let verified = self.accept_token(device.user, &renewal.token).await?;
        let list = self.device_list(device.user).await.map_err(later)?.ok_or(CloseReason::Unauthorized)?;
        let entry = list.list().device(device.device).ok_or(CloseReason::Unauthorized)?;
        let claims = RenewalClaims {
            nonce: nonce.clone(),
            token: renewal.token.clone(),
            user: device.user,
            device: device.device,
        };
        if verify(&entry.device_key, &claims.transcript(), &renewal.signature).is_err() {
            let _ = self.limits.failed(device.user, now);
            return Err(CloseReason::Unauthorized);
        }
        Ok(verified.expires_at.map(|at| self.time_until(at)))
    }
}
