//! Prewarm jobs: one image, many locations. [`super::prewarm_targets`] holds the locations of a job.
//!
//! ```text
//! scheduled ──start──► running ◄──resume── paused
//!     │                  │ ▲ ──pause──────►  │
//!     │                  │ └──retry── failed │
//!     │                  └─finish─► done     │
//!     └───────cancel─────┴──────► cancelled ◄┘
//! ```
//!
//! **What.** A job, its targets and its intents change together: there is no moment at which a job runs without the
//! intents that make it run, or intents outlive a cancelled job.
//! **Why a running job's intents are pinned.** The keep time counts from the job's end, which is not known before.
//! **Invariants.** Each arrow checks the state it leaves. A scheduled job has no intents. A job that is over has intents
//! with an end, unless it was made with `--pin`.

use hearth_protocol::api::Page;
use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{DomainId, HostImageId, ImageId, LocationId, PrewarmGroupId, PrewarmId};
use hearth_protocol::words::{Origin, PrewarmState, Priority};

use super::changes::Change;
use super::error::DbError;
use super::ids::new_id;
use super::images::visible_to;
use super::intents::{Intent, IntentHold, IntentWish, put};
use super::operations::Draft;
use super::page::PageRequest;
use super::prewarm_targets::{insert_targets, targets_in};
use super::sql::{Row, Stmt, sql, to_json};
use super::store::{Db, Tx};
use super::tokens::Scope;

/// The host image of which a job prewarms one disk, and the jobs that were made with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GroupOf {
    /// What the jobs of all its disks have in common.
    pub id: PrewarmGroupId,
    /// The host image.
    pub host_image: HostImageId,
    /// Its name when the jobs were made.
    pub host_image_name: String,
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct Prewarm {
    /// Its id.
    pub id: PrewarmId,
    /// The image.
    pub image: ImageId,
    /// Its content when the job was made.
    pub content: ContentId,
    /// Its name when the job was made.
    pub image_name: String,
    /// Set if it is a disk of a host image that is prewarmed as a whole.
    pub group: Option<GroupOf>,
    /// State.
    pub state: PrewarmState,
    /// Where, as it was asked for.
    pub targets: Targets,
    /// Order of work.
    pub priority: Priority,
    /// When it must be done, microseconds since the epoch.
    pub deadline_us: Option<i64>,
    /// When it begins or began.
    pub start_us: Option<i64>,
    /// Cap per location.
    pub rate_bytes_per_s: Option<u64>,
    /// How long the copies are kept after its end.
    pub keep: Keep,
    /// Who made it.
    pub created_by: String,
    /// When it was made; ignored when created.
    pub created_us: i64,
    /// When it ended.
    pub finished_us: Option<i64>,
}

/// Which jobs to list. The default lists all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PrewarmFilter {
    /// State.
    pub state: Option<PrewarmState>,
    /// Image.
    pub image: Option<ImageId>,
    /// Group.
    pub group: Option<PrewarmGroupId>,
    /// Only jobs of which every target lies in this domain, and of images that it may see.
    pub domain: Option<DomainId>,
}

/// Appends the condition that a job is within a domain, if one is given.
fn within(stmt: Stmt, domain: Option<DomainId>) -> Stmt {
    let Some(domain) = domain else { return stmt };
    let stmt = stmt.text(
        " AND NOT EXISTS (SELECT prewarm_target.location_id FROM prewarm_target \
         JOIN location ON location.id = prewarm_target.location_id \
         WHERE prewarm_target.prewarm_id = prewarm.id AND (location.domain_id IS NULL OR location.domain_id <> ",
    );
    visible_to(stmt.arg(domain).text(")) AND prewarm.image_id IN "), Scope::Domain(domain))
}

pub(super) const COLUMNS: &str = "SELECT id, image_id, content_id, name, group_id, host_image_id, host_image_name, state, targets, priority, deadline_us, start_us, \
     rate_bytes_per_s, keep_s, created_by, created_us, finished_us FROM prewarm";

fn group(row: &Row) -> Result<Option<GroupOf>, DbError> {
    let Some(id) = row.opt_parse("group_id")? else { return Ok(None) };
    let (host_image, host_image_name) = (row.parse("host_image_id")?, row.text("host_image_name")?);
    Ok(Some(GroupOf { id, host_image, host_image_name }))
}

