//! `/api/v1/images/{id}/uploads`: uploads that survive their connection, their sender and the controller.
//!
//! **What.** Opens, tells, appends to and gives up the one upload of an image. [`super::upload`] is the upload in one request.
//!
//! **Why an answer only after a sync.** A sender throws away what was acknowledged; the offset that it is told must survive
//! a power loss.
//!
//! **Why a second writer is refused.** Two writers of one file would both be told offsets that the other one moves. The
//! first loses its place when its connection ends or falls silent.
//!
//! **Invariants.**
//! 1. What a `PATCH` that broke off brought is kept, as far as it is durable; the offset says how far.
//! 2. Bytes are appended at the durable offset and nowhere else.
//! 3. The image is `saving` as long as its upload is open; its end is the import or `queued`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::{Checksums, Image as ImageBody};
use hearth_protocol::api::upload::{UPLOAD_COMPLETE, UPLOAD_OFFSET, Upload as UploadBody, UploadCreate};
use hearth_protocol::id::{ImageId, UploadId};
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::body::{Json, Path};
use super::caller::Caller;
use super::fault::Fault;
use super::images::{find, shown};
use super::upload::{Pace, ROOM_HINT, too_large};
use super::when;
use crate::content::ContentError;
use crate::db::image_changes::Original;
use crate::db::images::Image;
use crate::db::uploads::{Upload, UploadKind, new_upload};
use crate::db::{DbError, new_id};
use crate::ingest::intake::{Intake, IntakeError, Taken, remove_unclaimed};
use crate::ingest::space::SpaceError;
use crate::logic::catalog::check_mark;
use crate::{metrics, task};

const OFFSET: HeaderName = HeaderName::from_static(UPLOAD_OFFSET);

/// Uploads that somebody is appending to.
#[derive(Clone, Debug, Default)]
pub struct Writers(Arc<Mutex<HashSet<UploadId>>>);

/// The right to append; ends when dropped.
#[derive(Debug)]
struct Writing {
    writers: Writers,
    id: UploadId,
}

impl Writers {
    fn begin(&self, id: UploadId) -> Option<Writing> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        free.then(|| Writing { writers: self.clone(), id })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.writers.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Opens the upload of a queued or killed image: then `PATCH …/uploads/{upload}` sends its bytes, in as many requests as it
/// takes.
#[utoipa::path(post, path = "/api/v1/images/{id}/uploads", tag = "images", params(("id" = ImageId, Path)),
    request_body = UploadCreate,
    responses((status = 201, body = UploadBody),
        (status = 409, description = "The image has bytes already, an upload is open, or the quota is full",
            body = ErrorBody),
        (status = 413, description = "Larger than allowed", body = ErrorBody),
        (status = 415, description = "The body is no JSON", body = ErrorBody),
        (status = 507, description = "No room", body = ErrorBody)))]
pub async fn open(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Json(create): Json<UploadCreate>,
) -> Result<(StatusCode, axum::Json<UploadBody>), Fault> {
    let image = find(&app, &caller, id).await?;
    check_mark("mark", create.mark.as_deref())?;
    match create.size_bytes {
        Some(0) => return Err(Fault::invalid("size_bytes", "the file is empty")),
        Some(bytes) if i64::try_from(bytes).is_err() => {
            return Err(Fault::invalid("size_bytes", "no file is that large"));
        }
        Some(bytes) if bytes > app.config.image_bytes_max => {
            return Err(too_large(bytes, app.config.image_bytes_max));
        }
        _ => {}
    }
    super::upload::refuse_over_quota(&app, &image, create.size_bytes).await?;
    drop(super::upload::set_aside(&app, create.size_bytes.unwrap_or(0)).await?);
    let mark = create.mark.unwrap_or_default();
    let new = new_upload(id, UploadKind::Resumable, create.size_bytes, &mark);
    let details = serde_json::json!({ "upload": new.id, "bytes": new.size_bytes });
    let op = caller.draft().on("image", id, image.facts.name).with(details);
    let upload = app.db.open_upload(&new, &op).await?;
    Ok((StatusCode::CREATED, axum::Json(body(&app, &upload))))
}

