//! Background jobs: work that outlives a request and a crash.
//!
//! **What.** A queue in the database. A worker claims the oldest job; after a restart everything that was running is
//! queued again with a higher attempt.
//! **Invariants.** A job is claimed by one worker at a time. A finished job is never claimed again, and forgotten in time. Fetches
//! of one project never take all workers for fetches.

use hearth_protocol::id::{ImageId, JobId};

use super::changes::Change;
use super::error::DbError;
use super::sql::{Row, Stmt, db_words, sql};
use super::store::{Db, Tx};

db_words! {
    /// What a job does.
    JobKind, "kind of job" {
        /// Makes a content from an uploaded file.
        Import = "import",
        /// Gets a file from its source. Its spec may hold a password: it is emptied when the job ends.
        Fetch = "fetch",
    }
    /// Where a job stands.
    JobState, "state of a job" {
        /// Waits for a worker.
        Queued = "queued",
        /// A worker has it.
        Running = "running",
        /// Ended well.
        Done = "done",
        /// Ended badly; `error` says why.
        Failed = "failed",
    }
}

/// A job.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The image it is for.
    pub image: ImageId,
    /// Where it stands.
    pub state: JobState,
    /// How often it was begun.
    pub attempt: u32,
    /// What the worker needs, as JSON that only the worker reads.
    pub spec: String,
    /// Why it failed; empty otherwise.
    pub error: String,
    /// When it was queued, microseconds since the epoch.
    pub created_us: i64,
    /// When it last changed.
    pub updated_us: i64,
}

const COLUMNS: &str =
    "SELECT id, kind, image_id, state, attempt, spec, error, created_us, updated_us FROM job";

fn job(row: &Row) -> Result<Job, DbError> {
    Ok(Job {
        id: row.parse("id")?,
        kind: row.parse("kind")?,
        image: row.parse("image_id")?,
        state: row.parse("state")?,
        attempt: row.size("attempt")?,
        spec: row.text("spec")?,
        error: row.text("error")?,
        created_us: row.int("created_us")?,
        updated_us: row.int("updated_us")?,
    })
}

impl Tx<'_> {
    /// Queues a job.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn enqueue_job(
        &mut self,
        id: JobId,
        kind: JobKind,
        image: ImageId,
        spec: &str,
    ) -> Result<(), DbError> {
        let insert = "INSERT INTO job (id, kind, image_id, state, attempt, spec, error, created_us, updated_us) \
             VALUES ($1, $2, $3, 'queued', 0, $4, '', $5, $5)";
        let stmt = sql("job", insert).bind(id).bind(kind).bind(image).bind(spec).bind(self.now_us());
        self.run(stmt).await?;
        self.changed(Change::Jobs);
        Ok(())
    }

    /// Ends or requeues a job.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn set_job(&mut self, id: JobId, state: JobState, error: &str) -> Result<(), DbError> {
        let update = "UPDATE job SET state = $1, error = $2, updated_us = $3 WHERE id = $4";
        if matches!(state, JobState::Done | JobState::Failed) {
            self.run(sql("job", "UPDATE job SET spec = '{}' WHERE id = $1").bind(id)).await?;
        }
        if self.run(sql("job", update).bind(state).bind(error).bind(self.now_us()).bind(id)).await? == 0 {
            return Err(DbError::NotFound { what: "job", key: id.to_string() });
        }
        self.changed(Change::Jobs);
        Ok(())
    }
}

