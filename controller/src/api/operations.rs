//! `/api/v1/operations`: the operation log.

use axum::extract::State;
use hearth_protocol::api::Page;
use hearth_protocol::api::operation::{LogVerification, Operation as OperationBody};
use serde::Deserialize;

use super::app::App;
use super::body::Query;
use super::fault::Fault;
use super::when;
use crate::db::PageRequest;
use crate::db::operations::{Operation, OperationFilter};

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Id of the target.
    target: Option<String>,
    /// Kind of the target, for example `image`.
    target_kind: Option<String>,
    /// Name of the token, id of the agent, or `system`.
    who: Option<String>,
    /// For example `image.upload`.
    action: Option<String>,
    /// Not older than this, RFC 3339.
    from: Option<String>,
    /// Older than this, RFC 3339.
    to: Option<String>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// The log, newest first.
#[utoipa::path(get, path = "/api/v1/operations", tag = "operations", params(ListQuery),
    responses((status = 200, body = Page<OperationBody>)))]
pub async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<OperationBody>>, Fault> {
    let time =
        |field, text: &Option<String>| text.as_deref().map(|text| when::parse(field, text)).transpose();
    let filter = OperationFilter {
        from_us: time("from", &query.from)?,
        to_us: time("to", &query.to)?,
        target_kind: query.target_kind,
        target_id: query.target,
        who: query.who,
        action: query.action,
    };
    let page = PageRequest { limit: query.limit, cursor: query.cursor };
    let page = app.db.operations(&filter, &page).await?;
    Ok(axum::Json(Page { items: page.items.into_iter().map(body).collect(), next: page.next }))
}

/// Reads the whole chain and compares every hash.
#[utoipa::path(get, path = "/api/v1/operations/verify", tag = "operations",
    responses((status = 200, body = LogVerification)))]
pub async fn verify(State(app): State<App>) -> Result<axum::Json<LogVerification>, Fault> {
    let found = app.db.verify_operations().await?;
    Ok(axum::Json(LogVerification {
        intact: found.first_bad.is_none(),
        sealed: found.sealed,
        unsealed: found.unsealed,
        first_bad_seq: found.first_bad,
        head: found.head,
    }))
}

fn body(row: Operation) -> OperationBody {
    let draft = row.draft;
    OperationBody {
        id: draft.id.to_string(),
        seq: row.seq,
        at: when::text(row.time_us),
        who: draft.who,
        action: draft.action,
        target_kind: draft.target_kind,
        target_id: draft.target_id,
        target_name: draft.target_name,
        result: draft.outcome.to_string(),
        details: draft.details,
    }
}
