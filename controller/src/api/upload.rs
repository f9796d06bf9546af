//! `PUT /api/v1/images/{id}/file`: the bytes of an image, streamed to disk.
//!
//! **What.** Checks size and room before the first byte, writes and sums what arrives, compares the checksums, then
//! hands the image to the import job. The request ends there; the job does the rest.
//!
//! **Why a task of its own.** A caller that goes away drops the handler at any `.await`; the task sees the broken body
//! instead and puts the image back to `queued` with the reason. From `saving` on everything is the task's, its place among
//! the uploads too.
//!
//! **Why pieces of a MiB.** The network gives 16 KiB at a time; a hop to the disk's thread and to three summing threads for
//! each cost as much as the work itself.
//!
//! **Invariants.**
//! 1. Memory is bounded: [`PIECES_WAITING_MAX`] pieces, and the few that the summing threads lag behind.
//! 2. What is announced is set aside before the first byte; what is not announced is checked while it comes.
//! 3. A file whose checksum is not the expected one is never kept.
//! 4. A sender that stalls or crawls is cut off, and the image can be sent again.
//! 5. An upload that ends without being taken over leaves no image in `saving`, whichever step failed.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::{Checksums, Image as ImageBody};
use hearth_protocol::id::{ImageId, UploadId};
use hearth_protocol::words::Visibility;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::body::Path;
use super::caller::Caller;
use super::fault::Fault;
use super::images::{find, shown};
use super::places::Held;
use crate::content::{ContentError, OriginalWriter, Sums};
use crate::db::image_changes::Original;
use crate::db::images::Image;
use crate::db::operations::Draft;
use crate::db::tokens::Scope;
use crate::db::{DbError, new_id};
use crate::ingest::intake::remove_unclaimed;
use crate::ingest::space::{Reservation, SpaceError};
use crate::logic::catalog::first_mismatch;
use crate::logic::quota::Figures;
use crate::{clock, metrics, task};

/// Time over which the rate of a sender is looked at.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Least rate over a window, bytes per second (1 KiB/s): one who drips bytes holds one of few places.
const RATE_BYTES_PER_S_MIN: u64 = 1024;
/// Time between two tries to write down that an upload failed.
const ABORT_AGAIN: Duration = Duration::from_secs(2);
/// What to do about a full disk.
pub(super) const ROOM_HINT: &str = "delete images that nobody needs, or enlarge the file system of state_dir";
/// Bytes handed to the disk and to the checksums at once.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that wait for the disk. With those that are gathered, written and summed an upload holds at most 8 MiB.
const PIECES_WAITING_MAX: usize = 2;
/// Bytes between two looks at the free space when the length is not announced.
const ROOM_STEP_BYTES: u64 = 64 << 20;

/// Sends the file. Give `Content-Length` if it is known: then room is set aside before the first byte.
#[utoipa::path(put, path = "/api/v1/images/{id}/file", tag = "images", params(("id" = ImageId, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 202, description = "All bytes are on disk; the import runs", body = ImageBody),
        (status = 408, description = "The sender stalled", body = ErrorBody),
        (status = 409, description = "The image has bytes already, the checksum is wrong, or the quota is full",
            body = ErrorBody),
        (status = 413, description = "Larger than allowed", body = ErrorBody)))]
pub async fn upload(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    headers: HeaderMap,
    stream: Body,
) -> Result<(StatusCode, axum::Json<ImageBody>), Fault> {
    let image = find(&app, &caller, id).await?;
    let place = place_of(&app, &caller)?;
    let image = accept(&app, &caller, place, image, announced_bytes(&headers)?, stream).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(shown(&app, &caller, &image).await?)))
}

/// A place among the uploads. Callers of one project, or the administrators of one domain, get at most half of them: slow
/// senders of one must not keep all others out. Whoever runs the system is bound by their number alone.
///
/// # Errors
/// 503 if there is none.
pub(super) fn place_of(app: &App, caller: &Caller) -> Result<Held<Scope>, Fault> {
    let who = Some(caller.scope()).filter(|scope| *scope != Scope::System);
    app.uploads.take(who).ok_or_else(|| {
        Fault::unavailable("too many uploads run, of all or of your project; try again when one has ended")
    })
}

