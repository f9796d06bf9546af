//! `/api/v1/keys`: keys that encrypt images.
//!
//! **What.** Making, listing and deleting them, and sealing all anew after the master key was changed; [`for_image`] finds or makes
//! the one of a new image.
//!
//! **Why no key can be brought or taken out.** A key that somebody typed has been on a screen. What opens an image goes to the
//! agents that run it, and to nobody else.
//!
//! **Invariants.** No answer and no row of the log holds a key, sealed or not. A key of a project that the caller may not see
//! answers like none.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::key::{EncryptWith, Encryption, KeyCreate, KeyRecord, KeysRotated};
use hearth_protocol::id::{DomainId, KeyId, ProjectId};
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::images::owner;
use super::when;
use crate::db::images::Image;
use crate::db::keys::{Key, NewKey, ResealError};
use crate::db::operations::Draft;
use crate::db::tokens::Scope;
use crate::db::{PageRequest, new_id};
use crate::keys::KeyError;
use crate::logic::authz::{Action, Resource};
use crate::logic::catalog::{check_name, check_search};

impl From<KeyError> for Fault {
    fn from(error: KeyError) -> Self {
        match (&error, error.cure()) {
            (KeyError::NoMaster | KeyError::OtherMaster { .. }, Some(cure)) => {
                Self::conflict(error.to_string()).hint(cure)
            }
            _ => Self::internal(&error),
        }
    }
}

