//! Prewarm jobs, as the reconciler carries them on.
//!
//! **What.** Reads the jobs that have not ended, asks [`crate::logic::prewarm`] what becomes of each, and writes it.
//! **Invariants.** A target is active only after its location said "verified on disk", is not stale, and follows a plan that
//! holds the copy. A target that failed for good loses its intent at once, so its agent stops trying.

use std::collections::{HashMap, HashSet};

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{LocationId, PrewarmId};
use hearth_protocol::words::PrewarmState;

use super::Shared;
use super::compose::Model;
use super::picture::Picture;
use crate::db::operations::Draft;
use crate::db::prewarm_targets::{Target, TargetState as Stored};
use crate::db::prewarms::Prewarm;
use crate::db::{Db, DbError};
use crate::logic::liveness::{Liveness, liveness};
use crate::logic::prewarm::{Holding, Seen, Step, TargetState, TargetView, advance};

/// Jobs that have not ended.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: Vec<(Prewarm, Vec<Target>)>,
    /// The last failure that was counted per target: its `next_try_us`.
    counted: HashMap<(PrewarmId, LocationId), i64>,
}

impl Jobs {
    /// Reads all jobs again.
    ///
    /// # Errors
    /// A failed statement.
    pub(super) async fn load(&mut self, db: &Db, picture: &Picture) -> Result<(), DbError> {
        let mut jobs = Vec::new();
        for job in db.unfinished_prewarms().await? {
            let targets = db.targets(job.id).await?;
            for target in targets.iter().filter(|target| target.attempts > 0) {
                // After a restart the failure that is still shown was counted already.
                let shown =
                    || picture.entry(target.location, job.content).and_then(|entry| entry.next_try_us);
                let key = (job.id, target.location);
                if let Some(next_us) = shown().filter(|_| !self.counted.contains_key(&key)) {
                    self.counted.insert(key, next_us);
                }
            }
            jobs.push((job, targets));
        }
        let alive: HashSet<PrewarmId> = jobs.iter().map(|(job, _)| job.id).collect();
        self.counted.retain(|(job, _), _| alive.contains(job));
        self.jobs = jobs;
        Ok(())
    }

    /// Jobs that start no transfer now.
    pub(super) fn paused(&self) -> HashSet<PrewarmId> {
        let paused = self.jobs.iter().filter(|(job, _)| job.state == PrewarmState::Paused);
        paused.map(|(job, _)| job.id).collect()
    }

