//! `/api/v1/usage`: what projects have stored, and for how long.
//!
//! **Why CSV is made page by page.** A cloud may have any number of projects; the answer is a stream of pages, so that no more
//! than one is in memory.
//! **Invariants.** A name that a spreadsheet would run as a formula is text in the CSV.

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use hearth_protocol::api::usage::Usage as UsageBody;
use hearth_protocol::api::{PAGE_ROWS_MAX, Page};
use hearth_protocol::id::ProjectId;
use serde::Deserialize;

use super::app::App;
use super::body::Query;
use super::caller::Caller;
use super::export::guarded;
use super::fault::Fault;
use super::when;
use crate::clock;
use crate::db::PageRequest;
use crate::db::usage::{Usage, UsageFilter};
use crate::logic::authz::Scope;

/// Range of a report when nobody says: 30 days, in microseconds.
const RANGE_US_DEFAULT: i64 = 30 * 24 * 3600 * 1_000_000;
/// Columns of the CSV.
const COLUMNS: [&str; 7] =
    ["domain", "domain_name", "project", "project_name", "images", "bytes", "byte_days"];

/// Form of the report.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReportFormat {
    /// A page of a list.
    #[default]
    Json,
    /// All rows, for a spreadsheet.
    Csv,
}

/// What to report.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// Begin of the range, RFC 3339; absent: 30 days before its end.
    from: Option<String>,
    /// End of the range; absent: now.
    to: Option<String>,
    /// This project alone.
    project: Option<ProjectId>,
    /// `json` (default) or `csv`.
    #[serde(default)]
    #[param(inline)]
    format: ReportFormat,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// Images and bytes now, and bytes times days over a range, of every project inside the caller's scope.
#[utoipa::path(get, path = "/api/v1/usage", tag = "projects", params(UsageQuery),
    responses((status = 200, content((Page<UsageBody> = "application/json"), (String = "text/csv")))))]
pub async fn report(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<UsageQuery>,
) -> Result<Response, Fault> {
    let filter = filter(&app, &caller, &query).await?;
    if query.format == ReportFormat::Csv {
        return csv(app, filter).await;
    }
    let page = app.db.usage(&filter, &PageRequest { limit: query.limit, cursor: query.cursor }).await?;
    let page = Page { items: page.items.into_iter().map(body).collect::<Vec<_>>(), next: page.next };
    Ok(axum::Json(page).into_response())
}

async fn filter(app: &App, caller: &Caller, query: &UsageQuery) -> Result<UsageFilter, Fault> {
    let time =
        |field, text: &Option<String>| text.as_deref().map(|text| when::parse(field, text)).transpose();
    let to_us = time("to", &query.to)?.unwrap_or_else(clock::unix_us);
    let from_us = time("from", &query.from)?.unwrap_or_else(|| to_us.saturating_sub(RANGE_US_DEFAULT));
    if from_us >= to_us {
        return Err(Fault::invalid("from", "from must lie before to"));
    }
    if let Some(id) = query.project {
        let found = app.db.project(id).await?;
        let seen = found.filter(|found| caller.principal.scope.covers(Scope::Project(found.domain, id)));
        seen.ok_or_else(|| Fault::not_found("project", id))?;
    }
    Ok(UsageFilter { scope: caller.scope(), project: query.project, from_us, to_us })
}

fn body(usage: Usage) -> UsageBody {
    let Usage { project, project_name, domain, domain_name, images, bytes, byte_days } = usage;
    UsageBody { project, project_name, domain, domain_name, images, bytes, byte_days }
}

/// The whole report as a stream of pages. The first is read before the answer begins, so that its errors have a status.
async fn csv(app: App, filter: UsageFilter) -> Result<Response, Fault> {
    let first = PageRequest::first(PAGE_ROWS_MAX);
    let page = app.db.usage(&filter, &first).await?;
    let head = rows(&page.items, true)?;
    let rest = futures::stream::try_unfold(page.next, move |next| {
        let app = app.clone();
        async move {
            let Some(cursor) = next else { return Ok(None) };
            let request = PageRequest { limit: Some(PAGE_ROWS_MAX), cursor: Some(cursor) };
            let page = app.db.usage(&filter, &request).await.map_err(std::io::Error::other)?;
            let text = rows(&page.items, false).map_err(|_| std::io::Error::other("writing CSV"))?;
            Ok::<_, std::io::Error>(Some((text, page.next)))
        }
    });
    let stream = futures::StreamExt::chain(futures::stream::iter([Ok(head)]), rest);
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"usage.csv\""),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

fn rows(items: &[Usage], with_head: bool) -> Result<String, Fault> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let head = with_head.then(|| COLUMNS.map(str::to_owned));
    for record in head.into_iter().chain(items.iter().map(record)) {
        writer.write_record(record).map_err(|error| Fault::internal(&error))?;
    }
    let bytes = writer.into_inner().map_err(|error| Fault::internal_text(error.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn record(line: &Usage) -> [String; COLUMNS.len()] {
    [
        line.domain.to_string(),
        guarded(&line.domain_name).into_owned(),
        line.project.to_string(),
        guarded(&line.project_name).into_owned(),
        line.images.to_string(),
        line.bytes.to_string(),
        line.byte_days.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::new_id;

    fn line(name: &str) -> Usage {
        Usage {
            project: new_id(),
            project_name: name.to_owned(),
            domain: new_id(),
            domain_name: "d".to_owned(),
            images: 1,
            bytes: 2,
            byte_days: 3,
        }
    }

    /// QU-2: the CSV is safe to open.
    #[test]
    fn no_name_is_run_as_a_formula() {
        for name in ["=1+1", "+1", "-1", "@SUM(A1)", "＝1"] {
            let text = rows(&[line(name)], false).unwrap();
            assert!(text.contains(&format!(",'{name},")), "{text}");
        }
        let text = rows(&[line("\n=1")], false).unwrap();
        assert!(text.contains(",\"'\n=1\","), "{text:?}");
        let text = rows(&[line("a, \"b\"")], true).unwrap();
        assert!(text.starts_with("domain,domain_name,project,") && text.contains("\"a, \"\"b\"\"\",1,2,3"));
    }
}
