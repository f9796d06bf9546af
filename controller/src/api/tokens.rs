//! `/api/v1/tokens` and `/api/v1/whoami`.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::token::{TokenCreate, TokenRecord};
use hearth_protocol::id::TokenId;
use hearth_protocol::words::ScopeKind;

use super::app::App;
use super::body::{Json, Path};
use super::caller::{Caller, new_secret};
use super::fault::Fault;
use super::when;
use crate::clock;
use crate::db::new_id;
use crate::db::tokens::{Scope as DbScope, Token};
use crate::logic::authz::{Action, Decision, Principal, Resource, Scope, authorize};
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
    let scope = scope_of(&app, &create).await?;
    let made = Principal { role: create.role, scope: principal_scope(scope) };
    let made = Resource::Token(made);
    // Refused in the words of `scope_of`: what may not be seen answers like what does not exist.
    match scope {
        DbScope::System => caller.may(&made, "scope", create.scope)?,
        DbScope::Domain(domain) => caller.may(&made, "domain", domain)?,
        DbScope::Project(_, project) => caller.may(&made, "project", project)?,
    }
    let now_us = clock::unix_us();
    let ttl_us = i64::try_from(ttl_s).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let token = Token {
        id: new_id(),
        name: create.name,
        role: create.role,
        scope,
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

/// Tokens inside the caller's scope, newest first.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", responses((status = 200, body = Page<TokenRecord>)))]
pub async fn list(State(app): State<App>, caller: Caller) -> Result<axum::Json<Page<TokenRecord>>, Fault> {
    let tokens = app.db.tokens().await?;
    let seen = tokens.iter().filter(|token| caller.principal.scope.covers(principal_scope(token.scope)));
    Ok(axum::Json(Page { items: seen.map(|token| record(token, None)).collect(), next: None }))
}

/// Ends a token at once.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "tokens", params(("id" = TokenId, Path)),
    responses((status = 204, description = "Revoked")))]
pub async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<TokenId>,
) -> Result<StatusCode, Fault> {
    let tokens = app.db.tokens().await?;
    let token = tokens.iter().find(|token| token.id == id).ok_or_else(|| Fault::not_found("token", id))?;
    let held = Principal { role: token.role, scope: principal_scope(token.scope) };
    caller.may(&Resource::Token(held), "token", id)?;
    let rivals = tokens.iter().filter(|other| other.id != id && is_usable(other) && manages_system(other));
    if manages_system(token) && is_usable(token) && rivals.count() == 0 {
        return Err(Fault::conflict(
            "this is the last system administrator's token: nobody could make another",
        )
        .hint("make another one first: hearth token create NAME --role admin --scope system"));
    }
    app.db.revoke_token(id, &caller.draft().on("token", id, token.name.clone())).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn is_usable(token: &Token) -> bool {
    token.revoked_us.is_none() && token.expires_us.is_none_or(|expires_us| expires_us > clock::unix_us())
}

/// Whether it may make tokens of any kind.
fn manages_system(token: &Token) -> bool {
    let principal = Principal { role: token.role, scope: principal_scope(token.scope) };
    authorize(principal, Action::TokenCreate, &Resource::Token(principal)) == Decision::Allow
        && principal.scope == Scope::System
}

/// The scope that a request names, with its domain and project looked up.
async fn scope_of(app: &App, create: &TokenCreate) -> Result<DbScope, Fault> {
    match (create.scope, create.domain, create.project) {
        (ScopeKind::System, None, None) => Ok(DbScope::System),
        (ScopeKind::System, Some(_), _) => Err(Fault::invalid("domain", "a system token has no domain")),
        (ScopeKind::System, None, Some(_)) => Err(Fault::invalid("project", "a system token has no project")),
        (ScopeKind::Domain, Some(domain), None) => {
            let found = app.db.domain(domain).await?;
            found.map(|found| DbScope::Domain(found.id)).ok_or_else(|| Fault::not_found("domain", domain))
        }
        (ScopeKind::Domain, None, _) => Err(Fault::invalid("domain", "a domain token needs `domain`")),
        (ScopeKind::Domain, Some(_), Some(_)) => {
            Err(Fault::invalid("project", "a domain token has no project"))
        }
        (ScopeKind::Project, domain, Some(project)) => {
            let found = app.db.project(project).await?;
            let found = found.filter(|found| domain.is_none_or(|domain| domain == found.domain));
            found
                .map(|p| DbScope::Project(p.domain, p.id))
                .ok_or_else(|| Fault::not_found("project", project))
        }
        (ScopeKind::Project, _, None) => Err(Fault::invalid("project", "a project token needs `project`")),
    }
}

const fn principal_scope(scope: DbScope) -> Scope {
    match scope {
        DbScope::System => Scope::System,
        DbScope::Domain(domain) => Scope::Domain(domain),
        DbScope::Project(domain, project) => Scope::Project(domain, project),
    }
}

fn record(token: &Token, secret: Option<String>) -> TokenRecord {
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
    }
}
