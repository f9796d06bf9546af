//! `/api/v1/prewarm-groups`: the prewarm jobs of one host image, as one. `POST /prewarms` with `host_image` makes them.
//!
//! **Why locations are counted, not copies.** A machine of the host image can start where every disk is; two of three disks
//! are no use to it.
//! **Invariants.** A group is made of what its jobs say at this moment; nothing of it is stored twice.

use std::collections::HashMap;

use axum::extract::State;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::prewarm::{PrewarmGroup, PrewarmGroupDetails, PrewarmTarget};
use hearth_protocol::id::{LocationId, PrewarmGroupId, PrewarmId};

use super::app::App;
use super::body::Path;
use super::cache::percent;
use super::caller::Caller;
use super::fault::Fault;
use super::{prewarms, when};
use crate::db::prewarm_groups::Steer;
use crate::db::prewarm_targets::{Target, TargetState};
use crate::db::prewarms::{GroupOf, Prewarm};
use crate::logic::host_state::{group_state, worst_entry};
use crate::logic::prewarm::ended;

/// A group with its jobs and locations.
#[utoipa::path(get, path = "/api/v1/prewarm-groups/{id}", tag = "prewarms", params(("id" = PrewarmGroupId, Path)),
    responses((status = 200, body = PrewarmGroupDetails)))]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmGroupId>,
) -> Result<axum::Json<PrewarmGroupDetails>, Fault> {
    one(&app, &caller, id).await.map(axum::Json)
}

/// Nothing new begins in any of its jobs; what runs is finished.
#[utoipa::path(post, path = "/api/v1/prewarm-groups/{id}/pause", tag = "prewarms",
    params(("id" = PrewarmGroupId, Path)), responses((status = 200, body = PrewarmGroup), (status = 409, body = ErrorBody)))]
pub async fn pause(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmGroupId>,
) -> Result<axum::Json<PrewarmGroup>, Fault> {
    steer(&app, &caller, id, Steer::Pause, "prewarm.pause").await
}

/// Its paused jobs go on.
#[utoipa::path(post, path = "/api/v1/prewarm-groups/{id}/resume", tag = "prewarms",
    params(("id" = PrewarmGroupId, Path)), responses((status = 200, body = PrewarmGroup), (status = 409, body = ErrorBody)))]
pub async fn resume(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmGroupId>,
) -> Result<axum::Json<PrewarmGroup>, Fault> {
    steer(&app, &caller, id, Steer::Resume, "prewarm.resume").await
}

/// Ends its jobs; copies that are there stay as unheld cache.
#[utoipa::path(post, path = "/api/v1/prewarm-groups/{id}/cancel", tag = "prewarms",
    params(("id" = PrewarmGroupId, Path)), responses((status = 200, body = PrewarmGroup), (status = 409, body = ErrorBody)))]
pub async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmGroupId>,
) -> Result<axum::Json<PrewarmGroup>, Fault> {
    steer(&app, &caller, id, Steer::Cancel, "prewarm.cancel").await
}

/// Tries failed targets of all its jobs again.
#[utoipa::path(post, path = "/api/v1/prewarm-groups/{id}/retry", tag = "prewarms",
    params(("id" = PrewarmGroupId, Path)), responses((status = 200, body = PrewarmGroup), (status = 409, body = ErrorBody)))]
pub async fn retry(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<PrewarmGroupId>,
) -> Result<axum::Json<PrewarmGroup>, Fault> {
    steer(&app, &caller, id, Steer::Retry, "prewarm.retry").await
}

async fn steer(
    app: &App,
    caller: &Caller,
    id: PrewarmGroupId,
    steer: Steer,
    action: &str,
) -> Result<axum::Json<PrewarmGroup>, Fault> {
    let (_, of) = jobs_of(app, caller, id).await?;
    let mut op = caller.draft().on("prewarm_group", id, of.host_image_name);
    op.action = action.to_owned();
    app.db.steer_prewarm_group(id, steer, &op).await?;
    app.fleet.wake();
    Ok(axum::Json(one(app, caller, id).await?.group))
}

