//! Files that the controller gets by itself: `POST /images/{id}/import`, and `POST /sources/check`.
//!
//! **What.** Checks a URL as far as that shows without asking anybody, queues the fetch, or looks at a source.
//!
//! **Why a look is bounded so tightly.** It makes the controller connect to what a caller names; it must be of no use for
//! finding out what is in the controller's network.
//!
//! **Invariants.** A URL is in no log, no operation and no answer but as [`Source::shown`].

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::Image as ImageBody;
use hearth_protocol::api::source::{ImageSource, SourceFacts};
use hearth_protocol::id::ImageId;

use super::app::App;
use super::body::{Json, Path};
use super::caller::Caller;
use super::fault::Fault;
use super::images::{find, shown};
use crate::db::images::Image;
use crate::db::operations::Draft;
use crate::db::uploads::NewFetch;
use crate::ingest::sources::FetchError;
use crate::jobs::fetch;
use crate::logic::authz::Action;
use crate::logic::source::Source;

/// Fetches the bytes of a queued or killed image from a source.
#[utoipa::path(post, path = "/api/v1/images/{id}/import", tag = "images", params(("id" = ImageId, Path)),
    request_body = ImageSource,
    responses((status = 202, description = "The fetch is queued", body = ImageBody),
        (status = 409, description = "The image has bytes already, or an upload is open", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is no JSON", body = ErrorBody)))]
pub async fn import(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Json(body): Json<ImageSource>,
) -> Result<(StatusCode, axum::Json<ImageBody>), Fault> {
    let image = find(&app, &caller, id).await?;
    let source = read(&app, "url", &body.url)?;
    queue(&app, &caller, &image, &source, &body.url).await?;
    let image = find(&app, &caller, id).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(shown(&app, &caller, &image).await?)))
}

/// Says what a source is, how large, and whether a broken transfer could go on; fetches nothing but its first bytes.
#[utoipa::path(post, path = "/api/v1/sources/check", tag = "images", request_body = ImageSource,
    responses((status = 200, body = SourceFacts),
        (status = 409, description = "The source does not answer as it should", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is no JSON", body = ErrorBody)))]
pub async fn check(
    State(app): State<App>,
    _caller: Caller,
    Json(body): Json<ImageSource>,
) -> Result<axum::Json<SourceFacts>, Fault> {
    let source = read(&app, "url", &body.url)?;
    let place = app.source_checks.clone().try_acquire_owned();
    let _place =
        place.map_err(|_| Fault::unavailable("too many sources are looked at; try again in a moment"))?;
    match app.sources.check(&source).await {
        Ok(facts) => Ok(axum::Json(facts)),
        Err(FetchError::Refused(error)) => Err(Fault::invalid("url", error.to_string())),
        Err(error) => {
            Err(Fault::conflict(error.to_string()).hint("look at the URL, and at the source itself"))
        }
    }
}

/// Reads a URL that stands in `field`.
///
/// # Errors
/// 400 with what is wrong; the URL is not repeated.
pub(super) fn read(app: &App, field: &str, url: &str) -> Result<Source, Fault> {
    app.sources.read(url).map_err(|error| Fault::invalid(field, error.to_string()))
}

/// Queues a fetch.
///
/// # Errors
/// 409 if the image has bytes or an upload, or its project's quota is full.
pub(super) async fn queue(
    app: &App,
    caller: &Caller,
    image: &Image,
    source: &Source,
    url: &str,
) -> Result<(), Fault> {
    super::upload::refuse_over_quota(app, image, None).await?;
    app.db.open_fetch(&fetch_of(caller, (image.id, &image.facts.name), source, url)).await?;
    Ok(())
}

/// The fetch of an image, given by id and name, that the caller asks for.
pub(super) fn fetch_of(
    caller: &Caller,
    (image, name): (ImageId, &str),
    source: &Source,
    url: &str,
) -> NewFetch {
    let details = serde_json::json!({ "source": source.shown() });
    let op = Draft { action: Action::ImageFetch.as_str().to_owned(), ..caller.draft() };
    fetch::new_fetch(image, source, url, op.on("image", image, name).with(details))
}

/// Fetches the file of a killed image once more.
///
/// # Errors
/// 409 if the URL held a secret: it was not kept.
pub(super) async fn again(app: &App, caller: &Caller, image: &Image) -> Result<Image, Fault> {
    if image.source_hidden {
        let text =
            format!("image {} cannot be fetched again: its URL held a password or a query", image.facts.name);
        return Err(Fault::conflict(text).hint("these are not kept: hearth image retry IMAGE --url URL"));
    }
    let source = read(app, "source", &image.source)?;
    queue(app, caller, image, &source, &image.source).await?;
    find(app, caller, image.id).await
}
