//! `/api/v1/login`, `/api/v1/logout`, `/api/v1/password`: how a person comes in, leaves, and changes the password.
//!
//! **Why one refusal for everything.** Whoever may learn that a name exists, or that only the project was wrong, needs fewer guesses.
//! The password is compared before anything else is decided, also for a name that does not exist, so the time tells
//! nothing either.
//!
//! **Invariants.** A refused login of a user that exists stands in the operation log. A login is counted before its body is read,
//! and again before its password is compared. A token from a login carries one grant of the user and ends with it.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::token::TokenRecord;
use hearth_protocol::api::user::{Login, PASSWORD_CHARS_MAX, Password, PasswordChange};

use super::app::App;
use super::body::Json;
use super::caller::{Caller, new_secret, principal_scope};
use super::fault::{Fault, chain};
use super::limits::Knock;
use super::tokens::record;
use crate::db::grams::fold;
use crate::db::grants::Grant;
use crate::db::new_id;
use crate::db::operations::{Draft, WhoKind};
use crate::db::tenants::DEFAULT_NAME;
use crate::db::tokens::{Holder, Token};
use crate::db::users::User;
use crate::logic::authz::Principal;
use crate::logic::catalog::check_name;
use crate::logic::login::{Held, Unchosen, Wanted, check_password, choose};
use crate::{clock, task};

/// What the operation log calls a login.
const ACTION: &str = "user.login";

/// Gives a token for a user's name and password; its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/login", tag = "users", request_body = Login,
    responses((status = 201, body = TokenRecord),
        (status = 400, description = "The request cannot be used; `field` names what is wrong", body = ErrorBody),
        (status = 401, description = "User, password or scope is wrong, or the user may not log in now", body = ErrorBody),
        (status = 429, description = "Too many logins for this user or from this address; see the header `retry-after`",
            body = ErrorBody),
        (status = 503, description = "Too many passwords are being checked", body = ErrorBody)))]
pub async fn login(
    State(app): State<App>,
    Knock(address): Knock,
    Json(login): Json<Login>,
) -> Result<(StatusCode, axum::Json<TokenRecord>), Fault> {
    check_name("user", &login.user)?;
    login.domain.as_deref().map_or(Ok(()), |domain| check_name("domain", domain))?;
    login.project.as_deref().map_or(Ok(()), |project| check_name("project", project))?;
    check_length("password", &login.password)?;
    let domain = login.domain.as_deref().unwrap_or(DEFAULT_NAME);
    let found = app.db.credentials(domain, &login.user).await?;
    let counted = match &found {
        Some(found) => found.user.id.to_string(),
        None => format!("{}\n{}", fold(domain), fold(&login.user)),
    };
    app.limits.user(&counted)?;
    let hash = found.as_ref().and_then(|found| found.password_hash.clone());
    let is_right = app.passwords.is_right(login.password.into_text(), hash).await?;
    let refused = || {
        tracing::info!(%address, "refused a login");
        Err(Fault::login_failed())
    };
    let Some(found) = found else { return refused() };
    if !is_right || !found.open {
        note_refused(&app, &found.user, &address.to_string());
        return refused();
    }
    let user = found.user;
    let grants = app.db.grants_of(user.id).await?;
    let wanted = Wanted { scope: login.scope, project: login.project.as_deref(), home: user.domain };
    let grant = grant_for(&grants, &wanted)?;
    let (token, secret, hash) = token_for(&app, &user, grant);
    let details = serde_json::json!({ "token": token.id, "role": token.role, "scope": token.scope.kind(),
        "domain": token.scope.domain(), "project": token.scope.project(), "address": address.to_string() });
    let op = Draft::new(WhoKind::User, user.name.clone(), ACTION).on("user", user.id, user.name.clone());
    app.db.create_token(&token, &hash, &op.with(details)).await?;
    Ok((StatusCode::CREATED, axum::Json(record(&token, Some(secret.to_string())))))
}

