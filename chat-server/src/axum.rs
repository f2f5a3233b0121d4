//! Chat connections on a route of an axum application.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chat_core::gateway::Gateway;
use chat_transport::accept::{accept_key, upgraded};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

/// Returns a route that upgrades requests to connections of the gateway.
pub(crate) fn router(
    path: &str,
    gateway: Gateway,
    origins: Vec<String>,
    connections: Arc<Semaphore>,
) -> Router {
    let handler = move |request: Request| async move {
        upgrade(request, &gateway, &origins, &connections).unwrap_or_else(IntoResponse::into_response)
    };
    Router::new().route(path, get(handler))
}

fn upgrade(
    mut request: Request,
    gateway: &Gateway,
    origins: &[String],
    connections: &Arc<Semaphore>,
) -> Result<Response, StatusCode> {
    let headers = request.headers();
    let all: Vec<(&str, &[u8])> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let status = |status: &str| {
        let code = status.split(' ').next().and_then(|code| code.parse().ok());
        StatusCode::from_u16(code.unwrap_or(400)).unwrap_or(StatusCode::BAD_REQUEST)
    };
    if request.uri().query().is_some() {
        // A token in a URL would end up in logs.
        return Err(StatusCode::BAD_REQUEST);
    }
    let accept = accept_key(&all, origins).map_err(status)?;
    let permit = connections.clone().try_acquire_owned().map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let pending = request.extensions_mut().remove::<OnUpgrade>().ok_or(StatusCode::UPGRADE_REQUIRED)?;
    let gateway = gateway.clone();
    tokio::spawn(async move {
        match pending.await {
            Ok(stream) => {
                let transport = Box::new(upgraded(TokioIo::new(stream)));
                gateway.serve(transport, Box::new(|_| {})).await;
            }
            Err(error) => tracing::debug!(%error, "the upgrade failed"),
        }
        drop(permit);
    });
    let headers = [
        (CONNECTION, "upgrade".to_owned()),
        (UPGRADE, "websocket".to_owned()),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