pub(super) fn prewarm(row: &Row) -> Result<Prewarm, DbError> {
    Ok(Prewarm {
        id: row.parse("id")?,
        image: row.parse("image_id")?,
        content: row.parse("content_id")?,
        image_name: row.text("name")?,
        group: group(row)?,
        state: row.parse("state")?,
        targets: row.json("targets")?,
        priority: row.parse("priority")?,
        deadline_us: row.opt_int("deadline_us")?,
        start_us: row.opt_int("start_us")?,
        rate_bytes_per_s: row.opt_size("rate_bytes_per_s")?,
        keep: row.opt_size("keep_s")?.map_or(Keep::Pinned, Keep::Seconds),
        created_by: row.text("created_by")?,
        created_us: row.int("created_us")?,
        finished_us: row.opt_int("finished_us")?,
    })
}

impl Tx<'_> {
    /// The job with this id.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn prewarm(&mut self, id: PrewarmId) -> Result<Prewarm, DbError> {
        let row = self.row(sql("prewarm", COLUMNS).text(" WHERE id = ").arg(id)).await?;
        let found = row.as_ref().map(prewarm).transpose()?;
        found.ok_or_else(|| DbError::NotFound { what: "prewarm job", key: id.to_string() })
    }

    async fn prewarm_in(
        &mut self,
        id: PrewarmId,
        states: &[PrewarmState],
        allowed: &'static str,
    ) -> Result<Prewarm, DbError> {
        let job = self.prewarm(id).await?;
        if states.contains(&job.state) {
            return Ok(job);
        }
        Err(DbError::State {
            what: "prewarm job",
            key: id.to_string(),
            state: job.state.to_string(),
            allowed,
        })
    }

    async fn set_prewarm(
        &mut self,
        id: PrewarmId,
        state: PrewarmState,
        finished_us: Option<i64>,
    ) -> Result<(), DbError> {
        let update = "UPDATE prewarm SET state = $1, finished_us = $2, updated_us = $3 WHERE id = $4";
        self.run(sql("prewarm", update).bind(state).bind(finished_us).bind(self.now_us()).bind(id)).await?;
        self.changed(Change::Prewarm(id));
        self.changed(Change::Intents);
        Ok(())
    }
}

/// Puts the intents of a job for these locations.
async fn want(tx: &mut Tx<'_>, job: &Prewarm, locations: &[LocationId]) -> Result<(), DbError> {
    let intent = |location: &LocationId| Intent {
        id: new_id(),
        image: job.image,
        content: job.content,
        location: *location,
        origin: Origin::Job,
        prewarm: Some(job.id),
        priority: job.priority,
        deadline_us: job.deadline_us,
        hold: IntentHold::Pinned,
        rate_bytes_per_s: job.rate_bytes_per_s,
        wish: IntentWish::Keep,
        force: false,
        created_us: tx.now_us(),
    };
    let intents: Vec<Intent> = locations.iter().map(intent).collect();
    put(tx, &intents).await
}

/// Makes a job with its targets, and if it runs at once its intents.
pub(super) async fn insert(tx: &mut Tx<'_>, job: &Prewarm, locations: &[LocationId]) -> Result<(), DbError> {
    let insert = "INSERT INTO prewarm (id, image_id, content_id, name, state, targets, priority, deadline_us, \
         start_us, rate_bytes_per_s, keep, keep_s, created_by, created_us, updated_us, group_id, host_image_id, \
         host_image_name) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14, $15, $16, $17)";
    let (keep, keep_s) = match job.keep {
        Keep::Seconds(seconds) => ("seconds", Some(seconds)),
        Keep::Pinned => ("pinned", None),
    };
    // Also for one that begins later: an image with a job that is not over is not deleted.
    tx.must_be_placeable(job.image, job.content).await?;
    let group = job.group.as_ref();
    let stmt = sql("prewarm", insert).bind(job.id).bind(job.image).bind(job.content);
    let stmt = stmt.bind(&job.image_name).bind(job.state).bind(to_json(&job.targets)).bind(job.priority);
    let stmt = stmt.bind(job.deadline_us).bind(job.start_us).bind(job.rate_bytes_per_s);
    let stmt = stmt.bind(keep).bind(keep_s).bind(&job.created_by).bind(tx.now_us());
    let stmt = stmt.bind(group.map(|group| group.id)).bind(group.map(|group| group.host_image));
    tx.run(stmt.bind(group.map(|group| &group.host_image_name))).await?;
    insert_targets(tx, job.id, locations).await?;
    if job.state == PrewarmState::Running {
        want(tx, job, locations).await?;
    }
    tx.changed(Change::Prewarm(job.id));
    Ok(())
}

