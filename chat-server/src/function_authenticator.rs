use std::fmt;

use async_trait::async_trait;
use chat_core::Result;
use chat_core::backend::{Authenticated, Authenticator};

/// Verifies tokens with a function.
pub(crate) struct FunctionAuthenticator<F>(pub(crate) F);

impl<F> fmt::Debug for FunctionAuthenticator<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionAuthenticator").finish_non_exhaustive()
    }
}

#[async_trait]
impl<F> Authenticator for FunctionAuthenticator<F>
where
    F: Fn(&str) -> Result<Authenticated> + Send + Sync + 'static,
{
    async fn authenticate(&self, token: &str) -> Result<Authenticated> {
        (self.0)(token)
    }
}
