//! `/api/v1/tokens` and `/api/v1/whoami`.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::token::{TokenCreate, TokenRecord};
use hearth_protocol::id::{DomainId, ProjectId, TokenId, UserId};
use hearth_protocol::words::ScopeKind;
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::{Caller, new_secret, principal_scope};
use super::fault::Fault;
use super::when;
use crate::clock;
use crate::db::tokens::{Holder, Scope as DbScope, Token};
use crate::db::{PageRequest, new_id};
use crate::logic::authz::{Action, Principal, Resource};
use crate::logic::catalog::check_name;

/// Life of a token when its maker says nothing: 90 days, in seconds.
const TTL_S_DEFAULT: u64 = 90 * 24 * 3600;
/// Longest life: ten years, in seconds. Shorter than what overflows, longer than any machine's.
const TTL_S_MAX: u64 = 10 * 365 * 24 * 3600;

/// The caller's own token.
#[utoipa::path(get, path = "/api/v1/whoami", tag = "tokens", responses((status = 200, body = TokenRecord)))]
pub async fn whoami(caller: Caller) -> axum::Json<TokenRecord> {
    axum::Json(record(&caller.token, None))
}

/// Makes a token; its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = TokenCreate,
    responses((status = 201, body = TokenRecord), (status = 409, body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<TokenCreate>,
) -> Result<(StatusCode, axum::Json<TokenRecord>), Fault> {
    check_name("name", &create.name)?;
    let ttl_s = create.ttl_s.unwrap_or(TTL_S_DEFAULT);
    if !(1..=TTL_S_MAX).contains(&ttl_s) {
        return Err(Fault::invalid("ttl_s", format!("ttl_s is {ttl_s}: 1 to {TTL_S_MAX} seconds")));
    }
    let scope = scope_of(&app, (create.scope, create.domain, create.project)).await?;
    let made = Principal { role: create.role, scope: principal_scope(scope) };
    let made = Resource::Token(made);
    // Refused in the words of `scope_of`: what may not be seen answers like what does not exist.
    match scope {
        DbScope::System => caller.may(&made, "scope", create.scope)?,
        DbScope::Domain(domain) => caller.may(&made, "domain", domain)?,
        DbScope::Project(_, project) => caller.may(&made, "project", project)?,
    }
    let holder = holder_of(&app, &caller, &create, scope).await?;
    let now_us = clock::unix_us();
    let ttl_us = i64::try_from(ttl_s).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let token = Token {
        id: new_id(),
        name: create.name,
        role: create.role,
        scope,
        holder,
        usable: true,
        expires_us: Some(now_us.saturating_add(ttl_us)),
        revoked_us: None,
        last_used_us: None,
        created_us: now_us,
    };
    let (secret, hash) = new_secret();
    let details = serde_json::json!({ "role": token.role, "scope": token.scope.kind(), "ttl_s": ttl_s });
    let op = caller.draft().on("token", token.id, token.name.clone()).with(details);
    app.db.create_token(&token, &hash, &op).await?;
    Ok((StatusCode::CREATED, axum::Json(record(&token, Some(secret.to_string())))))
}

/// Which tokens to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Tokens of this user.
    user: Option<UserId>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// Tokens inside the caller's scope, newest first.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", params(ListQuery),
    responses((status = 200, body = Page<TokenRecord>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<TokenRecord>>, Fault> {
    let page = PageRequest { limit: query.limit, cursor: query.cursor };
    let page = app.db.tokens(caller.scope(), query.user, &page, clock::unix_us()).await?;
    let items = page.items.iter().map(|token| record(token, None)).collect();
    Ok(axum::Json(Page { items, next: page.next }))
}

/// Ends a token at once.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "tokens", params(("id" = TokenId, Path)),
    responses((status = 204, description = "Revoked"),
        (status = 409, description = "The last system administrator's", body = ErrorBody)))]
pub async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TokenId>,
) -> Result<StatusCode, Fault> {
    let token = find(&app, &caller, id).await?;
    app.db.revoke_token(id, &caller.draft().on("token", id, token.name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a token another secret, which is in this answer and nowhere else; the old one opens nothing from then on. It ends when
/// it would have ended.
#[utoipa::path(post, path = "/api/v1/tokens/{id}/rotate", tag = "tokens", params(("id" = TokenId, Path)),
    responses((status = 200, body = TokenRecord),
        (status = 409, description = "It is over, or belongs to a user who is somebody else", body = ErrorBody)))]
pub async fn rotate(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TokenId>,
) -> Result<axum::Json<TokenRecord>, Fault> {
    let token = if id == caller.token.id { caller.token.clone() } else { find(&app, &caller, id).await? };
    if !token.usable {
        return Err(Fault::conflict(format!("token {} is over", token.name)).hint("make another one"));
    }
    if id != caller.token.id && token.holder.is_some() {
        let message = format!("token {} belongs to a user: nobody else gets its secret", token.name);
        return Err(Fault::conflict(message).hint("revoke it; the user logs in again"));
    }
    let (secret, hash) = new_secret();
    app.db.rotate_token(id, &hash, &caller.draft().on("token", id, token.name.clone())).await?;
    Ok(axum::Json(record(&token, Some(secret.to_string()))))
}

/// The token with this id, if the caller may end it (and make one like it).
async fn find(app: &App, caller: &Caller, id: TokenId) -> Result<Token, Fault> {
    let found = app.db.token(id, clock::unix_us()).await?;
    let token = found.ok_or_else(|| Fault::not_found("token", id))?;
    let held = Principal { role: token.role, scope: principal_scope(token.scope) };
    caller.may_do(Action::TokenRevoke, &Resource::Token(held), "token", id)?;
    Ok(token)
}

/// The scope that a request names, with its domain and project looked up.
///
/// # Errors
/// 400 for what does not go together, 404.
pub async fn scope_of(
    app: &App,
    (kind, domain, project): (ScopeKind, Option<DomainId>, Option<ProjectId>),
) -> Result<DbScope, Fault> {
    match (kind, domain, project) {
        (ScopeKind::System, None, None) => Ok(DbScope::System),
        (ScopeKind::System, Some(_), _) => Err(Fault::invalid("domain", "the scope system has no domain")),
        (ScopeKind::System, None, Some(_)) => {
            Err(Fault::invalid("project", "the scope system has no project"))
        }
        (ScopeKind::Domain, Some(domain), None) => {
            let found = app.db.domain(domain).await?;
            found.map(|found| DbScope::Domain(found.id)).ok_or_else(|| Fault::not_found("domain", domain))
        }
        (ScopeKind::Domain, None, _) => Err(Fault::invalid("domain", "the scope domain needs `domain`")),
        (ScopeKind::Domain, Some(_), Some(_)) => {
            Err(Fault::invalid("project", "the scope domain has no project"))
        }
        (ScopeKind::Project, domain, Some(project)) => {
            let found = app.db.project(project).await?;
            let found = found.filter(|found| domain.is_none_or(|domain| domain == found.domain));
            found
                .map(|p| DbScope::Project(p.domain, p.id))
                .ok_or_else(|| Fault::not_found("project", project))
        }
        (ScopeKind::Project, _, None) => Err(Fault::invalid("project", "the scope project needs `project`")),
    }
}

/// The user for whom a token is made, and the grant that it will carry.
async fn holder_of(
    app: &App,
    caller: &Caller,
    create: &TokenCreate,
    scope: DbScope,
) -> Result<Option<Holder>, Fault> {
    let Some(id) = create.user else { return Ok(None) };
    let user = app.db.user(id).await?.ok_or_else(|| Fault::not_found("user", id))?;
    caller.may_do(Action::UserShow, &Resource::User { domain: user.domain, holds: None }, "user", id)?;
    let grants = app.db.grants_of(id).await?;
    let grant = grants.iter().find(|grant| grant.scope == scope && grant.role == create.role);
    let grant = grant.ok_or_else(|| {
        let message = format!("user {} has no grant of {} there", user.name, create.role);
        Fault::conflict(message).field("user").hint("hearth user grant gives one")
    })?;
    Ok(Some(Holder { user: id, grant: grant.id, revision: user.token_revision }))
}

/// The body of a token.
#[must_use]
pub fn record(token: &Token, secret: Option<String>) -> TokenRecord {
    TokenRecord {
        id: token.id,
        token: secret,
        name: token.name.clone(),
        role: token.role,
        scope: token.scope.kind(),
        domain: token.scope.domain(),
        project: token.scope.project(),
        expires_at: when::opt_text(token.expires_us),
        revoked_at: when::opt_text(token.revoked_us),
        last_used_at: when::opt_text(token.last_used_us),
        user: token.holder.map(|holder| holder.user),
        usable: token.usable,
    }
}
