//! Who calls: the bearer token, and what it may do.
//!
//! **What.** [`authenticate`] stands before every route that is not open to all: it turns the `Authorization` header
//! into a [`Caller`] and asks the first question of [`authz`]. Handlers ask the second with [`Caller::may`].
//!
//! **Why a hash.** The database holds BLAKE3 of each secret; a stolen backup opens nothing. Secrets have 256 random
//! bits, so neither a slow hash nor a limit on guesses is needed. No comparison touches a secret: the index of the
//! database compares hashes, and how far two hashes agree says nothing about how far two secrets do.
//!
//! **Invariants.** No header but `Authorization` says who calls. A token that ended or was revoked, or whose user, grant,
//! domain or project is gone or closed, is like one that never was. A token that asks too often is told so before
//! anything is done for it.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hearth_protocol::id::DomainId;
use zeroize::Zeroizing;

use super::app::App;
use super::fault::Fault;
use crate::clock;
use crate::db::operations::{Draft, WhoKind};
use crate::db::tokens::{Scope as DbScope, Token};
use crate::logic::authz::{self, Action, Decision, Principal, Reach, Resource, Scope};

/// Begin of every bearer token: leaked ones are found by it.
pub const TOKEN_PREFIX: &str = "hrt_";
/// Hex digits of a secret: 256 bits.
const SECRET_DIGITS: usize = 64;

/// Who calls, and for what.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The token's record.
    pub token: Token,
    /// What it may do.
    pub principal: Principal,
    /// What the route does.
    pub action: Action,
}

impl Caller {
    /// Asks whether the caller may do what the route does to `resource`.
    ///
    /// # Errors
    /// 403, or 404 (as for `what` `key`) if the caller may not even know of it.
    pub fn may(&self, resource: &Resource, what: &str, key: impl std::fmt::Display) -> Result<(), Fault> {
        self.may_do(self.action, resource, what, key)
    }

    /// Asks for another action than the route's own.
    ///
    /// # Errors
    /// As [`Caller::may`].
    pub fn may_do(
        &self,
        action: Action,
        resource: &Resource,
        what: &str,
        key: impl std::fmt::Display,
    ) -> Result<(), Fault> {
        match authz::authorize(self.principal, action, resource) {
            Decision::Allow => Ok(()),
            Decision::Deny if self.is_foreign(resource) => Err(Fault::foreign(what, action.as_str())),
            Decision::Deny => Err(Fault::denied(action.as_str())),
            Decision::Hide => Err(Fault::not_found(what, key)),
        }
    }

    /// Whether an image belongs to somebody else: then it is not the role that stands in the way.
    fn is_foreign(&self, resource: &Resource) -> bool {
        let Resource::Image { domain, project, .. } = resource else { return false };
        match self.principal.scope {
            Scope::System => false,
            Scope::Domain(own) => own != *domain,
            Scope::Project(_, own) => own != *project,
        }
    }

    /// The same caller, who does something else than the route: one of several steps, or of a batch.
    #[must_use]
    pub fn doing(&self, action: Action) -> Self {
        Self { action, ..self.clone() }
    }

    /// Whether the caller sees everywhere where images are cached.
    #[must_use]
    pub fn sees_caches(&self) -> bool {
        authz::reach(self.principal, Action::CacheList) == Reach::Everything
    }

    /// Whether the caller sees the copies at a location of this domain.
    #[must_use]
    pub fn sees_copies_at(&self, domain: Option<DomainId>) -> bool {
        let there = Resource::Location(domain);
        authz::authorize(self.principal, Action::CacheList, &there) == Decision::Allow
    }

    /// The domain to whose locations the caller is bound; `None`: to none, all are reached.
    ///
    /// # Errors
    /// 403 for who reaches none.
    pub fn bound(&self) -> Result<Option<DomainId>, Fault> {
        match authz::reach(self.principal, self.action) {
            Reach::Everything => Ok(None),
            Reach::Domain(domain) => Ok(Some(domain)),
            Reach::Nothing => Err(Fault::denied(self.action.as_str())),
        }
    }

