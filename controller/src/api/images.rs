//! `/api/v1/images`: records of the catalog. [`super::upload`] and [`super::download`] move their bytes.
//!
//! **Why images of others are not refused but not found.** A refusal would tell that the name or id exists.
//! **Invariants.** Every handler finds an image through the caller's scope; none through its id alone.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::cache::CacheEntry;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::{Image as ImageBody, ImageCreate};
use hearth_protocol::id::{DomainId, ImageId, ProjectId};
use hearth_protocol::words::{DiskFormat, ImageKind, ImageStatus, PrewarmState, Visibility};
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::when;
use crate::clock;
use crate::db::cache_list::CacheFilter;
use crate::db::grams::fold;
use crate::db::images::{Image, ImageFacts, ImageFilter, NewImage};
use crate::db::operations::Draft;
use crate::db::prewarms::PrewarmFilter;
use crate::db::tokens::Scope;
use crate::db::{PageRequest, new_id};
use crate::logic::authz::{Action, Resource};
use crate::logic::catalog::{check_create, check_search};

/// Glance's name for a file that is in no further container.
const CONTAINER_BARE: &str = "bare";

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Exactly this name, without regard to case.
    name: Option<String>,
    /// Part of the name, without regard to case; at most 255 characters. `%` and `_` are plain characters.
    q: Option<String>,
    /// State.
    status: Option<ImageStatus>,
    /// Disk or ISO.
    kind: Option<ImageKind>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// How to delete.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Cancel its prewarm jobs first.
    #[serde(default)]
    force: bool,
}

