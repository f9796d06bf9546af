//! `/api/v1/locations`: where caches are.
//!
//! **Invariants.** Administrators of a domain meet the locations of that domain; any other looks to them like none.

use std::collections::{BTreeMap, HashMap};

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::cache::{LocationCache, Targets};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::location::{DuplicateAgent, Location as LocationBody, LocationUpdate};
use hearth_protocol::api::{PAGE_ROWS_MAX, Page};
use hearth_protocol::id::LocationId;
use hearth_protocol::words::LocationState;
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::when;
use crate::db::PageRequest;
use crate::db::cache_list::CacheFilter;
use crate::db::locations::{Location, LocationEdit};
use crate::logic::authz::{Action, Resource};
use crate::logic::catalog::check_name;
use crate::logic::selector::{Field, Selectable, Selector};

/// Most labels of a location: bounds a record.
const LABELS_MAX: usize = 64;
/// Most names in one request: bounds its work.
const NAMES_MAX: usize = 10_000;

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Exactly this name, without regard to case.
    name: Option<String>,
    /// Selector, for example `zone=z1,ip=10.0.*`.
    select: Option<String>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// A stored location as selectors see it.
struct Seen<'a>(&'a Location);

impl Selectable for Seen<'_> {
    fn field(&self, field: Field) -> &str {
        let l = self.0;
        match field {
            Field::Name => &l.name,
            Field::Kind => l.kind.as_str(),
            Field::Platform => &l.platform,
            Field::Region => &l.region,
            Field::Zone => &l.zone,
            Field::Rack => &l.rack,
            Field::Account => &l.account,
            Field::Ip => &l.ip,
            Field::Serial => &l.serial,
            Field::State => l.state.as_str(),
        }
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.0.labels.get(key).map(String::as_str)
    }
}

fn selector(field: &str, text: &str) -> Result<Selector, Fault> {
    text.parse::<Selector>().map_err(|error| Fault::invalid(field, error.to_string()))
}

/// The locations that `targets` names among those that the caller reaches, by name and each once.
///
/// # Errors
/// 400 for a selector or combination that means nothing; 404 for a name that no location has.
pub async fn targets(app: &App, caller: &Caller, targets: &Targets) -> Result<Vec<Location>, Fault> {
    let said = [!targets.to.is_empty(), targets.select.is_some(), targets.all];
    if said.iter().filter(|said| **said).count() != 1 {
        return Err(Fault::invalid("targets", "say exactly one of targets.to, targets.select, targets.all"));
    }
    let all = reached(app, caller).await?;
    if let Some(text) = &targets.select {
        let selector = selector("targets.select", text)?;
        let found: Vec<Location> =
            all.into_iter().filter(|location| selector.selects(&Seen(location))).collect();
        if found.is_empty() {
            return Err(Fault::invalid("targets.select", format!("no location matches {text}"))
                .hint("hearth location list --select … shows what a selector names"));
        }
        return Ok(found);
    }
    if targets.all {
        return Ok(all.into_iter().filter(|location| location.state == LocationState::Active).collect());
    }
    if targets.to.len() > NAMES_MAX {
        return Err(Fault::invalid("targets.to", format!("at most {NAMES_MAX} names; use a selector")));
    }
    let by_name: HashMap<String, &Location> = all.iter().map(|l| (l.name.to_lowercase(), l)).collect();
    let by_id: HashMap<LocationId, &Location> = all.iter().map(|l| (l.id, l)).collect();
    let mut found = BTreeMap::new();
    for wanted in &targets.to {
        let location = match wanted.parse::<LocationId>() {
            Ok(id) => by_id.get(&id),
            Err(_) => by_name.get(&wanted.to_lowercase()),
        };
        let location = location.ok_or_else(|| {
            let fault = Fault::not_found("location", wanted).field("targets.to");
            fault.hint("hearth location list shows what there is")
        })?;
        found.insert(location.name.clone(), (*location).clone());
    }
    Ok(found.into_values().collect())
}

/// Every location that the caller reaches.
async fn reached(app: &App, caller: &Caller) -> Result<Vec<Location>, Fault> {
    let bound = caller.bound()?;
    let mut all = app.db.locations(false).await?;
    all.retain(|location| bound.is_none() || location.domain == bound);
    Ok(all)
}

