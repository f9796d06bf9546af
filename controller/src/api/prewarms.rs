//! `/api/v1/prewarms`: jobs that put one image on many locations.
//!
//! **What.** A job is made with its targets; the reconciler does the rest. A dry run answers from the same snapshot what
//! the job would do.

use std::collections::{HashMap, HashSet};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::prewarm::{
    DryRun, Prewarm as PrewarmBody, PrewarmCreate, PrewarmDetails, PrewarmMade, PrewarmTarget, Unfit,
};
use hearth_protocol::api::{PAGE_ROWS_MAX, Page};
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{ImageId, LocationId, PrewarmGroupId, PrewarmId};
use hearth_protocol::words::{EntryStatus, PrewarmState, Priority};
use serde::Deserialize;

use super::app::App;
use super::body::{Json, Path, Query};
use super::cache::{hold_of, percent};
use super::caller::Caller;
use super::fault::Fault;
use super::host_image_cache::Wanted;
use super::locations::targets;
use super::{campaigns, prewarm_groups, when};
use crate::clock;
use crate::db::images::Image;
use crate::db::locations::Location;
use crate::db::prewarm_targets::{Progress, Target, TargetRow, TargetState};
use crate::db::prewarms::{GroupOf, Prewarm, PrewarmFilter};
use crate::db::{PageRequest, new_id};
use crate::logic::forecast::{self, Candidate, Forecast};

/// Least cap of a location, bytes per second: below it a fetch would not outlive its own time limits.
const RATE_BYTES_PER_S_MIN: u64 = 65_536;
/// Speed of the controller's own interface for a dry run, Mbit/s, where nothing better is known.
const SOURCE_MBPS: u32 = 10_000;

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Id of the image.
    image: Option<ImageId>,
    /// Id of the group: the jobs of one host image.
    group: Option<PrewarmGroupId>,
    /// State.
    state: Option<PrewarmState>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// Makes a job, or for a host image one per disk, or says with `dry_run` what it would do.
