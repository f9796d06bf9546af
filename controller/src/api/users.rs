//! `/api/v1/users`: people who log in.
//!
//! **Why every grant of a user is asked about.** Whoever sets a password can log in with it. An administrator of a domain must not
//! become one of the system through a user who lives in the domain.
//!
//! **Invariants.** No answer and no log holds a password or its hash.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::tenant::TenantUpdate;
use hearth_protocol::api::user::{PasswordSet, User as UserBody, UserCreate};
use hearth_protocol::id::UserId;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::{Caller, principal_scope};
use super::domains::{TenantQuery, change_of};
use super::fault::Fault;
use super::projects::place;
use super::when;
use crate::db::new_id;
use crate::db::user_changes::NewUser;
use crate::db::users::User;
use crate::logic::authz::{Principal, Resource};
use crate::logic::catalog::check_name;
use crate::logic::login::check_password;

/// Users of the caller's domains, by name.
#[utoipa::path(get, path = "/api/v1/users", tag = "users", params(TenantQuery),
    responses((status = 200, body = Page<UserBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<TenantQuery>,
) -> Result<axum::Json<Page<UserBody>>, Fault> {
    caller.may(&Resource::Whole, "user", "")?;
    let (filter, page) = query.parts()?;
    let page = app.db.users(caller.scope(), &filter, &page).await?;
    Ok(axum::Json(Page { items: page.items.into_iter().map(body).collect(), next: page.next }))
}

/// Makes a user, who may do nothing until there is a grant.
#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = UserCreate,
    responses((status = 201, body = UserBody), (status = 409, description = "The name is taken", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<UserCreate>,
) -> Result<(StatusCode, axum::Json<UserBody>), Fault> {
    let domain = place(&app, &caller, create.domain).await?;
    check_name("name", &create.name)?;
    let password_hash = match create.password {
        Some(password) => {
            check_password("password", password.expose())?;
            Some(app.passwords.hash(password.into_text()).await?)
        }
        None => None,
    };
    let id = new_id();
    let details = serde_json::json!({ "domain": domain, "has_password": password_hash.is_some() });
    let op = caller.draft().on("user", id, create.name.clone()).with(details);
    app.db.create_user(&NewUser { id, domain, name: create.name, password_hash }, &op).await?;
    let made = app.db.user(id).await?.ok_or_else(|| Fault::not_found("user", id))?;
    Ok((StatusCode::CREATED, axum::Json(body(made))))
}

/// One user.
#[utoipa::path(get, path = "/api/v1/users/{id}", tag = "users", params(("id" = UserId, Path)),
    responses((status = 200, body = UserBody)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<UserId>,
) -> Result<axum::Json<UserBody>, Fault> {
    find(&app, &caller, id).await.map(body).map(axum::Json)
}

/// Renames, disables or enables a user. Disabling ends all tokens of the user for good.
#[utoipa::path(patch, path = "/api/v1/users/{id}", tag = "users", params(("id" = UserId, Path)),
    request_body = TenantUpdate, responses((status = 200, body = UserBody),
        (status = 409, description = "The name is taken, or it is the last system administrator", body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<UserId>,
    Json(update): Json<TenantUpdate>,
) -> Result<axum::Json<UserBody>, Fault> {
    find_to_change(&app, &caller, id).await?;
    app.db.update_user(id, &change_of(update)?, &caller.draft()).await?;
    find(&app, &caller, id).await.map(body).map(axum::Json)
}

/// Deletes a user with all grants; its tokens end at once.
#[utoipa::path(delete, path = "/api/v1/users/{id}", tag = "users", params(("id" = UserId, Path)),
    responses((status = 204, description = "Deleted"),
        (status = 409, description = "The last system administrator", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<UserId>,
) -> Result<StatusCode, Fault> {
    find_to_change(&app, &caller, id).await?;
    app.db.delete_user(id, &caller.draft()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets the password of a user and ends all tokens of the user.
#[utoipa::path(put, path = "/api/v1/users/{id}/password", tag = "users", params(("id" = UserId, Path)),
    request_body = PasswordSet, responses((status = 204, description = "Set")))]
pub async fn set_password(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<UserId>,
    Json(set): Json<PasswordSet>,
) -> Result<StatusCode, Fault> {
    find_to_change(&app, &caller, id).await?;
    check_password("password", set.password.expose())?;
    let hash = app.passwords.hash(set.password.into_text()).await?;
    app.db.set_password(id, &hash, None, &caller.draft()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The user with this id, if the caller may see it.
async fn find(app: &App, caller: &Caller, id: UserId) -> Result<User, Fault> {
    let user = app.db.user(id).await?.ok_or_else(|| Fault::not_found("user", id))?;
    caller.may(&Resource::User { domain: user.domain, holds: None }, "user", id)?;
    Ok(user)
}

/// As [`find`], and the caller may do whatever the user may.
async fn find_to_change(app: &App, caller: &Caller, id: UserId) -> Result<User, Fault> {
    let user = find(app, caller, id).await?;
    for grant in app.db.grants_of(id).await? {
        let holds = Some(Principal { role: grant.role, scope: principal_scope(grant.scope) });
        caller.may(&Resource::User { domain: user.domain, holds }, "user", id)?;
    }
    Ok(user)
}

fn body(user: User) -> UserBody {
    UserBody {
        id: user.id,
        name: user.name,
        domain: user.domain,
        disabled: user.disabled,
        has_password: user.has_password,
        created_at: when::text(user.created_us),
    }
}
