//! `GET /api/v1/images/{id}/file`: the original, byte for byte as it came in; and [`serve_file`] for all files that go out.
//!
//! **What.** tower-http's `ServeFile` reads ranges; this module gives the answer an entity tag made from the sha256, so a
//! broken download goes on (`If-Range`) and never mixes two files.
//!
//! **Why the tag is compared here.** `ServeFile` knows only the time of a file; two originals may have the same.
//!
//! **Invariants.** The whole file or the asked range, or an error: never other bytes. None go out before the log says who takes
//! them.

use std::path::PathBuf;
use std::sync::PoisonError;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskFormat, ImageStatus, Role};
use tower_http::services::ServeFile;

use super::app::App;
use super::body::Path;
use super::caller::Caller;
use super::fault::Fault;
use super::images::find;
use crate::clock;
use crate::db::images::Image;
use crate::db::operations::Draft;
use crate::ingest::unpack::{Packing, packing_of};

/// Begin of a file name in `Content-Disposition`, characters: browsers cut longer ones.
const FILE_NAME_CHARS_MAX: usize = 120;

/// Bytes that go out.
#[derive(Clone, Debug)]
pub struct FileToServe {
    /// Where they lie.
    pub path: PathBuf,
    /// SHA-256 of all of them, lower-case hex: the entity tag.
    pub sha256: String,
    /// Name under which the receiver saves them; see [`name_with`].
    pub name: String,
    /// Row of the operation log: who takes them out. `None`: the caller notes it.
    pub op: Option<Draft>,
}

/// The original's bytes; `Range`, `If-Range` and `If-None-Match` are understood.
#[utoipa::path(get, path = "/api/v1/images/{id}/file", tag = "images", params(("id" = ImageId, Path)),
    responses((status = 200, description = "The file", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "A range of it"), (status = 304, description = "You have it already"),
        (status = 409, description = "The original is not kept", body = ErrorBody),
        (status = 416, description = "There is no such range", body = ErrorBody)))]
pub async fn download(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    request: Request,
) -> Result<Response, Fault> {
    let image = find(&app, &caller, id).await?;
    must_be_open(&caller, &image)?;
    let op = caller.draft().on("image", id, image.facts.name.clone());
    let Some(file) = original_of(&app, &image).await? else {
        let why = if image.content.is_some() { "its original was not kept" } else { "it has no bytes yet" };
        return Err(Fault::conflict(format!("image {} cannot be downloaded: {why}", image.facts.name)));
    };
    serve_file(&app, FileToServe { op: Some(op), ..file }, request).await
}

/// The original of an image as a file to serve, which the caller notes; `None`: it is not kept.
///
/// # Errors
/// 500.
pub async fn original_of(app: &App, image: &Image) -> Result<Option<FileToServe>, Fault> {
    let sha256 = image.checksums.sha256.clone().filter(|_| image.original_kept);
    let Some(sha256) = sha256 else { return Ok(None) };
    let path = app.ingest.originals.path(image.id);
    let packed = path.clone();
    let packing = tokio::task::spawn_blocking(move || packing_of(&packed)).await;
    // A file that is missing is told where it is opened.
    let packing = packing.map_err(|error| Fault::internal(&error))?.unwrap_or(None);
    let name = name_with(&image.facts.name, image.format, packing);
    Ok(Some(FileToServe { path, sha256, name, op: None }))
}

/// Answers `request` with a file or a range of it. Whoever calls has asked for the rights.
///
/// # Errors
/// 503 if too many downloads run or the log cannot be written; 416 for a range that is not there; 500 if the file is missing.
pub async fn serve_file(app: &App, file: FileToServe, mut request: Request) -> Result<Response, Fault> {
    let place = app.downloads.clone().try_acquire_owned();
    let place =
        place.map_err(|_| Fault::unavailable("too many downloads run; try again when one has ended"))?;
    let FileToServe { path, sha256, name, op } = file;
    let tag = format!("\"{sha256}\"");
    let head_alone = request.method() == Method::HEAD;
    let headers = request.headers_mut();
    let has = |tags: &HeaderValue| {
        tags.to_str().is_ok_and(|tags| tags == "*" || tags.split(',').any(|given| given.trim() == tag))
    };
    if headers.get(header::IF_NONE_MATCH).is_some_and(has) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    // A range of another file is worth nothing: then the whole one.
    if headers.get(header::IF_RANGE).is_some_and(|given| given.as_bytes() != tag.as_bytes()) {
        headers.remove(header::RANGE);
    }
    for name in [header::IF_RANGE, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE] {
        headers.remove(name);
    }
    let answer = ServeFile::new(&path).try_call(request).await.map_err(|error| Fault::internal(&error))?;
    if answer.status() == StatusCode::NOT_FOUND {
        return Err(Fault::internal_text(format!("the file {} is missing: run fsck", path.display())));
    }
    let mut answer = answer.map(|body| Body::new(HoldingPlace { body, _place: place })).into_response();
    // Who asks for the head alone takes nothing.
    if let Some(op) = op.filter(|_| !head_alone && answer.status().is_success()) {
        note(app, &op, &sha256, begins(&answer)).await?;
    }
    let headers = answer.headers_mut();
    headers.remove(header::LAST_MODIFIED);
    for (key, value) in [
        (header::ETAG, tag),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, disposition(&name)),
        (header::HeaderName::from_static("x-checksum-sha256"), sha256),
    ] {
        headers.insert(key, HeaderValue::from_str(&value).map_err(|error| Fault::internal(&error))?);
    }
    Ok(answer)
}

