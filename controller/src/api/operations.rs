//! `/api/v1/operations`: the operation log, as a whole and of one record.
//!
//! **What.** Lists, newest first; one operation; files of them; the check of the chain. [`answer`] serves the log of any
//! kind of record: a route for a further kind finds its record and names it.
//!
//! **Invariants.** The whole log is for readers of the system. Of an image or host image, those who own it see what was done to
//! it, but for where its copies are.

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::operation::{LogAnchor, LogFinding, LogVerification, Operation as OperationBody};
use hearth_protocol::id::{DomainId, HostImageId, ImageId, LocationId, OperationId, ProjectId};
use hearth_protocol::words::Visibility;
use serde::Deserialize;

use super::app::App;
use super::body::{Path, Query};
use super::caller::Caller;
use super::export::{self, Cell, Column, Sheet};
use super::fault::Fault;
use super::{host_images, images, when};
use crate::db::PageRequest;
use crate::db::operations::{Draft, Operation, OperationFilter, Outcome, is_about_copies};
use crate::db::verify::Anchor;
use crate::logic::authz::{Action, Resource};
use crate::logic::catalog::check_search;

/// Rows of a page when nobody says: what people look at first.
const PAGE_ROWS: u32 = 20;
/// Digits of a head's hash.
const HEAD_DIGITS: usize = 64;

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Id of the target; not where the path names it.
    target: Option<String>,
    /// Kind of the target, for example `image`; not where the path names it.
    target_kind: Option<String>,
    /// Name of the token, id of the agent or link, or `system`.
    who: Option<String>,
    /// For example `image.upload`.
    action: Option<String>,
    /// `ok` or `failed`.
    result: Option<String>,
    /// Not older than this, RFC 3339.
    from: Option<String>,
    /// Older than this, RFC 3339.
    to: Option<String>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 20.
    limit: Option<u32>,
}

/// How to check.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VerifyQuery {
    /// A head that was kept elsewhere: is it still part of the chain?
    head: Option<String>,
}

macro_rules! column {
    ($name:literal, $usual:literal, $cell:expr) => {
        Column { name: $name, usual: $usual, cell: $cell }
    };
}

/// The columns of a file.
static OPERATIONS: Sheet<OperationBody> = Sheet {
    name: "operations",
    columns: &[
        column!("time", true, |o| Cell::text(&o.at)),
        column!("who", true, |o| Cell::text(&o.who)),
        column!("who_kind", false, |o| Cell::text(&o.who_kind)),
        column!("action", true, |o| Cell::text(&o.action)),
        column!("target_kind", true, |o| Cell::text(&o.target_kind)),
        column!("target_name", true, |o| Cell::text(&o.target_name)),
        column!("target_id", true, |o| Cell::text(&o.target_id)),
        column!("result", true, |o| Cell::text(&o.result)),
        column!("details", true, |o| Cell::text(details_text(o))),
        column!("seq", false, |o| Cell::number(o.seq)),
        column!("id", false, |o| Cell::text(&o.id)),
        column!("hash", false, |o| Cell::maybe(o.hash.as_ref())),
    ],
};

fn details_text(operation: &OperationBody) -> String {
    if operation.details.is_null() { String::new() } else { operation.details.to_string() }
}

