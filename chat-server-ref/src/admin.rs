//! The operator's listener: health, readiness, metrics, and what happened to a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use chat_core::Engine;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::explain::{Said, parse_id};

/// Serves the operator's listener until the process ends.
pub async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    handle: PrometheusHandle,
    ready: Arc<AtomicBool>,
) {
    let explaining = engine.clone();
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if ready.load(Ordering::Relaxed) {
                    (StatusCode::OK, "ready\n")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
                }
            }),
        )
        .route("/explain/{id}", get(move |Path(id): Path<String>| explain(explaining, id)))
        .route("/metrics", get(move || async move { render(&engine, &handle) }));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the admin listener ended");
    }
}

/// Begins to gather what is measured. Histograms are in seconds, or counts.
///
/// # Errors
/// If something in this process gathers already.
pub fn record() -> Result<PrometheusHandle, String> {
    let seconds =
        [0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0];
    let counts = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
    let suffix = |text: &str| Matcher::Suffix(text.to_owned());
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(suffix("_seconds"), &seconds)
        .and_then(|builder| builder.set_buckets(&counts))
        .map_err(|e| e.to_string())?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|e| e.to_string())?;
    Ok(handle)
}

/// What this node says of a message, as JSON.
async fn explain(engine: Arc<Engine>, id: String) -> Result<Json<Said>, (StatusCode, String)> {
    let id = parse_id(&id).ok_or_else(|| (StatusCode::BAD_REQUEST, "not a message id\n".to_owned()))?;
    let said = engine.explain(id).await;
    let unavailable = |error: chat_core::Error| (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"));
    Ok(Json(Said::new(said.map_err(unavailable)?)))
}

/// The engine counts by itself; the values are read when somebody asks.
fn render(engine: &Engine, handle: &PrometheusHandle) -> String {
    let counters = engine.counters();
    for (name, value) in [
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
