//! `/api/v1/usage`: what projects have stored, and for how long.
//!
//! **Why CSV is made page by page.** A cloud may have any number of projects; the answer is a stream of pages, so that no more
//! than one is in memory.
//! **Invariants.** A report as CSV holds a place among the exports. A name that a spreadsheet would run as a formula is text in
//! it.

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
use super::export::sending::{self, Sink};
use super::export::{self, guarded};
use super::fault::{Fault, chain};
use super::when;
use crate::db::PageRequest;
use crate::db::usage::{Usage, UsageFilter};
use crate::logic::authz::Scope;
use crate::{clock, task};

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
        return csv(app, &caller, filter).await;
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

/// The whole report, written page by page. The first is read before the answer begins, so that its errors have a status.
async fn csv(app: App, caller: &Caller, filter: UsageFilter) -> Result<Response, Fault> {
    let place = export::place_of(&app, caller)?;
    let page = app.db.usage(&filter, &PageRequest::first(PAGE_ROWS_MAX)).await?;
    let head = rows(&page.items, true)?;
    let (mut sink, body) = sending::body();
    task::spawn("export", async move {
        match send(&app, &filter, &mut sink, head, page.next).await {
            Ok(()) => {
                // The place first: who has the whole file may ask for another.
                drop(place);
                sink.finish();
            }
            Err(why) => tracing::info!(why, "an export ended early"),
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"usage.csv\""),
    ];
    Ok((headers, body).into_response())
}

/// Sends `text` and all pages behind it; says why it could not.
async fn send(
    app: &App,
    filter: &UsageFilter,
    sink: &mut Sink,
    mut text: String,
    mut next: Option<String>,
) -> Result<(), String> {
    loop {
        sink.send(text.into()).await.map_err(|stopped| stopped.to_string())?;
        let Some(cursor) = next else { return Ok(()) };
        let request = PageRequest { limit: Some(PAGE_ROWS_MAX), cursor: Some(cursor) };
        let page = app.db.usage(filter, &request).await.map_err(|error| chain(&error))?;
        text = rows(&page.items, false).map_err(|fault| fault.parts().message.clone())?;
        next = page.next;
    }
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
