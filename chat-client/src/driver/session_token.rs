//! The token of a session, and a newer one that continues it.

use std::time::Duration;

use bytes::Bytes;
use chat_core::Instant;
use chat_core::signing::RenewalClaims;
use chat_core::wire::{ClientFrame, Renewal, ServerFrame};

use super::Driver;

/// The login token of the profile, and what the open session knows about it.
#[derive(Default)]
pub(super) struct SessionToken {
    /// The newest token.
    pub(super) newest: String,
    /// The token that the session began with, or was continued with.
    in_use: String,
    /// The nonce of the connection, which a renewal signs.
    nonce: Bytes,
    /// When to report that the token expires, and the time that is left then.
    expiring: Option<(Instant, Duration)>,
}

impl SessionToken {
    pub(super) fn new(newest: String) -> Self {
        Self { newest, ..Self::default() }
    }

    /// Begins a session on a connection with this nonce. Returns the token for it.
    pub(super) fn begin(&mut self, nonce: Bytes) -> String {
        self.nonce = nonce;
        self.in_use.clone_from(&self.newest);
        self.newest.clone()
    }

    /// Returns whether the session uses an older token than the newest.
    pub(super) fn is_replaced(&self) -> bool {
        self.newest != self.in_use
    }

    /// Returns when to report that the token expires.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.expiring.map(|(at, _)| at)
    }

    /// Takes over when the token expires.
    pub(super) fn note_expiry(&mut self, now: Instant, frame: &ServerFrame) {
        const NOTICE: Duration = Duration::from_secs(300);
        let left = match frame {
            ServerFrame::Welcome(welcome) => welcome.token_expires_in_ms,
            ServerFrame::Renewed(left) => {
                self.in_use.clone_from(&self.newest);
                *left
            }
            _ => return,
        };
        // Of a short time, half is left for the new token.
        let notice = NOTICE.min(Duration::from_millis(left / 2));
        let wait = left.saturating_sub(notice.as_millis() as u64);
        self.expiring = (left > 0).then(|| (now.after(wait), notice));
    }
}

impl Driver {
    /// Reports that the token expires soon, once that is due.
    pub(super) fn report_expiry(&mut self) {
        let now = self.now();
        if let Some((_, left)) = self.token.expiring.take_if(|(at, _)| now >= *at)
            && self.replica.is_online()
        {
            self.stand(|state| state.token_expires(left));
        }
    }

    /// Continues the session with the newest token, if there is a session. Returns whether there is.
    pub(super) fn renew_token(&mut self) -> bool {
        if !self.replica.is_online() {
            return false;
        }
        let claims = RenewalClaims {
            nonce: self.token.nonce.clone(),
            token: self.token.newest.clone(),
            user: self.account.device.user,
            device: self.account.device.device,
        };
        let renewal =
            Renewal { token: claims.token.clone(), signature: self.account.sign(&claims.transcript()) };
        self.out.push(ClientFrame::Renew(Box::new(renewal)).encode());
        true
    }
}