/// Takes a whole file for an image, from whatever kind of request. `announced` is its size, if it is known; `place` is given
/// back when all is done.
///
/// # Errors
/// What is wrong with the bytes or the image.
pub(super) async fn accept(
    app: &App,
    caller: &Caller,
    place: Held<Scope>,
    image: Image,
    announced: Option<u64>,
    stream: Body,
) -> Result<Image, Fault> {
    if let Some(bytes) = announced.filter(|bytes| *bytes > app.config.image_bytes_max) {
        return Err(too_large(bytes, app.config.image_bytes_max));
    }
    refuse_over_quota(app, &image, announced).await?;
    if announced == Some(0) {
        return Err(Fault::invalid("content-length", "the file is empty"));
    }
    let room = set_aside(app, announced.unwrap_or(ROOM_STEP_BYTES)).await?;
    let (work_app, work_caller) = (app.clone(), caller.clone());
    let work = async move {
        let _place = place;
        receive(&work_app, &work_caller, &image, announced, room, stream).await
    };
    let received = task::spawn("upload", work).await;
    received.map_err(|error| Fault::internal(&error))?
}

/// Refuses bytes for which the project has no room, before they come.
///
/// # Errors
/// 409 with figure and limit.
pub(super) async fn refuse_over_quota(app: &App, image: &Image, announced: Option<u64>) -> Result<(), Fault> {
    if image.facts.visibility != Visibility::Public {
        let more = Figures::bytes(announced.unwrap_or(1).saturating_sub(image.original_bytes.unwrap_or(0)));
        app.db.refuse_over_quota(image.project, more).await?;
    }
    Ok(())
}

fn announced_bytes(headers: &HeaderMap) -> Result<Option<u64>, Fault> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let bytes = value.to_str().ok().and_then(|text| text.parse().ok());
    bytes.map(Some).ok_or_else(|| Fault::invalid("content-length", "Content-Length is no number of bytes"))
}

pub(super) fn too_large(bytes: u64, most: u64) -> Fault {
    Fault::too_large(format!("the file has {bytes} bytes; images may have {most}"))
        .hint("an administrator can raise image_bytes_max in controller.toml")
}

/// Sets room aside.
pub(super) async fn set_aside(app: &App, bytes: u64) -> Result<Reservation, Fault> {
    let ingest = app.ingest.clone();
    let reserved = tokio::task::spawn_blocking(move || ingest.space.reserve(bytes)).await;
    reserved.map_err(|error| Fault::internal(&error))?.map_err(|error| match &error {
        SpaceError::NoSpace { needed_bytes, free_bytes, .. } => {
            tracing::warn!(%error, "an upload was refused");
            Fault::no_space(format!(
                "the controller's disk has no room: {needed_bytes} bytes are needed, {free_bytes} are free"
            ))
            .hint(ROOM_HINT)
        }
        SpaceError::Unknown { .. } => Fault::internal(&error),
    })
}

/// Receives the bytes; whatever goes wrong, the image is `queued` again (or `killed` for a wrong checksum).
async fn receive(
    app: &App,
    caller: &Caller,
    image: &Image,
    announced: Option<u64>,
    room: Reservation,
    stream: Body,
) -> Result<Image, Fault> {
    let id = image.id;
    let upload = app.db.start_upload(id).await?.id;
    let stop = app.jobs.upload_begins(id, upload);
    let ended = match write_all(app, id, announced, room, stream, &stop).await {
        Ok(sums) => take_over(app, caller, image, upload, sums).await,
        Err(fault) => Err(fault),
    };
    app.jobs.upload_ended(id, upload);
    match ended {
        Ok(Taken::Over) => app.db.image(id).await?.ok_or_else(|| Fault::not_found("image", id)),
        Ok(Taken::Refused(fault)) => Err(fault),
        Err(fault) => {
            let ended = put_back(app, upload, format!("the upload failed: {}", fault.parts().message)).await;
            if matches!(ended, Err(DbError::NotFound { .. })) {
                // Cancelled or deleted meanwhile: the file that came to be after that goes too. One that was handed over by a
                // commit whose answer was lost stays.
                remove_unclaimed(&app.db, &app.ingest, id).await?;
            }
            ended?;
            Err(fault)
        }
    }
}

/// How an upload whose bytes came ended. Either way the image is no longer `saving`.
enum Taken {
    /// The import has it.
    Over,
    /// The image is `killed`.
    Refused(Fault),
}

