//! `POST /api/v1/images/{id}/launch`: a machine of the image is about to be created at a location.
//!
//! **What.** Puts an intent of origin `launch` (first in the queue, held for a day) and says how far the copy is. Asking again
//! changes nothing but the end of the hold: whoever waits asks until it says `active`.
//!
//! **Why tenants may.** Creating a machine caches its image; who may use an image and knows where the machine will run needs no
//! right over caches. They learn nothing of other copies, also not from why theirs does not come, and a location of another
//! domain is to them like none.

use axum::extract::State;
use hearth_protocol::api::cache::{Launch, LaunchState};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::id::{ImageId, LocationId};
use hearth_protocol::words::{EntryStatus, LocationState};

use super::app::App;
use super::body::{Json, Path};
use super::cache::{cacheable, percent};
use super::caller::Caller;
use super::fault::Fault;
use super::images::find;
use crate::clock;
use crate::db::PageRequest;
use crate::db::cache_list::CacheFilter;
use crate::db::entries::Entry;
use crate::db::intents::Intent;
use crate::logic::authz;
use crate::logic::catalog::check_search;
use crate::logic::launch::told;

/// Has the image cached where a machine of it will run.
#[utoipa::path(post, path = "/api/v1/images/{id}/launch", tag = "images", params(("id" = ImageId, Path)),
    request_body = Launch,
    responses((status = 200, body = LaunchState),
        (status = 409, description = "The image is not active, or the location takes no new copies", body = ErrorBody)))]
pub async fn launch(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Json(launch): Json<Launch>,
) -> Result<axum::Json<LaunchState>, Fault> {
    check_search("location", &launch.location)?;
    find(&app, &caller, id).await?;
    let (image, content) = cacheable(&app, &caller, id).await?;
    let found = match launch.location.parse::<LocationId>() {
        Ok(id) => app.db.location(id).await?,
        Err(_) => app.db.location_named(&launch.location).await?,
    };
    let location = found
        .filter(|location| location.state != LocationState::Removed)
        .filter(|location| authz::may_launch_at(caller.principal, location.domain))
        .ok_or_else(|| Fault::not_found("location", &launch.location))?;
    let filter = CacheFilter { image: Some(id), location: Some(location.id), ..CacheFilter::default() };
    let row = async || -> Result<_, Fault> {
        let rows = app.db.cache_rows(&filter, &PageRequest::first(1), clock::steady_unix_us()).await?;
        Ok(rows.items.into_iter().next())
    };
    let placed = !caller.sees_copies_at(location.domain);
    let there = app.db.active_at(location.id, &[id], placed, clock::steady_unix_us()).await?;
    if there.is_empty() && location.state != LocationState::Active {
        let message = format!("location {} is {}: it takes no new copies", location.name, location.state);
        return Err(Fault::conflict(message));
    }
    let details = serde_json::json!({ "location": location.id, "location_name": location.name });
    let op = caller.draft().on("image", image.id, image.facts.name).with(details);
    let intent = Intent::launch(image.id, content, location.id, clock::unix_us());
    app.db.put_launch(&intent, &op).await?;
    app.fleet.wake();
    let row = row().await?;
    let (status, seen) = row.map_or((EntryStatus::Queued, None), |row| (row.status, row.entry));
    let (done, data) = seen.as_ref().map_or((0, 0), |entry| (entry.done_bytes, entry.data_bytes));
    Ok(axum::Json(LaunchState {
        image: image.id,
        content,
        location: location.id,
        location_name: location.name,
        status,
        percent: percent(status, done, data),
        reason: seen.map(|entry| reason(&caller, entry)).unwrap_or_default(),
    }))
}

/// Why a copy failed, as far as the caller may know.
fn reason(caller: &Caller, entry: Entry) -> String {
    if caller.sees_caches() { entry.reason } else { told(entry.fault).to_owned() }
}
