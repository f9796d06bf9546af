//! `/api/v1/host-images`: disk images merged into what a whole machine starts from.
//!
//! **Why images of others are not refused but not found.** A refusal would tell that the id exists; so an image that the
//! caller may not see answers in a merge as one that is not there.
//! **Invariants.** Every handler finds a host image through the caller's scope. Of a disk whose image the caller may not see,
//! place and state are told, and its part of the sums; never its id, name or owner.

use std::collections::HashSet;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::host_image::{
    HostImage as HostImageBody, HostImageCreate, HostImageDetails, HostImageFacts as FactsBody,
    HostImageResult, HostImageUpdate, SubImage,
};
use hearth_protocol::id::{HostImageId, ImageId};
use hearth_protocol::words::{DiskRole, HostImageStatus, ImageStatus, Visibility};
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::{host_image_batch, image_edits, images, when};
use crate::db::host_images::{HOLDERS_MAX, HostImage, HostImageFacts, HostImageFilter, NewHostImage};
use crate::db::images::Image;
use crate::db::{PageRequest, new_id};
use crate::logic::authz::{Action, Resource, Scope};
use crate::logic::catalog::check_search;
use crate::logic::host_image::{check_create, check_member, check_update, member_field};
use crate::logic::host_state;

/// The driver of disks and networks that nobody chose: the platform does.
const DRIVER_AUTO: &str = "auto";

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Exactly this name, without regard to case.
    name: Option<String>,
    /// Part of the name, without regard to case; at most 255 characters. `%` and `_` are plain characters.
    q: Option<String>,
    /// State: the worst of the disks'.
    status: Option<HostImageStatus>,
    /// Who may see it.
    visibility: Option<Visibility>,
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
    /// Also the images of its disks that nothing else uses; the answer then tells what became of each.
    #[serde(default)]
    members: bool,
}

