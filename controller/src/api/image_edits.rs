//! `PATCH /api/v1/images/{id}` and the verbs that switch something: protect, deactivate.
//!
//! **What.** Each call finds the image through the caller's scope, checks what was sent, and changes the record in one
//! transaction with its row in the log. [`super::image_batch`] calls the same functions.
//! **Why `If-Match` is demanded.** Two editors who both read revision 3 would otherwise each undo what the other did, and
//! nobody would hear of it. A switch names its own end state, so it needs none.
//! **Invariants.** `two_editors_cannot_overwrite_each_other`, tested in `controller/tests/api/attributes.rs`.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::{Image as ImageBody, TAGS_MAX};
use hearth_protocol::api::image_update::ImageUpdate;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskDriver, NetworkDriver};

use super::app::App;
use super::body::{Json, Path};
use super::caller::Caller;
use super::fault::Fault;
use super::images::{Tagged, find, must_be_listed, tagged};
use crate::db::DbError;
use crate::db::images::{Image, ImageFacts};
use crate::db::operations::Draft;
use crate::logic::attributes::check_update;
use crate::logic::catalog::check_tags;

/// Tries of an edit whose base another editor changed meanwhile.
const EDIT_TRIES_MAX: u32 = 5;

/// Changes attributes. `If-Match` must be the `revision` (the header `etag`) of the record that was read. Absent fields
/// stay, `null` empties a field.
#[utoipa::path(patch, path = "/api/v1/images/{id}", tag = "images",
    params(("id" = ImageId, Path), ("if-match" = String, Header, description = "The record's revision")),
    request_body = ImageUpdate,
    responses((status = 200, body = ImageBody, headers(("etag", description = "Its new revision"))),
        (status = 409, description = "The name is taken, or the image is in the recycle bin", body = ErrorBody),
        (status = 412, description = "Somebody changed it since it was read", body = ErrorBody),
        (status = 428, description = "`If-Match` is missing", body = ErrorBody)))]
pub async fn update(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    headers: HeaderMap,
    Json(update): Json<ImageUpdate>,
) -> Result<Tagged, Fault> {
    let image = find(&app, &caller, id).await?;
    let revision = if_match(&headers)?.ok_or_else(Fault::revision_required)?;
    check_update(&update)?;
    let mut after = image.facts.clone();
    apply(&update, &mut after);
    if !(update.distribution.is_keep() && update.version.is_keep() && update.architecture.is_keep()) {
        must_be_listed(&app, after.architecture, &after.distribution, &after.version)?;
    }
    let op = draft(&caller, &image);
    let image = app.db.update_image(id, Some(revision), |facts| apply(&update, facts), &op).await?;
    tagged(&app, &caller, &image).await
}

/// The revision of `If-Match`, as a bare number or in the quotes of an entity tag.
///
/// # Errors
/// 400 for anything else, `*` too: it would say "whatever is there".
pub fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Fault> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().trim_matches('"').parse().ok());
    number.map(Some).ok_or_else(|| Fault::invalid("if-match", "If-Match must be the record's `revision`"))
}

/// Makes the changes.
fn apply(update: &ImageUpdate, facts: &mut ImageFacts) {
    let update = update.clone();
    // A name is never cleared: that was checked.
    update.name.apply(&mut facts.name, String::new());
    update.description.apply(&mut facts.description, String::new());
    update.architecture.apply(&mut facts.architecture, None);
    update.os_type.apply(&mut facts.os_type, None);
    update.distribution.apply(&mut facts.distribution, String::new());
    update.version.apply(&mut facts.version, String::new());
    update.min_disk_bytes.apply(&mut facts.min_disk_bytes, 0);
    update.min_memory_bytes.apply(&mut facts.min_memory_bytes, 0);
    update.disk_driver.apply(&mut facts.disk_driver, DiskDriver::Auto);
    update.network_driver.apply(&mut facts.network_driver, NetworkDriver::Auto);
    update.os_language.apply(&mut facts.os_language, String::new());
    update.app_platform.apply(&mut facts.app_platform, String::new());
    update.password_enabled.apply(&mut facts.password_enabled, false);
    update.tags.apply(&mut facts.tags, BTreeSet::new());
    update.properties.apply(&mut facts.properties, std::collections::BTreeMap::new());
}

/// The begin of the operation row of what is done to `image`.
pub fn draft(caller: &Caller, image: &Image) -> Draft {
    caller.draft().on("image", image.id, image.facts.name.clone())
}

