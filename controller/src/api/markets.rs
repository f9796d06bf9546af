//! `/api/v1/markets`: signed catalogs of images, and imports from them.
//!
//! **What.** Adds, refreshes, lists and removes markets; lists their entries with what became of each; imports an entry as a public
//! image whose file must have the size and the SHA-256 that were signed.
//! **Why the signature is checked at each import.** What lies in the database may be a year old; what is fetched must still be
//! what the key's owner vouched for.
//! **Invariants.** Nothing of a file is used before its signature is good. Files come by the same guarded way as all sources.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::{Checksums, Image as ImageBody, ImageCreate};
use hearth_protocol::api::market::{
    Catalog, CatalogEntry, FILE_BYTES_MAX, Market as MarketBody, MarketCreate, MarketEntry, MarketImport,
    MarketRefresh, SignedCatalog,
};
use hearth_protocol::api::source::ImageSource;
use hearth_protocol::id::{ImageId, MarketId};
use hearth_protocol::words::{ImageStatus, MarketState};
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::cache::PageQuery;
use super::caller::Caller;
use super::fault::Fault;
use super::images::{make_as, shown};
use super::when;
use crate::db::markets::{Edition, Market, NewImport};
use crate::db::{PageRequest, new_id};
use crate::ingest::sources::FetchError;
use crate::logic::authz::Action;
use crate::logic::catalog::{check_name, check_search};
use crate::logic::market::{check_key, open};
use crate::logic::source::Scheme;

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Exactly this name, without regard to case.
    name: Option<String>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// Adds a market: its catalog is given, or the controller gets it from a URL.
#[utoipa::path(post, path = "/api/v1/markets", tag = "markets", request_body = MarketCreate,
    responses((status = 201, body = MarketBody),
        (status = 409, description = "The name is taken, a newer edition was here already, or the URL does not answer as it should",
            body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<MarketCreate>,
) -> Result<(StatusCode, axum::Json<MarketBody>), Fault> {
    check_name("name", &create.name)?;
    check_key(&create.key)?;
    let file = match (create.file, &create.url) {
        (Some(file), None) => file,
        (None, Some(url)) => fetched(&app, url).await?,
        _ => return Err(Fault::invalid("file", "say exactly one of file and url")),
    };
    let catalog = open(&file, &create.key)?;
    let new = Market {
        id: new_id(),
        name: create.name,
        key: create.key,
        url: create.url,
        catalog_name: catalog.name.clone(),
        serial: catalog.serial,
        entries: 0,
        created_us: 0,
        updated_us: 0,
    };
    let details = serde_json::json!({ "key": new.key, "serial": catalog.serial, "url": new.url });
    let op = caller.draft().on("market", new.id, new.name.clone()).with(details);
    let made = app.db.create_market(&new, Edition { file: &file, catalog: &catalog }, &op).await?;
    Ok((StatusCode::CREATED, axum::Json(body(&made))))
}

/// Markets by name.
#[utoipa::path(get, path = "/api/v1/markets", tag = "markets", params(ListQuery),
    responses((status = 200, body = Page<MarketBody>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<MarketBody>>, Fault> {
    query.name.as_deref().map_or(Ok(()), |name| check_search("name", name))?;
    let request = PageRequest { limit: query.limit, cursor: query.cursor };
    let page = app.db.markets(query.name.as_deref(), &request).await?;
    Ok(axum::Json(Page { items: page.items.iter().map(body).collect(), next: page.next }))
}

/// One market.
#[utoipa::path(get, path = "/api/v1/markets/{id}", tag = "markets", params(("id" = MarketId, Path)),
    responses((status = 200, body = MarketBody)))]
pub async fn show(State(app): State<App>, Path(id): Path<MarketId>) -> Result<axum::Json<MarketBody>, Fault> {
    Ok(axum::Json(body(&find(&app, id).await?)))
}

/// Takes a newer edition of a market's catalog, signed by the same key.
#[utoipa::path(post, path = "/api/v1/markets/{id}/refresh", tag = "markets", params(("id" = MarketId, Path)),
    request_body = MarketRefresh,
    responses((status = 200, body = MarketBody),
        (status = 409, description = "A newer edition was here already, or the URL does not answer as it should", body = ErrorBody)))]
pub async fn refresh(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<MarketId>,
    Json(refresh): Json<MarketRefresh>,
) -> Result<axum::Json<MarketBody>, Fault> {
    let market = find(&app, id).await?;
    let file = match (refresh.file, &market.url) {
        (Some(file), _) => file,
        (None, Some(url)) => fetched(&app, url).await?,
        (None, None) => {
            return Err(Fault::invalid(
                "file",
                format!("market {} has no URL: give its new file", market.name),
            ));
        }
    };
    let catalog = open(&file, &market.key)?;
    let op = caller.draft().on("market", id, market.name);
    let now = app.db.refresh_market(id, Edition { file: &file, catalog: &catalog }, &op).await?;
    Ok(axum::Json(body(&now)))
}

