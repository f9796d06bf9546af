//! `POST /api/v1/images/form`: a record and its file in one form, as browsers send it.
//!
//! **What.** `multipart/form-data` with the fields of an image first and the file last; the file streams to disk as it comes.
//!
//! **Why the file last.** A record that is wrong is told before gigabytes are sent, and nothing has to be kept in memory
//! until it is known whose file it is.
//!
//! **Why the bytes before the file are counted apart.** The parser gathers what comes until it has found a boundary and the end
//! of a part's head; limits of fields hold only behind these. What never has any would fill the memory.
//!
//! **Invariants.** At most [`FIELDS_MAX`] fields of [`FIELD_BYTES_MAX`] bytes are read, and [`BEGIN_BYTES_MAX`] in all before the
//! file begins. Who sends a form holds a place among the uploads from its first byte on. A record whose file did not come is
//! taken away again, also when the client is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, BodyDataStream};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Request, State};
use axum::http::StatusCode;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::{Image as ImageBody, ImageCreate, TAGS_MAX};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::app::App;
use super::body::{BODY_TIME_MAX, JSON_BYTES_MAX};
use super::caller::Caller;
use super::fault::Fault;
use super::images::{make, shown, take_back};
use super::places::Held;
use crate::db::images::Image;
use crate::db::tokens::Scope;
use crate::logic::catalog::{DESCRIPTION_CHARS_MAX, PROPERTIES_MAX};
use crate::task;

/// Most fields before the file: bounds the time and memory of a form.
const FIELDS_MAX: usize = 32 + TAGS_MAX + PROPERTIES_MAX;
/// Longest value of a field, bytes.
const FIELD_BYTES_MAX: usize = 4 * DESCRIPTION_CHARS_MAX;
/// Most bytes before the file, with all that stands between fields: protects the memory. The same record as JSON is smaller.
const BEGIN_BYTES_MAX: usize = 4 * JSON_BYTES_MAX;
/// Parts of the file that wait for the disk.
const PARTS_WAITING_MAX: usize = 4;

/// A form: the fields of `ImageCreate` (checksums as `sha256`, `sha512`, `md5`, `blake3`; `property` as `NAME=VALUE` and `tag`, as often
/// as needed), then `file`.
#[derive(Debug, utoipa::ToSchema)]
#[expect(dead_code, reason = "what the OpenAPI page shows of the form")]
pub struct ImageForm {
    /// Name in the catalog.
    name: String,
    /// The file; it must be the last field.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Makes an image from a form of a browser: fields first, the file last.
#[utoipa::path(post, path = "/api/v1/images/form", tag = "images",
    request_body(content = ImageForm, content_type = "multipart/form-data"),
    responses((status = 202, description = "All bytes are on disk; the import runs", body = ImageBody),
        (status = 408, description = "The sender stalled", body = ErrorBody),
        (status = 409, description = "The name is taken, or the checksum is wrong", body = ErrorBody),
        (status = 413, description = "The file, or what comes before it, is larger than allowed", body = ErrorBody),
        (status = 415, description = "The body is no form", body = ErrorBody),
        (status = 507, description = "No room", body = ErrorBody)))]
pub async fn form(
    State(app): State<App>,
    caller: Caller,
    request: Request,
) -> Result<(StatusCode, axum::Json<ImageBody>), Fault> {
    let place = super::upload::place_of(&app, &caller)?;
    let begin = Arc::new(Begin::default());
    let mut request = request.map(|body| Body::from_stream(begin.count(body)));
    // The file has limits of its own.
    DefaultBodyLimit::disable().apply(&mut request);
    let form = Multipart::from_request(request, &()).await;
    let form =
        form.map_err(|_| Fault::media_type("the body must be a form: multipart/form-data with a boundary"))?;
    let (feed, parts) = mpsc::channel(PARTS_WAITING_MAX);
    let (told, fields) = tokio::sync::oneshot::channel();
    // The form is read by a task of its own: its file borrows it, and what takes the file outlives this call.
    // It ends with whoever waits for it, whatever still comes.
    let reader = AbortOnDropHandle::new(task::spawn("upload-form", read(form, begin, told, feed)));
    let fields = tokio::time::timeout(BODY_TIME_MAX, fields).await;
    let fields = fields.map_err(|_| Fault::too_slow("the fields of the form took too long"))?;
    let create = fields.map_err(|_| Fault::bad_request("the form ended early"))??;
    let (work_app, work_caller) = (app.clone(), caller.clone());
    // Record and file are a task's own: a client that goes away in between must not leave the one without the other.
    let work = async move {
        let _reader = reader;
        take_whole(&work_app, &work_caller, place, create, Body::from_stream(ReceiverStream::new(parts)))
            .await
    };
    let image = task::spawn("form", work).await.map_err(|error| Fault::internal(&error))??;
    Ok((StatusCode::ACCEPTED, axum::Json(shown(&app, &caller, &image).await?)))
}

/// Makes the record and takes its file; a record whose file did not come is taken away again.
async fn take_whole(
    app: &App,
    caller: &Caller,
    place: Held<Scope>,
    create: ImageCreate,
    file: Body,
) -> Result<Image, Fault> {
    let image = make(app, caller, create).await?;
    let taken = super::upload::accept(app, caller, place, image.clone(), None, file).await;
    if let Err(fault) = &taken {
        take_back(app, caller, &image, fault).await;
    }
    taken
}

/// What a form's fields say, told once, before its file.
type Told = tokio::sync::oneshot::Sender<Result<ImageCreate, Fault>>;

/// What came of a form before its file.
#[derive(Debug, Default)]
struct Begin {
    bytes: AtomicUsize,
    over: AtomicBool,
}