/// Makes a record; `PUT /images/{id}/file` or `POST /images/{id}/uploads` sends its bytes, unless `source` says where the
/// controller gets them.
#[utoipa::path(post, path = "/api/v1/images", tag = "images", request_body = ImageCreate,
    responses((status = 201, body = ImageBody), (status = 409, description = "The name is taken", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<ImageCreate>,
) -> Result<(StatusCode, axum::Json<ImageBody>), Fault> {
    let image = make(&app, &caller, create).await?;
    Ok((StatusCode::CREATED, axum::Json(shown(&app, &caller, &image).await?)))
}

/// Makes a record, and queues its fetch if it has a source.
///
/// # Errors
/// What is wrong with the record, or what the caller may not do.
pub(super) async fn make(app: &App, caller: &Caller, create: ImageCreate) -> Result<Image, Fault> {
    check_create(&create)?;
    let source = match &create.source {
        Some(source) => Some((super::sources::read(app, "source.url", &source.url)?, source.url.clone())),
        None => None,
    };
    let (domain, project) = owner(app, caller, create.project).await?;
    caller.may(&Resource::Project { domain, project }, "project", project)?;
    if create.public {
        caller.may_do(Action::ImagePublish, &Resource::Whole, "image", &create.name)?;
    }
    let declared_iso = create.format == Some(DiskFormat::Iso);
    let kind = create.kind.unwrap_or(if declared_iso { ImageKind::Iso } else { ImageKind::Disk });
    let id: ImageId = new_id();
    let new = NewImage {
        id,
        kind,
        format: create.format,
        container_format: CONTAINER_BARE.to_owned(),
        domain,
        project,
        expected: create.expected.clone(),
        facts: facts(create),
    };
    let details = serde_json::json!({ "kind": new.kind, "format": new.format, "project": project });
    let op = caller.draft().on("image", id, new.facts.name.clone()).with(details);
    app.db.create_image(&new, &op).await?;
    if let Some((source, url)) = source {
        let named = new.facts.name.clone();
        super::sources::queue(app, caller, id, named, &source, &url).await?;
    }
    find(app, caller, id).await
}

fn facts(create: ImageCreate) -> ImageFacts {
    ImageFacts {
        name: create.name,
        visibility: if create.public { Visibility::Public } else { Visibility::Private },
        architecture: create.architecture.unwrap_or_default(),
        os_type: create.os_type.unwrap_or_default(),
        distribution: create.distribution.unwrap_or_default(),
        version: create.version.unwrap_or_default(),
        description: create.description.unwrap_or_default(),
        min_disk_bytes: create.min_disk_bytes.unwrap_or(0),
        min_memory_bytes: create.min_memory_bytes.unwrap_or(0),
        protected: create.protected,
        properties: create.properties,
    }
}

/// Where a new image goes: the named project, else the caller's, else the default one.
async fn owner(app: &App, caller: &Caller, named: Option<ProjectId>) -> Result<(DomainId, ProjectId), Fault> {
    match (named, caller.scope()) {
        (Some(project), _) => {
            let found = app.db.project(project).await?;
            found.map(|p| (p.domain, p.id)).ok_or_else(|| Fault::not_found("project", project))
        }
        (None, Scope::Project(domain, project)) => Ok((domain, project)),
        (None, Scope::System) => Ok(app.db.default_tenants().await?),
        (None, Scope::Domain(_)) => {
            Err(Fault::invalid("project", "a domain's token must say which project owns the image"))
        }
    }
}

/// Images that the caller may see, newest first.
#[utoipa::path(get, path = "/api/v1/images", tag = "images", params(ListQuery),
    responses((status = 200, body = Page<ImageBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<ImageBody>>, Fault> {
    query.q.as_deref().map_or(Ok(()), |q| check_search("q", q))?;
    let page = if let Some(name) = &query.name {
        let keep = |image: &Image| {
            query.status.is_none_or(|status| status == image.status)
                && query.kind.is_none_or(|kind| kind == image.kind)
                && query.q.as_ref().is_none_or(|q| fold(&image.facts.name).contains(&fold(q)))
        };
        let named = app.db.images_named(caller.scope(), name).await?;
        Page { items: named.into_iter().filter(keep).collect(), next: None }
    } else {
        let filter = ImageFilter {
            name_contains: query.q,
            status: query.status,
            kind: query.kind,
            ..ImageFilter::default()
        };
        app.db
            .images(caller.scope(), &filter, &PageRequest { limit: query.limit, cursor: query.cursor })
            .await?
    };
    let items = bodies(&app, &caller, &page.items).await?;
    Ok(axum::Json(Page { items, next: page.next }))
}

/// One image.
#[utoipa::path(get, path = "/api/v1/images/{id}", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<axum::Json<ImageBody>, Fault> {
    let image = find(&app, &caller, id).await?;
    shown(&app, &caller, &image).await.map(axum::Json)
}

/// Deletes an image: its record, its original, and its content unless another image has the same. Copies at locations
/// stay as unheld cache.
#[utoipa::path(delete, path = "/api/v1/images/{id}", tag = "images", params(("id" = ImageId, Path), DeleteQuery),
    responses((status = 204, description = "Deleted"),
        (status = 409, description = "Protected, leased or being prewarmed", body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(query): Query<DeleteQuery>,
    headers: axum::http::HeaderMap,
) -> Result<StatusCode, Fault> {
    let image = find(&app, &caller, id).await?;
    let if_match = if_match(&headers)?;
    if image.facts.protected {
        return Err(Fault::conflict(format!("image {} is protected", image.facts.name)));
    }
    refuse_leased(&app, &caller, &image).await?;
    if query.force {
        cancel_prewarms(&app, &caller, id).await?;
    }
    let op = caller.draft().on("image", id, image.facts.name.clone());
    let gone = app.db.delete_image(id, if_match, &op).await?;
    app.jobs.clean_up(&gone).await;
    Ok(StatusCode::NO_CONTENT)
}

/// The revision of `If-Match`, as a bare number or in the quotes of an entity tag.
fn if_match(headers: &axum::http::HeaderMap) -> Result<Option<u64>, Fault> {
    let Some(value) = headers.get(axum::http::header::IF_MATCH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().trim_matches('"').parse().ok());
    number.map(Some).ok_or_else(|| Fault::invalid("if-match", "If-Match must be the record's `revision`"))
}

/// An image whose copy a machine uses is not deleted: the operator would lose sight of what the machine runs on.
async fn refuse_leased(app: &App, caller: &Caller, image: &Image) -> Result<(), Fault> {
    let Some(content) = image.content else { return Ok(()) };
    let leases = app.db.leases_of(content).await?;
    let others = app.db.images_of_contents(&[content]).await?;
    if leases.is_empty() || others.iter().any(|other| other.id != image.id) {
        return Ok(());
    }
    let shown = leases.iter().take(5).map(|(_, lease)| format!("{} {}", lease.kind, lease.consumer));
    let mut users = shown.collect::<Vec<_>>().join(", ");
    if leases.len() > 5 {
        users.push_str(&format!(" and {} more", leases.len() - 5));
    }
    // Who uses copies is the operators' business; a tenant learns only that somebody does.
    let message =
        if caller.sees_caches() { format!("used by {users}") } else { "copies of it are in use".to_owned() };
    Err(Fault::in_use(format!("image {}: {message}", image.facts.name)).hint("stop its users first"))
}

async fn cancel_prewarms(app: &App, caller: &Caller, image: ImageId) -> Result<(), Fault> {
    for state in [PrewarmState::Scheduled, PrewarmState::Running, PrewarmState::Paused] {
        let filter = PrewarmFilter { state: Some(state), image: Some(image) };
        let page = app.db.prewarms(&filter, &PageRequest::first(hearth_protocol::api::PAGE_ROWS_MAX)).await?;
        for job in page.items {
            let op = Draft { action: "prewarm.cancel".to_owned(), ..caller.draft() };
            app.db.cancel_prewarm(job.id, &op.on("prewarm", job.id, job.image_name)).await?;
        }
    }
    Ok(())
}

/// Imports a killed image again: from its kept original, else from its source.
#[utoipa::path(post, path = "/api/v1/images/{id}/retry", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 202, body = ImageBody), (status = 409, description = "Nothing to retry", body = ErrorBody)))]
pub async fn retry(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<(StatusCode, axum::Json<ImageBody>), Fault> {
    let image = find(&app, &caller, id).await?;
    let kept = {
        let originals = std::sync::Arc::clone(&app.ingest.originals);
        super::upload::blocking(move || originals.open(id)).await?
    };
    if image.status == ImageStatus::Killed && kept.is_none() && !image.source.is_empty() {
        let image = super::sources::again(&app, &caller, &image).await?;
        return Ok((StatusCode::ACCEPTED, axum::Json(shown(&app, &caller, &image).await?)));
    }
    if image.status != ImageStatus::Killed || kept.is_none() {
        let state = if kept.is_none() { "its original is not kept" } else { image.status.as_str() };
        return Err(Fault::conflict(format!("image {} cannot be retried: {state}", image.facts.name))
            .hint("send the file again: hearth image import"));
    }
    crate::jobs::retry(&app.db, &image, &caller.draft().on("image", id, image.facts.name.clone())).await?;
    let image = find(&app, &caller, id).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(shown(&app, &caller, &image).await?)))
}

/// Where an image is cached.
#[utoipa::path(get, path = "/api/v1/images/{id}/cache", tag = "images",
    params(("id" = ImageId, Path), super::cache::PageQuery), responses((status = 200, body = Page<CacheEntry>)))]
