//! `/api/v1/projects`: the lower tenant level, which owns images.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::tenant::{Project as ProjectBody, ProjectCreate, TenantUpdate};
use hearth_protocol::id::{DomainId, ProjectId};

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::domains::{TenantQuery, change_of};
use super::fault::Fault;
use super::when;
use crate::db::new_id;
use crate::db::tenants::Project;
use crate::logic::authz::Resource;
use crate::logic::catalog::check_name;

/// Projects inside the caller's scope, by name.
#[utoipa::path(get, path = "/api/v1/projects", tag = "tenants", params(TenantQuery),
    responses((status = 200, body = Page<ProjectBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<TenantQuery>,
) -> Result<axum::Json<Page<ProjectBody>>, Fault> {
    let (filter, page) = query.parts()?;
    let page = app.db.projects(caller.scope(), &filter, &page).await?;
    Ok(axum::Json(Page { items: page.items.into_iter().map(body).collect(), next: page.next }))
}

/// Makes a project.
#[utoipa::path(post, path = "/api/v1/projects", tag = "tenants", request_body = ProjectCreate,
    responses((status = 201, body = ProjectBody), (status = 409, description = "The name is taken", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<ProjectCreate>,
) -> Result<(StatusCode, axum::Json<ProjectBody>), Fault> {
    let domain = place(&app, &caller, create.domain).await?;
    check_name("name", &create.name)?;
    let id = new_id();
    let details = serde_json::json!({ "domain": domain });
    let op = caller.draft().on("project", id, create.name.clone()).with(details);
    app.db.create_project(id, domain, &create.name, &op).await?;
    let made = app.db.project(id).await?.ok_or_else(|| Fault::not_found("project", id))?;
    Ok((StatusCode::CREATED, axum::Json(body(made))))
}

/// Where a new project or user goes: the named domain, else the caller's, else the default one.
///
/// # Errors
/// 403, 404.
pub async fn place(app: &App, caller: &Caller, named: Option<DomainId>) -> Result<DomainId, Fault> {
    let domain = match named.or_else(|| caller.scope().domain()) {
        Some(domain) => domain,
        None => app.db.default_tenants().await?.0,
    };
    caller.may(&Resource::Domain(domain), "domain", domain)?;
    if app.db.domain(domain).await?.is_none() {
        return Err(Fault::not_found("domain", domain));
    }
    Ok(domain)
}

/// One project.
#[utoipa::path(get, path = "/api/v1/projects/{id}", tag = "tenants", params(("id" = ProjectId, Path)),
    responses((status = 200, body = ProjectBody)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<axum::Json<ProjectBody>, Fault> {
    find(&app, &caller, id).await.map(body).map(axum::Json)
}

/// Renames, closes or opens a project. A closed one ends every token of it at once.
#[utoipa::path(patch, path = "/api/v1/projects/{id}", tag = "tenants", params(("id" = ProjectId, Path)),
    request_body = TenantUpdate, responses((status = 200, body = ProjectBody),
        (status = 409, description = "The name is taken, or must stay", body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Json(update): Json<TenantUpdate>,
) -> Result<axum::Json<ProjectBody>, Fault> {
    find(&app, &caller, id).await?;
    app.db.update_project(id, &change_of(update)?, &caller.draft()).await?;
    find(&app, &caller, id).await.map(body).map(axum::Json)
}

/// Deletes a project without images.
#[utoipa::path(delete, path = "/api/v1/projects/{id}", tag = "tenants", params(("id" = ProjectId, Path)),
    responses((status = 204, description = "Deleted"), (status = 409, description = "Not empty", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ProjectId>,
) -> Result<StatusCode, Fault> {
    find(&app, &caller, id).await?;
    app.db.delete_project(id, &caller.draft()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The project with this id, if the caller may do to it what the route does.
async fn find(app: &App, caller: &Caller, id: ProjectId) -> Result<Project, Fault> {
    let project = app.db.project(id).await?.ok_or_else(|| Fault::not_found("project", id))?;
    caller.may(&Resource::Project { domain: project.domain, project: id }, "project", id)?;
    Ok(project)
}

fn body(project: Project) -> ProjectBody {
    ProjectBody {
        id: project.id,
        name: project.name,
        domain: project.domain,
        disabled: project.disabled,
        created_at: when::text(project.created_us),
    }
}
