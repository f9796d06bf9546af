//! `/api/v1/host-images/batch/…`: one thing done to many host images, with a result for each.
//!
//! **Why one after the other.** Each is a transaction of its own with its row in the operation log: one that is refused keeps no
//! other from being done, and a call that is cut off has done whole ones only.
//! **Invariants.** A result says what a call for that host image alone would have answered; one that the caller may not see
//! answers like one that does not exist.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::host_image::{HostImageBatch, HostImageBatchDelete, HostImageResult, MemberResult};
use hearth_protocol::id::HostImageId;

use super::app::App;
use super::body::Json;
use super::caller::Caller;
use super::fault::Fault;
use super::image_ends::DeleteQuery;
use super::{host_images, image_ends, images};
use crate::db::images::Image;
use crate::logic::authz::Action;
use crate::logic::host_image::check_batch;

/// Protects 1 to 100 host images.
#[utoipa::path(post, path = "/api/v1/host-images/batch/protect", tag = "host-images", request_body = HostImageBatch,
    responses((status = 200, description = "One result each", body = Vec<HostImageResult>)))]
pub async fn protect(
    State(app): State<App>,
    caller: Caller,
    Json(batch): Json<HostImageBatch>,
) -> Result<axum::Json<Vec<HostImageResult>>, Fault> {
    set_all(&app, &caller, &batch, true).await
}

/// Takes the protection from 1 to 100 host images.
#[utoipa::path(post, path = "/api/v1/host-images/batch/unprotect", tag = "host-images", request_body = HostImageBatch,
    responses((status = 200, description = "One result each", body = Vec<HostImageResult>)))]
pub async fn unprotect(
    State(app): State<App>,
    caller: Caller,
    Json(batch): Json<HostImageBatch>,
) -> Result<axum::Json<Vec<HostImageResult>>, Fault> {
    set_all(&app, &caller, &batch, false).await
}

async fn set_all(
    app: &App,
    caller: &Caller,
    batch: &HostImageBatch,
    protected: bool,
) -> Result<axum::Json<Vec<HostImageResult>>, Fault> {
    check_batch(&batch.ids)?;
    let done = if protected { "protected" } else { "not protected" };
    let mut results = Vec::with_capacity(batch.ids.len());
    for id in &batch.ids {
        let set = host_images::set_protected(app, caller, *id, protected).await;
        let set = set.map(|found| result(*id, Some(found.facts.name), done, StatusCode::OK));
        results.push(told(app, caller, *id, set).await?);
    }
    Ok(axum::Json(results))
}

/// Deletes 1 to 100 host images.
#[utoipa::path(post, path = "/api/v1/host-images/batch/delete", tag = "host-images", request_body = HostImageBatchDelete,
    responses((status = 200, description = "One result each", body = Vec<HostImageResult>)))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Json(batch): Json<HostImageBatchDelete>,
) -> Result<axum::Json<Vec<HostImageResult>>, Fault> {
    check_batch(&batch.ids)?;
    let mut results = Vec::with_capacity(batch.ids.len());
    for id in &batch.ids {
        let deleted = delete_one(&app, &caller, *id, None, batch.members).await;
        results.push(told(&app, &caller, *id, deleted).await?);
    }
    Ok(axum::Json(results))
}

/// Deletes a host image, and with `members` the images of its disks that nothing else uses.
///
/// # Errors
/// 404, 403, 409, 412. Of the images each has its own result.
pub(super) async fn delete_one(
    app: &App,
    caller: &Caller,
    id: HostImageId,
    if_match: Option<u64>,
    members: bool,
) -> Result<HostImageResult, Fault> {
    let found = host_images::find(app, caller, id).await?;
    let images: Vec<_> = found.disks.iter().map(|disk| disk.id).collect();
    let details = serde_json::json!({ "images": images, "members": members });
    let op = caller.draft().on("host_image", id, found.facts.name).with(details);
    let gone = app.db.delete_host_image(id, if_match, &op).await?;
    let status = if members { StatusCode::OK } else { StatusCode::NO_CONTENT };
    let mut result = result(id, Some(gone.facts.name), "deleted", status);
    if members {
        let caller = Caller { action: Action::ImageDelete, ..caller.clone() };
        for disk in &gone.disks {
            result.images.push(delete_member(app, &caller, disk).await);
        }
    }
    Ok(result)
}

/// Deletes the image of a disk, under the rules that hold for every image; or says why it stays.
async fn delete_member(app: &App, caller: &Caller, disk: &Image) -> MemberResult {
    let found = images::find(app, caller, disk.id).await;
    let name = found.as_ref().ok().map(|image| image.facts.name.clone());
    let deleted = match found {
        Ok(image) => image_ends::remove(app, caller, image.id, DeleteQuery::default(), None).await,
        Err(fault) => Err(fault),
    };
    let (ok, message) = match deleted {
        Ok(_) => (true, "deleted".to_owned()),
        Err(fault) => {
            log_internal(&fault);
            (false, fault.parts().message.clone())
        }
    };
    MemberResult { image: disk.id, name, ok, message }
}

fn result(id: HostImageId, name: Option<String>, message: &str, status: StatusCode) -> HostImageResult {
    HostImageResult {
        id,
        name,
        ok: status.is_success(),
        status: status.as_u16(),
        message: message.to_owned(),
        images: Vec::new(),
    }
}

/// A refusal as the result of one host image, with its name if the caller may see it.
async fn told(
    app: &App,
    caller: &Caller,
    id: HostImageId,
    done: Result<HostImageResult, Fault>,
) -> Result<HostImageResult, Fault> {
    match done {
        Ok(result) => Ok(result),
        Err(fault) => {
            log_internal(&fault);
            let seen = app.db.host_image_seen_by(caller.scope(), id).await?;
            let parts = fault.parts();
            Ok(result(id, seen.map(|found| found.facts.name), &parts.message, parts.status))
        }
    }
}

/// What a call of its own would have left in the log.
fn log_internal(fault: &Fault) {
    if let Some(cause) = &fault.parts().cause {
        tracing::error!(cause, "a part of a call over many failed");
    }
}
