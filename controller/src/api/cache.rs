//! `/api/v1/cache`: where copies are and should be.
//!
//! **Invariants.** Administrators of a domain meet copies at its locations, of images that the domain may see; any other copy
//! looks to them like none.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::cache::{CacheCreate, CacheEntry, Consumer, Keep, PerLocation};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{ImageId, LocationId};
use hearth_protocol::message::control::Lease;
use hearth_protocol::words::{EntryStatus, ImageStatus, LocationState, Origin, Priority};
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::host_image_cache::Wanted;
use super::locations::targets;
use super::when;
use crate::clock;
use crate::db::PageRequest;
use crate::db::cache_list::{CacheFilter, CacheRow};
use crate::db::images::Image;
use crate::db::intents::{Intent, IntentHold};
use crate::logic::catalog::check_search;

/// Longest time a copy is kept, seconds (ten years): longer means "pin it".
pub const KEEP_S_MAX: u64 = 10 * 365 * 24 * 3600;

/// Which page.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next` of the page before.
    pub cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    pub limit: Option<u32>,
}

impl PageQuery {
    /// The same for the store.
    #[must_use]
    pub fn request(self) -> PageRequest {
        PageRequest { limit: self.limit, cursor: self.cursor }
    }
}

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Id of the image.
    image: Option<ImageId>,
    /// Id of the location.
    location: Option<LocationId>,
    /// State as shown.
    status: Option<EntryStatus>,
    /// Zone of the location.
    zone: Option<String>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// How to remove a copy.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemoveQuery {
    /// Although a job or policy wants it.
    #[serde(default)]
    force: bool,
}

