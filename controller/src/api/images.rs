//! `/api/v1/images`: records of the catalog: made, shown and found. [`super::image_list`] lists them,
//! [`super::image_edits`] and [`super::image_ends`] change and end them, [`super::image_batch`] many at once;
//! [`super::upload`] and [`super::download`] move their bytes.
//!
//! **Why images of others are not refused but not found.** A refusal would tell that the name or id exists.
//! **Invariants.** Every handler finds an image through the caller's scope; none through its id alone.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hearth_protocol::api::Page;
use hearth_protocol::api::cache::CacheEntry;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::{Image as ImageBody, ImageCreate, Scan};
use hearth_protocol::id::{DomainId, ImageId, ProjectId};
use hearth_protocol::words::{
    Architecture, DiskDriver, DiskFormat, ImageKind, ImageStatus, NetworkDriver, ShareStatus, Visibility,
};
use serde_json::json;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::sources::fetch_of;
use super::when;
use crate::clock;
use crate::db::cache_list::CacheFilter;
use crate::db::image_edits::Together;
use crate::db::images::{FixedFacts, Image, ImageFacts, NewImage};
use crate::db::markets::NewImport;
use crate::db::new_id;
use crate::db::operations::Draft;
use crate::db::tokens::Scope;
use crate::logic::authz::{Action, Resource};
use crate::logic::catalog::check_create;
use crate::logic::deletion::destroyed_us;
use crate::logic::distributions::check_listed;
use crate::logic::quota::Figures;

/// Glance's name for a file that is in no further container.
const CONTAINER_BARE: &str = "bare";

