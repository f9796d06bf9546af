//! `hearth-controller log-archive` and `log-verify`: old rows of the operation log move into a file, and stay provable.
//!
//! **What.** [`archive`] checks the chain, writes the sealed rows that are older than a time into a file ([`super::log_file`]),
//! reads it back, and then removes them segment by segment. [`verify`] proves a file and that it is part of this database's log.
//!
//! **Why it may run beside the controller.** It is one more writer of the database; each of its steps is a short transaction.
//!
//! **Invariants.** Nothing is removed before the file is synced, has its name, and was read back whole. After a crash at any moment
//! each row is in the database or in a whole file, and `log verify` proves what is in the database. A damaged chain is
//! not archived: evidence stays where it was found.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::log_file::{self, LogFileError, Writer};
use crate::clock;
use crate::config::Config;
use crate::db::archive::{ArchivedRow, Segment};
use crate::db::operations::Draft;
use crate::db::verify::ARCHIVE_ACTION;
use crate::db::{Db, DbError};
use crate::logic::chain::Mark;
use crate::state::{StateError, refuse_foreign_root, sqlite_file};

/// Rows that are removed at once: a moment's work for the database, some megabytes of memory here.
const SEGMENT_ROWS: u32 = 5000;
/// Anchors of one file that are compared: twenty million rows. Bounds memory.
const ANCHORS_MAX: u32 = 10_000;

/// Why a log was not archived or not proven.
#[derive(Debug, thiserror::Error)]
pub enum LogArchiveError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The file.
    #[error(transparent)]
    File(#[from] LogFileError),
    /// There is no database.
    #[error(
        "{path} holds no controller: is state_dir right? run it as the user of the controller, with its --config"
    )]
    NothingHere {
        /// Which folder.
        path: PathBuf,
    },
    /// The chain is broken.
    #[error(
        "row {seq} of the log was changed, removed or moved: nothing is archived; see `hearth log verify`"
    )]
    Damaged {
        /// The first bad row.
        seq: u64,
    },
    /// What was written is not what is read.
    #[error("{path} was written and reads back otherwise: nothing was removed; is the disk sound?")]
    Unsound {
        /// The file.
        path: PathBuf,
    },
    /// The report.
    #[error("cannot print the report")]
    Print(#[from] std::io::Error),
}

/// Moves sealed rows older than `before_us` into the new file `to`. Returns how many.
///
/// # Errors
/// [`LogArchiveError`]; what was removed until then is in the file.
pub async fn archive(
    config: &Config,
    before_us: i64,
    to: &Path,
    out: &mut (dyn Write + Send),
) -> Result<u64, LogArchiveError> {
    let db = open(config).await?;
    let done = archive_in(&db, before_us, to, out).await;
    db.close().await;
    done
}

async fn open(config: &Config) -> Result<Db, LogArchiveError> {
    refuse_foreign_root(&config.state_dir)?;
    if sqlite_file(&config.database_url).is_some_and(|file| !file.exists()) {
        return Err(LogArchiveError::NothingHere { path: config.state_dir.clone() });
    }
    Ok(Db::open(&config.database_url).await?)
}

async fn archive_in(
    db: &Db,
    before_us: i64,
    to: &Path,
    out: &mut (dyn Write + Send),
) -> Result<u64, LogArchiveError> {
    if let Some(seq) = db.verify_operations().await?.first_bad {
        return Err(LogArchiveError::Damaged { seq });
    }
    let Some(what) = db.archivable(before_us).await? else {
        writeln!(out, "nothing to archive: no sealed row is older")?;
        return Ok(0);
    };
    let mut writer = Writer::begin(to, &what, clock::unix_ms())?;
    let mut after = what.begin.seq;
    while after < what.last_seq {
        let rows = db.sealed_rows(after, what.last_seq, SEGMENT_ROWS).await?;
        let Some(last) = rows.last() else { return Err(LogArchiveError::Damaged { seq: after + 1 }) };
        after = last.seq;
        writer.segment(rows)?;
    }
    let segments = writer.finish()?;
    // Before anything goes: what cannot be read back is no archive.
    let proof = log_file::read(to, &[])?;
    if proof.verdict.flaws > 0 || proof.last.seq != what.last_seq {
        return Err(LogArchiveError::Unsound { path: to.to_owned() });
    }
    writeln!(
        out,
        "wrote {} rows ({} to {}) to {}",
        proof.rows,
        proof.first_seq,
        proof.last.seq,
        to.display()
    )?;
    for segment in &segments {
        db.remove_segment(segment, &operation(segment, to)).await?;
    }
    db.seal_once().await?;
    writeln!(out, "removed them from the database, whose log now begins after row {}", proof.last.seq)?;
    writeln!(out, "hash of row {}: {}", proof.last.seq, proof.last.hash)?;
    writeln!(out, "keep the file: hearth-controller log-verify {} proves it", to.display())?;
    Ok(proof.rows)
}