    /// Carries every job one step on; `true` if intents changed.
    ///
    /// # Errors
    /// A failed statement. What was written stays; the next pass goes on from there.
    pub(super) async fn advance(
        &mut self,
        shared: &Shared,
        model: &Model,
        now_us: i64,
        online: impl Fn(&Shared, LocationId) -> bool,
    ) -> Result<bool, DbError> {
        let mut touched = false;
        for (job, targets) in &mut self.jobs {
            let counted = &self.counted;
            let view = |target: &Target| {
                let location = model.locations.get(&target.location);
                let heard_us = location.and_then(|location| location.last_seen_us);
                let stale = liveness(online(shared, target.location), heard_us, now_us) == Liveness::Stale;
                TargetView {
                    location: target.location,
                    state: known(target.state),
                    attempts: target.attempts,
                    counted_us: counted.get(&(job.id, target.location)).copied(),
                    location_state: location.map(|location| location.state),
                    seen: if stale { Seen::Pending } else { seen(shared, target.location, job) },
                }
            };
            let views: Vec<TargetView> = targets.iter().map(view).collect();
            let step = advance(job.state, job.start_us, &views, now_us);
            match write(shared, model, job, targets, &step, now_us).await {
                Ok(changed) => touched |= changed,
                // Cancelled or deleted since it was read: the next pass reads that, and the other jobs go on now.
                Err(error @ (DbError::State { .. } | DbError::NotFound { .. })) => {
                    tracing::debug!(job = %job.id, %error, "a prewarm changed while it was carried on");
                    touched = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for change in &step.changes {
                if let Some(next_us) = change.counted_us {
                    self.counted.insert((job.id, change.location), next_us);
                }
            }
        }
        Ok(touched)
    }
}

fn seen(shared: &Shared, location: LocationId, job: &Prewarm) -> Seen {
    let Some(entry) = shared.picture.entry(location, job.content) else {
        return Seen::Pending;
    };
    let holding = || {
        let (plan, session) = (shared.plans.of(location)?, shared.registry.of(location)?);
        let holds = plan.holds(job.content);
        Some(Holding { holds, generation: plan.generation, followed: session.followed() })
    };
    Seen::of(entry.status, holding(), || Seen::Failed {
        fault: entry.fault.unwrap_or(FaultCode::Internal),
        text: entry.reason.into(),
        next_try_us: entry.next_try_us.unwrap_or(entry.reported_us),
    })
}

/// Writes a step; `true` if intents or the job's state changed.
async fn write(
    shared: &Shared,
    model: &Model,
    job: &mut Prewarm,
    targets: &mut [Target],
    step: &Step,
    now_us: i64,
) -> Result<bool, DbError> {
    let db = &shared.db;
    if job.state == PrewarmState::Scheduled && step.state != PrewarmState::Scheduled {
        db.start_prewarm(job.id, &op("prewarm.start", job)).await?;
        job.state = PrewarmState::Running;
        // The intents were made now: the rest of the step belongs to the next pass.
        shared.wake();
        return Ok(true);
    }
    let mut changed = Vec::new();
    let mut gone = Vec::new();
    for change in &step.changes {
        let Some(target) = targets.iter_mut().find(|target| target.location == change.location) else {
            continue;
        };
        target.state = stored(change.state);
        target.attempts = change.attempts;
        target.reason.clone_from(&change.reason);
        target.done_us = (change.state == TargetState::Active).then_some(now_us);
        changed.push(target.clone());
        if change.state == TargetState::Failed {
            tracing::warn!(job = %job.id, location = %change.location, reason = change.reason, "a prewarm target failed");
            let here = model.intents.get(&change.location).into_iter().flatten();
            gone.extend(here.filter(|intent| intent.prewarm == Some(job.id)).map(|intent| intent.id));
        }
    }
    if !changed.is_empty() {
        db.update_targets(job.id, &changed).await?;
    }
    if !gone.is_empty() {
        db.drop_intents(&gone).await?;
    }
    let ended = crate::logic::prewarm::ended(step.state);
    if ended && job.state != step.state {
        end(db, job, step.state).await?;
        tracing::info!(job = %job.id, image = job.image_name, state = %step.state, targets = targets.len(), "a prewarm ended");
        job.state = step.state;
    }
    Ok(ended || !gone.is_empty())
}

async fn end(db: &Db, job: &Prewarm, state: PrewarmState) -> Result<(), DbError> {
    match state {
        PrewarmState::Cancelled => db.cancel_prewarm(job.id, &op("prewarm.cancel", job)).await,
        PrewarmState::Failed => db.finish_prewarm(job.id, true, &op("prewarm.fail", job)).await,
        _ => db.finish_prewarm(job.id, false, &op("prewarm.done", job)).await,
    }
}

fn op(action: &str, job: &Prewarm) -> Draft {
    Draft::system(action).on("prewarm", job.id, job.image_name.clone())
}

const fn known(state: Stored) -> TargetState {
    match state {
        Stored::Waiting => TargetState::Waiting,
        Stored::Active => TargetState::Active,
        Stored::Failed => TargetState::Failed,
        Stored::Cancelled => TargetState::Cancelled,
    }
}

const fn stored(state: TargetState) -> Stored {
    match state {
        TargetState::Waiting => Stored::Waiting,
        TargetState::Active => Stored::Active,
        TargetState::Failed => Stored::Failed,
        TargetState::Cancelled => Stored::Cancelled,
    }
}
