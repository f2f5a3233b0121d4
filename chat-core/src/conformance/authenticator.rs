use std::sync::Arc;

use super::{Case, Outcome, cases, equal, failed};
use crate::backend::Authenticator;
use crate::error::ErrorKind;
use crate::id::Handle;

/// An [`Authenticator`] with tokens to try on it.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs)]
pub struct Doorkeeper {
    /// What is tried.
    pub authenticator: Arc<dyn Authenticator>,
    /// Tokens that are good, and whom they name.
    pub good: Vec<(String, Handle)>,
    /// Whether no token is as good as one.
    pub open: bool,
}

type Door = Arc<Doorkeeper>;

/// The cases of [`Authenticator`].
pub fn authenticator() -> Vec<Case<Doorkeeper>> {
    cases![a_good_token_names_its_user, a_changed_token_is_denied, no_token, nonsense_is_denied]
}

async fn kind(door: &Door, token: &str) -> Option<ErrorKind> {
    door.authenticator.authenticate(token).await.err().map(|error| error.kind())
}

async fn a_good_token_names_its_user(door: Door) -> Outcome {
    for (token, handle) in &door.good {
        let named = door.authenticator.authenticate(token).await.map_err(failed)?;
        equal(named, Some(handle.clone()), "whom it names")?;
    }
    Ok(())
}

async fn a_changed_token_is_denied(door: Door) -> Outcome {
    for (token, _) in &door.good {
        for at in (0..token.len()).step_by(7) {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8_lossy(&changed).into_owned();
            // The last character of base64 may hold bits that mean nothing.
            if at + 1 < token.len() && !token[at + 1..].starts_with('.') {
                equal(kind(&door, &changed).await, Some(ErrorKind::Denied), "a changed token")?;
            }
        }
        equal(kind(&door, &token[..token.len() / 2]).await, Some(ErrorKind::Denied), "half a token")?;
    }
    Ok(())
}

async fn no_token(door: Door) -> Outcome {
    let answer = door.authenticator.authenticate("").await;
    if door.open {
        return equal(answer.map_err(failed)?, None, "nobody is named");
    }
    equal(answer.err().map(|error| error.kind()), Some(ErrorKind::Denied), "no token")
}

async fn nonsense_is_denied(door: Door) -> Outcome {
    for token in ["x", "..", "a.b.c", "\0", "{}", &"x".repeat(3000)] {
        let answer = door.authenticator.authenticate(token).await;
        // Where no token is needed, one that is given may be looked at or not.
        if !(door.open && answer == Ok(None)) {
            equal(answer.err().map(|error| error.kind()), Some(ErrorKind::Denied), "nonsense")?;
        }
    }
    Ok(())
}
