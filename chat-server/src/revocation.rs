//! Revoked tokens: each node reads them twice a minute, and an operator adds one through the admin address.

use std::sync::Arc;
use std::time::Duration;

use chat_core::{Engine, ErrorKind, Handle};

use crate::error::ServerError;

/// Time between two reads. A revocation is in force on every node after it at the latest.
const INTERVAL: Duration = Duration::from_secs(30);
/// Time limit for a node to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A header that a web page cannot send to another site without asking it first, so that no page can revoke tokens.
pub(crate) const ADMIN_HEADER: &str = "x-chat-admin";

/// Time in which the first read must succeed. Until then the server accepts no connection.
const FIRST_READ: Duration = Duration::from_secs(60);

/// Reads the revocations of all nodes for the first time. Tries again while the directory is unavailable, because a node of
/// it may have failed a moment ago.
///
/// # Errors
/// The read fails for another reason, or for a minute.
pub(crate) async fn read_first(engine: &Engine) -> Result<(), ServerError> {
    let end = tokio::time::Instant::now() + FIRST_READ;
    loop {
        match engine.read_revocations().await {
            Err(error) if error.kind() == ErrorKind::Unavailable && tokio::time::Instant::now() < end => {
                tracing::warn!(%error, "failed to read the revoked tokens: trying again in 1 s");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            outcome => {
                let failed = |error| ServerError::new(format!("failed to read the revoked tokens: {error}"));
                return outcome.map_err(failed);
            }
        }
    }
}

/// Reads the revocations of all nodes, over and over.
pub(crate) async fn read_forever(engine: Arc<Engine>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = engine.read_revocations().await {
            tracing::warn!(%error, "failed to read the revoked tokens: revoked ones stay valid here, retrying in 30 s");
        }
    }
}

/// Requests a node to revoke the tokens of a user. Returns a line for the operator.
///
/// # Errors
/// If the handle is invalid, the node does not answer, or it has no such user.
pub fn revoke(user: &str, node: &str) -> Result<String, String> {
    let user = Handle::new(user).map_err(|error| error.to_string())?;
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(REQUEST_TIMEOUT))
        .http_status_as_error(false)
        .build()
        .into();
    let failed = |error: ureq::Error| format!("failed to ask {node}: {error}");
    let request = agent.post(format!("http://{node}/revoke/{}", user.as_str())).header(ADMIN_HEADER, "1");
    let mut answer = request.send_empty().map_err(failed)?;
    let text = answer.body_mut().read_to_string().map_err(failed)?;
    if answer.status().is_success() { Ok(text.trim().to_owned()) } else { Err(text.trim().to_owned()) }
}