/// Merges 2 to 16 active disk images, in the order of the disks, into a host image.
#[utoipa::path(post, path = "/api/v1/host-images", tag = "host-images", request_body = HostImageCreate,
    responses((status = 201, body = HostImageDetails),
        (status = 409, description = "An image is not active, or the name is taken", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<HostImageCreate>,
) -> Result<(StatusCode, axum::Json<HostImageDetails>), Fault> {
    check_create(&create)?;
    let (domain, project) = images::owner(&app, &caller, create.project).await?;
    caller.may(&Resource::Project { domain, project }, "project", project)?;
    let mut disks = Vec::with_capacity(create.images.len());
    for (position, id) in create.images.iter().enumerate() {
        disks.push(disk(&app, &caller, position, *id).await?);
    }
    let mut facts = facts_of(create.name, &disks[0]);
    facts.protected = create.protected;
    apply(&mut facts, &create.facts);
    let new = NewHostImage { id: new_id(), domain, project, images: create.images, facts };
    let details = serde_json::json!({ "images": new.images, "project": project });
    let op = caller.draft().on("host_image", new.id, new.facts.name.clone()).with(details);
    let made = app.db.create_host_image(&new, &op).await?;
    Ok((StatusCode::CREATED, axum::Json(details_of(&app, &caller, &made).await?)))
}

/// The image of disk `position`, if the caller may merge it.
async fn disk(app: &App, caller: &Caller, position: usize, id: ImageId) -> Result<Image, Fault> {
    let field = member_field(position);
    let found = app.db.image_seen_by(caller.scope(), id).await?;
    let image = found.ok_or_else(|| Fault::not_found("image", id).field(field.clone()))?;
    let is_own = caller.principal.scope.covers(Scope::Project(image.domain, image.project));
    check_member(position, image.kind, is_own, image.facts.visibility == Visibility::Public)?;
    if image.status != ImageStatus::Active {
        let message = format!(
            "{field}: image {} is {}: only active images can be merged",
            image.facts.name, image.status
        );
        return Err(Fault::conflict(message).field(field).hint("wait for its import: hearth image show"));
    }
    Ok(image)
}

/// A machine of a host image starts from its system disk: what is known of that image holds for the whole.
fn facts_of(name: String, system: &Image) -> HostImageFacts {
    let facts = &system.facts;
    HostImageFacts {
        name,
        visibility: Visibility::Private,
        description: String::new(),
        architecture: facts.architecture.map(|word| word.to_string()).unwrap_or_default(),
        os_type: facts.os_type.map(|word| word.to_string()).unwrap_or_default(),
        distribution: facts.distribution.clone(),
        version: facts.version.clone(),
        os_language: String::new(),
        app_platform: String::new(),
        disk_driver: DRIVER_AUTO.to_owned(),
        network_driver: DRIVER_AUTO.to_owned(),
        min_disk_bytes: facts.min_disk_bytes,
        min_memory_bytes: facts.min_memory_bytes,
        protected: false,
    }
}

fn apply(facts: &mut HostImageFacts, said: &FactsBody) {
    for (stored, said) in [
        (&mut facts.description, &said.description),
        (&mut facts.architecture, &said.architecture),
        (&mut facts.os_type, &said.os_type),
        (&mut facts.distribution, &said.distribution),
        (&mut facts.version, &said.version),
        (&mut facts.os_language, &said.os_language),
        (&mut facts.app_platform, &said.app_platform),
        (&mut facts.disk_driver, &said.disk_driver),
        (&mut facts.network_driver, &said.network_driver),
    ] {
        if let Some(text) = said {
            stored.clone_from(text);
        }
    }
    facts.min_disk_bytes = said.min_disk_bytes.unwrap_or(facts.min_disk_bytes);
    facts.min_memory_bytes = said.min_memory_bytes.unwrap_or(facts.min_memory_bytes);
}

/// Host images that the caller may see, newest first.
#[utoipa::path(get, path = "/api/v1/host-images", tag = "host-images", params(ListQuery),
    responses((status = 200, body = Page<HostImageBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<HostImageBody>>, Fault> {
    query.q.as_deref().map_or(Ok(()), |q| check_search("q", q))?;
    query.name.as_deref().map_or(Ok(()), |name| check_search("name", name))?;
    let filter = HostImageFilter {
        name: query.name,
        name_contains: query.q,
        status: query.status,
        visibility: query.visibility,
    };
    let page = PageRequest { limit: query.limit, cursor: query.cursor };
    let page = app.db.host_images(caller.scope(), &filter, &page).await?;
    Ok(axum::Json(Page { items: page.items.iter().map(body).collect(), next: page.next }))
}

/// One host image with its disks.
#[utoipa::path(get, path = "/api/v1/host-images/{id}", tag = "host-images", params(("id" = HostImageId, Path)),
    responses((status = 200, body = HostImageDetails)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<HostImageId>,
) -> Result<axum::Json<HostImageDetails>, Fault> {
    let found = find(&app, &caller, id).await?;
    details_of(&app, &caller, &found).await.map(axum::Json)
}

/// Edits name, facts, protection and publicity. An edit that changes nothing keeps the revision.
#[utoipa::path(patch, path = "/api/v1/host-images/{id}", tag = "host-images", request_body = HostImageUpdate,
    params(("id" = HostImageId, Path), ("If-Match" = String, Header, description = "The revision that is edited")),
    responses((status = 200, body = HostImageDetails),
        (status = 409, description = "The name is taken, or a disk's image is not public", body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody),
        (status = 428, description = "There is no `If-Match`", body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<HostImageId>,
    headers: HeaderMap,
    Json(update): Json<HostImageUpdate>,
) -> Result<axum::Json<HostImageDetails>, Fault> {
    let found = find(&app, &caller, id).await?;
    let if_match = image_edits::if_match(&headers)?.ok_or_else(Fault::revision_required)?;
    check_update(&update)?;
    if update.public.is_some() {
        caller.may_do(Action::HostImagePublish, &Resource::Whole, "host image", id)?;
    }
    let edit = |facts: &mut HostImageFacts| {
        if let Some(name) = &update.name {
            facts.name.clone_from(name);
        }
        if let Some(public) = update.public {
            facts.visibility = if public { Visibility::Public } else { Visibility::Private };
        }
        facts.protected = update.protected.unwrap_or(facts.protected);
        apply(facts, &update.facts);
    };
    let op = caller.draft().on("host_image", id, found.facts.name);
    let edited = app.db.update_host_image(id, Some(if_match), edit, &op).await?;
    details_of(&app, &caller, &edited).await.map(axum::Json)
}

/// Refuses deletion from now on.
#[utoipa::path(post, path = "/api/v1/host-images/{id}/protect", tag = "host-images", params(("id" = HostImageId, Path)),
    responses((status = 200, body = HostImageDetails)))]
pub async fn protect(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<HostImageId>,
) -> Result<axum::Json<HostImageDetails>, Fault> {
    let found = set_protected(&app, &caller, id, true).await?;
    details_of(&app, &caller, &found).await.map(axum::Json)
}

/// Allows deletion again.
#[utoipa::path(post, path = "/api/v1/host-images/{id}/unprotect", tag = "host-images",
    params(("id" = HostImageId, Path)), responses((status = 200, body = HostImageDetails)))]
pub async fn unprotect(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<HostImageId>,
) -> Result<axum::Json<HostImageDetails>, Fault> {
    let found = set_protected(&app, &caller, id, false).await?;
    details_of(&app, &caller, &found).await.map(axum::Json)
}

/// Sets or takes the protection, whatever the revision: a switch has no text that could be overwritten.
///
/// # Errors
/// 404, 403.
pub(super) async fn set_protected(
    app: &App,
    caller: &Caller,
    id: HostImageId,
    protected: bool,
) -> Result<HostImage, Fault> {
    let found = find(app, caller, id).await?;
    let mut op = caller.draft().on("host_image", id, found.facts.name);
    op.action = if protected { "host_image.protect" } else { "host_image.unprotect" }.to_owned();
    Ok(app.db.update_host_image(id, None, |facts| facts.protected = protected, &op).await?)
}

