//! Seals the operation log: sequence numbers and a hash chain, and the check of both.
//!
//! **What.** [`Db::seal_once`] numbers the rows that wait, oldest first, and chains them; [`Db::verify_operations`] walks
//! the chain. `hash = BLAKE3(domain, prev_hash, every column)`; the chain begins with the hash of the instance id.
//!
//! **Why also a head.** A chain alone does not show that its newest rows are gone. The head (last number and hash) is kept
//! in `meta`, and its hash is shown by `log verify`, so that an operator can keep it where the database's owner cannot write.
//!
//! **Invariants.** A changed, removed, inserted or reordered sealed row is found. Rows that wait for the sealer (less
//! than a second in service) are counted, never called intact.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use super::changes::Change;
use super::error::DbError;
use super::operations::{COLUMNS, Operation, from_row};
use super::schema::{meta, put_meta};
use super::sql::sql;
use super::store::{Db, Tx};

/// Rows sealed in one transaction: bounds how long writers wait for it.
const SEAL_ROWS_MAX: i64 = 500;
/// Rows read at a time by the check: bounds its memory.
const VERIFY_ROWS: i64 = 1000;
/// A sealer that missed a change looks again after this long: rows are sealed within a second.
const SEAL_EVERY: Duration = Duration::from_millis(900);
/// First bytes of what is hashed, so that no other hash of this program can stand in for a row's.
const HASH_DOMAIN: &str = "hearth operation row 1";

/// Result of [`Db::verify_operations`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verification {
    /// Sealed rows that were found intact, counted up to the first bad one.
    pub sealed: u64,
    /// Rows that wait for the sealer.
    pub unsealed: u64,
    /// Number of the first row that is changed, missing or out of order.
    pub first_bad: Option<u64>,
    /// Hash of the newest sealed row, hex: to be kept elsewhere.
    pub head: String,
}

/// Number and hash of the newest sealed row.
struct Head {
    seq: u64,
    hash: String,
}

impl Db {
    /// Numbers and chains rows that wait; at most [`SEAL_ROWS_MAX`]. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn seal_once(&self) -> Result<u64, DbError> {
        self.write_tx(|tx| Box::pin(seal_in(tx))).await
    }

    /// As [`Db::seal_once`], but where nothing waits nobody is kept from writing.
    async fn seal_what_waits(&self) -> Result<u64, DbError> {
        let waits = sql("operation", "SELECT id FROM operation WHERE seq IS NULL ORDER BY id LIMIT 1");
        if self.row(waits).await?.is_none() {
            return Ok(0);
        }
        self.seal_once().await
    }

    /// Seals for ever: at once after a change and at least every [`SEAL_EVERY`]. To be run as a task by the leader.
    pub async fn run_sealer(&self) {
        let mut changes = self.subscribe();
        loop {
            match self.seal_what_waits().await {
                Ok(0) => {}
                Ok(_) => continue,
                Err(error) => tracing::warn!(error = %error, "the operation log is not sealed; trying again"),
            }
            // Wake on the first operation; at the latest after the period.
            let operation = async {
                loop {
                    match changes.recv().await {
                        Ok(Change::Operations) | Err(RecvError::Lagged(_)) => return,
                        Ok(_) => {}
                        Err(RecvError::Closed) => std::future::pending().await,
                    }
                }
            };
            if tokio::time::timeout(SEAL_EVERY, operation).await.is_ok() {
                // Gather a burst: one commit for many rows.
                tokio::time::sleep(SEAL_EVERY / 10).await;
            }
        }
    }

    /// Checks every sealed row against the chain, in one snapshot.
    ///
    /// # Errors
    /// A failed statement. A damaged chain is a result, not an error.
    pub async fn verify_operations(&self) -> Result<Verification, DbError> {
        let mut tx = self.begin_read().await?;
        let unsealed =
            sql("operation", "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM operation WHERE seq IS NULL");
        let unsealed = tx.row(unsealed).await?.map_or(Ok(0), |row| row.size("n"))?;
        let end = head(&mut tx).await?;
        let mut last = genesis(&mut tx).await?;
        let report = |sealed, first_bad| Verification { sealed, unsealed, first_bad, head: end.hash.clone() };
        loop {
            let stmt = sql("operation", COLUMNS).text(" WHERE seq IS NOT NULL AND seq > ").arg(last.seq);
            let rows = tx.rows(stmt.text(" ORDER BY seq NULLS FIRST LIMIT ").arg(VERIFY_ROWS)).await?;
            for row in &rows {
                let seq = last.seq + 1;
                // A row that does not even parse was changed.
                match from_row(row) {
                    Ok(row) if is_next(&last, &row) => last = Head { seq, hash: hash(&last.hash, seq, &row) },
                    _ => return Ok(report(last.seq, Some(seq))),
                }
            }
            if rows.is_empty() {
                let whole = last.seq == end.seq && last.hash == end.hash;
                return Ok(report(last.seq, (!whole).then_some(last.seq.min(end.seq) + 1)));
            }
        }
    }
}

