//! `/api/v1/images/{id}/shares`: with whom an image is shared, and what receivers say to it.
//!
//! **What.** Handlers, and one function per image behind each ([`share`], [`unshare`], [`answer`]), which ask for their own
//! right: a batch calls them one by one.
//! **Why a receiver sees its own share alone.** With whom else an image is shared is its owner's business.
//! **Invariants.** A project that does not exist and one that may not be known are refused in the same words.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::Image as ImageBody;
use hearth_protocol::api::share::{Share as ShareBody, ShareCreate, ShareRemove};
use hearth_protocol::id::{ImageId, ProjectId};
use hearth_protocol::words::{ShareKind, ShareStatus, Visibility};
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::images::{find, found, shown};
use super::when;
use crate::db::images::Image;
use crate::db::shares::{Reach, Share};
use crate::logic::authz::{Action, Decision, Resource, Scope, authorize};
use crate::logic::sharing::{Receiver, losers, receivers};

/// Who answers.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AnswerQuery {
    /// The receiving project; absent: the caller's.
    project: Option<ProjectId>,
}

/// All receivers of an image, for its owner; a receiver sees its own share.
#[utoipa::path(get, path = "/api/v1/images/{id}/shares", tag = "shares", params(("id" = ImageId, Path)),
    responses((status = 200, body = Page<ShareBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<axum::Json<Page<ShareBody>>, Fault> {
    let image = find(&app, &caller, id).await?;
    page(&app, &caller, &image).await.map(axum::Json)
}

/// Shares an image with projects, domains, or its whole domain. A project must accept; a domain has it at once, its own also
/// from a member of the owning project.
#[utoipa::path(post, path = "/api/v1/images/{id}/shares", tag = "shares", params(("id" = ImageId, Path)),
    request_body = ShareCreate, responses((status = 200, description = "All its receivers", body = Page<ShareBody>),
        (status = 409, description = "Public, in the recycle bin, too many receivers, or three-level sharing is off", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Json(create): Json<ShareCreate>,
) -> Result<axum::Json<Page<ShareBody>>, Fault> {
    let image = share(&app, &caller, id, &create).await?;
    page(&app, &caller, &image).await.map(axum::Json)
}

/// Ends one share. Copies that exist stay; the receiver cannot use the image any more.
#[utoipa::path(delete, path = "/api/v1/images/{id}/shares/{kind}/{target}", tag = "shares",
    params(("id" = ImageId, Path), ("kind" = ShareKind, Path), ("target" = String, Path)),
    responses((status = 204, description = "Ended"),
        (status = 409, description = "The image lies in the recycle bin", body = ErrorBody)))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path((id, kind, target)): Path<(ImageId, ShareKind, String)>,
) -> Result<StatusCode, Fault> {
    let mut losers = ShareRemove::default();
    match Receiver::of(kind, &target) {
        Some(Receiver::Project(id)) => losers.projects.push(id),
        Some(Receiver::Domain(id)) => losers.domains.push(id),
        None => return Err(Fault::not_found("share", "with this id")),
    }
    match unshare(&app, &caller, id, &losers).await? {
        0 => Err(Fault::not_found("share", format!("with {kind} {target}"))),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

/// Ends shares with several receivers, or all.
#[utoipa::path(post, path = "/api/v1/images/{id}/shares/remove", tag = "shares", params(("id" = ImageId, Path)),
    request_body = ShareRemove, responses((status = 200, description = "Who is left", body = Page<ShareBody>),
        (status = 409, description = "It lies in the recycle bin", body = ErrorBody)))]
pub async fn remove_many(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Json(remove): Json<ShareRemove>,
) -> Result<axum::Json<Page<ShareBody>>, Fault> {
    unshare(&app, &caller, id, &remove).await?;
    let image = find(&app, &caller, id).await?;
    page(&app, &caller, &image).await.map(axum::Json)
}

/// Takes a shared image into the lists of the receiving project.
#[utoipa::path(post, path = "/api/v1/images/{id}/share/accept", tag = "shares",
    params(("id" = ImageId, Path), AnswerQuery), responses((status = 200, body = ImageBody)))]
pub async fn accept(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(query): Query<AnswerQuery>,
) -> Result<axum::Json<ImageBody>, Fault> {
    answer(&app, &caller, id, query.project, ShareStatus::Accepted).await.map(axum::Json)
}

/// Keeps a shared image out of the lists of the receiving project; it may still be accepted later.
#[utoipa::path(post, path = "/api/v1/images/{id}/share/reject", tag = "shares",
    params(("id" = ImageId, Path), AnswerQuery), responses((status = 200, body = ImageBody)))]
pub async fn reject(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(query): Query<AnswerQuery>,
) -> Result<axum::Json<ImageBody>, Fault> {
    answer(&app, &caller, id, query.project, ShareStatus::Rejected).await.map(axum::Json)
}