/// The cache list.
#[utoipa::path(get, path = "/api/v1/cache", tag = "cache", params(ListQuery),
    responses((status = 200, body = Page<CacheEntry>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<CacheEntry>>, Fault> {
    query.zone.as_deref().map_or(Ok(()), |zone| check_search("zone", zone))?;
    let filter = CacheFilter {
        domain: caller.bound()?,
        image: query.image,
        location: query.location,
        status: query.status,
        zone: query.zone,
        ..CacheFilter::default()
    };
    page(&app, &filter, &PageRequest { limit: query.limit, cursor: query.cursor }).await.map(axum::Json)
}

/// A page of the cache list with the leases of its rows.
///
/// # Errors
/// 400 for a foreign cursor; 500.
pub async fn page(app: &App, filter: &CacheFilter, page: &PageRequest) -> Result<Page<CacheEntry>, Fault> {
    let rows = app.db.cache_rows(filter, page, clock::steady_unix_us()).await?;
    let leased = rows.items.iter().filter(|row| row.entry.as_ref().is_some_and(|entry| entry.leases > 0));
    let leased: Vec<(ContentId, LocationId)> = leased.map(|row| (row.content, row.location)).collect();
    let mut leases: HashMap<(ContentId, LocationId), Vec<Lease>> = HashMap::new();
    for (location, lease) in app.db.leases_on(&leased).await? {
        leases.entry((lease.content, location)).or_default().push(lease);
    }
    let users = |row: &CacheRow| leases.get(&(row.content, row.location)).map_or(&[][..], Vec::as_slice);
    let items = rows.items.iter().map(|row| entry(row, users(row))).collect();
    Ok(Page { items, next: rows.next })
}

/// The body of a row.
fn entry(row: &CacheRow, leases: &[Lease]) -> CacheEntry {
    let seen = row.entry.as_ref();
    let (done, data) = seen.map_or((0, 0), |entry| (entry.done_bytes, entry.data_bytes));
    let mut origins: Vec<Origin> = row.intents.iter().map(|intent| intent.origin).collect();
    origins.sort_unstable();
    origins.dedup();
    let pinned = row.intents.iter().any(|intent| intent.hold == IntentHold::Pinned);
    let until = row.intents.iter().filter_map(|intent| match intent.hold {
        IntentHold::Until(us) => Some(us),
        IntentHold::Pinned => None,
    });
    let held_until = until.max().filter(|_| !pinned);
    let consumer = |lease: &Lease| Consumer {
        kind: lease.kind,
        name: lease.consumer.clone(),
        since: when::text(i64::try_from(lease.since_unix_ms.saturating_mul(1000)).unwrap_or(i64::MAX)),
    };
    CacheEntry {
        image: row.image,
        image_name: row.image_name.clone(),
        content: row.content,
        location: row.location,
        location_name: row.location_name.clone(),
        location_kind: row.location_kind,
        platform: row.platform.clone(),
        region: row.region.clone(),
        zone: row.zone.clone(),
        account: row.account.clone(),
        ip: row.ip.clone(),
        status: row.status,
        last_status: seen.map(|entry| entry.status).filter(|_| row.status == EntryStatus::Stale),
        reason: seen.map(|entry| entry.reason.clone()).unwrap_or_default(),
        next_try_at: when::opt_text(seen.and_then(|entry| entry.next_try_us)),
        percent: percent(row.status, done, data),
        done_bytes: done,
        data_bytes: data,
        moved_bytes: seen.map_or(0, |entry| entry.moved_bytes),
        reused_bytes: seen.map_or(0, |entry| entry.reused_bytes),
        allocated_bytes: seen.map_or(0, |entry| entry.allocated_bytes),
        origins,
        pinned,
        held_until: when::opt_text(held_until),
        used_by: leases.iter().map(consumer).collect(),
        updated_at: when::text(seen.map_or_else(
            || row.intents.iter().map(|intent| intent.created_us).max().unwrap_or(0),
            |entry| entry.reported_us,
        )),
    }
}

/// Progress in percent; 100 only when it is really there.
#[must_use]
pub fn percent(status: EntryStatus, done_bytes: u64, data_bytes: u64) -> u8 {
    if status == EntryStatus::Active {
        return 100;
    }
    let share = done_bytes.saturating_mul(100).checked_div(data_bytes).unwrap_or(0);
    u8::try_from(share.min(99)).unwrap_or(99)
}

/// Makes copies by hand, of a host image copies of all its disks; the answer says for each location whether that is possible.
#[utoipa::path(post, path = "/api/v1/cache", tag = "cache", request_body = CacheCreate,
    responses((status = 200, body = Vec<PerLocation>), (status = 409, body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<CacheCreate>,
) -> Result<axum::Json<Vec<PerLocation>>, Fault> {
    let wanted = Wanted::find(&app, &caller, create.image, create.host_image).await?;
    let hold = hold_of(&create.keep)?;
    let locations = targets(&app, &caller, &create.targets).await?;
    let mut results = Vec::with_capacity(locations.len());
    let mut intents = Vec::new();
    for location in &locations {
        let ok = location.state == LocationState::Active;
        if ok {
            intents.extend(wanted.disks.iter().map(|(image, content)| {
                let intent = Intent::manual(image.id, *content, location.id, hold);
                Intent { priority: create.priority.unwrap_or(Priority::Bulk), ..intent }
            }));
        }
        let message = if ok { "queued".to_owned() } else { format!("the location is {}", location.state) };
        results.push(PerLocation {
            location: location.id,
            location_name: location.name.clone(),
            ok,
            message,
        });
    }
    if !intents.is_empty() {
        let n_locations = intents.len() / wanted.disks.len().max(1);
        let details = serde_json::json!({ "locations": n_locations, "keep": create.keep });
        let (kind, id, name) = wanted.target();
        let op = caller.draft().on(kind, id, name).with(details);
        app.db.put_intents(&intents, &op).await?;
        app.fleet.wake();
    }
    Ok(axum::Json(results))
}

/// The hold that begins now.
///
/// # Errors
/// 400 for a time that is too long.
pub fn hold_of(keep: &Keep) -> Result<IntentHold, Fault> {
    match *keep {
        Keep::Pinned => Ok(IntentHold::Pinned),
        Keep::Seconds(seconds) if seconds <= KEEP_S_MAX => {
            let us = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            Ok(IntentHold::Until(clock::unix_us().saturating_add(us)))
        }
        Keep::Seconds(_) => Err(Fault::invalid(
            "keep.seconds",
            format!("at most {KEEP_S_MAX} seconds; to keep for good, pin"),
        )),
    }
}

/// An image whose content can be placed.
///
/// # Errors
/// 404; 409 if it is not active.
pub async fn cacheable(app: &App, caller: &Caller, id: ImageId) -> Result<(Image, ContentId), Fault> {
    let image =
        app.db.image_seen_by(caller.scope(), id).await?.ok_or_else(|| Fault::not_found("image", id))?;
    match image.content {
        Some(content) if image.status == ImageStatus::Active => Ok((image, content)),
        _ => Err(Fault::conflict(format!(
            "image {} is {}: only an active one can be cached",
            image.facts.name, image.status
        ))
        .hint("wait for its import: hearth image show")),
    }
}

/// Takes a copy away. Refused while somebody uses it, and (without `force`) while a job or policy wants it.
#[utoipa::path(delete, path = "/api/v1/cache/{image}/{location}", tag = "cache",
    params(("image" = ImageId, Path), ("location" = LocationId, Path), RemoveQuery),
    responses((status = 204, description = "It is being removed"), (status = 409, body = ErrorBody)))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path((image, location)): Path<(ImageId, LocationId)>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, Fault> {
    let row = one(&app, &caller, image, location).await?;
    let leases = app.db.leases_of(row.content).await?;
    let users: Vec<String> = leases
        .iter()
        .filter(|(at, _)| *at == location)
        .map(|(_, lease)| format!("{} {}", lease.kind, lease.consumer))
        .collect();
    if !users.is_empty() {
        let message = format!("{} at {} is used by {}", row.image_name, row.location_name, users.join(", "));
        return Err(Fault::in_use(message).hint("stop its users, or let them release their leases, first"));
    }
    let others = row.intents.iter().filter(|intent| intent.origin != Origin::Manual);
    let mut others: Vec<&str> = others.map(|intent| intent.origin.as_str()).collect();
    others.sort_unstable();
    others.dedup();
    if !others.is_empty() && !query.force {
        let message =
            format!("{} at {} is wanted by a {}", row.image_name, row.location_name, others.join(" and a "));
        return Err(Fault::conflict(message).hint("cancel the job if it still runs (hearth prewarm cancel); what an ended one keeps is removed with --force"));
    }
    let op = caller.draft().on(
        "entry",
        format!("{image} {location}"),
        format!("{} at {}", row.image_name, row.location_name),
    );
    app.db.wish_removed(image, row.content, &[location], query.force, &op).await?;
    app.fleet.wake();
    Ok(StatusCode::NO_CONTENT)
}

/// Keeps a copy until it is unpinned.
#[utoipa::path(post, path = "/api/v1/cache/{image}/{location}/pin", tag = "cache",
    params(("image" = ImageId, Path), ("location" = LocationId, Path)), responses((status = 200, body = CacheEntry)))]