/// See [`Db::pause_prewarm`].
pub(super) async fn pause(tx: &mut Tx<'_>, id: PrewarmId) -> Result<(), DbError> {
    tx.prewarm_in(id, &[PrewarmState::Running], "only a running job can be paused").await?;
    tx.set_prewarm(id, PrewarmState::Paused, None).await
}

/// See [`Db::resume_prewarm`].
pub(super) async fn resume(tx: &mut Tx<'_>, id: PrewarmId) -> Result<(), DbError> {
    tx.prewarm_in(id, &[PrewarmState::Paused], "only a paused job can be resumed").await?;
    tx.set_prewarm(id, PrewarmState::Running, None).await
}

/// See [`Db::cancel_prewarm`].
pub(super) async fn cancel(tx: &mut Tx<'_>, id: PrewarmId) -> Result<(), DbError> {
    let targets = "UPDATE prewarm_target SET state = 'cancelled', updated_us = $1 \
         WHERE prewarm_id = $2 AND state = 'waiting'";
    let from = [PrewarmState::Scheduled, PrewarmState::Running, PrewarmState::Paused];
    tx.prewarm_in(id, &from, "the job is over; its copies can be removed with `cache rm --force`").await?;
    tx.run(sql("intent", "DELETE FROM intent WHERE prewarm_id = $1").bind(id)).await?;
    tx.run(sql("prewarm_target", targets).bind(tx.now_us()).bind(id)).await?;
    tx.set_prewarm(id, PrewarmState::Cancelled, Some(tx.now_us())).await
}

/// The jobs of an image that are not over, oldest first.
pub(super) async fn unfinished_of(tx: &mut Tx<'_>, image: ImageId) -> Result<Vec<Prewarm>, DbError> {
    let stmt = sql("prewarm", COLUMNS).text(" WHERE image_id = ").arg(image);
    let stmt = stmt.text(" AND state IN ('scheduled', 'running', 'paused') ORDER BY id");
    tx.rows(stmt).await?.iter().map(prewarm).collect()
}

/// Cancels jobs for what `op` does to their image; each has its own row in the log.
pub(super) async fn cancel_all(tx: &mut Tx<'_>, jobs: &[Prewarm], op: &Draft) -> Result<(), DbError> {
    for job in jobs {
        cancel(tx, job.id).await?;
        let own = Draft::new(op.who_kind, op.who.clone(), "prewarm.cancel");
        tx.record(&own.on("prewarm", job.id, job.image_name.clone())).await?;
    }
    Ok(())
}

/// See [`Db::retry_prewarm`].
pub(super) async fn retry(tx: &mut Tx<'_>, id: PrewarmId) -> Result<usize, DbError> {
    let again = "UPDATE prewarm_target SET state = 'waiting', reason = '', attempts = 0, updated_us = $1 \
         WHERE prewarm_id = $2 AND state = 'failed'";
    let from = [PrewarmState::Running, PrewarmState::Failed];
    let job = tx.prewarm_in(id, &from, "only failed targets can be tried again").await?;
    let locations = targets_in(tx, id, "failed").await?;
    want(tx, &job, &locations).await?;
    tx.run(sql("prewarm_target", again).bind(tx.now_us()).bind(id)).await?;
    if job.state == PrewarmState::Failed && !locations.is_empty() {
        // What the first run put there is held until the end again.
        let pin = "UPDATE intent SET hold = 'pinned', hold_until_us = NULL WHERE prewarm_id = $1";
        tx.run(sql("intent", pin).bind(id)).await?;
        tx.set_prewarm(id, PrewarmState::Running, None).await?;
    }
    tx.changed(Change::Prewarm(id));
    Ok(locations.len())
}

