//! `/api/v1/distributions`: the distributions that images are offered for.

use axum::extract::State;
use hearth_protocol::api::distribution::Distributions;

use super::app::App;

/// The table of distributions and versions, per architecture.
#[utoipa::path(get, path = "/api/v1/distributions", tag = "images",
    responses((status = 200, body = Distributions)))]
pub async fn list(State(app): State<App>) -> axum::Json<Distributions> {
    let distributions = app.config.catalog.distributions.clone();
    axum::Json(Distributions { strict: app.config.catalog.distributions_strict, distributions })
}