pub async fn pin(
    State(app): State<App>,
    caller: Caller,
    Path((image, location)): Path<(ImageId, LocationId)>,
) -> Result<axum::Json<CacheEntry>, Fault> {
    let row = one(&app, &caller, image, location).await?;
    let op = caller.draft().on(
        "entry",
        format!("{image} {location}"),
        format!("{} at {}", row.image_name, row.location_name),
    );
    let op = op.with(serde_json::json!({ "pinned": true }));
    app.db.put_intents(&[Intent::manual(image, row.content, location, IntentHold::Pinned)], &op).await?;
    app.fleet.wake();
    shown(&app, &caller, image, location).await
}

/// Ends an operator's pin: the copy stays as unheld cache, unless a job or policy holds it.
#[utoipa::path(post, path = "/api/v1/cache/{image}/{location}/unpin", tag = "cache",
    params(("image" = ImageId, Path), ("location" = LocationId, Path)), responses((status = 200, body = CacheEntry)))]
pub async fn unpin(
    State(app): State<App>,
    caller: Caller,
    Path((image, location)): Path<(ImageId, LocationId)>,
) -> Result<axum::Json<CacheEntry>, Fault> {
    let row = one(&app, &caller, image, location).await?;
    let mut before = row.clone();
    let op = caller.draft().on(
        "entry",
        format!("{image} {location}"),
        format!("{} at {}", row.image_name, row.location_name),
    );
    let op = op.with(serde_json::json!({ "pinned": false }));
    app.db.delete_intents(image, location, Origin::Manual, &op).await?;
    app.fleet.wake();
    match shown(&app, &caller, image, location).await {
        // Nothing was there yet, and now nothing is wanted: the row is gone with its last intent.
        Err(fault) if fault.parts().status == StatusCode::NOT_FOUND => {
            before.intents.retain(|intent| intent.origin != Origin::Manual);
            Ok(axum::Json(entry(&before, &[])))
        }
        other => other,
    }
}

async fn shown(
    app: &App,
    caller: &Caller,
    image: ImageId,
    location: LocationId,
) -> Result<axum::Json<CacheEntry>, Fault> {
    let filter = at(caller, image, location)?;
    let page = page(app, &filter, &PageRequest::first(1)).await?;
    page.items.into_iter().next().map(axum::Json).ok_or_else(|| missing(image, location))
}

/// One copy, if the caller reaches its location and may see its image.
async fn one(app: &App, caller: &Caller, image: ImageId, location: LocationId) -> Result<CacheRow, Fault> {
    let filter = at(caller, image, location)?;
    let rows = app.db.cache_rows(&filter, &PageRequest::first(1), clock::steady_unix_us()).await?;
    rows.items.into_iter().next().ok_or_else(|| missing(image, location))
}

fn at(caller: &Caller, image: ImageId, location: LocationId) -> Result<CacheFilter, Fault> {
    let (image, location) = (Some(image), Some(location));
    Ok(CacheFilter { image, location, domain: caller.bound()?, ..CacheFilter::default() })
}

fn missing(image: ImageId, location: LocationId) -> Fault {
    Fault::not_found("copy of image", format!("{image} at location {location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_percent_means_verified() {
        assert_eq!(percent(EntryStatus::Verifying, 10, 10), 99);
        assert_eq!(percent(EntryStatus::Active, 0, 0), 100);
        assert_eq!(percent(EntryStatus::Caching, u64::MAX, 1), 99);
        assert_eq!(percent(EntryStatus::Queued, 0, 0), 0);
        assert_eq!(percent(EntryStatus::Caching, 1, 2), 50);
    }
}