/// The jobs of a group, at least one, and what they have in common; only if the caller reaches all of them.
async fn jobs_of(app: &App, caller: &Caller, id: PrewarmGroupId) -> Result<(Vec<Prewarm>, GroupOf), Fault> {
    let hidden = || Fault::not_found("prewarm group", id);
    let jobs = app.db.prewarm_group(id).await?;
    let bound = caller.bound()?;
    for job in jobs.iter().filter(|_| bound.is_some()) {
        app.db.prewarm_within(job.id, bound).await?.ok_or_else(hidden)?;
    }
    let of = jobs.first().and_then(|job| job.group.clone());
    of.map(|of| (jobs, of)).ok_or_else(hidden)
}

/// The group with this id, if the caller reaches all of it.
///
/// # Errors
/// 404.
async fn one(app: &App, caller: &Caller, id: PrewarmGroupId) -> Result<PrewarmGroupDetails, Fault> {
    let (jobs, of) = jobs_of(app, caller, id).await?;
    details(app, &jobs, of).await
}

/// The group of these jobs, at least one.
///
/// # Errors
/// 500.
pub(super) async fn details(app: &App, jobs: &[Prewarm], of: GroupOf) -> Result<PrewarmGroupDetails, Fault> {
    let mut targets = Vec::with_capacity(jobs.len());
    for job in jobs {
        targets.push(prewarms::target_bodies(app, job.id).await?);
    }
    let ids: Vec<PrewarmId> = jobs.iter().map(|job| job.id).collect();
    let progress = app.db.prewarm_progress(&ids).await?;
    let body = |job: &Prewarm| prewarms::body(job, progress.get(&job.id).copied().unwrap_or_default());
    let jobs_shown: Vec<_> = jobs.iter().map(body).collect();
    let places = by_location(targets);
    let count = |state| places.iter().filter(|place| place.state == state).count();
    let fits = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let first = &jobs[0];
    let over = jobs.iter().all(|job| ended(job.state));
    let group = PrewarmGroup {
        id: of.id,
        host_image: of.host_image,
        host_image_name: of.host_image_name,
        state: group_state(jobs.iter().map(|job| job.state)),
        targets: first.targets.clone(),
        priority: first.priority,
        deadline: when::opt_text(first.deadline_us),
        start: when::text(first.start_us.unwrap_or(first.created_us)),
        rate_bytes_per_s: first.rate_bytes_per_s,
        keep: first.keep.clone(),
        total: fits(places.len()),
        active: fits(count(TargetState::Active)),
        failed: fits(count(TargetState::Failed)),
        done_bytes: jobs_shown.iter().map(|job| job.done_bytes).sum(),
        data_bytes: jobs_shown.iter().map(|job| job.data_bytes).sum(),
        moved_bytes: jobs_shown.iter().map(|job| job.moved_bytes).sum(),
        created_by: first.created_by.clone(),
        created_at: when::text(first.created_us),
        finished_at: when::opt_text(jobs.iter().filter_map(|job| job.finished_us).max().filter(|_| over)),
        jobs: jobs_shown,
    };
    Ok(PrewarmGroupDetails { group, locations: places.into_iter().map(|place| place.target).collect() })
}

/// The targets of all disks at one location as one.
struct Place {
    state: TargetState,
    target: PrewarmTarget,
}

