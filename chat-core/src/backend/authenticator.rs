//! Maps tokens to users.

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::Handle;

/// Verifies tokens and maps each to its user.
///
/// # Contract
/// - A valid token names its user (`a_good_token_names_its_user`). Any other token is denied
///   (`a_changed_token_is_denied`, `nonsense_is_denied`).
/// - An empty token is accepted only under open registration (`no_token`).
///
/// ```
/// use std::collections::HashMap;
/// use std::time::{Duration, SystemTime};
///
/// use async_trait::async_trait;
/// use chat_core::backend::{Authenticated, Authenticator};
/// use chat_core::{Error, ErrorKind, Handle, Result};
///
/// /// Tokens of a login service, each with its user and the time of its expiry.
/// #[derive(Debug)]
/// struct LoginSessions(HashMap<String, (Handle, SystemTime)>);
///
/// #[async_trait]
/// impl Authenticator for LoginSessions {
///     async fn authenticate(&self, token: &str) -> Result<Authenticated> {
///         match self.0.get(token) {
///             Some((handle, expires_at)) if *expires_at > SystemTime::now() => {
///                 Ok(Authenticated::user(handle.clone()).expires_at(*expires_at))
///             }
///             _ => Err(Error::new(ErrorKind::Denied, "the token is not valid")),
///         }
///     }
/// }
///
/// # fn main() -> Result<()> {
/// # use futures_util::FutureExt;
/// let alice = Handle::new("alice")?;
/// let expires_at = SystemTime::now() + Duration::from_secs(3600);
/// let sessions = LoginSessions(HashMap::from([("secret".to_owned(), (alice.clone(), expires_at))]));
/// # let authenticate = |token| sessions.authenticate(token).now_or_never().unwrap();
/// // `authenticate` awaits `sessions.authenticate(token)`.
/// let accepted = authenticate("secret")?;
/// assert_eq!((accepted.handle, accepted.expires_at), (Some(alice), Some(expires_at)));
/// assert_eq!(authenticate("").unwrap_err().kind(), ErrorKind::Denied);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Returns the user that a token names, and when the token expires.
    ///
    /// # Errors
    /// - `Denied` if the token is invalid or no longer valid: the client stops, and its user logs in again.
    /// - `Unavailable` if the token cannot be checked now: the client reconnects later. A registration is refused.
    async fn authenticate(&self, token: &str) -> Result<Authenticated>;
}

/// Outcome of a successful authentication.
///
/// ```
/// use chat_core::Handle;
/// use chat_core::backend::Authenticated;
///
/// # fn main() -> chat_core::Result<()> {
/// let alice = Handle::new("alice")?;
/// assert_eq!(Authenticated::user(alice.clone()).handle, Some(alice));
/// assert_eq!(Authenticated::open().handle, None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Authenticated {
    /// The user that the token names. `None` under open registration: the device may claim any user, and
    /// proves the claim with its signature.
    pub handle: Option<Handle>,
    /// When the token expires. `None`: never.
    pub expires_at: Option<SystemTime>,
    /// When the token was issued. `None`: unknown, so that any revocation of the user's tokens covers it.
    pub issued_at: Option<SystemTime>,
}

impl Authenticated {
    /// The token names this user. It never expires, unless [`expires_at`](Self::expires_at) sets a time.
    pub const fn user(handle: Handle) -> Self {
        Self { handle: Some(handle), expires_at: None, issued_at: None }
    }

    /// No token is required (open registration), and none is checked.
    pub const fn open() -> Self {
        Self { handle: None, expires_at: None, issued_at: None }
    }

    /// Sets when the token expires: the first moment at which [`Authenticator::authenticate`] denies it.
    ///
    /// - From this time on the engine denies the token, even if the authenticator accepts it.
    /// - The gateway closes a session that is open at this time with
    ///   [`CloseReason::Unauthorized`](crate::model::close_reason::CloseReason::Unauthorized), as it refuses a
    ///   token that is denied. It processes no frame that the device sends later.
    /// - The time is converted to the monotonic clock of the gateway when the session opens, so a wall clock
    ///   that is set afterwards does not move the end of the session.
    ///
    /// A client that wants to stay connected renews its token before this time.
    #[must_use]
    pub const fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires_at = Some(time);
        self
    }

    /// Sets when the token was issued. [`Engine::revoke`](crate::Engine::revoke) ends the tokens that were issued before a
    /// time; a token of unknown age counts as older.
    #[must_use]
    pub const fn issued_at(mut self, time: SystemTime) -> Self {
        self.issued_at = Some(time);
        self
    }
}
