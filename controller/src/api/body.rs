//! What comes in: JSON bodies, query parameters and path parameters, with refusals that name the field.
//!
//! **What.** Extractors in place of axum's own, whose refusals are plain text.
//!
//! **Why JSON is read here.** Size and time of a body are bounded in one place, and serde's path to the wrong value
//! becomes the `field` of the error.
//!
//! **Invariants.** At most [`JSON_BYTES_MAX`] bytes of a body are ever held; a body that takes longer than
//! [`BODY_TIME_MAX`] is given up.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Uri, header};
use hearth_protocol::api::PAGE_ROWS_MAX;
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;

use super::fault::Fault;
use crate::logic::catalog::{DESCRIPTION_CHARS_MAX, PROPERTIES_MAX, PROPERTY_VALUE_CHARS_MAX};

/// Largest JSON body: protects the controller's memory. Ten times the largest record, escapes included.
pub const JSON_BYTES_MAX: usize = 1 << 20;
/// Longest time for a JSON body: a slow sender must not keep a connection for ever.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(30);

const _: () =
    assert!(JSON_BYTES_MAX > 6 * (DESCRIPTION_CHARS_MAX + PROPERTIES_MAX * PROPERTY_VALUE_CHARS_MAX));

/// A JSON body of type `T`.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind != "application/json" {
            return Err(Fault::media_type("the body must be JSON: send `Content-Type: application/json`"));
        }
        parse(&whole(request.into_body()).await?).map(Self)
    }
}

/// All bytes of a small body.
///
/// # Errors
/// 400 for one that ends early, 408, 413.
pub async fn whole(body: Body) -> Result<Bytes, Fault> {
    let body = Limited::new(body, JSON_BYTES_MAX).collect();
    let read = tokio::time::timeout(BODY_TIME_MAX, body).await;
    let read =
        read.map_err(|_| Fault::too_slow(format!("the body took over {} s", BODY_TIME_MAX.as_secs())))?;
    let bytes = read.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            return Fault::too_large(format!("the body is larger than {JSON_BYTES_MAX} bytes"));
        }
        Fault::bad_request("the body ended early")
    })?;
    Ok(bytes.to_bytes())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let text = error.inner().to_string();
        let path = error.path().to_string();
        let fault = Fault::bad_request(format!("the body is not what this call takes: {text}"));
        match (path.as_str(), named(&text)) {
            ("." | "?", Some(field)) => fault.field(field),
            (".", None) | ("?", None) => fault,
            // The path of an unknown or missing field ends at its parent.
            (path, Some(field)) if !path.ends_with(field) => fault.field(format!("{path}.{field}")),
            (path, _) => fault.field(path),
        }
    })?;
    json.end().map_err(|_| Fault::bad_request("there is more after the JSON value"))?;
    Ok(value)
}

/// The field that serde names in "unknown field `x`" and "missing field `x`".
fn named(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("unknown field `").or_else(|| text.strip_prefix("missing field `"))?;
    rest.split('`').next()
}

/// Query parameters of type `T`; unknown ones are refused by the type. A parameter that is a list is given again.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        parse_query(&parts.uri).map(Self)
    }
}

/// The query parameters of an address.
///
/// # Errors
/// 400 with the name of the parameter.
pub fn parse_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Fault> {
    let text = uri.query().unwrap_or_default();
    if !is_utf8(text) {
        return Err(Fault::bad_request("the query is not UTF-8"));
    }
    // The same bound for every list, checked where every list comes by.
    let limit = text.split('&').find_map(|pair| pair.strip_prefix("limit=")?.parse::<u64>().ok());
    if limit.is_some_and(|limit| !(1..=u64::from(PAGE_ROWS_MAX)).contains(&limit)) {
        return Err(Fault::invalid("limit", format!("a page has 1 to {PAGE_ROWS_MAX} rows")));
    }
    let query = serde_html_form::Deserializer::from_bytes(text.as_bytes());
    let query = serde_path_to_error::deserialize(query).map_err(|error| {
        let text = error.inner().to_string();
        let fault = Fault::bad_request(format!("the query cannot be used: {text}"));
        match (named(&text), error.path().to_string()) {
            (Some(field), _) => fault.field(field),
            (None, path) if path == "." || path == "?" => fault,
            // The path of one value of a list ends with its number.
            (None, path) => fault.field(path.split(['[', '.']).next().unwrap_or_default()),
        }
    })?;
    Ok(query)
}

/// Whether a query is UTF-8 once its escapes are undone. What is not would become other characters silently.
fn is_utf8(query: &str) -> bool {
    let mut bytes = Vec::with_capacity(query.len());
    let mut rest = query.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..2).filter(|_| *first == b'%').and_then(|two| std::str::from_utf8(two).ok());
        match digits.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &tail[2..]).0,
            None => (bytes.push(*first), rest = tail).0,
        }
    }
    String::from_utf8(bytes).is_ok()
}

/// Parameters of the path. One that is no id names nothing: 404.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        let path = path.map_err(|error| Fault::not_found("such thing:", error.body_text()))?;
        Ok(Self(path.0))
    }
}

#[cfg(test)]
mod tests {
    use hearth_protocol::api::prewarm::PrewarmCreate;

    use super::*;

    #[track_caller]
    fn check(text: &str, field: Option<&str>) {
        let fault = parse::<PrewarmCreate>(text.as_bytes()).unwrap_err();
        assert_eq!(fault.parts().field.as_deref(), field, "{:?}", fault.parts());
        assert_eq!(fault.parts().status.as_u16(), 400);
    }

    #[test]
    fn a_wrong_value_is_named_by_its_path() {
        let image = "01234567-89ab-7def-8123-456789abcdef";
        check("", None);
        check("{", None);
        check("[]", None);
        check("{}", Some("targets"));
        check(r#"{"image":"x"}"#, Some("image"));
        check(&format!(r#"{{"image":"{image}","targets":{{"all":true}},"nonsense":1}}"#), Some("nonsense"));
        check(&format!(r#"{{"image":"{image}","targets":{{"zone":"z1"}}}}"#), Some("targets.zone"));
        check(&format!(r#"{{"image":"{image}","targets":{{"all":"yes"}}}}"#), Some("targets.all"));
        check(&format!(r#"{{"image":"{image}","targets":{{"all":true}}}} {{}}"#), None);
        check("\u{0}\u{1}", None);
    }

    #[test]
    fn a_query_of_other_bytes_than_text_is_seen() {
        assert!(is_utf8("q=%E9%95%9C&x=100%&y=%zz&z=+"));
        assert!(!is_utf8("q=%FF") && !is_utf8("q=%E9%95"));
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        check(&"[".repeat(100_000), Some("[0]"));
    }
}