/// The row that says that a segment went, and where to.
fn operation(segment: &Segment, to: &Path) -> Draft {
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let details = serde_json::json!({
        "first_seq": segment.first_seq, "last_seq": segment.last_seq, "hash": segment.hash, "file": name,
    });
    Draft::system(ARCHIVE_ACTION).on("log", "", name).with(details)
}

/// Proves the file `path`, and with `config` that it is part of that database's log. Returns whether all is well.
///
/// # Errors
/// [`LogArchiveError`] if it cannot be read as an archive.
pub async fn verify(
    config: Option<&Config>,
    path: &Path,
    out: &mut (dyn Write + Send),
) -> Result<bool, LogArchiveError> {
    let db = match config {
        Some(config) => Some(open(config).await?),
        None => None,
    };
    let done = verify_in(db.as_ref(), path, out).await;
    if let Some(db) = db {
        db.close().await;
    }
    done
}

async fn verify_in(
    db: Option<&Db>,
    path: &Path,
    out: &mut (dyn Write + Send),
) -> Result<bool, LogArchiveError> {
    // Once to learn its range, once to compare what the database knows of it.
    let range = log_file::read(path, &[])?;
    let (marks, instance) = match db {
        Some(db) => known_marks(db, range.first_seq, range.last.seq).await?,
        None => (Vec::new(), None),
    };
    let proof = if marks.is_empty() { range } else { log_file::read(path, &marks)? };
    let rows = proof.rows;
    writeln!(out, "{rows} rows, {} to {}, of instance {}", proof.first_seq, proof.last.seq, proof.instance)?;
    writeln!(out, "hash of row {}: {}", proof.last.seq, proof.last.hash)?;
    for finding in &proof.verdict.findings {
        writeln!(out, "row {} to {}: {}", finding.seq, finding.last_seq, finding.flaw.as_str())?;
    }
    let whole = proof.verdict.flaws == 0;
    writeln!(
        out,
        "chain: {}",
        if whole { "intact".to_owned() } else { format!("{} FLAWS", proof.verdict.flaws) }
    )?;
    let Some(instance) = instance else {
        writeln!(out, "database: not asked")?;
        return Ok(whole);
    };
    for mark in &proof.strangers {
        writeln!(out, "row {}: the database knows it with the hash {}", mark.seq, mark.hash)?;
    }
    let linked = instance == proof.instance && proof.strangers.is_empty() && !marks.is_empty();
    let text = match (linked, instance == proof.instance) {
        (true, _) => format!("{} of its rows are known there with these hashes", marks.len()),
        (false, false) => "ANOTHER INSTANCE: this is not its log".to_owned(),
        (false, true) if marks.is_empty() => "NOT LINKED: it knows none of these rows".to_owned(),
        (false, true) => "NOT LINKED: it knows other rows".to_owned(),
    };
    writeln!(out, "database: {text}")?;
    Ok(whole && linked)
}

/// What the database knows of rows `first` to `last`: anchors of archived ones, and the last one if it is still there.
async fn known_marks(db: &Db, first: u64, last: u64) -> Result<(Vec<Mark>, Option<String>), LogArchiveError> {
    let mut marks = db.anchors(first, last, ANCHORS_MAX).await?;
    if marks.last().is_none_or(|mark| mark.seq < last) {
        let here = db.sealed_rows(last.saturating_sub(1), last, 1).await?;
        let mark = |row: ArchivedRow| Mark { seq: row.seq, hash: row.computed() };
        marks.extend(here.into_iter().map(mark));
    }
    Ok((marks, db.setting("instance_id").await?))
}