/// Locations by name.
#[utoipa::path(get, path = "/api/v1/locations", tag = "locations", params(ListQuery),
    responses((status = 200, body = Page<LocationBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<LocationBody>>, Fault> {
    let page = PageRequest { limit: query.limit, cursor: query.cursor };
    let selector = query.select.as_deref().map(|text| selector("select", text)).transpose()?;
    let domain = caller.bound()?;
    let keeps = |location: &Location| {
        selector.as_ref().is_none_or(|s| s.selects(&Seen(location)))
            && (domain.is_none() || location.domain == domain)
    };
    let keep: Option<&(dyn Fn(&Location) -> bool + Sync)> =
        if selector.is_some() || domain.is_some() { Some(&keeps) } else { None };
    let found = app.db.location_page(query.name.as_deref(), keep, &page).await?;
    let ids: Vec<LocationId> = found.items.iter().map(|location| location.id).collect();
    let active = app.db.active_counts(&ids).await?;
    let items = found.items.iter().map(|l| body(&app, l, active.get(&l.id).copied().unwrap_or(0)));
    Ok(axum::Json(Page { items: items.collect(), next: found.next }))
}

/// One location.
#[utoipa::path(get, path = "/api/v1/locations/{id}", tag = "locations", params(("id" = LocationId, Path)),
    responses((status = 200, body = LocationBody)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<LocationId>,
) -> Result<axum::Json<LocationBody>, Fault> {
    let location = find(&app, &caller, id).await?;
    shown(&app, &location).await
}

/// Changes state, labels, rack, or (system administrators) the domain.
#[utoipa::path(patch, path = "/api/v1/locations/{id}", tag = "locations", params(("id" = LocationId, Path)),
    request_body = LocationUpdate, responses((status = 200, body = LocationBody), (status = 409, body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<LocationId>,
    Json(update): Json<LocationUpdate>,
) -> Result<axum::Json<LocationBody>, Fault> {
    check(&update)?;
    let found = find(&app, &caller, id).await?;
    let mut details =
        serde_json::json!({ "state": update.state, "labels": update.labels, "rack": update.rack });
    if !update.domain.is_keep() {
        caller.may_do(Action::LocationAssign, &Resource::Location(found.domain), "location", id)?;
        details["before"] = serde_json::json!({ "domain": found.domain });
        details["after"] = serde_json::json!({ "domain": update.domain });
    }
    let LocationUpdate { state, labels, rack, domain } = update;
    let edit = LocationEdit { state, labels, rack, domain };
    changed(&app, &caller, id, &edit, details).await
}

fn check(update: &LocationUpdate) -> Result<(), Fault> {
    if update.state == Some(LocationState::Removed) {
        return Err(Fault::invalid("state", "state may become active or draining; to remove it, DELETE it"));
    }
    if let Some(rack) = update.rack.as_deref().filter(|rack| !rack.is_empty()) {
        check_name("rack", rack)?;
    }
    let labels = update.labels.iter().flatten();
    if labels.clone().count() > LABELS_MAX {
        return Err(Fault::invalid("labels", format!("at most {LABELS_MAX} labels")));
    }
    for (key, value) in labels {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if key.is_empty() || key.len() > 64 || !key.chars().all(plain) {
            return Err(Fault::invalid("labels", "a label's key is 1 to 64 of a-z A-Z 0-9 _ . -"));
        }
        if !value.is_empty() {
            check_name(&format!("labels.{key}"), value)?;
        }
    }
    Ok(())
}

async fn changed(
    app: &App,
    caller: &Caller,
    id: LocationId,
    edit: &LocationEdit,
    details: serde_json::Value,
) -> Result<axum::Json<LocationBody>, Fault> {
    let name = find(app, caller, id).await?.name;
    let op = caller.draft().on("location", id, name).with(details);
    let location = app.db.edit_location(id, edit, &op).await?;
    app.fleet.wake();
    shown(app, &location).await
}

/// Nothing new is placed here; what is here stays.
#[utoipa::path(post, path = "/api/v1/locations/{id}/drain", tag = "locations", params(("id" = LocationId, Path)),
    responses((status = 200, body = LocationBody), (status = 409, body = ErrorBody)))]
pub async fn drain(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<LocationId>,
) -> Result<axum::Json<LocationBody>, Fault> {
    let edit = LocationEdit { state: Some(LocationState::Draining), ..LocationEdit::default() };
    changed(&app, &caller, id, &edit, serde_json::json!({ "state": "draining" })).await
}

/// The location takes copies again.
#[utoipa::path(post, path = "/api/v1/locations/{id}/undrain", tag = "locations", params(("id" = LocationId, Path)),
    responses((status = 200, body = LocationBody), (status = 409, body = ErrorBody)))]
