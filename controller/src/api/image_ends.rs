//! `DELETE /api/v1/images/{id}`, `restore`, `cancel`: into the recycle bin, out of it, and gone.
//!
//! **What.** [`crate::logic::deletion`] says what a request to delete means; the store refuses what may not go;
//! here is the refusal that depends on the fleet: machines that run on copies.
//! **Why machines refuse a deletion that cannot hurt them.** A leased copy stays until its last lease ends, so they run on. But the
//! operator would lose sight of what they run on (manuals S2, S3, S4); `force` says that this is meant.
//! **Invariants.** What was destroyed looks like what never was.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::{Image as ImageBody, NAME_CHARS_MAX};
use hearth_protocol::id::ImageId;
use hearth_protocol::words::ConsumerKind;
use serde::Deserialize;

use super::app::App;
use super::body::{Path, Query};
use super::caller::Caller;
use super::fault::Fault;
use super::image_edits::{draft, if_match};
use super::images::{Tagged, find, tagged};
use crate::db::image_bin::PrewarmJobs;
use crate::db::image_list::ImageFilter;
use crate::db::images::Image;
use crate::db::operations::Draft;
use crate::db::{DbError, PageRequest};
use crate::logic::authz::Action;
use crate::logic::catalog::check_name;
use crate::logic::deletion::{Deletion, deletion};

/// Machines that a refusal names.
const MACHINES_NAMED_MAX: usize = 5;
/// Names that are tried for one to offer.
const NAMES_TRIED_MAX: u32 = 20;

/// How to delete.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Cancel its prewarm jobs with it, and delete it although machines run on copies of it; they run on.
    #[serde(default)]
    pub force: bool,
    /// Destroy it at once instead of keeping it in the recycle bin; also what is in the bin already.
    #[serde(default)]
    pub now: bool,
}

/// How to restore.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RestoreQuery {
    /// Another name, for example because its own is taken by now.
    name: Option<String>,
}

/// Deletes an image. An active, deactivated or killed one goes into the recycle bin for `bin_days`; with `now=true` it is
/// destroyed: its record, its original, and its content unless another image has the same. One that is still being made is
/// cancelled. Copies at locations stay as unheld cache once it is destroyed.
#[utoipa::path(delete, path = "/api/v1/images/{id}", tag = "images", params(("id" = ImageId, Path), DeleteQuery),
    responses((status = 204, description = "Deleted"),
        (status = 409, description = "Protected, public, a disk of a host image, used by machines, being prewarmed, or in the bin already", body = ErrorBody),
        (status = 412, description = "`If-Match` is not its revision", body = ErrorBody)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(query): Query<DeleteQuery>,
    headers: HeaderMap,
) -> Result<StatusCode, Fault> {
    remove(&app, &caller, id, query, if_match(&headers)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes one image; see [`delete`].
///
/// # Errors
/// 403, 404, 409, 412.
pub async fn remove(
    app: &App,
    caller: &Caller,
    id: ImageId,
    how: DeleteQuery,
    if_match: Option<u64>,
) -> Result<Image, Fault> {
    let image = find(app, caller, id).await?;
    let means = deletion(image.status, how.now, app.config.catalog.bin_days);
    let means = means.ok_or_else(|| {
        Fault::conflict(format!("image {} is in the recycle bin already", image.facts.name))
            .hint("`now=true` (hearth image delete --now) destroys it, restore brings it back")
    })?;
    if image.facts.protected {
        return Err(Fault::conflict(format!("image {} is protected", image.facts.name))
            .hint("remove the protection first: hearth image unprotect"));
    }
    super::host_images::refuse_member(app, caller, &image).await?;
    if !how.force {
        refuse_used(app, caller, &image).await?;
    }
    let op = draft(caller, &image);
    let op = match means {
        Deletion::Bin | Deletion::Cancel => op,
        Deletion::Destroy => Draft { action: Action::ImageDestroy.as_str().to_owned(), ..op },
    };
    let jobs = if how.force { PrewarmJobs::Cancel } else { PrewarmJobs::Keep };
    let gone = match means {
        Deletion::Bin => app.db.bin_image_with(id, if_match, jobs, &op).await?,
        Deletion::Cancel | Deletion::Destroy => app.db.delete_image_with(id, if_match, jobs, &op).await?,
    };
    if means != Deletion::Bin {
        app.jobs.clean_up(&gone).await;
    }
    app.fleet.wake();
    Ok(gone)
}

/// Ends an image that is queued, saving or importing: its job ends, its files go, its name is free.
#[utoipa::path(post, path = "/api/v1/images/{id}/cancel", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 204, description = "Cancelled"),
        (status = 409, description = "It is not being made", body = ErrorBody)))]