impl Begin {
    /// The bytes of `body`, which end with an error once too many came before the file.
    fn count(self: &Arc<Self>, body: Body) -> Counted {
        Counted { stream: body.into_data_stream(), begin: Arc::clone(self), gave: false }
    }

    /// The file begins: it has limits of its own.
    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// What is wrong with a form that the parser cannot read.
    fn fault(&self, error: &MultipartError) -> Fault {
        if !self.over.load(Ordering::Relaxed) && self.bytes.load(Ordering::Relaxed) > BEGIN_BYTES_MAX {
            let text = format!("a form has at most {BEGIN_BYTES_MAX} bytes before its file");
            return Fault::too_large(text).hint("the file is the field `file`, and the last one");
        }
        Fault::bad_request(format!("the form cannot be read: {error}"))
    }
}

/// The body of a form; see [`Begin::count`].
struct Counted {
    stream: BodyDataStream,
    begin: Arc<Begin>,
    gave: bool,
}

impl Stream for Counted {
    type Item = Result<Bytes, axum::BoxError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let before_file = !this.begin.over.load(Ordering::Relaxed);
        // The parser takes all that is there before it looks at any of it. Piece by piece it sees the file begin in time.
        if before_file && std::mem::take(&mut this.gave) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = ready!(Pin::new(&mut this.stream).poll_next(context));
        if let Some(Ok(bytes)) = next.as_ref().filter(|_| before_file) {
            this.gave = true;
            let came = this.begin.bytes.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
            if came > BEGIN_BYTES_MAX {
                return Poll::Ready(Some(Err("too much before the file".into())));
            }
        }
        Poll::Ready(next.map(|bytes| bytes.map_err(Into::into)))
    }
}

/// Reads the fields, then feeds the file.
async fn read(
    mut form: Multipart,
    begin: Arc<Begin>,
    told: Told,
    feed: mpsc::Sender<Result<Bytes, MultipartError>>,
) {
    let mut record = Record::default();
    loop {
        let field = match form.next_field().await {
            Ok(Some(field)) => field,
            Ok(None) => {
                drop(told.send(Err(Fault::invalid("file", "the form has no file"))));
                return;
            }
            Err(error) => {
                drop(told.send(Err(begin.fault(&error))));
                return;
            }
        };
        if field.name() == Some("file") {
            begin.end();
            if told.send(record.finish()).is_ok() {
                feed_file(field, &feed).await;
            }
            return;
        }
        if let Err(fault) = record.take(field, &begin).await {
            drop(told.send(Err(fault)));
            return;
        }
    }
}

async fn feed_file(mut file: Field<'_>, feed: &mpsc::Sender<Result<Bytes, MultipartError>>) {
    while let Some(part) = file.next().await {
        // Nobody takes it any more: the upload was refused.
        if feed.send(part).await.is_err() {
            return;
        }
    }
}

/// The record as its fields come.
#[derive(Default)]
struct Record {
    fields: Map<String, Value>,
    n_fields: usize,
}

impl Record {
    async fn take(&mut self, mut field: Field<'_>, begin: &Begin) -> Result<(), Fault> {
        self.n_fields += 1;
        if self.n_fields > FIELDS_MAX {
            return Err(Fault::bad_request(format!(
                "a form has at most {FIELDS_MAX} fields before its file"
            )));
        }
        let name = field.name().unwrap_or_default().to_owned();
        let mut value = Vec::new();
        while let Some(part) = field.next().await {
            let part = part.map_err(|error| begin.fault(&error))?;
            if value.len() + part.len() > FIELD_BYTES_MAX {
                return Err(Fault::invalid(name, format!("is longer than {FIELD_BYTES_MAX} bytes")));
            }
            value.extend_from_slice(&part);
        }
        let text = String::from_utf8(value).map_err(|_| Fault::invalid(&name, "is no UTF-8"))?;
        // What a browser sends of a field that was left empty.
        if text.is_empty() && name != "name" {
            return Ok(());
        }
        self.put(name, text)
    }

    fn put(&mut self, name: String, text: String) -> Result<(), Fault> {
        let value = match name.as_str() {
            "public" | "protected" | "password_enabled" => match text.as_str() {
                "true" | "on" | "1" => Value::Bool(true),
                "false" | "off" | "0" => Value::Bool(false),
                _ => return Err(Fault::invalid(name, "must be true or false")),
            },
            "min_disk_bytes" | "min_memory_bytes" | "disk_bytes" => {
                let number = text.trim().parse::<u64>();
                Value::from(number.map_err(|_| Fault::invalid(&name, "must be a number of bytes"))?)
            }
            "sha256" | "sha512" | "md5" | "blake3" => {
                self.below("expected", name, text.trim().to_ascii_lowercase());
                return Ok(());
            }
            "tag" => {
                let tags = self.fields.entry("tags").or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(tags) = tags {
                    tags.push(Value::String(text));
                }
                return Ok(());
            }
            "property" => {
                let Some((key, value)) = text.split_once('=') else {
                    return Err(Fault::invalid(name, "write NAME=VALUE"));
                };
                self.below("properties", key.to_owned(), value.to_owned());
                return Ok(());
            }
            _ => Value::String(text),
        };
        self.fields.insert(name, value);
        Ok(())
    }

    fn below(&mut self, parent: &str, name: String, text: String) {
        let map = self.fields.entry(parent).or_insert_with(|| Value::Object(Map::new()));
        if let Some(map) = map.as_object_mut() {
            map.insert(name, Value::String(text));
        }
    }

    fn finish(self) -> Result<ImageCreate, Fault> {
        if self.fields.contains_key("source") {
            return Err(Fault::invalid("source", "a form brings its file"));
        }
        super::body::read_value(Value::Object(self.fields))
    }
}