/// Makes a record; `PUT /images/{id}/file` or `POST /images/{id}/uploads` sends its bytes, unless `source` says where the
/// controller gets them.
#[utoipa::path(post, path = "/api/v1/images", tag = "images", request_body = ImageCreate,
    responses((status = 201, body = ImageBody, headers(("etag", description = "Its revision"))), (status = 409, description = "The name is taken, or the project's quota is full", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<ImageCreate>,
) -> Result<(StatusCode, Tagged), Fault> {
    let image = make(&app, &caller, create).await?;
    Ok((StatusCode::CREATED, tagged(&app, &caller, &image).await?))
}

/// Makes a record, and queues its fetch if it has a source.
///
/// # Errors
/// What is wrong with the record, or what the caller may not do.
pub(super) async fn make(app: &App, caller: &Caller, create: ImageCreate) -> Result<Image, Fault> {
    make_as(app, caller, new_id(), create, None).await
}

/// As [`make`], with an id that is known beforehand, and the entry of a market that it is made of. All of it is made in one
/// step: a record that was to have a source has it, whatever ends.
///
/// # Errors
/// As [`make`]; 409 if the entry was imported before.
pub(super) async fn make_as(
    app: &App,
    caller: &Caller,
    id: ImageId,
    create: ImageCreate,
    entry: Option<NewImport>,
) -> Result<Image, Fault> {
    check_create(&create)?;
    let (distribution, version) = (create.distribution.as_deref(), create.version.as_deref());
    must_be_listed(app, create.architecture, distribution.unwrap_or_default(), version.unwrap_or_default())?;
    let source = match &create.source {
        Some(source) => Some((super::sources::read(app, "source.url", &source.url)?, source.url.clone())),
        None => None,
    };
    let (domain, project) = owner(app, caller, create.project).await?;
    caller.may(&Resource::Project { domain, project }, "project", project)?;
    if create.public {
        super::ownership::may_publish(app, caller, &Resource::Project { domain, project }, &create.name)?;
    }
    if source.is_some() && !create.public {
        app.db.refuse_over_quota(project, Figures::bytes(1)).await?;
    }
    let fetch = source.map(|(source, url)| fetch_of(caller, (id, &create.name), &source, &url));
    let (key, new_key) =
        super::keys::for_image(app, caller, (domain, project), create.encryption.as_ref()).await?;
    let declared_iso = create.format == Some(DiskFormat::Iso);
    let kind = create.kind.unwrap_or(if declared_iso { ImageKind::Iso } else { ImageKind::Disk });
    let new = NewImage {
        id,
        kind,
        format: create.format,
        container_format: CONTAINER_BARE.to_owned(),
        domain,
        project,
        expected: create.expected.clone(),
        fixed: FixedFacts { virtualisation: create.virtualisation, disk_bytes: create.disk_bytes, key },
        facts: facts(create),
    };
    let details = json!({ "kind": new.kind, "format": new.format, "project": project, "key": key });
    let op = caller.draft().on("image", id, new.facts.name.clone()).with(details);
    app.db.create_image_with(&new, &Together { key: new_key, entry, fetch }, &op).await?;
    find(app, caller, id).await
}

/// Takes the record of an image away again whose bytes did not come.
pub(super) async fn take_back(app: &App, caller: &Caller, image: &Image, fault: &Fault) {
    let op = Draft { action: Action::ImageDelete.as_str().to_owned(), ..caller.draft() };
    let op =
        op.on("image", image.id, image.facts.name.clone()).with(json!({ "not_made": fault.parts().message }));
    match app.db.take_back_image(image.id, &op).await {
        Ok(gone) => app.jobs.clean_up(&gone).await,
        Err(error) => {
            tracing::warn!(image = %image.id, error = super::fault::chain(&error), "a record stays without bytes")
        }
    }
}

/// Refuses a distribution that the table does not have, where the table is strict.
///
/// # Errors
/// 400 with what the table has.
pub fn must_be_listed(
    app: &App,
    architecture: Option<Architecture>,
    distribution: &str,
    version: &str,
) -> Result<(), Fault> {
    if !app.config.catalog.distributions_strict {
        return Ok(());
    }
    let listed = check_listed(&app.config.catalog.distributions, architecture, distribution, version);
    listed.map_err(|error| Fault::from(error).hint("hearth image distributions shows the table"))
}

/// A record with its revision as entity tag.
#[derive(Debug)]
pub struct Tagged(pub ImageBody);

impl IntoResponse for Tagged {
    fn into_response(self) -> Response {
        let tag = format!("\"{}\"", self.0.revision);
        ([(header::ETAG, tag)], axum::Json(self.0)).into_response()
    }
}

/// As [`shown`], with the revision as entity tag.
///
/// # Errors
/// As [`shown`].
pub async fn tagged(app: &App, caller: &Caller, image: &Image) -> Result<Tagged, Fault> {
    shown(app, caller, image).await.map(Tagged)
}

fn facts(create: ImageCreate) -> ImageFacts {
    ImageFacts {
        name: create.name,
        visibility: if create.public { Visibility::Public } else { Visibility::Private },
        architecture: create.architecture,
        os_type: create.os_type,
        distribution: create.distribution.unwrap_or_default(),
        version: create.version.unwrap_or_default(),
        description: create.description.unwrap_or_default(),
        min_disk_bytes: create.min_disk_bytes.unwrap_or(0),
        min_memory_bytes: create.min_memory_bytes.unwrap_or(0),
        disk_driver: create.disk_driver.unwrap_or(DiskDriver::Auto),
        network_driver: create.network_driver.unwrap_or(NetworkDriver::Auto),
        os_language: create.os_language.unwrap_or_default(),
        app_platform: create.app_platform.unwrap_or_default(),
        password_enabled: create.password_enabled,
        protected: create.protected,
        tags: create.tags,
        properties: create.properties,
    }
}

/// Where a new image goes: the named project, else the caller's, else the default one.
pub(super) async fn owner(
    app: &App,
    caller: &Caller,
    named: Option<ProjectId>,
) -> Result<(DomainId, ProjectId), Fault> {
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

/// One image.
#[utoipa::path(get, path = "/api/v1/images/{id}", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody, headers(("etag", description = "Its revision")))))]
pub async fn show(State(app): State<App>, caller: Caller, Path(id): Path<ImageId>) -> Result<Tagged, Fault> {
    let (image, share_status) = found(&app, &caller, id).await?;
    Ok(Tagged(ImageBody { share_status, ..shown(&app, &caller, &image).await? }))
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
    let filter = CacheFilter { image: Some(image.id), domain: caller.bound()?, ..CacheFilter::default() };
    super::cache::page(&app, &filter, &query.request()).await.map(axum::Json)
}

/// The image with this id, if the caller may do to it what the route does.
///
/// # Errors
/// 404 if there is none or it may not be seen, 403.
pub async fn find(app: &App, caller: &Caller, id: ImageId) -> Result<Image, Fault> {
    found(app, caller, id).await.map(|(image, _)| image)
}

/// As [`find`], with the share through which somebody who does not own it knows it.
///
/// # Errors
/// As [`find`].
pub async fn found(app: &App, caller: &Caller, id: ImageId) -> Result<(Image, Option<ShareStatus>), Fault> {
    let found = app.db.image_known_to(caller.scope(), id).await?;
    let (image, share) = found.ok_or_else(|| Fault::not_found("image", id))?;
    let resource = Resource::Image {
        domain: image.domain,
        project: image.project,
        visibility: image.facts.visibility,
        share,
    };
    let action = if caller.action == Action::ImageCreate { Action::ImageShow } else { caller.action };
    let may = caller.may_do(action, &resource, "image", id);
    may.map_err(|fault| super::shares::not_accepted(fault, &image, share))?;
    Ok((image, share))
}

/// The bodies of records, with the number of their copies for those who may know where copies are.
///
/// # Errors
/// 500.
pub async fn bodies(app: &App, caller: &Caller, images: &[Image]) -> Result<Vec<ImageBody>, Fault> {
    let days = app.config.catalog.bin_days;
    let Ok(domain) = caller.doing(Action::CacheList).bound() else {
        return Ok(images.iter().map(|image| body(caller, image, None, days)).collect());
    };
    let ids: Vec<ImageId> = images.iter().map(|image| image.id).collect();
    let copies = app.db.active_copies(&ids, domain, clock::steady_unix_us()).await?;
    let cached_at = |image: &Image| Some(copies.get(&image.id).copied().unwrap_or(0));
    Ok(images.iter().map(|image| body(caller, image, cached_at(image), days)).collect())
}

/// As [`bodies`], of one record.
///
/// # Errors
/// As [`bodies`].
pub async fn shown(app: &App, caller: &Caller, image: &Image) -> Result<ImageBody, Fault> {
    let mut one = bodies(app, caller, std::slice::from_ref(image)).await?;
    Ok(one.remove(0))
}

/// The body of a record; `bin_days` says when the recycle bin destroys it.
fn body(caller: &Caller, image: &Image, cached_at: Option<u32>, bin_days: u32) -> ImageBody {
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
        disk_bytes: image.fixed.disk_bytes,
        architecture: facts.architecture,
        os_type: facts.os_type,
        distribution: text(&facts.distribution),
        version: text(&facts.version),
        description: text(&facts.description),
        min_disk_bytes: (facts.min_disk_bytes > 0).then_some(facts.min_disk_bytes),
        min_memory_bytes: (facts.min_memory_bytes > 0).then_some(facts.min_memory_bytes),
        virtualisation: image.fixed.virtualisation,
        disk_driver: facts.disk_driver,
        network_driver: facts.network_driver,
        os_language: text(&facts.os_language),
        app_platform: text(&facts.app_platform),
        password_enabled: facts.password_enabled,
        protected: facts.protected,
        tags: facts.tags.clone(),
        properties: facts.properties.clone(),
        source: text(&image.source),
        revision: image.revision,
        created_at: when::text(image.created_us),
        updated_at: when::text(image.updated_us),
        binned_at: image.binned.map(|binned| when::text(binned.since_us)),
        destroyed_at: image.binned.map(|binned| when::text(destroyed_us(binned.since_us, bin_days))),
        scan: image
            .scan
            .as_ref()
            .map(|(verdict, at_us)| Scan { verdict: verdict.clone(), scanned_at: when::text(*at_us) }),
        cached_at,
        cached: None,
        featured: image.featured,
        share_status: None,
        encryption: super::keys::shown(caller, image),
    }
}