pub async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<StatusCode, Fault> {
    let image = find(&app, &caller, id).await?;
    let gone = app.db.cancel_image(id, &draft(&caller, &image)).await?;
    app.jobs.clean_up(&gone).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes an image out of the recycle bin, back into the state it had.
#[utoipa::path(post, path = "/api/v1/images/{id}/restore", tag = "images",
    params(("id" = ImageId, Path), RestoreQuery),
    responses((status = 200, body = ImageBody),
        (status = 409, description = "It is not in the bin, or its name is taken", body = ErrorBody)))]
pub async fn restore(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(query): Query<RestoreQuery>,
) -> Result<Tagged, Fault> {
    let image = bring_back(&app, &caller, id, query.name.as_deref()).await?;
    tagged(&app, &caller, &image).await
}

/// Restores one image; see [`restore`].
///
/// # Errors
/// 400, 403, 404, 409.
pub async fn bring_back(app: &App, caller: &Caller, id: ImageId, name: Option<&str>) -> Result<Image, Fault> {
    let image = find(app, caller, id).await?;
    name.map_or(Ok(()), |name| check_name("name", name))?;
    match app.db.restore_image(id, name, &draft(caller, &image)).await {
        Ok(image) => {
            app.fleet.wake();
            Ok(image)
        }
        Err(DbError::Exists { key, .. }) => {
            let offer = free_name(app, caller, &image, &key).await?;
            let message = format!("image {key} cannot come back under its name: another image has it by now");
            let hint =
                format!("restore it under another one, for example {offer} (hearth image restore --name)");
            Err(Fault::conflict(message).field("name").hint(hint))
        }
        Err(error) => Err(error.into()),
    }
}

/// A name like `wanted` that no image of the same project has.
async fn free_name(app: &App, caller: &Caller, image: &Image, wanted: &str) -> Result<String, Fault> {
    let mut offer = String::new();
    for n in 2..NAMES_TRIED_MAX {
        let end = format!("-{n}");
        offer = wanted.chars().take(NAME_CHARS_MAX - end.len()).collect::<String>() + &end;
        let filter =
            ImageFilter { name: Some(offer.clone()), project: Some(image.project), ..ImageFilter::default() };
        if app.db.images(caller.scope(), &filter, &PageRequest::first(1)).await?.items.is_empty() {
            break;
        }
    }
    Ok(offer)
}

/// An image whose copy a machine uses is not deleted by chance.
async fn refuse_used(app: &App, caller: &Caller, image: &Image) -> Result<(), Fault> {
    let Some(content) = image.content else { return Ok(()) };
    // The copy may serve other images with the same bytes, also of others: what counts is for which image it is there.
    let mut leases = app.db.leases_placed(image.id, content).await?;
    leases.retain(|(_, lease)| lease.kind == ConsumerKind::Vm);
    // One that nobody wanted, found by a host, serves whoever is left with the bytes. Tenants learn nothing of it.
    if leases.is_empty()
        && caller.sees_caches()
        && !app.db.has_twin(caller.scope(), image.id, content).await?
    {
        leases = app.db.leases_of(content).await?;
        leases.retain(|(_, lease)| lease.kind == ConsumerKind::Vm);
    }
    if leases.is_empty() {
        return Ok(());
    }
    let shown = leases.iter().take(MACHINES_NAMED_MAX).map(|(_, lease)| lease.consumer.clone());
    let mut users = shown.collect::<Vec<_>>().join(", ");
    if leases.len() > MACHINES_NAMED_MAX {
        users.push_str(&format!(" and {} more", leases.len() - MACHINES_NAMED_MAX));
    }
    // Who uses copies is the operators' business; a tenant learns only that somebody does.
    let message = if caller.sees_caches() {
        format!("used by vm {users}")
    } else {
        "copies of it are in use".to_owned()
    };
    Err(Fault::in_use(format!("image {}: {message}", image.facts.name))
        .hint("delete its machines first, or force it: they run on, and their copies stay until they end"))
}
