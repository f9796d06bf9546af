//! Calls that make something, once: the header `idempotency-key`.
//!
//! **What.** A middleware of the routes that make things. A call with a key claims it, runs, and keeps its answer for a day;
//! the same call again gets that answer, and nothing is made twice.
//!
//! **Why the call runs as a task of its own.** Who sends a key does so because connections break. A call whose client is gone
//! must still end and keep its answer, or the second try would find a claim that nobody ends.
//!
//! **Why only good answers are kept.** A refusal changed nothing: its key is free again, for a call that is put right. "Not now"
//! frees it only if nothing was written before: what was made may be there, though it could not be read back.
//!
//! **Invariants.** Of two calls with one key at most one runs. Answers that hold a secret are never stored. A call that ended
//! without a clear answer is not run again under its key. Keys are per token.

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tracing::Instrument as _;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ContentBuilder, ObjectBuilder, Ref, Required, ResponseBuilder};

use super::app::App;
use super::body::whole;
use super::caller::Caller;
use super::fault::{Fault, chain};
use super::when;
use crate::db::kept_answers::{Claim, Key, State as KeptState};
use crate::db::noting_writes;
use crate::{clock, task};

/// The header.
pub const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is given again.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Longest key, bytes.
const KEY_BYTES_MAX: usize = 128;
/// How long a key is remembered, microseconds: a day.
const KEPT_US: i64 = 24 * 3600 * 1_000_000;
/// When to look again whether a token may have another key, milliseconds (an hour): ended keys are forgotten hourly.
const FULL_WAIT_MS: u64 = 3_600_000;
/// Keys that one token may have at a time: with [`ANSWER_BYTES_MAX`] bounds what it can store here.
const KEYS_MAX: u32 = 10_000;
/// Largest answer that is kept: records are a few kilobytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// A call that runs longer has died with its process, microseconds; the longest takes a minute.
const RUNS_US_MAX: i64 = 120 * 1_000_000;

/// What is kept of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kept {
    /// All of it.
    Answer,
    /// That it was given: it holds a secret.
    Nothing,
}

/// The middleware; see the module.
pub async fn once(State((app, kept)): State<(App, Kept)>, request: Request, next: Next) -> Response {
    match keyed(app, kept, request, next).await {
        Ok(response) => response,
        Err(fault) => fault.into_response(),
    }
}

async fn keyed(app: App, kept: Kept, request: Request, next: Next) -> Result<Response, Fault> {
    let Some(given) = key(request.headers())? else { return Ok(next.run(request).await) };
    let caller = request.extensions().get::<Caller>().ok_or_else(Fault::unauthorized)?;
    let caller = caller.token.id.to_string();
    let (head, body) = request.into_parts();
    let body = whole(body).await?;
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let key = Key {
        key_hash: hash(&[caller.as_bytes(), given.as_bytes()]),
        request_hash: hash(&[head.method.as_str().as_bytes(), path.as_bytes(), &body]),
        caller,
    };
    let (db, claimed) = (app.db.clone(), key.clone());
    let request = Request::from_parts(head, Body::from(body));
    // The claim too: a caller that goes away behind it would leave a key that says for ever that its call runs.
    let running = async move { claim_and_run(app, kept, key, request, next).await };
    match task::spawn("keyed call", running.instrument(tracing::Span::current())).await {
        Ok(response) => response,
        Err(panic) => {
            db.keep_answer(&claimed, KeptState::Unknown, 0, ("", "")).await?;
            Err(Fault::internal(&panic))
        }
    }
}

/// Runs a call whose key is new; answers one whose key is known.
async fn claim_and_run(
    app: App,
    kept: Kept,
    key: Key,
    request: Request,
    next: Next,
) -> Result<Response, Fault> {
    let now_us = clock::unix_us();
    match app.db.claim_key(&key, now_us.saturating_add(KEPT_US), KEYS_MAX).await? {
        Claim::Fresh => {
            let (response, written) = noting_writes(next.run(request)).await;
            Ok(end(&app, kept, &key, response, written).await)
        }
        Claim::TooMany => {
            let message = format!("this token has {KEYS_MAX} idempotency keys of the last 24 hours");
            Err(Fault::too_many(message, FULL_WAIT_MS)
                .hint("leave the key out, or wait until the oldest ones end"))
        }
        Claim::Used { same: false, .. } => {
            Err(Fault::key_reused("this idempotency key was used for another request")
                .field(KEY.as_str())
                .hint("take a new key for each thing to be made"))
        }
        Claim::Used { state: KeptState::Kept, status, body, etag, .. } => answered(status, body, &etag),
        Claim::Used { state, since_us, .. } => Err(unanswered(state, since_us, now_us)),
    }
}

/// The key, if there is one.
fn key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let mut all = headers.get_all(KEY).iter();
    let Some(first) = all.next() else { return Ok(None) };
    let wrong = || {
        Fault::invalid(
            KEY.as_str(),
            format!("an idempotency key is 1 to {KEY_BYTES_MAX} printable ASCII characters"),
        )
    };
    let text = first.to_str().map_err(|_| wrong())?;
    let fits = (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| matches!(b, 0x20..=0x7e));
    if !fits || all.next().is_some() {
        return Err(wrong());
    }
    Ok(Some(text.to_owned()))
}

/// One hash over parts, each with its length before it.
fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize().to_hex().to_string()
}

