//! Maps tokens to users.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::Handle;

/// Verifies tokens and maps each to its user.
///
/// # Contract
/// - A valid token names its user (`a_good_token_names_its_user`). Any other token is denied
///   (`a_changed_token_is_denied`, `nonsense_is_denied`).
/// - An empty token is accepted only under open registration (`no_token`).
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Returns the handle that a token names, or `None` if no token is needed (open registration).
    ///
    /// # Errors
    /// `Denied` if the token is invalid or no longer valid.
    async fn authenticate(&self, token: &str) -> Result<Option<Handle>>;
}
