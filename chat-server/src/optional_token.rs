use std::sync::Arc;

use async_trait::async_trait;
use chat_core::backend::{Authenticated, Authenticator};

/// Accepts an empty token, and verifies any other one: open registration beside tokens.
#[derive(Debug)]
pub(crate) struct OptionalToken(pub(crate) Arc<dyn Authenticator>);

#[async_trait]
impl Authenticator for OptionalToken {
    async fn authenticate(&self, token: &str) -> chat_core::Result<Authenticated> {
        if token.is_empty() { Ok(Authenticated::open()) } else { self.0.authenticate(token).await }
    }
}
