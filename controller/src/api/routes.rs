//! How a route comes to be: with its row in the rights table, its limits and its page in the OpenAPI text.
//!
//! **What.** [`Routes::guarded`] takes an [`Action`] with every handler and puts [`authenticate`] before it;
//! [`Routes::open`] names the few that need no token.
//!
//! **Why a type of our own.** With a bare router a route without a check compiles. Here there is no way to add one, and
//! [`Routes::table`] gives the test of all rights what it must try.
//!
//! **Invariants.** Every operation in the OpenAPI text says how it fails.

use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use hearth_protocol::api::error::ErrorBody;
use tower_http::timeout::TimeoutLayer;
use utoipa::openapi::path::{HttpMethod, Operation, PathItem};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt as _};

use super::app::App;
use super::caller::authenticate;
use super::finish::finish;
use super::once::{self, Kept};
use crate::logic::authz::Action;

/// Begin of every path of the API.
pub const BASE: &str = "/api/v1";
/// Longest time until the head of an answer, but for streams: a stuck call must not keep its place for ever.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// How long a call may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// An answer that comes at once.
    Quick,
    /// A stream with limits of its own.
    Stream,
}

/// One route, for the test of all rights.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// Method in capitals.
    pub method: String,
    /// Path with `{parameters}`.
    pub path: String,
    /// What it does; `None`: open to all.
    pub action: Option<Action>,
}

/// Routes in the making.
pub struct Routes {
    app: App,
    router: OpenApiRouter<App>,
    table: Vec<Row>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Routes {
    /// No routes yet.
    #[must_use]
    pub fn new(app: App) -> Self {
        Self { app, router: OpenApiRouter::with_openapi(super::openapi::head()), table: Vec::new() }
    }

    /// Adds a handler that does `action`.
    #[must_use]
    pub fn guarded(self, action: Action, pace: Pace, routes: UtoipaMethodRouter<App>) -> Self {
        self.with_guard(action, pace, None, routes)
    }

    /// Adds a quick handler that makes something: it does so once for an idempotency key, see [`once`].
    #[must_use]
    pub fn creating(self, action: Action, kept: Kept, routes: UtoipaMethodRouter<App>) -> Self {
        self.with_guard(action, Pace::Quick, Some(kept), routes)
    }

    fn with_guard(
        mut self,
        action: Action,
        pace: Pace,
        kept: Option<Kept>,
        mut routes: UtoipaMethodRouter<App>,
    ) -> Self {
        let guard = from_fn_with_state((self.app.clone(), action), authenticate);
        if kept.is_some() {
            for item in routes.1.paths.values_mut() {
                operations(item).for_each(|(_, operation)| once::describe(operation));
            }
        }
        let repeats = kept.map(|kept| from_fn_with_state((self.app.clone(), kept), once::once));
        let routes = self.noted(Some(action), routes).map(|router| {
            let router = match pace {
                Pace::Quick => router.route_layer(TimeoutLayer::with_status_code(
                    axum::http::StatusCode::GATEWAY_TIMEOUT,
                    ANSWER_TIME_MAX,
                )),
                Pace::Stream => router,
            };
            // Outside the time limit: a call that ran out of time still used its key.
            let router = match repeats {
                Some(repeats) => router.route_layer(repeats),
                None => router,
            };
            router.route_layer(guard)
        });
        self.router = self.router.routes(routes);
        self
    }

    /// Adds a handler that answers everybody. It must show nothing that belongs to anybody.
    #[must_use]
    pub fn open(mut self, routes: UtoipaMethodRouter<App>) -> Self {
        let routes = self.noted(None, routes);
        self.router = self.router.routes(routes);
        self
    }

    /// Notes the rows and completes the OpenAPI text of `routes`.
    fn noted(
        &mut self,
        action: Option<Action>,
        mut routes: UtoipaMethodRouter<App>,
    ) -> UtoipaMethodRouter<App> {
        for (path, item) in &mut routes.1.paths {
            for (method, operation) in operations(item) {
                operation.operation_id = Some(operation_id(method, path));
                describe(operation, action);
                self.table.push(Row { method: method.to_owned(), path: path.clone(), action });
            }
        }
        routes
    }

    /// Every route that was added.
    #[must_use]
    pub fn table(&self) -> &[Row] {
        &self.table
    }

    /// The service and its OpenAPI text.
    pub fn done(self) -> (Router, OpenApi) {
        let (router, openapi) = self.router.split_for_parts();
        (router.layer(from_fn(finish)).with_state(self.app), openapi)
    }
}

/// The operations of a path, with their methods.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let PathItem { get, put, post, delete, patch, head, .. } = item;
    let all = [
        (HttpMethod::Get, get),
        (HttpMethod::Put, put),
        (HttpMethod::Post, post),
        (HttpMethod::Delete, delete),
        (HttpMethod::Patch, patch),
        (HttpMethod::Head, head),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((name(&method), operation.as_mut()?)))
}

const fn name(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "GET",
        HttpMethod::Put => "PUT",
        HttpMethod::Post => "POST",
        HttpMethod::Delete => "DELETE",
        HttpMethod::Patch => "PATCH",
        HttpMethod::Head => "HEAD",
        HttpMethod::Options => "OPTIONS",
        HttpMethod::Trace => "TRACE",
    }
}

/// A name that no other operation has: `get_images_id_file` for `GET /api/v1/images/{id}/file`.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.strip_prefix(BASE).unwrap_or(path).split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty());
    words.fold(method.to_ascii_lowercase(), |id, word| format!("{id}_{word}"))
}

/// Adds what all operations share: how they refuse, and the token. Failures of the controller itself (5xx) are promised by
/// no operation; the head of the text says what they look like.
fn describe(operation: &mut Operation, action: Option<Action>) {
    let mut refusals = Vec::new();
    if let Some(action) = action {
        refusals.extend([
            ("400", "The request cannot be used; `field` names what is wrong"),
            ("401", "No valid token"),
            ("403", "The token's role does not allow it"),
            ("404", "There is no such thing, or the caller may not see it"),
            ("429", "The token asks too often; see the header `retry-after`"),
        ]);
        let schemes: [&str; 0] = [];
        operation.security = Some(vec![SecurityRequirement::new("bearer", schemes)]);
        let rights = format!("Needs the right `{}`.", action.as_str());
        operation.description = Some(
            operation.description.take().map_or_else(|| rights.clone(), |text| format!("{text}\n\n{rights}")),
        );
    }
    let takes_json = |body: &RefOr<RequestBody>| match body {
        RefOr::T(body) => body.content.contains_key("application/json"),
        RefOr::Ref(_) => false,
    };
    if operation.request_body.as_ref().is_some_and(takes_json) {
        refusals.extend([
            ("408", "The body came too slowly"),
            ("413", "The body is too large"),
            ("415", "The body is not JSON"),
        ]);
    }
    operation.responses.responses.retain(|status, _| !status.starts_with('5'));
    for (status, text) in refusals {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response = ResponseBuilder::new().description(text).content("application/json", body).build();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
    }
    // The name above is that of the schema.
    const _: fn() -> Option<ErrorBody> = || None;
}