/// Compares the checksums and hands the image to the import. After an error the image is still `saving`.
async fn take_over(
    app: &App,
    caller: &Caller,
    image: &Image,
    upload: UploadId,
    sums: Sums,
) -> Result<Taken, Fault> {
    let id = image.id;
    let size_bytes = sums.size_bytes;
    let checksums = Checksums::from(sums);
    let op = caller.draft().on("image", id, image.facts.name.clone());
    if let Err(fault) = refuse_mismatch(app, image, upload, &checksums, &op).await? {
        return Ok(Taken::Refused(fault));
    }
    let original = Original { bytes: size_bytes, checksums };
    let details = serde_json::json!({ "bytes": size_bytes, "sha256": original.checksums.sha256 });
    let job = (new_id(), "{}");
    match app.db.finish_upload(upload, &original, job, None, &op.clone().with(details)).await {
        Err(error @ DbError::Quota { .. }) => {
            Ok(Taken::Refused(refuse_full(app, image, upload, error, op).await?))
        }
        ended => Ok(ended.map(|()| Taken::Over)?),
    }
}

/// Lets the image be sent again. What cannot be written now, as on a full disk, is written as soon as it can.
async fn put_back(app: &App, id: UploadId, reason: String) -> Result<(), DbError> {
    match app.db.abort_upload(id, &reason, None).await {
        Err(error) if error.is_passing() => {
            tracing::error!(upload = %id, error = super::fault::chain(&error), "cannot end an upload; tried again");
            let app = app.clone();
            task::spawn("upload-abort", async move {
                let mut ended = false;
                while !ended && !app.closing.is_cancelled() {
                    tokio::time::sleep(ABORT_AGAIN).await;
                    ended =
                        !app.db.abort_upload(id, &reason, None).await.is_err_and(|error| error.is_passing());
                }
            });
            Ok(())
        }
        ended => ended,
    }
}

/// Kills an image whose file is not the expected one: the inner error is the answer to its sender.
pub(super) async fn refuse_mismatch(
    app: &App,
    image: &Image,
    upload: UploadId,
    checksums: &Checksums,
    op: &Draft,
) -> Result<Result<(), Fault>, Fault> {
    let Some((name, expected, got)) = first_mismatch(&image.expected, checksums) else { return Ok(Ok(())) };
    let reason = format!("the file's {name} is {got}, expected {expected}");
    reject(app, image, upload, &reason, op.clone()).await?;
    Ok(Err(Fault::conflict(reason).hint("the file was not kept; get it again from its source")))
}

/// Kills an image whose file has no room in its project's quota: kept, it would fill the disk at nobody's charge. The answer
/// to its sender.
pub(super) async fn refuse_full(
    app: &App,
    image: &Image,
    upload: UploadId,
    error: DbError,
    op: Draft,
) -> Result<Fault, Fault> {
    reject(app, image, upload, &error.to_string(), op).await?;
    Ok(error.into())
}

/// Nothing of a wrong file is kept.
async fn reject(app: &App, image: &Image, upload: UploadId, reason: &str, op: Draft) -> Result<(), Fault> {
    let (originals, id) = (Arc::clone(&app.ingest.originals), image.id);
    blocking(move || originals.remove(id)).await?;
    app.db.fail_upload(upload, reason, &op.failed(reason)).await?;
    Ok(())
}

