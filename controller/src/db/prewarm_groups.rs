//! The prewarm jobs of one host image: one per disk, made and steered together.
//!
//! **What.** A group is what its jobs have in common: an id and the host image. It has no row of its own.
//! **Why a job per disk and not one with several contents.** Targets, progress, failures, holds and intents are all kept per
//! job and content; the reconciler carries each disk on as any other job, and a disk that fails at a host keeps no other
//! disk from arriving there.
//! **Invariants.** The jobs of a group are made in one transaction with the same targets, and steered in one: after a crash
//! all of them are there, or none is.

use hearth_protocol::id::{LocationId, PrewarmGroupId};
use hearth_protocol::words::PrewarmState;

use super::error::DbError;
use super::operations::Draft;
use super::prewarms::{COLUMNS, Prewarm, cancel, insert, pause, prewarm, resume, retry};
use super::sql::{Stmt, sql};
use super::store::{Db, Tx};
use crate::logic::host_state::group_state;

/// What an operator does to a group: to every job whose state allows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Steer {
    /// Running jobs pause.
    Pause,
    /// Paused jobs go on.
    Resume,
    /// Jobs that are not over end.
    Cancel,
    /// Failed targets are tried again.
    Retry,
}

impl Steer {
    /// Whether it does something to a job in this state.
    const fn fits(self, state: PrewarmState) -> bool {
        match self {
            Self::Pause => matches!(state, PrewarmState::Running),
            Self::Resume => matches!(state, PrewarmState::Paused),
            Self::Cancel => {
                matches!(state, PrewarmState::Scheduled | PrewarmState::Running | PrewarmState::Paused)
            }
            Self::Retry => matches!(state, PrewarmState::Running | PrewarmState::Failed),
        }
    }

    const fn allowed(self) -> &'static str {
        match self {
            Self::Pause => "only running jobs can be paused",
            Self::Resume => "only paused jobs can be resumed",
            Self::Cancel => "its jobs are over; their copies can be removed with `cache rm --force`",
            Self::Retry => "only failed targets can be tried again",
        }
    }
}

/// The jobs of a group, in the order of the disks: their ids were made in it.
fn jobs_of(id: PrewarmGroupId) -> Stmt {
    sql("prewarm", COLUMNS).text(" WHERE group_id = ").arg(id).text(" ORDER BY id")
}

async fn steer_in(tx: &mut Tx<'_>, id: PrewarmGroupId, steer: Steer, op: &Draft) -> Result<(), DbError> {
    let jobs = tx.rows(jobs_of(id)).await?.iter().map(prewarm).collect::<Result<Vec<_>, _>>()?;
    if jobs.is_empty() {
        return Err(DbError::NotFound { what: "prewarm group", key: id.to_string() });
    }
    let state = group_state(jobs.iter().map(|job| job.state));
    let fitting: Vec<&Prewarm> = jobs.iter().filter(|job| steer.fits(job.state)).collect();
    if fitting.is_empty() {
        return Err(DbError::State {
            what: "prewarm group",
            key: id.to_string(),
            state: state.to_string(),
            allowed: steer.allowed(),
        });
    }
    for job in &fitting {
        match steer {
            Steer::Pause => pause(tx, job.id).await?,
            Steer::Resume => resume(tx, job.id).await?,
            Steer::Cancel => cancel(tx, job.id).await?,
            Steer::Retry => retry(tx, job.id).await.map(drop)?,
        }
    }
    let ids: Vec<_> = fitting.iter().map(|job| job.id).collect();
    tx.record(&op.clone().with(serde_json::json!({ "jobs": ids }))).await
}

impl Db {
    /// Makes the jobs of a group with the same targets; those that run at once with their intents.
    ///
    /// # Errors
    /// A failed statement, for example for a location that does not exist.
    pub async fn create_prewarm_group(
        &self,
        jobs: &[Prewarm],
        locations: &[LocationId],
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                for job in jobs {
                    insert(tx, job, locations).await?;
                }
                tx.record(op).await
            })
        })
        .await
    }

    /// The jobs of a group, the system disk first; empty if there is no such group.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn prewarm_group(&self, id: PrewarmGroupId) -> Result<Vec<Prewarm>, DbError> {
        self.rows(jobs_of(id)).await?.iter().map(prewarm).collect()
    }

    /// Pauses, resumes, cancels or tries again what can be, in all jobs of a group.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::State`] if no job's state allows it; or a failed statement.
    pub async fn steer_prewarm_group(
        &self,
        id: PrewarmGroupId,
        steer: Steer,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(steer_in(tx, id, steer, op))).await
    }
}
