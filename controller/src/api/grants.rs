//! `/api/v1/grants`: which user has which role where.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::user::{Grant as GrantBody, GrantCreate};
use hearth_protocol::id::{DomainId, GrantId, ProjectId, UserId};
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::{Caller, principal_scope};
use super::fault::Fault;
use super::tokens::scope_of;
use super::when;
use crate::db::grants::{Grant, GrantFilter, NewGrant};
use crate::db::tokens::Scope;
use crate::db::{PageRequest, new_id};
use crate::logic::authz::{Principal, Resource};

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Of this user.
    user: Option<UserId>,
    /// In this domain and its projects.
    domain: Option<DomainId>,
    /// In this project.
    project: Option<ProjectId>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// Grants inside the caller's scope, newest first.
#[utoipa::path(get, path = "/api/v1/grants", tag = "users", params(ListQuery),
    responses((status = 200, body = Page<GrantBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<GrantBody>>, Fault> {
    let filter = GrantFilter { user: query.user, domain: query.domain, project: query.project };
    let page = PageRequest { limit: query.limit, cursor: query.cursor };
    let page = app.db.grants(caller.scope(), &filter, &page).await?;
    Ok(axum::Json(Page { items: page.items.into_iter().map(body).collect(), next: page.next }))
}

/// Gives a user a role in a scope. Nobody can give more than they have.
#[utoipa::path(post, path = "/api/v1/grants", tag = "users", request_body = GrantCreate,
    responses((status = 201, body = GrantBody),
        (status = 409, description = "The user has it already, or too many", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<GrantCreate>,
) -> Result<(StatusCode, axum::Json<GrantBody>), Fault> {
    let scope = scope_of(&app, (create.scope, create.domain, create.project)).await?;
    let given = Resource::Grant(Principal { role: create.role, scope: principal_scope(scope) });
    // Refused in the words of `scope_of`: what may not be seen answers like what does not exist.
    match scope {
        Scope::System => caller.may(&given, "scope", create.scope)?,
        Scope::Domain(domain) => caller.may(&given, "domain", domain)?,
        Scope::Project(_, project) => caller.may(&given, "project", project)?,
    }
    let id = create.user;
    let user = app.db.user(id).await?.ok_or_else(|| Fault::not_found("user", id))?;
    caller.may(&Resource::User { domain: user.domain, holds: None }, "user", id)?;
    let new =
        NewGrant { id: new_id(), user: id, role: create.role, scope, created_by: caller.token.name.clone() };
    let op = caller.draft().on("user", id, user.name).with(details(new.id, new.role, scope));
    app.db.create_grant(&new, &op).await?;
    let made = app.db.grant(new.id).await?.ok_or_else(|| Fault::not_found("grant", new.id))?;
    Ok((StatusCode::CREATED, axum::Json(body(made))))
}

/// Takes a grant away; tokens with it end at once.
#[utoipa::path(delete, path = "/api/v1/grants/{id}", tag = "users", params(("id" = GrantId, Path)),
    responses((status = 204, description = "Revoked"),
        (status = 409, description = "The last system administrator's", body = ErrorBody)))]
pub async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<GrantId>,
) -> Result<StatusCode, Fault> {
    let grant = app.db.grant(id).await?.ok_or_else(|| Fault::not_found("grant", id))?;
    let held = Principal { role: grant.role, scope: principal_scope(grant.scope) };
    caller.may(&Resource::Grant(held), "grant", id)?;
    let op = caller.draft().on("user", grant.user, grant.user_name);
    app.db.revoke_grant(id, &op.with(details(id, grant.role, grant.scope))).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn details(id: GrantId, role: hearth_protocol::words::Role, scope: Scope) -> serde_json::Value {
    serde_json::json!({ "grant": id, "role": role, "scope": scope.kind(), "domain": scope.domain(), "project": scope.project() })
}

fn body(grant: Grant) -> GrantBody {
    GrantBody {
        id: grant.id,
        user: grant.user,
        user_name: grant.user_name,
        role: grant.role,
        scope: grant.scope.kind(),
        domain: grant.scope.domain(),
        domain_name: grant.domain_name,
        project: grant.scope.project(),
        project_name: grant.project_name,
        created_by: grant.created_by,
        created_at: when::text(grant.created_us),
    }
}
