//! Tokens to users.

use std::fmt;

use async_trait::async_trait;

use crate::error::Result;
use crate::id::Handle;

/// Says whose token this is.
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// The handle a token names; `None` means that no token is needed (open registration).
    ///
    /// # Errors
    /// `Denied` if the token is not valid (any more).
    async fn authenticate(&self, token: &str) -> Result<Option<Handle>>;
}