#[utoipa::path(post, path = "/api/v1/prewarms", tag = "prewarms", request_body = PrewarmCreate,
    responses((status = 201, body = PrewarmMade), (status = 200, description = "A dry run", body = DryRun),
        (status = 409, description = "An image is not active", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<PrewarmCreate>,
) -> Result<Response, Fault> {
    let wanted = Wanted::find(&app, &caller, create.image, create.host_image).await?;
    let deadline_us = create.deadline.as_deref().map(|text| when::parse("deadline", text)).transpose()?;
    let start_us = create.start.as_deref().map(|text| when::parse("start", text)).transpose()?;
    check(&create, start_us, deadline_us)?;
    let locations = targets(&app, &caller, &create.targets).await?;
    if locations.is_empty() {
        return Err(Fault::invalid("targets", "there is no active location: enrol an agent first"));
    }
    if create.dry_run {
        let forecast = foresee(&app, &wanted, &locations, create.rate_bytes_per_s).await?;
        return Ok(axum::Json(forecast).into_response());
    }
    let jobs = jobs(&caller, &wanted, &create, start_us, deadline_us);
    let (kind, id, name) = wanted.target();
    let details = serde_json::json!({ kind: id, "locations": locations.len(), "targets": create.targets });
    let ids: Vec<_> = locations.iter().map(|location| location.id).collect();
    // The answer is what was written, whatever the caller may see a moment later: refused, it would be asked for again.
    let made = match jobs[0].group.clone() {
        Some(group) => {
            let op = caller.draft().on("prewarm_group", group.id, name).with(details);
            app.db.create_prewarm_group(&jobs, &ids, &op).await?;
            let written = app.db.prewarm_group(group.id).await?;
            PrewarmMade::Group(Box::new(prewarm_groups::details(&app, &written, group).await?.group))
        }
        None => {
            let op = caller.draft().on("prewarm", jobs[0].id, name).with(details);
            app.db.create_prewarm(&jobs[0], &ids, &op).await?;
            let written = app.db.prewarm(jobs[0].id).await?;
            let written = written.ok_or_else(|| Fault::not_found("prewarm job", jobs[0].id))?;
            PrewarmMade::Job(Box::new(shown(&app, &written).await?))
        }
    };
    app.fleet.wake();
    Ok((StatusCode::CREATED, axum::Json(made)).into_response())
}

/// One job per disk, with one group if they are the disks of a host image. Ids are made in the order of the disks.
fn jobs(
    caller: &Caller,
    wanted: &Wanted,
    create: &PrewarmCreate,
    start_us: Option<i64>,
    deadline_us: Option<i64>,
) -> Vec<Prewarm> {
    let now_us = clock::unix_us();
    let later = start_us.is_some_and(|start_us| start_us > now_us);
    let default = if deadline_us.is_some() { Priority::Deadline } else { Priority::Bulk };
    let group = wanted.host_image.as_ref().map(|found| GroupOf {
        id: new_id(),
        host_image: found.id,
        host_image_name: found.facts.name.clone(),
    });
    let job = |(image, content): &(Image, ContentId)| Prewarm {
        id: new_id(),
        image: image.id,
        content: *content,
        image_name: image.facts.name.clone(),
        group: group.clone(),
        state: if later { PrewarmState::Scheduled } else { PrewarmState::Running },
        targets: create.targets.clone(),
        priority: create.priority.unwrap_or(default),
        deadline_us,
        start_us: Some(start_us.unwrap_or(now_us)),
        rate_bytes_per_s: create.rate_bytes_per_s,
        keep: create.keep.clone(),
        created_by: caller.token.name.clone(),
        created_us: now_us,
        finished_us: None,
    };
    wanted.disks.iter().map(job).collect()
}

fn check(create: &PrewarmCreate, start_us: Option<i64>, deadline_us: Option<i64>) -> Result<(), Fault> {
    hold_of(&create.keep)?;
    if create.rate_bytes_per_s.is_some_and(|rate| rate < RATE_BYTES_PER_S_MIN) {
        return Err(Fault::invalid(
            "rate_bytes_per_s",
            format!("at least {RATE_BYTES_PER_S_MIN} bytes per second"),
        ));
    }
    let now_us = clock::unix_us();
    if deadline_us.is_some_and(|deadline_us| deadline_us <= start_us.unwrap_or(now_us).max(now_us)) {
        return Err(Fault::invalid("deadline", "the deadline must be after now and after the start"));
    }
    if create.priority == Some(Priority::Deadline) && deadline_us.is_none() {
        return Err(Fault::invalid("deadline", "priority deadline needs a deadline"));
    }
    Ok(())
}

async fn foresee(
    app: &App,
    wanted: &Wanted,
    locations: &[Location],
    rate_bytes_per_s: Option<u64>,
) -> Result<DryRun, Fault> {
    let mut lacks: HashMap<LocationId, u64> = HashMap::new();
    let mut data_bytes: u64 = 0;
    for content in wanted.contents() {
        let found = app.db.content(content).await?.ok_or_else(|| Fault::not_found("content", content))?;
        data_bytes = data_bytes.saturating_add(found.data_bytes);
        let entries = app.db.entries_of(content).await?;
        let there = entries.iter().filter(|entry| entry.status == EntryStatus::Active);
        let there: HashSet<LocationId> = there.map(|entry| entry.location).collect();
        for location in locations.iter().filter(|location| !there.contains(&location.id)) {
            let lacking = lacks.entry(location.id).or_default();
            *lacking = lacking.saturating_add(found.stored_bytes);
        }
    }
    let candidate = |location: &Location| Candidate {
        state: location.state,
        online: app.fleet.online(location.id),
        warm: !lacks.contains_key(&location.id),
        missing_bytes: lacks.get(&location.id).copied().unwrap_or(0),
        nic_mbps: location.nic_mbps,
        budget_bytes: location.figures.budget_bytes,
        degraded: location.figures.degraded.clone(),
    };
    let candidates: Vec<Candidate> = locations.iter().map(candidate).collect();
    let Forecast { warm, cold, move_bytes_max, time_bound_s, unfit } =
        forecast::forecast(&candidates, data_bytes, SOURCE_MBPS, rate_bytes_per_s);
    let unfit = unfit.into_iter().map(|(i, reason)| Unfit {
        location: locations[i].id,
        location_name: locations[i].name.clone(),
        reason,
    });
    Ok(DryRun { warm, cold, move_bytes_max, time_bound_s, unfit: unfit.collect() })
}

/// Jobs, newest first.
#[utoipa::path(get, path = "/api/v1/prewarms", tag = "prewarms", params(ListQuery),
    responses((status = 200, body = Page<PrewarmBody>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<PrewarmBody>>, Fault> {
    let ListQuery { state, image, group, .. } = query;
    let filter = PrewarmFilter { state, image, group, domain: caller.bound()? };
    let page = app.db.prewarms(&filter, &PageRequest { limit: query.limit, cursor: query.cursor }).await?;
    let ids: Vec<PrewarmId> = page.items.iter().map(|job| job.id).collect();
    let progress = app.db.prewarm_progress(&ids).await?;
    let items = page.items.iter().map(|job| body(job, progress.get(&job.id).copied().unwrap_or_default()));
    Ok(axum::Json(Page { items: items.collect(), next: page.next }))
}

/// A job with its targets, and how their hosts pass the image to each other.
#[utoipa::path(get, path = "/api/v1/prewarms/{id}", tag = "prewarms", params(("id" = PrewarmId, Path)),
    responses((status = 200, body = PrewarmDetails)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmId>,
) -> Result<axum::Json<PrewarmDetails>, Fault> {
    let job = find(&app, &caller, id).await?;
    let prewarm = shown(&app, &job).await?;
    let locations: Vec<_> = target_bodies(&app, id).await?.into_iter().map(|(_, body)| body).collect();
    let campaign = campaigns::of_job(&app, &caller, &job, &locations).await?;
    Ok(axum::Json(PrewarmDetails { prewarm, locations, campaign }))
}

/// All targets of a job: as they are stored, and as people see them.
///
/// # Errors
/// 500.
pub(super) async fn target_bodies(app: &App, id: PrewarmId) -> Result<Vec<(Target, PrewarmTarget)>, Fault> {
    let mut locations = Vec::new();
    let mut page = PageRequest::first(PAGE_ROWS_MAX);
    loop {
        let rows = app.db.target_rows(id, None, &page).await?;
        locations.extend(rows.items.into_iter().map(|row| (row.target.clone(), target(app, row))));
        let Some(next) = rows.next else { break };
        page.cursor = Some(next);
    }
    Ok(locations)
}

/// Nothing new begins; what runs is finished.
#[utoipa::path(post, path = "/api/v1/prewarms/{id}/pause", tag = "prewarms", params(("id" = PrewarmId, Path)),
    responses((status = 200, body = PrewarmBody), (status = 409, body = ErrorBody)))]
pub async fn pause(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmId>,
) -> Result<axum::Json<PrewarmBody>, Fault> {
    let op = steering(&app, &caller, id, "prewarm.pause").await?;
    app.db.pause_prewarm(id, &op).await?;
    steered(&app, &caller, id).await
}

/// A paused job goes on.
#[utoipa::path(post, path = "/api/v1/prewarms/{id}/resume", tag = "prewarms", params(("id" = PrewarmId, Path)),
    responses((status = 200, body = PrewarmBody), (status = 409, body = ErrorBody)))]
