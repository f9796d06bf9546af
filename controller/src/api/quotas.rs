//! `/api/v1/projects/{id}/quota`: what a project may have, and has.

use axum::extract::State;
use hearth_protocol::api::quota::{Quota as QuotaBody, QuotaLine, QuotaUpdate};
use hearth_protocol::id::ProjectId;

use super::app::App;
use super::body::{Json, Path};
use super::caller::Caller;
use super::fault::Fault;
use crate::db::quotas::Quota;
use crate::db::tenants::Project;
use crate::logic::authz::Resource;
use crate::logic::catalog::{FieldError, SIZE_BYTES_MAX};
use crate::logic::quota::OwnLimits;

/// Limits of a project and what it has.
#[utoipa::path(get, path = "/api/v1/projects/{id}/quota", tag = "projects", params(("id" = ProjectId, Path)),
    responses((status = 200, body = QuotaBody)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<axum::Json<QuotaBody>, Fault> {
    let project = project(&app, id).await?;
    caller.may(&Resource::Project { domain: project.domain, project: id }, "project", id)?;
    Ok(axum::Json(body(id, &app.db.quota(id).await?)))
}

/// Sets the limits of a project, all three: what is left out follows the configured default, 0 is no limit. A project that
/// has more than it may keeps it and gets nothing new.
#[utoipa::path(put, path = "/api/v1/projects/{id}/quota", tag = "projects", params(("id" = ProjectId, Path)),
    request_body = QuotaUpdate, responses((status = 200, body = QuotaBody)))]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Json(update): Json<QuotaUpdate>,
) -> Result<axum::Json<QuotaBody>, Fault> {
    let project = project(&app, id).await?;
    caller.may(&Resource::Whole, "project", id)?;
    let QuotaUpdate { images, bytes, imports } = update;
    for (field, limit) in [("images", images), ("bytes", bytes), ("imports", imports)] {
        if limit.is_some_and(|limit| limit > SIZE_BYTES_MAX) {
            let problem = format!("at most {SIZE_BYTES_MAX}; 0 is no limit");
            return Err(FieldError { field: field.to_owned(), problem }.into());
        }
    }
    let op = caller.draft().on("project", id, project.name);
    app.db.set_quota(id, OwnLimits { images, bytes, imports }, &op).await?;
    Ok(axum::Json(body(id, &app.db.quota(id).await?)))
}

async fn project(app: &App, id: ProjectId) -> Result<Project, Fault> {
    app.db.project(id).await?.ok_or_else(|| Fault::not_found("project", id))
}

fn body(project: ProjectId, quota: &Quota) -> QuotaBody {
    let Quota { own, limits, used } = quota;
    let line = |used: u64, limit: u64, own: Option<u64>| QuotaLine {
        used,
        limit: (limit > 0).then_some(limit),
        own: own.is_some(),
    };
    QuotaBody {
        project,
        images: line(used.images, limits.images, own.images),
        bytes: line(used.bytes, limits.bytes, own.bytes),
        imports: line(used.imports, limits.imports, own.imports),
    }
}