impl Db {
    /// Queues a job on its own; [`Tx::enqueue_job`] does it together with other changes.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn enqueue_job(
        &self,
        id: JobId,
        kind: JobKind,
        image: ImageId,
        spec: &str,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(tx.enqueue_job(id, kind, image, spec))).await
    }

    /// Gives the oldest queued import to the caller, with `attempt` already counted up; `None` if none waits.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn claim_job(&self) -> Result<Option<Job>, DbError> {
        self.claim_job_of(JobKind::Import).await
    }

    /// As [`Db::claim_job`], for a kind of job.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn claim_job_of(&self, kind: JobKind) -> Result<Option<Job>, DbError> {
        self.claim(|| {
            let stmt = sql("job", COLUMNS).text(" WHERE state = 'queued' AND kind = ").arg(kind);
            stmt.text(" ORDER BY id LIMIT 1")
        })
        .await
    }

    /// As [`Db::claim_job`], for fetches, of projects of which fewer than `most` run: slow sources of one project must not
    /// keep all workers.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn claim_fetch(&self, most: u32) -> Result<Option<Job>, DbError> {
        let others = " WHERE state = 'queued' AND kind = 'fetch' AND NOT EXISTS (SELECT 1 FROM image \
             WHERE image.id = job.image_id AND image.project_id IN (SELECT owner.project_id FROM job AS busy \
             JOIN image AS owner ON owner.id = busy.image_id WHERE busy.state = 'running' AND busy.kind = 'fetch' \
             GROUP BY owner.project_id HAVING COUNT(*) >= ";
        self.claim(|| sql("job", COLUMNS).text(others).arg(most).text(")) ORDER BY id LIMIT 1")).await
    }

    /// Claims the job that `find` finds.
    async fn claim(&self, find: impl Fn() -> Stmt + Send + Sync) -> Result<Option<Job>, DbError> {
        let update = "UPDATE job SET state = 'running', attempt = attempt + 1, updated_us = $1 WHERE id = $2";
        let find = &find;
        self.write_tx(move |tx| {
            Box::pin(async move {
                let Some(row) = tx.row(find()).await? else { return Ok(None) };
                let found = job(&row)?;
                tx.run(sql("job", update).bind(tx.now_us()).bind(found.id)).await?;
                let updated_us = tx.now_us();
                Ok(Some(Job { state: JobState::Running, attempt: found.attempt + 1, updated_us, ..found }))
            })
        })
        .await
    }

    /// Ends or requeues a job on its own; [`Tx::set_job`] does it together with other changes.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn set_job(&self, id: JobId, state: JobState, error: &str) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(tx.set_job(id, state, error))).await
    }

    /// Lets a running job wait for the next start: it stays `running`, and this try does not count. Nothing happens to a job that
    /// ended meanwhile.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn put_job_off(&self, id: JobId) -> Result<(), DbError> {
        let update = "UPDATE job SET attempt = attempt - 1, updated_us = $1 WHERE id = $2 AND state = 'running' AND attempt > 0";
        self.write_tx(move |tx| {
            Box::pin(async move { tx.run(sql("job", update).bind(tx.now_us()).bind(id)).await.map(drop) })
        })
        .await
    }

    /// Jobs that are queued or running, oldest first.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn unfinished_jobs(&self) -> Result<Vec<Job>, DbError> {
        let stmt = sql("job", COLUMNS).text(" WHERE state IN ('queued', 'running') ORDER BY id");
        self.rows(stmt).await?.iter().map(job).collect()
    }

    /// At start, before any worker: what ran when the process died is queued again. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn requeue_running_jobs(&self) -> Result<u64, DbError> {
        let update = "UPDATE job SET state = 'queued', updated_us = $1 WHERE state = 'running'";
        self.write_tx(move |tx| Box::pin(async move { tx.run(sql("job", update).bind(tx.now_us())).await }))
            .await
    }

    /// Forgets jobs that ended before `before_us`. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn forget_jobs(&self, before_us: i64) -> Result<u64, DbError> {
        const OVER: &str = "DELETE FROM job WHERE state IN ('done', 'failed') AND updated_us < ";
        self.write_tx(move |tx| Box::pin(tx.run(sql("job", OVER).arg(before_us)))).await
    }

    /// The newest job of an image that is not forgotten.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn job_of_image(&self, image: ImageId) -> Result<Option<Job>, DbError> {
        let stmt =
            sql("job", COLUMNS).text(" WHERE image_id = ").arg(image).text(" ORDER BY id DESC LIMIT 1");
        self.row(stmt).await?.as_ref().map(job).transpose()
    }
}