    /// The scope in the store's words.
    #[must_use]
    pub const fn scope(&self) -> DbScope {
        self.token.scope
    }

    /// The begin of an operation row: who does what.
    #[must_use]
    pub fn draft(&self) -> Draft {
        let kind = if self.token.holder.is_some() { WhoKind::User } else { WhoKind::Token };
        Draft::new(kind, self.token.name.clone(), self.action.as_str())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        // Only a route that was registered without the guard could come here without one.
        parts.extensions.get::<Self>().cloned().ok_or_else(Fault::unauthorized)
    }
}

/// The guard of a route; see the module.
pub async fn authenticate(
    State((app, action)): State<(App, Action)>,
    mut request: Request,
    next: Next,
) -> Response {
    match caller(&app, action, request.headers().get(header::AUTHORIZATION)).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(fault) => fault.into_response(),
    }
}

async fn caller(app: &App, action: Action, given: Option<&header::HeaderValue>) -> Result<Caller, Fault> {
    let secret =
        given.and_then(|value| value.to_str().ok()).and_then(bearer).ok_or_else(Fault::unauthorized)?;
    let hash = secret_hash(secret);
    let now_us = clock::unix_us();
    let token = app.db.token_by_secret_hash(&hash, now_us).await?.ok_or_else(Fault::unauthorized)?;
    app.limits.token(token.id)?;
    // A look must not fail because its note could not be written.
    if let Err(error) = app.db.touch_token(&token, now_us).await {
        tracing::warn!(error = super::fault::chain(&error), "cannot note the use of a token");
    }
    let principal = Principal { role: token.role, scope: principal_scope(token.scope) };
    if !authz::may_ever(principal, action) {
        tracing::info!(who = token.name, action = action.as_str(), "refused");
        return Err(Fault::denied(action.as_str()));
    }
    Ok(Caller { token, principal, action })
}

/// The secret of an `Authorization` header, if it has the form of one.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let secret = token.trim_start().strip_prefix(TOKEN_PREFIX)?;
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (scheme.eq_ignore_ascii_case("bearer") && secret.len() == SECRET_DIGITS && secret.bytes().all(hex))
        .then_some(secret)
}

/// A scope in the words of the rights table.
#[must_use]
pub const fn principal_scope(scope: DbScope) -> Scope {
    match scope {
        DbScope::System => Scope::System,
        DbScope::Domain(domain) => Scope::Domain(domain),
        DbScope::Project(domain, project) => Scope::Project(domain, project),
    }
}

/// What the store keeps of a secret.
#[must_use]
pub fn secret_hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// A new token as its user gets it, and what the store keeps of it.
#[must_use]
pub fn new_secret() -> (Zeroizing<String>, String) {
    let bytes: [u8; SECRET_DIGITS / 2] = rand::random();
    let secret = Zeroizing::new(blake3::Hash::from_bytes(bytes).to_hex().to_string());
    let hash = secret_hash(&secret);
    (Zeroizing::new(format!("{TOKEN_PREFIX}{}", *secret)), hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_of_a_token_is_looked_up() {
        let (token, hash) = new_secret();
        let secret = bearer(&format!("Bearer {}", *token)).map(secret_hash);
        assert_eq!(secret, Some(hash));
        assert!(bearer(&format!("bearer {}", *token)).is_some(), "the scheme has no case (RFC 9110)");
        for wrong in ["", "Bearer", "Bearer ", "Basic dTpw", "Bearer hrt_", "Bearer hrt_é", "Bearer abc"] {
            assert_eq!(bearer(wrong), None, "{wrong}");
        }
        assert_eq!(bearer(&format!("Bearer {}0", *token)), None);
        assert_eq!(bearer(&format!("Bearer {}", token.to_uppercase())), None);
    }
}
