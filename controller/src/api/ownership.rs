//! `/api/v1/images/{id}/publish`, `/unpublish`, `/featured` and `/owner`: whose an image is and who finds it.
//!
//! **What.** Handlers, and one function per image behind each, which ask for their own right: a batch calls them one by one.
//! **Why a system administrator publishes any image.** The right holds over the system, and every project lies in it. Where
//! `members_may_publish` is set, members of the owning project may too.
//! **Invariants.** Who changes an owner has the right over both projects.

use axum::extract::State;
use axum::http::HeaderMap;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::Image as ImageBody;
use hearth_protocol::api::share::OwnerChange;
use hearth_protocol::id::{ImageId, ProjectId};

use super::app::App;
use super::body::{Json, Path};
use super::caller::Caller;
use super::fault::Fault;
use super::image_edits::if_match;
use super::images::{find, shown};
use crate::db::images::Image;
use crate::logic::authz::{Action, Resource};

/// Makes an image public: everybody sees and uses it, nobody else changes it. Its shares end.
#[utoipa::path(post, path = "/api/v1/images/{id}/publish", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody),
        (status = 409, description = "It lies in the recycle bin", body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody)))]
pub async fn publish(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    headers: HeaderMap,
) -> Result<axum::Json<ImageBody>, Fault> {
    let image = set_public(&app, &caller, id, true, if_match(&headers)?).await?;
    shown(&app, &caller, &image).await.map(axum::Json)
}

/// Makes a public image custom: private to its project, and charged to it.
#[utoipa::path(post, path = "/api/v1/images/{id}/unpublish", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody),
        (status = 409, description = "In the recycle bin, or the project's quota is full", body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody)))]
pub async fn unpublish(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    headers: HeaderMap,
) -> Result<axum::Json<ImageBody>, Fault> {
    let image = set_public(&app, &caller, id, false, if_match(&headers)?).await?;
    shown(&app, &caller, &image).await.map(axum::Json)
}

/// Recommends an image: whoever may use it finds it under `view=featured`.
#[utoipa::path(put, path = "/api/v1/images/{id}/featured", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody),
        (status = 409, description = "It lies in the recycle bin", body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody)))]
pub async fn feature(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    headers: HeaderMap,
) -> Result<axum::Json<ImageBody>, Fault> {
    let image = set_featured(&app, &caller, id, true, if_match(&headers)?).await?;
    shown(&app, &caller, &image).await.map(axum::Json)
}

/// Recommends an image no longer.
#[utoipa::path(delete, path = "/api/v1/images/{id}/featured", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody),
        (status = 409, description = "It lies in the recycle bin", body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody)))]
pub async fn unfeature(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    headers: HeaderMap,
) -> Result<axum::Json<ImageBody>, Fault> {
    let image = set_featured(&app, &caller, id, false, if_match(&headers)?).await?;
    shown(&app, &caller, &image).await.map(axum::Json)
}

/// Gives an image to another project, which is charged for it from then on.
#[utoipa::path(post, path = "/api/v1/images/{id}/owner", tag = "images", params(("id" = ImageId, Path)),
    request_body = OwnerChange, responses((status = 200, body = ImageBody),
        (status = 409, description = "In the recycle bin, shared beyond the new owner's domain, its name is taken there, or the quota is full",
            body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody)))]
pub async fn owner(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    headers: HeaderMap,
    Json(change): Json<OwnerChange>,
) -> Result<axum::Json<ImageBody>, Fault> {
    let image = set_owner(&app, &caller, id, change.project, if_match(&headers)?).await?;
    shown(&app, &caller, &image).await.map(axum::Json)
}

/// The right that publishing asks for.
#[must_use]
pub const fn publishing(members_may_publish: bool) -> Action {
    if members_may_publish { Action::ImagePublishOwn } else { Action::ImagePublish }
}

/// Asks whether the caller may make `what` public, an image or one that is to be made in a project.
///
/// # Errors
/// 403, 404.
pub fn may_publish(app: &App, caller: &Caller, what: &Resource, key: &str) -> Result<(), Fault> {
    match publishing(app.config.sharing.members_may_publish) {
        Action::ImagePublishOwn => caller.may_do(Action::ImagePublishOwn, what, "image", key),
        action => caller.may_do(action, &Resource::Whole, "image", key),
    }
}

/// Makes one image public or custom.
///
/// # Errors
/// 403, 404; 409 if the project's quota is full; 412.
pub async fn set_public(
    app: &App,
    caller: &Caller,
    id: ImageId,
    public: bool,
    if_match: Option<u64>,
) -> Result<Image, Fault> {
    let image = find(app, &caller.doing(Action::ImageShow), id).await?;
    // As an image, not as a place for one: what is seen but not one's own is refused, not hidden.
    let owned = Resource::Image {
        domain: image.domain,
        project: image.project,
        visibility: image.facts.visibility,
        share: None,
    };
    may_publish(app, caller, &owned, &image.facts.name)?;
    let mut op = caller.draft().on("image", id, image.facts.name.clone());
    op.action = if public { "image.publish" } else { "image.unpublish" }.to_owned();
    let done = if public {
        app.db.publish_image(&image, if_match, &op).await?
    } else {
        app.db.unpublish_image(&image, if_match, &op).await?
    };
    Ok(done)
}

/// Marks one image as featured, or no longer.
///
/// # Errors
/// 403, 404, 412.
pub async fn set_featured(
    app: &App,
    caller: &Caller,
    id: ImageId,
    featured: bool,
    if_match: Option<u64>,
) -> Result<Image, Fault> {
    let image = find(app, &caller.doing(Action::ImageShow), id).await?;
    caller.may_do(Action::ImageFeature, &Resource::Whole, "image", id)?;
    let mut op = caller.draft().on("image", id, image.facts.name.clone());
    op.action = if featured { "image.feature" } else { "image.unfeature" }.to_owned();
    Ok(app.db.set_featured(&image, featured, if_match, &op).await?)
}

/// Gives one image to another project.
///
/// # Errors
/// 403; 404, also for a project outside the caller's scope; 409 if it is shared beyond the new owner, the name is taken there
/// or the quota is full; 412.
pub async fn set_owner(
    app: &App,
    caller: &Caller,
    id: ImageId,
    project: ProjectId,
    if_match: Option<u64>,
) -> Result<Image, Fault> {
    let caller = &caller.doing(Action::ImageOwner);
    let image = find(app, caller, id).await?;
    let new = app.db.project(project).await?.ok_or_else(|| Fault::not_found("project", project))?;
    caller.may(&Resource::Project { domain: new.domain, project }, "project", project)?;
    if image.fixed.key.is_some() && image.project != project {
        let message = format!("image {} is encrypted with a key of its project", image.facts.name);
        return Err(Fault::conflict(message).hint("share it instead, or import it anew in the other project"));
    }
    let op = caller.draft().on("image", id, image.facts.name.clone());
    Ok(app.db.change_owner(&image, project, if_match, &op).await?)
}
