//! Checks the operation log: what [`super::sealer`] sealed must be what is there.
//!
//! **What.** [`Db::verify_operations`] hashes every sealed row in one snapshot and lets [`Walk`] judge the chain from where
//! it begins (the first row, or the anchor that an archive left) to the head.
//!
//! **Why an anchor needs an operation.** Whoever may write to the database could remove old rows and set an anchor after
//! them. An anchor is believed only if a sealed row of the log says that a segment with this hash was archived.
//!
//! **What that does not prove.** Who writes the database can plant that row too, and the sealer seals it like any other. So every
//! anchor is shown with its hash and its file: only the archive, or a head that was kept elsewhere, proves what is gone.
//!
//! **Invariants.** A changed, removed, reordered or planted row is found and named. Rows that wait for the sealer are
//! counted, never called intact.

use super::error::DbError;
use super::operations::{COLUMNS, from_row};
use super::sealer::{genesis, hash, head};
use super::sql::{Row, sql};
use super::store::{Db, Tx};
use crate::logic::chain::{Finding, Link, Mark, Walk};

/// Rows read at a time: bounds memory.
const VERIFY_ROWS: i64 = 1000;
/// Anchors that are shown: each stands for a segment of many rows.
const ANCHORS_SHOWN_MAX: i64 = 1000;
/// Action of the operation that an archived segment leaves.
pub const ARCHIVE_ACTION: &str = "log.archive";

/// Result of [`Db::verify_operations`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verification {
    /// Sealed rows that were found intact.
    pub sealed: u64,
    /// Rows that wait for the sealer.
    pub unsealed: u64,
    /// Number of the newest archived row; 0 if none was.
    pub archived: u64,
    /// Number of the first row that is changed, missing or out of order.
    pub first_bad: Option<u64>,
    /// Flaws by number, the first [`crate::logic::chain::FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How many there are.
    pub flaws: u64,
    /// Hash of the newest sealed row, hex: to be kept elsewhere.
    pub head: String,
    /// Number of the row that has the hash which was asked for.
    pub known_head: Option<u64>,
    /// Where archived segments ended, the newest first, at most [`ANCHORS_SHOWN_MAX`].
    pub anchors: Vec<Anchor>,
}

/// What stands for rows that were archived.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Anchor {
    /// Number and hash of the last of them.
    pub mark: Mark,
    /// Name of the file that has them; empty if it is not known.
    pub file: String,
    /// Number of the sealed row that tells of it; `None` if that was archived too, or never was.
    pub told_seq: Option<u64>,
}

impl Db {
    /// Checks every sealed row against the chain, in one snapshot. `known_head` is a head that was kept elsewhere: is it
    /// still part of the chain?
    ///
    /// # Errors
    /// A failed statement. A damaged chain is a result, not an error.
    pub async fn verify_operations_from(&self, known_head: Option<&str>) -> Result<Verification, DbError> {
        let mut tx = self.begin_read().await?;
        let unsealed =
            sql("operation", "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM operation WHERE seq IS NULL");
        let unsealed = tx.row(unsealed).await?.map_or(Ok(0), |row| row.size("n"))?;
        let end = head(&mut tx).await?;
        let begin = begin(&mut tx).await?;
        let mut walk = Walk::new(&begin);
        check_begin(&mut tx, &begin, &mut walk).await?;
        let mut known = match known_head {
            Some(wanted) if wanted == begin.hash => Some(begin.seq),
            Some(wanted) => anchor_with(&mut tx, wanted).await?,
            None => None,
        };
        let mut last = i64::try_from(begin.seq).unwrap_or(i64::MAX);
        loop {
            let stmt = sql("operation", COLUMNS).text(" WHERE seq IS NOT NULL AND seq > ").arg(last);
            let rows = tx.rows(stmt.text(" ORDER BY seq NULLS FIRST LIMIT ").arg(VERIFY_ROWS)).await?;
            for row in &rows {
                last = row.int("seq")?;
                let seq = u64::try_from(last).unwrap_or_default();
                // A row that does not even parse was changed.
                let Ok(row) = from_row(row) else {
                    walk.see_unreadable(Some(seq));
                    continue;
                };
                let (id, prev_hash) = (row.draft.id.to_string(), row.prev_hash.clone().unwrap_or_default());
                let computed = hash(&prev_hash, seq, &row);
                let hash = row.hash.as_deref().unwrap_or_default();
                walk.see(&Link { seq, id: &id, prev_hash: &prev_hash, hash, computed: &computed });
                if known_head == Some(computed.as_str()) {
                    known = Some(seq);
                }
            }
            if rows.is_empty() {
                break;
            }
        }
        let anchors = anchors(&mut tx).await?;
        let verdict = walk.end(&end);
        Ok(Verification {
            sealed: verdict.intact,
            unsealed,
            archived: begin.seq,
            first_bad: verdict.findings.first().map(|finding| finding.seq),
            findings: verdict.findings,
            flaws: verdict.flaws,
            head: end.hash,
            known_head: known,
            anchors,
        })
    }