/// Makes a key of a project. The key itself is never shown.
#[utoipa::path(post, path = "/api/v1/keys", tag = "keys", request_body = KeyCreate,
    responses((status = 201, body = KeyRecord),
        (status = 409, description = "The project has a key of this name or too many, or the controller has no master key",
            body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<KeyCreate>,
) -> Result<(StatusCode, axum::Json<KeyRecord>), Fault> {
    check_name("name", &create.name)?;
    let (domain, project) = owner(&app, &caller, create.project).await?;
    caller.may(&Resource::Project { domain, project }, "project", project)?;
    let new = made(&app, create.name, (domain, project))?;
    app.db.create_key(&new, &logged(caller.draft(), &new)).await?;
    let key = app.db.key(new.id).await?.ok_or_else(|| Fault::not_found("key", new.id))?;
    Ok((StatusCode::CREATED, axum::Json(record(&key))))
}

/// A new key of this name.
fn made(app: &App, name: String, (domain, project): (DomainId, ProjectId)) -> Result<NewKey, Fault> {
    let id = new_id();
    Ok(NewKey { id, name, domain, project, sealed: app.keys.make(id, project)? })
}

fn logged(op: Draft, new: &NewKey) -> Draft {
    let details = serde_json::json!({ "project": new.project, "master": new.sealed.master });
    op.on("key", new.id, new.name.clone()).with(details)
}

/// Which keys to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Keys with exactly this name.
    name: Option<String>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// Keys inside the caller's scope, newest first.
#[utoipa::path(get, path = "/api/v1/keys", tag = "keys", params(ListQuery),
    responses((status = 200, body = Page<KeyRecord>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<KeyRecord>>, Fault> {
    if let Some(name) = &query.name {
        check_search("name", name)?;
    }
    let page = PageRequest { limit: query.limit, cursor: query.cursor };
    let page = app.db.keys(caller.scope(), query.name.as_deref(), &page).await?;
    let items = page.items.iter().map(record).collect();
    Ok(axum::Json(Page { items, next: page.next }))
}

/// One key.
#[utoipa::path(get, path = "/api/v1/keys/{id}", tag = "keys", params(("id" = KeyId, Path)),
    responses((status = 200, body = KeyRecord)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<KeyId>,
) -> Result<axum::Json<KeyRecord>, Fault> {
    find(&app, &caller, id).await.map(|key| axum::Json(record(&key)))
}

/// Deletes a key for good. One that encrypts an image, also one in the recycle bin, stays; so does one that opens copies of deleted
/// images that are still on hosts.
#[utoipa::path(delete, path = "/api/v1/keys/{id}", tag = "keys", params(("id" = KeyId, Path)),
    responses((status = 204, description = "Deleted"),
        (status = 409, description = "It encrypts an image, or copies that are still on hosts", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<KeyId>,
) -> Result<StatusCode, Fault> {
    let key = find(&app, &caller, id).await?;
    let op = caller.draft().on("key", id, key.name).with(serde_json::json!({ "project": key.project }));
    app.db.delete_key(id, &op).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Seals every key by the current master key, all or none. The controller needs the new master key and the old one beside it; when
/// this is done the old one is needed no more. Keys and images stay as they are.
#[utoipa::path(post, path = "/api/v1/keys/rotate", tag = "keys",
    responses((status = 200, body = KeysRotated),
        (status = 409, description = "There is no master key, or a key is sealed by one that is not here", body = ErrorBody)))]
pub async fn rotate(State(app): State<App>, caller: Caller) -> Result<axum::Json<KeysRotated>, Fault> {
    caller.may(&Resource::Whole, "key", "")?;
    let master = app.keys.fingerprint()?.to_owned();
    let op = caller.draft().on("master_key", &master, "");
    let done = app.db.seal_keys_again(&app.keys, &op).await.map_err(|error| match error {
        ResealError::Db(error) => Fault::from(error),
        ResealError::Key { ref source, .. } => match Fault::from(source.clone()).parts().hint.clone() {
            Some(hint) => Fault::conflict(error.to_string()).hint(hint),
            None => Fault::internal(&error),
        },
    })?;
    Ok(axum::Json(KeysRotated { master, sealed: done.sealed, unchanged: done.unchanged }))
}

async fn find(app: &App, caller: &Caller, id: KeyId) -> Result<Key, Fault> {
    let key = app.db.key(id).await?.ok_or_else(|| Fault::not_found("key", id))?;
    caller.may(&Resource::Project { domain: key.domain, project: key.project }, "key", id)?;
    Ok(key)
}

/// The key of a new image of a project: one that the project has, or a new one that is to be made with the image.
///
/// # Errors
/// 400 for a name that cannot be one; 403, 404; 409 if there is no master key to open or seal it.
pub(super) async fn for_image(
    app: &App,
    caller: &Caller,
    owner: (DomainId, ProjectId),
    with: Option<&EncryptWith>,
) -> Result<(Option<KeyId>, Option<(NewKey, Draft)>), Fault> {
    let place = Resource::Project { domain: owner.0, project: owner.1 };
    match with {
        None => Ok((None, None)),
        Some(EncryptWith::NewKey(name)) => {
            check_name("encryption.new_key", name)?;
            let caller = caller.doing(Action::KeyCreate);
            caller.may(&place, "project", owner.1)?;
            let new = made(app, name.clone(), owner)?;
            let op = logged(caller.draft(), &new);
            Ok((Some(new.id), Some((new, op))))
        }
        Some(EncryptWith::Key(wanted)) => {
            check_search("encryption.key", wanted)?;
            caller.may_do(Action::KeyShow, &place, "key", wanted)?;
            let found = match wanted.parse() {
                Ok(id) => app.db.key(id).await?,
                Err(_) => app.db.key_named(owner.1, wanted).await?,
            };
            let key = found.filter(|key| key.project == owner.1);
            let key = key.ok_or_else(|| Fault::not_found("key", wanted).field("encryption.key"))?;
            app.keys.fingerprint()?;
            if !app.keys.knows(&key.sealed.master) {
                return Err(KeyError::OtherMaster { master: key.sealed.master }.into());
            }
            Ok((Some(key.id), None))
        }
    }
}

/// How an image is encrypted, as far as `caller` may know.
pub(super) fn shown(caller: &Caller, image: &Image) -> Option<Encryption> {
    let key = image.fixed.key?;
    let owns = match caller.scope() {
        Scope::System => true,
        Scope::Domain(domain) => domain == image.domain,
        Scope::Project(_, project) => project == image.project,
    };
    Some(Encryption { key: owns.then_some(key), key_name: image.key_name.clone().filter(|_| owns) })
}

fn record(key: &Key) -> KeyRecord {
    KeyRecord {
        id: key.id,
        name: key.name.clone(),
        domain: key.domain,
        project: key.project,
        images: key.images,
        master: key.sealed.master.clone(),
        created_at: when::text(key.created_us),
        sealed_at: when::text(key.sealed_us),
    }
}