/// Refuses deletion from now on.
#[utoipa::path(post, path = "/api/v1/images/{id}/protect", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody), (status = 409, description = "It is in the recycle bin", body = ErrorBody)))]
pub async fn protect(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<Tagged, Fault> {
    let image = set_protected(&app, &caller, id, true).await?;
    tagged(&app, &caller, &image).await
}

/// Allows deletion again.
#[utoipa::path(post, path = "/api/v1/images/{id}/unprotect", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody), (status = 409, description = "It is in the recycle bin", body = ErrorBody)))]
pub async fn unprotect(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<Tagged, Fault> {
    let image = set_protected(&app, &caller, id, false).await?;
    tagged(&app, &caller, &image).await
}

/// Closes an active image to users: it is kept, but neither cached anew nor downloaded.
#[utoipa::path(post, path = "/api/v1/images/{id}/deactivate", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody), (status = 409, description = "It is not active", body = ErrorBody)))]
pub async fn deactivate(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<Tagged, Fault> {
    let image = set_deactivated(&app, &caller, id, true).await?;
    tagged(&app, &caller, &image).await
}

/// Opens a deactivated image to users again.
#[utoipa::path(post, path = "/api/v1/images/{id}/reactivate", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = ImageBody), (status = 409, description = "It is not deactivated", body = ErrorBody)))]
pub async fn reactivate(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<Tagged, Fault> {
    let image = set_deactivated(&app, &caller, id, false).await?;
    tagged(&app, &caller, &image).await
}

/// Switches the protection of one image.
///
/// # Errors
/// 403, 404, 409.
pub async fn set_protected(app: &App, caller: &Caller, id: ImageId, on: bool) -> Result<Image, Fault> {
    let image = find(app, caller, id).await?;
    let edit = |facts: &mut ImageFacts| facts.protected = on;
    Ok(app.db.update_image(id, None, edit, &draft(caller, &image)).await?)
}

/// Closes or opens one image.
///
/// # Errors
/// 403, 404, 409.
pub async fn set_deactivated(app: &App, caller: &Caller, id: ImageId, closed: bool) -> Result<Image, Fault> {
    let image = find(app, caller, id).await?;
    let image = app.db.set_deactivated(id, closed, &draft(caller, &image)).await?;
    app.fleet.wake();
    Ok(image)
}

/// Gives tags to one image, or takes them away.
///
/// # Errors
/// 400 for too many or wrong ones, 403, 404, 409.
pub async fn retag(
    app: &App,
    caller: &Caller,
    id: ImageId,
    tags: &BTreeSet<String>,
    add: bool,
) -> Result<Image, Fault> {
    for _ in 0..EDIT_TRIES_MAX {
        let image = find(app, caller, id).await?;
        let after = with_tags(&image.facts.tags, tags, add);
        check_tags("tags", &after).map_err(|error| {
            Fault::from(error).hint(format!(
                "{} has {} tags, of at most {TAGS_MAX}",
                image.facts.name,
                image.facts.tags.len()
            ))
        })?;
        let edit = |facts: &mut ImageFacts| facts.tags.clone_from(&after);
        match app.db.update_image(id, Some(image.revision), edit, &draft(caller, &image)).await {
            // Counted against tags that somebody else changed: once more.
            Err(DbError::Revision { .. }) => {}
            done => return Ok(done?),
        }
    }
    Err(Fault::conflict("others change this image all the time; try again"))
}

/// The tags with `change` added or taken away, whatever its case; a tag that is there keeps its spelling.
fn with_tags(tags: &BTreeSet<String>, change: &BTreeSet<String>, add: bool) -> BTreeSet<String> {
    let folded = |tag: &String| tag.to_lowercase();
    let changed: BTreeSet<String> = change.iter().map(folded).collect();
    if !add {
        return tags.iter().filter(|tag| !changed.contains(&folded(tag))).cloned().collect();
    }
    let there: BTreeSet<String> = tags.iter().map(folded).collect();
    tags.iter().chain(change.iter().filter(|tag| !there.contains(&folded(tag)))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }

    #[test]
    fn tags_have_no_case_and_keep_their_spelling() {
        let tags = set(&["Prod", "数据库"]);
        assert_eq!(with_tags(&tags, &set(&["prod", "new"]), true), set(&["Prod", "new", "数据库"]));
        assert_eq!(with_tags(&tags, &set(&["PROD", "absent"]), false), set(&["数据库"]));
    }

    #[test]
    fn a_revision_is_a_number_with_or_without_quotes() {
        let of = |value: &'static str| {
            if_match(&HeaderMap::from_iter([(header::IF_MATCH, value.parse().unwrap())])).ok().flatten()
        };
        assert_eq!((of("7"), of("\"7\""), of(" 7 ")), (Some(7), Some(7), Some(7)));
        assert_eq!((of("*"), of("soon"), of("-1"), of("")), (None, None, None, None));
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), None);
    }
}
