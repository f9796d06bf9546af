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

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header;
use axum::http::request::Parts;
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
        let body = Limited::new(request.into_body(), JSON_BYTES_MAX).collect();
        let read = tokio::time::timeout(BODY_TIME_MAX, body).await;
        let read =
            read.map_err(|_| Fault::too_slow(format!("the body took over {} s", BODY_TIME_MAX.as_secs())))?;
        let bytes = read.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                return Fault::too_large(format!("the body is larger than {JSON_BYTES_MAX} bytes"));
            }
            Fault::bad_request("the body ended early")
        })?;
        parse(&bytes.to_bytes()).map(Self)
    }
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

/// Reads a value that was put together from other parts of a request.
///
/// # Errors
/// 400 with the field that is wrong.
pub(super) fn read_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Fault> {
    parse(value.to_string().as_bytes())
}

/// The field that serde names in "unknown field `x`" and "missing field `x`".
fn named(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("unknown field `").or_else(|| text.strip_prefix("missing field `"))?;
    rest.split('`').next()
}

/// Query parameters of type `T`; unknown ones are refused by the type.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri).map_err(|error| {
            let text = error.body_text();
            let text = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, text)| text).to_owned();
            let fault = Fault::bad_request(format!("the query cannot be used: {text}"));
            // serde_path_to_error prefixes the parameter: `limit: invalid digit …`.
            match named(&text).or_else(|| text.split_once(": ").map(|(field, _)| field)) {
                Some(field) if field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => {
                    fault.field(field)
                }
                _ => fault,
            }
        })?;
        Ok(Self(query.0))
    }
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
        check("{}", Some("image"));
        check(r#"{"image":"x"}"#, Some("image"));
        check(&format!(r#"{{"image":"{image}","targets":{{"all":true}},"nonsense":1}}"#), Some("nonsense"));
        check(&format!(r#"{{"image":"{image}","targets":{{"zone":"z1"}}}}"#), Some("targets.zone"));
        check(&format!(r#"{{"image":"{image}","targets":{{"all":"yes"}}}}"#), Some("targets.all"));
        check(&format!(r#"{{"image":"{image}","targets":{{"all":true}}}} {{}}"#), None);
        check("\u{0}\u{1}", None);
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        check(&"[".repeat(100_000), Some("[0]"));
    }
}
