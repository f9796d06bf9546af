//! `/api/v1/system` and `/api/v1/transfers`: the controller itself.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::system::SystemInfo;
use hearth_protocol::version::VERSION_MAX;
use hearth_protocol::words::PrewarmState;
use nix::sys::statvfs::statvfs;

use super::app::App;
use super::caller::Caller;
use super::fault::Fault;
use super::when;
use crate::db::PageRequest;
use crate::db::prewarms::PrewarmFilter;
use crate::{clock, metrics};

/// Setting that stops all transfers; the fleet reads it.
pub const TRANSFERS_STOPPED: &str = "transfers_stopped";

/// Facts of the controller.
#[utoipa::path(get, path = "/api/v1/system", tag = "system", responses((status = 200, body = SystemInfo)))]
pub async fn show(State(app): State<App>) -> Result<axum::Json<SystemInfo>, Fault> {
    let (images_active, originals) = app.db.image_totals().await?;
    let contents = app.db.stored_bytes().await?;
    let running = PrewarmFilter { state: Some(PrewarmState::Running), ..PrewarmFilter::default() };
    let running = app.db.prewarms(&running, &PageRequest::first(hearth_protocol::api::PAGE_ROWS_MAX)).await?;
    Ok(axum::Json(SystemInfo {
        build: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: VERSION_MAX,
        ca_fingerprint: app.authority.fingerprint(),
        now: when::text(clock::unix_us()),
        agents_online: count(app.fleet.online_count()),
        locations: app.db.location_count().await?,
        images_active,
        prewarms_running: count(running.items.len()),
        stored_bytes: originals.saturating_add(contents),
        free_bytes: free_bytes(&app).await?,
        transfers_stopped: app.db.setting(TRANSFERS_STOPPED).await?.as_deref() == Some("1"),
    }))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Free bytes where contents are stored.
async fn free_bytes(app: &App) -> Result<u64, Fault> {
    let folder = app.config.state_dir.clone();
    let stat = tokio::task::spawn_blocking(move || statvfs(&folder)).await;
    let stat = stat.map_err(|error| Fault::internal(&error))?.map_err(|error| Fault::internal(&error))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Brings gauges up to date; called before they are read.
///
/// # Errors
/// 500, 503.
pub async fn refresh_gauges(app: &App) -> Result<(), Fault> {
    let (images_active, _) = app.db.image_totals().await?;
    metrics::gauge_set(metrics::IMAGES_ACTIVE, u64::from(images_active));
    metrics::gauge_set(metrics::AGENTS_ONLINE, u64::from(count(app.fleet.online_count())));
    metrics::gauge_set(metrics::STORE_FREE_BYTES, free_bytes(app).await?);
    Ok(())
}

/// Stops all transfers at once, everywhere, until they are started again.
#[utoipa::path(post, path = "/api/v1/transfers/stop", tag = "system",
    responses((status = 204, description = "Stopped")))]
pub async fn stop(State(app): State<App>, caller: Caller) -> Result<StatusCode, Fault> {
    steer(&app, &caller, true).await
}

/// Lets transfers go on.
#[utoipa::path(post, path = "/api/v1/transfers/start", tag = "system",
    responses((status = 204, description = "Started")))]
pub async fn start(State(app): State<App>, caller: Caller) -> Result<StatusCode, Fault> {
    steer(&app, &caller, false).await
}

async fn steer(app: &App, caller: &Caller, stop: bool) -> Result<StatusCode, Fault> {
    let mut op = caller.draft().on("system", "", "");
    op.action = if stop { "transfers.stop" } else { "transfers.start" }.to_owned();
    app.db.set_setting(TRANSFERS_STOPPED, if stop { "1" } else { "0" }, &op).await?;
    app.fleet.wake();
    Ok(StatusCode::NO_CONTENT)
}