/// Uploads of an image that are open: one or none.
#[utoipa::path(get, path = "/api/v1/images/{id}/uploads", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, body = Page<UploadBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<axum::Json<Page<UploadBody>>, Fault> {
    find(&app, &caller, id).await?;
    let upload = app.db.upload_of(id).await?.filter(|upload| upload.kind == UploadKind::Resumable);
    Ok(axum::Json(Page { items: upload.iter().map(|upload| body(&app, upload)).collect(), next: None }))
}

/// How far an upload is: in the header `upload-offset` (`HEAD` answers it too) and in the body.
#[utoipa::path(get, path = "/api/v1/images/{id}/uploads/{upload}", tag = "images",
    params(("id" = ImageId, Path), ("upload" = UploadId, Path)), responses((status = 200, body = UploadBody)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((id, upload)): Path<(ImageId, UploadId)>,
) -> Result<Response, Fault> {
    find(&app, &caller, id).await?;
    let upload = open_upload(&app, id, upload).await?;
    Ok((at(upload.offset_bytes), axum::Json(body(&app, &upload))).into_response())
}

/// Gives an upload up: its bytes go, and the image can be sent anew.
#[utoipa::path(delete, path = "/api/v1/images/{id}/uploads/{upload}", tag = "images",
    params(("id" = ImageId, Path), ("upload" = UploadId, Path)),
    responses((status = 204, description = "It is over"), (status = 409, description = "It is over already", body = ErrorBody)))]
pub async fn abort(
    State(app): State<App>,
    caller: Caller,
    Path((id, upload)): Path<(ImageId, UploadId)>,
) -> Result<StatusCode, Fault> {
    let image = find(&app, &caller, id).await?;
    let upload = open_upload(&app, id, upload).await?;
    let details = serde_json::json!({ "upload": upload.id, "given_up_at": upload.offset_bytes });
    let op = caller.draft().on("image", id, image.facts.name).with(details);
    app.db.abort_upload(upload.id, "the upload was given up", Some(&op)).await?;
    let originals = Arc::clone(&app.ingest.originals);
    super::upload::blocking(move || originals.remove_part(id, upload.id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Appends bytes. `upload-offset` must be the number of bytes that are there; a wrong one answers 409 with the right one.
/// With the last announced byte, or with `upload-complete: true`, the import begins and the answer is the image.
#[utoipa::path(patch, path = "/api/v1/images/{id}/uploads/{upload}", tag = "images",
    params(("id" = ImageId, Path), ("upload" = UploadId, Path),
        ("upload-offset" = u64, Header, description = "Bytes that came before"),
        ("upload-complete" = Option<bool>, Header, description = "Whether the file ends with this request")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "Durable; more is to come", body = UploadBody),
        (status = 202, description = "The file is whole; the import runs", body = ImageBody),
        (status = 408, description = "The sender stalled; what came is kept", body = ErrorBody),
        (status = 409, description = "Another offset (see the header), another sender, or the wrong checksum", body = ErrorBody),
        (status = 413, description = "Larger than allowed or announced", body = ErrorBody),
        (status = 507, description = "No room", body = ErrorBody)))]
