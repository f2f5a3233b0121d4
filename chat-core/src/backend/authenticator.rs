//! Tokens to users.

use std::fmt;

use async_trait::async_trait;

use crate::model::error::Result;
use crate::model::id::Handle;

/// Says whose token this is.
///
/// # Contract
/// - A good token names its user (`a_good_token_names_its_user`), and nothing else does
///   (`a_changed_token_is_denied`, `nonsense_is_denied`).
/// - No token is good only under open registration (`no_token`).
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// The handle a token names; `None` means that no token is needed (open registration).
    ///
    /// # Errors
    /// `Denied` if the token is not valid (any more).
    async fn authenticate(&self, token: &str) -> Result<Option<Handle>>;
}