/// Writes a refused login of a user that exists into the log, behind the answer: its time must not tell that there is such a user.
/// Names that nobody has are not written down: anybody could fill the log with them.
fn note_refused(app: &App, user: &User, address: &str) {
    let op = Draft::new(WhoKind::User, user.name.clone(), ACTION).on("user", user.id, user.name.clone());
    let op = op.with(serde_json::json!({ "address": address })).failed("refused");
    let db = app.db.clone();
    task::spawn("note-login", async move {
        if let Err(error) = db.record(&op).await {
            tracing::error!(error = chain(&error), "a refused login is not in the log");
        }
    });
}

/// Only what no password can be is refused here: the rules may have changed since it was set.
fn check_length(field: &str, password: &Password) -> Result<(), Fault> {
    let chars = password.expose().chars().count();
    if chars > PASSWORD_CHARS_MAX {
        return Err(Fault::invalid(field, format!("has {chars} characters: no password has so many")));
    }
    Ok(())
}

/// The grant that the login gets.
fn grant_for<'a>(grants: &'a [Grant], wanted: &Wanted<'_>) -> Result<&'a Grant, Fault> {
    let open: Vec<&Grant> = grants.iter().filter(|grant| grant.open).collect();
    let held: Vec<Held<'_>> = open
        .iter()
        .map(|grant| Held {
            principal: Principal { role: grant.role, scope: principal_scope(grant.scope) },
            project_name: grant.project_name.as_deref().unwrap_or_default(),
        })
        .collect();
    match choose(&held, wanted) {
        Ok(place) => Ok(open[place]),
        Err(Unchosen::None) => Err(Fault::login_failed()),
        Err(Unchosen::Several(n)) => {
            let name = wanted.project.unwrap_or_default();
            Err(Fault::invalid(
                "project",
                format!("{n} of your projects are named {name}: name it by its id"),
            ))
        }
    }
}

/// A token that carries `grant`, its secret, and what the store keeps of that.
fn token_for(app: &App, user: &User, grant: &Grant) -> (Token, zeroize::Zeroizing<String>, String) {
    let now_us = clock::unix_us();
    let life_us = i64::try_from(app.config.calls.login_life.as_micros()).unwrap_or(i64::MAX);
    let (secret, hash) = new_secret();
    let token = Token {
        id: new_id(),
        name: user.name.clone(),
        role: grant.role,
        scope: grant.scope,
        holder: Some(Holder { user: user.id, grant: grant.id, revision: user.token_revision }),
        usable: true,
        expires_us: Some(now_us.saturating_add(life_us)),
        revoked_us: None,
        last_used_us: None,
        created_us: now_us,
    };
    (token, secret, hash)
}

/// Ends the token of this call.
#[utoipa::path(post, path = "/api/v1/logout", tag = "users",
    responses((status = 204, description = "The token is over"),
        (status = 409, description = "It is the last system administrator's", body = ErrorBody)))]
pub async fn logout(State(app): State<App>, caller: Caller) -> Result<StatusCode, Fault> {
    let id = caller.token.id;
    app.db.revoke_token(id, &caller.draft().on("token", id, caller.token.name.clone())).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes the caller's own password and ends the user's other tokens.
#[utoipa::path(post, path = "/api/v1/password", tag = "users", request_body = PasswordChange,
    responses((status = 204, description = "Changed"),
        (status = 409, description = "The token belongs to no user", body = ErrorBody)))]
pub async fn change_password(
    State(app): State<App>,
    caller: Caller,
    Json(change): Json<PasswordChange>,
) -> Result<StatusCode, Fault> {
    let Some(holder) = caller.token.holder else {
        return Err(Fault::conflict("this token belongs to no user, so it has no password")
            .hint("log in as yourself: hearth login --user NAME"));
    };
    check_length("old", &change.old)?;
    check_password("new", change.new.expose())?;
    app.limits.user(&holder.user.to_string())?;
    let found = app.db.credentials_of(holder.user).await?;
    let hash = found.and_then(|found| found.password_hash);
    if !app.passwords.is_right(change.old.into_text(), hash).await? {
        return Err(Fault::invalid("old", "the old password is wrong"));
    }
    let hash = app.passwords.hash(change.new.into_text()).await?;
    app.db.set_password(holder.user, &hash, Some(caller.token.id), &caller.draft()).await?;
    Ok(StatusCode::NO_CONTENT)
}