pub async fn append(
    State(app): State<App>,
    caller: Caller,
    Path((id, upload)): Path<(ImageId, UploadId)>,
    headers: HeaderMap,
    stream: Body,
) -> Result<Response, Fault> {
    let image = find(&app, &caller, id).await?;
    let upload = open_upload(&app, id, upload).await?;
    let asked = Asked::of(&headers)?;
    let place = super::upload::place_of(&app, &caller)?;
    let Some(writing) = app.writers.begin(upload.id) else {
        return Err(Fault::in_use("another connection sends bytes of this upload")
            .hint("it loses its place when it ends or falls silent; try again then"));
    };
    // Read again: the one before may have moved it until now.
    let upload = open_upload(&app, id, upload.id).await?;
    let (work_app, work_caller) = (app.clone(), caller.clone());
    // A task of its own: a caller that goes away must not keep what came from being noted.
    let work = async move {
        let _held = (place, writing);
        let (image_id, id) = (image.id, upload.id);
        let stop = work_app.jobs.upload_begins(image_id, id);
        let received = receive(&work_app, &work_caller, &image, upload, asked, (stream, stop)).await;
        work_app.jobs.upload_ended(image_id, id);
        received
    };
    let received = task::spawn("upload", work).await;
    match received.map_err(|error| Fault::internal(&error))? {
        Ok(Received::Whole) => {
            let image = find(&app, &caller, id).await?;
            Ok((StatusCode::ACCEPTED, axum::Json(shown(&app, &caller, &image).await?)).into_response())
        }
        Ok(Received::Part(upload)) => {
            Ok((at(upload.offset_bytes), axum::Json(body(&app, &upload))).into_response())
        }
        Err((fault, Some(offset))) => Ok((at(offset), fault).into_response()),
        Err((fault, None)) => Err(fault),
    }
}

/// What the headers of a `PATCH` say.
#[derive(Clone, Copy, Debug)]
struct Asked {
    offset_bytes: u64,
    complete: bool,
}

impl Asked {
    fn of(headers: &HeaderMap) -> Result<Self, Fault> {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
        let offset = text(UPLOAD_OFFSET).and_then(|text| text.parse().ok());
        let offset_bytes = offset.ok_or_else(|| {
            Fault::invalid(
                UPLOAD_OFFSET,
                "say with `upload-offset: N` behind how many bytes this request goes on",
            )
        })?;
        let complete = match text(UPLOAD_COMPLETE) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(Fault::invalid(UPLOAD_COMPLETE, "must be true or false")),
        };
        Ok(Self { offset_bytes, complete })
    }
}

enum Received {
    Whole,
    Part(Upload),
}

/// A fault, and the durable offset where the sender must know it.
type Refused = (Fault, Option<u64>);

async fn receive(
    app: &App,
    caller: &Caller,
    image: &Image,
    upload: Upload,
    asked: Asked,
    (stream, stop): (Body, CancellationToken),
) -> Result<Received, Refused> {
    let id = upload.id;
    let opened = Intake::open(app.db.clone(), Arc::clone(&app.ingest), upload, app.config.image_bytes_max);
    let mut intake = opened.await.map_err(|error| (fault_of(app, &error), None))?;
    let durable = intake.upload().offset_bytes;
    if asked.offset_bytes != durable {
        let text =
            format!("the upload has {durable} bytes; {} were said to have come before", asked.offset_bytes);
        return Err((
            Fault::offset(text).hint("go on at the offset that the header upload-offset tells"),
            Some(durable),
        ));
    }
    let came = take(app, &mut intake, stream, &stop).await;
    let settled = intake.settle().await;
    let offset = settled.map_err(|error| (fault_of(app, &error), None))?;
    came.map_err(|fault| (fault, Some(offset)))?;
    let size = intake.upload().size_bytes;
    if let Some(size) = size.filter(|size| asked.complete && *size != offset) {
        let text = format!("the upload has {offset} bytes; {size} were announced");
        return Err((Fault::conflict(text).hint("send the rest"), Some(offset)));
    }
    if !asked.complete && size != Some(offset) {
        let upload = app.db.upload(id).await.map_err(|error| (error.into(), None))?;
        let upload = upload.ok_or_else(|| (Fault::not_found("upload", id), None))?;
        return Ok(Received::Part(upload));
    }
    if offset == 0 {
        return Err((Fault::bad_request("the file is empty"), Some(0)));
    }
    let taken = intake.finish().await.map_err(|error| (fault_of(app, &error), Some(offset)))?;
    hand_over(app, caller, image, id, taken).await.map_err(|fault| (fault, None))
}

