//! `POST /api/v1/images/batch`: one action on up to a hundred images.
//!
//! **What.** Checks the request as a whole, then does to each image what the single call would do, with the same right, the
//! same refusal and the same row in the log.
//! **Why one after the other.** Each is a transaction of its own on one writer; and a person who reads the log finds the images
//! in the order that was asked for.
//! **Invariants.** `a_batch_is_its_single_calls`, tested in `controller/tests/api/batch.rs`: no image changes what becomes of
//! another. A new action is a line in [`right`] and one in [`one`].

use std::collections::HashSet;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::image_batch::{BATCH_IMAGES_MAX, BatchResult, BatchResults, ImageBatch};
use hearth_protocol::id::ImageId;
use hearth_protocol::words::BatchAction;

use super::app::App;
use super::body::Json;
use super::caller::Caller;
use super::fault::Fault;
use super::finish::RequestId;
use super::image_edits::{retag, set_deactivated, set_protected};
use super::image_ends::{DeleteQuery, bring_back, remove};
use crate::db::images::Image;
use crate::logic::authz::Action;
use crate::logic::catalog::check_tags;

/// Does one action to many images. The answer has one result per image, in the order of the request.
#[utoipa::path(post, path = "/api/v1/images/batch", tag = "images", request_body = ImageBatch,
    responses((status = 200, body = BatchResults)))]
pub async fn batch(
    State(app): State<App>,
    caller: Caller,
    Extension(request): Extension<RequestId>,
    Json(batch): Json<ImageBatch>,
) -> Result<axum::Json<BatchResults>, Fault> {
    check(&batch)?;
    let caller = Caller { action: right(batch.action), ..caller };
    let mut results = Vec::with_capacity(batch.images.len());
    for id in &batch.images {
        // Before: an image that is gone afterwards has no name to show.
        let name = app.db.image_seen_by(caller.scope(), *id).await?.map(|image| image.facts.name);
        let done = one(&app, &caller, &batch, *id).await;
        let error = done.as_ref().err().map(|fault| {
            if let Some(cause) = &fault.parts().cause {
                tracing::error!(image = %id, cause, "one of a batch failed");
            }
            fault.body(&request.0)
        });
        let status = done.as_ref().err().map_or(StatusCode::OK, |fault| fault.parts().status).as_u16();
        let name = done.ok().map(|image| image.facts.name).or(name);
        results.push(BatchResult { id: *id, name, ok: error.is_none(), status, error });
    }
    Ok(axum::Json(BatchResults { results }))
}

fn check(batch: &ImageBatch) -> Result<(), Fault> {
    let n = batch.images.len();
    if !(1..=BATCH_IMAGES_MAX).contains(&n) {
        return Err(Fault::invalid("images", format!("{n} images: 1 to {BATCH_IMAGES_MAX} at once")));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = batch.images.iter().find(|id| !seen.insert(**id)) {
        return Err(Fault::invalid("images", format!("image {twice} is named twice")));
    }
    let tags = matches!(batch.action, BatchAction::Tag | BatchAction::Untag);
    if tags == batch.tags.is_empty() {
        return Err(Fault::invalid("tags", "the actions tag and untag need tags, the others take none"));
    }
    check_tags("tags", &batch.tags)?;
    if batch.force && !matches!(batch.action, BatchAction::Delete | BatchAction::Destroy) {
        return Err(Fault::invalid("force", "only the actions delete and destroy can be forced"));
    }
    Ok(())
}

/// The right that each image is asked for.
const fn right(action: BatchAction) -> Action {
    match action {
        BatchAction::Delete => Action::ImageDelete,
        BatchAction::Destroy => Action::ImageDestroy,
        BatchAction::Restore => Action::ImageRestore,
        BatchAction::Protect => Action::ImageProtect,
        BatchAction::Unprotect => Action::ImageUnprotect,
        BatchAction::Deactivate => Action::ImageDeactivate,
        BatchAction::Reactivate => Action::ImageReactivate,
        BatchAction::Tag | BatchAction::Untag => Action::ImageUpdate,
    }
}

/// The single call.
async fn one(app: &App, caller: &Caller, batch: &ImageBatch, id: ImageId) -> Result<Image, Fault> {
    let how = |now| DeleteQuery { force: batch.force, now };
    match batch.action {
        BatchAction::Delete => remove(app, caller, id, how(false), None).await,
        BatchAction::Destroy => remove(app, caller, id, how(true), None).await,
        BatchAction::Restore => bring_back(app, caller, id, None).await,
        BatchAction::Protect => set_protected(app, caller, id, true).await,
        BatchAction::Unprotect => set_protected(app, caller, id, false).await,
        BatchAction::Deactivate => set_deactivated(app, caller, id, true).await,
        BatchAction::Reactivate => set_deactivated(app, caller, id, false).await,
        BatchAction::Tag => retag(app, caller, id, &batch.tags, true).await,
        BatchAction::Untag => retag(app, caller, id, &batch.tags, false).await,
    }
}