pub async fn undrain(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<LocationId>,
) -> Result<axum::Json<LocationBody>, Fault> {
    let edit = LocationEdit { state: Some(LocationState::Active), ..LocationEdit::default() };
    changed(&app, &caller, id, &edit, serde_json::json!({ "state": "active" })).await
}

/// Takes a location out for good: its agent's key is revoked and its connection closed.
#[utoipa::path(delete, path = "/api/v1/locations/{id}", tag = "locations", params(("id" = LocationId, Path)),
    responses((status = 204, description = "Removed and revoked")))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<LocationId>,
) -> Result<StatusCode, Fault> {
    let location = find(&app, &caller, id).await?;
    let op = caller.draft().on("location", id, location.name);
    let was = app.db.remove_location(id, &op).await?;
    if let Some(agent) = was.agent {
        app.fleet.revoke(agent);
    }
    app.fleet.wake();
    Ok(StatusCode::NO_CONTENT)
}

/// What is at a location.
#[utoipa::path(get, path = "/api/v1/locations/{id}/cache", tag = "locations", params(("id" = LocationId, Path)),
    responses((status = 200, body = LocationCache)))]
pub async fn cache(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<LocationId>,
) -> Result<axum::Json<LocationCache>, Fault> {
    let location = find(&app, &caller, id).await?;
    let filter = CacheFilter { location: Some(id), domain: caller.bound()?, ..CacheFilter::default() };
    let mut entries = Vec::new();
    let mut page = PageRequest::first(PAGE_ROWS_MAX);
    loop {
        let rows = super::cache::page(&app, &filter, &page).await?;
        entries.extend(rows.items);
        let Some(next) = rows.next else { break };
        page.cursor = Some(next);
    }
    let axum::Json(location) = shown(&app, &location).await?;
    Ok(axum::Json(LocationCache { location, entries }))
}

/// The location with this id, if the caller may do to it what the route does.
async fn find(app: &App, caller: &Caller, id: LocationId) -> Result<Location, Fault> {
    let found = app.db.location(id).await?.filter(|l| l.state != LocationState::Removed);
    let found = found.ok_or_else(|| Fault::not_found("location", id))?;
    caller.may(&Resource::Location(found.domain), "location", id)?;
    Ok(found)
}

async fn shown(app: &App, location: &Location) -> Result<axum::Json<LocationBody>, Fault> {
    let active = app.db.active_counts(&[location.id]).await?.get(&location.id).copied().unwrap_or(0);
    Ok(axum::Json(body(app, location, active)))
}

/// The record, with what a live session says put over what was stored.
fn body(app: &App, l: &Location, active_entries: u32) -> LocationBody {
    let session = app.fleet.session(l.id);
    let last_heard_us = session.as_ref().map(|session| session.last_heard_us);
    let figures = session.as_ref().and_then(|session| session.figures.clone());
    let stored = &l.figures;
    let (budget, used, free, floor, degraded) = figures.map_or_else(
        || {
            (
                stored.budget_bytes,
                stored.used_bytes,
                stored.free_bytes,
                stored.floor_bytes,
                stored.degraded.clone(),
            )
        },
        |live| (live.budget_bytes, live.used_bytes, live.free_bytes, live.floor_bytes, live.degraded),
    );
    LocationBody {
        id: l.id,
        name: l.name.clone(),
        kind: l.kind,
        state: l.state,
        online: session.is_some(),
        degraded,
        platform: l.platform.clone(),
        region: l.region.clone(),
        zone: l.zone.clone(),
        rack: l.rack.clone(),
        account: l.account.clone(),
        ip: l.ip.clone(),
        serial: l.serial.clone(),
        domain: l.domain,
        labels: l.labels.clone(),
        advertised: l.advertised.clone(),
        nic_mbps: l.nic_mbps,
        agent: l.agent,
        certificate_ends_at: when::opt_text(l.cert_not_after_us),
        last_seen_at: when::opt_text(last_heard_us.max(l.last_seen_us)),
        duplicate: app.fleet.duplicate(l.id).map(|seen| DuplicateAgent {
            address: seen.address.to_string(),
            seen_at: when::text(seen.seen_us),
        }),
        budget_bytes: budget,
        used_bytes: used,
        free_bytes: free,
        floor_bytes: floor,
        active_entries,
        created_at: when::text(l.created_us),
    }
}
