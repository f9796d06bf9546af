//! `/api/v1/images/{id}/variants`: an image's disk in other formats.
//!
//! **What.** Lists them, has one made, removes one, sends the bytes of one.
//!
//! **Why a list of their own.** In the image's body they would cost every list of images a second query, for something that one
//! page shows.
//!
//! **Invariants.** What is asked for in a format comes in that format or not at all: a format that is not there is an error that
//! names those that are and those that can be made, never another file. The original is no variant and is never sent as one.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::variant::{Variant as VariantBody, VariantCreate, VariantList};
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskFormat, ImageStatus, VariantStatus};

use super::app::App;
use super::body::{Json, Path};
use super::caller::Caller;
use super::download::{FileToServe, must_be_open, name_with, serve_file};
use super::fault::Fault;
use super::images::find;
use super::when;
use crate::db::contents::Content;
use crate::db::images::Image;
use crate::db::operations::Draft;
use crate::db::variants::Variant;
use crate::logic::variant::{FORMATS, VariantRefusal, check};

/// Variants of an image, and the formats that can be made.
#[utoipa::path(get, path = "/api/v1/images/{id}/variants", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = VariantList)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<axum::Json<VariantList>, Fault> {
    let image = find(&app, &caller, id).await?;
    let rows = app.db.variants_of(id).await?;
    let makeable = makeable(content(&app, &image).await?.as_ref(), &image, &rows);
    Ok(axum::Json(VariantList { items: rows.iter().map(|row| body(&app, row)).collect(), makeable }))
}

/// Has a variant made: one that is missing or failed. One that is there or being made stays as it is.
#[utoipa::path(post, path = "/api/v1/images/{id}/variants", tag = "images", params(("id" = ImageId, Path)),
    request_body = VariantCreate,
    responses((status = 200, description = "It is there", body = VariantBody),
        (status = 202, description = "It waits or is being made", body = VariantBody),
        (status = 409, description = "The image is not active, or cannot be in this format", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Json(create): Json<VariantCreate>,
) -> Result<(StatusCode, axum::Json<VariantBody>), Fault> {
    let image = find(&app, &caller, id).await?;
    let format = create.format;
    let Some(content) = content(&app, &image).await? else {
        return Err(no_content(&image));
    };
    match check(content.kind, content.raw_bytes, format) {
        Err(refusal @ VariantRefusal::Iso) => return Err(Fault::invalid("format", refusal.to_string())),
        refused => {
            refused.map_err(|refusal| Fault::conflict(format!("image {}: {refusal}", image.facts.name)))?
        }
    }
    let row = app.db.variants_of(id).await?.into_iter().find(|row| row.format == format);
    let is_missing = match row {
        Some(row) if row.status == VariantStatus::Active => !is_there(&app, &row).await?,
        _ => false,
    };
    let op = caller.draft().on("image", id, image.facts.name.clone());
    let op = op.with(serde_json::json!({ "format": format }));
    let (row, _) = app.db.ask_variant(id, format, is_missing, &op).await?;
    let status = if row.status == VariantStatus::Active { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, axum::Json(body(&app, &row))))
}

/// Removes a variant and its file. It can be made again.
#[utoipa::path(delete, path = "/api/v1/images/{id}/variants/{format}", tag = "images",
    params(("id" = ImageId, Path), ("format" = DiskFormat, Path)),
    responses((status = 204, description = "Removed")))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path((id, format)): Path<(ImageId, String)>,
) -> Result<StatusCode, Fault> {
    let image = find(&app, &caller, id).await?;
    let Ok(format) = format.parse() else { return Err(unknown(&app, &image, &format).await?) };
    let op = caller.draft().on("image", id, image.facts.name.clone());
    let gone = app.db.delete_variant(id, format, &op.with(serde_json::json!({ "format": format }))).await?;
    app.jobs.clean_up_variant(&gone).await;
    Ok(StatusCode::NO_CONTENT)
}

/// A variant's bytes; `Range`, `If-Range` and `If-None-Match` are understood.
#[utoipa::path(get, path = "/api/v1/images/{id}/variants/{format}/file", tag = "images",
    params(("id" = ImageId, Path), ("format" = DiskFormat, Path)),
    responses((status = 200, description = "The file", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "A range of it"), (status = 304, description = "You have it already"),
        (status = 409, description = "It could not be made, or is being made (`not_ready`, `Retry-After`)", body = ErrorBody),
        (status = 416, description = "There is no such range", body = ErrorBody)))]
pub async fn download(
    State(app): State<App>,
    caller: Caller,
    Path((id, format)): Path<(ImageId, String)>,
    request: Request,
) -> Result<Response, Fault> {
    let image = find(&app, &caller, id).await?;
    let Ok(format) = format.parse() else { return Err(unknown(&app, &image, &format).await?) };
    let op = caller.draft().on("image", id, image.facts.name.clone());
    let op = op.with(serde_json::json!({ "format": format }));
    must_be_open(&caller, &image)?;
    serve_file(&app, variant_of(&app, &image, format, Some(op)).await?, request).await
}

