//! How a call fails: the one place where an error becomes a status.
//!
//! **What.** A [`Fault`] holds status, stable word, text, hint and field. It travels as an extension of the response;
//! [`super::finish`] writes the body, because only it knows the id of the request.
//!
//! **Why not a status per error type.** Programs decide on the word and the status; two handlers that map the same
//! cause to different ones would make both useless.
//!
//! **Invariants.** The cause of an internal error goes to the log, never to the caller.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hearth_protocol::api::error::ErrorBody;

use crate::db::DbError;
use crate::logic::catalog::FieldError;
use crate::passwords::PasswordError;

/// Seconds after which a caller may try again when something is busy.
const RETRY_AFTER_S: u32 = 2;

/// Why a call did not do what it should. Small, because it travels in every `Result`.
#[derive(Clone, Debug)]
pub struct Fault(Box<Parts>);

/// What a fault says.
#[derive(Clone, Debug)]
pub struct Parts {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable word for programs.
    pub code: &'static str,
    /// What went wrong and where.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The field of the request that is wrong.
    pub field: Option<String>,
    /// When to try again, seconds.
    pub retry_after_s: Option<u32>,
    /// For the log alone.
    pub cause: Option<String>,
}

impl Fault {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Parts {
            status,
            code,
            message,
            hint: None,
            field: None,
            retry_after_s: None,
            cause: None,
        }))
    }

    /// 400: a field of the request cannot be used.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        let mut fault = Self::new(StatusCode::BAD_REQUEST, "invalid", message);
        fault.0.field = Some(field.into());
        fault
    }

    /// 400: the request as a whole cannot be used.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// 401: no valid token. Says nothing about why: that would tell a guesser something.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "this call needs a valid token").hint(
            "`hearth login` gets one, `hearth token create` makes one for a program, which sends it as \
                 `Authorization: Bearer hrt_…`",
        )
    }

    /// 403: the token is valid and its role does not allow this.
    #[must_use]
    pub fn denied(action: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "denied", format!("your token's role does not allow {action}"))
            .hint("`hearth whoami` shows the role; an administrator of the scope can give another token")
    }

    /// 403: what is seen belongs to somebody else, whose business this is.
    #[must_use]
    pub fn foreign(what: &str, action: &str) -> Self {
        let message = format!("this {what} belongs to another project: {action} is for its owner");
        Self::new(StatusCode::FORBIDDEN, "denied", message)
            .hint("ask a member of that project, or an administrator of its domain")
    }

    /// 404: there is no such thing, or it may not be seen.
    pub fn not_found(what: &str, key: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("no {what} {key}"))
    }

    /// 408: the request came too slowly.
    pub fn too_slow(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)
    }

    /// 409: the state does not allow the call.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 409: what was asked for is being made; the same call will do later.
    pub fn not_ready(message: impl Into<String>) -> Self {
        let mut fault = Self::new(StatusCode::CONFLICT, "not_ready", message);
        fault.0.retry_after_s = Some(RETRY_AFTER_S);
        fault
    }

    /// 409: bytes were sent for another place of an upload than the next one.
    pub fn offset(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "offset", message)
    }

    /// 409: somebody uses it.
    pub fn in_use(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "in_use", message)
    }

    /// 410: it was there and is not any more.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "gone", message)
    }

    /// 422: an idempotency key that was used for something else.
    pub fn key_reused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "key_reused", message)
    }

    /// 428: a change that does not say on which revision it is based.
    #[must_use]
    pub fn revision_required() -> Self {
        let message = "this change needs the header If-Match with the record's revision";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "revision_required", message)
            .field("if-match")
            .hint("read the record and send its `revision` (the header `etag`) back as If-Match")
    }

    /// 409: there would be more than is allowed.
    pub fn quota(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "quota", message)
    }

    /// 413: more bytes than allowed.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 415: not the kind of body this call takes.
    pub fn media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", message)
    }

    /// 401: a login that is none. One text for every cause, so that nobody learns which names exist.
    #[must_use]
    pub fn login_failed() -> Self {
        let message = "user, password or scope is wrong, or the user may not log in now";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .hint("the domain is `default` unless you name another; an administrator can set a new password")
    }

    /// 429: more often than allowed.
    pub fn too_many(message: impl Into<String>, retry_after_ms: u64) -> Self {
        let mut fault = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message);
        fault.0.retry_after_s = Some(u32::try_from(retry_after_ms.div_ceil(1000)).unwrap_or(u32::MAX).max(1));
        fault
    }

    /// 507: no room.
    pub fn no_space(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", message)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut fault = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        fault.0.retry_after_s = Some(RETRY_AFTER_S);
        fault
    }

    /// 500: a defect or a broken disk; `cause` goes to the log.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        Self::internal_text(chain(cause))
    }

    /// 500 with a cause in words.
    pub fn internal_text(cause: impl Into<String>) -> Self {
        let mut fault = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the controller failed; its log says more",
        );
        fault.0.hint = Some("search the controller's log for this request's id".to_owned());
        fault.0.cause = Some(cause.into());
        fault
    }

    /// A fault for a bare status that some layer answered with.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        let (code, message) = match status {
            StatusCode::NOT_FOUND => ("not_found", "there is no such path"),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method", "this path does not know that method; see the header `allow`")
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => {
                ("timeout", "the request took too long")
            }
            StatusCode::PAYLOAD_TOO_LARGE => ("too_large", "the body is larger than this path takes"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ("media_type", "this path does not take that content type"),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                ("range", "the file has no such range; see the header `content-range`")
            }
            StatusCode::PRECONDITION_FAILED => ("revision", "the record or file changed since it was read"),
            status if status.is_client_error() => ("invalid", "the request cannot be understood"),
            _ => ("internal", "the controller failed; its log says more"),
        };
        let fault = Self::new(status, code, message);
        if status == StatusCode::NOT_FOUND {
            return fault.hint("/api/v1/openapi.json lists every path");
        }
        fault
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// The body that a caller gets.
    #[must_use]
    pub fn body(&self, request_id: &str) -> ErrorBody {
        let Parts { code, message, hint, field, .. } = &*self.0;
        ErrorBody {
            code: (*code).to_owned(),
            message: message.clone(),
            hint: hint.clone(),
            field: field.clone(),
            request_id: request_id.to_owned(),
        }
    }

    /// What it says.
    #[must_use]
    pub const fn parts(&self) -> &Parts {
        &self.0
    }
}

