//! The locations of prewarm jobs, with their progress and result.
//!
//! **What.** A row per (job, location). Progress is not stored twice: a look joins the row with the entry there.
//! **Invariants.** Targets are fixed when the job is made; a location that is added to the fleet later is not a target.

use std::collections::HashMap;

use hearth_protocol::api::Page;
use hearth_protocol::id::{ImageId, LocationId, PrewarmId};

use super::changes::Change;
use super::entries::{self, Entry};
use super::error::DbError;
use super::page::PageRequest;
use super::sql::{Row, db_words, sql};
use super::store::{Db, Tx};

db_words! {
    /// State of one location of a job.
    TargetState, "state of a target" {
        /// Not there yet: queued, moving or between two tries.
        Waiting = "waiting",
        /// Verified on disk.
        Active = "active",
        /// Given up; `reason` says why.
        Failed = "failed",
        /// The job was cancelled, or the copy removed by hand, before it was there.
        Cancelled = "cancelled",
    }
}

/// One location of a job.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// The location.
    pub location: LocationId,
    /// State.
    pub state: TargetState,
    /// Why it failed, waits or was called off; empty otherwise.
    pub reason: String,
    /// Tries so far.
    pub attempts: u32,
    /// When it was verified on disk, microseconds since the epoch.
    pub done_us: Option<i64>,
}

/// A target as people see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TargetRow {
    /// The target.
    pub target: Target,
    /// Name of the location.
    pub location_name: String,
    /// Last sign of life of the location.
    pub last_seen_us: Option<i64>,
    /// What the location says about the content; `None`: nothing yet.
    pub entry: Option<Entry>,
}

/// Sums over the targets of a job.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// Targets.
    pub total: u32,
    /// Targets that are active.
    pub active: u32,
    /// Targets that failed.
    pub failed: u32,
    /// Targets that are cancelled.
    pub cancelled: u32,
    /// Raw bytes verified at all targets.
    pub done_bytes: u64,
    /// Raw bytes of all targets.
    pub data_bytes: u64,
    /// Stored bytes that moved.
    pub moved_bytes: u64,
}

/// Rows of one INSERT: 8 values each stay far below the 32,766 that SQLite allows.
const ROWS_PER_INSERT: usize = 400;

const JOINED: &str = "SELECT t.location_id, t.state AS target_state, t.reason AS target_reason, t.attempts, t.done_us, \
     l.name AS location_name, l.last_seen_us, t.rank, e.content_id, e.status, e.reason, e.fault, e.next_try_us, \
     e.done_bytes, e.data_bytes, e.moved_bytes, e.reused_bytes, e.allocated_bytes, e.leases, e.last_used_us, \
     e.reported_us, l.name_folded FROM (SELECT prewarm_target.*, CASE WHEN state = 'failed' THEN '0' \
     WHEN state = 'waiting' THEN '1' ELSE '2' END AS rank FROM prewarm_target) AS t \
     JOIN prewarm p ON p.id = t.prewarm_id JOIN location l ON l.id = t.location_id \
     LEFT JOIN entry e ON e.location_id = t.location_id AND e.content_id = p.content_id";

fn target(row: &Row) -> Result<Target, DbError> {
    Ok(Target {
        location: row.parse("location_id")?,
        state: row.parse("target_state")?,
        reason: row.text("target_reason")?,
        attempts: row.size("attempts")?,
        done_us: row.opt_int("done_us")?,
    })
}

/// A row of a page with its sort key.
struct Keyed(TargetRow, [String; 3]);

fn keyed(row: &Row) -> Result<Keyed, DbError> {
    let seen = row.opt_text("content_id")?.is_some();
    let target = target(row)?;
    let key = [row.text("rank")?, row.text("name_folded")?, target.location.to_string()];
    let entry = if seen { Some(entries::entry(row)?) } else { None };
    let (location_name, last_seen_us) = (row.text("location_name")?, row.opt_int("last_seen_us")?);
    Ok(Keyed(TargetRow { target, location_name, last_seen_us, entry }, key))
}

pub(super) async fn insert_targets(
    tx: &mut Tx<'_>,
    job: PrewarmId,
    locations: &[LocationId],
) -> Result<(), DbError> {
    let mut seen = std::collections::HashSet::new();
    let once: Vec<_> = locations.iter().filter(|location| seen.insert(**location)).collect();
    let insert = "INSERT INTO prewarm_target (prewarm_id, location_id, state, reason, attempts, created_us, updated_us) \
         VALUES ";
    for rows in once.chunks(ROWS_PER_INSERT) {
        let mut stmt = sql("prewarm_target", insert);
        for (n, location) in rows.iter().enumerate() {
            stmt = stmt.text(if n == 0 { "(" } else { ", (" }).arg(job).text(", ").arg(**location);
            stmt = stmt.text(", 'waiting', '', 0, ").arg(tx.now_us()).text(", ").arg(tx.now_us()).text(")");
        }
        tx.run(stmt).await?;
    }
    Ok(())
}

/// The locations of a job in a state.
pub(super) async fn targets_in(
    tx: &mut Tx<'_>,
    job: PrewarmId,
    state: &str,
) -> Result<Vec<LocationId>, DbError> {
    let select =
        "SELECT location_id FROM prewarm_target WHERE prewarm_id = $1 AND state = $2 ORDER BY location_id";
    let rows = tx.rows(sql("prewarm_target", select).bind(job).bind(state)).await?;
    rows.iter().map(|row| row.parse("location_id")).collect()
}

