//! `/api/v1/domains`: the upper tenant level.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::tenant::{Domain as DomainBody, DomainCreate, TenantUpdate};
use hearth_protocol::id::DomainId;
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::when;
use crate::db::tenant_changes::TenantChange;
use crate::db::tenants::{Domain, TenantFilter};
use crate::db::{PageRequest, new_id};
use crate::logic::authz::Resource;
use crate::logic::catalog::{check_name, check_search};

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TenantQuery {
    /// Exactly this name, without regard to case.
    name: Option<String>,
    /// Part of the name, without regard to case; at most 255 characters.
    q: Option<String>,
    /// Inside this domain; for projects and users.
    domain: Option<DomainId>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

impl TenantQuery {
    /// The filter and the page.
    ///
    /// # Errors
    /// 400.
    pub fn parts(self) -> Result<(TenantFilter, PageRequest), Fault> {
        self.name.as_deref().map_or(Ok(()), |name| check_search("name", name))?;
        self.q.as_deref().map_or(Ok(()), |q| check_search("q", q))?;
        let filter = TenantFilter { name: self.name, part: self.q, domain: self.domain };
        Ok((filter, PageRequest { limit: self.limit, cursor: self.cursor }))
    }
}

/// A change that was checked.
///
/// # Errors
/// 400.
pub fn change_of(update: TenantUpdate) -> Result<TenantChange, Fault> {
    update.name.as_deref().map_or(Ok(()), |name| check_name("name", name))?;
    Ok(TenantChange { name: update.name, disabled: update.disabled })
}

/// Domains that the caller manages or lies in, by name.
#[utoipa::path(get, path = "/api/v1/domains", tag = "tenants", params(TenantQuery),
    responses((status = 200, body = Page<DomainBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<TenantQuery>,
) -> Result<axum::Json<Page<DomainBody>>, Fault> {
    if query.domain.is_some() {
        return Err(Fault::invalid("domain", "a domain lies in no domain"));
    }
    let (filter, page) = query.parts()?;
    let page = app.db.domains(caller.scope(), &filter, &page).await?;
    Ok(axum::Json(Page { items: page.items.into_iter().map(body).collect(), next: page.next }))
}

/// Makes a domain.
#[utoipa::path(post, path = "/api/v1/domains", tag = "tenants", request_body = DomainCreate,
    responses((status = 201, body = DomainBody), (status = 409, description = "The name is taken", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<DomainCreate>,
) -> Result<(StatusCode, axum::Json<DomainBody>), Fault> {
    caller.may(&Resource::Whole, "domain", &create.name)?;
    check_name("name", &create.name)?;
    let id = new_id();
    let op = caller.draft().on("domain", id, create.name.clone());
    app.db.create_domain(id, &create.name, &op).await?;
    Ok((StatusCode::CREATED, axum::Json(read(&app, id).await?)))
}

/// One domain.
#[utoipa::path(get, path = "/api/v1/domains/{id}", tag = "tenants", params(("id" = DomainId, Path)),
    responses((status = 200, body = DomainBody)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DomainId>,
) -> Result<axum::Json<DomainBody>, Fault> {
    caller.may(&Resource::Domain(id), "domain", id)?;
    read(&app, id).await.map(axum::Json)
}

/// Renames, closes or opens a domain. A closed one ends every token of it, its projects and its users at once.
#[utoipa::path(patch, path = "/api/v1/domains/{id}", tag = "tenants", params(("id" = DomainId, Path)),
    request_body = TenantUpdate, responses((status = 200, body = DomainBody),
        (status = 409, description = "The name is taken or must stay, or the last system administrator lies in it",
            body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DomainId>,
    Json(update): Json<TenantUpdate>,
) -> Result<axum::Json<DomainBody>, Fault> {
    caller.may(&Resource::Whole, "domain", id)?;
    app.db.update_domain(id, &change_of(update)?, &caller.draft()).await?;
    read(&app, id).await.map(axum::Json)
}

/// Deletes a domain without projects and users.
#[utoipa::path(delete, path = "/api/v1/domains/{id}", tag = "tenants", params(("id" = DomainId, Path)),
    responses((status = 204, description = "Deleted"), (status = 409, description = "Not empty", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DomainId>,
) -> Result<StatusCode, Fault> {
    caller.may(&Resource::Whole, "domain", id)?;
    app.db.delete_domain(id, &caller.draft()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn read(app: &App, id: DomainId) -> Result<DomainBody, Fault> {
    app.db.domain(id).await?.map(body).ok_or_else(|| Fault::not_found("domain", id))
}

fn body(domain: Domain) -> DomainBody {
    let created_at = when::text(domain.created_us);
    DomainBody { id: domain.id, name: domain.name, disabled: domain.disabled, created_at }
}