impl Db {
    /// Makes a job with its targets; with state `running` also its intents, at once.
    ///
    /// # Errors
    /// A failed statement, for example for a location that does not exist.
    pub async fn create_prewarm(
        &self,
        job: &Prewarm,
        locations: &[LocationId],
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                insert(tx, job, locations).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Starts a scheduled job: its intents are put.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn start_prewarm(&self, id: PrewarmId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let job = tx
                    .prewarm_in(id, &[PrewarmState::Scheduled], "only a scheduled job can be started")
                    .await?;
                let locations = targets_in(tx, id, "waiting").await?;
                want(tx, &job, &locations).await?;
                tx.set_prewarm(id, PrewarmState::Running, None).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Pauses a running job. Its intents stay (copies that are there stay held) but nothing new is admitted.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn pause_prewarm(&self, id: PrewarmId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                pause(tx, id).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Lets a paused job go on.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn resume_prewarm(&self, id: PrewarmId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                resume(tx, id).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Ends a job on an operator's word: its intents go, targets that are not active are cancelled, copies that are there
    /// stay as unheld cache.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn cancel_prewarm(&self, id: PrewarmId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                cancel(tx, id).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Tries failed targets again: they wait, their attempts are forgotten, and the job (if it was over) runs again.
    /// Returns how many there are.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn retry_prewarm(&self, id: PrewarmId, op: &Draft) -> Result<usize, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let again = retry(tx, id).await?;
                tx.record(op).await?;
                Ok(again)
            })
        })
        .await
    }

    /// Ends a job whose targets all have a result: `done` or `failed`. The intents of active targets are held as the job
    /// says from now on; those of failed targets go.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] (not running) or a failed statement.
    pub async fn finish_prewarm(&self, id: PrewarmId, failed: bool, op: &Draft) -> Result<(), DbError> {
        let give_up = "DELETE FROM intent WHERE prewarm_id = $1 AND location_id IN \
             (SELECT location_id FROM prewarm_target WHERE prewarm_id = $1 AND state <> 'active')";
        let hold =
            "UPDATE intent SET hold = 'until', hold_until_us = $1, updated_us = $2 WHERE prewarm_id = $3";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let from = [PrewarmState::Running, PrewarmState::Paused];
                let job = tx.prewarm_in(id, &from, "the job is over already").await?;
                tx.run(sql("intent", give_up).bind(id)).await?;
                if let Keep::Seconds(seconds) = job.keep {
                    let keep_us = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
                    let until_us = tx.now_us().saturating_add(keep_us);
                    tx.run(sql("intent", hold).bind(until_us).bind(tx.now_us()).bind(id)).await?;
                }
                let state = if failed { PrewarmState::Failed } else { PrewarmState::Done };
                tx.set_prewarm(id, state, Some(tx.now_us())).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// The job with this id.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn prewarm(&self, id: PrewarmId) -> Result<Option<Prewarm>, DbError> {
        self.row(sql("prewarm", COLUMNS).text(" WHERE id = ").arg(id))
            .await?
            .as_ref()
            .map(prewarm)
            .transpose()
    }

    /// The job with this id, if it is within `domain` (where one is given).
    ///
    /// # Errors
    /// A failed statement.
    pub async fn prewarm_within(
        &self,
        id: PrewarmId,
        domain: Option<DomainId>,
    ) -> Result<Option<Prewarm>, DbError> {
        let stmt = within(sql("prewarm", COLUMNS).text(" WHERE id = ").arg(id), domain);
        self.row(stmt).await?.as_ref().map(prewarm).transpose()
    }

    /// Jobs that match, newest first.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn prewarms(
        &self,
        filter: &PrewarmFilter,
        page: &PageRequest,
    ) -> Result<Page<Prewarm>, DbError> {
        let stmt = sql("prewarm", COLUMNS).text(" WHERE 1 = 1").when(filter.state, " AND state = ");
        let stmt = stmt.when(filter.image, " AND image_id = ").when(filter.group, " AND group_id = ");
        let stmt = within(stmt.when(page.key()?.map(|[id]| id), " AND id < "), filter.domain);
        let rows = self.rows(stmt.text(" ORDER BY id DESC LIMIT ").arg(page.fetch())).await?;
        let jobs = rows.iter().map(prewarm).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(jobs, |job| [job.id.to_string()]))
    }

    /// Jobs that are scheduled, running or paused, oldest first; for the reconciler.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn unfinished_prewarms(&self) -> Result<Vec<Prewarm>, DbError> {
        let stmt =
            sql("prewarm", COLUMNS).text(" WHERE state IN ('scheduled', 'running', 'paused') ORDER BY id");
        self.rows(stmt).await?.iter().map(prewarm).collect()
    }
}