/// Writes the stream into the original's file.
async fn write_all(
    app: &App,
    id: ImageId,
    announced: Option<u64>,
    room: Reservation,
    stream: Body,
    stop: &CancellationToken,
) -> Result<Sums, Fault> {
    let originals = Arc::clone(&app.ingest.originals);
    let (feed, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    // One thread for the whole upload: the stream goes on while it waits for the disk.
    let writing = tokio::task::spawn_blocking(move || {
        let mut taken_bytes = 0;
        let done = originals.create(id).and_then(|writer| write_pieces(writer, pieces, &mut taken_bytes));
        (taken_bytes, done)
    });
    let received = tokio::select! {
        received = take(app, announced, room, stream, feed) => received,
        () = stop.cancelled() => Err(Fault::conflict("the image was cancelled while its file came")),
    };
    // Waited for on every path: what is dropped removes its file, and only then may the next upload begin.
    let (taken_bytes, done) = writing.await.map_err(|error| Fault::internal(&error))?;
    let left = announced.map_or(PIECE_BYTES as u64, |all| all.saturating_sub(taken_bytes));
    let writer = files(done).map_err(|fault| with_room(app, left, fault))?;
    let room = match received {
        Ok(room) => room,
        Err(fault) => {
            // Half a TiB takes its time to go: not on a thread that serves others.
            drop(tokio::task::spawn_blocking(move || drop(writer)).await);
            return Err(fault);
        }
    };
    let sums = blocking(move || writer.finish()).await.map_err(|fault| with_room(app, 0, fault));
    drop(room);
    sums
}

/// Writes what comes; `taken_bytes` counts what the disk took.
fn write_pieces(
    mut writer: OriginalWriter,
    mut pieces: mpsc::Receiver<Bytes>,
    taken_bytes: &mut u64,
) -> Result<OriginalWriter, ContentError> {
    while let Some(piece) = pieces.blocking_recv() {
        let bytes = piece.len() as u64;
        writer.write(piece)?;
        *taken_bytes += bytes;
    }
    Ok(writer)
}

/// Hands what comes to the writer, in pieces of [`PIECE_BYTES`]. Ends without a fault if the writer stopped: the writer's own
/// fault says why.
async fn take(
    app: &App,
    announced: Option<u64>,
    mut room: Reservation,
    stream: Body,
    feed: mpsc::Sender<Bytes>,
) -> Result<Reservation, Fault> {
    let mut stream = stream.into_data_stream();
    let silence = app.config.upload_silence;
    let mut pace = Pace::new();
    let mut next_look = ROOM_STEP_BYTES;
    let (mut total, mut piece) = (0_u64, BytesMut::with_capacity(PIECE_BYTES));
    loop {
        let next = tokio::time::timeout(silence, stream.next()).await;
        let next = next.map_err(|_| Fault::too_slow(format!("no byte came for {} s", silence.as_secs())))?;
        let Some(bytes) = next else { break };
        let mut bytes = bytes.map_err(|_| Fault::bad_request("the connection ended before the file did"))?;
        total += bytes.len() as u64;
        if total > app.config.image_bytes_max {
            return Err(too_large(total, app.config.image_bytes_max));
        }
        pace.add(bytes.len() as u64)?;
        if announced.is_none() && total > next_look {
            next_look = total + ROOM_STEP_BYTES;
            room = set_aside(app, ROOM_STEP_BYTES).await?;
        }
        metrics::counter_add(metrics::UPLOAD_BYTES, bytes.len() as u64);
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(PIECE_BYTES - piece.len()));
            piece.extend_from_slice(&part);
            if piece.len() == PIECE_BYTES {
                let full = std::mem::replace(&mut piece, BytesMut::with_capacity(PIECE_BYTES));
                if feed.send(full.freeze()).await.is_err() {
                    return Ok(room);
                }
            }
        }
    }
    if total == 0 {
        return Err(Fault::bad_request("the file is empty"));
    }
    if let Some(expected) = announced.filter(|expected| *expected != total) {
        return Err(Fault::bad_request(format!("{total} bytes came, {expected} were announced")));
    }
    // Refused only by a writer that stopped.
    drop(feed.send(piece.freeze()).await);
    Ok(room)
}

/// A fault of the disk; a full one is told with its figures. `needed_bytes` more were to be written.
fn with_room(app: &App, needed_bytes: u64, fault: Fault) -> Fault {
    match fault.parts().code {
        "no_space" => Fault::no_space(format!(
            "the controller's disk became full: {needed_bytes} more bytes are needed, {} are free",
            app.ingest.space.left_bytes()
        ))
        .hint(ROOM_HINT),
        _ => fault,
    }
}

/// Runs work on files where it may wait.
///
/// # Errors
/// The fault that the error is.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ContentError> + Send + 'static,
) -> Result<T, Fault> {
    files(tokio::task::spawn_blocking(work).await.map_err(|error| Fault::internal(&error))?)
}

/// What came of work on files.
fn files<T>(done: Result<T, ContentError>) -> Result<T, Fault> {
    done.map_err(|error| match &error {
        ContentError::NoSpace { .. } => {
            tracing::error!(error = super::fault::chain(&error), "the controller's disk is full");
            Fault::no_space("the controller's disk is full").hint(ROOM_HINT)
        }
        _ => Fault::internal(&error),
    })
}

/// Watches the rate of a sender.
pub(super) struct Pace {
    since: std::time::Instant,
    bytes: u64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { since: clock::monotonic(), bytes: 0 }
    }

    pub(super) fn add(&mut self, bytes: u64) -> Result<(), Fault> {
        self.bytes += bytes;
        let now = clock::monotonic();
        if now.duration_since(self.since) < RATE_WINDOW {
            return Ok(());
        }
        if self.bytes < RATE_BYTES_PER_S_MIN * RATE_WINDOW.as_secs() {
            return Err(Fault::too_slow(format!("fewer than {RATE_BYTES_PER_S_MIN} bytes per second came")));
        }
        *self = Self { since: now, bytes: 0 };
        Ok(())
    }
}