/// An error and everything behind it, in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<FieldError> for Fault {
    fn from(error: FieldError) -> Self {
        Self::invalid(error.field.clone(), error.to_string())
    }
}

impl From<PasswordError> for Fault {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Self::unavailable(error.to_string()),
            PasswordError::Hash(_) => Self::internal(&error),
        }
    }
}

impl From<DbError> for Fault {
    fn from(error: DbError) -> Self {
        let text = error.to_string();
        match error {
            DbError::NotFound { what, key } => Self::not_found(what, key),
            DbError::Exists { .. } => {
                Self::conflict(text).hint("take another name, or delete the other one first")
            }
            DbError::Quota { cure, .. } => Self::quota(text).hint(cure),
            DbError::State { .. } => Self::conflict(text),
            DbError::LastAdministrator => Self::conflict(text)
                .hint("make another one first: hearth token create NAME --role admin --scope system"),
            DbError::Revision { .. } => Self::new(StatusCode::PRECONDITION_FAILED, "revision", text),
            DbError::Cursor => Self::invalid("cursor", text),
            DbError::Conflict { .. } => Self::unavailable(text),
            DbError::Open { .. } => {
                let mut fault = Self::unavailable("the database does not answer");
                fault.0.cause = Some(chain(&error));
                fault
            }
            other => Self::internal(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_an_internal_error_stays_inside() {
        let error = DbError::Value { table: "t", column: "c", given: "secret".into(), expected: "x".into() };
        let fault = Fault::from(error);
        let parts = fault.parts();
        assert_eq!(parts.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!parts.message.contains("secret"));
        assert!(parts.cause.as_deref().is_some_and(|cause| cause.contains("secret")));
    }

    #[test]
    fn each_store_error_has_its_status() {
        for (error, status, code) in [
            (DbError::NotFound { what: "image", key: "x".into() }, 404, "not_found"),
            (DbError::Exists { what: "image", key: "x".into() }, 409, "conflict"),
            (DbError::Revision { what: "image", key: "x".into(), found: 2, expected: 1 }, 412, "revision"),
            (DbError::Cursor, 400, "invalid"),
            (DbError::LastAdministrator, 409, "conflict"),
            (DbError::Conflict { attempts: 60 }, 503, "unavailable"),
        ] {
            let fault = Fault::from(error);
            assert_eq!((fault.parts().status.as_u16(), fault.parts().code), (status, code));
        }
    }
}
