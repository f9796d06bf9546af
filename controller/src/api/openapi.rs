//! `GET /api/v1/openapi.json`: the contract as programs read it.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::words::{ImageSort, SortOrder};
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi as _};

/// The finished text: routes and bodies do not change while the program runs.
static TEXT: OnceLock<String> = OnceLock::new();

#[derive(Debug, utoipa::OpenApi)]
#[openapi(
    info(
        title = "Hearth controller",
        description = "Images of virtual machines, and the caches that hold them. Every refusal is an `ErrorBody`, and so is an \
            answer with 500 (the controller failed; its log has the request id), 503 (not now; see the header \
            `retry-after`), 504 (the call took too long) or 507 (no room), which no call promises.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    // Words of query parameters stand in no body.
    components(schemas(ErrorBody, ImageSort, SortOrder)),
    modifiers(&Bearer)
)]
struct Head;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut OpenApi) {
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("hrt_<64 hex digits>").build();
        let components = openapi.components.get_or_insert_with(Default::default);
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// Title, token scheme and shared schemas.
#[must_use]
pub fn head() -> OpenApi {
    Head::openapi()
}

/// Keeps the text that [`show`] answers with; the first one stays.
pub fn publish(openapi: &OpenApi) {
    TEXT.get_or_init(|| openapi.to_json().unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")));
}

/// This text.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "system",
    responses((status = 200, description = "The OpenAPI text", content_type = "application/json", body = Object)))]
pub async fn show() -> Response {
    let text = TEXT.get().cloned().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