/// One row per location from those of every disk: failed ones first, then those on their way, then the rest by name.
fn by_location(targets: Vec<Vec<(Target, PrewarmTarget)>>) -> Vec<Place> {
    let mut found: HashMap<LocationId, Vec<(Target, PrewarmTarget)>> = HashMap::new();
    for (stored, body) in targets.into_iter().flatten() {
        found.entry(stored.location).or_default().push((stored, body));
    }
    let mut places: Vec<Place> = found.into_values().filter_map(merged).collect();
    let rank = |place: &Place| match place.state {
        TargetState::Failed => 0,
        TargetState::Waiting => 1,
        TargetState::Active | TargetState::Cancelled => 2,
    };
    places.sort_by(|a, b| {
        let names =
            (&a.target.location_name, a.target.location).cmp(&(&b.target.location_name, b.target.location));
        rank(a).cmp(&rank(b)).then(names)
    });
    places
}

fn merged(disks: Vec<(Target, PrewarmTarget)>) -> Option<Place> {
    let has = |state| disks.iter().any(|(stored, _)| stored.state == state);
    let states = [TargetState::Failed, TargetState::Waiting, TargetState::Cancelled];
    let state = states.into_iter().find(|state| has(*state)).unwrap_or(TargetState::Active);
    let bodies = || disks.iter().map(|(_, body)| body);
    let status = worst_entry(bodies().map(|body| body.status));
    let (done_bytes, data_bytes) =
        (bodies().map(|body| body.done_bytes).sum(), bodies().map(|body| body.data_bytes).sum());
    // The reason of the disk that is worst, else of any.
    let why = bodies().filter(|body| !body.reason.is_empty());
    let reason = why.max_by_key(|body| body.status == status).map(|body| body.reason.clone());
    let done_us = disks.iter().map(|(stored, _)| stored.done_us).collect::<Option<Vec<_>>>();
    let target = PrewarmTarget {
        status,
        percent: percent(status, done_bytes, data_bytes),
        done_bytes,
        data_bytes,
        moved_bytes: bodies().map(|body| body.moved_bytes).sum(),
        reused_bytes: bodies().map(|body| body.reused_bytes).sum(),
        reason: reason.unwrap_or_default(),
        attempts: bodies().map(|body| body.attempts).max().unwrap_or(0),
        done_at: when::opt_text(done_us.and_then(|times| times.into_iter().max())),
        ..disks.first()?.1.clone()
    };
    Some(Place { state, target })
}

#[cfg(test)]
mod tests {
    use hearth_protocol::words::EntryStatus;

    use super::*;

    fn disk(place: u8, state: TargetState, status: EntryStatus) -> (Target, PrewarmTarget) {
        let location = LocationId::from_bytes([place; 16]);
        let stored = Target { location, state, reason: String::new(), attempts: 0, done_us: Some(1) };
        let body = PrewarmTarget {
            location,
            location_name: format!("host-{place}"),
            online: true,
            status,
            percent: 0,
            done_bytes: 5,
            data_bytes: 10,
            moved_bytes: 1,
            reused_bytes: 0,
            reason: if status == EntryStatus::CacheFail { "no_space".into() } else { "waits".into() },
            attempts: 1,
            done_at: None,
        };
        (stored, body)
    }

    /// HI-3: a location counts when every disk is there, and shows the worst of them.
    #[test]
    fn a_location_is_as_far_as_its_worst_disk() {
        use EntryStatus as E;
        use TargetState as T;
        let system =
            vec![disk(1, T::Active, E::Active), disk(2, T::Active, E::Active), disk(3, T::Active, E::Active)];
        let data = vec![
            disk(1, T::Active, E::Active),
            disk(2, T::Waiting, E::Caching),
            disk(3, T::Failed, E::CacheFail),
        ];
        let places = by_location(vec![system, data]);
        let shown: Vec<_> = places
            .iter()
            .map(|place| {
                (place.target.location_name.as_str(), place.state, place.target.status, place.target.percent)
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("host-3", T::Failed, E::CacheFail, 50),
                ("host-2", T::Waiting, E::Caching, 50),
                ("host-1", T::Active, E::Active, 100)
            ]
        );
        assert_eq!((places[0].target.reason.as_str(), places[0].target.done_bytes), ("no_space", 10));
    }
}