pub async fn resume(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmId>,
) -> Result<axum::Json<PrewarmBody>, Fault> {
    let op = steering(&app, &caller, id, "prewarm.resume").await?;
    app.db.resume_prewarm(id, &op).await?;
    steered(&app, &caller, id).await
}

/// Ends a job; copies that are there stay as unheld cache.
#[utoipa::path(post, path = "/api/v1/prewarms/{id}/cancel", tag = "prewarms", params(("id" = PrewarmId, Path)),
    responses((status = 200, body = PrewarmBody), (status = 409, body = ErrorBody)))]
pub async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmId>,
) -> Result<axum::Json<PrewarmBody>, Fault> {
    let op = steering(&app, &caller, id, "prewarm.cancel").await?;
    app.db.cancel_prewarm(id, &op).await?;
    steered(&app, &caller, id).await
}

/// Tries failed targets again.
#[utoipa::path(post, path = "/api/v1/prewarms/{id}/retry", tag = "prewarms", params(("id" = PrewarmId, Path)),
    responses((status = 200, body = PrewarmBody), (status = 409, body = ErrorBody)))]
pub async fn retry(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmId>,
) -> Result<axum::Json<PrewarmBody>, Fault> {
    let op = steering(&app, &caller, id, "prewarm.retry").await?;
    app.db.retry_prewarm(id, &op).await?;
    steered(&app, &caller, id).await
}

