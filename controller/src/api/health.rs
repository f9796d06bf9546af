//! `/healthz`, `/readyz`, `/metrics`: for machines that watch.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::app::App;
use super::fault::Fault;

/// The process runs and answers.
#[utoipa::path(get, path = "/healthz", tag = "system", responses((status = 200, description = "It runs")))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The controller can do its work: the database answers.
#[utoipa::path(get, path = "/readyz", tag = "system",
    responses((status = 200, description = "It is ready; 503 says that it is not")))]
pub async fn readyz(State(app): State<App>) -> Result<&'static str, Fault> {
    if app.closing.is_cancelled() {
        return Err(Fault::unavailable("the controller is stopping"));
    }
    app.db.setting("instance_id").await.map(|_| "ready\n").map_err(|error| {
        tracing::warn!(error = super::fault::chain(&error), "not ready");
        Fault::unavailable("the database does not answer")
    })
}

/// Figures in the text form of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "system",
    responses((status = 200, description = "Figures", content_type = "text/plain", body = String)))]
pub async fn figures(State(app): State<App>) -> Result<Response, Fault> {
    super::system::refresh_gauges(&app).await?;
    app.figures.run_upkeep();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((StatusCode::OK, kind, app.figures.render()).into_response())
}