fn is_next(last: &Head, row: &Operation) -> bool {
    let seq = last.seq + 1;
    row.seq == Some(seq)
        && row.prev_hash.as_deref() == Some(&last.hash)
        && row.hash.as_deref() == Some(&hash(&last.hash, seq, row))
}

async fn seal_in(tx: &mut Tx<'_>) -> Result<u64, DbError> {
    let waiting = sql("operation", COLUMNS).text(" WHERE seq IS NULL ORDER BY id LIMIT ").arg(SEAL_ROWS_MAX);
    let waiting = tx.rows(waiting).await?;
    if waiting.is_empty() {
        return Ok(0);
    }
    let mut last = head(tx).await?;
    for row in &waiting {
        let row = from_row(row)?;
        let seq = last.seq + 1;
        let hash = hash(&last.hash, seq, &row);
        let update = "UPDATE operation SET seq = $1, prev_hash = $2, hash = $3 WHERE id = $4 AND seq IS NULL";
        let update = sql("operation", update).bind(seq).bind(&last.hash).bind(&hash).bind(row.draft.id);
        tx.run(update).await?;
        last = Head { seq, hash };
    }
    put_meta(tx, "operation_head", &format!("{} {}", last.seq, last.hash)).await?;
    Ok(waiting.len() as u64)
}

async fn head(tx: &mut Tx<'_>) -> Result<Head, DbError> {
    let Some(text) = meta(tx, "operation_head").await? else {
        return genesis(tx).await;
    };
    let parts = text.split_once(' ').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.to_owned())));
    let (seq, hash) = parts.ok_or_else(|| DbError::Value {
        table: "meta",
        column: "value",
        given: text.chars().take(64).collect(),
        expected: "operation_head as NUMBER HASH".to_owned(),
    })?;
    Ok(Head { seq, hash })
}

/// What row 1 follows: another instance's chain does not fit here.
async fn genesis(tx: &mut Tx<'_>) -> Result<Head, DbError> {
    let instance = meta(tx, "instance_id").await?.unwrap_or_default();
    let hash = blake3::hash(format!("{HASH_DOMAIN} {instance}").as_bytes()).to_hex().to_string();
    Ok(Head { seq: 0, hash })
}

/// Every column with its length before it, so that no two rows share an encoding.
fn hash(prev_hash: &str, seq: u64, row: &Operation) -> String {
    let mut hasher = blake3::Hasher::new();
    let (seq, time_us, id) = (seq.to_string(), row.time_us.to_string(), row.draft.id.to_string());
    let draft = &row.draft;
    let columns = [
        HASH_DOMAIN,
        prev_hash,
        &seq,
        &id,
        &time_us,
        &draft.who,
        draft.who_kind.as_str(),
        &draft.action,
        &draft.target_kind,
        &draft.target_id,
        &draft.target_name,
        draft.outcome.as_str(),
        &row.details_text,
    ];
    for column in columns {
        hasher.update(&(column.len() as u64).to_le_bytes());
        hasher.update(column.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
