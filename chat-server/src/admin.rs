//! Routes for operators: health, readiness, metrics, and the trace of a message.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use chat_core::{Engine, ErrorKind, Handle};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::error::ServerError;
use crate::explain::{Said, parse_id};
use crate::health::Health;
use crate::revocation::ADMIN_HEADER;

/// Metrics of the process, recorded by the `metrics` facade.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

/// Returns the routes for operators.
pub(crate) fn router(engine: Arc<Engine>, health: Health, metrics: Option<Metrics>) -> Router {
    let (explaining, revoking, deleting) = (engine.clone(), engine.clone(), engine.clone());
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { readiness(&health) }))
        .route(
            "/revoke/{handle}",
            post(move |Path(handle): Path<String>, headers: HeaderMap| revoke(revoking, handle, headers)),
        )
        .route(
            "/delete/{handle}",
            post(move |Path(handle): Path<String>, headers: HeaderMap| delete(deleting, handle, headers)),
        )
        .route("/explain/{id}", get(move |Path(id): Path<String>| explain(explaining, id)));
    match metrics {
        Some(metrics) => routes.route("/metrics", get(move || async move { render(&engine, &metrics.0) })),
        None => routes,
    }
}

fn readiness(health: &Health) -> (StatusCode, String) {
    if health.is_ready() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let mut reasons: Vec<String> = health
        .failed_shards()
        .iter()
        .map(|(shard, error)| format!("shard {shard} failed: {error}\n"))
        .collect();
    if health.is_draining() {
        reasons.push("draining\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.concat())
}

impl Metrics {
    /// Installs the recorder of the process. Histograms are in seconds, or counts. A second call returns the first
    /// recorder's metrics.
    ///
    /// # Errors
    /// Another part of the process has installed a recorder.
    pub fn install() -> Result<Self, ServerError> {
        static INSTALLED: OnceLock<Result<Metrics, ServerError>> = OnceLock::new();
        INSTALLED.get_or_init(Self::install_once).clone()
    }

    fn install_once() -> Result<Self, ServerError> {
        let seconds =
            [0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0];
        let counts = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
        let failed = |error: String| ServerError::new(format!("failed to record metrics: {error}"));
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds)
            .and_then(|builder| builder.set_buckets(&counts))
            .map_err(|error| failed(error.to_string()))?
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| failed(error.to_string()))?;
        Ok(Self(handle))
    }
}

/// Returns the trace of a message on this node, as JSON.
async fn explain(engine: Arc<Engine>, id: String) -> Result<Json<Said>, (StatusCode, String)> {
    let id = parse_id(&id).ok_or_else(|| (StatusCode::BAD_REQUEST, "invalid message id\n".to_owned()))?;
    let said = engine.explain(id).await;
    let unavailable = |error: chat_core::Error| (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"));
    Ok(Json(Said::new(said.map_err(unavailable)?)))
}

type Answer = (StatusCode, String);

/// Returns the handle of a request that changes something.
fn changed_handle(handle: &str, headers: &HeaderMap) -> Result<Handle, Answer> {
    if !headers.contains_key(ADMIN_HEADER) {
        return Err((StatusCode::FORBIDDEN, format!("the header {ADMIN_HEADER} is missing\n")));
    }
    Handle::new(handle).map_err(|_| (StatusCode::BAD_REQUEST, "invalid handle\n".to_owned()))
}

/// Revokes the tokens of a user.
async fn revoke(engine: Arc<Engine>, handle: String, headers: HeaderMap) -> Answer {
    match changed_handle(&handle, &headers) {
        Ok(handle) => {
            answer(engine.revoke(&handle).await, format!("revoked the tokens of {}\n", handle.as_str()))
        }
        Err(refused) => refused,
    }
}

/// Deletes the account of a user.
async fn delete(engine: Arc<Engine>, handle: String, headers: HeaderMap) -> Answer {
    match changed_handle(&handle, &headers) {
        Ok(handle) => answer(
            engine.delete_account(&handle).await,
            format!("deleted the account of {}\n", handle.as_str()),
        ),
        Err(refused) => refused,
    }
}

fn answer(outcome: chat_core::Result<()>, done: String) -> Answer {
    match outcome {
        Ok(()) => (StatusCode::OK, done),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            (StatusCode::NOT_FOUND, "there is no such user\n".to_owned())
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

/// The engine keeps its own counters; they are exported on request.
fn render(engine: &Engine, handle: &PrometheusHandle) -> String {
    let counters = engine.counters();
    for (name, value) in [
        ("chat_hello_signatures_total", &counters.signatures),
        ("chat_published_total", &counters.published),
        ("chat_stored_total", &counters.stored),
        ("chat_repeated_total", &counters.repeated),
        ("chat_refused_total", &counters.refused),
        ("chat_commits_total", &counters.batches),
        ("chat_events_delivered_total", &counters.events_delivered),
        ("chat_forwarded_total", &counters.forwarded),
        ("chat_push_wakeups_total", &counters.push_wakeups),
        ("chat_acked_total", &counters.acked),
    ] {
        metrics::counter!(name).absolute(value.load(Ordering::Relaxed));
    }
    metrics::counter!("chat_dropped_total", "reason" => "session_full").absolute(engine.hub().dropped());
    metrics::counter!("chat_telemetry_dropped_total").absolute(engine.trace().dropped());
    metrics::gauge!("chat_sessions").set(engine.hub().len() as f64);
    handle.run_upkeep();
    handle.render()
}