async fn steering(
    app: &App,
    caller: &Caller,
    id: PrewarmId,
    action: &str,
) -> Result<crate::db::operations::Draft, Fault> {
    let job = find(app, caller, id).await?;
    let mut op = caller.draft().on("prewarm", id, job.image_name);
    op.action = action.to_owned();
    Ok(op)
}

async fn steered(app: &App, caller: &Caller, id: PrewarmId) -> Result<axum::Json<PrewarmBody>, Fault> {
    app.fleet.wake();
    one(app, caller, id).await.map(axum::Json)
}

/// The job with this id, if the caller reaches all its targets and may see its image.
pub(super) async fn find(app: &App, caller: &Caller, id: PrewarmId) -> Result<Prewarm, Fault> {
    let job = app.db.prewarm_within(id, caller.bound()?).await?;
    job.ok_or_else(|| Fault::not_found("prewarm job", id))
}

async fn one(app: &App, caller: &Caller, id: PrewarmId) -> Result<PrewarmBody, Fault> {
    shown(app, &find(app, caller, id).await?).await
}

async fn shown(app: &App, job: &Prewarm) -> Result<PrewarmBody, Fault> {
    let progress = app.db.prewarm_progress(&[job.id]).await?;
    Ok(body(job, progress.get(&job.id).copied().unwrap_or_default()))
}

/// The body of a job.
pub(super) fn body(job: &Prewarm, progress: Progress) -> PrewarmBody {
    PrewarmBody {
        id: job.id,
        image: job.image,
        image_name: job.image_name.clone(),
        content: job.content,
        group: job.group.as_ref().map(|group| group.id),
        host_image_name: job.group.as_ref().map(|group| group.host_image_name.clone()),
        state: job.state,
        targets: job.targets.clone(),
        priority: job.priority,
        deadline: when::opt_text(job.deadline_us),
        start: when::text(job.start_us.unwrap_or(job.created_us)),
        rate_bytes_per_s: job.rate_bytes_per_s,
        keep: job.keep.clone(),
        total: progress.total,
        active: progress.active,
        failed: progress.failed,
        done_bytes: progress.done_bytes,
        data_bytes: progress.data_bytes,
        moved_bytes: progress.moved_bytes,
        created_by: job.created_by.clone(),
        created_at: when::text(job.created_us),
        finished_at: when::opt_text(job.finished_us),
    }
}

/// A target as people see it: what the location says, coloured by what the job knows.
fn target(app: &App, row: TargetRow) -> PrewarmTarget {
    let TargetRow { target, location_name, entry, .. } = row;
    let seen = entry.as_ref();
    let status = match (target.state, seen) {
        (TargetState::Failed, _) => EntryStatus::CacheFail,
        (TargetState::Active, None) => EntryStatus::Active,
        (_, Some(entry)) => entry.status,
        (_, None) => EntryStatus::Queued,
    };
    let (done_bytes, data_bytes) = seen.map_or((0, 0), |entry| (entry.done_bytes, entry.data_bytes));
    let waits = match target.state {
        TargetState::Cancelled => "cancelled",
        TargetState::Waiting if !app.fleet.online(target.location) => "waits: the agent is offline",
        _ => "",
    };
    let said = seen.map(|entry| entry.reason.clone()).unwrap_or_default();
    let reason =
        [target.reason, said, waits.to_owned()].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    PrewarmTarget {
        location: target.location,
        location_name,
        online: app.fleet.online(target.location),
        status,
        percent: percent(status, done_bytes, data_bytes),
        done_bytes,
        data_bytes,
        moved_bytes: seen.map_or(0, |entry| entry.moved_bytes),
        reused_bytes: seen.map_or(0, |entry| entry.reused_bytes),
        reason,
        attempts: target.attempts,
        done_at: when::opt_text(target.done_us),
    }
}