/// The variant of an image in `format` as a file to serve; `op` says who takes it out, if the caller does not note it.
///
/// # Errors
/// 404 with the formats that there are if it is none of them; 409 `not_ready` while it waits or is made; 409 if it could not be made.
pub async fn variant_of(
    app: &App,
    image: &Image,
    format: DiskFormat,
    op: Option<Draft>,
) -> Result<FileToServe, Fault> {
    let row = app.db.variants_of(image.id).await?.into_iter().find(|row| row.format == format);
    let Some(row) = row else { return Err(unknown(app, image, format.as_str()).await?) };
    let said = format!("{format} of image {}", image.facts.name);
    match (row.status, &row.file, row.stored()) {
        (VariantStatus::Active, Some(sums), Some(file)) => {
            if !is_there(app, &row).await? {
                app.db.requeue_variant(&row).await?;
                return Err(Fault::not_ready(format!("the {said} was lost and is made again")));
            }
            let name = name_with(&image.facts.name, Some(format), None);
            let (path, sha256) = (app.ingest.variants.path(&file), sums.sha256.clone());
            Ok(FileToServe { path, sha256, name, op })
        }
        (VariantStatus::SaveFail, ..) => {
            Err(Fault::conflict(format!("the {said} could not be made: {}", row.reason))
                .hint(format!("try again: hearth image variant create {} {format}", image.id)))
        }
        (VariantStatus::Saving, ..) => {
            let percent = app.jobs.variant_percent(image.id, format).unwrap_or(0);
            Err(Fault::not_ready(format!("the {said} is being made: {percent} %")))
        }
        _ => Err(Fault::not_ready(format!("the {said} waits to be made"))),
    }
}

/// 404 for a format that an image is not there in, with those that it is and those that can be made.
async fn unknown(app: &App, image: &Image, asked: &str) -> Result<Fault, Fault> {
    let rows = app.db.variants_of(image.id).await?;
    let can = makeable(content(app, image).await?.as_ref(), image, &rows);
    let there: Vec<DiskFormat> = rows.iter().map(|row| row.format).collect();
    let words = |formats: &[DiskFormat]| match formats {
        [] => "none".to_owned(),
        some => some.iter().map(DiskFormat::to_string).collect::<Vec<_>>().join(", "),
    };
    let (there, makeable) = (words(&there), words(&can));
    let key = format!("{asked} of image {}: there are {there}; can be made: {makeable}", image.facts.name);
    let fault = Fault::not_found("variant", key);
    Ok(match can.first() {
        Some(first) => {
            let format = can.iter().find(|format| format.as_str() == asked).unwrap_or(first);
            fault.hint(format!("make one: hearth image variant create {} {format}", image.id))
        }
        None => fault.hint(format!("the file as it was imported: hearth image download {}", image.id)),
    })
}

/// Formats in which there is no variant and one can be made.
fn makeable(content: Option<&Content>, image: &Image, rows: &[Variant]) -> Vec<DiskFormat> {
    let Some(content) = content.filter(|_| image.status == ImageStatus::Active) else { return Vec::new() };
    let missing = FORMATS.into_iter().filter(|format| rows.iter().all(|row| row.format != *format));
    missing.filter(|format| check(content.kind, content.raw_bytes, *format).is_ok()).collect()
}

async fn content(app: &App, image: &Image) -> Result<Option<Content>, Fault> {
    match image.content {
        Some(content) => Ok(app.db.content(content).await?),
        None => Ok(None),
    }
}

fn no_content(image: &Image) -> Fault {
    Fault::conflict(format!("image {} is {} and has no disk yet", image.facts.name, image.status))
        .hint("variants can be made when it is active")
}

async fn is_there(app: &App, row: &Variant) -> Result<bool, Fault> {
    app.jobs.variant_is_there(row).await.map_err(|error| Fault::internal(&error))
}

fn body(app: &App, row: &Variant) -> VariantBody {
    let file = row.file.as_ref();
    let percent = || app.jobs.variant_percent(row.image, row.format).unwrap_or(0);
    VariantBody {
        format: row.format,
        status: row.status,
        percent: (row.status == VariantStatus::Saving).then(percent),
        reason: row.reason.clone(),
        bytes: file.map(|file| file.bytes),
        sha256: file.map(|file| file.sha256.clone()),
        md5: file.map(|file| file.md5.clone()),
        blake3: file.map(|file| file.blake3.clone()),
        created_at: when::text(row.created_us),
        updated_at: when::text(row.updated_us),
    }
}