/// The answer that was kept, for the second call with a key.
fn answered(status: u16, body: String, etag: &str) -> Result<Response, Fault> {
    let status = StatusCode::from_u16(status).map_err(|error| Fault::internal(&error))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (REPLAYED, HeaderValue::from_static("true")),
    ];
    let mut response = (status, headers, body).into_response();
    if !etag.is_empty() {
        let etag = HeaderValue::from_str(etag).map_err(|error| Fault::internal(&error))?;
        response.headers_mut().insert(header::ETAG, etag);
    }
    Ok(response)
}

/// What the second call with a key gets if no answer was kept.
fn unanswered(state: KeptState, since_us: i64, now_us: i64) -> Fault {
    let since = when::text(since_us);
    match state {
        KeptState::Running if now_us.saturating_sub(since_us) < RUNS_US_MAX => {
            let fault = Fault::conflict("the first call with this idempotency key still runs");
            fault.hint("send the same call again in a moment").retry_after(1)
        }
        KeptState::Withheld => Fault::conflict(format!(
            "the call with this idempotency key was done at {since}; its answer was not kept"
        ))
        .hint("secrets are shown once: look for what was made in the list, remove it, and make another with a new key"),
        KeptState::Running | KeptState::Unknown | KeptState::Kept => Fault::conflict(format!(
            "the call with this idempotency key, made at {since}, ended without an answer"
        ))
        .hint("look in the list whether it was done; if not, call again with a new key"),
    }
}

/// What becomes of a claim whose call was answered; `None`: the key is free again.
fn outcome(status: StatusCode, written: bool, keeps: bool) -> Option<KeptState> {
    if status.is_client_error() || (status == StatusCode::SERVICE_UNAVAILABLE && !written) {
        return None;
    }
    Some(match (status.is_success(), keeps) {
        (false, _) => KeptState::Unknown,
        (true, false) => KeptState::Withheld,
        (true, true) => KeptState::Kept,
    })
}

/// Ends the claim as the answer says; `written`: the call may have changed something.
async fn end(app: &App, kept: Kept, key: &Key, response: Response, written: bool) -> Response {
    let status = response.status();
    let db = &app.db;
    let small = response.body().size_hint().exact().is_some_and(|bytes| bytes <= ANSWER_BYTES_MAX);
    let (response, ended) = match outcome(status, written, kept == Kept::Answer && small) {
        None => (response, db.release_key(key).await),
        Some(KeptState::Kept) => {
            let (head, body) = response.into_parts();
            let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_else(|_| Bytes::new());
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let etag = head.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default();
            let ended = db.keep_answer(key, KeptState::Kept, status.as_u16(), (&text, etag)).await;
            (Response::from_parts(head, Body::from(bytes)), ended)
        }
        Some(state) => (response, db.keep_answer(key, state, status.as_u16(), ("", "")).await),
    };
    // What was asked for is done; who repeats the call hears that nobody knows.
    if let Err(error) = ended {
        tracing::error!(error = chain(&error), "cannot keep the answer of a call with an idempotency key");
    }
    response
}

/// Adds the header and what it can lead to to the OpenAPI text of a route.
pub fn describe(operation: &mut Operation) {
    let text = "1 to 128 printable ASCII characters of the caller's choice. The same call with the same key within 24 hours gets \
        the first answer again (with the header `idempotent-replayed: true`), and nothing is made twice. Answers with \
        secrets are not given again: 409 says that the call was done. A refused call frees its key.";
    let parameter = ParameterBuilder::new()
        .name(KEY.as_str())
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(text))
        .schema(Some(
            ObjectBuilder::new()
                .schema_type(utoipa::openapi::schema::Type::String)
                .max_length(Some(KEY_BYTES_MAX)),
        ))
        .build();
    operation.parameters.get_or_insert_with(Vec::new).push(parameter.into());
    for (status, text) in [
        (
            "409",
            "The state does not allow it, or the first call with this idempotency key runs or cannot be answered again",
        ),
        ("422", "The idempotency key was used for another request"),
        ("429", "The token has too many idempotency keys"),
    ] {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response = ResponseBuilder::new().description(text).content("application/json", body).build();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(values: &[&[u8]]) -> Result<Option<String>, Fault> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(KEY, HeaderValue::from_bytes(value).unwrap());
        }
        key(&headers)
    }

    #[test]
    fn a_key_is_short_printable_and_one() {
        assert_eq!(given(&[]).unwrap(), None);
        assert_eq!(given(&[b"a b~"]).unwrap().as_deref(), Some("a b~"));
        assert_eq!(given(&[&[b'k'; 128]]).unwrap().map(|key| key.len()), Some(128));
        let wrong: [&[&[u8]]; 5] = [&[b""], &[&[b'k'; 129]], &["é".as_bytes()], &[b"a\tb"], &[b"a", b"a"]];
        for values in wrong {
            assert_eq!(given(values).unwrap_err().parts().field.as_deref(), Some("idempotency-key"));
        }
    }

    #[test]
    fn not_now_frees_a_key_only_if_nothing_was_written() {
        let of = |status: u16, written| outcome(StatusCode::from_u16(status).unwrap(), written, true);
        assert_eq!((of(503, false), of(503, true)), (None, Some(KeptState::Unknown)));
        assert_eq!((of(409, false), of(409, true)), (None, None), "a refusal frees it");
        assert_eq!((of(500, false), of(504, false)), (Some(KeptState::Unknown), Some(KeptState::Unknown)));
        assert_eq!(of(201, true), Some(KeptState::Kept));
        assert_eq!(outcome(StatusCode::CREATED, true, false), Some(KeptState::Withheld));
    }

    #[test]
    fn parts_cannot_be_shifted_between_each_other() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}
