//! The operator's listener: health, readiness, metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use chat_core::Engine;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

/// Serves the operator's listener until the process ends.
pub async fn serve(listener: TcpListener, engine: Arc<Engine>, ready: Arc<AtomicBool>) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _ = metrics::set_global_recorder(recorder);
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
        .route("/metrics", get(move || async move { render(&engine, &handle) }));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the admin listener ended");
    }
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
        ("chat_pushed_total", &counters.pushed),
        ("chat_forwarded_total", &counters.forwarded),
        ("chat_woken_total", &counters.woken),
        ("chat_acked_total", &counters.acked),
    ] {
        metrics::counter!(name).absolute(value.load(Ordering::Relaxed));
    }
    metrics::gauge!("chat_sessions").set(engine.hub().len() as f64);
    handle.run_upkeep();
    handle.render()
}