/// Removes a market. Images that were imported from it stay.
#[utoipa::path(delete, path = "/api/v1/markets/{id}", tag = "markets", params(("id" = MarketId, Path)),
    responses((status = 204, description = "Removed")))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<MarketId>,
) -> Result<StatusCode, Fault> {
    let market = find(&app, id).await?;
    app.db.delete_market(id, &caller.draft().on("market", id, market.name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The entries of a market by key, with what became of each.
#[utoipa::path(get, path = "/api/v1/markets/{id}/entries", tag = "markets", params(("id" = MarketId, Path), PageQuery),
    responses((status = 200, body = Page<MarketEntry>)))]
pub async fn entries(
    State(app): State<App>,
    Path(id): Path<MarketId>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<MarketEntry>>, Fault> {
    let market = find(&app, id).await?;
    let entries = catalog_of(&app, &market).await?.entries;
    let page = query.request().cut(entries, |entry| &entry.key)?;
    let imports = app.db.imports_of(&market).await?;
    let items = page.items.into_iter().map(|entry| entry_body(&market, entry, &imports)).collect();
    Ok(axum::Json(Page { items, next: page.next }))
}

/// Imports an entry as a public image. The image is `active` when its file came, had the signed size and SHA-256, and was taken in.
#[utoipa::path(post, path = "/api/v1/markets/{id}/entries/{key}/import", tag = "markets",
    params(("id" = MarketId, Path), ("key" = String, Path, description = "Key of the entry")), request_body = MarketImport,
    responses((status = 202, body = ImageBody),
        (status = 409, description = "It is imported already, or an image of the project has the name", body = ErrorBody)))]
pub async fn import(
    State(app): State<App>,
    caller: Caller,
    Path((id, key)): Path<(MarketId, String)>,
    Json(import): Json<MarketImport>,
) -> Result<(StatusCode, axum::Json<ImageBody>), Fault> {
    let market = find(&app, id).await?;
    let entry = catalog_of(&app, &market).await?.entries.into_iter().find(|entry| entry.key == key);
    let entry = entry.ok_or_else(|| {
        let shown: String = key.chars().filter(|c| !c.is_control()).take(64).collect();
        Fault::not_found("entry", format!("{shown} in market {}", market.name))
            .hint("hearth market entries shows what there is")
    })?;
    let image = new_id();
    let details = serde_json::json!({ "entry": entry.key, "image": image, "sha256": entry.sha256 });
    let op = caller.draft().on("market", id, market.name.clone()).with(details);
    let record = record(&entry, import);
    // The right to import is that to make public images.
    let maker = caller.doing(Action::ImageCreate);
    let image = make_as(&app, &maker, image, record, Some(NewImport { market, entry, op })).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(shown(&app, &maker, &image).await?)))
}

/// The image that an entry becomes.
fn record(entry: &CatalogEntry, import: MarketImport) -> ImageCreate {
    ImageCreate {
        name: import.name.unwrap_or_else(|| entry.name.clone()),
        project: import.project,
        public: true,
        format: Some(entry.format),
        os_type: Some(entry.os_type),
        distribution: Some(entry.distribution.clone()),
        version: Some(entry.version.clone()),
        architecture: Some(entry.architecture),
        description: entry.description.clone(),
        expected: Checksums { sha256: Some(entry.sha256.clone()), ..Checksums::default() },
        source: Some(ImageSource { url: entry.url.clone() }),
        ..ImageCreate::default()
    }
}

async fn find(app: &App, id: MarketId) -> Result<Market, Fault> {
    app.db.market(id).await?.ok_or_else(|| Fault::not_found("market", id))
}

/// What is stored of a market, checked once more.
async fn catalog_of(app: &App, market: &Market) -> Result<Catalog, Fault> {
    let file = app.db.market_file(market.id).await?.ok_or_else(|| Fault::not_found("market", market.id))?;
    open(&file, &market.key).map_err(|error| {
        Fault::conflict(format!(
            "the stored catalog of market {} is not what was signed: {error}",
            market.name
        ))
        .hint("take its edition anew: hearth market remove, hearth market add")
    })
}

/// A signed file from a URL.
async fn fetched(app: &App, url: &str) -> Result<SignedCatalog, Fault> {
    let source = super::sources::read(app, "url", url)?;
    if !matches!(source.scheme, Scheme::Http | Scheme::Https) || source.hides() {
        let problem = "a catalog comes by https or http, from a URL without user, password and query";
        return Err(Fault::invalid("url", problem));
    }
    let place = app.source_checks.clone().try_acquire_owned();
    let _place =
        place.map_err(|_| Fault::unavailable("too many sources are looked at; try again in a moment"))?;
    let bytes = app.sources.whole(&source, FILE_BYTES_MAX).await.map_err(|error| match error {
        FetchError::Refused(error) => Fault::invalid("url", error.to_string()),
        error => {
            Fault::conflict(error.to_string()).field("url").hint("look at the URL, and at the source itself")
        }
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Fault::invalid("url", format!("what is there is no signed catalog: {error}")))
}

fn body(market: &Market) -> MarketBody {
    MarketBody {
        id: market.id,
        name: market.name.clone(),
        catalog: market.catalog_name.clone(),
        key: market.key.clone(),
        url: market.url.clone(),
        serial: market.serial,
        entries: market.entries,
        created_at: when::text(market.created_us),
        updated_at: when::text(market.updated_us),
    }
}

fn entry_body(
    market: &Market,
    entry: CatalogEntry,
    imports: &HashMap<(String, String), (ImageId, ImageStatus)>,
) -> MarketEntry {
    let found = imports.get(&(entry.key.clone(), entry.sha256.clone()));
    let state = match found {
        None => MarketState::NotImported,
        Some((_, ImageStatus::Killed)) => MarketState::Failed,
        Some((_, ImageStatus::Active | ImageStatus::Deactivated)) => MarketState::Imported,
        Some(_) => MarketState::Importing,
    };
    MarketEntry {
        market: market.id,
        market_name: market.name.clone(),
        entry,
        state,
        image: found.map(|(image, _)| *image),
    }
}