    /// As [`Db::verify_operations_from`], without a head to look for.
    ///
    /// # Errors
    /// As there.
    pub async fn verify_operations(&self) -> Result<Verification, DbError> {
        self.verify_operations_from(None).await
    }
}

/// Where the chain in this database begins: after the newest anchor, else before row 1.
pub(super) async fn begin(tx: &mut Tx<'_>) -> Result<Mark, DbError> {
    let stmt = sql(
        "operation_anchor",
        "SELECT seq, hash FROM operation_anchor ORDER BY seq DESC NULLS LAST LIMIT 1",
    );
    match tx.row(stmt).await? {
        Some(row) => Ok(Mark { seq: row.size("seq")?, hash: row.text("hash")? }),
        None => genesis(tx).await,
    }
}

/// The anchor with this hash.
async fn anchor_with(tx: &mut Tx<'_>, hash: &str) -> Result<Option<u64>, DbError> {
    let row = tx
        .row(sql("operation_anchor", "SELECT seq FROM operation_anchor WHERE hash = $1").bind(hash))
        .await?;
    row.map(|row| row.size("seq")).transpose()
}

/// The newest anchors, each with the row that tells of it.
async fn anchors(tx: &mut Tx<'_>) -> Result<Vec<Anchor>, DbError> {
    let select = "SELECT operation_anchor.seq, operation_anchor.hash, operation_anchor.file, operation.seq AS told_seq \
         FROM operation_anchor LEFT JOIN operation ON operation.id = operation_anchor.operation_id \
         AND operation.action = $1 ORDER BY operation_anchor.seq DESC NULLS LAST LIMIT $2";
    let stmt = sql("operation_anchor", select).bind(ARCHIVE_ACTION).bind(ANCHORS_SHOWN_MAX);
    let one = |row: &Row| {
        let mark = Mark { seq: row.size("seq")?, hash: row.text("hash")? };
        Ok(Anchor { mark, file: row.text("file")?, told_seq: row.opt_size("told_seq")? })
    };
    tx.rows(stmt).await?.iter().map(one).collect()
}

/// The anchor must be told by a sealed row of the log, and nothing sealed may stand before it.
async fn check_begin(tx: &mut Tx<'_>, begin: &Mark, walk: &mut Walk) -> Result<(), DbError> {
    let stmt = sql("operation", "SELECT id, seq FROM operation WHERE seq <= ").arg(begin.seq);
    for row in tx.rows(stmt.text(" ORDER BY seq NULLS FIRST LIMIT ").arg(VERIFY_ROWS)).await? {
        let seq = u64::try_from(row.int("seq")?).unwrap_or_default();
        walk.see_before_begin(seq, &row.text("id")?);
    }
    if begin.seq == 0 {
        return Ok(());
    }
    let stmt =
        sql("operation", COLUMNS).text(" WHERE id = (SELECT operation_id FROM operation_anchor WHERE seq = ");
    let told = tx.row(stmt.arg(begin.seq).text(")")).await?.map(|row| from_row(&row));
    let proven = told.is_some_and(|told| {
        told.is_ok_and(|told| {
            let details = &told.draft.details;
            told.seq.is_some()
                && told.draft.action == ARCHIVE_ACTION
                && details["last_seq"].as_u64() == Some(begin.seq)
                && details["hash"].as_str() == Some(begin.hash.as_str())
        })
    });
    if !proven {
        walk.begin_is_unproven(begin);
    }
    Ok(())
}