/// The log, newest first; with `format` as a file.
#[utoipa::path(get, path = "/api/v1/operations", tag = "operations", params(ListQuery, OptionalExport),
    responses((status = 200, content((Page<OperationBody> = "application/json"), (String = "text/csv"),
            (Vec<u8> = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"))),
        (status = 413, description = "Too many rows for one file", body = ErrorBody),
        (status = 507, description = "No room to write an Excel file", body = ErrorBody)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    RawQuery(raw): RawQuery,
) -> Result<Response, Fault> {
    answer(app, &caller, None, raw).await
}

/// What was done to an image, newest first; with `format` as a file. For those who own it.
#[utoipa::path(get, path = "/api/v1/images/{id}/operations", tag = "operations",
    params(("id" = ImageId, Path), ListQuery, OptionalExport),
    responses((status = 200, content((Page<OperationBody> = "application/json"), (String = "text/csv"),
            (Vec<u8> = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"))),
        (status = 413, description = "Too many rows for one file", body = ErrorBody),
        (status = 507, description = "No room to write an Excel file", body = ErrorBody)))]
pub async fn of_image(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Fault> {
    images::find(&app, &caller, id).await?;
    answer(app, &caller, Some(("image", id.to_string())), raw).await
}

/// What was done to a host image, newest first; with `format` as a file. For those who own it.
#[utoipa::path(get, path = "/api/v1/host-images/{id}/operations", tag = "operations",
    params(("id" = HostImageId, Path), ListQuery, OptionalExport),
    responses((status = 200, content((Page<OperationBody> = "application/json"), (String = "text/csv"),
            (Vec<u8> = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"))),
        (status = 413, description = "Too many rows for one file", body = ErrorBody),
        (status = 507, description = "No room to write an Excel file", body = ErrorBody)))]
pub async fn of_host_image(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<HostImageId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Fault> {
    host_images::find(&app, &caller, id).await?;
    answer(app, &caller, Some(("host_image", id.to_string())), raw).await
}

/// What was done to a location, newest first; with `format` as a file. Also of one that was removed.
#[utoipa::path(get, path = "/api/v1/locations/{id}/operations", tag = "operations",
    params(("id" = LocationId, Path), ListQuery, OptionalExport),
    responses((status = 200, content((Page<OperationBody> = "application/json"), (String = "text/csv"),
            (Vec<u8> = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"))),
        (status = 413, description = "Too many rows for one file", body = ErrorBody),
        (status = 507, description = "No room to write an Excel file", body = ErrorBody)))]
pub async fn of_location(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<LocationId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Fault> {
    app.db.location(id).await?.ok_or_else(|| Fault::not_found("location", id))?;
    answer(app, &caller, Some(("location", id.to_string())), raw).await
}

/// As [`export::ExportQuery`], where a file is not all that can be asked for.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it is the OpenAPI text of parameters that `export::split` reads")]
struct OptionalExport {
    /// Answer with a file: `csv` or `xlsx`. Cells of CSV that a spreadsheet would run as a formula begin with `'`.
    #[param(inline)]
    format: Option<export::FileFormat>,
    /// Columns of the file, separated by commas.
    columns: Option<String>,
    /// Begin a CSV file with a byte order mark, so that Excel reads it as UTF-8.
    bom: Option<bool>,
}

/// The log of `target` (kind and id), or all of it, as the query wants it.
///
/// # Errors
/// 400; as [`export::answer`].
pub async fn answer(
    app: App,
    caller: &Caller,
    target: Option<(&'static str, String)>,
    raw: Option<String>,
) -> Result<Response, Fault> {
    let raw = raw.unwrap_or_default();
    let for_tenants = !caller.sees_caches();
    let Some((wanted, list)) = export::split(&raw)? else {
        let query: ListQuery = export::parse_list(&raw)?;
        return Ok(axum::Json(page(&app, target, for_tenants, query).await?).into_response());
    };
    let all = filter(target.clone(), for_tenants, &export::parse_list(&list)?)?;
    if app.db.has_more_operations_than(export::ROWS_MAX, &all).await? {
        return Err(export::too_many());
    }
    let place = app.clone();
    let pages = move |query: String| {
        let (app, target) = (app.clone(), target.clone());
        async move { page(&app, target, for_tenants, export::parse_list(&query)?).await }
    };
    export::answer(&place, caller, &OPERATIONS, wanted, list, pages).await
}

async fn page(
    app: &App,
    target: Option<(&'static str, String)>,
    for_tenants: bool,
    query: ListQuery,
) -> Result<Page<OperationBody>, Fault> {
    let filter = filter(target, for_tenants, &query)?;
    let request = PageRequest { limit: Some(query.limit.unwrap_or(PAGE_ROWS)), cursor: query.cursor };
    let page = app.db.operations(&filter, &request).await?;
    Ok(Page { items: page.items.into_iter().map(body).collect(), next: page.next })
}

fn filter(
    target: Option<(&'static str, String)>,
    for_tenants: bool,
    query: &ListQuery,
) -> Result<OperationFilter, Fault> {
    let texts = [
        ("target", &query.target),
        ("target_kind", &query.target_kind),
        ("who", &query.who),
        ("action", &query.action),
    ];
    for (field, text) in texts {
        text.as_deref().map_or(Ok(()), |text| check_search(field, text))?;
    }
    if let (Some(_), Some((field, _))) = (&target, texts[..2].iter().find(|(_, text)| text.is_some())) {
        return Err(Fault::invalid(*field, format!("the path names the target: leave {field} out")));
    }
    let time =
        |field, text: &Option<String>| text.as_deref().map(|text| when::parse(field, text)).transpose();
    let outcome = query
        .result
        .as_deref()
        .map(|word| word.parse::<Outcome>().map_err(|_| Fault::invalid("result", "result is ok or failed")));
    let (kind, id) = target.map_or_else(
        || (query.target_kind.clone(), query.target.clone()),
        |(kind, id)| (Some(kind.to_owned()), Some(id)),
    );
    Ok(OperationFilter {
        target_kind: kind,
        target_id: id,
        who: query.who.clone(),
        action: query.action.clone(),
        outcome: outcome.transpose()?,
        for_tenants,
        from_us: time("from", &query.from)?,
        to_us: time("to", &query.to)?,
    })
}

/// One operation with its details. Readers of the system see each, others those on images and host images that they own.
#[utoipa::path(get, path = "/api/v1/operations/{id}", tag = "operations", params(("id" = String, Path, description = "Id of the operation")),
    responses((status = 200, body = OperationBody)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<OperationId>,
) -> Result<axum::Json<OperationBody>, Fault> {
    let hidden = || Fault::not_found("operation", id);
    let found = app.db.operation(id).await?.ok_or_else(hidden)?;
    let everything = caller.may_do(Action::OperationList, &Resource::Whole, "operation", id).is_ok();
    if everything || is_of_ones_own(&app, &caller, &found).await? {
        return Ok(axum::Json(body(found)));
    }
    Err(hidden())
}

/// Whether an operation was done to an image or a host image of the caller's, and is not about where copies are.
async fn is_of_ones_own(app: &App, caller: &Caller, found: &Operation) -> Result<bool, Fault> {
    let Draft { target_kind, target_id, action, .. } = &found.draft;
    let (right, resource) = match target_kind.as_str() {
        "image" => {
            let Ok(id) = target_id.parse::<ImageId>() else { return Ok(false) };
            let Some(image) = app.db.image_seen_by(caller.scope(), id).await? else { return Ok(false) };
            (Action::ImageLog, owned(image.domain, image.project, image.facts.visibility))
        }
        "host_image" => {
            let Ok(id) = target_id.parse::<HostImageId>() else { return Ok(false) };
            let Some(merged) = app.db.host_image_seen_by(caller.scope(), id).await? else { return Ok(false) };
            (Action::HostImageLog, owned(merged.domain, merged.project, merged.facts.visibility))
        }
        _ => return Ok(false),
    };
    Ok(!is_about_copies(action) && caller.may_do(right, &resource, "operation", found.draft.id).is_ok())
}

/// What belongs to a project, whoever else may see it.
const fn owned(domain: DomainId, project: ProjectId, visibility: Visibility) -> Resource {
    Resource::Image { domain, project, visibility, share: None }
}

/// Reads the whole chain and compares every hash.
#[utoipa::path(get, path = "/api/v1/operations/verify", tag = "operations", params(VerifyQuery),
    responses((status = 200, body = LogVerification)))]
pub async fn verify(
    State(app): State<App>,
    Query(query): Query<VerifyQuery>,
) -> Result<axum::Json<LogVerification>, Fault> {
    let hex = |head: &str| {
        head.len() == HEAD_DIGITS && head.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    if query.head.as_deref().is_some_and(|head| !hex(head)) {
        return Err(Fault::invalid("head", format!("head is not {HEAD_DIGITS} lower-case hex digits")));
    }
    let found = app.db.verify_operations_from(query.head.as_deref()).await?;
    let finding = |finding: crate::logic::chain::Finding| LogFinding {
        seq: finding.seq,
        last_seq: finding.last_seq,
        id: finding.id,
        flaw: finding.flaw.as_str().to_owned(),
    };
    Ok(axum::Json(LogVerification {
        intact: found.flaws == 0 && (query.head.is_none() || found.known_head.is_some()),
        sealed: found.sealed,
        unsealed: found.unsealed,
        first_bad_seq: found.first_bad,
        head: found.head,
        archived_seq: found.archived,
        findings: found.findings.into_iter().map(finding).collect(),
        flaws: found.flaws,
        known_head_seq: found.known_head,
        anchors: found.anchors.into_iter().map(anchor).collect(),
    }))
}

fn anchor(anchor: Anchor) -> LogAnchor {
    let Anchor { mark, file, told_seq } = anchor;
    LogAnchor { seq: mark.seq, hash: mark.hash, file: Some(file).filter(|file| !file.is_empty()), told_seq }
}

fn body(row: Operation) -> OperationBody {
    let draft = row.draft;
    OperationBody {
        id: draft.id.to_string(),
        seq: row.seq,
        at: when::text(row.time_us),
        who: draft.who,
        who_kind: draft.who_kind.to_string(),
        action: draft.action,
        target_kind: draft.target_kind,
        target_id: draft.target_id,
        target_name: draft.target_name,
        result: draft.outcome.to_string(),
        hash: row.hash,
        details: draft.details,
    }
}