/// Deletes a host image. The images of its disks stay, unless `members` is set. It does not go to a recycle bin: it has no
/// bytes, and merging the same images makes it again.
#[utoipa::path(delete, path = "/api/v1/host-images/{id}", tag = "host-images",
    params(("id" = HostImageId, Path), DeleteQuery),
    responses((status = 204, description = "Deleted"),
        (status = 200, description = "Deleted; what became of its disks' images", body = HostImageResult),
        (status = 409, description = "Protected or public", body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<HostImageId>,
    Query(query): Query<DeleteQuery>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let if_match = image_edits::if_match(&headers)?;
    let result = host_image_batch::delete_one(&app, &caller, id, if_match, query.members).await?;
    if query.members {
        return Ok(axum::Json(result).into_response());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The host image with this id, if the caller may do to it what the route does.
///
/// # Errors
/// 404 if there is none or it may not be seen, 403.
pub(super) async fn find(app: &App, caller: &Caller, id: HostImageId) -> Result<HostImage, Fault> {
    let found = app.db.host_image_seen_by(caller.scope(), id).await?;
    let found = found.ok_or_else(|| Fault::not_found("host image", id))?;
    let resource = Resource::Image {
        domain: found.domain,
        project: found.project,
        visibility: found.facts.visibility,
        // Host images are not shared, only public or not.
        share: None,
    };
    caller.may(&resource, "host image", id)?;
    Ok(found)
}

/// A disk of a host image is not deleted: what would start from the host image lacked a disk.
///
/// # Errors
/// 409 with the names of the host images that the caller may see.
pub(super) async fn refuse_member(app: &App, caller: &Caller, image: &Image) -> Result<(), Fault> {
    let holders = app.db.holders_of(caller.scope(), image.id).await?;
    if holders.total == 0 {
        return Ok(());
    }
    let seen = u64::try_from(holders.seen.len()).unwrap_or(u64::MAX);
    let mut names = holders.seen.join(", ");
    // Whether there are others that may not be seen is the owner's business; which they are is not.
    match (seen, holders.total - seen) {
        (0, _) => names.push_str("one that you may not see"),
        (_, 0) => {}
        (seen, more) if seen == u64::from(HOLDERS_MAX) => names.push_str(&format!(" and {more} more")),
        _ => names.push_str(" and others that you may not see"),
    }
    let message = format!("image {} is a disk of a host image: {names}", image.facts.name);
    Err(Fault::in_use(message).hint("delete the host image first: hearth host-image delete"))
}

/// The body of a host image with its disks, as far as the caller may see them.
///
/// # Errors
/// 500.
async fn details_of(app: &App, caller: &Caller, found: &HostImage) -> Result<HostImageDetails, Fault> {
    let ids: Vec<ImageId> = found.disks.iter().map(|disk| disk.id).collect();
    let seen = app.db.images_seen_by(caller.scope(), &ids).await?;
    let images = (0_u32..).zip(&found.disks).map(|(position, disk)| sub_image(position, disk, &seen));
    Ok(HostImageDetails { host_image: body(found), images: images.collect() })
}

fn sub_image(position: u32, disk: &Image, seen: &HashSet<ImageId>) -> SubImage {
    let shown = seen.contains(&disk.id).then_some(disk);
    SubImage {
        position,
        role: if position == 0 { DiskRole::System } else { DiskRole::Data },
        status: disk.status,
        image: shown.map(|disk| disk.id),
        name: shown.map(|disk| disk.facts.name.clone()),
        kind: shown.map(|disk| disk.kind),
        format: shown.and_then(|disk| disk.format),
        virtual_bytes: shown.and_then(|disk| disk.virtual_bytes),
        data_bytes: shown.and_then(|disk| disk.data_bytes),
        created_at: shown.map(|disk| when::text(disk.created_us)),
    }
}

/// The body of a host image.
fn body(found: &HostImage) -> HostImageBody {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let sum = |size: fn(&Image) -> Option<u64>| {
        found.disks.iter().map(size).try_fold(0_u64, |sum, size| size.map(|size| sum.saturating_add(size)))
    };
    let facts = &found.facts;
    HostImageBody {
        id: found.id,
        name: facts.name.clone(),
        status: host_state::status(found.disks.iter().map(|disk| disk.status)),
        visibility: facts.visibility,
        domain: found.domain,
        project: found.project,
        disks: u32::try_from(found.disks.len()).unwrap_or(u32::MAX),
        virtual_bytes: sum(|disk| disk.virtual_bytes),
        data_bytes: sum(|disk| disk.data_bytes),
        stored_bytes: sum(|disk| disk.stored_bytes),
        protected: facts.protected,
        facts: FactsBody {
            description: text(&facts.description),
            architecture: text(&facts.architecture),
            os_type: text(&facts.os_type),
            distribution: text(&facts.distribution),
            version: text(&facts.version),
            os_language: text(&facts.os_language),
            app_platform: text(&facts.app_platform),
            disk_driver: text(&facts.disk_driver),
            network_driver: text(&facts.network_driver),
            min_disk_bytes: (facts.min_disk_bytes > 0).then_some(facts.min_disk_bytes),
            min_memory_bytes: (facts.min_memory_bytes > 0).then_some(facts.min_memory_bytes),
        },
        revision: found.revision,
        created_at: when::text(found.created_us),
        updated_at: when::text(found.updated_us),
    }
}
