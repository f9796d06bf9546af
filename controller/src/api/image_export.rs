//! `GET /api/v1/images/export`: the image list as a file.
//!
//! **Why it asks the list's own handler.** Whatever that one filters, sorts or hides holds here too, without a word here.

use axum::extract::{RawQuery, State};
use axum::response::Response;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::Image;

use super::app::App;
use super::body::Query;
use super::caller::Caller;
use super::export::{self, Cell, Column, ExportQuery, Sheet};
use super::fault::Fault;
use super::image_list::{self, ListQuery};

macro_rules! column {
    ($name:literal, $usual:literal, $cell:expr) => {
        Column { name: $name, usual: $usual, cell: $cell }
    };
}

/// The columns, named as in the body of an image.
static IMAGES: Sheet<Image> = Sheet {
    name: "images",
    columns: &[
        column!("id", true, |i| Cell::text(i.id)),
        column!("name", true, |i| Cell::text(&i.name)),
        column!("kind", true, |i| Cell::text(i.kind)),
        column!("status", true, |i| Cell::text(i.status)),
        column!("format", true, |i| Cell::maybe(i.format)),
        column!("visibility", true, |i| Cell::text(i.visibility)),
        column!("domain", false, |i| Cell::text(i.domain)),
        column!("project", true, |i| Cell::text(i.project)),
        column!("os_type", true, |i| Cell::maybe(i.os_type.as_ref())),
        column!("distribution", true, |i| Cell::maybe(i.distribution.as_ref())),
        column!("version", true, |i| Cell::maybe(i.version.as_ref())),
        column!("architecture", true, |i| Cell::maybe(i.architecture.as_ref())),
        column!("virtual_bytes", true, |i| Cell::number(i.virtual_bytes)),
        column!("data_bytes", false, |i| Cell::number(i.data_bytes)),
        column!("stored_bytes", false, |i| Cell::number(i.stored_bytes)),
        column!("original_bytes", true, |i| Cell::number(i.original_bytes)),
        column!("min_disk_bytes", false, |i| Cell::number(i.min_disk_bytes)),
        column!("min_memory_bytes", false, |i| Cell::number(i.min_memory_bytes)),
        column!("protected", true, |i| Cell::text(i.protected)),
        column!("description", true, |i| Cell::maybe(i.description.as_ref())),
        column!("properties", false, |i| Cell::text(pairs(i))),
        column!("reason", false, |i| Cell::text(&i.reason)),
        column!("content", false, |i| Cell::maybe(i.content)),
        column!("sha256", false, |i| Cell::maybe(i.checksums.sha256.as_ref())),
        column!("sha512", false, |i| Cell::maybe(i.checksums.sha512.as_ref())),
        column!("md5", false, |i| Cell::maybe(i.checksums.md5.as_ref())),
        column!("blake3", false, |i| Cell::maybe(i.checksums.blake3.as_ref())),
        column!("cached_at", false, |i| Cell::number(i.cached_at.map(u64::from))),
        column!("revision", false, |i| Cell::Number(i.revision)),
        column!("created_at", true, |i| Cell::text(&i.created_at)),
        column!("updated_at", true, |i| Cell::text(&i.updated_at)),
    ],
};

/// The free properties in one cell.
fn pairs(image: &Image) -> String {
    image.properties.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
}

/// Images that the caller may see as a file, with the filters of the list.
#[utoipa::path(get, path = "/api/v1/images/export", tag = "images", params(ExportQuery, ListQuery),
    responses((status = 200, description = "CSV or Excel", content((String = "text/csv"),
            (Vec<u8> = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"))),
        (status = 413, description = "Too many rows for one file", body = ErrorBody),
        (status = 507, description = "No room to write an Excel file", body = ErrorBody)))]
pub async fn export(
    State(app): State<App>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, Fault> {
    let asked = export::split(&raw.unwrap_or_default())?;
    let (wanted, list) = asked.ok_or_else(|| Fault::invalid("format", "say format=csv or format=xlsx"))?;
    let (place, asker) = (app.clone(), caller.clone());
    let page = move |query: String| {
        let (app, caller) = (app.clone(), caller.clone());
        async move {
            let query: ListQuery = export::parse_list(&query)?;
            let page = image_list::list(State(app), caller, Query(query)).await?.0;
            Ok(Page { items: page.items, next: page.next })
        }
    };
    export::answer(&place, &asker, &IMAGES, wanted, list, page).await
}