/// Takes what comes, until the body ends or breaks off.
async fn take(app: &App, intake: &mut Intake, stream: Body, stop: &CancellationToken) -> Result<(), Fault> {
    let mut stream = stream.into_data_stream();
    let silence = app.config.upload_silence;
    let mut pace = Pace::new();
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(silence, stream.next()) => next,
            () = stop.cancelled() => return Err(Fault::conflict("the image was cancelled while its file came")),
            () = app.closing.cancelled() => return Err(Fault::unavailable("the controller stops; go on in a moment")),
        };
        let next = next.map_err(|_| Fault::too_slow(format!("no byte came for {} s", silence.as_secs())))?;
        let Some(bytes) = next else { return Ok(()) };
        let bytes = bytes.map_err(|_| Fault::bad_request("the connection ended before the request did"))?;
        pace.add(bytes.len() as u64)?;
        metrics::counter_add(metrics::UPLOAD_BYTES, bytes.len() as u64);
        intake.push(bytes).await.map_err(|error| fault_of(app, &error))?;
    }
}

/// Hands a whole file to the import, or refuses it for its checksum.
async fn hand_over(
    app: &App,
    caller: &Caller,
    image: &Image,
    upload: UploadId,
    taken: Taken,
) -> Result<Received, Fault> {
    let id = image.id;
    let checksums = taken.sums.map(Checksums::from).unwrap_or_default();
    let op = caller.draft().on("image", id, image.facts.name.clone());
    // Without checksums the import counts and compares them.
    if checksums.sha256.is_some() {
        super::upload::refuse_mismatch(app, image, upload, &checksums, &op).await??;
    }
    let original = Original { bytes: taken.size_bytes, checksums };
    let details = serde_json::json!({ "bytes": original.bytes, "sha256": original.checksums.sha256 });
    match app.db.finish_upload(upload, &original, (new_id(), "{}"), None, &op.clone().with(details)).await {
        Err(error @ DbError::Quota { .. }) => {
            Err(super::upload::refuse_full(app, image, upload, error, op).await?)
        }
        Err(error @ (DbError::NotFound { .. } | DbError::State { .. })) => {
            // Given up or deleted between the last byte and here: the file had its name already.
            remove_unclaimed(&app.db, &app.ingest, id).await?;
            Err(error.into())
        }
        ended => Ok(ended.map(|()| Received::Whole)?),
    }
}

/// The open upload of this image with this id; fetches and uploads of one request have nothing to append to.
async fn open_upload(app: &App, image: ImageId, id: UploadId) -> Result<Upload, Fault> {
    let upload = app.db.upload(id).await?;
    let mine = upload.filter(|upload| upload.image == image && upload.kind == UploadKind::Resumable);
    mine.ok_or_else(|| Fault::not_found("open upload", id))
}

fn fault_of(app: &App, error: &IntakeError) -> Fault {
    let no_room = |needed: u64, free: u64| {
        Fault::no_space(format!(
            "the controller's disk has no room: {needed} bytes are needed, {free} are free"
        ))
        .hint(ROOM_HINT)
    };
    match error {
        IntakeError::Db(DbError::NotFound { .. }) => Fault::conflict("the upload was ended meanwhile"),
        IntakeError::Space(SpaceError::NoSpace { needed_bytes, free_bytes, .. }) => {
            no_room(*needed_bytes, *free_bytes)
        }
        IntakeError::Content(ContentError::NoSpace { .. }) => no_room(1, app.ingest.space.left_bytes()),
        IntakeError::TooLarge { .. } => Fault::too_large(error.to_string()),
        _ => Fault::internal(error),
    }
}

fn at(offset_bytes: u64) -> HeaderMap {
    HeaderMap::from_iter([(OFFSET, HeaderValue::from(offset_bytes))])
}

fn body(app: &App, upload: &Upload) -> UploadBody {
    let idle_us = i64::try_from(app.config.upload_idle.as_micros()).unwrap_or(i64::MAX);
    UploadBody {
        id: upload.id,
        image: upload.image,
        offset_bytes: upload.offset_bytes,
        size_bytes: upload.size_bytes,
        mark: (!upload.mark.is_empty()).then(|| upload.mark.clone()),
        expires_at: when::text(upload.updated_us.saturating_add(idle_us)),
    }
}