/// Shares one image; it is returned as it was found.
///
/// # Errors
/// 400, 403, 404; 409 for a public image, too many receivers, or a domain while three-level sharing is off.
pub async fn share(app: &App, caller: &Caller, id: ImageId, create: &ShareCreate) -> Result<Image, Fault> {
    let caller = &caller.doing(Action::ShareCreate);
    let image = find(app, caller, id).await?;
    let receivers = receivers(create, image.domain)?;
    if receivers.contains(&Receiver::Project(image.project)) {
        return Err(Fault::invalid("projects", "the image belongs to one of these projects already"));
    }
    let by_system = authorize(caller.principal, Action::ShareBeyond, &Resource::Whole) == Decision::Allow;
    if create.domains.iter().any(|domain| *domain != image.domain) {
        caller.may_do(Action::ShareBeyond, &Resource::Whole, "image", id)?;
        if !app.config.sharing.three_level {
            return Err(Fault::conflict("sharing with other domains is switched off")
                .hint("an administrator can set three_level_sharing = true in controller.toml"));
        }
    }
    let reach = Reach { by_system, receivers_max: app.config.sharing.receivers_max };
    let op = caller.draft().on("image", id, image.facts.name.clone());
    app.db.add_shares(&image, &receivers, reach, &op).await?;
    Ok(image)
}

/// Ends shares of one image; the number of those that there were.
///
/// # Errors
/// 400, 403, 404.
pub async fn unshare(app: &App, caller: &Caller, id: ImageId, remove: &ShareRemove) -> Result<usize, Fault> {
    let caller = &caller.doing(Action::ShareRemove);
    let image = find(app, caller, id).await?;
    let losers = losers(remove, image.domain)?;
    let op = caller.draft().on("image", id, image.facts.name.clone());
    Ok(app.db.remove_shares(&image, losers.as_ref(), &op).await?)
}

/// Says for a project what it thinks of an image that is shared with it.
///
/// # Errors
/// 400 if nobody can tell for whom; 403, 404.
pub async fn answer(
    app: &App,
    caller: &Caller,
    id: ImageId,
    project: Option<ProjectId>,
    status: ShareStatus,
) -> Result<ImageBody, Fault> {
    let accepted = status == ShareStatus::Accepted;
    let caller = &caller.doing(if accepted { Action::ShareAccept } else { Action::ShareReject });
    let image = find(app, caller, id).await?;
    let project = match (project, caller.principal.scope) {
        (Some(project), _) => {
            let found = app.db.project(project).await?.ok_or_else(|| Fault::not_found("project", project))?;
            caller.may(&Resource::Project { domain: found.domain, project }, "project", project)?;
            project
        }
        (None, Scope::Project(_, project)) => project,
        (None, _) => return Err(Fault::invalid("project", "say which project answers")),
    };
    let op = caller.draft().on("image", id, image.facts.name.clone());
    app.db.answer_share(id, project, status, &op).await?;
    let (image, share) = found(app, &caller.doing(Action::ImageShow), id).await?;
    Ok(ImageBody { share_status: share.or(Some(status)), ..shown(app, caller, &image).await? })
}

/// The shares that the caller may see.
async fn page(app: &App, caller: &Caller, image: &Image) -> Result<Page<ShareBody>, Fault> {
    let owned = caller.principal.scope.covers(Scope::Project(image.domain, image.project));
    let shares = app.db.shares(image.id).await?;
    let seen = shares.iter().filter(|share| owned || concerns(caller, share));
    Ok(Page { items: seen.map(|share| body(caller, share)).collect(), next: None })
}

/// Whether a receiver lies inside the caller's scope, or the caller inside it.
fn concerns(caller: &Caller, share: &Share) -> bool {
    let receiver = match share.receiver {
        Receiver::Project(project) => Scope::Project(share.domain, project),
        Receiver::Domain(domain) => Scope::Domain(domain),
    };
    let mine = caller.principal.scope;
    mine.covers(receiver) || receiver.covers(mine)
}

fn body(caller: &Caller, share: &Share) -> ShareBody {
    ShareBody {
        kind: share.receiver.kind(),
        target: share.receiver.target(),
        name: concerns(caller, share).then(|| share.name.clone()),
        status: share.status,
        created_at: when::text(share.created_us),
        updated_at: when::text(share.updated_us),
    }
}

/// Says why an image that the caller knows cannot be used, where the reason is that nobody accepted it.
#[must_use]
pub fn not_accepted(fault: Fault, image: &Image, share: Option<ShareStatus>) -> Fault {
    let offered = matches!(share, Some(ShareStatus::Pending | ShareStatus::Rejected));
    if offered && image.facts.visibility == Visibility::Shared && fault.parts().code == "denied" {
        return fault.hint("it is shared with you and not accepted: hearth image accept");
    }
    fault
}
