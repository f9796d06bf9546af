//! What every answer gets: a request id, a body if it failed, a line in the log, a count.
//!
//! **What.** The outermost layer. It gives each request an id (never one that the caller sent), catches panics, turns
//! [`Fault`]s and bare statuses of other layers into `ErrorBody`s, says when a connection is of no further use, and logs
//! what happened.
//!
//! **Why outermost.** The router's own 404 and 405, the body limit's 413 and a panic come from below without a body that
//! a program can read.
//!
//! **Invariants.** `Authorization` is never logged. A path is logged as its pattern, so ids do not become metric labels.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use tracing::Instrument as _;

use super::fault::{Fault, Parts};
use super::rest::Rest;
use crate::{clock, metrics};

/// Header with the id of the request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request, as an extension.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// The layer; see the module.
pub async fn finish(mut request: Request, next: Next) -> Response {
    let id = uuid::Uuid::now_v7().simple().to_string();
    request.extensions_mut().insert(RequestId(id.clone()));
    let pattern = request.extensions().get::<MatchedPath>().map_or("(none)", MatchedPath::as_str).to_owned();
    let (method, version) = (request.method().clone(), request.version());
    // The path of a download link holds its secret.
    let path = if super::fetch::is_link(request.uri().path()) { &pattern } else { request.uri().path() };
    let span = tracing::info_span!("request", id, %method, path);
    let begun = clock::monotonic();
    let (request, rest) = Rest::of(request);
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response = answered.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Fault::internal_text(format!("panic: {text}")).into_response()
    });
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        response = span.in_scope(|| written(response, &id));
    }
    let status = response.status();
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    // HTTP/2 ends the stream of such a request and goes on with the others.
    if version <= Version::HTTP_11 && !rest.is_read().await {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let took = clock::monotonic().duration_since(begun);
    metrics::request(method.as_str(), &pattern, status.as_u16(), took);
    span.in_scope(|| log(status, took));
    response
}

fn log(status: StatusCode, took: Duration) {
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    if status.is_server_error() {
        tracing::warn!(status = status.as_u16(), ms, "answered");
    } else {
        tracing::debug!(status = status.as_u16(), ms, "answered");
    }
}

/// Gives a failed answer its body, keeping the headers that say more (`allow`, `content-range`).
fn written(response: Response, id: &str) -> Response {
    let (mut head, body) = response.into_parts();
    let fault = match head.extensions.remove::<Fault>() {
        Some(fault) => fault,
        // A layer or extractor of the framework answered in plain text.
        None => Fault::of_status(head.status),
    };
    drop(body);
    let Parts { status, code, retry_after_s, cause, .. } = fault.parts().clone();
    if let Some(cause) = cause {
        tracing::error!(cause, code, "call failed");
    }
    let bytes = serde_json::to_vec(&fault.body(id)).expect("an error body is plain texts");
    head.status = status;
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after_s {
        head.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        head.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    let body = Body::from(bytes);
    debug_assert!(body.size_hint().exact().is_some(), "an error body has a length");
    Response::from_parts(head, body)
}