/// Whether this answer sends the begin of the file: a download that is continued is one and the same.
fn begins(answer: &Response) -> bool {
    let from_0 = |range: &HeaderValue| range.as_bytes().starts_with(b"bytes 0-");
    answer.status() == StatusCode::OK
        || (answer.status() == StatusCode::PARTIAL_CONTENT
            && answer.headers().get(header::CONTENT_RANGE).is_some_and(from_0))
}

/// What lies in the recycle bin is given to nobody, what is deactivated to administrators alone.
pub(super) fn must_be_open(caller: &Caller, image: &Image) -> Result<(), Fault> {
    let refused = |why: &str| Fault::conflict(format!("image {} {why}", image.facts.name));
    match image.status {
        ImageStatus::PendingDelete => {
            Err(refused("is in the recycle bin").hint("restore it first: hearth image restore"))
        }
        ImageStatus::Deactivated if caller.principal.role != Role::Admin => {
            Err(refused("is deactivated").hint("an administrator of its project can reactivate it"))
        }
        _ => Ok(()),
    }
}

/// Who takes image bytes out stands in the log before they go: each time from the file's begin, and once an hour for parts that
/// begin elsewhere.
async fn note(app: &App, op: &Draft, sha256: &str, begins: bool) -> Result<(), Fault> {
    let told = || app.told_downloads.lock().unwrap_or_else(PoisonError::into_inner);
    if !begins && told().is_told(&op.who, sha256, clock::monotonic()) {
        return Ok(());
    }
    if let Err(error) = app.db.record(op).await {
        tracing::error!(error = super::fault::chain(&error), "a download is refused: it cannot be noted");
        return Err(Fault::unavailable("the download cannot be noted in the operation log; try again"));
    }
    told().told(&op.who, sha256, clock::monotonic());
    Ok(())
}

/// The header that names the file: once in plain ASCII for simple programs, once as RFC 6266 wants it.
fn disposition(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let ascii: String = name.chars().take(FILE_NAME_CHARS_MAX).map(plain).collect();
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", encoded(name))
}

/// The name of a file of an image: the image's own, cut to what browsers take and without what steers paths, with the endings
/// of its format and of how it is packed.
#[must_use]
pub fn name_with(name: &str, format: Option<DiskFormat>, packing: Option<Packing>) -> String {
    let format = format.map(|format| format!(".{format}")).unwrap_or_default();
    let packing = packing.map_or("", Packing::ending);
    let name = name.strip_suffix(packing).unwrap_or(name);
    let name = name.strip_suffix(&format).unwrap_or(name).trim_start_matches('.');
    let name = if name.is_empty() { "image" } else { name };
    let plain = name.chars().map(|c| if matches!(c, '/' | '\\') { '_' } else { c });
    plain.take(FILE_NAME_CHARS_MAX).chain(format.chars()).chain(packing.chars()).collect()
}

/// A name as RFC 5987 wants it; it can stand in a path too.
#[must_use]
pub fn encoded(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// A body that keeps its place among the downloads until it is sent or given up.
struct HoldingPlace<B> {
    body: B,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl<B: axum::body::HttpBody + Unpin> axum::body::HttpBody for HoldingPlace<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_header() {
        assert_eq!(encoded("a b\"\r\nX: 1"), "a%20b%22%0D%0AX%3A%201");
        assert_eq!(encoded("系"), "%E7%B3%BB");
        for name in [
            "a\"; filename=b",
            "<script>alert(1)</script>",
            "x\r\nset-cookie: a=b",
            "\u{0}\u{7f}\u{202e}",
            "../../etc/passwd",
            "系统",
        ] {
            let header = disposition(name);
            let (ascii, rest) =
                header.strip_prefix("attachment; filename=\"").unwrap().split_once('"').unwrap();
            assert!(ascii.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{header}");
            let utf8 = rest.strip_prefix("; filename*=UTF-8''").unwrap();
            assert!(utf8.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.%".contains(&b)), "{header}");
        }
    }

    #[test]
    fn a_name_ends_in_its_format_once_and_however_long_it_is() {
        let vmdk = |name| name_with(name, Some(DiskFormat::Vmdk), None);
        assert_eq!((vmdk("noble"), vmdk("noble.vmdk")), ("noble.vmdk".into(), "noble.vmdk".into()));
        assert_eq!(name_with("noble.qcow2", Some(DiskFormat::Vhd), None), "noble.qcow2.vhd");
        assert_eq!(name_with("noble", None, None), "noble");
        for name in ["noble", "noble.qcow2", "noble.qcow2.gz"] {
            let packed = name_with(name, Some(DiskFormat::Qcow2), Some(Packing::Gzip));
            assert_eq!(packed, "noble.qcow2.gz", "{name}");
        }
        assert_eq!(name_with("noble", Some(DiskFormat::Raw), Some(Packing::Zstd)), "noble.raw.zst");
        assert_eq!(vmdk("../a\\b"), "_a_b.vmdk", "nothing steers a path");
        assert_eq!(vmdk("..."), "image.vmdk");
        let long = name_with(&"系".repeat(255), Some(DiskFormat::Raw), None);
        assert!(long.ends_with(".raw") && long.chars().count() == FILE_NAME_CHARS_MAX + 4, "{long}");
    }
}
