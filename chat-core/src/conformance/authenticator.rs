use std::sync::Arc;

use super::{Case, Outcome, equal, failed, list_cases};
use crate::backend::Authenticator;
use crate::model::error::ErrorKind;
use crate::model::id::Handle;

/// An [`Authenticator`] under test, with valid tokens.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct AuthenticatorFixture {
    pub authenticator: Arc<dyn Authenticator>,
    /// Valid tokens, each with the handle that it names.
    pub good: Vec<(String, Handle)>,
    /// An empty token is accepted (open registration).
    pub open: bool,
}

type Fixture = Arc<AuthenticatorFixture>;

/// Returns the conformance cases of [`Authenticator`].
pub fn authenticator() -> Vec<Case<AuthenticatorFixture>> {
    list_cases![a_good_token_names_its_user, a_changed_token_is_denied, no_token, nonsense_is_denied]
}

async fn kind(fixture: &Fixture, token: &str) -> Option<ErrorKind> {
    fixture.authenticator.authenticate(token).await.err().map(|error| error.kind())
}

async fn a_good_token_names_its_user(fixture: Fixture) -> Outcome {
    for (token, handle) in &fixture.good {
        let named = fixture.authenticator.authenticate(token).await.map_err(failed)?;
        equal(named.handle, Some(handle.clone()), "the named handle")?;
    }
    Ok(())
}

async fn a_changed_token_is_denied(fixture: Fixture) -> Outcome {
    for (token, _) in &fixture.good {
        for at in (0..token.len()).step_by(7) {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8_lossy(&changed).into_owned();
            // The last character of a base64 part may hold unused bits: changing it may not change the token.
            if at + 1 < token.len() && !token[at + 1..].starts_with('.') {
                equal(kind(&fixture, &changed).await, Some(ErrorKind::Denied), "a changed token")?;
            }
        }
        equal(kind(&fixture, &token[..token.len() / 2]).await, Some(ErrorKind::Denied), "half a token")?;
    }
    Ok(())
}

async fn no_token(fixture: Fixture) -> Outcome {
    let answer = fixture.authenticator.authenticate("").await;
    if fixture.open {
        return equal(answer.map_err(failed)?.handle, None, "an empty token names no handle");
    }
    equal(answer.err().map(|error| error.kind()), Some(ErrorKind::Denied), "no token")
}

async fn nonsense_is_denied(fixture: Fixture) -> Outcome {
    for token in ["x", "..", "a.b.c", "\0", "{}", &"x".repeat(3000)] {
        let answer = fixture.authenticator.authenticate(token).await;
        // Under open registration the authenticator may check a token or ignore it.
        if !(fixture.open && answer.as_ref().is_ok_and(|named| named.handle.is_none())) {
            equal(answer.err().map(|error| error.kind()), Some(ErrorKind::Denied), "nonsense")?;
        }
    }
    Ok(())
}