pub async fn cache(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(query): Query<super::cache::PageQuery>,
) -> Result<axum::Json<Page<CacheEntry>>, Fault> {
    let image =
        app.db.image_seen_by(caller.scope(), id).await?.ok_or_else(|| Fault::not_found("image", id))?;
    let filter = CacheFilter { image: Some(image.id), ..CacheFilter::default() };
    super::cache::page(&app, &filter, &query.request()).await.map(axum::Json)
}

/// The image with this id, if the caller may do to it what the route does.
///
/// # Errors
/// 404 if there is none or it may not be seen, 403.
pub async fn find(app: &App, caller: &Caller, id: ImageId) -> Result<Image, Fault> {
    let image =
        app.db.image_seen_by(caller.scope(), id).await?.ok_or_else(|| Fault::not_found("image", id))?;
    // The store shows a shared image only to those it is shared with.
    let resource = Resource::Image {
        domain: image.domain,
        project: image.project,
        visibility: image.facts.visibility,
        shared_with_caller: image.facts.visibility == Visibility::Shared,
    };
    let action = if caller.action == Action::ImageCreate { Action::ImageShow } else { caller.action };
    caller.may_do(action, &resource, "image", id)?;
    Ok(image)
}

/// The bodies of records, with the number of their copies for those who may know where copies are.
///
/// # Errors
/// 500.
pub async fn bodies(app: &App, caller: &Caller, images: &[Image]) -> Result<Vec<ImageBody>, Fault> {
    if !caller.sees_caches() {
        return Ok(images.iter().map(|image| body(image, None)).collect());
    }
    let ids: Vec<ImageId> = images.iter().map(|image| image.id).collect();
    let copies = app.db.active_copies(&ids, clock::steady_unix_us()).await?;
    let cached_at = |image: &Image| Some(copies.get(&image.id).copied().unwrap_or(0));
    Ok(images.iter().map(|image| body(image, cached_at(image))).collect())
}

/// As [`bodies`], of one record.
///
/// # Errors
/// As [`bodies`].
pub async fn shown(app: &App, caller: &Caller, image: &Image) -> Result<ImageBody, Fault> {
    let mut one = bodies(app, caller, std::slice::from_ref(image)).await?;
    Ok(one.remove(0))
}

/// The body of a record.
fn body(image: &Image, cached_at: Option<u32>) -> ImageBody {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let facts = &image.facts;
    ImageBody {
        id: image.id,
        name: facts.name.clone(),
        kind: image.kind,
        status: image.status,
        stage: image.stage,
        percent: image.percent,
        reason: image.reason.clone(),
        format: image.format,
        visibility: facts.visibility,
        domain: image.domain,
        project: image.project,
        content: image.content,
        original_bytes: image.original_bytes,
        original_kept: image.original_kept,
        checksums: image.checksums.clone(),
        virtual_bytes: image.virtual_bytes,
        data_bytes: image.data_bytes,
        stored_bytes: image.stored_bytes,
        architecture: text(&facts.architecture),
        os_type: text(&facts.os_type),
        distribution: text(&facts.distribution),
        version: text(&facts.version),
        description: text(&facts.description),
        min_disk_bytes: (facts.min_disk_bytes > 0).then_some(facts.min_disk_bytes),
        min_memory_bytes: (facts.min_memory_bytes > 0).then_some(facts.min_memory_bytes),
        protected: facts.protected,
        properties: facts.properties.clone(),
        source: text(&image.source),
        revision: image.revision,
        created_at: when::text(image.created_us),
        updated_at: when::text(image.updated_us),
        cached_at,
    }
}