/// Ends the targets that running jobs of `image` have at these locations and that are not there yet: without its intent a
/// target would wait for ever. A job that has not started has no intents there; it will put them.
pub(super) async fn call_off(
    tx: &mut Tx<'_>,
    image: ImageId,
    locations: &[LocationId],
) -> Result<(), DbError> {
    let update = "UPDATE prewarm_target SET state = 'cancelled', reason = 'the copy was removed by hand', updated_us = ";
    let stmt = sql("prewarm_target", update).arg(tx.now_us());
    let stmt =
        stmt.text(" WHERE state = 'waiting' AND prewarm_id IN (SELECT id FROM prewarm WHERE image_id = ");
    let stmt = stmt.arg(image).text(" AND state IN ('running', 'paused')) AND location_id IN ");
    let stmt = stmt.list(locations.iter().copied()).text(" RETURNING prewarm_id");
    for row in tx.rows(stmt).await? {
        tx.changed(Change::Prewarm(row.parse("prewarm_id")?));
    }
    Ok(())
}

impl Db {
    /// Writes results of targets, many at once; targets that the job does not have are passed over, and so are those that
    /// were called off since the caller read them.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn update_targets(&self, job: PrewarmId, targets: &[Target]) -> Result<(), DbError> {
        let update = "UPDATE prewarm_target SET state = $1, reason = $2, attempts = $3, done_us = $4, updated_us = $5 \
             WHERE prewarm_id = $6 AND location_id = $7 AND state <> 'cancelled'";
        self.write_tx(move |tx| {
            Box::pin(async move {
                for target in targets {
                    let stmt = sql("prewarm_target", update).bind(target.state).bind(&target.reason);
                    let stmt = stmt.bind(target.attempts).bind(target.done_us).bind(tx.now_us());
                    tx.run(stmt.bind(job).bind(target.location)).await?;
                }
                tx.changed(Change::Prewarm(job));
                Ok(())
            })
        })
        .await
    }

    /// All targets of a job, by location id; for the reconciler.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn targets(&self, job: PrewarmId) -> Result<Vec<Target>, DbError> {
        let select = "SELECT location_id, state AS target_state, reason AS target_reason, attempts, done_us \
             FROM prewarm_target WHERE prewarm_id = $1 ORDER BY location_id";
        self.rows(sql("prewarm_target", select).bind(job)).await?.iter().map(target).collect()
    }

    /// Targets of a job with what their locations say: failed ones first, then waiting ones, then the rest, each by name.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn target_rows(
        &self,
        job: PrewarmId,
        state: Option<TargetState>,
        page: &PageRequest,
    ) -> Result<Page<TargetRow>, DbError> {
        let mut stmt = sql("prewarm_target", JOINED).text(" WHERE t.prewarm_id = ").arg(job);
        stmt = stmt.when(state, " AND t.state = ");
        if let Some([rank, name, id]) = page.key()? {
            stmt = stmt.text(" AND (t.rank, l.name_folded, t.location_id) > (").arg(rank).text(", ");
            stmt = stmt.arg(name).text(", ").arg(id).text(")");
        }
        stmt =
            stmt.text(" ORDER BY t.rank NULLS FIRST, l.name_folded, t.location_id LIMIT ").arg(page.fetch());
        let rows = self.rows(stmt).await?.iter().map(keyed).collect::<Result<Vec<_>, _>>()?;
        let page = page.page(rows, |Keyed(_, key)| key.clone());
        Ok(Page { items: page.items.into_iter().map(|Keyed(row, _)| row).collect(), next: page.next })
    }

    /// Sums over the targets of these jobs; a job without targets is missing.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn prewarm_progress(
        &self,
        jobs: &[PrewarmId],
    ) -> Result<HashMap<PrewarmId, Progress>, DbError> {
        let select = "SELECT t.prewarm_id, CAST(COUNT(*) AS BIGINT) AS total, \
             CAST(SUM(CASE WHEN t.state = 'active' THEN 1 ELSE 0 END) AS BIGINT) AS active, \
             CAST(SUM(CASE WHEN t.state = 'failed' THEN 1 ELSE 0 END) AS BIGINT) AS failed, \
             CAST(SUM(CASE WHEN t.state = 'cancelled' THEN 1 ELSE 0 END) AS BIGINT) AS cancelled, \
             CAST(SUM(CASE WHEN t.state = 'active' THEN c.data_bytes ELSE COALESCE(e.done_bytes, 0) END) AS BIGINT) \
             AS done_bytes, CAST(SUM(c.data_bytes) AS BIGINT) AS data_bytes, \
             CAST(SUM(COALESCE(e.moved_bytes, 0)) AS BIGINT) AS moved_bytes \
             FROM prewarm_target t JOIN prewarm p ON p.id = t.prewarm_id \
             LEFT JOIN content c ON c.content_id = p.content_id \
             LEFT JOIN entry e ON e.location_id = t.location_id AND e.content_id = p.content_id \
             WHERE t.prewarm_id IN ";
        let rows = self
            .rows(sql("prewarm", select).list(jobs.iter().copied()).text(" GROUP BY t.prewarm_id"))
            .await?;
        let progress = |row: &Row| {
            let progress = Progress {
                total: row.size("total")?,
                active: row.size("active")?,
                failed: row.size("failed")?,
                cancelled: row.size("cancelled")?,
                // NULL once the content of an old job is forgotten.
                done_bytes: row.opt_size("done_bytes")?.unwrap_or(0),
                data_bytes: row.opt_size("data_bytes")?.unwrap_or(0),
                moved_bytes: row.size("moved_bytes")?,
            };
            Ok((row.parse("prewarm_id")?, progress))
        };
        rows.iter().map(progress).collect()
    }
}
